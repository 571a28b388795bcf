"""The histograms of bcc's tools, recognised by the line above them."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pandas as pd

from bpfnb.imports.imported import Format, Imported
from bpfnb.imports.lines import Lines
from bpfnb.results.buckets import labels_of, writer

__all__ = ["FORMAT"]

_TOOLS = (
    ("Tracing run queue latency", "runqlat"),
    ("Tracing on-CPU time", "cpudist"),
    ("Tracing off-CPU time", "cpudist"),
    ("Tracing block device I/O", "biolatency"),
    ("Sampling run queue length", "runqlen"),
    ("Tracing hard irq event time", "hardirqs"),
    ("Tracing soft irq event time", "softirqs"),
)
_FS = re.compile(r"Tracing \w+ operation latency")
_HEADING = re.compile(r"\s*(?P<unit>\w+)\s*: count\s+distribution\s*")
_BUCKET = re.compile(r"\s*(?P<low>\d{1,9})(?:\s*->\s*(?P<high>\d{1,9}))?\s*: (?P<count>\d{1,18})\s*\|[* +]*\|\s*")
_GROUP = re.compile(r"\s*(?:Bucket )?(?P<key>\w+) = (?P<value>.*\S)\s*")
_STAMP = re.compile(r"\[?\d\d:\d\d:\d\d\]?:?")
_UNITS = {"nsecs": 1, "usecs": 1_000, "msecs": 1_000_000, "secs": 1_000_000_000}
_HEAD = 400


def _tool(line: str) -> str:
    if _FS.match(line):
        return "fsdist"
    return next((name for begins, name in _TOOLS if line.startswith(begins)), "")


def _fits(lines: Lines) -> bool:
    head = lines.text[:_HEAD]
    return any(map(_tool, head)) and any(_HEADING.fullmatch(line) for line in head)


def _read(lines: Lines) -> Imported:
    """Columns: the group's (``pid``, ``disk``, ``operation`` ...), where there are groups; ``print``, where histograms
    were printed several times; low, high (timedelta64 where the heading is a time, else float64), label, count."""
    tool = next(filter(None, map(_tool, lines.text)))
    rows: list[dict[str, Any]] = []
    unit, at = "", -1
    group: dict[str, Any] = {}
    seen: set[str] = set()
    for number, line in enumerate(lines.text):
        if found := _HEADING.fullmatch(line):
            unit = found["unit"]
            if at < 0 or str(group) in seen:  # the same group again: another print
                at, seen = at + 1, set()
            seen.add(str(group))
        elif unit and (found := _BUCKET.fullmatch(line)):
            low = int(found["low"])
            high = int(found["high"] or low) + 1
            rows.append({"print": at, **group, "low": low, "high": high, "count": int(found["count"])})
            lines.taken += 1
        elif found := _GROUP.fullmatch(line):
            group = {found["key"]: _plain(found["value"])}
        elif not _tool(line) and not _STAMP.fullmatch(line.strip()):
            lines.pass_over(number)
    frame = pd.DataFrame(rows, columns=None if rows else ["low", "high", "count"])
    if "print" in frame and at == 0:
        frame = frame.drop(columns="print")
    return Imported.made(lines, tool, {tool: _labelled(frame, _UNITS.get(unit))}, {})


def _labelled(frame: pd.DataFrame, ns: int | None) -> pd.DataFrame:
    low: pd.Series[Any] = frame["low"].astype(np.float64) * (ns or 1)
    high: pd.Series[Any] = frame["high"].astype(np.float64) * (ns or 1)
    kind = writer("log2", "ns" if ns else None)
    label = labels_of(low.tolist(), high.tolist(), kind, not ns)
    if ns:
        low, high = (pd.to_timedelta(edge.astype(np.int64), unit="ns") for edge in (low, high))
    frame = frame.assign(low=low, high=high, label=pd.array(label, dtype="str"))
    frame["count"] = frame["count"].astype(np.int64)
    others = [name for name in frame.columns if name not in ("low", "high", "label", "count")]
    return frame[[*others, "low", "high", "label", "count"]]


def _plain(text: str) -> str:
    """Return a group's value without the quotes of Python's repr: b'sda', 'read'."""
    return re.sub(r"^b?(['\"])(.*)\1$", r"\2", text)


FORMAT = Format("a histogram of bcc's", _fits, _read)
