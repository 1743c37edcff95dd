"""Rooms, circles, cells and lines of the library.

`python tools/structure.py` prints the figures, tools/hygiene.py judges.

A room is a folder of mmneuron_nb; it imports only from rooms above it. A cell should hold one idea, a line should fit a
notebook on a laptop.
"""
import ast
import json
import re
import statistics
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ('errors', 'names', 'display', 'writing', 'data', 'scenes', 'models', 'running', 'statistics', 'store',
         'recording', 'neurons', 'intervene', 'evaluate', 'explain', 'views', 'dashboards', 'testing', 'training',
         'commands', 'arguments', 'cli')
CLOSED = ('testing', 'training')    # rooms from which nothing is imported but by tests, benchmarks and themselves
WIDTH = 120                         # columns of a line of code

def text(x): return ''.join(x) if isinstance(x, list) else x

def modules(root=ROOT):
    "`{dotted name: path}` of the library, package files under the name of their package."
    top = root/'mmneuron_nb'
    name = lambda p: '.'.join(p.relative_to(top).with_suffix('').parts).removesuffix('__init__').rstrip('.')
    return {name(p): p for p in sorted(top.rglob('*.py')) if p.name not in ('_modidx.py', '__main__.py')}

def imports(name, path, known):
    "`(module, line)` of everything that a module of the library imports from the library, inside functions too."
    package = name if path.name == '__init__.py' else name.rpartition('.')[0]
    parts = package.split('.')
    for n in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if isinstance(n, ast.ImportFrom):
            words = (n.module or '').split('.')
            if n.level: base = '.'.join([*parts[:len(parts) - n.level + 1], *words]).strip('.')
            elif words[0] == 'mmneuron_nb': base = '.'.join(words[1:])
            else: continue
            for a in n.names: yield (full if (full := f'{base}.{a.name}'.strip('.')) in known else base), n.lineno
        if isinstance(n, ast.Import):
            for a in n.names:
                if a.name.startswith('mmneuron_nb.'): yield a.name.removeprefix('mmneuron_nb.'), n.lineno

def graph(root=ROOT):
    "`{module: {module it imports: line}}`."
    mods = modules(root)
    return {m: {t: line for t, line in imports(m, p, mods) if t in mods and t != m} for m, p in mods.items()}

def backward(root=ROOT):
    "Complaints about imports from a room below, or from a closed one."
    bad, room = [], lambda m: m.split('.')[0]
    for m, to in graph(root).items():
        if not m: continue                                                  # the public face imports names on first use
        if room(m) not in ROOMS: bad.append(f'{m}: the room {room(m)!r} is not in the list of tools/structure.py')
        for t, line in to.items():
            a, b = room(m), room(t)
            if not t or a == b or a not in ROOMS or b not in ROOMS: continue
            if ROOMS.index(b) > ROOMS.index(a): bad.append(f'{m}:{line} imports {t}, whose room is below its own')
            elif b in CLOSED: bad.append(f'{m}:{line} imports {t}, which only tests and benchmarks may')
    return bad

def circles(root=ROOT):
    "Complaints about modules that import each other, over however many steps."
    g, seen, bad = graph(root), {}, set()
    packages = {m for m, p in modules(root).items() if p.name == '__init__.py'}
    def visit(m, way):
        seen[m] = 1
        for t in g[m]:
            if t in packages: continue                                      # a package file gathers its own modules
            if seen.get(t) == 1: bad.add(' - '.join([*way[way.index(t):], t]))
            elif t not in seen: visit(t, [*way, t])
        seen[m] = 2
    for m in g:
        if m not in seen and m not in packages: visit(m, [m])
    return sorted(bad)

def code_cells(root=ROOT):
    "`(notebook, number, source, exported?)` of every code cell."
    for p in sorted((root/'nbs').rglob('*.ipynb')):
        if '.ipynb_checkpoints' in p.parts: continue
        for i, c in enumerate(json.loads(p.read_text(encoding='utf-8'))['cells']):
            if c['cell_type'] != 'code': continue
            src = text(c['source'])
            yield p, i, src, bool(re.search(r'^#\| *exports?\s*$', src, re.M))

def long_lines(root=ROOT, folders=('tests', 'tools', 'benchmarks')):
    "Complaints about lines of code over `WIDTH` columns, in notebooks and in ordinary files."
    say = lambda p, i, line: f'{p.relative_to(root)} cell {i}: {len(line)} columns: {line.strip()[:60]}'
    bad = [say(p, i, line) for p, i, src, _ in code_cells(root) for line in src.splitlines() if len(line) > WIDTH]
    for p in (f for d in folders for f in sorted((root/d).rglob('*.py'))):
        lines = enumerate(p.read_text(encoding='utf-8').splitlines(), 1)
        bad += [f'{p.relative_to(root)}:{n}: {len(line)} columns' for n, line in lines if len(line) > WIDTH]
    return bad

def symbols(src):
    "Functions and classes that a cell defines."
    try: return [n.name for n in ast.parse(src).body if isinstance(n, (ast.FunctionDef, ast.ClassDef))]
    except SyntaxError: return []

def cell_figures(root=ROOT):
    "`{what: figure}` of the exported cells."
    cells = list(code_cells(root))
    sizes, several, alone, longest = [], 0, 0, (0, '')
    for k, (p, i, src, exported) in enumerate(cells):
        if not exported: continue
        body = [line for line in src.splitlines() if line.strip() and not line.startswith('#|')]
        if all(re.match(r'(from|import) ', line) for line in body): continue
        sizes.append(len(body))
        several += len(symbols(src)) > 1
        after = cells[k + 1] if k + 1 < len(cells) and cells[k + 1][0] == p else None
        alone += after is None or after[3]
        longest = max(longest, (len(body), f'{p.relative_to(root)} cell {i}'))
    sizes.sort()
    return {'exported cells': len(sizes), 'median lines': statistics.median(sizes),
            '90 % within': sizes[int(.9*len(sizes))], 'longest': f'{longest[0]} ({longest[1]})',
            'with several symbols': several, 'not followed by an example or test': alone,
            f'lines over {WIDTH} columns': len(long_lines(root))}

def room_lines(root=ROOT):
    "`{room: (modules, lines)}`."
    out = {}
    for m, p in modules(root).items():
        if m and p.name != '__init__.py':
            room = m.split('.')[0] if '.' in m else 'top level'
            n, lines = out.get(room, (0, 0))
            out[room] = n + 1, lines + len(p.read_text(encoding='utf-8').splitlines())
    return out

def main():
    "Print the figures; with words on the command line, the long lines of files whose path holds one of them."
    for room, (n, lines) in room_lines().items(): print(f'{room:<12}{n:>4} modules{lines:>7,} lines')
    for what, n in cell_figures().items(): print(f'{what}: {n}')
    for bad in [*backward(), *(f'circle: {c}' for c in circles())]: print(bad)
    for line in long_lines():
        if any(w in line for w in sys.argv[1:]): print(line)

if __name__ == '__main__': main()
