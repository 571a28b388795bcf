"""Where processes have files' code in their memory: now, by /proc/PID/maps, and once they have ended.

``Pasts`` is told by whoever watches processes (read/mappings.py). It keeps the mappings of those that sessions follow,
so that their stacks can be named later.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

__all__ = ["Mapping", "Past", "Pasts", "parse_mappings"]

_MAX_BYTES = 64 << 20  # of all processes that are remembered; about 10,000 of 40 files
_PAST_BYTES, _MAPPING_BYTES = 500, 250
_MAX_MAPPINGS = 8192  # of one process: there is no record of what it unmaps


class Mapping(NamedTuple):
    """A part of a file that a process has mapped as code. ``seen``: when it was, in times of files; 0: it still is."""

    start: int
    end: int
    offset: int
    inode: int
    path: bytes
    seen: int = 0


def parse_mappings(lines: Iterable[bytes]) -> Iterator[Mapping]:
    """Yield the executable mappings of /proc/PID/maps: "start-end perms offset device inode    path"."""
    for line in lines:
        fields = line.split(None, 5)
        if len(fields) >= 5 and b"x" in fields[1]:
            start, end = (int(n, 16) for n in fields[0].split(b"-"))
            path = fields[5].replace(rb"\012", b"\n") if len(fields) > 5 else b""
            yield Mapping(start, end, int(fields[2], 16), int(fields[4]), path)


@dataclasses.dataclass(frozen=True)
class Past:
    """What is remembered of a process that a session follows.

    ``mappings``: in order of address. ``uid``: its user when it, or who started it, was first seen; -1: not known.
    ``ended``: when, as files have times; 0: not as far as is known. ``started``: in clock ticks since boot as
    parse_stat has it, noted when nobody watches it any more; 0: it is watched, or has ended.
    """

    session: int
    pid: int
    uid: int
    mappings: tuple[Mapping, ...] = ()
    ended: int = 0
    started: int = 0

    @property
    def nbytes(self) -> int:
        """About how much memory it takes; what processes share is counted for each."""
        return _PAST_BYTES + sum(_MAPPING_BYTES + len(mapping.path) for mapping in self.mappings)


class Pasts:
    """The processes that sessions follow or have followed, by session and pid; for any thread.

    ``max_bytes``: beyond it, those that ended first are forgotten; where none has ended, those added first.
    """

    def __init__(self, max_bytes: int = _MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._pasts: dict[tuple[int, int], Past] = {}
        self._ended: dict[tuple[int, int], None] = {}  # in the order in which they ended
        self._bytes = 0
        self._lock = threading.Lock()

    def find(self, session: int, pid: int) -> Past | None:
        with self._lock:
            return self._pasts.get((session, pid))

    def add(self, session: int, pid: int, uid: int, mappings: Sequence[Mapping]) -> None:
        """Begin to remember a process, with the mappings that it has."""
        with self._lock:
            self._put(Past(session, pid, uid, tuple(mappings[:_MAX_MAPPINGS])))

    def fork(self, session: int, parent: int, child: int, when: int) -> None:
        """Remember a child, if its parent is. If not, whoever had its number has ended."""
        with self._lock:
            of = self._pasts.get((session, parent))
            if of and not of.ended:
                self._put(dataclasses.replace(of, pid=child))
                return
        self.end(session, child, when)

    def exec(self, session: int, pid: int) -> None:
        """Forget a process's mappings: it has become another program."""
        with self._lock:
            if past := self._pasts.get((session, pid)):
                self._put(dataclasses.replace(past, mappings=(), ended=0))

    def map(self, session: int, pid: int, new: Mapping) -> None:
        """Add a mapping, in place of what was there. One of no file only takes places."""
        with self._lock:
            if past := self._pasts.get((session, pid)):
                left = [part for old in past.mappings for part in _without(old, new)][-_MAX_MAPPINGS + 1 :]
                mappings = sorted([*left, new] if new.path else left)
                self._put(dataclasses.replace(past, mappings=tuple(mappings)))

    def end(self, session: int, pid: int, when: int) -> None:
        with self._lock:
            past = self._pasts.get((session, pid))
            if past and not past.ended:
                self._put(dataclasses.replace(past, ended=when))

    def leave(self, session: int, start_time: Callable[[int], int], when: int) -> None:
        """Note that nobody watches a session's processes any more. ``start_time``: as Symbols has it, 0 for one that is
        gone."""
        with self._lock:
            for past in [p for p in self._pasts.values() if p.session == session and not p.ended]:
                started = start_time(past.pid)
                self._put(dataclasses.replace(past, started=started, ended=0 if started else when))

    def _put(self, past: Past) -> None:
        key = past.session, past.pid
        self._drop(key, keep=True)
        self._pasts[key] = past
        self._bytes += past.nbytes
        if past.ended:
            self._ended[key] = None
        while self._bytes > self._max_bytes and len(self._pasts) > 1:
            self._drop(next(iter(self._ended or self._pasts)))

    def _drop(self, key: tuple[int, int], *, keep: bool = False) -> None:
        """Take a process out; ``keep`` its place in the order, as another state of it follows."""
        before = self._pasts.get(key)
        if before:
            self._bytes -= before.nbytes
            self._ended.pop(key, None)
            if not keep:
                del self._pasts[key]


def _without(old: Mapping, new: Mapping) -> Iterator[Mapping]:
    """Yield what is left of a mapping where another one is put over it."""
    if old.end <= new.start or new.end <= old.start:
        yield old
        return
    if old.start < new.start:
        yield old._replace(end=new.start)
    if new.end < old.end:
        yield old._replace(start=new.end, offset=old.offset + new.end - old.start)
