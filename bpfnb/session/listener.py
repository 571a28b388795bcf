"""What a tracer reports of a session, on the thread that reads the tracer's messages."""

from __future__ import annotations

import time
import weakref
from typing import TYPE_CHECKING

import msgspec

from bpfnb.errors import Diagnostic, MapError, TracerDied
from bpfnb.host.tracer import Listener
from bpfnb.protocol.messages import (
    CostsAdded,
    CountersAdded,
    Ended,
    Loaded,
    MapLost,
    MapRead,
    Noted,
    SegmentAdded,
)
from bpfnb.results.cost import Costs
from bpfnb.results.maps.refusals import Counters
from bpfnb.results.output import Output, OutputKind
from bpfnb.session.map_access import maps_of

if TYPE_CHECKING:
    from bpfnb.session.session import Session

__all__ = ["SessionListener"]


class SessionListener(Listener):
    """Puts what a tracer reports into its session."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def on_segment(self, message: SegmentAdded, fd: int) -> None:
        session = self._session
        output = session._outputs.get(message.output)
        if output is None and message.schema:
            kinds: dict[str, OutputKind] = {output.name: output.kind for output in session.program.outputs}
            kind = kinds.get(message.output, "printk")
            output = Output(message.output, message.schema, message.epoch_ns, session._keep, kind)
            output.owner = weakref.ref(session)
            session._outputs[message.output] = output
        if output:
            output.add_segment(message.layout, fd, message.epoch_ns, message.missed)

    def on_loaded(self, message: Loaded) -> None:
        session = self._session
        place = session.program.line_map.diagnostic
        notes = tuple(map(place, message.notes))
        early = session.warnings
        session.probes = message.probes
        warnings = tuple(map(place, message.warnings))
        if session._presentation:  # nobody wrote its C
            warnings = tuple(msgspec.structs.replace(warning, line=0, column=0) for warning in warnings)
        session.warnings = (*notes, *session.program.warnings, *warnings, *early)
        session._notes = tuple(f"line {note.line}: {note.message}" for note in notes)
        session._maps = maps_of(session, message.maps)
        session._started = time.monotonic()
        session.state = "running"

    def on_counters(self, message: CountersAdded, fd: int) -> None:
        self._session._counters = Counters(message, fd)

    def on_costs(self, message: CostsAdded, fd: int) -> None:
        self._session._costs = Costs(message, fd)

    def on_map(self, message: MapRead, data: bytes) -> None:
        self._session._final_maps[message.map] = message.count, data

    def on_map_lost(self, message: MapLost) -> None:
        self._session._final_maps[message.map] = MapError(message.message)

    def on_ended(self, message: Ended) -> None:
        session = self._session
        if not message.detaching:
            session._detached.set()
        session._pending = frozenset(message.maps)
        session._end("stopped", message.reason)

    def on_note(self, message: Noted) -> None:
        session = self._session
        session.warnings += (Diagnostic(0, 0, "note", message.text),)
        for name, output in list(session._outputs.items()):
            if message.output in ("", name):
                output.note(message.text)

    def on_detached(self) -> None:
        self._session._detached.set()
        self._session._on_end(self._session)

    def on_death(self, error: TracerDied) -> None:
        session = self._session
        session._detached.set()
        for name in session._pending - set(session._final_maps):
            session._final_maps[name] = MapError(f"the map {name} had not been read when the tracer ended")
        if session.state == "stopped":
            return
        session._error = error
        session._end("failed", error.message)
