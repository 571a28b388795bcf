"""What the client has heard of a session: sums by host, which stay when a host has left."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from bpfnb.errors import ProgramError
from bpfnb.fleets.sums import TICKS, OutputSums
from bpfnb.interrupts import new_lock
from bpfnb.results.rates import Life, RateMeter

__all__ = ["Counts", "FleetMeter"]

Ints = npt.NDArray[np.int64]

_TICK_NS = 10**9 // TICKS
_SECONDS, _TICKS = 3600, 120 * TICKS  # how many are kept: whole seconds, and ticks
_LATE_NS = 2_500_000_000  # a host reports once a second, and dask may take its time
_FUTURE_NS = 60_000_000_000  # a host's clock may be off; further ahead than this nothing is counted


class _Ring:
    """Counts of hosts (rows) in the last intervals (columns)."""

    def __init__(self, length: int) -> None:
        self.length = length
        self.until = 0
        self._counts = np.zeros((0, length), np.int64)

    @property
    def oldest(self) -> int:
        return max(self.until - self.length, 0)

    def add(self, row: int, numbers: Ints, counts: Ints) -> None:
        if row >= len(self._counts):
            room = np.zeros((max(row + 1, 2 * len(self._counts)), self.length), np.int64)
            room[: len(self._counts)] = self._counts
            self._counts = room
        self.advance(int(numbers.max()) + 1)
        kept = numbers >= self.oldest
        np.add.at(self._counts[row], numbers[kept] % self.length, counts[kept])

    def advance(self, until: int) -> None:
        if until > self.until:
            self._counts[:, np.arange(max(self.until, until - self.length), until) % self.length] = 0
            self.until = until

    def get(self, first: int, until: int) -> Ints:
        """Return the counts from ``first`` to before ``until``, a row a host; 0 for those not kept."""
        numbers = np.arange(first, max(first, until))
        known = (numbers >= self.oldest) & (numbers < self.until)
        return np.where(known, self._counts[:, numbers % self.length], 0)


class Counts:
    """Events of an output of each host over time, on the client's clock. Any thread may call."""

    def __init__(self, now: Callable[[], int] = time.time_ns) -> None:
        self._lock = new_lock()
        self._now = now
        self._seconds, self._ticks = _Ring(_SECONDS), _Ring(_TICKS)
        self.hosts: list[str] = []
        self.total = self.outside = 0
        self.first: int | None = None  # tick
        self._meters: weakref.WeakSet[FleetMeter] = weakref.WeakSet()

    def add(self, host: str, sums: OutputSums, offset_ns: int) -> None:
        """Take what a host has counted. ``offset_ns``: its clock minus ours."""
        if not sums.ticks:
            return
        numbers = (np.array(sums.ticks, np.int64) * _TICK_NS - offset_ns + _TICK_NS // 2) // _TICK_NS
        counts = np.array(sums.counts, np.int64)
        with self._lock:
            if host not in self.hosts:
                self.hosts.append(host)
            self.total += int(counts.sum())
            possible = (numbers > 0) & (numbers <= (self._now() + _FUTURE_NS) // _TICK_NS)
            self.outside += int(counts[~possible].sum())
            numbers, counts = numbers[possible], counts[possible]
            if not len(numbers):
                return
            row, first = self.hosts.index(host), int(numbers.min())
            self._ticks.add(row, numbers, counts)
            self._seconds.add(row, numbers // TICKS, counts)
            self.first = first if self.first is None else min(first, self.first)
            for meter in self._meters:
                meter.touch(first * _TICK_NS)

    def watch(self, meter: FleetMeter) -> None:
        with self._lock:
            self._meters.add(meter)

    def get(self, step: float, first: int, until: int) -> Ints:
        """Return events in intervals of ``step`` seconds, a row a host in the order of ``hosts``."""
        ring, ticks = (self._ticks, round(step * TICKS)) if step < 1 else (self._seconds, round(step))
        with self._lock:
            counts = ring.get(first * ticks, max(first, until) * ticks)
            hosts = min(len(counts), len(self.hosts))
        found: Ints = counts[:hosts].reshape(hosts, max(until - first, 0), ticks).sum(axis=2)
        return found

    def rates(self, step: int, by_host: bool) -> pd.DataFrame:
        """Return events per second in intervals of so many seconds, as ``Session.rate`` does: of all hosts together, or
        a column for each that has any."""
        begin = max(self._seconds.oldest, (self.first or 0) // TICKS)
        some = np.flatnonzero(self.get(1, begin, self._seconds.until).any(axis=0)) + begin
        first, until = (int(some[0]) // step, int(some[-1]) // step + 1) if len(some) else (0, 0)
        counts = self.get(step, first, until)
        hosts = [row for row in np.argsort(self.hosts[: len(counts)]).tolist() if counts[row].any()]
        index = pd.date_range(pd.Timestamp(first * step, unit="s", tz="UTC"), periods=until - first, freq=f"{step}s")
        values = counts[hosts].T if by_host else counts.sum(axis=0)[:, None]
        columns = pd.Index([self.hosts[row] for row in hosts], name="host") if by_host else pd.Index(["rate"])
        return pd.DataFrame(values / step, index=index.as_unit("ns").rename("time"), columns=columns)

    def oldest(self, step: float) -> int:
        """Return the oldest interval of ``step`` seconds that is whole and kept."""
        ring, ticks = (self._ticks, round(step * TICKS)) if step < 1 else (self._seconds, round(step))
        return -(-ring.oldest // ticks)


class FleetMeter(RateMeter):
    """What a panel draws of a fleet: a line a host, or one of all. It reads what was heard, and asks nobody."""

    def __init__(self, counts: Counts, by: str | None, window: float, life: Callable[[], Life]) -> None:
        if by not in (None, "host"):
            raise ProgramError(f"a fleet's lines are by host, not by {by!r}: hosts report no more than their sums")
        self._of = counts
        super().__init__(lambda position, by: (_ for _ in ()).throw(AssertionError), None, window, life=life)
        self.by = by
        counts.watch(self)

    def touch(self, time_ns: int) -> None:
        """Note that events of that time have been counted."""
        number = time_ns // self._step_ns
        self.changed = number if self.changed is None else min(self.changed, number)

    def update(self) -> None:
        self.life = life = self._life()
        self.total, self.outside = self._of.total, self._of.outside
        began = life.began // self._step_ns if life.began else None
        heard = None if self._of.first is None else self._of.first * _TICK_NS // self._step_ns
        known = [number for number in (began, heard) if number is not None]
        self.first = min(known) if known else None
        if life.ended:
            first = life.now // self._step_ns
            late = np.flatnonzero(self._of.get(self.step, first, first + round(60 / self.step)).any(axis=0))
            until = first + (int(late[-1]) if len(late) else 0) + 1
        else:
            until = (life.now - _LATE_NS) // self._step_ns
        self.until = max(self.until, until)

    @property
    def oldest(self) -> int:
        if self.first is None:
            return self.until
        return min(max(self.first, self._of.oldest(self.step)), self.until)

    @property
    def gaps(self) -> list[tuple[int, int]]:
        return []

    def counts(self, first: int, until: int) -> Ints:
        found: Ints = self._of.get(self.step, first, until).sum(axis=0)
        return found if len(found) else np.zeros(max(until - first, 0), np.int64)

    def top(self, most: int, first: int | None = None, until: int | None = None) -> dict[str, int]:
        if self.by is None:
            return {}
        until = self.until if until is None else until
        sums = self._of.get(self.step, until - self.length if first is None else first, until).sum(axis=1)
        found = sorted(zip(self._of.hosts, sums.tolist(), strict=False), key=lambda item: -item[1])
        return dict(found[:most])

    def counts_of(self, names: Sequence[str], first: int, until: int) -> Ints:
        table = self._of.get(self.step, first, until)
        none = np.zeros(max(until - first, 0), np.int64)
        hosts = {host: row for row, host in enumerate(self._of.hosts)}
        return np.array([table[hosts[name]] if name in hosts else none for name in names]).reshape(
            len(names), len(none)
        )
