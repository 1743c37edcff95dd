#!/usr/bin/env bash
# Values that do not fit into a selection are dropped.
# With:    zarr 3.1.6, Python 3.11 or later
# Guess:   as in NumPy, assigning five values to a selection of two is an error.
# What is: the first two are written and the others are dropped, without a word.
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/v"
"$tmp/v/bin/pip" install --quiet zarr==3.1.6
cd "$tmp"
"$tmp/v/bin/python" - <<'PY'
import numpy as np
import zarr

array = zarr.create_array('a.zarr', shape=(4,), chunks=(2,), dtype='f4', fill_value=-1)
try: np.zeros(4)[:2] = np.arange(5)
except ValueError as err: print('NumPy:', err)
else: raise SystemExit('NumPy takes it')
array[:2] = np.arange(5)
print('zarr: ', array[:])
assert array[:].tolist() == [0, 1, -1, -1]
array[:] = np.arange(9)
assert array[:].tolist() == [0, 1, 2, 3]
PY
