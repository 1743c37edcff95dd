"""Classifying all neurons of a 7B model, in a synthetic store.

The store has the size of LLaVA-1.5-7B's language model: 32 x 11,008 neurons, top 50, K = 8.

    python benchmarks/modality.py [--layers 32 --width 11008 --top 50]
"""
import argparse, resource, tempfile, time
from pathlib import Path

import numpy as np
import torch

from mmneuron_nb.models.sites import Site
from mmneuron_nb.neurons import modality_types
from mmneuron_nb.statistics.state import Options, RunState
from mmneuron_nb.statistics.order import make_key
from mmneuron_nb.store.files import make_manifest, write_store
from mmneuron_nb.store.store import open_store


def synthetic(layers, width, top, samples=2000, order=8):
    "A `RunState` with random entries, order statistics below the maximum."
    sites = [Site('lm', l, width, 'act', f'l{l}', f'l{l}.act', f'l{l}.down', True) for l in range(layers)]
    ids = [f's{i:06}' for i in range(samples)]
    state = RunState(sites, Options(top=top, random=0, order=order, domains=False), ids)
    g = torch.Generator().manual_seed(0)
    for t in state.modules['lm'].top:
        value = torch.rand(width, top, generator=g).sort(1, descending=True).values + .1
        t.key = make_key(value, torch.arange(top).expand(width, top))
        for c in t.columns:
            share = torch.rand(width, top, order, generator=g).sort(2, descending=True).values
            t.columns[c] = value[..., None]*share
    roles, token_ids = np.array([2, 3], np.uint8), np.array([5, 6], np.int32)
    for i in state.ids: state.add_sample(i, '', dict(lm=(roles, token_ids, None)))
    return state


def timed(f):
    "What `f` returns, and its seconds."
    start = time.perf_counter()
    out = f()
    return out, time.perf_counter() - start


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--layers', type=int, default=32)
    p.add_argument('--width', type=int, default=11_008)
    p.add_argument('--top', type=int, default=50)
    a = p.parse_args()
    state = synthetic(a.layers, a.width, a.top)
    with tempfile.TemporaryDirectory() as d:
        path = Path(d)/'run.zarr'
        parts = ('weights', 'tokenizer', 'image_processor', 'template')
        model = dict(model='synthetic', source='', dtype='float32') | dict.fromkeys(parts, '')
        _, wrote = timed(lambda: write_store(state, make_manifest(state, model, dict(samples={})), path))
        size = sum(f.stat().st_size for f in Path(d).rglob('*') if f.is_file())
        del state
        store, opened = timed(lambda: open_store(path))
        table, typed = timed(lambda: modality_types(store))
        _, one = timed(lambda: store.ds.isel(layer=a.layers//2, neuron=a.width//2).load())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1e6
    print(f'{len(table):,} neurons x {a.top}: written in {wrote:.1f} s ({size/1e9:.2f} GB), '
          f'opened in {opened:.2f} s, one neuron in {one*1e3:.0f} ms,')
    print(f'modality_types of all in {typed:.2f} s; peak memory {peak:.1f} GB')
    print(table.type.value_counts(normalize=True).round(3).to_dict())


if __name__ == '__main__': main()
