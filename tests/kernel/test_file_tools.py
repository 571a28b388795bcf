"""Tools of file systems and of the page cache, held against what a workload did, and mincore(2)."""

from __future__ import annotations

import os
from pathlib import Path

import pandas as pd
import pytest

from bpfnb import tools

TEXT = b"x" * 5000


def work(file: Path) -> None:
    """Known calls, counted below."""
    with file.open("wb", buffering=0) as out:
        out.write(TEXT)
        os.fsync(out.fileno())
        os.pwrite(out.fileno(), b"y" * 10, 100)
    with file.open("ab", buffering=0) as out:
        out.write(b"z" * 7)
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
    near, far = tmp_path / "näher", deep(Path(f"/dev/shm/bpfnb-{os.getpid()}"))
    try:
        with tools.fsslower(min_ms=0) as session:
            work(near)
            work(far)
    finally:
        for folder in [far, *far.parents[:9]]:
            folder.unlink() if folder == far else folder.rmdir()
    df = session.df
    mine = df[df["pid"] == os.getpid()]
    for file in (near, far):
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
    kind = "tmpfs"
    file = Path(f"/dev/shm/bpfnb-{os.getpid()}-dist")
    with tools.fsdist(type=kind) as session:
        before = session.df.groupby("operation", observed=True)["count"].sum()
        work(file)
        work(tmp_path / "other")
        after = session.df.groupby("operation", observed=True)["count"].sum()
    file.unlink()
    counts = after.sub(before, fill_value=0)
    letters = [call[0] for call in CALLS]
    names = {"read": "R", "write": "W", "open": "O", "fsync": "S"}
    # Others use this file system as well.
    for name, letter in names.items():
        assert letters.count(letter) <= counts[name] <= letters.count(letter) + 50
