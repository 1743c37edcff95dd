"""Damaged stores: each hit file is named and recorded anew, the rest left as it was, also when the repair is killed."""
import random, re, signal, time, warnings

import pytest

from mmneuron_nb.errors import StoreError
from mmneuron_nb.testing.tiny import tiny_llava, tiny_samples
from mmneuron_nb.models.hooks import hooked
from mmneuron_nb.models.vlm import VLM
from mmneuron_nb.store import files, repair
from mmneuron_nb.recording import recorder
from mmneuron_nb.store.storage import hashes, read_sealed, sizes
from mmneuron_nb.store.store import open_store
from test_faults import KW, equal, start, whole                 # noqa: F401, a fixture


# of zarr 3, or of zarr 2
def shards(names, layer): return [n for n in names if re.match(rf'\w+/\w+/(c/)?{layer}[./]', n)]


def hurt(out, names):
    for n in names: (out/n).write_bytes((out/n).read_bytes()[:-1])


def test_repair_killed_at_any_file_goes_on_where_it_was(whole, tmp_path, monkeypatch):
    """The n-th file put in place is the last one before the process dies; the next call mends the rest, and nothing
    else than damaged files was ever touched."""
    vlm, samples, out = VLM(*tiny_llava(seed=4, layers=2, neurons=48)), tiny_samples(40, seed=4), tmp_path/'run.zarr'
    recorder.record(vlm, samples, out, **KW)
    want = hashes(out, sizes(out))
    hit = [n for l in (0, 1) for n in shards(want, l) if n.startswith(('lm/top', 'vision/random_max'))]
    real = repair.put
    def dying(n):                                            # puts n files in place
        def put(folder, out, names):
            real(folder, out, names[:n])
            raise KeyboardInterrupt
        return put
    for n in range(3):
        hurt(out, hit)
        with monkeypatch.context() as m, warnings.catch_warnings():
            warnings.simplefilter('ignore')
            m.setattr(repair, 'put', dying(n))
            with pytest.raises(KeyboardInterrupt): recorder.record(vlm, samples, out, **KW)
        have = hashes(out, sizes(out))
        assert {k for k, h in have.items() if h != want[k]} <= set(hit)
        assert sum(have[k] != want[k] for k in hit) == len(hit) - n
        with pytest.warns(UserWarning, match='2 of 2 layers of lm'):
            equal(whole, recorder.record(vlm, samples, out, **KW))
        assert hashes(out, sizes(out)) == want and sorted(f.name for f in tmp_path.iterdir()) == ['run.zarr']


def test_repair_killed_by_sigkill(whole, tmp_path):
    out, rng = tmp_path/'run.zarr', random.Random(3)
    recorder.record(VLM(*tiny_llava(seed=4, layers=2, neurons=48)), tiny_samples(40, seed=4), out, **KW)
    want = hashes(out, sizes(out))
    hurt(out, shards(want, 1))
    for _ in range(4):
        p = start(out)
        time.sleep(rng.uniform(.2, 1.))
        p.send_signal(signal.SIGKILL)
        p.wait()
    assert start(out).wait(timeout=120) == 0
    assert hashes(out, sizes(out)) == want
    equal(whole, open_store(out))


def test_repair_keeps_out_what_was_skipped(tmp_path, monkeypatch):
    "A sample with a NaN in a layer that is not recorded again must stay out: the table and the random samples know it."
    vlm, samples, out = VLM(*tiny_llava(seed=4, layers=2, neurons=48)), tiny_samples(12, seed=4), tmp_path/'run.zarr'
    poisoned = [s.id for s in samples][3]
    plain, now = vlm.forward, []
    # layer 0 is fine, what it hands to layer 1 is not, for one sample
    def forward(batch, logits=False):
        now[:] = [s.id for s in batch.samples]
        return plain(batch, logits)
    vlm.forward = forward
    def spoil(point, y):
        y = y.clone()
        for n, i in enumerate(now):
            if i == poisoned: y.view(len(now), -1, y.shape[-1])[n] = float('nan')
        return y
    with hooked(vlm.model, vlm.points('mlp', 'lm', 0), spoil, change=('spoiled', 'nan')):
        store = recorder.record(vlm, samples, out, **KW)
        assert [d['id'] for d in store.skipped] == [poisoned]
        want = hashes(out, sizes(out))
        hurt(out, [n for n in shards(want, 0) if n.startswith('lm/top')][:1])
        with pytest.warns(UserWarning, match='1 of 2 layers of lm'): recorder.record(vlm, samples, out, **KW)
    assert hashes(out, sizes(out)) == want


def test_all_of_it_is_recorded_where_rows_were_kept_or_a_file_is_unknown(whole, tmp_path):
    vlm, samples, out = VLM(*tiny_llava(seed=4, layers=2, neurons=48)), tiny_samples(40, seed=4), tmp_path/'run.zarr'
    recorder.record(vlm, samples, out, keep_tokens=True, **KW)
    want = {n: h for n, h in hashes(out, sizes(out)).items() if n != 'facts.json'}
    hurt(out, shards(want, 0)[:1])
    with pytest.warns(UserWarning, match='recording all of it again'):
        recorder.record(vlm, samples, out, keep_tokens=True, **KW)
    assert {n: h for n, h in hashes(out, sizes(out)).items() if n != 'facts.json'} == want


def test_every_hash_is_compared_when_asked(tmp_path, monkeypatch):
    "A store too large to be read on opening: a flipped byte passes, until `check()` or the next `record`."
    vlm, samples, out = VLM(*tiny_llava(seed=4, layers=2, neurons=48)), tiny_samples(8, seed=4), tmp_path/'run.zarr'
    recorder.record(vlm, samples, out, **KW)
    monkeypatch.setattr(files, 'WHOLE', 1000)
    names = shards(sizes(out), 1)[:2]
    for n in names: (out/n).write_bytes(bytes([(out/n).read_bytes()[0] ^ 1]) + (out/n).read_bytes()[1:])
    store = open_store(out)
    with pytest.raises(StoreError) as e: store.check(progress=False)
    assert all(n in str(e.value) for n in names)
    with pytest.warns(UserWarning, match='is damaged'): recorder.record(vlm, samples, out, **KW)
    assert store.check(progress=False) == len(read_sealed(out/'manifest.json')['files']) + 2
    (out/names[0]).unlink()
    with pytest.raises(StoreError, match='is missing'): open_store(out)
