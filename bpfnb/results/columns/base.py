"""The base of all columns: rows are appended in batches, decoded into a buffer, and handed to pandas from there."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import pandas as pd

from bpfnb.protocol.schema import Rows
from bpfnb.results.columns.buffers import Array, Buffer, Ints

__all__ = ["Batch", "ColumnBuffer", "FixedColumn"]


class Batch(NamedTuple):
    """Rows to append, and their text: row i owns ``text[offsets[i]:offsets[i + 1]]``."""

    rows: Rows
    text: npt.NDArray[np.uint8] = np.empty(0, np.uint8)
    offsets: Ints = np.empty(0, np.int64)


class ColumnBuffer(ABC):
    """A column's decoded values. ``begin``: the number of its first row, counted from the first ever appended."""

    begin = 0

    @property
    @abstractmethod
    def nbytes(self) -> int: ...

    @abstractmethod
    def reserve(self, more: int) -> None:
        """Make room for ``more`` rows."""

    @abstractmethod
    def append(self, batch: Batch) -> None:
        """Decode the column's values in ``batch``. Its memory is not kept."""

    @abstractmethod
    def values(self, start: int = 0, stop: int | None = None) -> Any:
        """Return the values, from row ``begin`` + ``start`` to ``begin`` + ``stop``, as a DataFrame takes them. They
        never change afterwards."""

    @abstractmethod
    def groups(self, start: int) -> pd.Categorical[Any]:
        """Return the values from row ``begin`` + ``start`` on as categories."""

    @property
    def edition(self) -> object:
        """Return an object that is the same as long as the codes of ``groups`` mean the same; None: as long as one."""
        return None

    def part(self: AnyColumn, begin: int, end: int) -> AnyColumn:
        """Return a new column with only the rows from ``begin`` to ``end``. This one must not be used any more."""
        new = copy.copy(self)
        new._take(self, begin - self.begin, end - self.begin)
        new.begin = begin
        return new

    @abstractmethod
    def _take(self: AnyColumn, other: AnyColumn, start: int, stop: int) -> None:
        """Become a column with some of the rows of ``other``, of which this is a shallow copy."""


AnyColumn = TypeVar("AnyColumn", bound=ColumnBuffer)


class FixedColumn(ColumnBuffer):
    """A column of values of one size. ``read`` takes them out of rows. It must not refer to the column: see part()."""

    def __init__(self, read: Callable[[Rows], Array], dtype: npt.DTypeLike, shape: tuple[int, ...] = ()) -> None:
        self._read = read
        self._buffer = Buffer(dtype, shape)

    @property
    def nbytes(self) -> int:
        return self._buffer.nbytes

    def reserve(self, more: int) -> None:
        self._buffer.reserve(more)

    def append(self, batch: Batch) -> None:
        self._buffer.append(self._read(batch.rows))

    def _take(self: _AnyFixed, other: _AnyFixed, start: int, stop: int) -> None:
        self._buffer = other._buffer.part(start, stop)


_AnyFixed = TypeVar("_AnyFixed", bound=FixedColumn)
