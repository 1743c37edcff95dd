"""Models that do not lie in memory as they were built: dispatched by accelerate, offloaded to memory or to disk."""
import numpy as np
import pytest
import torch
from accelerate import cpu_offload, disk_offload, dispatch_model

from mmneuron_nb import record
from mmneuron_nb.testing.tiny import tiny_samples
from mmneuron_nb.models.vlm import VLM
from mmneuron_nb.testing.zoo import tiny_vlm

SAMPLES = tiny_samples(5, seed=2)
KW = dict(top=3, random=2, progress=False)


def two_parts(model, folder): # the tower in memory, everything else on disk until it is needed
    eye = next(n for n, m in model.named_modules() if m is model.get_encoder('image'))
    parts, path = {}, []
    for name in eye.split('.'): # what stands beside the tower on the way down to it
        here = model.get_submodule('.'.join(path))
        parts |= {'.'.join([*path, n]): 'disk' for n, _ in here.named_children() if n != name}
        parts |= {'.'.join([*path, n]): 'cpu' for n, _ in here.named_parameters(recurse=False)}
        path.append(name)
    return dispatch_model(model, parts | {eye: 'cpu'}, main_device='cpu', offload_dir=folder, force_hooks=True)


HOW = dict(two_parts=two_parts, memory=lambda m, f: cpu_offload(m, execution_device=torch.device('cpu')),
           disk=lambda m, f: disk_offload(m, f, execution_device=torch.device('cpu')))


@pytest.mark.parametrize('how', HOW)
@pytest.mark.parametrize('name', ['llava', 'llava-next', 'qwen2.5-vl', 'instructblip', 'blip-2-opt', 'gemma3'])
def test_dispatched(name, how, tmp_path):
    plain = VLM(*tiny_vlm(name))
    model, processor = tiny_vlm(name)
    vlm = VLM(HOW[how](model, str(tmp_path)), processor)
    assert any(p.is_meta for p in vlm.model.parameters()), 'nothing was offloaded, so this shows nothing'
    vlm.check(SAMPLES[:2])
    assert vlm.fingerprint() == plain.fingerprint()
    want, got = (record(v, SAMPLES, modules=v.modules, **KW) for v in (plain, vlm))
    for m in plain.modules:
        for k in want.module(m).data_vars:
            assert np.array_equal(want.module(m)[k].values, got.module(m)[k].values), (m, k)
