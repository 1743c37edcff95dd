"""Everything that says something about a neuron: columns of one table."""
from .masks import load_masks, neuron_masks, save_masks
from .modality import modality_types, outliers, threshold_sweep

__all__ = ['modality_types', 'outliers', 'threshold_sweep', 'neuron_masks', 'save_masks', 'load_masks']
