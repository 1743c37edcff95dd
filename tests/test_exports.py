"""What the rooms export is there, and importing a room costs no more than it has to."""
import subprocess
import sys

import pytest

HEAVY = 'torch transformers plotly matplotlib pandas pycocotools pyarrow ipywidgets'.split()


def python(code):
    "What Python prints for `code`, run in a process of its own."
    return subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.split()


@pytest.mark.parametrize('room', ['data', 'scenes', 'views'])
def test_importing_a_room_brings_nothing_heavy(room):
    code = f'import sys, mmneuron_nb.{room}; print(*[m for m in {HEAVY} if m in sys.modules])'
    assert python(code) == []


@pytest.mark.parametrize('room', ['data', 'scenes', 'views'])
def test_every_exported_name_is_there(room):
    code = f'import mmneuron_nb.{room} as room; print(*[n for n in room.__all__ if not hasattr(room, n)])'
    assert python(code) == []
    code = (f'from mmneuron_nb.{room} import *; from mmneuron_nb import {room} as room\n'
            'print(len(set(room.__all__) - set(dir())))')
    assert python(code) == ['0']


def test_numbers_bring_no_plotly():
    code = ('import sys; from mmneuron_nb.views import type_counts, histogram\n'
            "print(*[m for m in ('plotly', 'matplotlib') if m in sys.modules])")
    assert python(code) == []


def test_an_unknown_name_is_an_attribute_error():
    import mmneuron_nb.views as views
    with pytest.raises(AttributeError, match="no attribute 'nothing'"): views.nothing
    assert 'write_report' in dir(views)
