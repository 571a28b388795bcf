"""Bytes of rows as 64-bit words."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from bpfnb.protocol.schema import Rows

__all__ = ["Words", "word_of", "words_of"]

Words = npt.NDArray[np.uint64]  # two-dimensional: a value's 64-bit words one below the other, a column a value


def words_of(rows: Rows, offset: int, width: int) -> Words:
    """Return ``width`` bytes of each row as little-endian 64-bit words, the last filled up with zeros."""
    words = np.empty((max(-(-width // 8), 1), len(rows)), np.uint64)
    for n, word in enumerate(words):
        word[:] = word_of(rows, offset + 8 * n, min(width - 8 * n, 8))
    return words


def word_of(rows: Rows, offset: int, width: int) -> npt.NDArray[np.uint64]:
    """Return ``width`` bytes of each row, at most eight, as a little-endian number."""
    size = rows.shape[1]
    if size < 8:
        rows, size = np.pad(rows, ((0, 0), (0, 8 - size))), 8
    start = min(offset, size - 8)  # eight bytes are read at once; the last of a row begin before offset
    word: npt.NDArray[np.uint64] = rows[:, start : start + 8].view("<u8")[:, 0]
    if width == 8:
        return word
    return word >> np.uint64(8 * (offset - start)) & np.uint64(2 ** (8 * width) - 1)
