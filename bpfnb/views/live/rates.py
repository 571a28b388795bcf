"""Events per second over time: a line an output, or with ``by`` a line for each of the most frequent values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt
import pandas as pd

from bpfnb.errors import ProgramError, printable
from bpfnb.results.rates import KEPT, MAX_WINDOW, MIN_WINDOW, RateMeter, step_of
from bpfnb.views import svg
from bpfnb.views.live.view import Part, Static, ViewKind, ViewSpec

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["MAX_TOP", "WINDOWS", "RatesView"]

WINDOWS = (10, 30, 60, 300, 900, 3600)  # seconds, to choose from
MAX_TOP = 20
_MAX_COLUMNS = 100  # to choose from
_LABEL = 120  # characters

Ints = npt.NDArray[np.int64]


class _Source(NamedTuple):
    """An output that is counted, and the spec it is of."""

    spec: ViewSpec
    output: str
    meter: RateMeter


class _Line(NamedTuple):
    """A line of the picture: of a source, or of a value in it. It keeps its colour as long as it is shown."""

    source: int
    value: str | None


class _Content(NamedTuple):
    """What a page has been sent: up to before interval ``until``."""

    until: int
    state: list[dict[str, object]]
    lines: list[_Line]
    labels: list[str]


class RatesView:
    """The rates of one or more sessions in one picture.

    The browser gets counts (uint32) of whole intervals: of each source, then of each line that is a value. It divides
    them by the interval's length, subtracts what has a line of its own from the sum, and calls the rest "other".
    """

    kind: ViewKind = "rates"

    def __init__(self, specs: Sequence[ViewSpec]) -> None:
        """Raises what a session's meter raises: ProgramError without an output, ValueError for an unknown column."""
        self._specs = _distinct(specs)
        self._window, self._by, self._top = checked(specs[0].window, specs[0].by, specs[0].top)
        self._slots: dict[_Line, int] = {}
        self._sent: _Content | None = None
        self._quiet: list[int] | None = None  # how many events there were when the window was found to have none
        self._sources: list[_Source] = []
        self._step = step_of(self._window)
        self._open()

    @property
    def title(self) -> str:
        whole = [spec.session for spec in self._specs if spec.output is None]
        shown = [spec for spec in self._specs if spec.output is None or spec.session not in whole]
        names = ", ".join(dict.fromkeys(_named(spec) for spec in shown))
        return f"{names} by {self._by}" if self._by else names

    def update(self, last: bool) -> None:
        self._find_outputs()
        for source in self._sources:
            source.meter.update()

    def whole(self) -> Part:
        self._sent = self._quiet = None
        return self._part(
            min((source.meter.oldest for source in self._sources), default=0),
            {
                "step": self._step, "window": self._window, "windows": WINDOWS, "kept": KEPT, "by": self._by,
                "top": self._top, "most": MAX_TOP, "columns": self._columns(), "many": len(self._sources) > 1,
            },
            self._content(),
        )  # fmt: skip

    def delta(self) -> Part | None:
        totals = [source.meter.total for source in self._sources]
        if totals == self._quiet and not any(source.meter.life.ended for source in self._sources):
            return None  # a quiet window stays so until something comes: no need to look through it
        self._quiet = None
        now, before = self._content(), self._sent
        if before is None or len(now.state) != len(before.state):
            return self.whole()
        changed = [source.meter.changed for source in self._sources]
        late = [number for number in changed if number is not None and number < before.until]
        if now[1:] == before[1:] and not late and (now.until == before.until or self._is_quiet(before.until)):
            self._quiet = totals if now.until > before.until else None
            return None
        return self._part(min([before.until, *late]), {}, now)

    def choose(self, **choices: Any) -> None:
        if unknown := set(choices) - {"window", "by", "top"}:
            raise ProgramError(f"no choice {min(unknown)!r}: there are window, by, top")
        before = self._window, self._by, self._top, self._sources
        given = {"window": self._window, "by": self._by, "top": self._top, **choices}
        self._window, self._by, self._top = checked(given["window"], given["by"], given["top"])
        if (step_of(self._window), self._by) != (self._step, before[1]):
            try:
                self._open()
            except Exception:
                self._window, self._by, self._top, self._sources = before
                raise
        for source in self._sources:
            source.meter.window = self._window

    def static(self) -> Static:
        table = self.table()
        numbers = [self._slots[line] for line in self._shown()]
        if not all(
            source.meter.life.ended for source in self._sources
        ):  # a hundredth of the work, a tenth of the bytes
            return Static(self._text(table), image=svg.rate(table, numbers=numbers), mimetype="image/svg+xml")
        # At the end a PNG, which readers of notebooks show that do not trust one. Not imported above: matplotlib takes
        # most of a second, which a panel that has just been asked for need not.
        from bpfnb.views.plots.figure import png
        from bpfnb.views.plots.rate import rate

        traced = table.notna().any(axis=1).cummax()
        shown = table[traced] if traced.any() else table
        return Static(self._text(table), image=png(cast("Figure", rate(shown, numbers=numbers).figure)))

    def _text(self, table: pd.DataFrame) -> str:
        """Return the picture in words: the rate of each line at the end, and on average."""
        lines = [f"{printable(self.title)}: events per second"]
        for number, name in enumerate(table):  # two may have one name
            known = table.iloc[:, number].dropna()
            if len(known):
                lines.append(f"  {name}: {known.iloc[-1]:,.4g}, on average {known.mean():,.4g}")
        if len(table):
            lines.append(f"  {table.index[0]:%Y-%m-%d %H:%M:%S} to {table.index[-1]:%H:%M:%S} UTC")
        return "\n".join(lines)

    def table(self) -> pd.DataFrame:
        """Return the window as it is now: events per second (float64), indexed by time (UTC), a column a line."""
        until = self._until()
        first = max(until - round(self._window / self._step), 0)
        lines = self._shown()
        seconds = [source.meter.seconds(first, until) for source in self._sources]
        rest = [source.meter.counts(first, until) for source in self._sources]
        columns: list[npt.NDArray[np.float64]] = []
        for line in lines:
            counts = rest[line.source]
            if line.value is not None:
                counts = self._sources[line.source].meter.counts_of([line.value], first, until)[0]
                rest[line.source] = rest[line.source] - counts
            columns.append(counts / seconds[line.source])
        names = [self._label(line) for line in lines]
        if self._by and any(counts.any() for counts in rest):
            others = [counts / length for counts, length in zip(rest, seconds, strict=True)]
            columns.append(np.nansum(others, axis=0))
            names.append("other")
        index = pd.DatetimeIndex(pd.to_datetime(np.arange(first, until) * round(self._step * 1e9), utc=True))
        values = np.array(columns).reshape(len(columns), until - first).T
        return pd.DataFrame(values, columns=names, index=index.rename("time"))

    # --- what is counted ---

    def _open(self) -> None:
        """Make the meters anew. They begin with the oldest row kept."""
        sources = [source for spec in self._specs for source in self._sources_of(spec)]
        for source in sources:
            source.meter.update()
        self._sources = sources
        self._step = step_of(self._window)
        self._sent = None

    def _sources_of(self, spec: ViewSpec) -> list[_Source]:
        names = self._outputs_of(spec)
        if not names and not self._asked_for(spec):  # the error that says why
            return [_Source(spec, "", spec.session.meter(self._by, window=self._window))]
        return [_Source(spec, name, spec.session.meter(self._by, name, self._window)) for name in names]

    def _outputs_of(self, spec: ViewSpec) -> list[str]:
        """Return the names of the outputs that are counted: with ``by`` those that have the column."""
        if spec.output is not None:
            return [spec.output]
        outputs, asked = spec.session.outputs, self._asked_for(spec)
        return [name for name in outputs if name not in asked and (not self._by or self._by in outputs[name].names)]

    def _asked_for(self, whole: ViewSpec) -> list[str]:
        """Return the outputs of a whole session that were asked for by name, too: they are counted once."""
        if whole.output is not None:
            return []
        return [spec.output for spec in self._specs if spec.session is whole.session and spec.output is not None]

    def _find_outputs(self) -> None:
        """Count outputs that have come since, too."""
        if sum(len(self._outputs_of(spec)) for spec in self._specs) <= len(self._sources):
            return
        for spec in self._specs:
            known = {source.output for source in self._sources if source.spec is spec}
            for name in self._outputs_of(spec):
                if name not in known:
                    self._sources.append(_Source(spec, name, spec.session.meter(self._by, name, self._window)))

    def _columns(self) -> list[str]:
        names = [name for spec in self._specs for output in _outputs(spec) for name in output.names]
        return [name for name in dict.fromkeys(names) if name != "time"][:_MAX_COLUMNS]

    # --- what is shown ---

    def _shown(self) -> list[_Line]:
        """Return the lines: sources, or the most frequent values of all; and give each a number for its colour."""
        if not self._by:
            lines = [_Line(number, None) for number in range(len(self._sources))]
        else:
            until = self._until()
            first = until - round(self._window / self._step)
            found: dict[_Line, int] = {}
            for number, source in enumerate(self._sources):
                top = source.meter.top(self._top, first, until)
                found.update({_Line(number, value): count for value, count in top.items()})
            lines = sorted(found, key=lambda line: -found[line])[: self._top]
        self._slots = {line: slot for line, slot in self._slots.items() if line in set(lines)}
        taken = set(self._slots.values())
        free = (slot for slot in range(len(lines) + len(taken)) if slot not in taken)
        for line in lines:
            if line not in self._slots:
                self._slots[line] = next(free)
        return sorted(lines, key=self._slots.__getitem__)

    def _label(self, line: _Line) -> str:
        spec, output, _ = self._sources[line.source]
        sessions = len({id(each.session) for each in self._specs}) > 1
        of_session = [source for source in self._sources if source.spec.session is spec.session]
        by_output = len(of_session) > 1 or (spec.output is not None and len(self._specs) > 1)
        names = [spec.session.name] if sessions or not (by_output or line.value is not None) else []
        names += [output] if by_output else []
        names += [line.value or "(empty)"] if line.value is not None else []
        text = printable(": ".join(names))
        return text if len(text) <= _LABEL else text[: _LABEL - 1] + "\N{HORIZONTAL ELLIPSIS}"

    def _since(self, line: _Line) -> int:
        """Return the first interval in which a value was seen."""
        meter = self._sources[line.source].meter
        seen = np.flatnonzero(meter.counts_of([line.value or ""], meter.oldest, meter.until)[0])
        return meter.oldest + int(seen[0]) if len(seen) else meter.until

    def _until(self) -> int:
        until = 0
        for source in self._sources:
            until = max(until, source.meter.until)
        return until

    def _content(self) -> _Content:
        lines = self._shown()
        state: list[dict[str, object]] = []
        for meter in (source.meter for source in self._sources):
            facts = {"oldest": meter.first, "until": meter.until if meter.life.ended else None, "gaps": meter.gaps}
            counts = {"outside": meter.outside, "rounded": meter.rounded}
            state.append({**facts, **counts, "parts": list(meter.parts().items())})
        return _Content(self._until(), state, lines, [self._label(line) for line in lines])

    def _is_quiet(self, before: int) -> bool:
        """Return whether the window has no event, and had none when it ended with interval ``before``."""
        first = before - round(self._window / self._step)
        return not any(source.meter.counts(first, self._until()).any() for source in self._sources)

    def _part(self, first: int, header: dict[str, Any], now: _Content) -> Part:
        """Return the intervals from ``first`` on; of values that had no line, those from their first event on."""
        before, self._sent = self._sent, now
        for source in self._sources:
            source.meter.changed = None
        starts = {line: first for line in now.lines if line.value is not None}
        new = [line for line in starts if before is None or line not in before.lines]
        starts |= {line: self._since(line) for line in new}
        header |= {"first": first, "until": now.until}
        if before is None or now.state != before.state:
            header["sources"] = now.state
        if before is None or now[2:] != before[2:]:
            header["lines"] = [
                {"label": label, "slot": self._slots[line], "source": line.source, "from": starts.get(line)}
                | ({"new": True} if line in new else {})
                for line, label in zip(now.lines, now.labels, strict=True)
            ]
        counts = [source.meter.counts(first, now.until) for source in self._sources]
        for line, start in starts.items():
            counts.append(self._sources[line.source].meter.counts_of([line.value or ""], start, now.until)[0])
        return Part(header, (np.concatenate(counts).clip(0, 0xFFFFFFFF).astype("<u4").tobytes(),))


def checked(window: Any, by: Any, top: Any) -> tuple[float, str | None, int]:
    """Return choices that can be made. ValueError for others."""
    number = isinstance(window, (int, float)) and not isinstance(window, bool)
    if not number or not MIN_WINDOW <= window <= MAX_WINDOW:
        allowed = f"{MIN_WINDOW:.0f} to {MAX_WINDOW:.0f} seconds"
        raise ProgramError(f"a window is {allowed} long, not {printable(str(window))[:40]}")
    if by is not None and not isinstance(by, str):
        raise ProgramError("by is a column's name")
    if not isinstance(top, int) or isinstance(top, bool) or not 1 <= top <= MAX_TOP:
        raise ProgramError(f"top is a number from 1 to {MAX_TOP}, not {printable(str(top))[:40]}")
    return float(window), by or None, top


def _distinct(specs: Sequence[ViewSpec]) -> list[ViewSpec]:
    """Return the first spec of each session and output."""
    found: dict[tuple[int, str | None], ViewSpec] = {}
    for spec in specs:
        found.setdefault((id(spec.session), spec.output), spec)
    return list(found.values())


def _named(spec: ViewSpec) -> str:
    return spec.session.name if spec.output is None else f"{spec.session.name}: {spec.output}"


def _outputs(spec: ViewSpec) -> list[Any]:
    outputs = spec.session.outputs
    return list(outputs.values()) if spec.output is None else [outputs[spec.output]]
