"""The notebook's end of the conversation, with a tracer that is a socket here."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator

import pytest

from bpfnb.errors import BpfnbError, TracerDied
from bpfnb.host.client import Client
from bpfnb.host.tracer import Listener
from bpfnb.interrupts import wait_at_most
from bpfnb.language.program import parse
from bpfnb.protocol import messages
from bpfnb.protocol.connection import Connection
from bpfnb.protocol.messages import Limits, Noted, SegmentAdded
from bpfnb.protocol.segments import Layout


class Heard(Listener):
    def __init__(self) -> None:
        self.notes = threading.Semaphore(0)

    def on_note(self, message: Noted) -> None:
        self.notes.release()


class Breaks(Listener):
    def on_death(self, error: TracerDied) -> None:
        raise RuntimeError("dictionary changed size during iteration")


class Ends(Listener):
    def __init__(self) -> None:
        self.ended = threading.Event()

    def on_death(self, error: TracerDied) -> None:
        self.ended.set()


@pytest.fixture
def ends() -> Iterator[tuple[Client, Connection[messages.ToTracer]]]:
    ours, theirs = socket.socketpair()
    tracer: Connection[messages.ToTracer] = Connection(theirs, messages.ToTracer, descriptors=0)
    client = Client(ours)
    tracer.send(messages.Hello(os.getpid(), "", ""))
    client.hello()
    yield client, tracer
    tracer.close()
    client.close()


def test_the_tracer_is_heard_while_it_reads_nothing(ends: tuple[Client, Connection[messages.ToTracer]]) -> None:
    """GIVEN a tracer that takes no request until its messages have been read, and a request too large for the socket
    WHEN it sends segments, which are to be acknowledged THEN what it says behind them is heard all the same, and when
    it reads on, the acknowledgements are there."""
    client, tracer = ends
    heard = Heard()
    program = parse("int syscall__getpgid(void *ctx) { return 0; } //" + "x" * (4 << 20))

    def load() -> None:
        with pytest.raises(TracerDied):
            client.load(program, heard, Limits(), 0)

    asking = threading.Thread(target=load)
    asking.start()
    tracer._socket.recv(1, socket.MSG_PEEK)  # it is under way, and more of it than fits
    segment = os.memfd_create("segment")
    for _ in range(3):
        tracer.send(SegmentAdded(1, "printk", None, Layout(1, 0), 0), [segment])
    os.close(segment)
    tracer.send(Noted(1, "heard", ""))
    assert heard.notes.acquire(timeout=10)
    assert isinstance(tracer.receive()[0], messages.Load)
    assert [tracer.receive()[0] for _ in range(3)] == [messages.Received(1)] * 3
    tracer.hang_up()
    asking.join(10)


def test_every_session_hears_of_the_tracers_end(
    ends: tuple[Client, Connection[messages.ToTracer]], capfd: pytest.CaptureFixture[str]
) -> None:
    client, tracer = ends
    last = Ends()
    client._listeners.update({1: Breaks(), 2: last})
    tracer.hang_up()
    assert last.ended.wait(10)
    client.close()
    assert "RuntimeError: dictionary changed" in capfd.readouterr().err


def test_a_thread_that_others_wait_for_does_not_wait_for_a_map_without_end(
    ends: tuple[Client, Connection[messages.ToTracer]],
) -> None:
    client, tracer = ends
    said: list[str] = []

    def read() -> None:
        wait_at_most(0.2)
        try:
            client.read_map(1, "counts")
        except BpfnbError as error:
            said.append(str(error))

    threads = [threading.Thread(target=read, daemon=True) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(5)
    assert said == ["the tracer has not answered for 0.2 s"] * 3
    assert not client._waiting
    assert tracer
