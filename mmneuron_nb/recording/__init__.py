"""One pass over the samples: mergeable statistics, the recorder, the store."""
from .recorder import record
from .statistics import Moments, RoleMaximum, Statistic, moments
from .store import ActivationStore, open_store
from . import exports, merging # `to_pandas`, `to_safetensors` and `merge` of a store
from .verify import Verification

__all__ = ['record', 'open_store', 'ActivationStore', 'Statistic', 'Moments', 'RoleMaximum', 'moments', 'Verification']
