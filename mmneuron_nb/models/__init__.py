"""One handle for any vision-language model: where neurons sit, which token is what."""
from .vlm import VLM, Batch
from . import checks  # attaches `VLM.check`

__all__ = ['VLM', 'Batch']
