"""How samples reach the model: limits, memory that runs out, worker processes. The store's bits depend on none."""
import os, random, signal, subprocess, sys, time, warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mmneuron_nb.errors import SampleError
from mmneuron_nb.testing.tiny import tiny_llava, tiny_samples
from mmneuron_nb.models.hooks import hooked
from mmneuron_nb.models.points import Point
from mmneuron_nb.models.sites import path_of
from mmneuron_nb.models.vlm import VLM
from mmneuron_nb.testing.zoo import ZOO, tiny_vlm
from mmneuron_nb.recording import recorder, local
from mmneuron_nb.running import prefetch
from mmneuron_nb.running.batching import batches, padded_length, token_count
from mmneuron_nb.running.limits import Limits
from mmneuron_nb.recording.recorder import record
from mmneuron_nb.statistics.state import RunState

KW = dict(top=6, random=5, modules=('vision', 'projector', 'lm'), progress=False)
CUDA = lambda: torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2.00 GiB.')
CPU = lambda: RuntimeError("[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: "
                           "you tried to allocate 8 bytes.")
SAMPLES = tiny_samples(30, seed=4)


@pytest.fixture(scope='module')
def whole(): return record(small(), SAMPLES, **KW)


def small(): return VLM(*tiny_llava(seed=4, layers=2, neurons=48))


def equal(a, b):
    assert a.ids == b.ids
    for m in a.modules:
        x, y = a.module(m), b.module(m)
        for v in x.data_vars: assert np.array_equal(x[v].values, y[v].values, equal_nan=True), (m, v)


def failing(fn, when, error): # raises `error()` in those calls (from 1) in which `when(number, *args)`
    count = [0]
    def call(*args, **kw):
        count[0] += 1
        if when(count[0], *args): raise error()
        return fn(*args, **kw)
    return call


@pytest.mark.parametrize('error', [CUDA, CPU, MemoryError])
@pytest.mark.parametrize('k', [1, 3, 4])
def test_out_of_memory_in_the_forward_pass(whole, error, k):
    vlm = small()
    vlm.forward = failing(vlm.forward, lambda n, batch: n == k, error)
    with pytest.warns(UserWarning, match=r'Out of memory with \d samples of [\d,]+ tokens') as said:
        store = record(vlm, SAMPLES, **KW)
    equal(whole, store)
    assert len([w for w in said if 'Out of memory' in str(w.message)]) == 1


@pytest.mark.parametrize('k', [1, 2, 8, 13, 19])
def test_out_of_memory_in_a_hook(whole, k, monkeypatch):
    vlm, reader = small(), local.BatchReader
    monkeypatch.setattr(reader, '__call__', failing(reader.__call__, lambda n, *a: n == k, CUDA))
    with pytest.warns(UserWarning, match='Out of memory'): equal(whole, record(vlm, SAMPLES, **KW))
    assert all(not vlm.model.get_submodule(p)._forward_hooks for s in vlm.sites() for p in (s.act, s.down))


def test_memory_for_two_samples_only(whole):
    vlm = small()
    sizes, plain = [], vlm.forward
    vlm.forward = failing(lambda b: (sizes.append(len(b)), plain(b))[1], lambda n, batch: len(batch) > 2, CPU)
    with pytest.warns(UserWarning): equal(whole, record(vlm, SAMPLES, **KW))
    assert set(sizes) <= {1, 2} and sizes.count(2) > 10         # it does not go down to one by one


def test_what_a_failed_attempt_held_is_gone_before_the_next(monkeypatch):
    import weakref
    vlm, seen, alive = small(), [], []
    plain = vlm.forward
    def forward(batch):
        alive.append(sum(r() is not None for r in seen))
        out = plain(batch)
        seen.append(weakref.ref(out.logits))
        batch.held = out                        # held by the frames of the exception, and by nothing else
        if len(batch) > 4: raise CUDA()
        return out
    vlm.forward = forward
    with pytest.warns(UserWarning): record(vlm, SAMPLES[:12], **KW)
    assert alive and not any(alive)


def test_one_sample_that_never_fits(whole, tmp_path):
    vlm, bad = small(), SAMPLES[7].id
    vlm.forward = failing(vlm.forward, lambda n, batch: bad in [s.id for s in batch.samples], CUDA)
    never = rf"{bad}.*tokens\) does not fit into memory, even alone .*on_bad='skip'"
    with pytest.raises(SampleError, match=never), warnings.catch_warnings():
        warnings.simplefilter('ignore')
        record(vlm, SAMPLES, tmp_path/'run.zarr', **KW)
    assert (tmp_path/'run.zarr.partial'/'state.safetensors').exists() # with what came before it
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        store = record(vlm, SAMPLES, tmp_path/'skip.zarr', on_bad='skip', **KW)
    assert [d['id'] for d in store.skipped] == [bad] and 'does not fit into memory' in store.skipped[0]['reason']
    equal(store, record(small(), [s for s in SAMPLES if s.id != bad], **KW))
    del vlm.forward
    equal(whole, record(vlm, SAMPLES, tmp_path/'run.zarr', **KW))


def test_no_memory_at_all_skips_no_data_set_away():
    vlm = small()
    vlm.forward = failing(vlm.forward, lambda n, batch: n > 2, CUDA)
    with pytest.raises(SampleError, match='does not fit'), warnings.catch_warnings():
        warnings.simplefilter('ignore')
        record(vlm, SAMPLES, on_bad='skip', **KW | dict(random=0))


@pytest.mark.parametrize('k', [1, 2])
def test_out_of_memory_while_answers_are_generated(k):
    bare = [replace(s, answer=None) for s in SAMPLES]
    kw = KW | dict(answers='generate', max_new_tokens=4)
    vlm = small()
    want = record(vlm, bare, **kw)
    vlm.generate_ids = failing(vlm.generate_ids, lambda n, *a: n == k, CUDA)
    with pytest.warns(UserWarning, match='Out of memory'): equal(want, record(vlm, bare, **kw))


def test_answers_longer_than_the_context_are_refused_one_by_one():
    vlm = small()
    bare = [replace(s, answer=None) for s in SAMPLES[:6]]
    vlm.context = max(len(e) for g in batches(vlm, bare, answers='none') for e in g) + 2
    store = record(vlm, bare, on_bad='skip', answers='generate', max_new_tokens=6, **KW)
    assert store.skipped and all('context' in d['reason'] for d in store.skipped)
    assert len(store) + len(store.skipped) == 6


@pytest.mark.parametrize('error', [RuntimeError, ZeroDivisionError, KeyboardInterrupt])
@pytest.mark.parametrize('k', [1, 3])
def test_another_error_is_raised_as_it_is_and_the_run_goes_on(whole, error, k, tmp_path):
    vlm = small()
    vlm.forward = failing(vlm.forward, lambda n, batch: n == k, lambda: error('in batch k'))
    with pytest.raises(error, match='in batch k'): record(vlm, SAMPLES, tmp_path/'run.zarr', workers=1, **KW)
    assert (tmp_path/'run.zarr.partial'/'state.safetensors').exists() == (k > 1)
    del vlm.forward
    equal(whole, record(vlm, SAMPLES, tmp_path/'run.zarr', **KW))


@pytest.mark.parametrize('k', [1, 12, 17])
def test_an_error_while_a_batch_is_counted_counts_nothing_twice(whole, k, tmp_path, monkeypatch):
    monkeypatch.setattr(recorder.Checkpoint, 'due', lambda self: True)
    with monkeypatch.context() as m: # at the k-th sample, when all its sites are counted already
        m.setattr(RunState, 'add_sample', failing(RunState.add_sample, lambda n, *a: n == k, ZeroDivisionError))
        with pytest.raises(ZeroDivisionError): record(small(), SAMPLES, tmp_path/'run.zarr', **KW)
    equal(whole, record(small(), SAMPLES, tmp_path/'run.zarr', **KW))


def test_ctrl_c_while_a_batch_is_counted_waits_for_its_end(whole, tmp_path, monkeypatch):
    signal.signal(signal.SIGINT, signal.default_int_handler)    # a job in the background ignores Ctrl-C
    commit, calls = local.commit, [0]
    def interrupted(reader):
        calls[0] += 1
        if calls[0] == 2: signal.raise_signal(signal.SIGINT)
        return commit(reader)
    with monkeypatch.context() as m:
        m.setattr(local, 'commit', interrupted)
        with pytest.raises(KeyboardInterrupt): record(small(), SAMPLES, tmp_path/'run.zarr', **KW)
    assert calls[0] == 2
    vlm = small()
    batch = []
    plain = vlm.forward
    vlm.forward = lambda b: (batch.append(len(b)), plain(b))[1]
    equal(whole, record(vlm, SAMPLES, tmp_path/'run.zarr', **KW))
    assert sum(batch) == len(SAMPLES) - 16      # two batches were kept


@pytest.mark.parametrize('name', ['llava-next', 'qwen2.5-vl', 'internvl', 'llava'])
def test_the_budget_is_kept(name): # tiles and grids of different sizes
    vlm, rng = VLM(*tiny_vlm(name)), random.Random(1)
    samples = [replace(s, image=s.image.resize((rng.randrange(40, 300), rng.randrange(40, 300)))) for s in SAMPLES]
    ones = {e.sample.id: token_count(vlm, e) for g in batches(vlm, samples, 1) for e in g}
    for tokens in (1, 250, 700, 2000, None):
        groups = list(batches(vlm, samples, Limits(6, tokens)))
        assert sorted(e.sample.id for g in groups for e in g) == sorted(ones)
        for g in groups:
            assert len({padded_length(len(e), vlm.context) for e in g}) == 1 and len(g) <= 6
            assert len(g) == 1 or tokens is None or sum(ones[e.sample.id] for e in g) <= tokens


@pytest.mark.parametrize('name', ZOO)
def test_workers_encode_what_the_parent_would(name):
    vlm = VLM(*tiny_vlm(name))
    kw = KW | dict(modules=vlm.modules, batch_size=3)
    torch.set_num_threads(2)
    try: equal(record(vlm, SAMPLES[:7], **kw), record(vlm, SAMPLES[:7], workers=1, **kw))
    finally: torch.set_num_threads(1)


def test_bad_samples_are_the_same_with_workers(tmp_path):
    (tmp_path/'broken.png').write_bytes(b'not a picture')
    broken, long = dict(id='broken', image=tmp_path/'broken.png'), dict(id='long', prompt='dog '*3000)
    bad = [replace(SAMPLES[1], **broken), replace(SAMPLES[3], **long)]
    samples = [*SAMPLES[:5], bad[0], *SAMPLES[5:9], bad[1], *SAMPLES[9:12]]
    vlm, said, stores = small(), [], []
    for n in (0, 2):
        with pytest.raises(SampleError) as e: record(vlm, samples, workers=n, **KW)
        said.append(str(e.value))
        stores.append(record(vlm, samples, workers=n, on_bad='skip', **KW))
    assert said[0] == said[1] and 'broken' in said[0]
    assert stores[0].skipped == stores[1].skipped and len(stores[0].skipped) == 2
    equal(*stores)


def test_processes_made_afresh_as_on_macos_and_windows(whole, monkeypatch):
    monkeypatch.setattr(prefetch, 'METHOD', 'spawn')
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        equal(whole, record(small(), SAMPLES, workers=1, **KW))


def parent(pid): # of a running process, else None
    try: state, of = Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[:2]
    except OSError: return None
    return None if state == 'Z' else int(of)


def children(pid): return [int(p.name) for p in Path('/proc').iterdir() if p.name.isdigit() and parent(p.name) == pid]


def gone(pids, seconds=10):
    end = time.monotonic() + seconds
    while time.monotonic() < end and any(parent(p) is not None for p in pids): time.sleep(.02)
    return all(parent(p) is None for p in pids)


def test_a_killed_worker_loses_nothing(whole):
    vlm = small()
    plain, count = vlm.forward, [0]
    def forward(batch):
        count[0] += 1
        if count[0] == 2:
            for p in children(os.getpid()): os.kill(p, signal.SIGKILL)
        return plain(batch)
    vlm.forward = forward
    with pytest.warns(UserWarning, match='has ended'): equal(whole, record(vlm, SAMPLES, batch_size=4, workers=2, **KW))
    assert not children(os.getpid())


def test_killed_while_they_write(): # pictures far larger than a pipe holds
    vlm, rng = VLM(*tiny_llava(seed=4, layers=1, image=224, patch=32)), random.Random(3)
    for _ in range(15):
        with warnings.catch_warnings(record=True), prefetch.Prefetcher(vlm, SAMPLES, workers=2) as source:
            it, begin = iter(source), time.monotonic()
            made = [next(it), next(it)]
            time.sleep(rng.uniform(0, .02))
            os.kill(rng.choice(children(os.getpid())), signal.SIGKILL)
            made += it
            assert [getattr(e, 'sample', e) is s for e, s in zip(made, SAMPLES)] == [True]*len(SAMPLES)
            assert time.monotonic() - begin < 30


def test_a_worker_that_hangs_is_given_up(whole, monkeypatch):
    monkeypatch.setattr(prefetch, 'TIMEOUT', 1)
    parent = os.getpid()
    def slow(): # opens in the parent only
        if os.getpid() != parent: time.sleep(60)
        return SAMPLES[9].image
    samples = [replace(s, image=slow) if s.id == SAMPLES[9].id else s for s in SAMPLES]
    with pytest.warns(UserWarning, match='no answer for 1 s'): equal(whole, record(small(), samples, workers=1, **KW))
    assert not children(os.getpid())


def test_no_process_can_be_started(whole, monkeypatch):
    def none(*a, **k): raise OSError(12, 'Cannot allocate memory')
    monkeypatch.setattr(os, 'fork', none)
    with pytest.warns(UserWarning, match='cannot be started'): equal(whole, record(small(), SAMPLES, workers=1, **KW))


RUN = '''
import sys, time
from test_feeding import *
recorder.Checkpoint.due = lambda self: True
vlm = small()
plain = vlm.forward
def slow(batch, logits=False):
    print('batch', flush=True)
    time.sleep(.05)
    return plain(batch, logits)
vlm.forward = slow
record(vlm, SAMPLES, sys.argv[1], batch_size=2, workers=2, **KW)
'''


def start(out):
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get('PYTHONPATH', '')])
    p = subprocess.Popen([sys.executable, '-c', RUN, str(out)], text=True,
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                         env=dict(os.environ, PYTHONPATH=path, OMP_NUM_THREADS='1'), start_new_session=True,
                         preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    for _ in range(3): assert p.stdout.readline() == 'batch\n', p.stderr.read()
    return p


@pytest.mark.parametrize('how', [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_no_worker_survives_and_the_run_goes_on_at_once(whole, how, tmp_path):
    p = start(tmp_path/'run.zarr')
    kids = children(p.pid)
    assert len(kids) >= 2
    if how == signal.SIGINT: os.killpg(p.pid, how) # a terminal sends Ctrl-C to the whole group
    else:
        for k in kids: os.kill(k, signal.SIGSTOP) # slower than the next run
        os.kill(p.pid, how)
    p.wait(timeout=60)
    equal(whole, record(small(), SAMPLES, tmp_path/'run.zarr', **KW)) # the lock is free
    for k in kids:
        if parent(k) is not None: os.kill(k, signal.SIGCONT)
    err = p.communicate(timeout=60)[1]
    assert p.returncode and gone(kids)
    if how == signal.SIGINT: assert err.count('Traceback') == 1 and 'KeyboardInterrupt' in err, err


@pytest.mark.parametrize('name', ZOO)
def test_recording_asks_for_no_logits_but_one_a_sample(name):
    vlm, seen = VLM(*tiny_vlm(name)), []
    head = vlm.model.get_output_embeddings()
    logits = Point('lm', None, head.out_features, 'block', path_of(vlm.model, head))
    with hooked(vlm.model, [logits], lambda p, x: seen.append(x.shape[:-1].numel()), reads=True):
        record(vlm, SAMPLES[:6], batch_size=3, **KW | dict(modules=('lm',)))
    assert seen and sum(seen) <= 6


def test_layers_hook_these_layers_only():
    vlm, seen = VLM(*tiny_llava(seed=4, layers=3, neurons=48)), []
    plain = vlm.forward
    hooked = lambda: tuple(s.layer for s in vlm.sites('lm') if vlm.model.get_submodule(s.act)._forward_hooks)
    vlm.forward = lambda b: (seen.append(hooked()), plain(b))[1]
    record(vlm, SAMPLES[:6], layers=[1], **KW | dict(modules=('lm',)))
    assert set(seen) == {(1,)}


def test_the_bar_says_how_long_the_model_waits(capsys):
    vlm = small()
    plain = vlm.forward
    vlm.forward = lambda b: (time.sleep(.4), plain(b))[1]
    store = record(vlm, SAMPLES[:12], **KW | dict(progress=True, batch_size=2))
    assert 'waiting' in capsys.readouterr().err
    facts = store.facts
    assert 0 < facts['waiting'] < facts['seconds'] and (facts['workers'], facts['max_tokens_per_batch']) == (0, 8192)
