"""Real shapes with random weights, built on the device.

A model is the tiny one of the same design from the zoo, with the published numbers in its configuration.

Processors have the real geometry (sides, patches, tiles); the tokenizer is a small one, which changes words into other
ids and nothing else.
"""
import random

import numpy as np
import torch
from PIL import Image

from mmneuron_nb import VLM, Sample
from mmneuron_nb.testing.tiny import WORDS
from mmneuron_nb.testing.zoo import tiny_vlm

LLAMA = dict(hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32,
             num_key_value_heads=32, head_dim=128, vocab_size=32064, max_position_embeddings=4096)
CLIP = dict(hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, image_size=336,
            patch_size=14)
QWEN = dict(hidden_size=2048, intermediate_size=11008, num_hidden_layers=36, num_attention_heads=16,
            num_key_value_heads=2, head_dim=128, vocab_size=151936, max_position_embeddings=32768)
QWEN_EYE = dict(depth=32, hidden_size=1280, intermediate_size=3420, num_heads=16, window_size=112,
                fullatt_block_indexes=[7, 15, 23, 31])
PINS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
SIDE = dict(size=dict(shortest_edge=336), crop_size=dict(height=336, width=336))
QWEN_PICTURE = dict(patch_size=14, merge_size=2, temporal_patch_size=2,
                    size=dict(shortest_edge=56*56, longest_edge=28*28*1280))
SHAPES = { # name: (design in the zoo, language model, vision tower, whole configuration, image processor)
    'llava-1.5-7b': ('llava', LLAMA, CLIP, dict(image_seq_length=576), SIDE),
    'qwen2.5-vl-3b': ('qwen2.5-vl', QWEN, QWEN_EYE, {}, QWEN_PICTURE),
    'llava-next-7b': ('llava-next', LLAMA, CLIP, dict(image_seq_length=576, image_grid_pinpoints=PINS),
                      SIDE | dict(image_grid_pinpoints=PINS)),
}
SMALL = dict(hidden_size=128, intermediate_size=320, num_hidden_layers=2, num_attention_heads=4, head_dim=32, depth=2,
             num_heads=4, fullatt_block_indexes=[1], vocab_size=1000)


def change(config, numbers, shrink):
    "Set `numbers` in a configuration (with `shrink` small widths and depths instead), and what follows from them."
    numbers = {k: SMALL.get(k, v) if shrink else v for k, v in numbers.items()}
    if 'num_key_value_heads' in numbers:
        heads = numbers['num_attention_heads']
        numbers['num_key_value_heads'] = min(numbers['num_key_value_heads'], heads)
    for k, v in numbers.items(): setattr(config, k, v)
    if getattr(config, 'layer_types', None): config.layer_types = ['full_attention']*config.num_hidden_layers
    rope = getattr(config, 'rope_parameters', None)
    if rope and 'mrope_section' in rope: rope['mrope_section'] = [4, 6, 6] if shrink else [16, 24, 24]


def build(name, device='cuda', dtype='bfloat16', shrink=False):
    "`VLM` of one of `SHAPES`."
    design, text, eye, whole, picture = SHAPES[name]
    tiny, processor = tiny_vlm(design)
    config = tiny.config
    change(config.text_config, text, shrink)
    change(config.vision_config, eye, shrink)
    for k, v in whole.items(): setattr(config, k, v)
    if hasattr(config.vision_config, 'out_hidden_size'):
        config.vision_config.out_hidden_size = config.text_config.hidden_size
    processor.image_processor = type(processor.image_processor)(**picture)
    if hasattr(processor, 'patch_size'): processor.patch_size = 14
    with torch.device(device): model = type(tiny)._from_config(config, dtype=getattr(torch, dtype))
    g = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        for k, p in model.named_parameters(): # activations of order one, as in `liven`, drawn on the device
            if 'norm' in k: continue
            if p.dim() < 2: scale = .1
            elif p.dim() == 2 and 'embed' in k: scale = .5
            else: scale = p[0].numel()**-.5
            p.normal_(0, scale, generator=g)
    return VLM(model, processor)


def pictures(n, seed=0):
    "`n` samples of 784 x 588 pixels (576 to 2,340 patches) and about 110 tokens of text."
    out = []
    for i in range(n):
        rng, r = np.random.default_rng([seed, i]), random.Random(f'{seed}-{i}')
        image = Image.fromarray(rng.integers(0, 256, (21, 28, 3), dtype=np.uint8)).resize((784, 588), Image.BICUBIC)
        say = lambda a, b: ' '.join(r.choices(WORDS, k=r.randint(a, b)))
        out.append(Sample(f'picture-{i:06}', image, say(10, 20), say(60, 80), r.choice(['common', 'driving'])))
    return out
