"""The baseline of a drain: what a map's values have grown by since they were last drained.

Taking counters out of a map loses counts: a program may have looked an entry up before it is deleted or set to zero,
and add to it after. Reading changes nothing. So a drain reads, and what it read is subtracted from what is read later:

    baseline = Baseline(keys, values, counters(schema), cpus, stride)
    keys, values = baseline.since(keys, values, array=False)

Numbers are subtracted as the kernel adds them, modulo their width: a counter that wraps is right. A value that went
down by other means is that of another entry, made since its key was deleted: it counts from zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeGuard

import numpy as np
import numpy.typing as npt

from bpfnb.protocol.schema import Column, Number, NumberArray, Rows, Schema, Wide

__all__ = ["Baseline", "Counter", "counters", "positions"]

_WORD = np.dtype("<u8")


Counter = Number | NumberArray | Wide


def counters(schema: Schema, as_is: Sequence[str] = ()) -> tuple[Counter, ...]:
    """Return the columns that count: integers of any width, and arrays of them. Bit-fields and enumerations do not, nor
    those named in ``as_is``."""
    return tuple(column for column in schema.columns if column.name not in as_is and _is_integer(column))


def _is_integer(column: Column) -> TypeGuard[Counter]:
    return isinstance(column, Wide) or (
        isinstance(column, Number | NumberArray) and np.dtype(column.dtype).kind in "iu"
    )


class Baseline:
    """The entries as they were at the last drain. They do not change.

    ``keys``, ``values``: a row an entry; an entry's values of ``cpus`` CPUs lie ``stride`` bytes apart. ``columns``:
    those of a value that count. What does not is shown as it is.
    """

    def __init__(self, keys: Rows, values: Rows, columns: Sequence[Counter], cpus: int, stride: int) -> None:
        self._keys, self._values = keys, values
        self._columns = columns
        self._cpus, self._stride = cpus, stride
        self._scalars: np.ndarray | None = None  # of the keys, once one is asked for

    def since(
        self, keys: Rows, values: Rows, array: bool, columns: Sequence[Counter] | None = None
    ) -> tuple[Rows, Rows]:
        """Return the entries that are new or have changed, with what their numbers have grown by; all of an array.

        ``columns``: those that count, if others than at the last drain.
        """
        places = self._place(keys) if len(keys) == 1 else positions(keys, self._keys)
        known = np.flatnonzero(places >= 0)
        now, then = values[known], self._values[places[known]]
        grown = values.copy()
        grown[known] = self._grown(now, then, self._columns if columns is None else columns)
        if array:
            return keys, grown
        shown = np.ones(len(keys), np.bool_)
        shown[known] = (now != then).any(axis=1)
        return keys[shown], grown[shown]

    def without(self, key: bytes) -> Baseline:
        """Return a baseline without an entry that has been set since."""
        kept = (self._keys != np.frombuffer(key, np.uint8)).any(axis=1)
        return Baseline(self._keys[kept], self._values[kept], self._columns, self._cpus, self._stride)

    def _place(self, key: Rows) -> npt.NDArray[np.intp]:
        """Find one key, without sorting them all."""
        if self._scalars is None:
            self._scalars = _scalars(self._keys)
        return np.append(np.flatnonzero(self._scalars == _scalars(key)), -1)[:1]

    def _grown(self, now: Rows, then: Rows, columns: Sequence[Counter]) -> Rows:
        new, old = (rows.reshape(-1, self._stride) for rows in (now, then))
        grown: Rows = new.copy()
        fell: _Flags = np.zeros(len(new), np.bool_)
        for column in columns:
            part = slice(column.offset, column.offset + column.size)
            if isinstance(column, Wide):
                difference, went_down = _wide_difference(new[:, part], old[:, part], column.signed)
            else:
                difference, went_down = _difference(new[:, part], old[:, part], np.dtype(column.dtype))
            grown[:, part] = difference
            fell |= went_down
        anew = fell.reshape(-1, self._cpus).max(axis=1, initial=False)  # an entry is one on all CPUs
        return np.where(anew[:, np.newaxis], now, grown.reshape(now.shape))


def positions(keys: Rows, among: Rows) -> npt.NDArray[np.intp]:
    """Return where each key is among others, -1 for those that are not."""
    if keys.shape == among.shape and np.array_equal(keys, among):
        return np.arange(len(keys))
    both = _scalars(np.concatenate([among, keys]))
    _, number = np.unique(both, return_inverse=True)
    place = np.full(len(both), -1, np.intp)
    place[number[: len(among)]] = np.arange(len(among))
    return place[number[len(among) :]]


def _scalars(keys: Rows) -> np.ndarray:
    """Return keys as one value each; short ones as integers, which sort faster."""
    size = keys.shape[1]
    if size > _WORD.itemsize:
        return np.ascontiguousarray(keys).view(f"V{size}")[:, 0]
    padded = np.zeros((len(keys), _WORD.itemsize), np.uint8)
    padded[:, :size] = keys
    return padded.view(_WORD)[:, 0]


_Flags = npt.NDArray[np.bool_]
_Difference = tuple[Rows, _Flags]


def _difference(new: Rows, old: Rows, dtype: np.dtype[np.integer]) -> _Difference:
    """Return new minus old, and whether it fell other than by wrapping. Signed numbers may go either way."""
    now, then = (np.ascontiguousarray(part).view(f"<u{dtype.itemsize}") for part in (new, old))
    grown = now - then
    half = 1 << (8 * dtype.itemsize - 1)
    fell: _Flags = np.zeros(len(new), np.bool_)
    if dtype.kind == "u":
        fell |= ((now < then) & (grown >= half)).any(axis=1)
    return grown.view(np.uint8).reshape(new.shape), fell


def _wide_difference(new: Rows, old: Rows, signed: bool) -> _Difference:
    (low, high), (old_low, old_high) = (np.ascontiguousarray(part).view(_WORD).T for part in (new, old))
    borrow = low < old_low
    grown = np.stack([low - old_low, high - old_high - borrow], axis=1)
    below = (high < old_high) | ((high == old_high) & borrow)
    fell: _Flags = np.zeros(len(low), np.bool_)
    if not signed:
        fell |= below & (grown[:, 1] >> np.uint64(63) == 1)
    return grown.view(np.uint8).reshape(new.shape), fell
