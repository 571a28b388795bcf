"""Arguments of df.bpf's methods, checked: columns that are there, words that are known, masks that fit."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Sequence
from contextlib import suppress
from typing import Any, TypeAlias, cast

import numpy as np
import numpy.typing as npt
import pandas as pd

from bpfnb.errors import ProgramError, near_or_all

__all__ = [
    "Names",
    "fitting_mask",
    "moment",
    "names_of",
    "numbered",
    "require_columns",
    "require_known",
    "require_once",
    "require_shares",
    "require_times",
]

Names: TypeAlias = str | Sequence[str]
_TIME_OF_DAY = re.compile(r"\s*\d{1,2}:\d{2}(:\d{2}(\.\d+)?)?\s*")


def names_of(names: Names | None) -> list[str]:
    if names is None:
        return []
    return list(names) if isinstance(names, Iterable) and not isinstance(names, (str, bytes)) else [names]


def numbered(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the same data with its rows numbered: an index may have duplicates, or a column's name."""
    numbered = frame.copy(deep=False)
    numbered.index = pd.RangeIndex(len(frame))
    return numbered


def fitting_mask(mask: Any, frame: pd.DataFrame, what: str) -> npt.NDArray[np.bool_]:
    """Return a mask as an array. Missing is false, as in pandas. ValueError unless it is true or false for each row."""
    if isinstance(mask, pd.DataFrame) or len(flags := pd.Series(mask)) != len(frame):
        raise ProgramError(f"{what} must be true or false for each of the {len(frame)} rows")
    if isinstance(mask, pd.Series) and not mask.index.equals(frame.index):
        raise ProgramError(f"{what} has another index than the frame")
    if len(flags) and not pd.api.types.is_bool_dtype(flags.dtype):
        raise ProgramError(f"{what} must be true or false for each row, not {flags.dtype}")
    return flags.to_numpy(np.bool_, na_value=False)


def require_columns(frame: pd.DataFrame, names: Iterable[str]) -> None:
    for name in names:
        if not isinstance(name, Hashable):
            raise ProgramError(f"here a single column's name is meant, not {name!r}")
        if name not in frame.columns:
            raise ProgramError(f"no column {name!r}{near_or_all(str(name), frame.columns)}")


def require_once(names: Iterable[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ProgramError(f"the result would have two columns {name!r}")
        seen.add(name)


def require_known(what: str, word: str, words: Iterable[str]) -> None:
    if word not in list(words):
        raise ProgramError(f"no {what} {word!r}{near_or_all(str(word), words)}")


def require_shares(shares: Iterable[float]) -> None:
    for share in shares:
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 1:
            raise ProgramError(f"a quantile is a number from 0 to 1, not {share!r}")


def require_times(frame: pd.DataFrame, what: str) -> None:
    if not isinstance(frame.dtypes.get("time"), pd.DatetimeTZDtype):
        raise ProgramError(
            f"{what} needs times, and these events have none: the ring buffer they came through could not be stamped"
            " (its output's clock is None)"
        )


def moment(time: object) -> int | None:
    """Return a time as nanoseconds since 1970: None, an integer as they are, all else that pandas takes for a time with
    its day; without a time zone in UTC. ProgramError for what is none."""
    if time is None or (isinstance(time, (int, np.integer)) and not isinstance(time, bool)):
        if time is not None and not -(1 << 63) < int(time) < 1 << 63:
            raise ProgramError(f"no time: {time!r} ns is not within the years 1678 to 2261")
        return None if time is None else int(time)
    stamp: Any = pd.NaT
    if not _TIME_OF_DAY.fullmatch(str(time)):
        with suppress(ValueError, TypeError, OverflowError):
            stamp = pd.Timestamp(cast("Any", time))
    if stamp is pd.NaT:
        raise ProgramError(f"no time with its day: {time!r}; write 2026-12-31 23:59:58.5 (UTC)")
    utc = stamp.tz_localize("UTC") if stamp.tzinfo is None else stamp
    return int(utc.as_unit("ns").value)
