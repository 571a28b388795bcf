"""Rows of a DataFrame as they read well: the newest first, times short, text to the left, numbers to the right.

As HTML a table is sorted and searched on the page, by a script of 4 KB that goes with it: no server, no kernel, no
library. (itables, which does far more, puts 726 KB into a notebook to do without the network.) Where scripts do not
run, as in a notebook that is not trusted, the first rows remain.

Names and texts are somebody else's: they are escaped here, and set as text there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import numpy as np
import pandas as pd
from msgspec import Struct

from bpfnb.errors import ProgramError, escape, printable
from bpfnb.results.buckets import duration

__all__ = ["BUDGET", "ROWS", "RowsTable", "Sample", "require_limits", "sample"]

ROWS = 1_000
BUDGET = 256 << 10  # bytes of a table in a notebook's file
_PAGE = 20  # rows shown at a time
_TEXT_ROWS = 10
_MAX_TEXT = 300  # characters of a value
_MAX_COLUMNS = 60
_LONG = 60  # characters: beyond, a cell is cut where the page has no room
_CELL = "padding:1px 16px 1px 0;border:none;white-space:nowrap;text-align:"
_WIDE = ";max-width:40em;overflow:hidden;text-overflow:ellipsis"
_TR = "background:transparent;border:none"
_MUTED = "opacity:.68"


class _Column(NamedTuple):
    """``texts``: the different values as text, in the order of the values; ``codes``: which of them each row has, -1
    where it has none; ``note``: beneath the name."""

    name: str
    texts: list[str]
    codes: list[int]
    right: bool
    note: str = ""


class Sample(Struct, frozen=True):
    """A few rows as texts. ``right``: which columns are aligned to the right."""

    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    right: tuple[int, ...]


def sample(frame: pd.DataFrame, rows: int) -> Sample:
    """Return the last rows of a frame, the newest first."""
    columns = _columns(frame.iloc[: -rows - 1 : -1, :_MAX_COLUMNS])
    texts = zip(
        *([_cut(_text(column, row), _LONG) for row in range(len(column.codes))] for column in columns), strict=True
    )
    heads = tuple(" ".join(filter(None, [column.name, column.note])) for column in columns)
    return Sample(heads, tuple(texts), tuple(i for i, column in enumerate(columns) if column.right))


def require_limits(rows: int, budget: int) -> None:
    for name, number in (("rows", rows), ("budget", budget)):
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise ProgramError(f"{name} is a whole number of 1 or more, not {number!r}")


class RowsTable:
    """Rows to look at: the last line of a cell, or print() of it. The values stay as they are: this is no DataFrame."""

    def __init__(
        self,
        frame: pd.DataFrame,
        rows: int = ROWS,
        budget: int = BUDGET,
        *,
        title: str = "",
        sorts: bool = True,
        of: int | None = None,
    ) -> None:
        """``rows``: at most so many go onto the page, the newest first where there are times; fewer if these took more
        than ``budget`` bytes, and then the table says so. ``sorts``: whether it is sorted and searched on the page.
        ``of``: how many rows there are, where the frame has not all. ValueError for a number below 1."""
        require_limits(rows, budget)
        self._title = title
        self._of = len(frame) if of is None else of
        self._hidden = max(len(frame.columns) - _MAX_COLUMNS, 0)
        self._budget = budget
        self._sorts = sorts
        kept = frame.iloc[:, :_MAX_COLUMNS]
        self._newest = isinstance(frame.dtypes.get("time"), pd.DatetimeTZDtype)
        self._frame = kept.iloc[: -rows - 1 : -1] if self._newest else kept.head(rows)

    def __repr__(self) -> str:
        frame = self._frame.head(_TEXT_ROWS)
        columns = _columns(frame)
        rows = [[_cut(text, 60) for text in row] for row in _rows(columns, len(frame))]
        heads = [column.name for column in columns]
        right = [i for i, column in enumerate(columns) if column.right]
        lines = _aligned([heads, *rows], right) if rows else ""
        return "\n".join(filter(None, [printable(self._title), lines, self._said(len(frame))]))

    def _repr_html_(self) -> str:
        """Return as many rows as the budget has room for."""
        rows = len(self._frame)
        while len(page := self._html(rows).encode()) > self._budget and rows > 1:
            rows = min(rows - 1, max(int(rows * 0.95 * self._budget / len(page)), 1))
        return page.decode()

    def _html(self, rows: int) -> str:
        columns = _columns(self._frame.head(rows))
        title = f"<div>{escape(self._title)}</div>" if self._title else ""
        said = f'<div style="{_MUTED}">{escape(self._said(rows))}</div>'
        if not columns or not rows:
            return f"<div>{title}{said}</div>"
        heads = "".join(_head(column) for column in columns)
        body = "".join(_line(columns, row) for row in range(min(rows, _PAGE)))
        table = (
            '<table style="border-collapse:collapse;border:none;margin:0 0 4px;color:inherit;font-size:12px;'
            'font-variant-numeric:tabular-nums;table-layout:auto">'
            f'<thead style="border:none"><tr style="{_TR}">{heads}</tr></thead><tbody>{body}</tbody></table>'
        )
        mark = f"bpfnb-table-{uuid4().hex[:12]}"
        script = f"<script>{_script()}({json.dumps(mark)}, {self._data(columns, rows)})</script>" if self._sorts else ""
        return f'<div id="{mark}" style="overflow-x:auto;font-size:12px">{title}{table}{said}</div>{script}'

    def _data(self, columns: list[_Column], rows: int) -> str:
        data = {"columns": [[c.texts, c.codes] for c in columns], "size": _PAGE, "total": rows}
        text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
        # What could end the script, or a line of it.
        return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")

    def _said(self, rows: int) -> str:
        """Return how many rows these are of how many, and why not all."""
        if not self._of:
            return "no rows"
        which = "the newest " if self._newest else "the first "
        all_ = f"{self._of:,} row{'' if self._of == 1 else 's'}"
        said = all_ if rows == self._of else f"{which}{rows:,} of {all_}"
        if rows < len(self._frame) and rows != _TEXT_ROWS:
            said += f": more would take over {self._budget:,} bytes of the notebook's file (budget=)"
        if self._hidden:
            said += f"; {self._hidden:,} columns are not shown"
        return said


@cache
def _script() -> str:
    text = Path(__file__).with_suffix(".js").read_text()
    lines = (line.strip() for line in text.splitlines())
    return "\n".join(line for line in lines if line and not line.startswith("//"))


def _head(column: _Column) -> str:
    note = f' <span style="{_MUTED};font-weight:normal">{escape(column.note)}</span>' if column.note else ""
    side = "right" if column.right else "left"
    return f'<th scope="col" style="{_CELL}{side};{_MUTED};font-size:11px">{escape(column.name)}{note}</th>'


def _line(columns: list[_Column], row: int) -> str:
    cells = []
    for column in columns:
        side, text = "right" if column.right else "left", _text(column, row)
        cells.append(f'<td style="{_CELL}{side}{_WIDE if len(text) > _LONG else ""}">{escape(text)}</td>')
    return f'<tr style="{_TR}">{"".join(cells)}</tr>'


def _aligned(rows: Sequence[Sequence[str]], right: Sequence[int]) -> str:
    """Write rows one under another; ``right``: the columns that are aligned to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [f"{c:>{w}}" if i in right else f"{c:<{w}}" for i, (c, w) in enumerate(zip(row, widths, strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _rows(columns: list[_Column], rows: int) -> list[list[str]]:
    return [[_text(column, row) for column in columns] for row in range(rows)]


def _text(column: _Column, row: int) -> str:
    return "-" if column.codes[row] < 0 else column.texts[column.codes[row]]


# --- values as text -----------------------------------------------------------------------------------------------


def _columns(frame: pd.DataFrame) -> list[_Column]:
    return [_column(_cut(printable(str(name)), 60), frame.iloc[:, i]) for i, name in enumerate(frame.columns)]


def _column(name: str, values: pd.Series[Any]) -> _Column:
    """Return a column's different values as text, in their own order, and which of them each row has."""
    kind = values.dtype.kind
    if isinstance(values.dtype, pd.CategoricalDtype):
        values = values.astype(object)
    note = ""
    try:
        codes, different = pd.factorize(values, sort=True)
    except TypeError:  # of no order, or not even hashable: lists, mixtures
        texts = values.map(lambda value: None if _is_missing(value) else _written(value))
        codes, different = pd.factorize(texts, sort=True)
    if kind == "M":
        texts_of, note = _times(pd.DatetimeIndex(different))
    else:
        texts_of = _DIGITS[kind](different) if kind in _DIGITS else [_written(value) for value in different.tolist()]
    return _Column(name, texts_of, codes.tolist(), kind in "iufmM", note)


def _times(moments: pd.DatetimeIndex) -> tuple[list[str], str]:
    """Return times of day, with as many digits as tell them apart, and what is the same of all: the date, the zone."""
    zone = "UTC" if moments.tz is not None else ""
    if moments.tz is not None:
        moments = moments.tz_convert("UTC")
    if not len(moments):
        return [], zone
    ns = moments.as_unit("ns").asi8
    digits = next((n for n in (0, 3, 6) if len(set((ns // 10 ** (9 - n)).tolist())) == len(ns)), 9)
    one_day = moments[0].date() == moments[-1].date()
    written = [
        f"{moment:%H:%M:%S}" + (f".{nano % 10**9:09}"[: digits + 1] if digits else "")
        for moment, nano in zip(moments, ns.tolist(), strict=True)
    ]
    if one_day:
        return written, f"{zone} {moments[0]:%Y-%m-%d}".strip()
    return [
        f"{moment:%m-%d} {text}" for moment, text in zip(moments, written, strict=True)
    ], f"{zone} {moments[0]:%Y}".strip()


def _durations(different: Any) -> list[str]:
    """Write durations in the unit that suits each, with as many digits as tell them apart."""
    ns = pd.TimedeltaIndex(different).as_unit("ns").asi8.tolist()
    return _apart(ns, lambda value, digits: f"{'-' if value < 0 else ''}{duration(abs(value), digits)}", 4)


def _floats(different: Any) -> list[str]:
    return _apart(different.tolist(), lambda value, digits: f"{value:.{digits}g}", 6)


def _apart(values: list[Any], write: Callable[[Any, int], str], least: int) -> list[str]:
    """Write numbers with as few digits as tell them apart."""
    for digits in (least, 9, 12, 17):
        texts = [write(value, digits) for value in values]
        if len(set(texts)) == len(values):
            break
    return texts


_DIGITS: dict[str, Callable[[Any], list[str]]] = {"m": _durations, "f": _floats}


def _written(value: Any) -> str:
    if isinstance(value, bytes):
        return _cut(value[:_MAX_TEXT].hex(" "), _MAX_TEXT)
    return _cut(printable(str(value)[: _MAX_TEXT + 1]), _MAX_TEXT)


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "\N{HORIZONTAL ELLIPSIS}"


def _is_missing(value: Any) -> bool:
    return value is None or value is pd.NA or value is pd.NaT or (isinstance(value, float) and np.isnan(value))
