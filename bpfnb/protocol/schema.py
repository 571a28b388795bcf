"""Schemas of what the kernel delivers: written by the tracer, read by the notebook.

A ``Schema`` describes a row: an event's record, or a map's key or value. ``Column`` says where each value lies in it: a
type for each kind of value.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from msgspec import Struct
from msgspec.structs import replace

__all__ = [
    "PRINTK",
    "PRINTK_LINES",
    "PRINTK_ROW",
    "BitField",
    "Bytes",
    "Column",
    "Enum",
    "Number",
    "NumberArray",
    "Rows",
    "Schema",
    "Tail",
    "Text",
    "Wide",
]

Rows = npt.NDArray[np.uint8]  # two-dimensional: a row of bytes a record


class _Column(Struct, frozen=True, tag_field="kind"):
    """One value of a row: its name ("pid", "addr.v4", "slots[3]"), and at which byte of the row it begins."""

    name: str
    offset: int

    @property
    def dtype(self) -> str:
        """Numpy's name for the type of its bytes, such as "<u4", "|b1", "S16"."""
        raise NotImplementedError

    @property
    def size(self) -> int:
        """Bytes of the row that it takes."""
        return np.dtype(self.dtype).itemsize

    def values(self, rows: Rows) -> np.ndarray:
        """Return the bytes as they are stored, a view of ``rows``: one value a row."""
        return rows[:, self.offset : self.offset + self.size].view(self.dtype)[:, 0]


class Number(_Column, frozen=True, tag="number"):
    """A number or a truth value, ``dtype`` "<u4", "<i8", "<f8", "|b1" ...: a numpy column of just that type."""

    dtype: str


class Enum(_Column, frozen=True, tag="enum"):
    """An enumeration, ``dtype`` an integer; ``labels`` its constants: a category of their names, or of the number
    itself."""

    dtype: str
    labels: tuple[tuple[str, int], ...]


class BitField(_Column, frozen=True, tag="bits"):
    """A bit-field of ``width`` bits, the lowest of them bit ``first`` counted from ``offset``, little-endian.

    ``dtype`` is what the column becomes: "<i.." where the field is signed, "|b1" for bool. It may span 9 bytes, and
    ``dtype`` read at ``offset`` may reach past the row. ``labels`` where it is of an enumeration.
    """

    dtype: str
    first: int
    width: int
    labels: tuple[tuple[str, int], ...] = ()

    @property
    def size(self) -> int:
        return -(-(self.first + self.width) // 8)


class Text(_Column, frozen=True, tag="text"):
    """A char array of ``size`` bytes: a category of strings, cut at the first NUL."""

    size: int

    @property
    def dtype(self) -> str:
        return f"S{self.size}"


class Bytes(_Column, frozen=True, tag="bytes"):
    """An unsigned char array of ``size`` bytes, as bytes."""

    size: int

    @property
    def dtype(self) -> str:
        return f"V{self.size}"


class Wide(_Column, frozen=True, tag="wide"):
    """A 128-bit integer: Python integers."""

    signed: bool = False

    @property
    def dtype(self) -> str:
        return "V16"


class NumberArray(_Column, frozen=True, tag="list"):
    """A long array of numbers of ``dtype``; ``shape`` is its dimensions. A DataFrame has a column an element
    nevertheless (columns.shown)."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        return np.dtype(self.dtype).itemsize * math.prod(self.shape)

    def values(self, rows: Rows) -> np.ndarray:
        """Return the numbers as they are stored, a view of ``rows``: an array a row."""
        return rows[:, self.offset : self.offset + self.size].view(self.dtype)


class Tail(_Column, frozen=True, tag="tail"):
    """What follows the fixed part of a record, up to its end: strings if ``text``, else bytes."""

    text: bool

    @property
    def dtype(self) -> str:
        return "S" if self.text else "V"


Column = Number | Enum | BitField | Text | Bytes | Wide | NumberArray | Tail


class Schema(Struct, frozen=True):
    """A row of ``size`` bytes and its columns, in the order they are shown.

    ``time``: the column that holds CLOCK_MONOTONIC nanoseconds of the event, or "". ``clock``: "submitted" (the kernel
    wrote it there) or "stamp" (the program did, for us) where that column is no member of the cell's struct; else "".
    ``text_end``: offset of a 64-bit word that ends each row's run in the segment's text area, or -1: row i owns
    ``text[end[i - 1]:end[i]]``.
    """

    columns: tuple[Column, ...]
    size: int
    time: str = ""
    text_end: int = -1
    clock: str = ""

    def shifted(self, by: int, size: int) -> Schema:
        """Return the same columns inside a larger row, where they begin ``by`` bytes in."""
        columns = tuple(replace(c, offset=c.offset + by) for c in self.columns)
        return replace(self, columns=columns, size=size)


# bpf_trace_printk's lines, as ftrace records them. mono_ns: CLOCK_MONOTONIC, nanoseconds. flags and preempt: the
# record's common_flags and common_preempt_count (kernel: include/linux/trace_events.h, struct trace_entry).
PRINTK_ROW = np.dtype(
    [
        ("mono_ns", "<i8"),
        ("text_end", "<i8"),
        ("pid", "<i4"),
        ("cpu", "<i2"),
        ("flags", "u1"),
        ("preempt", "u1"),
        ("comm", "S16"),
    ]
)
PRINTK = Schema(
    tuple(
        Text(name, offset, dtype.itemsize) if name == "comm" else Number(name, offset, dtype.str)
        for name, (dtype, offset, *_) in (PRINTK_ROW.fields or {}).items()
    ),
    PRINTK_ROW.itemsize,
    time="mono_ns",
    clock="submitted",
    text_end=PRINTK_ROW.fields["text_end"][1] if PRINTK_ROW.fields else -1,
)
# The same through a ring buffer, where the program noted the time, and flags and preempt are not known.
PRINTK_LINES = replace(PRINTK, clock="stamp")
