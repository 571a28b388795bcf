"""A session's maps, as Map asks for them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from bpfnb.errors import MapError, ProgramError
from bpfnb.host.tracer import Tracer
from bpfnb.interrupts import Flag
from bpfnb.protocol.messages import MapInfo
from bpfnb.results.maps.entries import Snapshot
from bpfnb.results.maps.map import Map
from bpfnb.results.output import Keep
from bpfnb.views.live import live

if TYPE_CHECKING:
    from bpfnb.session.session import Session
    from bpfnb.views.live.panel import Panel

__all__ = ["MapAccess", "maps_of"]

Value = TypeVar("Value")

_ENDING_TIMEOUT = 5.0  # seconds; detaching hundreds of probes takes long


def maps_of(session: Session, infos: Iterable[MapInfo]) -> dict[str, Map]:
    """Return a session's maps, by name."""
    source = session.program.source
    return {
        info.name: Map(
            info,
            MapAccess(session, info.name),
            _only_sets(source, info.name),
            partial(session._refused, info),
            session.program.line_map.describe(info.line),
            "log2" if "log2" in source else "linear",
        )
        for info in infos
    }


def _only_sets(source: str, name: str) -> bool:
    """Return whether a cell's C only sets and deletes whole entries of a map, so that none changes in place."""
    methods = set(re.findall(rf"\b{re.escape(name)}\s*\.\s*(\w+)\s*\(", source))
    return bool(methods) and methods <= {"insert", "update", "delete"}


class MapAccess:
    """A Map's access to its entries: in the kernel while the session runs, then as they were at its end."""

    def __init__(self, session: Session, name: str) -> None:
        self._session = session
        self._name = name

    @property
    def session(self) -> Session:
        return self._session

    def show(self, map_: object, window: float) -> Panel:
        return live(map_, window=window)

    @property
    def running(self) -> bool:
        return self._session._in_kernel

    @property
    def moment(self) -> int:
        ahead = self._session._costs.clock_ns if self._session._costs else 0
        return int(self._session._present() * 1e9) + ahead

    @property
    def ended(self) -> Flag:
        return self._session._ended

    @property
    def keep(self) -> Keep:
        return self._session._keep

    def read(self) -> tuple[int, bytes]:
        session = self._session
        if self.running:
            try:
                return self._while_running(lambda: self._tracer().read_map(session._number, self._name))
            except ProgramError:
                if self.running:
                    raise
        entries = session._last_entries(self._name)
        if entries is None:
            raise session._error or ProgramError(f"{session.name} ended before its map {self._name} could be read")
        if isinstance(entries, MapError):
            raise MapError(entries.message)
        return entries

    def recorded(self) -> Sequence[Snapshot] | None:
        return self._session._snapshots(self._name)

    def look_up(self, key: bytes) -> bytes | None:
        return self._tracer().look_up(self._session._number, self._name, key)

    def take(self, most: int = 0) -> tuple[int, bytes]:
        return self._while_running(lambda: self._tracer().take_map(self._session._number, self._name, most))

    def write(self, key: bytes, value: bytes | None) -> bool:
        return self._tracer().write_map(self._session._number, self._name, key, value)

    def open_counter(self, kind: str, event: str) -> None:
        self._tracer().open_counter(self._session._number, self._name, kind, event)

    def clear(self) -> None:
        self._tracer().clear_map(self._session._number, self._name)

    def symbols(self, pid: int, addresses: Sequence[int]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Return names and modules of code addresses."""
        return self._session._resolve(pid, addresses)

    def _while_running(self, ask: Callable[[], Value]) -> Value:
        """Ask the tracer. Of a session that it is just ending it knows no maps any more: raises its ProgramError once
        that is known here, and ``running`` no longer true."""
        try:
            return ask()
        except ProgramError:
            self._session._ended.wait(_ENDING_TIMEOUT)
            raise

    def _tracer(self) -> Tracer:
        if self._session.state != "running" or not self._session._tracer:
            what = "a recording" if self._session._recorded() else self._session.state
            raise ProgramError(f"{self._session.name} is {what}: its map {self._name} cannot be changed")
        return self._session._tracer
