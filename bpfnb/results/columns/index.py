"""An index of a column's different values: a hash table for whole batches."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from bpfnb.results.columns.buffers import Buffer
from bpfnb.results.columns.words import Words

__all__ = ["ValueIndex"]

Places = npt.NDArray[np.intp]


class ValueIndex:
    """The different values of a column (``keys``, as 64-bit words), numbered in the order they first came.

    An open hash table, probed for a whole batch at a time. Values are compared, not only their hashes.
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
        """Return the number of each value. New values get the next numbers."""
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
        """Return the number of each value, -1 for those that are not there."""
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
        """Enter the new keys into the table, which stays half empty."""
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


def _unique(words: Words) -> tuple[Words, npt.NDArray[np.int32]]:
    """Return the different values, one a row, in the order they first come; and which of them each value is."""
    keys = np.ascontiguousarray(words.T)
    binary = pa.Array.from_buffers(pa.binary(8 * len(words)), len(keys), [None, pa.py_buffer(keys)])
    encoded = binary.dictionary_encode()
    unique = np.frombuffer(encoded.dictionary.buffers()[1], np.uint64, len(encoded.dictionary) * len(words))
    return unique.reshape(-1, len(words)), encoded.indices.to_numpy()
