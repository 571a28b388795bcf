"""The largest entries: of a hash, of a table of counts, or of a column the commonest values."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from bpfnb.errors import BpfnbError, ProgramError, escape, printable
from bpfnb.results.distributions.bars import bar_html, number_bars
from bpfnb.results.distributions.pace import Pace
from bpfnb.views import html
from bpfnb.views.live.counts.distribution import checked_window, one_line
from bpfnb.views.live.counts.largest import Found, Question, source_of
from bpfnb.views.live.view import Part, Static, ViewKind, ViewSpec

__all__ = ["TopView"]

_MAX_ROWS = 100
_MAX_COLUMNS = 12
_TEXT = 200  # characters of a cell
_FILTER = 100  # characters
_EXACT = 1 << 53  # whole numbers up to here are exact in JavaScript


class _Shown(NamedTuple):
    """What is on the page. ``columns``: names and kinds: "text", "name" (a number that counts nothing), "number",
    "ns", "bytes". ``rows``: a key that stays the same for the same entry, then the cells."""

    columns: list[tuple[str, str]]
    rows: list[list[Any]]
    entries: int
    note: str


class TopView:
    """A table of the largest, sorted at most once a second. A large map is read less often."""

    kind: ViewKind = "top"

    def __init__(self, specs: Sequence[ViewSpec]) -> None:
        """KeyError for a map or output that is not there, ValueError and ProgramError for what has no numbers."""
        self._spec = specs[0]
        checked_window(self._spec.window)
        self._pace = Pace()
        self._pace_began()
        self._source = source_of(self._spec)
        self._question = Question(self._source.numbers[0], False, "", _checked_n(self._spec.top))
        self._note = ""
        self._found = self._source.find(self._question)
        self._pace_ended()
        self._sent: _Shown | None = None
        self._shown = self._show()

    @property
    def title(self) -> str:
        return f"{self._spec.session.name}: {self._source.name}"

    def update(self, last: bool) -> None:
        if not last and not self._pace.due(time.time()):
            return
        self._pace_began()
        try:
            self._source.update()
            self._note = ""
            self._find(last)
        except (BpfnbError, KeyError, ValueError) as error:
            self._note = one_line(error)
        self._pace_ended()
        self._shown = self._show()

    def whole(self) -> Part:
        self._sent = self._shown
        question = self._question
        header = {
            "sort": question.sort, "rate": question.rate, "filter": question.containing, "n": question.n,
            "numbers": list(self._source.numbers), "columns": self._shown.columns,
        }  # fmt: skip
        return Part({**header, **self._rows()})

    def delta(self) -> Part | None:
        shown, before = self._shown, self._sent
        if shown == before:
            return None
        self._sent = shown
        same = before is not None and before.columns == shown.columns
        return Part({**({} if same else {"columns": shown.columns}), **self._rows()})

    def choose(self, **choices: Any) -> None:
        question = self._question
        for name, value in choices.items():
            if name == "n":
                question = question._replace(n=_checked_n(value))
            elif name == "sort" and value in list(self._source.numbers):
                question = question._replace(sort=value)
            elif name == "rate" and isinstance(value, bool):
                question = question._replace(rate=value)
            elif name == "filter" and isinstance(value, str) and len(value) <= _FILTER:
                question = question._replace(containing=value)
            else:
                raise ProgramError(f"{name!r:.40} cannot be {value!r:.60} here")
        self._question = question
        self._find(last=False)
        self._shown = self._show()

    def static(self) -> Static:
        frame, rates = self._found.frame.iloc[:, :_MAX_COLUMNS], self._found.seconds > 0
        heads = [*map(str, frame.columns), "a second" if rates else ""]
        counts = self._source.numbers
        cells = [[_text(value, name in counts) for value in frame[name].tolist()] for name in frame.columns]
        bars = number_bars(_floats(frame[self._question.sort])) if len(frame) else []
        numbers = [at for at, name in enumerate(frame.columns) if frame[name].dtype.kind in "iufm"]
        rows = [[*map(escape, row), bar_html(bar)] for *row, bar in zip(*cells, bars, strict=True)]
        lines = "\n".join("  ".join(row) for row in zip(*cells, strict=True))
        text = f"{printable(self.title)}: the largest {len(frame)} of {self._found.entries:,}\n{lines}"
        return Static(text, html.table([*map(escape, map(printable, heads))], rows, numbers=numbers))

    # --- inside ---

    def _pace_began(self) -> None:
        self._began = time.time(), time.monotonic()

    def _pace_ended(self) -> None:
        now, began = self._began
        self._pace.took(now, time.monotonic() - began)

    def _find(self, last: bool) -> None:
        """Find the largest. Where a session has ended nothing is a second any more: totals are shown."""
        over = last or self._spec.session.state not in ("starting", "running")
        self._found = self._source.find(self._question._replace(rate=self._question.rate and not over))

    def _rows(self) -> dict[str, Any]:
        shown = self._shown
        return {"rows": shown.rows, "entries": shown.entries, "note": shown.note, "period": self._pace.period}

    def _show(self) -> _Shown:
        found = self._found
        frame = found.frame.iloc[:, :_MAX_COLUMNS]
        kinds = [self._kind(frame[name]) for name in frame.columns]
        cells = [self._cells(frame[name], kind, found) for name, kind in zip(frame.columns, kinds, strict=True)]
        keys = [at for at, kind in enumerate(kinds) if kind in ("text", "name")]
        whole = [found.frame.iloc[:, at].tolist() for at in keys]
        rows = [
            [_key([values[row] for values in whole]), *(column[row] for column in cells)] for row in range(len(frame))
        ]
        names = [_cut(str(name)) for name in frame.columns]
        return _Shown(list(zip(names, kinds, strict=True)), rows, found.entries, self._note)

    def _kind(self, column: pd.Series[Any]) -> str:
        name = str(column.name)
        if name not in self._source.numbers:
            return "name" if column.dtype.kind in "iufm" else "text"
        return "ns" if column.dtype.kind == "m" else str(self._source.units.get(name, "number"))

    def _cells(self, column: pd.Series[Any], kind: str, found: Found) -> list[Any]:
        if kind in ("text", "name"):
            return [_text(value) for value in column.tolist()]
        numbers = _floats(column) if found.seconds or column.dtype.kind in "mf" else column.to_numpy()
        per = found.seconds or 1.0
        return [_number(number / per if found.seconds else number) for number in numbers.tolist()]


def _floats(column: pd.Series[Any]) -> Any:
    if column.dtype.kind == "m":
        return pd.TimedeltaIndex(column).as_unit("ns").asi8.astype(np.float64)
    return column.to_numpy(np.float64, na_value=math.nan)


def _number(value: float) -> float | str | None:
    """Return a number as JSON holds it: None for what is none, text for what JavaScript would round."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, int) and abs(value) > _EXACT:
        return f"{value:,}"
    return round(value, 3) if isinstance(value, float) else value


def _text(value: Any, counts: bool = False) -> str:
    if value is None or value is pd.NA or value is pd.NaT or (isinstance(value, float) and math.isnan(value)):
        return ""
    if counts and isinstance(value, int):
        return f"{value:,}"
    return _cut(value.hex() if isinstance(value, bytes) else str(value))


def _cut(text: str) -> str:
    text = printable(text[: _TEXT + 1])
    return text if len(text) <= _TEXT else text[: _TEXT - 1] + "\N{HORIZONTAL ELLIPSIS}"


def _key(values: Sequence[Any]) -> str:
    """Return what tells an entry apart on the page: short, whatever is in it."""
    text = "\0".join(map(str, values)).encode(errors="surrogatepass")
    return hashlib.blake2b(text, digest_size=8).hexdigest()


def _checked_n(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 1_000:
        raise ProgramError(f"top is a whole number from 1 to 1,000, not {value!r:.40}")
    return min(value, _MAX_ROWS)
