"""What `recording.py` compares: the forward pass alone, recording, and other ways to a top 50 of every neuron.

All take a batch at a time."""
import copy, math, tempfile
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from mmneuron_nb.recording import local
from mmneuron_nb.running.batching import domain_of
from mmneuron_nb.statistics.built_in import statistics_of
from mmneuron_nb.statistics.state import Options, RunState
from mmneuron_nb.statistics.order import make_key

HUGE = 3e38


class Plain:
    "The transformers model, called as a user calls it, without the logits that nobody needs."
    def __init__(self, vlm, samples, modules, folder):
        self.vlm, self.modules, self.folder = vlm, modules, folder
        self.sites = [s for m in modules for s in vlm.sites(m)]

    def batch(self, group, batch): # the samples, and their `Batch` on the host
        inputs = batch.to(self.vlm.device, self.vlm.dtype).inputs
        with torch.inference_mode(): self.vlm.model(**inputs, use_cache=False, logits_to_keep=1)

    def end(self): pass


class Steady(Plain):
    "The same as recording calls it: on a CPU the same bits in every batch size."
    def batch(self, group, batch): self.vlm.forward(batch)


class Ours(Plain):
    "`options`: of `record`; `of`: begin as in a run of so many samples, with `best` maxima of these samples."
    def __init__(self, vlm, samples, modules, folder, of=0, best=None, **options):
        super().__init__(vlm, samples, modules, folder)
        objects = statistics_of(options.pop('stats', ()))
        opts = Options(modules=modules, stats=tuple(s.spec() for s in objects), **options)
        absent = [f'absent-{k}' for k in range(of - len(samples))] # random samples are chosen among all
        ids, domains = [s.id for s in samples] + absent, sorted({domain_of(s) for s in samples})
        rows = Path(tempfile.mkdtemp(dir=folder))
        self.state = RunState(self.sites, opts, ids, domains, vlm.device, objects, rows)
        if of: self.prime(of, len(samples), best)
        self.commits = local.Commits(local.Run(vlm, samples, opts, objects), self.state)

    def prime(self, of, n, best): # of every neuron's n maxima as many reach the floor as the mean rate asks for
        for m, st in self.state.modules.items():
            for top, b in zip(st.top, best[m]):
                enter = n*rate(top.n, of) + torch.rand(top.width, generator=torch.Generator().manual_seed(0))
                at = (enter.long()[:, None] - 1).clamp(0, b.shape[1] - 1)
                value = torch.full((top.width, top.n), HUGE)
                value[:, -1] = torch.where(enter >= 1, b.gather(1, at)[:, 0], HUGE)
                top.key, top.floor = make_key(value, torch.arange(top.n)).to(top.key.device), None
                top.room = 2*rate(top.n, of)*top.width
                if not top.kind: continue
                slots = torch.arange(top.n, device=top.key.device).expand(top.width, -1)
                top.columns['slot'], top.rows = slots[..., None].clone(), top.make_rows()

    def touch(self, tokens): # the files of token rows as they are in the middle of a run: every page was written before
        for top in (t for m in self.state.modules.values() for t in m.top if t.rows is not None):
            top.rows.write(*np.zeros((3, 1), int), np.zeros((1, tokens), top.kind))
            for block in top.rows.blocks: block[:] = 1

    def batch(self, group, batch):
        self.commits(self.commits.read(batch)) # encoding is not counted

    def end(self):
        self.commits.finish()
        self.state.flush()
        for top in (t for m in self.state.modules.values() for t in m.top if t.rows is not None): top.rows.done()


def rate(top, of): # part of all (sample, neuron) pairs that are admitted in a run of `of` samples in random order
    return 1. if of <= top else top*(1 + math.log(of/top))/of


class Maxima(Plain):
    "A running top 50 per neuron, as one would write it on top of a library that hands over activations."
    copied = True
    def keep(self, name, x, roles): # x [B, T, I]; the maximum over all tokens that are not pads
        if x.shape[1] == roles.shape[1]: x = x.masked_fill(roles[..., None] == 0, -torch.inf)
        top = x.amax(1).T
        number = torch.arange(self.n, self.n + top.shape[1]).expand_as(top)
        empty = top[:, :0], number[:, :0]
        before = self.__dict__.setdefault('top', {}).get(name, empty)
        value, sample = (torch.cat([a, b], 1) for a, b in zip(before, (top, number)))
        v, at = value.topk(min(50, value.shape[1]), 1)
        self.top[name] = v, sample.gather(1, at)

    def batch(self, group, batch):
        self.n = getattr(self, 'n', 0)
        for name, x in self.read(batch): self.keep(name, x, batch.inputs['attention_mask'])
        self.n += len(group)


class Nnsight(Maxima):
    def read(self, batch):
        import nnsight
        model = wrapped(self.vlm, 'nnsight', self.copied)
        parts = [model.get(s.act) for s in self.sites]
        with torch.inference_mode():
            with model.trace(**batch.inputs, use_cache=False, logits_to_keep=1):
                acts = nnsight.save([])
                for p in parts:
                    acts.append(p.output)
        return zip([s.act for s in self.sites], acts)


class TransformerLens(Maxima):
    def read(self, batch):
        inputs = dict(batch.inputs)
        heads = ('blocks', 'vision_encoder')[:1 + ('vision' in self.modules)]
        model, ids = wrapped(self.vlm, 'tl', self.copied), inputs.pop('input_ids')
        wanted = lambda n: n.startswith(heads) and n.endswith('mlp.out.hook_in')
        with torch.inference_mode():
            _, cache = model.run_with_cache(ids, names_filter=wanted, use_cache=False, logits_to_keep=1, **inputs)
        return cache.items()


@lru_cache
def wrapped(vlm, how, copied): # both change the modules of the model that they are given
    model = copy.deepcopy(vlm.model) if copied else vlm.model
    if how == 'nnsight':
        import nnsight
        return nnsight.NNsight(model)
    from transformer_lens.model_bridge import TransformerBridge
    model.config.architectures, tok = [type(model).__name__], copy.deepcopy(vlm.tokenizer)
    tok.init_kwargs |= dict(name_or_path='', add_bos_token=True) # else it would load the tokenizer from where none is
    return TransformerBridge.boot_transformers(type(model).__name__, hf_model=model, tokenizer=tok,
                                               device=vlm.device, dtype=vlm.dtype)


class Naive(Plain):
    "Every activation of every layer into a file, then sorted."
    def batch(self, group, batch):
        self.files, seen = getattr(self, 'files', {}), {}
        def keep(s, x): seen[s] = batch.layouts[s.module].gather(x)
        with local.hooked(self.vlm.model, self.sites, keep): super().batch(group, batch)
        for s, x in seen.items():
            file = Path(self.folder)/f'{s.module}.{s.layer}.{len(self.files.setdefault(s, []))}.npy'
            np.save(file, x.half().numpy())
            self.files[s].append((file, batch.layouts[s.module].pad[..., None]))

    def end(self):
        for files in self.files.values():
            top = torch.cat([torch.from_numpy(np.load(f)).masked_fill(pad, -torch.inf).amax(1) for f, pad in files])
            top.float().sort(0, descending=True).values[:50]


EVERYTHING = dict(max=dict(top=1, order=1, random=0, domains=False), all={},
                  more=dict(stats=('power_sums', 'role_maximum')), rows=dict(keep_tokens=True))
ROWS = dict(plain='plain forward', steady='plain forward, same bits in all batches',
            max='record max only', all='record everything',
            more='everything + Moments + RoleMaximum', rows='everything + token rows',
            naive='dump all as fp16, then sort', nnsight='nnsight, running top 50',
            tl='TransformerLens, running top 50 (a)')
PACKAGE = dict(nnsight=('nnsight', 'nnsight==0.8.1'), tl=('transformer_lens', 'transformer-lens==4.3.0'))
MAKE = dict(plain=Plain, steady=Steady, naive=Naive, nnsight=Nnsight, tl=TransformerLens)


def make(name, *args, of=0, best=None, **options):
    return Ours(*args, of=of, best=best, **EVERYTHING[name] | options) if name in EVERYTHING else MAKE[name](*args)
