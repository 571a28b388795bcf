"""A tracer without a kernel, for tests: those of bpfnb and those of its users.

    with FakeTracer() as tracer:
        session = bpfnb.trace('int kprobe__sys_sync(void *ctx) { bpf_trace_printk("hi\\n"); return 0; }')
        tracer.printk(session, [Line("bash", 42, "hi")])
        assert list(session.df.msg) == ["hi"]

Events of BPF_PERF_OUTPUT and BPF_RINGBUF_OUTPUT, and maps, are numpy arrays; a structured array is a C struct:

    with FakeTracer(maps={"counts": (np.array([1, 2], "<u4"), np.array([10, 20], "<u8"))}) as tracer:
        session = bpfnb.trace(source_with_BPF_HASH_counts_and_BPF_PERF_OUTPUT_events)
        tracer.events(session, "events", np.array([(1, b"bash")], [("pid", "<u4"), ("comm", "S16")]))
        assert list(session.maps["counts"].df.value) == [10, 20]

It speaks the real protocol over a real socketpair and fills real segments, but compiles and attaches nothing. Every
program is accepted, unless ``refuse`` gives an error for the next one.
"""

from __future__ import annotations

import errno
import fnmatch
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
from msgspec.structs import replace

from bpfnb.errors import AttachError, BpfnbError, ProgramError
from bpfnb.host.client import Client
from bpfnb.host.connector import Connector
from bpfnb.host.tracer import Tracer
from bpfnb.hosts import default_host
from bpfnb.language.filters import Filters
from bpfnb.language.program import MapDecl, Program
from bpfnb.language.signature import Signature
from bpfnb.protocol import messages
from bpfnb.protocol.connection import Connection
from bpfnb.protocol.messages import (
    COSTS_EACH,
    COSTS_HEAD,
    COUNTERS,
    Check,
    Limits,
    MapInfo,
    Member,
    ProbeInfo,
    Request,
    ToTracer,
)
from bpfnb.protocol.schema import PRINTK, PRINTK_ROW, Bytes, Column, Number, Rows, Schema, Text
from bpfnb.protocol.segments import Layout, SegmentSizes, SegmentWriter
from bpfnb.session import Session

__all__ = ["FakeTracer", "Line"]


class Line(NamedTuple):
    """A line as bpf_trace_printk delivers it. ``mono_ns``: CLOCK_MONOTONIC, nanoseconds; 0 is now."""

    comm: str | bytes
    pid: int
    msg: str | bytes
    cpu: int = 0
    mono_ns: int = 0


class FakeTracer:
    """A tracer that runs nothing. Inside a ``with`` block it is the default host's, and so ``bpfnb.trace``'s.

    ``bpfnb.Host(tracer.launch)`` is another host that has this tracer, in the block or without one.
    """

    def __init__(
        self,
        probes: Sequence[str] = (),
        checks: Sequence[Check] = (),
        maps: Mapping[str, tuple[np.ndarray, np.ndarray]] | None = None,
        *,
        signatures: Sequence[Signature] = (),
        types: Mapping[str, Sequence[Member]] | None = None,
        outputs: Mapping[str, np.dtype[Any]] | None = None,
        sizes: SegmentSizes = SegmentSizes(),  # noqa: B008 (it is frozen)
    ) -> None:
        """``signatures``: of the probes that there are to describe; their ``members`` are given whatever is asked.
        ``types``: the kernel's, with their members: {"struct task_struct": [Member("pid", "pid_t", 0)]}.

        ``outputs``: types of events: a session has its output of that name from the start, else from the first event
        on. A field called time is the events' time. ``sizes``: the sizes of segments; with small ones a few rows fill
        many segments.
        """
        self._outputs = dict(outputs or {})
        self._signatures = tuple(signatures)
        self._types = {name: tuple(members) for name, members in (types or {}).items()}
        self._sizes = sizes
        self._probes = tuple(probes)
        self._checks = tuple(checks)
        self._maps = {name: _Entries(*arrays) for name, arrays in (maps or {}).items()}
        self._epoch_ns = time.time_ns() - time.monotonic_ns()  # one for all sessions: see SegmentAdded
        self._refusals: list[BpfnbError] = []
        self._counters: dict[int, int] = {}  # a session's memory of refused updates, as a descriptor
        self._writers: dict[tuple[int, str], SegmentWriter] = {}
        self._before: Connector | None = None
        self._started = False
        self.loaded: list[str] = []  # the sources of the programs loaded, in order
        self.filters: list[Filters] = []  # whom they are about, in the same order
        self.limits: list[Limits] = []  # what they may take, in the same order
        self._costs: dict[int, tuple[int, tuple[str, ...]]] = {}  # a session's, as a descriptor, and its programs
        self._ending: set[int] = set()  # numbers of sessions
        self._followers: dict[int, tuple[Connection[messages.FromFollower], threading.Thread]] = {}  # of sessions
        self.stopped: list[int] = []  # the numbers of the sessions stopped, in order
        self.before_load: Callable[[], object] = lambda: None  # called before a program is taken: takes as long as that
        self.detaching = 0  # how many attachments a stopped session leaves for the kernel to let go of

    def __enter__(self) -> FakeTracer:
        self._start()
        self._before = default_host.exchange(Connector(self.launch))
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        if self._before:
            default_host.exchange(self._before).close()
        self._client.close()
        self.die()

    def launch(self) -> Tracer:
        """Return the tracer, started, or again where it has ended: what ``bpfnb.Host`` is made with."""
        if not self._started:
            self._start()
        elif self._client.died:
            self.die()
            self._start()
        return self._client

    def _start(self) -> None:
        self._started = True
        ours, theirs = socket.socketpair()
        self._connection: Connection[ToTracer] = Connection(theirs, ToTracer)
        self._thread = threading.Thread(target=self._serve, name="bpfnb-fake-tracer")
        self._thread.start()
        self._client = Client(ours)
        self._connection.send(messages.Hello(os.getpid(), "fake", "fake"))

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
        text = np.frombuffer(b"".join(messages), np.uint8)
        self._writers[session._number, "printk"].append(_bytes_of(rows), text)
        self._ping()

    def events(self, session: Session, output: str, rows: np.ndarray, time: str = "") -> None:
        """Deliver events to an output. On return they are in its ``df``. ``time``: the field that holds their time."""
        at = (session._number, output)
        if at not in self._writers:
            self._open(*at, replace(_schema(rows.dtype, "value"), time=time))
        self._writers[at].append(_bytes_of(rows))
        self._ping()

    def lose(self, session: Session, total: int, output: str = "printk") -> None:
        """Set how many events an output has lost so far."""
        self._writers[session._number, output].set_lost(total)

    def end(self, session: Session, reason: str, detaching: int = 0) -> None:
        """End a session as a failed source would. On return the session knows."""
        for name in self._maps if session._number in self._ending else ():
            self._send_map(0, session._number, name)
        self._say(messages.Ended(session._number, reason, detaching))
        self._ping()

    def ending(self, session: Session) -> None:
        """Begin to end a session: its maps can be read no more, until ``end`` has the session know."""
        self._ending.add(session._number)

    def note(self, session: Session, text: str, output: str = "") -> None:
        """Add a note to a running session. On return the session has it."""
        self._say(messages.Noted(session._number, text, output))
        self._ping()

    def detached(self, session: Session) -> None:
        """Tell a stopped session that the kernel has detached its probes."""
        self._say(messages.Detached(session._number))

    def refuse_updates(self, session: Session, name: str, count: int, number: int = errno.E2BIG) -> None:
        """Set how many updates of a map have failed with this errno so far."""
        os.pwrite(self._counters[session._number], struct.pack("=Q", count), 8 * (self._first(name) + number))

    def cost(
        self, session: Session, programs: Mapping[str, tuple[int, int, int]], seconds: float = 1.0, memory: int = 0
    ) -> None:
        """Set what a session's programs took in so many seconds: runs, nanoseconds, runs missed (-1: unknown)."""
        fd, names = self._costs[session._number]
        measured = int(seconds * 1e9)
        words = [0, measured, measured, 0, memory, *[0] * (COSTS_HEAD - 5)]
        for name in names:
            words += [*programs[name], *[0] * (COSTS_EACH - 3)]
        os.pwrite(fd, np.array(words, np.int64).tobytes(), 0)

    def refuse(self, error: BpfnbError) -> None:
        """Answer the next program with this error."""
        self._refusals.append(error)

    def die(self) -> None:
        """Close the connection, as a killed tracer would. Idempotent."""
        self._connection.close()
        self._thread.join()
        self._writers.clear()
        while self._followers:
            follower, thread = self._followers.popitem()[1]
            follower.hang_up()
            thread.join()
            follower.close()
        while self._counters:
            os.close(self._counters.popitem()[1])
        while self._costs:
            os.close(self._costs.popitem()[1][0])

    def _follow(self, session: int, fd: int) -> None:
        """Have somebody follow a session."""
        follower: Connection[messages.FromFollower] = Connection(socket.socket(fileno=fd), messages.FromFollower)
        thread = threading.Thread(target=self._serve_follower, args=(follower,), name="bpfnb-fake-follower")
        self._followers[session] = follower, thread
        self._tell(session, messages.Hello(os.getpid(), "fake", "fake"))
        thread.start()

    def _serve_follower(self, follower: Connection[messages.FromFollower]) -> None:
        with suppress(EOFError, OSError):
            while True:
                message, _ = follower.receive()
                if isinstance(message, messages.ReadMap):
                    self._send_map(message.request, message.session, message.map, to=follower.send)
                elif isinstance(message, messages.FindSymbols):
                    follower.send(self._answer(message))

    def _say(self, message: Any, fds: Sequence[int] = ()) -> None:
        """Send what is said of a session, unasked, to the notebook and to who follows it."""
        self._connection.send(message, fds)
        self._tell(message.session, message, fds)

    def _tell(self, session: int, message: Any, fds: Sequence[int] = ()) -> None:
        if follower := self._followers.get(session):
            with suppress(OSError):  # it is gone
                follower[0].send(message, fds)

    def _ping(self) -> None:
        """Wait until the notebook has received all that was sent, such as a new segment."""
        self._client.ping()

    def _serve(self) -> None:
        try:
            while True:
                message, fds = self._connection.receive()
                if isinstance(message, messages.Received):
                    continue
                if fds and isinstance(message, messages.Load):
                    self._follow(message.request, fds[0])
                if isinstance(message, (messages.ReadMap, messages.TakeMap)):
                    taken = isinstance(message, messages.TakeMap)
                    if message.session in self._ending:
                        refused = messages.Failed.of(message.request, ProgramError("the session has ended"))
                        self._connection.send(refused)
                        continue
                    self._send_map(message.request, message.session, message.map, taken)
                else:
                    self._connection.send(answer := self._answer(message))
                    if isinstance(answer, messages.Loaded):
                        self._tell(message.request, answer)
        except (EOFError, OSError):
            pass  # either end has closed

    def _answer(self, message: Request) -> messages.FromTracer:
        try:
            return self._reply(message)
        except BpfnbError as error:
            return messages.Failed.of(message.request, error)

    def _reply(self, message: Request) -> messages.FromTracer:
        match message:
            case messages.Load(request, program, _, limits):
                return self._load(request, program, limits)
            case messages.Stop(request, session):
                self.stopped.append(session)
                self._writers = {at: writer for at, writer in self._writers.items() if at[0] != session}
                for name in self._maps:
                    self._send_map(0, session, name)
                self._tell(session, messages.Ended(session, "stopped", self.detaching))
                return messages.Stopped(request, self.detaching)
            case messages.LookupMap(request, _, name, key):
                return messages.MapValue(request, self._maps[name].look_up(key))
            case messages.WriteMap(request, _, name, key, value):
                return messages.MapWritten(request, self._maps[name].write(key, value))
            case messages.ClearMap(request, _, name):
                self._maps[name].clear()
                return messages.MapWritten(request)
            case messages.OpenCounter(request):
                return messages.MapWritten(request)
            case messages.FindSymbols(request, _, addresses, _):
                return messages.Symbols(request, ("[unknown]",) * len(addresses), ("",) * len(addresses))
            case messages.Ping(request):
                return messages.Pong(request)
            case messages.FindProbes(request, _, limit):
                return messages.ProbeNames(request, self._probes[:limit], max(len(self._probes) - limit, 0))
            case messages.ListProbes(request, _, limit):
                names = self._probes[:limit]
                none = ("",) * len(names)
                more = max(len(self._probes) - limit, 0)
                return messages.ProbesListed(request, names, ((),) * len(names), none, none, more)
            case messages.DescribeProbes(request, probes, _, limit):
                return messages.ProbesDescribed(request, self._described(probes, limit))
            case messages.DescribeType(request, name, path, limit):
                return self._described_type(request, name, path, limit)
            case messages.FindNames(request, start, limit):
                words = sorted(name.split()[::-1] for name in self._types)
                found = [(word, kind) for word, kind in words if word.startswith(start)][:limit]
                names, kinds = tuple(word for word, _ in found), tuple(kind for _, kind in found)
                return messages.NamesFound(request, names, kinds, (0,) * len(found), 0)
            case messages.RunChecks(request):
                return messages.Checks(request, self._checks)
        raise AssertionError(message)

    def _described_type(self, request: int, name: str, path: Sequence[str], limit: int) -> messages.TypeDescribed:
        for step in path:
            of = {member.name: member.type for member in self._types.get(name, ())}
            name = of.get(step, "").rstrip(" *")
        members = self._types.get(name)
        if members is None:
            return messages.TypeDescribed(request)
        return messages.TypeDescribed(request, name, "", 0, members[:limit], max(len(members) - limit, 0))

    def _described(self, probes: Sequence[str], limit: int) -> tuple[Signature, ...]:
        found: dict[str, Signature] = {}
        for text in probes:
            matching = {s.probe: s for s in self._signatures if fnmatch.fnmatchcase(s.probe, text)}
            if not matching:
                raise AttachError(f"{text}: no probe matches", probe=text, errno=errno.ENOENT)
            found |= matching
        if len(found) > limit:
            raise ProgramError(f"{len(found):,} probes are more than {limit:,}: name fewer")
        return tuple(found.values())

    def _load(self, request: int, program: Program, limits: Limits) -> messages.FromTracer:
        self.before_load()
        if self._refusals:
            return messages.Failed.of(request, self._refusals.pop(0))
        self.loaded.append(program.source)
        self.filters.append(program.filters)
        self.limits.append(limits)
        self._send_costs(request, tuple(dict.fromkeys(probe.function for probe in program.probes)))
        if program.prints:
            publish = self._publisher(request, "printk", PRINTK)
            self._writers[request, "printk"] = SegmentWriter(PRINTK, publish, sizes=self._sizes)
        for output in program.outputs:
            if output.name in self._outputs:
                dtype = self._outputs[output.name]
                clock = "time" if "time" in (dtype.names or ()) else ""
                self._open(request, output.name, replace(_schema(dtype, "value"), time=clock))
        probes = tuple(ProbeInfo(p.requested, p.requested, p.kind, "", p.function, p.name) for p in program.probes)
        maps = tuple(self._maps[m.name].info(m, self._first(m.name)) for m in program.maps if m.name in self._maps)
        if maps:
            self._counters[request] = os.memfd_create("bpfnb-fake-counters", os.MFD_CLOEXEC)
            words = len(self._maps) * COUNTERS
            os.ftruncate(self._counters[request], 8 * words)
            self._say(messages.CountersAdded(request, words), [self._counters[request]])
        return messages.Loaded(request, probes, (), maps)

    def _send_costs(self, request: int, programs: tuple[str, ...]) -> None:
        fd = os.memfd_create("bpfnb-fake-costs", os.MFD_CLOEXEC)
        os.ftruncate(fd, 8 * (COSTS_HEAD + COSTS_EACH * len(programs)))
        self._costs[request] = fd, programs
        self._say(messages.CostsAdded(request, programs), [fd])

    def _first(self, name: str) -> int:
        """Return the index of a map's first counter."""
        return list(self._maps).index(name) * COUNTERS

    def _open(self, session: int, output: str, schema: Schema) -> None:
        self._writers[session, output] = SegmentWriter(
            schema, self._publisher(session, output, schema), sizes=self._sizes
        )

    def _publisher(self, session: int, output: str, schema: Schema) -> Callable[[Layout, int], None]:
        def publish(layout: Layout, fd: int) -> None:
            self._say(messages.SegmentAdded(session, output, schema, layout, self._epoch_ns), [fd])

        return publish

    def _send_map(
        self,
        request: int,
        session: int,
        name: str,
        taken: bool = False,
        to: Callable[[messages.FromTracer, Sequence[int]], None] | None = None,
    ) -> None:
        count, data = self._maps[name].content()
        if taken:
            self._maps[name].clear()
        fd = os.memfd_create("bpfnb-fake-map")
        try:
            os.write(fd, data)
            read = messages.MapRead(request, session, name, count, taken)
            send = to or (self._connection.send if request else self._say)
            send(read, [fd])
        finally:
            os.close(fd)


class _Entries:
    """A map's entries, as the kernel would have them."""

    def __init__(self, keys: np.ndarray, values: np.ndarray) -> None:
        self._key, self._value = keys.dtype, values.dtype
        self._entries = {k.tobytes(): v.tobytes() for k, v in zip(keys, values, strict=True)}

    def info(self, declared: MapDecl, counters: int) -> MapInfo:
        key, value = _schema(self._key, "key"), _schema(self._value, "value")
        kind = "array" if "ARRAY" in declared.macro or "HIST" in declared.macro else "hash"
        sizes = key.size, value.size, value.size
        return MapInfo(
            declared.name, declared.macro, kind, key, value, *sizes, 1, 10240, declared.line, counters=counters
        )

    def content(self) -> tuple[int, bytes]:
        keys = b"".join(self._entries)
        return len(self._entries), keys + bytes(-len(keys) % 8) + b"".join(self._entries.values())

    def look_up(self, key: bytes) -> bytes | None:
        return self._entries.get(key)

    def write(self, key: bytes, value: bytes | None) -> bool:
        if value is None:
            return self._entries.pop(key, None) is not None
        self._entries[key] = value
        return True

    def clear(self) -> None:
        self._entries.clear()


def _schema(dtype: np.dtype[Any], name: str) -> Schema:
    """Return the schema of a numpy dtype; a structured one has a column for each field."""
    fields = [(n, f[0], f[1]) for n, f in dtype.fields.items()] if dtype.fields else [(name, dtype, 0)]
    return Schema(tuple(_column(*field) for field in fields), dtype.itemsize)


def _column(name: str, dtype: np.dtype[Any], offset: int) -> Column:
    match dtype.kind:
        case "S":
            return Text(name, offset, dtype.itemsize)
        case "V":
            return Bytes(name, offset, dtype.itemsize)
    return Number(name, offset, dtype.str)


def _bytes_of(rows: np.ndarray) -> Rows:
    return np.ascontiguousarray(rows).view(np.uint8).reshape(len(rows), rows.dtype.itemsize)


def _bytes(text: str | bytes) -> bytes:
    return text if isinstance(text, bytes) else text.encode()
