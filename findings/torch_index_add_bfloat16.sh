#!/usr/bin/env bash
# index_add_ in bfloat16 stops counting at 256.
# With:    torch 2.13.0, numpy 2.4.6, Python 3.11 or later
# Guess:   adding 1,000 ones gives about 1,000, as sum and scatter_add_ do in the same dtype.
# What is: index_add_ rounds after each addition, and 256 + 1 is 256 in bfloat16 (2,048 in float16). Count in int64 or
#          float32.
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/v"
"$tmp/v/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
cd "$tmp"
"$tmp/v/bin/python" - <<'PY'
import torch

for dtype, most in ((torch.bfloat16, 256), (torch.float16, 2048)):
    where, ones = torch.zeros(5000, dtype=torch.long), torch.ones(5000, dtype=dtype)
    total = torch.zeros(1, dtype=dtype)
    added = total.clone().index_add_(0, where, ones).item()
    scattered = total.clone().scatter_add_(0, where, ones).item()
    print(f'{dtype}: index_add_ {added}, scatter_add_ {scattered}, sum {ones.sum().item()}')
    assert added == most and abs(ones.sum().item() - 5000) < 50 and abs(scattered - 5000) < 50
PY
