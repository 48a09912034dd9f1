"""What encode_bytes takes and what it refuses: the rows of the table in docs/serial.md."""

from __future__ import annotations


def cases() -> list[tuple[str, object]]:
    return [
        ("bytes", bytes(range(256))),
        ("no bytes", b""),
        ("bytearray, as bytes", bytearray(b"ab")),
        ("memoryview, as bytes", memoryview(b"abc")),
    ]


def refused() -> list[tuple[str, object, str]]:
    return [("text", "text", "a bytes-like object is required, not 'str'"), ("numbers", 1, "a bytes-like object")]


def same(a, b) -> bool:
    return bytes(a) == b and type(b) is bytes
