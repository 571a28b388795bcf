"""memleak, against a program that leaks known bytes in known functions; in the kernel, against a file it holds open."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import pytest

from bpfnb import tools

LEAKS = r"""
#define _GNU_SOURCE
#include <malloc.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define KEEP __attribute__((noinline)) static void
static void *volatile sink;
static void take(void *p) { sink = p; }

KEEP by_malloc(void) { for (int i = 0; i < 100; i++) take(malloc(24)); }
KEEP by_calloc(void) { for (int i = 0; i < 10; i++) take(calloc(7, 100)); }
KEEP by_realloc(void) { void *p = malloc(10); for (int i = 1; i < 50; i++) p = realloc(p, 1000 * i); take(p); }
KEEP by_posix_memalign(void) { void *p; if (!posix_memalign(&p, 64, 4001)) take(p); }
KEEP by_aligned_alloc(void) { take(aligned_alloc(64, 640)); }
KEEP by_memalign(void) { take(memalign(64, 641)); }
KEEP by_valloc(void) { take(valloc(642)); }
KEEP by_pvalloc(void) { take(pvalloc(643)); }
KEEP by_failing_realloc(void) {
    void *p = malloc(77);
    take(realloc(p, SIZE_MAX / 4));  // fails: the 77 bytes are still there
}
KEEP by_strdup(void) { take(strdup("twelve bytes")); }  // 13 of them
KEEP by_mmap(void) {
    char *p = mmap(0, 10 * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    munmap(p, 3 * 4096);
    take(p);
    take(mmap(0, 0, PROT_READ, MAP_PRIVATE, -1, 0));  // fails
    munmap(mmap(0, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), 4096);
}
KEEP clean(void) {
    void *p;
    for (int i = 0; i < 500; i++) free(malloc(i));
    free(calloc(3, 3));
    free(realloc(malloc(5), 5000));
    p = malloc(9);
    take(realloc(p, 0));  // frees
    if (!posix_memalign(&p, 64, 9)) free(p);
    if (posix_memalign(&p, 3, 9)) take(0);  // fails
    free(0);
}
static void *thread(void *_) { for (int i = 0; i < 3000; i++) free(realloc(malloc(i), i * 2)); return 0; }
KEEP by_threads(void) {
    pthread_t threads[4];
    for (int i = 0; i < 4; i++) pthread_create(&threads[i], 0, thread, 0);
    for (int i = 0; i < 4; i++) pthread_join(threads[i], 0);
}

int main(void) {
    setvbuf(stdout, 0, _IONBF, 0);
    getc(stdin);
    by_malloc(); by_calloc(); by_realloc(); by_posix_memalign(); by_aligned_alloc(); by_memalign(); by_valloc();
    by_pvalloc(); by_failing_realloc(); by_strdup(); by_mmap(); clean(); by_threads();
    puts("done");
    getc(stdin);
    by_malloc();
    puts("done");
    getc(stdin);
    return 0;
}
"""
HELD = {
    "by_malloc": (2400, 100),
    "by_calloc": (7000, 10),
    "by_realloc": (49_000, 1),
    "by_posix_memalign": (4001, 1),
    "by_aligned_alloc": (640, 1),
    "by_memalign": (641, 1),
    "by_valloc": (642, 1),
    "by_pvalloc": (643, 1),
    "by_failing_realloc": (77, 1),
    "strdup": (13, 1),  # which has no frame pointer
}


@contextmanager
def leaking(folder: Path) -> Iterator[subprocess.Popen[str]]:
    (folder / "leaks.c").write_text(LEAKS)
    flags = ["-O0", "-fno-omit-frame-pointer", "-pthread"]
    subprocess.run(["gcc", *flags, "-o", folder / "leaks", folder / "leaks.c"], check=True)
    with subprocess.Popen([folder / "leaks"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def go_on(process: subprocess.Popen[str]) -> None:
    assert process.stdin
    assert process.stdout
    process.stdin.write("\n")
    process.stdin.flush()
    assert process.stdout.readline() == "done\n"


def by_function(df: pd.DataFrame) -> dict[str, tuple[int, int]]:
    """What each of the program's functions holds; those of the C library that have another caller are left out."""
    found = df[df["stack"].str.contains("by_|clean|strdup")]
    names = found["stack"].str.extract(r"(by_\w+|clean|strdup)")[0]
    assert names.is_unique
    return {name: (size, count) for name, size, count in zip(names, found["size"], found["count"], strict=True)}


@pytest.mark.portable
def test_memleak_has_each_byte_that_is_held_and_none_that_is_not(tmp_path: Path) -> None:
    with leaking(tmp_path) as process, tools.memleak(pid=process.pid, older=0.0, top=0) as session:
        began = time.monotonic()
        go_on(process)
        df = session.df
        assert by_function(df) == HELD
        assert set(df.pid) == {process.pid}
        assert df["size"].is_monotonic_decreasing
        assert df["stack"].str.contains("main").sum() >= len(HELD) - 1
        time.sleep(0.3)
        go_on(process)
        again = session.df
        took = pd.Timedelta(seconds=time.monotonic() - began)
        assert by_function(session.drain()) == by_function(session.drain())  # all of it at each interval
        (row,) = again[again["stack"].str.contains("by_malloc")].itertuples()
        assert (row[2], row[3]) == (2 * 2400, 200)
        assert row.newest < pd.Timedelta("300ms") <= row.oldest <= took
    assert session.lost == 0
    assert df.attrs["lost"] == again.attrs["lost"] == 0
    ended = session.df[session.df["stack"].str.contains("by_malloc")].oldest.item()
    time.sleep(0.2)
    assert session.df[session.df["stack"].str.contains("by_malloc")].oldest.item() == ended  # as it was at the end


def test_memleaks_options(tmp_path: Path) -> None:
    """Mappings; sizes; ages; how many stacks."""
    with (
        leaking(tmp_path) as process,
        tools.memleak(pid=process.pid, older=0.0, top=0, mmap=True, name="maps") as maps,
        tools.memleak(pid=process.pid, older=0.0, min_size=641, max_size=700, name="sizes") as sizes,
        tools.memleak(pid=process.pid, older=60_000.0, name="older") as older,
        tools.memleak(pid=process.pid, older=0.0, top=2, name="top") as top,
    ):
        go_on(process)
        assert by_function(maps.df) == {**HELD, "by_mmap": (7 * 4096, 1)}
        assert set(by_function(sizes.df)) == {"by_calloc", "by_memalign", "by_valloc", "by_pvalloc"}
        assert older.df.empty
        assert list(older.df.columns) == ["pid", "size", "count", "oldest", "newest", "stack"]
        assert len(top.df) == 2
        assert top.df["size"].tolist() == [49_000, 7000]


@pytest.mark.portable
def test_memleak_of_the_kernel_has_what_a_process_makes_it_hold() -> None:
    """Pipes that stay open and pipes that are closed again, by a thread that the filter names."""
    held = 200
    pipes: list[tuple[int, int]] = []

    def work() -> None:
        for _ in range(held):
            pipes.append(os.pipe())
            for end in os.pipe():
                os.close(end)

    with tools.memleak(kernel=True, pid=os.getpid(), older=0.0, top=0) as session:
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        df = session.df
        for pipe in pipes:
            for end in pipe:
                os.close(end)
        after = session.df
    rows = df[df["stack"].str.contains("alloc_pipe_info")]
    assert list(df.columns) == ["size", "count", "oldest", "newest", "stack"]
    assert rows["count"].sum() == pytest.approx(2 * held, abs=8)  # each has its struct, and the ring of its buffers
    assert rows["size"].sum() > held * 800
    assert after[after["stack"].str.contains("alloc_pipe_info")]["count"].sum() <= 8
