#!/usr/bin/env bash
# A shard file of 0 bytes is read as fill values, or is an error: it depends on how much one reads.
# With:    zarr 3.1.6, Python 3.11 or later
# Guess:   a shard that was cut to nothing, as after a full disk, is an error whatever one reads.
# What is: the array as a whole is read with fill values where the shard was, without a word; a part of the same shard
#          raises ValueError (checksum).
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/v"
"$tmp/v/bin/pip" install --quiet zarr==3.1.6
cd "$tmp"
"$tmp/v/bin/python" - <<'PY'
from pathlib import Path

import numpy as np
import zarr

array = zarr.create_array('a.zarr', shape=(8,), chunks=(2,), shards=(4,), dtype='f4', fill_value=-1)
array[:] = np.arange(8)
Path('a.zarr/c/0').write_bytes(b'')
array = zarr.open_array('a.zarr', mode='r')
print('all of it:', array[:])
assert array[:].tolist() == [-1, -1, -1, -1, 4, 5, 6, 7]
try: array[:2]
except ValueError as err: print('a part:   ', type(err).__name__, err)
else: raise SystemExit('a part of the shard can be read: no longer so')
PY
