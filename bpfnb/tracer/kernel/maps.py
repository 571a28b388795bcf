"""Maps: what they hold, read whole in few system calls; setting, deleting, emptying.

    describe(fd, ...)       a map's MapInfo
    dump(fd)                its entries, in a memfd laid out as protocol.MapRead says
    take(fd, most)          the same, and the map has them no more
    look_up(fd, key)        one key's value
    write(fd, key, value)   set an entry, or delete it
    clear(fd)               delete every entry; an array's values become zero

The kernel gives many entries in one call where it can (BPF_MAP_LOOKUP_BATCH, in v5.6: commit cb4d03ab499d "bpf: Add
generic support for lookup batch op"), of hashes whole buckets (commit 057996380a42 "bpf: Add batch ops to all htab bpf
map"). Where it cannot, on older kernels and for some kinds, keys are walked one by one: two calls an entry. Either way
each key comes once, whatever the programs insert and delete meanwhile; a walk that they keep from ending ends after
eight times the entries the map has room for, with what it found.

Reading a queue or a stack gives its head alone: the kernel has no way to look past it without taking it away.
"""

from __future__ import annotations

import errno
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from msgspec.structs import replace

from bpfnb.errors import MapError, ProgramError, UnsupportedError
from bpfnb.protocol.messages import MapInfo
from bpfnb.protocol.schema import Bytes, Enum, Number, Rows, Schema, Tail
from bpfnb.tracer.kernel import bpf, uapi
from bpfnb.tracer.kernel.bpf import MapShape
from bpfnb.tracer.kernel.cpus import possible_cpus
from bpfnb.tracer.kernel.uapi import Command, MapType

__all__ = [
    "NO_LIMIT",
    "Calls",
    "Limit",
    "available_memory",
    "clear",
    "describe",
    "dump",
    "kind",
    "look_up",
    "take",
    "take_all",
    "write",
]

# As bpftool spells them.
_KINDS = {kind.value: kind.name.lower() for kind in MapType}
_HASHES = ("hash", "percpu_hash", "lru_hash", "lru_percpu_hash")
_ARRAYS = ("array", "percpu_array")
_PER_CPU = ("percpu_hash", "lru_percpu_hash", "percpu_array")
_QUEUES = ("queue", "stack")
_OF_MAPS = ("array_of_maps", "hash_of_maps")
_READABLE = (*_HASHES, *_ARRAYS, *_QUEUES, *_OF_MAPS, "lpm_trie", "stack_trace")

_FRAME = Schema((Number("address", 0, "<u8"),), 8)
_BUILD_ID_STATUS = (("empty", 0), ("valid", 1), ("ip", 2))  # enum bpf_stack_build_id_status
_BUILD_ID_FRAME = Schema(
    (
        Enum("status", 0, "<i4", labels=_BUILD_ID_STATUS),
        Bytes("build_id", 4, 20),
        Number("offset", 24, "<u8"),
    ),
    32,
)
_MAP_ID = Schema((Number("map_id", 0, "<u4"),), 4)

# EINVAL: this kernel knows no batches, or no such for this kind. EINTR: before v6.14 a batch gave up over keys without
# a value (Linux kernel commit 5644c6b50ffe "bpf: skip non exist keys in generic_map_lookup_batch").
_NO_BATCH = (errno.EINVAL, errno.EOPNOTSUPP, uapi.ENOTSUPP, errno.EINTR)
BATCH_BYTES = 4 << 20  # a call's buffers: enough to make calls few, and small enough to stay in a cache
_ROUNDS = 8  # times its size that a map that changes under us may have us walk it

# Keys and values of equal number, as read by one call.
_Pairs = tuple[Rows, Rows]


def available_memory() -> int:
    """Return the bytes of memory that are free or can be freed, as /proc/meminfo says."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 1 << 62


class Calls(NamedTuple):
    """What maps are walked with. By default this kernel and this machine; tests put other kernels in their place."""

    batch: Callable[..., tuple[int, bytes, bool]] = bpf.batch
    next_key: Callable[[int, bytes | None, int], bytes | None] = bpf.next_key
    batch_bytes: int = BATCH_BYTES
    available_memory: Callable[[], int] = available_memory


_CALLS = Calls()


class _Map(NamedTuple):
    """A map, and what follows from what the kernel says of it."""

    fd: int
    kind: str
    shape: MapShape
    cpus: int  # values an entry has
    stride: int  # bytes from one to the next
    calls: Calls = _CALLS

    @property
    def value_bytes(self) -> int:
        return self.cpus * self.stride

    @property
    def entry_bytes(self) -> int:
        return self.shape.key_size + self.value_bytes


class _NoBatchError(Exception):
    """This kernel reads this map one key at a time."""


def describe(
    fd: int,
    name: str,
    macro: str,
    key: Schema | None,
    value: Schema | None,
    line: int = 0,
    inner: str = "",
    pinned: str = "",
) -> MapInfo:
    """What the notebook must know of a map. ``key`` and ``value``: their types where BTF has them; else plain numbers
    or bytes. Stack traces have the schema of one frame as their value, as often as it fits in ``value_size``."""
    m = _map(fd)
    keys, values = _schemas(m, key, value) if m.kind in _READABLE else (None, None)
    shape = m.shape
    return MapInfo(
        name=name,
        macro=macro,
        kind=m.kind,
        key=keys,
        value=values,
        key_size=shape.key_size,
        value_size=shape.value_size,
        value_stride=m.stride,
        cpus=m.cpus,
        max_entries=shape.max_entries,
        line=line,
        inner=inner,
        pinned=pinned,
    )


class Limit(NamedTuple):
    """How much of a map is read: so many ``bytes`` of entries, ``until`` a time of time.monotonic()."""

    bytes: int
    until: float


NO_LIMIT = Limit(1 << 62, math.inf)


def dump(fd: int, limit: Limit = NO_LIMIT, *, calls: Calls = _CALLS) -> tuple[int, int]:
    """Return how many entries a map has, and a memfd with all of them, the caller's to close.

    Each key is there once, each value as the kernel gave it; entries that came or went meanwhile are there or not. An
    array of maps has only the slots that are filled. UnsupportedError for a kind that holds nothing to read;
    MapError for more than ``limit`` allows; ProgramError where memory does not suffice or the map may not be read.
    """
    m = _readable(fd, calls)
    with _explained(m, "read"):
        return _in_memfd(_entries(m, limit))


def take(fd: int, most: int = 0, over: Callable[[], bool] = lambda: False, *, calls: Calls = _CALLS) -> tuple[int, int]:
    """Take entries out of a map, and return them as ``dump`` does: what one call returns, no other does. Of a queue
    or a stack at most so many (0: all there were), in the order they are taken in; of a hash always all.

    Of a hash the kernel reads and deletes each bucket under its lock (Linux kernel commit 057996380a42 "bpf: Add batch
    ops to all htab bpf map", in v5.6). UnsupportedError where it has no such step. What there is no memory for stays,
    for the next time; so does the rest, once ``over`` says so.
    """
    m = _readable(fd, calls)
    with _explained(m, "drained"):
        if m.kind in _QUEUES:
            return _in_memfd([_popped(m, most, over)])
        if m.kind not in _HASHES:
            raise UnsupportedError(f"the kernel cannot take entries out of a map of kind {m.kind}")
        try:
            return _in_memfd(list(_taken(m, over)))
        except _NoBatchError:
            raise UnsupportedError("this kernel cannot read and delete entries in one step (Linux 5.6 can)") from None


def take_all(fd: int, limit: Limit) -> tuple[int, int]:
    """Take all that is in a queue or a stack, as ``take``; MapError, and nothing taken, where it may hold more than
    ``limit`` allows, and where that takes too long."""
    m = _readable(fd)
    if m.shape.max_entries * m.entry_bytes > limit.bytes:
        raise _too_large(m, m.shape.max_entries, "room for ")
    count, entries = take(fd, over=lambda: time.monotonic() > limit.until)
    if time.monotonic() > limit.until:
        os.close(entries)
        raise _too_large(m, m.shape.max_entries, "room for ")
    return count, entries


def look_up(fd: int, key: bytes) -> bytes | None:
    """Return a key's value, of a per-CPU map all CPUs' ``stride`` bytes apart; None where there is none. A trie
    gives that of the longest prefix it has of the key; a queue or a stack its head, for an empty key."""
    m = _readable(fd)
    _require_key(m, key)
    with _explained(m, "read"):
        return bpf.lookup(fd, key, m.value_bytes)


def write(fd: int, key: bytes, value: bytes | None) -> bool:
    """Set a key's value, or delete it when that is None (an array's value becomes zero): False where there was none to
    delete. A queue or a stack, which has no keys, takes one more value.

    A per-CPU map takes one value for all CPUs, or all CPUs' at once, ``stride`` bytes apart. ProgramError, saying why,
    when the kernel refuses.
    """
    m = _readable(fd)
    if value is None and m.kind in _ARRAYS:
        value = bytes(m.stride)
    _require_key(m, key)
    if value is not None and len(value) not in _sizes(m):
        raise _wrong_size(m)
    with _explained(m, "changed"):
        if value is None:
            return bpf.delete(fd, key)
        bpf.update(fd, key, _for_all_cpus(m, value))
        return True


def clear(fd: int, *, calls: Calls = _CALLS) -> None:
    """Delete every entry that is there; what programs insert meanwhile may stay. An array's values become zero."""
    m = _readable(fd, calls)
    with _explained(m, "cleared"):
        if m.kind in _ARRAYS:
            _zero(m)
        elif m.kind in _QUEUES:
            _pop_all(m)
        else:
            _delete_all(m)


def kind(shape: MapShape) -> str:
    """Return what a map is, in words: "a hash with keys of 4 bytes and values of 8"."""
    return f"a {_kind(shape)} with keys of {shape.key_size} bytes and values of {shape.value_size}"


# --- what a map is ------------------------------------------------------------------------------------------------


def _map(fd: int) -> _Map:
    shape = bpf.map_shape(fd)
    kind = _kind(shape)
    if kind in _PER_CPU:
        return _Map(fd, kind, shape, len(possible_cpus()), -(-shape.value_size // 8) * 8)
    return _Map(fd, kind, shape, 1, shape.value_size)


def _kind(shape: MapShape) -> str:
    return _KINDS.get(shape.type, f"type {shape.type}")


def _readable(fd: int, calls: Calls = _CALLS) -> _Map:
    m = _map(fd)._replace(calls=calls)
    if m.kind not in _READABLE:
        raise UnsupportedError(f"a map of kind {m.kind} has no entries that could be read")
    return m


def _schemas(m: _Map, key: Schema | None, value: Schema | None) -> tuple[Schema | None, Schema]:
    size = m.shape.key_size
    if m.kind in _QUEUES:
        return None, _fitting(value, "value", m.shape.value_size)
    if m.kind == "stack_trace":
        return _plain("key", size), _BUILD_ID_FRAME if m.shape.flags & uapi.STACK_BUILD_ID else _FRAME
    if m.kind == "lpm_trie" and (key is None or len(key.columns) < 2):
        data = Bytes("data", 4, size - 4)
        key = Schema((Number("prefixlen", 0, "<u4"), data), size)
    values = _MAP_ID if m.kind in _OF_MAPS else _fitting(value, "value", m.shape.value_size)
    return _fitting(key, "key", size), values


def _fitting(schema: Schema | None, name: str, size: int) -> Schema:
    """Return a type's schema for keys or values of ``size`` bytes, without bytes beyond its end: a map has none."""
    if schema is None or schema.size != size:
        return _plain(name, size)
    return replace(schema, columns=tuple(c for c in schema.columns if not isinstance(c, Tail)))


def _plain(name: str, size: int) -> Schema:
    """Return the schema of an unknown type: an unsigned number where there is one of its size, else bytes."""
    if size in (1, 2, 4, 8):
        return Schema((Number(name, 0, np.dtype(f"<u{size}").str),), size)
    return Schema((Bytes(name, 0, size),), size)


# --- reading ------------------------------------------------------------------------------------------------------


def _entries(m: _Map, limit: Limit) -> list[_Pairs]:
    """Return all keys and values, in pieces."""
    if m.kind in _ARRAYS:
        _require_within(m, m.shape.max_entries, limit, "")
    if m.kind in _QUEUES:
        head = bpf.lookup(m.fd, b"", m.shape.value_size)
        return [] if head is None else [_as_rows(m, {b"": head})]
    try:
        return _copied(m, limit)
    except _NoBatchError:
        return [_as_rows(m, _walk(m, limit))]


def _copied(m: _Map, limit: Limit) -> list[_Pairs]:
    found, seen = [], 0
    for keys, values in _batches(m, Command.MAP_LOOKUP_BATCH):
        seen += len(keys)
        _require_within(m, seen, limit)
        _require_memory(m, seen)
        found.append((keys.copy(), values.copy()))
    return found if m.kind in (*_HASHES, *_ARRAYS) else _distinct(found)


def _batches(m: _Map, command: Command) -> Iterator[_Pairs]:
    """Yield all entries, some a system call; each overwrites the one before."""
    rows = max(min(m.shape.max_entries, m.calls.batch_bytes // m.entry_bytes), 1)
    keys, values = _buffers(m, rows)
    start, last, steps = None, False, 0
    while not last and steps < _most_steps(m):
        try:
            n, start, last = m.calls.batch(command, m.fd, start, keys, values)
        except OSError as error:
            if error.errno in _NO_BATCH:
                raise _NoBatchError from None
            if error.errno != errno.ENOSPC:
                raise
            keys, values = _buffers(m, 2 * len(keys))  # one bucket has more entries than this
            continue
        steps += max(n, 1)
        yield keys[:n], values[:n]


def _walk(m: _Map, limit: Limit) -> dict[bytes, bytes]:
    """Return all entries, read key by key."""
    found: dict[bytes, bytes] = {}
    for key in _keys(m):
        if key in found:
            continue
        value = bpf.lookup(m.fd, key, m.value_bytes)
        if value is not None:  # gone since, or an empty slot
            found[key] = value
            if len(found) % 4096 == 0:
                _require_within(m, len(found), limit)
                _require_memory(m, len(found))
    return found


def _keys(m: _Map) -> Iterator[bytes]:
    """Yield every key, some more than once where keys go meanwhile: after one that is gone the kernel begins anew."""
    key = None
    for _ in range(_most_steps(m)):
        key = m.calls.next_key(m.fd, key, m.shape.key_size)
        if key is None:
            return
        yield key


def _most_steps(m: _Map) -> int:
    """Return the entries to walk at most: a walk of a map that changes fast enough would not end."""
    return _ROUNDS * m.shape.max_entries + 1024


def _distinct(pieces: list[_Pairs]) -> list[_Pairs]:
    """Return each key once. The kernel's general batches walk from key to key, and begin anew after one that went."""
    if not pieces:
        return []
    keys, values = (np.concatenate(parts) for parts in zip(*pieces, strict=True))
    _, first = np.unique(keys.view(f"V{keys.shape[1]}")[:, 0], return_index=True)
    first.sort()
    return [(keys[first], values[first])]


def _buffers(m: _Map, rows: int) -> _Pairs:
    return np.empty((rows, m.shape.key_size), np.uint8), np.empty((rows, m.value_bytes), np.uint8)


def _as_rows(m: _Map, entries: dict[bytes, bytes]) -> _Pairs:
    keys, values = (np.frombuffer(b"".join(part), np.uint8) for part in (entries.keys(), entries.values()))
    return keys.reshape(len(entries), m.shape.key_size), values.reshape(len(entries), m.value_bytes)


def _in_memfd(pieces: list[_Pairs]) -> tuple[int, int]:
    fd = os.memfd_create("bpfnb-map", os.MFD_CLOEXEC)
    try:
        with open(fd, "wb", closefd=False) as file:
            for keys, _ in pieces:
                file.write(keys.data)
            file.write(bytes(-file.tell() % 8))
            for _, values in pieces:
                file.write(values.data)
        os.lseek(fd, 0, os.SEEK_SET)
    except BaseException:
        os.close(fd)
        raise
    return sum(len(keys) for keys, _ in pieces), fd


def _taken(m: _Map, over: Callable[[], bool]) -> Iterator[_Pairs]:
    """Yield the entries of a hash, each as it was when it was deleted; no more than there is memory for, since
    what has been taken must be delivered: the rest stays."""
    room = m.calls.available_memory() // (4 * m.entry_bytes)  # here and in the notebook, twice each
    for keys, values in _batches(m, Command.MAP_LOOKUP_AND_DELETE_BATCH):
        room -= len(keys)
        yield keys.copy(), values.copy()
        if room < len(keys) or over():
            return


def _popped(m: _Map, most: int, over: Callable[[], bool]) -> _Pairs:
    """Take values out of a queue or a stack: no more than it has room for, however fast programs put more in."""
    values: list[bytes] = []
    while len(values) < (most or m.shape.max_entries) and not over():
        value = bpf.pop(m.fd, m.shape.value_size)
        if value is None:
            break
        values.append(value)
    rows = np.frombuffer(b"".join(values), np.uint8).reshape(len(values), m.shape.value_size)
    return np.empty((len(values), 0), np.uint8), rows


# --- changing -----------------------------------------------------------------------------------------------------


def _require_key(m: _Map, key: bytes) -> None:
    if len(key) != m.shape.key_size:
        raise _wrong_size(m)


def _wrong_size(m: _Map) -> ProgramError:
    return ProgramError(f"this map has keys of {m.shape.key_size} bytes and values of {m.shape.value_size}")


def _sizes(m: _Map) -> tuple[int, int, int]:
    """Return the sizes that a value may have: as the program has it, padded, for each CPU."""
    return m.shape.value_size, m.stride, m.value_bytes


def _for_all_cpus(m: _Map, value: bytes) -> bytes:
    return value if len(value) == m.value_bytes else value.ljust(m.stride, b"\0") * m.cpus


def _zero(m: _Map) -> None:
    """Set all values of an array to zero."""
    rows = max(min(m.shape.max_entries, m.calls.batch_bytes // m.entry_bytes), 1)
    zeros = np.zeros((rows, m.value_bytes), np.uint8)
    for first in range(0, m.shape.max_entries, rows):
        indices = np.arange(first, min(first + rows, m.shape.max_entries), dtype=np.uint32)
        keys = indices.view(np.uint8).reshape(-1, 4)
        try:
            bpf.update_batch(m.fd, keys, zeros[: len(keys)])
        except OSError as error:
            if error.errno not in _NO_BATCH:
                raise
            for key in keys:
                bpf.update(m.fd, key.tobytes(), bytes(m.value_bytes))


def _delete_all(m: _Map) -> None:
    try:
        for _ in _batches(m, Command.MAP_LOOKUP_AND_DELETE_BATCH):
            pass
    except _NoBatchError:
        for key in list(_keys(m)):  # all first: after a deleted key the walk would begin anew
            bpf.delete(m.fd, key)


def _pop_all(m: _Map) -> None:
    for _ in range(_most_steps(m)):
        if bpf.pop(m.fd, m.shape.value_size) is None:
            return


# --- when it cannot be --------------------------------------------------------------------------------------------


def _require_within(m: _Map, entries: int, limit: Limit, more: str = "more than ") -> None:
    """Raise MapError when so many entries are more than is to be read, or it is too late."""
    if entries * m.entry_bytes > limit.bytes or time.monotonic() > limit.until:
        raise _too_large(m, entries, more)


def _too_large(m: _Map, entries: int, more: str) -> MapError:
    each = f"{entries:,} entries of {m.entry_bytes:,} bytes"
    return MapError(f"it has {more}{each}, {entries * m.entry_bytes:,} bytes in all")


def _require_memory(m: _Map, entries: int) -> None:
    """Raise ProgramError when so many entries do not fit in memory: here and in the notebook, twice each."""
    needed = 4 * entries * m.entry_bytes
    if needed < 64 << 20:
        return
    available = m.calls.available_memory()
    if needed > available:
        raise ProgramError(
            f"the map has {entries:,} entries or more: reading them needs {needed:,} bytes of memory, "
            f"and {available:,} are free"
        )


@contextmanager
def _explained(m: _Map, what: str) -> Iterator[None]:
    """Raise the kernel's errors as ProgramError; ``what`` is being done to the map."""
    try:
        yield
    except MemoryError:
        needed = m.shape.max_entries * m.entry_bytes
        raise ProgramError(f"the map cannot be {what}: it may need {needed:,} bytes of memory") from None
    except OSError as error:
        raise ProgramError(f"the map cannot be {what}: {_reason(m, error)}") from None


def _reason(m: _Map, error: OSError) -> str:
    if error.errno == errno.E2BIG:
        return f"it has room for {m.shape.max_entries:,} {'entry' if m.shape.max_entries == 1 else 'entries'}"
    if error.errno == errno.EPERM:  # the kernel does not say which
        return "it was declared for programs alone (BPF_F_RDONLY, BPF_F_WRONLY), or is frozen"
    if error.errno == errno.EINVAL:
        return f"the kernel does not take this for a {m.kind}"
    return error.strerror or str(error)
