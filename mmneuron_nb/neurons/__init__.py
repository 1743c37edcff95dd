"""Everything that says something about a neuron: columns of one table."""
from .modality import modality_types, outliers, threshold_sweep

__all__ = ['modality_types', 'outliers', 'threshold_sweep']
