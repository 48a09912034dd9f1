"""The status page in a real Chromium: what it shows, what it asks for, and that it does nothing else."""

import contextlib
import http.client
import json
import os
import signal
import threading

import pytest
from kit.browser import CHROMIUM, Browser
from kit.servers import serving, until

pytestmark = pytest.mark.skipif(not CHROMIUM, reason="Chromium is not installed")

NAME = """digits <script>document.title = "owned"</script><img src=x onerror="document.title = 'owned'">"""
DIGITS = f"""
import numpy as np
from virtex import Tensor, TensorHandler, http_server

class Digits(TensorHandler):
    inputs = Tensor("float32", (8, 8))
    outputs = Tensor("int64")

    def run_inference(self, batch):
        for _ in range(200):
            batch = np.tanh(batch)
        return batch.reshape(len(batch), -1).sum(1).astype("int64")

app = http_server(name={NAME!r}, handler=Digits, executor="thread")
"""
GUARDED = """
from virtex import RequestHandler, http_server

class Words(RequestHandler):
    def process_request(self, data):
        return data

    def run_inference(self, words):
        return words

    def process_response(self, word):
        return word

    def example(self):
        return ["it's", 1.5]

def authorize(head):
    return None if (b"authorization", b"Bearer swordfish") in head.headers else 401

app = http_server(name="words", handler=Words, GUARD)
"""
PICTURES = """
from virtex import Content, RequestHandler, Services, http_server

class Pictures(RequestHandler):
    accepts = ("image/*", "multipart/form-data")

    def process_request(self, data):
        return data

    def run_inference(self, files):
        return files

    def process_response(self, file):
        return Content(bytes(file), "image/png")

app = Services(http_server("so so", Pictures, api_key="swordfish"))
"""
SHOWS = "document.querySelectorAll('#tiles dd').length > 0 && samples.length > 1"


@pytest.fixture(scope="module")
def browser():
    with Browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def digits():
    with serving("gunicorn", DIGITS, "--workers", "2") as server:
        server.wait_log("is ready; workers=2", 2)
        yield server


@pytest.fixture
def page(browser, digits):
    """The page of the digits, with its first rates."""
    browser.resize(1280, 900)
    browser.open(f"http://127.0.0.1:{digits.port}/")
    browser.until(f"document.readyState === 'complete' && {SHOWS}")
    return browser


@pytest.fixture
def opened(browser, digits):
    """The page's functions, whatever befell it: it is not opened again for each of them."""
    if browser.value("location.href") != f"http://127.0.0.1:{digits.port}/":
        browser.open(f"http://127.0.0.1:{digits.port}/")
    browser.until("document.readyState === 'complete'")
    return browser


@contextlib.contextmanager
def load(port, body, connections=8):
    """Clients in a loop; who loses its connection makes another."""
    over = threading.Event()

    def ask():
        while not over.is_set():
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            with contextlib.closing(connection), contextlib.suppress(OSError, http.client.HTTPException):
                while not over.is_set():
                    connection.request("POST", "/", body)
                    connection.getresponse().read()

    threads = [threading.Thread(target=ask) for _ in range(connections)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join(60)


def tile(browser, name):
    return browser.value(f"""[...document.querySelectorAll("#tiles .card")]
        .find(card => card.firstChild.textContent === {json.dumps(name)}).lastChild.textContent""")


def workers(browser):
    """Index, process and state of each, as the table shows them."""
    rows = browser.value("[...document.querySelectorAll('#workers tr')].map(tr => tr.innerText.split(/\\s+/))")
    return [(int(index), int(pid), state) for index, pid, state, _ in rows]


def drawn(browser):
    """The y of all that the plots draw, the height of a plot."""
    return browser.value("""[...document.querySelectorAll(".plot path")].flatMap(path =>
        (path.getAttribute("d").match(/ -?[\\d.]+/g) ?? []).map(Number))""")


def test_under_load_it_shows_every_worker_also_one_that_was_killed(page, digits, tmp_path):
    body = json.dumps({"data": json.loads(digits.request("GET", "/")[1])["example"] * 3}).encode()
    with load(digits.port, body):
        page.until("sum(samples.at(-1).metrics.virtex_batch_size.counts) > 100 && samples.length > 3")
        page.until("Number(document.querySelector('#tiles dd').textContent.replaceAll(',', '')) > 0")
        before = workers(page)
        assert sorted(pid for _, pid, _ in before) == sorted(digits.workers())
        assert {state for _, _, state in before} == {"ready"}
        assert page.text("#state") == "ready: 2 of 2 workers"
        victim = before[0]
        os.kill(victim[1], signal.SIGKILL)
        until(lambda: victim[1] not in digits.workers() and len(digits.workers()) == 2, "a successor", digits)
        page.until(f"samples.at(-1)?.workers.every(worker => worker.pid !== {victim[1]} && worker.state === 'ready')")
        page.until("samples.at(-1).workers.length === 2 && samples.length > 3")
        page.until("document.querySelector('#state').textContent === 'ready: 2 of 2 workers'")
        assert [index for index, _, _ in workers(page)] == [0, 1]
        for name in ("requests / s", "items / s", "50 % within", "99 % within", "items a batch"):
            assert tile(page, name)[0] in "0123456789", name
        for width, scheme in ((1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")):
            page.resize(width, 900)
            page.prefer(scheme)
            seen = page.value("samples.at(-1).now")
            page.until(f"samples.at(-1).now > {seen}")
            page.picture(tmp_path / f"{scheme}-{width}.png")
            assert page.value("document.documentElement.scrollWidth <= innerWidth"), "it is wider than the window"
        assert drawn(page) and all(0 <= y <= 144 for y in drawn(page))
    assert page.text("#cuts") and page.text("#sizes") and "run_inference" in page.text("#stages")
    assert page.said == []
    origin = f"http://127.0.0.1:{digits.port}/"
    assert set(page.requested) == {origin, f"{origin}metrics/live"}


def test_a_name_is_text_whatever_it_holds(page):
    assert page.text("h1") == NAME
    assert page.value("document.title") == f"{NAME} · Virtex"
    assert page.value("document.querySelectorAll('h1 *, dd *, td img').length") == 0
    assert page.said == []


def test_the_policy_holds_against_what_slips_in(page):
    for slip in ("document.body.innerHTML += '<img src=x>'", "document.createElement('script').textContent = '0'"):
        assert page.value(f"try {{ {slip}; 'taken' }} catch {{ 'refused' }}") == "refused"
    script = """const style = document.createElement("style");
        style.textContent = "h1 { opacity: .5 }";
        document.head.append(style);
        getComputedStyle(document.querySelector("h1")).opacity"""
    assert page.value(script) == "1"
    assert page.value("fetch('http://127.0.0.2:9/').catch(() => 'refused')") == "refused"
    assert "Content Security Policy" in "".join(page.said)


def test_it_is_dark_where_dark_is_preferred(page):
    background = "getComputedStyle(document.body).backgroundColor"
    page.prefer("light")
    light = page.value(background)
    page.prefer("dark")
    assert (light, page.value(background)) == ("rgb(246, 247, 249)", "rgb(18, 20, 23)")
    page.prefer("light")


def test_the_keyboard_reaches_everything_in_its_order_and_sends_the_example(page):
    order = []
    while "copy" not in order and len(order) < 20:
        page.press("Tab")
        order.append(page.value("document.activeElement.id || document.activeElement.hash"))
    assert order == ["#live", "#try", "#takes", "message", "submit", "file", "curl", "copy"]
    assert page.value("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    example = json.loads(page.value("document.querySelector('#message').value"))
    for _ in range(3):
        page.press("Tab", shift=True)
    assert page.value("document.activeElement.id") == "submit"
    page.press("Enter", "\r")
    page.until("!document.querySelector('#answer').hidden")
    assert page.text("#outcome").startswith("200 in ")
    assert json.loads(page.text("#answer")) == {"data": [0] * len(example["data"]), "error": None}
    assert page.said == []


def test_what_is_sent_can_be_changed_and_a_refusal_is_shown(page):
    page.value("document.querySelector('#message').select(), document.querySelector('#message').focus()")
    page.type('{"data": [[1, "it\'s"]]}')
    assert page.text("#curl").endswith("""--data-binary '{"data": [[1, "it'\\''s"]]}'""")
    page.value("document.querySelector('#send').requestSubmit()")
    page.until("!document.querySelector('#answer').hidden")
    assert page.text("#outcome").startswith("422 in ")
    assert json.loads(page.text("#answer"))["error"]


@pytest.mark.parametrize("guard", ["authorize=authorize", 'api_key="swordfish"'])
def test_it_asks_for_a_key_where_one_is_needed_and_forgets_it(guard, browser):
    with serving("gunicorn", GUARDED.replace("GUARD", guard)) as server:
        server.wait_log("is ready; workers=1")
        url = f"http://127.0.0.1:{server.port}/"
        browser.open(url)
        browser.until("document.readyState === 'complete' && document.activeElement.id === 'key'")
        assert browser.text("#state") == "a key is needed" and browser.text("h1") == "Virtex"
        assert not browser.value("document.querySelector('#message').checkVisibility()")
        browser.type("herring")
        browser.press("Enter", "\r")
        browser.until("document.querySelector('#refused').textContent === 'That key was refused.'")
        browser.type("swordfish")
        browser.press("Enter", "\r")
        browser.until(SHOWS)
        assert browser.text("h1") == "words" and not browser.value("document.querySelector('#keys').checkVisibility()")
        assert "swordfish" not in browser.value(
            "document.documentElement.outerHTML + document.querySelector('#key').value"
        )
        assert browser.value("[localStorage.length, sessionStorage.length, document.cookie]") == [0, 0, ""]
        assert json.loads(browser.value("document.querySelector('#message').value")) == {"data": ["it's", 1.5]}
        assert """-H "authorization: Bearer $KEY" """ in browser.text("#curl")
        browser.value("document.querySelector('#send').requestSubmit()")
        browser.until("document.querySelector('#outcome').textContent.startsWith('200 in')")
        assert browser.said == []
        browser.call("Page.reload")
        browser.until("document.readyState === 'complete' && !document.querySelector('#keys').hidden")


def test_one_of_several_with_a_key_takes_a_file_and_answers_with_one(browser):
    with serving("gunicorn", PICTURES) as server:
        server.wait_log("is ready; workers=1")
        url = f"http://127.0.0.1:{server.port}/so%20so"
        browser.open(url)
        browser.until("document.readyState === 'complete' && document.activeElement.id === 'key'")
        browser.type("swordfish")
        browser.press("Enter", "\r")
        browser.until(SHOWS)
        facts = browser.text("#facts")
        assert "any JSON value or body that the handler takes" in facts and "image/*\nmultipart/form-data" in facts
        browser.value("""{
            const files = new DataTransfer();
            files.items.add(new File([new Uint8Array([255, 0, 254])], "a.png", {type: "image/png"}));
            document.querySelector('#file').files = files.files;
            document.querySelector('#file').dispatchEvent(new Event('change'));
            document.querySelector('#send').requestSubmit();
        }""")
        browser.until("!document.querySelector('#answer').hidden")
        assert browser.text("#outcome").startswith("200 in ") and browser.text("#outcome").endswith(", 3 bytes")
        assert browser.text("#answer") == "image/png"
        assert browser.text("#curl") == (
            f"""curl '{url}/' -H "authorization: Bearer $KEY" -H 'content-type: image/png' --data-binary '@a.png'"""
        )
        assert browser.said == []


def test_it_says_when_the_service_is_gone_asks_less_often_and_recovers(page):
    page.cut_off(True)
    page.until("failures > 1")
    assert page.text("#state").startswith("the service does not tell: it can't be reached; asked again within ")
    assert page.value("[pause(), (failures = 9, pause())]") == [4, 30]
    page.cut_off(False)
    page.value("poll()")
    page.until("failures === 0 && document.querySelector('#state').textContent === 'ready: 2 of 2 workers'")
    assert page.requested.count(page.value("base")) == 3  # the page, what the service is, and again: it may be another


def test_nothing_is_asked_while_nobody_looks(page):
    asks = """(hidden => {
        Object.defineProperty(document, "hidden", {value: hidden, configurable: true});
        const before = asked;
        document.dispatchEvent(new Event("visibilitychange"));
        return asked - before;
    })"""
    assert page.value(f"[{asks}(true), {asks}(false)]") == [0, 1]


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("sum(Object.values(difference({a: 1}, {a: 3, b: 2})))", 4),
        ("quantile({bounds: [1, 2, 4], counts: [0, 10, 0, 0]}, 0.5)", 1.5),
        ("quantile({bounds: [1, 2, 4], counts: [5, 0, 5, 0]}, 0.99)", 3.96),
        ("quantile({bounds: [1, 2, 4], counts: [0, 0, 0, 7]}, 0.5)", 4),
        ("quantile({bounds: [1, 2, 4], counts: [0, 0, 0, 0]}, 0.5)", None),
        ("[0, 0.3, 1, 7, 12345].map(ceiling)", [1, 0.5, 1, 10, 20000]),
        ("[null, 0, 0.00085, 0.0032, 1.4, 90].map(seconds)", ["\u2013", "0 s", "850 µs", "3.2 ms", "1.4 s", "90 s"]),
        ("[null, 0, 0.1234, 99.96, 1234567].map(number)", ["\u2013", "0", "0.123", "100", "1,234,567"]),
        ("[7, 67108864].map(bytes)", ["7 bytes", "67.1 MB"]),
        ('indented(\'{"a":[1,{"b":[]}],"c":{}}\')', '{\n  "a": [1, {\n      "b": []\n    }],\n  "c": {}\n}'),
        ("indented('[[1.0,12345678901234567890],[2]]')", "[\n  [1.0, 12345678901234567890],\n  [2]\n]"),
        ("indented('\"' + 'x'.repeat(30000) + '\"').length < 20100", True),
    ],
)
def test_its_arithmetic(script, expected, opened):
    assert opened.value(script) == expected


def test_counters_that_begin_anew_are_no_negative_rate(page):
    script = """(() => {
        const last = samples.at(-1), again = structuredClone(last);
        again.now += 1;
        again.metrics.virtex_requests_total = {"200": 1};
        last.metrics.virtex_requests_total = {"200": 5};
        take(again);
        return samples.length;
    })()"""
    assert page.value(script) == 1


@pytest.mark.parametrize(
    ("state", "workers", "shown"),
    [
        ("ready", ["ready"], "ready"),
        ("ready", ["ready", "starting"], "ready: 1 of 2 workers"),
        ("draining", ["draining"], "draining: 0 of 1 workers"),
        ("failed", [], "failed"),
    ],
)
def test_its_state_is_that_of_all_workers(state, workers, shown, opened):
    live = {"state": state, "workers": [{"state": each} for each in workers]}
    text = "document.querySelector('#state').textContent"  # at once: the next figures show their own
    assert opened.value(f"showState({json.dumps(live)}), {text}") == shown
