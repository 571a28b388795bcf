"""Byte strings as text: Arrow arrays over our memory, cut at NULs, invalid UTF-8 replaced."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from bpfnb.results.columns.buffers import Array, Ints

__all__ = [
    "PANDAS",
    "arrow_array",
    "before_nul",
    "cut_at_nul",
    "joined",
    "offsets_of",
    "string_array",
    "text_dtype",
    "valid_utf8",
]

PANDAS = tuple(int(n) for n in pd.__version__.split(".")[:2])


def text_dtype() -> Any:
    """Return the dtype of strings: pandas 3's default, backed by Arrow."""
    return pd.StringDtype("pyarrow", na_value=np.nan) if PANDAS >= (2, 3) else pd.StringDtype("pyarrow")


def string_array(ends: Ints, data: Array) -> Any:
    return pd.array(pa.chunked_array([arrow_array(pa.large_string(), ends, data)]), dtype=text_dtype())


def arrow_array(dtype: pa.DataType, ends: Ints, data: Array) -> pa.Array:
    """Return an Arrow array over this memory. String i is data[ends[i]:ends[i + 1]]."""
    return pa.Array.from_buffers(dtype, len(ends) - 1, [None, pa.py_buffer(ends), pa.py_buffer(data)])


def offsets_of(lengths: Array) -> Ints:
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])


def joined(pieces: Sequence[bytes]) -> tuple[npt.NDArray[np.uint8], Ints]:
    return np.frombuffer(b"".join(pieces), np.uint8), offsets_of(np.array([len(piece) for piece in pieces], np.int64))


def before_nul(characters: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    """Return which bytes of each row come before its first NUL."""
    nul = characters == 0
    length = np.where(nul.any(axis=1), nul.argmax(axis=1), characters.shape[1])
    inside: npt.NDArray[np.bool_] = np.arange(characters.shape[1]) < length[:, None]
    return inside


def cut_at_nul(text: npt.NDArray[np.uint8], offsets: Ints) -> tuple[npt.NDArray[np.uint8], Ints]:
    """Cut each string at its first NUL."""
    nul = np.flatnonzero(text == 0)
    if not len(nul):
        return text, offsets
    starts, ends = offsets[:-1], offsets[1:]
    stops = np.minimum(ends, np.append(nul, len(text))[np.searchsorted(nul, starts)])
    inside = np.arange(len(text)) < np.repeat(stops, ends - starts)
    return text[inside], offsets_of(stops - starts)


def valid_utf8(text: npt.NDArray[np.uint8], offsets: Ints) -> tuple[npt.NDArray[np.uint8], Ints]:
    """Return the strings as valid UTF-8: mostly unchanged, else with what is invalid replaced."""
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
    return joined([data[a:b].decode(errors="replace").encode() for a, b in pairwise(offsets.tolist())])
