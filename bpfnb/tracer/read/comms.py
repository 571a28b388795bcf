"""What every task was called at every moment.

An ftrace record holds a task's number, not its name; the kernel's own table of names keeps 128 tasks and only their
last name, so a short-lived process reads ``<...>`` or carries the name it took afterwards. We watch names change
instead (task_newtask and task_rename, in an instance of their own) and so know the name at an event's own time.
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
_MAX_RENAMES = 1 << 16  # remembered: some 12 MiB. A task can rename itself a million times a second
_SNAPSHOT_PAUSE = 10  # times as long as the last one took, before the next
_HORIZON_NS = 5_000_000_000  # names given up longer ago are not asked for: events are read within milliseconds
_EVENTS = ("task/task_newtask", "task/task_rename")
_KILOBYTES = 512  # a name change is 60 bytes: about 8,000 a CPU between two drains

Name = tuple[int, bytes]  # since when (nanoseconds, monotonic), called what


class Names:
    """Names of tasks since when they had them, and no more of them than there is room for.

    ``names``: of each task, oldest first. ``renames``: when a task was given a further name, and who, oldest first.
    """

    def __init__(self, *, max_renames: int = _MAX_RENAMES) -> None:
        self.names: dict[int, list[Name]] = {}
        self.renames: deque[tuple[int, int]] = deque()
        self._max_renames = max_renames

    def add(self, when: int, pid: int, name: bytes) -> None:
        """Take in a new name. In order of time."""
        history = self.names.setdefault(pid, [])
        history.append((when, name))
        if len(history) > 1:
            self.renames.append((when, pid))

    def renew(self, pid: int) -> None:
        """Take in the name that a task has now, if it lives."""
        history = self.names.get(pid, [])
        name = _name_now(pid)
        if name != _UNKNOWN and (not history or history[-1][1] != name):
            history.append((0 if not history else history[-1][0] + 1, name))
            self.names[pid] = history

    def lookup(self, pids: npt.NDArray[np.int32], times: npt.NDArray[np.int64]) -> npt.NDArray[np.bytes_]:
        """The names (S16) of tasks ``pids`` at ``times`` (nanoseconds, monotonic)."""
        names = np.empty(len(pids), "S16")
        distinct, inverse = np.unique(pids, return_inverse=True)
        order = np.argsort(inverse, kind="stable")
        for pid, where in zip(distinct, np.split(order, np.cumsum(np.bincount(inverse))[:-1]), strict=True):
            history = self._history(int(pid))
            since = np.array([when for when, _ in history])
            latest = np.searchsorted(since, times[where], side="right") - 1
            # The last one for what came before the first that is remembered.
            names[where] = np.array([*(name for _, name in history), _UNKNOWN], "S16")[latest]
        return names

    def _history(self, pid: int) -> list[Name]:
        known = self.names.get(pid)
        if known is None:
            # Older than our watch and never renamed since: its name now is its name then, if it still lives.
            known = self.names[pid] = [(0, _name_now(pid))]
        return known

    def forget(self) -> None:
        """Drop names given up long ago, and the tasks named first: one still alive can be asked for its name.

        At the beginning of a drain, so that what this drain brings is there for the events that came with it.
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
    """Names over time. ``fds`` become readable when the instance is half full and wants a ``drain``.

    Several threads may use it: a source's last drain is taken by whoever ends its session.
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
        """Take in what has changed until now. Whoever wants names for events drains those events first, then this.

        Returns False: nothing is ever held back (see Poller)."""
        with self._lock:
            self._names.forget()
            events, _ = self._instance.drain(time.monotonic_ns())
            if len(events):
                self._learn(events)
                with suppress(OSError):  # no descriptor is free; the next time there may be
                    lost = self._instance.lost()
                    self._stale |= lost != self._lost
                    self._lost = lost
            self._stale |= bool(self._instance.notes())
            if self._stale and time.monotonic_ns() >= self._next_snapshot:
                with suppress(OSError):  # as above
                    self._snapshot()
        return False

    def lookup(self, pids: npt.NDArray[np.int32], times: npt.NDArray[np.int64]) -> npt.NDArray[np.bytes_]:
        """The names (S16) of tasks ``pids`` at ``times`` (nanoseconds, monotonic)."""
        with self._lock:
            return self._names.lookup(pids, times)

    def renew(self, cpu: int) -> None:
        """A CPU has come online. For any thread."""
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
            self._names.add(when, pid, name.split(b"\0", 1)[0])  # what follows the NUL is left over from a longer name

    def _snapshot(self) -> None:
        """The names of all tasks alive, for those that were there before we watched or while we lost sight."""
        began = time.monotonic_ns()
        for pid in _tasks():
            self._names.renew(pid)
        self._stale = False
        now = time.monotonic_ns()
        self._next_snapshot = now + _SNAPSHOT_PAUSE * (now - began)


def _tasks() -> Iterator[int]:
    """All tasks alive. Not by Path.glob, which raises where a process ends meanwhile."""
    for process in Path("/proc").iterdir():
        # It has ended, or is not shown to us.
        with suppress(FileNotFoundError, ProcessLookupError, PermissionError):
            if process.name.isdigit():
                yield from (int(task.name) for task in (process / "task").iterdir())


def _name_now(pid: int) -> bytes:
    if pid == 0:
        return b"<idle>"  # as ftrace calls the idle task of every CPU
    with suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_bytes().removesuffix(b"\n")
    return _UNKNOWN
