"""What pickle takes and what it refuses: the rows of the table in docs/serial.md."""

from __future__ import annotations

import datetime
import threading
from fractions import Fraction


def cases() -> list[tuple[str, object]]:
    loop: list[object] = [1]
    loop.append(loop)
    return [
        ("dicts, lists, tuples, sets", {"a": [1, (2.5, None)], 2: {"x"}}),
        ("objects of classes that both sides have", [Fraction(1, 3), datetime.date(2024, 2, 29)]),
        ("functions and classes, by reference", [max, Fraction]),
        ("integers of any size", 2**200),
        ("objects that hold themselves", loop),
    ]


def refused() -> list[tuple[str, object, str]]:
    return [
        ("lambdas, and functions within functions", lambda: None, "function can't be pickled"),
        ("locks, sockets, generators", threading.Lock(), "lock can't be pickled"),
    ]


def same(a, b) -> bool:
    return type(a) is type(b) and repr(a) == repr(b)
