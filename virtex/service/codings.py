"""Content codings (RFC 9110 section 8.4.1): gzip and deflate, off the bodies that come and onto the answers that go.

Rules: bytes and values; no loop, no thread, no exchange. A few KB may become gigabytes, so a body is inflated by pieces
whose size the caller says, and never beyond its limit.
"""

from __future__ import annotations

import re
import zlib
from functools import lru_cache

from ..errors import Headers, RequestError, quoted
from .seam import Response

GZIP, DEFLATE = "gzip", "deflate"
LEVEL = 1  # the quickest; 6 takes three times as long for a tenth less
WORTH = 4096  # bytes of an answer, from which on fewer bytes are worth the time
SLICE = 256 << 10  # bytes that zlib gets at a time; it copies what it leaves of them
MEMBER = 4096  # bytes that the beginning of a member counts as, for the time that it takes
MOST_MEMBERS = 10_000  # 50 ms for those that hold nothing; bgzip writes one for 64 KB
LONGEST = 512  # bytes of an Accept-Encoding that is looked at

Body = bytes | bytearray | memoryview

_NAMES = {b"gzip": GZIP, b"x-gzip": GZIP, b"deflate": DEFLATE}  # section 8.4.1.3: x-gzip is the same
_NONE = (b"", b"identity")
_TAKEN: Headers = ((b"accept-encoding", b"gzip, deflate"),)  # section 12.5.3: what a 415 says
_WEIGHT = re.compile(r"q=([01](?:\.\d{0,3})?)")
_COMPRESSIBLE = re.compile(rb"text/|application/(json|x-npy|xml|octet-stream)\b|[^;]*\+(json|xml)\b", re.IGNORECASE)


# ---- which


def coding_of(content_encoding: bytes) -> str:
    """What a body is coded with; "" for nothing. Raises RequestError (415) for another coding, and for several."""
    codings = [each for each in map(bytes.strip, content_encoding.lower().split(b",")) if each not in _NONE]
    if not codings:
        return ""
    name = _NAMES.get(codings[0]) if len(codings) == 1 else None
    if name is None:
        sent = quoted(content_encoding.decode("latin-1"))
        raise RequestError(415, f"Content-Encoding {sent!r}: send gzip, deflate, or the body as it is", _TAKEN)
    return name


def asked_for(accept_encoding: bytes) -> str:
    """The coding that a client asks for by its Accept-Encoding; "" for none (RFC 9110 section 12.5.3).

    It asks where it names one alone, or where it likes one better than identity, of which it says how much. A list is
    what HTTP libraries and browsers send by themselves: they can read all of these, and the answer as it is as well.
    """
    if not accept_encoding or len(accept_encoding) > LONGEST:
        return ""
    weights = _weights(accept_encoding.decode("latin-1").lower())
    others = weights.get("*", 0.0)
    gzip, deflate = weights.get(GZIP, others), weights.get(DEFLATE, others)
    named = [name for name, weight in weights.items() if weight and name not in ("identity", "*")]
    identity = weights.get("identity", others if "*" in weights or len(named) == 1 else 1.0)
    if max(gzip, deflate) <= identity:
        return ""
    return GZIP if gzip >= deflate else DEFLATE


def _weights(accept: str) -> dict[str, float]:
    weights = {}
    for each in accept.split(","):
        name, _, parameter = each.partition(";")
        found = _WEIGHT.fullmatch(parameter.strip())
        weights[name.strip().removeprefix("x-")] = float(found[1]) if found else 1.0
    weights.pop("", None)
    return weights


# ---- bodies


class Inflater:
    """A body on its way to what it was ahead of its coding: `data`, as far as it is there.

    coding: GZIP, or DEFLATE: in the zlib format, as section 8.4.1.2 has it, or without, as some send it. most: bytes
    that it may become.
    """

    def __init__(self, coding: str, body: Body, most: int) -> None:
        self.data = bytearray()
        self._coding = coding
        self._most = most
        self._body = memoryview(body)
        self._at = 0  # bytes of it that zlib has got
        self._members = 1
        self._bits = 31 if coding == GZIP else 15 if _has_zlib_format(self._body) else -15
        self._zlib = zlib.decompressobj(self._bits)
        if not body:
            raise self._wrong("expected some bytes, got none")

    @property
    def room(self) -> int:
        """Bytes that data may still grow by; one more is one too many."""
        return self._most + 1 - len(self.data)

    def inflate(self, size: int) -> bool:
        """Have about so many bytes more, never more than that; returns whether it was all.

        Raises RequestError: 413 beyond the limit, 400 for what is broken, broken off, or followed by something else.
        """
        while size > 0:
            if self._zlib.eof:
                if not self._begins_another():
                    return True
                size -= MEMBER
                continue
            piece = self._zlib.unconsumed_tail or self._next_slice()
            try:
                more = self._zlib.decompress(piece, min(size, self.room))
            except zlib.error as error:
                raise self._wrong(str(error).partition(": ")[2] or "it needs a dictionary") from None
            if not (piece or more or self._zlib.eof):
                raise self._wrong(f"it breaks off after {len(self._body)} bytes")
            self.data += more
            size -= len(more)
            if len(self.data) > self._most:
                raise RequestError(
                    413, f"a body of more than {self._most} bytes once it is inflated; that is the limit"
                )
        return False

    def close(self) -> None:
        """Let go of the body."""
        self._body.release()

    def _next_slice(self) -> memoryview:
        at = self._at
        self._at = min(at + SLICE, len(self._body))
        return self._body[at : self._at]

    def _begins_another(self) -> bool:
        """Whether another member follows, as RFC 1952 section 2.2 lets it; then it is begun."""
        self._at -= len(self._zlib.unused_data)
        left = len(self._body) - self._at
        if not left:
            return False
        if self._coding != GZIP or bytes(self._body[self._at : self._at + 2]) != b"\x1f\x8b":
            raise self._wrong(f"{left} bytes stand behind its end")
        self._members += 1
        if self._members > MOST_MEMBERS:
            raise self._wrong(f"more than {MOST_MEMBERS} members")
        self._zlib = zlib.decompressobj(self._bits)
        return True

    def _wrong(self, why: str) -> RequestError:
        return RequestError(400, f"expected a body in {self._coding}, as its Content-Encoding says: {why}")


def _has_zlib_format(body: memoryview) -> bool:
    """RFC 1950 section 2.2. No encoder begins a raw stream so: it would be a stored block with ones in its padding."""
    return len(body) > 1 and body[0] & 0x0F == 8 and (body[0] << 8 | body[1]) % 31 == 0


# ---- answers


def is_worth(response: Response) -> bool:
    """Whether an answer may become much smaller: it is large, and of a type that is not compressed already."""
    if response.size < WORTH or response.status != 200:
        return False
    return any(name == b"content-type" and _COMPRESSIBLE.match(value) for name, value in response.headers)


def compressed(response: Response, coding: str) -> Response:
    """The same answer in this coding; as it is where that is no longer."""
    squeeze = zlib.compressobj(LEVEL, zlib.DEFLATED, 31 if coding == GZIP else 15)
    body = b"".join([*map(squeeze.compress, response.buffers), squeeze.flush()])
    return response if len(body) >= response.size else Response(200, _coded(response.headers, coding), [body])


@lru_cache(64)
def _coded(headers: Headers, coding: str) -> Headers:
    """These, and what is coded; the same object for the same, by which the wire knows a head that it has.

    Vary: a cache keeps an answer for each Accept-Encoding (section 12.5.5).
    """
    return (*headers, (b"content-encoding", coding.encode()), (b"vary", b"Accept-Encoding"))
