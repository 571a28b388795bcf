"""The guard: a thread that measures every session, and ends one that goes beyond its limits."""

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
from bpfnb.tracer.guard.cost import Look, Meter, Windows

__all__ = ["Guard", "Watch"]

_PERIOD = 5.0  # seconds that costs and rates are averages over
_MIN_WINDOWS = 4


class Guard:
    """Measures the sessions; ``end`` is called with the number of one that is to end, and why."""

    def __init__(self, end: Callable[[int, str], None]) -> None:
        self._end = end
        self._changed = threading.Condition()
        self._watched: dict[int, tuple[Meter, Watch]] = {}
        self._windows = Windows()
        threading.Thread(target=self._run, name="bpfnb-guard", daemon=True).start()

    def add(self, number: int, meter: Meter, limits: Limits) -> None:
        """Measure a session, and keep it within ``limits``, until its meter is closed."""
        with self._changed:
            self._watched[number] = (meter, Watch(limits, time.monotonic()))
            self._changed.notify()

    def _run(self) -> None:
        try:
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._watched)
                self._windows.rest()
                with self._changed:
                    # Those that ended meanwhile are no reason to switch the statistics on.
                    self._watched = {n: watched for n, watched in self._watched.items() if not watched[0].closed}
                    watched = dict(self._watched)
                for meter, _ in watched.values():
                    meter.find_traps()
                if watched and not self._windows.why:
                    self._windows.measure(meter for meter, _ in watched.values())
                for number, (meter, watch) in watched.items():
                    self._look(number, meter, watch)
        except BaseException:
            # Sessions are no longer guarded. End the process, as the poller does: the notebook reports that.
            traceback.print_exc()
            os._exit(70)

    def _look(self, number: int, meter: Meter, watch: Watch) -> None:
        look = meter.look()
        reason = watch.add(look) if look else ""
        if not look or reason:
            with self._changed:
                del self._watched[number]
        if reason:
            self._end(number, reason)


class _Share(NamedTuple):
    """A window's share of all CPUs: of programs, and of the traps by which uprobes reach them."""

    at: float
    programs: float
    traps: float


class Watch:
    """Whether a session keeps within its limits, judged by all the looks at it.

    Costs and rates are averages over the last ``period`` seconds; what was before its start counts as nothing, so what
    exceeds a limit by much is found sooner. A cost is known from short windows, and those of one that comes in bursts
    differ: the average then has an error, and the limit is exceeded only where it is exceeded by more than that.
    """

    def __init__(self, limits: Limits, began: float, period: float = _PERIOD) -> None:
        self._limits = limits
        self._period = period
        self._shares: deque[_Share] = deque()
        self._looks = deque([Look(began, None, 0, 0.0, 0)])

    def add(self, look: Look, cpus: int = 0) -> str:
        """Why the session is to end, in one line, or "". ``cpus``: how many are online, unless this machine's."""
        cpus = cpus or os.sysconf("SC_NPROCESSORS_ONLN")
        if window := look.window:
            of_all = window.seconds * cpus
            self._shares.append(_Share(look.at, window.programs / of_all, window.traps / of_all))
        self._looks.append(look)
        self._forget(look.at - self._period)
        return self._beyond_cost(look, cpus) or self._beyond_rate(look) or self._beyond_memory(look)

    def _forget(self, before: float) -> None:
        while self._shares and self._shares[0].at < before:
            self._shares.popleft()
        while len(self._looks) > 2 and self._looks[1].at < before:
            self._looks.popleft()

    def _beyond_cost(self, look: Look, cpus: int) -> str:
        limit = self._limits.cost
        if limit is None:
            return ""
        shares, first = list(self._shares), self._at(look.at - self._period)
        if len(shares) < _MIN_WINDOWS:
            return ""
        past = min(look.at - first.at, self._period) / self._period
        reading = (look.reading - first.reading) / max(look.at - first.at, self._period) / cpus
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

    def _beyond_rate(self, look: Look) -> str:
        limit = self._limits.rate
        if limit is None:
            return ""
        first = self._at(look.at - self._period)
        events, passed = look.events - first.events, look.at - first.at
        if events <= limit * max(passed, self._period):
            return ""
        allowed = f"{limit:,g} a second over {self._period:g} s"
        return f"the guard ended it: {events:,} events in {passed:.1f} s, and max_rate is {allowed}"

    def _beyond_memory(self, look: Look) -> str:
        limit = self._limits.memory
        if limit is None or look.memory <= limit:
            return ""
        return f"the guard ended it: {look.memory:,} bytes of memory in the kernel, and max_memory is {limit:,}"

    def _at(self, moment: float) -> Look:
        """The last look before a moment, else the first there was."""
        return next((look for look in reversed(self._looks) if look.at <= moment), self._looks[0])


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"
