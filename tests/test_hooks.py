"""One mechanism for reading and changing, on every architecture: forward, generate, offloaded, compiled, wrapped."""
import copy
from collections import namedtuple
from dataclasses import replace

import pytest
import torch
from transformers.modeling_outputs import BaseModelOutput

from mmneuron_nb.errors import ModelError, OptionError
from mmneuron_nb.models.hooks import hooked
from mmneuron_nb.models.points import STREAMS
from mmneuron_nb.models.sites import SITES
from mmneuron_nb.models.vlm import VLM
from mmneuron_nb.testing.tiny import tiny_llava, tiny_samples
from mmneuron_nb.testing.zoo import ZOO, tiny_vlm

SAMPLES = tiny_samples(2, seed=4)

def hooks(model):
    "How many hooks PyTorch holds."
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())

def all_points(vlm):
    "Every point of every module."
    points = [p for m in vlm.modules for kind in (*SITES, *STREAMS) for p in vlm.points(kind, m)]
    return points + vlm.points('patches') + vlm.points('inputs')

@pytest.fixture(scope='module', params=list(ZOO))
def vlm(request):
    return VLM(*tiny_vlm(request.param))

def logits(vlm, batch): return vlm.forward(batch, logits=True).logits

def test_every_point_is_reached_once_and_reading_changes_no_bit(vlm):
    batch, seen = vlm.encode(SAMPLES), []
    plain, points, before = logits(vlm, batch), all_points(vlm), hooks(vlm.model)
    with hooked(vlm.model, points, lambda p, x: seen.append(p), reads=True): read = logits(vlm, batch)
    assert torch.equal(read, plain)
    assert sorted(map(str, seen)) == sorted(map(str, points))
    with hooked(vlm.model, points, lambda p, x: x.clone()): put_back = logits(vlm, batch)
    assert torch.equal(put_back, plain)
    assert hooks(vlm.model) == before

def test_a_change_at_a_point_shows_behind_it_and_not_before(vlm):
    batch = vlm.encode(SAMPLES[:1])
    plain = logits(vlm, batch)
    used = {(s.module, s.layer) for s in vlm.sites() if s.used}
    for p in all_points(vlm):
        with hooked(vlm.model, [p], lambda p, x: x*1.5): changed = logits(vlm, batch)
        if p.kind in ('patches', 'inputs'): alive = True
        elif p.kind in ('act', 'post', 'mlp'): alive = (p.module, p.layer) in used
        else: continue # what a tower's last block gives may be normed away, or not be used
        assert torch.equal(changed, plain) != alive, p
    last = vlm.points('block', 'lm')[-1:]
    acts = vlm.activations(batch, 'lm')
    with hooked(vlm.model, last, lambda p, x: x + 1): after = vlm.activations(batch, 'lm')
    assert all(torch.equal(acts[l], after[l]) for l in acts)

def test_while_a_model_speaks(vlm):
    new, steps, layer = 3, [], vlm.points('block', 'lm', layers=[0])
    def note(p, x): steps.append((at.step, at.positions.tolist(), x.reshape(-1, x.shape[-1]).shape[0]))
    speak = lambda: vlm.generate_ids(vlm.encode(SAMPLES[:1], answer=False), new, min_new_tokens=new)
    with hooked(vlm.model, layer, note, reads=True) as at: speak()
    assert [s for s, *_ in steps] == list(range(new))
    assert all(len(positions) == rows for _, positions, rows in steps)
    first = len(steps[0][1])
    assert [positions for _, positions, _ in steps[1:]] == [[first + k] for k in range(new - 1)]
    inputs = []
    same = lambda p, x: inputs.append(x.shape[1]) or x.clone()
    with hooked(vlm.model, vlm.points('inputs'), same): put_back = speak()
    assert put_back == speak()
    assert inputs == [first, *[1]*(new - 1)]

def test_after_an_exception_nothing_is_left(vlm):
    before = hooks(vlm.model)
    batch = vlm.encode(SAMPLES[:1])
    with pytest.raises(ZeroDivisionError), hooked(vlm.model, all_points(vlm), lambda p, x: 1/0): vlm.forward(batch)
    assert hooks(vlm.model) == before

def test_the_lens_of_the_last_block_gives_the_logits(vlm):
    batch, seen = vlm.encode(SAMPLES), {}
    with hooked(vlm.model, vlm.points('block', 'lm')[-1:], lambda p, x: seen.__setitem__('h', x), reads=True):
        want = logits(vlm, batch)
    with torch.inference_mode(): got = vlm.unembedding.logits(seen['h']).reshape(want.shape)
    real = batch.inputs['attention_mask'].bool()
    assert torch.allclose(got[real], want[real], atol=1e-4, rtol=1e-4)

def test_gradients_with_respect_to_any_point(vlm):
    batch, kept = vlm.encode(SAMPLES[:1]), {}
    points = [*vlm.points('inputs'), *vlm.points('patches'), *vlm.points('block', 'lm'), *vlm.sites('lm')]
    model = vlm.model.requires_grad_(False)
    with hooked(model, points, lambda p, x: kept.__setitem__(p, x), reads=True):
        out = vlm.forward(batch, logits=True, grad=True).logits
    assert torch.equal(out, logits(vlm, batch))
    grads = torch.autograd.grad(out[:, -1].float().sum(), list(kept.values()))
    assert all(g.isfinite().all() and g.abs().max() > 0 for g in grads)

def test_a_gradient_is_what_a_small_step_gives():
    vlm, kept = VLM(*tiny_llava(dtype='float64')), {}
    batch, site = vlm.encode(SAMPLES[:1]), vlm.sites('lm', 'post', layers=[1])
    with hooked(vlm.model, site, lambda p, x: kept.__setitem__('x', x), reads=True):
        out = vlm.forward(batch, logits=True, grad=True).logits[0, -1, 7]
    grad = torch.autograd.grad(out, kept['x'])[0]
    for u in (0, 5, 40):
        step = torch.zeros_like(kept['x'])
        step[0, 9, u] = 1e-2 # norms compute in float32, so that smaller steps drown in their rounding
        with hooked(vlm.model, site, lambda p, x: x + step): up = logits(vlm, batch)[0, -1, 7]
        with hooked(vlm.model, site, lambda p, x: x - step): down = logits(vlm, batch)[0, -1, 7]
        assert abs((up - down).item()/2e-2 - grad[0, 9, u].item()) < 1e-4, u

def test_offloaded_layer_by_layer():
    accelerate = pytest.importorskip('accelerate')
    plain = VLM(*tiny_llava())
    vlm = VLM(*tiny_llava())
    accelerate.cpu_offload(vlm.model, torch.device('cpu'))
    batch, seen = plain.encode(SAMPLES), []
    want = logits(plain, batch)
    with hooked(vlm.model, all_points(vlm), lambda p, x: seen.append(p), reads=True): got = logits(vlm, batch)
    assert torch.equal(got, want)
    assert len(seen) == len(all_points(plain))
    zero = lambda p, x: x*0
    with hooked(plain.model, plain.sites('lm', layers=[1]), zero): want = logits(plain, batch)
    with hooked(vlm.model, vlm.sites('lm', layers=[1]), zero): assert torch.equal(logits(vlm, batch), want)
    assert torch.equal(vlm.activations(batch, 'lm', layers=[0])[0], plain.activations(batch, 'lm', layers=[0])[0])
    assert vlm.model.model.language_model.layers[0].mlp.down_proj.weight.is_meta # cleaned up behind each layer

def test_compiled_layers():
    model, processor = tiny_llava()
    plain = VLM(copy.deepcopy(model), processor)
    layers = model.model.language_model.layers
    for l in range(len(layers)): layers[l].compile(backend='eager')
    vlm = VLM(model, processor)
    batch, seen = vlm.encode(SAMPLES), []
    logits(vlm, batch) # compiled now: hooks of PyTorch that come later may never run
    with hooked(vlm.model, all_points(vlm), lambda p, x: seen.append(p), reads=True): logits(vlm, batch)
    assert len(seen) == len(all_points(vlm))
    assert torch.allclose(_silent(vlm, batch), _silent(plain, batch), atol=1e-5)

def _silent(vlm, batch):
    with hooked(vlm.model, vlm.sites('lm'), lambda p, x: x*0): return logits(vlm, batch)

def test_wrapped_models():
    model, processor = tiny_llava()
    plain = VLM(copy.deepcopy(model), processor)
    batch = plain.encode(SAMPLES)
    for wrap in (torch.nn.DataParallel, lambda m: torch.compile(m, backend='eager')):
        vlm = VLM(wrap(model), processor)
        assert torch.equal(_silent(vlm, batch), _silent(plain, batch))

def test_nested_contexts_keep_their_order_and_their_ends():
    vlm = VLM(*tiny_llava())
    batch, site, seen = vlm.encode(SAMPLES), vlm.sites('lm', layers=[1]), []
    plain = vlm.activations(batch, 'lm', layers=[1])[1]
    with vlm.reading(lambda s, x: seen.append(x), 'lm', layers=[1]):
        with hooked(vlm.model, site, lambda p, x: x + 1):
            with hooked(vlm.model, site, lambda p, x: x*3): vlm.forward(batch)
            vlm.forward(batch)
        vlm.forward(batch)
    assert len(seen) == 3
    assert torch.allclose(seen[0], (plain + 1)*3) and torch.equal(seen[1], plain + 1) and torch.equal(seen[2], plain)

def test_a_point_that_is_not_there_is_named():
    vlm = VLM(*tiny_llava())
    batch = vlm.encode(SAMPLES)
    with pytest.raises(ModelError, match=r'vision.L0 \(128 neurons, act\) and 2 more points was never reached'):
        with hooked(vlm.model, vlm.sites('vision'), lambda p, x: None): pass
    with pytest.raises(ModelError, match='whose width is 32 and not 31'):
        wrong = [replace(p, width=31) for p in vlm.points('block', 'lm')]
        with hooked(vlm.model, wrong, lambda p, x: None): vlm.forward(batch)

class Wrapped(torch.nn.Module):
    "A module whose output is packed, and unpacked behind it."
    def __init__(self, inner, pack):
        super().__init__()
        self.inner, self.pack = inner, torch.nn.Identity()
        self.pack.forward = pack
    def forward(self, *args, **kw):
        out = self.pack(self.inner(*args, **kw))
        return tuple(out.values()) if isinstance(out, dict) else tuple(out)

@pytest.mark.parametrize('kind', ['list', 'named tuple', 'dict', 'ModelOutput'])
def test_outputs_of_every_kind(kind):
    vlm = VLM(*tiny_llava(layers=2))
    named = namedtuple('Attention', 'states weights')
    pack = {'list': list, 'named tuple': lambda out: named(*out),
            'dict': lambda out: dict(states=out[0], weights=out[1]),
            'ModelOutput': lambda out: BaseModelOutput(last_hidden_state=out[0], attentions=(out[1],))}[kind]
    batch, point = vlm.encode(SAMPLES), vlm.points('attention', 'lm', [0])[0]
    plain = logits(vlm, batch)
    layer = vlm.model.model.language_model.layers[0]
    layer.self_attn = Wrapped(layer.self_attn, pack)
    assert torch.equal(logits(vlm, batch), plain)
    packed, seen = replace(point, path=point.path + '.pack'), []
    with (hooked(vlm.model, [packed], lambda p, x: x*0),
          hooked(vlm.model, [packed], lambda p, x: seen.append(x), reads=True)):
        changed = logits(vlm, batch)
    assert not torch.equal(changed, plain) and not seen[0].any()

def test_gradients_at_what_was_put_in_place():
    vlm = VLM(*tiny_llava(layers=2))
    batch, points, kept, seen = vlm.encode(SAMPLES), vlm.points('mlp', 'lm'), {}, {}
    vlm.model.requires_grad_(False)
    with hooked(vlm.model, points, lambda p, x: kept.__setitem__(p, x), reads=True): logits(vlm, batch)
    with (hooked(vlm.model, points, lambda p, x: kept[p]), # of a pass in inference mode
          hooked(vlm.model, points, lambda p, x: seen.__setitem__(p, x), reads=True)):
        out = vlm.forward(batch, grad=True).logits
    assert all(g.abs().sum() > 0 for g in torch.autograd.grad(out.square().sum(), list(seen.values())))
    assert not any(x.requires_grad for x in kept.values())

def test_an_end_token_of_ones_own_and_one_answer_each():
    vlm = VLM(*tiny_llava())
    alike = [replace(SAMPLES[0], id=s.id, image=s.image) for s in SAMPLES]
    plain = vlm.generate(alike, 5, scores=True, min_new_tokens=5).ids
    end = next(i for i in plain[0] if i not in plain[1])
    ended = vlm.generate(alike, 5, scores=True, eos_token_id=end)
    assert [len(i) for i in ended.ids] == [plain[0].index(end) + 1, 5] == [len(s) for s in ended.scores]
    with pytest.raises(OptionError, match='one answer to each'):
        vlm.answer(alike, 3, num_beams=2, num_return_sequences=2)
