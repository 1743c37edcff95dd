"""A wheel built from what git knows, installed elsewhere, carries the model and runs without the repository."""
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PIP = [sys.executable, '-m', 'pip', '--disable-pip-version-check']

def call(cmd, **kw):
    "Run `cmd`; its output is the message if it fails."
    p = subprocess.run(cmd, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **kw)
    assert p.returncode == 0, p.stdout
    return p.stdout

@pytest.fixture(scope='module')
def tree(tmp_path_factory):
    "The committed tree, without what lies about in this one (build/ would leak into the wheel)."
    out = tmp_path_factory.mktemp('tree')
    git = subprocess.run(['git', 'ls-files', '-z'], cwd=ROOT, capture_output=True, check=True)
    for n in filter(None, git.stdout.decode().split('\0')):
        src, dst = ROOT/n, out/n
        if not os.path.lexists(src): continue                    # deleted, not committed yet
        dst.parent.mkdir(parents=True, exist_ok=True)
        if src.is_symlink(): dst.symlink_to(os.readlink(src))
        else: dst.write_bytes(src.read_bytes())
    return out

@pytest.fixture(scope='module')
def wheel(tree, tmp_path_factory):
    "The wheel, built offline with this environment's setuptools."
    out = tmp_path_factory.mktemp('wheel')
    call([*PIP, 'wheel', '--no-deps', '--no-build-isolation', '--no-index', '-q', '-w', str(out), str(tree)])
    found = list(out.glob('*.whl'))
    assert len(found) == 1
    return found[0]

@pytest.fixture(scope='module')
def elsewhere(wheel, tmp_path_factory):
    "A folder with the installed wheel and nothing else of ours."
    out = tmp_path_factory.mktemp('installed')
    call([*PIP, 'install', '--no-deps', '--no-index', '-q', '--target', str(out), str(wheel)])
    return out

def python(elsewhere, code, cwd):
    "Run code with the installed package, far from the repository and offline."
    env = {k: v for k, v in os.environ.items() if k not in ('PYTHONPATH', 'PYTHONHOME')}
    return call([sys.executable, '-c', code], cwd=cwd, env={**env, 'PYTHONPATH': str(elsewhere), 'HF_HUB_OFFLINE': '1'})

def test_the_wheel_holds_package_and_data_and_nothing_else(tree, wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    data = {p.relative_to(tree/'data') for p in (tree/'data').rglob('*') if p.is_file()}
    for p in data: assert f'mmneuron_nb/assets/{p.as_posix()}' in names, f'data/{p} is not in the wheel'
    info = {n.split('/')[0] for n in names if '.dist-info' in n}
    assert not [n for n in names if n.endswith(('.ipynb', '.pyc')) or n.split('/')[0] not in ('mmneuron_nb', *info)]
    modules = {p.relative_to(tree).as_posix() for p in (tree/'mmneuron_nb').rglob('*.py') if 'assets' not in p.parts}
    assert modules <= names
    assert not any('/assets/../' in n for n in names)

def test_data_has_the_same_bytes(tree, elsewhere):
    for p in (tree/'data').rglob('*'):
        if not p.is_file(): continue
        assert (elsewhere/'mmneuron_nb/assets'/p.relative_to(tree/'data')).read_bytes() == p.read_bytes()
    assert not (elsewhere/'mmneuron_nb/assets').is_symlink()

def test_metadata_and_command(elsewhere, tmp_path):
    out = python(elsewhere, """
from importlib.metadata import distribution
m = distribution('mmneuron_nb')
print(m.metadata['License-Expression'] or m.metadata['License'], m.version, *[e.value for e in m.entry_points])
print(*m.requires)
""", tmp_path)
    assert 'Apache-2.0' in out and 'mmneuron_nb.cli:main' in out and 'torch>=2.6' in out
    assert 'nbdev' not in out.split('\n')[1].split('extra ==')[0], 'nbdev is for development only'
    assert list(elsewhere.glob('*.dist-info/**/LICENSE'))

def test_the_command_reads_its_help_from_the_installed_source(elsewhere, tmp_path):
    code = "import sys; from mmneuron_nb.cli import main; sys.exit(main(['record', '--help']))"
    out = python(elsewhere, code, tmp_path)
    assert '--top TOP' in out and 'samples of largest maximum kept per neuron' in ' '.join(out.split())

def test_the_installed_package_is_the_one_that_runs(elsewhere, tmp_path):
    out = python(elsewhere, 'import mmneuron_nb; print(mmneuron_nb.__file__)', tmp_path)
    assert out.strip().startswith(str(elsewhere))

def test_the_shipped_model_runs_from_the_wheel(elsewhere, tmp_path):
    "`VLM.toy()` in an empty folder: loads, sees, answers; nbdev and fastcore are not imported."
    out = python(elsewhere, """
import sys
from mmneuron_nb import VLM, scenes
vlm = VLM.toy()
print(vlm.generate(scenes.make(n=1, seed=7)[0]))
import mmneuron_nb
print(mmneuron_nb.__file__, [m for m in ('nbdev', 'fastcore', 'IPython.testing') if m in sys.modules])
""", tmp_path)
    assert str(elsewhere) in out and out.strip().endswith('[]'), out

def test_the_source_archive_can_be_built_from(tree, tmp_path):
    "An sdist carries what setup.py reads."
    call([sys.executable, 'setup.py', '-q', 'sdist', '-d', str(tmp_path)], cwd=tree)
    archive = next(tmp_path.glob('*.tar.gz'))
    call([*PIP, 'wheel', '--no-deps', '--no-build-isolation', '--no-index', '-q', '-w', str(tmp_path), str(archive)])
    names = zipfile.ZipFile(next(tmp_path.glob('*.whl'))).namelist()
    assert 'mmneuron_nb/errors.py' in names
    for p in (tree/'data').rglob('*'):
        if p.is_file(): assert f"mmneuron_nb/assets/{p.relative_to(tree/'data').as_posix()}" in names
