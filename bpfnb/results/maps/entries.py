"""A map's entries as rows of bytes, asked of the kernel again for every access, less what was drained.

Nothing is kept but what the last drain read (baseline.py), and what was taken for a caller who was interrupted.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from bpfnb.errors import ProgramError
from bpfnb.interrupts import Flag, caller_left, new_lock, uninterrupted
from bpfnb.protocol.messages import MapInfo
from bpfnb.protocol.schema import Rows
from bpfnb.results.maps.baseline import Baseline, Counter
from bpfnb.results.maps.kinds import ARRAYS, QUEUES
from bpfnb.results.output import Keep

__all__ = ["Entries", "MapAccess", "Snapshot", "Still", "Taking", "rows_of"]


class Snapshot(NamedTuple):
    """A map at one moment. ``time``: nanoseconds since 1970, as the reading began."""

    time: int
    keys: Rows
    values: Rows


class MapAccess(Protocol):
    """Access to a map. ``running``: whether it is still in the kernel; else it is what it was at its session's end, and
    can only be read."""

    @property
    def running(self) -> bool: ...

    @property
    def moment(self) -> int:
        """CLOCK_MONOTONIC in nanoseconds: now, or when its session ended."""

    @property
    def ended(self) -> Flag:
        """Set once its session has ended."""

    @property
    def keep(self) -> Keep:
        """The limit on what its session keeps."""

    @property
    def session(self) -> Any:
        """The session whose map it is."""

    def show(self, map_: object, window: float) -> Any:
        """Show the map live, and return the panel."""

    def read(self) -> tuple[int, bytes]:
        """Return how many entries there are, and their bytes as protocol.MapRead lays them out."""

    def recorded(self) -> Sequence[Snapshot] | None:
        """Return what the map was over time, of a recording; None where it is to be read from now on."""

    def look_up(self, key: bytes) -> bytes | None:
        """Return a key's value, all CPUs'; None where there is none."""

    def take(self, most: int = 0) -> tuple[int, bytes]:
        """Take entries out: all, or at most ``most``. Return them as ``read`` does. ProgramError where it cannot be:
        also when the session ends just now, and then ``running`` is no longer true."""

    def write(self, key: bytes, value: bytes | None) -> bool:
        """Set an entry; delete it where ``value`` is None: False where there is none. ProgramError when that cannot
        be."""

    def clear(self) -> None:
        """Delete every entry; an array's values become zero."""

    def open_counter(self, kind: str, event: str) -> None:
        """Fill a perf array with a counter."""

    def symbols(self, pid: int, addresses: Sequence[int]) -> tuple[Sequence[str], Sequence[str]]:
        """Return names and modules of code addresses (bpfnb.results.stacks.Resolve)."""


class Taking:
    """Entries that are taken out of a map for a caller; ``abandoned`` once the caller was interrupted.

    ``left``: those of them that another caller had left. ``baselines``: what drains compare with, before and after.
    """

    def __init__(self) -> None:
        self.abandoned = False
        self.keys: Rows = np.empty((0, 0), np.uint8)
        self.values: Rows = np.empty((0, 0), np.uint8)
        self.left: list[tuple[Rows, Rows]] = []
        self.baselines: tuple[Baseline | None, Baseline] | None = None


class Still:
    """An access to entries that were taken: they can only be read."""

    running = False
    session: Any = None

    def __init__(self, keys: Rows, values: Rows, access: MapAccess) -> None:
        self._keys, self._values = keys, values
        self.symbols = access.symbols
        self.ended, self.keep, self.moment = access.ended, access.keep, access.moment

    def read(self) -> tuple[int, bytes]:
        keys = self._keys.tobytes()
        return len(self._keys), keys + bytes(-len(keys) % 8) + self._values.tobytes()

    def show(self, map_: object, window: float) -> Any:
        raise ProgramError("what was drained from a map does not change: there is nothing to show live")

    def recorded(self) -> Sequence[Snapshot] | None:
        return None

    def look_up(self, key: bytes) -> bytes | None:
        raise NotImplementedError

    def take(self, most: int = 0) -> tuple[int, bytes]:
        return self.read()

    def write(self, key: bytes, value: bytes | None) -> bool:
        raise ProgramError("what was drained from a map cannot be changed")

    def clear(self) -> None:
        raise ProgramError("what was drained from a map cannot be changed")

    def open_counter(self, kind: str, event: str) -> None:
        raise ProgramError("what was drained from a map cannot be changed")


class Entries:
    """The entries of one map: keys and values, a row each; of a per-CPU map, a row has all CPUs' values.

    ``count``: how many there were when they were last read. For any thread.
    """

    def __init__(self, info: MapInfo, access: MapAccess) -> None:
        self.count = 0
        self._info = info
        self._access = access
        self._lock = new_lock()  # of what follows: held while the kernel is asked
        self._drained: Baseline | None = None
        self._left: deque[tuple[Rows, Rows]] = deque()  # taken for somebody who was interrupted
        self._taking: Callable[[], Taking | None] = lambda: None  # the last, while anybody has it
        self._gone = 0  # entries taken out of a queue as it was at its session's end

    @uninterrupted
    def read(self) -> tuple[Rows, Rows]:
        """Return all keys and all values, a row each, as they have grown since the last drain."""
        with self._lock:
            return self.trimmed(*self._since(*self._read_all()))

    @uninterrupted
    def read_whole(self) -> tuple[Rows, Rows]:
        """Return all keys and all values as they are in the kernel, whatever was drained."""
        with self._lock:
            return self.trimmed(*self._read_all())

    @uninterrupted
    def write(self, key: bytes, value: bytes | None) -> bool:
        with self._lock:
            if caller_left():
                return False
            done = self._access.write(key, value)
            if self._drained:
                self._drained = self._drained.without(key)
            return done

    @uninterrupted
    def find(self, key: bytes) -> Rows:
        """Return the value of a key, as a row; none where there is none."""
        with self._lock:
            trie = self._info.kind == "lpm_trie"
            if not self._access.running or (trie and self._drained):  # of a trie's value one does not learn the key
                keys, values = self._since(*self._read_all())
                return values[
                    _longest_prefix(keys, key) if trie else (keys == np.frombuffer(key, np.uint8)).all(axis=1)
                ]
            data = self._access.look_up(key)
            return self._since(*self._rows(int(data is not None), _laid_out(key, data)))[1]

    @uninterrupted
    def clear(self) -> None:
        """Delete every entry, and forget what was drained."""
        with self._lock:
            if caller_left():
                return
            self._access.clear()
            self._drained = None
            self._left.clear()

    @uninterrupted
    def peek(self) -> Rows:
        """Return the value that would be taken next, as a row; none where there is none."""
        with self._lock:
            if self._left:
                return self._left[0][1][:1]
            if not self._access.running:
                return self._read_all()[1][:1]
            data = self._access.look_up(b"")
            return self._rows(int(data is not None), data or b"")[1]

    @uninterrupted
    def take(self, taking: Taking, most: int = 0) -> None:
        """Take entries, all or at most ``most``. Nobody else gets them."""
        with self._lock:
            if not self._may_take(taking):
                return
            missing = most - sum(len(values) for _, values in self._left)
            new = self._take_new(max(missing, 0)) if not most or missing > 0 else self._rows(0, b"")
            keys, values = _joined([*self._left, new])
            self._left.clear()
            if most and len(values) > most:
                self._left.append((keys[most:], values[most:]))
            taking.keys, taking.values = keys[: most or None], values[: most or None]

    @uninterrupted
    def take_differences(self, taking: Taking, columns: Sequence[Counter]) -> None:
        """Take what the values have grown by since the last drain."""
        with self._lock:
            if not self._may_take(taking):
                return
            keys, values = self._read_all()
            new = self._since(keys, values, columns)
            taking.keys, taking.values = self.trimmed(*_joined([*self._left, new]))
            taking.left = list(self._left)
            self._left.clear()
            before = self._drained
            self._drained = Baseline(keys, values, columns, self._info.cpus, self._info.value_stride)
            taking.baselines = before, self._drained

    def _may_take(self, taking: Taking) -> bool:
        """Return whether its caller still waits. If so, first give back what another caller did not get."""
        if taking.abandoned:
            return False
        if (last := self._taking()) and last.abandoned:
            self._give_back(last)
        self._taking = weakref.ref(taking)
        return True

    def put_back(self, taking: Taking) -> None:
        """Give back what an interrupted caller did not get: the next ``drain`` or ``pop`` has it."""
        with self._lock:
            self._give_back(taking)

    def _give_back(self, taking: Taking) -> None:
        if taking.baselines and taking.baselines[1] is self._drained:  # as if it had not been drained
            self._drained = taking.baselines[0]
            self._left.extendleft(reversed(taking.left))
        elif len(taking.values):
            self._left.appendleft((taking.keys, taking.values))
        taking.baselines, taking.keys, taking.values = None, taking.keys[:0], taking.values[:0]

    def _take_new(self, most: int) -> tuple[Rows, Rows]:
        if self._access.running:
            try:
                new = self._since(*self._rows(*self._access.take(most)))
                self._drained = None
                return new
            except ProgramError:
                if self._access.running:
                    raise
        keys, values = self._read_all()
        if self._info.kind in QUEUES:
            keys, values = keys[: most or None], values[: most or None]
            self._gone += len(values)
            return keys, values
        new = self._since(keys, values)
        self._drained = Baseline(keys, values, (), self._info.cpus, self._info.value_stride)
        return new

    def _since(self, keys: Rows, values: Rows, columns: Sequence[Counter] | None = None) -> tuple[Rows, Rows]:
        if self._drained is None:
            return keys, values
        return self._drained.since(keys, values, self._info.kind in ARRAYS, columns)

    def _read_all(self) -> tuple[Rows, Rows]:
        keys, values = self._rows(*self._access.read())
        self.count = len(values)
        return keys[self._gone :], values[self._gone :]

    def _rows(self, count: int, data: bytes) -> tuple[Rows, Rows]:
        return rows_of(self._info, count, data)

    def trimmed(self, keys: Rows, values: Rows) -> tuple[Rows, Rows]:
        """Cut off the zeros at the end of an array that is larger than the cell could expect."""
        if not self._info.shown:
            return keys, values
        end = max(self._info.shown, int(np.flatnonzero(values.any(axis=1))[-1:].sum()) + 1)
        return keys[:end], values[:end]


def rows_of(info: MapInfo, count: int, data: bytes) -> tuple[Rows, Rows]:
    """Return the keys and values of MapRead's bytes."""
    sizes = info.key_size, info.cpus * info.value_stride
    begin = -(-count * sizes[0] // 8) * 8
    keys = np.frombuffer(data, np.uint8, count * sizes[0]).reshape(count, sizes[0])
    values = np.frombuffer(data, np.uint8, count * sizes[1], begin).reshape(count, sizes[1])
    return keys, values


def _laid_out(key: bytes, value: bytes | None) -> bytes:
    """Lay out one entry as MapRead does."""
    return b"" if value is None else key + bytes(-len(key) % 8) + value


def _longest_prefix(keys: Rows, key: bytes) -> npt.NDArray[np.intp]:
    """Find a trie's longest prefix of a key, as the kernel does. A key is the number of bits that count, then the bits
    (struct bpf_lpm_trie_key)."""
    lengths = np.ascontiguousarray(keys[:, :4]).view(np.uint32)[:, 0].astype(np.int64)
    wanted = np.frombuffer(key, np.uint8)
    most = int(wanted[:4].view(np.uint32)[0])
    if not len(keys) or most > 8 * (len(key) - 4):
        return np.empty(0, np.intp)
    differing = np.unpackbits(keys[:, 4:] ^ wanted[4:], axis=1)
    common = np.where(differing.any(axis=1), differing.argmax(axis=1), differing.shape[1])
    matching = (lengths <= common) & (lengths <= most)
    best = int(np.where(matching, lengths, -1).argmax())
    return np.array([best] if matching[best] else [], np.intp)


def _joined(pieces: Sequence[tuple[Rows, Rows]]) -> tuple[Rows, Rows]:
    keys, values = zip(*pieces, strict=True)
    return (keys[0], values[0]) if len(pieces) == 1 else (np.concatenate(keys), np.concatenate(values))
