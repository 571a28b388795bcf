"""profile, against a program that knows for how long each of its functions was on a CPU."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bpfnb import tools
from bpfnb.errors import ProgramError

SPINS = r"""
#include <stdio.h>
#include <time.h>
#include <unistd.h>

static volatile long work;
static long now(void) {
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return t.tv_sec * 1000000000L + t.tv_nsec;
}
/* Without calls but now and then, so that the time is the function's own. */
#define SPIN(name) \
    __attribute__((noinline)) static long name(long length) { \
        long begun = now(), passed; \
        while ((passed = now() - begun) < length) \
            for (int i = 0; i < 200000; i++) work++; \
        return passed; \
    }
SPIN(hot)
SPIN(warm)
int main(void) {
    setvbuf(stdout, 0, _IONBF, 0);
    long of_hot = hot(900000000), of_warm = warm(300000000);
    printf("%ld %ld\n", of_hot, of_warm);
    getc(stdin);
    return 0;
}
"""
FREQUENCY = 499


@pytest.mark.portable
def test_counts_are_the_time_on_a_cpu(tmp_path: Path) -> None:
    (tmp_path / "spins.c").write_text(SPINS)
    subprocess.run(["gcc", "-O1", "-fno-omit-frame-pointer", "-o", "spins", "spins.c"], check=True, cwd=tmp_path)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with tools.profile(frequency=FREQUENCY) as session, subprocess.Popen([tmp_path / "spins"], **pipes) as process:
        took = dict(zip(("hot", "warm"), map(int, process.stdout.readline().split()), strict=True))
        df = session.df
        process.communicate("\n")
    assert session.lost == df.attrs["lost"] == 0
    assert list(df.columns) == ["pid", "tid", "comm", "stack", "count"]
    assert not (df.pid == 0).any()
    mine = df[df.pid == process.pid]
    assert set(mine.comm) <= {"spins", "python", "pytest"}  # before it is executed
    for name, length in took.items():
        found = mine[mine["stack"].str.contains(rf"main;{name}(?:;|$)")]["count"].sum()
        assert found / FREQUENCY == pytest.approx(length / 1e9, rel=0.1), name
    assert df["count"].is_monotonic_decreasing


def test_with_the_idle_task_each_look_is_counted_and_parts_of_stacks() -> None:
    """Whether a CPU has something to do or not."""
    with tools.profile(user_stacks_only=True, name="users") as users:
        with tools.profile(idle=True, kernel_stacks_only=True, name="idle") as idle:
            before, began = idle.df["count"].sum(), time.monotonic()
            time.sleep(1)
            ended = time.monotonic()
            looks, took = idle.df["count"].sum() - before, time.monotonic() - began
        subprocess.run([sys.executable, "-c", "sum(range(5_000_000))"], check=True)
    cpus = os.cpu_count() or 1
    # One CPU's at least: on a quiet virtual machine the other's timer was once not heard of for a second.
    assert 0.9 * 49 * (ended - began) - 1 <= looks
    assert idle.df["count"].sum() >= before + looks
    assert looks <= 1.1 * 49 * (took + 1) * cpus
    assert not (users.df.pid == 0).any()
    assert not users.df["stack"].str.contains(r"_\[k\]").any()
    with pytest.raises(ProgramError, match="at least 1 a second"):
        tools.profile(frequency=0)
