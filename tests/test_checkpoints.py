"""Unfinished runs on disk: which checkpoint is gone on from, which is refused, which is replaced."""
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from mmneuron_nb.errors import StoreError
from mmneuron_nb.testing.tiny import tiny_samples
from mmneuron_nb.store import files
from mmneuron_nb.recording import recorder, local
from mmneuron_nb.statistics.token_rows import RowFiles
from test_faults import KW, equal, model


def interrupted(monkeypatch, vlm, samples, out, at=3, **kw):
    "A run that Ctrl-C ends in its third batch, or another."
    read, n = local.read_batch, []
    def stops(*a):
        n.append(1)
        if len(n) == at: raise KeyboardInterrupt
        return read(*a)
    with monkeypatch.context() as m:
        m.setattr(local, 'read_batch', stops)
        with pytest.raises(KeyboardInterrupt): recorder.record(vlm, samples, out, **kw)


@pytest.mark.parametrize('how', ['the same run', 'another run', 'damaged', 'anew', 'anew again'])
def test_overwriting_that_was_interrupted(tmp_path, monkeypatch, how, capsys):
    vlm, samples, out = model(), tiny_samples(12, seed=4), tmp_path/'run.zarr'
    recorder.record(vlm, samples[:5], out, **KW)
    kw = KW | (dict(resume=False) if 'anew' in how else dict(overwrite=True))
    if 'anew' in how: shutil.rmtree(out)
    interrupted(monkeypatch, vlm, samples, out, **kw)
    said = capsys.readouterr().err
    assert f"The same call{' without resume=False' if 'anew' in how else ''} goes on from there." in said
    if how == 'another run': samples = samples[1:]
    file = tmp_path/'run.zarr.partial'/'state.safetensors'
    if how == 'damaged': file.write_bytes(file.read_bytes()[:-3] + b'xyz')
    n, read = [], local.read_batch
    monkeypatch.setattr(local, 'read_batch', lambda *a: (n.append(1), read(*a))[1])
    if how != 'anew again': kw = {k: v for k, v in kw.items() if k != 'resume'}
    got = recorder.record(vlm, samples, out, **kw)
    per = KW.get('batch_size', 8)
    assert len(n) == -(-len(samples)//per) - (2 if how in ('the same run', 'anew') else 0), 'two batches were kept'
    equal(recorder.record(vlm, samples, **KW), got)


@pytest.mark.parametrize('how', ['an id', 'the lengths', 'no description', 'not now'])
def test_checkpoints_that_cannot_be_used(tmp_path, monkeypatch, how):
    vlm, samples, out = model(), tiny_samples(12, seed=4), tmp_path/'run.zarr'
    file = tmp_path/'run.zarr.partial'/'state.safetensors'
    interrupted(monkeypatch, vlm, samples, out, **KW)
    data = file.read_bytes()
    other = samples[9].id.encode()  # a sample of this run that was not recorded yet
    at = data.index(samples[0].id.encode(), data.index(b'"ids"'))
    if how == 'an id': file.write_bytes(data[:at] + other + data[at + len(other):])
    if how == 'the lengths': file.write_bytes(b'\xff'*8 + data[8:])
    if how == 'no description':
        save_file(dict(a=torch.zeros(1)), file)
    if how == 'not now':
        with monkeypatch.context() as m:
            m.setattr(files, 'local_copy', lambda f: (_ for _ in ()).throw(OSError(24, 'Too many open files')))
            for kw in ({}, dict(overwrite=True)):
                with pytest.raises(StoreError, match='cannot be read'): recorder.record(vlm, samples, out, **KW, **kw)
        assert file.read_bytes() == data, 'it is kept'
    else:
        with pytest.raises(StoreError, match='damaged'): recorder.record(vlm, samples, out, **KW)
    equal(recorder.record(vlm, samples, **KW), recorder.record(vlm, samples, out, **KW, overwrite=True))


def test_tags_of_rows_that_were_lost(tmp_path):
    a = RowFiles(3, 2, 'uint8', tmp_path, 'x')
    a.write(np.array([0, 1]), np.array([0, 1]), np.array([5, 6]), np.full((2, 600), 7, np.uint8))
    a.write(np.array([2]), np.array([0]), np.array([8]), np.full((1, 900), 8, np.uint8))
    a.sync()
    again = RowFiles(3, 2, 'uint8', tmp_path, 'x')
    assert again.read(np.array([2]), np.array([0])).tolist() == [[8]*900 + [0]*124]
    assert not again.stale(np.array([2]), np.array([0]), np.array([8]))[0]
    for spoilt in (None, 2**63 - 1, -5, 7*2**32 + 9):
        if spoilt is None: (tmp_path/'x.tags').unlink()
        else:
            tags = np.memmap(tmp_path/'x.tags', np.int64, 'r+', shape=(4, 2))
            tags[-1, 0] = spoilt
            tags.flush()
        b = RowFiles(3, 2, 'uint8', tmp_path, 'x')
        assert b.stale(np.array([0]), np.array([0]), np.array([5]))[0] and not b.blocks
        b.write(np.array([0]), np.array([0]), np.array([5]), np.full((1, 300), 9, np.uint8))
        b.write(np.array([1]), np.array([0]), np.array([6]), np.full((1, 700), 9, np.uint8))
        row = b.read(np.array([0]), np.array([0]))
        assert row.tolist() == [[9]*300 + [0]*(row.shape[1] - 300)]
        b.sync()


@pytest.mark.parametrize('kind', ['uint8', 'float16'])
def test_a_row_that_the_disk_changed_is_made_again(tmp_path, monkeypatch, kind):
    vlm, samples, out, kw = model(), tiny_samples(12, seed=4), tmp_path/'run.zarr', KW | dict(keep_tokens=kind)
    interrupted(monkeypatch, vlm, samples, out, **kw)
    file = next(f for f in (tmp_path/'run.zarr.partial'/'rows').iterdir() if f.name.endswith('L1.0'))
    data = bytearray(file.read_bytes())
    at = next(n for n, byte in enumerate(data) if byte)
    data[at] ^= 1
    file.write_bytes(data)
    equal(recorder.record(vlm, samples, **kw), recorder.record(vlm, samples, out, **kw))


@pytest.mark.parametrize('spoilt', ['no columns', 'many columns', 'a page'])
def test_tags_that_deny_their_rows(tmp_path, monkeypatch, spoilt):
    vlm, samples, out, kw = model(97), tiny_samples(12, seed=4), tmp_path/'run.zarr', KW | dict(keep_tokens=True)
    samples = [replace(samples[0], prompt='dog '*300), *samples[1:]]      # the first file is wider than others need
    interrupted(monkeypatch, vlm, samples, out, at=6, **kw)                 # the last batch brings few, others count
    for file in (tmp_path/'run.zarr.partial'/'rows').glob('*.tags'):
        tags = np.memmap(file, np.int64, 'r+')
        if spoilt == 'no columns': tags[-6:] = 0
        if spoilt == 'many columns': tags[-6] ^= 1 << 19
        if spoilt == 'a page': tags[512:] = 0
        tags.flush()
    array, made = RowFiles._array, []
    monkeypatch.setattr(RowFiles, '_array', lambda self, *a: (made.append(a[0]), array(self, *a))[1])
    got = recorder.record(vlm, samples, out, **kw)
    assert len(made) < 100, 'no more files than rows ask for'
    monkeypatch.undo()
    equal(recorder.record(vlm, samples, **kw), got)


def test_a_finished_run_leaves_the_checkpoint_of_another(tmp_path, monkeypatch):
    vlm, samples, out = model(), tiny_samples(12, seed=4), tmp_path/'run.zarr'
    recorder.record(vlm, samples[:5], out, **KW)
    interrupted(monkeypatch, vlm, samples, out, **KW, overwrite=True)
    file = tmp_path/'run.zarr.partial'/'state.safetensors'
    before = file.read_bytes()
    recorder.record(vlm, samples[:5], out, **KW)                             # it is finished
    next((out/'lm').glob('top_value/c/1/*/*')).write_bytes(b'damaged')
    with pytest.warns(UserWarning, match='is damaged'): recorder.record(vlm, samples[:5], out, **KW)        # repaired
    assert file.read_bytes() == before
    equal(recorder.record(vlm, samples, **KW), recorder.record(vlm, samples, out, **KW, overwrite=True))
    assert not file.parent.exists()
