"""Histograms that there are already, a column a group: as df.bpf.hist() makes them."""

from __future__ import annotations

import numpy as np
import pandas as pd

from bpfnb.errors import ProgramError, near_or_all
from bpfnb.results.events.groups import require_few

__all__ = ["wide_histogram"]

_BUCKET = ("low", "high", "label")


def wide_histogram(table: pd.DataFrame, by: list[str], top: int) -> pd.DataFrame:
    """Return a histogram with a column of counts for each group, the ``top`` largest and the sum of the others.

    Taken are histograms with a column of counts for each group, as they are; and those in long form, which have the
    groups' names in other columns, as one-liners' have: ``by`` names some of these, and the counts of equal ones are
    added up.

    ValueError for a table that is no histogram, unknown columns, and a ``top`` below 1.
    """
    require_few(top)
    for name in ("low", "high"):
        if name not in table.columns:
            raise ProgramError(f"this is no histogram, which has low, high and counts: there is no {name!r}; value=...")
    names = [name for name in table.columns if name not in (*_BUCKET, "count", "bucket", "time")]
    if "count" not in table.columns:
        if by:
            raise ProgramError(f"the groups are columns here; there is no {by[0]!r}")
        return _with_others(table, top)
    for name in by:
        if name not in names:
            raise ProgramError(f"no column {name!r}{near_or_all(name, map(str, names))}")
    bounds = [table["low"], table["high"]]
    if not by:
        counts = table["count"].groupby(bounds).sum().to_frame("count")
    else:
        groups = (
            table[by[0]] if len(by) == 1 else pd.Series(list(zip(*(table[n] for n in by), strict=True)), table.index)
        )
        counts = table["count"].groupby([*bounds, groups.astype(object)]).sum().unstack(fill_value=0)
        counts.columns = pd.Index(list(counts.columns), dtype=object, tupleize_cols=False)
    wide = pd.concat([counts.index.to_frame(index=False), counts.reset_index(drop=True)], axis=1)
    wide.attrs = dict(table.attrs)
    return _with_others(wide, top)


def _with_others(table: pd.DataFrame, top: int) -> pd.DataFrame:
    """Sum the columns of counts but the largest, which keep their order."""
    names = list(table.columns)
    bounds = [names.index(name) for name in _BUCKET if name in names]
    counted = [i for i in range(len(names)) if i not in bounds]
    if len(counted) <= top:
        return table
    sums = np.array([table.iloc[:, i].sum() for i in counted])
    chosen = set(np.argsort(-sums, kind="stable")[:top].tolist())
    others = table.iloc[:, [i for n, i in enumerate(counted) if n not in chosen]].sum(axis=1)
    kept = table.iloc[:, [*bounds, *(i for n, i in enumerate(counted) if n in chosen)]]
    made = pd.concat([kept, others.rename(f"other ({len(counted) - top:,})")], axis=1)
    made.attrs = dict(table.attrs)
    return made
