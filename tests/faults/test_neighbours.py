"""Others who write to, read, unmount or restart what a printing session lives on: noticed, said and survived."""

from __future__ import annotations

import ctypes
import os
import random
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from waiting import until

import bpfnb
from bpfnb.hosts import default_host
from bpfnb.tracer.doctor import kconfig

_libc = ctypes.CDLL(None)
TRACEFS = Path("/sys/kernel/tracing")
INSTANCES = TRACEFS / "instances"
EVENT = "events/bpf_trace/bpf_trace_printk"
COUNT = """
int count(struct pt_regs *ctx, int pid) {
    if (pid == %d) bpf_trace_printk("x\\n");
    return 0;
}
"""
MARK = random.SystemRandom().randrange(1 << 29, 1 << 30)  # what the calls that are counted ask for: there is none such


def burst(count: int) -> None:
    for _ in range(count):
        _libc.getpgid(MARK)


def mine(what: str) -> list[Path]:
    """The instances of this process's tracer."""
    start = f"bpfnb-{default_host.connect().hello().pid}-"
    found = [path for path in INSTANCES.iterdir() if path.name.startswith(start)]
    return [path for path in found if path.name.endswith("-comm") == (what == "comm")]


@contextmanager
def printing() -> Iterator[tuple[bpfnb.Session, Path]]:
    """A session that prints a line for each call of ``burst``, and its instance."""
    with bpfnb.trace(COUNT % MARK, name="s", attach={"syscall:getpgid": "count"}) as session:
        (instance,) = mine("lines")
        yield session, instance


def notes(session: bpfnb.Session) -> list[str]:
    return [w.message for w in session.warnings if w.severity == "note" and "another process" in w.message]


CHANGES = {
    "tracing_on": "0",
    "trace_clock": "global",
    "set_event": "",
    f"{EVENT}/enable": "0",
    f"{EVENT}/filter": 'bpf_string ~ "nothing*"',
    "tracing_cpumask": "1",
    "buffer_size_kb": "64",
    "buffer_subbuf_size_kb": "16",
    "free_buffer": "",
}


@pytest.mark.parametrize(
    "file", [pytest.param(name, marks=[pytest.mark.portable] if name == "trace_clock" else []) for name in CHANGES]
)
def test_what_others_change_is_noticed_said_and_set_back(file: str) -> None:
    with printing() as (session, instance):
        if not (instance / file).exists():
            pytest.skip(f"this kernel's instances have no {file}")
        watched = ["tracing_on", "trace_clock", f"{EVENT}/enable", f"{EVENT}/filter", "buffer_size_kb"]
        before = {name: (instance / name).read_text() for name in watched}
        burst(100)
        until(lambda: session.outputs["printk"].rows == 100)
        (instance / file).write_text(CHANGES[file])
        until(lambda: notes(session))
        until(lambda: {name: (instance / name).read_text() for name in watched} == before)
        time.sleep(0.05)
        burst(100)
    with pytest.warns(RuntimeWarning, match=f"writes to {Path(file).name} of the session's"):
        df = session.df
    assert (session.state, session.reason, len(df), session.lost) == ("stopped", "stopped", 200, 0)
    assert df.time.is_monotonic_increasing
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(session.df) == 200  # it is said once


def test_lines_of_another_clock_are_lost_not_shown() -> None:
    """Until the change is noticed they would have times that mean something else."""
    began = time.time_ns()
    with printing() as (session, instance):
        for _ in range(20):
            (instance / "trace_clock").write_text("counter")
            burst(50)
            time.sleep(0.01)
    with pytest.warns(RuntimeWarning):
        times = session.df.time.astype("int64").to_numpy()
    assert len(times) + session.lost <= 1000
    assert all((began <= times) & (times <= time.time_ns()))


def test_an_emptied_buffer_is_said() -> None:
    with printing() as (session, instance):
        burst(10)
        until(lambda: session.outputs["printk"].rows == 10)
        (instance / "trace").write_text("")
        until(lambda: notes(session))
        burst(10)
    with pytest.warns(RuntimeWarning, match="writes to trace of"):
        assert len(session.df) == 20
    assert session.lost == 0


@pytest.mark.portable
def test_what_another_reader_takes_is_counted_as_lost() -> None:
    """To the last line, though only the kernel saw them go."""
    with printing() as (session, instance):
        pipes = [os.open(p, os.O_RDONLY | os.O_NONBLOCK) for p in instance.glob("per_cpu/cpu*/trace_pipe_raw")]
        taken = 0
        for _ in range(200):
            burst(50)
            for pipe in pipes:
                with suppress(OSError):  # there is nothing, or never was such a CPU
                    taken += len(os.read(pipe, 4096)) > 0
        for pipe in pipes:
            os.close(pipe)
    assert taken
    assert 0 < session.outputs["printk"].rows < 10_000
    assert session.outputs["printk"].rows + session.lost == 10_000
    with pytest.warns(RuntimeWarning, match="another process reads the session's tracefs instance"):
        assert len(session.df) == session.outputs["printk"].rows


@pytest.mark.portable
def test_trace_pipe_is_ours() -> None:
    """Where the kernel knows one reader only (6.6); elsewhere what it takes is counted."""
    with printing() as (session, instance):
        pipe = -1
        with suppress(OSError):
            pipe = os.open(instance / "trace_pipe", os.O_RDONLY | os.O_NONBLOCK)
        burst(100)
        if pipe >= 0:
            with suppress(BlockingIOError):
                os.read(pipe, 1 << 16)
            os.close(pipe)
    assert pipe < 0 or kconfig.version(os.uname().release) < (6, 6)
    assert session.outputs["printk"].rows + session.lost == 100


@pytest.mark.portable
def test_other_events_in_the_instance_are_not_taken_for_lines() -> None:
    with printing() as (session, instance):
        (instance / "events/sched/sched_switch/enable").write_text("1")
        burst(50)
        time.sleep(0.2)
        burst(50)
    assert session.df.msg.tolist() == ["x"] * 100


def test_the_history_of_names_survives_too() -> None:
    with printing() as (session, _):
        (comm,) = mine("comm")
        (comm / "tracing_on").write_text("0")
        until(lambda: (comm / "tracing_on").read_text() == "1\n")
        before = Path("/proc/self/comm").read_bytes()
        Path("/proc/self/comm").write_bytes(b"renamed")
        burst(1)
        Path("/proc/self/comm").write_bytes(before.strip())
    assert session.df.comm.tolist() == ["renamed"]


def test_a_file_held_open_by_another_does_not_keep_a_session_running() -> None:
    """The kernel then keeps the instance; it is removed as soon as it can be."""
    with printing() as (session, instance):
        burst(10)
        held = os.open(instance / "per_cpu/cpu0/trace_pipe_raw", os.O_RDONLY)
    assert (session.state, session.reason, len(session.df)) == ("stopped", "stopped", 10)
    assert instance.exists()
    assert int((instance / "buffer_size_kb").read_text().split()[0]) < 64  # what it held is free already
    os.close(held)
    with printing():
        assert not instance.exists()


# --- mounts and containers ----------------------------------------------------------------------------------------

SCRIPT = f"""
import ctypes, os, random, subprocess, sys, time
import bpfnb
from bpfnb.hosts import default_host
libc = ctypes.CDLL(None)
MARK = random.SystemRandom().randrange(1 << 29, 1 << 30)
COUNT = {COUNT!r} % MARK
LISTED = "TRACEPOINT_PROBE(syscalls, sys_enter_getpgid) {{ return 0; }}"
RING = '''BPF_RINGBUF_OUTPUT(events, 8);
int f(void *ctx) {{ u32 x = 1; events.ringbuf_output(&x, sizeof(x), 0); return 0; }}'''
def trace(source=COUNT, function="count", name=None):
    return bpfnb.trace(source, name=name, attach={{"syscall:getpgid": function}})
def burst(count):
    for _ in range(count):
        libc.getpgid(MARK)
def sh(command):
    subprocess.run(command, shell=True, check=True, stdout=subprocess.DEVNULL)
"""
PRIVATE = ["unshare", "--mount", "--propagation", "private"]
CONTAINER = [*PRIVATE, "--pid", "--fork", "--kill-child", "--mount-proc"]


def run(script: str, *within: str) -> str:
    done = subprocess.run(
        [*within, sys.executable, "-c", SCRIPT + script], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_sessions_survive_a_lazy_unmount_of_tracefs() -> None:
    """They go on by what they have open; a new one mounts it again."""
    script = """
session, ring = trace(), trace(RING, "f")
burst(100)
sh("while umount -l /sys/kernel/tracing 2>/dev/null; do :; done")
sh("while umount -l /sys/kernel/debug/tracing 2>/dev/null; do :; done")
assert not os.path.exists("/sys/kernel/tracing/trace_pipe")
burst(100)
time.sleep(0.2)
print(session.state, session.outputs["printk"].rows)
second = trace()
bpfnb.trace(LISTED).stop()
burst(100)
for each in (session, ring, second):
    each.stop()
    print(each.state, each.reason, sum(each.df.iloc[:, -1].notna()) >= 100, each.lost)
print(len(session.df), len(second.df))
"""
    lines = run(script, *PRIVATE).splitlines()
    assert lines == ["running 200", *["stopped stopped True 0"] * 3, "300 100"]


def test_a_tracer_ends_cleanly_where_tracefs_was_unmounted() -> None:
    before = {path.name for path in INSTANCES.iterdir()}
    run("session = trace()\nsh('umount -l /sys/kernel/tracing')\nprint(os.getpid())", *PRIVATE)
    until(lambda: not {p.name for p in INSTANCES.iterdir() if p.name.startswith("bpfnb")} - before)


def test_where_tracefs_is_read_only_lines_come_through_a_ring() -> None:
    """And what needs no instance works as ever."""
    script = """
sh("mount -o remount,ro,bind /sys/kernel/tracing")
lines = trace()
ring = trace(RING, "f", name="ring")
burst(10)
bpfnb.stop_all()
print(len(lines.df) >= 10, lines.outputs["printk"].clock)
print(len(ring.df) >= 10)
"""
    assert run(script, *PRIVATE).splitlines() == ["True stamp", "True"]


CONTAINED = """
session = trace()
print(default_host.connect().hello().pid, flush=True)
sys.stdin.readline()
burst(100)
session.stop()
print(len(session.df), session.lost, flush=True)
sys.stdin.readline()
"""


@contextmanager
def container() -> Iterator[subprocess.Popen[str]]:
    """A notebook with a pid namespace of its own."""
    command = [*CONTAINER, sys.executable, "-c", SCRIPT + CONTAINED]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.ends_tracer
def test_tracers_of_containers_with_equal_pids_do_not_meet() -> None:
    """Nor do those that start meanwhile, in another container or none, sweep away what living ones use."""
    with container() as first, container() as second:
        pids = [process.stdout.readline() for process in (first, second) if process.stdout]
        assert pids[0] == pids[1] != ""
        default_host.close()
        with printing() as (session, _):  # a new tracer: it has swept
            burst(10)
        assert len(session.df) == 10
        for process in (first, second):
            assert process.stdin
            assert process.stdout
            print(file=process.stdin, flush=True)
            assert process.stdout.readline() == "100 0\n"


def test_a_container_killed_at_once_leaves_nothing_to_trip_over() -> None:
    """Its instances lose their memory with it, and go when the next tracer starts, though a process has their pid."""
    before = {path.name for path in INSTANCES.iterdir()}
    with container() as process:
        assert process.stdout
        pid = process.stdout.readline().strip()
        ours = {p.name for p in INSTANCES.iterdir() if p.name.startswith(f"bpfnb-{pid}-")} - before
        assert len(ours) == 2
        process.kill()  # takes all the container's processes with it, at once
        process.wait()
        left = [INSTANCES / name for name in ours]
        until(lambda: all(int((p / "buffer_size_kb").read_text().split()[0]) < 64 for p in left if p.exists()))
        with container() as again:
            assert again.stdout
            assert again.stdout.readline().strip() == pid
            assert not any(path.exists() for path in left)

    def swept() -> bool:
        sweep = "from bpfnb.tracer.kernel import tracefs; tracefs.sweep_orphans()"  # it keeps the folder open
        subprocess.run([sys.executable, "-c", sweep], check=True)
        return not [path for path in INSTANCES.iterdir() if path.name.startswith(f"bpfnb-{pid}-")]

    until(swept)  # the second one was killed as well
