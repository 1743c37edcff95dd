"""Run the notebooks as tests, each in a process of its own: `python tools/notebooks.py [--workers 2] [NB ...]`.

The work is `nbdev_test`'s; a process of its own keeps one notebook's imports, threads and leftovers out of the next.
Each is forked from one that has imported `PRELOAD`, outside packages whose import takes longer than most notebooks.
Those that want a package of `OPTIONAL` start from nothing: Triton reads its settings when it is imported.
Cells with a flag of `tst_flags` (settings.ini) are skipped, so are folders with a `.notest` file, and notebooks that
import a package of `OPTIONAL` which is not installed; .ci/run installs them all.
"""
import argparse
import json
import multiprocessing
import os
import re
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
OPTIONAL = {'triton': "1 GB, for the GPU's kernels: `make test EXTRAS=lab,dev,kernels` installs it"}
PRELOAD = ['torch', 'transformers.models.llava.modeling_llava', 'transformers.models.llava.processing_llava',
           'transformers.models.auto.modeling_auto', 'pandas', 'xarray', 'zarr', 'plotly.graph_objects', 'plotly.io',
           'matplotlib.pyplot', 'IPython.core.interactiveshell', 'nbdev.test', 'fastcore.test', 'anywidget']

def notebooks(root=ROOT):
    "All notebooks, those that take longest to run (the largest) first."
    left_out = lambda p: '.ipynb_checkpoints' in p.parts or (p.parent/'.notest').exists()
    nbs = [p for p in (root/'nbs').rglob('*.ipynb') if not left_out(p)]
    return sorted(nbs, key=lambda p: (-p.stat().st_size, p))

def wanted(nb):
    "The packages that a notebook imports at the start of a line."
    cells = json.loads(nb.read_text(encoding='utf-8'))['cells']
    sources = [''.join(c['source']) for c in cells if c['cell_type'] == 'code']
    return {m[1] for s in sources for m in re.finditer(r'^(?:import|from) (\w+)', s, re.M)}

def missing(nb, have=find_spec):
    "The package of `OPTIONAL` that a notebook imports and that is not installed, or None."
    wants = wanted(nb)
    return next((p for p in OPTIONAL if p in wants and have(p) is None), None)

def _work(nb, root, log): # in the process of one notebook: what it prints goes to a file
    out = os.open(log, os.O_WRONLY)
    os.dup2(out, 1)
    os.dup2(out, 2)
    sys.argv = [str(nb)]
    os.chdir(root)
    from nbdev.test import nbdev_test
    nbdev_test(path=str(nb), n_workers=0)

def run(nb, root=ROOT, timeout=600):
    "Run one notebook; (passed, seconds, output)."
    fresh = any(package in wanted(nb) for package in OPTIONAL)
    start = multiprocessing.get_context('spawn' if fresh else 'forkserver')
    t = time.time()
    with tempfile.NamedTemporaryFile('r', encoding='utf-8', errors='replace', suffix='.log') as log:
        p = start.Process(target=_work, args=(nb, root, log.name))
        p.start()
        p.join(timeout)
        if p.exitcode is None:
            p.kill()
            return False, timeout, f'no end after {timeout} s\n{log.read()}'
        return p.exitcode == 0, time.time() - t, log.read()

def main(argv=None):
    "Run them all and count."
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ap.add_argument('--workers', type=int, default=2, help='how many at a time')
    ap.add_argument('nbs', nargs='*', type=Path, help='these only')
    a = ap.parse_args(argv)
    nbs, bad = [p.resolve() for p in a.nbs] or notebooks(), 0
    left_out = {p: package for p in nbs if (package := missing(p))}
    for p, package in left_out.items():
        print(f'skipped           {p.relative_to(ROOT)}: {package} is missing ({OPTIONAL[package]})')
    nbs = [p for p in nbs if p not in left_out]
    multiprocessing.get_context('forkserver').set_forkserver_preload(PRELOAD)
    with ThreadPoolExecutor(a.workers) as ex:
        for nb, (ok, sec, out) in zip(nbs, ex.map(run, nbs)):
            bad += not ok
            print(f"{'ok    ' if ok else 'FAILED'} {sec:6.1f} s  {nb.relative_to(ROOT)}", flush=True)
            if not ok: print(out, flush=True)
    print(f'{len(nbs) - bad} passed, {bad} failed' + (f', {len(left_out)} skipped' if left_out else ''))
    return int(bad > 0)

if __name__ == '__main__': sys.exit(main())
