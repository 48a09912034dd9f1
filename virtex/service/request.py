"""What a handler may know of who asked: Request.

Rules: values, and of the package only heads. It is made on the event loop and read wherever the handler runs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from .seam import Head

Fields = Iterable[tuple[bytes, bytes]]


class Request:
    """Who asked: what the three methods of a handler are told of a request, where they name `requests` or `request`.

    method: of the request line. path: of it, too, percent-decoded, without query and root path. query: what follows
    the question mark, as it came. headers: a mapping that is read only; its keys are in lower case, a key is found in
    any case, and fields of one name are joined by ', ' (RFC 9110 section 5.3). id: the x-request-id of the answer, as
    the log has it. parameters: the member of that name of the message, or the fields of a form; {} without. deadline:
    when the answer comes too late, in seconds of time.perf_counter().

    All items of a request have the same one. Made by hand, for validate(): headers may be any mapping of str.
    """

    __slots__ = ("_fields", "_headers", "deadline", "id", "method", "parameters", "path", "query")

    def __init__(
        self,
        method: str = "POST",
        path: str = "/",
        query: str = "",
        headers: Mapping[str, str] | Fields = (),
        id: str = "",  # noqa: A002 (its name everywhere)
        parameters: dict[str, Any] | None = None,
        deadline: float = math.inf,
    ) -> None:
        self.method = method
        self.path = path
        self.query = query
        self.id = id
        self.parameters = {} if parameters is None else parameters
        self.deadline = deadline
        self._fields = headers
        self._headers: _Headers | None = None

    @property
    def headers(self) -> Mapping[str, str]:
        """The header fields, by their names."""
        if self._headers is None:
            self._headers = _Headers(self._fields)
        return self._headers

    def __repr__(self) -> str:
        return f"Request({self.method} {self.path}, id={self.id!r})"


def request_of(head: Head, request_id: bytes, parameters: dict[str, Any] | None, deadline: int) -> Request:
    """Who sent that head. deadline: in ns of the clock."""
    query = head.query.decode("latin-1")
    return Request(*(head.method, head.path, query, head.headers, request_id.decode()), parameters, deadline / 1e9)


class _Headers(Mapping[str, str]):
    """Header fields by name, whatever its case."""

    __slots__ = ("_values",)

    def __init__(self, fields: Mapping[str, str] | Fields) -> None:
        values: dict[str, str] = {}
        for key, value in _texts(fields):
            values[key] = f"{values[key]}, {value}" if key in values else value
        self._values = values

    def __getitem__(self, name: str) -> str:
        return self._values[name.lower()]

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name.lower() in self._values

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return repr(self._values)


def _texts(fields: Mapping[str, str] | Fields) -> Iterator[tuple[str, str]]:
    """The fields as text, names in lower case; a byte of a value is a character (RFC 9110 section 5.5)."""
    if isinstance(fields, Mapping):
        for name, text in fields.items():
            yield name.lower(), text
    else:
        for key, value in fields:
            yield key.decode("latin-1").lower(), value.decode("latin-1")
