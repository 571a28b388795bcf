"""A map's entries, rows of bytes, as DataFrames and as Python objects."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from bpfnb.errors import ProgramError, near_or_all
from bpfnb.protocol.messages import MapInfo
from bpfnb.protocol.schema import BitField, Number, Rows, Schema, Wide
from bpfnb.results.columns.kinds import shown
from bpfnb.results.maps.pack import decoded, unpack

__all__ = ["NO_SCHEMA", "REDUCTIONS", "EntryFrames", "Reduction", "containing", "stack_frames"]

Reduction = Literal["sum", "max", "min", "mean"]
REDUCTIONS: dict[Reduction, Callable[..., Any]] = {"sum": np.sum, "max": np.max, "min": np.min, "mean": np.mean}
NO_SCHEMA = Schema((), 0)


class EntryFrames:
    """The entries of a map as DataFrames, by what ``info`` says of their keys and values."""

    def __init__(self, info: MapInfo) -> None:
        self.per_cpu = "percpu" in info.kind
        self._info = info
        self._key, self._value = info.key or NO_SCHEMA, info.value or NO_SCHEMA

    def frame(self, keys: Rows, values: Rows) -> pd.DataFrame:
        """Make a DataFrame with a row an entry, of a per-CPU map a row a CPU, of stacks a row a frame. See Map.df."""
        if self._info.kind == "stack_trace":
            return self._stacks(keys, values)
        key_names, value_names = self.names()
        if self.per_cpu:
            cpus = np.arange(self._info.cpus, dtype=np.int16)
            frame = self._columns(key_names, self._key, np.repeat(keys, self._info.cpus, axis=0))
            frame["cpu"] = np.tile(cpus, len(keys))
        else:
            frame = self._columns(key_names, self._key, keys)
        rest = self._columns(value_names, self._value, self._each_cpu(values))
        return pd.concat([frame, rest], axis=1)

    def reduced(self, keys: Rows, values: Rows, how: Reduction) -> pd.DataFrame:
        """Make a DataFrame with a row a key: a per-CPU map's numbers over all CPUs. ``how``: of REDUCTIONS."""
        if not self.per_cpu:
            return self.frame(keys, values)
        key_names, value_names = self.names()
        frame = self._columns(key_names, self._key, keys)
        for name, column in zip(value_names, shown(self._value.columns), strict=True):
            if isinstance(column, Number | BitField | Wide):
                per_cpu = np.asarray(decoded(column, self._each_cpu(values))).reshape(len(values), self._info.cpus)
                frame[name] = REDUCTIONS[how](per_cpu, axis=1)
        return frame

    def numbers(self, values: Rows, name: str) -> npt.NDArray[Any]:
        """Return a column of numbers of the values: of a per-CPU map its sums. ProgramError for one that is none."""
        columns = dict(zip(self.names()[1], shown(self._value.columns), strict=True))
        column = columns.get(name)
        if not isinstance(column, Number | BitField | Wide):
            numbers = [known for known, c in columns.items() if isinstance(c, Number | BitField | Wide)]
            raise ProgramError(f"the values of {self._info.name} have no number {name!r}{near_or_all(name, numbers)}")
        found = np.asarray(decoded(column, self._each_cpu(values)))
        return found.reshape(len(values), self._info.cpus).sum(axis=1) if self.per_cpu else found

    def matching(self, keys: Rows, text: str) -> npt.NDArray[np.bool_]:
        """Return which keys have a text in one of their columns, in whatever case."""
        frame = self._columns(self.names()[0], self._key, keys)
        found = np.zeros(len(keys), np.bool_)
        for name in frame.columns:
            found |= containing(frame[name], text)
        return found

    def nothing(self) -> tuple[Rows, Rows]:
        """Return the keys and values of no entry."""
        sizes = self._info.key_size, self._info.cpus * self._info.value_stride
        return np.empty((0, sizes[0]), np.uint8), np.empty((0, sizes[1]), np.uint8)

    def keys(self, keys: Rows) -> list[Any]:
        """Return keys as Python objects: numbers, text or bytes; of a struct, tuples."""
        return unpack(self._key, keys, tuple)

    def values(self, values: Rows) -> list[Any]:
        """Return values as Python objects: of a struct a dict; of a per-CPU map and of stacks, a list of them."""
        if self._info.kind == "stack_trace":
            owner, _, frames = stack_frames(values, self._value.size)
            sizes = np.bincount(owner, minlength=len(values)).tolist()
        elif self.per_cpu:
            frames, sizes = self._each_cpu(values), [self._info.cpus] * len(values)
        else:
            return unpack(self._value, values, dict)
        each = iter(unpack(self._value, frames, dict))
        return [list(islice(each, size)) for size in sizes]

    def names(self) -> tuple[list[str], list[str]]:
        """Return the names of the key's and the value's columns in a DataFrame. Shared ones get "key." or "value."."""
        sides = [[column.name for column in shown(side.columns)] for side in (self._key, self._value)]
        shared = set(sides[0]) & set(sides[1]) | ({"cpu"} if self.per_cpu else set())
        keys, values = (
            [f"{side}.{name}" if name in shared else name for name in names]
            for side, names in zip(("key", "value"), sides, strict=True)
        )
        return keys, values

    def _each_cpu(self, values: Rows) -> Rows:
        return values.reshape(-1, self._info.value_stride)

    def _stacks(self, keys: Rows, values: Rows) -> pd.DataFrame:
        owner, depth, frames = stack_frames(values, self._value.size)
        table = pd.DataFrame({"stack": keys.view(np.int32)[:, 0][owner], "depth": depth})
        rest = self._columns([column.name for column in self._value.columns], self._value, frames)
        return pd.concat([table, rest], axis=1)

    def _columns(self, names: list[str], schema: Schema, rows: Rows) -> pd.DataFrame:
        columns = {name: decoded(column, rows) for name, column in zip(names, shown(schema.columns), strict=True)}
        return pd.DataFrame(columns, index=pd.RangeIndex(len(rows)))


def containing(column: pd.Series[Any], text: str) -> npt.NDArray[np.bool_]:
    """Return which values of a column have a text in them, in whatever case. Of a category each value is looked at
    once."""
    if isinstance(column.dtype, pd.CategoricalDtype):
        among = containing(pd.Series(column.cat.categories), text)
        return np.append(among, False)[column.cat.codes.to_numpy()]
    texts = column.astype("string")
    return texts.str.contains(text, case=False, regex=False).to_numpy(np.bool_, na_value=False)


def stack_frames(values: Rows, size: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.int16], Rows]:
    """Return the frames of stack traces: whose each is (its row in ``values``), its depth, its ``size`` bytes.

    A stack ends where only zeros follow.
    """
    most = values.shape[1] // size
    frames = values[:, : most * size].reshape(len(values), most, size)
    filled = np.asarray(frames.any(axis=2))
    used = np.flip(np.logical_or.accumulate(np.flip(filled, 1), axis=1), 1)
    owner, depth = np.nonzero(used)
    return owner, depth.astype(np.int16), frames[used]
