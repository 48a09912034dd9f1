"""What a load test sends: bodies, from messages, files and shapes.

Rules: makes bytes once, ahead of the test; knows neither clocks nor sockets.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

from ..message import HttpMessage

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Source = HttpMessage | str | npt.NDArray[np.generic]

JSON = "application/json"


class Payload(NamedTuple):
    """The body of a request.

    body: its bytes. items: how many items it holds, or queries as the first Virtex called them. content_type: what it
    says it is.
    """

    body: bytes
    items: int = 1
    content_type: str = JSON


def payload_of(message: HttpMessage) -> Payload:
    """A message as a payload. Raises TypeError for what is no message, or what JSON can't carry."""
    if not isinstance(message, HttpMessage):
        raise TypeError(f"message: expected an HttpMessage, got {type(message).__name__}")
    if not isinstance(message.data, list):
        raise TypeError(f"message.data: expected a list of items, got {type(message.data).__name__}")
    return Payload(message.json, len(message.data))


def payloads_of(sources: Iterable[Source] | Source, *, items: int = 1, binary: bool = False) -> list[Payload]:
    """What messages, arrays, files and shapes hold, as payloads."""
    raise NotImplementedError
