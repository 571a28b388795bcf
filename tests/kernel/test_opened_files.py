"""opensnoop and statsnoop beside strace, of the same run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

import bpfnb
from bpfnb.session import Session

# Every kind of path: absolute, relative to the folder and to a descriptor, across mounts, with odd names; and failures.
OPENS = r"""
import ctypes, os, struct
libc = ctypes.CDLL(None)
home = os.getcwd()
os.makedirs("deep/er"), os.mkdir("bound"), os.mkfifo("fifo")
os.open("new", os.O_CREAT | os.O_WRONLY, 0o640)
for name in ("new", "./new", "deep/../new", "line\nfeed", "\u00e9", "x" * 250, "x" * 300, "deep/er", "", "new/below"):
    try: os.open(name, os.O_RDONLY | os.O_NONBLOCK)
    except OSError: pass
folder = os.open("deep", os.O_RDONLY)
for name in ("er", "none", "er/none"):
    try: os.open(name, os.O_RDONLY, dir_fd=folder)
    except OSError: pass
os.chdir("/proc/self/task")
os.open("..", os.O_RDONLY), os.open("/dev/null", os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
os.chdir("/sys/kernel")
try: os.open("notes2", os.O_RDONLY)
except OSError: pass
try: os.open("/tmp", os.O_TMPFILE | os.O_RDWR, 0o600)
except OSError: pass  # not every file system has that
how = struct.pack("QQQ", os.O_RDONLY, 0, 0x08)  # RESOLVE_BENEATH
for name in (b"notes", b"../kernel", b"/etc/passwd"):
    libc.syscall(437, -100, name, how, len(how))
libc.syscall(257, 99, b"bad", 0, 0)
os.chdir(home)
libc.unshare(0x20000), libc.mount(None, b"/", None, 0x44000, None)  # mounts of its own, and a part of a file system
libc.mount(b"deep/er", b"bound", None, 0x1000, None)
os.chdir("bound")
os.open("in", os.O_CREAT)
libc.syscall(257, -100, ctypes.c_void_p(8), 0, 0)
"""
OLD_OPENS = """
import ctypes
for name in (b"/etc/passwd", b"/none"):
    ctypes.CDLL(None).syscall(2, name, 0, 0)
"""


def strace(code: str, calls: str, folder: Path, under: Session) -> tuple[pd.DataFrame, list[list[str]]]:
    """Run Python under strace and a session. The session's rows, and strace's calls: descriptor's path, name, rest."""
    log = folder / "strace"
    command = ["strace", "-f", "-y", "-xx", "-s", "5000", "-e", f"trace={calls}", "-o", log, sys.executable, "-c", code]
    with under as session:
        subprocess.run(command, check=True, cwd=folder)
    lines = log.read_text().splitlines()
    df = session.df
    assert session.lost == 0
    pid = int(lines[0].split()[0])
    calls = [_CALL.search(line) for line in lines]
    return df[df.pid == pid].reset_index(drop=True), [list(call.groups()) for call in calls if call]


_CALL = re.compile(r" (\w+)\((.*)\) += (-?\d+)(?:<.*>)?(?: (E\w+))?")


def unescaped(text: str) -> str:
    return bytes.fromhex(text.replace(r"\x", "")).decode(errors="backslashreplace")


def path_of(arguments: str) -> str:
    """The complete path, by what strace says of the arguments."""
    at = re.match(r"(?:AT_FDCWD|\d+)<((?:\\x..)*)>", arguments)
    name = re.search(r'"((?:\\x..)*)"', arguments)
    if not name:
        return ""
    given = unescaped(name[1])
    if at and not given and "AT_EMPTY_PATH" in arguments:
        return unescaped(at[1])
    return f"{unescaped(at[1]).rstrip('/')}/{given}" if at and given and not given.startswith("/") else given


@pytest.mark.portable
def test_opens_are_those_that_strace_saw(tmp_path: Path) -> None:
    df, calls = strace(OPENS, "open,openat,openat2", tmp_path, bpfnb.tools.opensnoop())
    assert len(calls) > 30
    paths = [path_of(arguments) for _, arguments, *_ in calls]
    assert df.path.tolist() == [path.replace("/proc/self/", f"/proc/{df.pid[0]}/") for path in paths]
    assert df.fd.tolist() == [int(result) for *_, result, _ in calls]
    assert df.err_error.astype(object).fillna("").tolist() == [error or "" for *_, error in calls]
    # The flags, by their numbers here: strace's names of them.
    for (_, arguments, *_), flags, mode in zip(calls, df["flags"].tolist(), df["mode"].tolist(), strict=True):
        names = re.findall(r"O_\w+", arguments)
        expected = 0
        for name in names:
            expected |= getattr(os, name) if name != "O_LARGEFILE" else 0
        assert flags & ~0o100000 == expected, arguments
        asked = re.search(r", (0\d+)(?:$|,)", arguments)
        assert mode == (int(asked[1], 8) if asked and {"O_CREAT", "O_TMPFILE"} & set(names) else 0)


def test_the_old_open(tmp_path: Path) -> None:
    df, calls = strace(OLD_OPENS, "open", tmp_path, bpfnb.tools.opensnoop(failed=True))
    assert [name for name, *_ in calls] == ["open", "open"]
    assert df.path.tolist()[-1] == "/none"
    assert (df.err > 0).all()


STATS = r"""
import ctypes, os
libc = ctypes.CDLL(None)
os.makedirs("deep/er")
folder = os.open("deep", os.O_RDONLY)
buffer = ctypes.create_string_buffer(1000)
for name in ("deep", "none", "deep/../none", "/etc/passwd", "line\nfeed"): os.path.exists(name), os.path.lexists(name)
for name in ("er", "none"):
    try: os.stat(name, dir_fd=folder)
    except OSError: pass
libc.syscall(332, folder, b"er", 0, 0x7FF, buffer)      # statx
libc.syscall(332, folder, b"", 0x1000, 0x7FF, buffer)   # of the folder itself
os.statvfs(".")
"""


@pytest.mark.portable
def test_stats_are_those_that_strace_saw(tmp_path: Path) -> None:
    df, calls = strace(STATS, "stat,lstat,newfstatat,statx,statfs", tmp_path, bpfnb.tools.statsnoop())
    # strace completes what is relative to a descriptor. What is relative to the folder of a call without one, we do.
    cwd = str(tmp_path)
    paths = [path_of(arguments) for _, arguments, *_ in calls]
    expected = [path if path.startswith("/") or not path else f"{cwd}/{path}" for path in paths]
    assert [path.rstrip("/") for path in df.path] == [path.rstrip("/") for path in expected]
    assert df.err_error.astype(object).fillna("").tolist() == [error or "" for *_, error in calls]
    assert df.syscall.tolist() == [name for name, *_ in calls]
