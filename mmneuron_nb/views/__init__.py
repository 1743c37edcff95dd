"""Pictures, figures, cards and pages: from numbers to what a person sees."""
from importlib import import_module

# Where each name lives; imported on first use, so that numbers bring no plotly and no matplotlib.
_HOME = {
    'palette': ('LOOK', 'contrast'),
    'summaries': ('Summary', 'summary', 'Histogram', 'histogram', 'TypeCounts', 'type_counts'),
    'by_layer': ('LayerTop', 'layer_top', 'LayerShares', 'layer_shares'),
    'browser': ('browser_safe',),
    'figures': ('histogram_figure', 'layer_figure'),
    'static': ('Picture', 'histogram_picture', 'layer_picture', 'shares_picture'),
    'pages': ('page', 'table_html', 'write_page'),
    'overlays': ('exemplar_card', 'shaded_text', 'modulate', 'heat'),
    'report': ('write_report',),
}
_FACE = {name: module for module, names in _HOME.items() for name in names}
__all__ = list(_FACE)

def __getattr__(name):
    if name in _FACE: return getattr(import_module(f'.{_FACE[name]}', __name__), name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')

def __dir__(): return [*globals(), *_FACE]
