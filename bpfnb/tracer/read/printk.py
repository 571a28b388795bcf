"""Drain bpf_trace_printk: from a session's own tracefs instance to the rows of a segment.

The kernel offers every line of every program to every instance. So each line of a session's programs starts with the
session's tag (rewrite.py adds it), and the instance's filter, evaluated in the kernel, admits only lines that start
with it.
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
# Letters have no special meaning in the kernel's glob filter, in C or in printf. Digits do: the kernel's
# filter_parse_regex() takes a pattern that starts with one as an index, which matches nothing.
_ALPHABET = string.ascii_letters
_TAG_LENGTH = 8  # one register: LLVM stores the tag as one number, which cache.py finds and replaces
_TOTAL_KILOBYTES = 32 << 10  # of all CPUs' buffers
_NEWLINE = 10
_STEP = 4 << 20  # bytes read at a time, of all CPUs; making rows of them takes about ten times as many
_CHUNK = 1 << 14  # lines made into rows at a time
_TYPE = Field(0, 2)  # common_type
# The trace clock "mono" is the kernel's NMI-safe clock (ktime_get_mono_fast_ns), which may be off while it is adjusted.
_JITTER_NS = 20_000
_LATE_NS = 10_000_000  # a session's last lines may have times up to this much after its end


def new_tag() -> str:
    """Return a random tag, which the lines of one session start with."""
    return "".join(random.SystemRandom().choices(_ALPHABET, k=_TAG_LENGTH))


class PrintkSource:
    """A session's printk output, a source for poller.py. Its ``fds`` are readable when lines wait.

    ``memory``: the size of its buffers in bytes. ``note`` is called with a sentence for each change that another
    process makes to the session's instance.
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
                # Make the descriptors readable at the first line, not at half a buffer. Before Linux v5.0, which
                # added the file, they always are.
                self._instance.write("buffer_percent", "0")
            self._instance.enable(_EVENT, f'bpf_string ~ "{tag}*"')
            self.fds = self._instance.open_pipes()
            self._instance.watch(_EVENT)
        except BaseException:
            self.close()
            raise

    def drain(self, *, last: bool = False) -> int:
        """Move lines to the segment, in order of time. Only some of many lines are moved, unless this is the ``last``.

        The ``last`` drain moves all lines that were printed before it began, so it ends even if programs go on
        printing. CPUs are read one after the other, so a line may be read before older ones of another CPU. Lines
        younger than what has been read of every CPU are held back until the next drain. Raises SetupError where other
        processes have changed the instance for good.
        """
        if self._writer.blocked and not last:  # the kernel counts the lines that it then overwrites
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
        """Move some lines. Return the time, at most ``until``, up to which all lines have now been read."""
        fresh, reached = self._instance.drain(until, _STEP, self._far_ahead())
        events = join([self._held, self._lines(fresh)])
        # A name changes before the events that have it. Names are drained after the events, so the history is complete.
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
            if error.errno not in (errno.EMFILE, errno.ENFILE):  # no descriptor is free; one may be the next time
                raise

    def _far_ahead(self) -> Ints:
        """Return the CPUs not to read now: so many of their lines are held back that others must catch up first.

        The CPU that is furthest behind has no lines held back, so at least one is read.
        """
        sizes = np.bincount(self._held.cpu, self._held.length) if len(self._held) else np.empty(0)
        return np.flatnonzero(sizes > _STEP // 2)

    def close(self) -> None:
        """Remove the instance. Idempotent."""
        self._instance.close()

    def renew(self, cpu: int) -> None:
        """Note that a CPU has come online. May be called from any thread."""
        self._instance.renew(cpu)

    def _lines(self, events: Events) -> Events:
        """Return the printk events, without other events that someone has enabled in the instance."""
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
        """Return the messages' bytes end to end, and their lengths, without tag, final newline and final NUL."""
        # __data_loc: offset in the record in the low half, length with the NUL in the high half.
        place = events.read(self._fields["bpf_string"], "<u4").astype(np.int64)
        start = events.start + (place & 0xFFFF) + self._tag
        length = np.maximum((place >> 16) - 1 - self._tag, 0)
        final = events.data[start + np.maximum(length - 1, 0)]
        length = length - ((length > 0) & (final == _NEWLINE))
        shift = np.repeat(start - (np.cumsum(length) - length), length)
        return events.data[shift + np.arange(len(shift))], length


def _compact(events: Events) -> Events:
    """Copy events, so that they do not keep alive the pages they were read into."""
    if not len(events):
        return join([])
    memory, starts = events.data.data, events.start.tolist()
    pieces = [memory[at : at + size] for at, size in zip(starts, events.length.tolist(), strict=True)]
    begins = np.cumsum(events.length) - events.length
    return Events(np.frombuffer(b"".join(pieces), np.uint8), begins, events.length, events.time, events.cpu)
