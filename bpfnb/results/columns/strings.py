"""Columns of byte strings and of text that differs from row to row."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from bpfnb.protocol.schema import Bytes
from bpfnb.results.columns.base import Batch, ColumnBuffer, FixedColumn
from bpfnb.results.columns.buffers import Array, Buffer, Ints, VarBuffer
from bpfnb.results.columns.text import arrow_array, cut_at_nul, string_array, valid_utf8

__all__ = ["ByteStrings", "BytesColumn", "StringColumn"]


class ByteStrings(pd.arrays.ArrowExtensionArray):
    """ArrowDtype(large_binary), whose isin() knows NULs. pandas hands a list's bytes over as numpy's, which do not tell
    where they end, and Arrow ends those at their first NUL.

    An array that pandas reads from a file is its own again: give its isin() a Series, isin(pd.Series([...])).
    """

    def isin(self, values: Any) -> npt.NDArray[np.bool_]:
        """Return which are among the values. Of a list whose values differ in length, NULs at a value's end make no
        difference, up to the longest's length: numpy does not tell how many there were."""
        if isinstance(values, np.ndarray) and values.dtype.kind == "S":
            longest = values.dtype.itemsize
            forms = [value.ljust(longest, b"\0") for value in values.tolist()]
            if len(forms) > 1 or longest == 1:  # numpy has b"" as one byte, too
                forms = [form[:end] for form in forms for end in range(len(form.rstrip(b"\0")), longest + 1)]
            values = np.array(forms, object)
        found: npt.NDArray[np.bool_] = super().isin(values)  # type: ignore[misc]
        return found


class BytesColumn(FixedColumn):
    """Byte strings of one length: ArrowDtype(pa.large_binary()), whose values are ``bytes``.

    Not Arrow's binary(n), though it needs no ``ends``: pandas writes it into files and cannot read it back.
    """

    def __init__(self, column: Bytes) -> None:
        whole = slice(column.offset, column.offset + column.size)
        self._ends = Buffer(np.int64)
        super().__init__(lambda rows: rows[:, whole], np.uint8, (column.size,))

    @property
    def nbytes(self) -> int:
        return self._buffer.nbytes + self._ends.nbytes

    def values(self, start: int = 0, stop: int | None = None) -> Any:
        return self._array(start, stop)

    def groups(self, start: int) -> pd.Categorical[Any]:
        return pd.Categorical(pd.Series(self._array(start)))

    def _array(self, start: int, stop: int | None = None) -> Any:
        data, made = self._buffer.view(), len(self._ends)
        self._ends.append(np.arange(made, len(data) + 1) * data.shape[1])
        return _byte_strings(_ends_between(self._ends.view(), start, stop), data)

    def _take(self, other: BytesColumn, start: int, stop: int) -> None:
        super()._take(other, start, stop)
        self._ends = Buffer(np.int64)


class StringColumn(ColumnBuffer):
    """Text that is not of one length, in the batch's text area: strings (invalid UTF-8 replaced), or as ``binary``
    ArrowDtype(pa.large_binary()), whose values are ``bytes``. ``cut``: a string ends at its first NUL."""

    def __init__(self, *, binary: bool = False, cut: bool = False) -> None:
        self._binary = binary
        self._cut = cut
        self._strings = VarBuffer()

    @property
    def nbytes(self) -> int:
        return self._strings.nbytes

    def reserve(self, more: int) -> None:
        self._strings.reserve(more)

    def append(self, batch: Batch) -> None:
        text, offsets = batch.text, batch.offsets
        if self._cut:
            text, offsets = cut_at_nul(text, offsets)
        if not self._binary:
            text, offsets = valid_utf8(text, offsets)
        self._strings.append(text, offsets)

    def values(self, start: int = 0, stop: int | None = None) -> Any:
        return self._array(start, stop)

    def groups(self, start: int) -> pd.Categorical[Any]:
        return pd.Categorical(pd.Series(self._array(start)))

    def _array(self, start: int, stop: int | None = None) -> Any:
        ends, data = self._strings.since()
        ends = _ends_between(ends, start, stop)
        return _byte_strings(ends, data) if self._binary else string_array(ends, data)

    def _take(self, other: StringColumn, start: int, stop: int) -> None:
        self._strings = other._strings.part(start, stop)


def _ends_between(ends: Ints, start: int, stop: int | None) -> Ints:
    """Return where the strings from ``start`` to ``stop`` end, and first where they begin."""
    return ends[start : None if stop is None else stop + 1]


def _byte_strings(ends: Ints, data: Array) -> Any:
    return ByteStrings(arrow_array(pa.large_binary(), ends, data))
