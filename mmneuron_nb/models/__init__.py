"""One handle for any vision-language model: where neurons sit, which token is what."""
from .encoding import Batch
from .vlm import VLM
from . import checks, describe, loading  # attach `VLM.check`, `VLM.describe`, `VLM.from_pretrained` and `VLM.toy`

__all__ = ['VLM', 'Batch']
