"""A range of time that was brushed on a panel, and the rows in it."""

from __future__ import annotations

import math
import weakref
from collections.abc import Sequence
from typing import Any

import pandas as pd

from bpfnb.errors import ProgramError
from bpfnb.results.table import with_escapes
from bpfnb.views.live.view import ViewSpec

__all__ = ["Selection"]

_LATEST = 4e9  # seconds since 1970: times of pandas go on to 9.2e9


class Selection:
    """``range``: from and to (UTC), or None. Rows from ``from`` on and before ``to`` are selected.

    Sessions are referred to weakly: a panel that has ended stays in the notebook's Out[], and must not keep their rows.
    """

    def __init__(self, groups: Sequence[Sequence[ViewSpec]]) -> None:
        sources = {(id(spec.session), spec.output): spec for group in groups for spec in group if spec.map is None}
        self._sources = [(weakref.ref(spec.session), spec.session.name, spec.output) for spec in sources.values()]
        self.range: tuple[pd.Timestamp, pd.Timestamp] | None = None

    def brush(self, begin: float, end: float) -> None:
        """Select a range, in seconds since 1970, to the microsecond. An empty one: nothing. What is no range of time is
        ignored: it comes from a page."""
        if not (math.isfinite(begin) and math.isfinite(end)) or not 0 <= begin <= end <= _LATEST:
            return
        microseconds = round(begin * 1e6), round(end * 1e6)
        times = [pd.Timestamp(us, unit="us", tz="UTC").as_unit("ns") for us in microseconds]
        self.range = (times[0], times[1]) if begin < end else None

    def frame(self) -> pd.DataFrame:
        """Return the rows in the range, all while there is none: of one session as its ``df``, of several one after
        the other, with a column ``source`` that says which.

        ProgramError where no session has rows, or the sessions are gone; ValueError for rows without times.
        """
        frames = [(name, self._selected(name, frame)) for name, frame in self._frames()]
        if len(frames) == 1:
            return frames[0][1]
        names = [name for name, frame in frames for _ in range(len(frame))]
        whole = pd.concat([frame for _, frame in frames], ignore_index=True)
        whole.insert(0, "source", pd.Series(names, dtype="category"))
        return with_escapes(whole)

    def _frames(self) -> list[tuple[str, pd.DataFrame]]:
        found: list[tuple[str, pd.DataFrame]] = []
        why = "the panel shows no session"
        for reference, session_name, output in self._sources:
            session: Any = reference()
            name = session_name if output is None else f"{session_name}: {output}"
            if session is None:
                why = f"{session_name} is gone: nothing refers to it any more"
                continue
            try:
                found.append((name, session.df if output is None else session.outputs[output].df))
            except ProgramError as error:  # it has maps only
                why = str(error)
        if not found:
            raise ProgramError(why)
        return found

    def _selected(self, name: str, frame: pd.DataFrame) -> pd.DataFrame:
        if self.range is None:
            return frame
        if not isinstance(frame.dtypes.get("time"), pd.DatetimeTZDtype):
            raise ProgramError(f"the rows of {name} have no times: none of them can be chosen by time")
        begin, end = self.range
        selected = frame[(frame["time"] >= begin) & (frame["time"] < end)].reset_index(drop=True)
        selected.attrs.update(frame.attrs)
        return with_escapes(selected)
