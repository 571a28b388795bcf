"""Keys and values as Python has them into the bytes the kernel has them in, and back."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from bpfnb.errors import ProgramError, near_or_all
from bpfnb.protocol.schema import BitField, Bytes, Column, Enum, Number, NumberArray, Rows, Schema, Tail, Text, Wide
from bpfnb.results.columns.base import Batch
from bpfnb.results.columns.kinds import column_buffer

__all__ = ["decoded", "pack", "unpack"]


def pack(schema: Schema, value: object, what: str = "value") -> bytes:
    """A key or value in the bytes the kernel has it in.

    A struct is a dict by column names, whose missing members are zero, or a tuple of all columns. A number is an int, a
    float or a bool, an enumeration a name or a number, a char array str or bytes, an array of numbers a sequence.
    ProgramError, naming the member, for what does not fit exactly. ``what``: the value's name in that.
    """
    row = bytearray(schema.size)
    for column, part in _members(schema, value, what):
        begin = column.offset
        data = _packed(column, part, row)
        row[begin : begin + len(data)] = data
    return bytes(row)


def _members(schema: Schema, value: object, what: str) -> Iterable[tuple[Column, object]]:
    columns = {column.name: column for column in schema.columns}
    if isinstance(value, Mapping):
        for name in value:
            if name not in columns:
                raise ProgramError(f"the {what} has no member {name!r}{near_or_all(str(name), columns)}")
        return [(columns[name], part) for name, part in value.items()]
    if len(columns) == 1:
        return [(schema.columns[0], value)]
    if not isinstance(value, (tuple, list)) or len(value) != len(columns):
        raise ProgramError(f"the {what} is a dict of, or a tuple with, {', '.join(columns)}; not {value!r}")
    return zip(schema.columns, value, strict=True)


def _packed(column: Column, value: Any, row: bytearray) -> bytes:
    """The bytes of one member, from ``column.offset`` on. ``row``: the bytes of those before."""
    match column:
        case Number() | Enum():
            return _number(column, value)
        case BitField():
            return _bits(column, value, row)
        case Text() | Bytes():
            return _text(column, value)
        case Wide():
            return _wide(column, value)
        case NumberArray():
            return _array(column, value)
        case Tail():
            raise ProgramError(f"{column.name} follows the {column.offset} bytes that a map has room for")


def _number(column: Number | Enum | NumberArray, value: Any) -> bytes:
    dtype = np.dtype(column.dtype)
    if dtype.kind == "f":
        try:
            return np.array(float(value), dtype).tobytes()
        except (TypeError, ValueError):
            raise ProgramError(f"{column.name} is a number, not {value!r}") from None
    return np.array(_integer(column, value, *_limits(dtype)), dtype).tobytes()


def _bits(column: BitField, value: Any, row: bytearray) -> bytes:
    """The bytes a bit-field lies in, with the bits of its neighbours."""
    first, width = column.first, column.width
    signed = np.dtype(column.dtype).kind == "i"
    low, high = (-(1 << (width - 1)), (1 << (width - 1)) - 1) if signed else (0, (1 << width) - 1)
    mask = ((1 << width) - 1) << first
    bits = _integer(column, value, low, high) << first
    word = int.from_bytes(row[column.offset : column.offset + column.size], "little")
    return (word & ~mask | bits & mask).to_bytes(column.size, "little")


def _wide(column: Wide, value: Any) -> bytes:
    bits = 8 * column.size
    low, high = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if column.signed else (0, (1 << bits) - 1)
    return _integer(column, value, low, high).to_bytes(column.size, "little", signed=column.signed)


def _text(column: Text | Bytes, value: Any) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    if not isinstance(data, (bytes, bytearray)):
        raise ProgramError(f"{column.name} is text or bytes, not {value!r}")
    if len(data) > column.size:
        raise ProgramError(f"{column.name} has room for {column.size} bytes, not for {len(data)}: {value!r}")
    return bytes(data).ljust(column.size, b"\0")


def _array(column: NumberArray, value: Any) -> bytes:
    elements = np.array(value, dtype=object)
    if elements.shape != column.shape:
        raise ProgramError(f"{column.name} has {_sized(column.shape)} elements, not {_sized(elements.shape)}")
    return b"".join(_number(column, element) for element in elements.ravel())


def _integer(column: Column, value: Any, low: int, high: int) -> int:
    """A whole number within its type's limits; for a constant's name its value."""
    labels = column.labels if isinstance(column, Enum | BitField) else ()
    if isinstance(value, str) and labels:
        constants = dict(labels)
        if value not in constants:
            raise ProgramError(f"{column.name} has no constant {value!r}{near_or_all(value, constants)}")
        return (constants[value] - low) % (high - low + 1) + low  # BTF may have a constant of 32 bits as signed
    try:
        number = int(value) if isinstance(value, np.bool_) else operator.index(value)
    except TypeError:
        raise ProgramError(f"{column.name} is a whole number, not {value!r}") from None
    if not low <= number <= high:
        raise ProgramError(f"{column.name} goes from {low} to {high}; {number} does not fit")
    return number


def _limits(dtype: np.dtype[Any]) -> tuple[int, int]:
    if dtype.kind == "b":
        return 0, 1
    limits = np.iinfo(dtype)
    return int(limits.min), int(limits.max)


def _sized(shape: Sequence[int]) -> str:
    return " by ".join(map(str, shape)) or "no"


def unpack(schema: Schema, rows: Rows, make: Callable[..., Any]) -> list[Any]:
    """Rows as Python's own values: of one column just that, else what ``make`` (dict or tuple) makes of them."""
    columns = [_listed(column, rows) for column in schema.columns]
    if len(columns) == 1:
        return columns[0]
    if make is tuple:
        return list(zip(*columns, strict=True))
    names = [column.name for column in schema.columns]
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def _listed(column: Column, rows: Rows) -> list[Any]:
    """A column's values as Python's; an array is a list."""
    if not isinstance(column, NumberArray):
        values: list[Any] = decoded(column, rows).tolist()
        return values
    arrays = column.values(rows).reshape(-1, *column.shape)
    return list((arrays != 0 if arrays.dtype.kind == "b" else arrays).tolist())


def decoded(column: Column, rows: Rows) -> Any:
    """A column as events have it."""
    decoder = column_buffer(column)
    decoder.append(Batch(rows))
    return decoder.values()
