"""What of pandas travels and what is refused: the rows of the table in docs/serial.md."""

from __future__ import annotations

import datetime
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pandas as pd
import pyarrow as pa

ROWS = 5
DAYS = pd.date_range("2024-02-27", periods=ROWS, freq="D")


def column(values, dtype=None) -> pd.DataFrame:
    return pd.DataFrame({"c": pd.Series(values, dtype=dtype)})


def numbers() -> list[tuple[str, object]]:
    rng = np.random.default_rng(1)
    gaps = [1.5, np.nan, np.inf, -0.0, 2.0]
    dtypes = ["bool", "int8", "uint16", "int64", "uint64", "float16", "float32", "float64"]
    frames = [(f"a frame of {name}", pd.DataFrame(rng.integers(0, 2, (3, 4)).astype(name))) for name in dtypes]
    return [
        *frames,
        (
            "a frame of several dtypes",
            pd.DataFrame({"a": [1, 2], "b": [0.5, np.nan], "t": ["x", None], "y": [True, False]}),
        ),
        ("NaN, infinity, -0.0", column(gaps)),
        ("a frame whose memory is in rows", pd.DataFrame(np.arange(12.0).reshape(3, 4), copy=False)),
        ("every second row", pd.DataFrame(np.arange(12.0).reshape(6, 2))[::2]),
        ("no rows", pd.DataFrame({"a": np.empty(0), "b": np.empty(0, "i4")})),
        ("no columns", pd.DataFrame(index=range(2, 9, 3))),
        ("nothing", pd.DataFrame()),
        ("Int64 with pd.NA", column([1, None, 3], "Int64")),
        ("Float64 with pd.NA", column([1.5, None], "Float64")),
        ("boolean with pd.NA", column([True, None], "boolean")),
    ]


def texts() -> list[tuple[str, object]]:
    return [
        ("str, with missing ones", column(["a", None, "ü€😀", ""])),
        ("str, kept by Python", column(["a", None], pd.StringDtype("python", na_value=np.nan))),
        ("string with pd.NA", column(["a", None], "string")),
        ("string, kept by Python", column(["a", None], pd.StringDtype("python"))),
        ("objects: str and None", column(["a", None, "b"], object)),
        ("objects: str and NaN", column(["a", np.nan, "b"], object)),
        ("objects: bytes", column([b"\x00a", b""], object)),
        ("objects: bool", column([True, None], object)),
        ("objects: int", column([1, None, -(2**63)], object)),
        ("objects: float", column([1.5, None], object)),
        ("objects: Decimal", column([Decimal("1.50"), Decimal("3")], object)),
        ("objects: date", column([datetime.date(2024, 2, 29), None], object)),
        ("objects: time", column([datetime.time(23, 59, 59, 1)], object)),
        ("objects: lists of numbers", column([[1, 2], [], None, [3]], object)),
        ("objects: lists of text", column([["a", "b"], ["c", "d"]], object)),
        ("objects: arrays of one dtype", column([np.float32([1, 2]), np.float32([]), None], object)),
        ("objects: none but None", column([None, None], object)),
    ]


def moments() -> list[tuple[str, object]]:
    stamps = ["2024-02-29T12:00:00", None]
    return [
        *((f"datetime64[{unit}] with NaT", column(stamps, f"datetime64[{unit}]")) for unit in ("s", "ms", "us", "ns")),
        ("timedelta64[ns] with NaT", column([pd.Timedelta(1, "s"), None], "timedelta64[ns]")),
        ("datetimes of a time zone", column(pd.to_datetime(pd.Series(stamps)).dt.tz_localize("Europe/Paris"))),
        ("datetimes of an offset", column(pd.to_datetime(["2024-02-29T12:00:00+01:30", None]))),
        ("periods", column(pd.PeriodIndex(["2024-01", None], freq="M"))),
        ("intervals", column(pd.arrays.IntervalArray.from_breaks([0, 1, 2], closed="left"))),
        ("intervals of datetimes", column(pd.arrays.IntervalArray.from_breaks(DAYS))),
        ("categories", column(pd.Categorical(["b", None, "a"], categories=["b", "a", "unused"]))),
        ("ordered categories of numbers", column(pd.Categorical([3, 1], categories=[3, 1], ordered=True))),
        ("what pandas.cut gives", column(pd.cut([1, 5, 9], 3))),
        ("categories of datetimes", column(pd.Categorical(DAYS))),
        ("Arrow's decimals", column([Decimal("1.50"), None], pd.ArrowDtype(pa.decimal128(5, 2)))),
        ("Arrow's lists", column([[1, None], None], pd.ArrowDtype(pa.list_(pa.int64())))),
        ("Arrow's structs", column([{"a": 1}, None], pd.ArrowDtype(pa.struct({"a": pa.int64()})))),
        ("Arrow's int64", column([1, None], pd.ArrowDtype(pa.int64()))),
    ]


def frame(index=None, columns=("a", "b"), rows=ROWS) -> pd.DataFrame:
    values = np.arange(rows * len(columns), dtype="f8").reshape(rows, len(columns))
    return pd.DataFrame(values, index, columns)


def labels() -> list[tuple[str, object]]:
    pairs = [("x", 1), ("x", 2), ("y", 1), ("y", 2), ("z", 1)]
    named = frame(pd.Index(list("vwxyz"), name="key"))
    named.columns.name = "features"
    attrs = frame()
    attrs.attrs = {"source": "sensor", "scale": [1, 0.5, None], "more": {"a": True}}
    unique = frame().set_flags(allows_duplicate_labels=False)
    return [
        ("an index with a name, labels with one", named),
        ("a RangeIndex with a step", frame(pd.RangeIndex(10, 0, -2, name="r"))),
        ("a DatetimeIndex and its freq", frame(DAYS)),
        ("a DatetimeIndex of a time zone", frame(DAYS.tz_localize("America/New_York"))),
        ("a TimedeltaIndex and its freq", frame(pd.timedelta_range("1h", periods=ROWS, freq="15min"))),
        ("a PeriodIndex", frame(pd.period_range("2024-01", periods=ROWS, freq="Q"))),
        ("a CategoricalIndex", frame(pd.CategoricalIndex(list("abcab")))),
        ("an IntervalIndex", frame(pd.interval_range(0, ROWS))),
        ("a MultiIndex", frame(pd.MultiIndex.from_tuples(pairs, names=["k", None]))),
        ("a MultiIndex with missing labels", frame(pd.MultiIndex.from_arrays([["x", None, "y", "y", "z"], DAYS]))),
        ("an index with the same label twice", frame(pd.Index([1, 1, 2, 2, 3]))),
        ("labels: two of the same", frame(columns=("a", "a"))),
        ("labels: numbers", frame(columns=(10, 20))),
        ("labels: a range", frame(columns=range(2))),
        ("labels: a MultiIndex", frame(columns=pd.MultiIndex.from_product([["m", "n"], [1, 2]], names=["u", "v"]))),
        ("labels: datetimes and their freq", frame(columns=DAYS)),
        ("labels: objects of str", frame(columns=pd.Index(["a", "b"], dtype=object))),
        ("attrs that are JSON", attrs),
        ("flags: labels that are unique", unique),
    ]


def series() -> list[tuple[str, object]]:
    return [
        ("a Series and its name", pd.Series([1.5, 2.5], name="price")),
        ("a Series with a tuple for its name", pd.Series([1, 2], [3, 4], name=("a", 1))),
        ("a Series of str with a MultiIndex", pd.Series(["a", "b"], pd.MultiIndex.from_tuples([(1, "x"), (2, "y")]))),
        ("a Series of categories", pd.Series(["a", "b", "a"], dtype="category")),
    ]


def cases() -> list[tuple[str, object]]:
    return [*numbers(), *texts(), *moments(), *labels(), *series()]


def refused() -> list[tuple[str, object, str]]:
    attrs = frame()
    attrs.attrs = {"shape": (1, 2)}
    return [
        ("complex numbers", column([1 + 2j]), "column 'c': complex128 does not travel: send the real"),
        ("another byte order", column(np.array([1.0], ">f8")), "column 'c': >f8 is of another byte order: convert it"),
        (
            "sparse columns",
            column([0, 0, 1], "Sparse[int]"),
            "column 'c': Sparse[int64, 0] does not travel: make it dense",
        ),
        ("objects of several types", column(["a", 1], object), "column 'c' holds int and str: make it one type"),
        ("None and NaN both", column(["a", None, np.nan], object), "column 'c' holds None and nan: make it one type"),
        ("dicts", column([{"a": 1}], object), "column 'c': objects of dict do not travel: give each member a column"),
        ("lists of several types", column([[1, "a"]], object), "column 'c': lists of int and str do not travel"),
        ("arrays of two dimensions", column([np.eye(2)], object), "column 'c': expected arrays of one dimension"),
        (
            "other objects",
            column([Fraction(1, 2)], object),
            "column 'c': objects of Fraction do not travel: convert it",
        ),
        ("ints beyond 64 bits", column([2**64], object), "column 'c': Arrow can't hold its values of object"),
        ("text that is no Unicode", column(["\ud800"], object), "column 'c': Arrow can't hold its values of object"),
        ("labels of several types", frame(columns=("a", 1)), "the columns' labels holds int and str: make it one type"),
        ("an index of objects", frame(pd.Index([Fraction(1)] * ROWS)), "the index: objects of Fraction do not travel"),
        ("attrs that are no JSON", attrs, "attrs {'shape': (1, 2)} do not travel: expected what JSON has"),
        ("a name that is a date", pd.Series([1], name=DAYS[0]), "its name Timestamp"),
        (
            "Arrow's run-end encoded",
            column([1, 1], pd.ArrowDtype(pa.run_end_encoded(pa.int32(), pa.int64()))),
            "column 'c': the Arrow type",
        ),
        ("no frame", [1, 2], "expected a pandas.DataFrame or a pandas.Series, got list"),
    ]


def same(a, b) -> bool:
    """Whether they are equal to the type of each cell, and the freq of each index."""
    try:
        check = pd.testing.assert_series_equal if isinstance(a, pd.Series) else pd.testing.assert_frame_equal
        check(a, b, check_exact=True, check_freq=True, check_index_type=True, check_flags=True)
    except AssertionError:
        return False
    return a.attrs == b.attrs and facts(a) == facts(b)


def facts(obj) -> list[object]:
    """What assert_frame_equal lets pass: the types of cells, of labels and of missing values, the sign of zero."""
    columns = [obj] if isinstance(obj, pd.Series) else [obj.iloc[:, i] for i in range(obj.shape[1])]
    axes = [obj.index] if isinstance(obj, pd.Series) else [obj.index, obj.columns]
    cells = [[(type(cell), str(cell)) for cell in column] for column in columns]
    arrays = [[getattr(cell, "dtype", None) for cell in column] for column in columns]
    dtypes = [column.dtype for column in columns] + [axis.dtype for axis in axes]
    levels = [(type(axis), [(type(label), str(label)) for label in axis], getattr(axis, "freq", None)) for axis in axes]
    return [cells, arrays, dtypes, levels, [axis.names for axis in axes]]
