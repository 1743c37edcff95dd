"""Run the notebooks as tests, each in a process of its own: `python tools/notebooks.py [--workers 2] [NB ...]`.

The work is `nbdev_test`'s; a fresh process keeps one notebook's imports, threads and leftovers out of the next.
Cells with a flag of `tst_flags` (settings.ini) are skipped, so are folders with a `.notest` file, and notebooks that
import a package of `OPTIONAL` which is not installed; .ci/run installs them all.
"""
import argparse
import json
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
OPTIONAL = {'triton': "1 GB, for the GPU's kernels: `make test EXTRAS=lab,dev,kernels` installs it"}

def notebooks(root=ROOT):
    "All notebooks, those that take longest to run (the largest) first."
    left_out = lambda p: '.ipynb_checkpoints' in p.parts or (p.parent/'.notest').exists()
    nbs = [p for p in (root/'nbs').rglob('*.ipynb') if not left_out(p)]
    return sorted(nbs, key=lambda p: (-p.stat().st_size, p))

def missing(nb, have=find_spec):
    "The package of `OPTIONAL` that a notebook imports and that is not installed, or None."
    cells = json.loads(nb.read_text(encoding='utf-8'))['cells']
    sources = [''.join(c['source']) for c in cells if c['cell_type'] == 'code']
    wants = {m[1] for s in sources for m in re.finditer(r'^(?:import|from) (\w+)', s, re.M)}
    return next((p for p in OPTIONAL if p in wants and have(p) is None), None)

def run(nb, root=ROOT, timeout=600):
    "Run one notebook; (passed, seconds, output)."
    code = f'from nbdev.test import nbdev_test; nbdev_test(path={str(nb)!r}, n_workers=0)'
    t = time.time()
    try:
        p = subprocess.run([sys.executable, '-c', code], cwd=root, text=True, stdin=subprocess.DEVNULL, timeout=timeout,
                           stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding='utf-8', errors='replace')
    except subprocess.TimeoutExpired: return False, timeout, f'no end after {timeout} s'
    return p.returncode == 0, time.time() - t, p.stdout

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
    with ThreadPoolExecutor(a.workers) as ex:
        for nb, (ok, sec, out) in zip(nbs, ex.map(run, nbs)):
            bad += not ok
            print(f"{'ok    ' if ok else 'FAILED'} {sec:6.1f} s  {nb.relative_to(ROOT)}", flush=True)
            if not ok: print(out, flush=True)
    print(f'{len(nbs) - bad} passed, {bad} failed' + (f', {len(left_out)} skipped' if left_out else ''))
    return int(bad > 0)

if __name__ == '__main__': sys.exit(main())
