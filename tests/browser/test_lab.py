"""A real JupyterLab in a real Chromium: open the tour, run it, work the dashboards by keyboard, reload.

The notebook is `nbs/tutorials/01_tour.ipynb`, or what MMNEURON_TOUR names; it shows one HistogramDashboard and one
LayerDashboard."""
import itertools, json, os, shutil, time
from pathlib import Path
import pytest
from conftest import ROOT, SHOTS, Watch, overprints, ways_out

TOUR = Path(os.environ.get('MMNEURON_TOUR', ROOT / 'nbs/tutorials/01_tour.ipynb'))
KNOWN = ()                  # errors that JupyterLab itself writes to the console: exact words and reason
SECONDS = 1000 * float(os.environ.get('MMNEURON_PATIENCE', 1))      # times to wait, in ms; a busy machine may need 5


@pytest.fixture(scope='module')
def notebook(lab):
    "The tutorials, copied, so that running them leaves the repository as it is."
    if not TOUR.exists(): pytest.fail(f'No notebook at {TOUR}: set MMNEURON_TOUR.', pytrace=False)
    skip = shutil.ignore_patterns('.ipynb_checkpoints')
    shutil.copytree(TOUR.parent, lab[1] / 'tour', ignore=skip, dirs_exist_ok=True)
    return f'tour/{TOUR.name}'


def command(page, name, **args):
    return page.evaluate('([n, a]) => window.jupyterapp.commands.execute(n, a)', [name, args])


WORKSPACES = (f'page-{k}' for k in itertools.count())


def open_lab(page, address):
    page.set_default_timeout(120 * SECONDS)
    # a workspace of its own: JupyterLab opens what the last page had open as well, and either may come to the front
    page.goto(address.replace('/lab/', f'/lab/workspaces/{next(WORKSPACES)}/'))
    now, name = 'window.jupyterapp?.shell?.currentWidget?.sessionContext', address.split('?')[0].rsplit('/', 1)[1]
    front = f'{now}?.path?.endsWith({json.dumps(name)}) && {now}?.session?.kernel?.connectionStatus == "connected"'
    page.wait_for_function(f'() => {front}', timeout=120 * SECONDS)
    # before the widget manager listens, widgets are lost on their way
    listens = f'() => "jupyter.widget" in ({now}.session?.kernel?._targetRegistry || {{}})'
    page.wait_for_function(listens, timeout=120 * SECONDS)
    page.evaluate('() => window.jupyterapp.shell.collapseLeft()')


CELLS = 'window.jupyterapp.shell.currentWidget.content.widgets.map(c => c.model).filter(m => m.type == "code")'


def run_all(page):
    "Runs every cell; fails with the first error in the notebook."
    page.evaluate(f'() => {CELLS}.forEach(m => m.executionCount = null)')
    command(page, 'notebook:run-all-cells')
    error = f'{CELLS}.flatMap(m => m.outputs.toJSON()).find(o => o.output_type == "error")'
    done = f'{CELLS}.every(m => m.executionCount !== null || !m.sharedModel.getSource().trim())'
    page.wait_for_function(f'() => {error} || {done}', timeout=300 * SECONDS)
    wrong = page.evaluate(f'() => {{ const o = {error}; return o ? o.ename + ": " + o.evalue : null }}')
    assert wrong is None, f'the notebook failed: {wrong}'


class Board:
    "One dashboard on the page, found by the name of one of its controls."

    def __init__(self, page, label):
        self.page = page
        outputs = page.locator('.jp-OutputArea-output').filter(has=page.locator('.js-plotly-plot'))
        self.box = outputs.filter(has=page.get_by_label(label, exact=True)).first
        self.box.locator('.js-plotly-plot .bars path').first.wait_for(state='attached', timeout=120 * SECONDS)

    def control(self, label): return self.box.get_by_label(label, exact=True)
    def words(self): return self.box.locator('p[role=status]').text_content()
    def texts(self): return ' | '.join(self.box.locator('.js-plotly-plot svg text').all_text_contents())
    def chart(self, js): return self.box.locator('.js-plotly-plot').evaluate(f'(gd) => {js}')

    def tab_to(self, label, start='module'):
        "Reaches a control with the Tab key alone, from the first control of the dashboard."
        self.box.scroll_into_view_if_needed()
        self.control(start).focus()
        for _ in range(15):
            if self.control(label).evaluate('e => e === document.activeElement'): return
            self.page.keyboard.press('Tab')
        raise AssertionError(f'{label!r} cannot be reached with the Tab key')

    def until(self, check, what):
        end = time.monotonic() + 60 * SECONDS / 1000
        while time.monotonic() < end:
            if check(): return
            self.page.wait_for_timeout(150)
        raise AssertionError(f'{what}; the words: {self.words()!r}; the chart: {self.texts()[:600]!r}')


def in_step(histogram, layers):
    "Controls, chart, words and table say the same."
    assert float(histogram.control('threshold').input_value()) == .5
    histogram.until(lambda: 'above 0.5' in histogram.texts(), 'the histogram does not show the threshold')
    assert histogram.chart('gd.layout.shapes[0].x0') == .5
    assert 'Above p = 0.5' in histogram.words()
    assert 'p > 0.5' in histogram.box.locator('table thead').first.text_content()
    assert layers.control('show').evaluate('e => e.selectedOptions[0].text').split()[:2] == ['types', 'of']
    stacked = 'gd._fullData.filter(t => t.visible === true).length == 4 && gd.data[4].visible === true'
    layers.until(lambda: layers.chart(stacked), 'the layers are not stacked')
    for name in ('neurons per type', 'height', 'ties at the cut'):
        assert layers.control(name).is_disabled(), f'{name!r} would change nothing in the stacked view'
    assert layers.words().startswith('Share of each type per layer')
    assert 'types of' in layers.texts() and 'by layer' in layers.texts()


def lab_ink(page):
    "The colour of text in JupyterLab's theme."
    return page.evaluate("""() => {
        const p = document.createElement('p');
        p.style.color = 'var(--jp-ui-font-color1)';
        document.body.append(p);
        return getComputedStyle(p).color }""")


def shot(page, name, board=None):
    SHOTS.mkdir(exist_ok=True)
    (board.box if board else page).screenshot(path=SHOTS / f'{name}.png')


def test_tour_by_keyboard(browser, lab, notebook):
    page = browser.new_page(viewport=dict(width=1280, height=1000))
    watch, address = Watch(page, KNOWN), lab[0] % notebook
    open_lab(page, address)
    run_all(page)
    histogram, layers = Board(page, 'bins'), Board(page, 'neurons per type')
    shot(page, 'lab_page_light'), shot(page, 'lab_histogram_light', histogram), shot(page, 'lab_layers_light', layers)

    for board in (histogram, layers):
        assert board.chart('gd._fullLayout.width') > 900, 'the chart is narrower than its box'
        assert not ways_out(board.box), 'something leads away from the notebook'
        scrolls = 'e => e.scrollHeight > e.clientHeight + 1 && getComputedStyle(e).overflowY != "visible"'
        tables = board.box.locator('.widget-html, .widget-html-content, [role=region]')
        assert not any(t.evaluate(scrolls) for t in tables.all()), 'a scroll bar inside a table'
    assert 'Above p = 0.8' in histogram.words() and 'above 0.8' in histogram.texts()
    histogram.tab_to('threshold')
    page.keyboard.press('Control+A'), page.keyboard.type('0.5'), page.keyboard.press('Tab')
    histogram.until(lambda: 'Above p = 0.5' in histogram.words(), 'the words do not follow the threshold')

    assert layers.words().startswith('Top ')
    layers.tab_to('height')
    page.keyboard.press('ArrowDown')
    layers.until(lambda: 'share of the top neurons' in layers.texts(), 'the chart does not follow the height')
    assert layers.chart('gd._fullLayout.xaxis.type') == 'category', 'layers have become numbers'
    shot(page, 'lab_layers_selected_light', layers)
    layers.tab_to('show')
    page.keyboard.press('ArrowDown')
    layers.until(lambda: layers.words().startswith('Share'), 'the words do not follow the list')
    in_step(histogram, layers)
    shot(page, 'lab_layers_stacked_light', layers)
    cells = page.evaluate('() => window.jupyterapp.shell.currentWidget.content.widgets.length')
    histogram.tab_to('shares')
    page.keyboard.press('Space')
    histogram.until(lambda: 'share of the neurons' in histogram.texts(), 'the chart does not follow the tick')
    histogram.tab_to('show')
    page.keyboard.press('d'), page.keyboard.press('d')  # JupyterLab's shortcut for deleting a cell stays out
    assert page.evaluate('() => window.jupyterapp.shell.currentWidget.content.widgets.length') == cells

    command(page, 'docmanager:save')
    open_lab(page, address)                             # the reload: a new page, the same kernel
    histogram, layers = Board(page, 'bins'), Board(page, 'neurons per type')
    in_step(histogram, layers)
    histogram.tab_to('bins')                            # and it is alive
    page.keyboard.press('Control+A'), page.keyboard.type('10'), page.keyboard.press('Tab')
    histogram.until(lambda: histogram.chart('gd.data[0].x.length') == 10, 'the chart does not follow after a reload')

    command(page, 'apputils:change-theme', theme='JupyterLab Dark')
    page.wait_for_function("() => document.body.dataset.jpThemeLight == 'false'")
    paper = histogram.box.locator('.js-plotly-plot .main-svg').first
    paper = paper.evaluate('e => getComputedStyle(e).backgroundColor')
    ink = histogram.box.locator('.js-plotly-plot .annotation-text').first
    follows = lambda: ink.evaluate('e => getComputedStyle(e).fill') == lab_ink(page)
    histogram.until(follows, 'the text is not that of the theme')
    assert paper == 'rgba(0, 0, 0, 0)'
    shot(page, 'lab_page_dark'), shot(page, 'lab_histogram_dark', histogram), shot(page, 'lab_layers_dark', layers)
    watch.check()
    page.close()


def test_controls_have_names(browser, lab, notebook):
    "Every control of both dashboards has a label that a screen reader can say."
    page = browser.new_page(viewport=dict(width=1280, height=1000))
    open_lab(page, lab[0] % notebook)
    for name in ('bins', 'neurons per type'):
        board = Board(page, name)
        fields = board.box.locator('.widget-vbox input, .widget-vbox select')
        assert fields.count() >= 8
        for i in range(fields.count()):
            label = fields.nth(i).evaluate('e => [...e.labels].map(l => l.textContent.trim()).join("")')
            assert label, f'control {i} beside {name!r} has no label'
        assert board.box.locator('table caption').count() >= 1 and board.box.locator('th[scope=row]').count() > 4
    page.close()


def test_narrow(browser, lab, notebook):
    "In a narrow column nothing is printed over anything else: the chart scrolls sideways in its box."
    page = browser.new_page(viewport=dict(width=560, height=1000))
    open_lab(page, lab[0] % notebook)
    for name in ('bins', 'neurons per type'):
        board = Board(page, name)
        chart = board.box.locator('.js-plotly-plot')
        chart.scroll_into_view_if_needed()
        board.until(lambda: board.chart('gd._fullLayout.width') >= 640, 'the chart is squeezed')
        assert board.box.locator('.mm-picture').evaluate('e => e.clientWidth') < 640, 'the column is not narrow'
        chart.hover()
        assert not overprints(chart), f'texts of {name!r} stand on one another'
        shot(page, f'lab_narrow_{name[:4]}', board)
    page.close()


GAPS = """
import numpy as np, plotly.graph_objects as go
from mmneuron_nb.dashboards.base import Dashboard
from mmneuron_nb.dashboards.controls import IntTrait, number_box
from mmneuron_nb.views.browser import browser_safe

class Gaps(Dashboard):
    k = IntTrait(0, help='how often drawn')
    def draw(self, theme=None):
        z = np.array([[1., np.nan], [np.inf, self.k]])
        masked = browser_safe(np.ma.array([1., 2., 3.], mask=[0, 1, 0]))
        bars = go.Bar(x=['a', 'b', 'c'], y=masked, customdata=[2 ** 60 + self.k, 1, 2], xaxis='x2', yaxis='y2')
        layout = dict(xaxis=dict(domain=[0, .45]), xaxis2=dict(domain=[.55, 1]), yaxis2=dict(anchor='x2'))
        return go.Figure([go.Heatmap(z=z, customdata=[[float('-inf'), 7], [8, 9]]), bars], layout)
    def controls(self): return dict(k=number_box('times', self.k, 0, 9))

Gaps()
"""


def test_numbers_that_leave(browser, lab):
    "NaN, infinite and masked numbers are gaps in the browser, ids beyond 2^53 keep their digits; drawn anew as well."
    cell = dict(cell_type='code', id='gaps', metadata={}, outputs=[], execution_count=None, source=GAPS.strip())
    kernel = dict(kernelspec=dict(name='python3', display_name='python3', language='python'))
    (lab[1] / 'gaps.ipynb').write_text(json.dumps(dict(cells=[cell], metadata=kernel, nbformat=4, nbformat_minor=5)))
    page = browser.new_page(viewport=dict(width=1280, height=1000))
    open_lab(page, lab[0] % 'gaps.ipynb')
    run_all(page)
    board = Board(page, 'times')
    for k in (0, 5):
        if k:
            board.tab_to('times', 'colours')
            page.keyboard.press('Control+A'), page.keyboard.type(str(k)), page.keyboard.press('Tab')
        board.until(lambda: board.chart('gd.data[0].z[1][1]') == k, 'the chart does not follow')
        assert board.chart('gd.data[0].z') == [[1, None], [None, k]]
        assert board.chart('gd.data[0].customdata') == [[None, 7], [8, 9]]
        assert board.chart('Number.isNaN(gd.data[1].y[1]) || gd.data[1].y[1] === null')
        assert board.chart('gd.data[1].y[2]') == 3
        assert board.chart('[...gd.data[1].customdata]') == [str(2 ** 60 + k), '1', '2']
    page.close()
