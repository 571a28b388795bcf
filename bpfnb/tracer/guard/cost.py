"""What a session costs: its programs' run time, sampled; what reading its events takes; its memory in the kernel.

The kernel times programs only while somebody has the statistics on (BPF_ENABLE_STATS), which slows every BPF program of
the machine by some 20 ns a run. So they are on for short windows, spread over time at random moments, and what is known
of a program is known of these windows alone: nothing is extrapolated.
"""

from __future__ import annotations

import mmap
import os
import random
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

__all__ = ["Look", "Meter", "Window", "Windows", "map_memory"]

_WINDOW = 0.008  # seconds that the statistics are on
_EVERY = 0.2  # seconds in which one window begins, at a random moment
_MAX_ON = 0.05  # seconds of any second that they may be on
_TRAPPING = {name for name, kind in KINDS.items() if kind.in_file}  # kinds of probes whose programs a trap runs
_SLOW = 1.0  # seconds between two looks at what takes longer to look at


class Window(NamedTuple):
    """What the programs of a session took while the statistics were on: seconds of that, of programs' runs, and of
    the traps by which uprobes reach them."""

    seconds: float
    programs: float
    traps: float


class Look(NamedTuple):
    """A session at one moment. ``at``: seconds of the monotonic clock. ``window``: None where nothing could be timed.

    ``events``: delivered and lost since it started. ``reading``: seconds of CPU that the tracer spent on them.
    ``memory``: bytes.
    """

    at: float
    window: Window | None
    events: int
    reading: float
    memory: int


class _Program:
    """What is known of a function, which may be loaded as several types of program. ``trap``: nanoseconds to reach it,
    0 where they are not known. ``missed``: -1 where the kernel does not count them."""

    def __init__(self, fds: Sequence[int]) -> None:
        self.fds = fds
        self.trap = 0.0
        self.runs = self.nanoseconds = 0
        self.missed = -1
        self._counted = all(map(_counts_missed, fds))
        self._begin = (0, 0)

    def begin(self) -> None:
        self._begin = self._read()

    def end(self) -> tuple[int, int]:
        """Runs and nanoseconds since ``begin``."""
        runs, nanoseconds = (now - then for now, then in zip(self._read(), self._begin, strict=True))
        self.runs += runs
        self.nanoseconds += nanoseconds
        return runs, nanoseconds

    def count_missed(self) -> None:
        counts = [bpf.run_statistics(fd).missed for fd in self.fds]
        if self._counted and None not in counts:
            self.missed = sum(count or 0 for count in counts)

    def _read(self) -> tuple[int, int]:
        found = [bpf.run_statistics(fd) for fd in self.fds]
        return sum(s.runs for s in found), sum(s.nanoseconds for s in found)


class Meter:
    """Measures one session, and publishes it in memory that the notebook has mapped (protocol.CostsAdded).

    ``programs``: its functions, and the descriptors of the programs they were loaded as, which must stay open until
    ``close``. ``events`` and ``memory``: see Look; called from the thread that measures.
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
        self._lock = threading.Lock()  # while held, the descriptors are open
        self._began = time.monotonic_ns()
        self._opened = self._measured = self._reading = 0  # nanoseconds
        self._last: Window | None = None
        self._looked = -_SLOW
        self._used = 0
        size = 8 * (COSTS_HEAD + COSTS_EACH * len(programs))
        self.fd = os.memfd_create("bpfnb-costs", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, size)
        self._words = np.frombuffer(mmap.mmap(self.fd, size), np.int64)
        self.closed = False

    def message(self, session: int) -> CostsAdded:
        return CostsAdded(session, tuple(self._programs))

    def reached_by(self, links: Sequence[Link]) -> None:
        """What runs its functions."""
        for link in links:
            self._links.setdefault(link.info.function, []).append(link)

    def find_traps(self) -> None:
        """See what it takes to reach the functions that only uprobes run. Takes a moment, the first time."""
        with suppress(OSError):  # no descriptor is free; what is left is for the next time
            while self._links:
                name, links = next(iter(self._links.items()))
                if name in self._programs and {link.info.kind for link in links} <= _TRAPPING:
                    places = {(code, link.info.kind == "uretprobe") for link in links for code in link.code}
                    self._programs[name].trap = min((traps.nanoseconds(*place) for place in places), default=0.0)
                del self._links[name]

    def timed(self, drain: Drain) -> Drain:
        """A drain whose time on the CPU is counted. No two of a session's run at once (poller.py)."""

        def drain_timed() -> int:
            began = time.thread_time_ns()
            try:
                return drain()
            finally:
                self._reading += time.thread_time_ns() - began

        return drain_timed

    def begin(self) -> None:
        """The statistics have come on."""
        with self._lock:
            if not self.closed:
                for program in self._programs.values():
                    program.begin()
                self._opened = time.monotonic_ns()

    def end(self) -> None:
        """They are about to go off."""
        with self._lock:
            if self.closed or not self._opened:  # it came in between
                return
            length = time.monotonic_ns() - self._opened
            self._opened = 0
            found = [(*program.end(), program.trap) for program in self._programs.values()]
            self._measured += length
            programs = sum(nanoseconds for _, nanoseconds, _ in found)
            self._last = Window(length / 1e9, programs / 1e9, sum(runs * trap for runs, _, trap in found) / 1e9)

    def look(self) -> Look | None:
        """What there is to know now, published as well; None once it is closed."""
        with self._lock:
            if self.closed:
                return None
            now = time.monotonic()
            if now >= self._looked + _SLOW:
                self._looked = now
                self._look_slowly()
            self._publish()
            window, self._last = self._last, None
            return Look(now, window, self._events(), self._reading / 1e9, self._used)

    def close(self) -> None:
        """Publish a last time. Afterwards no descriptor of the session's is used. Idempotent."""
        with self._lock:
            if not self.closed:
                self._look_slowly()
                self._publish()
                self.closed = True
                del self._words
                os.close(self.fd)

    def _look_slowly(self) -> None:
        with suppress(OSError):  # no descriptor may be free now; what was known last stays
            self._used = self._memory()
            for program in self._programs.values():
                program.count_missed()

    def _publish(self) -> None:
        head = [self._measured, time.monotonic_ns() - self._began, self._reading, self._used]
        each = [[p.runs, p.nanoseconds, p.missed, int(p.trap)] for p in self._programs.values()]
        self._words[0] += 1  # odd: the rest is being written
        self._words[1 : 1 + len(head)] = head
        self._words[COSTS_HEAD:] = np.array(each, np.int64).reshape(-1)
        self._words[0] += 1


class Windows:
    """Switches the statistics on and off. ``why``: why it cannot, "" while it can. For one thread."""

    def __init__(self) -> None:
        self.why = ""
        self._on: deque[tuple[float, float]] = deque()  # when they came on and went off, in the last second
        self._next = 0.0

    def rest(self) -> None:
        """Wait for the next window."""
        now = time.monotonic()
        if now > self._next + _EVERY:  # nobody was measured for a while, or the last window was long
            self._next = now
        else:
            begin = self._next + random.uniform(0, _EVERY - _WINDOW)
            self._next += _EVERY
            time.sleep(max(begin - now, 0))
        while not self._may():
            time.sleep(_WINDOW)

    def measure(self, meters: Iterable[Meter]) -> None:
        """One window for all of these."""
        meters = list(meters)
        try:
            with capabilities.with_sys_admin():
                fd = bpf.enable_run_statistics()
        except OSError as error:
            if not few_descriptors(error):  # there may be a free one the next time
                self.why = error.strerror or str(error)
            return
        opened = time.monotonic()
        try:
            for meter in meters:
                meter.begin()
            time.sleep(max(opened + _WINDOW - time.monotonic(), 0))
            for meter in meters:
                meter.end()
        finally:
            os.close(fd)
            self._on.append((opened, time.monotonic()))

    def _may(self) -> bool:
        """Whether a window that began now would leave the last second within its bound. One that was longer than meant,
        on a machine that crawls, is followed by a longer rest."""
        begin = time.monotonic() + _WINDOW - 1
        while self._on and self._on[0][1] < begin:
            self._on.popleft()
        return sum(off - max(on, begin) for on, off in self._on) + _WINDOW <= _MAX_ON


def map_memory(fd: int) -> int:
    """Bytes that a map takes in the kernel; before Linux v6.4 of what it may hold, not of what it holds (commit
    90a5527d7686 "bpf: add new map ops ->map_mem_usage")."""
    for line in Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines():
        if line.startswith("memlock:"):
            return int(line.split()[1])
    return 0


# --- missed runs --------------------------------------------------------------------------------------------------


def _counts_missed(fd: int) -> bool:
    """Whether the kernel counts the runs that a program of this type misses.

    It does not where a perf event's overflow runs the program (kernel/events/core.c, bpf_overflow_handler).
    """
    kind = bpf.program_attributes(fd, b"", 0).type
    if kind == ProgramType.PERF_EVENT:
        return False
    return kind not in (ProgramType.KPROBE, ProgramType.TRACEPOINT) or _counts_of_events(KERNEL_BTF)


@cache
def _counts_of_events(path: Path) -> bool:
    """Whether missed runs at tracepoints, kprobes and uprobes are counted: Linux kernel commit dd8657894c11 ("bpf:
    Count missed stats in trace_call_bpf") (in v6.7).

    No program can see that. The same series gave the kernel's ``struct bpf_link_info`` its ``perf_event.kprobe.missed``
    (commit 3acf8ace6823), right behind ``addr`` at bit 128, which is looked for.
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
