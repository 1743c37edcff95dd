"""The drawn world: pictures of known things with exact masks, captions and questions."""
from .world import *
from .world import __all__
