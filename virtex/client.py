"""HttpClient: posts messages to a service, from plain code, from threads and from coroutines.

    HttpMessage -> bytes -> httpx2 ... httpx2 -> bytes -> HttpMessage

Rules: knows messages, and nothing of the server. It drives httpx2's transports, not its Client: that would keep
cookies, and read proxies and .netrc from the environment.

Each transport is a lane, one exchange at a time over a connection of its own: an idle one can be closed by
anyone, one in use by nobody, and no exchange pays for a pool's look at all the others.
"""

from __future__ import annotations

import asyncio
import gzip
import os
import weakref
import zlib
from collections.abc import AsyncGenerator, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, closing, suppress
from functools import cache, partial
from typing import TYPE_CHECKING, Any, Self

import httpx2
import orjson

from .errors import ClientError
from .message import HttpMessage

if TYPE_CHECKING:
    from ssl import SSLContext

# Seconds idle; below the 75 of our server and the 60 of most proxies, so that the client is the first to close.
LIMITS = httpx2.Limits(keepalive_expiry=30.0)

Answer = tuple[int, HttpMessage]  # its status, 0 where no reply came
AsyncLane = AsyncGenerator[httpx2.AsyncHTTPTransport, None]


class HttpClient:
    """Posts HttpMessages and gives back the service's, keeping its connections open in between.

    url: where `post(message)` goes, http:// or https://; `post(url, message)` goes elsewhere. timeout: seconds that
    each step may take: connecting, a write, the wait for more of the answer; None is for ever. raise_errors: raise
    ClientError instead of answering HttpMessage(data=[], error=...). headers: sent with every request.
    max_connections: how many messages of a bundle are under way at once, and how many idle connections are kept, of
    plain code and of each event loop. ssl_context: for https, in place of one that trusts whom the system trusts.

    May be shared by threads and by event loops, and used after a fork: a child opens its own connections. A post is
    never sent twice: a connection that breaks before its answer is an error, for the model may have run. One that the
    server closed, or that was idle for 30 s, is not used again. Proxies, .netrc and certificates of the environment
    are not used, cookies are not kept, redirects are not followed: one is an error that names its target.
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
        self._headers = _headers(headers or {})
        self._context = ssl_context or _system_trust()
        self._closed = False
        self._lanes: list[httpx2.HTTPTransport] = []  # the idle ones, newest last
        self._lanes_of_loops: dict[asyncio.AbstractEventLoop, list[AsyncLane]] = {}
        weakref.finalize(self, _close_beyond, 0, self._lanes)  # unlike __del__, it also runs at exit
        _clients.add(self)

    # Posts

    def post(self, url: str | HttpMessage | None = None, message: HttpMessage | None = None) -> HttpMessage:
        """Post one message, `post(message)` or `post(url, message)`, and wait for its answer.

        url: where to, if not to the client's. message: what to post.

        Gives the service's HttpMessage, `.data` in the order of the message's; where none came, its `.error` says why.
        Raises ClientError for the latter with raise_errors=True, TypeError for what is no message, ValueError without
        a URL, RuntimeError once closed.
        """
        url, message = _given(url, message)
        return self._deliver(self._exchange(url, *_checked([message])))

    async def post_async(self, url: str | HttpMessage | None = None, message: HttpMessage | None = None) -> HttpMessage:
        """Post one message as `post` does, without blocking the running loop. Cancelling it closes its connection.

        url: where to, if not to the client's. message: what to post.
        """
        url, message = _given(url, message)
        return self._deliver(await self._exchange_async(url, *_checked([message])))

    def post_bundle(
        self, url: str | Iterable[HttpMessage] | None = None, messages: Iterable[HttpMessage] | None = None
    ) -> list[HttpMessage]:
        """Post many messages, `max_connections` of them at a time, and wait for every answer.

        url: where to, if not to the client's. messages: what to post.

        Gives the answers in the order of the messages. Raises as `post` does, before anything is sent where a message
        is none; with raise_errors=True the first failure of the list is raised when all have ended.
        """
        url, messages = _given(url, messages)
        bundle = _checked(messages)
        with ThreadPoolExecutor(min(self.max_connections, len(bundle)) or 1) as threads:
            answers = list(threads.map(partial(self._exchange, url), bundle))
        return [self._deliver(answer) for answer in answers]

    async def post_bundle_async(
        self, url: str | Iterable[HttpMessage] | None = None, messages: Iterable[HttpMessage] | None = None
    ) -> list[HttpMessage]:
        """Post many messages as `post_bundle` does, without blocking the running loop.

        url: where to, if not to the client's. messages: what to post.
        """
        url, messages = _given(url, messages)
        turns = asyncio.Semaphore(self.max_connections)

        async def in_turn(message: HttpMessage) -> Answer:
            async with turns:
                return await self._exchange_async(url, message)

        answers = await asyncio.gather(*map(in_turn, _checked(messages)))
        return [self._deliver(answer) for answer in answers]

    # The end

    def close(self) -> None:
        """Close every idle connection; a post under way ends first and closes its own. May be called again."""
        self._closed = True
        _close_beyond(0, self._lanes)
        self._lanes_of_loops.clear()

    async def aclose(self) -> None:
        """Close as `close` does, and wait until the idle connections of the running loop are closed."""
        lanes = self._lanes_of_loops.pop(asyncio.get_running_loop(), [])
        self.close()
        for lane in lanes:
            await lane.aclose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    # Inside

    def _request(self, url: str | None, message: HttpMessage) -> httpx2.Request:
        if self._closed:
            raise RuntimeError("this HttpClient is closed")
        target = _parse(self.url if url is None else url)
        extensions = {"timeout": httpx2.Timeout(self.timeout).as_dict()}
        return httpx2.Request("POST", target, headers=self._headers, content=message.json, extensions=extensions)

    def _exchange(self, url: str | None, message: HttpMessage) -> Answer:
        request = self._request(url, message)
        try:
            lane = self._lanes.pop()
        except IndexError:
            lane = httpx2.HTTPTransport(self._context, limits=LIMITS)
        try:
            with closing(lane.handle_request(request)) as response:
                content = _decoded(response, b"".join(response.iter_raw()))
        except httpx2.RequestError as error:
            return 0, _refusal(request, error)
        finally:
            self._lanes.append(lane)
            _close_beyond(0 if self._closed else self.max_connections, self._lanes)
        return response.status_code, _message(request, response, content)

    async def _exchange_async(self, url: str | None, message: HttpMessage) -> Answer:
        request = self._request(url, message)
        lanes = self._lanes_of_this_loop()
        lane = lanes.pop() if lanes else _async_lane(self._context)
        transport = await anext(lane)
        try:
            async with aclosing(await transport.handle_async_request(request)) as response:
                content = _decoded(response, b"".join([piece async for piece in response.aiter_raw()]))
        except httpx2.RequestError as error:
            return 0, _refusal(request, error)
        finally:
            if len(lanes) < self.max_connections:
                lanes.append(lane)
        return response.status_code, _message(request, response, content)

    def _lanes_of_this_loop(self) -> list[AsyncLane]:
        loop = asyncio.get_running_loop()
        if loop not in self._lanes_of_loops:
            for ended in [other for other in list(self._lanes_of_loops) if other.is_closed()]:
                self._lanes_of_loops.pop(ended, None)
        return self._lanes_of_loops.setdefault(loop, [])

    def _deliver(self, answer: Answer) -> HttpMessage:
        status, message = answer
        if self.raise_errors and message.error is not None:
            raise ClientError(status, message)
        return message


# Lanes


def _close_beyond(count: int, lanes: list[httpx2.HTTPTransport]) -> None:
    with suppress(IndexError):  # other threads take from the list, too
        while len(lanes) > count:
            lanes.pop().close()


async def _async_lane(context: SSLContext) -> AsyncLane:
    """A lane of a loop, closed in time: asyncio ends a generator once it is dropped, and all when the loop ends."""
    async with httpx2.AsyncHTTPTransport(context, limits=LIMITS) as transport:
        while True:
            yield transport


@cache  # reading the certificates takes longer than a hundred posts
def _system_trust() -> SSLContext:
    return httpx2.create_ssl_context(trust_env=False)


_clients: weakref.WeakSet[HttpClient] = weakref.WeakSet()
_of_parent: list[object] = []  # kept for ever: what a child drops of its parent's loops, it would make them close


def _after_fork() -> None:
    """In the child: close its copies of the idle connections, which says nothing to the server."""
    for client in list(_clients):
        _close_beyond(0, client._lanes)
        _of_parent.append(client._lanes_of_loops)
        client._lanes_of_loops = {}


os.register_at_fork(after_in_child=_after_fork)


# Arguments


def _given(url: Any, content: Any) -> tuple[str | None, Any]:
    """Tell `post(content)` from `post(url, content)`."""
    return (None, url) if content is None and not isinstance(url, str) else (url, content)


def _checked(messages: Any) -> list[HttpMessage]:
    if messages is None or isinstance(messages, (HttpMessage, str, bytes)):
        raise TypeError(f"messages: expected an iterable of HttpMessages, got {type(messages).__name__}")
    bundle = list(messages)
    for message in bundle:
        if not isinstance(message, HttpMessage):
            raise TypeError(f"message: expected an HttpMessage, got {type(message).__name__}")
        if not isinstance(message.data, list):
            raise TypeError(f"message.data: expected a list of items, got {type(message.data).__name__}")
    return bundle


def _headers(given: Mapping[str, str]) -> httpx2.Headers:
    fields = {"accept": "application/json", "content-type": "application/json"}
    for name, value in given.items():
        if name.lower() in ("connection", "content-length", "host", "transfer-encoding"):
            raise ValueError(f"headers: {name!r} belongs to the connection and is set by the client itself")
        if not name.isascii() or not name.replace("-", "").replace("_", "").isalnum():
            raise ValueError(f"headers: expected a name of letters, digits, '-' and '_', got {name!r}")
        if not value.isprintable():
            raise ValueError(f"headers: {name}: expected printable characters, got {value!r}")
        fields[name.lower()] = value
    return httpx2.Headers(fields, encoding="latin-1")


def _parse(url: object) -> httpx2.URL:
    if not isinstance(url, str):
        raise ValueError(f"no URL to post to: expected HttpClient(url) or post(url, message), got {url!r}")
    try:
        parsed = httpx2.URL(url)
    except httpx2.InvalidURL:
        parsed = httpx2.URL()
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ValueError(f"expected a URL like http://host:8081/path, got {url!r}")
    if parsed.userinfo:
        raise ValueError("credentials in a URL end up in logs: put them in HttpClient(headers={'authorization': ...})")
    return parsed


# Answers


def _decoded(response: httpx2.Response, content: bytes) -> bytes:
    """What a reply's bytes mean. Raises DecodingError where they are broken or cut, which httpx2 lets pass."""
    for coding in reversed(response.headers.get_list("content-encoding", split_commas=True)):
        try:
            content = _CODINGS[coding.strip().lower()](content)
        except KeyError:
            raise httpx2.DecodingError(f"content-encoding {coding!r}: expected gzip, deflate or identity") from None
        except (EOFError, OSError, zlib.error) as error:
            raise httpx2.DecodingError(f"a {coding} answer that is broken or cut: {error}") from None
    return content


def _inflate(content: bytes) -> bytes:
    try:
        return zlib.decompress(content)
    except zlib.error:  # RFC 9110 section 8.4.1.2: some send it without the zlib format around it
        return zlib.decompress(content, -zlib.MAX_WBITS)


_CODINGS = {"gzip": gzip.decompress, "x-gzip": gzip.decompress, "deflate": _inflate, "identity": bytes, "": bytes}


def _message(request: httpx2.Request, response: httpx2.Response, body: bytes) -> HttpMessage:
    """The message that a reply carries, or one whose error says what came instead."""
    try:
        content = orjson.loads(body)
    except orjson.JSONDecodeError:
        content = None
    match content:
        case {"error": error} if error is not None:
            words = error if isinstance(error, str) else orjson.dumps(error).decode()
            return HttpMessage(
                data=[], error=words or f"{request.url}: an error without words, status {response.status_code}"
            )
        case {"data": list(data)} if response.is_success:
            return HttpMessage(data=data)
    came = f" with {len(body)} bytes: {body[:200].decode('utf-8', 'replace')!r}"
    if response.has_redirect_location:
        came = f", a redirect to {response.headers['location']}, which is not followed"
    error = f"{request.url}: expected a message, got status {response.status_code}{came}"
    return HttpMessage(data=[], error=error)


def _refusal(request: httpx2.Request, error: httpx2.RequestError) -> HttpMessage:
    """The message for an exchange that brought no reply."""
    words = str(error) or "the connection broke before the answer came"
    if isinstance(error, httpx2.TimeoutException):
        words = f"no answer within {request.extensions['timeout']['read']:g} s"
    return HttpMessage(data=[], error=f"{request.url}: {words}")
