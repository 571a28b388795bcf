"""bpf_trace_printk's lines of one session: from its private tracefs instance to the rows of a segment.

The kernel hands every line of every program to every instance. So a session's programs print a tag first (rewrite.py
puts it there), and the instance's filter, evaluated in the kernel, lets in only what starts with it.
"""

from __future__ import annotations

import errno
import os
import random
import string
import time
from collections.abc import Callable
from contextlib import suppress

import numpy as np
import numpy.typing as npt

from bpfnb.protocol.schema import PRINTK_ROW
from bpfnb.protocol.segments import SegmentWriter
from bpfnb.tracer.kernel.tracefs import Events, Field, Instance, Ints, fields_of, join
from bpfnb.tracer.read.comms import CommHistory
from bpfnb.tracer.read.poller import HIGH_WATER

__all__ = ["PrintkSource", "new_tag"]

_EVENT = "bpf_trace/bpf_trace_printk"
# Letters mean nothing to the kernel's glob filter, to C or to printf. A digit would: a pattern that starts with one is
# an index to the kernel's filter_parse_regex(), and matches nothing.
_ALPHABET = string.ascii_letters
_TAG_LENGTH = 8  # one register's worth: that LLVM stores as one number, which recipes.py finds and replaces
_TOTAL_KILOBYTES = 32 << 10  # of buffer, over all CPUs
_NEWLINE = 10
_STEP = 4 << 20  # bytes read at a time, over all CPUs; making them rows takes some ten times as much
_CHUNK = 1 << 14  # lines made into rows at a time
_TYPE = Field(0, 2)  # common_type
# The trace clock "mono" is the kernel's for NMIs (ktime_get_mono_fast_ns): it may be off while the clock is adjusted.
_JITTER_NS = 20_000
_LATE_NS = 10_000_000  # beyond its end a session's last lines may bear such a time


def new_tag() -> str:
    """What a session's lines start with, to tell them from everybody else's."""
    return "".join(random.SystemRandom().choices(_ALPHABET, k=_TAG_LENGTH))


class PrintkSource:
    """A session's printk output. ``fds`` are readable when lines wait; ``drain`` moves some of them to the segment.
    ``memory``: bytes of its buffers. ``note`` is told, in a sentence each, what other processes do to the session's
    instance.
    """

    needs_polling = False

    def __init__(self, tag: str, comms: CommHistory, writer: SegmentWriter, note: Callable[[str], None]) -> None:
        self._tag = len(tag)
        self._comms = comms
        self._writer = writer
        self._note = note
        self._number, self._fields = fields_of(_EVENT)
        self._held = join([])
        kilobytes = max(_TOTAL_KILOBYTES // (os.cpu_count() or 1), 512)
        self.memory = kilobytes * 1024 * (os.cpu_count() or 1)
        self._instance = Instance(tag, kilobytes)
        try:
            with suppress(OSError):
                # Wake a poll at the first line, not at half a buffer. The file came with Linux v5.0; before that any
                # line wakes.
                self._instance.write("buffer_percent", "0")
            self._instance.enable(_EVENT, f'bpf_string ~ "{tag}*"')
            self.fds = self._instance.open_pipes()
            self._instance.watch(_EVENT)
        except BaseException:
            self.close()
            raise

    def drain(self, *, last: bool = False) -> int:
        """Move some of what has been printed to the segment, in time order; all of it, if this is the ``last``: all
        that was printed before this began, so that it ends, whoever goes on printing.

        CPUs are read one after the other, so a line may come before older ones still unread elsewhere: what is younger
        than what has been read of every CPU is held back until the next drain. SetupError where others have changed
        the instance for good.
        """
        if self._writer.blocked and not last:  # what is overwritten the kernel counts
            self._count_lost()
            return 0
        until = time.monotonic_ns() + (_LATE_NS if last else -_JITTER_NS)
        reached = self._step(until)
        while last and reached < until:
            reached = self._step(until)
        if last:
            self._append(self._held)
            self._held = join([])
            self._writer.set_lost(self._instance.lost())
        elif self._instance.failure:
            raise self._instance.failure
        return HIGH_WATER if reached < until else len(self._held) > 0

    def _step(self, until: int) -> int:
        """Up to what time, at most ``until``, all is read now."""
        fresh, reached = self._instance.drain(until, _STEP, self._far_ahead())
        events = join([self._held, self._lines(fresh)])
        # Names change before the events that see them: drained after those events, the history is complete.
        self._comms.drain()
        ripe = events.time <= reached
        self._held = _compact(events.take(np.flatnonzero(~ripe)))
        chosen = np.flatnonzero(ripe)
        self._append(events.take(chosen[np.argsort(events.time[chosen], kind="stable")]))
        self._count_lost()
        for note in self._instance.notes():
            self._note(note)
        return reached

    def _count_lost(self) -> None:
        try:
            self._writer.set_lost(self._instance.lost())
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE):  # there may be a free descriptor the next time
                raise

    def _far_ahead(self) -> Ints:
        """CPUs of which so much is held back that others are to catch up first. One of which nothing is held back is
        the last, and is read."""
        sizes = np.bincount(self._held.cpu, self._held.length) if len(self._held) else np.empty(0)
        return np.flatnonzero(sizes > _STEP // 2)

    def close(self) -> None:
        """Remove the instance. Idempotent."""
        self._instance.close()

    def renew(self, cpu: int) -> None:
        """A CPU has come online. For any thread."""
        self._instance.renew(cpu)

    def _lines(self, events: Events) -> Events:
        """Without what others have let into the instance."""
        ours = events.read(_TYPE, "<u2") == self._number if len(events) else np.empty(0, bool)
        return events if ours.all() else events.take(np.flatnonzero(ours))

    def _append(self, events: Events) -> None:
        for begin in range(0, len(events), _CHUNK):
            self._append_chunk(events.take(np.arange(begin, min(begin + _CHUNK, len(events)))))

    def _append_chunk(self, events: Events) -> None:
        text, lengths = self._messages(events)
        pids = events.read(self._fields["common_pid"], "<i4").astype(np.int32)
        rows = np.zeros(len(events), PRINTK_ROW)
        rows["mono_ns"] = events.time
        rows["text_end"] = np.cumsum(lengths)
        rows["pid"] = pids
        rows["cpu"] = events.cpu
        rows["flags"] = events.read(self._fields["common_flags"], "u1")
        rows["preempt"] = events.read(self._fields["common_preempt_count"], "u1")
        rows["comm"] = self._comms.lookup(pids, events.time)
        self._writer.append(rows.view(np.uint8).reshape(len(rows), -1), text)

    def _messages(self, events: Events) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
        """Every message's bytes end to end, and their lengths: without tag, final newline and final NUL."""
        # __data_loc: offset in the record in the low half, length with the NUL in the high half.
        place = events.read(self._fields["bpf_string"], "<u4").astype(np.int64)
        start = events.start + (place & 0xFFFF) + self._tag
        length = np.maximum((place >> 16) - 1 - self._tag, 0)
        final = events.data[start + np.maximum(length - 1, 0)]
        length = length - ((length > 0) & (final == _NEWLINE))
        shift = np.repeat(start - (np.cumsum(length) - length), length)
        return events.data[shift + np.arange(len(shift))], length


def _compact(events: Events) -> Events:
    """The same events without the pages they were cut from, which would be kept alive for a few lines."""
    if not len(events):
        return join([])
    memory, starts = events.data.data, events.start.tolist()
    pieces = [memory[at : at + size] for at, size in zip(starts, events.length.tolist(), strict=True)]
    begins = np.cumsum(events.length) - events.length
    return Events(np.frombuffer(b"".join(pieces), np.uint8), begins, events.length, events.time, events.cpu)
