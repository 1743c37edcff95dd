"""What people give as neurons, or do to a table of them: right, or refused by name."""
import numpy as np
import pandas as pd
import pytest

from mmneuron_nb.errors import OptionError, SiteError
from mmneuron_nb.names import TYPES, parse_neuron
from mmneuron_nb.neurons.selection import as_neurons, by_site
from mmneuron_nb.neurons.table import INDEX, NeuronTable

NEURONS = pd.MultiIndex.from_tuples([('lm', 0, 1), ('lm', 1, 0), ('lm', 0, 2)], names=INDEX)

@pytest.mark.parametrize('given', [[('lm', 0, -1)], [('lm', -1, 0)], 'lm.L-1.U3', 'lm.L0.U-3', ' lm.L0.U1', 'lm.L 0.U1',
                                   'lm.L0.U1_0', 'lm.L0.U٣', '.L0.U1', pd.Series([True, False, None], NEURONS),
                                   pd.Series([True, False, True], NEURONS).astype('boolean'),
                                   pd.Series(['a', 'b', 'c'], NEURONS)], ids=repr)
def test_refused(given):
    with pytest.raises((OptionError, SiteError)): as_neurons(given)

def test_a_column_of_no_table():
    with pytest.raises(OptionError, match="weights='membership' names a column"):
        as_neurons(['lm.L0.U1'], weights='membership')

@pytest.mark.parametrize('neuron', [('lm', 1.9, 2), ('lm', 1, -2), ('lm', float('nan'), 2)])
def test_numbers_are_not_rounded(neuron):
    with pytest.raises(SiteError, match='names no neuron'): parse_neuron(neuron)

def test_no_neuron_of_an_unsorted_index_is_lost():
    assert {k: v.tolist() for k, v in by_site(NEURONS).items()} == {('lm', 0): [1, 2], ('lm', 1): [0]}
    weights = by_site(pd.Series([1., 2., 3.], NEURONS))
    assert {k: (i.tolist(), w.tolist()) for k, (i, w) in weights.items()} == {('lm', 0): ([1, 2], [1., 3.]),
                                                                             ('lm', 1): ([0], [2.])}

def test_a_table_shows_itself_whatever_was_done_to_it():
    types = pd.Categorical(['visual', 'text', 'unknown'], TYPES)
    table = NeuronTable(dict(type=types, word='<script>'), index=NEURONS)
    table.attrs.update(method='<b>', samples='many', notes=3)
    for frame in (table, pd.concat([table, table], axis=1), table.iloc[:0]):
        html = frame._repr_html_()
        assert 'mm-view' in html and '<script>' not in html and '<b>' not in html
