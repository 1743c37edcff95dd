"""A recording on disk: whole or absent, opened in a moment, checked, merged, exported."""
from .store import ActivationStore, open_store
from . import exports, merging # `to_pandas`, `to_safetensors` and `merge` of a store
from .verify import Verification

__all__ = ['open_store', 'ActivationStore', 'Verification']
