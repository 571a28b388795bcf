"""Private tracefs instances and the binary pages their ring buffers deliver.

The text of trace_pipe cannot be parsed with certainty (a process may call itself ``x [000] d..2. 1.0: fake:`` and a
message may hold newlines), so we read the pages behind it, per CPU (``trace_pipe_raw``). Their format is the ring
buffer's own, stable since 2.6.30 and read the same way by libtraceevent and trace-cmd: kernel
include/linux/ring_buffer.h, kernel/trace/ring_buffer.c, and events/header_page.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from bpfnb.errors import PrivilegeError, SetupError

__all__ = [
    "PREFIX",
    "Events",
    "Field",
    "Instance",
    "Ints",
    "dynamic_fields",
    "fields_of",
    "is_writable",
    "join",
    "parse_pages",
    "root",
    "sweep",
    "sweep_orphans",
    "tracepoints",
]

PREFIX = "bpfnb-"
_MOUNTS = ("/sys/kernel/tracing", "/sys/kernel/debug/tracing")
_BATCH = 256  # pages parsed at a time: enough for numpy, 1 MiB of memory
_LEAST_PAGES = 16  # of a CPU in one step, however many CPUs there are
_EVERYTHING = 1 << 40  # pages

Ints = npt.NDArray[np.int64]


def root() -> Path:
    """Where tracefs is mounted. SetupError when it is not."""
    for mount in _MOUNTS:
        if Path(mount, "trace_pipe").exists():
            return Path(mount)
    raise SetupError(
        "tracefs is not mounted, so bpf_trace_printk cannot be read and tracepoints cannot be found",
        hint="mount it as root: mount -t tracefs nodev /sys/kernel/tracing",
    )


def is_writable() -> bool:
    """Whether we may make instances."""
    try:
        return os.access(root() / "instances", os.W_OK | os.X_OK, effective_ids=True)
    except (OSError, SetupError):
        return False


class Field(NamedTuple):
    """Where a field lies in an event's record, in bytes."""

    offset: int
    size: int


def tracepoints() -> list[str]:
    """Every tracepoint of this kernel, as "category:event"."""
    return (root() / "available_events").read_text().split()


def fields_of(event: str) -> tuple[int, dict[str, Field]]:
    """An event's id and its fields' places, from its format file: they differ between kernels."""
    text = (root() / "events" / event / "format").read_text()
    number = int(re.search(r"^ID: (\d+)", text, re.M)[1])  # type: ignore[index]
    found = re.findall(r"field:[^;]*?(\w+)(?:\[\w*\])?;\s*offset:(\d+);\s*size:(\d+);", text)
    return number, {name: Field(int(offset), int(size)) for name, offset, size in found}


def dynamic_fields(event: str) -> dict[str, str]:
    """An event's fields of changing length, which its record only points to, with the types of their elements.

    {} where there is no such event, or no tracefs.
    """
    try:
        text = (root() / "events" / event / "format").read_text()
    except (OSError, SetupError):
        return {}
    return {name: kind for kind, name in re.findall(r"field:__data_loc ([^;]*?)(?:\[\w*\])? (\w+);", text)}


class Events(NamedTuple):
    """Events cut out of pages: row i is ``data[start[i]:start[i] + length[i]]``, stamped ``time[i]``."""

    data: npt.NDArray[np.uint8]
    start: Ints
    length: Ints
    time: Ints  # nanoseconds, of the instance's trace clock
    cpu: npt.NDArray[np.int16]

    def __len__(self) -> int:
        return len(self.start)

    def read(self, field: Field, dtype: str) -> npt.NDArray[np.generic]:
        """One field of every event, as an array."""
        size = np.dtype(dtype).itemsize
        at = (self.start + field.offset)[:, None] + np.arange(size)
        return np.ascontiguousarray(self.data[at]).view(dtype).reshape(-1)

    def take(self, index: npt.NDArray[np.generic]) -> Events:
        return Events(self.data, self.start[index], self.length[index], self.time[index], self.cpu[index])


def join(batches: list[Events]) -> Events:
    """Several batches as one."""
    if len(batches) == 1:
        return batches[0]
    if not batches:
        empty = np.empty(0, np.int64)
        return Events(np.empty(0, np.uint8), empty, empty, empty, np.empty(0, np.int16))
    shift = np.cumsum([0] + [len(b.data) for b in batches[:-1]])
    return Events(
        np.concatenate([b.data for b in batches]),
        np.concatenate([b.start + s for b, s in zip(batches, shift, strict=True)]),
        np.concatenate([b.length for b in batches]),
        np.concatenate([b.time for b in batches]),
        np.concatenate([b.cpu for b in batches]),
    )


def parse_pages(pages: npt.NDArray[np.uint8], cpu: int) -> Events:
    """The events of ring-buffer pages, shape (number of pages, page size), all of one CPU.

    The records of one page can only be walked one after the other, so we walk all pages in step: a numpy operation
    handles the n-th record of every page.
    """
    count, size = pages.shape
    words = pages.reshape(-1).view(np.uint32)
    head = pages[:, :16].copy().view(np.uint64)
    time = head[:, 0].astype(np.int64)
    # The upper bits of commit are flags (RB_MISSED_EVENTS, RB_MISSED_STORED); a page is at most 2^20 bytes.
    end = (head[:, 1].astype(np.int64) & 0xFFFFF) + 16 + np.arange(count) * size
    at = np.arange(count) * size + 16
    live = np.flatnonzero(at < end)
    found: list[tuple[Ints, Ints, Ints]] = []
    while len(live):
        here = at[live]
        word = words[here >> 2].astype(np.int64)
        kind, delta = word & 31, word >> 5
        array0 = words[np.minimum((here >> 2) + 1, len(words) - 1)].astype(np.int64)
        long_form = (kind == 0) | (kind == 29)  # length in the next word; 29 is padding, or a discarded event
        extended = kind >= 30  # 30: a longer delta, 31: an absolute stamp
        length = np.where(long_form, array0 - 4, kind * 4)
        step = np.where(extended, 8, np.where(long_form, array0 + 4, kind * 4 + 4))
        delta = np.where(extended, (array0 << 27) + delta, delta)
        # An absolute stamp has 59 bits: the upper five are those of the time so far.
        absolute = delta | (time[live] & ~np.int64((1 << 59) - 1))
        time[live] = np.where(kind == 31, absolute, time[live] + delta)
        event = kind < 29
        start = here + np.where(kind == 0, 8, 4)
        found.append((start[event], length[event], time[live][event]))
        step[(kind == 29) & (word >> 5 == 0)] = size  # null padding: nothing more on this page
        at[live] = here + step
        live = live[at[live] < end[live]]
    if not found:
        return join([])
    starts, lengths, times = (np.concatenate(column) for column in zip(*found, strict=True))
    return Events(pages.reshape(-1), starts, lengths, times, np.full(len(starts), cpu, np.int16))


class Pipe:
    """One CPU's pages. ``reached``: up to what time (of the trace clock) its events have been read.

    It is ``behind`` when the last step ended before all was read that lay there.
    """

    def __init__(self, cpu: int, path: Path, page: int) -> None:
        self.cpu = cpu
        self.fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        self.reached = 0
        self.behind = True
        self._page = page

    def read(self, until: int, most: int) -> tuple[list[Events], int]:
        """What was recorded up to time ``until``, from at most ``most`` pages, and how many pages that took.

        Events of one CPU are in the order of their times, so what follows a younger one need not be looked at: else
        there would be no end where it is written as fast as we read. The last page may hold younger ones.
        """
        found: list[Events] = []
        taken = 0
        self.behind = True
        while self.behind and taken < most:
            pages = np.empty((min(_BATCH, most - taken), self._page), np.uint8)
            filled = 0
            while filled < len(pages) and _read(self.fd, pages[filled]):
                filled += 1
            taken += filled
            if filled:
                found.append(parse_pages(pages[:filled], self.cpu))
                # A page begins with its time. It may hold nothing but discarded events.
                self.reached = max(int(pages[filled - 1, :8].view(np.int64)[0]), found[-1].time.max(initial=0))
            if filled < len(pages) or self.reached > until:
                self.reached = max(self.reached, until)
                self.behind = False
        return found, taken


class Instance:
    """A tracefs instance: a trace buffer of our own, so that no other reader is disturbed and none disturbs us.

    Made empty, with the monotonic clock and ``kilobytes`` of buffer a CPU; ``close`` removes it. PrivilegeError where
    we may not make one, OSError when the kernel cannot.
    """

    def __init__(self, name: str, kilobytes: int) -> None:
        self.path = root() / "instances" / name
        try:
            self.path.mkdir()
        except PermissionError:
            raise PrivilegeError(
                f"user {os.geteuid()} may load programs but not read what they print: only user 0 may make a tracefs"
                " instance",
                hint="start Jupyter as root, or allow this user `sudo -n`",
            ) from None
        self._pipes: list[Pipe] = []
        try:
            self.write("trace_clock", "mono")
            self.write("buffer_size_kb", str(kilobytes))
            self._page = self._page_size()
        except BaseException:
            self.close()
            raise

    def write(self, name: str, text: str) -> None:
        (self.path / name).write_text(text)

    def enable(self, event: str, filter_: str = "") -> None:
        """Let an event in, when ``filter_`` holds (evaluated in the kernel)."""
        if filter_:
            self.write(f"events/{event}/filter", filter_)
        self.write(f"events/{event}/enable", "1")

    def open_pipes(self) -> list[int]:
        """Open every CPU's pipe; the descriptors become readable when something is there."""
        for directory in sorted((self.path / "per_cpu").glob("cpu*")):
            self._pipes.append(Pipe(int(directory.name[3:]), directory / "trace_pipe_raw", self._page))
        return [pipe.fd for pipe in self._pipes]

    def drain(self, until: int, size: int = 0, waiting: Ints | tuple[()] = ()) -> tuple[Events, int]:
        """What was recorded up to time ``until`` (of the trace clock) and not read yet, and a little more.

        ``size``: a part of it, about so many bytes over all CPUs, which are read evenly. ``waiting``: CPUs that are not
        read this time. Also the time up to which nothing is unread: ``until`` if that was all.
        """
        pipes = [pipe for pipe in self._pipes if pipe.cpu not in set(waiting)]
        left = size // self._page if size else _EVERYTHING
        share = left // max(sum(pipe.behind for pipe in pipes), 1)
        batches = []
        for pipe in pipes:
            events, taken = pipe.read(until, max(min(share, left), _LEAST_PAGES))
            batches += events
            left -= taken
        return join(batches), min([until, *(pipe.reached for pipe in self._pipes)])

    def lost(self) -> int:
        """Events overwritten before we read them, or dropped, since the instance was made."""
        total = 0
        for pipe in self._pipes:
            stats = (self.path / f"per_cpu/cpu{pipe.cpu}/stats").read_text()
            total += sum(int(n) for n in re.findall(r"^(?:overrun|dropped events): (\d+)", stats, re.M))
        return total

    def close(self) -> None:
        """Remove the instance and all it holds. Idempotent."""
        while self._pipes:
            os.close(self._pipes.pop().fd)
        with suppress(FileNotFoundError):
            self.path.rmdir()

    def _page_size(self) -> int:
        # Sub-buffers can be larger than a page since Linux v6.8.
        with suppress(OSError):
            return int((self.path / "buffer_subbuf_size_kb").read_text()) * 1024
        return os.sysconf("SC_PAGE_SIZE")


def sweep(owner: int) -> None:
    """Remove the instances that process ``owner`` left behind."""
    with suppress(SetupError):
        for path in (root() / "instances").glob(f"{PREFIX}{owner}-*"):
            with suppress(OSError):
                path.rmdir()


def sweep_orphans() -> None:
    """Remove the instances of tracers killed together with their supervisors."""
    with suppress(SetupError):
        owners = {path.name.split("-")[1] for path in (root() / "instances").glob(f"{PREFIX}*-*")}
        for owner in owners:
            if not Path("/proc", owner).exists():
                sweep(int(owner))


def _read(fd: int, page: npt.NDArray[np.uint8]) -> bool:
    try:
        return os.readv(fd, [page.data]) > 0
    except BlockingIOError:
        return False
