"""A recording made while something changes the model is never taken for one of the plain model."""
import contextlib
from functools import partial

import pytest
import torch

from mmneuron_nb import open_store, record
from mmneuron_nb.errors import ModelError, StoreError
from mmneuron_nb.models.fingerprint import changed
from mmneuron_nb.models.hooks import hooked
from mmneuron_nb.models.vlm import VLM
from mmneuron_nb.testing.tiny import tiny_llava, tiny_samples
from mmneuron_nb.testing.zoo import ZOO, tiny_vlm

SAMPLES = tiny_samples(12, seed=2)
OPTIONS = dict(top=4, random=2, order=3, progress=False)

@pytest.fixture
def vlm(): return VLM(*tiny_llava(neurons=32, layers=2))

def silenced(vlm, name='c0ffee', unit=0):
    "A change with a name: one neuron of layer 0 gives nothing."
    def zero(p, x):
        x = x.clone()
        x[..., unit] = 0
        return x
    return hooked(vlm.model, vlm.sites('lm', layers=[0]), zero, change=('silenced', name))

def test_a_named_change_is_part_of_the_store(vlm, tmp_path):
    plain = record(vlm, SAMPLES, out=tmp_path/'plain.zarr', **OPTIONS)
    with silenced(vlm): changed = record(vlm, SAMPLES, out=tmp_path/'changed.zarr', **OPTIONS)
    assert 'changes' not in plain.manifest['model']
    assert changed.manifest['model']['changes'] == [['silenced', 'c0ffee']]
    assert float(changed.ds.top_value[0, 0].max()) == 0 != float(plain.ds.top_value[0, 0].max())
    again = open_store(tmp_path/'changed.zarr')
    with pytest.raises(StoreError, match='another changes|other changes'): again.attach(vlm, SAMPLES)
    with silenced(vlm):
        again.attach(vlm, SAMPLES)
        assert again.verify(50)
    with silenced(vlm, 'other'), pytest.raises(StoreError, match='changes'):
        try: again.attach(vlm, SAMPLES)
        finally: vlm.forward(vlm.encode(SAMPLES[:1]))

def test_without_a_name_nothing_is_recorded(vlm, tmp_path):
    with hooked(vlm.model, vlm.sites('lm'), lambda p, x: x*2):
        with pytest.raises(ModelError, match='Something may change the model while it is recorded'):
            record(vlm, SAMPLES, out=tmp_path/'run.zarr', **OPTIONS)
        vlm.forward(vlm.encode(SAMPLES[:1]))
    assert not (tmp_path/'run.zarr').exists()
    handle = vlm.model.model.language_model.layers[0].register_forward_hook(lambda mod, args, out: out)
    with pytest.raises(ModelError, match='the hook .* at model.language_model.layers.0'):
        record(vlm, SAMPLES, **OPTIONS)
    handle.remove()
    with vlm.reading(lambda s, x: None, 'lm'): record(vlm, SAMPLES, **OPTIONS) # a reader is no change

def test_an_edited_weight_is_another_model(vlm, tmp_path):
    plain = record(vlm, SAMPLES, out=tmp_path/'run.zarr', **OPTIONS)
    weight = vlm.model.model.language_model.layers[0].mlp.down_proj.weight
    before = weight.detach().clone()
    with torch.no_grad(): weight[:, 3] = 0
    with pytest.raises(StoreError, match='other weights'): record(vlm, SAMPLES, out=tmp_path/'run.zarr', **OPTIONS)
    with pytest.raises(StoreError, match='weights'): plain.merge(record(vlm, tiny_samples(20)[12:], **OPTIONS))
    with torch.no_grad(): weight.copy_(before)
    plain.attach(vlm, SAMPLES)

def test_it_does_not_merge_with_a_plain_one(vlm):
    plain, others = record(vlm, SAMPLES[:6], **OPTIONS), SAMPLES[6:]
    with silenced(vlm): changed = record(vlm, others, **OPTIONS)
    for a, b in ((plain, changed), (changed, plain)):
        with pytest.raises(StoreError, match='changes'): a.merge(b)
    with silenced(vlm): more = record(vlm, SAMPLES[:6], **OPTIONS)
    assert len(changed.merge(more)) == 12

def test_neither_goes_on_with_what_the_other_began(vlm, tmp_path):
    out = tmp_path/'run.zarr'
    _break_off(vlm, out)
    with silenced(vlm):
        with pytest.raises(StoreError, match='changes'): record(vlm, SAMPLES, out=out, **OPTIONS)
        vlm.forward(vlm.encode(SAMPLES[:1]))
    plain = record(vlm, SAMPLES, out=out, **OPTIONS)
    assert 'changes' not in plain.manifest['model']
    with silenced(vlm):
        with pytest.raises(StoreError, match='changes'): record(vlm, SAMPLES, out=out, **OPTIONS) # finished
        vlm.forward(vlm.encode(SAMPLES[:1]))

def _break_off(vlm, out):
    "A run that ends after some batches, its checkpoint saved."
    forward, n = vlm.forward, []
    def fails(*args, **kw):
        n.append(1)
        if len(n) > 2: raise RuntimeError('the power is out')
        return forward(*args, **kw)
    vlm.forward = fails
    try:
        with pytest.raises(RuntimeError, match='the power is out'):
            record(vlm, SAMPLES, out=out, batch_size=2, **OPTIONS)
    finally: del vlm.forward
    assert list(out.with_name(out.name + '.partial').iterdir())

def test_neither_repairs_the_other(vlm, tmp_path):
    out = tmp_path/'run.zarr'
    record(vlm, SAMPLES, out=out, **OPTIONS)
    files = [p for p in (out/'lm'/'top_value').rglob('*') if p.is_file() and 'json' not in p.name]
    shard = max(files, key=lambda p: p.stat().st_size)
    shard.write_bytes(b'\0'*shard.stat().st_size)
    with silenced(vlm):
        with pytest.raises(StoreError, match='changes'): record(vlm, SAMPLES, out=out, **OPTIONS)
        vlm.forward(vlm.encode(SAMPLES[:1]))
    with pytest.warns(UserWarning, match='is damaged'): assert record(vlm, SAMPLES, out=out, **OPTIONS).verify(100)

def test_other_machines_do_not_know_a_change(vlm, tmp_path):
    with silenced(vlm):
        with pytest.raises(ModelError, match='is changed at the moment .silenced., which other machines do not know'):
            record(vlm, SAMPLES, out=tmp_path/'run.zarr', engine='ray', **OPTIONS)
        vlm.forward(vlm.encode(SAMPLES[:1]))

def test_hooks_of_every_module_and_replaced_forwards_count(vlm):
    handle = torch.nn.modules.module.register_module_forward_hook(lambda mod, args, out: out)
    with pytest.raises(ModelError, match='the hook .* at every module'): record(vlm, SAMPLES, **OPTIONS)
    handle.remove()
    plain, down = record(vlm, SAMPLES[:6], **OPTIONS), vlm.model.get_submodule(vlm.sites('lm')[0].down)
    own = down.forward
    down.forward = lambda x: own(x)*2
    changed = record(vlm, SAMPLES[6:], **OPTIONS)
    del down.forward
    assert changed.manifest['model']['changes'][0][0] == 'forward of ' + vlm.sites('lm')[0].down
    with pytest.raises(StoreError, match='changes'): plain.merge(changed)

@pytest.mark.parametrize('name', ZOO)
def test_a_model_at_work_stays_what_it_was_taken_for(name):
    vlm = VLM(*tiny_vlm(name))
    batch = vlm.encode(SAMPLES[:2])
    vlm.forward(batch)
    vlm.activations(batch, vlm.modules[0])
    vlm.generate(SAMPLES[:1], max_new_tokens=2)
    assert changed(vlm.as_taken, vlm.model) == []

def test_a_number_beside_the_weights_is_another_model(vlm, tmp_path):
    record(vlm, SAMPLES, out=tmp_path/'run.zarr', **OPTIONS)
    attention, rotary = vlm.model.model.language_model.layers[0].self_attn, vlm.model.model.language_model.rotary_emb
    for part, name, value in ((attention, 'scaling', attention.scaling*2), (rotary, 'inv_freq', rotary.inv_freq*2)):
        before = getattr(part, name)
        setattr(part, name, value)
        with pytest.raises(StoreError, match='changes'): open_store(tmp_path/'run.zarr').attach(vlm, SAMPLES)
        setattr(part, name, before)
    open_store(tmp_path/'run.zarr').attach(vlm, SAMPLES)

class Adapted(torch.nn.Module):
    "What a LoRA keeps beside its weights: a factor by name, and a private switch."
    def __init__(self, inner):
        super().__init__()
        self.inner, self.scaling, self._disabled = inner, dict(lora=.5), False
    def forward(self, x): return self.inner(x)*(1 if self._disabled else self.scaling['lora'])

def _differs(vlm, batch, plain, known):
    return not torch.equal(vlm.forward(batch).logits, plain), vlm.fingerprint() != known

@pytest.mark.parametrize('what', ['class forward', 'tuple', 'same name', 'dict', 'private', 'training', 'autocast',
                                  'attention'])
def test_what_changes_the_logits_changes_the_fingerprint(vlm, what, monkeypatch):
    layer = vlm.model.model.language_model.layers[0]
    layer.mlp = Adapted(layer.mlp)
    layer.self_attn.attention_dropout = .5 # of no effect before training
    vlm = VLM(vlm.model, vlm.processor)
    batch = vlm.encode(SAMPLES[:2])
    plain, known = vlm.forward(batch).logits, vlm.fingerprint()
    with contextlib.ExitStack() as stack:
        if what == 'class forward':
            monkeypatch.setattr(Adapted, 'forward', lambda self, x: self.inner(x))
        elif what == 'tuple': vlm.model.get_submodule(vlm.points('patches')[0].path).padding = (1, 1)
        elif what == 'same name':
            kind = type(layer.mlp.inner.act_fn)
            body = dict(forward=lambda self, x: x, __qualname__=kind.__qualname__, __module__=kind.__module__)
            layer.mlp.inner.act_fn = type(kind.__name__, (torch.nn.Module,), body)()
        elif what == 'dict': layer.mlp.scaling['lora'] = .25
        elif what == 'private': layer.mlp._disabled = True
        elif what == 'training': vlm.model.train()
        elif what == 'autocast': stack.enter_context(torch.autocast('cpu', torch.bfloat16))
        else:
            from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS as functions
            own = functions['sdpa']
            monkeypatch.setitem(functions._global_mapping, 'sdpa', lambda *a, **kw: (own(*a, **kw)[0]*2, None))
        assert _differs(vlm, batch, plain, known) == (True, True)

def test_forwards_of_one_code_and_other_values_are_told_apart(vlm):
    down = vlm.model.get_submodule(vlm.sites('lm')[0].down)
    own, seen = down.forward, set()
    def scaled(by, vector): return lambda x, by=by: own(x)*by + vector
    for fn in (scaled(1., torch.zeros(32)), scaled(2., torch.zeros(32)), scaled(2., torch.full((32,), 1e-7)),
               partial(lambda by, x: own(x)*by, 3.), partial(lambda by, x: own(x)*by, 4.)):
        down.forward = fn
        seen.add(str(vlm.fingerprint()['changes']))
    del down.forward
    assert len(seen) == 5
