"""The status page: one file, the same for every service, and to whom it is given.

Rules: a head in, a response out. The page holds nothing of the service, so it needs no authorization. Its script
fetches what there is to show, with a key where one is asked for.
"""

from __future__ import annotations

import hashlib
import re
from base64 import b64encode
from pathlib import Path

from ..errors import Headers
from .formats import JSON, json_quality, qualities, ranges_of
from .seam import Head, Response

VARIES: Headers = ((b"vary", b"Accept"),)  # GET / has two answers

_HTML = "text/html"
_RANGES = ranges_of(_HTML, JSON.name)
_PAGE = Path(__file__).with_name("page.html").read_bytes()


def _policy(page: bytes) -> bytes:
    """What the page may do, as Content-Security-Policy says it: its own style and script, and to ask this service.

    https://www.w3.org/TR/CSP3/: by their hashes, so that no style or script which anyone slips in is run.
    """
    hashes = {}
    for kind in (b"style", b"script"):
        (text,) = re.findall(b"<%b>(.*?)</%b>" % (kind, kind), page, re.DOTALL)
        hashes[kind] = b"'sha256-%b'" % b64encode(hashlib.sha256(text).digest())
    return (
        b"default-src 'none'; style-src %b; script-src %b; connect-src 'self'; img-src data:; base-uri 'none'; "
        b"form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    ) % (hashes[b"style"], hashes[b"script"])


_HEADERS: Headers = (
    (b"content-type", b"text/html; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"content-security-policy", _policy(_PAGE)),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    *VARIES,
)


def is_asked_for(head: Head) -> bool:
    """Whether it is a browser's GET /: text/html is named in Accept, and liked better than JSON."""
    if head.path != "/" or head.method not in ("GET", "HEAD"):
        return False
    quality = qualities(head.header("accept").lower(), _RANGES)
    return quality.get(_HTML, 0.0) > json_quality(quality)


def response() -> Response:
    """The page."""
    return Response(200, _HEADERS, [_PAGE])
