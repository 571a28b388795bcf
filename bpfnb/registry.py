"""The table of a host's sessions: those that run by name, and those the kernel is still detaching."""

from __future__ import annotations

import itertools
from collections.abc import Hashable

from bpfnb.interrupts import forget_after_fork, new_lock, uninterrupted
from bpfnb.origins import Origin
from bpfnb.session import Session

__all__ = ["Registry"]


class Registry:
    """Names sessions and lists them. Its methods may be called from any thread; a forked child's has no sessions."""

    def __init__(self) -> None:
        self._lock = new_lock()
        self._running: dict[str, Session] = {}
        self._detaching: list[Session] = []
        self._unnamed: dict[Hashable, str] = {}  # the name that sessions started from a line have
        self._numbers = itertools.count(1)
        forget_after_fork(self)

    def add(self, session: Session, line: Origin, *, named: bool) -> Session | None:
        """Add a session that was started from a line, and name it if it is unnamed; return the one that it replaces."""
        with self._lock:
            if not named:
                session.name, session._origin, session._unnamed = self._name_for(line), line.key, True
            previous = None if session._abandoned else self._running.get(session.name)
            if session.state == "running" and not session._abandoned:
                self._running[session.name] = session
        return previous

    @uninterrupted
    def running(self) -> dict[str, Session]:
        """Return the running sessions, by name."""
        with self._lock:
            return {name: session for name, session in self._running.items() if not session._abandoned}

    @uninterrupted
    def unstopped(self) -> list[Session]:
        """Return the running sessions, and those being stopped whose call was interrupted, which nobody sees."""
        with self._lock:
            return list(self._running.values())

    @uninterrupted
    def detaching(self) -> list[Session]:
        """Return the sessions that have stopped and whose probes the kernel is still detaching."""
        with self._lock:
            self._detaching[:] = [session for session in self._detaching if session.detaching]
            return list(self._detaching)

    @uninterrupted
    def remove(self, session: Session) -> None:
        """Take a session out that has ended, and again once it is detached."""
        with self._lock:
            self._detaching[:] = [other for other in self._detaching if other.detaching and other is not session]
            if session.detaching:
                self._detaching.append(session)
            if self._running.get(session.name) is session:
                del self._running[session.name]

    @uninterrupted
    def forget_names(self) -> None:
        """Name sessions that are given no name from bpf1 on, as in a new process."""
        with self._lock:
            self._unnamed.clear()
            self._numbers = itertools.count(1)

    def forget(self) -> None:
        """Forget the sessions, in a forked child: they are the parent's."""
        self._running.clear()
        self._detaching.clear()

    def _name_for(self, line: Origin) -> str:
        """Return bpf1, bpf2, ...: the name of the session started before from this line, else a new one."""
        before = self._unnamed.get(line.key) if line.key else None
        if before and (before not in self._running or self._running[before]._origin == line.key):
            return before
        name = next(name for number in self._numbers if (name := f"bpf{number}") not in self._running)
        if line.key:
            self._unnamed[line.key] = name
        return name
