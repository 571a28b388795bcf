"""Tools of file systems and of the page cache, held against what a workload did, and mincore(2)."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import pytest

import bpfnb
from bpfnb import tools
from bpfnb.hosts import default_host
from bpfnb.session import Session
from bpfnb.tools.toolbox import find

TEXT = b"x" * 5000


def work(file: Path) -> None:
    """Known calls, counted below."""
    with file.open("wb", buffering=0) as out:
        out.write(TEXT)
        os.fsync(out.fileno())
        os.pwrite(out.fileno(), b"y" * 10, 100)
    fd = os.open(file, os.O_WRONLY | os.O_APPEND)
    os.write(fd, b"z" * 7)
    os.close(fd)
    fd = os.open(file, os.O_RDONLY)
    os.read(fd, 4096)
    os.readv(fd, [bytearray(4096)])
    os.pread(fd, 5, 50)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.write(fd, b"x")
    os.close(fd)


# letter, bytes, offset, error of each call on the file
CALLS = [
    ("O", 0, 0, 0),
    ("W", 5000, 0, 0),
    ("S", 0, 5000, 0),
    ("W", 10, 100, 0),
    ("O", 0, 0, 0),
    ("W", 7, 5000, 0),
    ("O", 0, 0, 0),
    ("R", 4096, 0, 0),
    ("R", 911, 4096, 0),
    ("R", 5, 50, 0),
    ("W", 0, 5007, -9),
]


def deep(folder: Path) -> Path:
    """A file with a long path, of long names."""
    for i in range(8):
        folder /= f"{i}" * (100 + 20 * i)
    folder.mkdir(parents=True)
    return folder / "a file;with/".strip("/")


@pytest.mark.portable
def test_fsslower_has_every_call_with_the_whole_path(tmp_path: Path) -> None:
    near, far = [tmp_path / "näher"[: i + 1] for i in range(5)], deep(Path(f"/dev/shm/bpfnb-{os.getpid()}"))
    try:
        with tools.fsslower(min_ms=0) as session:
            for file in (far, *near):  # the longest first: nothing of it may be left in the others
                work(file)
    finally:
        for folder in [far, *far.parents[:9]]:
            folder.unlink() if folder == far else folder.rmdir()
    df = session.df
    mine = df[df["pid"] == os.getpid()]
    for file in (far, *near):
        rows = mine[mine["filename"] == str(file)]
        assert [tuple(row) for row in rows[["t", "bytes", "off", "error"]].to_numpy().tolist()] == CALLS
    assert set(mine["fs"][mine["filename"] == str(far)]) == {"tmpfs"}
    assert (mine["lat"] > pd.Timedelta(0)).all()


def test_fsslower_has_what_is_slow_and_of_the_file_system_asked_for(tmp_path: Path) -> None:
    big = os.urandom(1 << 20) * 16
    with tools.fsslower(min_ms=1, type="tmpfs") as session:
        for file in (tmp_path / "big", Path(f"/dev/shm/bpfnb-{os.getpid()}-big")):
            file.write_bytes(big)
            file.unlink()
    df = session.df
    mine = df[df["pid"] == os.getpid()]
    assert len(mine) >= 1
    assert set(mine["fs"]) == {"tmpfs"}
    assert (mine["lat"] >= pd.Timedelta("1ms")).all()
    assert mine["bytes"].max() == len(big)


def test_fsdist_counts_each_call_once(tmp_path: Path) -> None:
    file = Path(f"/dev/shm/bpfnb-{os.getpid()}-dist")
    spec = find("fsdist").build(type="tmpfs", milliseconds=False)
    with default_host.run(spec.program(), spec.presentation, pid=os.getpid()) as session:
        work(file)
        work(tmp_path / "other")
    file.unlink()
    letters = [call[0] for call in CALLS]
    names = {"read": "R", "write": "W", "open": "O", "fsync": "S"}
    counts = session.df.groupby("operation", observed=True)["count"].sum().to_dict()
    assert counts == {name: letters.count(letter) for name, letter in names.items()}


def resident(file: Path) -> int:
    """How many of a file's pages are in the page cache, by mincore(2)."""
    libc = ctypes.CDLL(None, use_errno=True)
    with (
        file.open("rb") as opened,
        mmap.mmap(opened.fileno(), 0, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE) as m,
    ):
        pages = (ctypes.c_ubyte * -(-len(m) // mmap.PAGESIZE))()
        start = ctypes.addressof(ctypes.c_char.from_buffer(m))
        assert libc.mincore(ctypes.c_void_p(start), ctypes.c_size_t(len(m)), pages) == 0
        return sum(page & 1 for page in pages)


def drop(file: Path) -> None:
    fd = os.open(file, os.O_RDONLY)
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


def read(file: Path, size: int) -> None:
    fd = os.open(file, os.O_RDONLY)
    for _ in range(-(-file.stat().st_size // size)):
        os.read(fd, size)
    os.close(fd)


class Cache:
    """cachestat of this process: what each step adds."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._before = (0, 0, 0)
        self.step()

    def step(self) -> tuple[int, int, int]:
        hits, misses, dirties = self._session.df[["hits", "misses", "dirties"]].iloc[0].tolist()
        step = tuple(now - then for now, then in zip((hits, misses, dirties), self._before, strict=True))
        self._before = (hits, misses, dirties)
        return step  # type: ignore[return-value]


@contextmanager
def cachestat() -> Iterator[Cache]:
    tool = find("cachestat")
    has = frozenset(hook for hook in tool.hooks if len(default_host.probes(hook)))
    spec = tool.build(has=has)
    with default_host.run(spec.program(), spec.presentation, pid=os.getpid()) as session:
        yield Cache(session)


@pytest.mark.parametrize("size", [4096, 1 << 20])
def test_cachestat_of_a_file_that_is_read_twice(tmp_path: Path, size: int) -> None:
    file = tmp_path / "file"
    file.write_bytes(os.urandom(100 * mmap.PAGESIZE))
    read(file, size)  # what Python needs for it
    drop(file)
    assert resident(file) == 0
    with cachestat() as cache:
        read(file, size)
        assert cache.step() == (0, 100, 0)
        assert resident(file) == 100
        read(file, size)
        assert cache.step() == (100, 0, 0)
        drop(file)
        fd = os.open(file, os.O_RDONLY)
        os.pread(fd, 10, 5 * mmap.PAGESIZE)
        os.pread(fd, 10, 5 * mmap.PAGESIZE)
        os.close(fd)
        hits, misses, _ = cache.step()
        assert (hits, misses) == (1, resident(file))  # pages that were read ahead are misses, too


def test_cachestat_of_one_read_of_more_than_is_read_ahead(tmp_path: Path) -> None:
    file, pages = tmp_path / "file", 3000
    file.write_bytes(bytes(pages * mmap.PAGESIZE))
    drop(file)
    with cachestat() as cache:
        read(file, pages * mmap.PAGESIZE)
        assert cache.step() == (0, pages, 0)
        read(file, pages * mmap.PAGESIZE)
        assert cache.step() == (pages, 0, 0)


def test_cachestat_of_writes(tmp_path: Path) -> None:
    file = tmp_path / "file"
    with cachestat() as cache:
        file.write_bytes(bytes(50 * mmap.PAGESIZE))
        assert cache.step() == (0, 0, 50)
        read(file, 1 << 20)
        assert cache.step() == (50, 0, 0)


@pytest.mark.portable
def test_cachestat_on_whatever_this_kernel_has() -> None:
    """In a virtual machine this file is on the host's file system."""
    file = Path(__file__)
    pages = -(-file.stat().st_size // mmap.PAGESIZE)
    read(file, 1 << 20)
    drop(file)
    with cachestat() as cache:
        read(file, 1 << 20)
        hits, misses, _ = cache.step()
        assert (hits, misses) == (0, pages)
        read(file, 1 << 20)
        assert cache.step()[:2] == (pages, 0)


def test_cachestat_says_why_it_cannot() -> None:
    with pytest.raises(bpfnb.UnsupportedError, match="cachestat: this kernel has neither mm_filemap_get_pages"):
        find("cachestat").build(has=frozenset())
