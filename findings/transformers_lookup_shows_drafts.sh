#!/usr/bin/env bash
# With prompt lookup, hooks see tokens that are never generated.
# With:    torch 2.13.0, transformers 5.23.0, Python 3.11 or later
# Guess:   generate gives the same text with prompt_lookup_num_tokens, so hooks see the same tokens.
# What is: the text is the same, but hooks also see the drafts that were rejected: counts and maxima of activations are
#          of tokens that nobody ever said.
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/v"
"$tmp/v/bin/pip" install --quiet torch==2.13.0 transformers==5.23.0
cd "$tmp"
"$tmp/v/bin/python" - <<'PY'
import torch
from transformers import LlamaConfig, LlamaForCausalLM

torch.manual_seed(0)
model = LlamaForCausalLM(LlamaConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
                                     vocab_size=50, pad_token_id=0, bos_token_id=1, eos_token_id=2)).eval()
model.generation_config.eos_token_id = None
seen = []
model.model.layers[0].mlp.register_forward_hook(lambda module, args, out: seen.append(out.shape[1]))


def generated(**options):
    "The text and the number of tokens that a hook on the MLP saw."
    seen.clear()
    ids = torch.tensor([[5, 6, 7, 5, 6, 7, 5, 6]])
    return model.generate(ids, max_new_tokens=12, do_sample=False, **options), sum(seen)


(plain, n), (lookup, more) = generated(), generated(prompt_lookup_num_tokens=3)
print(f'the same text: {torch.equal(plain, lookup)}; tokens seen: plain {n}, with prompt lookup {more}')
assert torch.equal(plain, lookup) and n == plain.shape[1] - 1 and more > n
PY
