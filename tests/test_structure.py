"""Every neuron is the one it claims to be: its layer's number, its width, and what it gives to the residual stream."""
from dataclasses import replace

import numpy as np
import pytest
import transformers as T

from mmneuron_nb import record
from mmneuron_nb.errors import ModelError, SiteError
from mmneuron_nb.models.residual import check_stream, check_sum
from mmneuron_nb.models.vlm import VLM
from mmneuron_nb.testing.tiny import liven, tiny_llava, tiny_samples

SIZE = dict(hidden_size=32, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=2048)
MOE = dict(SIZE, intermediate_size=96, moe_intermediate_size=24, num_experts_per_tok=2)
LATENT = dict(q_lora_rank=16, kv_lora_rank=8, qk_rope_head_dim=4, qk_nope_head_dim=4, v_head_dim=8)

# name -> (configuration's class, its options, {module: {layer: width}}, routed experts or 0)
TEXTS = dict(
    phi3=('Phi3Config', dict(SIZE, intermediate_size=48, num_hidden_layers=2), dict(lm={0: 48, 1: 48}), 0),
    glm=('GlmConfig', dict(SIZE, intermediate_size=48, num_hidden_layers=2, head_dim=8), dict(lm={0: 48, 1: 48}), 0),
    granite=('GraniteConfig', dict(SIZE, intermediate_size=48, num_hidden_layers=2, residual_multiplier=.22),
             dict(lm={0: 48, 1: 48}), 0),
    olmo2=('Olmo2Config', dict(SIZE, intermediate_size=48, num_hidden_layers=2), dict(lm={0: 48, 1: 48}), 0),
    gemma2=('Gemma2Config', dict(SIZE, intermediate_size=48, num_hidden_layers=2, head_dim=8),
            dict(lm={0: 48, 1: 48}), 0),
    cohere2=('Cohere2Config', dict(SIZE, intermediate_size=48, num_hidden_layers=2), dict(lm={0: 48, 1: 48}), 0),
    qwen3_moe=('Qwen3MoeConfig', dict(MOE, num_hidden_layers=4, num_experts=4, mlp_only_layers=[1, 3], head_dim=8),
               dict(lm={1: 96, 3: 96}), 8),
    qwen2_moe=('Qwen2MoeConfig', dict(MOE, num_hidden_layers=4, num_experts=4, mlp_only_layers=[2],
                                      shared_expert_intermediate_size=40),
               dict(lm={2: 96}, shared={0: 40, 1: 40, 3: 40}), 12),
    deepseek_v3=('DeepseekV3Config', dict(MOE, num_key_value_heads=4, num_hidden_layers=3, n_routed_experts=4,
                                          n_group=2, topk_group=1, first_k_dense_replace=1, **LATENT),
                 dict(lm={0: 96}, shared={1: 24, 2: 24}), 8),
    glm4_moe=('Glm4MoeConfig', dict(MOE, num_hidden_layers=3, n_routed_experts=4, n_group=1, topk_group=1,
                                    first_k_dense_replace=1, head_dim=8), dict(lm={0: 96}, shared={1: 24, 2: 24}), 8),
    mixtral=('MixtralConfig', dict(SIZE, intermediate_size=24, num_hidden_layers=2, num_local_experts=4), {}, 8))

def llava_with(name, seed=0):
    "A tiny LLaVA whose language model is of another family."
    model, processor = tiny_llava()
    tok, (kind, options) = processor.tokenizer, TEXTS[name][:2] if name in TEXTS else LFM2
    ids = {k: getattr(tok, k) for k in ('pad_token_id', 'bos_token_id', 'eos_token_id')}
    text = getattr(T, kind)(**options, **ids, vocab_size=len(tok))
    config = T.LlavaConfig(vision_config=model.config.vision_config, text_config=text, vision_feature_layer=-2,
                           image_token_id=model.config.image_token_id)
    model = liven(T.LlavaForConditionalGeneration(config), seed)
    model.generation_config.eos_token_id = tok.eos_token_id
    return VLM(model, processor)

LFM2 = 'Lfm2Config', dict(SIZE, intermediate_size=48, num_hidden_layers=3, block_auto_adjust_ff_dim=False,
                          layer_types=['conv', 'full_attention', 'conv'])

@pytest.fixture(scope='module', params=TEXTS)
def made(request): return llava_with(request.param).check(), *TEXTS[request.param][2:]

def test_layers_keep_their_numbers(made):
    vlm, want, routed = made
    have = {m: {s.layer: s.width for s in vlm.sites(m)} for m in ('lm', 'shared') if m in vlm.modules}
    assert have == want
    assert sum(f.number for f in vlm.left_out) == routed
    assert all('routed experts are not recorded' in f.why for f in vlm.left_out)
    assert bool(routed) == any('routed experts' in words for words in vlm.describe().attrs['left_out'])
    assert ('Not recorded' in vlm._repr_html_()) == bool(routed)
    for m in have:
        for s in vlm.sites(m): assert f'.layers.{s.layer}.' in s.down

def test_values_are_those_of_the_layer(made):
    "What is recorded equals what a plain hook on the right module sees, found here by its path alone."
    vlm, want, _ = made
    samples = tiny_samples(4, seed=5)
    for m in want:
        store = record(vlm, samples, modules=(m,), site='post', top=2, random=1, order=2, progress=False)
        assert store.module(m).layer.values.tolist() == sorted(want[m])
        for k, s in enumerate(vlm.sites(m, 'post')):
            for neuron in (0, s.width - 1):
                best = []
                for sample in samples:
                    batch, seen = vlm.encode([sample]), {}
                    handle = vlm.model.get_submodule(s.down).register_forward_pre_hook(
                        lambda mod, args, at=seen: at.__setitem__('x', args[0]))
                    vlm.forward(batch)
                    handle.remove()
                    roles = batch.layout.roles[0]
                    counted = (roles == 1) | (roles == 2) | (roles == 3)
                    best.append(seen['x'].reshape(len(roles), -1)[counted, neuron].max().item())
                got = store.module(m).top_value[k, neuron].values
                np.testing.assert_allclose(np.sort(got)[::-1], np.sort(best)[::-1][:2], rtol=1e-5, atol=1e-6)

def test_neurons_of_another_layer_are_found_out(made):
    vlm, want, _ = made
    for m, widths in want.items():
        sites = vlm.sites(m, 'post')
        if len(sites) < 2 or sites[0].width != sites[1].width: continue
        check_stream(vlm)
        vlm._sites[m][0] = replace(vlm._sites[m][0], down=sites[1].down, mlp=sites[1].mlp)
        try:
            with pytest.raises(ModelError): check_stream(vlm)
        finally: vlm._sites[m][0] = replace(sites[0], site='act')

def test_a_missing_layer_is_found_out():
    vlm = llava_with('olmo2')
    assert check_sum(vlm) < 1e-6
    del vlm.layers[0]
    check_sum(vlm) # the first of those that are known takes what the missing one gave
    vlm = VLM(*tiny_llava(layers=3))
    del vlm.layers[1]
    with pytest.raises(ModelError, match='does not sum'): check_sum(vlm)

def test_an_activation_that_is_no_module():
    vlm = llava_with('lfm2').check()
    assert {s.layer: s.width for s in vlm.sites('lm')} == {0: 48, 1: 48, 2: 48}
    samples = tiny_samples(4, seed=5)
    options = dict(top=2, random=1, order=2, progress=False)
    with pytest.raises(SiteError, match="use site='post'"): record(vlm, samples, **options)
    store = record(vlm, samples, site='post', **options)
    assert store.attach(vlm, samples).verify(20)
