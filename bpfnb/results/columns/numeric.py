"""Columns of numbers: numpy's own types, bit-fields, times, 128-bit integers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from bpfnb.protocol.schema import BitField, Column, Enum, Number, Rows, Wide
from bpfnb.results.columns.base import FixedColumn
from bpfnb.results.columns.buffers import Array
from bpfnb.results.columns.words import word_of, words_of

__all__ = ["NumberColumn", "TimeColumn", "WideColumn", "bits_of", "number_reader"]

_UTC = pd.DatetimeTZDtype("ns", "UTC")


class NumberColumn(FixedColumn):
    """Numbers and truth values, as a numpy column of their own type."""

    def since(self, start: int) -> Array:
        """Return the numbers from row ``begin`` + ``start`` on, read-only."""
        numbers = self._buffer.view(start)
        numbers.flags.writeable = False
        return numbers

    def values(self, start: int = 0, stop: int | None = None) -> pd.Series[Any]:
        if self._buffer.shared is None:
            self._buffer.shared = pd.Series(self._array(self._buffer.all), copy=False)
        return self._buffer.shared.iloc[start : len(self._buffer) if stop is None else stop]

    def groups(self, start: int) -> pd.Categorical[Any]:
        codes, values = pd.factorize(self._array(self._buffer.view(start)))
        return pd.Categorical.from_codes(codes, pd.Index(values), validate=False)

    def _array(self, numbers: Array) -> Any:
        return numbers


class TimeColumn(NumberColumn):
    """datetime64[ns, UTC]: nanoseconds of another clock, plus ``epoch_ns()``."""

    def __init__(self, column: Column, epoch_ns: Callable[[], int]) -> None:
        super().__init__(lambda rows: column.values(rows).view(np.int64) + epoch_ns(), np.int64)

    def _array(self, numbers: Array) -> Any:
        return pd.array(numbers.view("M8[ns]"), copy=False).view(_UTC)


class WideColumn(FixedColumn):
    """128-bit integers, as an object column of Python integers, made anew for every frame."""

    def __init__(self, column: Wide) -> None:
        self._signed = column.signed
        super().__init__(lambda rows: words_of(rows, column.offset, 16).T, np.uint64, (2,))

    def values(self, start: int = 0, stop: int | None = None) -> Any:
        return self._integers(start, stop)

    def groups(self, start: int) -> pd.Categorical[Any]:
        return pd.Categorical(self._integers(start))

    def _integers(self, start: int, stop: int | None = None) -> Array:
        low, high = self._buffer.view()[start:stop].T
        integers: Array = high.view(np.int64 if self._signed else np.uint64).astype(object) * 2**64 + low.astype(object)
        return integers


def number_reader(column: Number | Enum) -> Callable[[Rows], Array]:
    """Return a function that takes the column's numbers out of rows."""
    if np.dtype(column.dtype).kind == "b":
        return lambda rows: rows[:, column.offset] != 0
    return column.values


def bits_of(column: BitField, rows: Rows) -> Array:
    """Return a bit-field's values, of up to 64 bits, which may lie in nine bytes."""
    dtype = np.dtype(column.dtype)
    first, width, offset = column.first, column.width, column.offset + column.first // 8
    shift = first % 8
    value = word_of(rows, offset, min(-(-(shift + width) // 8), 8)) >> np.uint64(shift)
    if shift + width > 64:
        value |= word_of(rows, offset + 8, 1) << np.uint64(64 - shift)
    value &= np.uint64(2**width - 1)
    if dtype.kind == "i":
        sign = np.uint64(1 << (width - 1))
        value = ((value ^ sign) - sign).view(np.int64)
    return value.astype(dtype)
