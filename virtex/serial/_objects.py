"""Columns of Python objects, all of one type, as Arrow arrays, and back.

Rules: as _columns, whose helper this is. A cell comes back as the very type that it was.
"""

from __future__ import annotations

import datetime
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from ..errors import ItemError, quoted

_MISSING = {"None": None, "nan": float("nan"), "NA": pd.NA, "NaT": pd.NaT}
_SCALARS = {  # Decimals as text: Arrow's have one scale for all
    str: pa.large_string(),
    bytes: pa.large_binary(),
    bool: pa.bool_(),
    int: pa.int64(),
    float: pa.float64(),
    Decimal: pa.large_string(),
    datetime.date: pa.date32(),
    datetime.time: pa.time64("us"),
}
_BY_NAME = {kind.__name__: (kind, stored) for kind, stored in _SCALARS.items()}
_IN_LISTS = (str, bool, int, float)
_REMEDIES = {
    dict: "give each member a column of its own, as in pandas.json_normalize, or send json.dumps of it",
    datetime.datetime: "convert the column, as in pandas.to_datetime(series)",
    pd.Timestamp: "convert the column, as in pandas.to_datetime(series)",
    datetime.timedelta: "convert the column, as in pandas.to_timedelta(series)",
}


def to_cells(values: Any, what: str) -> tuple[Any, Any]:
    """values: an array of objects. Returns: its Arrow array, and the note by which from_cells() gives it back."""
    gaps = pd.isna(values)
    missing = {_name_of_missing(value, what) for value in values[gaps]}
    kinds = {type(value) for value in values[~gaps]} or {str}
    if len(kinds) > 1 or len(missing) > 1:
        names = sorted(kind.__name__ for kind in kinds) if len(kinds) > 1 else sorted(missing)
        raise TypeError(f"{what} holds {' and '.join(names)}: make it one type, as in series.astype(str)")
    kind = kinds.pop()
    note = {"object": kind.__name__, "missing": missing.pop() if missing else "None"}
    if kind in (list, np.ndarray):
        return (_lists if kind is list else _arrays)(values, gaps, what), note
    if kind not in _SCALARS:
        remedy = _REMEDIES.get(kind, "convert it to numbers, text, datetimes or categories, as in series.astype(str)")
        raise TypeError(f"{what}: objects of {kind.__name__} do not travel: {remedy}")
    if kind is datetime.time and any(value.tzinfo or value.fold for value in values[~gaps]):
        raise TypeError(f"{what}: times with a zone or a fold do not travel: convert them, as in series.astype(str)")
    cells = [None if gap else str(value) if kind is Decimal else value for value, gap in zip(values, gaps, strict=True)]
    return pa.array(cells, _SCALARS[kind]), note


def _name_of_missing(value: Any, what: str) -> str:
    for name, meant in _MISSING.items():
        if value is meant or (type(value) is float and name == "nan"):
            return name
    raise TypeError(f"{what}: a missing value of {type(value).__name__} does not travel: make it None")


def _lists(values: Any, gaps: Any, what: str) -> Any:
    kinds = {type(member) for value in values[~gaps] for member in value} or {str}
    if len(kinds) > 1 or not kinds <= set(_IN_LISTS):
        names = " and ".join(sorted(kind.__name__ for kind in kinds))
        raise TypeError(f"{what}: lists of {names} do not travel: expected all of str, of bool, of int or of float")
    cells = [None if gap else value for value, gap in zip(values, gaps, strict=True)]
    return pa.array(cells, pa.large_list(_SCALARS[kinds.pop()]))


def _arrays(values: Any, gaps: Any, what: str) -> Any:
    cells = [np.empty(0) if gap else value for value, gap in zip(values, gaps, strict=True)]
    kinds = {(value.dtype, value.ndim) for value in values[~gaps]}
    dtype, ndim = kinds.pop()
    if kinds or ndim != 1 or dtype.kind not in "biuf" or dtype.itemsize > 8 or not dtype.isnative:
        raise TypeError(
            f"{what}: expected arrays of one dimension, all of one dtype of numbers: send others by encode_numpy"
        )
    offsets = np.cumsum([0, *map(len, cells)])
    flat = pa.array(np.concatenate([np.empty(0, dtype), *values[~gaps]]))
    return pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), flat, mask=pa.array(gaps))


def from_cells(array: Any, note: Any) -> Any:
    """An array of objects."""
    name, missing = note["object"], _MISSING[note["missing"]]
    cells = _from_arrays(array) if name == "ndarray" else _from_scalars(array, name)
    values = np.empty(len(array), object)
    for i, cell in enumerate(cells):  # which takes lists of one length for rows, if they are assigned at once
        values[i] = missing if cell is None else cell
    return values


def _from_scalars(array: Any, name: str) -> list[Any]:
    if name == "list":
        expected = pa.large_list(array.type.value_type)
        if array.type.value_type not in [_SCALARS[kind] for kind in _IN_LISTS]:
            raise ItemError(f"expected lists of text or numbers, got {quoted(array.type)}")
        kind: Any = list
    else:
        kind, expected = _BY_NAME[name]
    if array.type != expected:
        raise ItemError(f"expected {expected} for objects of {name}, got {quoted(array.type)}")
    cells: list[Any] = array.to_pylist()
    return [None if cell is None else Decimal(cell) for cell in cells] if kind is Decimal else cells


def _from_arrays(array: Any) -> list[Any]:
    kind = array.type
    if not pa.types.is_large_list(kind) or not pa.types.is_primitive(kind.value_type):
        raise ItemError(f"expected lists of numbers for objects of ndarray, got {quoted(kind)}")
    flat = array.values.to_numpy(zero_copy_only=False).copy()
    ends = array.offsets.to_numpy()
    gaps = array.is_null().to_numpy(zero_copy_only=False)
    return [None if gap else flat[ends[i] : ends[i + 1]] for i, gap in enumerate(gaps)]
