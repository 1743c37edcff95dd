"""The checks of tools/ are seen to fail on bad input, and to pass on good."""
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT/'tools'))

import check_python  # noqa: E402
import docs  # noqa: E402
import hygiene  # noqa: E402
import lock  # noqa: E402
import notebooks  # noqa: E402
import readme  # noqa: E402
import stages  # noqa: E402
import workshop  # noqa: E402

GIF = 'R0lGODlhAQABAAAAACw='

def code(src, *outputs, **kw):
    return dict(cell_type='code', execution_count=None, id='c1', metadata={}, outputs=list(outputs), source=src) | kw
def prose(src, **kw): return dict(cell_type='markdown', id='m1', metadata={}, source=src) | kw
def shows(**data):
    return dict(output_type='display_data', metadata={}, data={k.replace('_', '/', 1): v for k, v in data.items()})
def prints(s, name='stdout'): return dict(output_type='stream', name=name, text=s)
def book(*cells, **kw):
    meta = {'kernelspec': {'name': 'python3'}}
    return dict(cells=list(cells), metadata=meta, nbformat=4, nbformat_minor=5) | kw

def write(path, nb):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(nb), encoding='utf-8')
    return path

@pytest.fixture
def project(tmp_path):
    "A project of one notebook, exported."
    root = tmp_path/'project'
    cells = [code('#| default_exp one', id='a'), prose('# One\n> A number.', id='b'),
             code('#| export\ndef one(): return 1', id='c'), prose('As `one` says:', id='d'),
             code('one()', shows(text_plain='1'), id='e')]
    write(root/'nbs/00_one.ipynb', book(*cells))
    ini = (ROOT/'settings.ini').read_text(encoding='utf-8')
    (root/'settings.ini').write_text(ini, encoding='utf-8')
    (root/'_quarto.yml').write_text('project: {type: website}\n')
    (root/'nbs/styles.css').write_text('')
    (root/'mmneuron_nb').mkdir()
    export = 'from nbdev.doclinks import nbdev_export; nbdev_export()'
    subprocess.run([sys.executable, '-c', export], cwd=root, check=True, stdin=subprocess.DEVNULL)
    return root

# -- notebooks

def test_a_clean_notebook_passes(tmp_path):
    nb = book(prose('# Title\n\n> Subtitle'), code('1', shows(text_plain='1', image_png=GIF)))
    assert hygiene.notebook(write(tmp_path/'a.ipynb', nb)) == []

HOME = '/' + 'home/someone/x.png'
BROKEN = {
    'widget-view': book(code('w', shows(text_plain='w', **{'application_vnd.jupyter.widget-view+json': {}}))),
    'application/javascript': book(code('w', shows(application_javascript='1'))),
    'stored stderr': book(code('w', prints('oops', 'stderr'))),
    'stored error': book(code('w', dict(output_type='error', ename='E', evalue='', traceback=[]))),
    'absolute path in an output': book(code('w', prints(f'saved to {HOME}'))),
    'absolute path: ': book(code(f'open({HOME!r})')),
    'scripts or loads from outside': book(code('w', shows(text_html='<script>1</script>'))),
    'loads from outside': book(code('w', shows(text_html='<img src="https://example.org/a.png">'))),
    'metadata.widgets': book(metadata={'widgets': {}}),
    'metadata [': book(code('1', metadata={'scrolled': True})),
    'execution count': book(code('1', execution_count=3)),
    'output with an execution count':
        book(code('1', shows(text_plain='1') | dict(output_type='execute_result', execution_count=3))),
    'id m1 again': book(prose('a'), prose('b')),
    'no valid id': book(prose('a', id='')),
    'nbformat 4.5': book(nbformat_minor=4),
    'more than 300': book(code('1', prints('x' * 300_001))),
    'cell of the title': book(prose('# Title\n\n> Subtitle\n\nLost on the page.')),
}

@pytest.mark.parametrize('words', BROKEN)
def test_a_broken_notebook_is_caught(tmp_path, words):
    found = hygiene.notebook(write(tmp_path/'a.ipynb', BROKEN[words]))
    assert any(words in f for f in found), found

def test_notebooks_run_and_failures_are_told(project):
    assert notebooks.run(project/'nbs/00_one.ipynb', project)[0]
    ok, _, out = notebooks.run(write(project/'nbs/01_two.ipynb', book(code('assert 1 == 2, "no"'))), project)
    assert not ok and 'AssertionError' in out
    assert [p.name for p in notebooks.notebooks(project)] == ['00_one.ipynb', '01_two.ipynb']

def test_a_notebook_is_skipped_for_want_of_an_optional_package_only(tmp_path):
    absent = lambda name: None
    kernels = write(tmp_path/'a.ipynb', book(code('#| export\nimport os\nimport triton.language as tl')))
    assert notebooks.missing(kernels, have=absent) == 'triton' and notebooks.missing(kernels, have=str) is None
    assert notebooks.missing(write(tmp_path/'b.ipynb', book(code('import numpy as np'))), have=absent) is None
    extra = re.search('^kernels_requirements = (.*)$', (ROOT/'settings.ini').read_text(encoding='utf-8'), re.M)[1]
    assert all(name in extra for name in notebooks.OPTIONAL)                        # in CI nothing is skipped
    assert 'EXTRAS=lab,dev,kernels' in (ROOT/'.ci/run').read_text(encoding='utf-8')

# -- modules, README, sizes, names

def test_modules_in_step_and_out_of_step(project):
    one, (root, idx) = project/'mmneuron_nb/one.py', (project, project/'mmneuron_nb/_modidx.py')
    assert hygiene.modules(root) == []
    before = one.read_text()
    one.write_text(before.replace('return 1', 'return 2'))
    assert 'one.py differs' in hygiene.modules(root)[0] and one.read_text() != before        # told, not mended
    one.unlink()
    assert any('not exported yet' in b for b in hygiene.modules(root))
    one.write_text(before)
    (one.parent/'gone.py').write_text('# AUTOGENERATED! DO NOT EDIT! File to edit: ../nbs/gone.ipynb.\n')
    assert any('no notebook exports it' in b for b in hygiene.modules(root))
    (one.parent/'gone.py').unlink()
    idx.write_text('d = {}\n')
    assert any('_modidx.py differs' in b for b in hygiene.modules(root))
    write(project/'nbs/00_one.ipynb', book(code('#| default_exp one'), code('#| export\ndef one(: pass', id='c2')))
    assert 'nbdev_export failed' in hygiene.modules(root)[0]

def test_large_files_and_private_names_are_caught(tmp_path):
    subprocess.run(['git', 'init', '-q', tmp_path], check=True)
    (tmp_path/'fine.txt').write_text('see notes/x, work/y and home/z; a shared file')
    assert hygiene.sizes(tmp_path) == [] == hygiene.leaks(tmp_path)
    with open(tmp_path/'big.bin', 'wb') as f: f.truncate(13_000_000)
    assert 'big.bin: 13.0 MB' in hygiene.sizes(tmp_path)[0]
    for words in ('/' + 'work/main', 'see ' + 'shared/' + 'DESIGN.md', '/' + 'root/x', HOME,
                  'https://' + 'pypi' + '.org/simple', 'files.' + 'pythonhosted' + '.org'):
        (tmp_path/'bad.txt').write_text(words)
        assert [b for b in hygiene.leaks(tmp_path) if b.startswith('bad.txt:1: ')], words
    (tmp_path/'.gitignore').write_text('bad.txt')
    assert hygiene.leaks(tmp_path) == []

def test_nothing_private_is_committed_here():
    assert hygiene.leaks(ROOT) == []

def test_long_modules_are_remarked(project):
    assert hygiene.lengths(project) == []
    p = project/'mmneuron_nb/one.py'
    p.write_text(p.read_text() + '\n' * 300)
    assert 'one.py: 3' in hygiene.lengths(project)[0]

@pytest.mark.parametrize('folder', ('benchmarks', 'tests', 'tools'))
def test_lines_that_are_too_long_are_caught(tmp_path, folder):
    (tmp_path/folder).mkdir()
    file, fits = tmp_path/folder/'a.py', 'x = 1 # '.ljust(120, 'x')
    file.write_text(f'{fits}\n')
    assert hygiene.fitting(tmp_path) == []
    file.write_text(f'{fits}\n{fits}x\n')
    assert hygiene.fitting(tmp_path) == [f'{folder}/a.py:2: 121 columns']

def test_lines_of_notebooks_that_are_too_long_are_caught(tmp_path):
    fits = 'x = 1 # '.ljust(120, 'x')
    write(tmp_path/'nbs/a.ipynb', book(prose('x'*121), code(fits)))
    assert hygiene.fitting(tmp_path) == []
    write(tmp_path/'nbs/a.ipynb', book(code(f'{fits}x')))
    assert len(hygiene.fitting(tmp_path)) == 1 and 'a.ipynb cell 0: 121 columns' in hygiene.fitting(tmp_path)[0]

def test_readme_from_the_index(tmp_path):
    links = '[tour](tutorials/01_tour.ipynb) [web](https://x.org) [licence](https://x.org/repo/blob/main/LICENSE)'
    nb = book(code('#| hide\nimport secret', prints('secret')), prose(f'# Title\n\n> Line\n\n{links}\n\n## Export -'),
              code('#| eval: false\nf(1)', prints('warning', 'stderr'), prints('one\n'),
                   shows(text_plain='<Figure: types>', image_png=GIF)),
              code('t', shows(text_plain='a  b', text_html='<table>')), code('m', shows(text_markdown='**m**')))
    write(tmp_path/'nbs/index.ipynb', nb)
    (tmp_path/'settings.ini').write_text('[DEFAULT]\ngit_url = https://x.org/repo\nbranch = main\n')
    assert 'README.md differs' in readme.drift(tmp_path)[0][0]
    assert readme.main([], tmp_path) == 0 == readme.main(['--check'], tmp_path)
    md = (tmp_path/'README.md').read_text()
    for want in ('(nbs/tutorials/01_tour.ipynb)', '(https://x.org)', '(LICENSE)', '## Export\n',
                 '```python\nf(1)\n```', '    one\n',
                 '![Figure: types](nbs/images/readme-1.png)', '    a  b', '**m**'): assert want in md, want
    for no in ('secret', 'warning', 'eval', '<table>'): assert no not in md, no
    (tmp_path/'README.md').write_text(md + 'by hand')
    assert readme.main(['--check'], tmp_path) == 1
    readme.main([], tmp_path)
    write(tmp_path/'nbs/index.ipynb', book(prose('# Other')))
    assert any('no longer used' in b for b in readme.drift(tmp_path)[0])
    readme.main([], tmp_path)
    assert not list((tmp_path/'nbs/images').glob('*'))

# -- pages

def test_pages_of_a_project(project, capsys):
    assert docs.main(project) == 0, capsys.readouterr().out
    html = (project/'_docs/one.html').read_text(encoding='utf-8')
    assert 'A number.' in html and '>source<' in html
    assert re.search(r'href="\./one.html#one"', html), 'a name in backticks becomes a link'
    cells = [code('#| default_exp two', id='a'), prose('# Two', id='b'), code('#| export\nx = 1', id='c'),
             prose('::: {.callout-tip}\nnever closed', id='d'),
             prose('[gone](gone.ipynb) [place](#nowhere) ![](https://x.org/a.png)', id='e'),
             code('import os\nx = os.sep', id='f')]
    write(project/'nbs/01_two.ipynb', book(*cells))
    assert docs.main(project) == 1
    out = capsys.readouterr().out
    for want in ('cells containing imports and other code', 'gone.ipynb leads nowhere', 'no such place: #nowhere',
                 'loads https://x.org/a.png from outside', 'without alt text', 'Div'): assert want in out, (want, out)
    assert out.endswith('1 passed, 1 failed\n')
    lost = code('#| export\nimport nothing_of_this_name', id='g')
    write(project/'nbs/01_two.ipynb', book(*cells[:3], lost, code('#| export\ndef two(): pass', id='h')))
    assert docs.main(project) == 1
    assert 'nothing_of_this_name' in capsys.readouterr().out

def test_a_page_is_left_out_for_want_of_an_optional_package(tmp_path, monkeypatch):
    write(tmp_path/'nbs/api/01b_two.ipynb', book(code('import triton')))
    monkeypatch.setattr(notebooks, 'missing', lambda nb: 'triton')
    assert docs.left_out(tmp_path) == {'api/two.html': Path('api/01b_two.ipynb')}
    (tmp_path/'one.html').write_text('<a href="api/two.html">two</a>')
    pages = {'one.html': Path('00_one.ipynb')}
    assert docs.check(tmp_path, pages, {'api/two.html'})[0] == []
    assert 'leads nowhere' in docs.check(tmp_path, pages)[0][0]

def test_outputs_of_pages_are_static_and_speak():
    picture = shows(text_plain='<A "plot">', image_png=GIF)
    out = list(docs.static([picture, shows(**{'application_x+json': {}}), prints('e', 'stderr')]))
    assert len(out) == 1 and 'alt="A &quot;plot&quot;"' in out[0]['data']['text/html']

# -- the rest

def test_stages_go_on_and_count(capsys):
    assert stages.counts('3 failed, 10 passed, 2 skipped in 3.20s') == (10, 3, 2)
    assert stages.counts('x\n2 passed, 1 error in 1s\nbye') == (2, 1, 0)
    assert stages.counts('nothing') == (0, 0, 0)
    assert stages.main(['echo 3 passed, 0 failed', 'echo 2 passed'], make=('sh', '-c')) == 0
    assert capsys.readouterr().out.endswith('\n5 passed, 0 failed\n')
    assert stages.main(['echo 1 passed, 2 failed; exit 1', 'exit 3', 'echo 4 passed'], make=('sh', '-c')) == 1
    assert capsys.readouterr().out.endswith('\n5 passed, 3 failed\n')

def test_the_workshop_keeps_what_people_wrote(tmp_path):
    nb = book(prose('[names](../api/01_names.ipynb) [next](02_own.ipynb)'))
    one = write(tmp_path/'nbs/tutorials/01_tour.ipynb', nb)
    assert '1 tutorials copied' in workshop.copy(tmp_path)
    mine = tmp_path/'workshop/01_tour.ipynb'
    assert '[names](../nbs/api/01_names.ipynb) [next](02_own.ipynb)' in mine.read_text()
    mine.write_text('my work')
    assert 'already' in workshop.copy(tmp_path) and mine.read_text() == 'my work' != one.read_text()
    assert '/workshop/' in subprocess.run(['git', 'check-ignore', '-v', ROOT/'workshop/01_tour.ipynb'], cwd=ROOT,
                                          capture_output=True, text=True, check=True).stdout

def test_python_versions():
    assert all(check_python.problem((3, v, 0)) == '' for v in range(10, 14))
    for v in ((2, 7), (3, 9), (3, 14)): assert 'PYTHON=' in check_python.problem(v)
    assert 'apt-get install python3-venv' in check_python.problem((3, 12), has_venv=False)

def test_lock_lines():
    by = dict.fromkeys((10, 11, 12, 13))
    assert list(lock.lines('a', by, dict.fromkeys(by, '1'))) == ['a==1']
    two = ["a==1 ; python_version < '3.11'", "a==2 ; python_version >= '3.11'"]
    assert list(lock.lines('a', by, {10: '1', 11: '2', 12: '2', 13: '2'})) == two
    assert list(lock.lines('a', by, {11: '1'})) == ["a==1 ; python_version >= '3.11' and python_version < '3.12'"]
    pins = (ROOT/'requirements.txt').read_text(encoding='utf-8')
    for r in lock.wanted():
        name = lock.norm(re.split(r'[<>=;\[~!]', r)[0])
        pinned = lock.OUT.match(name) or re.search(rf'^{name}==', pins, re.M)
        assert pinned, f'{name} has no exact version in requirements.txt'

def test_every_folder_of_notebooks_is_in_the_sidebar():
    side = (ROOT/'nbs/sidebar.yml').read_text(encoding='utf-8')
    for p in (ROOT/'nbs').rglob('*.ipynb'):
        rel = p.relative_to(ROOT/'nbs')
        if '.ipynb_checkpoints' in rel.parts: continue
        assert f'{rel.parent.as_posix()}/*' in side or rel.as_posix() in side, f'{rel} is not in nbs/sidebar.yml'

def test_the_top_level_is_nbdev_2():
    assert (ROOT/'nbs/_quarto.yml').is_symlink() and (ROOT/'nbs/_quarto.yml').resolve() == ROOT/'_quarto.yml'
    assert not (ROOT/'pyproject.toml').exists()

def test_make_alone_lists_its_targets():
    out = subprocess.run(['make'], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for t in ('demo', 'lab', 'test', 'docs-check', 'export', 'readme', 'clean', 'TORCH_INSTALL', 'EXTRAS'):
        assert t in out
