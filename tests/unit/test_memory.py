"""The memory columns are written into, as the kernel has it."""

from __future__ import annotations

import mmap
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bpfnb.results.columns.buffers import Buffer
from bpfnb.results.columns.memory import Memory, PageChoice

ROOT = Path(__file__).parents[2]
MIB = 1 << 20
THP = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def taken(array: np.ndarray) -> int:
    """How many of an array's bytes are in memory (Documentation/admin-guide/mm/pagemap.rst)."""
    with Path("/proc/self/pagemap").open("rb", buffering=0) as pagemap:
        pagemap.seek(array.ctypes.data // mmap.PAGESIZE * 8)
        pages = np.frombuffer(pagemap.read(array.nbytes // mmap.PAGESIZE * 8), np.uint64)
    return int((pages >> np.uint64(63)).sum()) * mmap.PAGESIZE


def fields(array: np.ndarray, name: str) -> list[str]:
    """A field of the mapping an array begins in (proc_pid_smaps(5)), a word each."""
    smaps = Path("/proc/self/smaps").read_text()
    found = re.findall(rf"^([0-9a-f]+)-([0-9a-f]+) .*\n(?:\w+:.*\n)*?{name}:(.*)", smaps, re.M)
    (words,) = (words for begin, end, words in found if int(begin, 16) <= array.ctypes.data < int(end, 16))
    return [word for word in words.split() if word != "kB"]


def bytes_of(memory: Memory) -> np.ndarray:
    return np.frombuffer(memory.buffer, np.uint8)


NEVER = 1 << 62  # nanoseconds: whether large pages are slow here is no matter


def test_memory_is_taken_a_piece_at_a_time() -> None:
    memory = Memory(64 * MIB, PageChoice(NEVER))
    array = bytes_of(memory)
    assert taken(array) == 0
    memory.prepare(3 * MIB)
    assert 3 * MIB <= taken(array) <= 6 * MIB
    memory.prepare(2 * MIB)
    assert taken(array) <= 6 * MIB
    assert not array[: 3 * MIB].any()
    array[:] = 1  # also where nothing was prepared
    memory.prepare(64 * MIB)
    assert array.all()


@pytest.mark.skipif("[never]" in THP.read_text(), reason="this kernel gives no large pages")
def test_large_pages_are_large() -> None:
    """Also where the size and the address the kernel chose are no multiples of one."""
    memory = Memory(64 * MIB + 12345, PageChoice(NEVER))
    memory.prepare(20 * MIB)
    assert bytes_of(memory).ctypes.data % (2 * MIB) == 0
    (large,) = fields(bytes_of(memory), "AnonHugePages")
    assert int(large) >= 10 << 10  # all but what may be missing in a machine that is short of them


def test_small_pages_after_a_slow_large_one() -> None:
    """Four pieces of them, then eight, and so on; as soon as a large one is quick again, none."""
    pages = PageChoice(-1)
    pieces = [Memory(2 * MIB, pages) for _ in range(20)]
    for piece in pieces[:16]:
        piece.prepare(1)
    pages.slow_ns, pages.small = NEVER, 0
    for piece in pieces[16:]:
        piece.prepare(1)
    found = ["nh" if "nh" in fields(bytes_of(piece), "VmFlags") else "hg" for piece in pieces]
    assert found == ["hg", *["nh"] * 4, "hg", *["nh"] * 8, "hg", "nh", *["hg"] * 4]
    assert pages.next == 4


def test_a_kernel_that_takes_nothing_ahead() -> None:
    """Before 5.14."""
    memory = Memory(16 * MIB, populate=9999)
    array = bytes_of(memory)
    memory.prepare(16 * MIB)
    assert taken(array) == 0
    array[5 * MIB] = 7
    assert int(array.sum()) == 7


def test_a_large_buffer_grows_and_what_was_seen_of_it_stays() -> None:
    buffer = Buffer(np.int64)
    seen = []
    for n in range(30):
        buffer.append(np.full(100_000, n))
        seen.append(buffer.view())
    part = buffer.part(50_000, 2_950_000)
    part.append(np.full(3, 30))
    buffer.append(np.full(5_000_000, 31))
    for n, view in enumerate(seen):
        assert np.array_equal(view, np.repeat(np.arange(n + 1), 100_000))
    assert np.array_equal(part.view(), np.concatenate([np.repeat(np.arange(30), 100_000)[50_000:-50_000], [30] * 3]))


def test_reserved_memory_is_not_used() -> None:
    """GIVEN room for 800 MB WHEN little is written THEN little is taken."""
    buffer = Buffer(np.int64)
    buffer.reserve(25_000_000)
    buffer.append(np.ones(1000, np.int64))
    assert buffer.all.nbytes == 800_000_000
    assert 0 < taken(buffer.all) <= 4 * MIB


def test_the_benchmark_of_untouched_memory() -> None:
    """Of fewer rows than the documents say."""
    command = [sys.executable, "-m", "benchmarks.tables", "--untouched", "--rows", "0.02", "--runs", "1"]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True, timeout=60)
    head, *lines = done.stdout.splitlines()
    assert head.split() == ["rows", "wall", "user", "sys", "faults", "M/s"]
    assert [line.split()[:2] for line in lines] == [["20,000", "first"], ["20,000", "second"]]
