"""Every supported architecture, at two sizes, against the invariants.

Hooks, sites, padding, boxes, replay, layers that nobody reads, and the store against brute force.
"""
import numpy as np
import pytest
import torch
from dataclasses import replace

from PIL import Image

from mmneuron_nb import record, scenes
from mmneuron_nb.errors import SampleError, StoreError
from mmneuron_nb.testing.proofs import check_boxes, check_replay, check_unused
from mmneuron_nb.testing.tiny import tiny_llava, tiny_samples
from mmneuron_nb.models.vlm import VLM
from mmneuron_nb.testing.zoo import ZOO, tiny_vlm
from mmneuron_nb.running.batching import encode_batch

ALL = [(name, size) for name in ZOO for size in (0, 1)]
SAMPLES = tiny_samples(10, seed=3)
KW = dict(top=4, random=3, order=3, progress=False)


@pytest.fixture(scope='module', params=ALL, ids=lambda p: f'{p[0]}-{p[1]}')
def vlm(request): return VLM(*tiny_vlm(*request.param, seed=request.param[1]))


def same(a, b):
    assert a.ids == b.ids
    for m in a.modules:
        for v in a.module(m).data_vars:
            assert np.array_equal(a.module(m)[v].values, b.module(m)[v].values, equal_nan=True), (m, v)


def test_invariants_1_to_3(vlm): vlm.check(SAMPLES[:3])


def test_boxes_replay_dead_layers(vlm):
    for s in SAMPLES[:2]:
        tried = check_boxes(vlm, s, 5)
        assert tried == 5*sum(l.boxes is not None for l in vlm.encode(s).layouts.values())
    for size in ((300, 60), (60, 300)): # canvases with rows or columns of padding
        check_boxes(vlm, replace(SAMPLES[0], image=SAMPLES[0].image.resize(size)), 5)
    check_replay(vlm, SAMPLES[2])
    check_unused(vlm, SAMPLES[3])


def test_the_answer_changes_nothing_before_it(vlm): # InstructBLIP's queries would read it, if they were given it
    with_it, without = vlm.encode(SAMPLES[4]), vlm.encode(SAMPLES[4], answer=False)
    for m in vlm.modules:
        n = without.layouts[m].roles.shape[1]
        if m != 'lm': assert with_it.layouts[m].roles.shape[1] == n
        a, b = (vlm.activations(x, m, 'act', [0])[0] for x in (with_it, without))
        assert torch.allclose(a[:, :n], b, atol=1e-4), m


def test_every_token_has_one_role(vlm):
    b = vlm.encode(SAMPLES[:4], padding_side='left')
    for m, lay in b.layouts.items():
        roles = sum(x.int() for x in (lay.pad, lay.visual, lay.prompt, lay.answer, lay.template))
        assert torch.equal(roles, torch.ones_like(lay.roles).int())
        assert lay.boxes is not None or lay.why_no_boxes
        for n in range(4): assert lay.boxes is None or len(lay.boxes[n]) == int(lay.visual[n].sum())
    for n, s in enumerate(SAMPLES[:4]): # what prompt and answer tokens say is what was asked and answered
        ids = b.inputs['input_ids'][n]
        for role in ('prompt', 'answer'):
            said = vlm.tokenizer.decode(ids[getattr(b.layout, role)[n]])
            assert said.strip() == getattr(s, role).strip(), (role, said)


def largest(t, k=3):
    "The `k` largest of [T, I] over tokens, [k, I]; -inf where there are fewer tokens."
    best = t.sort(0, descending=True).values[:k]
    return torch.nn.functional.pad(best, (0, 0, 0, max(0, k - len(t))), value=-torch.inf)


def brute(vlm, module, site, opts):
    "`{layer: [(maximum [I], largest visual [K, I], largest text [K, I]) per sample]}`, every activation kept."
    out = {}
    for s in sorted(SAMPLES, key=lambda s: s.id):
        b = encode_batch(vlm, [s], opts.answers)
        lay = b.layouts[module]
        counted = (lay.visual | lay.text)[0]
        for l, a in vlm.activations(b, module, site).items():
            a = a[0].float()
            most = a[counted].amax(0) if counted.any() else torch.full((a.shape[1],), -torch.inf)
            out.setdefault(l, []).append((most, largest(a[lay.visual[0]]), largest(a[lay.text[0]])))
    return out


def test_store_equals_brute_force(vlm):
    for site in ('act', 'post'):
        store = record(vlm, SAMPLES, modules=vlm.modules, site=site, **KW)
        for m in vlm.modules:
            ds = store.module(m)
            for l, rows in brute(vlm, m, site, store.options).items():
                value = torch.stack([r[0] for r in rows], 1)                     # [I, S]
                v, at = value.sort(dim=1, descending=True, stable=True)
                assert np.array_equal(ds.top_value.values[l], v[:, :4].numpy())
                assert np.array_equal(ds.top_sample.values[l], at[:, :4].numpy())
                for k, name in ((1, 'top_visual'), (2, 'top_text')):
                    every = torch.stack([r[k] for r in rows])                     # [S, K, I]
                    want = torch.stack([every[at[:, r], :, torch.arange(len(at))] for r in range(4)], 1)
                    assert np.array_equal(ds[name].values[l], want.numpy()), (m, l, name)


def test_store_is_a_property_of_model_and_samples(vlm, tmp_path):
    kw = dict(KW, modules=vlm.modules)
    store = record(vlm, SAMPLES, batch_size=4, **kw)
    same(store, record(vlm, SAMPLES[::-1], batch_size=1, **kw))
    same(store, record(vlm, SAMPLES, batch_size=3, **kw))
    a, b = record(vlm, SAMPLES[:3], **kw), record(vlm, SAMPLES[3:], tmp_path/'b.zarr', **kw)
    same(store, a.merge(b))
    same(store, b.merge(a))
    other = VLM(vlm.model, vlm.processor, template=replace(vlm.template, after='.'))
    with pytest.raises(StoreError, match='template'): b.attach(other)


def test_token_rows(vlm, tmp_path):
    kept = record(vlm, SAMPLES, tmp_path/'k.zarr', modules=vlm.modules, keep_tokens='float32', **KW)
    from mmneuron_nb import open_store
    closed = open_store(tmp_path/'k.zarr')
    for m in vlm.modules:
        for neuron, rank in (((m, 0, 1), 0), ((m, 0, 5), 2)):
            want, got = kept.tokens(neuron, rank), closed.tokens(neuron, rank)
            for k in ('values', 'roles', 'tokens', 'boxes', 'sample_id', 'max'):
                a, b = getattr(got, k), getattr(want, k)
                assert np.array_equal(a, b) if isinstance(a, np.ndarray) else a == b, (m, k)


def test_bits_do_not_depend_on_threads_or_neighbours(vlm):
    kw, n = dict(KW, modules=vlm.modules, keep_tokens=True), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = record(vlm, SAMPLES, batch_size=1, **kw)
        torch.set_num_threads(2)
        for size in (1, 2, 5): same(one, record(vlm, SAMPLES, batch_size=size, **kw))
    finally: torch.set_num_threads(n)


def test_generated_answers_are_replayed(vlm, tmp_path):
    bare = [replace(s, answer=None) for s in SAMPLES[:5]]
    store = record(vlm, bare, tmp_path/'g.zarr', answers='generate', max_new_tokens=4, **KW)
    row = store.tokens('lm.L0.U3', 0)
    again = store.attach(vlm, bare).tokens('lm.L0.U3', 0)
    assert row.tokens == again.tokens and np.array_equal(row.values, again.values)
    assert 1 <= int((row.roles == 3).sum()) <= 4
    same(store, record(vlm, bare, answers='generate', max_new_tokens=4, batch_size=1, **KW))


@pytest.mark.parametrize('threads', [1, 2])
def test_bits_of_the_shipped_model(threads):
    vlm, samples, n = VLM.toy(check=False), scenes.make(6, 3), torch.get_num_threads()
    kw = dict(KW, modules=vlm.modules)
    try:
        torch.set_num_threads(threads)
        a, b = record(vlm, samples, batch_size=1, **kw), record(vlm, samples, batch_size=6, **kw)
    finally: torch.set_num_threads(n)
    same(a, b)
    same(a, record(vlm, samples, batch_size=2, **kw))


@pytest.mark.parametrize('width', [80, 97, 130])
def test_bits_of_odd_widths(width):
    vlm = VLM(*tiny_llava(neurons=width, vision_neurons=width, image=336, patch=14, vision_layers=2, layers=2))
    kw = dict(KW, modules=vlm.modules)
    same(record(vlm, SAMPLES[:4], batch_size=1, **kw), record(vlm, SAMPLES[:4], batch_size=4, **kw))


@pytest.mark.parametrize('size', [(1, 300), (3, 400), (300, 1), (2, 2)])
@pytest.mark.parametrize('name', ['llava', 'llava-next', 'llava-onevision', 'internvl', 'janus-pro', 'idefics3',
                                  'gemma3'])
def test_extreme_images(name, size):
    vlm, image = VLM(*tiny_vlm(name)), Image.new('RGB', size, (200, 30, 30))
    try: batch = vlm.encode(replace(SAMPLES[0], image=image))
    except SampleError: return # the processor's own limit, in our words
    assert np.isfinite(vlm.activations(batch)[0].numpy()).all()
    box = batch.layout.boxes[0]
    assert (box >= 0).all() and (box[:, [0, 2]] <= size[0]).all() and (box[:, [1, 3]] <= size[1]).all()


def test_generation_settings_of_a_checkpoint_do_not_matter():
    vlm = VLM(*tiny_vlm('llava'))
    plain = vlm.generate(SAMPLES[:3], max_new_tokens=6)
    own = vlm.model.generation_config
    own.repetition_penalty, own.no_repeat_ngram_size, own.num_beams = 1.9, 1, 2
    assert vlm.generate(SAMPLES[:3], max_new_tokens=6) == plain and vlm.model.generation_config is own


@pytest.mark.parametrize('name', ZOO)
def test_everything_a_processor_returns_reaches_the_model(name):
    vlm = VLM(*tiny_vlm(name))
    raw, _ = vlm.adapter.process(vlm, SAMPLES[0].image, SAMPLES[0].prompt, SAMPLES[0].answer)
    batch = vlm.encode(SAMPLES[0])
    assert set(batch.inputs) == {k for k, v in raw.items() if torch.is_tensor(v)} - {'labels'} | {'attention_mask'}
    for k in set(batch.inputs) & {'mm_token_type_ids', 'token_type_ids'}: # without them no error, but other numbers
        less = replace(batch, inputs={n: v for n, v in batch.inputs.items() if n != k})
        try: assert not torch.equal(vlm.forward(less, logits=True).logits, vlm.forward(batch, logits=True).logits), k
        except ValueError: pass # Qwen3-VL does raise


@pytest.mark.parametrize('name', ZOO)
def test_reduced_precision(name):
    v = VLM(*tiny_vlm(name, 0, dtype='bfloat16')).check(SAMPLES[:2])
    assert v.dtype == torch.bfloat16
    assert v.activations(v.encode(SAMPLES[0]))[0].dtype == torch.bfloat16
    store = record(v, SAMPLES[:4], modules=v.modules, **KW)
    assert all(np.isfinite(store.module(m).top_value.values).all() for m in ('lm', 'vision'))


@pytest.mark.parametrize('name', ZOO)
def test_attention_stays_as_it_is(name):
    model, processor = tiny_vlm(name)
    before = model.config._attn_implementation
    VLM(model, processor).check(SAMPLES[:2])
    assert model.config._attn_implementation == before == 'sdpa'
