"""Frames and series of pandas as Arrow IPC streams.

Rules: imports pandas and pyarrow when a function is called. docs/serial.md has the format.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..extras import needs

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["decode_pandas", "encode_pandas"]


def encode_pandas(obj: pd.DataFrame | pd.Series) -> str:
    """The base64 of an Arrow IPC stream: one record batch of the columns, followed by the levels of the index.

    obj: a DataFrame or a Series. Its index, labels, names, categories, time zones, freq and attrs travel along; what
    Arrow has no word for stands in the schema's metadata, as JSON. A frame of numbers is encoded without a copy.
    Raises: TypeError that names the column and the remedy for what would not come back equal: complex and sparse
    columns, columns of objects of several types or of other types than text, bytes, numbers, dates, times and lists or
    arrays of numbers; labels, names and attrs that are no JSON. ImportError without pandas and pyarrow.
    """
    with needs("encode_pandas", "pandas and pyarrow", "pandas"):
        from ._frames import encode
    return encode(obj)


def decode_pandas(bytestr: str | bytes) -> pd.DataFrame | pd.Series:
    """The frame or series whose Arrow IPC stream's base64 `bytestr` is.

    bytestr: what encode_pandas wrote, or the bytes that it is the base64 of; or any uncompressed stream of plain Arrow
    types: then numbers, text, datetimes and categories become those of pandas, other types pandas.ArrowDtype, and the
    index counts the rows.
    Raises: ItemError (422) for anything else: not strict base64, not a valid stream, compressed, of an extension type,
    or with notes that do not fit. ImportError without pandas and pyarrow.
    """
    with needs("decode_pandas", "pandas and pyarrow", "pandas"):
        from ._frames import decode
    return decode(bytestr)
