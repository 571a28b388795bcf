"""Columns of categories: enumerations, char arrays, numbers shown by name."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pandas as pd

from bpfnb.protocol.schema import Rows, Text
from bpfnb.results.columns.base import Batch, ColumnBuffer
from bpfnb.results.columns.buffers import Array, Buffer, Codes, VarBuffer
from bpfnb.results.columns.index import ValueIndex
from bpfnb.results.columns.numeric import NumberColumn
from bpfnb.results.columns.text import before_nul, joined, offsets_of, string_array, text_dtype, valid_utf8
from bpfnb.results.columns.words import Words, words_of

__all__ = ["CategoryColumn", "EnumColumn", "MissingColumn", "TextColumn"]

_REPLACED = "\N{REPLACEMENT CHARACTER}"

# Our categories are known to be distinct; checking it would turn each into a Python string, and keep them all.
_category_dtype: Callable[[Any, bool], Any] = getattr(pd.CategoricalDtype, "_from_fastpath", pd.CategoricalDtype)


class CategoryColumn(ColumnBuffer):
    """A category of strings. Each different value of a row's bytes has a code, and each code a name.

    Two values may have one name: byte strings that differ behind their NUL. Only then are codes of values and codes of
    names kept apart.
    """

    def __init__(self, words: int) -> None:
        self._words = words
        self._reset()

    def _reset(self) -> None:
        self._index = ValueIndex(self._words)
        self._codes = Codes()
        self._names = VarBuffer()
        self._name_of = Buffer(np.int32)  # a value's code -> its name's
        self._name_codes: Codes | None = None  # of each row, once they differ from _codes
        self._by_name: dict[str, int] = {}  # the names to look up before another is added: not all, see TextColumn
        self._dtype: Any = None

    @property
    def nbytes(self) -> int:
        parts = (self._index, self._codes, self._names, self._name_of, self._name_codes)
        return sum(part.nbytes for part in parts if part)

    def reserve(self, more: int) -> None:
        self._codes.reserve(more)
        if self._name_codes:
            self._name_codes.reserve(more)

    def append(self, batch: Batch) -> None:
        self._put(self._index.codes(self._read(batch.rows)))

    def values(self, start: int = 0, stop: int | None = None) -> pd.Series[Any]:
        codes, dtype = self._shown, self._categories()
        if codes.shared is not None and codes.shared.dtype is not dtype:
            codes.leave()  # frames made with fewer categories keep it
        if codes.shared is None:
            codes.shared = pd.Series(pd.Categorical.from_codes(codes.all, dtype=dtype, validate=False), copy=False)
        return codes.shared.iloc[start : len(codes) if stop is None else stop]

    def groups(self, start: int) -> pd.Categorical[Any]:
        return pd.Categorical.from_codes(self._shown.view(start), dtype=self._categories(), validate=False)

    @property
    def edition(self) -> object:
        return self._names

    def raw(self) -> pd.Categorical[Any]:
        """Return the rows' values before they were given names: a category of ``bytes``, or of numbers."""
        raw = pd.Index(self._values(self._index.keys.view()), dtype=object)
        category = pd.Categorical.from_codes(self._codes.view().copy(), raw, validate=False)
        return category.remove_unused_categories()  # TextColumn notes values that no row has

    @abstractmethod
    def _read(self, rows: Rows) -> Words: ...

    @abstractmethod
    def _values(self, keys: Words) -> list[Any]:
        """Return values as Python objects, from their keys in the index."""

    @abstractmethod
    def _name(self, first: int) -> None:
        """Name the values from ``first`` on: add to _name_of, and to _names and _by_name what is new."""

    @property
    def _shown(self) -> Codes:
        return self._codes if self._name_codes is None else self._name_codes

    def _put(self, codes: Array) -> None:
        first = len(self._name_of)
        if first < len(self._index):
            self._name(first)
            new = self._name_of.view(first)
            if self._name_codes is None and np.any(new != np.arange(first, first + len(new))):
                self._name_codes = Codes()
                self._name_codes.put(self._name_of.view()[self._codes.view()], len(self._names))
        self._codes.put(codes, max(len(self._index), len(self._names)))
        if self._name_codes is not None:
            self._name_codes.put(self._name_of.view()[codes], len(self._names))

    def _codes_of(self, names: Sequence[str]) -> npt.NDArray[np.int32]:
        """Return the codes of names; add those that are new."""
        new = [name for name in dict.fromkeys(names) if name not in self._by_name]
        self._by_name.update({name: len(self._names) + n for n, name in enumerate(new)})
        self._names.append(*joined([name.encode() for name in new]))
        return np.array([self._by_name[name] for name in names], np.int32)

    def _categories(self) -> Any:
        """Return the dtype: the same object as long as there are no new names."""
        if self._dtype is None or len(self._dtype.categories) < len(self._names):
            names = string_array(*self._names.since())
            self._dtype = _category_dtype(pd.Index(names, copy=False), False)
        return self._dtype

    def _take(self: _AnyCategory, other: _AnyCategory, start: int, stop: int) -> None:
        """Become some rows of ``other``. Values and names of no row are dropped: in a long session most of them."""
        codes = other._codes.view()[start:stop]
        used = np.zeros(len(other._index), np.bool_)
        used[codes] = True
        self._reset()
        code_of = np.zeros(len(used), np.int32)
        code_of[used] = self._index.codes(np.ascontiguousarray(other._index.keys.view()[used].T))
        self._put(code_of[codes])


_AnyCategory = TypeVar("_AnyCategory", bound=CategoryColumn)


class EnumColumn(CategoryColumn):
    """Integers shown by name. ``name`` is called once for each different number. ``first``: names that come first among
    the categories, whether seen or not."""

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
        values = self._values(self._index.keys.view(first))
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

    def __init__(self, column: Text) -> None:
        self._offset, self._width = column.offset, column.size
        super().__init__(-(-self._width // 8))

    def _read(self, rows: Rows) -> Words:
        return words_of(rows, self._offset, self._width)

    def _values(self, keys: Words) -> list[Any]:
        return [row.tobytes() for row in self._bytes(keys)]

    def _bytes(self, keys: Words) -> npt.NDArray[np.uint8]:
        return np.ascontiguousarray(keys).view(np.uint8)[:, : self._width]

    def _name(self, first: int) -> None:
        characters = self._bytes(self._index.keys.view(first))
        inside = before_nul(characters)
        untidy = np.flatnonzero(np.any(characters * ~inside, axis=1))
        if not len(untidy):
            self._name_of.append(self._add(characters))
            return
        tidy = np.arange(first, len(self._index))  # of each new value: the code of its tidy form
        tidy[untidy] = self._index.codes(words_of(characters[untidy] * inside[untidy], 0, self._width))
        late = tidy >= first
        new = pd.unique(tidy[late])
        name_of = np.empty(len(self._index) - first, np.int32)
        name_of[new - first] = self._add(self._bytes(self._index.keys.view()[new]))
        name_of[: len(tidy)][late] = name_of[tidy[late] - first]
        name_of[: len(tidy)][~late] = self._name_of.view()[tidy[~late]]
        self._name_of.append(name_of)

    def _add(self, characters: npt.NDArray[np.uint8]) -> Array:
        """Return the codes of the names of tidy values. All names are new but those with U+FFFD."""
        inside = characters != 0
        text, offsets = valid_utf8(characters[inside], offsets_of(np.count_nonzero(inside, axis=1)))
        if _REPLACED.encode() in text.tobytes():
            return self._codes_of([text[a:b].tobytes().decode() for a, b in pairwise(offsets.tolist())])
        self._names.append(text, offsets)
        return np.arange(len(self._names) - len(characters), len(self._names))
