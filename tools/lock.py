"""Write requirements.txt from pip's own resolution on each supported Python.

For each Python 3.10 to 3.13, in a virtual environment of it:

    pip install --dry-run --ignore-installed --report py310.json -r wanted.txt

(wanted.txt is what `python tools/lock.py --wanted` prints)

then, here:

    python tools/lock.py py310.json py311.json py312.json py313.json > requirements.txt

PyTorch and what belongs to it (CUDA, Triton) stay out: which build is wanted depends on the
machine (`make help`).
"""
import json
import re
import sys
from configparser import ConfigParser

OUT = re.compile(r'^(torch|torchvision|triton|nvidia-.*|cuda-.*)$')
TOOLS = ['pip', 'setuptools', 'wheel']
HEAD = """# Exact versions, as constraints: `pip install -c requirements.txt -e .`
# Written by tools/lock.py from pip's resolution on Python 3.10 to 3.13; settings.ini has what the project asks for.
# PyTorch is not here: its build depends on the machine, see TORCH_INSTALL in the Makefile.
"""

def norm(name):
    "The name under which the index knows a package."
    return re.sub(r'[-_.]+', '-', name).lower()

def wanted():
    "What settings.ini asks for, one requirement a line, with the tools that install it."
    cfg = ConfigParser(delimiters=['='], interpolation=None)
    cfg.read('settings.ini', encoding='utf-8')
    keys = [k for k in cfg['DEFAULT'] if k.endswith('requirements')]
    return [r for k in keys for r in cfg['DEFAULT'][k].split()] + TOOLS

def read(reports):
    "`{minor: {name: version}}` of pip reports."
    out = {}
    for path in reports:
        with open(path, encoding='utf-8') as f: rep = json.load(f)
        minor = int(rep['environment']['python_version'].split('.')[1])
        out[minor] = {norm(i['metadata']['name']): i['metadata']['version'].split('+')[0] for i in rep['install']}
    return out

def lines(name, by_minor, versions):
    "The lines of one package: one if all Pythons agree, else one per version with a marker."
    first, last = min(by_minor), max(by_minor)
    groups = []
    for m in sorted(by_minor):
        v = versions.get(m)
        if groups and groups[-1][0] == v: groups[-1][2] = m
        else: groups.append([v, m, m])
    for v, lo, hi in groups:
        if v is None: continue
        marks = [f"python_version >= '3.{lo}'"] * (lo > first) + [f"python_version < '3.{hi + 1}'"] * (hi < last)
        yield f'{name}=={v}' + (f" ; {' and '.join(marks)}" if marks else '')

def main(argv):
    "Print the constraints file."
    if argv == ['--wanted']: return print('\n'.join(wanted()))
    reps = read(argv)
    names = sorted({n for r in reps.values() for n in r if not OUT.match(n)})
    direct = {norm(re.split(r'[<>=;\[~!]', r)[0]) for r in wanted()}
    print(HEAD)
    for title, pick in (('asked for by settings.ini', direct), ('what those bring', set(names) - direct)):
        print(f'# {title}')
        for n in names:
            if n in pick: print('\n'.join(lines(n, reps, {m: r[n] for m, r in reps.items() if n in r})))
        print()

if __name__ == '__main__': main(sys.argv[1:])
