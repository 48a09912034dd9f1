"""What a caller gave, checked: where posts go, the headers that each has, the message in it.

Rules: values; no connection. The load test sends by the same rules.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeAlias

from ..keys import key_in
from ..message import HttpMessage

if TYPE_CHECKING:
    import httpcore2

Target: TypeAlias = "tuple[httpcore2.URL, bytes, str]"  # as the connection knows it, the header Host, as errors show it


def headers_of(given: Mapping[str, str], api_key: str | None = None) -> dict[bytes, bytes]:
    """Header fields as they are sent, names in lower case. Raises ValueError for what can't be one, or is there twice.

    api_key: is one more, authorization.
    """
    fields = {}
    for name, value in given.items():
        if name.lower() in ("connection", "content-length", "host", "transfer-encoding"):
            raise ValueError(f"headers: {name!r} belongs to the connection and is set by the client itself")
        if not name.isascii() or not name.replace("-", "").replace("_", "").isalnum():
            raise ValueError(f"headers: expected a name of letters, digits, '-' and '_', got {name!r}")
        if not isinstance(value, str) or not value.isprintable() or max(value, default="") > "\xff":
            raise ValueError(f"headers: {name}: expected printable characters of Latin-1, got {value!r}")
        fields[name.lower().encode()] = value.encode("latin-1")
    if api_key is not None:
        if b"authorization" in fields:
            raise ValueError("expected api_key or an authorization among headers, got both")
        fields[b"authorization"] = b"Bearer " + key_in(api_key, "HttpClient(api_key=...)")
    return fields


def target_of(url: object) -> Target:
    """The target that a URL means. Raises ValueError for what is no http or https URL, or has credentials."""
    if not isinstance(url, str):
        raise ValueError(f"expected a URL like http://host:8081/path, got {url!r}")
    return _parsed(url)


@lru_cache(256)
def _parsed(url: str) -> Target:
    import httpcore2  # takes as long as numpy, and the processes of a load test parse no URL
    import httpx2

    try:
        parsed = httpx2.URL(url)
    except httpx2.InvalidURL:
        parsed = httpx2.URL()
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ValueError(f"expected a URL like http://host:8081/path, got {url!r}")
    if parsed.userinfo:
        raise ValueError(
            "credentials in a URL end up in logs: put them in HttpClient(api_key=...) or headers={'authorization': ...}"
        )
    if parsed.port is not None and not 0 < parsed.port < 65536:
        raise ValueError(f"{url}: expected a port from 1 to 65535")
    target = httpcore2.URL(scheme=parsed.raw_scheme, host=parsed.raw_host, port=parsed.port, target=parsed.raw_path)
    return target, parsed.netloc, str(parsed)


def check_message(message: object) -> None:
    """Raise TypeError for what can't be posted: no HttpMessage, or one whose data is no list."""
    if not isinstance(message, HttpMessage):
        raise TypeError(f"message: expected an HttpMessage, got {type(message).__name__}")
    if not isinstance(message.data, list):
        raise TypeError(f"message.data: expected a list of items, got {type(message.data).__name__}")


def checked(messages: Any) -> list[HttpMessage]:
    """The messages of a bundle. Raises TypeError for what is none, or holds what can't be posted."""
    if messages is None or isinstance(messages, (HttpMessage, str, bytes)):
        raise TypeError(f"messages: expected an iterable of HttpMessages, got {type(messages).__name__}")
    bundle = list(messages)
    for message in bundle:
        check_message(message)
    return bundle
