"""Requests for the maps of running sessions: reading, changing, clearing them, and filling them with counters."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

from msgspec import Struct

from bpfnb.errors import ProgramError
from bpfnb.protocol.messages import MapRead
from bpfnb.tracer.kernel import maps as kernel_maps
from bpfnb.tracer.link import slots
from bpfnb.tracer.link.link import close_all
from bpfnb.tracer.outbox import Outbox
from bpfnb.tracer.sessions.session import Session

__all__ = ["Maps", "send_map"]


class Maps:
    """Answers requests for maps; for any thread. Each raises ProgramError where there is no such session or map.

    ``find``: a running session, by its number; ProgramError where there is none.
    """

    def __init__(self, outbox: Outbox, find: Callable[[int], Session]) -> None:
        self._outbox = outbox
        self._find = find

    def read(self, request: int, number: int, name: str, outbox: Outbox | None = None) -> None:
        """Send a map's entries, as MapRead has them. ``outbox``: to another than the notebook."""
        session = self._find(number)
        with session.used():
            send_map(outbox or self._outbox, request, session, name, kernel_maps.dump)

    def take(self, request: int, number: int, name: str, most: int) -> None:
        """Send entries, taken out of the map."""
        if most < 0:
            raise ProgramError(f"{most} entries cannot be taken")
        session = self._find(number)
        with session.used(taking=True):
            take = partial(kernel_maps.take, most=most, over=lambda: session.over)
            send_map(self._outbox, request, session, name, take, taken=True)

    def look_up(self, number: int, name: str, key: bytes) -> bytes | None:
        session = self._find(number)
        with session.used():
            fd = session.map_fd(name)
            if session.info(name).kind == "prog_array":
                function = slots.program_at(fd, key, session.loaded)
                return function.encode() if function is not None else None
            return kernel_maps.look_up(fd, key)

    def write(self, number: int, name: str, key: bytes, value: bytes | None) -> bool:
        session = self._find(number)
        with session.used():
            kind, fd = session.info(name).kind, session.map_fd(name)
            if kind in slots.KINDS:
                return _write_slot(session, kind, fd, key, value)
            if value is not None and kind.endswith("_of_maps"):  # it is the inner map's name
                inner = value.decode(errors="replace")
                if inner not in session.loaded.maps:
                    raise ProgramError(f"there is no map {inner!r} to put into {name}")
                value = struct.pack("=I", session.loaded.maps[inner].fd)
            return kernel_maps.write(fd, key, value)

    def open_counter(self, number: int, name: str, kind: str, event: str) -> None:
        """Fill a perf array with a counter, for as long as the session runs; it takes the place of one before it."""
        session = self._find(number)
        with session.used():
            if session.info(name).kind != "perf_event_array":
                raise ProgramError(f"{name} holds no counters")
            opened = slots.open_counters(session.map_fd(name), kind, event)
            close_all(session.counters.pop(name, []))
            session.counters[name] = opened

    def clear(self, number: int, name: str) -> None:
        session = self._find(number)
        with session.used():
            kernel_maps.clear(session.map_fd(name))


def _write_slot(session: Session, kind: str, fd: int, key: bytes, value: bytes | None) -> bool:
    if value is None:
        return slots.empty(fd, key)
    name = value.decode(errors="surrogateescape")
    if kind == "prog_array":
        slots.set_program(fd, key, name, session.loaded)
    else:
        slots.set_cgroup(fd, key, name)
    return True


class _To(Protocol):
    def send(self, message: Struct, fds: Sequence[int] = ()) -> None: ...


def send_map(
    to: _To,
    request: int,
    session: Session,
    name: str,
    read: Callable[[int], tuple[int, int]],
    taken: bool = False,
) -> int:
    """Read a map and send its entries: return how many bytes.

    ``read``: given the map's descriptor, returns how many entries there are, and a memfd of them.
    """
    count, fd = read(session.map_fd(name))
    try:
        to.send(MapRead(request, session.number, name, count, taken), [fd])
        return os.fstat(fd).st_size
    finally:
        os.close(fd)
