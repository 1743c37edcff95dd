"""A store at the size of LLaVA-1.5-7B's language model.

    python benchmarks/store.py [--layers 32 --width 11008 --tokens 704 --folder DIR --keep]

It has 32 x 11,008 neurons, top 50, K = 8, 50 random samples x 9 shares, 5 domains, 23,000 samples; with --tokens also
token rows, 13 GB. Written a layer at a time, so that memory stays small; then opened and asked. Values have the 8 bits
of bfloat16, as a recording of such a model has. Reads are of files that the system may still hold in memory; the first
neuron is the first read after opening.
"""
import argparse, resource, shutil, statistics, tempfile, time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import xarray as xr

from mmneuron_nb.models.sites import Site
from mmneuron_nb.neurons import modality_types
from mmneuron_nb.store.arrays import write_group
from mmneuron_nb.store.files import make_manifest, write_seals
from mmneuron_nb.store.storage import sizes
from mmneuron_nb.statistics.state import ModuleState, Options
from mmneuron_nb.statistics.order import SHARES
from mmneuron_nb.store.store import open_store

DOMAINS = ['aerial', 'common', 'document', 'driving', 'medical']
DIMS = ModuleState([Site('lm', 0, 1, 'act', '', '', '', True)], Options(keep_tokens=True), len(DOMAINS)).dims


def bf16(x): return torch.from_numpy(x.astype(np.float32)).bfloat16().float().numpy()


def silu(x): return x/(1 + np.exp(-x))


def layer(l, width, samples, rng, tokens, top=50, order=8, random=50):
    "The Dataset of one layer: maxima over many tokens, the next largest below them, a few tokens of random samples."
    scale = rng.lognormal(0, .5, (width, 1))
    high = np.sort(scale*(2 + rng.gumbel(0, .6, (width, top))), 1)[:, ::-1]
    def below(part):
        falling = np.sort(rng.beta(8, 2, (width, top, order)), 2)[..., ::-1]
        return bf16(silu(high[..., None]*part*falling))
    def share(mean):
        falling = np.sort(rng.normal(mean, 1, (width, random, len(SHARES))), 2)[..., ::-1]
        return bf16(silu(scale[..., None]*falling))
    visual, text = below(1.), below(.7)
    arrays = dict(top_value=np.maximum(visual[..., 0], text[..., 0]),
                  top_sample=rng.integers(samples, size=(width, top), dtype=np.int32),
                  top_visual=visual, top_text=text,
                  random_max=bf16(silu(scale*(1.5 + rng.gumbel(0, .6, (width, random))))),
                  random_visual=share(-.5), random_text=share(-.8),
                  active=rng.integers(2_600_000, size=(width, len(DOMAINS), 4)))
    if tokens: # a byte each, few of them large
        row = rng.standard_exponential((width, top, tokens), np.float32)*25
        arrays |= dict(top_row=np.minimum(row, 255).astype(np.uint8),
                       top_range=bf16(rng.normal(size=(width, top, 4))))
    shared = dict(random_sample=np.arange(random, dtype=np.int32), tokens=np.full((len(DOMAINS), 4), 2_600_000))
    data = {k: (DIMS[k], v[None]) for k, v in arrays.items()} | {k: (DIMS[k], v) for k, v in shared.items()}
    return xr.Dataset(data, dict(layer=[l], share=[float(s) for s in SHARES]))


def table(samples, rng):
    "The sample table: 110 words and 5 runs of roles each."
    ragged = dict(token_ids=(110, 32_000), runs=(10, 600), boxes=(0, 1))
    out = dict(domain=('sample', rng.integers(len(DOMAINS), size=samples, dtype=np.int32)))
    for k, (n, most) in ragged.items():
        out[k] = f'{k}_item', rng.integers(most, size=n*samples, dtype=np.int32)
        out[f'{k}_at'] = 'edge', np.arange(samples + 1)*n
    return xr.Dataset(out)


def write(folder, layers, width, samples, tokens):
    rng = np.random.default_rng(0)
    for l in range(layers): write_group(folder, 'lm', layer(l, width, samples, rng, tokens), layers=range(layers))
    write_group(folder, 'samples', table(samples, rng))
    sites = [Site('lm', l, width, 'act', f'l{l}', f'l{l}.act', f'l{l}.down', True) for l in range(layers)]
    ids = [f'sample-{i:06}' for i in range(samples)]
    state = SimpleNamespace(opts=Options(keep_tokens=bool(tokens)), domains=DOMAINS, sites=dict(lm=sites),
                            table=dict.fromkeys(ids), skipped={})
    parts = ('weights', 'config', 'tokenizer', 'image_processor', 'template')
    model = dict.fromkeys(parts, '0') | dict(model='synthetic 7B', dtype='bfloat16')
    data = dict(samples=dict.fromkeys(ids, '0123456789abcdef'))
    write_seals(folder, make_manifest(state, model, data), dict(device='cpu'))


def timed(f, times=1):
    "Seconds of each call, and the last result."
    out = []
    for _ in range(times):
        start = time.perf_counter()
        result = f()
        out.append(time.perf_counter() - start)
    return out, result


def measure(path):
    "`{what: (seconds, target)}`; targets hold at full size."
    rng, rows = np.random.default_rng(1), {}
    opened, store = timed(lambda: open_store(path), 3)
    rows['open'] = (max(opened), 1.)
    ds = store.ds.drop_vars('top_row', errors='ignore')
    some = lambda dim: int(rng.integers(ds.sizes[dim]))
    neuron = lambda: ds.isel(layer=some('layer'), neuron=some('neuron')).load()
    rows['one neuron, all arrays, first'] = (timed(neuron)[0][0], None)
    seconds = timed(neuron, 30)[0]
    rows['one neuron, all arrays, median of 30'] = (statistics.median(seconds), .02)
    rows['one neuron, all arrays, slowest of 30'] = (max(seconds), None)
    if 'top_row' in store.ds:
        row = lambda: store.ds.top_row[some('layer'), some('neuron')].values
        rows['50 token rows of one neuron, median of 30'] = (statistics.median(timed(row, 30)[0]), .02)
    maxima = ('top_value', 'top_visual', 'top_text')
    one = lambda: [ds[k].isel(layer=some('layer')).values for k in maxima]
    rows['one layer, maxima and order statistics, median of 5'] = (statistics.median(timed(one, 5)[0]), .2)
    rows['modality_types, all'] = (timed(lambda: modality_types(store))[0][0], 10.)
    rows['check(), all hashes'] = (timed(lambda: store.check(progress=False))[0][0], None)
    return rows


def main():
    p = argparse.ArgumentParser()
    for k, v in dict(layers=32, width=11_008, samples=23_000, tokens=0).items():
        p.add_argument(f'--{k}', type=int, default=v)
    p.add_argument('--folder', help='where to write; default: a temporary folder, removed at the end')
    p.add_argument('--keep', action='store_true', help='leave the store there')
    a = p.parse_args()
    torch.set_num_threads(2)
    home = Path(tempfile.mkdtemp(dir=a.folder))
    try:
        start = time.perf_counter()
        write(home/'run.zarr', a.layers, a.width, a.samples, a.tokens)
        wrote = time.perf_counter() - start
        files = sizes(home/'run.zarr')
        array = lambda n: '/'.join(n.split('/')[:2])
        by = {k: sum(s for n, s in files.items() if array(n) == k)/1e6 for k in sorted(set(map(array, files)))}
        print(f'{a.layers} x {a.width:,} neurons: {sum(files.values())/1e9:.2f} GB in {len(files)} files, '
              f'written in {wrote:.0f} s (drawing included)')
        print('MB: ' + ', '.join(f'{k} {v:.0f}' for k, v in by.items() if v >= 1))
        for k, (sec, target) in measure(home/'run.zarr').items():
            bar = ''
            if target: bar = f'   target {target*1000:,.0f} ms: {"kept" if sec <= target else "MISSED"}'
            print(f'{k:55}{sec*1000:10,.1f} ms{bar}')
        print(f'peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1e6:.1f} GB')
        if a.keep: print(home)
    finally:
        if not a.keep: shutil.rmtree(home)


if __name__ == '__main__': main()
