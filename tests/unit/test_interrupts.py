"""Ctrl-C at every point: nothing hangs, nothing is left running, nothing is lost or half made."""

from __future__ import annotations

import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import closing

import ipywidgets
import msgspec
import numpy as np
import pytest
from interrupting import every_point
from matplotlib import font_manager

import bpfnb
from bpfnb.host import client
from bpfnb.hosts import default_host
from bpfnb.interrupts import Flag, new_rlock, uninterrupted
from bpfnb.protocol.connection import Connection
from bpfnb.protocol.messages import Checks, Hello, ProbeNames, ToTracer
from bpfnb.session import Session
from bpfnb.testing import FakeTracer

pytestmark = pytest.mark.timeout(40)

HELLO = 'int kprobe__sys_clone(void *ctx) { bpf_trace_printk("Hello, World!\\n"); return 0; }'
QUEUE = "BPF_QUEUE(fifo, u64, 10); BPF_HASH(counts, u32, u64); int kprobe__sys_clone(void *ctx) { return 0; }"
COUNTS = np.array([1, 2], "<u4"), np.array([10, 20], "<u8")


def eventually(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 5
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.001)
    return True


@pytest.fixture
def tracer() -> Iterator[FakeTracer]:
    with FakeTracer(maps={"counts": COUNTS}) as tracer:
        yield tracer
        bpfnb.stop_all()


def test_an_interrupted_start_leaves_nothing_running(tracer: FakeTracer) -> None:
    started: list[Session] = []
    tries = 0
    for came_out in every_point(lambda: started.append(bpfnb.trace(HELLO, name="s"))):
        assert came_out
        assert bpfnb.sessions() == {}
        tries += 1
    assert tries > 30
    (session,) = started
    assert bpfnb.sessions() == {"s": session}
    session.stop()
    assert eventually(lambda: len(tracer.stopped) == len(tracer.loaded))
    assert len(tracer.loaded) > 2


def test_stop_all_also_stops_a_session_whose_start_was_interrupted(tracer: FakeTracer) -> None:
    session = bpfnb.trace(HELLO, name="s")
    session._abandoned = True  # as Host.start does, before the thread it starts stops the session
    assert bpfnb.sessions() == {}
    bpfnb.stop_all()
    assert session.state == "stopped"


def test_an_interrupted_replacement_leaves_one_or_none(tracer: FakeTracer) -> None:
    def replace() -> None:
        bpfnb.trace(HELLO, name="s")

    before = bpfnb.trace(HELLO, name="s")
    for _ in every_point(replace):
        assert bpfnb.sessions() in ({}, {"s": before})
        before = bpfnb.trace(HELLO, name="s")
    bpfnb.stop_all()
    assert eventually(lambda: len(tracer.stopped) == len(tracer.loaded))


def test_an_interrupted_stop_stops(tracer: FakeTracer) -> None:
    session = bpfnb.trace(HELLO, name="s")

    def stop() -> None:
        session.stop()

    for _ in every_point(stop):
        session.stop()
        assert session.state == "stopped"
        session = bpfnb.trace(HELLO, name="s")
    session.stop()
    assert len(tracer.stopped) == len(tracer.loaded)


def test_an_interrupted_df_has_every_row_once_the_next_time(tracer: FakeTracer) -> None:
    session = bpfnb.trace(HELLO, name="s")
    lines = 0

    def more() -> int:
        nonlocal lines
        tracer.printk(session, [("bash", lines + n, f"line {lines + n}") for n in range(50)])
        lines += 50
        return lines

    more()
    for _ in every_point(lambda: (session.df, session.lost, session.snapshot(), session.outputs["printk"].rows)):
        df = session.df
        assert df.pid.tolist() == list(range(lines))
        assert df.msg.tolist() == [f"line {n}" for n in range(lines)]
        more()


@pytest.mark.parametrize("how", ["differences", "entries"])
def test_what_an_interrupted_drain_took_the_next_one_gives(tracer: FakeTracer, how: str) -> None:
    session = bpfnb.trace(QUEUE, name="s")
    counts = session.maps["counts"]
    given: list[int] = []
    put = 0

    def drain() -> None:
        given.extend(counts.drain(how).value.tolist())

    def add() -> None:
        nonlocal put
        put += 1
        value = put + 10 if how == "differences" else 1  # one that grows
        tracer._maps["counts"].write(struct.pack("<I", 1), struct.pack("<Q", value))

    drain()
    total = sum(given)
    add()
    tries = 0
    for _ in every_point(drain):
        drain()
        assert sum(given) == total + put
        add()
        tries += 1
    assert tries > 30


def test_interrupted_reading_and_writing_of_a_map_goes_on(tracer: FakeTracer) -> None:
    session = bpfnb.trace(QUEUE, name="s")
    counts = session.maps["counts"]

    def use() -> None:
        counts[5] = 50
        assert counts[5] == 50
        assert len(counts.df) in (2, 3)
        assert counts.hist("linear") is not None
        del counts[5]

    for _ in every_point(use):
        counts[5] = 5
        assert counts.get(5) == 5
        assert counts.df.value.tolist() == [10, 20, 5]
        del counts[5]


def test_an_interrupted_wait_ends_when_the_session_does(tracer: FakeTracer) -> None:
    session = bpfnb.trace(HELLO, name="s")
    for _ in every_point(lambda: session.wait(0.001)):
        pass
    session.stop()
    assert session.wait(5)


def test_a_panel_shown_under_interrupts_ends_with_its_session(tracer: FakeTracer) -> None:
    session = bpfnb.trace(HELLO, name="s")
    tracer.printk(session, [("bash", 1, "x")])

    def live() -> None:
        panel = session.live()
        panel.close()
        assert panel.closed

    for _ in every_point(live, step=17):
        pass
    panel = session.live()
    panel.stop()
    assert panel.closed
    assert session.state == "stopped"
    ipywidgets.Widget.close_all()  # those of panels that were interrupted before they were whole
    font_manager._get_font.cache_clear()  # matplotlib keeps fonts open


def test_an_interrupted_start_of_the_tracer_leaves_one_or_none() -> None:
    """GIVEN Ctrl-C while a tracer is started THEN the next caller has one, and there are no others."""
    launched: list[client.Client] = []

    def launch() -> client.Client:
        ours, theirs = socket.socketpair()
        launched.append(client.Client(ours))
        with theirs:
            body = msgspec.msgpack.encode(Hello(os.getpid(), "fake", "fake"))
            theirs.send(struct.pack("<IB", len(body), 0) + body)
            socks.append(theirs.dup())
        return launched[-1]

    socks: list[socket.socket] = []
    host = bpfnb.Host(launch)
    try:
        for _ in every_point(host.connect):
            assert host.connect() is launched[-1]
            assert len(launched) == 1
            host.close()
            launched.clear()
            socks.pop().close()
    finally:
        host.close()
        for sock in socks:
            sock.close()


# --- the parts ----------------------------------------------------------------------------------------------------


def test_uninterrupted_work_ends_whoever_leaves() -> None:
    begun, ended = [0], [0]

    @uninterrupted
    def work() -> int:
        begun[0] += 1
        time.sleep(0.001)
        ended[0] += 1
        return ended[0]

    for _ in every_point(work):
        pass
    assert eventually(lambda: ended == begun)
    assert work() == ended[0]


def test_uninterrupted_work_raises_what_it_raises_and_leaves_no_thread() -> None:
    @uninterrupted
    def fail() -> None:
        threading.current_thread()
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        fail()
    assert not [thread for thread in threading.enumerate() if "Dummy" in thread.name]


def test_an_interrupt_that_python_drops_is_followed_by_another() -> None:
    """GIVEN a callback that runs as an object is freed, where Python drops what is raised THEN none is lost."""
    freed: list[object] = []

    def act() -> None:
        thing = Thing()
        held = weakref.WeakMethod(thing.method, freed.append)
        del thing
        assert held() is None
        Flag().wait(0)

    outcomes = list(every_point(act))
    assert len(outcomes) > 10
    assert all(outcomes)
    assert 0 < len(freed) < len(outcomes)  # it was interrupted in the callback, too


class Thing:
    def method(self) -> None: ...


def test_a_flag_wakes_all_who_wait_whoever_was_interrupted() -> None:
    flag = Flag()
    for _ in every_point(lambda: flag.wait(0)):
        pass
    assert not flag.wait(0.001)
    threads = [threading.Thread(target=flag.wait) for _ in range(5)]
    for thread in threads:
        thread.start()
    flag.set()
    for thread in threads:
        thread.join(5)
    assert not any(thread.is_alive() for thread in threads)
    assert flag.wait()


WAITING = """
import signal, sys, threading
from bpfnb.interrupts import Flag, uninterrupted
signal.siginterrupt(signal.SIGINT, False)  # as polars does
print("ready", flush=True)
try:
    {wait}
except KeyboardInterrupt:
    print("interrupted")
"""


@pytest.mark.parametrize("wait", ["Flag().wait()", "Flag().wait(3600)", "uninterrupted(threading.Event().wait)()"])
def test_ctrl_c_ends_a_wait_where_signals_restart_calls(wait: str) -> None:
    with subprocess.Popen([sys.executable, "-c", WAITING.format(wait=wait)], stdout=subprocess.PIPE) as child:
        assert child.stdout
        assert child.stdout.readline() == b"ready\n"
        time.sleep(0.2)  # it waits, most likely
        child.send_signal(signal.SIGINT)
        assert child.communicate(timeout=20)[0] == b"interrupted\n"


def test_a_flag_waits_no_longer_than_it_is_told() -> None:
    for seconds in (0, 0.01, 0.25):
        began = time.monotonic()
        assert not Flag().wait(seconds)
        assert time.monotonic() - began >= seconds


def test_a_lock_held_by_another_thread_is_free_in_a_forked_child() -> None:
    lock = new_rlock()
    held, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            held.set()
            leave.wait(10)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(10)
    child = os.fork()
    if not child:
        os._exit(0 if lock.acquire(timeout=1) else 1)
    leave.set()
    thread.join()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


# --- answers ------------------------------------------------------------------------------------------------------


def test_an_answer_to_nothing_is_dropped_and_one_of_another_kind_is_an_error(tracer: FakeTracer) -> None:
    tracer._connection.send(ProbeNames(10**6, ("stray",), 0))
    assert default_host.connect().find_probes("x", 1) == ((), 0)
    ours, theirs = socket.socketpair()
    with closing(client.Client(ours)) as confused, closing(Connection(theirs, ToTracer)) as connection:
        answers = threading.Thread(target=answer_with_checks, args=(connection,))
        answers.start()
        with pytest.raises(bpfnb.InternalError, match="FindProbes with Checks"):
            confused.find_probes("x", 1)
        answers.join()


def answer_with_checks(connection: Connection[ToTracer]) -> None:
    connection.send(Hello(os.getpid(), "fake", "fake"))
    message, _ = connection.receive()
    connection.send(Checks(message.request, ()))
