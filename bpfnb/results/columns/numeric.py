"""Columns of numbers: numpy's own types, times, 128-bit integers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from bpfnb.protocol.schema import Column, Wide
from bpfnb.results.columns.base import FixedColumn
from bpfnb.results.columns.buffers import Array
from bpfnb.results.columns.words import words_of

__all__ = ["NumberColumn", "TimeColumn", "WideColumn"]

_UTC = pd.DatetimeTZDtype("ns", "UTC")


class NumberColumn(FixedColumn):
    """Numbers and truth values, as a numpy column of their own type."""

    def since(self, start: int) -> Array:
        """Return the numbers from row ``begin`` + ``start`` on, read-only."""
        numbers = self._buffer.view(start)
        numbers.flags.writeable = False
        return numbers

    def values(self) -> pd.Series[Any]:
        if self._buffer.shared is None:
            self._buffer.shared = pd.Series(self._array(self._buffer.all), copy=False)
        return self._buffer.shared.iloc[: len(self._buffer)]

    def groups(self, start: int) -> pd.Categorical[Any]:
        return pd.Categorical(self._array(self._buffer.view(start)))

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

    def values(self) -> Any:
        return self._integers(0)

    def groups(self, start: int) -> pd.Categorical[Any]:
        return pd.Categorical(self._integers(start))

    def _integers(self, start: int) -> Array:
        low, high = self._buffer.view(start).T
        integers: Array = high.view(np.int64 if self._signed else np.uint64).astype(object) * 2**64 + low.astype(object)
        return integers
