"""What goes into a model: the record of a sample, and readers that make samples from files, folders and tables."""
from .coco import CocoObject
from .domains import Frames
from .images import ImageFolder, check_image, perceptual_hash
from .reading import Checks, Reader, Skipped
from .readers import READERS, coco_captions, coco_instances, cocoqa, docvqa, flickr30k, folder, from_rows, lingoqa
from .readers import llava_instruct, open_reader, pmc_vqa, rsvqa_hr, sbu, table, vqav2
from .samples import Sample, SceneObject, check_samples, load_image, open_image

__all__ = [
    'Sample', 'SceneObject', 'load_image', 'open_image', 'check_samples', 'check_image', 'perceptual_hash',
    'Reader', 'Checks', 'Skipped', 'READERS', 'open_reader', 'ImageFolder', 'folder', 'table', 'from_rows',
    'coco_captions', 'coco_instances', 'CocoObject', 'cocoqa', 'vqav2', 'llava_instruct', 'pmc_vqa', 'docvqa',
    'lingoqa', 'Frames', 'rsvqa_hr', 'sbu', 'flickr30k',
]
