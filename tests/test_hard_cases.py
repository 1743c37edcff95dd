"""What an adversary found: each was a silent wrong number, or lost work."""
import os

import numpy as np
import pytest
import torch

from mmneuron_nb.errors import ActivationError, OptionError, StoreError
from mmneuron_nb.testing.tiny import tiny_llava, tiny_samples
from mmneuron_nb.models.vlm import VLM
from mmneuron_nb.statistics import Statistic
from mmneuron_nb.store import open_store
from mmneuron_nb.recording import record, recorder

VLM_ = VLM(*tiny_llava(seed=4, layers=2, neurons=48))
SAMPLES = tiny_samples(9, seed=4)
KW = dict(top=4, random=3, progress=False, batch_size=3)


def stat(name='odd', **attributes):
    "A `Statistic` whose `reduce` is `fn(acts, number of the call)`."
    fn, calls = attributes.pop('fn'), []
    def reduce(self, acts): return fn(acts, calls.append(1) or len(calls))
    return type('Odd', (Statistic,), dict(name=name, reduce=reduce, **attributes))()


def full(acts, value, dtype): return torch.full((len(acts.x), acts.x.shape[2]), value, dtype=dtype)


def test_a_store_that_was_moved_is_not_read_as_zeros(tmp_path):
    store = record(VLM_, SAMPLES, tmp_path/'a.zarr', **KW)
    os.rename(tmp_path/'a.zarr', tmp_path/'b.zarr')
    with pytest.raises(StoreError, match='moved or deleted'): store.ds
    record(VLM_, SAMPLES[:4], tmp_path/'a.zarr', **KW)
    with pytest.raises(StoreError, match='replaced'): store.module('lm')
    assert len(open_store(tmp_path/'b.zarr').ds.top_value) == 2


def test_a_flipped_byte_in_a_checkpoint_is_refused(tmp_path):
    out, plain, n = tmp_path/'run.zarr', VLM_.forward, []
    def stop(*a, **k):
        n.append(1)
        if len(n) > 2: raise KeyboardInterrupt
        return plain(*a, **k)
    with pytest.MonkeyPatch.context() as m:
        m.setattr(VLM_, 'forward', stop, raising=False)
        with pytest.raises(KeyboardInterrupt): record(VLM_, SAMPLES, out, **KW)
    f = tmp_path/'run.zarr.partial'/'state.safetensors'
    data = bytearray(f.read_bytes())
    data[-100] ^= 4
    f.write_bytes(data)
    with pytest.raises(StoreError, match='damaged'): record(VLM_, SAMPLES, out, **KW)


@pytest.mark.parametrize('value, dtype', [(2**62, torch.int64), (.99*2**50, torch.float64)])
def test_sums_that_do_not_fit_are_refused(value, dtype):
    with pytest.raises(ActivationError, match='too large'):
        record(VLM_, SAMPLES, stats=[stat(fn=lambda a, k: full(a, value, dtype))], **KW)


def test_statistics_keep_their_form():
    ones = lambda a, n: full(a, 1., torch.float32)[:, None].repeat(1, n, 1)
    changing = (stat(fn=lambda a, k: full(a, 1, torch.float32 if k < 3 else torch.int64)),
                stat(dims=('bin',), fn=lambda a, k: ones(a, 3 if k < 3 else 1)))
    for s in changing:
        with pytest.raises(OptionError, match='the same form'): record(VLM_, SAMPLES, stats=[s], **KW)
    two, one = (record(VLM_, part, stats=[stat(dims=('bin',), fn=lambda a, k, n=n: ones(a, n))], **KW)
                for part, n in ((SAMPLES[:4], 2), (SAMPLES[4:], 1)))
    with pytest.raises(StoreError, match='in one run'): two.merge(one)
    unreal = stat(fn=lambda a, k: full(a, 1j, torch.complex64))
    with pytest.raises(OptionError, match='real numbers'): record(VLM_, SAMPLES, stats=[unreal], **KW)
    for bad in (stat(name='role', fn=None), stat(dims=('a', 'a'), fn=None), stat(dims=5, fn=None)):
        with pytest.raises(OptionError): record(VLM_, SAMPLES, stats=[bad], **KW)
    with pytest.raises(OptionError, match='stats=5'): record(VLM_, SAMPLES, stats=5, **KW)


def test_settings_of_the_class_count_too(tmp_path):
    class Above(Statistic):
        name, level = 'above', 0.
        def reduce(self, acts): return ((acts.x > self.level) & ~acts.plan.pad[..., None]).sum(1)
    record(VLM_, SAMPLES, tmp_path/'run.zarr', stats=[Above()], **KW)
    Above.level = 99.
    with pytest.raises(StoreError, match='another stats'):
        record(VLM_, SAMPLES, tmp_path/'run.zarr', stats=[Above()], **KW)
    class Edges(Statistic):
        name = 'edges'
        def __init__(self): self.edges = (0., .5)
        def reduce(self, acts): return acts.x.amax(1)
    a = record(VLM_, SAMPLES[:4], stats=[Edges()], **KW)
    b = record(VLM_, SAMPLES[4:], tmp_path/'b.zarr', stats=[Edges()], **KW)
    assert len(a.merge(b)) == 9


def test_bfloat16_maxima_and_zeros_without_a_sign():
    store = record(VLM_, SAMPLES, stats=[stat(combine='max', fn=lambda a, k: a.x.amax(1).bfloat16())], **KW)
    assert store.ds.odd.dtype == np.float32
    zero = record(VLM_, SAMPLES, stats=[stat(combine='max', fn=lambda a, k: a.x[:, 9]*0)], **KW)
    text = zero.ds.top_text.values
    assert not np.signbit(zero.ds.odd.values).any() and not np.signbit(text[text == 0]).any()


def test_a_statistic_that_is_refused_loses_nothing(tmp_path):
    nan = stat(fn=lambda a, k: full(a, float('nan') if k > 4 else 1., torch.float32))
    with pytest.raises(ActivationError, match='NaN'): record(VLM_, SAMPLES, tmp_path/'run.zarr', stats=[nan], **KW)
    assert (tmp_path/'run.zarr.partial'/'state.safetensors').exists()


def test_rows_that_float16_cannot_hold(tmp_path):
    vlm = VLM(*tiny_llava(seed=4, layers=2, neurons=48))
    with torch.no_grad(): vlm.model.get_submodule(vlm.sites('lm')[0].mlp).gate_proj.weight.mul_(1e6)
    with pytest.raises(ActivationError, match='65,504'): record(vlm, SAMPLES, keep_tokens='float16', **KW)
    assert np.isfinite(record(vlm, SAMPLES, keep_tokens='float32', **KW).ds.top_row.values).all()


def test_merging_spares_an_unfinished_recording_and_a_finished_run_spares_a_writer(tmp_path):
    a, b = record(VLM_, SAMPLES[:4], **KW), record(VLM_, SAMPLES[4:], **KW)
    part = tmp_path/'un.zarr.partial'
    part.mkdir()
    (part/'state.safetensors').write_bytes(b'x')
    with pytest.raises(StoreError, match='unfinished'): a.merge(b, tmp_path/'un.zarr')
    assert part.exists()
    record(VLM_, SAMPLES, tmp_path/'run.zarr', **KW)
    writer = recorder.Checkpoint(tmp_path/'run.zarr', {})
    assert len(record(VLM_, SAMPLES, tmp_path/'run.zarr', **KW)) == 9
    assert writer.dir.exists()
    writer.close()
    record(VLM_, SAMPLES, tmp_path/'run.zarr', **KW)
    assert not writer.dir.exists()


def test_verify_of_few_samples_checks_them():
    vlm = VLM(*tiny_llava(seed=3, width=16, neurons=128, layers=3))
    store = record(vlm, tiny_samples(1, seed=2), progress=False)
    got = store.verify(n=200)
    assert got and got.checked == 200
