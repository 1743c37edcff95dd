"Saved dashboards and the report, opened from disk in Chromium: both themes, a narrow window, the keyboard, no request to anywhere."
from dataclasses import dataclass
import numpy as np, pytest
from PIL import Image
from conftest import SHOTS, Watch
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
    words = ' What is in the picture ? The image features a red ball and a small dog near a traffic light .'.split(' ')[1:]
    v = rng.gamma(.4, 1., 144 + len(words)).astype(np.float32)
    roles = np.array([1] * 144 + [2] * 6 + [3] * (len(words) - 6), np.uint8)
    tokens = ['<image>'] * 144 + [f' {w}' for w in words]
    return Row(neuron, rank, f'scene-{seed}', v, float(v.max() * 1.05), tokens, roles, boxes + [None] * len(words), im)


@pytest.fixture(scope='module')
def pages(tmp_path_factory):
    "The three pages, written once."
    d, table = tmp_path_factory.mktemp('pages'), synthetic_table()
    top = {t: table[table.type == t].nlargest(5, c).index for t, c in zip(TYPES, P_COLUMNS)}
    exemplars = {t: [[made_up(k, r, 100 * i + r) for r in range(3)] for i, k in enumerate(ks)] for t, ks in top.items() if t != 'unknown'}
    facts = {'model': 'made up', 'samples': 300, 'seconds': 41.5, 'neurons per second': 12_345.6, 'recording over plain forward': '1.12x',
             'options': dict(top=50, n_v=4, T_v=2, n_t=2, T_t=3), 'versions': dict(torch='2.13', transformers='5.23')}
    return dict(report=write_report(d / 'report.html', table, exemplars, facts), histogram=HistogramDashboard(table).save_html(d / 'histogram.html'),
                layers=LayerDashboard(table, view='shares').save_html(d / 'layers.html'))


@pytest.mark.parametrize('name', ['report', 'histogram', 'layers'])
@pytest.mark.parametrize('look', ['light', 'dark', 'narrow'])
def test_page(browser, pages, name, look):
    page = browser.new_page(viewport=dict(width=380 if look == 'narrow' else 1150, height=900), color_scheme='dark' if look == 'dark' else 'light')
    page.set_default_timeout(120_000)
    watch = Watch(page)
    page.goto(pages[name].as_uri())
    if name != 'report':
        page.locator('.js-plotly-plot .bars path').first.wait_for(state='attached')
        page.wait_for_timeout(500)
        ink = page.locator('.annotation-text').first.evaluate('e => getComputedStyle(e).fill')
        assert ink == ('rgb(242, 242, 242)' if look == 'dark' else 'rgb(26, 26, 26)')
    SHOTS.mkdir(exist_ok=True)
    page.screenshot(path=SHOTS / f'page_{name}_{look}.png')
    assert page.evaluate('document.documentElement.scrollWidth <= window.innerWidth'), 'the page scrolls sideways'
    if name == 'report':    # the ink of the charts is the page's
        ink = page.locator('figure > svg text').first.evaluate('e => getComputedStyle(e).fill')
        assert ink == ('rgb(240, 240, 240)' if look == 'dark' else 'rgb(26, 26, 26)')
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == ('rgb(20, 20, 20)' if look == 'dark' else 'rgb(255, 255, 255)')
    assert page.locator('h1').count() == 1 and page.locator('html').get_attribute('lang') == 'en'
    assert page.locator('table caption').count() >= 1
    assert page.locator('img:not([alt])').count() == 0
    watch.check()
    page.close()


def test_report_by_keyboard(browser, pages):
    "Tab reaches the skip link, the types and the table; a link goes to its section; the file is small enough to send by mail."
    assert pages['report'].stat().st_size < 3_000_000
    page = browser.new_page(viewport=dict(width=1150, height=900))
    page.goto(pages['report'].as_uri())
    seen = []
    for _ in range(11):
        page.keyboard.press('Tab')
        seen.append(page.evaluate('document.activeElement.getAttribute("href") || document.activeElement.getAttribute("aria-label")'))
    assert seen[:9] == ['#main', '#types', '#chart0', '#chart1', '#chart2', *(f'#{t}' for t in TYPES)] and 'Table of types' in seen
    page.locator('nav a[href="#text"]').focus()
    page.keyboard.press('Enter')
    page.wait_for_timeout(300)
    assert page.locator('#text').evaluate('e => Math.abs(e.getBoundingClientRect().top) < 200')
    page.screenshot(path=SHOTS / 'page_report_neurons.png')
    more = page.locator('details:not(.words-used)').first
    assert not more.locator('.mm-card').first.is_visible() and 'more visual neurons: lm.L' in more.locator('summary').text_content()
    more.locator('summary').focus()
    page.keyboard.press('Enter')
    assert more.locator('.mm-card').first.is_visible()
    assert page.locator('#unknown ~ p').filter(has_text='No tokens of such a neuron').count() == 1
    page.emulate_media(media='print')
    assert all(d.locator('.mm-card').last.is_visible() for d in page.locator('details:not(.words-used)').all()) and page.locator('.words-used dd').last.is_visible(), 'paper has no clicks: all is open'
    page.screenshot(path=SHOTS / 'page_report_print.png')
    page.close()
