"""Sessions whose events are made by a test, for views: no tracer, no kernel."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd

from bpfnb.protocol.messages import ProbeInfo
from bpfnb.results.output import Arrivals, Position
from bpfnb.results.rates import Life, RateMeter
from bpfnb.results.snapshot import Snapshot

__all__ = ["HOSTILE", "FakeSession", "eventually", "snapshot"]

HOSTILE = "<script>alert('1')</script>\"&amp;\x1b[2J\u202e\udc80\n$x_$\\frac{"


class FakeSession:
    """A session whose events are made by the test."""

    def __init__(self, name: str = "clones") -> None:
        self.name, self.state, self.lost = name, "running", 0
        self.broken: Exception | None = None
        self.stopped_on: list[str] = []
        self.presentation = None
        self.outputs = {"printk": SimpleNamespace(names=("time", "comm"))}
        self.maps: dict[str, Any] = {}
        self._rows: list[tuple[int, str]] = []

    def event(self, *comms: str, ago: float = 0.0) -> None:
        """An event a name, so many seconds ago."""
        self._rows += [(int((time.time() - ago) * 1e9), comm) for comm in comms]

    @property
    def df(self) -> pd.DataFrame:
        return pd.DataFrame({"time": pd.to_datetime([t for t, _ in self._rows], utc=True)})

    def meter(self, by: str | None = None, output: str | None = None, window: float = 60.0) -> RateMeter:
        if by not in (None, "comm"):
            raise ValueError(f"no column {by!r}")
        return RateMeter(self._since, by, window, life=self._life)

    def snapshot(self) -> Snapshot:
        return snapshot(name=self.name, state=self.state, rows=len(self._rows), lost=self.lost)

    def stop(self) -> None:
        self.stopped_on.append(threading.current_thread().name)
        self.state = "stopped"

    def _since(self, position: Position, by: str | None) -> Arrivals:
        if self.broken:
            raise self.broken
        rows = list(self._rows)
        new = rows[position.row :]
        times = np.array([t for t, _ in new], np.int64)
        return Arrivals(Position(len(rows)), times, pd.Categorical([comm for _, comm in new]) if by else None)

    def _life(self) -> Life:
        ended = self.state != "running"
        newest = max((t for t, _ in self._rows), default=time.time_ns())
        return Life(0, newest + 1 if ended else time.time_ns(), ended)


def snapshot(**changes: Any) -> Snapshot:
    probe = ProbeInfo("syscall:clone", "tracepoint:syscalls:sys_enter_clone", "tracepoint", "no kprobes", "hello")
    plain = {
        "name": "clones", "state": "running", "rows": 12, "lost": 0, "dropped": 0, "seconds": 4.0, "probes": (probe,),
        "outputs": (("printk", 12, 0),), "reason": "",
    }  # fmt: skip
    return Snapshot(**{**plain, **changes})


def eventually(happened: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 10
    while not happened():
        assert time.monotonic() < deadline, f"not within ten seconds: {what}"
        time.sleep(0.02)
