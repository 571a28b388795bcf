"""Histograms and quantiles with bars, as text and as HTML: what a frame of buckets looks like.

    for title, rows in sections(frame): ...
    bars_text(frame), bars_html(frame)

The frames are those of ``Map.hist``, ``df.bpf.hist``, of sessions of hist and latency, and of their ``quantiles``.
Names of groups come from other processes: they are escaped.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from bpfnb.errors import ProgramError, escape, printable
from bpfnb.results.buckets import HistKind
from bpfnb.results.distributions.labels import labels_of
from bpfnb.results.distributions.scales import filled

__all__ = ["WIDTH", "Bars", "bar_html", "bars_html", "bars_text", "is_histogram", "number_bars"]

WIDTH = 40  # characters of the longest bar
_MAX_SECTIONS = 8
_MAX_ROWS = 80  # of a section
_MAX_TITLE = 80
_EIGHTHS = " \N{LEFT ONE EIGHTH BLOCK}\N{LEFT ONE QUARTER BLOCK}\N{LEFT THREE EIGHTHS BLOCK}\N{LEFT HALF BLOCK}"
_EIGHTHS += "\N{LEFT FIVE EIGHTHS BLOCK}\N{LEFT THREE QUARTERS BLOCK}\N{LEFT SEVEN EIGHTHS BLOCK}"
_FULL = "\N{FULL BLOCK}"

_CELL = "padding:0 14px 0 0;border:none;background:transparent;text-align:{};white-space:nowrap"
_BAR = "color:var(--jp-brand-color1,#3b8eea);font-family:monospace;font-size:12px;line-height:1.2;letter-spacing:0"
_MUTED = "opacity:.68;font-weight:normal"


class Section(NamedTuple):
    """One histogram. ``counts``: of the buckets with these labels; or ``spans``: where in 0 to 1 each bar is."""

    title: str
    labels: list[str]
    counts: list[int]
    spans: list[tuple[float, float]]


class Bars:
    """A frame of buckets with bars: ``print(df.bpf.bars())``; in a notebook the last line of a cell."""

    def __init__(self, frame: pd.DataFrame) -> None:
        """ValueError for a frame without buckets."""
        if not is_histogram(frame):
            raise ProgramError(
                "no buckets here: bars are of a table with low, high, label and counts, such as hist() makes"
            )
        self._frame = frame

    def __repr__(self) -> str:
        return bars_text(self._frame)

    def _repr_html_(self) -> str:
        return bars_html(self._frame)


def is_histogram(frame: pd.DataFrame) -> bool:
    """Return whether a frame has buckets, and counts of them or quantiles in them."""
    names = list(frame.columns)
    if not {"low", "high", "label"} <= set(names) or len(set(names)) < len(names):
        return False
    if "quantile" in names:
        return True
    counts = names[names.index("label") + 1 :]
    return bool(counts) and all(frame[name].dtype.kind in "iu" for name in counts)


def bars_text(frame: pd.DataFrame) -> str:
    """Write a frame of buckets as bcc and bpftrace do: a line a bucket, with its count and a bar."""
    parts, left = _sections(frame)
    blocks = ["\n".join(_lines(section)) for section in parts]
    if not blocks:
        blocks = ["(no values)"]
    return "\n\n".join([*blocks, *([f"... and {left:,} more"] if left else [])])


def bars_html(frame: pd.DataFrame) -> str:
    """Write a frame of buckets as a table with bars, for a notebook. The bars are characters: they need no style."""
    parts, left = _sections(frame)
    tables = "".join(_table(section) for section in parts) or f'<div style="{_MUTED}">no values</div>'
    more = f'<div style="{_MUTED}">... and {left:,} more</div>' if left else ""
    return f"<div>{tables}{more}</div>"


def bar_html(bar: str) -> str:
    """Write a bar of characters in the colour of all bars, for a table's cell."""
    return f'<span style="{_BAR};white-space:nowrap">{bar}</span>'


def number_bars(numbers: npt.NDArray[Any]) -> list[str]:
    """Return a bar of characters for each number, the greatest WIDTH long; none for NaN and less than nothing, and a
    whole one for what has no end."""
    known = [float(number) for number in numbers]
    most = max((number for number in known if math.isfinite(number)), default=0.0)
    return [_blocks(min(number / most if most > 0 else math.inf, 1.0) if number > 0 else 0.0) for number in known]


# --- sections -----------------------------------------------------------------------------------------------------


def _sections(frame: pd.DataFrame) -> tuple[list[Section], int]:
    """Return the histograms to show, the largest first, and how many there are more."""
    if "quantile" in frame.columns:
        return _quantiles(frame)
    names = list(frame.columns)
    by, counts = names[: names.index("low")], names[names.index("label") + 1 :]
    if by:
        sums = frame.groupby(by, observed=True, sort=False, dropna=False)[counts[0]].sum()
        largest = sums.sort_values(ascending=False, kind="stable").index[:_MAX_SECTIONS]
        owners = frame.groupby(by, observed=True, sort=False, dropna=False)
        shown = [_section(_title(by, key), _of(owners, key, len(by)), counts[0]) for key in largest]
        return shown, len(sums) - len(shown)
    totals = [int(frame[name].sum()) for name in counts]
    order = np.argsort(-np.array(totals, np.float64), kind="stable").tolist()[:_MAX_SECTIONS]
    wide = [name for name in counts if name != "count"] or len(counts) > 1
    shown = [_section(_cut(counts[at]) if wide else "", frame, counts[at]) for at in order] if len(frame) else []
    return shown, len(counts) - len(order)


def _of(owners: Any, key: Any, columns: int) -> pd.DataFrame:
    group: pd.DataFrame = owners.get_group(key if isinstance(key, tuple) or columns > 1 else (key,))
    return group


def _title(by: list[str], key: Any) -> str:
    values = key if isinstance(key, tuple) else (key,)
    return ", ".join(f"{name} = {_cut(value)}" for name, value in zip(by, values, strict=True))


def _cut(value: Any) -> str:
    text = printable(", ".join(map(str, value)) if isinstance(value, tuple) else str(value))
    return text if len(text) <= _MAX_TITLE else text[: _MAX_TITLE - 1] + "\N{HORIZONTAL ELLIPSIS}"


def _section(title: str, frame: pd.DataFrame, counts: str) -> Section:
    """Return one histogram, with the buckets that the frame leaves out because nothing is in them."""
    frame = frame.sort_values("low", kind="stable")
    unit = "ns" if frame["low"].dtype.kind == "m" else str(frame.attrs.get("unit") or "")
    low, high = (_numbers(frame[name]) for name in ("low", "high"))
    numbers, labels = frame[counts].tolist(), [printable(str(label)) for label in frame["label"]]
    if (low[1:] == high[:-1]).all() or (low[1:] < high[:-1]).any():
        return Section(title, labels, numbers, [])
    lows, highs, places = filled(low, high, _kind(low, high))
    written = labels_of(lows, highs, unit, _kind(low, high))
    of = places.tolist()
    return Section(
        title,
        [labels[at] if at >= 0 else written[i] for i, at in enumerate(of)],
        [numbers[at] if at >= 0 else 0 for at in of],
        [],
    )


def _numbers(column: pd.Series[Any]) -> npt.NDArray[np.float64]:
    if column.dtype.kind == "m":
        return pd.TimedeltaIndex(column).as_unit("ns").asi8.astype(np.float64)
    return column.to_numpy(np.float64)


def _kind(low: npt.NDArray[np.float64], high: npt.NDArray[np.float64]) -> HistKind:
    inside = (low > 1) & np.isfinite(high)
    return "log2" if np.all(high[inside] == 2 * low[inside]) else "linear"


def _quantiles(frame: pd.DataFrame) -> tuple[list[Section], int]:
    """Return quantiles: a bar from where the bucket begins to where it ends, all on one axis of powers of two."""
    by = list(frame.columns)[: list(frame.columns).index("quantile")]
    low, high = (_places(_numbers(frame[name])) for name in ("low", "high"))
    least, most = min(low, default=0.0), max(high, default=1.0)
    width = most - least or 1.0
    spans = [((a - least) / width, (b - least) / width) for a, b in zip(low, high, strict=True)]
    labels = [printable(str(label)) for label in frame["label"]]
    shares = [f"p{share * 100:g}" for share in frame["quantile"]]
    rows = list(zip(*(frame[name].tolist() for name in by), strict=True)) if by else [()] * len(frame)
    found: dict[Any, list[int]] = {}
    for at, key in enumerate(rows):
        found.setdefault(tuple(map(str, key)), []).append(at)
    shown = [
        Section(
            _title(by, rows[places[0]]) if by else "",
            [f"{shares[at]} {labels[at]}" for at in places],
            [],
            [spans[at] for at in places],
        )
        for places in list(found.values())[:_MAX_SECTIONS]
    ]
    return shown, len(found) - len(shown)


def _places(edges: npt.NDArray[np.float64]) -> list[float]:
    return [math.log2(edge) if 1 <= edge < math.inf else 0.0 if edge < 1 else 64.0 for edge in edges.tolist()]


# --- text ---------------------------------------------------------------------------------------------------------


def _lines(section: Section) -> Iterator[str]:
    if section.title:
        yield section.title
    first = max((len(label) for label in section.labels), default=0)
    numbers = [f"{count:,}" for count in section.counts] or [""] * len(section.labels)
    second = max((len(number) for number in numbers), default=0)
    for label, number, bar in _shown(zip(section.labels, numbers, _stars(section), strict=True)):
        yield f"{label:>{first}} {number:>{second}} |{bar:<{WIDTH}}|"
    if len(section.labels) > _MAX_ROWS:
        yield f"... and {len(section.labels) - _MAX_ROWS:,} more buckets"


def _shown(rows: Iterator[tuple[str, str, str]]) -> Iterator[tuple[str, str, str]]:
    for _, row in zip(range(_MAX_ROWS), rows, strict=False):
        yield row


def _stars(section: Section) -> list[str]:
    if section.spans:
        ends = [(int(begin * WIDTH), max(int(end * WIDTH), int(begin * WIDTH) + 1)) for begin, end in section.spans]
        return [(" " * min(begin, WIDTH - 1) + "*" * (end - begin))[:WIDTH] for begin, end in ends]
    most = max(section.counts, default=0)
    return ["*" * (WIDTH * max(count, 0) // most if most > 0 else 0) for count in section.counts]


# --- HTML ---------------------------------------------------------------------------------------------------------


def _table(section: Section) -> str:
    title = f"<div><b>{escape(section.title)}</b></div>" if section.title else ""
    numbers = [f"{count:,}" for count in section.counts] or [""] * len(section.labels)
    rows = zip(section.labels, numbers, _html_bars(section), strict=True)
    cells = "".join(
        f'<tr style="background:transparent"><td style="{_CELL.format("right")}">{escape(label)}</td>'
        f'<td style="{_CELL.format("right")};font-variant-numeric:tabular-nums">{number}</td>'
        f'<td style="{_CELL.format("left")};{_BAR}">{bar}</td></tr>'
        for label, number, bar in _shown(rows)
    )
    left = len(section.labels) - _MAX_ROWS
    more = f'<div style="{_MUTED}">... and {left:,} more buckets</div>' if left > 0 else ""
    return f'{title}<table style="border:none;margin:0 0 8px;border-collapse:collapse">{cells}</table>{more}'


def _html_bars(section: Section) -> list[str]:
    if section.spans:
        return [bar.replace(" ", "&nbsp;").replace("*", _FULL) for bar in _stars(section)]
    return number_bars(np.array(section.counts, object))


def _blocks(share: float) -> str:
    eighths = int(share * WIDTH * 8 + 1e-9)
    return (_FULL * (eighths // 8) + _EIGHTHS[eighths % 8]).rstrip()
