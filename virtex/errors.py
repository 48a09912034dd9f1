"""Every error that Virtex raises, and the one table of statuses.

    VirtexError                         500  ours, until a subclass says otherwise
    ├── RequestError                    400  the request can't be taken; carries its own status and headers
    ├── ItemError (also a ValueError)   422  an item of a request is not what the service takes; or any other 4xx
    ├── HandlerError                    500  the handler raised, or gave back what can't be sent
    └── ClientError                     raised by HttpClient only

A status says whose fault it is: 4xx the client's, 500 the handler's, 503 and 504 the moment's.
"""

from __future__ import annotations

from typing import Any

STATUSES = {
    200: "OK",
    400: "Bad Request",  # not HTTP, not JSON, not a message
    401: "Unauthorized",  # and 403, 429: authorize= said so
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",  # with Allow
    406: "Not Acceptable",
    408: "Request Timeout",
    413: "Content Too Large",  # over a limit
    414: "URI Too Long",
    415: "Unsupported Media Type",
    417: "Expectation Failed",
    422: "Unprocessable Content",  # an item was refused
    429: "Too Many Requests",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",  # the handler failed
    501: "Not Implemented",
    503: "Service Unavailable",  # no room now, no answer in time, starting or draining; with Retry-After
    504: "Gateway Timeout",  # the request's deadline passed before its answer was there
    505: "HTTP Version Not Supported",
}

Headers = tuple[tuple[bytes, bytes], ...]

QUOTED = 100  # characters of what a client sent that an error repeats

RETRY_SOON: Headers = ((b"retry-after", b"1"),)  # seconds; for a 503 that passes by itself


def quoted(sent: object) -> str:
    """What a client sent, as an error may repeat it: a header of 60 KB would come back as 360 KB of JSON."""
    text = str(sent)
    return text if len(text) <= QUOTED else f"{text[:QUOTED]}..."


class VirtexError(Exception):
    """Whatever Virtex itself raises: `except VirtexError` has all of the tree.

    headers: what the reply needs beside the usual, names in lower case. index: which item of the request it is about,
    where it is one. dropped: why its request is none for the model, where that is the moment's fault; "" elsewhere.
    """

    status = 500
    headers: Headers = ()
    index: int | None = None
    dropped = ""


class RequestError(VirtexError):
    """A request that can't be taken, as the protocol or the server found it.

    status: one of STATUSES. reason: what was expected and what came, for the client to read. headers: Allow,
    Retry-After and the like. dropped: "full", "predicted", "deadline" or "draining", as the metrics count it; "" where
    the status says enough.
    """

    def __init__(self, status: int, reason: str, headers: Headers = (), dropped: str = "") -> None:
        super().__init__(status, reason, headers, dropped)
        self.status = status
        self.reason = reason
        self.headers = headers
        self.dropped = dropped

    def __str__(self) -> str:
        return self.reason


def too_large(length: int, most: int) -> RequestError:
    """The refusal of a body of so many bytes, or already so many, where `most` are taken."""
    return RequestError(413, f"a body of {length} bytes; the limit is {most}")


class ItemError(VirtexError, ValueError):
    """An item that the service does not take: the client's fault, answered 422. Handlers may raise it.

    reason: what was expected and what came. index: which element of the list at hand (None: not known, Virtex finds
    it out). offset: byte or character within the item's text where it went wrong, if that is known. status: another
    one that says whose fault it is, 404 say (RFC 9110 section 15.5).

    Raises ValueError for a status that is not a whole number from 400 to 499.
    """

    status = 422
    reason, offset = "expected another item", None  # of a subclass that does not call __init__

    def __init__(self, reason: str, index: int | None = None, offset: int | None = None, *, status: int = 422) -> None:
        super().__init__(reason, index, offset)
        self.reason = reason
        self.index = index
        self.offset = offset
        if status != 422:  # which leaves a subclass its own
            if not _is_clients(status):
                raise ValueError(f"ItemError(status={status!r}): expected a whole number from 400 to 499")
            self.status = status

    def at(self, index: int | None) -> ItemError:
        """The same error of another item: a new one, for a handler may raise its own again.

        index: which element of the list at hand. A status that a handler has set, and that is not the client's fault,
        counts as 422.
        """
        moved = ItemError(self.reason, index, self.offset, status=self.status if _is_clients(self.status) else 422)
        moved.__cause__ = self.__cause__
        return moved

    def __str__(self) -> str:
        where = "" if self.index is None else f"item {self.index}: "
        return f"{where}{self.reason}" + ("" if self.offset is None else f" (at offset {self.offset})")


def _is_clients(status: object) -> bool:
    """Whether it is a status of the client's fault; True and False are none."""
    return isinstance(status, int) and not isinstance(status, bool) and 400 <= status <= 499


class HandlerError(VirtexError):
    """The handler raised, or gave back what can't be sent: answered 500.

    reason: the step and what was wrong with it, never the text of the handler's exception, which is the cause and goes
    to the log. index: which item of the request, where it was one item's doing.
    """

    reason = "the handler failed"  # of a subclass that does not call __init__

    def __init__(self, reason: str, index: int | None = None) -> None:
        super().__init__(reason, index)
        self.reason = reason
        self.index = index

    def at(self, index: int | None) -> HandlerError:
        """The same error of another item. index: which."""
        moved = HandlerError(self.reason, index)
        moved.__cause__ = self.__cause__
        return moved

    def __str__(self) -> str:
        return self.reason if self.index is None else f"item {self.index}: {self.reason}"


def moved(error: ItemError | HandlerError, by: int) -> ItemError | HandlerError:
    """The same error of an item that stands `by` places further on. Several requests may share the given one."""
    return error.at(error.index + by) if by and isinstance(error.index, int) else error


class ClientError(VirtexError):
    """A post that brought no answer's data: HttpClient(raise_errors=True) raises it, and predict() does.

    status: the HTTP status, or 0 where no reply came. message: the HttpMessage with the server's words in `.error`.
    request_id: the reply's X-Request-ID, under which the server's log has it; None without one. index: which item of
    the message was refused, where the reply says so.
    """

    status = 0

    def __init__(self, status: int, message: dict[str, Any], request_id: str | None = None) -> None:
        super().__init__(status, message, request_id)
        self.status = status
        self.message = message
        self.request_id = request_id
        self.index = message.get("index")

    def __str__(self) -> str:
        return f"{self.status or 'no reply'}: {self.message.get('error')}"
