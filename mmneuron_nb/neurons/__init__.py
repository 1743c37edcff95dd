"""Everything that says something about a neuron: columns of one table."""
from importlib import import_module

# Where each name lives; imported on first use, so that charts, which need the table only, do without torch.
_FACE = dict(as_neurons='selection', by_site='selection', check_table='table', NeuronTable='table',
             modality_types='modality', outliers='modality', threshold_sweep='modality', exemplars='modality',
             compare_tables='compare', save_csv='compare',
             neuron_masks='masks', save_masks='masks', load_masks='masks')
__all__ = list(_FACE)

def __getattr__(name):
    if name not in _FACE: raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(import_module(f'.{_FACE[name]}', __name__), name)

def __dir__(): return [*globals(), *_FACE]
