"""What recording costs: seconds against the plain forward pass in one run, memory, bytes on disk; and against other ways to do it.

    python benchmarks/recording.py                                    # the table: the shipped model, 400 scenes
    python benchmarks/recording.py --model wide -n 8                  # random LLaVA: 24 layers x 4,864 neurons, width 896, 576 visual tokens
    python benchmarks/recording.py --grow 500 2000 8000 --workers 0 1 2
    python benchmarks/recording.py --gpu                              # real shapes, random weights; results into benchmarks/results/
    python benchmarks/recording.py --profile                          # where the time of recording goes

All methods take the same batches in one process and in turns, in an order that rotates, so that a machine that slows down slows all. Encoding of samples is
not counted. What a method does once at the end (sorting a dump, sorting in what waits) is. Rows "at the rate of ..." begin with top lists so full that as many
entries are admitted per sample as on average in a run of that many samples: a short run admits nearly all, which a real one does only at its beginning.
"""
import argparse, importlib.util, json, os, platform, resource, subprocess, sys, tempfile, time
from collections import Counter
from datetime import date
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from mmneuron_nb import VLM, record, scenes
from mmneuron_nb.testing.tiny import tiny_llava, tiny_samples
from mmneuron_nb.recording import local
from mmneuron_nb.statistics import built_in, order, top
from mmneuron_nb.running.batching import batches, encode_batch
from mmneuron_nb.running.limits import Limits
from mmneuron_nb.store.storage import sizes

from methods import EVERYTHING, PACKAGE, ROWS, Maxima, Plain, make, rate

WIDE = dict(width=896, neurons=4864, layers=24, heads=14, vision_width=768, vision_layers=12, image=336, patch=14, context=4096)
FULL_RUN, CLOCK = 23_000, time.perf_counter


@lru_cache
def load(name): return VLM.toy(check=False) if name == 'toy' else VLM(*tiny_llava(**WIDE))


def pictures(name, n): return scenes.make(n, 5) if name == 'toy' else tiny_samples(n, 5)


def sync(vlm):
    if vlm.device.type == 'cuda': torch.cuda.synchronize()


def peak_mb(): # of this process: `ru_maxrss` would hold the parent's memory from before it was another program
    try: return next(int(l.split()[1]) for l in Path('/proc/self/status').read_text().splitlines() if l.startswith('VmHWM'))/1024
    except OSError: return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1024


def best_of(vlm, samples, groups, modules, folder, m=1): # {module: [tensor [I, m] of each layer]}: largest maxima
    ours = make('max', vlm, samples, modules, folder, top=m)
    for g in groups: ours.batch(g, encode_batch(vlm, g))
    ours.end()
    return {k: [order.split_key(t.key.cpu())[0] for t in st.top] for k, st in ours.state.modules.items()}


def turns(vlm, methods, groups):
    "Seconds [batch, method] of `{name: method}`; the end of a method is shared among its batches."
    took = np.zeros((len(groups), len(methods)))
    for k, group in enumerate(groups):
        batch = encode_batch(vlm, group)
        for j in np.roll(np.arange(len(methods)), k):
            sync(vlm); start = CLOCK()
            list(methods.values())[j].batch(group, batch)
            sync(vlm); took[k, j] = CLOCK() - start
    for j, m in enumerate(methods.values()):
        sync(vlm); start = CLOCK()
        m.end()
        sync(vlm); took[:, j] += (CLOCK() - start)/len(groups)
    return took


def table(a):
    vlm, samples, modules = load(a.model), pictures(a.model, a.n), ('lm',) if a.modules == 'lm' else load(a.model).modules
    names = [n for n in a.methods if n not in PACKAGE or importlib.util.find_spec(PACKAGE[n][0])]
    names = ['plain'] + [n for n in names if n != 'plain']
    with tempfile.TemporaryDirectory() as folder:
        args = (vlm, samples, modules, folder)
        groups = list(batches(vlm, samples, Limits(a.batch_size)))
        of, best = a.of, best_of(vlm, samples, groups, modules, folder, 1 + int(a.n*rate(50, a.of))) if a.of else None
        for n in names if a.model == 'toy' else ['plain']: make(n, vlm, samples, modules, tempfile.mkdtemp(dir=folder)).batch(groups[0], encode_batch(vlm, groups[0])) # warm up
        methods = {n: make(n, *args) for n in names}
        if of: methods |= {n + '+': make(n, *args, of=of, best=best) for n in names if n in EVERYTHING}
        took, half = turns(vlm, methods, groups), len(groups)//2
    ratio = lambda rows, j: f'{took[rows, j].sum()/took[rows, 0].sum():.2f}' if len(took[rows]) else '-'
    print(f'{vlm}, {"+".join(modules)}: {a.n} samples of {int(np.mean([len(e) for g in groups for e in g]))} tokens in {len(groups)} batches; '
          f'{platform.machine()}, {a.threads} thread(s), {"processor time" if a.cpu_time else "wall clock"}, torch {torch.__version__}, {date.today()}\n')
    print('| | samples/s | ratio to plain | first half | second half | peak MB | MB on disk |\n|---|---:|---:|---:|---:|---:|---:|')
    for n in a.methods:
        if n not in methods: print(f'| {ROWS[n]} | not installed (pip install {PACKAGE[n][1]}) | | | | | |')
    for j, (n, m) in enumerate(methods.items()):
        alone = {} if n.endswith('+') or a.fast else call('--one', n, *(f'--{k}={getattr(a, k)}' for k in ('model', 'threads', 'modules', 'batch_size')), f'-n={a.n}')
        label = f'{ROWS[n[:-1]]}, at the rate of {of:,}' if n.endswith('+') else ROWS[n]
        print(f'| {label} | {a.n/took[:, j].sum():.2f} | ' + ' | '.join(ratio(r, j) for r in (slice(None), slice(half), slice(half, None)))
              + f" | {alone.get('peak_mb', '')} | {alone.get('disk_mb', '')} |")
    if 'tl' in names: print('\n(a) TransformerLens replaces the attention by its eager one and reads the input of the down projection; it has no hook in the projector.')


def call(*args): # in a fresh process; what it prints last
    out = subprocess.run([sys.executable, __file__, *map(str, args)], check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(out.splitlines()[-1])


def one(a):
    "Peak memory and disk of one method alone; recording by `record`, with its checkpoints and its store."
    vlm, samples, modules = load(a.model), pictures(a.model, a.n), ('lm',) if a.modules == 'lm' else load(a.model).modules
    with tempfile.TemporaryDirectory() as folder:
        if a.one in EVERYTHING: record(vlm, samples, Path(folder)/'run.zarr', modules=modules, batch_size=a.batch_size, progress=False, **EVERYTHING[a.one])
        else:
            Maxima.copied = False # alone it may have the model itself
            method = make(a.one, vlm, samples, modules, folder)
            for g in batches(vlm, samples, Limits(a.batch_size)): method.batch(g, encode_batch(vlm, g))
            method.end()
        print(json.dumps(dict(peak_mb=round(peak_mb()), disk_mb=round(sum(sizes(Path(folder)).values())/1e6, 1))))


def tree_mb(pid): # proportional set size of a process and its children: shared pages count once
    mb = 0
    try:
        mb = sum(int(l.split()[1]) for l in Path(f'/proc/{pid}/smaps_rollup').read_text().splitlines() if l.startswith('Pss:'))/1024
        kids = [k for f in Path(f'/proc/{pid}/task').glob('*/children') for k in f.read_text().split()]
    except OSError: return mb # it ended, or this is no Linux
    return mb + sum(map(tree_mb, kids))


def grow(a):
    "Growth with the number of samples, by the public `record`, in fresh processes."
    print('| samples | workers | seconds | samples/s | ms/sample | of it processor | peak MB, all processes | store MB | waiting |\n|---:|---:|---:|---:|---:|---:|---:|---:|---:|')
    for w in a.workers:
        for n in a.grow:
            p, most = subprocess.Popen([sys.executable, __file__, '--grow-one', str(n), str(w), '--threads', str(a.threads)], stdout=subprocess.PIPE, text=True), 0
            while p.poll() is None:
                most = max(most, tree_mb(p.pid))
                time.sleep(.2)
            r = json.loads(p.stdout.read().splitlines()[-1])
            print(f"| {n:,} | {w} | {r['sec']:.1f} | {n/r['sec']:.1f} | {1000*r['sec']/n:.1f} | {1000*r['cpu']/n:.1f} | {max(most, r['peak']):.0f} | {r['mb']:.1f} | {r['waiting']:.0%} |", flush=True)


def grow_one(n, workers):
    with tempfile.TemporaryDirectory() as folder:
        samples = []
        for i in range(n): # pictures on disk, as a data set has them
            s, f = scenes.make(1, 5, start=i)[0], Path(folder)/f'{i}.png'
            s.image.save(f)
            samples.append(type(s)(s.id, f, s.prompt, s.answer, s.domain))
        vlm, start, before = load('toy'), time.perf_counter(), sum(os.times()[:4]) # of the children, too, once they have ended
        store = record(vlm, samples, Path(folder)/'run.zarr', modules=vlm.modules, workers=workers, progress=False)
        sec, cpu = time.perf_counter() - start, sum(os.times()[:4]) - before
        print(json.dumps(dict(sec=sec, cpu=cpu, peak=peak_mb(), mb=sum(sizes(Path(store.path)).values())/1e6, waiting=store.facts.get('waiting', 0)/store.facts['seconds'])))


def in_one_go(vlm, method, groups, encoded):
    "Seconds of all batches with nothing waited for in between, as in a run, where `turns` would hold up a GPU after each; and of it those after the last batch was given."
    sync(vlm); start = CLOCK()
    for g, b in zip(groups, encoded): method.batch(g, b)
    late = CLOCK()
    method.end()
    sync(vlm)
    return CLOCK() - start, CLOCK() - late


def gpu(a):
    "Real shapes: samples/s plain and recording, a plain run before and after each; appended to `benchmarks/results/`."
    import shapes
    cuda = a.device.startswith('cuda')
    machine = torch.cuda.get_device_name() if cuda else f'{platform.machine()} CPU'
    file = Path(__file__).parent/'results'/f"{machine.replace(' ', '-').replace('/', '-')}-{date.today()}{'-shrunk' if a.shrink else ''}.md"
    file.parent.mkdir(exist_ok=True)
    for name in a.shapes:
        rows, lines = [], [f'\n{machine}, torch {torch.__version__}, {date.today()}, {a.dtype}, at most {a.batch_size} samples a batch{", shrunk: a test of the script" if a.shrink else ""}\n',
            f'| shape | method | tokens | plain/s | recording/s | ratio | of it the end | spread of plain | GPU MB | host MB | hours for {FULL_RUN:,} | encoding, ms/sample |\n|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|']
        vlm, samples, modules = shapes.build(name, a.device, a.dtype, a.shrink), shapes.pictures(a.n), ('lm',)
        start = time.perf_counter()
        groups = list(batches(vlm, samples, Limits(a.batch_size)))
        encode, groups = (time.perf_counter() - start)/a.n, [g for g in groups if len(g) == max(map(len, groups))] # the rest, smaller batches, is nothing in a long run
        tokens, n = int(np.mean([len(e) for g in groups for e in g])), sum(map(len, groups))
        with tempfile.TemporaryDirectory() as folder:
            args = (vlm, samples, modules, folder)
            best, encoded = best_of(*args[:2], groups, modules, folder, 1 + int(n*rate(50, FULL_RUN))), [encode_batch(vlm, g) for g in groups]
            for method in {'all', 'more', 'rows'} & {*a.methods}: in_one_go(vlm, make(method, *args), groups[:2], encoded) # warm up
            before, _ = in_one_go(vlm, Plain(*args), groups, encoded)
            for method, of in [(m, FULL_RUN) for m in ('max', 'all', 'more', 'rows') if m in a.methods] + [(m, 0) for m in ('all', 'rows') if a.filling]:
                ours = make(method, *args, of=of, best=best)
                if of: ours.touch(max(len(e.inputs['input_ids'][0]) for e in encoded))
                if cuda: torch.cuda.reset_peak_memory_stats()
                (rec, end), (after, _) = (in_one_go(vlm, m, groups, encoded) for m in (ours, Plain(*args)))
                plain, mb = (before + after)/2, torch.cuda.max_memory_allocated()/2**20 if cuda else 0
                row = dict(shape=name, method=ROWS[method] + (f', at the rate of {of:,}' if of else ', lists filling'), samples=n, tokens=tokens, plain_per_s=n/plain, recording_per_s=n/rec,
                           ratio=rec/plain, end=end/plain, spread=abs(after - before)/plain, gpu_mb=mb, host_mb=peak_mb(), hours=(FULL_RUN*(rec - end)/n + end)/3600, plain_hours=FULL_RUN*plain/n/3600, encode_ms=1000*encode, machine=machine)
                lines.append(f"| {name} | {row['method']} | {tokens} | {n/plain:.2f} | {n/rec:.2f} | {rec/plain:.3f} | {row['end']:.3f} | {row['spread']:.3f} | {mb:.0f} | {row['host_mb']:.0f} | {row['hours']:.2f} (plain {row['plain_hours']:.2f}) | {row['encode_ms']:.0f} |")
                print('\n'.join(lines[-1:] if len(rows) else lines), flush=True)
                rows.append(json.dumps(row))
                before = after
                del ours
        with open(file, 'a') as f: f.write('\n'.join([*lines, '\n```json', *rows, '```', '']))
        del vlm, best, groups, args, encoded
        if cuda: torch.cuda.empty_cache()


def profile(a):
    "Seconds of each part of recording, without the parts inside it."
    spent, inner = Counter(), [0.]
    def wrap(owner, name, label):
        f = getattr(owner, name)
        def g(*args, **kw):
            start = CLOCK()
            inner.append(0.)
            try: return f(*args, **kw)
            finally:
                took = CLOCK() - start
                spent[label] += took - inner.pop()
                inner[-1] += took
        setattr(owner, name, g)
    parts = [
        (order, 'maxima', 'maxima'), (order, 'not_finite', 'not_finite'),
        (order.TopN, 'admit', 'admission'), (top.TopSamples, 'reduce', 'admission'),
        (top, 'order_statistics', 'order statistics'), (top, 'coded', 'token rows'),
        (built_in, 'active_counts', 'active counts'), (built_in.ActiveCounts, 'reduce', 'active counts'),
        (top.RandomSamples, 'reduce', 'random'), (built_in.RoleMaximum, 'reduce', 'role maxima'),
        (built_in.Moments, 'reduce', 'moments'), (local, 'commit', 'commit'), (top.TopSamples, 'flush', 'flush'),
        (VLM, 'forward', 'forward, hooks and rest')]
    for owner, name, label in parts: wrap(owner, name, label)
    vlm, samples = load(a.model), pictures(a.model, a.n)
    modules = ('lm',) if a.modules == 'lm' else vlm.modules
    with tempfile.TemporaryDirectory() as folder:
        groups = list(batches(vlm, samples, Limits(a.batch_size)))
        for name in ('all', 'more', 'rows'):
            for of in ([0, a.of] if a.of else [0]):
                best = best_of(vlm, samples, groups, modules, folder, 1 + int(a.n*rate(50, of))) if of else None
                ours = make(name, vlm, samples, modules, folder, of=of, best=best)
                spent.clear()
                for g in groups: ours.batch(g, encode_batch(vlm, g))
                ours.end()
                forward = spent.pop('forward, hooks and rest')
                at_rate = f', at the rate of {of:,}' if of else ''
                beside = ', '.join(f'{k} {v:.2f} s ({v/forward:.1%})' for k, v in spent.most_common())
                print(f'{ROWS[name]}{at_rate}: forward {forward:.2f} s; beside it {beside}')


def main():
    global CLOCK
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--model', choices=('toy', 'wide'), default='toy')
    p.add_argument('-n', type=int, help='samples; default: 400 (toy), 8 (wide), 400 (--gpu)')
    p.add_argument('--batch-size', '--batch_size', type=int, help='default: 8 (toy), 2 (wide), 16 (--gpu)')
    p.add_argument('--threads', type=int, default=1)
    p.add_argument('--modules', choices=('lm', 'all'), default='lm')
    p.add_argument('--methods', nargs='+', choices=ROWS, default=list(ROWS))
    p.add_argument('--of', type=int, default=FULL_RUN, help='recording rows also at the admission rate of a run of so many samples; 0: not')
    p.add_argument('--cpu-time', action='store_true', help='seconds of the processor instead of the wall clock, for a machine that others use; waiting for the disk is not seen')
    p.add_argument('--fast', action='store_true', help='no memory, no bytes on disk: they take a process for each method')
    p.add_argument('--grow', type=int, nargs='+', help='numbers of samples, such as 500 2000 8000')
    p.add_argument('--workers', type=int, nargs='+', default=[0])
    p.add_argument('--gpu', action='store_true')
    p.add_argument('--shapes', nargs='+', default=['llava-1.5-7b', 'qwen2.5-vl-3b', 'llava-next-7b'])
    p.add_argument('--device', default='cuda')
    p.add_argument('--dtype', default='bfloat16')
    p.add_argument('--filling', action='store_true', help='with --gpu: recording also from empty lists, which takes long')
    p.add_argument('--shrink', action='store_true', help='small widths and depths, to try the script')
    p.add_argument('--profile', action='store_true')
    p.add_argument('--one', choices=ROWS, help=argparse.SUPPRESS)
    p.add_argument('--grow-one', type=int, nargs=2, help=argparse.SUPPRESS)
    a = p.parse_args()
    if a.cpu_time: CLOCK = time.process_time
    torch.set_num_threads(a.threads)
    a.n = a.n or (400 if a.gpu else dict(toy=400, wide=8)[a.model])
    a.batch_size = a.batch_size or (16 if a.gpu else dict(toy=8, wide=2)[a.model])
    if a.grow_one: grow_one(*a.grow_one)
    else: (gpu if a.gpu else grow if a.grow else profile if a.profile else one if a.one else table)(a)


if __name__ == '__main__': main()
