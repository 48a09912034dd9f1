"""Python objects as pickles, which are authenticated by a key, or trusted by a person's word.

Rules: the only file that unpickles. No byte is unpickled before its MAC was compared, or the caller said trusted=True.

    b"VXP" | version: 1 | kind: b"p" or b"a" | of kind b"a" the MAC: 32 bytes | the pickle
    the MAC: HMAC-SHA256 (RFC 2104) of the five bytes before it and the pickle after it
"""

from __future__ import annotations

import hashlib
import hmac
import pickle

from .._codec import decode_bytes, encode_pieces
from ..errors import ItemError, quoted
from ._pickles import refuse_pickle

__all__ = ["decode_pickle", "encode_pickle"]

_MAGIC = b"VXP\x01"
_PLAIN, _AUTHENTICATED = _MAGIC + b"p", _MAGIC + b"a"
_MAC = hashlib.sha256().digest_size


def encode_pickle(obj: object, key: bytes | None = None) -> str:
    """A pickle of an object, in base64: only for who may run code where it is decoded.

    obj: whatever pickle takes; functions and classes go by reference, as module and name. key: a secret that both sides
    have; with it the payload is authenticated (HMAC-SHA256), not encrypted, and can be replayed. Without it,
    decode_pickle needs trusted=True.
    Raises: TypeError for an object that pickle does not take, and for a key that is not bytes; ValueError for an empty
    key.
    """
    _check_key(key)
    try:
        data = pickle.dumps(obj, protocol=5)
    except (pickle.PicklingError, TypeError, AttributeError, RecursionError) as error:
        raise TypeError(f"{type(obj).__name__} can't be pickled: {error}") from error
    if key is None:
        return encode_pieces([_PLAIN, data])
    return encode_pieces([_AUTHENTICATED, _mac(key, data), data])


def decode_pickle(bytestr: str | bytes, key: bytes | None = None, trusted: bool = False) -> object:
    """The object that encode_pickle was given. Unpickling runs whatever code the pickle names.

    bytestr: what encode_pickle wrote. key: the one it was written with; the MAC is compared in constant time before a
    byte is unpickled. trusted: True for a payload without a key: everybody who can send one can run code here.
    Raises: ItemError (422) for another text, another key, a payload with a key where none was given, or the other way
    round, and a pickle that can't be loaded; ValueError without key and trusted, with both, and for an empty key;
    TypeError for a key that is not bytes.
    """
    _check_key(key)
    if (key is None) != (trusted is True):
        raise ValueError(
            "expected either key=, which the payload was encoded with, or trusted=True, by which whoever sends it may "
            f"run code here; got {'neither' if key is None else 'both'}"
        )
    data = decode_bytes(bytestr)
    pickled = _plain(data) if key is None else _authenticated(data, key)
    try:
        return pickle.loads(pickled)
    except MemoryError:
        raise
    except Exception as error:
        raise ItemError(f"the pickle can't be loaded: {type(error).__name__}: {quoted(error)}") from error


def _check_key(key: bytes | None) -> None:
    if key is not None and not isinstance(key, bytes):
        raise TypeError(f"expected key= to be bytes, got {type(key).__name__}")
    if key == b"":
        raise ValueError("expected key= to be a secret, got no bytes: os.urandom(32) makes one")


def _mac(key: bytes, pickled: bytes | memoryview) -> bytes:
    mac = hmac.new(key, _AUTHENTICATED, hashlib.sha256)
    mac.update(pickled)
    return mac.digest()


def _plain(data: bytes) -> memoryview:
    if data.startswith(_AUTHENTICATED):
        raise ItemError("this pickle was encoded with a key, which decode_pickle was not given: decode it with key=")
    _check_magic(data, _PLAIN)
    return memoryview(data)[len(_PLAIN) :]


def _authenticated(data: bytes, key: bytes) -> memoryview:
    if data.startswith(_PLAIN):
        raise ItemError("this pickle was encoded without a key, and decode_pickle has one: encode it with key=")
    _check_magic(data, _AUTHENTICATED)
    start = len(_AUTHENTICATED) + _MAC
    pickled = memoryview(data)[start:]
    if not hmac.compare_digest(data[len(_AUTHENTICATED) : start], _mac(key, pickled)):
        raise ItemError("this pickle was encoded with another key, or changed on its way")
    return pickled


def _check_magic(data: bytes, magic: bytes) -> None:
    if not data.startswith(magic):
        refuse_pickle(data, "what encode_pickle writes")
        raise ItemError(f"expected what encode_pickle writes, which begins with {magic!r}; got {data[:5]!r}")
