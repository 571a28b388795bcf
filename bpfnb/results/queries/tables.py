"""DataFrames as Arrow tables, and the results of queries as DataFrames."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from bpfnb.results.columns.text import PANDAS

__all__ = ["frame_of", "table_of"]

_NS = pa.duration("ns")
_MONTH_DAY_NANO = np.dtype([("months", "<i4"), ("days", "<i4"), ("ns", "<i8")])
_NULLABLE = {
    pa.bool_(): pd.BooleanDtype(),
    **{getattr(pa, f"int{bits}")(): getattr(pd, f"Int{bits}Dtype")() for bits in (8, 16, 32, 64)},
    **{getattr(pa, f"uint{bits}")(): getattr(pd, f"UInt{bits}Dtype")() for bits in (8, 16, 32, 64)},
}
_HUGE = pa.decimal128(38, 0)  # what HUGEINT, the type of a sum of integers, comes as


def table_of(frame: pd.DataFrame, *, nan_is_missing: bool = True) -> pa.Table:
    """Return a frame as an Arrow table, which shares the memory of numbers, times and strings. Its index is left out.

    Categories are dictionary<int32, large_string>. Python integers of 128 bits, as fixed_size_binary[16],
    little-endian; other objects that Arrow does not know, as text. ``nan_is_missing``: a float's nan is null.
    """
    names = [str(name) for name in frame.columns]
    columns = [_array(frame.iloc[:, n], nan_is_missing) for n in range(len(names))]
    return pa.Table.from_arrays(columns, names=names)


def _array(column: pd.Series[Any], nan_is_missing: bool) -> pa.Array | pa.ChunkedArray:
    if isinstance(column.dtype, pd.CategoricalDtype):
        return _dictionary(column.array)
    if column.dtype.kind == "f" and not nan_is_missing and isinstance(column.dtype, np.dtype):
        return pa.array(column.to_numpy(), from_pandas=False)
    if column.dtype != object:
        return pa.Array.from_pandas(column)
    try:
        return pa.Array.from_pandas(column)
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, OverflowError):
        return _objects(column)


def _dictionary(values: Any) -> pa.DictionaryArray:
    codes = np.asarray(values.codes)
    missing = codes < 0
    indices = pa.array(codes.astype(np.int32, copy=False), mask=missing if missing.any() else None)
    names = pa.Array.from_pandas(pd.Series(values.categories))
    if isinstance(names, pa.ChunkedArray):
        names = names.combine_chunks()
    if pa.types.is_string(names.type) or pa.types.is_null(names.type):
        names = names.cast(pa.large_string())
    return pa.DictionaryArray.from_arrays(indices, names)


def _objects(column: pd.Series[Any]) -> pa.Array:
    values = [None if value is None or value is pd.NA else value for value in column]
    if all(value is None or (isinstance(value, int) and -(1 << 127) <= value < 1 << 128) for value in values):
        wide = [None if value is None else (value % (1 << 128)).to_bytes(16, "little") for value in values]
        return pa.array(wide, pa.binary(16))
    return pa.array([None if value is None else str(value) for value in values], pa.large_string())


def frame_of(table: pa.Table) -> pd.DataFrame:
    """Return the result of a query as a DataFrame, no value of which is rounded on the way.

    Integers with missing values are Int64 and the like, sums beyond 64 bits Python integers, intervals timedelta64[ns]
    (those of months stay what they are), times datetime64[ns, UTC], where they fit.
    """
    columns = [_plain(column) for column in table.columns]
    frames = [pa.table({"": column}).to_pandas(types_mapper=_mapper(column)) for column in columns]
    for frame, column in zip(frames, columns, strict=True):
        if column.type == _HUGE:
            frame[""] = [None if value is None else int(value) for value in column.to_pylist()]
    if not frames:
        return pd.DataFrame(index=pd.RangeIndex(len(table)))
    result: pd.DataFrame = pd.concat([frame[""] for frame in frames], axis=1)
    result.columns = pd.Index(_distinct(table.column_names))
    return result


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    kind = column.type
    if kind == _HUGE:
        with suppress(pa.ArrowInvalid):
            return column.cast(pa.int64())
    if pa.types.is_timestamp(kind) and kind.unit != "ns":
        with suppress(pa.ArrowInvalid):
            return column.cast(pa.timestamp("ns", kind.tz))
    if kind == pa.month_day_nano_interval():
        return _durations(column)
    if pa.types.is_binary(kind):
        return column.cast(pa.large_binary())
    return column


def _durations(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return intervals as durations, unless one has months, whose lengths differ."""
    chunks = []
    for chunk in column.chunks:
        values = np.frombuffer(chunk.buffers()[1], _MONTH_DAY_NANO)[chunk.offset : chunk.offset + len(chunk)]
        known = pc.is_valid(chunk).to_numpy(zero_copy_only=False)
        if values["months"][known].any():
            return column
        chunks.append(pa.array(values["days"] * np.int64(86_400_000_000_000) + values["ns"], _NS, mask=~known))
    return pa.chunked_array(chunks, _NS)


def _mapper(column: pa.ChunkedArray) -> Any:
    dtypes: dict[pa.DataType, Any] = dict(_NULLABLE) if column.null_count else {}
    dtypes[pa.large_binary()] = pd.ArrowDtype(pa.large_binary())
    if PANDAS < (3, 0):
        dtypes[pa.string()] = pd.StringDtype("pyarrow")
    return dtypes.get


def _distinct(names: Iterable[str]) -> list[str]:
    """Return columns' names, those that are there already with _1, _2 ... behind them."""
    known: dict[str, None] = {}
    for name in names:
        number, new = 0, name
        while new in known:
            number += 1
            new = f"{name}_{number}"
        known[new] = None
    return list(known)
