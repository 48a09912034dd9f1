"""A DataFrame or a Series as an Arrow record batch with notes in its schema's metadata, and back.

Rules: knows frames and indexes; _columns knows the values. Not pandas' own notes (Table.from_pandas): they lose what a
frame has and Arrow has not, and reading them calls much of pandas with a stranger's words.
"""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from ..errors import ItemError, quoted
from ._arrow import EXPECTED, Stream, to_text
from ._columns import (
    STR,
    freq_of,
    from_arrow,
    indexed,
    is_plain,
    label_of,
    to_arrow,
    to_label,
)

_KEY = b"virtex.pandas"  # in the metadata: JSON
_VERSION = 1


# -- out


def encode(obj: Any) -> str:
    about: dict[str, Any]
    if type(obj) is pd.Series:
        array, note = to_arrow(obj, f"the Series {obj.name!r}")
        columns, notes, labels = [array], {"0": note}, ["values"]
        about = {"series": {"name": label_of(obj.name, "its name")}}
    elif type(obj) is pd.DataFrame:
        columns, notes = _columns(obj)
        labels, about = _labels(obj.columns)
    else:
        raise TypeError(f"expected a pandas.DataFrame or a pandas.Series, got {type(obj).__name__}")
    levels, index = _index(obj.index, "the index", keep=not columns)
    about |= {"version": _VERSION, "columns_count": len(columns), "index": index}
    about |= {"notes": {at: note for at, note in notes.items() if note is not None}}
    about |= _besides(obj)
    names = [*labels, *(f"__index_level_{i}__" for i in range(len(levels)))]
    return to_text(_batch([*columns, *levels], names, about))


def _batch(arrays: list[Any], names: list[str], about: dict[str, Any]) -> Any:
    try:
        text = json.dumps({key: value for key, value in about.items() if value is not None}, allow_nan=False)
    except ValueError as error:  # of an int of thousands of digits
        raise TypeError(f"a name, or attrs, do not travel: {error}") from error
    fields = [pa.field(name, array.type) for name, array in zip(names, arrays, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=pa.schema(fields, {_KEY: text.encode()}))


def _columns(frame: Any) -> tuple[list[Any], dict[str, Any]]:
    dtypes = set(frame.dtypes)
    if len(dtypes) == 1:
        dtype = dtypes.pop()
        if isinstance(dtype, np.dtype) and is_plain(dtype):  # with one block no copy, and no Series for each column
            values = np.asfortranarray(frame.to_numpy())
            return [pa.array(values[:, i]) for i in range(values.shape[1])], {}
    pairs = [to_arrow(column, f"column {label!r}") for label, column in frame.items()]
    return [array for array, _ in pairs], {str(i): note for i, (_, note) in enumerate(pairs)}


def _labels(labels: Any) -> tuple[list[str], dict[str, Any]]:
    """The names of the fields, and the note by which the labels come back."""
    names = [str(label) for label in labels]
    if type(labels) is pd.Index and labels.dtype == STR and not labels.hasnans:
        return names, {"labels": None if labels.name is None else {"name": label_of(labels.name, "columns.name")}}
    levels, note = _index(labels, "the columns' labels", keep=False)
    if levels:
        batch = _batch(levels, [f"level_{i}" for i in range(len(levels))], {})
        note["stream"] = to_text(batch)
    return names, {"labels": note or {"range": [0, len(labels), 1]}}


def _index(index: Any, what: str, keep: bool) -> tuple[list[Any], Any]:
    """Its levels as arrays, and a note. keep: write a range out too, for there is nothing else to count the rows by."""
    names = [label_of(name, f"the name of {what}") for name in index.names]
    if type(index) is pd.RangeIndex:
        span = [index.start, index.stop, index.step]
        levels = [pa.array(index.to_numpy())] if keep else []
        if span == [0, len(index), 1] and names == [None] and not keep:
            return levels, None
        return levels, {"range": span, "names": names}
    multi = isinstance(index, pd.MultiIndex)
    parts = [index.get_level_values(i) for i in range(index.nlevels)] if multi else [index]
    called = [f"{what}, level {i}" if multi else what for i in range(len(parts))]
    if multi:
        _check_levels(index, parts, called)
    pairs = [to_arrow(part, name) for part, name in zip(parts, called, strict=True)]
    freqs = [freq_of(part, name) for part, name in zip(parts, called, strict=True)]
    notes = [note for _, note in pairs]
    return [array for array, _ in pairs], {"levels": notes, "freqs": freqs, "names": names, "multi": multi}


def _check_levels(index: Any, parts: list[Any], called: list[str]) -> None:
    for part, level, name in zip(parts, index.levels, called, strict=True):
        if part.dtype != level.dtype:
            raise TypeError(
                f"{name}: it has gaps, which {level.dtype} has not: make the index of {part.dtype}, as in "
                "pandas.MultiIndex.from_frame(index.to_frame())"
            )


def _besides(obj: Any) -> dict[str, Any]:
    try:
        fit = _is_json(obj.attrs)
    except RecursionError as error:
        raise TypeError("attrs do not travel: they are nested too deeply") from error
    if not fit:
        raise TypeError(f"attrs {obj.attrs!r} do not travel: expected what JSON has: str, numbers, lists, dicts by str")
    return {"attrs": obj.attrs or None, "unique": None if obj.flags.allows_duplicate_labels else True}


def _is_json(value: Any) -> bool:
    if type(value) is dict:
        return all(type(key) is str and _is_json(one) for key, one in value.items())
    if type(value) is list:
        return all(map(_is_json, value))
    return value is None or type(value) in (str, bool, int) or (type(value) is float and bool(np.isfinite(value)))


# -- in


def decode(bytestr: str | bytes) -> Any:
    try:
        return _restored(Stream(bytestr))
    except (ItemError, MemoryError):
        raise
    except Exception as error:  # of pyarrow, pandas and json, whatever a stranger's bytes make them raise
        reason = f"{type(error).__name__}: {quoted(error)}"
        raise ItemError(f"expected {EXPECTED} with notes that fit its columns: {reason}") from error


def _restored(stream: Stream) -> Any:
    batch = stream.batch
    about = json.loads((batch.schema.metadata or {}).get(_KEY, b"{}"))
    if about.get("version", _VERSION) != _VERSION:
        raise ItemError(f"expected notes of version {_VERSION}, got {quoted(about['version'])}: upgrade the server")
    count = int(about.get("columns_count", batch.num_columns))
    if not 0 <= count <= batch.num_columns:
        raise ItemError(f"expected {count} columns, got {batch.num_columns}")
    columns, levels = batch.columns[:count], batch.columns[count:]
    index = _to_index(about.get("index"), levels, batch.num_rows, stream)
    notes = about.get("notes", {})
    if "series" in about:
        values = from_arrow(columns[0], notes.get("0"), stream)
        obj = pd.Series(values, index, values.dtype, to_label(about["series"]["name"]), copy=False)
    else:
        obj = _to_frame(columns, notes, index, stream)
        obj.columns = _to_labels(about.get("labels"), batch.schema.names[:count])
    obj.attrs.update(about.get("attrs", {}))
    return obj.set_flags(allows_duplicate_labels=False) if about.get("unique") else obj


def _to_frame(columns: list[Any], notes: dict[str, Any], index: Any, stream: Stream) -> Any:
    block = None if notes else _block(columns, stream)
    if block is not None:
        return pd.DataFrame(block, index, copy=False)
    values = [from_arrow(column, notes.get(str(i)), stream) for i, column in enumerate(columns)]
    series = {i: pd.Series(one, index, one.dtype, copy=False) for i, one in enumerate(values)}
    return pd.DataFrame(series, index, copy=False)


def _block(columns: list[Any], stream: Stream) -> Any:
    """Columns of one type of numbers that lie at one distance in the stream, as one array: no copy."""
    kind = columns[0].type if columns else pa.null()
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind)) or any(one.type != kind for one in columns):
        return None
    offsets = [stream.offset(one) for one in columns]
    steps = {after - before for before, after in pairwise(offsets)} or {0}
    step, rows = steps.pop(), len(columns[0])
    dtype = np.dtype(kind.to_pandas_dtype())
    if steps or min(offsets) < 0 or (len(columns) > 1 and step < rows * dtype.itemsize):
        return None
    array: Any = np.ndarray((len(columns), rows), dtype, stream.memory.data, offsets[0], (step, dtype.itemsize))
    return array.T


def _to_index(note: Any, levels: list[Any], rows: int, stream: Stream) -> Any:
    if note is None:
        note = {"range": [0, rows, 1], "names": [None], "levels": []}
    if len(levels) != len(note.get("levels", levels)):
        raise ItemError(f"expected an index of {len(note['levels'])} levels, got {len(levels)}")
    names = [to_label(name) for name in note["names"]]
    if "range" in note:
        span = range(*note["range"])
        if len(span) != rows:
            raise ItemError(f"expected an index of {rows} rows, got {quoted(note['range'])}")
        return pd.RangeIndex(span, name=names[0])
    parts = [
        indexed(from_arrow(level, one, stream), freq, name)
        for level, one, freq, name in zip(levels, note["levels"], note["freqs"], names, strict=True)
    ]
    return pd.MultiIndex.from_arrays(parts, names=names) if note["multi"] else parts[0]


def _to_labels(note: Any, names: list[str]) -> Any:
    if note is None or set(note) == {"name"}:
        return pd.Index(names, dtype=STR, name=to_label((note or {}).get("name")))
    if "stream" not in note:
        return _to_index({"names": [None]} | note, [], len(names), None)  # type: ignore[arg-type]  # a range has no bytes
    stream = Stream(note["stream"])
    if stream.batch.num_rows != len(names):
        raise ItemError(f"expected {len(names)} labels of columns, got {stream.batch.num_rows}")
    return _to_index(note, stream.batch.columns, len(names), stream)
