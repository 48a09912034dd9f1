"""Who may ask: api_key= and authorize= of http_server() as one check of a request's head.

Rules: a head in, RequestError or nothing out. The key is kept here alone: no repr, log line, error or answer has it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from hmac import compare_digest

from ..errors import Headers, RequestError
from ..keys import key_in
from ..logs import Tracebacks
from .options import is_whole
from .seam import Head

Authorize = Callable[[Head], bool | int | None]

VARIABLE = "VIRTEX_API_KEY"
# RFC 9110 section 15.5.2: a 401 says by what scheme to do better
CHALLENGE: Headers = ((b"www-authenticate", b"Bearer"),)

log = logging.getLogger("virtex")


class Guard:
    """Lets in whom both let in: the key, where there is one, and the user's function, where there is one."""

    def __init__(self, key: bytes | None, authorize: Authorize | None) -> None:
        self._key = key
        self._authorize = authorize
        self.has_key = key is not None

    def check(self, head: Head, tracebacks: Tracebacks) -> None:
        """Raise RequestError for a request that is kept out; 500 where the user's function does what it should not."""
        if self._key is not None and not _bears(head, self._key):
            raise _refusal(401)
        if self._authorize is not None:
            status = _status(self._authorize, head, tracebacks)
            if status is not None:
                raise _refusal(status)


def guard_of(api_key: str | None, authorize: Authorize | None) -> Guard | None:
    """The guard of a service; None where anybody may ask. Raises ValueError for a key that no client could send."""
    key = _key_of(api_key)
    return None if key is None and authorize is None else Guard(key, authorize)


def _key_of(api_key: str | None) -> bytes | None:
    """The argument, or what the environment has."""
    if api_key is not None:
        return key_in(api_key, "http_server(api_key=...)")
    found = os.environ.get(VARIABLE)
    return None if found is None else key_in(found, f"the variable {VARIABLE}")


def _bears(head: Head, key: bytes) -> bool:
    """Whether its one Authorization is that key (RFC 6750 section 2.1); how long that takes says nothing of the key."""
    scheme, _, token = head.header("authorization").partition(" ")  # several of them joined hold a space: no key does
    return scheme.lower() == "bearer" and compare_digest(token.lstrip(" ").encode("latin-1"), key)


def _status(authorize: Authorize, head: Head, tracebacks: Tracebacks) -> int | None:
    """What to refuse the request with, as the user's function says; None: let it in."""
    try:
        # What it does to its copy does not come back with the next request that has the same head.
        said = authorize(Head(head.method, head.path, head.headers[:], head.length, head.peer))
    except (Exception, SystemExit) as error:
        tracebacks.log(error, "authorize raised")
        raise RequestError(500, "authorize raised") from None
    if said is None or said is True:
        return None
    if said is False:
        return 401
    if not is_whole(said, 400, 599):
        log.error("authorize returned %r; expected True, False, None, or a status from 400 to 599", said)
        raise RequestError(500, "authorize returned no status")
    return said


def _refusal(status: int) -> RequestError:
    return RequestError(status, "not authorized", CHALLENGE if status == 401 else ())
