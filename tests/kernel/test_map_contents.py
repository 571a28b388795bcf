"""Maps in the kernel: every kind that bcc can declare, read whole, while they change, and emptied."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from bpfnb.errors import ProgramError, UnsupportedError
from bpfnb.protocol.schema import Number, Schema, Tail
from bpfnb.results.maps.map import Map
from bpfnb.tracer.kernel import bpf
from bpfnb.tracer.kernel import maps as kernel_maps
from bpfnb.tracer.kernel.maps import Calls

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root makes maps by itself")

# include/uapi/linux/bpf.h
CREATE, UPDATE, FREEZE = 0, 2, 22
NO_PREALLOC, RDONLY, WRONLY, BUILD_ID = 1, 8, 16, 32
TYPES = {
    "hash": 1, "array": 2, "prog_array": 3, "perf_event_array": 4, "percpu_hash": 5, "percpu_array": 6,
    "stack_trace": 7, "lru_hash": 9, "lru_percpu_hash": 10, "lpm_trie": 11, "array_of_maps": 12, "hash_of_maps": 13,
    "queue": 22, "stack": 23, "ringbuf": 27, "bloom_filter": 30,
}  # fmt: skip
CPUS = int(Path("/sys/devices/system/cpu/possible").read_text().rpartition("-")[2]) + 1
SYS_BPF = {"x86_64": 321, "aarch64": 280}.get(os.uname().machine, 0)
ROOM = 64
CALLS = Calls()

libc = ctypes.CDLL(None, use_errno=True)


def call_bpf(command: int, attr: bytes) -> int:
    result = libc.syscall(SYS_BPF, command, ctypes.create_string_buffer(attr, 128), 128)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return int(result)


def put(fd: int, key: bytes, value: bytes) -> None:
    """An entry, without the code under test."""
    k, v = ctypes.create_string_buffer(key, len(key)), ctypes.create_string_buffer(value, len(value))
    call_bpf(UPDATE, struct.pack("<IIQQQ", fd, 0, ctypes.addressof(k) if key else 0, ctypes.addressof(v), 0))


class Kind(NamedTuple):
    kind: str
    key_size: int = 4
    value_size: int = 8
    flags: int = 0

    @property
    def stride(self) -> int:
        return -(-self.value_size // 8) * 8 if "percpu" in self.kind else self.value_size

    @property
    def cpus(self) -> int:
        return CPUS if "percpu" in self.kind else 1

    def key(self, number: int) -> bytes:
        if self.kind == "lpm_trie":
            return struct.pack("<II", 32, number)
        return struct.pack("<Q", number)[: self.key_size].ljust(self.key_size, b"\1")

    def value(self, number: int) -> bytes:
        """Another one for each CPU."""
        each = [np.random.default_rng([number, cpu]).bytes(self.value_size) for cpu in range(self.cpus)]
        return b"".join(one.ljust(self.stride, b"\0") for one in each)


def named(kind: object) -> str | None:
    return f"{kind.kind}-{kind.key_size}-{kind.value_size}-{kind.flags}" if isinstance(kind, Kind) else None


HASHES = [
    Kind("hash"),
    Kind("hash", 3, 5),
    Kind("hash", 40, 300),
    Kind("hash", 8, 8, NO_PREALLOC),
    Kind("lru_hash"),
    Kind("percpu_hash", 8, 8),
    Kind("percpu_hash", 4, 12),
    Kind("lru_percpu_hash", 4, 4),
    Kind("lpm_trie", 8, 4, NO_PREALLOC),
]
ARRAYS = [Kind("array"), Kind("array", 4, 3), Kind("percpu_array", 4, 12)]


@pytest.fixture
def make() -> Iterator[Maker]:
    with Maker() as maker:
        yield maker


class Maker(ExitStack):
    """Makes maps, and closes them."""

    def __call__(self, kind: Kind, room: int = ROOM, inner: int = 0) -> int:
        attr = struct.pack("<6I", TYPES[kind.kind], kind.key_size, kind.value_size, room, kind.flags, inner)
        fd = call_bpf(CREATE, attr)
        self.callback(os.close, fd)
        return fd

    def filled(self, kind: Kind, count: int = 20) -> tuple[int, dict[bytes, bytes]]:
        fd = self(kind)
        entries = {kind.key(n): kind.value(n) for n in range(count)}
        for key, value in entries.items():
            put(fd, key, value)
        return fd, entries


def dumped(fd: int, calls: Calls = CALLS) -> tuple[int, bytes]:
    return content(*kernel_maps.dump(fd, calls=calls))


def content(count: int, memory: int) -> tuple[int, bytes]:
    data = os.read(memory, 1 << 30)
    os.close(memory)
    return count, data


def read(fd: int, kind: Kind, calls: Calls = CALLS) -> dict[bytes, bytes]:
    """What was dumped, taken apart; no key may be there twice."""
    return apart(*dumped(fd, calls), kind)


def apart(count: int, data: bytes, kind: Kind) -> dict[bytes, bytes]:
    keys, begin, size = kind.key_size, -(-count * kind.key_size // 8) * 8, kind.cpus * kind.stride
    assert len(data) == begin + count * size
    found = {data[i * keys :][:keys]: data[begin + i * size :][:size] for i in range(count)}
    assert len(found) == count
    return found


def taken(fd: int, kind: Kind, calls: Calls = CALLS) -> dict[bytes, bytes]:
    return apart(*content(*kernel_maps.take(fd, calls=calls)), kind)


@pytest.fixture(params=["batches", "small batches", "old kernel", "gives up"])
def way(request: pytest.FixtureRequest) -> Calls:
    """The ways a map is read: by this kernel, with buffers that a bucket overflows, key by key, and key by key after
    a batch has failed half way."""
    how: str = request.param
    so_far = iter(range(1000))

    def batch(*arguments: object) -> tuple[int, bytes, bool]:
        if how == "old kernel" or (how == "gives up" and next(so_far)):
            raise OSError(errno.EINVAL if how == "old kernel" else errno.EINTR, how)
        return bpf.batch(*arguments)  # type: ignore[arg-type]

    calls = Calls(batch) if how in ("old kernel", "gives up") else CALLS
    return calls._replace(batch_bytes=1) if how in ("small batches", "gives up") else calls


# --- reading ------------------------------------------------------------------------------------------------------


@pytest.mark.portable
@pytest.mark.parametrize("kind", HASHES, ids=named)
def test_what_was_put_in_is_read(kind: Kind, way: Calls, make: Maker) -> None:
    fd, entries = make.filled(kind)
    assert read(fd, kind, way) == entries
    assert read(make(kind), kind, way) == {}


@pytest.mark.portable
@pytest.mark.parametrize("kind", ARRAYS, ids=named)
def test_an_array_is_read_in_order(kind: Kind, way: Calls, make: Maker) -> None:
    fd, entries = make.filled(kind)
    zero = bytes(kind.cpus * kind.stride)
    expected = {kind.key(n): entries.get(kind.key(n), zero) for n in range(ROOM)}
    assert list(read(fd, kind, way).items()) == list(expected.items())


def test_large_values_are_read_in_several_calls(make: Maker) -> None:
    kind = Kind("array", 4, 1 << 20)
    fd = make(kind, 10)
    for n in range(10):
        put(fd, kind.key(n), kind.value(n))
    assert read(fd, kind) == {kind.key(n): kind.value(n) for n in range(10)}


@pytest.mark.portable
@pytest.mark.parametrize(("kind", "head"), [("queue", 0), ("stack", 2)])
def test_of_a_queue_and_a_stack_the_head_is_read_and_stays(kind: str, head: int, make: Maker) -> None:
    shape = Kind(kind, 0, 12)
    fd = make(shape)
    assert read(fd, shape) == {}
    for n in range(3):
        kernel_maps.write(fd, b"", shape.value(n))
    for _ in range(2):
        assert read(fd, shape) == {b"": shape.value(head)}
    kernel_maps.clear(fd)
    assert read(fd, shape) == {}


@pytest.mark.portable
@pytest.mark.parametrize("kind", ["array_of_maps", "hash_of_maps"])
def test_of_a_map_of_maps_the_ids_are_read(kind: str, way: Calls, make: Maker) -> None:
    shape = Kind(kind, 4, 4)
    inner = [make(Kind("hash")) for _ in range(3)]
    fd = make(shape, ROOM, inner[0])
    for n, map_fd in enumerate(inner):
        kernel_maps.write(fd, shape.key(5 * n), struct.pack("<I", map_fd))
    ids = [bpf.map_shape(map_fd).id for map_fd in inner]
    assert read(fd, shape, way) == {shape.key(5 * n): struct.pack("<I", id_) for n, id_ in enumerate(ids)}
    kernel_maps.write(fd, shape.key(5), None)
    assert len(read(fd, shape, way)) == 2
    kernel_maps.clear(fd, calls=way)
    assert read(fd, shape, way) == {}


@pytest.mark.parametrize("kind", [Kind("hash"), Kind("lru_hash"), Kind("array")], ids=named)
def test_a_million_entries_are_read(kind: Kind, make: Maker) -> None:
    number = 1_000_000
    fd = make(kind, 2 * number if kind.kind == "lru_hash" else number)  # an LRU makes room before it is full
    keys = np.arange(number, dtype="<u4")
    values = keys.astype("<u8") * 3
    bpf.update_batch(fd, keys.view(np.uint8).reshape(-1, 4), values.view(np.uint8).reshape(-1, 8))
    count, data = dumped(fd)
    assert count == number
    found = np.frombuffer(data, "<u4", number)
    assert np.array_equal(np.frombuffer(data, "<u8", number, 4 * number), found.astype("<u8") * 3)
    assert np.array_equal(np.sort(found), keys)


@pytest.mark.parametrize(
    "kind",
    [Kind("prog_array", 4, 4), Kind("perf_event_array", 4, 4), Kind("ringbuf", 0, 0), Kind("bloom_filter", 0, 8)],
    ids=named,
)
def test_what_has_no_entries_is_refused(kind: Kind, make: Maker) -> None:
    fd = make(kind, 4096)
    info = kernel_maps.describe(fd, "m", "BPF_TABLE", None, None)
    assert (info.kind, info.key, info.value) == (kind.kind, None, None)
    for act in (kernel_maps.dump, kernel_maps.clear, lambda fd: kernel_maps.write(fd, b"", b"")):
        with pytest.raises(UnsupportedError, match=f"of kind {kind.kind} has no entries"):
            act(fd)


@pytest.mark.parametrize("kind", [Kind("hash"), Kind("lru_hash"), Kind("percpu_hash", 8, 8)], ids=named)
def test_what_is_taken_is_in_the_map_no_more(kind: Kind, make: Maker) -> None:
    fd, entries = make.filled(kind)
    assert taken(fd, kind) == entries
    assert read(fd, kind) == taken(fd, kind) == {}


def test_what_there_is_no_memory_for_stays_to_be_taken_next(make: Maker) -> None:
    kind = Kind("hash", 4, 8)
    fd, entries = make.filled(kind)
    first = taken(fd, kind, Calls(batch_bytes=1, available_memory=lambda: 4 * 12 * 6))  # for six
    assert 0 < len(first) < len(entries)
    rest = taken(fd, kind)
    assert not first.keys() & rest.keys()
    assert first | rest == entries


@pytest.mark.parametrize("kind", [Kind("lpm_trie", 8, 4, NO_PREALLOC), Kind("array")], ids=named)
def test_what_the_kernel_cannot_take_stays(kind: Kind, make: Maker) -> None:
    fd, entries = make.filled(kind)
    with pytest.raises(UnsupportedError, match=f"cannot take entries out of a map of kind {kind.kind}"):
        kernel_maps.take(fd)
    assert entries.items() <= read(fd, kind).items()


@pytest.mark.parametrize("kind", [*HASHES, *ARRAYS], ids=named)
def test_one_key_is_looked_up(kind: Kind, make: Maker) -> None:
    fd, entries = make.filled(kind)
    for key, value in entries.items():
        assert kernel_maps.look_up(fd, key) == value
    assert kernel_maps.look_up(fd, kind.key(ROOM + 1)) is None
    with pytest.raises(ProgramError, match=f"keys of {kind.key_size} bytes"):
        kernel_maps.look_up(fd, b"")


def test_a_map_larger_than_memory_is_refused(make: Maker) -> None:
    fd = make(Kind("array", 4, 1 << 20), 30)
    with pytest.raises(ProgramError, match=r"needs \d[\d,]+ bytes of memory, and 1,048,576 are free"):
        kernel_maps.dump(fd, calls=Calls(available_memory=lambda: 1 << 20))
    assert 1 << 24 < kernel_maps.available_memory() < 1 << 60


# --- while it changes ---------------------------------------------------------------------------------------------

HAMMER = """
import ctypes, random, struct, sys
fd, lpm, room, bpf = (int(a) for a in sys.argv[1:])
libc = ctypes.CDLL(None)
key, value, attr = (ctypes.create_string_buffer(size) for size in (8, 8, 32))
struct.pack_into("<IIQQQ", attr, 0, fd, 0, ctypes.addressof(key), ctypes.addressof(value), 0)
begun = False
while True:
    for _ in range(1000):
        k = random.randrange(room)
        if k % 4:
            struct.pack_into("<II", key, 0, 32, k) if lpm else struct.pack_into("<I", key, 0, k)
            struct.pack_into("<Q", value, 0, k * 7)
            libc.syscall(bpf, random.choice((2, 3)), attr, 32)
    if not begun:
        print("begun", flush=True)
        begun = True
"""


@contextmanager
def hammered(fd: int, kind: Kind, keys: int) -> Iterator[None]:
    """Another process that inserts and deletes three of four keys, at random, as fast as it can."""
    arguments = [str(fd), str(int(kind.kind == "lpm_trie")), str(keys), str(SYS_BPF)]
    command = [sys.executable, "-I", "-S", "-c", HAMMER, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, pass_fds=[fd], text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "begun\n"
        yield
        assert process.poll() is None
        process.kill()


@pytest.mark.parametrize(
    "kind", [Kind("hash"), Kind("hash", 4, 8, NO_PREALLOC), Kind("lpm_trie", 8, 8, NO_PREALLOC)], ids=str
)
@pytest.mark.parametrize("way", ["batches", "old kernel"], indirect=True)
def test_each_key_is_read_once_while_others_come_and_go(kind: Kind, way: Calls, make: Maker) -> None:
    keys = 2000
    fd = make(kind, 2 * keys)
    value = {kind.key(k): struct.pack("<Q", 7 * k) for k in range(keys)}
    stable = {kind.key(k) for k in range(0, keys, 4)}
    for key in stable:
        put(fd, key, value[key])
    sizes = set()
    with hammered(fd, kind, keys):
        for _ in range(40 if way == CALLS else 8):
            found = read(fd, kind, way)
            assert stable <= found.keys()
            assert found.items() <= value.items()
            sizes.add(len(found))
    assert len(sizes) > 1  # it did change


@pytest.mark.parametrize("kind", [Kind("hash"), Kind("lpm_trie", 8, 8, NO_PREALLOC)], ids=named)
@pytest.mark.parametrize("way", ["batches", "old kernel"], indirect=True)
def test_all_that_was_there_is_deleted_while_others_come_and_go(kind: Kind, way: Calls, make: Maker) -> None:
    keys = 2000
    fd = make(kind, 2 * keys)
    stable = {kind.key(k) for k in range(0, keys, 4)}
    with hammered(fd, kind, keys):
        for _ in range(3):
            for key in stable:
                put(fd, key, bytes(8))
            kernel_maps.clear(fd, calls=way)
            assert not stable & read(fd, kind, way).keys()


def test_a_walk_without_end_ends(make: Maker) -> None:
    kind = Kind("lpm_trie", 8, 8, NO_PREALLOC)
    fd, entries = make.filled(kind, 3)
    keys = np.frombuffer(b"".join(entries), np.uint8).reshape(3, 8)
    values = np.frombuffer(b"".join(entries.values()), np.uint8).reshape(3, 8)

    def begins_anew(_command: int, _fd: int, _start: object, k: np.ndarray, v: np.ndarray) -> tuple[int, bytes, bool]:
        k[:3], v[:3] = keys, values
        return 3, b"start", False

    assert read(fd, kind, Calls(begins_anew)) == entries
    order = list(entries)

    def no_batch(*_: object) -> tuple[int, bytes, bool]:
        raise OSError(524, "ENOTSUPP")

    around = Calls(no_batch, lambda _fd, key, _size: order[(order.index(key) + 1) % 3 if key else 0])
    assert read(fd, kind, around) == entries
    kernel_maps.clear(fd, calls=around)
    assert read(fd, kind) == {}


# --- changing -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [*HASHES, *ARRAYS], ids=named)
def test_entries_are_set_deleted_and_cleared(kind: Kind, way: Calls, make: Maker) -> None:
    fd, entries = make.filled(kind)
    one = kind.value(99)[: kind.value_size]
    kernel_maps.write(fd, kind.key(7), one)  # for all CPUs
    kernel_maps.write(fd, kind.key(8), kind.value(98))  # for each
    kernel_maps.write(fd, kind.key(9), None)
    entries |= {kind.key(7): one.ljust(kind.stride, b"\0") * kind.cpus, kind.key(8): kind.value(98)}
    removed = entries.pop(kind.key(9))
    found = read(fd, kind, way)
    if kind in ARRAYS:
        assert found.pop(kind.key(9)) == bytes(len(removed))
        assert {key: found[key] for key in entries} == entries
    else:
        assert found == entries
        assert not kernel_maps.write(fd, kind.key(9), None)
    kernel_maps.clear(fd, calls=way)
    assert not any(any(value) for value in read(fd, kind, way).values())
    assert len(read(fd, kind, way)) == (ROOM if kind in ARRAYS else 0)


def test_the_kernels_refusals_are_explained(make: Maker) -> None:
    kind = Kind("hash")
    fd = make(kind, 2)
    for n in range(2):
        kernel_maps.write(fd, kind.key(n), kind.value(n))
    with pytest.raises(ProgramError, match="cannot be changed: it has room for 2 entries"):
        kernel_maps.write(fd, kind.key(2), kind.value(2))
    with pytest.raises(ProgramError, match="keys of 4 bytes and values of 8"):
        kernel_maps.write(fd, b"12345", kind.value(2))
    with pytest.raises(ProgramError, match="keys of 4 bytes and values of 8"):
        kernel_maps.write(fd, kind.key(1), b"1")
    with pytest.raises(ProgramError, match="room for 64 entries"):
        kernel_maps.write(make(Kind("array")), struct.pack("<I", 64), bytes(8))
    with pytest.raises(ProgramError, match="the kernel does not take this for a lpm_trie"):
        kernel_maps.write(make(HASHES[-1]), struct.pack("<II", 33, 0), bytes(4))


def test_a_map_for_programs_alone_says_so(make: Maker) -> None:
    kind = Kind("array")
    frozen = make(kind)
    call_bpf(FREEZE, struct.pack("<I", frozen))
    for fd in (frozen, make(kind._replace(flags=RDONLY))):
        assert len(read(fd, kind)) == ROOM
        for change in (kernel_maps.clear, lambda fd: kernel_maps.write(fd, kind.key(1), None)):
            with pytest.raises(ProgramError, match="programs alone"):
                change(fd)
    with pytest.raises(ProgramError, match="cannot be read: it was declared for programs alone"):
        kernel_maps.dump(make(kind._replace(flags=WRONLY)))


# --- described, and as the notebook has it ------------------------------------------------------------------------


def test_a_map_is_described(make: Maker) -> None:
    key = Schema((Number("pid", 0, "<u4"),), 4)
    value = Schema((Number("n", 0, "<u8"), Tail("rest", 12, text=True)), 12)
    info = kernel_maps.describe(make(Kind("percpu_hash", 4, 12)), "m", "BPF_PERCPU_HASH", key, value, 3)
    assert (info.name, info.macro, info.kind, info.line) == ("m", "BPF_PERCPU_HASH", "percpu_hash", 3)
    assert (info.key_size, info.value_size, info.value_stride, info.cpus) == (4, 12, 16, CPUS)
    assert info.max_entries == ROOM
    assert info.key == key
    assert info.value == Schema(value.columns[:1], 12)


@pytest.mark.parametrize(
    ("kind", "key", "value"),
    [
        (Kind("hash", 4, 8), [("key", "<u4")], [("value", "<u8")]),
        (Kind("hash", 1, 16), [("key", "|u1")], [("value", "V16")]),
        (Kind("lpm_trie", 8, 4, NO_PREALLOC), [("prefixlen", "<u4"), ("data", "V4")], [("value", "<u4")]),
        (Kind("queue", 0, 4), None, [("value", "<u4")]),
        (Kind("stack_trace", 4, 8 * 127), [("key", "<u4")], [("address", "<u8")]),
        (
            Kind("stack_trace", 4, 32 * 127, BUILD_ID),
            [("key", "<u4")],
            [("status", "<i4"), ("build_id", "V20"), ("offset", "<u8")],
        ),
    ],
    ids=named,
)
def test_types_that_are_not_known_are_numbers_or_bytes(
    kind: Kind, key: list[tuple[str, str]] | None, value: list[tuple[str, str]], make: Maker
) -> None:
    info = kernel_maps.describe(make(kind), "m", "BPF_TABLE", None, None)
    assert info.key is None or [(c.name, c.dtype) for c in info.key.columns] == key
    assert (info.key is None) == (key is None)
    assert info.value
    assert [(c.name, c.dtype) for c in info.value.columns] == value


class Directly:
    """A map asked for without a session."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    running = True

    def read(self) -> tuple[int, bytes]:
        return dumped(self._fd)

    def look_up(self, key: bytes) -> bytes | None:
        return kernel_maps.look_up(self._fd, key)

    def take(self, most: int = 0) -> tuple[int, bytes]:
        return content(*kernel_maps.take(self._fd, most))

    def write(self, key: bytes, value: bytes | None) -> bool:
        return kernel_maps.write(self._fd, key, value)

    def clear(self) -> None:
        kernel_maps.clear(self._fd)


def as_map(fd: int) -> Map:
    return Map(kernel_maps.describe(fd, "m", "BPF_TABLE", None, None), Directly(fd))


def test_a_map_in_the_kernel_is_used_like_a_mapping(make: Maker) -> None:
    m = as_map(make(Kind("hash")))
    m[1], m[2**32 - 1] = 10, 2**64 - 1
    assert sorted(m.items()) == [(1, 10), (2**32 - 1, 2**64 - 1)]
    assert m.df.sort_values("key").value.tolist() == [10, 2**64 - 1]
    del m[1]
    assert 1 not in m
    with pytest.raises(KeyError):
        del m[1]
    m.clear()
    assert len(m) == 0


def test_a_per_cpu_array_in_the_kernel_is_set_on_all_cpus(make: Maker) -> None:
    m = as_map(make(Kind("percpu_array", 4, 4)))
    m[3] = 7
    assert m[3] == [7] * CPUS
    df = m.df
    assert len(df) == ROOM * CPUS
    assert df[df.key == 3].cpu.tolist() == list(range(CPUS))
    assert m.reduced().value.sum() == 7 * CPUS
    with pytest.raises(ProgramError, match="room for 64"):
        m[64] = 1
    with pytest.raises(KeyError):
        m[64]


# --- filled by a program ------------------------------------------------------------------------------------------

CELL = r"""
struct task { u32 pid; char comm[16]; u64 n; };
struct by_disk { char disk[8]; u64 slot; };
struct prefix { u32 prefixlen; u8 data[4]; };
BPF_HASH(plain);
BPF_HASH(of_structs, struct task, struct task, 100);
BPF_TABLE("lru_hash", u32, u64, recent, 1000);
BPF_PERCPU_HASH(each_cpu, u32, u32);
BPF_TABLE("lru_percpu_hash", u32, u64, recent_each, 1000);
BPF_ARRAY(numbers, u64, 16);
BPF_PERCPU_ARRAY(numbers_each, u32, 4);
BPF_HISTOGRAM(sizes);
BPF_HISTOGRAM(disk_sizes, struct by_disk);
BPF_LPM_TRIE(nets, struct prefix, u32);
BPF_STACK_TRACE(stacks, 64);
BPF_STACK_TRACE_BUILDID(builds, 64);
BPF_QUEUE(fifo, u64, 8);
BPF_STACK(lifo, u32, 8);
BPF_TABLE("hash", u32, u64, inner, 10);
BPF_ARRAY_OF_MAPS(outer, "inner", 4);
BPF_HASH_OF_MAPS(outer_hash, u32, "inner", 4);
BPF_PROG_ARRAY(programs, 4);
BPF_PERF_OUTPUT(events);
BPF_PERF_ARRAY(counters, 4);
BPF_RINGBUF_OUTPUT(ring, 8);
BPF_CGROUP_ARRAY(groups, 4);
BPF_DEVMAP(devices, 4);
BPF_CPUMAP(cpus, 4);
BPF_XSKMAP(xsk, 4);
BPF_SOCKMAP(socks, 4);
BPF_SOCKHASH(sockhash, u32, 4);
BPF_SK_STORAGE(of_socks, u64);
BPF_INODE_STORAGE(of_files, u64);
BPF_TASK_STORAGE(of_tasks, u64);
int fill(void *ctx) {
    if (bpf_get_current_pid_tgid() >> 32 != PID) return 0;
    u32 one = 1, two = 2, cpu = bpf_get_smp_processor_id(), *place;
    u64 nine = 9, ten = 10;
    int three = 3;
    struct task task = {.pid = 42, .comm = "name", .n = 5};
    struct by_disk disk = {.disk = "sda", .slot = bpf_log2l(5)};
    struct prefix net = {.prefixlen = 8, .data = {10}};
    plain.increment(7, 3);
    of_structs.update(&task, &task);
    recent.update(&one, &nine);
    each_cpu.update(&two, &cpu);
    recent_each.update(&one, &nine);
    numbers.update(&three, &nine);
    place = numbers_each.lookup(&three);
    if (place) *place = 11;
    sizes.increment(bpf_log2l(1000));
    disk_sizes.increment(disk);
    nets.update(&net, &two);
    stacks.get_stackid(ctx, BPF_F_USER_STACK);  // 6.1 shows no other in tracepoints of syscalls
    builds.get_stackid(ctx, BPF_F_USER_STACK);
    fifo.push(&nine, 0); fifo.push(&ten, 0);
    lifo.push(&one, 0); lifo.push(&two, 0);
    return 0;
}
"""
# In a process of its own, since bcc keeps what it made: the entries of every map, and bcc's own reading of the stacks.
CHILD = """
import json, os, sys
from bpfnb.errors import UnsupportedError
from bpfnb.tracer.kernel import maps as kernel_maps
from bpfnb.tracer.compile.engine import Engine

def entries(fd):
    info = kernel_maps.describe(fd, "", "", None, None)
    try:
        count, memory = kernel_maps.dump(fd)
    except UnsupportedError:
        assert info.key is None and info.value is None
        return None
    data, cpus, stride = open(memory, "rb").read(), info.cpus, info.value_stride
    keys = [data[i * info.key_size:][:info.key_size].hex() for i in range(count)]
    begin = -(-count * info.key_size // 8) * 8
    values = [data[begin + i * stride:][:info.value_size].hex() for i in range(count * cpus)]
    return [(key, values[i * cpus:][:cpus]) for i, key in enumerate(keys)]

engine = Engine()
cell, names = json.load(sys.stdin)
b = engine.bcc.BPF(text=cell.encode(), cflags=[f"-DPID={os.getpid()}", "-w"])
b.attach_tracepoint(tp="syscalls:sys_enter_getpgid", fn_name="fill")
cpu = max(os.sched_getaffinity(0))
os.sched_setaffinity(0, {cpu})
os.getpgid(0)
maps = {name: entries(engine.lib.bpf_table_fd(b.module, name.encode())) for name in names}
walked = [[key.value, list(b["stacks"].walk(key.value))] for key in b["stacks"].keys()]
print("ANSWER", json.dumps({"cpu": cpu, "maps": maps, "walked": walked}))
"""
UNREADABLE = ["programs", "events", "counters", "ring", "groups", "devices", "cpus", "xsk", "socks", "sockhash"]
UNREADABLE += ["of_socks", "of_files", "of_tasks"]


def on(cpu: int, value: bytes) -> bytes:
    """A per-CPU value that only one CPU has set."""
    return b"".join(value if n == cpu else bytes(len(value)) for n in range(CPUS))


def expected(cpu: int) -> dict[str, dict[bytes, bytes]]:
    """What the program put in, on this CPU; of arrays, where it is not zero.

    Per-CPU values are end to end: what lies between them, the program's own stack may have filled.
    """
    u32, u64, task = struct.Struct("<I").pack, struct.Struct("<Q").pack, struct.pack("<I16s4xQ", 42, b"name", 5)
    return {
        "plain": {u64(7): u64(3)},
        "of_structs": {task: task},
        "recent": {u32(1): u64(9)},
        "each_cpu": {u32(2): on(cpu, u32(cpu))},
        "recent_each": {u32(1): on(cpu, u64(9))},
        "numbers": {u32(3): u64(9)},
        "numbers_each": {u32(3): on(cpu, u32(11))},
        "sizes": {u32(10): u64(1)},
        "disk_sizes": {struct.pack("<8sQ", b"sda", 3): u64(1)},
        "nets": {u32(8) + bytes([10, 0, 0, 0]): u32(2)},
        "fifo": {b"": u64(9)},
        "lifo": {b"": u32(2)},
        "inner": {},
        "outer": {},
        "outer_hash": {},
    }


@pytest.mark.portable
def test_every_kind_that_bcc_declares_is_read_after_a_program_has_filled_it() -> None:
    job = json.dumps([CELL, [*expected(0), "stacks", "builds", *UNREADABLE]])
    done = subprocess.run([sys.executable, "-c", CHILD], input=job, capture_output=True, text=True)
    answers = [line for line in done.stdout.splitlines() if line.startswith("ANSWER")]
    assert answers, done.stdout + done.stderr
    answer = json.loads(answers[0].removeprefix("ANSWER"))
    assert {name for name, found in answer["maps"].items() if found is None} == set(UNREADABLE)
    maps = {
        name: {bytes.fromhex(k): bytes.fromhex("".join(v)) for k, v in found or ()}
        for name, found in answer["maps"].items()
    }
    arrays = ("numbers", "numbers_each", "sizes")
    assert [len(maps[name]) for name in arrays] == [16, 4, 64]
    for name, entries in expected(answer["cpu"]).items():
        assert {k: v for k, v in maps[name].items() if any(v) or name not in arrays} == entries, name
    stacks = [(int.from_bytes(k, "little"), np.frombuffer(v, "<u8")) for k, v in maps["stacks"].items()]
    assert [[k, ips[ips != 0].tolist()] for k, ips in stacks] == answer["walked"]
    assert len(stacks) == 1
    (build,) = maps["builds"].values()
    assert len(build) == 127 * 32
    assert int.from_bytes(build[:4], "little") in (1, 2)  # BPF_STACK_BUILD_ID_VALID, _IP
