"""Every security limit of the protocol and the queue, each with its default and the reason for it.

Rules: numbers only; imports nothing of Virtex.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

MOST = 1 << 62  # what C counts in, with room for sums


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one worker takes from its clients at most; a client over a limit is refused by name, or cut.

    Sizes are in bytes, times in seconds, rates in bytes per second. Raises ValueError for a limit that is not
    above 0 and below 2**62, or not whole where bytes or things are counted.
    """

    request_line: int = 8192  # RFC 9112 section 3 asks for 8000 at least; longer is 414
    header_fields: int = 128  # browsers behind proxies send about 40; more is 431
    header_bytes: int = 65536  # all fields together, cookies and tokens included; more is 431
    body: int = 64 << 20  # 80 images of 224x224x3 float32 in base64; more is 413
    values: int = 1 << 19  # lists, objects and elements in one JSON body: orjson takes 0.1 s for so many; more is 413
    framing: int = 65536  # chunk sizes, extensions, trailers: bytes of a body that carry nothing (CVE-2023-39326)
    header_seconds: float = 10.0  # from a request's first byte to its last header, however they come: then 408
    idle_seconds: float = 15.0  # a new connection that sends nothing is closed
    keep_alive_seconds: float = 75.0  # longer than load balancers keep idle connections (60), or they send into a close
    body_rate: float = 1024.0  # a body slower than this on average, after body_grace_seconds, is cut, 408
    body_grace_seconds: float = 5.0
    body_idle_seconds: float = 30.0  # a body of which nothing comes for so long is cut, however quick it was, 408
    write_stall_seconds: float = 30.0  # a client that reads nothing of its answer for so long is cut
    connections: int = 10_000  # per worker; one more is answered 503 and closed
    pipelined: int = 16  # requests of one connection waiting for their turn; then reading pauses
    max_bytes: int = 4 << 30  # whatever clients make a worker hold, until it is written (503); rows of declared inputs
    answer_seconds: float = 60.0  # from a request's headers to its answer, or less if its client says so; then 504

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < MOST:
                raise ValueError(f"Limits({field.name}={value!r}): expected a number above 0 and below 2**62")
            if isinstance(field.default, int):
                if value != int(value):
                    raise ValueError(f"Limits({field.name}={value!r}): expected a whole number")
                object.__setattr__(self, field.name, int(value))


def widest(several: Sequence[Limits]) -> Limits:
    """What each of these takes, and more: the widest of each limit."""
    wide = {field.name: max(getattr(one, field.name) for one in several) for field in fields(Limits)}
    return Limits(**{**wide, "body_rate": min(one.body_rate for one in several)})
