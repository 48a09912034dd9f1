"""HttpClient: posts messages to a service, from plain code, from threads and from coroutines.

    HttpMessage -> bytes -> wire ... wire -> bytes -> HttpMessage

A request is never sent twice: a connection that breaks before its answer is an error, for the model may have run.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Iterable, Mapping
from functools import lru_cache
from types import TracebackType
from typing import TYPE_CHECKING, Self, overload
from urllib.parse import quote, urlsplit

import orjson
from httptools import HttpParserError

from .errors import ClientError
from .message import HttpMessage
from .wire import Origin, Outcome, Pool, Reply, Work, addresses, addresses_async, drive, drive_async, exchange

if TYPE_CHECKING:
    from ssl import SSLContext

JOINED = 64 * 1024  # a body up to this size leaves in one send() with its head; copying a longer one costs more


class HttpClient:
    """Posts HttpMessages and gives back the service's, keeping its connections open in between.

    url: where `post(message)` goes, http:// or https://; `post(url, message)` goes elsewhere. timeout: seconds from the
    call to the whole answer, connecting included; None waits for ever. raise_errors: raise ClientError instead of
    answering HttpMessage(data=[], error=...). headers: sent with every request. max_connections: how many messages of
    a bundle are under way at once, and how many idle connections per origin are kept. ssl_context: for https, in place
    of ssl.create_default_context().

    May be shared by threads and by event loops, and used after a fork: a child opens its own connections. Proxies of
    the environment are not used and redirects are not followed: a redirect is an error that names its target.
    Raises ValueError for a URL, a header or a number that can't be meant.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        timeout: float | None = 60.0,
        raise_errors: bool = False,
        headers: Mapping[str, str] | None = None,
        max_connections: int = 64,
        ssl_context: SSLContext | None = None,
    ) -> None:
        if timeout is not None and not timeout > 0:
            raise ValueError(f"timeout: expected seconds above 0 or None, got {timeout!r}")
        if max_connections < 1:
            raise ValueError(f"max_connections: expected 1 or more, got {max_connections!r}")
        if url is not None:
            _parse(url)
        self.url = url
        self.timeout = timeout
        self.raise_errors = raise_errors
        self.max_connections = max_connections
        self._headers = _header_lines(headers or {})
        self._pool = Pool(max_connections, ssl_context)
        # Not __del__: this also runs at exit, and never on a client whose __init__ raised.
        self._close = weakref.finalize(self, self._pool.close)

    # One message

    @overload
    def post(self, url: HttpMessage, /) -> HttpMessage: ...
    @overload
    def post(self, url: str | None = None, message: HttpMessage | None = None) -> HttpMessage: ...
    def post(self, url: str | HttpMessage | None = None, message: HttpMessage | None = None) -> HttpMessage:
        """Post one message, `post(message)` or `post(url, message)`, and wait for its answer.

        Gives the service's HttpMessage, `.data` in the order of the message's; where none came, its `.error` says why.
        Raises ClientError for the latter with raise_errors=True, TypeError for what is no message, ValueError without
        a URL, RuntimeError once closed.
        """
        url, message = self._arguments(url, message)
        return self._answer(url, drive([self._work(url, message)], 1, self.timeout)[0])

    @overload
    async def post_async(self, url: HttpMessage, /) -> HttpMessage: ...
    @overload
    async def post_async(self, url: str | None = None, message: HttpMessage | None = None) -> HttpMessage: ...
    async def post_async(self, url: str | HttpMessage | None = None, message: HttpMessage | None = None) -> HttpMessage:
        """Post one message as `post` does, without blocking the running loop. Cancelling it closes its connection."""
        url, message = self._arguments(url, message)
        return self._answer(url, await self._outcome(url, message))

    # Many messages

    @overload
    def post_bundle(self, url: Iterable[HttpMessage], /) -> list[HttpMessage]: ...
    @overload
    def post_bundle(
        self, url: str | None = None, messages: Iterable[HttpMessage] | None = None
    ) -> list[HttpMessage]: ...
    def post_bundle(
        self, url: str | Iterable[HttpMessage] | None = None, messages: Iterable[HttpMessage] | None = None
    ) -> list[HttpMessage]:
        """Post many messages, `max_connections` of them at a time, and wait for every answer.

        Gives the answers in the order of the messages. Raises as `post` does, before anything is sent where a message
        is none; with raise_errors=True the first failure of the list is raised when all have ended.
        """
        url, bundle = self._bundle(url, messages)
        outcomes = drive((self._work(url, message) for message in bundle), self.max_connections, self.timeout)
        return [self._answer(url, outcome) for outcome in outcomes]

    @overload
    async def post_bundle_async(self, url: Iterable[HttpMessage], /) -> list[HttpMessage]: ...
    @overload
    async def post_bundle_async(
        self, url: str | None = None, messages: Iterable[HttpMessage] | None = None
    ) -> list[HttpMessage]: ...
    async def post_bundle_async(
        self, url: str | Iterable[HttpMessage] | None = None, messages: Iterable[HttpMessage] | None = None
    ) -> list[HttpMessage]:
        """Post many messages as `post_bundle` does, without blocking the running loop."""
        url, bundle = self._bundle(url, messages)
        outcomes: list[Outcome] = [TimeoutError()] * len(bundle)
        todo = iter(enumerate(bundle))

        async def lane() -> None:
            for index, message in todo:
                outcomes[index] = await self._outcome(url, message)

        async with asyncio.TaskGroup() as lanes:
            for _ in range(min(self.max_connections, len(bundle))):
                lanes.create_task(lane())
        return [self._answer(url, outcome) for outcome in outcomes]

    # The end

    def close(self) -> None:
        """Close every idle connection; a post under way ends first and closes its own. May be called again."""
        self._close()

    async def aclose(self) -> None:
        """Close as `close` does: no connection belongs to a loop, so there is nothing to wait for."""
        self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self._close()

    # Inside

    def _arguments(self, url: str | HttpMessage | None, message: HttpMessage | None) -> tuple[str, HttpMessage]:
        if message is None and not isinstance(url, str):
            url, message = None, url
        message = _checked(message)
        return self._url(url), message

    def _bundle(
        self, url: str | Iterable[HttpMessage] | None, messages: Iterable[HttpMessage] | None
    ) -> tuple[str, list[HttpMessage]]:
        if messages is None and not isinstance(url, str):
            url, messages = None, url
        if messages is None or isinstance(messages, (HttpMessage, str, bytes)):
            raise TypeError(f"messages: expected an iterable of HttpMessages, got {type(messages).__name__}")
        return self._url(url), [_checked(message) for message in messages]

    def _url(self, url: object) -> str:
        if url is None:
            url = self.url
        if not isinstance(url, str):
            raise ValueError(f"no URL to post to: expected HttpClient(url) or post(url, message), got {url!r}")
        return url

    def _request(self, url: str, message: HttpMessage) -> tuple[Origin, list[bytes]]:
        if self._pool.closed:
            raise RuntimeError("this HttpClient is closed")
        origin, target, host = _parse(url)
        body = message.json
        start = b"POST %b HTTP/1.1\r\nhost: %b\r\n" % (target, host)
        head = b"%b%bcontent-length: %d\r\n\r\n" % (start, self._headers, len(body))
        return origin, [head + body] if len(body) <= JOINED else [head, body]

    def _work(self, url: str, message: HttpMessage) -> Work[Reply]:
        origin, request = self._request(url, message)
        sock = self._pool.take(origin)
        return (yield from exchange(self._pool, origin, sock or addresses(origin), request))

    async def _outcome(self, url: str, message: HttpMessage) -> Outcome:
        origin, request = self._request(url, message)
        try:
            async with asyncio.timeout(self.timeout):
                sock = self._pool.take(origin)
                work = exchange(self._pool, origin, sock or await addresses_async(origin), request)
                return await drive_async(work)
        except (OSError, HttpParserError) as error:
            return error

    def _answer(self, url: str, outcome: Outcome) -> HttpMessage:
        if isinstance(outcome, Exception):
            status, message = 0, HttpMessage(data=[], error=f"{url}: {_words(outcome, self.timeout)}")
        else:
            status, message = outcome.status, _message(url, outcome)
        if self.raise_errors and message.error is not None:
            raise ClientError(status, message)
        return message


# Arguments


def _checked(message: object) -> HttpMessage:
    if not isinstance(message, HttpMessage):
        raise TypeError(f"message: expected an HttpMessage, got {type(message).__name__}")
    if not isinstance(message.data, list):
        raise TypeError(f"message.data: expected a list of items, got {type(message.data).__name__}")
    return message


def _header_lines(headers: Mapping[str, str]) -> bytes:
    fields = {"accept": "application/json", "content-type": "application/json"}
    for name, value in headers.items():
        if name.lower() in ("connection", "content-length", "host", "transfer-encoding"):
            raise ValueError(f"headers: {name!r} belongs to the connection and is set by the client itself")
        if not name.isascii() or not name.replace("-", "").replace("_", "").isalnum():
            raise ValueError(f"headers: expected a name of letters, digits, '-' and '_', got {name!r}")
        if not value.isprintable():
            raise ValueError(f"headers: {name}: expected printable characters, got {value!r}")
        fields[name.lower()] = value
    return "".join(f"{name}: {value}\r\n" for name, value in fields.items()).encode("latin-1")


@lru_cache(maxsize=256)  # parsing costs as much as an exchange on loopback; a caller uses few URLs
def _parse(url: str) -> tuple[Origin, bytes, bytes]:
    """Split a URL into its origin, the request target and the Host header."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"expected a URL like http://host:8081/path, got {url!r}")
    if parts.username is not None:
        raise ValueError("credentials in a URL end up in logs: put them in HttpClient(headers={'authorization': ...})")
    port = parts.port or (443 if parts.scheme == "https" else 80)
    host = parts.hostname if parts.hostname.isascii() else parts.hostname.encode("idna").decode()
    target = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~")
    if parts.query:
        target += "?" + quote(parts.query, safe="/%:@!$&'()*+,;=~?")
    name = f"[{host}]" if ":" in host else host
    return Origin(parts.scheme, host, port), target.encode(), (f"{name}:{port}" if parts.port else name).encode()


# Answers


def _message(url: str, reply: Reply) -> HttpMessage:
    """The HttpMessage a reply carries, or one whose error says what came instead."""
    try:
        content = orjson.loads(reply.body)
    except orjson.JSONDecodeError:
        content = None
    ok = 200 <= reply.status < 300
    if isinstance(content, dict):
        data, error = content.get("data"), content.get("error")
        if error:
            return HttpMessage(data=[], error=error if isinstance(error, str) else orjson.dumps(error).decode())
        if ok and isinstance(data, list):
            return HttpMessage(data=data)
    return HttpMessage(data=[], error=f"{url}: expected a message, got {_glimpse(reply)}")


def _glimpse(reply: Reply) -> str:
    if reply.location:
        return f"status {reply.status}, a redirect to {reply.location.decode('latin-1')}, which is not followed"
    if reply.encoding not in (b"", b"identity"):
        coding = reply.encoding.decode("latin-1")
        return f"status {reply.status} with Content-Encoding {coding}, which was not asked for"
    text = reply.body[:200].decode("utf-8", "replace")
    return f"status {reply.status} with {len(reply.body)} bytes: {text!r}"


def _words(error: Exception, timeout: float | None) -> str:
    if isinstance(error, TimeoutError) and error.errno is None:
        return f"no answer within {timeout:g} s"
    if isinstance(error, HttpParserError):
        return f"expected an HTTP reply, got bytes that are none: {error}"
    return str(error) or type(error).__name__
