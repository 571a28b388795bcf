"""Private tracefs instances and the binary pages their ring buffers deliver.

The text of trace_pipe cannot be parsed with certainty (a process may call itself ``x [000] d..2. 1.0: fake:`` and a
message may hold newlines), so we read the pages behind it, per CPU (``trace_pipe_raw``). Their format is the ring
buffer's own, stable since 2.6.30 and read the same way by libtraceevent and trace-cmd: kernel
include/linux/ring_buffer.h, kernel/trace/ring_buffer.c, and events/header_page.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
import select
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import numpy.typing as npt

from bpfnb.errors import PrivilegeError, SetupError
from bpfnb.tracer.kernel.cpus import online_cpus
from bpfnb.tracer.kernel.inotify import EVERYTHING, Watch

__all__ = [
    "PREFIX",
    "Events",
    "Field",
    "Instance",
    "Ints",
    "dynamic_fields",
    "event_id",
    "fields_of",
    "has_event",
    "hold",
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
_MIN_PAGES = 16  # of a CPU in one step, however many CPUs there are
_EVERYTHING = 1 << 40  # pages
_LOCK_SECONDS = 1.0
_LOOK_SECONDS = 1.0
_KEY = secrets.token_hex(4)  # of this tracer: drawn before the supervisor forks the worker
_ROUNDS = 3  # of setting back what somebody else keeps changing
# Files whose change alters what is in the buffer, not only what gets there. Writing to them empties it.
_MEANING = {"trace_clock", "buffer_subbuf_size_kb", EVERYTHING}

_instances = -1
_left: set[str] = set()  # names of instances to be removed

Ints = npt.NDArray[np.int64]


def root() -> Path:
    """Return where tracefs is mounted. SetupError when it is not."""
    for mount in _MOUNTS:
        if Path(mount, "trace_pipe").exists():
            return Path(mount)
    raise SetupError(
        "tracefs is not mounted, so bpf_trace_printk cannot be read and tracepoints cannot be found",
        hint="mount it as root: mount -t tracefs nodev /sys/kernel/tracing",
    )


def is_writable() -> bool:
    """Return whether this process may make instances."""
    try:
        return os.access(root() / "instances", os.W_OK | os.X_OK, effective_ids=True)
    except (OSError, SetupError):
        return False


class Field(NamedTuple):
    """Where a field lies in an event's record, in bytes."""

    offset: int
    size: int


def tracepoints() -> list[str]:
    """Return every tracepoint of this kernel, as "category:event"."""
    return (root() / "available_events").read_text().split()


def traceable_functions() -> list[str]:
    """Return the kernel functions that may be traced, those of modules too, each as often as it is there."""
    return [line.split(None, 1)[0] for line in (root() / "available_filter_functions").read_text().splitlines() if line]


def has_event(event: str) -> bool:
    """Return whether this kernel has a tracepoint "category/event", or a category."""
    return (root() / "events" / event).is_dir()


def event_id(event: str) -> int:
    """Return the number of a tracepoint "category/event", by which perf events name it."""
    return int((root() / "events" / event / "id").read_text())


def fields_of(event: str) -> tuple[int, dict[str, Field]]:
    """Return an event's id and its fields' places, from its format file: they differ between kernels."""
    text = (root() / "events" / event / "format").read_text()
    number = int(re.search(r"^ID: (\d+)", text, re.M)[1])  # type: ignore[index]
    found = re.findall(r"field:[^;]*?(\w+)(?:\[\w*\])?;\s*offset:(\d+);\s*size:(\d+);", text)
    return number, {name: Field(int(offset), int(size)) for name, offset, size in found}


def dynamic_fields(event: str) -> dict[str, str]:
    """Return an event's fields of changing length, which its record only points to, with the types of their elements.

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
        """Return one field of every event, as an array."""
        size = np.dtype(dtype).itemsize
        at = (self.start + field.offset)[:, None] + np.arange(size)
        return np.ascontiguousarray(self.data[at]).view(dtype).reshape(-1)

    def take(self, index: npt.NDArray[np.generic]) -> Events:
        return Events(self.data, self.start[index], self.length[index], self.time[index], self.cpu[index])


def join(batches: list[Events]) -> Events:
    """Return several batches as one."""
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
    """Return the events of ring-buffer pages, shape (number of pages, page size), all of one CPU.

    The records of one page can only be walked one after the other, so we walk all pages in step: a numpy operation
    handles the n-th record of every page.
    """
    count, size = pages.shape
    words = pages.reshape(-1).view(np.uint32)
    head = pages[:, :16].copy().view(np.uint64)
    time = head[:, 0].astype(np.int64)
    # The upper bits of commit are flags (RB_MISSED_EVENTS, RB_MISSED_STORED); a page is at most 2^20 bytes.
    end = np.minimum((head[:, 1].astype(np.int64) & 0xFFFFF) + 16, size) + np.arange(count) * size
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
        """Return what was recorded up to time ``until``, from at most ``most`` pages, and how many pages that took.

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
    we may not make one, SetupError where tracefs is read-only, OSError when the kernel cannot.

    Called ``bpfnb-PID-KEY-WHAT``: a pid means nothing in another container, so KEY, random, is this tracer's own. All
    is done by descriptors, which go on when tracefs is unmounted. That of trace_pipe is never read: it keeps other
    readers of that file off (since Linux 6.6, commit c2489bb7e6be "tracing: Introduce pipe_cpumask to avoid race on
    trace_pipes"), and an instance with an open pipe cannot be removed by anybody. That of free_buffer is never written:
    when it is closed, however we end, the kernel frees the buffer and stops recording.
    """

    def __init__(self, what: str, kilobytes: int) -> None:
        self.name = f"{PREFIX}{os.getpid()}-{_KEY}-{what}"
        self._pipes: list[Pipe] = []
        self._counts: dict[int, _Counts] = {}
        self._before = 0  # lost of what was counted before somebody emptied the buffer
        self._folder = -1
        self._held: list[int] = []  # descriptors that are kept for what their being open does
        self._looked = 0.0
        self._ready = select.epoll()
        self._watch: Watch | None = None
        self._settings: dict[str, str] = {}
        self._noted: set[str] = set()
        self._unsettled: set[str] = set()  # written to, and not looked at yet
        self._robbed = False
        self._notes: list[str] = []
        self.failure: SetupError | None = None
        try:
            _remove_left()
            self._make()
            self.write("trace_clock", "mono")
            self.write("buffer_size_kb", str(kilobytes))
            self._page = self._page_size()
        except BaseException:
            self.close()
            raise

    def write(self, name: str, text: str) -> None:
        with self._open(name, "w") as file:
            file.write(text)

    def read(self, name: str) -> str:
        with self._open(name, "r") as file:
            return file.read()

    def enable(self, event: str, filter_: str = "") -> None:
        """Let an event in, when ``filter_`` holds (evaluated in the kernel)."""
        if filter_:
            self.write(f"events/{event}/filter", filter_)
        self.write(f"events/{event}/enable", "1")

    def open_pipes(self) -> list[int]:
        """Open the pipe of every CPU that has one. The descriptors become readable when something is there, or when
        something has to be put right.

        A CPU that was never online has none: reading its file would fail, and polling it never wait.
        """
        self._came_online = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._held.append(self._came_online)
        self._ready.register(self._came_online, select.EPOLLIN)
        self._open_new()
        return [self._ready.fileno()]

    def renew(self, cpu: int) -> None:
        """Note that a CPU has come online. For any thread: the next ``drain`` opens its pipe."""
        os.eventfd_write(self._came_online, 1)

    def _open_new(self) -> None:
        for cpu in sorted(online_cpus() - {pipe.cpu for pipe in self._pipes}):
            pipe = Pipe(cpu, Path(f"/proc/self/fd/{self._folder}/per_cpu/cpu{cpu}/trace_pipe_raw"), self._page)
            self._pipes.append(pipe)
            self._counts[cpu] = _Counts()
            self._ready.register(pipe.fd, select.EPOLLIN)

    def watch(self, *events: str) -> None:
        """Notice from now on when others write to its files, or those of its events.

        Where there are no more descriptors for that, it is looked at once a second when something is read.
        """
        for name in _settings(events):
            with suppress(FileNotFoundError):  # older kernels have not all of them
                self._settings[name] = self._setting(name)
        folders = [self._folder]
        try:
            for event in events:
                folders.append(self._hold(f"events/{event}", os.O_PATH | os.O_DIRECTORY))
            self._watch = Watch(folders)
        except OSError:
            return
        self._ready.register(self._watch.fd, select.EPOLLIN)

    def drain(self, until: int, size: int = 0, waiting: Ints | tuple[()] = ()) -> tuple[Events, int]:
        """Return what was recorded up to time ``until`` (of the trace clock) and not read yet, and a little more.

        ``size``: a part of it, about so many bytes over all CPUs, which are read evenly. ``waiting``: CPUs that are not
        read this time. Also the time up to which nothing is unread: ``until`` if that was all.

        What others have changed (``watch``) is put right, and ``notes`` has a sentence on it; where that cannot be,
        ``failure`` says why.
        """
        with suppress(BlockingIOError):
            if os.eventfd_read(self._came_online):
                self._open_new()
        pipes = [pipe for pipe in self._pipes if pipe.cpu not in set(waiting)]
        left = size // self._page if size else _EVERYTHING
        share = left // max(sum(pipe.behind for pipe in pipes), 1)
        batches = []
        for pipe in pipes:
            events, taken = pipe.read(until, max(min(share, left), _MIN_PAGES))
            self._counts[pipe.cpu].ours += sum(map(len, events))
            batches += events
            left -= taken
        reached = min([until, *(pipe.reached for pipe in self._pipes)])
        if not _MEANING.isdisjoint(self._put_right()):
            # What was read may mean something else. The kernel empties a buffer whose meaning is changed.
            self._before += sum(map(len, batches))
            return join([]), reached
        return join(batches), reached

    def notes(self) -> list[str]:
        """Return what others have done to it since the last call, a sentence each."""
        notes, self._notes = self._notes, []
        return notes

    def lost(self) -> int:
        """Return how many events were overwritten before we read them, dropped, or read by somebody else, so far.

        Exact after a ``drain`` that read everything, unless the buffer was emptied (``disturbed``).
        """
        for cpu, counts in self._counts.items():
            found = dict(re.findall(r"^([\w ]+): (\d+)", self.read(f"per_cpu/cpu{cpu}/stats"), re.M))
            self._before += counts.take(int(found["overrun"]) + int(found["dropped events"]), int(found["read events"]))
        if not self._robbed and any(counts.stolen for counts in self._counts.values()):
            self._robbed = True
            note = f"another process reads the session's tracefs instance {self.name}: what it takes is counted as lost"
            self._notes.append(note)
        return self._before + sum(counts.lost for counts in self._counts.values())

    def close(self) -> None:
        """Remove the instance and all it holds. Idempotent.

        Where that cannot be now (another process has one of its files open, tracefs is read-only) it is removed when
        the next one is made or closed, or by the next tracer.
        """
        self._ready.close()
        while self._pipes:
            os.close(self._pipes.pop().fd)
        if self._watch:
            self._watch.close()
            self._watch = None
        while self._held:
            os.close(self._held.pop())
        if self._folder >= 0:
            os.close(self._folder)
            self._folder = -1
            _left.add(self.name)
        _remove_left()

    def _make(self) -> None:
        home = _home()
        with _locked(home, fcntl.LOCK_SH):  # nobody who sweeps sees it before it is held by its pipe
            try:
                os.mkdir(self.name, dir_fd=home)
            except PermissionError:
                raise PrivilegeError(
                    f"user {os.geteuid()} may load programs but not read what they print: only user 0 may make a "
                    "tracefs instance",
                    hint="start Jupyter as root, or allow this user `sudo -n`",
                ) from None
            except OSError as error:
                if error.errno != errno.EROFS:
                    raise
                raise SetupError(
                    f"tracefs is mounted read-only at {root()}: no instance can be made to read what programs print",
                    hint=f"mount -o remount,rw {root()}",
                ) from None
            self._folder = os.open(self.name, os.O_PATH | os.O_DIRECTORY, dir_fd=home)
            self._hold("trace_pipe", os.O_RDONLY | os.O_NONBLOCK)
        with suppress(OSError):
            self.write("options/disable_on_free", "1")
            self._hold("free_buffer", os.O_WRONLY)

    def _hold(self, name: str, flags: int) -> int:
        self._held.append(os.open(name, flags, dir_fd=self._folder))
        return self._held[-1]

    def _put_right(self) -> set[str]:
        """Set back what others changed, and return the names of the files they wrote to."""
        written = self._unsettled | (self._watch.written() if self._watch else self._seldom())
        names: set[str] = set()
        restored: set[str] = set()
        for _ in range(_ROUNDS):
            if not written:
                break
            changed = [name for name, text in self._settings.items() if self._setting(name) != text]
            if self._watch:
                names |= written - restored
            elif changed:
                names |= {EVERYTHING, *map(_file, changed)}
            for name in changed:
                self._restore(name)
                restored.add(_file(name))
            # By us, or by somebody meanwhile.
            written = self._watch.written() if self._watch and changed else set()
        # Who writes faster than this may have been the last: the next drain looks again, and takes no line before.
        self._unsettled = written
        self._note(names - {EVERYTHING})
        return names

    def _seldom(self) -> set[str]:
        """Return whether it is time to look, where there is no inotify."""
        now = time.monotonic()
        if now - self._looked < _LOOK_SECONDS:
            return set()
        self._looked = now
        return {EVERYTHING}

    def _restore(self, name: str) -> None:
        try:
            self.write(name, self._settings[name])
        except OSError as error:
            self.failure = SetupError(
                f"another process changed {name} of the session's tracefs instance, and it cannot be set back: "
                f"{error.strerror}"
            )

    def _note(self, files: set[str]) -> None:
        for file in sorted(files - self._noted):
            self._noted.add(file)
            self._notes.append(
                f"another process writes to {file} of the session's tracefs instance {self.name}: "
                "what it changes is set back at once, but lines printed meanwhile may be missing"
            )

    def _setting(self, name: str) -> str:
        text = self.read(name).strip()
        chosen = re.search(r"\[(\w+)\]", text)  # of several, as of the clocks
        return chosen[1] if chosen else text

    def _open(self, name: str, mode: str) -> IO[str]:
        return open(name, mode, opener=lambda path, flags: os.open(path, flags, dir_fd=self._folder))

    def _page_size(self) -> int:
        # Sub-buffers can be larger than a page since Linux v6.8.
        with suppress(OSError):
            return int(self.read("buffer_subbuf_size_kb")) * 1024
        return os.sysconf("SC_PAGE_SIZE")


@dataclass
class _Counts:
    """One CPU's events: ``ours`` that we have read; ``read`` by anybody and ``gone`` unread, as the kernel counts."""

    ours: int = 0
    read: int = 0
    gone: int = 0

    @property
    def lost(self) -> int:
        return self.gone + self.stolen

    @property
    def stolen(self) -> int:
        return max(self.read - self.ours, 0)

    def take(self, gone: int, read: int) -> int:
        """Note new counts. Returns what was lost before, where the kernel has begun to count anew."""
        anew = read < self.read or gone < self.gone
        before = self.lost if anew else 0
        if anew:
            self.ours = read
        self.read, self.gone = read, gone
        return before


def hold() -> None:
    """Hold on to the folder of instances, for this process and those it forks, whatever is unmounted later."""
    with suppress(SetupError, OSError):
        _home()


def sweep() -> None:
    """Remove the instances that this tracer's processes left behind."""
    with suppress(SetupError, OSError):
        for name in os.listdir(_home()):
            if name.startswith(PREFIX) and f"-{_KEY}-" in name:
                _remove(name)


def sweep_orphans() -> None:
    """Remove the instances of tracers killed together with their supervisors, those of other containers' as well.

    Whether a tracer lives is not asked: what it reads from the kernel does not remove. Nobody makes one meanwhile.
    """
    with suppress(SetupError, OSError), _locked(_home(), fcntl.LOCK_EX) as alone:
        for name in os.listdir(_home()) if alone else ():
            if name.startswith(PREFIX):
                _remove(name)


def _home() -> int:
    """Open the folder of instances: it stays so when tracefs is unmounted, and goes to this process's children."""
    global _instances
    if _instances < 0:
        _instances = os.open(root() / "instances", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    return _instances


def _remove(name: str) -> bool:
    """Remove an instance; return whether it is gone now."""
    try:
        os.rmdir(name, dir_fd=_home())
    except FileNotFoundError:
        return True
    except (OSError, SetupError):
        return False
    return True


def _remove_left() -> None:
    """Remove the instances that are done with, where that can be."""
    _left.difference_update([name for name in list(_left) if _remove(name)])


@contextmanager
def _locked(folder: int, how: int) -> Iterator[bool]:
    """Hold a lock of the folder of instances, the same in every container. Yield whether it came within a second.

    Whoever holds it for longer hangs: then makers go on without, and sweepers let it be.
    """
    fd = os.open(
        ".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=folder
    )  # of our own: the supervisor and the worker share one
    try:
        yield _lock(fd, how)
    finally:
        os.close(fd)


def _lock(fd: int, how: int) -> bool:
    deadline = time.monotonic() + _LOCK_SECONDS
    while True:
        try:
            fcntl.flock(fd, how | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno != errno.EWOULDBLOCK or time.monotonic() > deadline:
                return False
            time.sleep(0.01)
        else:
            return True


def _settings(events: Iterable[str]) -> list[str]:
    """Return the files that decide what gets into an instance and what it means, in the order they are set in."""
    general = "trace_clock buffer_subbuf_size_kb buffer_size_kb tracing_cpumask set_event_pid set_event_notrace_pid"
    return [
        *general.split(),
        *(f"events/{event}/{file}" for event in events for file in ("filter", "enable")),
        "tracing_on",
    ]


def _file(path: str) -> str:
    return path.rpartition("/")[2]


def _read(fd: int, page: npt.NDArray[np.uint8]) -> bool:
    try:
        return os.readv(fd, [page.data]) > 0
    except BlockingIOError:
        return False
