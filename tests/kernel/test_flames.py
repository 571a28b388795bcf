"""Flame graphs of the running kernel: beside a program that keeps count of what its functions take."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

import bpfnb
from bpfnb import ProgramError, tools
from bpfnb.views.live.flame import FlameView
from bpfnb.views.live.view import ViewSpec

# Two functions that spin, the first three times as long; what they took of the CPU is written at the end.
SPINNER = r"""
#include <signal.h>
#include <stdio.h>
#include <time.h>

static volatile sig_atomic_t over;
static long long took[2];

static long long now(void) {
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}
static long spin(long times) {
    volatile long sum = 0;
    for (long i = 0; i < times; i++)
        sum += i;
    return sum;
}
void spin_long(void) { long long since = now(); spin(3000000); took[0] += now() - since; }
void spin_short(void) { long long since = now(); spin(1000000); took[1] += now() - since; }
static void stop(int signal) { over = signal; }
int main(void) {
    signal(SIGTERM, stop);
    while (!over) {
        spin_long();
        spin_short();
    }
    printf("%lld %lld\n", took[0], took[1]);
    return 0;
}
"""
GETPGIDS = """
BPF_STACK_TRACE(traces, 4096);
struct key_t { u32 pid; int kernel_stack; char comm[16]; };
BPF_HASH(counts, struct key_t, u64);
struct event_t { u64 ts; u32 pid; int stack; };
BPF_PERF_OUTPUT(events);

int f(void *ctx) {
    struct key_t key = {.pid = bpf_get_current_pid_tgid() >> 32, .kernel_stack = traces.get_stackid(ctx, 0)};
    struct event_t event = {.ts = bpf_ktime_get_ns(), .pid = key.pid, .stack = key.kernel_stack};
    bpf_get_current_comm(&key.comm, sizeof(key.comm));
    counts.increment(key);
    events.perf_submit(ctx, &event, sizeof(event));
    return 0;
}
"""
_libc = ctypes.CDLL(None)


@pytest.fixture(scope="module")
def spinner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc") or shutil.which("clang")
    assert compiler
    place = tmp_path_factory.mktemp("spinner")
    (place / "spinner.c").write_text(SPINNER)
    flags = ["-O1", "-fno-inline", "-fno-omit-frame-pointer", "-fno-optimize-sibling-calls"]
    subprocess.run([compiler, *flags, "-o", place / "spinner", place / "spinner.c"], check=True)
    return place / "spinner"


@pytest.fixture
def spinning(spinner: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen([spinner], stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        if process.stdout:
            process.stdout.close()


def test_the_shares_of_functions_are_what_they_took(spinning: subprocess.Popen[str], tmp_path: Path) -> None:
    with tools.profile(frequency=499, pid=spinning.pid) as session:
        session.wait(0.2)
        view = FlameView([ViewSpec(session, "flame", window=60)], every=0)
        for _ in range(3):
            session.wait(0.3)
            view.update(False)
    graph = session.flame()
    spinning.terminate()
    took = [int(word) for word in spinning.communicate()[0].split()]
    nodes = graph.df.set_index("name")
    assert graph.total == session.df["count"].sum() > 100
    assert nodes.loc["spin_long", "share"] == pytest.approx(took[0] / sum(took), abs=0.1)
    assert nodes.loc["spin_short", "share"] == pytest.approx(took[1] / sum(took), abs=0.1)
    # A live view of all of its time has the same in the end.
    view.update(True)
    assert pages(view) == {";".join(graph_path): count for graph_path, count in stacks(session.df).items()}
    session.to_folded(tmp_path / "x")
    assert dict(line.rsplit(" ", 1) for line in (tmp_path / "x").read_text().splitlines()) == {
        ";".join(path): str(count) for path, count in stacks(session.df).items()
    }


def stacks(df: pd.DataFrame) -> dict[tuple[str, ...], int]:
    sums = df.groupby(["comm", "stack"], observed=True)["count"].sum()
    return {(comm, *stack.split(";")): int(count) for (comm, stack), count in sums.items()}


def pages(view: FlameView) -> dict[str, int]:
    tree, own = view.tree, view.own()
    return {";".join(tree.path(node)): value for node, value in enumerate(own.tolist()) if value}


def test_a_cells_rows_and_maps_of_stacks() -> None:
    with bpfnb.trace(GETPGIDS, attach={"syscall:getpgid": "f"}, pid=os.getpid(), name="calls") as session:
        view = FlameView([ViewSpec(session, "flame", window=60)], every=0)
        for _ in range(70):
            _libc.getpgid(0)
        session.wait(0.2)
        view.update(False)
        assert sum(pages(view).values()) == 70
    assert session.flame().total == session.flame("events").total == session.flame(map="counts").total == 70
    assert session.flame(map="counts").df["name"].eq("do_syscall_64").any()
    with pytest.raises(ProgramError, match="traces keeps stacks, and counts none"):
        session.flame(map="traces")
    with pytest.raises(KeyError, match="did you mean events"):
        session.flame("event")


def test_what_is_held_is_not_added_up() -> None:
    """memleak's table is of what there is: each look has all of it."""
    with tools.memleak(kernel=True, older=0, top=0) as session:
        view = FlameView([ViewSpec(session, "flame", window=60)], every=0)
        session.wait(0.3)
        view.update(False)
        session.wait(0.3)
        view.update(False)
    view.update(True)
    assert sum(pages(view).values()) == session.df["size"].sum()
    assert session.flame().unit == "bytes"
