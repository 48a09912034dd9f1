"""Which of a handler's methods are told who asked, and for which of their items.

Rules: as of steps.py. Who asked is whatever the ring's tickets say, one object for each request: nobody here looks at
it. Signatures are read once, at the start.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

_WORDS = {"process_request": "requests", "run_inference": "requests", "process_response": "request"}
_REST = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def methods_that_ask(handler: object) -> frozenset[str]:
    """The names of those of the three methods that have a parameter `requests`, or `request` for process_response.

    It counts behind the parameter that takes the items, the batch or the row, and by that name alone: `**kwargs` does
    not ask. Raises TypeError for one that can't be passed by its name, and for any other that has to be passed.
    """
    return frozenset(
        name for name, word in _WORDS.items() if _asks(getattr(handler, name), word, f"{type(handler).__name__}.{name}")
    )


def _asks(method: Callable[..., Any], word: str, where: str) -> bool:
    try:
        signature = inspect.signature(method)
    except (TypeError, ValueError):  # of a builtin that has none
        return False
    where += str(signature)
    found = None
    for parameter in list(signature.parameters.values())[1:]:
        if parameter.kind in _REST:
            continue
        if parameter.name == word:
            found = parameter
        elif parameter.default is parameter.empty:
            raise TypeError(f"{where}: expected one parameter, and {word!r} behind it at most; got {parameter.name!r}")
    if found is not None:
        _check_can_be_told(method, word, where, found)
    return found is not None


def _check_can_be_told(method: Callable[..., Any], word: str, where: str, found: inspect.Parameter) -> None:
    if found.kind is found.POSITIONAL_ONLY:
        raise TypeError(f"{where}: expected {word!r} to be passed by its name, not by its place only")
    if isinstance(method, functools.partial) and word in method.keywords:
        raise TypeError(f"{where}: expected {word!r} to be left to the server, the partial has bound it")
    try:
        inspect.signature(method, follow_wrapped=False).bind(None, **{word: None})
    except TypeError as error:
        raise TypeError(f"{where}: {word!r} does not reach it, for what wraps it takes none: {error}") from None


def each(askers: list[Any] | None, counts: list[int]) -> list[Any] | None:
    """Who asked for each item, of the requests of so many; None where nobody is told."""
    if askers is None:
        return None
    return [asker for asker, count in zip(askers, counts, strict=True) for _ in range(count)]
