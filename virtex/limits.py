"""Every security limit of the protocol and the queue, each with its default and the reason for it.

Rules: numbers only. max_bytes is the one that depends on the machine, where nobody says it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import NamedTuple

from .resident import Memory, memory

MOST = 1 << 62  # what C counts in, with room for sums
MOST_BYTES = 4 << 30  # of max_bytes, where nobody says it
# A worker keeps three of four bytes for its model, its libraries, what a handler makes of a batch, and what is not
# charged: sockets of the kernel, 3 KB for a connection (50 with TLS), memory that the C library keeps
SHARE = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one worker takes from its clients at most; a client over a limit is refused by name, or cut.

    Sizes are in bytes, times in seconds, rates in bytes per second. max_bytes is None for what fits into memory. Raises
    ValueError for a limit that is not above 0 and below 2**62, or not whole where bytes or things are counted.
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
    max_bytes: int | None = None  # whatever clients make a worker hold, until it is written (503); rows, too
    answer_seconds: float = 60.0  # from a request's headers to its answer, or less if its client says so; then 504

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is None is field.default:
                continue
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < MOST:
                raise ValueError(f"Limits({field.name}={value!r}): expected a number above 0 and below 2**62")
            if field.type != "float":
                if value != int(value):
                    raise ValueError(f"Limits({field.name}={value!r}): expected a whole number")
                object.__setattr__(self, field.name, int(value))


def widest(several: Sequence[Limits]) -> Limits:
    """What each of these takes, and more: the widest of each limit, of max_bytes among those that say one."""
    said = {field.name: [getattr(one, field.name) for one in several] for field in fields(Limits)}
    wide = {name: max([each for each in values if each is not None], default=None) for name, values in said.items()}
    return Limits(**{**wide, "body_rate": min(said["body_rate"])})


def fitting(limits: Limits, most: int) -> Limits:
    """The same, where it has turned out what max_bytes is that nobody said: a body gets half of it at most."""
    if limits.max_bytes is not None:
        return limits
    return replace(limits, max_bytes=most, body=min(limits.body, max(most // 2, 1)))


class Allowance(NamedTuple):
    """max_bytes: that clients may make one worker hold. why: where the number comes from, for who reads it."""

    max_bytes: int
    why: str


def allowance(said: int | None, workers: int = 1, parts: int = 1, found: Memory | None = None) -> Allowance:
    """limits.max_bytes as it was said; where it is None, what fits into the memory that there is, 4 GiB at most.

    workers: how many processes share that memory. parts: how many services of a worker have such an allowance. found:
    the memory; by default, that of this process.
    """
    if said is not None:
        return Allowance(said, "as limits.max_bytes says")
    found = found or memory()
    fits = max(found.size // (SHARE * workers * parts), 1)
    if fits > MOST_BYTES:
        return Allowance(MOST_BYTES, "limits.max_bytes is not said, and 4 GiB is the most then")
    there = f"the {found.size} bytes that {found.said_by} says there are, by {workers} x {parts} (workers x services)"
    return Allowance(fits, f"limits.max_bytes is not said, so 1/{SHARE} of {there}")
