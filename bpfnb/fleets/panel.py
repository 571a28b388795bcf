"""A fleet's session as a panel has it: lines of what was heard, a line a host or one of all."""

from __future__ import annotations

from typing import NamedTuple

from bpfnb.fleets.heard import FleetMeter
from bpfnb.fleets.session import FleetSession
from bpfnb.fleets.tables import HOST
from bpfnb.results.snapshot import SessionState, Snapshot
from bpfnb.views.live.view import ViewSpec

__all__ = ["Watched"]


class _Counted(NamedTuple):
    names: tuple[str, ...] = ("time", HOST)


class Watched:
    """What a panel needs of a session: see bpfnb.views.live.specs.Traced."""

    presentation = None

    def __init__(self, session: FleetSession, output: str | None) -> None:
        self._session = session
        self.outputs = {session._main(output): _Counted()}
        self.maps: dict[str, object] = {}

    def specs(self, by: str | None, window: float) -> tuple[ViewSpec, ...]:
        return ViewSpec(self, "rates", by=by, window=window), ViewSpec(self, "counters")

    @property
    def name(self) -> str:
        return self._session.name

    @property
    def state(self) -> SessionState:
        return self._session.state

    def snapshot(self) -> Snapshot:
        return self._session.snapshot()

    def stop(self) -> None:
        self._session.stop()

    def meter(self, by: str | None = None, output: str | None = None, window: float = 60.0) -> FleetMeter:
        return self._session.meter(next(iter(self.outputs)) if output is None else output, by, window)
