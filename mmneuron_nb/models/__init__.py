"""One handle for any vision-language model: where neurons sit, which token is what."""
from .encoding import Batch
from .vlm import VLM

__all__ = ['VLM', 'Batch']
