"""DataFrames of outputs <-> Arrow's columns, equal to the last value and dtype. See format.py for the types."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from bpfnb.errors import ProgramError
from bpfnb.protocol.schema import PRINTK, PRINTK_LINES, BitField, Column, Enum, Number, Schema, Tail, Text, Wide
from bpfnb.results.columns.strings import ByteStrings
from bpfnb.results.columns.text import text_dtype
from bpfnb.results.printk import PrintkTable
from bpfnb.results.table import Table, named_columns

__all__ = ["Dictionary", "Encoder", "arrow_schema", "empty_frame", "frame_of"]

_TIME = pa.timestamp("ns", "UTC")
_UTC = pd.DatetimeTZDtype("ns", "UTC")
_NAMES = pa.dictionary(pa.int32(), pa.string())
_WIDE = pa.binary(16)


def empty_frame(schema: Schema) -> pd.DataFrame:
    """Return the frame of an output that has no rows yet."""
    table = PrintkTable(0, schema) if schema in (PRINTK, PRINTK_LINES) else Table(schema, 0)
    return table.frame()


def arrow_schema(schema: Schema, units: Mapping[str, str] | None = None) -> pa.Schema:
    """Return the columns of an output's rows. A field's metadata: ``type``, as C has it, and ``unit`` ("ns")."""
    columns = {} if schema in (PRINTK, PRINTK_LINES) else named_columns(schema)
    fields = []
    for name, dtype in empty_frame(schema).dtypes.items():
        metadata = {"type": _c_type(columns[str(name)])} if name in columns else {}
        if unit := (units or {}).get(str(name)):
            metadata["unit"] = unit
        fields.append(pa.field(str(name), _arrow_type(dtype), metadata=metadata or None))
    return pa.schema(fields)


def _arrow_type(dtype: Any) -> pa.DataType:
    if isinstance(dtype, pd.CategoricalDtype):
        return _NAMES
    if isinstance(dtype, pd.DatetimeTZDtype):
        return _TIME
    if isinstance(dtype, pd.ArrowDtype):
        return pa.large_binary()
    if isinstance(dtype, pd.StringDtype):
        return pa.large_string()
    return _WIDE if dtype.kind == "O" else pa.from_numpy_dtype(dtype)


_C_NUMBERS = {"b": "bool", "u": "__u{}", "i": "__s{}"}


def _c_type(column: Column) -> str:
    """Return a column's type as the kernel's headers write it."""
    if isinstance(column, Wide):
        return "__s128" if column.signed else "__u128"
    if isinstance(column, Text):
        return f"char[{column.size}]"
    if isinstance(column, Tail):
        return "char[]" if column.text else "__u8[]"
    if not isinstance(column, Number | Enum | BitField):
        return f"__u8[{column.size}]"
    kind, size = np.dtype(column.dtype).kind, np.dtype(column.dtype).itemsize
    if kind == "f":
        return "float" if size == 4 else "double"
    name = "enum" if isinstance(column, Enum) else _C_NUMBERS[kind].format(8 * size)
    return f"{name}:{column.width}" if isinstance(column, BitField) else name


# --- frames -> Arrow ----------------------------------------------------------------------------------------------


class Dictionary:
    """The names of a category column in one part, in the order they came. It only grows, so that what is new of it can
    be written as a delta."""

    def __init__(self) -> None:
        self.names = pa.array([], pa.string())
        self._categories: Any = None  # those that were seen last, as strings, and the numbers of these here
        self._last = pa.array([], pa.string())
        self._numbers: npt.NDArray[np.int32] = np.empty(0, np.int32)

    @property
    def nbytes(self) -> int:
        return int(self.names.nbytes)

    def encode(self, category: pd.Categorical[Any] | Named, whole: bool) -> pa.Array:
        """Return the values as numbers of names here. Names that are new come at the end: those of rows, or all."""
        codes = category.codes
        missing = codes < 0
        self._look_up(category.categories)
        new = self._numbers < 0
        if not whole and new.any():
            used = np.zeros(len(new), np.bool_)
            used[codes[~missing]] = True
            new &= used
        if new.any():
            self._numbers[new] = len(self.names) + np.arange(np.count_nonzero(new), dtype=np.int32)
            self.names = pa.concat_arrays([self.names, self._last.filter(pa.array(new))])
        numbers = self._numbers[codes] if len(self._numbers) else np.full(len(codes), -1, np.int32)
        return pa.array(numbers, pa.int32(), mask=missing if missing.any() else None)

    def _look_up(self, categories: Any) -> None:
        """Find the numbers of categories. Mostly they are those of last time, and some more."""
        if categories is self._categories:
            return
        names = _strings(categories)
        known = len(self._last) if names.slice(0, len(self._last)).equals(self._last) else 0
        found = pc.index_in(names.slice(known), value_set=self.names)
        self._numbers = np.concatenate([self._numbers[:known], _filled(found)])
        self._categories, self._last = categories, names


def _strings(categories: Any) -> pa.Array:
    strings = categories if isinstance(categories, pa.Array) else pa.array(categories, pa.large_string())
    chunks = strings.chunks if isinstance(strings, pa.ChunkedArray) else [strings]
    return pa.concat_arrays([chunk.cast(pa.string()) for chunk in chunks]) if chunks else pa.array([], pa.string())


def _filled(found: pa.Array) -> npt.NDArray[np.int32]:
    """Return places, -1 for none."""
    numbers: npt.NDArray[np.int32] = found.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int32)
    return numbers


class Encoder:
    """Makes the columns of one part. Those of names are numbers until ``batch`` puts them together."""

    def __init__(self, schema: pa.Schema) -> None:
        self.schema = schema
        self._dictionaries = {field.name: Dictionary() for field in schema if field.type == _NAMES}

    @property
    def nbytes(self) -> int:
        """What the dictionaries take."""
        return sum(dictionary.nbytes for dictionary in self._dictionaries.values())

    def encode(self, rows: pd.DataFrame | pa.RecordBatch, whole: bool = False) -> list[pa.Array]:
        """Return the columns of a frame, or of a batch by the same schema. ``whole``: also names that no row has.
        ProgramError for other columns."""
        names = rows.schema.names if isinstance(rows, pa.RecordBatch) else list(rows.columns)
        if names != self.schema.names:
            raise ProgramError(
                f"rows have the columns {', '.join(map(str, names))}, not {', '.join(self.schema.names)}"
            )
        if isinstance(rows, pa.RecordBatch):
            return [self._renumbered(name, array, whole) for name, array in zip(names, rows.columns, strict=True)]
        return [self._array(field, rows[field.name], whole) for field in self.schema]

    def batch(self, pieces: Sequence[Sequence[pa.Array]]) -> pa.RecordBatch:
        """Return columns that were encoded one after another as one batch."""
        arrays = [pa.concat_arrays(column) for column in zip(*pieces, strict=True)]
        for at, field in enumerate(self.schema):
            if field.name in self._dictionaries:
                names = self._dictionaries[field.name].names
                arrays[at] = pa.DictionaryArray.from_arrays(arrays[at], names)
        return pa.RecordBatch.from_arrays(arrays, schema=self.schema)

    def _renumbered(self, name: str, array: pa.Array, whole: bool) -> pa.Array:
        return self._dictionaries[name].encode(Named(array), whole) if name in self._dictionaries else array

    def _array(self, field: pa.Field, column: pd.Series[Any], whole: bool) -> pa.Array:
        if field.name in self._dictionaries:
            return self._dictionaries[field.name].encode(column.array, whole)
        if field.type == _WIDE:
            values = [(int(value) % 2**128).to_bytes(16, "little") for value in column]
            return pa.array(values, _WIDE)
        if field.type == _TIME:
            return pa.array(column.to_numpy("M8[ns]").view(np.int64), pa.int64()).view(_TIME)
        if column.dtype.kind == "f":  # of a Series pyarrow would make null of nan
            return pa.array(column.to_numpy(), field.type, from_pandas=False)
        array = pa.array(column, field.type)
        return pa.concat_arrays(array.chunks or [pa.array([], field.type)]) if hasattr(array, "chunks") else array


# --- Arrow -> frames ----------------------------------------------------------------------------------------------


def frame_of(schema: Schema, batches: Iterable[pa.RecordBatch], columns: Sequence[str] | None = None) -> pd.DataFrame:
    """Return the rows of batches, whose columns are those of ``arrow_schema``, as ``Output.df`` has them. ``columns``:
    only these, in the schema's order, as in the batches."""
    empty = empty_frame(schema)
    if columns is not None:
        empty = empty[[name for name in empty.columns if name in columns]]
    columns_of = named_columns(schema)
    makers = [_Column(empty[name], columns_of.get(str(name))) for name in empty.columns]
    for batch in batches:
        for maker, array in zip(makers, batch.columns, strict=True):
            maker.add(array)
    return pd.DataFrame({name: maker.finish() for name, maker in zip(empty.columns, makers, strict=True)}, copy=False)


class _Column:
    """A column of a frame that is made of batches."""

    def __init__(self, empty: pd.Series[Any], column: Column | None) -> None:
        self._dtype: Any = empty.dtype
        self._signed = isinstance(column, Wide) and column.signed
        self._pieces: list[Any] = []
        self._names = Dictionary()
        if isinstance(self._dtype, pd.CategoricalDtype):
            self._names.encode(empty.array, whole=True)  # an enumeration's constants, seen or not

    def add(self, array: pa.Array) -> None:
        self._pieces.append(self._piece(array))

    def _piece(self, array: pa.Array) -> Any:
        if isinstance(self._dtype, pd.CategoricalDtype):
            return self._names.encode(Named(array), whole=True)
        return array

    def finish(self) -> Any:
        """Return the values, and let go of what they were made of: a large frame is there once then, not twice."""
        values = self._values()
        self._pieces.clear()
        return values

    def _values(self) -> Any:
        if isinstance(self._dtype, pd.CategoricalDtype):
            return self._category()
        if isinstance(self._dtype, pd.ArrowDtype):
            return ByteStrings(pa.chunked_array(self._pieces, pa.large_binary()))
        if isinstance(self._dtype, pd.StringDtype):
            return pd.array(pa.chunked_array(self._pieces, pa.large_string()), dtype=text_dtype())
        if self._dtype.kind == "O":
            return _integers(self._pieces, self._signed)
        if isinstance(self._dtype, pd.DatetimeTZDtype):
            times = self._numbers([piece.view(pa.int64()) for piece in self._pieces], np.dtype(np.int64))
            return pd.array(times.view("M8[ns]"), copy=False).view(_UTC)
        return self._numbers(self._pieces, np.dtype(self._dtype))

    def _numbers(self, pieces: Sequence[pa.Array], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        arrays = [piece.to_numpy(zero_copy_only=False) for piece in pieces]
        return np.concatenate(arrays).astype(dtype, copy=False) if arrays else np.empty(0, dtype)

    def _category(self) -> pd.Categorical[Any]:
        pieces = [_filled(piece) for piece in self._pieces]
        codes = np.concatenate(pieces) if pieces else np.empty(0, np.int32)
        names = pd.array(pa.chunked_array([self._names.names.cast(pa.large_string())]), dtype=text_dtype())
        dtype = pd.CategoricalDtype(pd.Index(names))
        return pd.Categorical.from_codes(codes, dtype=dtype)


class Named:
    """A batch's column, as ``Dictionary`` takes one."""

    def __init__(self, array: pa.DictionaryArray) -> None:
        self.categories = array.dictionary
        self.codes = _filled(array.indices)


def _integers(pieces: Sequence[pa.Array], signed: bool) -> npt.NDArray[Any]:
    values = [value for piece in pieces for value in piece.to_pylist()]
    integers = np.empty(len(values), object)
    integers[:] = [int.from_bytes(value, "little", signed=signed) for value in values]
    return integers
