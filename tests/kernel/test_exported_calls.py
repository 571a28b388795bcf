"""A workload's calls as a trace for Perfetto: its own count, names and clock say what must be in it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from traces import read_trace

import bpfnb

CELL = """
enum kind { ENTRY, EXIT };
struct data_t { u32 pid, tid; enum kind kind; char comm[16]; };
BPF_RINGBUF_OUTPUT(events, 16);

static int submit(void *ctx, enum kind kind) {
    struct data_t data = {.kind = kind, .pid = bpf_get_current_pid_tgid() >> 32, .tid = bpf_get_current_pid_tgid()};
    bpf_get_current_comm(&data.comm, sizeof(data.comm));
    events.ringbuf_output(&data, sizeof(data), 0);
    return 0;
}
TRACEPOINT_PROBE(syscalls, sys_enter_clock_nanosleep) { return submit(args, ENTRY); }
TRACEPOINT_PROBE(syscalls, sys_exit_clock_nanosleep) { return submit(args, EXIT); }
"""

# Prints a line a sleep: thread's number and name, CLOCK_BOOTTIME before and after.
WORKLOAD = """
import ctypes, os, threading, time
libc = ctypes.CDLL(None)
def work(name, naps):
    libc.prctl(15, name.encode(), 0, 0, 0)
    for _ in range(naps):
        before = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        libc.usleep(20000)
        after = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        os.write(1, f"{threading.get_native_id()} {name} {before} {after}\\n".encode())  # one write: lines stay whole
threads = [threading.Thread(target=work, args=(f"napper{n}", n)) for n in (2, 3)]
for thread in threads: thread.start()
for thread in threads: thread.join()
"""


@pytest.fixture(scope="module")
def traced() -> tuple[bpfnb.Session, int, list[list[str]]]:
    command = [sys.executable, "-c", WORKLOAD]
    with bpfnb.trace(CELL, name="naps") as session, subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as run:
        naps = [line.split() for line in run.communicate(timeout=60)[0].splitlines()]
    return session, run.pid, naps


def test_slices_are_the_workloads(traced: tuple[bpfnb.Session, int, list[list[str]]], tmp_path: Path) -> None:
    session, pid, naps = traced
    assert len(naps) == 5
    calls = session.df.bpf.between("kind == 'ENTRY'", "kind == 'EXIT'", by=["pid", "tid"], start_columns="comm")
    calls.query(f"pid == {pid}").bpf.to_perfetto(tmp_path / "naps.pftrace", title="nap")
    trace = read_trace(tmp_path / "naps.pftrace")
    assert {(tid, name) for (_, tid), name in trace.threads.items()} == {(int(nap[0]), nap[1]) for nap in naps}
    assert sorted(s.tid for s in trace.slices) == sorted(int(nap[0]) for nap in naps)
    for made in trace.slices:
        assert made.end is not None
        assert made.end - made.begin >= 20_000_000
    # The session's own export is on the machine's clocks, which the workload has read as well.
    session.to_perfetto(tmp_path / "all.pftrace", name="kind")
    whole = read_trace(tmp_path / "all.pftrace")
    ours = sorted((i for i in whole.instants if i.pid == pid), key=lambda i: (i.tid or 0, i.begin))
    assert [i.name for i in ours] == ["ENTRY", "EXIT"] * 5
    naps.sort(key=lambda nap: (int(nap[0]), int(nap[2])))
    for entry, done, (tid, _, before, after) in zip(ours[::2], ours[1::2], naps, strict=True):
        assert entry.tid == int(tid)
        assert int(before) <= entry.begin < done.begin <= int(after)


def test_a_colleague_reads_it(traced: tuple[bpfnb.Session, int, list[list[str]]], tmp_path: Path) -> None:
    session, pid, naps = traced
    session.to_parquet(tmp_path / "naps.parquet")
    back = pd.read_parquet(tmp_path / "naps.parquet")
    pd.testing.assert_frame_equal(back, session.df, check_categorical=False)
    assert len(back.query(f"pid == {pid}")) == 2 * len(naps)
