"""A DataFrame, or a file, of counted stacks -> each different stack once, with what was counted there."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd

from bpfnb.errors import ProgramError, near_or_all, printable
from bpfnb.results.arguments import Names, names_of

__all__ = ["Folded", "Unit", "fold", "from_texts", "group_columns", "read_folded"]

Unit: TypeAlias = Literal["count", "ns", "bytes"]
Values: TypeAlias = npt.NDArray[Any]  # int64, or float64

# What is added up unless told, the first that a frame has.
_VALUES: tuple[tuple[str, Unit], ...] = (
    ("total", "ns"),
    ("size", "bytes"),
    ("bytes", "bytes"),
    ("count", "count"),
    ("value", "count"),
)
_UNITS: dict[str, tuple[Unit, int]] = {
    "count": ("count", 1),
    "bytes": ("bytes", 1),
    "ns": ("ns", 1),
    "us": ("ns", 1_000),
    "ms": ("ns", 1_000_000),
    "s": ("ns", 1_000_000_000),
}
NO_STACK = "[no stack]"

_LINE = re.compile(r"(.*\S)\s+(\d+(?:\.\d*)?)\s*")  # as flamegraph.pl reads it
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


@dataclass(frozen=True)
class Folded:
    """Different stacks, "main;read;__x64_sys_read_[k]", the outermost function first, and what was counted at each.

    ``values``   int64; float64 where the values were no whole numbers
    ``unit``     what they count: "count", "ns" or "bytes"
    ``by``       what each stack begins with that is no function, such as ("comm",)
    ``missing``  rows left out, for they had no stack or no value
    """

    stacks: tuple[str, ...]
    values: Values
    unit: Unit = "count"
    by: tuple[str, ...] = ()
    missing: int = 0

    @property
    def total(self) -> int | float:
        return self.values.sum().item() if len(self.values) else 0

    def positive(self) -> Folded:
        """Return it without stacks at which nothing was counted."""
        kept = np.flatnonzero(self.values)
        return replace(self, stacks=tuple(self.stacks[i] for i in kept.tolist()), values=self.values[kept])


def fold(
    frame: pd.DataFrame,
    value: str | None = None,
    by: Names | None = None,
    *,
    stack: str = "stack",
    unit: str | None = None,
) -> Folded:
    """Add up the rows of each different stack.

    ``stack``    the column of stacks: text, the outermost function first, ";" between
    ``value``    the column that is added up; unless told the first there is of total, size, bytes, count, value, and
                 without these each row counts one
    ``by``       columns that stacks are put under, outermost; unless told those of text (comm, probe), () for none.
                 Text stands as it is, anything else with its column: "pid=7"
    ``unit``     what ``value`` counts: "count", "bytes", "ns", "us", "ms", "s". Unless told: timedelta64 is time, size
                 and bytes are bytes, all else counts

    Rows without a value or a stack are left out, and counted. ProgramError for a column that is not there or not of
    that kind, and for values below 0.
    """
    texts = _stack_column(frame, stack)
    values, measured = _values(frame, value, unit)
    groups = group_columns(frame, by, stack)
    keys = [_text_of(frame[name], name) for name in groups]
    codes, stacks = pd.factorize(texts)
    there = (codes >= 0) & ~np.isnan(values) if values.dtype.kind == "f" else codes >= 0
    rows = pd.DataFrame(dict(enumerate([*keys, codes])))
    rows["value"] = values
    missing = int(len(rows) - there.sum())
    rows = rows[there] if missing else rows
    by_all = list(range(len(keys) + 1))
    sums = rows.groupby(by_all, sort=False, observed=True, dropna=False)["value"].sum()
    levels = [sums.index.get_level_values(i) for i in by_all] if keys else [sums.index]
    under = [stacks[code] or NO_STACK for code in levels[-1].tolist()]
    names = [level.tolist() for level in levels[:-1]]
    whole = tuple(map(";".join, zip(*names, under, strict=True)))
    return Folded(whole, np.asarray(sums.to_numpy()), measured, tuple(groups), missing)


def from_texts(texts: Iterable[str], values: Sequence[int] | Values) -> Folded:
    """Return stacks that are folded already, each different one once."""
    return fold(pd.DataFrame({"stack": np.array(list(texts), object), "count": np.asarray(values)}), by=())


def read_folded(path: str | os.PathLike[str]) -> Folded:
    """Read a file of folded stacks, "main;read 42" a line, as stackcollapse-*.pl, inferno, py-spy and ``to_folded``
    write them. Empty lines are passed over, and lines that begin with "# ". ProgramError for a file that cannot be
    read, and for a line that ends in no number, with its number."""
    try:
        text = Path(path).read_text("utf-8", errors="replace")
    except OSError as error:
        raise ProgramError(f"{os.fspath(path)}: {error.strerror}") from None
    stacks, numbers = [], []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip() or line.startswith("# "):
            continue
        if not (found := _LINE.fullmatch(line)):
            raise ProgramError(
                f"{os.fspath(path)}, line {number}: a stack and a count, as in main;read 42, not {_short(line)}"
            )
        stacks.append(found[1])
        numbers.append(found[2])
    whole = all(number.isdecimal() and len(number) < 19 for number in numbers)
    return from_texts(stacks, np.array([int(n) for n in numbers], np.int64) if whole else np.array(numbers, np.float64))


def clean(name: str) -> str:
    """Return a name without what would part it in two, or its line."""
    return _CONTROL.sub("?", name).replace(";", ":")


# --- columns ------------------------------------------------------------------------------------------------------


def _stack_column(frame: pd.DataFrame, name: str) -> pd.Series[Any]:
    if name not in frame.columns:
        raise ProgramError(f"no column {name!r} of stacks{near_or_all(name, frame.columns)}")
    column: pd.Series[Any] = frame[name]
    if len(column) and pd.api.types.is_numeric_dtype(column.dtype):
        raise ProgramError(
            f"column {name!r} has numbers of stacks, not their functions: session.flame(), or "
            "session.maps[...].folded(df) of the map that keeps them"
        )
    return column


def _values(frame: pd.DataFrame, name: str | None, unit: str | None) -> tuple[Values, Unit]:
    if unit is not None and unit not in _UNITS:
        raise ProgramError(f"no unit {unit!r}{near_or_all(str(unit), _UNITS)}")
    if name is None:
        name = next((column for column, _ in _VALUES if column in frame.columns and _adds(frame[column])), None)
    if name is None:
        return np.ones(len(frame), np.int64), "count"
    if name not in frame.columns:
        raise ProgramError(f"no column {name!r}{near_or_all(name, frame.columns)}")
    column = frame[name]
    if not _adds(column):
        raise ProgramError(f"column {name!r} is {column.dtype}: there is nothing to add up")
    measured, scale = _UNITS[unit] if unit else (dict(_VALUES).get(name, "count"), 1)
    if column.dtype.kind == "m":
        measured, column = "ns", _nanoseconds(column)
    elif measured == "ns" and not unit:
        measured = "count"
    values = _numbers(column)
    if len(values) and np.nanmin(values, initial=0) < 0:
        raise ProgramError(f"column {name!r} has values below 0: a flame graph has no width for them")
    return values * scale, measured


def _adds(column: pd.Series[Any]) -> bool:
    kind = column.dtype
    return kind.kind == "m" or (pd.api.types.is_numeric_dtype(kind) and not pd.api.types.is_complex_dtype(kind))


def _nanoseconds(column: pd.Series[Any]) -> pd.Series[Any]:
    whole = column.astype("timedelta64[ns]")
    return whole.astype("int64") if not whole.isna().any() else whole / pd.Timedelta(1, "ns")


def _numbers(column: pd.Series[Any]) -> Values:
    """Return numbers that can be added up: int64, or float64 with NaN for what is missing or infinite."""
    numbers = column.to_numpy(dtype=np.float64, na_value=np.nan)
    if column.dtype.kind in "iub" and not column.isna().any() and numbers.sum() < 2.0**62:
        return column.to_numpy().astype(np.int64)
    return np.where(np.isfinite(numbers), numbers, np.nan)


def group_columns(frame: pd.DataFrame, by: Names | None, stack: str) -> list[str]:
    """Return the columns that stacks are put under: ``by``, or those of text."""
    if by is None:
        return [str(name) for name in frame.columns if _names_things(str(name), frame[name], stack)]
    for name in names_of(by):
        if name not in frame.columns:
            raise ProgramError(f"no column {name!r}{near_or_all(str(name), frame.columns)}")
    return names_of(by)


def _names_things(name: str, column: pd.Series[Any], stack: str) -> bool:
    """Return whether a column is of text that tells groups apart: not the stacks, nor a bucket's label."""
    if name == stack or name.endswith("stack") or name in ("label", "msg", "flags"):
        return False
    return isinstance(column.dtype, pd.CategoricalDtype) or pd.api.types.is_string_dtype(column.dtype)


def _text_of(column: pd.Series[Any], name: str) -> Any:
    """Return a column's values as what stands in a stack."""
    codes, values = pd.factorize(column)
    text = pd.api.types.is_string_dtype(values.dtype) or isinstance(column.dtype, pd.CategoricalDtype)
    names = [clean(str(value)) if text else clean(f"{name}={value}") for value in values] or [""]
    unique = list(dict.fromkeys([*names, f"{name}: none"]))
    number = {text: i for i, text in enumerate(unique)}
    of_code = np.array([number[text] for text in [*names, f"{name}: none"]])
    made: Any = pd.Categorical
    return made.from_codes(of_code[codes], categories=unique)  # -1, a missing value's code, is the last


def _short(text: str) -> str:
    return printable(text if len(text) <= 60 else text[:57] + "...")
