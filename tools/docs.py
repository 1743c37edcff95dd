"""Build the documentation pages without Quarto and check them: `python tools/docs.py`.

nbdev processes the notebooks (front matter, signatures, links between names) into _proc; each is stripped to a valid
notebook, and pandoc, which is what Quarto runs as well, makes a page of it in _docs. Complaints: whatever nbdev or
pandoc warns about, links and anchors that lead nowhere, pictures without words, anything that a page would load from
outside. Links to other sites are only counted.
"""
import base64
import json
import os
import re
import shutil
import subprocess
import sys
from configparser import ConfigParser
from html import escape
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
import yaml

import notebooks
from hygiene import STATIC, text

ROOT = Path(__file__).resolve().parents[1]
PROC = """if __name__ == '__main__':
    from nbdev.serve import proc_nbs
    proc_nbs(n_workers=2, force=True, skip_file_re={skip!r})"""

def left_out(root=ROOT):
    "`{page: notebook}` that cannot be made here for want of an optional package (nbdev runs imports)."
    nbs = {p.relative_to(root/'nbs'): p for p in notebooks.notebooks(root) if notebooks.missing(p)}
    return {str(rel.with_name(re.sub(r'^\d+[a-z]?_', '', rel.stem) + '.html')): rel for rel in nbs}

def process(root=ROOT, skip=()):
    "Let nbdev fill _proc, in a process of its own, without notebooks called as in `skip`; what it complained about."
    (root/'_proc').mkdir(exist_ok=True)
    script = root/'_proc.py'                                     # workers are spawned, so it has to be a file
    script.write_text(PROC.format(skip='|'.join([r'^[_.]', *(f'^{re.escape(name)}$' for name in skip)])))
    env = {**os.environ, 'PYTHONPATH': str(root)}
    try:
        p = subprocess.run([sys.executable, script], cwd=root, env=env, capture_output=True, text=True,
                           stdin=subprocess.DEVNULL)
    finally: script.unlink()
    if p.returncode:
        last = p.stderr[p.stderr.rfind('\nException: ') + 1:].strip()
        return ['nbdev: ' + '\n'.join([*re.findall(r'^\w+Error: .*', p.stderr, re.M)[:1], last])]
    warned = re.findall(r'nbdev.\w+\.py:\d+: \w*Warning: (.*?)(?=\n\s+warn\(|\Z)', p.stderr, re.S)
    return [f'nbdev: {m.strip()}' for m in warned]

def front(raw):
    "The keys of a front matter."
    keys = yaml.safe_load(raw.strip().strip('-')) or {}
    return {k: str(v) for k, v in keys.items() if k in ('title', 'description', 'output-file')}

def markdown(src): return nbformat.v4.new_markdown_cell(text(src))

def static(outputs):
    "The outputs that a page can show, as pandoc wants them."
    for o in outputs:
        if o['output_type'] == 'stream' and o.get('name') != 'stderr':
            yield nbformat.v4.new_output('stream', name='stdout', text=text(o['text']))
        data = {m: text(v) for m, v in o.get('data', {}).items() if m in STATIC}
        for mime in [m for m in data if m.startswith('image/')]:      # as a picture with words
            pic, words = data.pop(mime), data.get('text/plain', 'figure').strip().strip('<>')
            src = base64.b64encode(pic.encode()).decode() if mime == 'image/svg+xml' else pic.replace('\n', '')
            data['text/html'] = f'<img alt="{escape(words)}" src="data:{mime};base64,{src}">'
        if data: yield nbformat.v4.new_output('display_data', data=data)

def strip(nb):
    "A valid notebook of what nbdev left in _proc, and its front matter."
    fm, cells = {}, []
    for c in nb['cells']:
        src, kind = text(c['source']), c['cell_type']
        if kind == 'raw': fm = fm or front(src)
        if kind == 'markdown': cells.append(markdown(re.sub(r'^(#+ .*) -$', r'\1', src, flags=re.M)))
        if kind != 'code': continue
        flags = {re.sub(r'\s', '', m) for m in re.findall(r'^#\|(.*)$', src, re.M)}
        code = '\n'.join(line for line in src.splitlines() if not line.startswith('#|')).strip()
        if 'output:asis' in flags:
            told = [o['data'] for o in c['outputs'] if 'text/markdown' in o.get('data', {})]
            cells += [markdown(d['text/markdown']) for d in told]
        elif 'include:false' not in flags:
            outs, code = list(static(c.get('outputs', []))), '' if 'echo:false' in flags else code
            if code or outs: cells.append(nbformat.v4.new_code_cell(code, outputs=outs))
    head = f"# {fm['title']}\n" + (f"\n> {fm['description']}\n" if 'description' in fm else '') if 'title' in fm else ''
    for i, c in enumerate(out := [markdown(head), *cells] if head else cells): c['id'] = f'c{i}'
    return nbformat.v4.new_notebook(cells=out, metadata={'language_info': {'name': 'python'}}), fm

def page(src, dst, base, depth, title):
    "Let pandoc make a page; what it warned about."
    import pypandoc
    fmt = 'ipynb+fenced_divs+bracketed_spans+link_attributes+raw_html'
    cmd = [pypandoc.get_pandoc_path(), '-f', fmt, '-t', 'html5', '-s', '--mathml', f'--css={"../" * depth}styles.css',
           '-M', f'pagetitle={title}', '-M', 'lang=en', '--eol=lf', '-o', str(dst), str(src)]
    p = subprocess.run(cmd, capture_output=True, text=True)
    if p.returncode: return [p.stderr.strip()]
    dst.write_text(dst.read_text(encoding='utf-8').replace(base, '../' * depth or './'), encoding='utf-8')
    return p.stderr.strip().splitlines()

class Page(HTMLParser):
    "Ids, links and loaded resources of a page."
    def __init__(self, html):
        super().__init__()
        self.ids, self.hrefs, self.loads, self.silent = set(), [], [], 0
        self.feed(html)
    def handle_starttag(self, tag, attrs):
        a = dict(attrs)
        self.ids |= {a[k] for k in ('id', 'name') if a.get(k)}
        if tag == 'a' and a.get('href'): self.hrefs.append(a['href'])
        if tag == 'img' and not a.get('alt'): self.silent += 1
        self.loads += [a[k] for k in ('src', 'data', 'poster') if a.get(k) and not a[k].startswith('data:')]
        if tag == 'link' and a.get('href'): self.loads.append(a['href'])

def check(docs, pages, skipped=()):
    "Complaints about links and resources of `pages`, `{path: notebook path}`; and how many links go elsewhere."
    html = {p: Page((docs/p).read_text(encoding='utf-8')) for p in pages}
    by_nb, bad, away = {str(nb): p for p, nb in pages.items()}, [], 0
    for p, h in html.items():
        for url in h.hrefs:
            u = urlsplit(url)
            if u.scheme or u.netloc:
                away += 1
                continue
            to = os.path.normpath(os.path.join(os.path.dirname(p), unquote(u.path))) if u.path else p
            to = by_nb.get(to, to)
            if to == '.': to = 'index.html'
            if to in skipped: continue
            if to not in html and not (docs/to).is_file(): bad.append(f'{pages[p]}: the link {url} leads nowhere')
            elif u.fragment and to in html and unquote(u.fragment) not in html[to].ids:
                bad.append(f'{pages[p]}: no such place: {url}')
        for url in h.loads:
            if urlsplit(url).scheme or url.startswith('//'): bad.append(f'{pages[p]}: loads {url} from outside')
            elif not (docs/os.path.dirname(p)/unquote(url)).is_file(): bad.append(f'{pages[p]}: {url} is missing')
        if h.silent: bad.append(f'{pages[p]}: {h.silent} pictures without alt text')
    return bad, away

def main(root=ROOT):
    "Build, check, count."
    cfg = ConfigParser(delimiters=['='], interpolation=None)
    cfg.read(root/'settings.ini', encoding='utf-8')
    base = cfg['DEFAULT']['doc_host'] + cfg['DEFAULT']['doc_baseurl'] + '/'
    skipped = left_out(root)
    for page_name, nb in skipped.items(): print(f'skipped {page_name}: {nb} imports a package that is not installed')
    bad, pages = process(root, [p.name for p in skipped.values()]), {}
    proc, docs = root/'_proc', root/'_docs'
    shutil.rmtree(docs, ignore_errors=True)
    docs.mkdir()
    shutil.copy(root/'nbs/styles.css', docs)
    if (root/'nbs/images').is_dir(): shutil.copytree(root/'nbs/images', docs/'images')
    for src in sorted(proc.rglob('*.ipynb')):
        rel = src.relative_to(proc)
        nb, fm = strip(json.loads(src.read_text(encoding='utf-8')))
        dst = docs/rel.with_name(fm.get('output-file', f'{rel.stem}.html'))
        dst.parent.mkdir(parents=True, exist_ok=True)
        try: nbformat.validate(nb)
        except nbformat.ValidationError as e: bad.append(f'{rel}: not a valid notebook: {e.message}')
        clean = dst.with_suffix('.ipynb')
        nbformat.write(nb, clean)
        bad += [f'{rel}: {w}' for w in page(clean, dst, base, len(rel.parts) - 1, fm.get('title', rel.stem))]
        clean.unlink()
        pages[str(dst.relative_to(docs))] = rel
    wrong, away = check(docs, pages, {*skipped, *map(str, skipped.values())})
    fine = 'ok     no warnings, all links resolve, nothing is loaded from outside'
    print('\n'.join(f'FAILED {b}' for b in bad + wrong) or fine)
    print(f'{away} links to other sites not checked')
    named = {str(rel) for rel in pages.values() if any(str(rel) in b for b in bad + wrong)}
    print(f'{len(pages) - len(named)} passed, {max(len(named), int(bool(bad + wrong)))} failed')
    return int(bool(bad + wrong))

if __name__ == '__main__': sys.exit(main())
