"""Which neurons of a vision-language model see, read, or do both: record, classify, look."""
__version__ = "0.1.0"

from importlib import import_module

# Names of the public face and where they live; imported on first use, so that `import mmneuron_nb` costs nothing.
_FACE = dict(VLM='.models', scenes='.scenes', Sample='.data.samples', record='.recording', open_store='.store')
__all__ = list(_FACE)

def __getattr__(name):
    if name not in _FACE: raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    mod = import_module(_FACE[name], __name__)
    return mod if _FACE[name].endswith('.' + name) else getattr(mod, name)

def __dir__(): return [*globals(), *_FACE]
