"""Stores of an earlier version open unchanged, say the same, agree with their model, merge and go on.

`data/store_*.zip` were written by version 0.1.0 as of November 2026, and `data/stores.json` holds what that version
read from them. They are never made anew: what is written today must be readable tomorrow.
"""
import json
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zarr

from mmneuron_nb import VLM, open_store, record, scenes
from mmneuron_nb.neurons import modality_types, outliers
from mmneuron_nb.statistics import Moments, RoleMaximum
from mmneuron_nb.store.storage import hashes, sizes
from mmneuron_nb.testing.tiny import tiny_llava, tiny_samples

DATA = Path(__file__).parent/'data'
WANT = json.loads((DATA/'stores.json').read_text(encoding='utf-8'))
NAMES = ('store_toy', 'store_rows')
OPTIONS = dict(top=4, random=3, order=3, modules=('vision', 'lm'), keep_tokens=True, progress=False)

pytestmark = pytest.mark.skipif(zarr.__version__ < '3', reason='the stores are of zarr 3, and Python 3.10 has zarr 2')


@pytest.fixture
def old(tmp_path):
    "Folder with both stores as they were written."
    for name in NAMES: zipfile.ZipFile(DATA/f'{name}.zip').extractall(tmp_path)
    return tmp_path


@pytest.fixture(scope='module')
def tiny(): return VLM(*tiny_llava(seed=3, layers=2, neurons=24, vision_neurons=24))


def tiny_samples_with_domains(n, first=0):
    "Samples number `first` to `n` of the old store and of what follows it."
    return [replace(s, domain='ab'[i % 2]) for i, s in enumerate(tiny_samples(n))][first:]


def options(): return OPTIONS | dict(stats=[Moments(), RoleMaximum()])


@pytest.mark.parametrize('name', NAMES)
def test_opens_unchanged_and_says_the_same(old, name):
    store, want = open_store(old/name), WANT[name]
    assert store.check(progress=False) == len(sizes(old/name))
    table = modality_types(store, n_v=2)
    for m in store.modules:
        assert table.loc[m].type.value_counts().to_dict() == want['types'][m]
        assert store.to_pandas(m, rank=0).value.sum() == pytest.approx(want['top'][m], rel=1e-6)
    assert len(outliers(store, n_v=2)) == want['outliers']


def test_a_kept_token_row_says_the_same(old):
    row, want = open_store(old/'store_rows').tokens('lm.L1.U3', rank=1), WANT['row']
    assert (row.sample_id, row.tokens, row.roles.tolist()) == (want['sample'], want['tokens'], want['roles'])
    np.testing.assert_allclose(row.values, want['values'], rtol=1e-6)


def test_attaches_to_the_shipped_model_which_agrees(old):
    samples = scenes.make(10, seed=3)
    store = open_store(old/'store_toy', VLM.toy(), samples)
    found = store.verify(exact=False)
    assert found and found.checked == 200, found
    assert store.tokens('lm.L5.U7').sample_id in store.ids


def test_goes_on_as_a_finished_run(old, tiny, capsys):
    before = hashes(old/'store_rows', sizes(old/'store_rows'))
    store = record(tiny, tiny_samples_with_domains(9), old/'store_rows', **options() | dict(progress=True))
    assert 'is finished, so nothing was recorded' in capsys.readouterr().out
    assert store.verify(exact=False)
    assert hashes(old/'store_rows', sizes(old/'store_rows')) == before


def test_merges_with_a_store_of_today(old, tiny):
    old_one = open_store(old/'store_rows')
    both = old_one.merge(record(tiny, tiny_samples_with_domains(13, 9), **options()), old/'both.zarr')
    whole = record(tiny, tiny_samples_with_domains(13), **options())
    assert both.ids == whole.ids and both.manifest['domains'] == ['a', 'b']
    for m in whole.modules:
        for k, v in whole.module(m).data_vars.items():
            have = both.module(m)[k].values                     # another kind of CPU may give other last bits
            if v.dtype.kind == 'f': np.testing.assert_allclose(have, v.values, rtol=1e-4, atol=1e-5)
            elif k != 'top_row': assert np.array_equal(have, v.values), (m, k)
