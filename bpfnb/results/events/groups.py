"""Rows by the group that they belong to: the largest groups, and the others as one."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from bpfnb.errors import ProgramError

__all__ = ["largest", "numbered_groups", "require_few"]

Ints = npt.NDArray[Any]


def numbered_groups(by: pd.DataFrame) -> tuple[Ints, list[Any]]:
    """Return the number of each row's group, -1 where a value is missing, and the groups' names in order, tuples for
    several columns. ``by`` has its rows numbered."""
    if len(by.columns) == 1:
        codes, names = pd.factorize(by.iloc[:, 0], sort=True)
        return codes.astype(np.int64), list(names)
    grouped = by.groupby(list(by.columns), observed=True, sort=True)
    return grouped.ngroup().fillna(-1).to_numpy(np.int64), list(grouped.size().index)


def largest(by: pd.DataFrame, most: int, counts: Ints | None = None) -> tuple[Ints, list[Any]]:
    """Return the same of the ``most`` largest groups, the largest first. All others are one more, "other (12)" where
    there are twelve of them. ``counts``: how many rows each row stands for.

    ValueError for a ``most`` below 1.
    """
    require_few(most)
    groups, names = numbered_groups(by)
    known = groups >= 0
    sizes = np.bincount(groups[known], None if counts is None else counts[known], len(names))
    order = np.argsort(-sizes, kind="stable")
    rank = np.empty(len(names) + 1, np.int64)
    rank[order] = np.arange(len(names))
    rank[-1] = -1  # of the rows without a group
    shown = [names[i] for i in order[:most].tolist()]
    if len(names) > most:
        rank = np.minimum(rank, most)
        shown.append(f"other ({len(names) - most:,})")
    return rank[groups], shown


def require_few(most: int) -> None:
    if isinstance(most, bool) or not isinstance(most, int) or most < 1:
        raise ProgramError(f"top says how many groups are shown, 1 or more, not {most!r}")
