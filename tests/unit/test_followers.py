"""Segments that two get, each as far as its credit goes; the one descriptor that a tracer takes; a fake tracer's
follower."""

from __future__ import annotations

import mmap
import os
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager

import numpy as np
import pytest

import bpfnb
from bpfnb.errors import ProgramError
from bpfnb.host.client import Client
from bpfnb.host.tracer import Listener
from bpfnb.protocol import messages
from bpfnb.protocol.connection import Connection
from bpfnb.protocol.credit import Credit
from bpfnb.protocol.messages import ToTracer
from bpfnb.protocol.schema import Number, Schema
from bpfnb.protocol.segments import LOST, ROWS, Layout, Recipient, SegmentWriter, parts
from bpfnb.testing import FakeTracer
from bpfnb.tracer.access import peer
from bpfnb.tracer.sessions.follower import accepted

MIB = 1 << 20
SCHEMA = Schema((Number("n", 0, "<u8"),), 1024)


class One:
    """Somebody who gets segments, and acknowledges them when told to. ``missed``: as its segments said."""

    def __init__(self, keep: int = 8 * MIB) -> None:
        self.credit = Credit(keep)
        self.segments: list[tuple[Layout, mmap.mmap]] = []
        self.missed = 0
        self.recipient = Recipient(self.take, self.credit)

    def take(self, layout: Layout, fd: int, missed: int) -> None:
        self.segments.append((layout, mmap.mmap(fd, 0)))
        self.missed += missed

    def acknowledge(self) -> None:
        self.credit.acknowledge(len(self.segments))

    @property
    def numbers(self) -> list[int]:
        found: list[int] = []
        for layout, memory in self.segments:
            head, rows, _ = parts(memoryview(memory), SCHEMA, layout)
            found += rows[: int(head[ROWS]), :8].copy().view(np.int64)[:, 0].tolist()
        return found

    @property
    def lost(self) -> int:
        layout, memory = self.segments[-1]
        return int(parts(memoryview(memory), SCHEMA, layout)[0][LOST])


@contextmanager
def two() -> Iterator[tuple[SegmentWriter, One, One]]:
    busy, quick = One(), One(64 * MIB)
    writer = SegmentWriter(SCHEMA, [busy.recipient, quick.recipient])
    yield writer, busy, quick
    writer.close()


def rows(first: int, count: int) -> np.ndarray:
    made = np.zeros((count, 1024), np.uint8)
    made[:, :8] = np.arange(first, first + count, dtype=np.int64)[:, None].view(np.uint8)
    return made


def test_one_that_takes_nothing_costs_the_other_no_row_and_is_told_how_many_it_missed() -> None:
    with two() as (writer, busy, quick):
        for first in range(0, 40_000, 1000):  # 40 MiB
            writer.append(rows(first, 1000))
            quick.acknowledge()
        assert not writer.blocked
        assert quick.numbers == list(range(40_000))
        assert writer.lost == quick.lost == busy.lost == 0
        had = len(busy.numbers)
        assert had < 10_000
        busy.acknowledge()
        writer.append(rows(40_000, 1))  # it takes part again
        assert busy.numbers == [*range(had), 40_000]
        assert busy.missed == 40_000 - had


def test_who_missed_the_last_rows_is_told_at_the_end() -> None:
    with two() as (writer, busy, quick):
        for first in range(0, 20_000, 1000):
            writer.append(rows(first, 1000))
            quick.acknowledge()
    assert busy.missed == 20_000 - len(busy.numbers) > 0
    assert quick.missed == 0


def test_rows_are_lost_where_nobody_takes_any() -> None:
    with two() as (writer, busy, quick):
        for first in range(0, 100_000, 1000):
            writer.append(rows(first, 1000))
        assert writer.blocked
        had = len(quick.numbers)
        assert had < 70_000
        assert quick.lost == busy.lost == 100_000 - had  # both can read it, whichever segment they have
        quick.acknowledge()
        assert not writer.blocked


def test_one_that_is_gone_counts_no_more() -> None:
    with two() as (writer, busy, quick):
        quick.credit.close()
        for first in range(0, 20_000, 1000):
            writer.append(rows(first, 1000))
        assert writer.blocked
        assert writer.lost == 20_000 - len(busy.numbers) > 0
        assert busy.missed == 0


# --- the descriptor of a Load ---


@contextmanager
def pair(descriptors: int = 1) -> Iterator[tuple[Connection[ToTracer], Connection[ToTracer]]]:
    ours, theirs = socket.socketpair()
    notebook: Connection[ToTracer] = Connection(ours, ToTracer)
    tracer: Connection[ToTracer] = Connection(theirs, ToTracer, descriptors=descriptors)
    with closing(notebook), closing(tracer):
        yield notebook, tracer


def test_a_message_brings_one_descriptor_at_most() -> None:
    """GIVEN messages with more descriptors than they may have, with some that they say nothing of, and with just one
    WHEN they are received THEN each has its own, and all others are closed."""
    with pair() as (notebook, tracer):
        read, write = os.pipe()
        mine = os.memfd_create("mine")
        for count in (1, 3, 200):
            notebook.send(messages.Stop(1, 2), [write] * count)
        socket.send_fds(notebook._socket, [notebook.frame(messages.Stop(1, 2))], [write] * 7)
        received = [tracer.receive() for _ in range(4)]
        assert [len(fds) for _, fds in received] == [1, 1, 1, 0]
        for _, fds in received:
            for fd in fds:
                os.close(fd)
        os.close(write)
        assert os.read(read, 1) == b""  # nobody has the other end
        os.close(read)
        notebook.send(messages.Stop(1, 2), [mine])
        _, (fd,) = tracer.receive()
        assert os.fstat(fd).st_ino == os.fstat(mine).st_ino
        os.close(fd)
        os.close(mine)


def test_looking_for_a_message_waits_for_none() -> None:
    with pair() as (notebook, tracer):
        assert tracer.poll() is None
        notebook.send(messages.Stop(1, 2), [0])
        received = tracer.poll()
        assert received
        message, (fd,) = received
        assert message == messages.Stop(1, 2)
        assert not os.get_inheritable(fd)
        os.close(fd)
        assert tracer.poll() is None


def test_a_follower_is_a_unix_stream_socket_of_the_notebooks_own_making() -> None:
    ours, theirs = socket.socketpair()
    me = peer.of(ours)
    accepted([ours.fileno()], me).close()
    datagrams = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    tcp = socket.socket()
    file = os.memfd_create("file")
    for fds in ([], [file], [tcp.fileno()], [datagrams[0].fileno()], [ours.fileno()] * 2):
        with pytest.raises(ProgramError):
            accepted(fds, me)
    with pytest.raises(ProgramError, match="that the notebook itself has made"):
        accepted([ours.fileno()], me._replace(pid=1))
    with pytest.raises(ProgramError, match="that the notebook itself has made"):
        accepted([ours.fileno()], me._replace(uid=12345))
    for sock in (ours, theirs, *datagrams, tcp):
        sock.close()
    os.close(file)


# --- a client that follows ---


class Heard(Listener):
    def __init__(self) -> None:
        self.said: list[str] = []
        self.rows = 0

    def on_loaded(self, message: messages.Loaded) -> None:
        self.said.append("loaded")

    def on_segment(self, message: messages.SegmentAdded, fd: int) -> None:
        self.said.append(f"segment of {message.output}")

    def on_costs(self, message: messages.CostsAdded, fd: int) -> None:
        self.said.append("costs")

    def on_ended(self, message: messages.Ended) -> None:
        self.said.append(f"ended: {message.reason}")

    def on_death(self, error: bpfnb.TracerDied) -> None:
        self.said.append("gone")


def test_a_fake_tracer_tells_who_follows_a_session_what_it_tells_the_notebook() -> None:
    ours, theirs = socket.socketpair()
    heard = Heard()
    client = Client(ours, follow=heard)
    with FakeTracer() as fake:
        tracer = fake.launch()
        program = bpfnb.language.program.parse('int kprobe__sys_sync(void *c) { bpf_trace_printk("x"); return 0; }')
        number = tracer.load(program, Listener(), messages.Limits(), 1 << 20, theirs)
        theirs.close()
        assert client.hello().bcc == "fake"
        tracer.stop(number)
    client.close()
    assert heard.said == ["costs", "segment of printk", "loaded", "ended: stopped", "gone"]
