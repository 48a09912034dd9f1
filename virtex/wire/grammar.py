"""What HTTP/1.1 asks of a request's head beyond what llhttp checks.

Pure functions of bytes: no socket, no clock, no state. `parse_request` is called on a whole head that llhttp, in its
strict default mode, has accepted: every line ends in CRLF, names are tokens, no line is folded, Content-Length is one
number below 2**64 and never beside Transfer-Encoding. What is left to check is here, each with its section.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple
from urllib.parse import unquote

from ..errors import RequestError
from ..limits import Limits
from ..service.seam import Head

# What llhttp is given ahead of a chunked body, so that it reads one
CHUNKED_HEAD = b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n"

# RFC 3986 section 3.2.2: uri-host [ ":" port ]; no user, path or space can hide in it.
_HOST = re.compile(
    rb"(?:\[[0-9A-Fa-f:.]{2,45}\]|\[v[0-9A-Fa-f]+\.[\w\-.~!$&'()*+,;=:]+\]|(?:[A-Za-z0-9\-._~!$&'()*+,;=]|%[0-9A-Fa-f]{2})*)"
    rb"(?::[0-9]{0,5})?"
)
_ABSOLUTE = re.compile(rb"https?://([^/?]+)(.*)", re.IGNORECASE)
_METHOD = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]*")
_VERSION = re.compile(rb"HTTP/[0-9]\.[0-9]")
_FRAMING = frozenset({b"host", b"content-length", b"transfer-encoding", b"connection", b"expect"})

SHORT = 256  # bytes; clients send the same lines again and again, so what a line up to this says is kept

Header = tuple[bytes, bytes]


class Line(NamedTuple):
    """A request line, checked. authority: of a target in absolute form, else empty."""

    method: str
    target: bytes
    authority: bytes
    raw_path: bytes
    query: bytes
    path: str
    minor: int


def parse_request(raw: bytes, limits: Limits) -> Head:
    """Check and take apart one head, from its request line to the empty line. Whose it is, `peer`, is left open.

    Raises: RequestError with the status of the first rule it breaks.
    """
    lines = raw[:-4].split(b"\r\n")
    line = _kept_line(lines[0]) if len(lines[0]) <= SHORT else _parse_line(lines[0])
    if len(lines) - 1 > limits.header_fields:
        raise RequestError(431, f"expected at most {limits.header_fields} header fields, got {len(lines) - 1}")
    headers: list[Header] = []
    framing: dict[bytes, bytes] = {}
    for field in lines[1:]:
        header = _kept_field(field) if len(field) <= SHORT else _parse_field(field)
        headers.append(header)
        name = header[0]
        if name in _FRAMING:
            framing[name] = _join(name, framing[name], header[1]) if name in framing else header[1]
    _check_host(framing, line.minor)
    if line.authority:
        headers = _with_host(headers, line.authority)
    head = Head(line.method, line.path, headers, 0, None)
    head.target, head.raw_path, head.query, head.minor = line.target, line.raw_path, line.query, line.minor
    head.keep_alive = line.minor == 1
    _frame(head, framing)
    return head


def _parse_field(line: bytes) -> Header:
    name, _, value = line.partition(b":")
    return name.lower(), value.strip(b" \t")


def decoded(path: str) -> str:
    """A raw path, percent-decoded; what is no UTF-8 is replaced (RFC 3986 section 2.1)."""
    return unquote(path, errors="replace") if "%" in path else path


def _parse_line(line: bytes) -> Line:
    parts = line.split(b" ")  # RFC 9112 section 3: single spaces; llhttp takes several, and a line without version
    if len(parts) != 3:
        raise RequestError(400, "expected 'METHOD target HTTP/1.1' with single spaces between")
    method, target, version = parts
    if version == b"HTTP/1.1":
        minor = 1
    elif version == b"HTTP/1.0":
        minor = 0
    elif _VERSION.fullmatch(version):
        raise RequestError(505, f"expected HTTP/1.1 or HTTP/1.0, got {version.decode()}")
    else:
        raise RequestError(400, "expected HTTP/1.1 or HTTP/1.0 at the end of the request line")
    authority, local = _parse_target(method.decode(), target)
    raw_path, _, query = local.partition(b"?")
    path = raw_path.decode("latin-1")
    return Line(method.decode(), target, authority, raw_path, query, decoded(path), minor)


_kept_field = lru_cache(1024)(_parse_field)
_kept_line = lru_cache(256)(_parse_line)


def _join(name: bytes, first: bytes, second: bytes) -> bytes:
    """The lists may come in several lines (RFC 9110 section 5.3), Host may not (RFC 9112 section 3.2)."""
    if name == b"host":
        raise RequestError(400, "expected one Host, got several")
    return first + b"," + second


def _with_host(headers: list[Header], authority: bytes) -> list[Header]:
    """RFC 9112 section 3.2.2: a target in absolute form says by itself where to, whatever the Host that came."""
    return [(b"host", authority), *[header for header in headers if header[0] != b"host"]]


def _check_host(framing: dict[bytes, bytes], minor: int) -> None:
    host = framing.get(b"host")
    if host is None:
        if minor:
            raise RequestError(400, "expected a Host, as every HTTP/1.1 request has")
    elif not _is_host(host):
        raise RequestError(400, "expected Host to be a name or address and a port")


@lru_cache(64)
def _is_host(host: bytes) -> bool:
    return _HOST.fullmatch(host) is not None


def _parse_target(method: str, target: bytes) -> tuple[bytes, bytes]:
    """The authority and what comes after it (RFC 9112 section 3.2: origin, absolute, authority, asterisk form)."""
    if method == "CONNECT":
        raise RequestError(501, "CONNECT is for proxies; this is not one")
    if b"#" in target:
        raise RequestError(400, "expected a request target without fragment")
    if target == b"*":
        if method != "OPTIONS":
            raise RequestError(400, f"expected a path, got '*', which is for OPTIONS, not {method}")
        return b"", target
    if target.startswith(b"/"):
        return b"", target
    absolute = _ABSOLUTE.fullmatch(target)
    # RFC 9110 section 4.2.1: no host but a port is none
    if absolute is None or absolute[1].startswith(b":") or not _HOST.fullmatch(absolute[1]):
        raise RequestError(400, "expected a request target that starts with '/', or with 'http://' and a host")
    local = absolute[2]
    return absolute[1], local if local.startswith(b"/") else b"/" + local


def _frame(head: Head, framing: dict[bytes, bytes]) -> None:
    """How the body is delimited and whether another request may follow (RFC 9112 sections 6 and 9.3)."""
    coding = framing.get(b"transfer-encoding")
    if coding is not None:
        if not head.minor:
            raise RequestError(400, "expected no Transfer-Encoding, which HTTP/1.0 does not have")
        if coding.lower() != b"chunked":
            raise RequestError(501, "expected Transfer-Encoding: chunked and no other coding")
        head.length = None
    elif b"content-length" in framing:
        # llhttp took it: digits only, one, below 2**64; of more than 4300, were they zeros, int() makes an error
        head.length = int(framing[b"content-length"].lstrip(b"0") or b"0")
    if b"connection" in framing:
        options = {option.strip(b" \t") for option in framing[b"connection"].lower().split(b",")}
        head.keep_alive = b"close" not in options and (head.minor == 1 or b"keep-alive" in options)
    expectation = framing.get(b"expect")
    if expectation is not None and head.minor:
        if expectation.lower() != b"100-continue":
            raise RequestError(417, "expected Expect: 100-continue or none")
        head.expects = head.length != 0


_EMPTY_LINES = re.compile(rb"(?:\r\n)*")  # all at once: one by one, 256 KB of them took 0.15 s


def skip_empty_lines(data: bytes, at: int) -> int:
    """RFC 9112 section 2.2: empty lines ahead of a request line are ignored; a lone CR or LF is none."""
    at = _EMPTY_LINES.match(data, at).end()  # type: ignore[union-attr]
    first = data[at : at + 1]
    if first == b"\n" or (first == b"\r" and at + 1 < len(data)):
        raise RequestError(400, "expected a request line")
    return at


def has_method(raw: bytes) -> bool:
    """Whether a request line has begun with a token and a space: then llhttp says whether it knows the method (501).

    Until then it may be anything, TLS for example. Raises RequestError (400) once it can't be (RFC 9112 section 3).
    """
    end = _METHOD.match(raw).end()  # type: ignore[union-attr]
    if end == len(raw):
        return False
    if not end or raw[end] != 32:
        raise RequestError(400, "expected a request line of HTTP: a method, then one space")
    return True


def find_fault(raw: bytes, limits: Limits) -> tuple[int, RequestError] | None:
    """Where a head, whole or not yet, goes over a limit: how many of its bytes were needed to know, and the refusal.

    The same for a request line that ends in a bare LF: llhttp takes that for the HTTP/0.9 of old, and would go on.
    """
    end = raw.find(b"\n")
    line = end - 1 if end >= 0 else len(raw) - 1  # its last byte may be the CR
    if line > limits.request_line:
        error = RequestError(414, f"expected a request line of at most {limits.request_line} bytes")
        return limits.request_line + 2, error
    if end >= 0 and raw[end - 1] != 13:
        return end + 1, RequestError(400, "expected the request line to end in CR LF")
    if end >= 0 and len(raw) - end - 1 > limits.header_bytes:
        error = RequestError(431, f"expected at most {limits.header_bytes} bytes of header fields")
        return end + 2 + limits.header_bytes, error
    return None
