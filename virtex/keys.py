"""Keys, as a service expects them and a client sends them: Authorization: Bearer KEY (RFC 6750).

Rules: values only; what is wrong with a key is said without the key.
"""

from __future__ import annotations

import re

_KEY = re.compile("[!-~]+")


def key_in(key: object, where: str) -> bytes:
    """A key as it is sent. where: who gave it. Raises ValueError for one that a header can't hold as it is."""
    if not isinstance(key, str) or not _KEY.fullmatch(key):
        raise ValueError(f"{where}: expected a key of letters, digits and signs of ASCII, got {_fault(key)}")
    return key.encode()


def _fault(key: object) -> str:
    if not isinstance(key, str):
        return f"a value of type {type(key).__name__}"
    at = next((at for at, sign in enumerate(key) if not "!" <= sign <= "~"), None)
    return "an empty string" if at is None else f"one whose character {at} is none of these"
