"""What each host says once a second: how many rows there were by when, what was lost, and tables that are small.

It travels as msgpack within an event of dask's (``Worker.log_event``), by the connection that each worker has with the
scheduler anyway, and from there to the client: no request, no pickle. The scheduler keeps the last 1,000 of them, so
one is bounded: ``MAX_TABLE``.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pandas as pd
import pyarrow as pa

from bpfnb.errors import BpfnbError
from bpfnb.interrupts import new_lock
from bpfnb.results.output import Output, Position
from bpfnb.results.presentation import Table

if TYPE_CHECKING:
    from bpfnb.session import Session

__all__ = ["COUNTED", "MAX_TABLE", "TICKS", "Counter", "HostSums", "OutputSums", "SessionSums", "pack", "unpack"]

TICKS = 10  # intervals of a second that events are counted in
MAX_TABLE = 8 << 10  # bytes, compressed
COUNTED = ""  # the name of what a table's column "count" adds up to, beside those of outputs
_TICK_NS = 10**9 // TICKS
_MAX_UNPACKED = 4 << 20
_PACE = 20  # a table that takes a second to make is made every 20 s


class OutputSums(msgspec.Struct, array_like=True):
    """An output's numbers so far; and since the last time, intervals (of the host's clock) and the events in each."""

    name: str
    rows: int
    lost: int
    dropped: int
    ticks: list[int]
    counts: list[int]


class SessionSums(msgspec.Struct, array_like=True):
    """A session's. ``tables``: by the name of a map, "" is ``df``; as they were at ``tables_ns`` of the host's clock;
    those that have changed. ``unkept``: why others are not among them."""

    session: int
    state: str
    reason: str
    outputs: list[OutputSums]
    refused: dict[str, int]
    tables: dict[str, bytes]
    tables_ns: int
    unkept: str = ""


class HostSums(msgspec.Struct, array_like=True):
    """A host's, numbered from 1. ``offset_ns``: its clock minus that of the scheduler, within ``error_ns``."""

    number: int
    time_ns: int
    offset_ns: int
    error_ns: int
    sessions: list[SessionSums]


class Counter:
    """Counts what is new of a session, on its host. Any thread may call ``read``; each event is in one answer."""

    def __init__(self, session: Session, number: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.session = session
        self.number = number
        self._clock = clock
        self._lock = new_lock()
        self._positions: dict[str, Position] = {}
        self._tables: dict[str, bytes] = {}
        self._tables_due = 0.0
        self._tables_ns = 0
        self._counted = 0
        self._unkept = ""
        self.done = False  # it has ended, and all of it was read

    def read(self, last: bool = False) -> SessionSums:
        """Return what is new. ``last``: make tables, too, though it is not their time."""
        with self._lock:
            session = self.session
            state, reason = session.state, session.reason  # before the rows: what ended has all of them
            outputs = [self._output(name, output) for name, output in list(session.outputs.items())]
            changed: dict[str, bytes] = {}
            ended = state not in ("starting", "running")
            if last or ended or self._clock() >= self._tables_due:
                began = self._clock()
                changed, counted = self._changed_tables()
                outputs += [counted] if counted else []
                self._tables_due = began + max(1.0, _PACE * (self._clock() - began))
            self.done = ended
            refused = {name: map_.lost for name, map_ in session.maps.items() if map_.lost}
            return SessionSums(
                self.number, state, reason, outputs, refused, changed, self._tables_ns, self._unkept
            )  # fmt: skip

    def _output(self, name: str, output: Output) -> OutputSums:
        new = output.since(self._positions.get(name, Position()), None)
        self._positions[name] = new.position
        ticks, counts = np.unique(new.times // _TICK_NS, return_counts=True)
        return OutputSums(name, output.rows, output.lost, output.dropped, ticks.tolist(), counts.tolist())

    def _changed_tables(self) -> tuple[dict[str, bytes], OutputSums | None]:
        """Return the tables that have changed; and what ``df`` has counted since the last time, where it counts."""
        presentation, counted = self.session.presentation, None
        found: dict[str, pd.DataFrame] = {}
        self._unkept = ""
        try:
            self._tables_ns = time.time_ns()
            if isinstance(presentation, Table):
                found[""] = frame = self.session.df
                if presentation.grows and "count" in frame:
                    counted = self._growth(int(frame["count"].sum()))
            elif presentation is None:
                found = {name: map_.df for name, map_ in self.session.maps.items() if map_.kind != "stack_trace"}
        except BpfnbError as error:  # a map that is not to be read, or a session that has just ended
            self._unkept = error.message
        changed: dict[str, bytes] = {}
        for name, frame in found.items():
            try:
                packed = pack(frame)
            except (pa.ArrowException, ValueError, TypeError) as error:
                self._unkept = f"{name or 'df'}: {error}"
                continue
            if len(packed) > MAX_TABLE:
                self._unkept = f"{name or 'df'} is too large to be kept by the client: {len(frame):,} rows"
            elif packed != self._tables.get(name):
                self._tables[name] = changed[name] = packed
        return changed, counted

    def _growth(self, total: int) -> OutputSums:
        grown, self._counted = max(total - self._counted, 0), total
        now = self._tables_ns // _TICK_NS
        return OutputSums(COUNTED, total, 0, 0, [now] if grown else [], [grown] if grown else [])


def pack(frame: pd.DataFrame) -> bytes:
    """Return a small table as bytes: Arrow's IPC stream, compressed. Raises what pyarrow raises for other values."""
    sink = pa.BufferOutputStream()
    table = pa.Table.from_pandas(pd.DataFrame(frame).reset_index(drop=True), preserve_index=False)
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return zlib.compress(sink.getvalue(), 1)


def unpack(data: bytes) -> pd.DataFrame:
    """Return the table of ``pack``. ValueError for anything else."""
    unzip = zlib.decompressobj()
    try:
        content = unzip.decompress(data, _MAX_UNPACKED)
        if unzip.unconsumed_tail:
            raise ValueError("a table that is larger than it can be")
        reader: Any = pa.ipc.open_stream(content)
        return pd.DataFrame(reader.read_pandas())
    except (zlib.error, pa.ArrowException) as error:
        raise ValueError(f"not a table: {error}") from None
