"""What a GPU asks for, proved without one: while the model runs, no statistic waits for an answer of the device."""
import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mmneuron_nb.models.tiny import tiny_llava, tiny_samples
from mmneuron_nb.models.vlm import VLM
from mmneuron_nb.recording import Moments, RoleMaximum, Statistic
from mmneuron_nb.recording.recorder import record
from mmneuron_nb.recording.reduce import BatchReader
from mmneuron_nb.recording.top import TopSamples
from mmneuron_nb.recording.stats import Plan

WAITS = {'_local_scalar_dense', 'item', 'tolist', 'nonzero', 'masked_select', 'equal', 'is_nonzero', '_unique2', 'unique_consecutive', 'bincount', 'repeat_interleave'}


class NoWaiting(TorchDispatchMode):
    "Refuses what would stop a GPU until it has answered."
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        masks = name in ('index', 'index_put', 'index_put_') and any(torch.is_tensor(i) and i.dtype in (torch.bool, torch.uint8) for i in args[1])
        if name in WAITS or masks: raise AssertionError(f'{name} waits for the device')
        return func(*args, **(kwargs or {}))


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    made, called, seen = Plan.__post_init__, BatchReader.__call__, []
    def plan(self):
        made(self)
        self.waits = False
    def watched(self, site, x):
        seen.append(site)
        with NoWaiting(): called(self, site, x)
    monkeypatch.setattr(Plan, '__post_init__', plan)
    monkeypatch.setattr(BatchReader, '__call__', watched)
    return seen


KW = dict(top=4, random=5, modules=('vision', 'projector', 'lm'), progress=False, batch_size=3, keep_tokens=True, stats=[Moments(), RoleMaximum()])


def test_nothing_waits_and_the_store_is_the_same(as_on_a_gpu, monkeypatch):
    vlm, samples = VLM(*tiny_llava(seed=4, layers=2, neurons=48)), tiny_samples(40, seed=4)
    got = record(vlm, samples, **KW)
    calls = len(as_on_a_gpu)
    monkeypatch.undo()
    want = record(vlm, samples, **KW)
    assert calls >= 5*14
    for m in want.modules:
        for v in want.module(m).data_vars: assert np.array_equal(got.module(m)[v].values, want.module(m)[v].values), (m, v)


def test_a_batch_with_more_entries_than_room_is_read_again(as_on_a_gpu, monkeypatch):
    vlm, samples = VLM(*tiny_llava(seed=4, layers=2, neurons=48)), tiny_samples(12, seed=4)
    want = record(vlm, samples, **KW)
    forward, runs, init = vlm.forward, [], TopSamples.__init__
    def small(self, *a, **k):
        init(self, *a, **k)
        self.room = 5
    monkeypatch.setattr(TopSamples, '__init__', small)
    vlm.forward = lambda *a, **k: (runs.append(1), forward(*a, **k))[1]
    got = record(vlm, samples, **KW)
    assert len(runs) > 4, 'the first batch has no room for its entries'
    for v in want.ds.data_vars: assert np.array_equal(got.ds[v].values, want.ds[v].values), v


def test_a_statistic_that_waits_is_found(as_on_a_gpu):
    class Asks(Statistic):
        name = 'asks'
        def reduce(self, acts): return acts.x.amax(1)*acts.x.max().item()
    with pytest.raises(AssertionError, match='waits for the device'):
        record(VLM(*tiny_llava(seed=4, layers=2, neurons=48)), tiny_samples(4, seed=4), **KW | dict(stats=[Asks()]))
