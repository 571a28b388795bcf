"""Read what sessions print and submit, into segments for the notebook."""

from __future__ import annotations

import mmap
import threading
import traceback
from collections.abc import Callable, Iterable
from functools import partial
from typing import TypeVar

import numpy as np

from bpfnb.errors import BpfnbError
from bpfnb.protocol.credit import Credit
from bpfnb.protocol.messages import Noted
from bpfnb.protocol.schema import PRINTK, Schema
from bpfnb.protocol.segments import SegmentWriter
from bpfnb.tracer.kernel import capabilities
from bpfnb.tracer.kernel.cpus import CpuWatch
from bpfnb.tracer.loaded import Counters, LoadedOutput
from bpfnb.tracer.read import lines
from bpfnb.tracer.read.clock import Clock
from bpfnb.tracer.read.comms import CommHistory
from bpfnb.tracer.read.mappings import MappingSource
from bpfnb.tracer.read.perf import PerfSource
from bpfnb.tracer.read.poller import Poller
from bpfnb.tracer.read.printk import PrintkSource
from bpfnb.tracer.read.records import OpenWriter
from bpfnb.tracer.read.ringbuf import RingSource
from bpfnb.tracer.sessions.audience import Audience
from bpfnb.tracer.sessions.session import Session
from bpfnb.tracer.symbols.mappings import Past, Pasts

__all__ = ["Readers"]

Writer = TypeVar("Writer", bound=SegmentWriter)
_Source = RingSource | PerfSource | PrintkSource


class Readers:
    """Reads sessions' outputs; for any thread. ``end``: has a session end, by its number, for a reason."""

    def __init__(self, audience: Audience, cpus: CpuWatch, end: Callable[[int, str], None]) -> None:
        self._audience = audience
        self._cpus = cpus
        self._end = end
        self._poller = Poller()
        self._clock = Clock()
        self._credits: dict[int, Credit] = {}
        self._naming = threading.Lock()  # held while the history of names is made or removed
        self._comms: CommHistory | None = None
        self._printing: set[int] = set()
        self._pasts = Pasts()
        self._watching: dict[int, MappingSource] = {}

    def read(self, session: Session, keep: int) -> None:
        """Begin to read all that a session prints and submits, until it closes.

        ``keep``: at most so many bytes wait for the notebook.
        """
        self._credits[session.number] = Credit(keep)
        session.stack.callback(self._credits.pop, session.number)
        if session.loaded.tag:
            self._drain(session, "printk", self._printk_source(session))
        for output in session.loaded.outputs:
            self._drain(session, output.name, self._output_source(session, output))

    def received(self, number: int, segments: int) -> None:
        """Note that the notebook has received so many more of a session's segments."""
        if credit := self._credits.get(number):
            credit.acknowledge(segments)

    def watch(self, session: Session) -> Callable[[Iterable[int]], None]:
        """Begin to watch what processes map, until the session closes. Return what is to be called with those that it
        follows from the start; what they start is remembered too (Pasts). Where that cannot be had, a note says so."""
        try:
            with capabilities.with_sys_admin():
                source = MappingSource(session.number, self._pasts)
        except OSError as error:
            self._note(session.number, "", f"functions of processes that have ended have no names: {error.strerror}")
            return lambda pids: None
        self._watching[session.number] = source
        session.buffers += source.memory
        session.stack.callback(source.close)
        session.stack.callback(self._leave, session.number, source)

        def begin(pids: Iterable[int]) -> None:
            source.begin(pids)
            self._poller.add(source.fds, source.drain, needs_polling=True)
            session.stack.callback(self._poller.remove, source.fds)
            session.follow_cpus(self._cpus, source.renew)

        return begin

    def past(self, number: int, pid: int) -> Past | None:
        """Return what is remembered of a process that a session follows or has followed; None where nothing is."""
        if source := self._watching.get(number):
            source.drain(last=True)
        return self._pasts.find(number, pid)

    def _leave(self, number: int, source: MappingSource) -> None:
        source.leave()
        del self._watching[number]
        if source.lost:
            what = "changes of what processes have mapped were lost: some functions have no name, or another one's"
            self._note(number, "", f"{source.lost:,} {what}")

    def _printk_source(self, session: Session) -> PrintkSource:
        comms = self._share_comms(session)
        writer = self._writer(SegmentWriter, session, "printk", PRINTK)
        return PrintkSource(session.loaded.tag, comms, writer, partial(self._note, session.number, "printk"))

    def _output_source(self, session: Session, output: LoadedOutput) -> RingSource | PerfSource:
        if output.kind == "lines":
            writer = self._writer(lines.LineWriter, session, output.name, output.schema)
            return RingSource(output.fd, lines.LINES, writer.reads, _counter(output.lost), stamped=output.stamped)
        with capabilities.with_sys_admin():
            return _event_source(output, partial(self._writer, SegmentWriter, session, output.name))

    def _drain(self, session: Session, output: str, source: _Source) -> None:
        """Have a source drained until the session closes. One that fails ends its session."""

        def failed(error: Exception) -> None:
            traceback.print_exception(error)
            why = str(error) if isinstance(error, BpfnbError) else f"{type(error).__name__}: {error}"
            session.failure = f"{output} could not be read any further: {why}".splitlines()[0]
            self._end(session.number, session.failure)

        def last() -> None:
            try:
                source.drain(last=True)
            except Exception as error:
                failed(error)

        session.buffers += source.memory
        session.stack.callback(source.close)
        self._poller.add(source.fds, session.meter.timed(source.drain), needs_polling=source.needs_polling, fail=failed)
        session.stack.callback(self._poller.remove, source.fds, last=last)
        if not isinstance(source, RingSource):
            session.follow_cpus(self._cpus, source.renew)

    def _writer(self, kind: type[Writer], session: Session, output: str, schema: Schema) -> Writer:
        epoch = self._clock.epoch_ns
        to = self._audience.recipients(session.number, output, schema, epoch, self._credits[session.number])
        writer = kind(schema, to, epoch)
        session.writers.append(writer)
        session.stack.callback(writer.close)
        return writer

    def _note(self, number: int, output: str, text: str) -> None:
        self._audience.send(Noted(number, text, output))

    # --- the history of tasks' names, there while any session prints ---

    def _share_comms(self, session: Session) -> CommHistory:
        with self._naming:
            if self._comms is None:
                comms = CommHistory()
                try:
                    self._cpus.subscribe(comms.renew)
                except OSError:
                    comms.close()
                    raise
                self._poller.add(comms.fds, comms.drain, fail=self._comms_failed)
                self._comms = comms
            self._printing.add(session.number)
            session.stack.callback(self._release_comms, session.number)
            return self._comms

    def _release_comms(self, number: int) -> None:
        with self._naming:
            self._printing.discard(number)
            if self._comms and not self._printing:
                self._cpus.unsubscribe(self._comms.renew)
                self._poller.remove(self._comms.fds)
                self._comms.close()
                self._comms = None

    def _comms_failed(self, error: Exception) -> None:
        traceback.print_exception(error)
        for number in list(self._printing):
            self._end(number, f"tasks' names could not be read any further: {type(error).__name__}: {error}")


def _event_source(output: LoadedOutput, open_writer: OpenWriter) -> RingSource | PerfSource:
    lost = _counter(output.lost)
    if output.kind == "perf":
        return PerfSource(
            output.fd, output.schema, open_writer, lost, sizes=output.sizes, padded=output.padded, cpu=output.cpu
        )
    return RingSource(output.fd, output.schema, open_writer, lost, stamped=output.stamped, cpu=output.cpu)


def _counter(counters: Counters) -> Callable[[], int]:
    """Return what reads a counter that programs keep: from the kernel's own memory."""
    numbers = np.frombuffer(mmap.mmap(counters.fd, mmap.PAGESIZE, prot=mmap.PROT_READ), np.uint64)
    return lambda: int(numbers[counters.first])
