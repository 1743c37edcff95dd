"""What recording costs: seconds against the plain forward pass in one run, memory, bytes on disk; and against other
ways to do it.

    python benchmarks/recording.py                      # the table: the shipped model, 400 scenes
    python benchmarks/recording.py --model wide -n 8    # random LLaVA: 24 layers x 4,864 neurons, 576 visual tokens
    python benchmarks/recording.py --grow 500 2000 8000 --workers 0 1 2
    python benchmarks/recording.py --gpu                # real shapes, random weights; into benchmarks/results/
    python benchmarks/recording.py --profile            # where the time of recording goes

All methods take the same batches in one process and in turns, in an order that rotates, so that a machine that slows
down slows all. Encoding of samples is not counted. What a method does once at the end (sorting a dump, sorting in what
waits) is. Rows "at the rate of ..." begin with top lists so full that as many entries are admitted per sample as on
average in a run of that many samples: a short run admits nearly all, which a real one does only at its beginning.
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

WIDE = dict(width=896, neurons=4864, layers=24, heads=14, vision_width=768, vision_layers=12, image=336, patch=14,
            context=4096)
FULL_RUN = 23_000               # samples of a long run, which a short one stands for
CLOCK = time.perf_counter       # or the processor's time, with --cpu-time


# -- what all measurements share

@lru_cache
def load(name):
    "The shipped model, or the wide one with random weights."
    return VLM.toy(check=False) if name == 'toy' else VLM(*tiny_llava(**WIDE))


def pictures(name, n):
    "`n` samples for a model of `load`."
    return scenes.make(n, 5) if name == 'toy' else tiny_samples(n, 5)


def setting(a):
    "Model, samples and modules that the command line asks for."
    vlm = load(a.model)
    modules = ('lm',) if a.modules == 'lm' else vlm.modules
    return vlm, pictures(a.model, a.n), modules


def sync(vlm):
    "Wait for the GPU, if there is one."
    if vlm.device.type == 'cuda': torch.cuda.synchronize()


def mean_tokens(groups):
    "Tokens of the mean sample in batches."
    return int(np.mean([len(e) for group in groups for e in group]))


def peak_mb():
    "Peak memory of this process; `ru_maxrss` would hold the parent's from before it was another program."
    try: lines = Path('/proc/self/status').read_text().splitlines()
    except OSError: return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1024
    return next(int(line.split()[1]) for line in lines if line.startswith('VmHWM'))/1024


def disk_mb(folder):
    "What the files of a folder take."
    return sum(sizes(Path(folder)).values())/1e6


def run(vlm, method, groups):
    "All batches by one method, and its end."
    for group in groups: method.batch(group, encode_batch(vlm, group))
    method.end()


def best_of(vlm, samples, modules, folder, groups, of):
    "`{module: [tensor [I, m] of each layer]}`: the largest maxima, m more than these admit in a run of `of` samples."
    admitted = sum(map(len, groups))*rate(50, of)
    ours = make('max', vlm, samples, modules, folder, top=1 + int(admitted))
    run(vlm, ours, groups)
    return {m: [order.split_key(t.key.cpu())[0] for t in st.top] for m, st in ours.state.modules.items()}


# -- the table

def seconds(vlm, f, *args):
    "Seconds that `f(*args)` takes, work on the GPU included."
    sync(vlm)
    start = CLOCK()
    f(*args)
    sync(vlm)
    return CLOCK() - start


def turns(vlm, methods, groups):
    "Seconds [batch, method] of `{name: method}`; the end of a method is shared among its batches."
    took = np.zeros((len(groups), len(methods)))
    each = list(methods.values())
    for k, group in enumerate(groups):
        batch = encode_batch(vlm, group)
        for j in np.roll(np.arange(len(each)), k): took[k, j] = seconds(vlm, each[j].batch, group, batch)
    for j, method in enumerate(each): took[:, j] += seconds(vlm, method.end)/len(groups)
    return took


def installed(names):
    "Those of the methods whose package is here; the plain forward pass leads."
    here = [n for n in names if n not in PACKAGE or importlib.util.find_spec(PACKAGE[n][0])]
    return ['plain'] + [n for n in here if n != 'plain']


def warm_up(names, vlm, samples, modules, folder, group):
    "One batch by each method, for the costs of a first time."
    for n in names:
        method = make(n, vlm, samples, modules, tempfile.mkdtemp(dir=folder))
        method.batch(group, encode_batch(vlm, group))


def measured(a, vlm, samples, modules, groups):
    "`(names, seconds [batch, name])` of all methods; a name with a plus is recording at the rate of a long run."
    names = installed(a.methods)
    with tempfile.TemporaryDirectory() as folder:
        args = (vlm, samples, modules, folder)
        best = best_of(*args, groups, a.of) if a.of else None
        warm_up(names if a.model == 'toy' else ['plain'], *args, groups[0])
        methods = {n: make(n, *args) for n in names}
        if a.of: methods |= {f'{n}+': make(n, *args, of=a.of, best=best) for n in names if n in EVERYTHING}
        return list(methods), turns(vlm, methods, groups)


def ratio(took, j):
    "Seconds [batch, method] of method `j` against those of the plain forward pass, as text."
    return f'{took[:, j].sum()/took[:, 0].sum():.2f}' if len(took) else '-'


def last_line(out):
    "The JSON that a process of this script printed last."
    return json.loads(out.splitlines()[-1])


def alone(a, name):
    "Peak memory and disk of a method in a fresh process, see `one`."
    options = [f'--{k}={getattr(a, k)}' for k in ('model', 'threads', 'modules', 'batch_size')]
    command = [sys.executable, __file__, '--one', name, *options, f'-n={a.n}']
    return last_line(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def table(a):
    "All methods in turns on the same batches."
    vlm, samples, modules = setting(a)
    groups = list(batches(vlm, samples, Limits(a.batch_size)))
    names, took = measured(a, vlm, samples, modules, groups)
    clock = 'processor time' if a.cpu_time else 'wall clock'
    print(f'{vlm}, {"+".join(modules)}: {a.n} samples of {mean_tokens(groups)} tokens in {len(groups)} batches; '
          f'{platform.machine()}, {a.threads} thread(s), {clock}, torch {torch.__version__}, {date.today()}\n')
    print('| | samples/s | ratio to plain | first half | second half | peak MB | MB on disk |')
    print('|---|---:|---:|---:|---:|---:|---:|')
    for n in a.methods:
        if n not in names: print(f'| {ROWS[n]} | not installed (pip install {PACKAGE[n][1]}) | | | | | |')
    half = len(groups)//2
    for j, n in enumerate(names):
        long_run = n.endswith('+')
        label = f'{ROWS[n[:-1]]}, at the rate of {a.of:,}' if long_run else ROWS[n]
        ratios = ' | '.join(ratio(part, j) for part in (took, took[:half], took[half:]))
        use = {} if long_run or a.fast else alone(a, n)
        print(f'| {label} | {a.n/took[:, j].sum():.2f} | {ratios} '
              f"| {use.get('peak_mb', '')} | {use.get('disk_mb', '')} |")
    if 'tl' in names:
        print('\n(a) TransformerLens replaces the attention by its eager one and reads the input of the down '
              'projection; it has no hook in the projector.')


def one(a):
    "Peak memory and disk of one method alone; recording by `record`, with its checkpoints and its store."
    vlm, samples, modules = setting(a)
    with tempfile.TemporaryDirectory() as folder:
        if a.one in EVERYTHING:
            record(vlm, samples, Path(folder)/'run.zarr', modules=modules, batch_size=a.batch_size, progress=False,
                   **EVERYTHING[a.one])
        else:
            Maxima.copied = False # alone it may have the model itself
            method = make(a.one, vlm, samples, modules, folder)
            run(vlm, method, batches(vlm, samples, Limits(a.batch_size)))
        print(json.dumps(dict(peak_mb=round(peak_mb()), disk_mb=round(disk_mb(folder), 1))))


# -- growth

def tree_mb(pid):
    "Proportional set size of a process and its children: shared pages count once."
    mb = 0
    try:
        lines = Path(f'/proc/{pid}/smaps_rollup').read_text().splitlines()
        mb = sum(int(line.split()[1]) for line in lines if line.startswith('Pss:'))/1024
        threads = Path(f'/proc/{pid}/task').glob('*/children')
        children = [child for file in threads for child in file.read_text().split()]
    except OSError: return mb # it ended, or this is not Linux
    return mb + sum(map(tree_mb, children))


def watched(*options):
    "What this script prints last in a fresh process, and the most memory it held together with its children."
    command = [sys.executable, __file__, *map(str, options)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    most = 0
    while process.poll() is None:
        most = max(most, tree_mb(process.pid))
        time.sleep(.2)
    return last_line(process.stdout.read()), most


def grow(a):
    "Growth with the number of samples, by the public `record`, in fresh processes."
    print('| samples | workers | seconds | samples/s | ms/sample | of it processor | peak MB, all processes | store MB '
          '| waiting |')
    print('|' + '---:|'*9)
    for workers in a.workers:
        for n in a.grow:
            r, most = watched('--grow-one', n, workers, '--threads', a.threads)
            sec, cpu = r['sec'], r['cpu']
            print(f'| {n:,} | {workers} | {sec:.1f} | {n/sec:.1f} | {1000*sec/n:.1f} | {1000*cpu/n:.1f} '
                  f"| {max(most, r['peak']):.0f} | {r['mb']:.1f} | {r['waiting']:.0%} |", flush=True)


def on_disk(n, folder):
    "`n` scenes with pictures on disk, as a data set has them."
    samples = []
    for i in range(n):
        s = scenes.make(1, 5, start=i)[0]
        file = Path(folder)/f'{i}.png'
        s.image.save(file)
        samples.append(type(s)(s.id, file, s.prompt, s.answer, s.domain))
    return samples


def processor_seconds():
    "Of this process, and of its children once they have ended."
    return sum(os.times()[:4])


def grow_one(n, workers):
    "One row of `grow`."
    with tempfile.TemporaryDirectory() as folder:
        samples = on_disk(n, folder)
        vlm = load('toy')
        start, before = time.perf_counter(), processor_seconds()
        store = record(vlm, samples, Path(folder)/'run.zarr', modules=vlm.modules, workers=workers, progress=False)
        sec, cpu = time.perf_counter() - start, processor_seconds() - before
        waiting = store.facts.get('waiting', 0)/store.facts['seconds']
        print(json.dumps(dict(sec=sec, cpu=cpu, peak=peak_mb(), mb=disk_mb(store.path), waiting=waiting)))


# -- real shapes

GPU_HEAD = ('| shape | method | tokens | plain/s | recording/s | ratio | of it the end | spread of plain | GPU MB '
            f'| host MB | hours for {FULL_RUN:,} | encoding, ms/sample |\n'
            '|---|---|' + '---:|'*10)
GPU_LINE = ('| {shape} | {method} | {tokens} | {plain_per_s:.2f} | {recording_per_s:.2f} | {ratio:.3f} | {end:.3f} '
            '| {spread:.3f} | {gpu_mb:.0f} | {host_mb:.0f} | {hours:.2f} (plain {plain_hours:.2f}) '
            '| {encode_ms:.0f} |')


def in_one_go(vlm, method, groups, encoded):
    """Seconds of all batches, and of it those after the last batch was given.

    Nothing is waited for in between, as in a run; `turns` would hold up a GPU after each batch."""
    sync(vlm)
    start = CLOCK()
    for group, batch in zip(groups, encoded): method.batch(group, batch)
    late = CLOCK()
    method.end()
    sync(vlm)
    return CLOCK() - start, CLOCK() - late


def full_batches(a, vlm, samples):
    "The largest batches, and the seconds that encoding took; the rest, smaller ones, is nothing in a long run."
    start = time.perf_counter()
    groups = list(batches(vlm, samples, Limits(a.batch_size)))
    took = time.perf_counter() - start
    largest = max(map(len, groups))
    return [g for g in groups if len(g) == largest], took


def with_plain_after(args, method, of, best, groups, encoded):
    "Seconds of recording, those of it after the last batch, seconds of a plain run after it, and MB of the GPU."
    vlm = args[0]
    ours = make(method, *args, of=of, best=best)
    if of: ours.touch(max(len(batch.inputs['input_ids'][0]) for batch in encoded))
    cuda = vlm.device.type == 'cuda'
    if cuda: torch.cuda.reset_peak_memory_stats()
    took, end = in_one_go(vlm, ours, groups, encoded)
    after, _ = in_one_go(vlm, Plain(*args), groups, encoded)
    return took, end, after, torch.cuda.max_memory_allocated()/2**20 if cuda else 0


def shape_rows(a, name):
    "The figures of each method in one of the real shapes, between a plain run before it and one after it."
    import shapes
    vlm, samples = shapes.build(name, a.device, a.dtype, a.shrink), shapes.pictures(a.n)
    groups, encoding = full_batches(a, vlm, samples)
    n = sum(map(len, groups))
    rated = [(m, FULL_RUN) for m in ('max', 'all', 'more', 'rows') if m in a.methods]
    filling = [(m, 0) for m in ('all', 'rows') if a.filling]
    with tempfile.TemporaryDirectory() as folder:
        args = (vlm, samples, ('lm',), folder)
        best = best_of(*args, groups, FULL_RUN)
        encoded = [encode_batch(vlm, g) for g in groups]
        for method in {'all', 'more', 'rows'} & {*a.methods}: # warm up
            in_one_go(vlm, make(method, *args), groups[:2], encoded)
        before, _ = in_one_go(vlm, Plain(*args), groups, encoded)
        for method, of in rated + filling:
            took, end, after, mb = with_plain_after(args, method, of, best, groups, encoded)
            plain = (before + after)/2
            how = f'at the rate of {of:,}' if of else 'lists filling'
            yield dict(shape=name, method=f'{ROWS[method]}, {how}', samples=n, tokens=mean_tokens(groups),
                       plain_per_s=n/plain, recording_per_s=n/took, ratio=took/plain, end=end/plain,
                       spread=abs(after - before)/plain, gpu_mb=mb, host_mb=peak_mb(),
                       hours=(FULL_RUN*(took - end)/n + end)/3600, plain_hours=FULL_RUN*plain/n/3600,
                       encode_ms=1000*encoding/a.n)
            before = after


def gpu(a):
    "Real shapes: samples/s plain and recording; appended to `benchmarks/results/`."
    cuda = a.device.startswith('cuda')
    machine = torch.cuda.get_device_name() if cuda else f'{platform.machine()} CPU'
    name = machine.replace(' ', '-').replace('/', '-')
    file = Path(__file__).parent/'results'/f"{name}-{date.today()}{'-shrunk' if a.shrink else ''}.md"
    file.parent.mkdir(exist_ok=True)
    title = (f'\n{machine}, torch {torch.__version__}, {date.today()}, {a.dtype}, '
             f"at most {a.batch_size} samples a batch{', shrunk: a test of the script' if a.shrink else ''}\n")
    for shape in a.shapes:
        lines, rows = [title, GPU_HEAD], []
        for row in shape_rows(a, shape):
            row['machine'] = machine
            lines.append(GPU_LINE.format(**row))
            print('\n'.join(lines[-1:] if rows else lines), flush=True)
            rows.append(json.dumps(row))
        with open(file, 'a') as f: f.write('\n'.join([*lines, '\n```json', *rows, '```', '']))
        if cuda: torch.cuda.empty_cache()


# -- where the time goes

FORWARD = 'forward, hooks and rest'
PARTS = ( # owner, what is called there, what it counts as
    (order, 'maxima', 'maxima'),
    (order, 'not_finite', 'not_finite'),
    (order.TopN, 'admit', 'admission'),
    (top.TopSamples, 'reduce', 'admission'),
    (top, 'order_statistics', 'order statistics'),
    (top, 'coded', 'token rows'),
    (built_in, 'active_counts', 'active counts'),
    (built_in.ActiveCounts, 'reduce', 'active counts'),
    (top.RandomSamples, 'reduce', 'random'),
    (built_in.RoleMaximum, 'reduce', 'role maxima'),
    (built_in.Moments, 'reduce', 'moments'),
    (local, 'commit', 'commit'),
    (top.TopSamples, 'flush', 'flush'),
    (VLM, 'forward', FORWARD))


def count_parts():
    "A `Counter` of the seconds of each part from now on, without the parts inside it."
    spent, inner = Counter(), [0.]  # inner: seconds of the parts inside each one that runs now
    def counted(f, label):
        def g(*args, **kw):
            start = CLOCK()
            inner.append(0.)
            try: return f(*args, **kw)
            finally:
                took = CLOCK() - start
                spent[label] += took - inner.pop()
                inner[-1] += took
        return g
    for owner, name, label in PARTS: setattr(owner, name, counted(getattr(owner, name), label))
    return spent


def profile(a):
    "Seconds of each part of recording, without the parts inside it."
    spent = count_parts()
    vlm, samples, modules = setting(a)
    groups = list(batches(vlm, samples, Limits(a.batch_size)))
    with tempfile.TemporaryDirectory() as folder:
        args = (vlm, samples, modules, folder)
        for name in ('all', 'more', 'rows'):
            for of in ([0, a.of] if a.of else [0]):
                best = best_of(*args, groups, of) if of else None
                ours = make(name, *args, of=of, best=best)
                spent.clear()
                run(vlm, ours, groups)
                forward = spent.pop(FORWARD)
                at_rate = f', at the rate of {of:,}' if of else ''
                beside = ', '.join(f'{k} {v:.2f} s ({v/forward:.1%})' for k, v in spent.most_common())
                print(f'{ROWS[name]}{at_rate}: forward {forward:.2f} s; beside it {beside}')


# -- the command line

def arguments():
    "What the command line says, with defaults that depend on the model."
    p = argparse.ArgumentParser(description=__doc__.split('\n\n')[0])
    p.add_argument('--model', choices=('toy', 'wide'), default='toy')
    p.add_argument('-n', type=int, help='samples; default: 400 (toy), 8 (wide), 400 (--gpu)')
    p.add_argument('--batch-size', '--batch_size', type=int, help='default: 8 (toy), 2 (wide), 16 (--gpu)')
    p.add_argument('--threads', type=int, default=1)
    p.add_argument('--modules', choices=('lm', 'all'), default='lm')
    p.add_argument('--methods', nargs='+', choices=ROWS, default=list(ROWS))
    p.add_argument('--of', type=int, default=FULL_RUN,
                   help='recording rows also at the admission rate of a run of so many samples; 0: not')
    p.add_argument('--cpu-time', action='store_true',
                   help='seconds of the processor instead of the wall clock, for a machine that others use; '
                        'waiting for the disk is not seen')
    p.add_argument('--fast', action='store_true',
                   help='no memory, no bytes on disk: they take a process for each method')
    p.add_argument('--grow', type=int, nargs='+', help='numbers of samples, such as 500 2000 8000')
    p.add_argument('--workers', type=int, nargs='+', default=[0])
    p.add_argument('--gpu', action='store_true')
    p.add_argument('--shapes', nargs='+', default=['llava-1.5-7b', 'qwen2.5-vl-3b', 'llava-next-7b'])
    p.add_argument('--device', default='cuda')
    p.add_argument('--dtype', default='bfloat16')
    p.add_argument('--filling', action='store_true',
                   help='with --gpu: recording also from empty lists, which takes long')
    p.add_argument('--shrink', action='store_true', help='small widths and depths, to try the script')
    p.add_argument('--profile', action='store_true')
    p.add_argument('--one', choices=ROWS, help=argparse.SUPPRESS)
    p.add_argument('--grow-one', type=int, nargs=2, help=argparse.SUPPRESS)
    a = p.parse_args()
    a.n = a.n or (400 if a.gpu else dict(toy=400, wide=8)[a.model])
    a.batch_size = a.batch_size or (16 if a.gpu else dict(toy=8, wide=2)[a.model])
    return a


def main():
    global CLOCK
    a = arguments()
    if a.cpu_time: CLOCK = time.process_time
    torch.set_num_threads(a.threads)
    if a.grow_one: grow_one(*a.grow_one)
    elif a.gpu: gpu(a)
    elif a.grow: grow(a)
    elif a.profile: profile(a)
    elif a.one: one(a)
    else: table(a)


if __name__ == '__main__': main()
