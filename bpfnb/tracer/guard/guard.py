"""The guard: a thread that measures every session, and ends sessions that exceed their limits."""

from __future__ import annotations

import os
import statistics
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from bpfnb.protocol.messages import Limits
from bpfnb.tracer.guard.cost import Meter, Sample, Windows

__all__ = ["Guard", "Watch"]

_PERIOD_SECONDS = 5.0  # over which costs and rates are averaged
_MIN_WINDOWS = 4


class Guard:
    """Measures sessions, and calls ``end`` with the number of a session that must end, and the reason."""

    def __init__(self, end: Callable[[int, str], None]) -> None:
        self._end = end
        self._changed = threading.Condition()
        self._watched: dict[int, tuple[Meter, Watch]] = {}
        self._windows = Windows()
        threading.Thread(target=self._run, name="bpfnb-guard", daemon=True).start()

    def add(self, number: int, meter: Meter, limits: Limits) -> None:
        """Measure a session and enforce its ``limits``, until its meter is closed."""
        with self._changed:
            self._watched[number] = (meter, Watch(limits, time.monotonic()))
            self._changed.notify()

    def _run(self) -> None:
        try:
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._watched)
                self._windows.wait()
                with self._changed:
                    # The statistics are not switched on for sessions that have ended meanwhile.
                    self._watched = {n: watched for n, watched in self._watched.items() if not watched[0].closed}
                    watched = dict(self._watched)
                for meter, _ in watched.values():
                    meter.find_traps()
                if watched and not self._windows.why:
                    self._windows.measure(meter for meter, _ in watched.values())
                for number, (meter, watch) in watched.items():
                    self._check(number, meter, watch)
        except BaseException:
            # Sessions are no longer guarded. End the process, as the poller does: the notebook reports that.
            traceback.print_exc()
            os._exit(70)

    def _check(self, number: int, meter: Meter, watch: Watch) -> None:
        sample = meter.sample()
        reason = watch.add(sample) if sample else ""
        if not sample or reason:
            with self._changed:
                del self._watched[number]
        if reason:
            self._end(number, reason)


class _Share(NamedTuple):
    """The share of all CPUs in a window: of programs, and of the traps by which uprobes reach them."""

    at: float
    programs: float
    traps: float


class Watch:
    """Decides from a session's samples whether it exceeds its limits.

    Costs and rates are averages over the last ``period`` seconds. The time before the session's start counts as zero,
    so that a session which exceeds a limit by much is found sooner. Costs are measured in short windows, which differ
    where they come in bursts. So the average has an error, and must exceed the limit by more than this error.
    """

    def __init__(self, limits: Limits, began: float, period: float = _PERIOD_SECONDS) -> None:
        self._limits = limits
        self._period = period
        self._shares: deque[_Share] = deque()
        self._samples = deque([Sample(began, None, 0, 0.0, 0)])

    def add(self, sample: Sample, cpus: int = 0) -> str:
        """Return why the session must end, in one line, or "". ``cpus``: how many there are; by default here."""
        cpus = cpus or os.sysconf("SC_NPROCESSORS_ONLN")
        if window := sample.window:
            of_all = window.seconds * cpus
            self._shares.append(_Share(sample.at, window.programs / of_all, window.traps / of_all))
        self._samples.append(sample)
        self._drop_before(sample.at - self._period)
        return self._exceeds_cost(sample, cpus) or self._exceeds_rate(sample) or self._exceeds_memory(sample)

    def _drop_before(self, before: float) -> None:
        while self._shares and self._shares[0].at < before:
            self._shares.popleft()
        while len(self._samples) > 2 and self._samples[1].at < before:
            self._samples.popleft()

    def _exceeds_cost(self, sample: Sample, cpus: int) -> str:
        limit = self._limits.cost
        if limit is None:
            return ""
        shares, first = list(self._shares), self._at(sample.at - self._period)
        if len(shares) < _MIN_WINDOWS:
            return ""
        past = min(sample.at - first.at, self._period) / self._period
        reading = (sample.reading - first.reading) / max(sample.at - first.at, self._period) / cpus
        programs = statistics.fmean(share.programs for share in shares) * past
        traps = statistics.fmean(share.traps for share in shares) * past
        error = statistics.stdev(share.programs + share.traps for share in shares) * past / len(shares) ** 0.5
        if programs + traps + reading - 2 * error <= limit:
            return ""
        parts = {"its programs": programs, "the traps of its uprobes": traps, "reading its events": reading}
        return (
            f"the guard ended it: {_percent((programs + traps + reading) / past)} of all CPUs for "
            f"{past * self._period:.1f} s, and max_cost is {_percent(limit)} over {self._period:g} s: "
            + ", ".join(f"{what} {_percent(share / past)}" for what, share in parts.items() if share >= 0.001)
        )

    def _exceeds_rate(self, sample: Sample) -> str:
        limit = self._limits.rate
        if limit is None:
            return ""
        first = self._at(sample.at - self._period)
        events, passed = sample.events - first.events, sample.at - first.at
        if events <= limit * max(passed, self._period):
            return ""
        allowed = f"{limit:,g} a second over {self._period:g} s"
        return f"the guard ended it: {events:,} events in {passed:.1f} s, and max_rate is {allowed}"

    def _exceeds_memory(self, sample: Sample) -> str:
        limit = self._limits.memory
        if limit is None or sample.memory <= limit:
            return ""
        return f"the guard ended it: {sample.memory:,} bytes of memory in the kernel, and max_memory is {limit:,}"

    def _at(self, moment: float) -> Sample:
        """Return the last sample before a moment, else the first."""
        return next((sample for sample in reversed(self._samples) if sample.at <= moment), self._samples[0])


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"
