"""Memory for growing buffers: reserved in plenty, and populated piece by piece just before it is written.

Most of what decoding events costs is memory that was not touched before. Pages of 2 MiB are the cheapest where the
kernel has them at hand. In a virtual machine whose host takes free memory back (free page reporting: only large blocks)
they are the dearest, since the host looks for each anew, 4 KiB at a time; small pages, which segments read before have
just given back, then cost a sixth (docs/benchmarks.md). Only trying tells, and it changes: each piece is timed.
"""

from __future__ import annotations

import mmap
import sys
import time
from contextlib import suppress

import numpy as np

__all__ = ["Memory", "PageChoice"]

_PIECE = 2 << 20  # a large page
_SLOW_NS = 1_000_000  # for a large page; small ones for as much memory take about 0.7 ms, a large one at hand 0.1
# Pieces in small pages before a large one is tried again: twice as many each time it was slow.
_MIN_SMALL, _MAX_SMALL = 4, 64

_POPULATE_WRITE = 23  # MADV_POPULATE_WRITE (since 5.14; uapi/asm-generic/mman-common.h)
_NORESERVE = 0x4000  # MAP_NORESERVE


class PageChoice:
    """Whether the next piece is taken in a large page or in small ones, learned from how long the last large one took.

    ``small``: pieces to come in small pages. ``next``: how many that will be when the next large one is slow.
    """

    def __init__(self, slow_ns: int = _SLOW_NS) -> None:
        self.slow_ns = slow_ns
        self.small = 0
        self.next = _MIN_SMALL

    def take(self) -> bool:
        """Choose for one piece. Return whether it is taken in small pages."""
        small = self.small > 0
        self.small -= small
        return small

    def learn(self, took_ns: int) -> None:
        """Learn from how long a large page took."""
        slow = took_ns > self.slow_ns
        self.small = self.next if slow else 0
        self.next = min(2 * self.next, _MAX_SMALL) if slow else _MIN_SMALL


_PAGES = PageChoice()  # for all of the process


class Memory:
    """``size`` bytes of zeros, private to the process. An array over ``buffer`` keeps them; there is no close."""

    def __init__(self, size: int, pages: PageChoice = _PAGES, *, populate: int = _POPULATE_WRITE) -> None:
        """``populate``: the advice with which the kernel takes memory; one unknown to it is as a kernel before 5.14."""
        self._pages = pages
        self._populate = populate
        size = -(-size // _PIECE) * _PIECE
        self._mapping = _reserved(size + _PIECE)
        self._begin = -np.frombuffer(self._mapping, np.uint8).ctypes.data % _PIECE  # where a large page may
        self.buffer = memoryview(self._mapping)[self._begin :]
        self._ready = 0

    def prepare(self, end: int) -> None:
        """Populate the memory up to byte ``end``, which is about to be written."""
        if sys.platform != "linux":
            return  # it is taken as it is written
        while self._ready < end:
            self._take(self._begin + self._ready)
            self._ready += _PIECE

    def _take(self, start: int) -> None:
        small = self._pages.take()
        with suppress(OSError):  # without these two ways it is taken as it is written
            self._mapping.madvise(mmap.MADV_NOHUGEPAGE if small else mmap.MADV_HUGEPAGE, start, _PIECE)
            began = time.thread_time_ns()
            self._mapping.madvise(self._populate, start, _PIECE)
            if not small:
                self._pages.learn(time.thread_time_ns() - began)


def _reserved(size: int) -> mmap.mmap:
    """Return memory of which none is taken yet. Other systems only read recordings: any will do."""
    if sys.platform != "linux":
        return mmap.mmap(-1, size)
    return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NORESERVE)
