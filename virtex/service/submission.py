"""What a program asks of a service of its own: Submission, a request that no connection brought.

Rules: as of exchange.py. It is an exchange like any other, in the queue, the budget and the counts; its format is what
Python has: its items and its answer stay objects, nothing is written down, and what went wrong is raised.
"""

from __future__ import annotations

import asyncio
from sys import getsizeof
from typing import Any

import numpy as np
import orjson
from numpy.ma import MaskedArray

from ..batch.arrays import stacked
from ..batch.texts import source_of
from ..errors import HandlerError, ItemError, RequestError, VirtexError
from ..message import Account, Content
from ..tensor import Inputs, Source
from .admission import Admission
from .exchange import Exchange
from .failures import reason_of
from .formats import Format, Wants
from .options import is_number
from .seam import LEFT, Head, Response

ANY_SIZE = 1 << 62  # numbers: a program has what it gives, so it can't announce more


class Values(Response):
    """The answer as it is: values, or why there are none."""

    def __init__(self, status: int, values: list[Any], error: VirtexError | None) -> None:
        Response.__init__(self, status, (), [])
        self.values = values
        self.error = error


class Objects(Format):
    """A list of items, as a JSON parser would make them, or of arrays; and what process_response gave, or arrays."""

    name = "Python"

    def items(self, body: Any, account: Account) -> list[Any]:
        """The items. They are counted as large as each is by itself, without what it refers to."""
        account.admit_items(len(body), sum(map(getsizeof, body)))
        return body  # type: ignore[no-any-return]

    def source(self, body: Any, inputs: Inputs, account: Account) -> Source:
        """Each item is one array, or an object of them, as a message has it or as NumPy's."""
        for i, item in enumerate(body):
            _check_no_mask(item, i)
        return source_of(body, inputs)

    def array(self, body: Any, dtype: np.dtype[Any], account: Account) -> Any:
        """The items as one array."""
        for i, item in enumerate(body):
            _check_no_mask(item, i)
        return stacked(body, dtype, account.admit_items, ANY_SIZE) if body else body

    def reply(self, rows: Any, in_numbers: bool = False) -> Response:
        """Values of the program's own: no batch that comes later writes to them."""
        return Values(200, [_opened(row) for row in rows] if type(rows) is list else _arrays(rows), None)

    def content(self, content: Content) -> Response:
        """The one Content, as it is."""
        return Values(200, [content], None)

    def refuse(self, error: VirtexError) -> Response:
        """What is to be raised; of its own, for the requests of a batch may share one."""
        return Values(error.status, [], error.at(error.index) if isinstance(error, HandlerError) else error)


def _check_no_mask(item: Any, index: int) -> None:
    for value in item.values() if type(item) is dict else (item,):
        if isinstance(value, MaskedArray):
            raise ItemError("expected an array without a mask, which would be lost: fill it, as by filled(0)", index)


def _opened(row: Any) -> Any:
    """What process_response gave. What is nested was written down at once, lest it is filled for the next row."""
    return orjson.loads(orjson.dumps(row)) if type(row) is orjson.Fragment else row


def _arrays(rows: Any) -> list[Any]:
    """An array for each row; a dict of them where they have names. Of no dimensions: scalars of NumPy."""
    arrays = {name: array.copy() for name, array in rows.arrays().items()}
    if "" in arrays:
        return list(arrays[""])
    return [dict(zip(arrays, values, strict=True)) for values in zip(*arrays.values(), strict=True)]


OBJECTS = Objects()
_WANTS = Wants(OBJECTS, OBJECTS)
_HEAD = Head("SUBMIT", "", [], 0, None)  # of all of them: nobody asks for more


class Submission(Exchange):
    """Items that the program itself asks about, and the future of what comes of them. Made by submit()."""

    def put(self, keeper: Admission, items: list[Any], parameters: dict[str, Any] | None, timeout: float) -> None:
        """Queue the items, in place of __init__: the answer may be there at once. Raises RequestError."""
        keeper.enter()
        self._begin(keeper, _HEAD, _WANTS, keeper._clock.now())
        self.parameters = parameters
        self.has_own_time = timeout < keeper.limits.answer_seconds
        self.deadline = self.begun + round(timeout * 1e9)
        self._over: asyncio.Future[None] | None = None
        self._body = items  # type: ignore[assignment]
        self.complete()

    def wait(self) -> asyncio.Future[None] | None:
        """The future of its end; None where that is there already."""
        if self.response is not None:
            return None
        self._over = self.keeper.loop.create_future()
        return self._over

    def end(self) -> None:
        """Nobody waits any more; items that no batch has taken yet are given up."""
        if self.response is None:
            self.cancel(LEFT)

    def outcome(self) -> list[Any]:
        """What came of it, once that is there. Raises why nothing did."""
        answer = self.result()
        assert isinstance(answer, Values)
        if answer.error is not None:
            raise answer.error
        return answer.values

    def refuse(self, error: Exception) -> Response:
        """The answer that says what went wrong."""
        known = error if isinstance(error, (RequestError, ItemError, HandlerError)) else _unknown(error)
        self.lost = reason_of(known), str(known)
        return OBJECTS.refuse(known)

    def _call_back(self) -> None:
        if self._over is not None and not self._over.done():
            self._over.set_result(None)


def _unknown(error: Exception) -> HandlerError:
    failed = HandlerError(f"the items could not be handled: {type(error).__name__}")
    failed.__cause__ = error
    return failed


def submission(
    admission: Admission, items: list[Any], parameters: dict[str, Any] | None, timeout: float | None
) -> Submission:
    """Items in the queue, of a submit() that was checked. Raises RequestError where too many wait for the start."""
    most = admission.limits.answer_seconds
    made: Submission = Submission.__new__(Submission)
    made.put(admission, list(items), parameters, most if timeout is None else min(timeout, most))
    return made


def check_submitted(items: object, parameters: object, timeout: object) -> None:
    """Raise TypeError or ValueError for arguments of submit() that are not as it says."""
    if not isinstance(items, list):
        raise TypeError(f"submit(items): expected a list of items, got a {type(items).__name__}")
    if not isinstance(parameters, (dict, type(None))):
        raise TypeError(f"submit(parameters=): expected a dict, or None, got a {type(parameters).__name__}")
    if timeout is not None and not (is_number(timeout) and timeout > 0):  # type: ignore[operator]
        raise ValueError(f"submit(timeout={timeout!r}): expected seconds above 0, or None")
