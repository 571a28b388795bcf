"""Python values into the bytes of a column. ``row``: the bytes of the row so far, for bits that share bytes.

ProgramError, naming the column, for what does not fit exactly.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np

from bpfnb.errors import ProgramError, near_or_all
from bpfnb.protocol.schema import BitField, Bytes, Column, Enum, Number, NumberArray, Tail, Text, Wide

__all__ = ["pack_array", "pack_bits", "pack_number", "pack_tail", "pack_text", "pack_wide"]


def pack_number(column: Number | Enum | NumberArray, value: Any, row: bytearray) -> bytes:
    dtype = np.dtype(column.dtype)
    if dtype.kind == "f":
        try:
            return np.array(float(value), dtype).tobytes()
        except (TypeError, ValueError):
            raise ProgramError(f"{column.name} is a number, not {value!r}") from None
    return np.array(_integer(column, value, *_limits(dtype)), dtype).tobytes()


def pack_bits(column: BitField, value: Any, row: bytearray) -> bytes:
    """Return the bytes a bit-field lies in, with the bits of its neighbours."""
    first, width = column.first, column.width
    signed = np.dtype(column.dtype).kind == "i"
    low, high = (-(1 << (width - 1)), (1 << (width - 1)) - 1) if signed else (0, (1 << width) - 1)
    mask = ((1 << width) - 1) << first
    bits = _integer(column, value, low, high) << first
    word = int.from_bytes(row[column.offset : column.offset + column.size], "little")
    return (word & ~mask | bits & mask).to_bytes(column.size, "little")


def pack_wide(column: Wide, value: Any, row: bytearray) -> bytes:
    bits = 8 * column.size
    low, high = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if column.signed else (0, (1 << bits) - 1)
    return _integer(column, value, low, high).to_bytes(column.size, "little", signed=column.signed)


def pack_text(column: Text | Bytes, value: Any, row: bytearray) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    if not isinstance(data, (bytes, bytearray)):
        raise ProgramError(f"{column.name} is text or bytes, not {value!r}")
    if len(data) > column.size:
        raise ProgramError(f"{column.name} has room for {column.size} bytes, not for {len(data)}: {value!r}")
    return bytes(data).ljust(column.size, b"\0")


def pack_array(column: NumberArray, value: Any, row: bytearray) -> bytes:
    elements = np.array(value, dtype=object)
    if elements.shape != column.shape:
        raise ProgramError(f"{column.name} has {_sized(column.shape)} elements, not {_sized(elements.shape)}")
    return b"".join(pack_number(column, element, row) for element in elements.ravel())


def _integer(column: Column, value: Any, low: int, high: int) -> int:
    """Return a whole number within its type's limits; for a constant's name its value."""
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


def pack_tail(column: Tail, value: Any, row: bytearray) -> bytes:
    raise ProgramError(f"{column.name} follows the bytes of fixed length, which a map has no room for")
