"""CPUs that come online: for the first time, again, or after the machine was suspended.

A perf event of a CPU that goes offline is dead: it stays so when the CPU is back, and nothing tells (tried on 6.1 and
6.12). So whoever has one on every CPU is told which have to be opened anew. A CPU may be gone for less than it takes to
look, and during a suspend nobody looks: an event of our own on each tells by the time it has been on, which stands
still once it is dead.
"""

from __future__ import annotations

import os
import struct
import threading
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from functools import cache
from pathlib import Path

from bpfnb.tracer.kernel import perf, uapi

__all__ = ["CpuWatch", "online_cpus", "possible_cpus"]

Renew = Callable[[int], None]

_ONLINE, _POSSIBLE = Path("/sys/devices/system/cpu/online"), Path("/sys/devices/system/cpu/possible")
_SECONDS = 1.0


def online_cpus() -> set[int]:
    """Return the numbers of the CPUs that are online."""
    return _listed(_ONLINE)


@cache
def possible_cpus() -> frozenset[int]:
    """Return the numbers of the CPUs this machine could ever have: an entry of a per-CPU map has as many values."""
    return frozenset(_listed(_POSSIBLE))


def _listed(file: Path) -> set[int]:
    ranges = file.read_text().strip().split(",")
    bounds = [(first, last or first) for first, _, last in (part.partition("-") for part in ranges)]
    return {cpu for first, last in bounds for cpu in range(int(first), int(last) + 1)}


class _Pulse:
    """An event that counts nothing, of one CPU."""

    def __init__(self, cpu: int) -> None:
        self._fd = perf.open_event(
            uapi.PERF_TYPE_SOFTWARE,
            uapi.PERF_COUNT_SW_DUMMY,
            cpu=cpu,
            read_format=uapi.PERF_FORMAT_TOTAL_TIME_ENABLED,
        )
        self._before = -1

    def beats(self) -> bool:
        """Return whether it was on since the last call."""
        before, self._before = self._before, struct.unpack("QQ", os.read(self._fd, 16))[1]
        return self._before != before

    def close(self) -> None:
        os.close(self._fd)


class CpuWatch:
    """Calls ``renew`` of each subscriber with the number of a CPU whose perf events have to be opened anew.

    Looks once a second, in a thread of its own, which is there while anybody subscribes. ``opening``: what is in force
    while perf events are opened (capabilities.with_sys_admin).
    """

    def __init__(self, opening: Callable[[], AbstractContextManager[None]]) -> None:
        self._opening = opening
        self._changed = threading.Condition()  # held while subscribers are called
        self._subscribers: list[Renew] = []
        self._looking = False  # whether its thread is there
        self._pulses: dict[int, _Pulse | None] = {}  # of the CPUs that were online; None where it could not be opened

    def subscribe(self, renew: Renew) -> None:
        """Call ``renew`` from now on. OSError where no descriptor is free to watch with."""
        with self._changed:
            if not self._subscribers:
                self._look()
            if not self._looking:  # it may not have noticed yet that all had left
                threading.Thread(target=self._run, name="bpfnb-cpus", daemon=True).start()
                self._looking = True
            self._subscribers.append(renew)

    def unsubscribe(self, renew: Renew) -> None:
        """Call ``renew`` no more. On return it is not being called."""
        with self._changed:
            self._subscribers.remove(renew)
            if not self._subscribers:
                for cpu in list(self._pulses):
                    self._forget(cpu)
                self._changed.notify_all()

    def _run(self) -> None:
        with self._changed:
            while not self._changed.wait_for(lambda: not self._subscribers, _SECONDS):
                for cpu in sorted(self._look_again()):
                    for renew in self._subscribers:
                        self._tell(renew, cpu)
            self._looking = False

    def _tell(self, renew: Renew, cpu: int) -> None:
        try:
            renew(cpu)
        except Exception:
            traceback.print_exc()  # of one subscriber; the others are told all the same

    def _look_again(self) -> set[int]:
        try:
            return self._look()
        except OSError:  # no descriptor is free to look with; there may be in a second
            return set()

    def _look(self) -> set[int]:
        """Return the CPUs that have come online since the last call."""
        online = online_cpus()
        for cpu in list(self._pulses):
            pulse = self._pulses[cpu]
            if cpu not in online or (pulse and not pulse.beats()):
                self._forget(cpu)
        new = online - set(self._pulses)
        for cpu in new:
            self._pulses[cpu] = None
        for cpu, pulse in self._pulses.items():
            if not pulse:  # and if it cannot be opened now, then perhaps the next time
                with suppress(OSError), self._opening():
                    self._pulses[cpu] = _Pulse(cpu)
        return new

    def _forget(self, cpu: int) -> None:
        if pulse := self._pulses.pop(cpu):
            pulse.close()
