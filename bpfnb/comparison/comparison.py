"""What differs between two sessions or recordings: rates, histograms, quantiles, the largest groups, flame graphs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from bpfnb import views
from bpfnb.comparison import frames
from bpfnb.errors import ProgramError, escape, printable
from bpfnb.interrupts import uninterrupted
from bpfnb.results.arguments import Names
from bpfnb.results.buckets import HistKind
from bpfnb.results.presentation import Table
from bpfnb.results.snapshot import Snapshot
from bpfnb.results.table import with_bars, with_escapes
from bpfnb.session import Session

if TYPE_CHECKING:
    from bpfnb.views.flamegraph import FlameGraph

__all__ = ["Comparison", "compare"]

SHARES = (0.5, 0.9, 0.99)
_SHOWN = 10  # groups in the summary


def compare(a: Session, b: Session, *, output: str | None = None) -> Comparison:
    """Compare two sessions, running, stopped or recorded, on this host or others, as they are now.

        before, after = bpfnb.open("monday"), bpfnb.open("tuesday.zip")
        bpfnb.compare(before, after)                       # as a cell's last expression: a summary
        bpfnb.compare(before, after).quantiles("latency")
        bpfnb.compare(before, after).flame()               # red: more of it in the second

    ``output``: an output of both; unless told, the rows of ``df``. ProgramError for what is no session, and where one
    of them has rows and the other a table; KeyError for an unknown output.
    """
    for session in (a, b):
        if not isinstance(session, Session):
            raise ProgramError(f"compare takes two sessions, such as bpfnb.open makes, not {type(session).__name__}")
    return Comparison(a, b, output)


class Comparison:
    """Two sessions as they were when they were compared. ``a`` is the first, ``b`` the second.

    ``sessions``   a row each: how long it ran, its events, and how many of them it lost
    ``rates()``    events per second of each output
    ``hist()``, ``quantiles()``   a column of numbers or durations, or the buckets of ``hist`` and ``latency``
    ``top()``      the groups that changed most, per second
    ``flame()``    the flame graph of the difference
    ``notes``      what to bear in mind: losses, rows that are not there any more, different lengths
    """

    @uninterrupted
    def __init__(self, a: Session, b: Session, output: str | None = None) -> None:
        self._pair = (a, b)
        self._snapshots = (a.snapshot(), b.snapshot())
        a_frame, b_frame = (session.df if output is None else session.outputs[output].df for session in self._pair)
        self._frames = a_frame, b_frame
        counted = [output is None and isinstance(session.presentation, Table) for session in self._pair]
        kinds = list(map(frames.kind_of, self._frames, counted))
        if kinds[0] != kinds[1]:
            raise ProgramError(f"{a.name} has {kinds[0]} and {b.name} has {kinds[1]}: these cannot be compared")
        self._kind = kinds[0]

    @property
    def sessions(self) -> pd.DataFrame:
        """Return a row a session: ``session`` ("a", "b"), ``name``, ``seconds`` (float64: how long it has run), and
        events ``rows``, ``lost`` and ``dropped`` (int64)."""
        names = ("name", "seconds", "rows", "lost", "dropped")
        rows = [{name: getattr(snapshot, name) for name in names} for snapshot in self._snapshots]
        table = pd.DataFrame(rows)
        table.insert(0, "session", ["a", "b"])
        return with_escapes(table)

    @property
    def notes(self) -> list[str]:
        """Return what to bear in mind, a sentence each."""
        return [note for side, s in zip("ab", self._snapshots, strict=True) for note in _notes(side, s)]

    def rates(self) -> pd.DataFrame:
        """Return a row an output of either: ``output``, and events per second of ``a`` and ``b`` (float64), delivered
        and lost ones, over all the time that each ran; ``change`` (b - a), ``ratio`` (b / a). NaN where one has no such
        output."""
        per_second = [
            {name: (rows + lost) / s.seconds if s.seconds else float("nan") for name, rows, lost in s.outputs}
            for s in self._snapshots
        ]
        names = list(dict.fromkeys([*per_second[0], *per_second[1]]))
        table = pd.DataFrame({"output": names})
        for side, known in zip("ab", per_second, strict=True):
            table[side] = [known.get(name, float("nan")) for name in names]
        return with_escapes(frames.with_change(table))

    def hist(
        self,
        column: str | None = None,
        kind: HistKind = "log2",
        bins: int | Sequence[float] | None = None,
        unit: str | None = None,
    ) -> pd.DataFrame:
        """Return how many values of a column lie in each bucket: ``low``, ``high``, ``label``, and counts ``a`` and
        ``b`` (int64). Of sessions of ``hist`` and ``latency`` their own buckets, by their groups.

        ``column``: unless told, the first of durations. ``kind``, ``bins``, ``unit`` as ``df.bpf.hist`` has them.
        ProgramError where there is no such column.
        """
        if self._kind == "buckets":
            return with_bars(frames.joined_buckets(*self._frames))
        return with_bars(frames.histogram(*self._frames, column, kind, bins, unit))

    def quantiles(self, column: str | None = None, shares: Sequence[float] = SHARES) -> pd.DataFrame:
        """Return a row a quantile: ``quantile``, and the value of ``a`` and ``b`` there, in the column's type;
        ``change`` (b - a) and ``ratio`` (b / a). Between two values they are interpolated, as in pandas.

        Of sessions of ``hist`` and ``latency`` the bucket that the quantile lies in, by their groups: ``a``, ``b``
        (labels), ``a_low``, ``a_high``, ``b_low``, ``b_high``. ``column``: unless told, the first of durations.
        """
        if self._kind == "buckets":
            return with_escapes(frames.joined_quantiles(*self._frames, shares))
        return with_escapes(frames.quantiles(*self._frames, column, shares))

    def top(self, by: Names | None = None, n: int = 10, value: str | None = None) -> pd.DataFrame:
        """Return the ``n`` groups that changed most: the columns of ``by``, ``a`` and ``b`` (float64: how much of it a
        second), ``change`` (b - a), ``ratio`` (b / a: inf where ``a`` has none).

        ``by``: unless told ``comm`` of events, of a table its columns of text. ``value``: what is added up; unless told
        events, of a table ``count``, ``total``, ``bytes``, ``sum`` or ``value``, the first that it has.
        """
        seconds = self._snapshots[0].seconds, self._snapshots[1].seconds
        return with_escapes(frames.top(*self._frames, seconds, self._kind == "events", by, n, value))

    def flame(self, normalise: bool = True, **options: Any) -> FlameGraph:
        """Return the flame graph of ``b`` with what differs from ``a`` in colour: red is more in ``b``, blue less.

        ``normalise``: ``a`` is scaled to the same total, which the graph says. Options as Session.flame has them.
        ProgramError for sessions without stacks.
        """
        a, b = self._pair
        return views.flame(b, minus=a, normalise=normalise, **options)

    # --- shown ---

    def _parts(self) -> list[tuple[str, pd.DataFrame]]:
        """Return the summary's tables: those that there are."""
        parts = [("", self.sessions)]
        if len(rates := self.rates()):
            parts.append(("events a second", rates))
        if self._kind == "buckets" or frames.durations(*self._frames):
            parts.append(("quantiles", self.quantiles()))
        if self._kind != "buckets" and frames.groups(*self._frames, self._kind == "events"):
            parts.append((f"a second, the {_SHOWN} that changed most", self.top(n=_SHOWN)))
        return parts

    def __repr__(self) -> str:
        texts = [f"{title}\n{frame.to_string(index=False)}".lstrip("\n") for title, frame in self._parts()]
        return "\n\n".join([printable(text, keep="\n\t") for text in [*texts, *self.notes]])

    def _repr_html_(self) -> str:
        tables = [f"<p>{escape(title)}</p>{frame.to_html(index=False)}" for title, frame in self._parts()]
        return "".join([*tables, *(f"<p>{escape(note)}</p>" for note in self.notes)])


def _notes(side: str, s: Snapshot) -> list[str]:
    notes = []
    if s.lost:
        share = 100 * s.lost / (s.lost + s.rows)
        notes.append(f"{side} lost {s.lost:,} events, {share:.2g} % of its own: only its rates have them")
    if s.dropped:
        notes.append(f"{side} has let go of its {s.dropped:,} oldest rows: only its rates have them")
    if refused := sum(count for _, _, count in s.maps):
        notes.append(f"the kernel refused {refused:,} updates of maps of {side}: its counts lack them")
    if s.state == "running":
        notes.append(f"{side} is still running: this is what it had after {s.seconds:.1f} s")
    return notes
