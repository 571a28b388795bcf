"""session.cost, beside what the kernel says of the same programs elsewhere: /proc/PID/fdinfo."""

from __future__ import annotations

import ctypes
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pandas as pd
import pytest
from processes import descriptions, descriptors
from waiting import until

import bpfnb
from bpfnb.hosts import default_host
from bpfnb.tracer.kernel import bpf

_libc = ctypes.CDLL(None, use_errno=True)
COUNTS = """
BPF_ARRAY(counts, u64, 1);
int count(void *ctx) { if (bpf_get_current_pid_tgid() >> 32 == ME) counts.increment(0); return 0; }
"""


def flags() -> list[str]:
    return [f"-DME={os.getpid()}"]


def tracer() -> int:
    return default_host.connect().hello().pid


def kernels(name: str) -> dict[str, int]:
    """What /proc has of the one program of this tracer's that is called so."""
    found = []
    for text in descriptions(tracer()).values():
        fields = dict(re.findall(r"^(\w+):\s+(\S+)$", text, re.M))
        if "prog_id" in fields and "run_cnt" in fields:
            found.append({key: int(value) for key, value in fields.items() if value.isdigit()})
    (only,) = {program["prog_id"]: program for program in found}.values()
    return only


@contextmanager
def always_timed() -> Iterator[None]:
    """Somebody else has the statistics on, all the time."""
    fd = bpf.enable_run_statistics()
    try:
        yield
    finally:
        os.close(fd)


@contextmanager
def calling() -> Iterator[None]:
    """This process makes system calls as fast as it can."""
    ending = threading.Event()

    def call() -> None:
        while not ending.is_set():
            for _ in range(200):
                _libc.getpgid(0)

    thread = threading.Thread(target=call)
    thread.start()
    try:
        yield
    finally:
        ending.set()
        thread.join()


@pytest.mark.portable
def test_costs_are_the_kernels_own_figures() -> None:
    with bpfnb.trace(COUNTS, attach={"syscall:getpgid": "count"}, cflags=flags()) as session:
        first = session.cost
        with calling(), always_timed():
            time.sleep(0.3)
            begun, before = time.monotonic(), kernels("count")
            until(lambda: session.cost.attrs["seconds"] > 0.25)
            passed, after = time.monotonic() - begun, kernels("count")
            cost = session.cost
    assert first.program.tolist() == cost.program.tolist() == ["count"]
    runs, nanoseconds = (after[key] - before[key] for key in ("run_cnt", "run_time_ns"))

    def alike(sampled: float, exact: float) -> bool:  # where others work as well, windows differ much
        return exact / 3 < sampled < exact * 3

    assert alike(cost.ns_per_run[0], nanoseconds / runs)
    assert alike(cost.cpu_share[0], nanoseconds / passed / 1e9)
    # Only those of the windows, a twentieth of all: others had them timed all along.
    assert alike(cost.runs[0] / cost.attrs["seconds"], runs / passed)
    assert cost.runs[0] < runs / 3
    assert cost.missed.isna()[0] or cost.missed[0] == 0


@pytest.mark.ends_tracer
def test_it_stays_as_it_was_at_the_end() -> None:
    session = bpfnb.trace(COUNTS, attach={"syscall:getpgid": "count"}, cflags=flags())
    with calling():
        until(lambda: session.cost.runs.gt(0).fillna(False).all())
        session.stop()
        kept = session.cost
        time.sleep(0.5)
    pd.testing.assert_frame_equal(session.cost, kept)
    assert "ns a run" in repr(session)
    with calling():
        session = bpfnb.trace(COUNTS, attach={"syscall:getpgid": "count"}, cflags=flags())
        until(lambda: session.cost.runs.gt(0).fillna(False).all())
        os.kill(tracer(), signal.SIGKILL)
        assert session.wait(10)
    assert session.state == "failed"
    assert session.cost.runs[0] > 0


def test_programs_are_timed_for_a_small_part_of_the_time_and_not_without_a_session() -> None:
    """By looking at the tracer's descriptors very often."""

    def timed() -> bool:
        return any("bpf-stats" in target for target in descriptors(tracer()).values())

    with bpfnb.trace(COUNTS, attach={"syscall:getpgid": "count"}, cflags=flags()) as session:
        until(lambda: session.cost.attrs["seconds"] > 0)
        looks = []
        ending = time.monotonic() + 4
        while time.monotonic() < ending:
            looks.append(timed())
    assert 0 < sum(looks) / len(looks) < 0.1
    until(lambda: not timed())  # it may have ended within a window
    ending = time.monotonic() + 0.7  # three could begin
    while time.monotonic() < ending:
        assert not timed()


def test_missed_runs_are_counted() -> None:
    """A program that prints wherever something is printed would run in itself without end: each run is missed once."""
    prints = 'int f(void *ctx) { if (bpf_get_current_pid_tgid() >> 32 == ME) bpf_trace_printk("x\\n"); return 0; }'
    echoes = 'BPF_ARRAY(n, u64, 1); int g(void *ctx) { n.increment(0); bpf_trace_printk("y\\n"); return 0; }'
    with (
        bpfnb.trace(prints, name="prints", attach={"syscall:getpgid": "f"}, cflags=flags()),
        bpfnb.trace(echoes, name="echoes", attach={"rawtracepoint:bpf_trace_printk": "g"}) as session,
    ):
        before = session.cost.missed[0]
        for _ in range(500):
            _libc.getpgid(0)
    assert session.maps["n"][0] >= 500
    assert session.cost.missed[0] == session.maps["n"][0]
    assert before < session.cost.missed[0]


def test_what_an_interrupt_missed_is_counted() -> None:
    """Timers go off while a program runs that takes very long: the program at theirs is left out."""
    slow = """
    int slow(void *ctx) {
        if (bpf_get_current_pid_tgid() >> 32 != ME) return 0;
        u64 x = 1;
        for (int i = 0; i < 20000; i++) { x ^= x << 7; asm volatile("" : "+r"(x)); }
        return x == 0;
    }
    """
    with (
        bpfnb.trace(slow, attach={"tracepoint:syscalls:sys_enter_getpgid": "slow"}, cflags=flags(), guard=False),
        bpfnb.trace("int f(void *c) { return 0; }", attach={"tracepoint:timer:hrtimer_expire_entry": "f"}) as timers,
        calling(),
    ):
        until(lambda: timers.cost.missed[0] > 0)


@pytest.mark.portable
def test_where_missed_runs_are_not_counted_they_are_not_known() -> None:
    """Never at the overflow of a perf event; at tracepoints since Linux 6.7."""
    with (
        bpfnb.trace(COUNTS, name="a", attach={"profile:49": "count"}, cflags=flags()) as profile,
        bpfnb.trace(COUNTS, name="b", attach={"tracepoint:syscalls:sys_enter_getpgid": "count"}, cflags=flags()) as at,
        bpfnb.trace(COUNTS, name="c", attach={"rawtracepoint:sched_switch": "count"}, cflags=flags()) as raw,
    ):
        for session in (profile, at, raw):
            until(lambda session=session: session.cost.attrs["seconds"] > 0)
    assert profile.cost.missed.isna().all()
    release = tuple(int(n) for n in re.findall(r"\d+", os.uname().release)[:2])
    assert at.cost.missed.isna().all() == (release < (6, 7))
    assert raw.cost.missed.tolist() == [0]


def test_a_function_of_several_programs_is_one_and_a_tail_call_is_its_callers() -> None:
    cell = """
    BPF_PROG_ARRAY(progs, 2);
    BPF_ARRAY(counts, u64, 2);
    int last(void *ctx) { counts.increment(1); return 0; }
    int first(void *ctx) { counts.increment(0); progs.call(ctx, 0); return 0; }
    """
    with bpfnb.trace(cell, attach={"tracepoint:syscalls:sys_enter_getpgid": "first"}) as session:
        session.maps["progs"][0] = "last"
        with calling():
            until(lambda: session.cost.runs.gt(0).fillna(False).all())
        assert session.maps["counts"][1] > 0
        cost = session.cost
    assert cost.program.tolist() == ["first"]
    assert cost.runs[0] > 0
    both = {"tracepoint:syscalls:sys_enter_getpgid": "count", "rawtracepoint:sched_switch": "count"}
    with bpfnb.trace(COUNTS, attach=both, cflags=flags()) as session, calling():
        until(lambda: session.cost.runs.gt(0).fillna(False).all())
        assert session.cost.program.tolist() == ["count"]
        assert session.cost.runs[0] > 0


@pytest.mark.parametrize("kind", ["uprobe", "uretprobe"])
@pytest.mark.parametrize("name", ["getenv", "a64l"])
def test_a_uprobes_trap_is_measured_on_this_machine(kind: str, name: str) -> None:
    """Beside what calls of the same function take with the probe and without. The first instruction of the one is
    emulated by the kernel, and that of the other run in a single step; as Debian 12 has them."""
    function = ctypes.CDLL(None)[name]
    function.argtypes = [ctypes.c_char_p]

    def fastest() -> float:
        rounds = []
        for _ in range(9):
            begun = time.thread_time_ns()
            for _ in range(500):
                function(b"a")
            rounds.append((time.thread_time_ns() - begun) / 500)
        return min(rounds)

    plain = fastest()
    with bpfnb.trace("int f(void *ctx) { return 0; }", attach={f"{kind}:c:{name}": "f"}) as session:
        until(lambda: session.cost.attrs["trap_ns"])
        added = fastest() - plain
    assert 0.3 * added < session.cost.attrs["trap_ns"]["f"] < 1.3 * added


def test_code_that_crashes_with_a_uprobe_on_it_ends_a_process_of_its_own() -> None:
    """The kernel may step over another instruction than is there: see traps.py. Here one is measured that is none."""
    code = r"""
from bpfnb.tracer.guard import traps
try:
    traps._measured(b"\x0f\x0b", False)  # ud2
except OSError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "the process that runs the code with the uprobe on it has ended\n")


def test_where_a_program_is_reached_in_several_ways_no_trap_is_counted() -> None:
    ways = {"uprobe:c:a64l": "count", "syscall:getpgid": "count"}
    with bpfnb.trace(COUNTS, attach=ways, cflags=flags()) as session:
        until(lambda: session.cost.attrs["seconds"] > 0)
    assert session.cost.attrs["trap_ns"] == {}  # who knows which of its runs came that way


WITHOUT = """
import bpfnb, ctypes, os, time
libc = ctypes.CDLL(None)
cell = 'int f(void *ctx) { if (bpf_get_current_pid_tgid() >> 32 == ME) bpf_trace_printk("x"); return 0; }'
flags = [f"-DME={os.getpid()}"]
with bpfnb.trace(cell, attach={"syscall:getpgid": "f"}, cflags=flags, max_cost=0.1) as session:
    for _ in range(1000):
        libc.getpgid(0)
    time.sleep(1.2)
    print([warning.message for warning in session.warnings])
    print(session.cost.isna().iloc[0].to_dict(), session.cost.attrs["seconds"], "cost" in repr(session))
    print(session.cost.attrs["tracer"] > 0, session.state)
with bpfnb.trace(cell, attach={"syscall:getpgid": "f"}, cflags=flags, max_rate=10) as session:
    print(session.warnings)
    for _ in range(1000):
        libc.getpgid(0)
    print(session.wait(20), session.reason)
print([row["found"] for row in bpfnb.doctor().records() if row["name"] == "cost of programs"])
"""


def test_without_the_right_to_time_programs_nothing_is_made_up() -> None:
    """A tracer without CAP_SYS_ADMIN: rates are guarded, and it is said that costs are not."""
    limit = ["setpriv", "--bounding-set", "-sys_admin"]
    done = subprocess.run(
        [*limit, sys.executable, "-W", "ignore", "-c", WITHOUT], capture_output=True, text=True, timeout=120, check=True
    )
    warned, known, running, silent, reason, row = done.stdout.splitlines()
    assert "max_cost is not guarded: the kernel does not time programs (Operation not permitted)" in warned
    na = {"program": False, "runs": True, "ns_per_run": True, "cpu_share": True, "missed": False}
    assert known == f"{na} 0.0 False"
    assert running == "True running"
    assert silent == "()"
    assert reason.startswith("True the guard ended it: 1,000 events in ")
    assert "max_rate and max_memory are guarded, max_cost is not" in row
