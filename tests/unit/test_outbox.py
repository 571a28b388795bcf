"""Sending never waits; what is sent arrives whole and in order; requests run in their lanes; numbers are used once."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import pytest

from bpfnb.errors import ProgramError
from bpfnb.protocol import messages
from bpfnb.protocol.connection import Connection
from bpfnb.protocol.messages import FromTracer, ToTracer
from bpfnb.tracer.lanes import Lanes
from bpfnb.tracer.outbox import Outbox
from bpfnb.tracer.service import Numbers


@contextmanager
def outbox() -> Iterator[tuple[Outbox, Connection[FromTracer]]]:
    ours, theirs = socket.socketpair()
    notebook: Connection[FromTracer] = Connection(ours, FromTracer)
    tracer: Connection[ToTracer] = Connection(theirs, ToTracer, descriptors=0)
    box = Outbox(tracer)
    try:
        yield box, notebook
    finally:
        box.close(0)
        notebook.close()
        tracer.close()


def names(count: int) -> messages.ProbeNames:
    return messages.ProbeNames(1, ("x" * 1000,) * count, 0)


def test_who_sends_does_not_wait_for_a_reader_and_nothing_is_lost() -> None:
    with outbox() as (box, notebook):
        for n in range(50):
            fd = os.memfd_create("map")
            os.write(fd, b"%d" % n)
            box.send(messages.MapRead(0, n, "m", 1), [fd])
            os.close(fd)  # what waits has its own
            box.send(messages.ProbeNames(n, ("x" * 50_000,), 0))
        for n in range(50):
            read, (fd,) = notebook.receive()
            assert isinstance(read, messages.MapRead)
            assert (read.session, os.pread(fd, 8, 0)) == (n, b"%d" % n)
            os.close(fd)
            message, fds = notebook.receive()
            assert isinstance(message, messages.ProbeNames)
            assert (message.request, len(message.names[0]), fds) == (n, 50_000, [])


def test_it_is_full_until_the_notebook_reads() -> None:
    with outbox() as (box, notebook):
        sent = 0
        while not box.full:
            box.send(names(1000))
            sent += 1
        assert 60 < sent < 80  # megabytes
        assert not box.wait_for_room(0.1)
        for _ in range(sent):
            notebook.receive()
        assert box.wait_for_room(5)


def test_maps_that_wait_count_with_their_entries() -> None:
    with outbox() as (box, _):
        box.send(names(2000))  # more than the socket takes
        fd = os.memfd_create("map")
        os.ftruncate(fd, 100 << 20)
        box.send(messages.MapRead(1, 1, "m", 1), [fd])
        os.close(fd)
        assert box.full


def test_closing_delivers_what_waits_as_long_as_it_is_read_and_no_longer() -> None:
    with outbox() as (box, notebook):
        for _ in range(20):
            box.send(names(1000))
        received: list[object] = []
        reader = threading.Thread(target=lambda: received.extend(notebook.receive() for _ in range(20)))
        reader.start()
        box.close(5)
        reader.join()
        assert len(received) == 20
    with outbox() as (box, _):
        for _ in range(20):
            box.send(names(1000))
        begun = time.monotonic()
        box.close(0.2)
        assert 0.15 < time.monotonic() - begun < 3


def test_sending_to_a_notebook_that_is_gone_is_no_error() -> None:
    with outbox() as (box, notebook):
        box.send(names(2000))
        notebook.close()
        for _ in range(3):
            box.send(names(1000))
            time.sleep(0.05)
        assert not box.full
        assert not box.wait_for_room(1)


def test_a_slow_lane_holds_up_no_other_and_each_keeps_its_order() -> None:
    lanes, go, done = Lanes("test-lane", 4), threading.Event(), threading.Event()
    seen: list[tuple[str, int]] = []
    lanes.put("slow", lambda: bool(go.wait(10)))
    for n in range(100):
        lanes.put("slow", lambda n=n: seen.append(("slow", n)))  # type: ignore[misc]
        lanes.put("quick", lambda n=n: seen.append(("quick", n)))  # type: ignore[misc]
    lanes.put("quick", done.set)
    assert done.wait(10)
    assert seen == [("quick", n) for n in range(100)]
    done.clear()
    go.set()
    lanes.put("slow", done.set)
    assert done.wait(10)
    assert seen[100:] == [("slow", n) for n in range(100)]


def test_lanes_have_so_many_threads_and_no_more() -> None:
    lanes, go = Lanes("test-lane", 3), threading.Event()
    running: list[int] = []

    def work(n: int) -> None:
        running.append(n)
        go.wait(10)

    for n in range(10):
        lanes.put(n, partial(work, n))
    deadline = time.monotonic() + 5
    while len(running) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.1)
    assert running == [0, 1, 2]
    go.set()
    while len(running) < 10 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert sorted(running) == list(range(10))


def test_a_requests_number_is_used_once() -> None:
    numbers = Numbers()
    for number in (1, 3, 2, 10_000, 9_000):  # callers may overtake each other a little
        numbers.use(number)
    for number in (1, 2, 3, 9_000, 10_000, 4, 0, -1, 1 << 63):
        with pytest.raises(ProgramError):
            numbers.use(number)
    for number in range(10_001, 60_000):
        numbers.use(number)
    assert len(numbers._used) <= 3 * 4096
    with pytest.raises(ProgramError, match="59999 has been used before"):
        numbers.use(59_999)
