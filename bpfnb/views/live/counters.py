"""Numbers of sessions: events, their rate, lost and dropped ones, and what the session costs."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from bpfnb.errors import ProgramError, escape, printable
from bpfnb.results.snapshot import Snapshot
from bpfnb.views import html
from bpfnb.views.live.view import Part, Static, ViewKind, ViewSpec

__all__ = ["CountersView"]

_EVERY = 1.0  # seconds
_SMALLEST_CHANGE = 0.05  # of a share of a CPU, which is never twice the same
_SMALLEST_SHARE = 0.0005  # of a CPU: what a session without events takes differs by less, and is not sent again


class CountersView:
    """A row of numbers a session, new once a second at most."""

    kind: ViewKind = "counters"

    def __init__(self, specs: Sequence[ViewSpec], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._sessions = list({id(spec.session): spec.session for spec in specs}.values())
        self._clock = clock
        self._due = 0.0
        self._before: list[Snapshot] = []
        self._rows: list[dict[str, Any]] = []
        self._sent: object = None
        self.update(False)

    @property
    def title(self) -> str:
        return ""  # each session is named where several are

    def update(self, last: bool) -> None:
        now = self._clock()
        if now < self._due and not last:
            return
        snapshots = [session.snapshot() for session in self._sessions]
        before = self._before or snapshots
        self._rows = [self._row(s, b, n) for n, (s, b) in enumerate(zip(snapshots, before, strict=True))]
        self._before, self._due = snapshots, now + _EVERY

    def whole(self) -> Part:
        self._sent = self._rows
        return Part({"rows": self._rows})

    def delta(self) -> Part | None:
        return None if self._rows == self._sent else self.whole()

    def choose(self, **choices: Any) -> None:
        raise ProgramError("nothing can be chosen here")

    def static(self) -> Static:
        dropped, refused = (any(row[name] for row in self._rows) for name in ("dropped", "refused"))
        heads = ["session", "state", "events", "per second", "lost"]
        heads += (
            [html.what_was_dropped(self._before)] * dropped
            + ["updates refused"] * refused
            + ["programs' CPU", "tracer's CPU"]
        )
        rows = []
        for row in self._rows:
            state = html.badge(row["state"], "twin" if row["state"] == "running" else "")  # not green: it may be over
            cells = [escape(row["name"]), state, _whole(row["events"]), _rate(row["rate"])]
            cells.append(html.lost_cell(row["lost"]))
            cells += [f"{row['dropped']:,}"] * dropped + [html.lost_cell(row["refused"])] * refused
            rows.append([*cells, _share(row["programs"]), _share(row["tracer"])])
        return Static(self._text(), html.table(heads, rows, numbers=range(2, len(heads))))

    def _row(self, s: Snapshot, before: Snapshot, number: int) -> dict[str, Any]:
        """Return a session's numbers. The rate is that of the time since the last look; when it has ended, of all."""
        ended = s.state not in ("starting", "running")
        length, events = (s.seconds, s.rows) if ended else (s.seconds - before.seconds, s.rows - before.rows)
        rate = events / length if length > 0.1 else 0.0
        old = self._rows[number] if number < len(self._rows) else {}
        programs, tracer = s.shares or (None, None)
        return {
            "name": printable(s.name),
            "state": s.state,
            "events": s.rows if s.has_rows else None,
            "rate": float(f"{rate:.3g}") if s.has_rows else None,
            "lost": s.lost,
            "dropped": s.dropped,
            "refused": sum(lost for _, _, lost in s.maps),
            "programs": _steady(programs, old.get("programs")),
            "tracer": _steady(tracer, old.get("tracer")),
        }

    def _text(self) -> str:
        lines = []
        for row in self._rows:
            facts = [] if row["events"] is None else [f"{row['events']:,} events", f"{_rate(row['rate'])}/s"]
            facts += [f"{row[name]:,} {name}" for name in ("lost", "dropped") if row[name] or name == "lost"]
            facts += [f"{row['refused']:,} updates refused"] if row["refused"] else []
            facts += [f"its programs take {_share(row['programs'])} of a CPU"] if row["programs"] is not None else []
            lines.append(f"{row['name']}: {row['state']}, {', '.join(facts)}")
        return "\n".join(lines)


def _steady(share: float | None, before: float | None) -> float | None:
    """Return a share of a CPU to two digits; as it was before, where it has hardly changed."""
    if share is None or (before is not None and abs(share - before) <= max(_SMALLEST_CHANGE * before, _SMALLEST_SHARE)):
        return share if share is None else before
    return float(f"{share:.2g}")


def _whole(number: int | None) -> str:
    return html.muted("none") if number is None else f"{number:,}"


def _rate(rate: float | None) -> str:
    return "" if rate is None else f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"


def _share(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.2g} %" if share < 0.1 else f"{100 * share:.0f} %"
