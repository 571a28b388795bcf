"""Who writes to the files of a folder: inotify(7), which the kernel's own file systems tell as well."""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterable

__all__ = ["EVERYTHING", "Watch"]

_libc = ctypes.CDLL(None, use_errno=True)
_MODIFY, _CLOSE_WRITE, _OVERFLOW = 0x2, 0x8, 0x4000  # include/uapi/linux/inotify.h
_EVENT = struct.Struct("iIII")  # watch, mask, cookie, length of the name
EVERYTHING = "?"


class Watch:
    """Notes writes to the files of some folders, given by descriptors; ``fd`` is readable when there was one.

    When it has happened, and when the file is closed: some of the kernel's files only act then.

    OSError where there are too many watches.
    """

    def __init__(self, folders: Iterable[int]) -> None:
        self.fd = _checked(_libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))
        try:
            for folder in folders:
                _checked(_libc.inotify_add_watch(self.fd, b"/proc/self/fd/%d" % folder, _MODIFY | _CLOSE_WRITE))
        except BaseException:
            os.close(self.fd)
            raise

    def written(self) -> set[str]:
        """Return the names of the files written to since the last call; ``EVERYTHING`` where they were too many."""
        names: set[str] = set()
        while True:
            try:
                noted = os.read(self.fd, 1 << 16)
            except BlockingIOError:
                return names
            at = 0
            while at < len(noted):
                _, mask, _, length = _EVENT.unpack_from(noted, at)
                at += _EVENT.size + length
                names.add(EVERYTHING if mask & _OVERFLOW else os.fsdecode(noted[at - length : at].rstrip(b"\0")))

    def close(self) -> None:
        os.close(self.fd)


def _checked(result: int) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
