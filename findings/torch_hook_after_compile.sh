#!/usr/bin/env bash
# A hook that is registered after the first call of a compiled model never runs.
# With:    torch 2.13.0, numpy 2.4.6, Python 3.11 or later
# Guess:   a forward hook runs at each forward, compiled or not, or PyTorch warns that it does not.
# What is: registered before the first call it runs; registered later on a module inside, it is left out without a
#          word, with torch.compile, module.compile and a compiled block alike.
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/v"
"$tmp/v/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
cd "$tmp"
"$tmp/v/bin/python" - <<'PY'
import warnings

import torch


class Block(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.act = torch.nn.Linear(3, 3), torch.nn.ReLU()

    def forward(self, x): return self.act(self.up(x))


def runs(how, late):
    "How often a hook on the activation runs, and how many warnings there are, in the second call."
    torch._dynamo.reset()
    net, seen, x = torch.nn.Sequential(Block()), [], torch.ones(1, 3)
    call = torch.compile(net, backend='eager') if how == 'torch.compile' else net
    if how == 'module.compile': net.compile(backend='eager')
    if how == 'block.compile': net[0].compile(backend='eager')
    register = lambda: net[0].act.register_forward_hook(lambda *_: seen.append(1))
    if not late: register()
    call(x)
    if late: register()
    seen.clear()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        call(x)
    return len(seen), len(said)


for how in ('torch.compile', 'module.compile', 'block.compile'):
    early, late = runs(how, False), runs(how, True)
    print(f'{how:14} (times, warnings): registered before {early}, after {late}')
    assert early == (1, 0) and late == (0, 0)
PY
