"""Following a session: another client of the tracer gets all that the notebook is told of it, and costs it nothing."""

from __future__ import annotations

import ctypes
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from raw import RawTracer
from waiting import until

from bpfnb.errors import ProgramError, TracerDied
from bpfnb.host.client import Client
from bpfnb.host.tracer import Listener
from bpfnb.language.program import parse
from bpfnb.protocol import messages
from bpfnb.protocol.schema import Schema
from bpfnb.protocol.segments import SegmentReader

MIB = 1 << 20
_libc = ctypes.CDLL(None)

# 1 KiB an event, so that little fills much.
SOURCE = """
struct event { u64 n; char text[1000]; };
BPF_RINGBUF_OUTPUT(events, 1 << 12);
BPF_ARRAY(made, u64, 1);
int f(struct pt_regs *ctx) {
    if ((bpf_get_current_pid_tgid() >> 32) != PRODUCER) return 0;
    int zero = 0;
    u64 *n = made.lookup(&zero);
    if (!n) return 0;
    struct event *event = events.ringbuf_reserve(sizeof(*event));
    if (!event) return 0;
    event->n = (*n)++;
    events.ringbuf_submit(event, 0);
    return 0;
}
"""


def program() -> messages.Program:
    return parse(SOURCE, {"syscall:getpgid": "f"}, [f"-DPRODUCER={os.getpid()}"])


def produce(count: int) -> None:
    for _ in range(count):
        _libc.getpgid(0)


class Follower(Listener):
    """Follows a session, over a Client of its own. ``reads``: whether it acknowledges what it gets."""

    def __init__(self) -> None:
        ours, self.theirs = socket.socketpair()
        self.reads = True
        self.loaded: messages.Loaded | None = None
        self.ended: messages.Ended | None = None
        self.maps: dict[str, bytes] = {}
        self.missed = 0
        self.gone = threading.Event()
        self._schema: Schema | None = None
        self._segments: list[SegmentReader] = []
        self.client = Client(ours, follow=self)

    def on_loaded(self, message: messages.Loaded) -> None:
        self.loaded = message

    def on_segment(self, message: messages.SegmentAdded, fd: int) -> None:
        self._schema = message.schema or self._schema
        assert self._schema
        self._segments.append(SegmentReader(fd, self._schema, message.layout, message.epoch_ns))
        self.missed += message.missed
        if self.reads:
            self.client.acknowledge(message.session)

    def on_map(self, message: messages.MapRead, data: bytes) -> None:
        self.maps[message.map] = data

    def on_ended(self, message: messages.Ended) -> None:
        self.ended = message

    def on_death(self, error: TracerDied) -> None:
        self.gone.set()

    def close(self) -> None:
        self.client.close()
        self._segments.clear()

    @property
    def rows(self) -> int:
        return sum(segment.unread for segment in self._segments)

    @property
    def numbers(self) -> list[int]:
        assert self._schema
        (column,) = (column for column in self._schema.columns if column.name == "n")
        found: list[int] = []
        for segment in self._segments:
            segment.read(lambda rows, *rest: found.extend(column.values(rows).tolist()))
        return found


@contextmanager
def following() -> Iterator[tuple[RawTracer, Follower, int]]:
    """A tracer, who follows a session of it, and the session."""
    with RawTracer() as tracer:
        follower = Follower()
        session = tracer.number()
        tracer.send(messages.Load(session, program(), keep=8 * MIB, follower=True), [follower.theirs.fileno()])
        follower.theirs.close()
        try:
            assert isinstance(tracer.answer(session), messages.Loaded)
            yield tracer, follower, session
        finally:
            follower.close()


class Counting:
    """A notebook that maps its segments, and acknowledges none."""

    def __init__(self, tracer: RawTracer) -> None:
        self._tracer = tracer
        self._schema: Schema | None = None
        self._segments: list[SegmentReader] = []

    def until(self, kind: type) -> None:
        message: object = None
        while not isinstance(message, kind):
            message, fds = self._tracer.receive_whole()
            if isinstance(message, messages.SegmentAdded):
                self._schema = message.schema or self._schema
                assert self._schema
                self._segments.append(SegmentReader(fds[0], self._schema, message.layout, None))
            for fd in fds:
                os.close(fd)

    @property
    def rows(self) -> int:
        return sum(segment.unread for segment in self._segments)


def count_of(data: bytes) -> int:
    return int.from_bytes(data[8:16], "little")


def test_a_notebook_that_takes_nothing_costs_the_follower_no_row() -> None:
    """GIVEN a notebook that acknowledges nothing and keeps 8 MiB WHEN 60 MiB of events come
    THEN who follows the session has each of them, the map's end, and hears that it was stopped."""
    with following() as (tracer, follower, session):
        for _ in range(60):
            produce(1000)
            time.sleep(0.01)  # the ring has 16 MiB
        tracer.send(messages.Stop(tracer.number(), session))
        until(lambda: follower.ended is not None)
        made = count_of(follower.maps["made"])  # a ring that is full takes none, and counts none
        assert made > 40_000
        assert follower.numbers == list(range(made))
        assert follower.ended
        assert follower.ended.reason == "stopped"
        assert follower.missed == 0
        assert follower.loaded
        assert [info.name for info in follower.loaded.maps] == ["made"]


def test_a_follower_that_dies_or_does_not_read_costs_the_session_nothing() -> None:
    """GIVEN one follower that is gone amid, and one that acknowledges nothing
    THEN the notebook gets every event all the same, and nothing of them stays in the tracer."""
    with RawTracer() as tracer:
        before = tracer.descriptors()
        threads = len(list(Path(f"/proc/{tracer.worker}/task").iterdir()))
        dies, idle = Follower(), Follower()
        idle.reads = False
        for other in (dies, idle):
            session = tracer.number()
            tracer.send(messages.Load(session, program(), keep=1 << 30, follower=True), [other.theirs.fileno()])
            other.theirs.close()
            notebook = Counting(tracer)
            notebook.until(messages.Loaded)
            produce(1000)
            if other is dies:
                other.close()
            for _ in range(10):
                produce(1000)
                time.sleep(0.01)
            tracer.send(messages.Stop(tracer.number(), session))
            notebook.until(messages.Stopped)
            assert notebook.rows == 11_000
        idle.close()
        until(lambda: tracer.descriptors() <= before)
        until(lambda: len(list(Path(f"/proc/{tracer.worker}/task").iterdir())) <= threads + 3)


def test_a_follower_may_ask_for_its_own_session_alone() -> None:
    with following() as (tracer, follower, session):
        other = tracer.number()
        assert isinstance(tracer.ask(messages.Load(other, program())), messages.Loaded)
        produce(10)
        count, data = follower.client.read_map(session, "made")
        assert (count, count_of(data)) == (1, 10)
        with pytest.raises(ProgramError, match="not the session that is followed"):
            follower.client.read_map(other, "made")
        names, _ = follower.client.find_symbols(0, [1], session)
        assert len(names) == 1
        with pytest.raises(ProgramError, match="not the session that is followed"):
            follower.client.find_symbols(0, [1], other)
        with pytest.raises((TracerDied, ProgramError)):  # it may stop nothing: that ends the conversation
            follower.client.stop(session)
        assert tracer.ask(messages.Ping(tracer.number()))
        assert isinstance(tracer.ask(messages.LookupMap(tracer.number(), session, "made", bytes(4))), messages.MapValue)


def test_the_notebooks_death_leaves_the_follower_all_that_was_read() -> None:
    """WHEN the notebook's socket closes amid a flood THEN the follower gets the rows to the last, the map as it was,
    and the reason; the tracer is gone soon, also where the follower reads nothing."""
    with following() as (tracer, follower, _):
        produce(5000)
        tracer.sock.close()
        until(lambda: follower.ended is not None)
        assert follower.numbers == list(range(5000))
        assert count_of(follower.maps["made"]) == 5000
        assert follower.ended
        assert "notebook" in follower.ended.reason
        follower.close()
        assert tracer.ended_within(5)


def test_a_session_that_does_not_come_to_be_hangs_up_on_its_follower() -> None:
    with RawTracer() as tracer:
        before = tracer.descriptors()
        for wrong in ("int f(void *ctx) { return nothing; }", SOURCE):
            follower = Follower()
            number = tracer.number()
            load = messages.Load(number, parse(wrong, {"syscall:getpgid": "f"}), follower=True)
            if wrong == SOURCE:
                file = os.memfd_create("no socket")
                tracer.send(load, [file])
                os.close(file)
            else:
                tracer.send(load, [follower.theirs.fileno()])
            follower.theirs.close()
            assert isinstance(tracer.answer(number), messages.Failed)
            assert follower.gone.wait(5)
            follower.close()
        until(lambda: tracer.descriptors() <= before)
