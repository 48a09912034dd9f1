"""encode_x and decode_x for each library x: what goes into the elements of a message's data, and back.

A library is imported when one of its functions is called, never here (PEP 562).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

_HOME = {
    "decode_bytes": "bytes",
    "decode_json": "json",
    "decode_mx": "mx",
    "decode_numpy": "numpy",
    "decode_pandas": "pandas",
    "decode_pickle": "pickle",
    "decode_pil": "pillow",
    "decode_pil_from_bytes": "pillow",
    "decode_tf": "tf",
    "decode_torch": "torch",
    "encode_bytes": "bytes",
    "encode_json": "json",
    "encode_mx": "mx",
    "encode_numpy": "numpy",
    "encode_pandas": "pandas",
    "encode_pickle": "pickle",
    "encode_pil": "pillow",
    "encode_tf": "tf",
    "encode_torch": "torch",
}

__all__ = [
    "decode_bytes",
    "decode_json",
    "decode_mx",
    "decode_numpy",
    "decode_pandas",
    "decode_pickle",
    "decode_pil",
    "decode_pil_from_bytes",
    "decode_tf",
    "decode_torch",
    "encode_bytes",
    "encode_json",
    "encode_mx",
    "encode_numpy",
    "encode_pandas",
    "encode_pickle",
    "encode_pil",
    "encode_tf",
    "encode_torch",
]

if TYPE_CHECKING:
    from .bytes import decode_bytes, encode_bytes
    from .json import decode_json, encode_json
    from .mx import decode_mx, encode_mx
    from .numpy import decode_numpy, encode_numpy
    from .pandas import decode_pandas, encode_pandas
    from .pickle import decode_pickle, encode_pickle
    from .pillow import decode_pil, decode_pil_from_bytes, encode_pil
    from .tf import decode_tf, encode_tf
    from .torch import decode_torch, encode_torch


def __getattr__(name: str) -> object:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'virtex.serial' has no attribute {name!r}")
    value = getattr(import_module(f".{home}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
