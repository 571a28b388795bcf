"""The guard: what takes too much of the machine is ended, says why, and keeps its rows; what does not goes on.

Each load is real, and the limits are the usual ones where nothing else is said. How soon a session ends is not measured
here but bounded generously: benchmarks/guard.py measures.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

import bpfnb

LONG = 30.0  # seconds in which a guard must have acted, on a machine with other things to do
_libc = ctypes.CDLL(None, use_errno=True)

LOOP = """
int spin(void *ctx) {
    u64 x = bpf_ktime_get_ns();
    for (int i = 0; i < 30000; i++) { x ^= x << 7; x ^= x >> 9; asm volatile("" : "+r"(x)); }
    return x == 1;
}
"""
PRINTS = 'int chat(void *ctx) { bpf_trace_printk("called\\n"); return 0; }'
NOTHING = "int f(void *ctx) { return 0; }"
COUNTS = """
BPF_ARRAY(counts, u64, 1);
int count(void *ctx) { if (bpf_get_current_pid_tgid() >> 32 == ME) counts.increment(0); return 0; }
"""
MALLOC = """
import ctypes
c = ctypes.CDLL(None)
c.malloc.restype = ctypes.c_void_p  # else an address loses its upper half, and freeing it ends the process
while True: c.free(ctypes.c_void_p(c.malloc(16)))
"""


@contextmanager
def load(*command: str) -> Iterator[None]:
    """A process for each CPU."""
    quiet = subprocess.DEVNULL
    running = [subprocess.Popen(command, stdin=quiet, stdout=quiet, stderr=quiet) for _ in range(os.cpu_count() or 1)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


@pytest.mark.parametrize(
    ("cell", "attach", "command", "limit", "said"),
    [
        pytest.param(LOOP, "rawtracepoint:sys_enter=spin", "dd", {}, "its programs", id="a loop on a hot path"),
        pytest.param(
            PRINTS, "rawtracepoint:sys_enter=chat", "dd", {"max_cost": 0.05}, "reading its events", id="printk"
        ),
        pytest.param(
            NOTHING, "uprobe:c:malloc=f", "malloc", {"max_cost": 0.01}, "the traps of its uprobes", id="malloc"
        ),
    ],
)
def test_what_takes_too_much_of_the_machine_is_ended(
    cell: str, attach: str, command: str, limit: dict[str, float], said: str
) -> None:
    """Another session, which does no harm, runs on meanwhile and misses nothing.

    The first with the usual limit; the others, which take that much only where nobody else works, with a lower one.
    """
    commands = {
        "dd": [shutil.which("dd") or "dd", "if=/dev/zero", "of=/dev/null", "bs=1"],
        "malloc": [sys.executable, "-c", MALLOC],
    }
    probe, _, function = attach.rpartition("=")
    flags = [f"-DME={os.getpid()}"]
    with (
        bpfnb.trace(COUNTS, name="harmless", attach={"syscall:getpgid": "count"}, cflags=flags) as harmless,
        load(*commands[command]),
        bpfnb.trace(cell, name="costly", attach={probe: function}, **limit) as session,
    ):
        assert session.wait(LONG), f"it runs on: {session.cost}\n{session.cost.attrs}"
        for _ in range(1000):
            _libc.getpgid(0)
        assert bpfnb.sessions() == {"harmless": harmless}
    assert session.state == "stopped"
    assert session.reason.startswith("the guard ended it: ")
    assert "of all CPUs" in session.reason
    assert f"max_cost is {100 * limit.get('max_cost', 0.25):g} % over 5 s" in session.reason
    assert said in session.reason
    assert session.reason in repr(session)
    assert session.reason in session._repr_html_().replace("&#x27;", "'")
    assert session.cost.runs[0] > 0
    assert harmless.reason == "stopped"
    assert harmless.maps["counts"][0] == 1000
    if cell == PRINTS:
        rows = len(session.df)  # kept, or counted
        assert rows > 0
        assert set(session.df.msg.unique()) == {"called"}
    session.stop()  # once more is no harm
    assert session.reason.startswith("the guard ended it: ")


def test_a_session_that_does_no_harm_goes_on() -> None:
    """Ten seconds of some thousand system calls a second, printed."""
    cell = COUNTS.replace("counts.increment(0);", 'bpf_trace_printk("x");')
    calls = 0
    with bpfnb.trace(cell, attach={"syscall:getpgid": "count"}, cflags=[f"-DME={os.getpid()}"]) as session:
        ending = time.monotonic() + 10
        while time.monotonic() < ending:
            for _ in range(20):
                _libc.getpgid(0)
            calls += 20
            time.sleep(0.01)
        assert session.state == "running"
    assert session.reason == "stopped"
    assert len(session.df) == calls
    assert session.lost == 0


def test_without_the_guard_it_goes_on() -> None:
    with (
        load(sys.executable, "-c", MALLOC),
        bpfnb.trace(NOTHING, attach={"uprobe:c:malloc": "f"}, guard=False) as session,
    ):
        assert not session.wait(8)
        assert session.cost.cpu_share[0] > 0
    assert session.reason == "stopped"


def test_a_rate_that_is_too_high_ends_it_and_every_event_is_kept() -> None:
    cell = COUNTS.replace("counts.increment(0);", '{ counts.increment(0); bpf_trace_printk("x"); }')
    with bpfnb.trace(
        cell, attach={"syscall:getpgid": "count"}, cflags=[f"-DME={os.getpid()}"], max_rate=1000
    ) as session:
        ending = time.monotonic() + LONG
        while not session.wait(0.001) and time.monotonic() < ending:
            for _ in range(50):
                _libc.getpgid(0)
    assert session.reason.startswith("the guard ended it: ")
    assert "max_rate is 1,000 a second over 5 s" in session.reason
    assert len(session.df) + session.lost == session.maps["counts"][0]
    assert len(session.df) >= 5000


def test_memory_that_is_too_much_ends_it_and_the_map_is_kept() -> None:
    cell = "BPF_HASH(h, u64, u64); int f(void *ctx) { u64 k = bpf_ktime_get_ns(), v = 1; h.update(&k, &v); return 0; }"
    with bpfnb.trace(cell, attach={"syscall:getpgid": "f"}, max_memory=32 << 20) as session:
        assert not session.wait(1.5), session.reason
        empty = session.cost.attrs["memory"]
        ending = time.monotonic() + LONG
        while not session.wait(0.001) and time.monotonic() < ending:
            for _ in range(5000):
                _libc.getpgid(0)
    assert empty < 32 << 20
    assert "bytes of memory in the kernel, and max_memory is 33,554,432" in session.reason
    assert session.cost.attrs["memory"] > 32 << 20
    assert len(session.maps["h"].df) > 10_000
