"""Record a session while it runs, in a process of its own: an unprivileged second client of its tracer.

It gets all rows, however busy the notebook is, decodes them in batches as the notebook does, and writes them
(writer.py). Memory is bounded: a segment is acknowledged once the ones before it are written, so that the tracer has no
more under way than it allows. Where writing fails, rows are still taken, and counted, so that the session goes on.

Threads: one reads the tracer's messages; the main one decodes and writes; another one reads maps every few seconds, and
asks for the names of functions before their processes end. The last two share ``_writing``.
"""

from __future__ import annotations

import gc
import os
import queue
import socket
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import msgspec
import pandas as pd

from bpfnb.errors import BpfnbError, Diagnostic, TracerDied
from bpfnb.host.client import Client
from bpfnb.host.tracer import Listener
from bpfnb.interrupts import Flag
from bpfnb.protocol import messages
from bpfnb.protocol.messages import MapInfo
from bpfnb.protocol.schema import PRINTK, PRINTK_LINES
from bpfnb.protocol.segments import SegmentReader
from bpfnb.recordings import talk
from bpfnb.recordings.format import CostWords, OutputInfo
from bpfnb.recordings.naming import Asked, Owners, ask_all
from bpfnb.recordings.writer import Writer
from bpfnb.results.cost import Costs
from bpfnb.results.maps.entries import Still
from bpfnb.results.maps.kinds import HOLDS
from bpfnb.results.maps.map import Map
from bpfnb.results.maps.refusals import Counters, total
from bpfnb.results.output import Keep
from bpfnb.results.presentation import Presentation
from bpfnb.results.printk import PrintkTable
from bpfnb.results.table import Table

__all__ = ["Recorder"]

_IDLE = 0.1  # seconds between looks for rows
_FLUSH = 1.0  # seconds
_TABLE = 32 << 20  # bytes of decoded rows, before a new table is begun
_MAPS_EVERY = 5.0  # seconds
_REST = 20  # times as long as reading the maps took, before they are read again
_RATE = 256 << 10  # bytes of a map a second
_MAX_MAP = 64 << 20  # bytes that a map may come to be; larger ones are read at the end only
_LAST_WORD = 2.0  # seconds
_WATCH_TIMEOUT = 10.0  # seconds for what is being read of maps as the session ends


class Recorder(Listener):
    """Records the session that ``tracer`` tells of. ``notebook``: who has begun it, if still there."""

    def __init__(
        self, begin: talk.Begin, tracer: socket.socket, notebook: socket.socket, presentation: Presentation | None
    ) -> None:
        self._manifest = begin.manifest
        self._units = begin.units
        self._notebook: socket.socket | None = notebook
        self._presentation = presentation
        self._writer = Writer(begin.path, begin.manifest, begun=Path(begin.folder))
        self._writing = threading.Lock()
        self._heard: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._outputs: dict[str, _Output] = {}
        self._maps: dict[str, MapInfo] = {}
        self._final: dict[str, tuple[int, bytes]] = {}
        self._counters: Counters | None = None
        self._costs: Costs | None = None
        self._notes: list[str] = []
        self._noted: tuple[Diagnostic, ...] = ()  # while it ran
        self._update = talk.Update(name=begin.manifest.name)
        self._session = 0
        self._loaded = False
        self._ended: tuple[str, str, int] | None = None  # state, reason, when
        self._over = False  # nothing more will be heard
        self._pending: frozenset[str] = frozenset()
        self._said = talk.Status()
        self._watching = threading.Event()
        self._asked = Asked(self._resolve, self._write_symbols)
        self._client = Client(tracer, follow=self)

    def run(self) -> None:
        """Record until the session has ended, and finish the file."""
        flushed = time.monotonic()
        watch = threading.Thread(target=self._watch, name="bpfnb-snapshots", daemon=True)
        while not self._over:
            self._hear(_IDLE)
            if self._loaded and not watch.ident:
                watch.start()
            self._take_rows()
            if time.monotonic() >= flushed + _FLUSH:
                self._flush()
                flushed = time.monotonic()
        self._watching.set()
        if watch.ident:
            watch.join(_WATCH_TIMEOUT)
        self._take_rows()
        if not self._loaded:
            self._client.close()
            self._writer.abandon()
            return
        self._name_functions(self._final)
        self._client.close()
        self._finish()

    # --- what the tracer says, on the thread that reads it ---

    def on_loaded(self, message: messages.Loaded) -> None:
        self._heard.put(lambda: self._begin(message))

    def on_segment(self, message: messages.SegmentAdded, fd: int) -> None:
        if message.output not in self._outputs:  # known from here on: the next segment comes without its schema
            self._outputs[message.output] = self._new_output(message)
        segment = SegmentReader(fd, self._outputs[message.output].info.schema, message.layout, message.epoch_ns)
        self._heard.put(lambda: self._add_segment(message, segment))

    def on_counters(self, message: messages.CountersAdded, fd: int) -> None:
        self._counters = Counters(message, fd)

    def on_costs(self, message: messages.CostsAdded, fd: int) -> None:
        self._costs = Costs(message, fd)

    def on_map(self, message: messages.MapRead, data: bytes) -> None:
        self._heard.put(lambda: self._final.__setitem__(message.map, (message.count, data)))

    def on_map_lost(self, message: messages.MapLost) -> None:
        self._heard.put(lambda: self._notes.append(message.message))

    def on_note(self, message: messages.Noted) -> None:
        self._heard.put(lambda: self._note(message.text))

    def on_ended(self, message: messages.Ended) -> None:
        self._heard.put(lambda: self._end("stopped", message.reason, message.maps, bool(message.detaching)))

    def on_detached(self) -> None:
        self._heard.put(self._hear_the_last)

    def on_death(self, error: TracerDied) -> None:
        self._heard.put(lambda: self._die(error))

    # --- the same, on the main thread ---

    def _hear(self, seconds: float) -> None:
        """Take what the tracer and the notebook have said."""
        with suppress(queue.Empty):
            heard = self._heard.get(timeout=seconds)
            while heard:
                heard()
                heard = self._heard.get_nowait()
        with suppress(EOFError):
            while self._notebook and (update := talk.receive(self._notebook, talk.Update, 0)):
                self._update = update
            return
        self._notebook = None

    def _new_output(self, message: messages.SegmentAdded) -> _Output:
        kinds = {output.name: output.kind for output in self._manifest.program.outputs}
        assert message.schema
        kind = kinds.get(message.output, "printk")
        info = OutputInfo(message.output, kind, message.schema, message.epoch_ns)
        return _Output(len(self._outputs), info, self._units)

    def _begin(self, message: messages.Loaded) -> None:
        self._loaded, self._session = True, message.request
        now = time.monotonic_ns()
        self._maps = {info.name: info for info in message.maps}
        outputs = tuple(output.info for output in self._outputs.values())
        epoch = outputs[0].epoch_ns if outputs else self._manifest.epoch_ns
        self._manifest = msgspec.structs.replace(
            self._manifest,
            began_ns=now + epoch,
            epoch_ns=epoch,
            outputs=outputs,
            maps=message.maps,
            probes=message.probes,
        )
        with self._writing:
            self._writer.update(self._manifest)

    def _add_segment(self, message: messages.SegmentAdded, segment: SegmentReader) -> None:
        self._session = message.session
        output = self._outputs[message.output]
        if self._loaded and output.number >= len(self._manifest.outputs):
            self._manifest = msgspec.structs.replace(
                self._manifest, outputs=tuple(output.info for output in self._outputs.values())
            )
            with self._writing:
                self._writer.update(self._manifest)
        output.add(segment, message.missed)
        self._acknowledge(output)

    def _acknowledge(self, output: _Output) -> None:
        """Acknowledge the segments that there is none before which is not read yet."""
        for _ in range(output.begun()):
            self._client.acknowledge(self._session)

    def _note(self, text: str) -> None:
        self._noted += (Diagnostic(0, 0, "note", text),)

    def _end(self, state: str, reason: str, pending: tuple[str, ...], detaching: bool) -> None:
        self._ended = self._ended or (state, reason, time.monotonic_ns())
        if not pending and not detaching:
            self._hear_the_last()

    def _hear_the_last(self) -> None:
        self._over = True

    def _die(self, error: TracerDied) -> None:
        if not self._ended:
            self._end("failed", error.message, (), False)
        self._hear_the_last()

    # --- rows ---

    def _take_rows(self) -> None:
        """Decode and write what has come."""
        for output in list(self._outputs.values()):
            while self._loaded and (frame := output.decode()) is not None:
                with self._writing:
                    self._writer.rows(output.number, frame, whole=output.first)
                output.first = False
                self._acknowledge(output)

    def _flush(self) -> None:
        if not self._loaded:
            return
        with self._writing:
            for output in self._outputs.values():
                self._writer.progress(output.number, output.rows, output.lost)
            self._writer.flush()
        self._say(self._status())

    # --- maps and names, on a thread of their own ---

    def _watch(self) -> None:
        rest = _MAPS_EVERY
        while not self._watching.wait(rest):
            began = time.monotonic()
            read, size = {}, 0
            for info in self._maps.values():
                if _may_be_read(info):
                    with suppress(BpfnbError):  # its session is ending
                        read[info.name] = self._client.read_map(self._session, info.name)
                        size += len(read[info.name][1])
                        self._snapshot(info, *read[info.name])
            self._name_functions(read)
            rest = max(_MAPS_EVERY, _REST * (time.monotonic() - began), size / _RATE)

    def _snapshot(self, info: MapInfo, count: int, data: bytes) -> None:
        number = list(self._maps).index(info.name)
        lost = total(self._counters.of(info)) if self._counters else 0
        with self._writing:
            self._writer.snapshot(number, time.time_ns(), count, data, lost)

    def _name_functions(self, entries: dict[str, tuple[int, bytes]]) -> None:
        maps = {}
        for name, (count, data) in entries.items():
            info = self._maps.get(name)
            if info and info.value:
                maps[name] = Map(info, _Entries(count, data, self._asked)).frozen()
        rows = [output.owners() for output in list(self._outputs.values())]
        try:
            ask_all(maps, rows, self._presentation)
        except Exception as error:  # a bug of ours costs names, but no row
            if not self._asked.failed:  # once: it is tried again every few seconds
                traceback.print_exc()
            self._asked.failed = self._asked.failed or f"{type(error).__name__}: {error}"

    def _resolve(self, pid: int, addresses: Sequence[int]) -> tuple[Sequence[str], Sequence[str]]:
        return self._client.find_symbols(pid, addresses, self._session)

    def _write_symbols(self, pid: int, addresses: Sequence[int], names: Sequence[str], modules: Sequence[str]) -> None:
        with self._writing:
            self._writer.symbols(pid, addresses, names, modules)

    # --- the end ---

    def _finish(self) -> None:
        for name, (count, data) in self._final.items():
            if name in self._maps:
                self._snapshot(self._maps[name], count, data)
        self._hear(0)
        outputs = []
        for output in self._outputs.values():
            self._writer.progress(output.number, output.rows, output.lost)
            written = self._writer.written(output.number)
            outputs.append(msgspec.structs.replace(output.info, rows=output.rows, written=written, lost=output.lost))
            if output.missed:
                self._notes.append(f"{output.missed:,} rows of {output.info.name} came faster than they were written")
        if self._asked.failed:
            self._notes.append(f"names of functions are missing: {self._asked.failed}")
        state, reason, when = self._ended or ("failed", "", time.monotonic_ns())
        counters = {info.name: self._counters.of(info) if self._counters else {} for info in self._maps.values()}
        last = msgspec.structs.replace(
            self._manifest,
            name=self._update.name or self._manifest.name,
            command=self._update.command,
            returncode=self._update.returncode,
            warnings=_joined(self._update.warnings, self._noted),
            outputs=tuple(outputs),
            state=state,
            reason=reason,
            ended_ns=when + self._manifest.epoch_ns,
            counters={name: counts for name, counts in counters.items() if counts},
            costs=CostWords(self._costs.programs, self._costs.words()) if self._costs else None,
            note="; ".join(self._notes),
        )
        self._writer.close(last)
        note = "; ".join(self._notes)
        self._say(msgspec.structs.replace(self._status(), over=True, note=note), _LAST_WORD)

    def _status(self) -> talk.Status:
        rows = sum(self._writer.written(output.number) for output in self._outputs.values())
        return talk.Status(rows, _size(self._writer.folder, self._writer.path), self._writer.failed)

    def _say(self, status: talk.Status, seconds: float = 0) -> None:
        if self._notebook and status != self._said:
            talk.send(self._notebook, status, seconds)
        self._said = status


class _Output:
    """The rows of one output: segments that wait, and a table that they are decoded into.

    ``rows``: that there were; ``missed``: those of them that were not sent; ``decoded``: the others, up to now.
    """

    def __init__(self, number: int, info: OutputInfo, units: dict[str, str]) -> None:
        self.number = number
        self._table = self._new_table(info)
        self.info = msgspec.structs.replace(info, units={n: u for n, u in units.items() if n in self._table.names})
        self.first = True
        self.missed = self.decoded = self.lost = 0
        self._segments: deque[SegmentReader] = deque()
        self._begun = 0  # of them, those that were acknowledged
        self._owners = Owners()
        self._lock = threading.Lock()

    @staticmethod
    def _new_table(info: OutputInfo) -> PrintkTable | Table:
        if info.schema in (PRINTK, PRINTK_LINES):
            return PrintkTable(info.epoch_ns, info.schema)
        return Table(info.schema, info.epoch_ns)

    @property
    def rows(self) -> int:
        return self.decoded + self.missed

    def add(self, segment: SegmentReader, missed: int) -> None:
        self._segments.append(segment)
        self.missed += missed

    def begun(self) -> int:
        """Return how many segments may be acknowledged that were not yet: those that are read from now on."""
        new = min(len(self._segments), 1) - self._begun
        self._begun += max(new, 0)
        return max(new, 0)

    def decode(self) -> pd.DataFrame | None:
        """Return rows that have come, those of one segment at most; None where there are none."""
        while self._segments:
            segment, complete = self._segments[0], len(self._segments) > 1
            self.lost = max(self.lost, segment.lost)
            first = self._table.end
            count = segment.read(self._table.append)
            if complete and not segment.unread:
                self._segments.popleft()
                self._begun -= 1
            if count:
                return self._taken(first, count)
            if not complete:
                return None
        return None

    def _taken(self, first: int, count: int) -> pd.DataFrame:
        frame = self._table.part(first, first + count)
        self.decoded += count
        with self._lock:
            self._owners.add(frame)
        if self._table.nbytes > _TABLE:
            self._table = self._new_table(self.info)
            gc.collect()  # what the old one has is in cycles, and Python does not know how much memory that is
        return frame

    def owners(self) -> pd.DataFrame:
        """Return which process has which stacks. For any thread."""
        with self._lock:
            return self._owners.frame()


class _Entries(Still):
    """A map's entries as they were read, of which stacks are named by ``asked``."""

    def __init__(self, count: int, data: bytes, asked: Asked) -> None:
        self._count, self._data = count, data
        self.symbols = asked
        self.ended, self.keep, self.moment = Flag(), Keep(1 << 40), time.monotonic_ns()

    def read(self) -> tuple[int, bytes]:
        return self._count, self._data


def _may_be_read(info: MapInfo) -> bool:
    """Return whether a map may be read again and again."""
    if not info.value or info.kind in HOLDS or info.kind in ("queue", "stack"):
        return False
    return info.max_entries * (info.key_size + info.value_stride * info.cpus) <= _MAX_MAP


def _joined(*parts: tuple[Diagnostic, ...]) -> tuple[Diagnostic, ...]:
    """Return all, each once: what happened while it ran both may have heard."""
    return tuple(dict.fromkeys(one for part in parts for one in part))


def _size(folder: Path, path: Path) -> int:
    """Return the bytes of a recording's files."""
    found = folder if folder.is_dir() else path
    with suppress(OSError):
        if found.is_file():
            return found.stat().st_size
        return sum((Path(at) / name).stat().st_size for at, _, names in os.walk(found) for name in names)
    return 0
