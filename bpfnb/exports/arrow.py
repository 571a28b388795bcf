"""DataFrames as Arrow tables: types, units, and text for files that have no types."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from bpfnb.errors import ProgramError

__all__ = ["as_text", "tables", "to_arrow"]

_DICTIONARY = pa.dictionary(pa.int32(), pa.string())


def tables(frames: Iterable[pd.DataFrame], units: Mapping[str, str]) -> Iterator[pa.Table]:
    """Return an Arrow table of each frame, all of one schema: that of the first."""
    schema: pa.Schema | None = None
    for frame in frames:
        table = to_arrow(frame, units)
        if schema is not None and table.schema != schema:
            table = _cast(table, schema)
        schema = table.schema
        yield table


def to_arrow(frame: pd.DataFrame, units: Mapping[str, str]) -> pa.Table:
    """Return a frame as an Arrow table: the columns of its index first, where that has names.

    Numbers, truth values, times and durations have Arrow's types of the same name. Categories are dictionary<int32,
    string>. Text is string, bytes are large_binary. Integers that no type of Arrow holds (``__int128``) are their
    decimal digits, a string, with ``bpfnb.type`` "integer" in the field's metadata. The metadata has ``unit``, too:
    "ns" of durations, and what ``units`` says. ProgramError for columns of the same name, and other Python objects.
    """
    if any(name is not None for name in frame.index.names):
        frame = frame.reset_index()
    names = [_name(name) for name in frame.columns]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ProgramError(f"several columns are called {twice[0]!r}: a file has each name once")
    arrays, fields = [], []
    for at, name in enumerate(names):
        array, kind = _array(frame.iloc[:, at], name)
        unit = "ns" if pa.types.is_duration(array.type) else units.get(name, "")
        metadata = {key: value for key, value in (("unit", unit), ("bpfnb.type", kind)) if value}
        arrays.append(array)
        fields.append(pa.field(name, array.type, metadata=metadata or None))
    return pa.Table.from_arrays(arrays, schema=pa.schema(fields))


def as_text(table: pa.Table) -> pa.Table:
    """Return a table whose columns are numbers, truth values and text: times in ISO 8601 with all nine digits,
    durations as whole nanoseconds, bytes as hexadecimal digits."""
    columns = [_plain(table.column(at)) for at in range(table.num_columns)]
    return pa.Table.from_arrays(columns, names=table.column_names)


def _name(name: Any) -> str:
    return "_".join(map(str, name)) if isinstance(name, tuple) else str(name)


def _array(column: pd.Series[Any], name: str) -> tuple[pa.ChunkedArray | pa.Array, str]:
    """Return a column's values, and what they are where their type does not say so."""
    if isinstance(column.dtype, pd.CategoricalDtype):
        return _categories(column), ""
    if column.dtype == object:
        return _objects(column, name)
    try:
        array = pa.Array.from_pandas(column)
    except UnicodeEncodeError:  # a lone surrogate of Python's
        return pa.array(_valid(column.tolist()), pa.string()), ""
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError) as error:
        raise ProgramError(f"column {name!r} is {column.dtype}, which no file has: {_line(error)}") from None
    if pa.types.is_large_string(array.type):
        array = array.cast(pa.string())
    if pa.types.is_timestamp(array.type) or pa.types.is_duration(array.type):
        array = array.cast(_in_nanoseconds(array.type))
    return array, ""


def _in_nanoseconds(kind: pa.DataType) -> pa.DataType:
    return pa.timestamp("ns", kind.tz) if pa.types.is_timestamp(kind) else pa.duration("ns")


def _categories(column: pd.Series[Any]) -> pa.Array:
    """Return a category's values. A session's may have many categories: only those stand there that the rows have."""
    codes = column.cat.codes.to_numpy()
    used, places = np.unique(codes, return_inverse=True)
    missing = used < 0
    values = column.cat.categories.take(np.maximum(used, 0)) if len(column.cat.categories) else [""] * len(used)
    names = _valid([value if isinstance(value, str) else str(value) for value in values])
    indices = pa.array(places.astype(np.int32) - int(missing.sum()), mask=missing[places])
    return pa.DictionaryArray.from_arrays(indices, pa.array(names[int(missing.sum()) :], pa.string()))


def _objects(column: pd.Series[Any], name: str) -> tuple[pa.Array, str]:
    missing = column.isna().tolist()
    values = [None if gone else value for value, gone in zip(column.tolist(), missing, strict=True)]
    kinds = {type(value) for value in values if value is not None}
    if kinds <= {int} and kinds:
        return pa.array([value if value is None else str(value) for value in values], pa.string()), "integer"
    if kinds <= {str}:
        return pa.array(_valid(values), pa.string()), ""
    if kinds <= {bytes, bytearray}:
        return pa.array(values, pa.large_binary()), ""
    try:
        return pa.array(values, from_pandas=True), ""
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError):
        raise ProgramError(
            f"column {name!r} holds {' and '.join(sorted(kind.__name__ for kind in kinds))}, which no file has"
        ) from None


def _valid(values: Iterable[Any]) -> list[Any]:
    """Return texts as UTF-8 can hold them: a lone surrogate becomes its escape."""
    return [v.encode("utf-8", "backslashreplace").decode() if isinstance(v, str) else v for v in values]


def _cast(table: pa.Table, schema: pa.Schema) -> pa.Table:
    try:
        return table.cast(schema)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, ValueError) as error:
        raise ProgramError(f"the rows' columns have changed meanwhile: {_line(error)}") from None


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    kind = column.type
    if pa.types.is_dictionary(kind):
        return column.cast(kind.value_type)
    if pa.types.is_timestamp(kind):
        utc = pc.strftime(column, format="%Y-%m-%dT%H:%M:%S")
        return pc.binary_join_element_wise(utc, "Z", "") if kind.tz else utc
    if pa.types.is_duration(kind):
        return column.cast(pa.int64())
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind):
        values = [None if value is None else value.hex() for value in column.to_pylist()]
        return pa.chunked_array([pa.array(values, pa.string())])
    if pa.types.is_nested(kind):
        return pa.chunked_array([pa.array([None if v is None else str(v) for v in column.to_pylist()], pa.string())])
    return column


def _line(error: Exception) -> str:
    return str(error).splitlines()[0][:200]
