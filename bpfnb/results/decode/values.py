"""Columns decoded: each different value once."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from bpfnb.errors import ProgramError
from bpfnb.language import syscalls
from bpfnb.results.arguments import require_columns, require_known, require_once
from bpfnb.results.columns.text import text_dtype
from bpfnb.results.decode.kinds import KINDS, Array, Kind

__all__ = ["values", "with_decoded"]

_WORDS = {"signed": "integers", "unsigned": "integers", "bytes": "bytes", "strings": "strings"}


def with_decoded(frame: pd.DataFrame, kinds: Mapping[str, str], machine: str | None = None) -> pd.DataFrame:
    """Return the frame with a column ``<column>_<kind>`` behind each of these columns. Errors as ``values``."""
    require_columns(frame, kinds)
    require_once([*map(str, frame.columns), *(f"{name}_{kind}" for name, kind in kinds.items())])
    result = frame.copy(deep=False)
    for name, kind in kinds.items():
        decoded = values(frame[name], kind, machine)
        result.insert(list(result.columns).index(name) + 1, f"{name}_{kind}", decoded)
    return result


def values(series: pd.Series[Any], kind: str, machine: str | None = None) -> pd.Series[Any]:
    """Return a column's values as what they mean, a row for a row; ``KINDS`` has the kinds.

    A category of strings, in the order of the numbers, of those kinds whose text it is; else numbers, or timedelta64.
    Missing where there is no value. ``machine``: whose numbers they are, as ``platform.machine()`` has it; unless told
    that of ``syscalls.of_machine``.

    ValueError for an unknown kind, a column of another type than the kind takes, and a value that cannot be one.
    """
    require_known("kind", kind, KINDS)
    chosen = KINDS[kind]
    if pd.api.types.is_integer_dtype(series.dtype) and {"signed", "unsigned"} & set(chosen.takes):
        array, valid = _integers(series, kind, chosen)
        if chosen.convert:
            return _converted(series, chosen.convert(array), valid)
        codes = np.full(len(array), -1, np.int64)
        codes[valid], numbers = pd.factorize(array[valid])
        distinct: list[Any] = numbers.tolist()
    else:
        codes, distinct = _objects(series, kind, chosen)
    category = _category(codes, distinct, chosen, machine or syscalls.this_machine())
    return pd.Series(category, index=series.index, name=series.name)


def _converted(series: pd.Series[Any], array: Array, valid: npt.NDArray[np.bool_]) -> pd.Series[Any]:
    decoded = pd.Series(array, index=series.index, name=series.name)
    if valid.all():
        return decoded
    if decoded.dtype.kind != "m":
        decoded = decoded.convert_dtypes()  # numpy's integers have no missing ones
    return decoded.where(pd.Series(valid, index=series.index))


def _category(codes: Array, distinct: Sequence[Any], kind: Kind, machine: str) -> pd.Categorical[Any]:
    """Return the rows' texts. ``codes``: which of the distinct values each row has; -1: none."""
    assert kind.text
    texts = [kind.text(value, machine) for value in distinct]
    in_order = (texts[n] for n in sorted(range(len(distinct)), key=distinct.__getitem__))
    names = list(dict.fromkeys(text for text in in_order if text is not None))
    code_of: dict[str | None, int] = {name: code for code, name in enumerate(names)}
    code_of[None] = -1
    # The last is that of rows without a value: -1 counts from the end.
    text_codes = np.array([*(code_of[text] for text in texts), -1], np.int32)[codes]
    return pd.Categorical.from_codes(text_codes, dtype=pd.CategoricalDtype(pd.Index(names, dtype=text_dtype())))


# --- what a column holds ----------------------------------------------------------------------------------------------


def _integers(series: pd.Series[Any], name: str, kind: Kind) -> tuple[Array, npt.NDArray[np.bool_]]:
    """Return a column's numbers, and which rows have one."""
    valid = series.notna().to_numpy(np.bool_)
    array = series.to_numpy(_numpy_dtype(series.dtype), na_value=0)
    array = _signed(array) if "signed" in kind.takes else _unsigned(array)
    if kind.bits:
        array = _of_width(array, valid, series, name, kind.bits)
    if kind.within:
        low, high = kind.within
        valid = valid & (array >= low) & (array <= high)
    return array, valid


def _objects(series: pd.Series[Any], name: str, kind: Kind) -> tuple[Array, list[Any]]:
    """Return which of the distinct values each row has, -1 for none, and these: bytes or strings."""
    codes, uniques = pd.factorize(series.array)
    distinct = list(uniques)
    held = set(map(type, distinct))
    if "bytes" in kind.takes and held <= {bytes}:
        _require_lengths(distinct, series, name, kind.bytes)
    elif "bytes" in kind.takes and 16 in kind.bytes and held == {int} and pd.api.types.is_object_dtype(series.dtype):
        distinct = [_wide(value, series, name) for value in distinct]
    elif not ("strings" in kind.takes and held <= {str}):
        raise _other_type(series, name, kind)
    return codes, distinct


def _numpy_dtype(dtype: Any) -> np.dtype[Any]:
    """Return numpy's dtype of an integer column: pandas' nullable ones and Arrow's name it."""
    found: np.dtype[Any] = np.dtype(getattr(dtype, "numpy_dtype", dtype))
    return found


def _signed(array: Array) -> Array:
    """Return integers with their sign. A u32 or u64 that a negative number was put into is that number again."""
    same_width = f"i{array.itemsize}"
    return array.view(same_width) if array.dtype.kind == "u" and array.itemsize >= 4 else array


def _unsigned(array: Array) -> Array:
    return array.view(f"u{array.itemsize}")


def _of_width(array: Array, valid: npt.NDArray[np.bool_], series: pd.Series[Any], name: str, bits: int) -> Array:
    """Return unsigned integers of a kind's width. ValueError for one that does not fit."""
    if array.itemsize * 8 < bits and name.startswith("be"):
        raise ProgramError(f"column {series.name!r} is {series.dtype}: too narrow for {name}")
    outside = valid & (array > (1 << bits) - 1)
    if outside.any():
        raise ProgramError(f"column {series.name!r} has {series[outside].iloc[0]}, which is no {name} of {bits} bits")
    return array.astype(f"u{bits // 8}")


def _require_lengths(distinct: Sequence[bytes], series: pd.Series[Any], name: str, lengths: Sequence[int]) -> None:
    for value in distinct:
        if len(value) not in lengths:
            wanted = " or ".join(map(str, lengths))
            raise ProgramError(f"column {series.name!r} has {len(value)} bytes, {value!r}: {name} takes {wanted}")


def _wide(value: int, series: pd.Series[Any], name: str) -> bytes:
    """Return an __int128's bytes, as they lie in memory."""
    if not 0 <= value < 1 << 128:
        raise ProgramError(f"column {series.name!r} has {value}, which is no {name} of 16 bytes")
    return value.to_bytes(16, sys.byteorder)


def _other_type(series: pd.Series[Any], name: str, kind: Kind) -> ValueError:
    takes = " or ".join(dict.fromkeys(_WORDS[taken] for taken in kind.takes))
    what = str(series.dtype)
    if isinstance(series.dtype, pd.CategoricalDtype):
        what = f"a category of {series.cat.categories.dtype}"
    hint = ""
    if pd.api.types.is_float_dtype(series.dtype) and takes == "integers":
        hint = "; integers with missing ones are dtype 'Int64': .astype('Int64')"
    return ValueError(f"column {series.name!r} is {what}: {name} takes {takes}{hint}")
