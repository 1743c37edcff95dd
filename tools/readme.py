"""Write README.md from nbs/index.ipynb: prose, visible code, and outputs as text, Markdown or pictures.

`python tools/readme.py` writes, `--check` only compares. Pictures go to nbs/images/readme-N.svg or .png.
The same notebook gives the same bytes.
"""
import base64
import json
import re
import sys
from configparser import ConfigParser
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NOTE = '<!-- Written by tools/readme.py from nbs/index.ipynb: change that notebook. -->\n'

def text(x): return ''.join(x) if isinstance(x, list) else x

def links(md, repo):
    "Links from the top level; on the site they are relative to notebooks, and full to files of the repository."
    return re.sub(r'\]\((?!\w+:|#|/)([^)\s]+)\)', r'](nbs/\1)', md).replace(f']({repo}/', '](')

def source(cell):
    "The code of a cell without directives, or '' where the page hides it."
    src = text(cell['source'])
    flags = [line.split('|', 1)[1].strip() for line in src.splitlines() if re.match(r'#\s*\|', line)]
    hide = ('hide', 'default_exp', 'hide_input', 'exporti')
    if any(f.split()[0] in hide or f.replace(' ', '') == 'echo:false' for f in flags if f): return ''
    return '\n'.join(line for line in src.splitlines() if not re.match(r'#\s*\|', line)).strip('\n')

def hidden(cell):
    "Is the whole cell, outputs included, left out?"
    return re.search(r'^#\s*\|\s*(hide|default_exp)\s*$', text(cell['source']), re.M) is not None

def output(out, pics):
    "One output as Markdown; a picture is added to `pics`."
    if out['output_type'] == 'stream': return '' if out['name'] == 'stderr' else fence(text(out['text']))
    data = out.get('data', {})
    for mime, ext in (('image/svg+xml', 'svg'), ('image/png', 'png'), ('image/jpeg', 'jpg')):
        if mime not in data: continue
        name = f'nbs/images/readme-{len(pics) + 1}.{ext}'
        pics[name] = text(data[mime]).encode() if ext == 'svg' else base64.b64decode(text(data[mime]))
        words = text(data.get('text/plain', 'figure')).strip().splitlines()[0].strip('<>')
        alt = words.replace('[', '').replace(']', '')
        return f'![{alt}]({name})'
    if 'text/markdown' in data: return text(data['text/markdown']).strip()
    return fence(text(data['text/plain'])) if 'text/plain' in data else ''

def fence(s):
    "Plain text, indented as Markdown's code block."
    return '\n'.join('    ' + line.rstrip() for line in s.strip('\n').splitlines())

def convert(nb, repo):
    "`(markdown, {picture path: bytes})` of a notebook."
    parts, pics = [], {}
    for c in nb['cells']:
        if c['cell_type'] == 'markdown':
            md = '\n'.join(line for line in text(c['source']).splitlines() if not re.match(r'^:{3,}', line))
            md = re.sub(r'^(#+ .*?) -$', r'\1', md, flags=re.M).strip()
            parts.append(links(md, repo))
        if c['cell_type'] != 'code' or hidden(c): continue
        if source(c): parts.append(f'```python\n{source(c)}\n```')
        parts += [output(o, pics) for o in c.get('outputs', [])]
    return NOTE + '\n' + '\n\n'.join(p for p in parts if p) + '\n', pics

def drift(root=ROOT):
    "What differs from what the notebook gives, as a list of sentences; and what it gives."
    cfg = ConfigParser(delimiters=['='], interpolation=None)
    cfg.read(root/'settings.ini', encoding='utf-8')
    repo = f"{cfg['DEFAULT']['git_url']}/blob/{cfg['DEFAULT']['branch']}"
    md, pics = convert(json.loads((root/'nbs/index.ipynb').read_text(encoding='utf-8')), repo)
    want = {'README.md': md.encode(), **pics}
    stale = {str(p.relative_to(root)) for p in (root/'nbs/images').glob('readme-*')} - set(want)
    bad = [f'{n} differs from nbs/index.ipynb: run `make readme`' for n, b in want.items()
           if not (root/n).exists() or (root/n).read_bytes() != b]
    return bad + [f'{n} is no longer used: run `make readme`' for n in sorted(stale)], want, stale

def main(argv=None, root=ROOT):
    "Write or check."
    bad, want, stale = drift(root)
    if '--check' in (argv if argv is not None else sys.argv[1:]):
        print('\n'.join(bad) or 'README.md equals nbs/index.ipynb')
        return int(bool(bad))
    for n in stale: (root/n).unlink()
    for n, b in want.items():
        (root/n).parent.mkdir(parents=True, exist_ok=True)
        (root/n).write_bytes(b)
    print(f'README.md and {len(want) - 1} pictures written')
    return 0

if __name__ == '__main__': sys.exit(main())
