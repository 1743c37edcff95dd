"""Every view that an object of the library names exists, and takes one argument."""
import ast
import inspect
from importlib import import_module
from pathlib import Path

import pytest

import mmneuron_nb
from mmneuron_nb.display import ShownBy

ROOT = Path(mmneuron_nb.__file__).parent


def named_views():
    "`{module:line: name}` of everything that is assigned to `shown_by` in the library."
    for p in sorted(ROOT.rglob('*.py')):
        for n in ast.walk(ast.parse(p.read_text(encoding='utf-8'))):
            named = isinstance(n, ast.Assign) and any(getattr(t, 'id', '') == 'shown_by' for t in n.targets)
            if named and n.value.value:
                yield f'{p.relative_to(ROOT)}:{n.lineno}', n.value.value


VIEWS = dict(named_views())


def test_some_are_named(): assert set(VIEWS.values()) >= {'tables.row_html', 'tables.top_html', 'tables.store_html'}


@pytest.mark.parametrize('where', VIEWS)
def test_view_exists(where):
    module, _, function = VIEWS[where].rpartition('.')
    view = getattr(import_module(f'mmneuron_nb.views.{module}'), function)
    assert sum(p.default is p.empty for p in inspect.signature(view).parameters.values()) == 1


def test_no_name_is_an_error():
    with pytest.raises(ImportError): ShownBy()._repr_html_()
