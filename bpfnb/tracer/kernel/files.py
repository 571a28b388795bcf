"""Reading files and parts of /proc that strangers write: only ordinary files, so much and for so long.

A path may lead to a FIFO, which waits for a writer, to a device, which may do anything when it is opened, or to a file
that never ends; and it may lead elsewhere a moment later. So what a path leads to is looked at before it is opened, it
is opened once, and read through that descriptor, with a limit (``TooMuch``).

What reads a file ends with one of UNREADABLE, whatever is in it.
"""

from __future__ import annotations

import lzma
import os
import re
import stat
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import NamedTuple

__all__ = [
    "MAX_READ",
    "READ_TIMEOUT",
    "UNREADABLE",
    "File",
    "Privilege",
    "Read",
    "TooMuch",
    "mounts",
    "opened",
    "read_bytes",
    "read_text",
]

Privilege = Callable[[], AbstractContextManager[None]]
Read = Callable[[int, int], bytes]  # offset, size

MAX_READ = 256 << 20  # bytes at once
READ_TIMEOUT = 4.0  # seconds for the reading of one file, where that is slow
_MAX_TEXT = 64 << 10
_CHUNK = 1 << 20

# What reading a hostile file can raise.
UNREADABLE = (OSError, ValueError, OverflowError, MemoryError, EOFError, struct.error, lzma.LZMAError)


class TooMuch(ValueError):
    """A file has more, or takes longer to read, than anything of its kind."""


class File(NamedTuple):
    """An open file. ``fd`` names the very file to the kernel: /proc/self/fd/N."""

    read: Read
    stat: os.stat_result
    fd: int


@contextmanager
def opened(
    path: bytes | str,
    privilege: Privilege = nullcontext,
    inode: int = 0,
    *,
    follow: bool = True,
    timeout: float = READ_TIMEOUT,
) -> Iterator[File]:
    """A file, when it is an ordinary one, and that inode. (Device numbers differ between maps and stat on btrfs.)

    All reads together end after ``timeout`` seconds: where a disk or a network is slow, or somebody's FUSE wants to be.
    """
    with privilege():
        place = os.open(path, os.O_PATH | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW))
        try:
            found = os.fstat(place)
            if not stat.S_ISREG(found.st_mode) or (inode and found.st_ino != inode):
                raise FileNotFoundError(path)
            fd = os.open(f"/proc/self/fd/{place}", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        finally:
            os.close(place)
    try:
        yield File(_Reads(fd, timeout), found, fd)
    finally:
        os.close(fd)


class _Reads:
    """Reads of an open file, all of them within one limit of time, and one of bytes."""

    def __init__(self, fd: int, timeout: float) -> None:
        self._fd = fd
        self._left = timeout
        self._bytes = 2 * MAX_READ

    def __call__(self, offset: int, size: int) -> bytes:
        self._bytes -= min(size, max(os.fstat(self._fd).st_size - offset, 0))
        if size > MAX_READ or self._bytes < 0:
            raise TooMuch(f"{size} bytes are too many")
        began = time.monotonic()
        try:
            if size <= _CHUNK:  # nearly all
                return os.pread(self._fd, size, offset)
            return b"".join(self._chunks(offset, size, began))
        finally:
            self._left -= time.monotonic() - began
            if self._left < 0:
                raise TooMuch("reading takes too long")

    def _chunks(self, offset: int, size: int, began: float) -> Iterator[bytes]:
        while size > 0:
            data = os.pread(self._fd, min(size, _CHUNK), offset)
            if not data:
                return
            yield data
            offset, size = offset + len(data), size - len(data)
            if time.monotonic() - began > self._left:
                raise TooMuch("reading takes too long")


def read_bytes(path: bytes | str, most: int, privilege: Privilege = nullcontext, *, cut: bool = False) -> bytes:
    """An ordinary file's content, or that of one in /proc, which has no size before it is read. TooMuch where it is
    longer; with ``cut`` its beginning."""
    with opened(path, privilege) as file:
        data = b"".join(_pieces(file, most if cut else most + 1))
    if len(data) > most:
        raise TooMuch(f"{os.fsdecode(path)} is longer than {most} bytes")
    return data


def _pieces(file: File, most: int) -> Iterator[bytes]:
    """/proc gives a page or so at a time."""
    at = 0
    while at < most and (data := file.read(at, min(most - at, _CHUNK))):
        yield data
        at += len(data)


def read_text(path: bytes | str, most: int = _MAX_TEXT, privilege: Privilege = nullcontext) -> str:
    """Return the same, as text."""
    return read_bytes(path, most, privilege).decode(errors="replace")


def mounts(root: Path = Path("/")) -> list[tuple[str, str]]:
    """Return where each file system is mounted, and its type, in the order they were mounted."""
    found = []
    for line in (root / "proc/self/mounts").read_text(errors="replace").splitlines():
        _, place, kind, *_ = line.split(" ")
        found.append((re.sub(r"\\(\d{3})", lambda octal: chr(int(octal[1], 8)), place), kind))  # blanks are written so
    return found
