"""The HTML report in a real Chromium: what it shows, light and dark, and that it fetches and runs nothing."""

import re
import sys
from functools import cache

import pytest
from kit import needs
from kit.browser import CHROMIUM, Browser
from kit.runs import URL, make_empty, make_errors, make_run, make_sweep

from virtex.load import plots
from virtex.load.document import as_html
from virtex.load.fit import Cost, Settings
from virtex.load.report import Report, Sizes
from virtex.load.tuned import Tried, Tuned
from virtex.load.tuned import as_html as tuned_html

needs.library("matplotlib")

SIZES = Sizes((1.0, 2.0, 4.0, 8.0), (10, 20, 30, 5, 0), 200.0)
HOSTILE = URL + """<script>document.title="owned"</script><img/src=x/onerror=document.title='owned'>?"'&$title"""


def hostile():
    run = make_run(url=HOSTILE, headers={"x-a": "<script>alert(1)</script>"}, errors={"<b>5xx</b>": 5})
    run.why_not, run.client_kept_rate = "<script>late</script>", False
    run.machine = {"cpu": "<img src=http://127.0.0.1:1/x>"}
    return run


def tuned():
    settings = [Settings(64, 0.005, "inline"), Settings(128, 0.0, "thread"), Settings(32, 0.0, "thread")]
    runs = make_sweep()
    tried = [Tried(settings[0], 2000.0, runs[:6], runs[3]), Tried(settings[1], 5000.0, runs[2:], runs[4])]
    tried.append(Tried(settings[2], 4000.0, failed="TypeError: <script>"))
    return Tuned("server:app", 0.05, settings[0], [(1, 0.005), (64, 0.011)], Cost(0.005, 0.0001), tried)


PAGES = {
    "run": lambda: as_html(Report("run", [make_run(seconds=20, errors={"timeout": 100})], SIZES, slo=0.05, best=0)),
    "closed": lambda: as_html(Report("run", [make_run(rate=None, connections=8)])),
    "sweep": lambda: as_html(Report("sweep", make_sweep(), SIZES)),
    "search": lambda: as_html(Report("search", make_sweep(), slo=0.05, best=4)),
    "empty": lambda: as_html(Report("run", [make_empty()])),
    "errors": lambda: as_html(Report("run", [make_errors()], slo=0.05, interrupted=True)),
    "sweep of errors": lambda: as_html(Report("sweep", [make_errors(), make_errors()])),
    "one second": lambda: as_html(Report("run", [make_run(10.0, seconds=1)])),
    "hostile": lambda: as_html(Report("run", [hostile()])),
    "tuned": lambda: tuned_html(tuned()),
    "tuned, nothing": lambda: tuned_html(Tuned("server:app", 0.05)),
}
PAGES = {name: cache(made) for name, made in PAGES.items()}  # drawing takes long
in_a_browser = pytest.mark.skipif(not CHROMIUM, reason="Chromium is not installed")


@pytest.fixture(scope="module")
def browser():
    with Browser() as browser:
        yield browser


@pytest.fixture
def show(browser, tmp_path):
    """Open a page as a file, as who got it by mail would."""

    def open_page(text):
        path = tmp_path / "report.html"
        path.write_text(text)
        browser.resize(1280, 900)
        browser.open(path.as_uri())
        browser.until("document.readyState === 'complete' && document.querySelector('h1') !== null")
        assert browser.requested == [path.as_uri()] and browser.said == []
        return browser

    return open_page


@in_a_browser
@pytest.mark.parametrize("name", PAGES)
def test_a_page_fetches_nothing_and_breaks_no_rule(name, show):
    page = show(PAGES[name]())
    assert page.value("document.scripts.length") == 0
    assert page.value("document.documentElement.scrollWidth <= document.documentElement.clientWidth")


@in_a_browser
def test_a_run_has_its_figures_and_plots(show):
    page = show(PAGES["run"]())
    assert page.text("h1") == URL
    heads = page.value("[...document.querySelectorAll('h2')].map(each => each.textContent)")
    assert heads[:4] == [
        *("Percentiles", "Latency by percentile", "Response time, second by second", "Batches of the service"),
    ]
    assert page.value("[...document.querySelectorAll('svg title')].length") == 3
    assert "99.99 %" in page.text("main") and "46%" in page.text("main")
    assert page.text(".said .bad") == "errors: timeout 100" and page.text(".said .good") == "held: p99 of 50.0 ms"


@in_a_browser
def test_a_sweep_has_its_curve_with_the_knee_marked_and_the_rule_named(show):
    page = show(PAGES["sweep"]())
    curve = "document.querySelector('section:has(svg)')"
    assert page.value(f"{curve}.querySelector('h2').textContent") == "Latency over throughput"
    assert "knee" in page.value(f"[...{curve}.querySelectorAll('svg text')].map(each => each.textContent)")
    assert "Kneedle; Satopaa" in page.text("main")
    assert page.value("document.querySelectorAll('table tr').length") == 8


@in_a_browser
def test_what_users_and_services_wrote_is_text(show):
    page = show(PAGES["hostile"]())
    assert page.text("h1") == HOSTILE and page.value("document.title") == HOSTILE
    assert page.value("document.images.length") == 0
    assert "<script>late</script>" in page.text(".said") and "<b>5xx</b>" in page.text(".said")
    assert "<img src=http://127.0.0.1:1/x>" in page.text("main")
    assert "alert(1)" not in page.value("document.documentElement.outerHTML")


@in_a_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_can_be_read_in_both_schemes(scheme, show, browser):
    """WCAG 2.2, 1.4.3: 4.5 to 1, for what stands in the plots too."""
    browser.prefer(scheme)
    try:
        page = show(PAGES["sweep"]())
        background, colours = page.value("""(() => {
            const numbers = text => text.match(/[\\d.]+/g).slice(0, 3).map(Number)
            const card = getComputedStyle(document.querySelector('.card')).backgroundColor
            const texts = [...document.querySelectorAll('.card *')].filter(each =>
                each.matches('text, dt, dd, td, th, h2, p') && each.textContent.trim())
            const colour = each => getComputedStyle(each)[each.matches('text') ? 'fill' : 'color']
            return [numbers(card), [...new Set(texts.map(colour))].map(numbers)]
        })()""")
    finally:
        browser.prefer("light")
    assert len(colours) >= 2 and (sum(background) > 384) == (scheme == "light")
    assert min(contrast(colour, background) for colour in colours) >= 4.5


def contrast(one, other):
    """https://www.w3.org/TR/WCAG22/#dfn-contrast-ratio"""
    bright = sorted((luminance(one), luminance(other)))
    return (bright[1] + 0.05) / (bright[0] + 0.05)


def luminance(colour):
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (each / 255 for each in colour)]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@in_a_browser
def test_on_a_phone_nothing_is_wider_than_the_screen(show):
    page = show(PAGES["sweep"]())
    page.resize(360, 800)
    page.until("innerWidth === 360")
    assert page.value("document.documentElement.scrollWidth") <= 360


@in_a_browser
def test_a_tuning_shows_the_line_to_paste_and_what_was_tried(show):
    page = show(PAGES["tuned"]())
    assert page.text("pre") == 'http_server(..., max_batch_size=128, max_time_on_queue=0, executor="thread")'
    assert page.value("document.querySelectorAll('table tr').length") == 4
    assert "the app's own" in page.text("table") and "does not start" in page.text("table")


# ---- without a browser


def test_the_plots_of_a_page_have_no_id_in_common():
    ids = re.findall(r'\bid="([^"]+)"', PAGES["sweep"]())
    assert ids and len(ids) == len(set(ids))


def test_every_colour_of_a_plot_is_one_of_the_page():
    text = PAGES["sweep"]()
    body = text.partition("<body>")[2]
    assert set(re.findall(r"var\(--(\w+)\)", body)) >= {"ink", "soft", "line", "a", "b", "c"}
    assert re.findall(r"#[0-9a-fA-F]{6}\b", body) == []
    assert "http://www.w3.org" in body and not re.findall(r"(?:href|src)=\"(?!#)", body)


def test_the_page_is_small():
    assert len(PAGES["sweep"]()) < 100_000


def test_without_matplotlib_the_report_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    plots.needed.cache_clear()
    with pytest.raises(ImportError, match=r"an HTML report needs matplotlib: install the extra \[loadtest\]"):
        as_html(Report("run", [make_run()]))
    plots.needed.cache_clear()
