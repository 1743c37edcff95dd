"""The drawn world: pictures of known things with exact masks, captions and questions."""
from .drawing import SIZE
from .language import KINDS
from .people import ACTIONS
from .pen import COLOURS, CONCEPTS, picture, sheet
from .plans import DOMAINS, PLACES, SETTINGS, WORLD_VERSION, make_plan
from .world import PROMPT, TASKS, gallery, make

__all__ = [
    'make', 'gallery', 'picture', 'sheet', 'make_plan', 'CONCEPTS', 'COLOURS', 'DOMAINS', 'SETTINGS', 'KINDS', 'TASKS',
    'ACTIONS', 'PLACES', 'PROMPT', 'SIZE', 'WORLD_VERSION',
]
