"""Buffers that grow at their end: of numbers, codes, byte strings. pandas and Arrow read their memory uncopied."""

from __future__ import annotations

import copy
import math
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pandas as pd

from bpfnb.results.columns.memory import Memory

__all__ = ["Array", "Buffer", "Codes", "Ints", "VarBuffer"]

Array = npt.NDArray[Any]
Ints = npt.NDArray[np.int64]

_MIN_MEMORY = 8 << 20  # bytes of a buffer that is worth taking its memory with care


class Buffer:
    """A numpy array that grows at its end. ``all`` is its whole memory; of that, the first ``len()`` are values.

    ``shared``: a Series over all of it, once frames were made of it. They share it.
    """

    all: Array
    shared: pd.Series[Any] | None
    _memory: Memory | None
    _size: int

    def __init__(self, dtype: npt.DTypeLike, shape: tuple[int, ...] = ()) -> None:
        self._take(0, dtype, np.empty((0, *shape), dtype))

    def __len__(self) -> int:
        return self._size

    @property
    def nbytes(self) -> int:
        return self.view().nbytes

    def view(self, start: int = 0) -> Array:
        return self.all[start : self._size]

    def reserve(self, more: int) -> None:
        """Make room for ``more`` values and three times as many again: untouched memory costs nothing."""
        needed = self._size + more
        if needed > len(self.all):
            self._move(4 * needed, self.all.dtype)

    def append(self, values: Array) -> None:
        self.reserve(len(values))
        end = self._size + len(values)
        if self._memory:
            self._memory.prepare(end * self.all.strides[0])
        self.all[self._size : end] = values
        self._size = end

    def part(self: AnyBuffer, start: int, stop: int) -> AnyBuffer:
        """Return a new buffer with the values from ``start`` to ``stop``, and as much room."""
        new = copy.copy(self)
        new._take(len(self.all), self.all.dtype, self.all[start:stop])
        return new

    def leave(self) -> None:
        """Move to other memory. Frames made before keep the old."""
        self._move(len(self.all), self.all.dtype)

    def _move(self, capacity: int, dtype: npt.DTypeLike) -> None:
        self._take(capacity, dtype, self.view())

    def _take(self, capacity: int, dtype: npt.DTypeLike, values: Array) -> None:
        """Move to other memory, with these values. All at once: a process forked meanwhile has the old or the new."""
        shape = values.shape[1:]
        size = capacity * math.prod(shape) * np.dtype(dtype).itemsize
        memory = Memory(size) if size > _MIN_MEMORY else None
        array: Array = np.ndarray((capacity, *shape), dtype, memory.buffer if memory else None)
        if memory:
            memory.prepare(len(values) * array.strides[0])
        array[: len(values)] = values
        self.__dict__.update(_memory=memory, all=array, shared=None, _size=len(values))


AnyBuffer = TypeVar("AnyBuffer", bound=Buffer)


class Codes(Buffer):
    """Category codes, in the smallest type pandas would choose for as many categories; it widens as they come."""

    def __init__(self) -> None:
        super().__init__(np.int8)

    def put(self, codes: Array, count: int) -> None:
        dtype = np.dtype(np.int8 if count < 127 else np.int16 if count < 32767 else np.int32)
        if dtype.itemsize > self.all.itemsize:
            self._move(len(self.all), dtype)
        self.append(codes)


class VarBuffer:
    """Byte strings of any length, end to end, as Arrow has them: the data, and where each string ends."""

    def __init__(self) -> None:
        self._ends, self._data = Buffer(np.int64), Buffer(np.uint8)
        self._ends.append(np.zeros(1, np.int64))

    def __len__(self) -> int:
        return len(self._ends) - 1

    @property
    def nbytes(self) -> int:
        return self._ends.nbytes + self._data.nbytes

    def reserve(self, more: int) -> None:
        self._ends.reserve(more)

    def append(self, data: npt.NDArray[np.uint8], offsets: Ints) -> None:
        """Add strings: ``data[offsets[0]:offsets[1]]`` and so on. ``offsets[0]`` is 0."""
        self._data.append(data)
        self._ends.append(offsets[1:] + self._ends.view()[-1])

    def part(self, start: int, stop: int) -> VarBuffer:
        new = VarBuffer()
        ends = self._ends.view()[start : stop + 1]
        new._ends, new._data = self._ends.part(start, stop + 1), self._data.part(int(ends[0]), int(ends[-1]))
        new._ends.all[: len(new._ends)] -= ends[0]
        return new

    def since(self, start: int = 0) -> tuple[Ints, Array]:
        """Return the strings from ``start`` on: where the first begins and each ends, and the data."""
        return self._ends.view(start), self._data.view()
