"""Where posts go, and the headers that each has: what a caller gave, checked.

Rules: values; no connection.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import httpcore2
import httpx2

from ..keys import key_in

Target = tuple[httpcore2.URL, bytes, str]  # as the connection knows it, the header Host, as errors show it


def headers_of(given: Mapping[str, str], api_key: str | None = None) -> dict[bytes, bytes]:
    """Header fields as they are sent, names in lower case. Raises ValueError for what can't be one, or is there twice.

    api_key: is one more, authorization.
    """
    fields = {}
    for name, value in given.items():
        if name.lower() in ("connection", "content-length", "host", "transfer-encoding"):
            raise ValueError(f"headers: {name!r} belongs to the connection and is set by the client itself")
        if name.lower() == "x-request-timeout-ms":
            raise ValueError(f"headers: {name!r} says what is left of timeout=, and is set by the client itself")
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
        raise ValueError(f"no URL to post to: expected HttpClient(url) or post(url, message), got {url!r}")
    return _parsed(url)


@lru_cache(256)
def _parsed(url: str) -> Target:
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
    target = httpcore2.URL(scheme=parsed.raw_scheme, host=parsed.raw_host, port=parsed.port, target=parsed.raw_path)
    return target, parsed.netloc, str(parsed)
