"""Recording on a Ray cluster, with workers, machines and drivers that die: the same bits, and nothing is done twice.

One cluster starts at a time, since a start takes all of a small machine: tests that start their own come first, before
the common one is there. All stand in this file, which pytest-xdist gives to one worker (`--dist loadfile`)."""
import json, os, signal, subprocess, sys, time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

if 'OWN_CLUSTER' not in os.environ: # before Ray is imported: 127.0.0.1 only; who starts a cluster must see to it itself
    os.environ |= dict(RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER='0', RAY_USAGE_STATS_ENABLED='0', RAY_AUTH_MODE='disabled')

import numpy as np
import pytest

ray = pytest.importorskip('ray')
psutil = pytest.importorskip('psutil')
from ray.cluster_utils import Cluster

from mmneuron_nb.errors import ModelError, SampleError, StoreError, WorkerError
from mmneuron_nb.testing.tiny import tiny_llava, tiny_samples
from mmneuron_nb.models.vlm import VLM
from mmneuron_nb.recording import ray_actor, ray_engine
from mmneuron_nb.store.files import Checkpoint
from mmneuron_nb.recording.recorder import record
from mmneuron_nb.statistics.order import priority
from mmneuron_nb.store.store import open_store

KW = dict(top=6, random=5, modules=('vision', 'projector', 'lm'), progress=False, batch_size=2)
NODE = dict(num_cpus=1, include_dashboard=False, object_store_memory=80_000_000, node_ip_address='127.0.0.1')
SAMPLES = tiny_samples(24, seed=4)


def model(): return VLM(*tiny_llava(seed=4, layers=2, neurons=48))


def acting(act):
    "A model that calls `act(number of forward passes in this process, batch)` before each of them."
    vlm, count = model(), [0]
    plain = vlm.forward
    def forward(batch, logits=False):
        count[0] += 1
        act(count[0], batch)
        return plain(batch, logits)
    vlm.forward = forward
    return vlm


def slow(seconds): return acting(lambda n, batch: time.sleep(seconds))


def together(folder):
    "A model that waits until two processes have come this far, so that both have a share in the work."
    folder.mkdir()
    def wait(n, batch):
        (folder/str(os.getpid())).touch()
        until = time.monotonic() + 60
        while len(os.listdir(folder)) < 2 and time.monotonic() < until: time.sleep(.02)
    return acting(wait)


def equal(a, b):
    plain = lambda m: json.loads(json.dumps({k: v for k, v in m.items() if k not in ('files', 'seal')}))
    assert plain(a.manifest) == plain(b.manifest)
    for m in a.modules:
        assert set(a.module(m).data_vars) == set(b.module(m).data_vars)
        for v in a.module(m).data_vars: assert np.array_equal(a.module(m)[v].values, b.module(m)[v].values), (m, v)


def known(out):
    "Ids in the checkpoint of an unfinished run."
    file = out.with_name(out.name + '.partial')/'state.safetensors'
    if not file.exists(): return []
    data = file.read_bytes()
    return json.loads(json.loads(data[8:8 + int.from_bytes(data[:8], 'little')])['__metadata__']['ids'])


@pytest.fixture(scope='module')
def cluster():
    def start():
        with ray_actor.patient_settings():
            c = Cluster(initialize_head=True, head_node_args=NODE)
            try: c.add_node(**NODE)
            except BaseException:
                c.shutdown()
                raise
            return c
    c = ray_actor.start_patiently(start)
    ray.init(address=c.address, **ray_actor.QUIET)
    yield c
    ray.shutdown()
    c.shutdown()


@pytest.fixture(scope='module')
def whole(): return record(model(), SAMPLES, **KW)


def far(vlm, samples=SAMPLES, out=None, retries=3, actors=2, load=None, **kw):
    options = dict(actors=actors, portion=2, retries=retries, load=load)
    return record(vlm, samples, out, engine='ray', engine_options=options, **(KW | kw))


DRIVER = '''
import sys
from test_ray import *
ray_engine.EVERY, Checkpoint.due = 0, lambda self: True
print('ready', flush=True)
options = dict(address=sys.argv[2] or None, actors=1, portion=2)
record(slow(.1), SAMPLES, sys.argv[1], engine='ray', engine_options=options, **KW)
print('done', flush=True)
'''


def driver(out, address=''):
    "A process that records into `out`, in the middle of it."
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get('PYTHONPATH', '')])
    env = dict(os.environ, PYTHONPATH=path, OMP_NUM_THREADS='1')
    if not address:
        env['OWN_CLUSTER'] = '1'
        del env['RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER'], env['RAY_AUTH_MODE']
    p = subprocess.Popen([sys.executable, '-c', DRIVER, str(out), address], text=True, env=env,
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                         preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    while not known(out):
        assert p.poll() is None, p.stderr.read()
        time.sleep(.05)
    return p


def gone(processes, seconds):
    "Have these processes ended? Ray's two agents, which compute nothing, look for their parent once a minute."
    until = time.monotonic() + seconds
    def alive(p): return p.is_running() and p.status() != psutil.STATUS_ZOMBIE and 'Agent' not in p.name()
    while any(map(alive, processes)) and time.monotonic() < until: time.sleep(.2)
    assert not [p for p in processes if alive(p)]


@pytest.mark.parametrize('how', [signal.SIGINT, signal.SIGKILL])
def test_own_cluster_is_heard_by_nobody_and_ends_with_its_driver(whole, tmp_path, how):
    p = driver(tmp_path/'run.zarr')
    family = psutil.Process(p.pid).children(recursive=True)
    ears = {c.laddr.ip for q in family for c in q.net_connections() if c.status == psutil.CONN_LISTEN}
    assert 'raylet' in [q.name() for q in family] and ears and all(e.endswith('127.0.0.1') for e in ears), ears
    before = len(known(tmp_path/'run.zarr'))
    p.send_signal(how)
    _, err = p.communicate(timeout=60)
    assert p.returncode and (how == signal.SIGKILL or 'KeyboardInterrupt' in err)
    gone(family, 30)
    assert len(known(tmp_path/'run.zarr')) >= before > 0
    equal(record(model(), SAMPLES, tmp_path/'run.zarr', **KW), whole)


MORE = dict(answers='none', keep_tokens=True, site='post', stats=['power_sums', 'role_maximum'])


@pytest.mark.parametrize('kw', [dict(), MORE], ids=['statistics', 'more'])
def test_two_machines_give_the_files_of_one(cluster, tmp_path, kw):
    bare = [replace(s, answer=None) for s in SAMPLES] if kw else SAMPLES
    record(model(), bare, tmp_path/'here.zarr', **(KW | kw))
    store = far(together(tmp_path/'marks'), bare[::-1], tmp_path/'there.zarr', **kw)
    assert store.facts['actors'] == 2 and store.facts['lost'] == 0
    assert open_store(tmp_path/'here.zarr').manifest == store.manifest        # they hold the hash of every file
    assert sorted(p.name for p in tmp_path.iterdir()) == ['here.zarr', 'marks', 'there.zarr']


def test_workers_killed_in_the_middle_change_nothing(cluster, whole, tmp_path, monkeypatch):
    monkeypatch.setattr(ray_engine, 'EVERY', .1)           # some of their work was handed over, some dies with them
    marks = tmp_path/'marks'
    marks.mkdir()
    def die(n, batch):
        time.sleep(.05)
        if n == 5 and len(os.listdir(marks)) < 2:
            (marks/str(os.getpid())).touch()
            os.kill(os.getpid(), signal.SIGKILL)
    store = far(acting(die), out=tmp_path/'run.zarr')
    assert store.facts['lost'] == 2 and len(os.listdir(marks)) == 2
    equal(store, whole)


def test_a_sample_that_kills_its_worker_is_named_and_the_others_are_kept(cluster, whole, tmp_path, monkeypatch):
    monkeypatch.setattr(ray_engine, 'EVERY', 0)
    monkeypatch.setattr(Checkpoint, 'due', lambda self: True)
    victim = SAMPLES[-1].id
    def die(n, batch):
        if victim in [s.id for s in batch.samples]: os.kill(os.getpid(), signal.SIGKILL)
    with pytest.raises(WorkerError, match=f'2 actors were lost .*{victim}.*goes on from what is complete'):
        far(acting(die), out=tmp_path/'run.zarr', retries=1, actors=1)
    left = set(known(tmp_path/'run.zarr'))
    assert left == {s.id for s in SAMPLES[:-2]}, 'the two of its portion are missing, nothing else'
    store = record(model(), SAMPLES, tmp_path/'run.zarr', **KW)     # another engine goes on
    assert store.facts['samples'] == len(SAMPLES) - len(left)
    equal(store, whole)


def test_driver_killed_and_started_again_does_what_is_missing(cluster, whole, tmp_path):
    p = driver(tmp_path/'run.zarr', cluster.address)
    p.kill()
    p.wait()
    left = known(tmp_path/'run.zarr')
    assert 0 < len(left) < len(SAMPLES)
    store = far(model(), out=tmp_path/'run.zarr', actors=1)
    assert store.facts['samples'] == len(SAMPLES) - len(left)
    equal(store, whole)


def test_a_machine_leaves_and_another_joins(cluster, whole, tmp_path):
    seen = tmp_path/'seen'
    seen.mkdir()
    def note(n, batch):
        (seen/str(os.getpid())).touch()
        until, those = time.monotonic() + 60, 2 if n < 3 else 3 # first both are at work, then the one that came
        while len(os.listdir(seen)) < those and time.monotonic() < until: time.sleep(.02)
    with ThreadPoolExecutor(1) as pool:
        run = pool.submit(far, acting(note), actors=None)
        while len(os.listdir(seen)) < 2: time.sleep(.05)
        cluster.remove_node(next(n for n in cluster.list_all_nodes() if n is not cluster.head_node))
        cluster.add_node(**NODE)
        store = run.result()
    assert store.facts['lost'] == 1 and len(os.listdir(seen)) == 3
    equal(store, whole)


def test_poisoned_samples(cluster, tmp_path):
    chosen = sorted(SAMPLES, key=lambda s: priority(s.id))[:3]  # the first random ones: others move up, anywhere
    for s in chosen: (tmp_path/f'{s.id}.png').write_bytes(b'not a picture')
    samples = [replace(s, image=tmp_path/f'{s.id}.png') if s in chosen else s for s in SAMPLES]
    here = record(model(), samples, on_bad='skip', **KW)
    there = far(model(), samples, on_bad='skip')
    assert [d['id'] for d in there.skipped] == sorted(s.id for s in chosen) and there.facts['lost'] == 0
    equal(there, here)
    good, broken = [s for s in SAMPLES if s not in chosen], next(s for s in samples if s.id == chosen[0].id)
    with pytest.raises(SampleError, match='cannot be read'):
        far(slow(.02), [*good, broken], tmp_path/'run.zarr', actors=1)
    assert len(known(tmp_path/'run.zarr')) > 10                          # what was complete is saved


def test_what_was_begun_here_goes_on_there(cluster, tmp_path):
    kw = dict(keep_tokens='float16', stats=['power_sums', 'role_maximum'])
    def stop(n, batch):
        if n == 6: raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): record(acting(stop), SAMPLES, tmp_path/'run.zarr', **(KW | kw))
    left = known(tmp_path/'run.zarr')
    assert len(left) == 10
    store = far(model(), out=tmp_path/'run.zarr', **kw)
    assert store.facts['samples'] == len(SAMPLES) - len(left)
    record(model(), SAMPLES, tmp_path/'here.zarr', **(KW | kw))
    assert open_store(tmp_path/'here.zarr').manifest == store.manifest       # they hold the hash of every file


def test_the_command_line_finds_the_cluster(cluster, tmp_path):
    args = 'record --model toy --data scenes:6 --top 3 --random 2 --batch-size 2'.split()
    far = f'--engine ray --address {cluster.address} --engine-option actors=1 --engine-option portion=2'.split()
    for out, more in (('here.zarr', []), ('there.zarr', far)):
        command = [sys.executable, '-m', 'mmneuron_nb', *args, '--out', str(tmp_path/out), '--json', *more]
        p = subprocess.run(command, capture_output=True, text=True)
        assert p.returncode == 0, p.stderr
        facts = json.loads(p.stdout)['facts']
    assert facts['engine'] == 'ray' and facts['actors'] == 1 and facts['samples'] == 6
    assert open_store(tmp_path/'here.zarr').manifest == open_store(tmp_path/'there.zarr').manifest


def test_another_model_is_refused_wherever_it_is_made(cluster):
    other = lambda: VLM(*tiny_llava(seed=5, layers=2, neurons=48))
    with pytest.raises(ModelError, match='another weights'): far(model(), actors=1, load=other)
    def broken(): raise FileNotFoundError('weights.bin')
    with pytest.raises(WorkerError, match='could not make the model .*weights.bin'): far(model(), actors=1, load=broken)


def test_a_cut_checkpoint_is_named(cluster, tmp_path):
    part = tmp_path/'run.zarr.partial'
    part.mkdir()
    (part/'state.safetensors').write_bytes(b'half a file')
    with pytest.raises(StoreError, match='damaged'): far(model(), out=tmp_path/'run.zarr')
