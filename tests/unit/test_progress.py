"""Long steps say what they do, where somebody waits for them, and take their line away."""

from __future__ import annotations

import io
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from bpfnb import progress
from bpfnb.host.client import Client
from bpfnb.host.tracer import Listener
from bpfnb.interrupts import uninterrupted
from bpfnb.language.program import parse
from bpfnb.protocol import messages
from bpfnb.protocol.connection import Connection
from bpfnb.protocol.messages import Limits
from bpfnb.views.progress import open_line

PROGRAM = parse("int syscall__getpgid(void *ctx) { return 0; }")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Written:
    """A line, and all that was written on it."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def write(self, text: str) -> None:
        self.said.append(text)

    def erase(self, left: bool = False) -> None:
        self.said.append("")


@pytest.fixture
def line(monkeypatch: pytest.MonkeyPatch) -> Iterator[Written]:
    monkeypatch.setattr(progress, "AFTER", 0.1)
    monkeypatch.setattr(progress, "EVERY", 0.05)
    line = Written()
    progress.show_on(lambda: line)
    yield line
    progress.show_on(open_line)


def test_a_short_step_says_nothing_and_a_long_one_how_far_it_is(line: Written) -> None:
    with progress.step("naming stacks", 30):
        pass
    assert line.said == []
    with progress.step("naming stacks", 30) as naming:
        for done in range(30):
            naming.tick(done)
            time.sleep(0.01)
    assert 2 <= len(line.said) < 20  # fewer than ticks
    assert re.fullmatch(r"naming stacks: [1-9]\d* of 30, \d s", line.said[0])
    assert line.said[-1] == ""


def test_a_step_within_another_moves_the_others_line(line: Written) -> None:
    with progress.step("naming stacks", 3) as outer:
        outer.tick(2)
        with progress.step("looking up names of functions") as inner:
            time.sleep(0.12)
            inner.say("something else")
        assert line.said == ["naming stacks: 2 of 3, 0 s"]
    assert line.said[-1] == ""


def test_nobody_waits_for_a_thread(line: Written) -> None:
    def work() -> None:
        with progress.step("reading a map") as step:
            time.sleep(0.15)
            step.tick()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert line.said == []


@pytest.fixture
def ends(line: Written) -> Iterator[tuple[Client, Connection[messages.ToTracer]]]:
    ours, theirs = socket.socketpair()
    tracer: Connection[messages.ToTracer] = Connection(theirs, messages.ToTracer, descriptors=0)
    client = Client(ours)
    tracer.send(messages.Hello(os.getpid(), "", ""))
    client.hello()
    yield client, tracer
    tracer.close()
    client.close()


def test_a_load_says_what_the_tracer_does(line: Written, ends: tuple[Client, Connection[messages.ToTracer]]) -> None:
    client, tracer = ends

    def serve() -> None:
        request = tracer.receive()[0].request
        time.sleep(0.7)
        tracer.send(messages.Progress(request, 120, 360))
        tracer.send(messages.Progress(99, 1, 2))  # of a session that nobody waits for
        time.sleep(0.7)
        tracer.send(messages.Loaded(request, (), ()))

    serving = threading.Thread(target=serve)
    serving.start()
    client.load(PROGRAM, Listener(), Limits(), 0)
    serving.join()
    assert line.said == ["compiling, 0 s", "attaching probes: 120 of 360, 1 s", ""]


def test_an_interrupted_load_is_given_up(line: Written, ends: tuple[Client, Connection[messages.ToTracer]]) -> None:
    client, tracer = ends
    received: list[messages.ToTracer] = []

    def serve() -> None:
        received.append(tracer.receive()[0])
        time.sleep(0.7)
        os.kill(os.getpid(), signal.SIGINT)
        received.append(tracer.receive()[0])
        tracer.send(messages.Failed(received[0].request, "ProgramError", "the session was stopped before it ran", {}))
        tracer.send(messages.Stopped(received[1].request))

    serving = threading.Thread(target=serve)
    serving.start()
    with pytest.raises(KeyboardInterrupt):
        client.load(PROGRAM, Listener(), Limits(), 0)
    progress.drop()
    serving.join(10)
    load, stop = received
    assert isinstance(stop, messages.Stop)
    assert stop.session == load.request
    said = list(line.said)
    assert said[-1] == ""
    time.sleep(0.2)
    assert line.said == said  # nothing is written once the line is gone


def test_a_step_whose_caller_has_left_writes_no_more(line: Written) -> None:
    over = threading.Event()

    @uninterrupted
    def work() -> None:
        with progress.step("naming stacks", 100) as naming:
            for done in range(100):
                naming.tick(done)
                time.sleep(0.02)
        over.set()

    timer = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        work()
    timer.join()
    time.sleep(0.2)
    said = list(line.said)
    assert over.wait(10)
    assert said[-1] == ""
    assert line.said == said


def test_a_terminal_has_one_line_and_a_file_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "20")
    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
    monkeypatch.setattr(sys, "stdout", terminal := Terminal())
    line = open_line()
    assert line
    line.write("reading the map \x1b[31mcounts, 3 s")
    line.erase()
    assert terminal.getvalue() == "\r\x1b[Kreading the map \\x1\r\x1b[K"
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    assert open_line() is None


def test_a_script_has_no_line_whatever_shows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delattr(sys, "ps1", raising=False)
    monkeypatch.setattr(sys, "stdout", Terminal())
    assert open_line() is None
