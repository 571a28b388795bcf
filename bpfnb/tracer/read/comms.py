"""The names of tasks over time.

An ftrace record holds a task's number, not its name. The kernel's own table of names keeps 128 tasks and only their
latest names, so a short-lived process reads ``<...>`` or has a name that it took later. We record name changes instead
(task_newtask and task_rename, in a tracefs instance of their own), and so know the name at an event's time.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bpfnb.tracer.kernel.tracefs import Events, Field, Instance, fields_of

__all__ = ["CommHistory", "Names"]

_UNKNOWN = b"<...>"
_MAX_TASKS = 1 << 16
_MAX_RENAMES = 1 << 16  # some 12 MiB; a task can rename itself a million times a second
_SNAPSHOT_PAUSE = 10  # times the duration of the last snapshot, before the next
_HORIZON_NS = 5_000_000_000  # names given up longer ago are not needed: events are read within milliseconds
_EVENTS = ("task/task_newtask", "task/task_rename")
_KILOBYTES = 512  # a name change takes 60 bytes: about 8,000 a CPU between two drains

Name = tuple[int, bytes]  # since when (nanoseconds of CLOCK_MONOTONIC), and the name


class Names:
    """The names that each task has had, limited in number.

    ``names``: each task's names, oldest first. ``renames``: (time, task) of every further name, oldest first.
    """

    def __init__(self, *, max_renames: int = _MAX_RENAMES) -> None:
        self.names: dict[int, list[Name]] = {}
        self.renames: deque[tuple[int, int]] = deque()
        self._max_renames = max_renames

    def add(self, when: int, pid: int, name: bytes) -> None:
        """Add a name. Calls must be in order of time."""
        history = self.names.setdefault(pid, [])
        history.append((when, name))
        if len(history) > 1:
            self.renames.append((when, pid))

    def renew(self, pid: int) -> None:
        """Add the name that a task has now, if it is alive."""
        history = self.names.get(pid, [])
        name = _name_now(pid)
        if name != _UNKNOWN and (not history or history[-1][1] != name):
            history.append((0 if not history else history[-1][0] + 1, name))
            self.names[pid] = history

    def lookup(self, pids: npt.NDArray[np.int32], times: npt.NDArray[np.int64]) -> npt.NDArray[np.bytes_]:
        """Return the names (S16) of tasks ``pids`` at ``times`` (nanoseconds of CLOCK_MONOTONIC)."""
        names = np.empty(len(pids), "S16")
        distinct, inverse = np.unique(pids, return_inverse=True)
        order = np.argsort(inverse, kind="stable")
        for pid, where in zip(distinct, np.split(order, np.cumsum(np.bincount(inverse))[:-1]), strict=True):
            history = self._history(int(pid))
            since = np.array([when for when, _ in history])
            latest = np.searchsorted(since, times[where], side="right") - 1
            # Index -1, the unknown name, is for times before the first known name.
            names[where] = np.array([*(name for _, name in history), _UNKNOWN], "S16")[latest]
        return names

    def _history(self, pid: int) -> list[Name]:
        known = self.names.get(pid)
        if known is None:
            # It is older than our records and was not renamed since, so it still has its name of then, if it is alive.
            known = self.names[pid] = [(0, _name_now(pid))]
        return known

    def forget(self) -> None:
        """Drop names given up long ago, and beyond the limit the tasks that were added first.

        A task that is still alive can be looked up again. Called at the start of a drain, so that the names which the
        drain adds are there for the events that came with them.
        """
        horizon = time.monotonic_ns() - _HORIZON_NS
        while self.renames and (self.renames[0][0] < horizon or len(self.renames) > self._max_renames):
            when, pid = self.renames.popleft()
            history = self.names.get(pid, [])
            if len(history) > 1 and history[1][0] <= when:
                del history[0]
        while len(self.names) > _MAX_TASKS:
            del self.names[next(iter(self.names))]


class CommHistory:
    """Records tasks' names over time. ``fds`` become readable when the instance is half full and needs a ``drain``.

    Several threads may use it: the last drain of a source runs in the thread that ends its session.
    """

    def __init__(self) -> None:
        self._names = Names()
        self._lost = 0
        self._stale = False  # whether changes were lost since the last snapshot
        self._next_snapshot = 0
        self._lock = threading.Lock()
        self._new = fields_of("task/task_newtask")
        self._rename = fields_of("task/task_rename")
        self._instance = Instance("comm", _KILOBYTES)
        try:
            for event in _EVENTS:
                self._instance.enable(event)
            self.fds = self._instance.open_pipes()
            self._instance.watch(*_EVENTS)
            self._snapshot()
        except BaseException:
            self.close()
            raise

    def drain(self) -> bool:
        """Record the changes until now. To look up names for events, drain those events first, then this.

        Return False, since nothing is ever held back (see poller.py).
        """
        with self._lock:
            self._names.forget()
            events, _ = self._instance.drain(time.monotonic_ns())
            if len(events):
                self._learn(events)
                with suppress(OSError):  # no descriptor is free; one may be the next time
                    lost = self._instance.lost()
                    self._stale |= lost != self._lost
                    self._lost = lost
            self._stale |= bool(self._instance.notes())
            if self._stale and time.monotonic_ns() >= self._next_snapshot:
                with suppress(OSError):  # as above
                    self._snapshot()
        return False

    def lookup(self, pids: npt.NDArray[np.int32], times: npt.NDArray[np.int64]) -> npt.NDArray[np.bytes_]:
        """Return the names (S16) of tasks ``pids`` at ``times`` (nanoseconds of CLOCK_MONOTONIC)."""
        with self._lock:
            return self._names.lookup(pids, times)

    def renew(self, cpu: int) -> None:
        """Note that a CPU has come online. May be called from any thread."""
        self._instance.renew(cpu)

    def close(self) -> None:
        self._instance.close()

    def _learn(self, events: Events) -> None:
        events = events.take(np.argsort(events.time, kind="stable"))
        kinds = events.read(Field(0, 2), "<u2")
        changes: list[tuple[int, int, bytes]] = []
        for (number, fields), comm in ((self._new, "comm"), (self._rename, "newcomm")):
            chosen = events.take(np.flatnonzero(kinds == number))
            # task_rename lost its pid field in newer kernels, where a task only renames itself.
            pids = chosen.read(fields.get("pid", fields["common_pid"]), "<i4")
            changes += zip(chosen.time.tolist(), pids.tolist(), chosen.read(fields[comm], "S16").tolist(), strict=True)
        for when, pid, name in sorted(changes):
            self._names.add(when, pid, name.split(b"\0", 1)[0])  # the bytes after the NUL are of an older, longer name

    def _snapshot(self) -> None:
        """Record the names of all tasks alive: of those older than our records, and after changes were lost."""
        began = time.monotonic_ns()
        for pid in _tasks():
            self._names.renew(pid)
        self._stale = False
        now = time.monotonic_ns()
        self._next_snapshot = now + _SNAPSHOT_PAUSE * (now - began)


def _tasks() -> Iterator[int]:
    """Yield all tasks alive. Path.glob is not used: it raises when a process ends meanwhile."""
    for process in Path("/proc").iterdir():
        # The process has ended, or is hidden from us.
        with suppress(FileNotFoundError, ProcessLookupError, PermissionError):
            if process.name.isdigit():
                yield from (int(task.name) for task in (process / "task").iterdir())


def _name_now(pid: int) -> bytes:
    if pid == 0:
        return b"<idle>"  # as ftrace calls the idle task of every CPU
    with suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_bytes().removesuffix(b"\n")
    return _UNKNOWN
