"Saved dashboards and the report, opened from disk in Chromium: both themes, a narrow window, the keyboard, no request."
from dataclasses import dataclass
import numpy as np, pytest
from PIL import Image
from conftest import SHOTS, Watch, overprints, ways_out
from mmneuron_nb.dashboards import HistogramDashboard, LayerDashboard
from mmneuron_nb.names import TYPES
from mmneuron_nb.neurons.table import P_COLUMNS
from mmneuron_nb.views.report import write_report
from mmneuron_nb.views.summaries import synthetic_table


@dataclass
class Row:
    neuron: tuple
    rank: int
    sample_id: str
    values: np.ndarray
    max: float
    tokens: list
    roles: np.ndarray
    boxes: list
    image: object


def made_up(neuron, rank, seed):
    rng = np.random.default_rng(seed)
    im = Image.fromarray(rng.integers(0, 255, (6, 8, 3), np.uint8)).resize((224, 168), Image.Resampling.BICUBIC)
    boxes = [(28 + 14 * x, 14 * y, 42 + 14 * x, 14 * y + 14) for y in range(12) for x in range(12)]
    words = 'What is in the picture ? The image features a red ball and a small dog near a traffic light .'.split()
    v = rng.gamma(.4, 1., 144 + len(words)).astype(np.float32)
    roles = np.array([1] * 144 + [2] * 6 + [3] * (len(words) - 6), np.uint8)
    tokens = ['<image>'] * 144 + [f' {w}' for w in words]
    return Row(neuron, rank, f'scene-{seed}', v, float(v.max() * 1.05), tokens, roles, boxes + [None] * len(words), im)


@pytest.fixture(scope='module')
def pages(tmp_path_factory):
    "The three pages, written once."
    d, table = tmp_path_factory.mktemp('pages'), synthetic_table()
    top = {t: table[table.type == t].nlargest(5, c).index for t, c in zip(TYPES, P_COLUMNS)}
    exemplars = {t: [[made_up(k, r, 100 * i + r) for r in range(3)] for i, k in enumerate(ks)]
                 for t, ks in top.items() if t != 'unknown'}
    facts = {'model': 'made up', 'samples': 300, 'seconds': 41.5, 'neurons per second': 12_345.6,
             'recording over plain forward': '1.12x', 'options': dict(top=50, n_v=4, T_v=2, n_t=2, T_t=3),
             'versions': dict(torch='2.13', transformers='5.23')}
    fine = HistogramDashboard(table, bins=200, log=True, share=True)
    return dict(report=write_report(d / 'report.html', table, exemplars, facts),
                histogram=HistogramDashboard(table).save_html(d / 'histogram.html'),
                fine=fine.save_html(d / 'fine.html'), top=LayerDashboard(table).save_html(d / 'top.html'),
                layers=LayerDashboard(table, view='shares').save_html(d / 'layers.html'))


@pytest.mark.parametrize('name', ['report', 'histogram', 'fine', 'top', 'layers'])
@pytest.mark.parametrize('look', ['light', 'dark', 'narrow'])
def test_page(browser, pages, name, look):
    width, scheme = 380 if look == 'narrow' else 1150, 'dark' if look == 'dark' else 'light'
    page = browser.new_page(viewport=dict(width=width, height=900), color_scheme=scheme)
    page.set_default_timeout(120_000)
    watch = Watch(page)
    page.goto(pages[name].as_uri())
    if name != 'report':
        page.locator('.js-plotly-plot .bars path').first.wait_for(state='attached')
        ink = 'rgb(242, 242, 242)' if look == 'dark' else 'rgb(26, 26, 26)'
        follows = "ink => getComputedStyle(document.querySelector('.annotation-text')).fill == ink"
        page.wait_for_function(follows, arg=ink)
        chart = page.locator('.js-plotly-plot')
        chart.hover()                   # the buttons show themselves
        assert not overprints(chart), 'texts stand on one another'
    SHOTS.mkdir(exist_ok=True)
    page.screenshot(path=SHOTS / f'page_{name}_{look}.png')
    assert page.evaluate('document.documentElement.scrollWidth <= window.innerWidth'), 'the page scrolls sideways'
    if name == 'report':    # the ink of the charts is the page's
        ink = page.locator('figure > svg text').first.evaluate('e => getComputedStyle(e).fill')
        assert ink == ('rgb(240, 240, 240)' if look == 'dark' else 'rgb(26, 26, 26)')
    paper = page.evaluate('getComputedStyle(document.body).backgroundColor')
    assert paper == ('rgb(20, 20, 20)' if look == 'dark' else 'rgb(255, 255, 255)')
    assert page.locator('h1').count() == 1 and page.locator('html').get_attribute('lang') == 'en'
    assert page.locator('table caption').count() >= 1
    assert page.locator('img:not([alt])').count() == 0
    assert not ways_out(page.locator('body')), 'something leads away from the page'
    watch.check()
    page.close()


def test_layers_stay_layers(browser, pages):
    "New heights for a type do not turn the names of layers into numbers, with ticks at half layers."
    page = browser.new_page(viewport=dict(width=1150, height=900))
    page.goto(pages['top'].as_uri())
    page.locator('.js-plotly-plot .bars path').first.wait_for(state='attached')
    shown = page.evaluate("""Plotly.update('chart', {y: [[1, 2, 3, 4, 5, 6, 7, 8]]}, {}, [0]).then(gd =>
        [gd._fullLayout.xaxis.type, [...gd.querySelectorAll('.xtick text')].map(t => t.textContent).join(' ')])""")
    assert shown == ['category', '0 1 2 3 4 5 6 7']
    page.close()


def test_no_way_out_is_seen(browser, tmp_path):
    "The search for ways out finds plotly's own: by default a page has a logo that is a link and a button that uploads."
    import plotly.graph_objects as go
    go.Figure(go.Bar(y=[1])).write_html(tmp_path / 'plain.html', config=dict(showSendToCloud=True))
    page = browser.new_page()
    page.goto((tmp_path / 'plain.html').as_uri())
    page.locator('.modebar-btn').first.wait_for(state='attached')
    found = ways_out(page.locator('body'))
    assert 'https://plotly.com/' in found and any('Share' in text or 'Cloud' in text for text in found), found
    page.close()


def test_report_by_keyboard(browser, pages):
    "Tab reaches the skip link, the types and the table; a link goes to its section; the file is small enough to mail."
    assert pages['report'].stat().st_size < 3_000_000
    page = browser.new_page(viewport=dict(width=1150, height=900))
    page.goto(pages['report'].as_uri())
    seen = []
    for _ in range(11):
        page.keyboard.press('Tab')
        focus = 'document.activeElement'
        seen.append(page.evaluate(f'{focus}.getAttribute("href") || {focus}.getAttribute("aria-label")'))
    assert seen[:9] == ['#main', '#types', '#chart0', '#chart1', '#chart2', *(f'#{t}' for t in TYPES)]
    assert 'Table of types' in seen
    page.locator('nav a[href="#text"]').focus()
    page.keyboard.press('Enter')
    page.wait_for_function("() => Math.abs(document.querySelector('#text').getBoundingClientRect().top) < 200")
    page.screenshot(path=SHOTS / 'page_report_neurons.png')
    more = page.locator('details:not(.words-used)').first
    assert not more.locator('.mm-card').first.is_visible()
    assert 'more visual neurons: lm.L' in more.locator('summary').text_content()
    more.locator('summary').focus()
    page.keyboard.press('Enter')
    assert more.locator('.mm-card').first.is_visible()
    assert page.locator('#unknown ~ p').filter(has_text='No tokens of such a neuron').count() == 1
    page.emulate_media(media='print')
    folded = [d.locator('.mm-card').last for d in page.locator('details:not(.words-used)').all()]
    folded.append(page.locator('.words-used dd').last)
    assert all(e.is_visible() for e in folded), 'paper has no clicks: all is open'
    page.screenshot(path=SHOTS / 'page_report_print.png')
    page.close()
