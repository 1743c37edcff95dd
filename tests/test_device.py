"""What a GPU asks for, proved without one: while the model runs, no statistic waits for an answer of the device;
its kernels, here in Triton's interpreter, give the same bits."""
import contextlib
import os

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

if not torch.cuda.is_available(): os.environ['TRITON_INTERPRET'] = '1' # before Triton is imported
NO_TRITON = 'Triton is missing: make test EXTRAS=lab,dev,kernels installs it'

from mmneuron_nb.testing.tiny import tiny_llava, tiny_samples
from mmneuron_nb.models.vlm import VLM
from mmneuron_nb.statistics import Moments, RoleMaximum, Statistic
from mmneuron_nb.recording import recorder, local
from mmneuron_nb.recording.recorder import record
from mmneuron_nb.recording.local import BatchReader, read_batch
from mmneuron_nb.statistics.top import TopSamples
from mmneuron_nb.statistics.order import Plan

WAITS = {'_local_scalar_dense', 'item', 'tolist', 'nonzero', 'masked_select', 'equal', 'is_nonzero', '_unique2',
         'unique_consecutive', 'bincount', 'repeat_interleave'}


class NoWaiting(TorchDispatchMode):
    "Refuses what would stop a GPU until it has answered."
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        index = args[1] if name in ('index', 'index_put', 'index_put_') else ()
        masks = [i for i in index if torch.is_tensor(i) and i.dtype in (torch.bool, torch.uint8)]
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
        first = self.layers[site.module, site.layer]['top'].room is None # a layer's first batch may ask
        with contextlib.nullcontext() if first else NoWaiting(): called(self, site, x)
    monkeypatch.setattr(Plan, '__post_init__', plan)
    monkeypatch.setattr(BatchReader, '__call__', watched)
    return seen


KW = dict(top=4, random=5, modules=('vision', 'projector', 'lm'), progress=False, batch_size=3, keep_tokens=True,
          stats=[Moments(), RoleMaximum()])


def test_nothing_waits_and_the_store_is_the_same(as_on_a_gpu, monkeypatch):
    vlm, samples = VLM(*tiny_llava(seed=4, layers=2, neurons=48)), tiny_samples(40, seed=4)
    got = record(vlm, samples, **KW)
    calls = len(as_on_a_gpu)
    monkeypatch.undo()
    assert calls >= 5*14
    equal(got, record(vlm, samples, **KW))


def equal(got, want, near=()): # near: sums of floats, which a kernel adds in another order
    for m in want.modules:
        for v in want.module(m).data_vars:
            a, b = got.module(m)[v].values, want.module(m)[v].values
            assert v in near or np.array_equal(a, b), (m, v)
            if v in near and not v.endswith('_exact'): np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


@pytest.fixture
def with_kernels(monkeypatch):
    pytest.importorskip('triton', reason=NO_TRITON)
    from mmneuron_nb.statistics import kernels
    made, calls = Plan.__post_init__, []
    def plan(self):
        made(self)
        self.waits, self.kernels = False, kernels
    for name in ('read', 'pairs'):
        f = getattr(kernels, name)
        monkeypatch.setattr(kernels, name, lambda *a, f=f, name=name: (calls.append(name), f(*a))[1])
    monkeypatch.setattr(Plan, '__post_init__', plan)
    return calls


@pytest.mark.parametrize('options', [{}, dict(count_template=True, keep_tokens=False, order=3),
                                     dict(keep_tokens='float16', site='post', domains=False, stats=[])], ids=str)
def test_kernels_record_the_same(with_kernels, monkeypatch, options):
    kw = KW | dict(modules=('projector', 'lm'), top=2, random=2) | options
    vlm, samples = VLM(*tiny_llava(seed=5, layers=1, neurons=20)), tiny_samples(7, seed=5)
    got = record(vlm, samples, **kw)
    assert with_kernels.count('read') == 6 and ('pairs' in with_kernels) == (kw['keep_tokens'] != 'float16')
    monkeypatch.undo()
    equal(got, record(vlm, samples, **kw), near=('power_sums', 'power_sums_exact'))


def test_kernels_that_cannot_be_built(monkeypatch):
    pytest.importorskip('triton', reason=NO_TRITON)
    from mmneuron_nb.statistics import kernels, order
    def fail(device): raise RuntimeError('no C compiler')
    monkeypatch.setattr(kernels, 'tried', fail)
    with pytest.warns(UserWarning, match='no C compiler'): assert order.gpu_kernels('some device') is None


class Stream:
    def wait_event(self, event): pass
    def synchronize(self): pass


@pytest.fixture
def one_late(monkeypatch):
    "Batches are added as on a GPU: each after the next one was begun."
    init, log = local.Commits.__init__, []
    def late(self, *a, **k):
        init(self, *a, **k)
        self.stream = Stream()
    begin, count = local.begin_batch, local.count
    monkeypatch.setattr(local.Commits, '__init__', late)
    monkeypatch.setattr(torch.cuda, 'stream', lambda s: contextlib.nullcontext())
    monkeypatch.setattr(local, 'begin_batch', lambda *a: (log.append('begin'), begin(*a))[1])
    monkeypatch.setattr(local, 'count', lambda *a: (log.append('add'), count(*a))[1])
    return log


def test_batches_are_added_while_the_next_is_read(as_on_a_gpu, one_late, monkeypatch):
    vlm, samples = VLM(*tiny_llava(seed=4, layers=2, neurons=48)), tiny_samples(14, seed=4)
    got, log = record(vlm, samples, **KW), [*one_late]
    assert log[:6] == ['begin', 'begin', 'add', 'begin', 'add', 'begin'] and log[-1] == 'add'
    assert log.count('add') == log.count('begin') == 5
    monkeypatch.undo()
    equal(got, record(vlm, samples, **KW))


def test_a_late_batch_without_room_is_read_again(as_on_a_gpu, one_late, monkeypatch):
    vlm, samples = VLM(*tiny_llava(seed=4, layers=2, neurons=48)), tiny_samples(14, seed=4)
    init, again = TopSamples.__init__, []
    def small(self, *a, **k):
        init(self, *a, **k)
        self.room = 5
    monkeypatch.setattr(TopSamples, '__init__', small)
    monkeypatch.setattr(local, 'read_batch', lambda *a: (again.append(1), read_batch(*a))[1])
    got = record(vlm, samples, **KW)
    assert again
    monkeypatch.undo()
    equal(got, record(vlm, samples, **KW))


def test_memory_that_runs_out_while_a_late_batch_is_finished(one_late, monkeypatch, recwarn):
    vlm, samples = VLM(*tiny_llava(seed=4, layers=2, neurons=48)), tiny_samples(14, seed=4)
    finished, n, again = local.finished, [], []
    def short(reader):
        n.append(len(reader.batch))
        if len(n) == 2: raise torch.OutOfMemoryError('CUDA out of memory')
        return finished(reader)
    monkeypatch.setattr(local, 'finished', short)
    got = record(vlm, samples, **KW)
    assert len(n) == 6 and sum(n) == 17, 'the second batch was read again'
    monkeypatch.undo()
    equal(got, record(vlm, samples, **KW))


def test_an_error_loses_no_batch_that_was_read(one_late, monkeypatch, tmp_path):
    vlm, samples = VLM(*tiny_llava(seed=4, layers=2, neurons=48)), tiny_samples(14, seed=4)
    begin, n = local.begin_batch, []
    def breaks(*a):
        n.append(1)
        if len(n) == 4: raise RuntimeError('the cable fell out')
        return begin(*a)
    with monkeypatch.context() as m:
        m.setattr(local, 'begin_batch', breaks)
        with pytest.raises(RuntimeError, match='the cable fell out'): record(vlm, samples, tmp_path/'run.zarr', **KW)
    assert one_late.count('add') == 3
    got = record(vlm, samples, tmp_path/'run.zarr', **KW)
    assert one_late.count('begin') == 5, 'three batches were kept, two are read'
    monkeypatch.undo()
    equal(got, record(vlm, samples, **KW))


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
    equal(got, want)


def test_a_statistic_that_waits_is_found(as_on_a_gpu):
    class Asks(Statistic):
        name = 'asks'
        def reduce(self, acts): return acts.x.amax(1)*acts.x.max().item()
    with pytest.raises(AssertionError, match='waits for the device'):
        record(VLM(*tiny_llava(seed=4, layers=2, neurons=48)), tiny_samples(4, seed=4), **KW | dict(stats=[Asks()]))


def test_kernels_leave_pads_and_the_sign_of_zero_alone():
    from mmneuron_nb.statistics import kernels
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    roles = torch.tensor([[4, 1, 1, 2, 3, 0, 0]], dtype=torch.uint8, device=device)
    x = torch.full((1, 7, 3), -0., device=device)
    x[0, 5:] = torch.nan
    top, bad, active = kernels.read(x, roles, False)
    assert not bad.any() and not active.any() and not top.any()
    at = torch.arange(3, device=device)
    visual, text, row, ends = kernels.pairs(x, roles, False, at*0, at, torch.tensor(3, device=device), 4, True)
    for part in (visual, text):
        assert not torch.signbit(part[:, :2]).any() and not part[:, :2].any()
        assert (part[:, 2:] == -torch.inf).all()
    assert not row.any() and not ends.any()
