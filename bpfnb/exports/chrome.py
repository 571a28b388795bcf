"""Events as JSON in Chrome's Trace Event Format: for chrome://tracing, Perfetto and others.

Times are microseconds with three digits behind the point, written as text is, so that no nanosecond is rounded: those
of CLOCK_MONOTONIC where that is known, else since midnight (UTC) of the first event's day.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from typing import Any

import pandas as pd

from bpfnb.exports.files import written
from bpfnb.exports.perfetto import Clocks
from bpfnb.exports.timeline import Event, Track
from bpfnb.release import version

__all__ = ["write_chrome"]

_DAY = 86_400_000_000_000
_EXACT = 1 << 53  # what a browser's numbers hold
_FIRST = '{"traceEvents": ['
_OTHERS = 1 << 30  # the numbers of tracks that are no thread's begin here


def write_chrome(
    path: str | os.PathLike[str],
    events: Iterable[Event],
    title: str,
    clocks: Clocks | None = None,
    overwrite: bool = False,
) -> int:
    """Write events; return how many."""
    count = 0
    with written(path, overwrite) as file:
        writer = _Writer(lambda text: file.write(text.encode()), title, clocks)
        for event in events:
            writer.add(event)
            count += not event.counts
        writer.end()
    return count


class _Writer:
    def __init__(self, write: Callable[[str], Any], title: str, clocks: Clocks | None) -> None:
        self._write = write
        self._title = title
        self._clock = "CLOCK_MONOTONIC" if clocks else "since origin"
        self._origin = clocks.realtime - clocks.monotonic if clocks else None
        self._lines = 0
        self._names: dict[tuple[str, int, int], str] = {}
        self._others: dict[str, int] = {}
        self._overlapping = 0

    def add(self, event: Event) -> None:
        if self._origin is None:
            self._origin = event.begin // _DAY * _DAY
        pid, tid = self._numbers(event.track)
        if event.counts:
            self._named("process_name", pid, 0, self._title if event.track.pid is None else "")
            for name, value in event.counts:
                self._line({"name": name, "ph": "C", "pid": pid, "args": {name: _exact(value)}}, ts=event.begin)
            return
        self._name(event, pid, tid)
        args = {name: _exact(value) for name, value in event.args}
        if event.stack:
            args["stack"] = event.stack
        common = {"name": event.name, "cat": self._title, "pid": pid, "tid": tid}
        if event.instant:
            self._line({**common, "ph": "i", "s": "t", "args": args}, ts=event.begin)
        elif not event.track.lane:
            self._line({**common, "ph": "X", "args": args}, ts=event.begin, dur=event.end - event.begin)
        else:  # complete events of a thread must not overlap: these stand beside
            self._overlapping += 1
            self._line({**common, "ph": "b", "id": self._overlapping, "args": args}, ts=event.begin)
            self._line({**common, "ph": "e", "id": self._overlapping}, ts=event.end)

    def end(self) -> None:
        origin = pd.Timestamp(self._origin or 0, tz="UTC").isoformat(timespec="nanoseconds")
        other = {"bpfnb": version(), "session": self._title, "clock": self._clock, "origin": origin}
        self._write("" if self._lines else _FIRST)
        self._write(f'\n], "displayTimeUnit": "ns", "otherData": {json.dumps(other)}}}\n')

    def _numbers(self, track: Track) -> tuple[int, int]:
        if track.pid is not None:
            return track.pid, track.pid if track.tid is None else track.tid
        return 0, self._others.setdefault(track.other, _OTHERS + len(self._others))

    def _name(self, event: Event, pid: int, tid: int) -> None:
        track = event.track
        if track.pid is None:
            self._named("process_name", 0, 0, self._title)
            named = f"{event.comm} ({track.other})" if event.comm and track.other.startswith("thread ") else track.other
            self._named("thread_name", 0, tid, named, once=True)
        else:
            self._named("process_name", pid, 0, event.comm if tid == pid else "", once=track.tid is None)
            self._named("thread_name", pid, tid, event.comm, once=track.tid is None)

    def _named(self, what: str, pid: int, tid: int, name: str, once: bool = False) -> None:
        """Name a process or thread, where it has no name, or has a new one."""
        known = self._names.get((what, pid, tid))
        if name and known != name and not (once and known):
            self._names[what, pid, tid] = name
            self._line({"name": what, "ph": "M", "pid": pid, "tid": tid, "args": {"name": name}})

    def _line(self, fields: dict[str, Any], **times: int) -> None:
        origin = (self._origin or 0) if "ts" in times else 0
        if "ts" in times:
            times["ts"] -= origin
        text = json.dumps(fields)
        numbers = "".join(f', "{name}": {_microseconds(value)}' for name, value in times.items())
        before = "," if self._lines else _FIRST
        self._write(f"{before}\n{text[:-1]}{numbers}}}")
        self._lines += 1


def _microseconds(ns: int) -> str:
    whole, rest = divmod(abs(ns), 1000)
    return f"{'-' if ns < 0 else ''}{whole}.{rest:03d}"


def _exact(value: Any) -> Any:
    """Return a value that a browser reads as it is: larger integers as text; what is no number as text, too."""
    if isinstance(value, float) and not float("-inf") < value < float("inf"):
        return str(value)
    return str(value) if isinstance(value, int) and abs(value) > _EXACT else value
