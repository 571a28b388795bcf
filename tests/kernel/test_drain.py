"""Draining maps while two CPUs count, against what the workload has done; single keys, tries, queues."""

from __future__ import annotations

import _thread
import os
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pandas as pd
import pytest
from portable import portable

import bpfnb
from bpfnb.host import client

PRODUCER = """
import os, sys, threading
os.sched_setaffinity(0, {int(sys.argv[1])})
print(os.getpid(), flush=True)
sys.stdin.readline()
enough = threading.Event()
threading.Thread(target=lambda: (sys.stdin.readline(), enough.set()), daemon=True).start()
calls = 0
while not enough.is_set() and calls < 400_000:
    for _ in range(100): os.getppid()
    calls += 100
print(calls, flush=True)
sys.stdin.readline()
"""


class Producers:
    """Two processes, on a CPU each where there are two, that call getppid until they are told to stop, or so often."""

    def __init__(self, cpus: list[int]) -> None:
        pipe = subprocess.PIPE
        command = [sys.executable, "-I", "-S", "-c", PRODUCER]
        self._all = [subprocess.Popen([*command, str(cpu)], stdin=pipe, stdout=pipe, text=True) for cpu in cpus]
        self.pids = self._answers()
        self.flags = [f"-DFIRST={self.pids[0]}", f"-DSECOND={self.pids[1]}"]

    def begin(self) -> None:
        self._tell()

    def stop(self) -> int:
        """How many calls they have made, both together."""
        self._tell()
        return sum(self._answers())

    def end(self) -> None:
        for p in self._all:
            p.kill()
            p.communicate()

    def _tell(self) -> None:
        for p in self._all:
            assert p.stdin
            p.stdin.write("go\n")
            p.stdin.flush()

    def _answers(self) -> list[int]:
        return [int(p.stdout.readline()) for p in self._all if p.stdout]


@contextmanager
def producing() -> Iterator[Producers]:
    cpus = sorted(os.sched_getaffinity(0))
    producers = Producers([cpus[0], cpus[-1]])
    try:
        yield producers
    finally:
        producers.end()


# Every kind counts each call once, with bcc's own ways of counting exactly: whatever becomes of increment().
COUNTED = {
    "plain": "BPF_HASH(plain, u32, u64)",
    "each": "BPF_PERCPU_HASH(each, u32, u64)",
    "recent": 'BPF_TABLE("lru_hash", u32, u64, recent, 1000)',
    "recent_each": 'BPF_TABLE("lru_percpu_hash", u32, u64, recent_each, 1000)',
    "numbers": "BPF_ARRAY(numbers, u64, 4)",
    "numbers_each": "BPF_PERCPU_ARRAY(numbers_each, u64, 4)",
    "sizes": "BPF_HISTOGRAM(sizes)",
}
ADDS = """
    { u64 *v = %s.lookup_or_try_init(&%s, &zero); if (v) __sync_fetch_and_add(v, 1); }"""
ARRAYS = ("numbers", "numbers_each", "sizes")
CELL = (
    ";\n".join(COUNTED.values())
    + r""";
struct key { u8 odd; u32 n; };
struct value { u64 calls; s64 balance; char comm[16]; };
BPF_HASH(structs, struct key, struct value);
BPF_HISTOGRAM(keyed, struct key, 100);
int f(void *ctx) {
    u32 pid = bpf_get_current_pid_tgid() >> 32, k = bpf_get_prandom_u32() & 3;
    if (pid != FIRST && pid != SECOND) return 0;
    int i = k;
    u64 zero = 0;
"""
    + "".join(ADDS % (name, "i" if name in ARRAYS else "k") for name in COUNTED)
    + r"""
    struct key key = {};
    key.odd = k & 1;
    key.n = k;
    { u64 *v = keyed.lookup_or_try_init(&key, &zero); if (v) __sync_fetch_and_add(v, 1); }
    struct value empty = {}, *v = structs.lookup_or_try_init(&key, &empty);
    if (v) {
        __sync_fetch_and_add(&v->calls, 1);
        __sync_fetch_and_add(&v->balance, -3);
        bpf_get_current_comm(&v->comm, sizeof(v->comm));
    }
    return 0;
}
"""
)


def counted(frame: pd.DataFrame) -> int:
    return int(frame["calls" if "calls" in frame else "value"].sum())


def test_drains_lose_nothing_and_count_nothing_twice_while_two_cpus_count() -> None:
    with producing() as producers:
        with bpfnb.trace(CELL, name="drained", attach={"syscall:getppid": "f"}, cflags=producers.flags) as session:
            names = list(session.maps)
            sums, balance, found = dict.fromkeys(names, 0), 0, 0
            producers.begin()
            for name in names * 8:
                frame = session.maps[name].drain()
                found += len(frame) > 0
                sums[name] += counted(frame)
                balance += int(frame.balance.sum()) if name == "structs" else 0
            calls = producers.stop()
            rest = {name: counted(session.maps[name].df) for name in names}
            balance += int(session.maps["structs"].df.balance.sum())
        assert found > len(names)  # it did drain while they counted
        assert {name: sums[name] + rest[name] for name in names} == dict.fromkeys(names, calls)
        assert balance == -3 * calls
        # The map as it was at the end, once more, and then no more.
        assert {name: counted(session.maps[name].drain()) for name in names} == rest
        assert not any(counted(session.maps[name].drain()) for name in names)
        assert session.maps["sizes"].hist("linear")["count"].sum() == 0


SMALL = r"""
BPF_HASH(small, u32, u16);
int f(void *ctx) {
    u32 pid = bpf_get_current_pid_tgid() >> 32;
    if (pid != ME) return 0;
    u16 none = 0, *v = small.lookup_or_try_init(&pid, &none);
    if (v) *v += 3;
    return 0;
}
"""


def test_a_counter_that_wraps_between_two_drains_is_right() -> None:
    me = os.getpid()
    with bpfnb.trace(SMALL, name="small", attach={"syscall:getppid": "f"}, cflags=[f"-DME={me}"]) as session:
        small = session.maps["small"]
        small[me] = 65_500
        assert small.drain().value.tolist() == [65_500]
        for _ in range(100):
            os.getppid()
        assert small[me] == 300
        assert small.drain().value.tolist() == [300]
        assert me not in small


REPLACED = r"""
BPF_HASH(last, u64, u64, 1000000);
BPF_HASH(calls, u32, u64);
int f(void *ctx) {
    u64 id = bpf_get_current_pid_tgid();
    u32 pid = id >> 32;
    if (pid != FIRST && pid != SECOND) return 0;
    u64 zero = 0, *n = calls.lookup_or_try_init(&pid, &zero);
    if (!n) return 0;
    u64 key = (u64)pid << 32 | (*n)++, now = bpf_ktime_get_ns();
    last.update(&key, &now);
    return 0;
}
"""


@pytest.mark.portable
def test_entries_that_programs_insert_are_taken_once_each() -> None:
    with producing() as producers:
        with bpfnb.trace(REPLACED, name="taken", attach={"syscall:getppid": "f"}, cflags=producers.flags) as session:
            last = session.maps["last"]
            producers.begin()
            frames = [last.drain() for _ in range(5)]  # the cell but updates it: its entries are taken
            calls = producers.stop()
            frames.append(last.drain())
            assert len(last) == 0
        keys = pd.concat(frames).key
        assert sum(len(frame) > 0 for frame in frames) > 1
        assert keys.is_unique
        assert len(keys) == calls


ONE = r"""
struct prefix { u32 prefixlen; u8 data[4]; };
BPF_LPM_TRIE(nets, struct prefix, u32, 16);
BPF_HASH(plain, u32, u64);
BPF_PERCPU_ARRAY(each, u32, 4);
BPF_QUEUE(fifo, u64, 3);
BPF_STACK(lifo, u64, 3);
int f(void *ctx) { u64 n = 7; fifo.push(&n, 0); lifo.push(&n, 0); return 0; }
"""


@pytest.fixture
def one() -> Iterator[bpfnb.Session]:
    with bpfnb.trace(ONE, name="one", attach={"syscall:getpgid": "f"}) as session:
        yield session


@pytest.mark.portable
def test_a_trie_answers_as_the_kernel_does_and_so_does_a_stopped_one(one: bpfnb.Session) -> None:
    nets = one.maps["nets"]
    nets[28, b"\xc0\xa8\0\0"] = 1
    nets[8, b"\n\0\0\0"] = 2
    nets[16, b"\n\1\0\0"] = 3
    asked = [(32, b"\xc0\xa8\0\x0f"), (32, b"\xc0\xa8\0\x10"), (32, b"\n\1\2\3"), (12, b"\n\1\2\3"), (7, b"\n\0\0\0")]
    running = [nets.get(key) for key in asked]
    assert running == [1, None, 3, 2, None]
    assert [key in nets for key in asked] == [True, False, True, True, False]
    assert nets.get((33, b"\n\0\0\0")) is None
    with pytest.raises(KeyError):
        del nets[32, b"\n\1\2\3"]  # a prefix of it is there, it is not
    nets.drain()
    assert [nets.get(key) for key in asked] == [None] * len(asked)
    nets[16, b"\n\1\0\0"] = 5
    assert nets[32, b"\n\1\2\3"] == 5
    for length, data, value in ((28, b"\xc0\xa8\0\0", 1), (8, b"\n\0\0\0", 2), (16, b"\n\1\0\0", 3)):
        nets[length, data] = value
    one.stop()
    assert [nets.get(key) for key in asked] == running
    assert nets.get((33, b"\n\0\0\0")) is None


def test_one_key_is_one_system_call(one: bpfnb.Session) -> None:
    plain, each = one.maps["plain"], one.maps["each"]
    plain[5] = 50
    each[2] = 9
    assert (plain[5], plain.get(6), 5 in plain, each[2]) == (50, None, True, [9] * each.info.cpus)
    with pytest.raises(KeyError):
        each[4]
    with pytest.raises(KeyError):
        del plain[6]
    one.stop()
    assert (plain[5], plain.get(6), each[2][0]) == (50, None, 9)


@pytest.mark.parametrize(("name", "order"), [("fifo", [1, 7, 3]), portable("lifo", [3, 7, 1])])
def test_queues_and_stacks_are_pushed_popped_and_peeked_from_both_sides(
    one: bpfnb.Session, name: str, order: list[int]
) -> None:
    m = one.maps[name]
    with pytest.raises(IndexError, match=f"{name} is empty"):
        m.pop()
    with pytest.raises(IndexError):
        m.peek()
    m.push(1)
    os.getpgid(0)  # the program pushes 7; others' calls may too, and find no room
    m.push(3)
    with pytest.raises(bpfnb.ProgramError, match="cannot be changed: it has room for 3 entries"):
        m.push(4)
    assert m.peek() == order[0]
    assert [m.pop() for _ in range(2)] == order[:2]
    m.push(8)
    assert m.drain().value.tolist() == ([3, 8] if name == "fifo" else [8, 1])
    assert len(m.drain()) == 0
    m.push(5)
    m.push(6)
    one.stop()
    end = m.df.value.tolist()  # all of it, where a running one shows its head
    assert end == ([5, 6] if name == "fifo" else [6, 5])
    assert (m.peek(), m.pop(), m.drain().value.tolist()) == (end[0], end[0], end[1:])
    with pytest.raises(IndexError):
        m.pop()
    with pytest.raises(bpfnb.ProgramError, match="is stopped"):
        m.push(1)


def test_an_interrupted_drain_gives_what_it_took_to_the_next(
    one: bpfnb.Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    m = one.maps["fifo"]
    m.push(1)
    m.push(2)
    take = client.Client.take_map

    def interrupted(*arguments: Any) -> tuple[int, bytes]:
        try:
            return take(*arguments)
        finally:
            _thread.interrupt_main()

    for act in (m.pop, m.drain):
        with monkeypatch.context() as patch:
            patch.setattr(client.Client, "take_map", interrupted)
            with pytest.raises(KeyboardInterrupt):
                act()
    assert m.drain().value.tolist() == [1, 2]


def test_two_callers_never_get_the_same(one: bpfnb.Session) -> None:
    plain = one.maps["plain"]
    for key in range(500):
        plain[key] = struct.calcsize("Q")
    found: list[pd.DataFrame] = []
    threads = [threading.Thread(target=lambda: found.append(plain.drain())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(len(frame) for frame in found) == 500
