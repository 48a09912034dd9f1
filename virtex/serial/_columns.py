"""One column of a frame, or one level of an index, as an Arrow array and a note of what Arrow does not say; and back.

Rules: what would not come back equal is refused with a TypeError that names the column. A note is JSON; None stands for
what the type alone says. On the way back arrays and notes are a stranger's: what they raise is for _frames to catch.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from ..errors import ItemError, quoted
from ._arrow import Stream, check_type
from ._objects import from_cells, to_cells

STR = pd.StringDtype(na_value=np.nan)  # what pandas 3 makes of text
_MASKED = {f"{sign}Int{bits}" for sign in ("", "U") for bits in (8, 16, 32, 64)} | {"Float32", "Float64", "boolean"}
_ZONE = re.compile(r"(?!dateutil)[A-Za-z0-9_+/:-]{1,64}")  # of zoneinfo, or an offset; of dateutil any file is one
_OFFSET = re.compile(r"[A-Za-z0-9-]{1,32}")


# -- a column -> its array, its note


def to_arrow(one: Any, what: str) -> tuple[Any, Any]:
    """one: a Series or an Index. what: how an error calls it."""
    dtype = one.dtype
    convert = _CONVERTERS.get(type(dtype))
    try:
        if isinstance(dtype, np.dtype):
            return _plain(one.to_numpy(), what)
        if convert is not None:
            array, note = convert(one.array, what)
            return array, note
    except (pa.ArrowException, UnicodeEncodeError, ArithmeticError) as error:
        raise TypeError(f"{what}: Arrow can't hold its values of {dtype}: {error}") from error
    raise TypeError(f"{what}: {dtype} does not travel: {_remedy(dtype)}")


def _remedy(dtype: Any) -> str:
    if isinstance(dtype, pd.SparseDtype):
        return "make it dense, as in series.sparse.to_dense()"
    if getattr(dtype, "name", "") in _MASKED:
        return "convert it, as in series.astype('float64')"
    return "convert it to numbers, text, datetimes or categories, as in series.astype(str)"


def _plain(values: Any, what: str) -> tuple[Any, Any]:
    dtype = values.dtype
    if dtype.kind == "O":
        return to_cells(values, what)
    if dtype.kind == "c":
        raise TypeError(f"{what}: {dtype} does not travel: send the real and the imaginary parts as two columns")
    if not dtype.isnative:
        native = dtype.newbyteorder("=").name
        raise TypeError(f"{what}: {dtype} is of another byte order: convert it, as in series.astype({native!r})")
    if not is_plain(dtype):
        raise TypeError(f"{what}: {dtype} does not travel: convert it, as in series.astype('float64')")
    return pa.array(values), None


def is_plain(dtype: Any) -> bool:
    """Whether Arrow has this dtype of NumPy."""
    return dtype.kind in "biufmM" and dtype.itemsize <= 8 and dtype.isnative


def _categories(values: Any, what: str) -> tuple[Any, Any]:
    categories, what = values.categories, f"{what}, its categories"
    dictionary, note = to_arrow(categories, what)
    codes = pa.array(values.codes, mask=values.codes == -1)
    array = pa.DictionaryArray.from_arrays(codes, dictionary, ordered=bool(values.ordered))
    about = {"category": note, "freq": freq_of(categories, what)}
    if categories.name is not None:
        about["name"] = label_of(categories.name, f"the name of {what}")
    return array, about


def freq_of(index: Any, what: str) -> str | None:
    """The text that restored() takes for an index's freq."""
    freq = getattr(index, "freq", None)
    if freq is None or isinstance(index, pd.PeriodIndex):
        return None
    if not _OFFSET.fullmatch(freq.freqstr) or pd.tseries.frequencies.to_offset(freq.freqstr) != freq:
        raise TypeError(f"{what}: its freq {freq!r} has no name by which it comes back: set index.freq = None")
    return str(freq.freqstr)


def _zoned(values: Any, what: str) -> tuple[Any, Any]:
    dtype = values.dtype
    try:
        same = zoned_dtype(dtype.unit, str(dtype.tz)) == dtype
    except Exception:  # whatever a name that is none makes of it
        same = False
    if not same:
        raise TypeError(
            f"{what}: its time zone {dtype.tz!r} has no name by which it comes back: convert it, as in "
            "series.dt.tz_convert('Europe/Paris')"
        )
    kind = pa.timestamp(dtype.unit, str(dtype.tz))
    return pa.array(values.asi8, mask=values.isna()).view(kind), None


def zoned_dtype(unit: str, zone: str) -> Any:
    if not _ZONE.fullmatch(zone):
        raise ItemError(f"expected the name of a time zone, got {quoted(zone)!r}")
    return pd.DatetimeTZDtype(unit, zone)


def _periods(values: Any, what: str) -> tuple[Any, Any]:
    freq = str(values.dtype)[len("period[") : -1]
    if not _OFFSET.fullmatch(freq) or pd.PeriodDtype(freq) != values.dtype:
        raise TypeError(f"{what}: {values.dtype} does not travel: convert it, as in series.dt.to_timestamp()")
    return pa.array(values.asi8, mask=values.isna()), {"period": freq}


def _intervals(values: Any, what: str) -> tuple[Any, Any]:
    left, note = to_arrow(values.left, what)
    right, _ = to_arrow(values.right, what)
    return pa.StructArray.from_arrays([left, right], names=["left", "right"]), {
        "interval": note,
        "closed": values.closed,
    }


def _masked(values: Any, what: str) -> tuple[Any, Any]:
    array = pa.array(values)
    if array.null_count != int(values.isna().sum()) or (values.dtype.kind == "f" and np.isnan(_present(values)).any()):
        raise TypeError(
            f"{what}: {values.dtype} with NaN beside NA does not travel: make them one, as in series.fillna(pd.NA)"
        )
    return array, {"masked": values.dtype.name}


def _present(values: Any) -> Any:
    dtype = values.dtype.numpy_dtype
    return values.to_numpy(dtype, na_value=dtype.type())


def _texts(values: Any, what: str) -> tuple[Any, Any]:
    dtype = values.dtype
    note = {"text": dtype.storage, "missing": "NA" if dtype.na_value is pd.NA else "nan"}
    return _whole(pa.array(values, pa.large_string())), None if dtype == STR else note


def _of_arrow(values: Any, what: str) -> tuple[Any, Any]:
    array = _whole(values.__arrow_array__())
    try:
        check_type(array.type)
    except ItemError as error:
        raise TypeError(f"{what}: {error.reason}") from None
    return array, "arrow"


def _whole(array: Any) -> Any:
    return array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array


_CONVERTERS: dict[Any, Any] = {
    pd.CategoricalDtype: _categories,
    pd.DatetimeTZDtype: _zoned,
    pd.PeriodDtype: _periods,
    pd.IntervalDtype: _intervals,
    pd.StringDtype: _texts,
    pd.ArrowDtype: _of_arrow,
} | {type(pd.api.types.pandas_dtype(name)): _masked for name in _MASKED}


# -- an array and its note -> what pandas makes a column or an index of


def from_arrow(array: Any, note: Any, stream: Stream) -> Any:
    if note is None:
        return _by_type(array, stream)
    if note == "arrow":
        return pd.arrays.ArrowExtensionArray(array)
    if "category" in note:
        return _from_categories(array, note, stream)
    if "object" in note:
        return from_cells(array, note)
    if "masked" in note and note["masked"] in _MASKED:
        return pd.api.types.pandas_dtype(note["masked"]).__from_arrow__(array)
    if "text" in note:
        _expect(array, pa.types.is_large_string)
        missing = {"NA": pd.NA, "nan": np.nan}[note["missing"]]
        return pd.StringDtype(note["text"], na_value=missing).__from_arrow__(array)
    if "period" in note:
        return _from_periods(array, note["period"])
    _expect(array, pa.types.is_struct)
    sides = [from_arrow(array.field(side), note["interval"], stream) for side in ("left", "right")]
    return pd.arrays.IntervalArray.from_arrays(*sides, closed=note["closed"])


def _expect(array: Any, holds: Any) -> None:
    if not holds(array.type):
        raise ItemError(f"expected a column of another type than {quoted(array.type)}")


def _by_type(array: Any, stream: Stream) -> Any:
    kind, types = array.type, pa.types
    if types.is_dictionary(kind):
        return _from_categories(array, {"category": None, "freq": None}, stream)
    if types.is_string(kind) or types.is_large_string(kind):
        return STR.__from_arrow__(array)
    if types.is_timestamp(kind) and kind.tz is not None:
        dtype = zoned_dtype(kind.unit, kind.tz)
        naive = _numbers(array.view(pa.timestamp(kind.unit)), stream)
        return pd.DatetimeIndex(naive).tz_localize("UTC").tz_convert(dtype.tz).array
    if types.is_timestamp(kind) or types.is_duration(kind):
        return _numbers(array, stream)
    is_number = types.is_boolean(kind) or types.is_integer(kind) or types.is_floating(kind)
    return _numbers(array, stream) if is_number and not array.null_count else pd.arrays.ArrowExtensionArray(array)


def _numbers(array: Any, stream: Stream) -> Any:
    """As a writable array of NumPy, on the stream's memory where it can be; a missing datetime is NaT."""
    if not pa.types.is_boolean(array.type):
        offset = stream.offset(array)
        if offset >= 0:
            return np.ndarray(len(array), array.type.to_pandas_dtype(), stream.memory.data, offset)
    return _writable(array)


def _writable(array: Any) -> Any:
    values = array.to_numpy(zero_copy_only=False)
    return values if values.flags.writeable else values.copy()


def _from_categories(array: Any, note: Any, stream: Stream) -> Any:
    _expect(array, pa.types.is_dictionary)
    values = from_arrow(array.dictionary, note["category"], stream)
    categories = indexed(values, note["freq"], to_label(note.get("name")))
    codes = _writable(array.indices.fill_null(-1))
    return pd.Categorical.from_codes(codes, categories, ordered=array.type.ordered)


def _from_periods(array: Any, freq: str) -> Any:
    if not _OFFSET.fullmatch(freq):
        raise ItemError(f"expected a freq of periods, got {quoted(freq)!r}")
    ordinals = _writable(array.cast(pa.int64()).fill_null(np.iinfo(np.int64).min))
    return pd.arrays.PeriodArray(ordinals, dtype=pd.PeriodDtype(freq))


def indexed(values: Any, freq: str | None, name: Any = None) -> Any:
    """An Index of what from_arrow() gave."""
    if freq is None:
        return pd.Index(values, dtype=values.dtype, name=name)
    if not _OFFSET.fullmatch(freq):
        raise ItemError(f"expected the freq of an index, got {quoted(freq)!r}")
    kind = pd.TimedeltaIndex if values.dtype.kind == "m" else pd.DatetimeIndex
    return kind(values, freq=freq, name=name)


# -- names


def label_of(name: Any, what: str) -> Any:
    """A name as JSON: a tuple as {"tuple": [...]}."""
    if name is None or type(name) in (str, bool, int) or (type(name) is float and np.isfinite(name)):
        return name
    if type(name) is tuple:
        return {"tuple": [label_of(one, what) for one in name]}
    raise TypeError(f"{what} {name!r} does not travel: expected str, int, float or bool, None, or a tuple of them")


def to_label(name: Any) -> Any:
    return tuple(map(to_label, name["tuple"])) if isinstance(name, dict) else name
