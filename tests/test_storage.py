"""Stores on a remote file system, played by fsspec's `memory://`: recorded, continued, merged, damaged, fought over."""
import json, multiprocessing as mp, os, signal, time
from dataclasses import replace

import numpy as np
import pytest

from mmneuron_nb import open_store, record
from mmneuron_nb.errors import StoreError, check_path
from mmneuron_nb.testing.tiny import tiny_llava, tiny_samples
from mmneuron_nb.models.vlm import VLM
from mmneuron_nb.store import storage
from mmneuron_nb.store.storage import Lease, Lock, hashes, remove_folder, sizes

KW = dict(top=6, random=5, modules=('vision', 'lm'), progress=False, batch_size=2)
URL = 'memory://bucket/run.zarr'
PART = 'memory://bucket/run.zarr.partial'


@pytest.fixture(scope='module')
def world():
    vlm, samples = VLM(*tiny_llava(seed=4, layers=2, neurons=48)), tiny_samples(12, seed=4)
    return vlm, samples, record(vlm, samples, **KW)


@pytest.fixture(autouse=True)
def bucket():
    home = check_path('memory://bucket', remote=True)
    yield home
    remove_folder(home)


def equal(a, b):
    assert a.ids == b.ids
    for m in a.modules:
        for v in a.module(m).data_vars:
            assert np.array_equal(a.module(m)[v].values, b.module(m)[v].values), (m, v)


def failing(vlm, n, monkeypatch):
    "The n-th forward pass raises."
    count, plain = [0], vlm.forward
    def forward(batch, logits=False):
        count[0] += 1
        if count[0] == n: raise InterruptedError('planted')
        return plain(batch, logits)
    monkeypatch.setattr(vlm, 'forward', forward)


def test_record_open_tokens_and_the_same_files_as_here(world, bucket, tmp_path):
    vlm, samples, whole = world
    equal(whole, record(vlm, samples, URL, **KW))
    store = open_store(URL, vlm, samples)
    equal(whole, store)
    assert store.tokens('lm.L1.U3', 2).sample_id == whole.tokens('lm.L1.U3', 2).sample_id
    assert URL in repr(store)
    record(vlm, samples, tmp_path/'run.zarr', **KW)
    places = tmp_path/'run.zarr', check_path(URL, remote=True)
    here, there = (hashes(p, [n for n in sizes(p) if n != 'facts.json']) for p in places)
    assert here == there and store.check(progress=False) == len(here) + 1
    assert sorted(p.name for p in bucket.iterdir()) == ['run.zarr']         # no checkpoint, no lock is left


def test_kept_rows(world):
    vlm, samples, whole = world
    record(vlm, samples, URL, keep_tokens=True, **KW)
    assert np.array_equal(open_store(URL).tokens('lm.L0.U1').roles, whole.tokens('lm.L0.U1').roles)


def test_an_interrupted_run_goes_on_from_what_lies_there(world, monkeypatch):
    vlm, samples, whole = world
    with monkeypatch.context() as m:
        failing(vlm, 4, m)
        with pytest.raises(InterruptedError): record(vlm, samples, URL, **KW)
    assert set(sizes(check_path(PART, remote=True))) == {'state.safetensors'}    # the lock went with the error
    with pytest.raises(StoreError, match='was not finished'): open_store(URL)
    with monkeypatch.context() as m:
        # three batches were done, three are left
        failing(vlm, 4, m)
        equal(whole, record(vlm, samples, URL, **KW))


def test_cut_off_while_the_files_are_sent(world, monkeypatch):
    vlm, samples, whole = world
    real, left = storage.put, [1]
    def put(folder, out, names):                                                # the first file, and then no more
        left[0] -= 1
        if left[0] < 0: raise OSError('connection lost')
        real(folder, out, names)
    with monkeypatch.context() as m:
        m.setattr(storage, 'put', put)
        with pytest.raises(StoreError, match='connection lost'): record(vlm, samples, URL, **KW)
    assert sizes(check_path(URL, remote=True)).keys() == {'facts.json'}
    with pytest.raises(StoreError, match='was not finished'): open_store(URL)
    with pytest.raises(StoreError, match='exists'): whole.merge(renamed(vlm), URL)
    monkeypatch.setattr(vlm, 'forward', None)                                   # nothing is computed again
    equal(whole, record(vlm, samples, URL, **KW))


def renamed(vlm, n=3):
    return record(vlm, [replace(s, id=f'other{i}') for i, s in enumerate(tiny_samples(n, seed=9))], **KW)


def test_merged_there(world):
    vlm, samples, whole = world
    a, b = record(vlm, samples[::2], URL, **KW), record(vlm, samples[1::2], **KW)
    equal(whole, b.merge(a, 'memory://bucket/both.zarr'))
    equal(whole, open_store('memory://bucket/both.zarr'))
    with pytest.raises(StoreError, match='exists'): b.merge(a, URL)


def test_damage_is_named_and_repaired(world):
    vlm, samples, whole = world
    record(vlm, samples, URL, **KW)
    home = check_path(URL, remote=True)
    want = hashes(home, sizes(home))
    for name in [n for n in want if n not in ('manifest.json', 'facts.json')][::7]:
        data = (home/name).read_bytes()
        (home/name).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        with pytest.raises(StoreError, match=name): open_store(URL)
        with pytest.warns(UserWarning, match='1 of 2 layers of lm'): equal(whole, record(vlm, samples, URL, **KW))
        assert hashes(home, sizes(home)) == want
    (home/'manifest.json').unlink()
    with pytest.raises(StoreError, match='overwrite=True'): record(vlm, samples, URL, **KW)
    equal(whole, record(vlm, samples, URL, overwrite=True, **KW))


def test_what_is_not_ours_is_left_alone(world, bucket):
    vlm, samples, _ = world
    (bucket/'run.zarr'/'thesis.txt').write_bytes(b'x')
    for kw in ({}, dict(overwrite=True)):
        with pytest.raises(StoreError, match='is not a store'): record(vlm, samples, URL, **KW, **kw)
    assert (bucket/'run.zarr'/'thesis.txt').read_bytes() == b'x'


def test_second_writer_is_refused(world, bucket):
    vlm, samples, whole = world
    note = dict(host='node7', pid=1, run='theirs', time=time.time())
    storage.write_atomic(bucket/'run.zarr.partial'/'lock', json.dumps(note).encode())
    for kw in ({}, dict(resume=False), dict(overwrite=True)):
        with pytest.raises(StoreError, match='1 on node7'): record(vlm, samples, URL, **KW, **kw)
    with pytest.raises(StoreError, match='1 on node7'): whole.merge(renamed(vlm), URL)
    storage.write_atomic(bucket/'run.zarr.partial'/'lock',
                         json.dumps(note | dict(time=time.time() - storage.LEASE - 5)).encode())
    equal(whole, record(vlm, samples, URL, **KW))


def test_a_writer_that_was_taken_for_dead_stops(world, bucket, monkeypatch):
    vlm, samples, _ = world
    plain = vlm.forward
    def forward(batch, logits=False):                                           # asleep for long, and another took over
        storage.write_atomic(bucket/'run.zarr.partial'/'lock',
                             json.dumps(dict(host='node7', pid=1, run='theirs', time=time.time())).encode())
        monkeypatch.setattr(Lease, 'beat', lambda self, now=False, beat=Lease.beat: beat(self, now=True))
        return plain(batch, logits)
    monkeypatch.setattr(vlm, 'forward', forward)
    with pytest.raises(StoreError, match='1 on node7'): record(vlm, samples, URL, **KW)
    # it wrote nothing, and left the other's lock
    assert set(sizes(check_path(PART, remote=True))) == {'lock'}


def holder(folder, ready):
    "In a process of its own: takes the lock, and never gives it back."
    lock = Lock(folder)
    ready.set()
    signal.pause()
    lock.close()


def test_a_local_lock_goes_with_its_process(tmp_path):
    ctx = mp.get_context('fork')
    ready = ctx.Event()
    p = ctx.Process(target=holder, args=(tmp_path, ready))
    p.start()
    assert ready.wait(60)
    with pytest.raises(StoreError, match='Another process'): Lock(tmp_path)
    os.kill(p.pid, signal.SIGKILL)
    p.join()
    Lock(tmp_path).close()


def test_a_local_lock_is_not_kept_by_a_worker_that_was_forked_meanwhile(tmp_path):
    lock, ctx = Lock(tmp_path), mp.get_context('fork')
    p = ctx.Process(target=signal.pause)
    p.start()
    lock.close()
    Lock(tmp_path).close()
    p.kill()
    p.join()
