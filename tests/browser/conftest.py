"Chromium and JupyterLab for the browser tests: both real, both offline, nothing of the user's own settings."
import json, os, shutil, socket, subprocess, sys, time, urllib.request
from pathlib import Path
import pytest

ROOT = Path(__file__).parents[2]
SHOTS = ROOT / 'screenshots'            # git-ignored
NAMES = ('chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable', 'chrome')
REMEDY = ('No Chromium found for the browser tests: `sudo apt-get install chromium` (Debian, Ubuntu), '
          'or set MMNEURON_CHROMIUM to the path of a Chromium or Chrome binary.')
LOCAL = ('http://127.0.0.1', 'http://localhost', 'ws://127.0.0.1', 'ws://localhost', 'file:', 'data:', 'blob:',
         'about:')


def chromium_path() -> str:
    asked = os.environ.get('MMNEURON_CHROMIUM')
    found = shutil.which(asked) if asked else next((p for n in NAMES if (p := shutil.which(n))), None)
    wrong = f'MMNEURON_CHROMIUM={asked!r} is not a program. ' if asked else ''
    if not found: pytest.fail(wrong + REMEDY, pytrace=False)
    return found


@pytest.fixture(scope='session')
def browser():
    try: from playwright.sync_api import sync_playwright
    except ImportError:
        pytest.fail('The browser tests need playwright: `pip install playwright`, without its browsers.', pytrace=False)
    path = chromium_path()
    with sync_playwright() as p:
        args = ['--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage']
        chrome = p.chromium.launch(executable_path=path, args=args)
        yield chrome
        chrome.close()


class Watch:
    "What a page asked of the network and complained about."

    def __init__(self, page, known=()):
        self.outside, self.errors, self.known = [], [], known
        page.on('request', lambda r: None if r.url.startswith(LOCAL) else self.outside.append(r.url))
        page.on('websocket', lambda w: None if w.url.startswith(LOCAL) else self.outside.append(w.url))
        page.on('console', lambda m: self.error(m.text) if m.type == 'error' else None)
        page.on('pageerror', lambda e: self.error(str(e)))

    def error(self, text):
        if not any(k in text for k in self.known): self.errors.append(text)

    def check(self):
        assert not self.outside, f'requests left the machine: {self.outside[:5]}'
        assert not self.errors, f'console errors: {self.errors[:5]}'


OVERLAPS = """gd => {
    const seen = e => e.textContent.trim() && e.getBoundingClientRect().width > 0
                      && getComputedStyle(e).visibility != 'hidden';
    const turned = e => /rotate\\((?!0|-?90)/.test(e.getAttribute('transform') || '');
    const all = [...gd.querySelectorAll('.main-svg text')].filter(seen), out = [];
    const bar = gd.querySelector('.modebar');
    if (bar) all.push(bar);
    for (let i = 0; i < all.length; i++) for (let j = 0; j < i; j++) {
        if (turned(all[i]) && turned(all[j])) continue;
        const a = all[i].getBoundingClientRect(), b = all[j].getBoundingClientRect();
        const w = Math.min(a.right, b.right) - Math.max(a.left, b.left);
        const h = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
        if (w > 2 && h > 2) out.push((all[i].textContent.trim() || 'buttons') + ' / ' + all[j].textContent.trim()) }
    return out }"""


def overprints(chart) -> list:
    "Pairs of texts of a chart, and its buttons, that stand on one another."
    return chart.evaluate(OVERLAPS)


WAYS_OUT = """root => {
    const say = e => e.dataset.title || e.getAttribute('aria-label') || e.title || e.textContent.trim();
    const links = [...root.querySelectorAll('a[href]')].filter(a => !a.getAttribute('href').startsWith('#'));
    const buttons = [...root.querySelectorAll('.modebar-btn, .js-plotly-plot button')];
    return [...links.map(a => a.getAttribute('href')), ...buttons.map(say)] }"""


def ways_out(root) -> list:
    "Links that leave the page, and what the buttons of its charts do apart from saving a picture."
    return [text for text in root.evaluate(WAYS_OUT) if text != 'Download plot as a PNG']


@pytest.fixture(scope='session')
def lab(tmp_path_factory):
    "A JupyterLab of its own: (address with %s for the notebook, folder that it serves)."
    home, token = tmp_path_factory.mktemp('lab'), 'browser-test'
    work = home / 'work'
    work.mkdir()
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    settings = home / 'settings'
    for plugin, values in (('notebook-extension/tracker', dict(windowingMode='none')),
                           ('apputils-extension/notification', dict(fetchNews='false', checkForUpdates=False))):
        f = settings / '@jupyterlab' / f'{plugin}.jupyterlab-settings'
        f.parent.mkdir(parents=True, exist_ok=True)
        f.write_text(json.dumps(values))
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get('PYTHONPATH')])])
    env = dict(os.environ, PYTHONPATH=path, JUPYTER_CONFIG_DIR=str(home / 'config'),
               JUPYTER_DATA_DIR=str(home / 'data'), JUPYTER_RUNTIME_DIR=str(home / 'runtime'),
               IPYTHONDIR=str(home / 'ipython'),
               JUPYTERLAB_SETTINGS_DIR=str(settings), JUPYTERLAB_WORKSPACES_DIR=str(home / 'workspaces'))
    log = open(home / 'lab.log', 'w')
    root = ['--allow-root'] if hasattr(os, 'geteuid') and os.geteuid() == 0 else []
    args = [sys.executable, '-m', 'jupyterlab', '--no-browser', '--ip=127.0.0.1', f'--port={port}', *root,
            '--ServerApp.port_retries=0', f'--IdentityProvider.token={token}', f'--ServerApp.root_dir={work}',
            '--LabApp.expose_app_in_browser=True', '--LabApp.extension_manager=readonly',
            '--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate']
    server = subprocess.Popen(args, env=env, stdout=log, stderr=subprocess.STDOUT, cwd=work)
    try:
        for _ in range(240):
            if server.poll() is not None: break
            try: urllib.request.urlopen(f'http://127.0.0.1:{port}/api?token={token}', timeout=2); break
            except OSError: time.sleep(.5)
        if server.poll() is not None:
            pytest.fail(f'JupyterLab did not start: {(home / "lab.log").read_text()[-1500:]}', pytrace=False)
        yield f'http://127.0.0.1:{port}/lab/tree/%s?token={token}', work
    finally:
        server.terminate()
        try: server.wait(20)
        except subprocess.TimeoutExpired: server.kill()
        log.close()
