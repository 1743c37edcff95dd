"""What recording costs: ratio to the plain forward pass in one run, memory and store size as the number of samples grows.

    python benchmarks/recording.py                      # the shipped model
    python benchmarks/recording.py --model wide -n 16   # random LLaVA: 24 layers, width 896, 4,864 neurons, 576 visual tokens
    python benchmarks/recording.py --model 7b --device cuda --dtype bfloat16 -n 256 --batch-size 16   # LLaVA-1.5-7B shape, random weights

Plain and recording passes of the same batch alternate, so that a machine that slows down slows both.
"""
import argparse, json, platform, resource, subprocess, sys, tempfile, time
from pathlib import Path

import torch

from mmneuron_nb import VLM, record, scenes
from mmneuron_nb.models.tiny import tiny_llava, tiny_samples
from mmneuron_nb.recording.batches import batches, domain_of, encode_batch
from mmneuron_nb.recording.recorder import one_batch
from mmneuron_nb.recording.state import Options, RunState

SHAPES = dict(
    wide=dict(width=896, neurons=4864, layers=24, heads=14, vision_width=768, vision_layers=12, image=336, patch=14, context=4096),
    **{'7b': dict(width=4096, neurons=11008, layers=32, heads=32, vision_width=1024, vision_layers=24, image=336, patch=14, context=4096, vocab_size=32000)})


def load(name, device, dtype):
    if name == 'toy': return VLM.toy(check=False)
    model, processor = tiny_llava(dtype=dtype, **SHAPES[name])
    return VLM(model.to(device), processor)


def sync(device):
    if device.type == 'cuda': torch.cuda.synchronize()


def cost(vlm, samples, batch_size, modules, **kw):
    "Seconds of plain forward, of forward with everything recorded, per sample; later half (top lists full) apart."
    opts = Options(modules=modules, **kw)
    state = RunState([s for m in modules for s in vlm.sites(m)], opts, [s.id for s in samples], sorted({domain_of(s) for s in samples}), vlm.device)
    rows = []
    for group in batches(vlm, samples, opts, batch_size):
        batch = encode_batch(vlm, group, opts).to(vlm.device, vlm.dtype)
        if not rows: vlm.forward(batch)  # warm up
        sync(vlm.device); t = time.perf_counter()
        vlm.forward(batch)
        sync(vlm.device); plain = time.perf_counter() - t
        before = dict(state.clock)
        one_batch(vlm, group, state)
        sync(vlm.device)
        rec = sum(state.clock[k] - before.get(k, 0) for k in ('forward', 'statistics'))
        rows.append((len(group), plain, rec))
    half = len(rows)//2
    ratio = lambda r: sum(x[2] for x in r)/sum(x[1] for x in r)
    n, plain, rec = (sum(x[k] for x in rows) for k in range(3))
    tokens = encode_batch(vlm, samples[:1], opts).layout.roles.shape[1]
    return dict(samples=n, tokens=tokens, plain_per_s=n/plain, recording_per_s=n/rec, ratio=ratio(rows), ratio_first_half=ratio(rows[:half]), ratio_second_half=ratio(rows[half:]))


def growth(n):
    "In a fresh process: peak memory and store size for `n` scenes of the shipped model (pictures on disk, as a data set would be)."
    with tempfile.TemporaryDirectory() as d:
        paths = []
        for s in (scenes.make(1, 5, start=i)[0] for i in range(n)):
            f = Path(d)/f'{s.id}.png'; s.image.save(f)
            paths.append(type(s)(s.id, f, s.prompt, s.answer, s.domain))
        vlm = VLM.toy(check=False)
        base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        t = time.perf_counter()
        store = record(vlm, paths, Path(d)/'run.zarr', modules=vlm.modules, progress=False)
        sec, size = time.perf_counter() - t, sum(f.stat().st_size for f in Path(store.path).rglob('*') if f.is_file())
        print(json.dumps(dict(samples=n, seconds=round(sec, 1), samples_per_s=round(n/sec, 1), peak_mb=round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1024),
                              before_recording_mb=round(base/1024), store_mb=round(size/1e6, 1))))


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--model', choices=('toy', *SHAPES), default='toy')
    p.add_argument('-n', type=int, default=400)
    p.add_argument('--batch-size', type=int, default=8)
    p.add_argument('--device', default='cpu')
    p.add_argument('--dtype', default='float32')
    p.add_argument('--grow', type=int, nargs='*', default=None, help='numbers of samples, for example 100 2000')
    p.add_argument('--grow-one', type=int, help=argparse.SUPPRESS)
    a = p.parse_args()
    if a.grow_one: return growth(a.grow_one)
    print(f'{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, {a.device}')
    if a.grow is not None:
        for n in a.grow: subprocess.run([sys.executable, __file__, '--grow-one', str(n)], check=True)
        return
    vlm = load(a.model, a.device, a.dtype)
    print(vlm)
    samples = scenes.make(a.n, 5) if a.model == 'toy' else tiny_samples(a.n, 5)
    for modules in (('lm',), vlm.modules):
        c = cost(vlm, samples, a.batch_size, modules)
        print(f"{'+'.join(modules):24}" + '  '.join(f'{k} {v:.3f}' if isinstance(v, float) else f'{k} {v}' for k, v in c.items()))


if __name__ == '__main__': main()
