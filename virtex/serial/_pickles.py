"""How the modules of virtex.serial that read no pickle refuse one. Rules: imports no library."""

from __future__ import annotations

from ..errors import ItemError


def refuse_pickle(data: bytes, expected: str) -> None:
    """Raise ItemError for the bytes of a pickle of protocol 2 to 5: what Virtex 0.1 sent of everything."""
    if len(data) > 1 and data[0] == 0x80 and 2 <= data[1] <= 5:
        raise ItemError(
            f"expected {expected}, got a pickle: Virtex 0.1 sent those, and only decode_pickle reads any: "
            "upgrade the client (docs/migrating.md, Payloads)"
        )
