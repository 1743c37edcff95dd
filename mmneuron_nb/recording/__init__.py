"""One pass over the samples: mergeable statistics, the recorder, the store."""
from .recorder import record
from .statistics import Moments, RoleMaximum, Statistic, moments
from .store import ActivationStore, open_store

__all__ = ['record', 'open_store', 'ActivationStore', 'Statistic', 'Moments', 'RoleMaximum', 'moments']
