"Widget dashboards: state as traits, one chart, words and a table; they show themselves in JupyterLab and save themselves as pages."
from .histogram import HistogramDashboard
from .layers import LayerDashboard

__all__ = ['HistogramDashboard', 'LayerDashboard']
