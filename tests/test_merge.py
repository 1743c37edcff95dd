"""Invariants 4 to 6 as properties: merging is associative and commutative; batches, order and shards change nothing."""
import math, random

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from mmneuron_nb.errors import MMNeuronError, StoreError
from mmneuron_nb.testing.tiny import tiny_llava, tiny_samples
from mmneuron_nb.models.vlm import VLM
from mmneuron_nb.neurons import modality_types
from mmneuron_nb.recording.recorder import record
from mmneuron_nb.statistics.base import Acts, Counted, Statistic
from mmneuron_nb.statistics.built_in import ActiveCounts, Moments, RoleMaximum
from mmneuron_nb.statistics.order import Plan, TopN, make_key, split_key

few = [0., -0., 1., -1., 1.5, 1e-45, -1e-45, 3e38, -3e38]  # few values: many ties
value = st.one_of(st.sampled_from(few), st.floats(width=32, allow_nan=False, allow_infinity=False))


def fill(rows, ids, n):
    "TopN of the samples `ids` (rows: one list of values per sample), each entry with its own value as a column."
    t = TopN(len(rows[0]), n, dict(col=1))
    for i in ids:
        v = torch.tensor(rows[i])[None]
        b, u = t.admit(v).nonzero(as_tuple=True)
        t.add(u, v[b, u], torch.full((len(u),), i), dict(col=v[b, u][:, None]))
    return t.flush()


def same(a, b): return torch.equal(a.key, b.key) and torch.equal(a.columns['col'], b.columns['col'])


@settings(max_examples=150, deadline=None)
@given(st.lists(st.lists(value, min_size=3, max_size=3), min_size=1, max_size=24), st.integers(1, 7),
       st.randoms(use_true_random=False))
def test_top_n_is_one_pass_in_any_order_and_any_split(rows, n, rng):
    order = list(range(len(rows)))
    whole = fill(rows, order, n)
    for u in range(3):  # oracle: sort everything; -0.0 and 0.0 tie, the smaller sample wins
        want = sorted(order, key=lambda i: (-np.float32(rows[i][u]) + 0., i))[:n]
        assert [i for i in split_key(whole.key[u])[1].tolist() if i >= 0] == want
        assert [np.float32(rows[i][u]) for i in want] == whole.columns['col'][u, :len(want), 0].tolist()
    rng.shuffle(order)
    cut = sorted(rng.choices(range(len(rows) + 1), k=2))
    parts = [order[:cut[0]], order[cut[0]:cut[1]], order[cut[1]:]]
    a, b, c = (lambda k=k: fill(rows, parts[k], n) for k in range(3))
    assert same(fill(rows, order, n), whole)
    assert same(a().merge(b()), b().merge(a()))
    assert same(a().merge(b()).merge(c()), whole)
    assert same(a().merge(b().merge(c())), whole)


class Negative(Statistic):
    name, dims, domains = 'negative', ('role',), True
    def reduce(self, acts): return acts.count_by_role(acts.x < 0)


class Mean(Statistic):
    name, domains = 'mean', True
    def reduce(self, acts): return acts.x.double().mean(1)


class Least(Statistic):
    name, combine = 'least', 'min'
    def reduce(self, acts): return acts.x.amin(1)


moderate = st.one_of(st.sampled_from(few[:7] + [1e4, -1e4]), st.floats(-1e5, 1e5, width=32))


@pytest.mark.parametrize('kind', [ActiveCounts, Moments, RoleMaximum, Negative, Mean, Least])
@settings(max_examples=40, deadline=None)
@given(st.data())
def test_statistics_are_one_pass_in_any_order_and_any_split(kind, data):
    n, tokens, width = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 5)), data.draw(st.integers(1, 3))
    def draw(what, *shape):
        size = math.prod(shape)
        return torch.tensor(data.draw(st.lists(what, min_size=size, max_size=size))).reshape(shape)
    x, domain = draw(moderate, n, tokens, width).float(), draw(st.integers(0, 1), n)
    roles = draw(st.integers(0, 4), n, tokens).to(torch.uint8)
    def fed(rows, size):
        stat = kind().fresh(width, 2)
        for k in range(0, len(rows), size):
            r = rows[k:k + size]
            kept = Counted(torch.ones(len(r), dtype=torch.bool), torch.tensor(r), domain[r])
            stat.update(stat.ready(stat.reduce(Acts(x[r], Plan(roles[r]), x[r].amax(1))), kept), kept)
        return stat
    same = lambda a, b: a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    whole, rng = fed(list(range(n)), n).arrays(), data.draw(st.randoms(use_true_random=False))
    rows = rng.sample(range(n), n)
    cut = sorted(rng.choices(range(n + 1), k=2))
    a, b, c = (lambda p=p: fed(p, rng.randint(1, 4)) for p in (rows[:cut[0]], rows[cut[0]:cut[1]], rows[cut[1]:]))
    assert same(whole, fed(rows, rng.randint(1, 4)).arrays())
    assert same(whole, a().merge(b()).merge(c()).arrays()) and same(whole, c().merge(b().merge(a())).arrays())
    back = kind().fresh(width, 2)
    back.load(fed(rows[:cut[1]], 2).arrays())
    assert same(whole, back.merge(fed(rows[cut[1]:], 2)).arrays())


@settings(max_examples=300, deadline=None)
@given(value, value, st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
def test_keys_order_like_value_then_sample(a, b, i, j):
    ka, kb = (make_key(torch.tensor([v]), torch.tensor([o])).item() for v, o in ((a, i), (b, j)))
    fa, fb = np.float32(a), np.float32(b)
    assert (ka > kb) == (fa > fb or (fa == fb and i < j))
    assert split_key(torch.tensor([ka]))[1].item() == i and split_key(torch.tensor([ka]))[0].item() == fa


MODELS = [dict(seed=1, layers=2, neurons=48),
          dict(seed=2, layers=4, neurons=40, width=24, heads=3, image=96, vision_layers=2)]


@pytest.fixture(scope='module', params=MODELS, ids=str)
def world(request):
    vlm, samples = VLM(*tiny_llava(**request.param)), tiny_samples(26, seed=request.param['seed'])
    kw = dict(top=7, random=6, modules=('vision', 'projector', 'lm'), progress=False)
    return vlm, samples, kw, record(vlm, samples, **kw)


def equal(a, b):
    assert a.ids == b.ids
    for m in a.modules:
        for v in a.module(m).data_vars:
            assert np.array_equal(a.module(m)[v].values, b.module(m)[v].values), (m, v)


@pytest.mark.parametrize('trial', range(4))
def test_store_does_not_depend_on_batches_order_or_shards(world, trial, tmp_path):
    vlm, samples, kw, whole = world
    rng = random.Random(trial)
    mixed = rng.sample(samples, len(samples))
    size, tokens = rng.choice([1, 2, 3, 5, 13]), rng.choice([1, 150, 400, None])
    equal(whole, record(vlm, mixed, batch_size=size, max_tokens_per_batch=tokens, workers=trial % 3, **kw))
    cut = sorted(rng.sample(range(1, len(mixed)), 2))
    parts = mixed[:cut[0]], mixed[cut[0]:cut[1]], mixed[cut[1]:]
    a, b, c = (record(vlm, p, batch_size=rng.choice([1, 4, 7]), **kw) for p in parts)
    equal(whole, a.merge(b).merge(c))
    equal(whole, c.merge(a.merge(b, tmp_path/'ab.zarr'), tmp_path/'abc.zarr'))
    assert modality_types(whole).equals(modality_types(a.merge(b).merge(c)))


def test_integer_ids_break_ties_as_numbers(world):
    from dataclasses import replace
    vlm, samples, kw, _ = world
    one = samples[0]
    store = record(vlm, [replace(one, id=i) for i in (10, 9, 100, 1)], **(kw | dict(top=3)))
    assert store.ids == [1, 9, 10, 100]
    assert (store.ds.top_sample.values == [0, 1, 2]).all()  # equal samples: the smaller ids win


@pytest.mark.parametrize('what, other', [
    ('another weights', lambda vlm, s, kw: record(VLM(*tiny_llava(seed=7, layers=2, neurons=48)), s[4:8], **kw)),
    ('different top', lambda vlm, s, kw: record(vlm, s[4:8], **kw | dict(top=3))),
    ('different site', lambda vlm, s, kw: record(vlm, s[4:8], **kw | dict(site='post'))),
    ('different modules', lambda vlm, s, kw: record(vlm, s[4:8], **kw | dict(modules=('lm',)))),
    ('different layers', lambda vlm, s, kw: record(vlm, s[4:8], **kw | dict(layers=[0]))),
    ('1 samples are in both stores', lambda vlm, s, kw: record(vlm, s[3:8], **kw)),
    ('stand for other texts or images', lambda vlm, s, kw: record(vlm, [renamed(s[5], s[3].id)], **kw)),
    ('stand for other texts or images',
     lambda vlm, s, kw: record(vlm, [s[5], renamed(s[3], s[3].id, prompt='what?')], **kw)),
    ('strings and numbers', lambda vlm, s, kw: record(vlm, [renamed(s[5], 1)], **kw)),
], ids=['weights', 'top', 'site', 'modules', 'layers', 'overlap', 'texts', 'images', 'kinds of ids'])
def test_merge_refuses(what, other, tmp_path):
    vlm, samples = VLM(*tiny_llava(seed=1, layers=2, neurons=48)), tiny_samples(8, seed=1)
    kw = dict(top=7, random=6, modules=('vision', 'lm'), progress=False)
    mine = record(vlm, samples[:4], **kw)
    theirs = other(vlm, samples, kw)
    for a, b in ((mine, theirs), (theirs, mine)):
        with pytest.raises(MMNeuronError, match=what): a.merge(b, tmp_path/'both.zarr')
    assert not list(tmp_path.iterdir())


def renamed(sample, i, **kw):
    from dataclasses import replace
    return replace(sample, id=i, **kw)


def test_the_same_picture_under_another_name_is_another_sample():
    vlm, samples = VLM(*tiny_llava(seed=1, layers=2, neurons=48)), tiny_samples(4, seed=1)
    kw = dict(top=7, random=6, progress=False)
    both = record(vlm, samples, **kw).merge(record(vlm, [renamed(samples[0], 'copy')], **kw))
    assert both.ids == sorted([*[s.id for s in samples], 'copy'])
    other = record(vlm, [renamed(samples[0], 'copy')], **kw)
    with pytest.raises(StoreError, match='exists'): record(vlm, samples, **kw).merge(other, __file__)
