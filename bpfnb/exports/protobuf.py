"""Protocol buffers, written: for Perfetto and pprof. See protobuf.dev/programming-guides/encoding."""

from __future__ import annotations

import struct
from collections.abc import Iterable

__all__ = ["data", "double", "number", "packed", "text", "varint"]

_SMALL = [bytes([value]) for value in range(128)]


def varint(value: int) -> bytes:
    """Return an integer of 64 bits; a negative one as protobuf's int64 has it, in two's complement."""
    if 0 <= value < 128:
        return _SMALL[value]
    value &= (1 << 64) - 1
    parts = bytearray()
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    parts.append(value)
    return bytes(parts)


def number(field: int, value: int) -> bytes:
    """Return a field of an integer or truth value."""
    return varint(field << 3) + varint(value)


def double(field: int, value: float) -> bytes:
    return varint(field << 3 | 1) + struct.pack("<d", value)


def data(field: int, *parts: bytes) -> bytes:
    """Return a field of bytes, or of a message: its fields."""
    whole = b"".join(parts)
    return varint(field << 3 | 2) + varint(len(whole)) + whole


def text(field: int, value: str) -> bytes:
    return data(field, value.encode("utf-8", "backslashreplace"))


def packed(field: int, values: Iterable[int]) -> bytes:
    """Return a repeated field of integers."""
    return data(field, b"".join(map(varint, values)))
