"""Tools about CPUs, held against what the kernel counts: /proc/PID/schedstat, /proc/softirqs, /proc/interrupts."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import pytest
from waiting import until

from bpfnb import tools

CPU = max(os.sched_getaffinity(0))
# Spins from a word on, and says what the kernel knows of it: nanoseconds on a CPU, nanoseconds in a queue.
BUSY = f"""
import os, time
os.sched_setaffinity(0, [{CPU}])
print("ready", flush=True)
input()
end = time.monotonic() + 0.5
while time.monotonic() < end: pass
print(*open("/proc/self/schedstat").read().split()[:2])
"""


@contextmanager
def crowd() -> Iterator[dict[int, tuple[int, int]]]:
    """Three processes that want the same CPU: what each had of it, and how long each waited, once they have ended."""
    processes = [
        subprocess.Popen([sys.executable, "-IS", "-c", BUSY], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    for process in processes:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin
        process.stdin.write("\n")
        process.stdin.flush()
    known: dict[int, tuple[int, int]] = {}
    yield known
    for process in processes:
        ran, waited = process.communicate()[0].split()
        known[process.pid] = int(ran), int(waited)


def check_sum(histogram: pd.DataFrame, expected: int) -> None:
    """The buckets' bounds, times their counts, must have the sum between them: but for what follows its reading."""
    low, high = (sum(bound.value * n for bound, n in zip(histogram[side], histogram["count"], strict=True))
                 for side in ("low", "high"))  # fmt: skip
    assert low * 0.99 - 20e6 <= expected <= high * 1.01, (low, expected, high)


@pytest.mark.portable
def test_runqlat_has_the_waits_that_the_kernel_accounts() -> None:
    with tools.runqlat(pids=True) as session, crowd() as known:
        pass
    df = session.df
    assert list(df.columns) == ["pid", "low", "high", "label", "count"]
    assert df["low"].dtype == "timedelta64[ns]"
    assert not (df["pid"] == 0).any()
    for pid, (_, waited) in known.items():
        assert waited > 100e6
        check_sum(df[df["pid"] == pid], waited)


def test_runqslower_has_each_wait_and_who_ran_meanwhile() -> None:
    with tools.runqslower(min_us=1000) as session, crowd() as known:
        pass
    df = session.df
    assert list(df.columns) == ["time", "comm", "pid", "tid", "lat", "prev_comm", "prev_tid"]
    assert df["lat"].min() >= pd.Timedelta("1ms")
    for pid, (_, waited) in known.items():
        mine = df[df["pid"] == pid]
        assert mine["lat"].sum() / pd.Timedelta("1ns") == pytest.approx(waited, rel=0.1)
        assert (mine["prev_tid"] != pid).all()
    assert df["prev_tid"].isin(list(known)).any()
    assert df["prev_comm"][df["prev_tid"] == 0].str.startswith("swapper/").all()


def test_cpudist_has_the_time_on_the_cpu() -> None:
    with tools.cpudist(pids=True) as session, crowd() as known:
        pass
    for pid, (ran, _) in known.items():
        check_sum(session.df[session.df["pid"] == pid], ran)


def test_cpudist_off_the_cpu_has_sleeps() -> None:
    code = "import time\nfor _ in range(5): time.sleep(0.02)"
    with tools.cpudist(off_cpu=True, tids=True, milliseconds=True) as session:
        process = subprocess.Popen([sys.executable, "-IS", "-c", code])
        process.wait()
    df = session.df[session.df["tid"] == process.pid]
    assert df["label"].iloc[0] == "[0ms, 2ms)"
    assert 5 <= df["count"][df["low"] >= pd.Timedelta("16ms")].sum() <= 8  # it may wait for a CPU as well


@pytest.mark.portable
def test_runqlen_counts_those_that_wait() -> None:
    with tools.runqlen(cpus=True) as session, crowd():
        before = session.df
        session.wait(0.3)
        df = session.df
    counts = [frame[frame["cpu"] == CPU].set_index("runqlen")["count"] for frame in (before, df)]
    mine = counts[1].sub(counts[0], fill_value=0)
    assert mine.sum() > 10
    assert mine[mine.index >= 2].sum() > 0.7 * mine.sum()
    assert mine.index.max() < 1000


def softirqs() -> dict[str, int]:
    """How many of each kind there have been, over all CPUs."""
    lines = [line.split() for line in Path("/proc/softirqs").read_text().splitlines()[1:]]
    return {name.rstrip(":").lower(): sum(map(int, counts)) for name, *counts in lines}


def interrupts() -> dict[str, int]:
    """How many of each numbered interrupt there have been, over all CPUs."""
    header, *lines = Path("/proc/interrupts").read_text().splitlines()
    cpus = len(header.split())
    rows = [line.split() for line in lines]
    return {row[0].rstrip(":"): sum(map(int, row[1 : cpus + 1])) for row in rows if row[0][:-1].isdigit()}


def work(folder: Path) -> None:
    """Timers, and requests of the disk."""
    for _ in range(20):
        with (folder / "file").open("wb", buffering=0) as file:
            file.write(b"x" * 4096)
            os.fsync(file.fileno())


@pytest.mark.portable
def test_softirqs_are_as_many_as_the_kernel_counts(tmp_path: Path) -> None:
    before = softirqs()
    with tools.softirqs() as session:
        attached = softirqs()
        work(tmp_path)
        now = softirqs()
        mine = session.df.set_index("softirq")
    after = softirqs()
    assert list(mine.columns) == ["count", "total"]
    for kind, count in mine["count"].items():
        assert count <= after[str(kind)] - before[str(kind)]
    for kind, number in now.items():
        # Those that began before it was attached are not counted; and sometimes the kernel counts one or two for which
        # it calls no raw tracepoint.
        assert mine["count"].get(kind, 0) >= number - attached[kind] - 5
    assert (mine["total"] > pd.Timedelta(0)).all()


def test_softirqs_as_histograms_are_as_many(tmp_path: Path) -> None:
    with tools.softirqs(dist=True) as session:
        work(tmp_path)
    totals = session.maps["totals"].reduced("sum").set_index("key")["count"]
    counts = session.df.groupby("softirq", observed=True)["count"].sum()
    assert counts.to_dict() == {
        kind: totals[number]
        for number, kind in enumerate(softirqs())
        if totals[number]
    }  # fmt: skip


@pytest.mark.parametrize("dist", [False, True])
def test_hardirqs_are_as_many_as_the_kernel_counts(tmp_path: Path, dist: bool) -> None:
    before = interrupts()
    with tools.hardirqs(dist=dist) as session:
        attached = interrupts()
        work(tmp_path)
        now = interrupts()
        df = session.df
    after = interrupts()
    mine = df.groupby("irq")["count"].sum()
    assert mine.sum() > 0
    for irq, count in mine.items():
        assert count <= after[str(irq)] - before[str(irq)]
    disk = str(mine.idxmax())  # of others the kernel sometimes counts one that no handler is run for
    assert mine.max() >= now[disk] - attached[disk] - 5
    names = Path("/proc/interrupts").read_text()
    assert all(name in names for name in df["hardirq"])


SLEEPER = """
import time
for _ in range(5): time.sleep(0.05)
for _ in range(3): time.sleep(0.01)
"""


@pytest.mark.portable
def test_offcputime_has_a_sleep_with_its_stack() -> None:
    with tools.offcputime() as session:
        process = subprocess.Popen([sys.executable, "-IS", "-c", SLEEPER])
        process.wait()
        df = session.df
    assert list(df.columns) == ["pid", "tid", "comm", "stack", "total"]
    assert not (df["tid"] == 0).any()
    mine = df[df["pid"] == process.pid]
    asleep = mine[mine["stack"].str.contains("do_nanosleep_[k];schedule_[k]", regex=False)]
    assert pd.Timedelta("280ms") <= asleep["total"].sum() <= pd.Timedelta("600ms")
    assert mine["stack"].str.endswith("schedule_[k]").all(), "tracing's own frames are not of the thread's stack"
    assert not df["stack"].str.contains("[no stack", regex=False).any()


def test_offcputime_drained_has_each_time_once() -> None:
    """Times that have not ended stay, and stacks are known in each part."""
    parts = []
    with tools.offcputime(kernel_stacks_only=True) as session:
        process = subprocess.Popen([sys.executable, "-IS", "-c", SLEEPER])
        while process.poll() is None:
            parts.append(session.drain())
        parts.append(session.drain())
    df = pd.concat(parts)
    asleep = df[(df["pid"] == process.pid) & df["stack"].str.contains("do_nanosleep_[k]", regex=False)]
    assert pd.Timedelta("280ms") <= asleep["total"].sum() <= pd.Timedelta("600ms")
    assert not df["stack"].str.contains("[no stack", regex=False).any()


def test_profile_drained_knows_the_stacks_of_each_part() -> None:
    parts = []
    with tools.profile(frequency=99) as session:
        process = subprocess.Popen([sys.executable, "-IS", "-c", "while True: pass"])
        try:
            for _ in range(3):
                session.wait(0.3)
                parts.append(session.drain())
        finally:
            process.kill()
            process.wait()
    for part in parts[1:]:
        mine = part[part["pid"] == process.pid]
        assert mine["count"].sum() > 5
        assert not mine["stack"].str.contains("[no stack", regex=False).any()


def test_offcputime_of_some_times_and_one_side() -> None:
    with tools.offcputime(min_us=40_000, kernel_stacks_only=True) as session:
        process = subprocess.Popen([sys.executable, "-IS", "-c", SLEEPER])
        process.wait()
    mine = session.df[session.df["pid"] == process.pid]
    asleep = mine[mine["stack"].str.contains("do_nanosleep_[k]", regex=False)]
    assert pd.Timedelta("250ms") <= asleep["total"].sum() <= pd.Timedelta("500ms")
    assert asleep["stack"].str.split(";").map(lambda frames: all(frame.endswith("_[k]") for frame in frames)).all()


def test_offcputime_counts_stacks_that_it_has_no_room_for() -> None:
    with tools.offcputime(stack_storage_size=1) as session:
        subprocess.run([sys.executable, "-IS", "-c", SLEEPER], check=True)
        with pytest.warns(RuntimeWarning, match="refused"):
            df = session.df
    assert df.attrs["lost"] > 0


WAITER = "import os\nfor _ in range(3): os.write(1, b'r\\n'); os.read(0, 1)"


def wake() -> int:
    """Have a process wait for us three times, 50 ms each; the process."""
    process = subprocess.Popen(
        [sys.executable, "-IS", "-c", WAITER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
    )
    assert process.stdin
    assert process.stdout
    state = Path(f"/proc/{process.pid}/stat")
    for _ in range(3):
        process.stdout.readline()
        until(lambda: state.read_text().rpartition(") ")[2].startswith("S"))  # it has written, so it waits in read()
        time.sleep(0.05)
        process.stdin.write(b"x")
    process.communicate()
    return process.pid


def test_wakeuptime_has_the_waker_and_its_stack() -> None:
    with tools.wakeuptime() as session:
        pid = wake()
        df = session.df
    assert list(df.columns) == ["pid", "waker", "target_pid", "target", "stack", "total"]
    mine = df[
        (df["pid"] == os.getpid()) & (df["target_pid"] == pid) & df["stack"].str.contains("pipe_write_[k]", regex=False)
    ]
    assert pd.Timedelta("145ms") <= mine["total"].sum() <= pd.Timedelta("400ms")


def test_offwaketime_has_both_stacks() -> None:
    with tools.offwaketime() as session:
        pid = wake()
        df = session.df
    mine = df[
        (df["pid"] == pid)
        & (df["waker_pid"] == os.getpid())
        & df["stack"].str.contains("pipe_read_[k]", regex=False)
        & df["waker_stack"].str.contains("pipe_write_[k]", regex=False)
    ]
    assert pd.Timedelta("145ms") <= mine["total"].sum() <= pd.Timedelta("400ms")
