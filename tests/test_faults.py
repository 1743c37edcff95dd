"""Faults, tried for real: killed at random moments, interrupted, disk full. Nothing is lost or counted twice."""
import multiprocessing as mp, os, random, resource, signal, subprocess, sys, time
from pathlib import Path

import numpy as np
import pytest
import torch

from mmneuron_nb.errors import SampleError, StoreError
from mmneuron_nb.testing.tiny import tiny_llava, tiny_samples
from mmneuron_nb.models.hooks import hooked
from mmneuron_nb.models.vlm import VLM
from mmneuron_nb.statistics import Moments
from mmneuron_nb.recording import recorder, local
from mmneuron_nb.writing import disk_full
from mmneuron_nb.store.merging import to_state
from mmneuron_nb.store.store import open_store

KW = dict(top=6, random=5, modules=('vision', 'projector', 'lm'), progress=False, batch_size=2)
RUN = '''
import sys, time
from test_faults import *
recorder.Checkpoint.due = lambda self: True                # a checkpoint after every batch: kills hit them, too
vlm = model()
print('ready', flush=True)
plain = vlm.forward
def slow(batch, logits=False):
    time.sleep(.02)
    return plain(batch, logits)
vlm.forward = slow
recorder.record(vlm, tiny_samples(40, seed=4), sys.argv[1], **KW)
print('done', flush=True)
'''


@pytest.fixture(scope='module')
def whole():
    return recorder.record(model(), tiny_samples(40, seed=4), **KW)


def model(neurons=48): return VLM(*tiny_llava(seed=4, layers=2, neurons=neurons))


def equal(a, b):
    assert a.ids == b.ids
    for m in a.modules:
        for v in a.module(m).data_vars:
            assert np.array_equal(a.module(m)[v].values, b.module(m)[v].values), (m, v)


def start(out, **kw):
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get('PYTHONPATH', '')])
    env = dict(os.environ, PYTHONPATH=path, OMP_NUM_THREADS='1')
    heard = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)    # a job in the background would ignore Ctrl-C
    kw.setdefault('preexec_fn', heard)
    p = subprocess.Popen([sys.executable, '-c', RUN, str(out)], text=True,
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                         env=env, **kw)
    assert p.stdout.readline().strip() == 'ready', p.stderr.read()
    return p


def child(out, kw):
    "In a forked process: a recording with a checkpoint after every batch."
    torch.set_num_threads(1)
    recorder.Checkpoint.due = lambda self: True
    vlm = model()
    recorder.record(vlm, tiny_samples(40, seed=4), out, **kw)


@pytest.mark.parametrize('keep', [False, True], ids=['statistics', 'token rows'])
def test_killed_at_twenty_random_moments_gives_the_same_bits(tmp_path, keep):
    kw, rng, kills, done = KW | dict(keep_tokens=keep, stats=[Moments()]), random.Random(5 + keep), 0, 0
    vlm, samples = model(), tiny_samples(40, seed=4)
    whole = recorder.record(vlm, samples, **kw)
    while kills < 20 or not done:
        out = tmp_path/f'run{done}.zarr'
        p = mp.get_context('fork').Process(target=child, args=(out, kw))
        p.start()
        p.join(rng.uniform(.05, .9) if kills < 20 else None)
        if p.exitcode is None:
            os.kill(p.pid, signal.SIGKILL)
            p.join()
            kills += 1
        else: assert p.exitcode == 0
        if out.exists():
            equal(whole, open_store(out))
            done += 1
            recorder.record(vlm, samples, out, **kw)      # a finished run is returned, and what lay beside it is gone
            assert not out.with_name(out.name + '.partial').exists()
    print(f'{kills} kills, {done} runs finished')


def test_ctrl_c_saves_first(whole, tmp_path):
    p = start(tmp_path/'run.zarr')
    time.sleep(.4)
    p.send_signal(signal.SIGINT)
    _, err = p.communicate(timeout=60)
    assert p.returncode and 'KeyboardInterrupt' in err
    assert (tmp_path/'run.zarr.partial'/'state.safetensors').exists()
    assert start(tmp_path/'run.zarr').wait(timeout=60) == 0
    equal(whole, open_store(tmp_path/'run.zarr'))


def test_sigterm_saves_and_says_how_to_go_on(whole, tmp_path):
    p = start(tmp_path/'run.zarr')
    time.sleep(.4)
    p.terminate()
    _, err = p.communicate(timeout=60)
    assert p.returncode and "of 40 samples, kept in '" in err, err[-2000:]
    assert "run.zarr.partial'. The same call goes on from there." in err, err[-2000:]
    assert start(tmp_path/'run.zarr').wait(timeout=60) == 0
    equal(whole, open_store(tmp_path/'run.zarr'))


def test_clock_that_jumps(whole, tmp_path, monkeypatch):
    jumps = random.Random(0)
    monkeypatch.setattr(time, 'time', lambda: jumps.uniform(-1e9, 4e9))
    equal(whole, recorder.record(model(), tiny_samples(40, seed=4), tmp_path/'run.zarr', **KW))


def test_nan_in_one_layer_keeps_the_sample_out_of_all(tmp_path):
    vlm, samples = model(), tiny_samples(12, seed=4)
    act, bad = vlm.model.get_submodule(vlm.sites('lm')[1].act), samples[7].id
    encode = local.read_batch
    def read(vlm, batch, state):      # the second layer breaks, for one sample
        rows = [n for n, s in enumerate(batch.samples) if s.id == bad]
        def poison(mod, args, out):
            out = out.clone()
            out[rows, 3, 5] = float('nan')
            return out
        handle = act.register_forward_hook(poison)
        try: return encode(vlm, batch, state)
        finally: handle.remove()
    with pytest.MonkeyPatch.context() as m:
        m.setattr(local, 'read_batch', read)
        store = recorder.record(vlm, samples, tmp_path/'run.zarr', **KW)
    assert [d['id'] for d in store.skipped] == [bad] and 'lm.L1' in store.skipped[0]['reason']
    equal(recorder.record(vlm, [s for s in samples if s.id != bad], **KW), store)


def test_no_room_for_token_rows(tmp_path):
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    vlm, samples, kw = model(), tiny_samples(12, seed=4), KW | dict(keep_tokens=True)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, limit[1]))
        with pytest.raises(StoreError, match='No room for token rows'):
            recorder.record(vlm, samples, tmp_path/'run.zarr', **kw)
    finally: resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    equal(recorder.record(vlm, samples, **kw), recorder.record(vlm, samples, tmp_path/'run.zarr', **kw))


def test_token_rows_that_were_lost_are_made_again(tmp_path):
    vlm, samples, kw = model(), tiny_samples(30, seed=4), KW | dict(keep_tokens=True)
    whole, forward, n = recorder.record(vlm, samples, **kw), vlm.forward, []
    def stop(*a, **k):
        n.append(1)
        if len(n) > 11: raise KeyboardInterrupt
        return forward(*a, **k)
    vlm.forward = stop
    with pytest.raises(KeyboardInterrupt): recorder.record(vlm, samples, tmp_path/'run.zarr', **kw)
    vlm.forward = forward
    rows = sorted((tmp_path/'run.zarr.partial'/'rows').iterdir())
    assert len(rows) >= 2*(1 + 2 + 1)
    rows[0].unlink()                                            # one file gone, one cut, one written by a stranger
    rows[4].write_bytes(rows[4].read_bytes()[:-1])
    tags = next(r for r in rows if r.name == 'lm.L1.tags')
    tags.write_bytes(np.roll(np.fromfile(tags, np.int64), 1).tobytes())
    equal(whole, recorder.record(vlm, samples, tmp_path/'run.zarr', **kw))


def test_full_disk_is_named_and_the_run_goes_on_later(whole, tmp_path):
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))
    p = start(tmp_path/'run.zarr', preexec_fn=limit)
    _, err = p.communicate(timeout=60)
    assert p.returncode and 'StoreError' in err and 'the disk is full' in err, err[-2000:]
    assert not (tmp_path/'run.zarr').exists()
    assert start(tmp_path/'run.zarr').wait(timeout=60) == 0
    equal(whole, open_store(tmp_path/'run.zarr'))


def test_disk_full_at_the_very_end_loses_nothing(whole, tmp_path, monkeypatch):
    vlm, samples, out = model(), tiny_samples(40, seed=4), tmp_path/'run.zarr'
    def full(*a, **k): raise disk_full(out, OSError(28, 'No space left on device'))
    with monkeypatch.context() as m:
        m.setattr(recorder, 'write_store', full)
        with pytest.raises(StoreError, match='the disk is full'): recorder.record(vlm, samples, out, **KW)
    vlm.forward = None                         # a second run needs no forward pass
    equal(whole, recorder.record(vlm, samples, out, **KW))


def test_damaged_checkpoint_is_refused_by_name(tmp_path):
    vlm, samples, out = model(), tiny_samples(6, seed=4), tmp_path/'run.zarr'
    part = tmp_path/'run.zarr.partial'
    part.mkdir()
    (part/'state.safetensors').write_bytes(b'half a file')
    with pytest.raises(StoreError, match='damaged'): recorder.record(vlm, samples, out, **KW)
    assert recorder.record(vlm, samples, out, resume=False, **KW).ids == [s.id for s in samples]


def test_target_that_cannot_be_written(tmp_path):
    (tmp_path/'file').write_text('')
    for out in (tmp_path/'file'/'run.zarr', Path('/proc/run.zarr')):     # cannot be made, and must not be written to
        with pytest.raises(StoreError, match='Cannot write'): recorder.record(model(), tiny_samples(4), out, **KW)


def test_every_damaged_file_is_named(tmp_path):
    vlm, samples = model(), tiny_samples(8, seed=4)
    out = tmp_path/'run.zarr'
    recorder.record(vlm, samples, out, **KW)
    for f in sorted(p for p in out.rglob('*') if p.is_file() and p.name not in ('manifest.json', 'facts.json')):
        whole = f.read_bytes()
        for broken in (None, b'', whole[:-1], bytes([whole[0] ^ 1]) + whole[1:]):
            f.unlink() if broken is None else f.write_bytes(broken)
            with pytest.raises(StoreError, match=f.relative_to(out).as_posix()): open_store(out)
            f.write_bytes(whole)
    manifest = (out/'manifest.json').read_text()
    (out/'manifest.json').write_text(manifest.replace('"site": "act"', '"site": "post"', 1))
    with pytest.raises(StoreError, match='edited'): open_store(out)
    (out/'manifest.json').write_text(manifest)
    assert len(open_store(out)) == 8


def test_overwrite_spares_what_is_no_store(tmp_path):
    vlm, samples, out = model(), tiny_samples(6, seed=4), tmp_path/'thesis'
    out.mkdir()
    (out/'chapter.txt').write_text('x')
    with pytest.raises(StoreError, match='is not a store'): recorder.record(vlm, samples, out, overwrite=True, **KW)
    assert (out/'chapter.txt').read_text() == 'x'
    recorder.record(vlm, samples, tmp_path/'run.zarr', **KW)
    assert len(recorder.record(vlm, samples[:3], tmp_path/'run.zarr', overwrite=True, **KW)) == 3


def test_second_writer_is_refused_and_harms_nothing(tmp_path):
    vlm, samples = model(), tiny_samples(40, seed=4)
    p = start(tmp_path/'run.zarr')
    while not (tmp_path/'run.zarr.partial'/'state.safetensors').exists(): time.sleep(.02)
    for kw in ({}, dict(resume=False), dict(overwrite=True)):
        with pytest.raises(StoreError, match='Another process'):
            recorder.record(vlm, samples, tmp_path/'run.zarr', **KW, **kw)
    assert p.wait(timeout=120) == 0
    assert len(open_store(tmp_path/'run.zarr')) == 40


def test_another_picture_under_the_same_name_is_noticed(tmp_path):
    from dataclasses import replace
    vlm, (a, b) = model(), tiny_samples(2, seed=4)
    a.image.save(tmp_path/'im.png')
    one = [replace(a, image=tmp_path/'im.png')]
    recorder.record(vlm, one, tmp_path/'run.zarr', **KW)
    b.image.save(tmp_path/'im.png')
    with pytest.raises(StoreError, match='another'): recorder.record(vlm, one, tmp_path/'run.zarr', **KW)
    with pytest.raises(StoreError, match='another text or image'): open_store(tmp_path/'run.zarr', vlm, one)


def test_unreadable_sample_without_an_answer_is_skipped_and_the_others_are_answered(tmp_path):
    from dataclasses import replace
    vlm, samples = model(), tiny_samples(9, seed=4)
    samples = [replace(s, answer=None) if n % 2 else s for n, s in enumerate(samples)]      # some answers are given
    (tmp_path/'broken.png').write_bytes(b'not a picture')
    bad = [replace(samples[1], id='broken', image=tmp_path/'broken.png'),
           replace(samples[3], id='lost', image=tmp_path/'nowhere.png')]
    kw = KW | dict(answers='generate', on_bad='skip', keep_tokens=True)
    store = recorder.record(vlm, [*bad, *samples], tmp_path/'run.zarr', **kw)
    assert [d['id'] for d in store.skipped] == ['broken', 'lost']
    assert 'cannot be read' in store.skipped[0]['reason'] and 'does not exist' in store.skipped[1]['reason']
    equal(recorder.record(vlm, samples, **kw), store)                               # as if they had never been there
    given = [s for s in samples if s.answer]
    rows, want = to_state(store).table, to_state(recorder.record(vlm, given, **kw | dict(answers='given'))).table
    for s in given: # answers that were given are not replaced
        assert np.array_equal(rows[s.id].tokens['lm'].ids, want[s.id].tokens['lm'].ids)
    assert len(recorder.record(vlm, [*bad, *samples], tmp_path/'run.zarr', **kw)) == 9      # the same run, once more
    with pytest.raises(SampleError, match='cannot be read'):
        recorder.record(vlm, [bad[0], *samples], **kw | dict(on_bad='raise'))


@pytest.mark.parametrize('kind', [False, True, 'float16'])
def test_samples_that_are_all_broken(tmp_path, kind):
    vlm, samples = model(), tiny_samples(4, seed=4)
    site = vlm.sites('lm')[1]
    def spoil(site, x): # the first token, of the template: the maxima are numbers, and entries are admitted
        return torch.cat([x[:, :1]*float('nan'), x[:, 1:]], 1)
    run = lambda: recorder.record(vlm, samples, tmp_path/'run.zarr', **KW | dict(keep_tokens=kind))
    with hooked(vlm.model, [site], spoil, change=('spoil', '1')):
        with pytest.raises(SampleError, match='None of the 4 samples'): run()
    assert len(run()) == 4
