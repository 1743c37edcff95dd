#!/usr/bin/env bash
# Writing to an offloaded weight does nothing.
# With:    torch 2.13.0, accelerate 1.15.0, Python 3.11 or later
# Guess:   what one writes to model.weight is what the model computes with, or it is an error.
# What is: the parameter is on the device meta between calls: zero_, fill_ and item assignment succeed and change
#          nothing.
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/v"
"$tmp/v/bin/pip" install --quiet torch==2.13.0 accelerate==1.15.0
cd "$tmp"
"$tmp/v/bin/python" - <<'PY'
import torch
from accelerate import cpu_offload

model, x = torch.nn.Linear(3, 2, bias=False), torch.ones(1, 3)
before = model(x).detach()
cpu_offload(model, execution_device='cpu')
with torch.no_grad():
    model.weight.zero_()
    model.weight[0] = 5.
after = model(x).detach()
print(model.weight.device, 'before', before.tolist(), 'after', after.tolist())
assert model.weight.device.type == 'meta' and torch.equal(before, after)
PY
