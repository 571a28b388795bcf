"""Tools of block devices, held against /proc/diskstats and what a workload on a loop device wrote and read."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from bpfnb import tools
from bpfnb.hosts import default_host
from bpfnb.session import Session
from bpfnb.tools.block import biosnoop, biotop

PAGE = mmap.PAGESIZE
WRITES, READS, LARGE = 7, 5, 16 * PAGE
# Writes pages, one flush behind them, and a larger piece; reads pages. No page cache lies between.
WORK = f"""
import mmap, os, sys
page, large = mmap.mmap(-1, {PAGE}), mmap.mmap(-1, {LARGE})
fd = os.open(sys.argv[1], os.O_RDWR | os.O_DIRECT)
for i in range({WRITES}): os.pwrite(fd, page, i * {PAGE})
os.fsync(fd)
os.pwrite(fd, large, 0)
for i in range({READS}): os.preadv(fd, [page], i * {PAGE})
"""
BYTES = {"W": WRITES * PAGE + LARGE, "R": READS * PAGE, "F": 0}
HOOK = "tracepoint:block:block_io_start"


@pytest.fixture
def disk() -> Iterator[str]:
    """A loop device's name."""
    image = Path(f"/dev/shm/bpfnb-test-{os.getpid()}")
    image.write_bytes(bytes(1 << 20))
    made = subprocess.run(["losetup", "-f", "--show", image], capture_output=True, text=True, check=False)
    if made.returncode:
        image.unlink()
        pytest.skip(f"no loop device: {made.stderr.strip()}")
    path = made.stdout.strip()
    try:
        yield path.removeprefix("/dev/")
    finally:
        subprocess.run(["losetup", "-d", path], check=True)
        image.unlink()


def work(disk: str) -> int:
    """Do the reads and writes; the process that did."""
    process = subprocess.Popen([sys.executable, "-IS", "-c", WORK, f"/dev/{disk}"])
    assert process.wait() == 0
    return process.pid


def statistics(disk: str) -> tuple[int, int, int, int]:
    """What the kernel counts: reads, bytes read, writes, bytes written."""
    (line,) = (line.split() for line in Path("/proc/diskstats").read_text().splitlines() if line.split()[2] == disk)
    return int(line[3]), int(line[5]) * 512, int(line[7]), int(line[9]) * 512


@pytest.mark.parametrize("has", [frozenset({HOOK}), frozenset()], ids=["block_io_start", "block_getrq"])
def test_biosnoop_has_every_request_its_process_and_its_bytes(disk: str, has: frozenset[str]) -> None:
    """Before Linux 6.4 another hook stands in: with both it is the same."""
    if has and not len(default_host.probes(HOOK)):
        pytest.skip("this kernel has no block_io_start")
    spec = biosnoop.TOOL.build(disk=disk, has=has)
    before = statistics(disk)
    with default_host.start(spec.program(), presentation=spec.presentation) as session:
        pid = work(disk)
    reads, read, writes, written = (now - then for now, then in zip(statistics(disk), before, strict=True))
    df = session.df
    mine = df[df["pid"] == pid]
    sums = mine.groupby("t", observed=True)["bytes"].sum().to_dict()
    assert sums == BYTES == {"R": read, "W": written, "F": 0}
    assert (mine["t"] == "R").sum() == reads == READS
    assert mine["t"].isin(["W", "F"]).sum() == writes == WRITES + 2
    assert set(df["disk"]) == {disk}
    pages = mine[mine["bytes"] == PAGE]
    assert pages["sector"].tolist() == [i * PAGE // 512 for n in (WRITES, READS) for i in range(n)]
    assert (mine["lat"] > pd.Timedelta(0)).all()
    assert mine["que"].isna().tolist() == (mine["t"] == "F").tolist()
    assert not mine["error"].any()


def test_biotop_adds_them_up(disk: str) -> None:
    with tools.biotop() as session:
        pid = work(disk)
    df = session.df
    assert list(df.columns) == [column.name for column in biotop.TOOL.columns]
    mine = df[df["pid"] == pid].set_index("d")
    assert mine["bytes"].to_dict() == BYTES
    assert mine["io"].to_dict() == {"W": WRITES + 1, "R": READS, "F": 1}
    number = Path(f"/sys/block/{disk}/dev").read_text().strip()
    assert {f"{major}:{minor}" for major, minor in zip(mine["maj"], mine["min"], strict=True)} == {number}


def biolatency(disk: str, **options: bool) -> tuple[Session, pd.DataFrame]:
    with tools.biolatency(disks=True, **options) as session:
        work(disk)
    df = session.df
    return session, df[df["disk"] == disk]


def test_biolatency_counts_each_request_once_by_kind(disk: str) -> None:
    session, mine = biolatency(disk, flags=True)
    counts = mine.groupby("flags", observed=True)["count"].sum().to_dict()
    assert sum(counts.values()) == WRITES + 2 + READS
    assert sum(n for flags, n in counts.items() if str(flags).endswith("Read")) == READS
    assert sum(n for flags, n in counts.items() if str(flags).endswith("Flush")) == 1
    assert session.df.attrs["negative"] == 0
    assert counts["Idle-Sync-Write"] == WRITES + 1  # O_DIRECT


def test_biolatency_with_queues_has_those_that_are_not_issued_too(disk: str) -> None:
    _, mine = biolatency(disk, queued=True)
    assert mine["count"].sum() == WRITES + 2 + READS


def test_a_filter_chooses_who_made_the_request(disk: str) -> None:
    spec = biosnoop.TOOL.build(disk=disk, has=frozenset({HOOK} if len(default_host.probes(HOOK)) else ()))
    with default_host.run(spec.program(), spec.presentation, pid=os.getpid()) as session:
        work(disk)
        fd = os.open(f"/dev/{disk}", os.O_RDONLY | os.O_DIRECT)
        os.preadv(fd, [mmap.mmap(-1, PAGE)], 0)
        os.close(fd)
    assert session.df[["pid", "bytes", "t"]].to_numpy().tolist() == [[os.getpid(), PAGE, "R"]]


@pytest.mark.portable
@pytest.mark.parametrize("name", ["biosnoop", "biolatency"])
def test_they_load(name: str) -> None:
    """Other kernels' virtual machines have no disks."""
    with getattr(tools, name)() as session:
        assert len(session.df) >= 0
        assert session.probes
