"""A tracer without a kernel: for bpfnb's own tests and for yours.

    with FakeTracer() as tracer:
        session = bpfnb.trace('int kprobe__sys_sync(void *ctx) { bpf_trace_printk("hi\\n"); return 0; }')
        tracer.printk(session, [Line("bash", 42, "hi")])
        assert list(session.df.msg) == ["hi"]

It speaks the real protocol over a real socketpair and fills real segments, but compiles nothing and attaches nothing:
every program is taken as good unless told otherwise (``refuse``).
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import NamedTuple

import numpy as np

from bpfnb import client, protocol
from bpfnb.errors import BpfnbError
from bpfnb.program import Program
from bpfnb.protocol import Check, Connection, ProbeInfo, ToTracer
from bpfnb.schema import PRINTK, PRINTK_ROW, Layout
from bpfnb.session import Session
from bpfnb.tracer.segments import SegmentWriter

__all__ = ["FakeTracer", "Line"]


class Line(NamedTuple):
    """A line as bpf_trace_printk delivers it. ``mono_ns``: CLOCK_MONOTONIC, nanoseconds; 0 is now."""

    comm: str | bytes
    pid: int
    msg: str | bytes
    cpu: int = 0
    mono_ns: int = 0


class FakeTracer:
    """Stands in for the tracer process of this notebook, inside a ``with`` block."""

    def __init__(self, probes: Sequence[str] = (), checks: Sequence[Check] = ()) -> None:
        self._probes = tuple(probes)
        self._checks = tuple(checks)
        self._refusals: list[BpfnbError] = []
        self._writers: dict[int, SegmentWriter] = {}
        self._before: client.Client | None = None
        self.loaded: list[str] = []  # the sources of the programs loaded, in order
        self.stopped: list[int] = []  # the numbers of the sessions stopped, in order

    def __enter__(self) -> FakeTracer:
        ours, theirs = socket.socketpair()
        self._connection: Connection[ToTracer] = Connection(theirs, ToTracer)
        self._thread = threading.Thread(target=self._serve, name="bpfnb-fake-tracer")
        self._thread.start()
        self._client = client.Client(ours)
        self._before = client.replace(self._client)
        self._connection.send(protocol.Hello(os.getpid(), "fake", "fake"))
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self._client.close()
        self.die()
        client.replace(self._before)

    def printk(self, session: Session, lines: Iterable[Line | tuple[str | bytes, int, str | bytes]]) -> None:
        """Deliver lines to a session. On return they are in its ``df``."""
        full = [line if isinstance(line, Line) else Line(*line) for line in lines]
        messages = [_bytes(line.msg) for line in full]
        rows = np.zeros(len(full), PRINTK_ROW)
        rows["mono_ns"] = [line.mono_ns or time.monotonic_ns() for line in full]
        rows["text_end"] = np.cumsum([len(message) for message in messages])
        rows["pid"] = [line.pid for line in full]
        rows["cpu"] = [line.cpu for line in full]
        rows["comm"] = [_bytes(line.comm) for line in full]
        self._writer(session).append(
            rows.view(np.uint8).reshape(len(rows), -1), np.frombuffer(b"".join(messages), np.uint8)
        )
        self._client.find_probes("", 0)  # its answer comes after the news of any segment that was begun

    def lose(self, session: Session, total: int) -> None:
        """Say that a session has lost so many events so far."""
        self._writer(session).set_lost(total)

    def refuse(self, error: BpfnbError) -> None:
        """Answer the next program with this error."""
        self._refusals.append(error)

    def die(self) -> None:
        """End the conversation as a killed tracer would. Idempotent."""
        self._connection.close()
        self._thread.join()
        self._writers.clear()

    def _writer(self, session: Session) -> SegmentWriter:
        return self._writers[session._number]

    def _serve(self) -> None:
        try:
            while True:
                message, _ = self._connection.receive()
                self._connection.send(self._reply(message))
        except (EOFError, OSError):
            pass  # either end has closed

    def _reply(self, message: ToTracer) -> protocol.FromTracer:
        match message:
            case protocol.Load(request, program):
                return self._load(request, program)
            case protocol.Stop(request, session):
                self.stopped.append(session)
                self._writers.pop(session, None)
                return protocol.Stopped(request)
            case protocol.FindProbes(request, _, limit):
                return protocol.ProbeNames(request, self._probes[:limit], max(len(self._probes) - limit, 0))
            case protocol.RunChecks(request):
                return protocol.Checks(request, self._checks)

    def _load(self, request: int, program: Program) -> protocol.FromTracer:
        if self._refusals:
            return protocol.Failed.of(request, self._refusals.pop(0))
        self.loaded.append(program.source)
        epoch = time.time_ns() - time.monotonic_ns()

        def publish(layout: Layout, fd: int) -> None:
            self._connection.send(protocol.SegmentAdded(request, "printk", PRINTK, layout, epoch), [fd])

        if program.prints:
            self._writers[request] = SegmentWriter(PRINTK, publish)
        probes = tuple(ProbeInfo(p.requested, p.requested, p.kind, "", p.function) for p in program.probes)
        return protocol.Loaded(request, probes, ())


def _bytes(text: str | bytes) -> bytes:
    return text if isinstance(text, bytes) else text.encode()
