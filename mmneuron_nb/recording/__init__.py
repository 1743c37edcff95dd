"""The one pass over the samples, in this process or on a cluster."""
from .recorder import record

__all__ = ['record']
