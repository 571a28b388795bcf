"""A signal that asks the tracer to end ends it, whatever it is doing; and no answer is taken for another's."""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import suppress

import pytest
from leaks import bpf_ids, instances
from processes import alive, children, parent
from waiting import until

import bpfnb
from bpfnb.hosts import default_host

PRINTS = 'int f(void *ctx) { bpf_trace_printk("x\\n"); return 0; }'
ATTACH = {"syscall:getpgid": "f"}
# clang takes some seconds for it, and says what it is.
SLOW = """
#define A(x) x x x x x x x x x x
#define B(x) A(A(A(A(x))))
int f(void *ctx) { u64 n = bpf_ktime_get_ns(); B(n = n * 31 + (n >> 7);) return n & 1; }
"""


def marked(number: int) -> str:
    """A cell that says which it is, in a map that only it has."""
    return f"BPF_ARRAY(map{number}, u64, {number + 1}); int f(void *ctx) {{ return {number}; }}"


def ours(session: bpfnb.Session) -> int:
    """How many lines this process has made it print."""
    return int((session.df.pid == os.getpid()).sum())


def compiling(compiler: int) -> tuple[threading.Thread, list[BaseException]]:
    """A thread that starts a cell, which this process's child is compiling now; and the error it gets."""
    died: list[BaseException] = []

    def load() -> None:
        try:
            bpfnb.trace(SLOW, name="slow", attach=ATTACH)
        except bpfnb.BpfnbError as error:
            died.append(error)

    loading = threading.Thread(target=load)
    loading.start()
    until(lambda: children(compiler))
    return loading, died


@pytest.mark.ends_tracer
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize("to", ["worker", "supervisor"])
def test_a_signal_ends_a_tracer_that_compiles(number: signal.Signals, to: str) -> None:
    before = {kind: bpf_ids(kind) for kind in ("program", "map", "link")}
    session = bpfnb.trace(PRINTS, name="s", attach=ATTACH)
    os.getpgid(0)
    deadline = time.monotonic() + 5
    while not ours(session) and time.monotonic() < deadline:
        time.sleep(0.01)
    worker = default_host.connect().hello().pid
    supervisor = parent(worker)
    (compiler,) = children(worker)
    loading, died = compiling(compiler)
    started = time.monotonic()
    os.kill(worker if to == "worker" else supervisor, number)
    loading.join(10)
    assert session.wait(10)
    assert time.monotonic() - started < 5
    assert [type(error) for error in died] == [bpfnb.TracerDied]
    assert (session.state, ours(session)) == ("failed", 1)
    while alive(worker) or alive(supervisor) or alive(compiler):
        assert time.monotonic() - started < 5
        time.sleep(0.02)
    assert not instances(worker)
    for kind, ids in before.items():
        assert bpf_ids(kind) - ids == set() or time.monotonic() - started < 10


@pytest.mark.ends_tracer
def test_a_signal_is_not_swallowed_in_any_state() -> None:
    """At eight moments of a session's life; each time the tracer ends, and the next cell runs its own program."""
    for moment in range(8):
        worker = default_host.connect().hello().pid
        timer = threading.Timer(0.07 * moment, os.kill, [worker, signal.SIGTERM])
        timer.start()
        deadline = time.monotonic() + 10
        while default_host.connect().hello().pid == worker:
            assert time.monotonic() < deadline, f"swallowed at moment {moment}"
            with suppress(bpfnb.TracerDied), bpfnb.trace(marked(moment), name="s", attach=ATTACH) as session:
                assert list(session.maps) == [f"map{moment}"]
        timer.join()
        with bpfnb.trace(marked(100 + moment), name="s", attach=ATTACH) as session:
            assert list(session.maps) == [f"map{100 + moment}"]


def test_cells_compiled_side_by_side_each_get_their_own_program() -> None:
    """Also where some are given up half-way: what the others get is theirs."""
    wrong: list[str] = []

    def compile_some(first: int) -> None:
        for number in range(first, first + 4):
            with bpfnb.trace(marked(number), name=f"s{number}", attach=ATTACH) as session:
                kept = [(name, session.maps[name].info.max_entries) for name in session.maps]
                if kept != [(f"map{number}", number + 1)]:
                    wrong.append(f"{number}: {kept}")

    tracer = default_host.connect()
    threads = [threading.Thread(target=compile_some, args=[10 * n]) for n in range(1, 5)]
    for thread in threads:
        thread.start()
    abandoned = []
    for _ in range(6):
        number = next(tracer._requests)
        program = bpfnb.language.program.parse(SLOW, ATTACH, (), "auto", False)
        tracer._connection.send(bpfnb.protocol.messages.Load(number, program))
        time.sleep(0.1)
        begun = time.monotonic()
        tracer.stop(number)
        abandoned.append(time.monotonic() - begun)
    for thread in threads:
        thread.join()
    assert wrong == []
    assert max(abandoned) < 1


@pytest.mark.ends_tracer
def test_a_tracer_whose_compiler_is_killed_says_so() -> None:
    tracer = default_host.connect()
    worker = tracer.hello().pid
    (compiler,) = children(worker)
    loading, died = compiling(compiler)
    (child,) = children(compiler)
    os.kill(child, signal.SIGKILL)  # the cell's own process: that ends the cell alone
    loading.join(10)
    assert [str(error) for error in died] == ["the compiler crashed (signal 9)"]
    assert default_host.connect().hello().pid == worker
    os.kill(compiler, signal.SIGKILL)
    deadline = time.monotonic() + 5
    while alive(worker) or not tracer.died:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert "the tracer's compiler was ended by signal 9" in tracer.died.output
