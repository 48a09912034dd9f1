"""Bytes as strict base64: RFC 4648 section 4, canonical and padded."""

from .._codec import decode_bytes, encode_bytes

__all__ = ["decode_bytes", "encode_bytes"]
