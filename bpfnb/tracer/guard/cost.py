"""Measure what a session costs: its programs' run time, sampled; the time to read its events; its memory in the kernel.

The kernel times programs only while its statistics are on (BPF_ENABLE_STATS), which slows every BPF program of the
machine by some 20 ns a run. So they are on only in short windows at random moments. Figures are of these windows:
nothing is extrapolated.
"""

from __future__ import annotations

import mmap
import os
import random
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bpfnb.errors import few_descriptors
from bpfnb.language.probes import KINDS
from bpfnb.protocol.messages import COSTS_EACH, COSTS_HEAD, CostsAdded
from bpfnb.tracer.guard import traps
from bpfnb.tracer.kernel import bpf, capabilities
from bpfnb.tracer.kernel.btf import KERNEL_BTF, sections
from bpfnb.tracer.kernel.uapi import ProgramType
from bpfnb.tracer.link.link import Link
from bpfnb.tracer.read.poller import Drain

__all__ = ["Meter", "Sample", "Window", "Windows", "map_memory"]

_WINDOW_SECONDS = 0.008  # that the statistics are on
_WINDOW_INTERVAL = 0.2  # seconds, in each of which one window begins, at a random moment
_MAX_ON_SECONDS = 0.05  # of any second, that they may be on
_MAX_SWITCHING = 0.01  # of the time, for switching them on and off: that takes 0.4 ms, in an emulator ten
_MAX_INTERVAL, _MAX_WINDOW_SECONDS = 1.0, 0.04  # where windows are rarer for that
_SLOW_INTERVAL = 1.0  # seconds between two reads of what is slow to read

_TRAPPING = {name for name, kind in KINDS.items() if kind.in_file}  # kinds of probes whose programs a trap runs


class Window(NamedTuple):
    """What a session's programs took while the statistics were on, in seconds.

    ``seconds``: the window's length. ``programs``: of the programs' runs. ``traps``: of the traps by which uprobes
    reach them.
    """

    seconds: float
    programs: float
    traps: float


class Sample(NamedTuple):
    """A measurement of a session.

    ``at``: its time, in seconds of the monotonic clock. ``window``: None where nothing could be timed. ``events``: the
    number of events delivered and lost since the start. ``reading``: the tracer's CPU seconds for them. ``memory``:
    bytes in the kernel.
    """

    at: float
    window: Window | None
    events: int
    reading: float
    memory: int


class _Program:
    """The statistics of a function, which may be loaded as several types of program.

    ``trap``: the nanoseconds to reach it, 0 where unknown. ``missed``: missed runs, -1 where the kernel does not count
    them.
    """

    def __init__(self, fds: Sequence[int]) -> None:
        self.fds = fds
        self.trap = 0.0
        self.runs = self.nanoseconds = 0
        self.missed = -1
        self._counted = all(map(_counts_missed, fds))
        self._begin = (0, 0)

    def begin(self) -> None:
        """Note the statistics at the start of a window."""
        self._begin = self._read()

    def end(self) -> tuple[int, int]:
        """Return the runs and nanoseconds since ``begin``."""
        runs, nanoseconds = (now - then for now, then in zip(self._read(), self._begin, strict=True))
        self.runs += runs
        self.nanoseconds += nanoseconds
        return runs, nanoseconds

    def count_missed(self) -> None:
        """Read how many runs the kernel has left out."""
        counts = [bpf.run_statistics(fd).missed for fd in self.fds]
        if self._counted and None not in counts:
            self.missed = sum(count or 0 for count in counts)

    def _read(self) -> tuple[int, int]:
        found = [bpf.run_statistics(fd) for fd in self.fds]
        return sum(s.runs for s in found), sum(s.nanoseconds for s in found)


class Meter:
    """Measures one session, and publishes it in memory that the notebook has mapped (protocol.CostsAdded).

    ``programs``: its functions, and the descriptors of the programs they were loaded as, which must stay open until
    ``close``. ``events`` and ``memory``: return these members of a Sample; called in the thread that measures.
    """

    def __init__(
        self,
        programs: Mapping[str, Sequence[int]],
        events: Callable[[], int] = lambda: 0,
        memory: Callable[[], int] = lambda: 0,
    ) -> None:
        self._programs = {name: _Program(fds) for name, fds in programs.items()}
        self._events, self._memory = events, memory
        self._links: dict[str, list[Link]] = {}
        self._lock = threading.Lock()  # while it is held, the descriptors stay open
        self._began = time.monotonic_ns()
        self._opened = self._measured = self._reading = 0  # nanoseconds
        self._last: Window | None = None
        self._read_slow_at = -_SLOW_INTERVAL
        self._used = 0
        size = 8 * (COSTS_HEAD + COSTS_EACH * len(programs))
        self.fd = os.memfd_create("bpfnb-costs", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, size)
        self._words = np.frombuffer(mmap.mmap(self.fd, size), np.int64)
        self.closed = False

    def message(self, session: int) -> CostsAdded:
        """Return the message that announces the memory."""
        return CostsAdded(session, tuple(self._programs))

    def add_links(self, links: Sequence[Link]) -> None:
        """Add what runs the session's functions."""
        for link in links:
            self._links.setdefault(link.info.function, []).append(link)

    def find_traps(self) -> None:
        """Measure the traps of functions that only uprobes run. The first time takes a moment."""
        with suppress(OSError):  # no descriptor is free; the rest is measured the next time
            while self._links:
                name, links = next(iter(self._links.items()))
                if name in self._programs and {link.info.kind for link in links} <= _TRAPPING:
                    places = {(code, link.info.kind == "uretprobe") for link in links for code in link.code}
                    self._programs[name].trap = min((traps.nanoseconds(*place) for place in places), default=0.0)
                del self._links[name]

    def timed(self, drain: Drain) -> Drain:
        """Return a drain whose CPU time is counted. No two drains of a session run at once (poller.py)."""

        def drain_timed() -> int:
            began = time.thread_time_ns()
            try:
                return drain()
            finally:
                self._reading += time.thread_time_ns() - began

        return drain_timed

    def begin(self) -> None:
        """Begin a window: the statistics are on now."""
        with self._lock:
            if not self.closed:
                for program in self._programs.values():
                    program.begin()
                self._opened = time.monotonic_ns()

    def end(self) -> None:
        """End a window: the statistics will be switched off."""
        with self._lock:
            if self.closed or not self._opened:  # it was added during the window
                return
            length = time.monotonic_ns() - self._opened
            self._opened = 0
            found = [(*program.end(), program.trap) for program in self._programs.values()]
            self._measured += length
            programs = sum(nanoseconds for _, nanoseconds, _ in found)
            self._last = Window(length / 1e9, programs / 1e9, sum(runs * trap for runs, _, trap in found) / 1e9)

    def sample(self) -> Sample | None:
        """Return and publish a measurement; None once it is closed."""
        with self._lock:
            if self.closed:
                return None
            now = time.monotonic()
            if now >= self._read_slow_at + _SLOW_INTERVAL:
                self._read_slow_at = now
                self._read_slow()
            self._publish()
            window, self._last = self._last, None
            return Sample(now, window, self._events(), self._reading / 1e9, self._used)

    def close(self) -> None:
        """Publish a last time. No descriptor of the session is used after that. Idempotent."""
        with self._lock:
            if not self.closed:
                self._read_slow()
                self._publish()
                self.closed = True
                del self._words
                os.close(self.fd)

    def _read_slow(self) -> None:
        with suppress(OSError):  # no descriptor may be free; the last values stay
            self._used = self._memory()
            for program in self._programs.values():
                program.count_missed()

    def _publish(self) -> None:
        head = [self._measured, time.monotonic_ns() - self._began, self._reading, self._used]
        each = [[p.runs, p.nanoseconds, p.missed, int(p.trap)] for p in self._programs.values()]
        self._words[0] += 1  # odd while the rest is written
        self._words[1 : 1 + len(head)] = head
        self._words[COSTS_HEAD:] = np.array(each, np.int64).reshape(-1)
        self._words[0] += 1


class Windows:
    """Switches the statistics on and off. For one thread only. ``why``: why it cannot, "" while it can."""

    def __init__(self) -> None:
        self.why = ""
        self._on: deque[tuple[float, float]] = deque()  # (on, off) of the windows in the last second
        self._next = 0.0
        self._switching: deque[float] = deque(maxlen=5)  # seconds it took to switch them on and off, of late
        self._interval, self._window = _WINDOW_INTERVAL, _WINDOW_SECONDS

    def wait(self) -> None:
        """Wait for the next window."""
        now = time.monotonic()
        if now > self._next + self._interval:  # nothing was measured for a while, or the last window was long
            self._next = now
        else:
            begin = self._next + random.uniform(0, self._interval - self._window)
            self._next += self._interval
            time.sleep(max(begin - now, 0))
        while not self._allowed():
            time.sleep(self._window)

    def measure(self, meters: Iterable[Meter]) -> None:
        """Measure one window of all these sessions."""
        meters = list(meters)
        began = time.monotonic()
        try:
            with capabilities.with_sys_admin():
                fd = bpf.enable_run_statistics()
        except OSError as error:
            if not few_descriptors(error):  # one may be free the next time
                self.why = error.strerror or str(error)
            return
        opened = time.monotonic()
        try:
            for meter in meters:
                meter.begin()
            time.sleep(max(opened + self._window - time.monotonic(), 0))
            for meter in meters:
                meter.end()
        finally:
            ending = time.monotonic()
            os.close(fd)
            closed = time.monotonic()
            self._on.append((opened, closed))
            self._adapt(opened - began + closed - ending)

    def _adapt(self, switching: float) -> None:
        """Make windows rarer, and longer to the same degree, where switching takes long.

        Switching patches the kernel's code. An emulator pays for that afterwards as well, by translating anew.
        """
        self._switching.append(switching)
        interval = statistics.median(self._switching) / _MAX_SWITCHING
        self._interval = min(max(interval, _WINDOW_INTERVAL), _MAX_INTERVAL)
        self._window = min(_WINDOW_SECONDS * self._interval / _WINDOW_INTERVAL, _MAX_WINDOW_SECONDS)

    def _allowed(self) -> bool:
        """Return whether the last second stays within its limit if a window begins now.

        A window that took longer than planned, on an overloaded machine, is followed by a longer pause.
        """
        begin = time.monotonic() + self._window - 1
        while self._on and self._on[0][1] < begin:
            self._on.popleft()
        return sum(off - max(on, begin) for on, off in self._on) + self._window <= _MAX_ON_SECONDS


def map_memory(fd: int) -> int:
    """Return the bytes that a map takes in the kernel.

    Before Linux v6.4 that is the size of what it may hold, not of what it holds (commit 90a5527d7686 ("bpf: add new map
    ops ->map_mem_usage")).
    """
    for line in Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines():
        if line.startswith("memlock:"):
            return int(line.split()[1])
    return 0


# --- missed runs --------------------------------------------------------------------------------------------------


def _counts_missed(fd: int) -> bool:
    """Return whether the kernel counts the missed runs of a program of this type.

    It does not where a perf event's overflow runs the program (Linux: kernel/events/core.c, bpf_overflow_handler).
    """
    kind = bpf.program_attributes(fd, b"", 0).type
    if kind == ProgramType.PERF_EVENT:
        return False
    return kind not in (ProgramType.KPROBE, ProgramType.TRACEPOINT) or _counts_of_events(KERNEL_BTF)


@cache
def _counts_of_events(path: Path) -> bool:
    """Return whether the kernel counts missed runs at tracepoints, kprobes and uprobes.

    Linux kernel commit dd8657894c11 ("bpf: Count missed stats in trace_call_bpf") (in v6.7). That commit cannot be
    detected. So look in the kernel's BTF for ``perf_event.kprobe.missed`` of ``struct bpf_link_info``, right after
    ``addr`` at bit 128, which the same series added (commit 3acf8ace6823).
    """
    try:
        btf = path.read_bytes()
    except OSError:
        return False
    types, strings = sections(btf)
    names = btf[strings.start : strings.stop]
    addr, missed = (names.find(b"\0%s\0" % name) + 1 for name in (b"addr", b"missed"))
    words = np.frombuffer(btf, np.uint32, len(types) // 4, types.start)
    # struct btf_member is name, type, offset in bits.
    at = np.flatnonzero(words[:-2] == missed)
    at = at[(at >= 3) & (words[at + 2] == 192)]
    return bool(missed and np.any((words[at - 3] == addr) & (words[at - 1] == 128)))
