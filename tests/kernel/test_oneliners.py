"""One-liners against workloads that count: what was really done is known from the program that did it.

Each session runs beside a second one of its ``source``, as a cell: both must have counted the same.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from waiting import until

import bpfnb
from bpfnb.session import Session

KPROBES = Path("/sys/bus/event_source/devices/kprobe/type").exists()
WRITES = 200  # of the workload, of 0 to 199 bytes
FAILURES = 7
PAGES = 300
WORK = r"""
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

static char bytes[4096];
int nap(int depth, const char *who) {  // sleeps depth + 1 times, each within the one before
    struct timespec t = {0, 5000000};
    clock_nanosleep(CLOCK_MONOTONIC, 0, &t, 0);
    if (depth > 0) nap(depth - 1, who);
    return -depth;
}
long twice(long n, unsigned char low) { return 2 * n; }
int main(int argc, char **argv) {
    char who[] = "somebody";
    struct timespec t = {0, 50000000};
    prctl(PR_SET_NAME, "bpfnb-work");
    if (argc > 1) prctl(PR_SET_NAME, argv[1]);
    int out = open("/dev/null", O_WRONLY), i;
    volatile long sum = 0;
    for (i = 0; i < 200; i++) write(out, bytes, i);
    for (i = 0; i < 7; i++) open("/nonexistent/file", O_RDONLY);
    for (i = -5; i < 20; i++) sum += twice(i, i);
    clock_nanosleep(CLOCK_MONOTONIC, 0, &t, 0);
    nap(3, who);
    char *pages = mmap(0, 300 * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    madvise(pages, 300 * 4096, MADV_NOHUGEPAGE);
    for (i = 0; i < 300; i++) pages[4096 * i] = 1;
    return 0;
}
"""
MINE = "comm == 'bpfnb-work'"
Work = Callable[..., None]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("work")
    (folder / "work.c").write_text(WORK)
    subprocess.run(["gcc", "-O0", "-w", "-o", folder / "work", folder / "work.c"], check=True)
    return folder / "work"


def answer(session: Session, work: Path, *names: str) -> pd.DataFrame:
    """Run the workload under a session and under its source as a cell; both have counted the same."""
    with session, bpfnb.trace(session.source, name="copy") as copy:
        for name in names or [""]:
            subprocess.run([work, name] if name else [work], check=True)
    for name in session.maps:
        if name not in ("traces", "calls"):
            ours, theirs = (_sorted(s.maps[name].reduced()) for s in (session, copy))
            pd.testing.assert_frame_equal(ours, theirs)
    if session.outputs:
        ours, theirs = (s.outputs["events"].df.drop(columns="time") for s in (session, copy))
        pd.testing.assert_frame_equal(ours, theirs)
    return session.df


def _sorted(frame: pd.DataFrame) -> pd.DataFrame:
    plain = frame.astype({name: str for name in frame if isinstance(frame[name].dtype, pd.CategoricalDtype)})
    return plain.sort_values(list(plain), ignore_index=True)


# --- the six, on system calls and tracepoints -------------------------------------------------------------------------


def test_count_by_comm_is_what_each_program_wrote(work: Path) -> None:
    session = bpfnb.count("syscall:write", by="comm", where="comm in ('bpfnb-one', 'bpfnb-two') and fd > 2")
    df = answer(session, work, "bpfnb-one", "bpfnb-two", "bpfnb-two", "others")
    assert list(df.columns) == ["comm", "count"]
    assert df.set_index("comm")["count"].to_dict() == {"bpfnb-two": 2 * WRITES, "bpfnb-one": WRITES}
    assert df["count"].dtype == "int64"
    assert df.attrs["lost"] == 0


@pytest.mark.portable
def test_stats_of_what_was_returned(work: Path) -> None:
    session = bpfnb.stats("sysret:write", "retval", by={"all of it": "pid > 0"}, where=f"{MINE} and fd > 2")
    df = answer(session, work)
    sizes = range(WRITES)
    assert df.to_dict("records") == [
        {"all of it": 1, "count": WRITES, "sum": sum(sizes), "mean": sum(sizes) / WRITES, "min": 0, "max": WRITES - 1}
    ]


def test_hist_has_negative_values_in_buckets_of_their_own(work: Path) -> None:
    df = answer(bpfnb.hist("syscall:openat", "retval", where=f"{MINE} and retval < 0", by="errno"), work)
    (row,) = df.to_dict("records")
    assert row == {
        "errno": 2, "errno_error": "ENOENT", "low": -3.0, "high": -1.0, "label": "[-3, -1)", "count": FAILURES,
    }  # fmt: skip


def test_hist_counts_each_size_in_its_bucket(work: Path) -> None:
    df = answer(bpfnb.hist("syscall:write", "count", where=f"{MINE} and fd > 2"), work)
    expected = {(0, 1): 1, (1, 2): 1, **{(1 << n, 2 << n): 1 << n for n in range(1, 7)}, (128, 256): WRITES - 128}
    assert {(low, high): n for low, high, _, n in df.itertuples(index=False)} == expected
    assert df["label"].tolist()[:4] == ["[0]", "[1]", "[2, 4)", "[4, 8)"]


def test_a_linear_histogram_counts_what_is_below_and_above(work: Path) -> None:
    session = bpfnb.hist("syscall:write", "count - 50", where=f"{MINE} and fd > 2", kind="linear", bins=(-10, 95, 10))
    df = answer(session, work)
    values = pd.Series(range(WRITES)) - 50
    for low, high, _, n in df.itertuples(index=False):
        assert n == ((values >= low) & (values < high)).sum()
    assert df["count"].sum() == WRITES
    assert df[["low", "high"]].iloc[[0, 1, -2, -1]].to_numpy().tolist() == [
        [-float("inf"), -10], [-10, 0], [90, 95], [95, float("inf")]
    ]  # fmt: skip


def test_latency_of_known_sleeps_lies_in_their_buckets(work: Path) -> None:
    session = bpfnb.latency("syscall:clock_nanosleep", where=MINE)
    df = answer_without_copy(session, work)
    assert df["count"].sum() == 5
    fifty = df[(df["low"] <= 50e6) & (df["high"] > 50e6)]
    assert fifty["count"].tolist() == [1]
    assert fifty["label"].tolist() == ["[33.6ms, 67.1ms)"]
    assert df["low"].min() >= 4e6
    quantiles = session.quantiles(0, 1)
    assert quantiles["quantile"].tolist() == [0, 1]
    assert quantiles["label"].tolist() == [df["label"].iloc[0], df["label"].iloc[-1]]


def answer_without_copy(session: Session, work: Path) -> pd.DataFrame:
    """As ``answer``, for times, which differ between two sessions."""
    with session:
        subprocess.run([work], check=True)
    return session.df


def test_rows_have_the_arguments_of_the_entry_and_what_was_returned(work: Path) -> None:
    columns = {"path": "filename", "retval": "retval", "errno": "errno", "writes": "flags & 1 == 1", "tid": "tid"}
    session = bpfnb.rows("syscall:openat", columns, where=f"{MINE} and (filename.startswith('/none') or flags & 1)")
    df = answer(session, work)
    assert list(df.columns) == ["time", "path", "retval", "retval_errno", "errno", "errno_error", "writes", "tid"]
    assert df["retval_errno"].dropna().tolist() == df["errno_error"].dropna().tolist() == ["ENOENT"] * FAILURES
    assert df["path"].tolist() == ["/dev/null"] + ["/nonexistent/file"] * FAILURES
    assert df["errno"].tolist() == [0] + [2] * FAILURES
    assert df["retval"].tolist() == [3] + [-2] * FAILURES
    assert df["writes"].tolist() == [1] + [0] * FAILURES


@pytest.mark.portable
def test_rows_of_a_tracepoint_have_its_fields(work: Path) -> None:
    session = bpfnb.rows(
        "tracepoint:sched:sched_process_exec", where=f"filename == {str(work)[:60]!r} or len(filename) > 60"
    )
    df = answer(session, work)
    assert list(df.columns) == ["time", "pid", "comm", "filename", "old_pid"]
    assert df["filename"].tolist() == [str(work)]


def test_stacks_have_names_and_are_told_apart(work: Path) -> None:
    session = bpfnb.stacks("syscall:write", by={"large": "count >= 150"}, where=f"{MINE} and fd > 2", user=False)
    df = answer(session, work)
    assert list(df.columns) == ["large", "stack", "count"]
    assert df.groupby("large")["count"].sum().to_dict() == {0: 150, 1: WRITES - 150}
    assert df["stack"].str.contains(r"syscall.*_\[k\]").all()


# --- the other kinds of probe -----------------------------------------------------------------------------------------


@pytest.mark.portable
def test_latency_of_a_function_that_calls_itself(work: Path) -> None:
    """Four naps of 5 ms, each within the one before."""
    session = bpfnb.rows(f"uprobe:{work}:nap", ["arg0", "str(arg1)", "latency", "int32(retval)"])
    df = answer_without_copy(session, work)
    assert df["arg0"].tolist() == [0, 1, 2, 3]
    assert df["int32(retval)"].tolist() == [0, -1, -2, -3]
    assert df["str(arg1)"].tolist() == ["somebody"] * 4
    assert (df["latency"] >= (df["arg0"] + 1) * 5_000_000).all()
    assert df["latency"].is_monotonic_increasing


def test_registers_of_a_programs_function_have_a_sign(work: Path) -> None:
    session = bpfnb.stats(f"uprobe:{work}:twice", "retval", where="uint8(arg1) != 3 and arg0 // 2 < 9")
    (row,) = answer(session, work).to_dict("records")
    used = [n for n in range(-5, 20) if n != 3 and n // 2 < 9]
    assert (row["count"], row["sum"], row["min"], row["max"]) == (len(used), 2 * sum(used), -10, 34)


def test_uretprobes_and_counts_by_the_value(work: Path) -> None:
    df = answer(bpfnb.count(f"uretprobe:{work}:twice", by="retval % 4"), work)
    assert df.set_index("retval % 4")["count"].to_dict() == {2: 13, 0: 12}


def test_raw_tracepoints_and_members_through_pointers(work: Path) -> None:
    """The workload's last task switch is that of its end: exactly one has the state "dead"."""
    where = "prev.comm == 'bpfnb-work' and prev.real_parent.tgid == " + str(os.getpid())
    df = answer(bpfnb.count("rawtracepoint:sched_switch", by={"dead": "prev_state & 0x80 != 0"}, where=where), work)
    counts = df.set_index("dead")["count"].to_dict()
    assert counts[1] == 1
    assert counts[0] >= 5
    assert df.attrs["unread"] == 0


def test_page_faults_of_a_process(work: Path) -> None:
    df = answer(bpfnb.count("software:page-faults:1", by=["comm", "uid", "cgroup", "cpu"], where=MINE), work)
    assert df["count"].sum() >= PAGES
    assert df["uid"].unique().tolist() == [os.getuid()]
    line = Path("/proc/self/cgroup").read_text().splitlines()[-1]
    assert df["cgroup"].unique().tolist() == [line.partition("::")[2]]


def test_a_profile_finds_the_function_that_runs(work: Path) -> None:
    source = "int main(void) { for (volatile long n = 0;; n++) ; }"
    subprocess.run(["gcc", "-O0", "-o", work.with_name("spin"), "-x", "c", "-"], input=source.encode(), check=True)
    spins = bpfnb.stacks("profile:199", by="comm", where="comm == 'spin'", kernel=False)
    with spins, subprocess.Popen([work.with_name("spin")]) as process:
        until(lambda: spins.df["count"].sum() > 20)
        df = spins.df
        process.kill()
    assert df["comm"].unique().tolist() == ["spin"]
    spun = df["stack"].str.endswith("main")
    assert df["count"][spun].sum() > 10
    # The others are of its being loaded, where functions like dl_main run.
    assert not df["stack"][~spun].str.contains("(?:^|;)main(?:;|$)").any()


def test_static_probes_have_their_arguments() -> None:
    with bpfnb.count("usdt:/usr/bin/python3:python:gc__start", by="arg0", where="comm == 'gc-test'") as session:
        code = (
            "open('/proc/self/comm', 'w').write('gc-test'); import gc; gc.disable(); [gc.collect(1) for _ in range(5)]"
        )
        subprocess.run(["/usr/bin/python3", "-c", code], check=True)
    counts = session.df.set_index("arg0")["count"].to_dict()
    assert counts.pop(1) == 5
    assert not set(counts) - {0, 2}


@pytest.mark.portable
@pytest.mark.skipif(not KPROBES, reason="this kernel has no kprobes: the VM lane runs it on 6.1 and 6.12")
@pytest.mark.parametrize("kind", ["kprobe", "fentry"])
def test_functions_of_the_kernel(kind: str, work: Path) -> None:
    where = f"{MINE} and count < 200 and file.f_inode.i_rdev == {os.makedev(1, 3) & 0xFF | 1 << 20}"
    with bpfnb.rows(f"{kind}:vfs_write", ["count", "latency", "retval"], where=where) as session:
        subprocess.run([work], check=True)
    df = session.df
    assert df["count"].tolist() == df["retval"].tolist() == list(range(WRITES))
    assert (df["latency"] < 10_000_000).all()


# --- several probes ---------------------------------------------------------------------------------------------------


def test_probes_by_name_of_a_wildcard_and_a_list(work: Path) -> None:
    """Every system call; and three, of which one function has the arguments of two."""
    calls = bpfnb.latency("syscall:*", by="probe", where=MINE)
    failures = bpfnb.count(["syscall:openat", "sysret:write"], by=["probe", "errno"], where=MINE)
    sizes = bpfnb.stats(
        ["syscall:write", "sysret:read"], "count", by="probe", where=f"{MINE} and fd > 2 and count < 200"
    )
    with calls, failures, sizes:
        subprocess.run([work], check=True)
    counts = calls.df.groupby("probe", observed=True)["count"].sum()
    assert counts["syscall:write"] == WRITES
    assert counts["syscall:clock_nanosleep"] == 5
    assert counts["syscall:madvise"] == 1
    found = failures.df.set_index(["probe", "errno"])["count"]
    assert found["syscall:openat", 2] == FAILURES
    assert found["sysret:write", 0] == WRITES
    assert sizes.df.set_index("probe")["sum"].to_dict() == {"syscall:write": sum(range(WRITES))}


def test_tracepoints_each_have_their_own_fields(work: Path) -> None:
    probes = ["tracepoint:sched:sched_process_exec", "tracepoint:sched:sched_process_exit"]
    with bpfnb.rows(probes, {"probe": "probe", "pid": "args.pid"}) as session, subprocess.Popen([work]) as process:
        process.wait()
    mine = session.df[session.df["pid"] == process.pid]
    assert mine["probe"].tolist() == probes


# --- what cannot be meant ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (lambda: bpfnb.count("syscall:openat", by="filname"), "syscall:openat has no filname; did you mean filename"),
        (lambda: bpfnb.count("syscall:opnat"), "opnat"),
        (lambda: bpfnb.count("syscall:openat", where="filename == 3"), "compares a string, filename, with a number, 3"),
        (lambda: bpfnb.count("rawtracepoint:sched_switch", by="prev.com"), "struct task_struct .* no member com.*comm"),
        (lambda: bpfnb.latency("tracepoint:sched:sched_switch"), "it does not return"),
    ],
)
def test_mistakes_are_one_line_and_attach_nothing(start: Callable[[], Session], message: str) -> None:
    with pytest.raises(bpfnb.BpfnbError, match=message) as error:
        start()
    assert "\n" not in str(error.value)
    assert not bpfnb.sessions()


def test_a_probe_that_is_not_there_is_left_out_where_that_is_asked_for(work: Path) -> None:
    probes = ["syscall:write", "syscall:no_such_call"]
    with pytest.warns(RuntimeWarning, match="no_such_call.*left out"):
        session = bpfnb.stats(probes, "count", by="probe", where=f"{MINE} and fd > 2", missing="warn", name="some")
    with session:
        subprocess.run([work], check=True)
    assert session.df[["probe", "sum"]].to_numpy().tolist() == [["syscall:write", sum(range(WRITES))]]
    with pytest.raises(bpfnb.AttachError, match="no_such_call"):
        bpfnb.stats(probes, "count", by="probe")


def test_rows_have_the_cpu_where_that_is_asked_for(work: Path) -> None:
    cpu = min(os.sched_getaffinity(0))
    with bpfnb.rows("syscall:write", ["count"], where=f"{MINE} and fd > 2", cpu=True) as session:
        subprocess.run(["taskset", "-c", str(cpu), work], check=True)
    assert list(session.df.columns) == ["time", "cpu", "count"]
    assert session.df["cpu"].unique().tolist() == [cpu]
