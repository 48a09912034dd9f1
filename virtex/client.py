"""HttpClient: posts messages to a service, from plain code, from threads and from coroutines.

    HttpMessage -> bytes -> httpx2 ... httpx2 -> bytes -> HttpMessage

Rules: knows messages, and nothing of the server. It drives the connections of httpx2, not its Client: that would keep
cookies, and read proxies and .netrc from the environment. posting/ has the parts: the pool and its lanes,
retries, bundles, arrays.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Self

import httpcore2

from .errors import ClientError
from .message import HttpMessage
from .posting import arrays as of_arrays
from .posting.bundles import Bar, Place, in_tasks, in_threads
from .posting.outcomes import Outcome, message_of
from .posting.pool import Pool
from .posting.retries import Post, Retries
from .posting.targets import Target, check_message, checked, headers_of, target_of

if TYPE_CHECKING:
    from ssl import SSLContext

JSON = "application/json"
Steps = Generator[Post, Outcome, Any]


class HttpClient:
    """Posts HttpMessages and gives back the service's, keeping its connections open in between.

    url: where `post(message)` goes, http:// or https://; `post(url, message)` goes elsewhere. timeout: seconds from the
    call of post() until it gives up, all its tries together; None is for ever. The service is told what is left, as
    X-Request-Timeout-Ms. raise_errors: raise ClientError instead of answering HttpMessage(data=[], error=...).
    headers: sent with every request. api_key: sent as `Authorization: Bearer KEY`.
    max_connections: how many messages of a bundle are under way at once, and how many idle connections are kept, of
    plain code and of each event loop. ssl_context: for https, in place of one that trusts whom the system trusts.
    uds: the path of a unix socket to connect to, whatever the URL's host is; the URL may then be left out. retry: what
    is tried again. "safe": a connection that can't be made, one that was closed before a byte of the request was
    written, and a 503 with Retry-After, when that is over. "always": also a connection that breaks later, and a 502,
    though the model may have run. "never": nothing.

    May be shared by threads and by event loops, and used after a fork: a child opens its own connections. A connection
    that the server closed, or that was idle for 30 s, is not used again. What fails is tried up to 4 times, a 503 until
    the timeout; waits grow, with jitter. All posts of a client together are tried again 100 times at first, then 10
    times a second and once for each 5 posts: beyond that a failure stands, but in a bundle, which waits. Once a
    message of a bundle is given up after its whole timeout, and no other found room in that time, those that are left
    are tried once each, until one finds room. Proxies,
    .netrc and certificates of the environment are not used, cookies are not kept, redirects are not followed: one is
    an error that names its target.
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
        uds: str | os.PathLike[str] | None = None,
        retry: str = "safe",
        api_key: str | None = None,
    ) -> None:
        if timeout is not None and not 0 < timeout <= 1e9:
            raise ValueError(f"timeout: expected seconds above 0 or None, got {timeout!r}")
        if max_connections < 1:
            raise ValueError(f"max_connections: expected 1 or more, got {max_connections!r}")
        if url is None and uds is not None:
            url = "http://localhost/"
        if url is not None:
            target_of(url)
        self.url = url
        self.timeout = timeout
        self.raise_errors = raise_errors
        self.max_connections = max_connections
        self._headers = headers_of(headers or {}, api_key)
        if b"x-request-timeout-ms" in self._headers:
            raise ValueError("headers: 'X-Request-Timeout-Ms' says what is left of timeout=, and is set by the client")
        self._pool = Pool(max_connections, ssl_context, None if uds is None else os.fspath(uds))
        self._retries = Retries(retry)
        self._services: dict[str, dict[str, Any]] = {}  # by URL, what their GET / said

    # Posts

    def post(self, url: str | HttpMessage | None = None, message: HttpMessage | None = None) -> HttpMessage:
        """Post one message, `post(message)` or `post(url, message)`, and wait for its answer.

        url: where to, if not to the client's. message: what to post.

        Gives the service's HttpMessage, `.data` in the order of the message's; where none came, its `.error` says why.
        Raises ClientError for the latter with raise_errors=True, TypeError for what is no message, ValueError without
        a URL, RuntimeError once closed.
        """
        url, message = _given(url, message)
        check_message(message)
        post = self._post(url, message)
        return self._deliver(post, self._exchange(post))

    async def post_async(self, url: str | HttpMessage | None = None, message: HttpMessage | None = None) -> HttpMessage:
        """Post one message as `post` does, without blocking the running loop. Cancelling it closes its connection.

        url: where to, if not to the client's. message: what to post.
        """
        url, message = _given(url, message)
        check_message(message)
        post = self._post(url, message)
        return self._deliver(post, await self._exchange_async(post))

    def post_bundle(
        self,
        url: str | Iterable[HttpMessage] | None = None,
        messages: Iterable[HttpMessage] | None = None,
        *,
        progress: bool = False,
    ) -> list[HttpMessage]:
        """Post many messages, `max_connections` of them at a time, and wait for every answer.

        url: where to, if not to the client's. messages: what to post. progress: show a bar on stderr; needs tqdm, of
        the extra [loadtest].

        Where the service has no room, fewer are under way. Each has the client's timeout, from when it is first sent.
        Gives the answers in the order of the messages. Raises as `post` does, before anything is sent where a message
        is none; with raise_errors=True the first failure of the list is raised when all have ended.
        """
        url, messages = _given(url, messages)
        bundle = checked(messages)

        def post_one(message: HttpMessage, place: Place) -> tuple[Post, Outcome]:
            post = self._post(url, message, place)
            return post, self._exchange(post)

        with Bar(len(bundle), progress) as done:
            outcomes = in_threads(bundle, self.max_connections, post_one, done)
        return [self._deliver(*outcome) for outcome in outcomes]

    async def post_bundle_async(
        self,
        url: str | Iterable[HttpMessage] | None = None,
        messages: Iterable[HttpMessage] | None = None,
        *,
        progress: bool = False,
    ) -> list[HttpMessage]:
        """Post many messages as `post_bundle` does, without blocking the running loop.

        url: where to, if not to the client's. messages: what to post. progress: show a bar on stderr; needs tqdm.
        """
        url, messages = _given(url, messages)
        bundle = checked(messages)

        async def post_one(message: HttpMessage, place: Place) -> tuple[Post, Outcome]:
            post = self._post(url, message, place)
            return post, await self._exchange_async(post)

        with Bar(len(bundle), progress) as done:
            outcomes = await in_tasks(bundle, self.max_connections, post_one, done)
        return [self._deliver(*outcome) for outcome in outcomes]

    # Arrays

    def predict(self, url: Any = None, arrays: Any = None) -> Any:
        """The model's outputs for arrays, `predict(arrays)` or `predict(url, arrays)`.

        url: where to, if not to the client's. arrays: an array whose rows are the items, shape (n, *shape of an item),
        or a list of n arrays, one for each; for named inputs a dict of these.

        They go as .npy where the service's GET / says that it takes it, which is asked once for each URL; else, and
        with names, as base64. Gives an array of n rows, or a list of n arrays for a list; for named outputs a dict of
        these; dtypes as the service sent them, those of JSON numbers as np.asarray reads them.
        Raises ClientError for whatever is no such answer; TypeError or ValueError for what are no such arrays, or have
        a dtype that does not travel; RuntimeError once closed.
        """
        steps = self._predict(*_given(url, arrays))
        try:
            post = next(steps)
            while True:
                post = steps.send(self._exchange(post))
        except StopIteration as end:
            return end.value

    async def predict_async(self, url: Any = None, arrays: Any = None) -> Any:
        """The model's outputs for arrays as `predict` gives them, without blocking the running loop.

        url: where to, if not to the client's. arrays: as for predict.
        """
        steps = self._predict(*_given(url, arrays))
        try:
            post = next(steps)
            while True:
                post = steps.send(await self._exchange_async(post))
        except StopIteration as end:
            return end.value

    @staticmethod
    def validate_message(message: HttpMessage) -> None:
        """Raise TypeError for what can't be posted: no HttpMessage, or one whose data is no list.

        message: what is to be posted.
        """
        check_message(message)

    # The end

    def close(self) -> None:
        """Close every idle connection; a post under way ends first and closes its own. May be called again."""
        self._pool.close()

    async def aclose(self) -> None:
        """Close as `close` does, and wait until the idle connections of the running loop are closed."""
        await self._pool.aclose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    # Inside

    def _post(self, url: str | None, message: HttpMessage, place: Place | None = None) -> Post:
        return self._begin("POST", self._target(url), (JSON, JSON), message.json, place)

    def _target(self, url: str | None) -> Target:
        url = self.url if url is None else url
        if url is None:
            raise ValueError("no URL to post to: expected HttpClient(url) or post(url, message)")
        return target_of(url)

    def _begin(
        self, method: str, target: Target, kinds: tuple[str, str], body: bytes = b"", place: Place | None = None
    ) -> Post:
        """kinds: of the body, and of the answer."""
        if self._pool.is_closed:
            raise RuntimeError("this HttpClient is closed")
        fields = {b"content-type": kinds[0].encode(), b"accept": kinds[1].encode()} | self._headers
        self._retries.budget.deposit()
        return Post(method, target, list(fields.items()), body, self.timeout, self._retries.clock, place)

    def _exchange(self, post: Post) -> Outcome:
        outcome = self._pool.exchange(post)
        while (wait := self._retries.wait(post, outcome)) is not None:
            self._retries.sleep(wait)
            outcome = self._pool.exchange(post)
        return outcome

    async def _exchange_async(self, post: Post) -> Outcome:
        outcome = await self._pool.exchange_async(post)
        while (wait := self._retries.wait(post, outcome)) is not None:
            await self._retries.sleep_async(wait)
            outcome = await self._pool.exchange_async(post)
        return outcome

    def _deliver(self, post: Post, outcome: Outcome) -> HttpMessage:
        status, message = message_of(post.name, post.timeout, outcome)
        if self.raise_errors and message.error is not None:
            raise ClientError(status, message, outcome.request_id)
        return message

    def _predict(self, url: str | None, arrays: Any) -> Steps:
        """The posts of a prediction; each is sent its outcome."""
        asked = of_arrays.Asked(arrays)
        target = self._target(url)
        service = yield from self._service(target)
        accept = of_arrays.accept(service)
        body = asked.npy(service)
        if body is not None:
            post = self._begin("POST", target, (of_arrays.NPY, accept), body)
            outcome = yield post
            if outcome.status == 415:  # it takes it no more
                self._services.pop(target[2], None)
        if body is None or outcome.status == 415:
            post = self._begin("POST", target, (JSON, accept), asked.json())
            outcome = yield post
        return of_arrays.answer_of(asked, post, outcome)

    def _service(self, target: Target) -> Steps:
        """What a service says of itself: at the URL itself, where it shares a server with others, or at the root."""
        known = self._services.get(target[2])
        if known is not None:
            return known
        url, host, name = target
        paths = dict.fromkeys((url.target.partition(b"?")[0], b"/"))
        for path in paths:
            at = httpcore2.URL(scheme=url.scheme, host=url.host, port=url.port, target=path)
            post = self._begin("GET", (at, host, name), (JSON, JSON))
            outcome = yield post
            if not outcome.status:
                raise ClientError(*message_of(name, post.timeout, outcome))
            told = of_arrays.described(outcome)
            if told is not None:
                self._services[name] = told
                return told
        return {}


# Arguments


def _given(url: Any, content: Any) -> tuple[str | None, Any]:
    """Tell `post(content)` from `post(url, content)`."""
    return (None, url) if content is None and not isinstance(url, str) else (url, content)
