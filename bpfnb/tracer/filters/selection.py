"""A session's filters as its programs test them: resolved before anything is compiled, put in place before attaching.

How nobody is missed who is followed. The programs that keep the map of processes are attached first. Then the process
goes into the map, then what it has started, from the top down: whoever is in the map has its further children added by
the kernel, so only those that it had before have to be read from /proc. That is repeated until there is nobody new.
"""

from __future__ import annotations

import os
import struct
from contextlib import ExitStack

from bpfnb.errors import ProgramError
from bpfnb.language.filters import Filters
from bpfnb.tracer.filters import processes, text
from bpfnb.tracer.filters.cgroups import open_cgroup
from bpfnb.tracer.filters.follow import Keeper, keepers_of_many, keepers_of_one
from bpfnb.tracer.filters.processes import Process
from bpfnb.tracer.kernel import bpf
from bpfnb.tracer.loaded import Loaded

__all__ = ["Selection", "select"]

_MAX_COMM = 16  # bytes, with a NUL
_KEY = struct.Struct("=I")
_ONLY = _KEY.pack(0)  # the key of an array's one entry


class Selection:
    """What a session is about, with what is needed to have its programs test that. Of one session.

    ``pid``: the process that probes in files are put into; 0 for all. ``followed``: those to follow that there were
    when it was installed.
    """

    def __init__(self, filters: Filters, process: Process | None, cgroup: int | None) -> None:
        self._filters = filters
        self._process = process
        self._cgroup = cgroup
        self._keepers: list[Keeper] = []
        self.followed: frozenset[int] = frozenset()
        self.pid = process.pid if process and filters.pid else 0

    def close(self) -> None:
        """Let go of what it holds open. Idempotent."""
        if self._cgroup is not None:
            os.close(self._cgroup)
            self._cgroup = None

    def load(self, loaded: Loaded) -> None:
        """Load what keeps the filters true, and add it to a session's programs."""
        if self._filters.pid:
            self._keepers = keepers_of_one(_values(loaded))
        elif self._filters.follow:
            self._keepers = keepers_of_many(_values(loaded), _followed(loaded), held=self._filters.held)
        loaded.programs |= {keeper.spec: keeper.fd for keeper in self._keepers}

    def install(self, loaded: Loaded, stack: ExitStack) -> None:
        """Have the loaded programs select what the filters say, before they are attached. ``stack`` takes what undoes
        it. ProgramError where the process has ended, or has started too many others."""
        if not self._filters:
            return
        for keeper in self._keepers:
            stack.callback(os.close, keeper.attach())
        bpf.update(_values(loaded), _ONLY, self._packed())
        if self._cgroup is not None:
            self._put_cgroup(_map(loaded, text.CGROUP_MAP, _KEY.size))
        if self._process and self._filters.follow:
            self.followed = frozenset(self._follow(_followed(loaded), self._process))
        if self._process and processes.started(self._process.pid) != self._process.started:
            option = "pid" if self._filters.pid else "follow"
            raise ProgramError(f"{option}={self._filters.pid or self._filters.follow}: the process has ended")

    def note(self, loaded: Loaded) -> str:
        """Return what to say, at a session's end, of processes that there was no room to follow; "" where all were."""
        data = bpf.lookup(_values(loaded), _ONLY, text.FILTER.size) if self._filters.follow else None
        lost = int(text.FILTER.unpack(data)[0]) if data else 0
        room = bpf.map_shape(_followed(loaded)).max_entries if lost else 0
        return f"{lost:,} processes were not followed: there was room for {room:,}" if lost else ""

    def _packed(self) -> bytes:
        comm, mask = _pattern(self._filters.comm)
        cgroup = os.fstat(self._cgroup).st_ino if self._cgroup is not None else 0
        return text.FILTER.pack(0, comm, mask, cgroup, self.pid, self._filters.uid or 0, 0)

    def _put_cgroup(self, array: int) -> None:
        assert self._cgroup is not None
        try:
            bpf.update(array, _ONLY, _KEY.pack(self._cgroup))
        except OSError as error:
            raise ProgramError(f"{self._filters.cgroup} is no cgroup: {error.strerror}") from None

    def _follow(self, followed: int, first: Process) -> set[int]:
        """Put a process into the map, and then, from the top down, what it has started, until there is nobody new.
        Return their pids."""
        _add(followed, first, selected=not self._filters.held)
        known = {first.pid}
        more = True
        while more:
            more = False
            children = processes.children()
            todo = list(known)
            while todo:
                parent = todo.pop()
                for child in children.get(parent, ()):
                    if child.pid not in known and bpf.lookup(followed, _KEY.pack(parent), text.FOLLOWED.size):
                        _add(followed, child)
                        known.add(child.pid)
                        todo.append(child.pid)
                        more = True
        return known


def select(filters: Filters, peer: int) -> Selection:
    """Find what filters name, before anything is compiled. ``peer``: the notebook's process, 0 where it is not known.

    ProgramError for what is not there, UnsupportedError where it cannot be told.
    """
    if len(os.fsencode(filters.comm.removesuffix("*"))) >= _MAX_COMM:
        raise ProgramError(f"comm={filters.comm!r}: longer than names of threads are")
    if filters.uid is not None and not 0 <= filters.uid < 1 << 32:
        raise ProgramError(f"uid={filters.uid}: there is no such user")
    option = "pid" if filters.pid else "follow"
    pid = filters.pid or filters.follow
    process = processes.find(option, pid, peer) if pid else None
    return Selection(filters, process, open_cgroup(filters.cgroup) if filters.cgroup else None)


def _add(followed: int, process: Process, *, selected: bool = True) -> None:
    """Put a process into the map, unless it has ended: its number may be another's by now."""
    key = _KEY.pack(process.pid)
    try:
        bpf.update(followed, key, text.FOLLOWED.pack(0, selected))
    except OSError as error:
        room = bpf.map_shape(followed).max_entries
        message = f"there is room to follow {room:,} processes, and there are more ({error.strerror})"
        raise ProgramError(message, hint=f"write -D BPFNB_MAX_FOLLOWED={4 * room}") from None
    if processes.started(process.pid) != process.started:
        bpf.delete(followed, key)


def _pattern(comm: str) -> tuple[bytes, bytes]:
    """Return a name, or its beginning, as the kernel has it, and which of its bits matter."""
    name = os.fsencode(comm.removesuffix("*"))
    matter = len(name) if comm.endswith("*") else _MAX_COMM
    return name.ljust(_MAX_COMM, b"\0"), (b"\xff" * matter).ljust(_MAX_COMM, b"\0")


def _values(loaded: Loaded) -> int:
    return _map(loaded, text.FILTER_MAP, text.FILTER.size)


def _followed(loaded: Loaded) -> int:
    return _map(loaded, text.FOLLOWED_MAP, text.FOLLOWED.size)


def _map(loaded: Loaded, name: str, size: int) -> int:
    """Return the descriptor of one of our maps. ProgramError where the cell has made something else of it: by the size
    of its values the kernel knows how much of our memory to read and write."""
    held = loaded.maps.get(name)
    shape = bpf.map_shape(held.fd) if held else None
    if held is None or shape is None or (shape.key_size, shape.value_size) != (_KEY.size, size):
        raise ProgramError(f"the cell redefines what its filters need: {name}")
    return held.fd
