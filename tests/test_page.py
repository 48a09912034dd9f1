"""The status page as a file and as an answer: who gets it, and what it may do. test_status.py opens it in a browser."""

import hashlib
import re
from base64 import b64encode

import pytest
from kit.asks import Echo, ask_asgi, ask_direct, run

from virtex import http_server
from virtex.service.page import is_asked_for, response
from virtex.service.seam import Head

BROWSERS = {  # what they send when one types an address
    "chromium": "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8",
    "firefox": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8",
    "lynx": "text/html, text/plain, text/sgml, text/css, application/xhtml+xml, */*;q=0.01",
    "json as a last resort": "Text/HTML ; level=1, application/json;q=0.9",
    "nothing else": "text/html",
}
OTHERS = {
    "none": None,
    "empty": "",
    "curl": "*/*",
    "fetch": "application/json",
    "axios": "application/json, text/plain, */*",
    "both alike": "text/html, application/json",
    "html less": "text/html;q=0.5, application/json",
    "html refused": "text/html;q=0",
    "html no more than anything": "text/html, */*",
    "a range of text": "text/*",
    "another type that ends so": "application/text/html",
}


@pytest.fixture(params=[ask_asgi, ask_direct], ids=["asgi", "direct"])
def ask(request):
    return request.param


def head_of(accept, method="GET", path="/"):
    headers = [] if accept is None else [(b"accept", accept.encode())]
    return Head(method, path, headers, 0, None)


@pytest.mark.parametrize("accept", BROWSERS.values(), ids=BROWSERS)
def test_who_names_html_and_likes_it_better_gets_the_page(accept):
    assert is_asked_for(head_of(accept)) and is_asked_for(head_of(accept, "HEAD"))
    assert not is_asked_for(head_of(accept, "POST")) and not is_asked_for(head_of(accept, path="/metrics/live"))


@pytest.mark.parametrize("accept", OTHERS.values(), ids=OTHERS)
def test_everybody_else_gets_json(accept):
    assert not is_asked_for(head_of(accept))


def test_several_fields_of_accept_are_one():
    head = Head("GET", "/", [(b"accept", b"text/html"), (b"accept", b"application/json;q=0.2")], 0, None)
    assert is_asked_for(head)


def test_a_browser_gets_html_and_others_the_same_json_as_before(ask):
    app = http_server("echo", Echo())
    html = [(b"accept", BROWSERS["firefox"].encode())]
    page, head, plain = run(
        app, ask(app, method="GET", headers=html), ask(app, method="HEAD", headers=html), ask(app, method="GET")
    )
    assert (page.status, head.status, plain.status) == (200, 200, 200)
    assert page.headers[b"content-type"] == b"text/html; charset=utf-8" and b"<title>Virtex</title>" in page.body
    assert plain.headers == {b"content-type": b"application/json", b"vary": b"Accept", **own(plain)}
    assert plain.json["name"] == "echo"
    assert page.headers[b"vary"] == b"Accept" and head.headers == {**page.headers, **own(head)}


def own(answer):
    return {name: answer.headers[name] for name in (b"content-length", b"x-request-id") if name in answer.headers}


def test_without_the_page_a_browser_gets_json_too(ask):
    app = http_server("echo", Echo(), status_page=False)
    (answer,) = run(app, ask(app, method="GET", headers=[(b"accept", b"text/html")]))
    assert answer.headers[b"content-type"] == b"application/json" and answer.json["name"] == "echo"


def test_it_is_small_and_says_nothing_of_the_service():
    (page,) = response().buffers
    assert len(page) < 40_000
    assert response().buffers[0] is page


def test_its_policy_lets_run_what_stands_in_it_and_nothing_else():
    headers, (page,) = dict(response().headers), response().buffers
    policy = dict(part.strip().split(" ", 1) for part in headers[b"content-security-policy"].decode().split(";"))
    for kind in ("script", "style"):
        (text,) = re.findall(rf"<{kind}>(.*?)</{kind}>".encode(), page, re.DOTALL)
        assert policy[f"{kind}-src"] == f"'sha256-{b64encode(hashlib.sha256(text).digest()).decode()}'"
    nothing = {"default-src", "base-uri", "form-action", "frame-ancestors"}
    assert {policy[name] for name in nothing} == {"'none'"}
    assert policy["connect-src"] == "'self'" and "unsafe" not in str(policy)
    assert headers[b"x-content-type-options"] == b"nosniff" and headers[b"referrer-policy"] == b"no-referrer"


def test_it_fetches_nothing_of_others_and_keeps_nothing():
    text = response().buffers[0].decode()
    assert set(re.findall(r"https?://[\w./-]+", text)) == {"http://www.w3.org/2000/svg"}  # a name, which nobody fetches
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval|cookie|\w+Storage", text)
    assert not re.search(r"<[^!>]*\s(on\w+|style)=", text)
