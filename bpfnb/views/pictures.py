"""Pictures for panels. A picture has one method, which paints what the sessions have now:

    class Totals:
        def paint(self, last: bool) -> Painted: ...

It is made on the caller's thread. After that only the refresh thread calls it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from bpfnb.results.rates import RateMeter
from bpfnb.results.snapshot import SessionState, Snapshot
from bpfnb.views.plots import SECONDS, Curve, RatesFigure

__all__ = ["Painted", "Picture", "RatesPicture", "Traced", "ended"]


class Traced(Protocol):
    """What a panel needs of a session: bpfnb.session.Session."""

    @property
    def name(self) -> str: ...
    @property
    def state(self) -> SessionState: ...
    def snapshot(self) -> Snapshot: ...
    def meter(self, by: str | None = None) -> RateMeter: ...
    def stop(self) -> None: ...


class Painted(NamedTuple):
    """A picture of one moment, as a PNG; for each session the rows of the newest second in it, and the colour of its
    line, "" where it has none of its own. ``curves``: the lines; ``until``: their end, in seconds since 1970."""

    png: bytes
    rates: Sequence[int]
    colours: Sequence[str]
    curves: Sequence[Curve] = ()
    until: float = 0.0


class Picture(Protocol):
    """What a panel shows above its totals."""

    def paint(self, last: bool) -> Painted:
        """Paint what the sessions have now. ``last``: nothing more will come, so the newest second is whole."""


class RatesPicture:
    """Events per second over the last minute: a line a session, or with ``by`` a line a value of that column."""

    def __init__(self, sessions: Sequence[Traced], by: str | None) -> None:
        """Raises what a session's meter raises: ProgramError without an output, ValueError for an unknown column."""
        self._meters = [(session, session.meter(by)) for session in sessions]
        for _, meter in self._meters:
            meter.update()  # its errors are raised here, in the user's cell
        self._grouped = by is not None
        self._figure = RatesFigure()
        self._drawn: object = None
        self._png = b""

    def paint(self, last: bool) -> Painted:
        for _, meter in self._meters:
            meter.update()
        until = self._until()
        rates, curves = [], []
        for number, (session, meter) in enumerate(self._meters):
            counts = meter.counts(until - SECONDS, until)[None]
            rates.append(int(counts[0, -1]))
            groups = list(meter.top(1 << 16))
            counts = meter.counts_of(groups, until - SECONDS, until) if self._grouped else counts
            curves.extend(self._lines((number, session.name), groups, counts))
        self._draw(curves, until)
        keys = [] if self._grouped else [(number, session.name) for number, (session, _) in enumerate(self._meters)]
        colours = [self._figure.colour(key) for key in keys] or [""] * len(self._meters)
        return Painted(self._png, rates, colours, curves, until)

    def _until(self) -> int:
        """Return the end of the newest second painted: it is over, or nothing more will come."""
        return max(meter.until for _, meter in self._meters)

    def _lines(self, session: tuple[int, str], groups: list[str], counts: npt.NDArray[np.int64]) -> list[Curve]:
        """Return a session's curves: one, or with ``by`` one for each group seen in this minute."""
        if not self._grouped:
            return [Curve(session, session[1], counts.sum(axis=0))]
        prefix = f"{session[1]}: " if len(self._meters) > 1 else ""
        return [
            Curve((session, group), prefix + (group or "(empty)"), row)
            for group, row in zip(groups, counts, strict=True)
            if row.any()
        ]

    def _draw(self, curves: Sequence[Curve], until: float) -> None:
        """Paint the PNG anew if it has changed: mostly once a second."""
        content = (until, [(curve.label, curve.counts.tobytes()) for curve in curves])
        if content != self._drawn:
            self._png = self._figure.paint(curves, until)
            self._drawn = content


def ended(sessions: Sequence[Traced]) -> bool:
    return all(session.state not in ("starting", "running") for session in sessions)
