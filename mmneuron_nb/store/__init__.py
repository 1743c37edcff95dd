"""A recording on disk: complete or absent, opened in a moment, checked, merged, exported."""
from .store import ActivationStore, open_store
from .tokens import TokenRow, TopRows
from .verify import Verification

__all__ = ['open_store', 'ActivationStore', 'TokenRow', 'TopRows', 'Verification']
