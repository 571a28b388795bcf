"""Rows as they come and maps over time, from the kernel, against workloads that keep count."""

from __future__ import annotations

import os
import signal
import threading
import time

import pandas as pd
import pytest
from test_drain import CELL as COUNTING
from test_drain import COUNTED, Producers, counted, producing
from waiting import until

import bpfnb

LATE = pytest.mark.filterwarnings("ignore:.* snapshots of .* were left out:RuntimeWarning")  # the machine is busy

CELL = r"""
struct event { u64 ts; u32 pid, seq; char comm[16]; };
BPF_PERF_OUTPUT(events);
BPF_ARRAY(number, u32, 1);
int f(void *ctx) {
    int zero = 0;
    u32 *seq = number.lookup(&zero), pid = bpf_get_current_pid_tgid() >> 32;
    if (pid != ME || !seq) return 0;
    struct event e = {.ts = bpf_ktime_get_ns(), .pid = pid, .seq = *seq};
    *seq += 1;  // one thread alone calls
    bpf_get_current_comm(&e.comm, sizeof(e.comm));
    events.perf_submit(ctx, &e, sizeof(e));
    return 0;
}
"""


def counting(producers: Producers) -> bpfnb.Session:
    return bpfnb.trace(COUNTING, name="moving", attach={"syscall:getppid": "f"}, cflags=producers.flags)


def started() -> bpfnb.Session:
    return bpfnb.trace(CELL, name="events", attach={"syscall:getppid": "f"}, cflags=[f"-DME={os.getpid()}"])


@pytest.mark.portable
def test_every_reader_has_every_event_once_until_the_end() -> None:
    calls = 30_000
    with started() as session:
        batches: list[pd.DataFrame] = []
        reader = threading.Thread(target=lambda: batches.extend(session.stream(every="30ms")))
        reader.start()

        def work() -> None:
            for n in range(calls):
                os.getppid()
                if n % 3000 == 0:
                    time.sleep(0.01)
            session.stop()

        worker = threading.Thread(target=work)
        worker.start()
        seen = [(event.seq, event.pid) for event in session]
        worker.join()
        reader.join()
    assert seen == [(n, os.getpid()) for n in range(calls)]
    assert len(batches) > 2
    assert pd.concat(batches).seq.tolist() == list(range(calls))
    pd.testing.assert_frame_equal(pd.concat(batches, ignore_index=True), session.df)
    assert session.lost == 0


def test_ctrl_c_leaves_the_loop_and_the_session_goes_on() -> None:
    with started() as session:
        timer = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        os.getppid()
        seen = []
        with pytest.raises(KeyboardInterrupt):
            seen += [event.seq for event in iter(session) if seen.append(event.seq)]  # type: ignore[func-returns-value]
        timer.join()
        assert (seen, session.state) == ([0], "running")
        os.getppid()
        session.stop()
        assert [event.seq for event in session] == [0, 1]


def test_an_event_is_in_the_loop_soon() -> None:
    """Within the tracer's 40 ms and what a loaded machine adds."""
    with started() as session:
        events = iter(session)
        took = []
        for n in range(20):
            began = time.monotonic_ns()
            os.getppid()
            assert next(events).seq == n
            took.append((time.monotonic_ns() - began) / 1e6)
    assert sorted(took)[10] < 150


@LATE
@pytest.mark.portable
def test_drained_snapshots_of_every_kind_have_each_count_once() -> None:
    """While two CPUs count, with a stop in between: all snapshots together have what the workload did."""
    with producing() as producers:
        with counting(producers) as session:
            moving = {name: session.maps[name].every("15ms", drain=True) for name in COUNTED}
            growing = session.maps["plain"].every("20ms")
            producers.begin()
            until(lambda: min(each.snapshots for each in moving.values()) > 5)
            session.stop()  # while they count
        calls = producers.stop()
    totals = {name: counted(each.df) for name, each in moving.items()}
    assert len(set(totals.values())) == 1, totals
    assert 0 < totals["plain"] <= calls
    assert {each.reason for each in moving.values()} == {"the session ended"}
    assert growing.df.empty or growing.df.value.max() < totals["plain"]  # what was drained is not shown again


@LATE
def test_cumulative_snapshots_only_grow_and_end_with_the_total() -> None:
    with producing() as producers, counting(producers) as session:
        moving = {name: session.maps[name].every("10ms") for name in ("each", "sizes")}
        producers.begin()
        until(lambda: min(each.snapshots for each in moving.values()) > 5)
        calls = producers.stop()
    for each in moving.values():
        sums = each.reduced().groupby("time").value.sum()
        assert sums.is_monotonic_increasing
        assert sums.iloc[-1] == calls
        assert sums.nunique() > 2
    hist = moving["sizes"].hist("linear")
    assert hist.groupby("time")["count"].sum().tolist() == moving["sizes"].df.groupby("time").value.sum().tolist()
