"""Every image-text-to-text class of the installed transformers, by its configuration: which neurons are found in it?

`python benchmarks/coverage.py [model_type ...]` builds each class on the `meta` device (no weights, no downloads) from
its default configuration and prints a row: the configuration's widths, the modules with layers and widths that are
found, and what is left out with the reason. A class that cannot be built or is refused says why. `--markdown` prints
a table.
"""
import argparse
import sys
import warnings
from dataclasses import dataclass, field

import torch
import transformers
from transformers import AutoConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as CLASSES

from mmneuron_nb.errors import MMNeuronError
from mmneuron_nb.models.adapters import adapter_for
from mmneuron_nb.models.sites import find_structure

# configurations that are no image model unless they are told so
PARTS = dict(gemma4=dict(vision_config={}), gemma4_unified=dict(vision_config={}))
WIDE = ('intermediate', 'ffn', 'inner') # what attributes of a text configuration that hold widths are called

@dataclass
class Row:
    "What was found in one class."
    kind: str               # `config.model_type`
    state: str = 'found'    # or 'not built', 'refused', 'wrong width'
    said: str = ''          # modules with layers and widths; or why not
    configured: str = ''    # layers and widths of the language model as its configuration says
    left_out: list = field(default_factory=list)

def numbers(value):
    "The whole numbers in a value of a configuration."
    values = value if isinstance(value, (list, tuple)) else [value]
    return {v for v in values if isinstance(v, int) and not isinstance(v, bool)}

def widths(config):
    "`(layers, {widths})` of the language model, as its configuration says."
    text = config.get_text_config()
    named = {k: v for k, v in text.to_dict().items() if any(w in k for w in WIDE)}
    out = set().union(*map(numbers, named.values()))
    if getattr(text, 'block_auto_adjust_ff_dim', False): # LFM2: two thirds, rounded up
        step = text.block_multiple_of
        out |= {-(-(2*w//3)//step)*step for w in out}
    return getattr(text, 'num_hidden_layers', None), out

def times(width, allowed):
    "Is a width one of these, or a whole multiple of one (several shared experts are one MLP)?"
    return width in allowed or any(width % a == 0 and width//a <= 8 for a in allowed)

def built(kind):
    "The model of one kind on the `meta` device."
    name = CLASSES[kind] if isinstance(CLASSES[kind], str) else CLASSES[kind][0]
    with torch.device('meta'): return getattr(transformers, name)(AutoConfig.for_model(kind, **PARTS.get(kind, {})))

def line(found):
    "Modules with layers and widths, in words."
    sizes = lambda sites: '/'.join(map(str, sorted({s.width for s in sites})))
    bare = lambda sites: '' if all(s.act for s in sites) else ' (site post only)'
    return ', '.join(f'{m} {len(ss)} x {sizes(ss)}{bare(ss)}' for m, ss in found.sites.items())

def look(kind):
    "The `Row` of one class."
    try: model = built(kind)
    except Exception as e: return Row(kind, 'not built', f'{type(e).__name__}: {e}'.split('\n')[0][:120])
    try: found = find_structure(model, adapter_for(model))
    except MMNeuronError as e: return Row(kind, 'refused', str(e))
    n, allowed = widths(model.config)
    sites = [s for m in ('lm', 'shared') for s in found.sites.get(m, [])]
    odd = [s for s in sites if allowed and not times(s.width, allowed) or n and s.layer >= n]
    configured = f"{n} x {'/'.join(map(str, sorted(allowed)))}"
    return Row(kind, 'wrong width' if odd else 'found', line(found), configured, list(map(str, found.left_out)))

def main(argv=None):
    "Print a row for each class and how many there are of each state."
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ap.add_argument('kinds', nargs='*', help='model types; default: all')
    ap.add_argument('--markdown', action='store_true', help='a table for the documentation')
    a = ap.parse_args(argv)
    warnings.simplefilter('ignore')
    transformers.logging.set_verbosity_error()
    count = {}
    if a.markdown: print('| model type | | configured | found | left out |', '|---|---|---|---|---|', sep='\n')
    for kind in a.kinds or CLASSES:
        row = look(kind)
        count[row.state] = count.get(row.state, 0) + 1
        parts = [row.kind, row.state, row.configured, row.said, '; '.join(row.left_out)]
        if a.markdown: print('| ' + ' | '.join(p.replace('|', '/') for p in parts) + ' |')
        else:
            more = ' | '.join(p for p in parts[3:] if p)
            print(f'{row.kind:24}{row.state:12}{row.configured:20}', more, flush=True)
    print(f'\ntransformers {transformers.__version__}:', ', '.join(f'{n} {state}' for state, n in count.items()))
    return int('wrong width' in count)

if __name__ == '__main__': sys.exit(main())
