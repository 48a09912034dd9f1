"""The arguments of http_server(), checked: each is as it says, or refused by name.

Rules: values only; nothing is made or started here.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from inspect import iscoroutinefunction
from typing import Any

from ..handler import RequestHandler
from ..limits import Limits
from ..logs import FORMS
from ..metrics.export import OFF, Prom
from ..observer import Observer, as_one
from .seam import Head

MOST_ITEMS = 1 << 32  # items in a batch: what is counted fits 64 bits, with room for sums
LEAST_QUEUE = 1024  # items that may wait by default, however small the batches: a burst of single items is no overload


def is_whole(value: object, least: int, most: int) -> bool:
    """Whether it is an int within the bounds; True and False are none."""
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def is_number(value: object) -> bool:
    """Whether it is a number that a float can be, and finite."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def are_observers(value: object) -> bool:
    """Whether it is one, or a sequence of them."""
    several = value if isinstance(value, Sequence) and not isinstance(value, str) else (value,)
    return all(isinstance(one, Observer) for one in several)


CORS = (
    'None, ["*"] alone, or a list of origins as browsers send them: scheme://host or scheme://host:port, in lower '
    "case, without the scheme's own port, without a path, without a / at the end"
)
_ORIGIN = re.compile(r"([a-z][a-z0-9+.-]*)://(?:[a-z0-9_.~-]+|\[[0-9a-f:.]+\])(?::([1-9][0-9]{0,4}))?")
_OWN_PORTS = {"http": "80", "https": "443"}


def are_origins(value: object) -> bool:
    """Whether it is a sequence of origins, each as the header Origin has it (RFC 6454 section 6.2), or of "*" alone."""
    if not isinstance(value, (list, tuple)) or not value:
        return False
    return list(value) == ["*"] or all(map(_is_origin, value))


def _is_origin(value: object) -> bool:
    found = _ORIGIN.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        return False
    scheme, port = found.groups()
    return port is None or (port != _OWN_PORTS.get(scheme) and int(port) <= 65535)


def is_function(value: object) -> bool:
    """Whether it is None, or something to call that answers at once: a coroutine would let nobody in."""
    return value is None or (callable(value) and not iscoroutinefunction(value))


SIZES = "True, or a list of whole numbers from 1 to max_batch_size; none: ()"


def are_sizes(value: object) -> bool:
    """Whether it says of which sizes batches are: True, False, or whole numbers above 0."""
    return isinstance(value, bool) or (
        isinstance(value, (list, tuple)) and all(is_whole(size, 1, MOST_ITEMS) for size in value)
    )


_CHECKS: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    ("name", lambda v: isinstance(v, str) and v != "", "a string that is not empty"),
    ("handler", lambda v: isinstance(v, RequestHandler) or callable(v), "a RequestHandler, its class or a factory"),
    ("max_batch_size", lambda v: is_whole(v, 1, MOST_ITEMS), "a whole number from 1 to 2**32"),
    ("max_batch_cost", lambda v: v is None or (is_number(v) and v > 0), "a finite number above 0, or None"),
    ("max_time_on_queue", lambda v: is_number(v) and 0 <= v <= 3600, "seconds from 0 to 3600"),
    (
        "max_queue_size",
        lambda v: v is None or is_whole(v, 1, 4 * MOST_ITEMS),
        "a whole number from 1 to 2**34, or None",
    ),
    ("executor", lambda v: v in ("inline", "thread"), '"inline" or "thread"'),
    ("limits", lambda v: isinstance(v, Limits), "a Limits, or None"),
    ("observer", lambda v: v is None or are_observers(v), "an Observer, a sequence of them, or None"),
    ("watchdog", lambda v: v is None or (is_number(v) and v > 0), "seconds above 0, or None"),
    ("unhealthy_after", lambda v: v is None or is_whole(v, 1, MOST_ITEMS), "a whole number from 1 to 2**32, or None"),
    ("warmup", are_sizes, SIZES),
    ("isolate_errors", lambda v: isinstance(v, bool), "True or False"),
    ("authorize", is_function, "a function of the head that is not async, or None"),
    ("status_page", lambda v: isinstance(v, bool), "True or False"),
    ("cors", lambda v: v is None or are_origins(v), CORS),
    ("log", lambda v: v in (None, *FORMS), '"text", "json", or None'),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a service was told; http_server() documents it. clock: nanoseconds. Raises ValueError."""

    name: str
    handler: RequestHandler | Callable[[], RequestHandler]
    max_batch_size: int
    max_time_on_queue: float
    max_queue_size: int | None
    executor: str
    status_page: bool
    limits: Limits
    observer: Observer | Sequence[Observer] | None
    watchdog: float | None
    authorize: Callable[[Head], bool | int | None] | None
    max_batch_cost: float | None = None
    isolate_errors: bool = True
    log: str | None = None
    cors: Sequence[str] | None = None
    warmup: bool | Sequence[int] = ()
    unhealthy_after: int | None = None
    prom: Prom = OFF
    clock: Callable[[], int] = time.perf_counter_ns

    def __post_init__(self) -> None:
        for name, holds, expected in _CHECKS:
            value = getattr(self, name)
            check(holds(value), name, value, expected)
        check(max(self.sizes, default=0) <= self.max_batch_size, "warmup", self.warmup, SIZES)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Of the batches that the handler runs ahead of the first request."""
        if isinstance(self.warmup, bool):
            return tuple(sorted({1, self.max_batch_size})) if self.warmup else ()
        return tuple(self.warmup)

    @property
    def told(self) -> Observer | None:
        """Who is told what happens: one that tells the others, where there are several."""
        return as_one(self.observer)

    @property
    def queue(self) -> int:
        """Items that may wait at most, as far as the options decide it."""
        return self.max_queue_size or max(4 * self.max_batch_size, LEAST_QUEUE)


def is_host(value: object) -> bool:
    """Whether it is the name or address of a host, which may have http:// ahead of it, and no port behind."""
    if not isinstance(value, str):
        return False
    host = value.removeprefix("http://").removeprefix("https://").rstrip("/")
    return host != "" and not set("/@?# ") & set(host) and host.count(":") != 1


_PROM_CHECKS: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    ("host", is_host, "a host name, with or without http://, and no port"),
    ("port", lambda v: is_whole(v, 1, 65535), "a port from 1 to 65535"),
    ("mode", lambda v: v in ("off", "scrape", "push"), '"off", "scrape" or "push"'),
    ("interval", lambda v: is_number(v) and v > 0, "seconds above 0"),
    ("legacy_names", lambda v: isinstance(v, bool), "True or False"),
    ("delete_group", lambda v: isinstance(v, bool), "True or False"),
)


def prom_of(*arguments: Any) -> Prom:
    """The prom_* arguments, in the order of Prom; prom_host may have http:// ahead of it. Raises ValueError."""
    for (name, holds, expected), value in zip(_PROM_CHECKS, arguments, strict=True):
        check(holds(value), f"prom_{name}", value, expected)
    given = Prom(*arguments)
    scheme, _, host = given.host.rpartition("://")
    return given._replace(scheme=scheme or "http", host=host.rstrip("/").strip("[]"))


def check(holds: bool, name: str, value: object, expected: str) -> None:
    """Raise ValueError, which says what was expected and what came."""
    if not holds:
        raise ValueError(f"http_server({name}={value!r}): expected {expected}")
