"""A tool's rows as text: bcc's columns, histograms, stacks, or JSON. Names of others are shown by ``printable``."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pandas as pd

from bpfnb.errors import printable
from bpfnb.tools.tool import Column

__all__ = ["Writer", "histogram_lines", "json_lines", "stack_lines", "table_writer"]

Writer = Callable[[pd.DataFrame], Iterator[str]]

_MISSING = "-"
_BAR = 40  # characters of a histogram's longest bar, as bcc has it
_BUCKET = ("low", "high", "label", "count")


# --- tables -------------------------------------------------------------------------------------------------------


def table_writer(columns: Sequence[Column], like: pd.DataFrame) -> tuple[str, Writer]:
    """Return the line of headings, and what writes rows under it. ``like``: a frame with the same dtypes. Numbers are
    aligned to the right, all else to the left; the last column is as wide as it is."""
    shown = [column for column in columns if column.heading and column.name in like]
    right = [_is_number(like[column.name]) for column in shown]

    def line(texts: Sequence[str]) -> str:
        padded = [
            text.rjust(column.width) if aligned else text.ljust(column.width)
            for text, column, aligned in zip(texts, shown, right, strict=True)
        ]
        return " ".join(padded).rstrip()

    def write(frame: pd.DataFrame) -> Iterator[str]:
        for row in zip(*(_texts(frame[column.name], column.show) for column in shown), strict=True):
            yield line(row)

    return line([column.heading for column in shown]), write


def _texts(values: pd.Series[Any], show: Callable[[Any], str]) -> list[str]:
    return [_MISSING if _is_missing(value) else printable(show(value)) for value in values.tolist()]


def _is_number(values: pd.Series[Any]) -> bool:
    return values.dtype.kind in "iufm"


def _is_missing(value: Any) -> bool:
    return value is None or value is pd.NA or value is pd.NaT or (isinstance(value, float) and math.isnan(value))


# --- histograms and stacks ----------------------------------------------------------------------------------------


def histogram_lines(columns: Sequence[Column], frame: pd.DataFrame) -> Iterator[str]:
    """Write a histogram in long form (low, high, label, count) as bcc's tools do; one for each value of its other
    columns."""
    by = [column for column in columns if column.name in frame and column.name not in _BUCKET]
    heading = next(column.heading for column in columns if column.name == "label")
    groups = frame.groupby([column.name for column in by], observed=True, sort=True) if by else [((), frame)]
    for values, group in groups:
        if by:
            names = (f"{c.heading or c.name} = {printable(c.show(v))}" for c, v in zip(by, values, strict=True))
            yield ", ".join(names)
        yield from _histogram(heading, group)
        yield ""


def _histogram(heading: str, group: pd.DataFrame) -> Iterator[str]:
    counts = group["count"].tolist()
    yield f"{heading:>24} : {'count':<8} distribution"
    for label, count in zip(group["label"].tolist(), counts, strict=True):
        bar = "*" * (_BAR * count // max(*counts, 1))
        yield f"{label:>24} : {count:<8} |{bar:<{_BAR}}|"


def stack_lines(columns: Sequence[Column], frame: pd.DataFrame) -> Iterator[str]:
    """Write stacks as bcc's tools do: a frame a line, the innermost first, then the other columns."""
    others = [column for column in columns if column.heading and column.name in frame and column.name != "stack"]
    texts = [_texts(frame[column.name], column.show) for column in others]
    for number, stack in enumerate(frame["stack"].tolist()):
        yield from (f"    {printable(name)}" for name in reversed(stack.split(";")))
        yield "    -  " + "  ".join(values[number] for values in texts)
        yield ""


# --- JSON ---------------------------------------------------------------------------------------------------------


def json_lines(frame: pd.DataFrame) -> Iterator[str]:
    """Write a JSON object a row: times in ISO 8601 with nanoseconds, durations in nanoseconds, bytes as hexadecimal
    digits, all numbers exact."""
    names = [str(name) for name in frame.columns]
    for row in zip(*(frame.iloc[:, at].tolist() for at in range(len(names))), strict=True):
        yield json.dumps(dict(zip(names, map(_plain, row), strict=True)))


def _plain(value: Any) -> Any:
    if _is_missing(value) or (isinstance(value, float) and math.isinf(value)):
        return None
    if isinstance(value, pd.Timestamp):
        return value.isoformat(timespec="nanoseconds")
    if isinstance(value, pd.Timedelta):
        return value.value
    return value.hex() if isinstance(value, bytes) else value
