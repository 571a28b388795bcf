"""Python objects into the bytes of keys and values, and back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from bpfnb.errors import ProgramError, near_or_all
from bpfnb.protocol.schema import Column, NumberArray, Rows, Schema
from bpfnb.results.columns.base import Batch
from bpfnb.results.columns.kinds import KINDS, column_buffer

__all__ = ["decoded", "pack", "unpack"]


def pack(schema: Schema, value: object, what: str = "value") -> bytes:
    """Return the bytes of a key or value, as the kernel has them.

    A struct is a dict by column names, whose missing members are zero, or a tuple of all columns. A number is an int, a
    float or a bool, an enumeration a name or a number, a char array str or bytes, an array of numbers a sequence.
    ProgramError, naming the member, for what does not fit exactly. ``what``: the value's name in that.
    """
    row = bytearray(schema.size)
    for column, part in _members(schema, value, what):
        begin = column.offset
        data = KINDS[type(column)].pack(column, part, row)
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


def unpack(schema: Schema, rows: Rows, make: Callable[..., Any]) -> list[Any]:
    """Return rows as Python objects: of one column its values, of several a ``make`` (dict or tuple) each."""
    columns = [_listed(column, rows) for column in schema.columns]
    if len(columns) == 1:
        return columns[0]
    if make is tuple:
        return list(zip(*columns, strict=True))
    names = [column.name for column in schema.columns]
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def _listed(column: Column, rows: Rows) -> list[Any]:
    """Return a column's values as Python objects; an array is a list."""
    if not isinstance(column, NumberArray):
        values: list[Any] = decoded(column, rows).tolist()
        return values
    arrays = column.values(rows).reshape(-1, *column.shape)
    return list((arrays != 0 if arrays.dtype.kind == "b" else arrays).tolist())


def decoded(column: Column, rows: Rows) -> Any:
    """Decode one column, as events' columns are."""
    decoder = column_buffer(column)
    decoder.append(Batch(rows))
    return decoder.values()
