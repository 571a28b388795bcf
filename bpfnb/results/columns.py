"""Columns that grow: the bytes of rows, decoded once, in buffers that pandas and Arrow look at without copying them.

A frame over them is cheap to make and never changes, because
- what lies before a buffer's end is never written again; new values go behind it;
- a full buffer, or one whose oldest values go, is left to whoever still looks at it, and another takes its place;
- a buffer's numbers are lent out through one Series, which lives as long as the column uses the buffer: pandas sees
  that they are shared, and copies them before it writes (pandas 3; before, frames are copied when handed out).

Pure: no tracer, no kernel, no threads.
"""

from __future__ import annotations

import copy
import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from bpfnb.protocol import schema
from bpfnb.protocol.schema import Rows
from bpfnb.results.memory import Memory

__all__ = [
    "PANDAS",
    "Batch",
    "BytesColumn",
    "ColumnBuffer",
    "EnumColumn",
    "NumberColumn",
    "StringColumn",
    "TextColumn",
    "TimeColumn",
    "WideColumn",
    "column_buffer",
    "shown",
]

PANDAS = tuple(int(n) for n in pd.__version__.split(".")[:2])

Array = npt.NDArray[Any]
Ints = npt.NDArray[np.int64]
Places = npt.NDArray[np.intp]
Words = npt.NDArray[np.uint64]  # two-dimensional: a value's 64-bit words one below the other, a column a value

_UTC = pd.DatetimeTZDtype("ns", "UTC")
_MIN_MEMORY = 8 << 20  # bytes of a buffer that is worth taking its memory with care
_MAX_ELEMENTS = 1024  # of an array that has a column an element
_REPLACED = "\N{REPLACEMENT CHARACTER}"

# Our categories are known to be distinct; checking it would turn each into a Python string, and keep them all.
_category_dtype: Callable[[Any, bool], Any] = getattr(pd.CategoricalDtype, "_from_fastpath", pd.CategoricalDtype)


class Batch(NamedTuple):
    """Rows to append, and the text that belongs to them: row i owns ``text[offsets[i]:offsets[i + 1]]``."""

    rows: Rows
    text: npt.NDArray[np.uint8] = np.empty(0, np.uint8)
    offsets: Ints = np.empty(0, np.int64)


# --- buffers ------------------------------------------------------------------------------------------------------


class Buffer:
    """A numpy array that grows at its end. ``all`` is its whole memory; of that, the first ``len()`` are values.

    ``lent``: a Series over all of it, once frames were made of it.
    """

    all: Array
    lent: pd.Series[Any] | None
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
        """Make room for so many more values, and three times as many again: untouched memory costs nothing."""
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
        """A buffer of its own with some of the values, and as much room."""
        new = copy.copy(self)
        new._take(len(self.all), self.all.dtype, self.all[start:stop])
        return new

    def leave(self) -> None:
        """Leave the memory to whoever still looks at it, and take other."""
        self._move(len(self.all), self.all.dtype)

    def _move(self, capacity: int, dtype: npt.DTypeLike) -> None:
        self._take(capacity, dtype, self.view())

    def _take(self, capacity: int, dtype: npt.DTypeLike, values: Array) -> None:
        """Move to other memory, with these values. All at once: a process forked amid this has the one or the other."""
        shape = values.shape[1:]
        size = capacity * math.prod(shape) * np.dtype(dtype).itemsize
        memory = Memory(size) if size > _MIN_MEMORY else None
        array: Array = np.ndarray((capacity, *shape), dtype, memory.buffer if memory else None)
        if memory:
            memory.prepare(len(values) * array.strides[0])
        array[: len(values)] = values
        self.__dict__.update(_memory=memory, all=array, lent=None, _size=len(values))


AnyBuffer = TypeVar("AnyBuffer", bound=Buffer)


class Codes(Buffer):
    """Numbers below some count that may grow, in the smallest type pandas would choose for as many categories."""

    def __init__(self) -> None:
        super().__init__(np.int8)

    def put(self, codes: Array, count: int) -> None:
        dtype = np.dtype(np.int8 if count < 127 else np.int16 if count < 32767 else np.int32)
        if dtype.itemsize > self.all.itemsize:
            self._move(len(self.all), dtype)
        self.append(codes)


class VarBuffer:
    """Runs of bytes, end to end: strings, or what is one value a row but not of one length."""

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
        """Add runs: ``data[offsets[0]:offsets[1]]`` and so on, ``offsets[0]`` being 0."""
        self._data.append(data)
        self._ends.append(offsets[1:] + self._ends.view()[-1])

    def part(self, start: int, stop: int) -> VarBuffer:
        new = VarBuffer()
        ends = self._ends.view()[start : stop + 1]
        new._ends, new._data = self._ends.part(start, stop + 1), self._data.part(int(ends[0]), int(ends[-1]))
        new._ends.all[: len(new._ends)] -= ends[0]
        return new

    def since(self, start: int = 0) -> tuple[Ints, Array]:
        """The runs from ``start`` on: where the first begins and each ends, and the data."""
        return self._ends.view(start), self._data.view()


# --- the columns --------------------------------------------------------------------------------------------------


class ColumnBuffer(ABC):
    """A column's values, from row ``begin`` on, as rows are counted from the first ever appended."""

    begin = 0

    @property
    @abstractmethod
    def nbytes(self) -> int: ...

    @abstractmethod
    def reserve(self, more: int) -> None:
        """Make room for so many more rows."""

    @abstractmethod
    def append(self, batch: Batch) -> None:
        """Decode the column's values in ``batch``, whose memory is not kept."""

    @abstractmethod
    def values(self) -> Any:
        """What a DataFrame takes as this column; it never changes afterwards."""

    @abstractmethod
    def groups(self, start: int) -> pd.Categorical[Any]:
        """The values from row ``begin`` + ``start`` on, as categories."""

    def part(self: AnyColumn, begin: int, end: int) -> AnyColumn:
        """A column of its own with only the rows from ``begin`` to ``end``; this one is not used any more."""
        new = copy.copy(self)
        new._take(self, begin - self.begin, end - self.begin)
        new.begin = begin
        return new

    @abstractmethod
    def _take(self: AnyColumn, other: AnyColumn, start: int, stop: int) -> None:
        """Become a column with some of the rows of ``other``, of which this is a shallow copy."""


AnyColumn = TypeVar("AnyColumn", bound=ColumnBuffer)


class _FixedColumn(ColumnBuffer):
    """Values that all take the same space. ``read`` takes them out of rows, and holds on to no column: see part()."""

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

    def _take(self: _AnyFixedColumn, other: _AnyFixedColumn, start: int, stop: int) -> None:
        self._buffer = other._buffer.part(start, stop)


_AnyFixedColumn = TypeVar("_AnyFixedColumn", bound=_FixedColumn)


class NumberColumn(_FixedColumn):
    """Numbers and truth values: a numpy column of their own type."""

    def since(self, start: int) -> Array:
        """The numbers from row ``begin`` + ``start`` on, read-only."""
        numbers = self._buffer.view(start)
        numbers.flags.writeable = False
        return numbers

    def values(self) -> pd.Series[Any]:
        if self._buffer.lent is None:
            self._buffer.lent = pd.Series(self._array(self._buffer.all), copy=False)
        return self._buffer.lent.iloc[: len(self._buffer)]

    def groups(self, start: int) -> pd.Categorical[Any]:
        return pd.Categorical(self._array(self._buffer.view(start)))

    def _array(self, numbers: Array) -> Any:
        return numbers


class TimeColumn(NumberColumn):
    """datetime64[ns, UTC], of nanoseconds on another clock plus what ``epoch_ns`` says."""

    def __init__(self, column: schema.Column, epoch_ns: Callable[[], int]) -> None:
        super().__init__(lambda rows: column.values(rows).view(np.int64) + epoch_ns(), np.int64)

    def _array(self, numbers: Array) -> Any:
        return pd.array(numbers.view("M8[ns]"), copy=False).view(_UTC)


class ByteStrings(pd.arrays.ArrowExtensionArray):
    """ArrowDtype(large_binary), whose isin() knows NULs. pandas hands a list's bytes over as numpy's, which do not tell
    where they end, and Arrow ends those at their first NUL.

    An array that pandas reads from a file is its own again: give its isin() a Series, isin(pd.Series([...])).
    """

    def isin(self, values: Any) -> npt.NDArray[np.bool_]:
        """Which are among the values. Of a list whose values differ in length, NULs at a value's end make no
        difference, up to the longest's length: numpy does not tell how many there were."""
        if isinstance(values, np.ndarray) and values.dtype.kind == "S":
            longest = values.dtype.itemsize
            forms = [value.ljust(longest, b"\0") for value in values.tolist()]
            if len(forms) > 1 or longest == 1:  # numpy has b"" as one byte, too
                forms = [form[:end] for form in forms for end in range(len(form.rstrip(b"\0")), longest + 1)]
            values = np.array(forms, object)
        found: npt.NDArray[np.bool_] = super().isin(values)  # type: ignore[misc]
        return found


class BytesColumn(_FixedColumn):
    """Byte strings of one length: ArrowDtype(pa.large_binary()), whose values are ``bytes``.

    Not Arrow's binary(n), though it needs no ``ends``: pandas writes it into files and cannot read it back.
    """

    def __init__(self, column: schema.Bytes) -> None:
        whole = slice(column.offset, column.offset + column.size)
        self._ends = Buffer(np.int64)
        super().__init__(lambda rows: rows[:, whole], np.uint8, (column.size,))

    @property
    def nbytes(self) -> int:
        return self._buffer.nbytes + self._ends.nbytes

    def values(self) -> Any:
        return self._array(0)

    def groups(self, start: int) -> pd.Categorical[Any]:
        return pd.Categorical(pd.Series(self._array(start)))

    def _array(self, start: int) -> Any:
        data, made = self._buffer.view(), len(self._ends)
        self._ends.append(np.arange(made, len(data) + 1) * data.shape[1])
        return _binary(self._ends.view(start), data)

    def _take(self, other: BytesColumn, start: int, stop: int) -> None:
        super()._take(other, start, stop)
        self._ends = Buffer(np.int64)


class WideColumn(_FixedColumn):
    """128-bit integers: an object column of Python's, made anew for every frame."""

    def __init__(self, column: schema.Wide) -> None:
        self._signed = column.signed
        super().__init__(lambda rows: _words(rows, column.offset, 16).T, np.uint64, (2,))

    def values(self) -> Any:
        return self._integers(0)

    def groups(self, start: int) -> pd.Categorical[Any]:
        return pd.Categorical(self._integers(start))

    def _integers(self, start: int) -> Array:
        low, high = self._buffer.view(start).T
        integers: Array = high.view(np.int64 if self._signed else np.uint64).astype(object) * 2**64 + low.astype(object)
        return integers


class StringColumn(ColumnBuffer):
    """Text that is not of one length, in the batch's text area: strings (invalid UTF-8 replaced), or as ``binary``
    ArrowDtype(pa.large_binary()), whose values are ``bytes``. ``cut``: a string ends at its first NUL."""

    def __init__(self, *, binary: bool = False, cut: bool = False) -> None:
        self._binary = binary
        self._cut = cut
        self._runs = VarBuffer()

    @property
    def nbytes(self) -> int:
        return self._runs.nbytes

    def reserve(self, more: int) -> None:
        self._runs.reserve(more)

    def append(self, batch: Batch) -> None:
        text, offsets = batch.text, batch.offsets
        if self._cut:
            text, offsets = _cut(text, offsets)
        if not self._binary:
            text, offsets = _utf8(text, offsets)
        self._runs.append(text, offsets)

    def values(self) -> Any:
        return self._array(0)

    def groups(self, start: int) -> pd.Categorical[Any]:
        return pd.Categorical(pd.Series(self._array(start)))

    def _array(self, start: int) -> Any:
        ends, data = self._runs.since(start)
        return _binary(ends, data) if self._binary else _strings(ends, data)

    def _take(self, other: StringColumn, start: int, stop: int) -> None:
        self._runs = other._runs.part(start, stop)


# --- categories ---------------------------------------------------------------------------------------------------


class ValueIndex:
    """The different values of a column (``keys``, as 64-bit words), numbered in the order they first came.

    An open hash table, probed for a whole batch at a time. Found is what is equal, not what has the same hash.
    """

    def __init__(self, words: int) -> None:
        self.keys = Buffer(np.uint64, (words,))
        # Not the same every time: a process may choose the names it shows us.
        self._factors = np.random.default_rng().integers(0, 2**63, words, np.uint64) * np.uint64(2) + np.uint64(1)
        self._clear(6)

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def nbytes(self) -> int:
        return self.keys.nbytes + self._table.nbytes

    def codes(self, words: Words) -> Places:
        """The number of each value; one that was not there gets the next."""
        codes = self._find(words)
        missing = np.flatnonzero(codes < 0)
        if len(missing):
            new, which = _unique(words[:, missing])
            codes[missing] = which + len(self)
            self.keys.append(new)
            self._file()
        return codes

    def _clear(self, bits: int) -> None:
        self._table = np.full(1 << bits, -1, np.int32)  # the number of the value in each slot
        self._shift = np.uint64(64 - bits)
        self._filed = 0

    def _slots(self, words: Words) -> Places:
        mixed = words[0] * self._factors[0]
        for word, factor in zip(words[1:], self._factors[1:], strict=True):
            mixed += word * factor
        slots: Places = (mixed >> self._shift).astype(np.intp)
        return slots

    def _find(self, words: Words) -> Places:
        """The number of each value, -1 for those not there."""
        if not len(self):
            return np.full(words.shape[1], -1)
        slots = self._slots(words)
        codes = self._table[slots].astype(np.intp)  # as numpy wants indices: five times faster below
        left = np.flatnonzero(~self._equal(codes, words))
        while len(left := left[codes[left] >= 0]):  # another's slot: look in the next; an empty one: not there
            slots[left] = (slots[left] + 1) % len(self._table)
            codes[left] = self._table[slots[left]]
            left = left[~self._equal(codes[left], words[:, left])]
        return codes

    def _equal(self, codes: Places, words: Words) -> npt.NDArray[np.bool_]:
        equal = codes >= 0  # -1 picks the last key below, which is as good as any
        for key, word in zip(self.keys.view().T, words, strict=True):
            equal &= key[codes] == word
        return equal

    def _file(self) -> None:
        """Give slots to the keys that have none, in a table that stays half empty."""
        if 2 * len(self) > len(self._table):
            self._clear((4 * len(self)).bit_length() - 1)
        slots = self._slots(self.keys.view(self._filed).T)
        codes = np.arange(self._filed, len(self))
        while len(codes):
            free = self._table[slots] < 0
            self._table[slots[free]] = codes[free]
            others = self._table[slots] != codes  # taken before, or by another of these
            slots, codes = (slots[others] + 1) % len(self._table), codes[others]
        self._filed = len(self)


class CategoryColumn(ColumnBuffer):
    """A category of strings. Each different value of a row's bytes has a code, and each code a name.

    Two values may have one name, as byte strings that differ behind their NUL. As long as none do, the codes of the
    values are those of the names; then both are kept.
    """

    def __init__(self, words: int) -> None:
        self._words = words
        self._reset()

    def _reset(self) -> None:
        self._distinct = ValueIndex(self._words)
        self._codes = Codes()
        self._names = VarBuffer()
        self._name_of = Buffer(np.int32)  # a value's code -> its name's
        self._name_codes: Codes | None = None  # of each row, once they differ from _codes
        self._by_name: dict[str, int] = {}  # the names to look up before another is added: not all, see TextColumn
        self._dtype: Any = None

    @property
    def nbytes(self) -> int:
        parts = (self._distinct, self._codes, self._names, self._name_of, self._name_codes)
        return sum(part.nbytes for part in parts if part)

    def reserve(self, more: int) -> None:
        self._codes.reserve(more)
        if self._name_codes:
            self._name_codes.reserve(more)

    def append(self, batch: Batch) -> None:
        self._put(self._distinct.codes(self._read(batch.rows)))

    def values(self) -> pd.Series[Any]:
        codes, dtype = self._shown, self._categories()
        if codes.lent is not None and codes.lent.dtype is not dtype:
            codes.leave()  # frames made with fewer categories keep it
        if codes.lent is None:
            codes.lent = pd.Series(pd.Categorical.from_codes(codes.all, dtype=dtype, validate=False), copy=False)
        return codes.lent.iloc[: len(codes)]

    def groups(self, start: int) -> pd.Categorical[Any]:
        return pd.Categorical.from_codes(self._shown.view(start), dtype=self._categories(), validate=False)

    def raw(self) -> pd.Categorical[Any]:
        """The rows' values before they were given names: a category of ``bytes``, or of numbers."""
        raw = pd.Index(self._values(self._distinct.keys.view()), dtype=object)
        category = pd.Categorical.from_codes(self._codes.view().copy(), raw, validate=False)
        return category.remove_unused_categories()  # TextColumn notes values that no row has

    @abstractmethod
    def _read(self, rows: Rows) -> Words: ...

    @abstractmethod
    def _values(self, keys: Words) -> list[Any]:
        """Values as Python's, from the keys they are known by."""

    @abstractmethod
    def _name(self, first: int) -> None:
        """Name the values from ``first`` on: add to _name_of, and to _names and _by_name what is new."""

    @property
    def _shown(self) -> Codes:
        return self._codes if self._name_codes is None else self._name_codes

    def _put(self, codes: Array) -> None:
        first = len(self._name_of)
        if first < len(self._distinct):
            self._name(first)
            new = self._name_of.view(first)
            if self._name_codes is None and np.any(new != np.arange(first, first + len(new))):
                self._name_codes = Codes()
                self._name_codes.put(self._name_of.view()[self._codes.view()], len(self._names))
        self._codes.put(codes, max(len(self._distinct), len(self._names)))
        if self._name_codes is not None:
            self._name_codes.put(self._name_of.view()[codes], len(self._names))

    def _codes_of(self, names: Sequence[str]) -> npt.NDArray[np.int32]:
        """The codes of names that may be there already; those that are not are added."""
        new = [name for name in dict.fromkeys(names) if name not in self._by_name]
        self._by_name.update({name: len(self._names) + n for n, name in enumerate(new)})
        self._names.append(*_joined([name.encode() for name in new]))
        return np.array([self._by_name[name] for name in names], np.int32)

    def _categories(self) -> Any:
        """The dtype, the same object as long as there are no new names."""
        if self._dtype is None or len(self._dtype.categories) < len(self._names):
            names = _strings(*self._names.since())
            self._dtype = _category_dtype(pd.Index(names, copy=False), False)
        return self._dtype

    def _take(self: _AnyCategory, other: _AnyCategory, start: int, stop: int) -> None:
        """Values and names that no row kept has are forgotten: in a long session they would be most."""
        codes = other._codes.view()[start:stop]
        used = np.zeros(len(other._distinct), np.bool_)
        used[codes] = True
        self._reset()
        code_of = np.zeros(len(used), np.int32)
        code_of[used] = self._distinct.codes(np.ascontiguousarray(other._distinct.keys.view()[used].T))
        self._put(code_of[codes])


_AnyCategory = TypeVar("_AnyCategory", bound=CategoryColumn)


class EnumColumn(CategoryColumn):
    """Integers shown by name: ``name`` makes it of a number seen for the first time. ``first``: the first categories,
    whether seen or not."""

    def __init__(
        self, read: Callable[[Rows], Array], dtype: str, name: Callable[[int], str], first: Sequence[str] = ()
    ) -> None:
        self._numbers = read
        self._type = np.dtype(np.uint64 if np.dtype(dtype).kind == "u" else np.int64)
        self._name_number = name
        self._first = first
        super().__init__(1)

    def _reset(self) -> None:
        super()._reset()
        self._codes_of(self._first)

    def _read(self, rows: Rows) -> Words:
        return self._numbers(rows).astype(self._type).view(np.uint64)[None]

    def _values(self, keys: Words) -> list[Any]:
        numbers: list[Any] = keys[:, 0].view(self._type).tolist()
        return numbers

    def _name(self, first: int) -> None:
        values = self._values(self._distinct.keys.view(first))
        self._name_of.append(self._codes_of([self._name_number(value) for value in values]))


class MissingColumn(NumberColumn):
    """A category of strings of which no row has a value."""

    def __init__(self) -> None:
        super().__init__(lambda rows: np.full(len(rows), -1, np.int8), np.int8)

    def groups(self, start: int) -> pd.Categorical[Any]:
        return self._array(self._buffer.view(start))

    def _array(self, numbers: Array) -> pd.Categorical[Any]:
        none = pd.CategoricalDtype(pd.Index([], dtype=text_dtype()))
        return pd.Categorical.from_codes(numbers, dtype=none, validate=False)


class TextColumn(CategoryColumn):
    """Char arrays: their text up to the first NUL, invalid UTF-8 replaced.

    Values that hold nothing behind their NUL differ in their text as well, so most names need not be looked up. The
    others are named as the value without what is behind the NUL is; that is noted as a value too. Text with U+FFFD in
    it, which invalid bytes become, goes through _by_name.
    """

    def __init__(self, column: schema.Text) -> None:
        self._offset, self._width = column.offset, column.size
        super().__init__(-(-self._width // 8))

    def _read(self, rows: Rows) -> Words:
        return _words(rows, self._offset, self._width)

    def _values(self, keys: Words) -> list[Any]:
        return [row.tobytes() for row in self._bytes(keys)]

    def _bytes(self, keys: Words) -> npt.NDArray[np.uint8]:
        return np.ascontiguousarray(keys).view(np.uint8)[:, : self._width]

    def _name(self, first: int) -> None:
        characters = self._bytes(self._distinct.keys.view(first))
        inside = _before_nul(characters)
        untidy = np.flatnonzero(np.any(characters * ~inside, axis=1))
        if not len(untidy):
            self._name_of.append(self._add(characters))
            return
        tidy = np.arange(first, len(self._distinct))  # of each new value: the code of its tidy form
        tidy[untidy] = self._distinct.codes(_words(characters[untidy] * inside[untidy], 0, self._width))
        late = tidy >= first
        new = pd.unique(tidy[late])
        name_of = np.empty(len(self._distinct) - first, np.int32)
        name_of[new - first] = self._add(self._bytes(self._distinct.keys.view()[new]))
        name_of[: len(tidy)][late] = name_of[tidy[late] - first]
        name_of[: len(tidy)][~late] = self._name_of.view()[tidy[~late]]
        self._name_of.append(name_of)

    def _add(self, characters: npt.NDArray[np.uint8]) -> Array:
        """The codes of the names of tidy values, new ones all of them but for those with U+FFFD."""
        inside = characters != 0
        text, offsets = _utf8(characters[inside], _offsets(np.count_nonzero(inside, axis=1)))
        if _REPLACED.encode() in text.tobytes():
            return self._codes_of([text[a:b].tobytes().decode() for a, b in pairwise(offsets.tolist())])
        self._names.append(text, offsets)
        return np.arange(len(self._names) - len(characters), len(self._names))


# --- from the schema ----------------------------------------------------------------------------------------------


def shown(columns: Iterable[schema.Column]) -> tuple[schema.Column, ...]:
    """The columns as a DataFrame has them: arrays ("list") as a column an element, of more than 1,024 as bytes.

    A column of lists nothing but pickle gives back as it was: not files, not drop_duplicates(), not describe().
    """
    return tuple(itertools.chain.from_iterable(map(_elements, columns)))


def _elements(column: schema.Column) -> Sequence[schema.Column]:
    if not isinstance(column, schema.NumberArray):
        return [column]
    name, begin, size = column.name, column.offset, np.dtype(column.dtype).itemsize
    if math.prod(column.shape) > _MAX_ELEMENTS:
        return [schema.Bytes(name, begin, column.size)]
    indices = itertools.product(*map(range, column.shape))
    names = [name + "".join(f"[{n}]" for n in index) for index in indices]
    return [schema.Number(element, begin + i * size, column.dtype) for i, element in enumerate(names)]


def column_buffer(column: schema.Column) -> ColumnBuffer:
    """The column that takes what the schema describes, of ``shown`` columns."""
    match column:
        case schema.Number():
            return NumberColumn(_numbers(column), column.dtype)
        case schema.Enum():
            return _constants(column, _numbers(column))
        case schema.BitField():
            read = partial(_bits, column)
            return _constants(column, read) if column.labels else NumberColumn(read, column.dtype)
        case schema.Text():
            return TextColumn(column)
        case schema.Bytes():
            return BytesColumn(column)
        case schema.Wide():
            return WideColumn(column)
        case schema.Tail():
            return StringColumn(binary=not column.text, cut=column.text)
        case schema.NumberArray():
            raise ValueError(f"array {column.name} has a column an element")


def _constants(column: schema.Enum | schema.BitField, read: Callable[[Rows], Array]) -> EnumColumn:
    """The names of an enum's constants, in their order; of two with one number the first. Others are numbers."""
    dtype = np.dtype(column.dtype)
    names: dict[int, str] = {}
    for name, number in column.labels:
        # BTF gives 32-bit constants as signed, whatever the enum is.
        names.setdefault(int(np.array(number % 2**64, np.uint64).astype(dtype)), name)
    return EnumColumn(read, column.dtype, lambda n: names.get(n, str(n)), tuple(names.values()))


def _numbers(column: schema.Number | schema.Enum) -> Callable[[Rows], Array]:
    """What takes a column's numbers out of rows."""
    if np.dtype(column.dtype).kind == "b":
        return lambda rows: rows[:, column.offset] != 0
    return column.values


def _bits(column: schema.BitField, rows: Rows) -> Array:
    """A bit-field's values: of up to 64 bits, which may lie in nine bytes."""
    dtype = np.dtype(column.dtype)
    first, width, offset = column.first, column.width, column.offset + column.first // 8
    shift = first % 8
    value = _word(rows, offset, min(-(-(shift + width) // 8), 8)) >> np.uint64(shift)
    if shift + width > 64:
        value |= _word(rows, offset + 8, 1) << np.uint64(64 - shift)
    value &= np.uint64(2**width - 1)
    if dtype.kind == "i":
        sign = np.uint64(1 << (width - 1))
        value = ((value ^ sign) - sign).view(np.int64)
    return value.astype(dtype)


def _unique(words: Words) -> tuple[Words, npt.NDArray[np.int32]]:
    """The different values, in the order they first come, one a row; and which of them each value is."""
    keys = np.ascontiguousarray(words.T)
    binary = pa.Array.from_buffers(pa.binary(8 * len(words)), len(keys), [None, pa.py_buffer(keys)])
    encoded = binary.dictionary_encode()
    unique = np.frombuffer(encoded.dictionary.buffers()[1], np.uint64, len(encoded.dictionary) * len(words))
    return unique.reshape(-1, len(words)), encoded.indices.to_numpy()


def _words(rows: Rows, offset: int, width: int) -> Words:
    """So many bytes of each row as little-endian 64-bit words, the last filled up with zeros."""
    words = np.empty((max(-(-width // 8), 1), len(rows)), np.uint64)
    for n, word in enumerate(words):
        word[:] = _word(rows, offset + 8 * n, min(width - 8 * n, 8))
    return words


def _word(rows: Rows, offset: int, width: int) -> npt.NDArray[np.uint64]:
    """Up to eight bytes of each row as a little-endian number."""
    size = rows.shape[1]
    if size < 8:
        rows, size = np.pad(rows, ((0, 0), (0, 8 - size))), 8
    start = min(offset, size - 8)  # eight bytes are read at once; the last of a row begin before offset
    word: npt.NDArray[np.uint64] = rows[:, start : start + 8].view("<u8")[:, 0]
    if width == 8:
        return word
    return word >> np.uint64(8 * (offset - start)) & np.uint64(2 ** (8 * width) - 1)


# --- text ---------------------------------------------------------------------------------------------------------


def text_dtype() -> Any:
    """The dtype of strings: pandas 3's default, backed by Arrow."""
    return pd.StringDtype("pyarrow", na_value=np.nan) if PANDAS >= (2, 3) else pd.StringDtype("pyarrow")


def _strings(ends: Ints, data: Array) -> Any:
    return pd.array(pa.chunked_array([_arrow(pa.large_string(), ends, data)]), dtype=text_dtype())


def _binary(ends: Ints, data: Array) -> Any:
    return ByteStrings(_arrow(pa.large_binary(), ends, data))


def _arrow(dtype: pa.DataType, ends: Ints, data: Array) -> pa.Array:
    """Runs of bytes as Arrow's, over this memory: run i is data[ends[i]:ends[i + 1]]."""
    return pa.Array.from_buffers(dtype, len(ends) - 1, [None, pa.py_buffer(ends), pa.py_buffer(data)])


def _offsets(lengths: Array) -> Ints:
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])


def _joined(pieces: Sequence[bytes]) -> tuple[npt.NDArray[np.uint8], Ints]:
    return np.frombuffer(b"".join(pieces), np.uint8), _offsets(np.array([len(piece) for piece in pieces], np.int64))


def _before_nul(characters: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    """Which bytes of each row come before its first NUL."""
    nul = characters == 0
    length = np.where(nul.any(axis=1), nul.argmax(axis=1), characters.shape[1])
    inside: npt.NDArray[np.bool_] = np.arange(characters.shape[1]) < length[:, None]
    return inside


def _cut(text: npt.NDArray[np.uint8], offsets: Ints) -> tuple[npt.NDArray[np.uint8], Ints]:
    """The runs up to their first NUL."""
    nul = np.flatnonzero(text == 0)
    if not len(nul):
        return text, offsets
    starts, ends = offsets[:-1], offsets[1:]
    stops = np.minimum(ends, np.append(nul, len(text))[np.searchsorted(nul, starts)])
    inside = np.arange(len(text)) < np.repeat(stops, ends - starts)
    return text[inside], _offsets(stops - starts)


def _utf8(text: npt.NDArray[np.uint8], offsets: Ints) -> tuple[npt.NDArray[np.uint8], Ints]:
    """The runs as UTF-8: themselves, mostly; in those that are not, what is invalid is replaced."""
    data = text.tobytes()
    if data.isascii():
        return text, offsets
    starts = offsets[:-1][offsets[:-1] < len(text)]
    # One that begins within a character is invalid, though end to end they may be valid.
    if not np.any(text[starts] & 0xC0 == 0x80):
        try:
            data.decode()
            return text, offsets
        except UnicodeDecodeError:
            pass
    return _joined([data[a:b].decode(errors="replace").encode() for a, b in pairwise(offsets.tolist())])
