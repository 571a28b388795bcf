"""A session's parts, and the stack that closes them, the last first.

What goes onto the stack, and so the order, is in start.py and readers.py. docs/architecture.md has the whole order
("Closing").
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from bpfnb.errors import ProgramError, near_or_all
from bpfnb.protocol.messages import MapInfo
from bpfnb.protocol.segments import SegmentWriter
from bpfnb.tracer.cancel import Cancel
from bpfnb.tracer.guard.cost import Meter, map_memory
from bpfnb.tracer.kernel.cpus import CpuWatch
from bpfnb.tracer.link.link import Link, close_all
from bpfnb.tracer.loaded import Loaded

__all__ = ["Session", "Starting", "has_ended"]

_TAKING_TIMEOUT = 5.0  # seconds for those who take entries out of a map when their session ends


class Session:
    """A session: what it has loaded, and ``stack``, which undoes all that was done with it, the last first.

    Programs and maps are there for as long as anybody uses them: the session itself, until it is closed, and requests.

    ``links``: the attached probes. ``counters``: the descriptors that hold a perf array's counters, by its name.
    ``failure``: why an output could not be read to its end. ``buffers``: bytes of memory in the kernel, beside the
    maps'. ``over``: it is being ended, and takes no requests any more. ``unread``: maps that are still to be read when
    it has ended.
    """

    def __init__(self, number: int, loaded: Loaded) -> None:
        self.number = number
        self.loaded = loaded
        self.stack = ExitStack()
        self.links: list[Link] = []
        self.counters: dict[str, list[int]] = {}
        self.over = False
        self.unread: tuple[str, ...] = ()
        self.failure = ""
        self.writers: list[SegmentWriter] = []
        self.buffers = 0
        self._changed = threading.Condition()
        self._users = 1
        self._taking = 0
        programs: dict[str, list[int]] = {}
        for spec, fd in loaded.programs.items():
            if not spec.optional:  # the time of one that is only called by another is in that one's
                programs.setdefault(spec.function, []).append(fd)
        self.meter = Meter(programs, self._events, self._memory)
        self.stack.callback(self.meter.close)

    def info(self, name: str) -> MapInfo:
        """Return a map of the session; ProgramError where there is none of this name."""
        infos = {info.name: info for info in self.loaded.map_infos}
        if name not in infos:
            raise ProgramError(f"the session has no map {name!r}{near_or_all(name, list(infos))}")
        return infos[name]

    def map_fd(self, name: str) -> int:
        """Return a map's descriptor; ProgramError where there is none of this name."""
        return self.loaded.maps[self.info(name).name].fd

    @contextmanager
    def used(self, *, taking: bool = False) -> Iterator[None]:
        """Keep programs and maps inside; ``taking``: entries are taken out of a map. ProgramError when it is over."""
        with self._changed:
            if self.over:
                raise has_ended()
            self._users += 1
            self._taking += taking
        try:
            yield
        finally:
            self._leave(taking)

    def hold(self) -> None:
        """Keep programs and maps until ``release``, also after the session has been closed."""
        with self._changed:
            self._users += 1

    def release(self) -> None:
        self._leave(False)

    def follow_cpus(self, cpus: CpuWatch, renew: Callable[[int], None]) -> None:
        """Have ``renew`` called with each CPU that comes online, until the session closes."""
        cpus.subscribe(renew)
        self.stack.callback(cpus.unsubscribe, renew)

    def end(self) -> None:
        """Take no more requests, and wait for those who take entries out of a map: they end with what they have."""
        with self._changed:
            self.over = True
            self._changed.wait_for(lambda: not self._taking, _TAKING_TIMEOUT)

    def close(self) -> None:
        self.over = True
        try:
            self.stack.close()
        finally:
            self.release()

    def events(self) -> list[int]:
        """The descriptors that are left when it is closed: no program runs at them, but closing them may take long."""
        return [fd for link in self.links for fd in link.events]

    def _events(self) -> int:
        return sum(writer.rows + writer.lost for writer in self.writers)

    def _memory(self) -> int:
        return self.buffers + sum(map_memory(held.fd) for held in self.loaded.maps.values())

    def _leave(self, taking: bool) -> None:
        with self._changed:
            self._users -= 1
            self._taking -= taking
            self._changed.notify_all()
            last = not self._users
        if last:
            for opened in self.counters.values():
                close_all(opened)
            self.loaded.close()


class Starting:
    """A session that is being started. ``reason``: why it is to end as soon as it runs, or ""."""

    def __init__(self) -> None:
        self.cancel = Cancel()
        self.reason = ""
        self.done = threading.Event()
        self._lock = threading.Lock()
        self._attaching = False

    def attach(self) -> None:
        """From here on programs may run. CancelledError when it was cancelled."""
        with self._lock:
            self.cancel.check()
            self._attaching = True

    def give_up(self) -> None:
        """Have no program run any more, nor begin to. What is compiled is let go; what is being attached is waited for,
        and taken off."""
        with self._lock:
            self.cancel.cancel()
        if self._attaching:
            self.done.wait()


def has_ended() -> ProgramError:
    return ProgramError("the session has ended")
