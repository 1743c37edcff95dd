#!/usr/bin/env bash
# Vision-language wrappers leave out the logit scale and the soft cap of their language model.
# With:    torch 2.13.0, transformers 5.23.0, pillow 13.0.0, Python 3.11 or later
# Guess:   a language model says the same inside a vision-language wrapper as alone, with the same weights and
#          configuration.
# What is: Granite in LLaVA-NeXT is 8 times as loud (logits_scaling=8 is not divided by), Cohere 2 in Aya Vision 4
#          times (logit_scale=.25), and Gemma 3 has no final_logit_softcapping. A logit lens that follows text_config
#          is wrong.
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/v"
"$tmp/v/bin/pip" install --quiet torch==2.13.0 transformers==5.23.0 pillow==13.0.0
cd "$tmp"
"$tmp/v/bin/python" - <<'PY'
import torch
from transformers import (AyaVisionConfig, AyaVisionForConditionalGeneration, Cohere2Config, Cohere2ForCausalLM,
                          Gemma3Config, Gemma3ForCausalLM, Gemma3ForConditionalGeneration, Gemma3TextConfig,
                          GraniteConfig, GraniteForCausalLM, LlavaNextConfig, LlavaNextForConditionalGeneration)

text = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2,
            vocab_size=50, pad_token_id=0, bos_token_id=1, eos_token_id=2)
eyes = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=16,
            patch_size=8)


def logits(alone, wrapper, config):
    "Of the language model alone and in its wrapper, for three tokens and no picture."
    torch.manual_seed(0)
    wrapped, single = wrapper(config).eval(), alone(config.text_config).eval()
    single.model.load_state_dict(wrapped.model.language_model.state_dict())
    with torch.no_grad():
        wrapped.lm_head.weight.normal_()
        single.lm_head.weight.copy_(wrapped.lm_head.weight)
        ids = torch.tensor([[5, 6, 7]])
        return single(input_ids=ids).logits, wrapped(input_ids=ids).logits


granite = LlavaNextConfig(vision_config=dict(eyes, model_type='clip_vision_model'), image_token_id=49,
                          text_config=GraniteConfig(**text, logits_scaling=8.))
cohere = AyaVisionConfig(vision_config=dict(eyes, model_type='siglip_vision_model'), image_token_id=49,
                         text_config=Cohere2Config(**text, logit_scale=.25))
gemma = Gemma3Config(vision_config=eyes, mm_tokens_per_image=4,
                     text_config=Gemma3TextConfig(**text, head_dim=8, final_logit_softcapping=.05))
a, b = logits(GraniteForCausalLM, LlavaNextForConditionalGeneration, granite)
print('Granite in LLaVA-NeXT / alone:', (b / a).mean().item())
torch.testing.assert_close(b, 8 * a)
a, b = logits(Cohere2ForCausalLM, AyaVisionForConditionalGeneration, cohere)
print('Cohere 2 in Aya Vision / alone:', (b / a).mean().item())
torch.testing.assert_close(b, 4 * a)
a, b = logits(Gemma3ForCausalLM, Gemma3ForConditionalGeneration, gemma)
print('Gemma 3, largest logit: alone', a.abs().max().item(), 'wrapped', b.abs().max().item())
assert a.abs().max() <= .05 < 1 < b.abs().max()
PY
