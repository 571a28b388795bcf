"""Maps that count: exact from two CPUs at once, refused updates counted, room where the cell states no size.

What was really done is known from the workload: calls of getpriority with a number no other program uses, each with a
key of its own choice.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterable
from pathlib import Path

import pytest
from portable import among

import bpfnb
from bpfnb.hosts import default_host
from bpfnb.session import Session

MAGIC = 0x2BCD1234
BEGIN = f"int f(struct pt_regs *ctx, int which, int who) {{ if (which != {MAGIC}) return 0; "
_libc = ctypes.CDLL(None)
CPUS = sorted(os.sched_getaffinity(0))[:2]


def trace(body: str, maps: str, name: str = "counting") -> Session:
    return bpfnb.trace(f"{maps}\n{BEGIN}{body} return 0; }}", name=name, attach={"syscall:getpriority": "f"})


def call(keys: Iterable[int]) -> None:
    """Run the function once a key."""
    for key in keys:
        _libc.getpriority(MAGIC, key)


def call_from_two_cpus(times: int) -> int:
    """Run the function so often on each of two CPUs at the same time; how often altogether."""
    work = f"""
import ctypes, os, sys
os.sched_setaffinity(0, {{int(sys.argv[1])}})
call = ctypes.CDLL(None).getpriority
print(flush=True)
sys.stdin.read(1)
for _ in range({times}):
    call({MAGIC}, 7)
"""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    workers = [subprocess.Popen([sys.executable, "-c", work, str(cpu)], **pipes) for cpu in CPUS]  # type: ignore[call-overload]
    for worker in workers:
        worker.stdout.readline()
    for worker in workers:
        worker.stdin.write(b"x")
        worker.stdin.flush()
    for worker in workers:
        assert worker.communicate()[0] == b""
        assert worker.returncode == 0
    return times * len(workers)


# --- exact counts ---------------------------------------------------------------------------------------------------

KINDS = """
struct key { u32 a; char name[12]; };
BPF_HASH(hash, u32);
BPF_HASH(narrow, u32, u32, 64);
BPF_HASH(keyed, struct key, s64, 10);
BPF_TABLE("hash", u32, u64, table, 100);
BPF_ARRAY(array, u64, 8);
BPF_ARRAY(narrow_array, u32, 8);
BPF_HISTOGRAM(hist);
BPF_HISTOGRAM(int_hist, int, 10);
BPF_HISTOGRAM(keyed_hist, struct key);
BPF_PERCPU_HASH(percpu_hash, u32);
BPF_PERCPU_ARRAY(percpu_array, u64, 8);
BPF_TABLE("percpu_array", u32, u64, percpu_table, 8);
BPF_TABLE("lru_hash", u32, u64, lru_hash, 1000);
BPF_TABLE("lru_percpu_hash", u32, u64, lru_percpu_hash, 1000);
"""


@pytest.mark.portable
def test_increments_from_two_cpus_are_exact_on_every_kind_of_map() -> None:
    times = {"narrow": 3, "keyed": -2, "narrow_array": 4}
    names = [line.split("(")[1].split(")")[0].split(",") for line in KINDS.splitlines() if line.startswith("BPF_")]
    maps = [next(word.strip() for word in args if word.strip().islower() and '"' not in word and
                 word.strip() not in ("u32", "u64", "s64", "int")) for args in names]  # fmt: skip
    assert len(maps) == 14
    body = 'struct key k = {.name = "abc"}; int slot = 3; '
    for name in maps:
        key = "k" if name.startswith("keyed") else "slot"
        by = f", {times[name]}" if name in times else ""
        method = "atomic_increment" if name == "lru_hash" else "increment"
        body += f"{name}.{method}({key}{by}); "
    with trace(body, KINDS) as session:
        calls = call_from_two_cpus(40_000)
        counts = {name: int(session.maps[name].reduced("sum").value.sum()) for name in maps}
    assert counts == {name: calls * times.get(name, 1) for name in maps}
    assert not any(session.maps[name].lost for name in maps)


def test_new_keys_made_on_two_cpus_at_once_are_counted_once_each() -> None:
    """Every call has two keys nobody had before, or the other CPU is just making."""
    body = "u32 key = bpf_ktime_get_ns() >> 12; counts.increment(key); pcpu.increment(key); lru.increment(key);"
    maps = 'BPF_HASH(counts, u32); BPF_PERCPU_HASH(pcpu, u32); BPF_TABLE("lru_hash", u32, u64, lru, 2000000);'
    with trace(body, maps) as session:
        calls = call_from_two_cpus(20_000)
        assert [int(session.maps[name].reduced().value.sum()) for name in ("counts", "pcpu", "lru")] == [calls] * 3


def test_the_maps_example_counts_every_read_of_two_dd() -> None:
    source = """
    BPF_HASH(bytes, u32, u64);
    BPF_HISTOGRAM(sizes);
    int f(struct pt_regs *ctx) {
        char name[16];
        long n = PT_REGS_RC(ctx);
        if (n <= 0) return 0;
        bpf_get_current_comm(&name, sizeof(name));
        if (name[0] != 'd' || name[1] != 'd' || name[2] || n != 1) return 0;
        bytes.increment(0, n);
        sizes.increment(bpf_log2l(n));
        return 0;
    }
    """
    with bpfnb.trace(source, name="reads", attach={"sysret:read": "f"}) as session:
        dd = ["dd", "if=/dev/zero", "of=/dev/null", "bs=1", "count=50000", "status=none"]
        running = [subprocess.Popen(dd, preexec_fn=lambda cpu=cpu: os.sched_setaffinity(0, {cpu})) for cpu in CPUS]
        assert [process.wait() for process in running] == [0] * len(CPUS)
    assert session.maps["bytes"][0] == 50_000 * len(CPUS)
    assert session.maps["sizes"].hist()["count"].to_dict() == {1: 50_000 * len(CPUS)}


def test_values_of_two_bytes_count_as_bcc_has_them_and_are_noted() -> None:
    maps = "BPF_HASH(counts, u32, u16); BPF_PERCPU_ARRAY(each, u16, 4);"
    with trace("counts.increment(who, 3);\ncounts.increment(9); each.increment(0);", maps) as session:
        call([1, 1, 2])
        assert dict(session.maps["counts"].items()) == {1: 6, 2: 3, 9: 3}
        (note,) = session.warnings
        assert (note.severity, note.line) == ("note", 2)
        assert "counts" in note.message
        assert note.message.endswith("exact: values of 4 or 8 bytes")


# --- refused updates ------------------------------------------------------------------------------------------------

FILLING = {
    "increment": "m.increment(who);",
    "update": "u32 k = who; u64 v = 1; m.update(&k, &v);",
    "insert": "u32 k = who; u64 v = 1; m.insert(&k, &v);",
    "lookup_or_try_init": "u32 k = who; u64 v = 1; u64 *p = m.lookup_or_try_init(&k, &v); if (p) *p = 5;",
    "lookup_or_init": "u32 k = who; u64 v = 1; u64 *p = m.lookup_or_init(&k, &v); *p = 5;",
}


@pytest.mark.parametrize("method", among(FILLING, ["increment", "update"]))
def test_what_a_full_map_refuses_is_counted(method: str) -> None:
    with trace(FILLING[method], "BPF_HASH(m, u32, u64, 1024);") as session:
        m = session.maps["m"]
        assert m.lost == 0
        call(range(1300))
        assert m.lost == 276
        with pytest.warns(RuntimeWarning, match=r"276 updates of m were refused: it is full, with room for 1,024 ent"):
            df = m.df
        assert len(df) + df.attrs["lost"] == 1300
        call([0])  # there is this one
        assert m.lost == 276
    assert m.lost == 276
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a map says so once
        assert m.reduced().attrs["lost"] == 276
    assert session.lost == 0
    assert "m (hash, 276 updates refused)" in repr(session)
    assert "276 updates refused" in session._repr_html_()
    assert "276 updates refused" in repr(m)
    assert "it is full" in m._repr_html_()


def test_the_warning_points_at_the_users_line() -> None:
    with trace("m.increment(who);", "BPF_HASH(m, u32, u64, 1);") as session:
        call(range(3))
        with pytest.warns(
            RuntimeWarning, match=r"2 updates of m .* room for 1 entry; declare it larger \(line 1\)"
        ) as caught:
            session.maps["m"].hist("linear")
    assert caught[0].filename == __file__


def test_an_index_past_the_end_of_an_array_is_counted() -> None:
    body = """
        int i = who; u64 v = 2; a.increment(who); b.update(&i, &v);
        u64 *p = c.lookup_or_try_init(&i, &v); if (p) *p = 1; s.increment(who);
    """
    maps = """
        BPF_ARRAY(a, u64, 10); BPF_PERCPU_ARRAY(b, u64, 10);
        BPF_TABLE("array", int, u64, c, 10); BPF_HISTOGRAM(s, int, 10);
    """
    with trace(body, maps) as session:
        call(range(25))
        assert [session.maps[name].lost for name in "abcs"] == [15] * 4
        with pytest.warns(
            RuntimeWarning, match="15 updates of a were refused: the index is past its end: it has 10 ent"
        ):
            assert session.maps["a"].df.value.sum() == 10


def test_a_histogram_without_a_stated_size_has_room() -> None:
    with trace(
        "ms.increment(who); power.increment(bpf_log2l(who - 100));", "BPF_HISTOGRAM(ms); BPF_HISTOGRAM(power);"
    ) as s:
        call(range(50))
        ms = s.maps["ms"]
        assert (len(ms), len(ms.df), ms.df.value.sum()) == (64, 64, 50)  # as bcc has them, until more are needed
        call(range(50, 400))
        assert ms.hist("linear")["count"].tolist() == [1] * 400
        assert len(ms.df) == len(ms) == 400
        call([4_095, 4_096, -1])
        assert ms.lost == 2
        # who - 100: negative ones, which an unsigned long holds as its greatest, are in the bucket of 2**63 and more.
        assert s.maps["power"].hist()["count"][64] == 101
        assert s.maps["power"].hist()["count"].sum() == 403
        assert s.maps["power"].lost == 0
        with pytest.warns(RuntimeWarning, match="2 updates of ms were refused: the index is past"):
            assert ms.hist("linear")["count"].sum() == 401


@pytest.mark.portable
def test_maps_without_a_stated_size_have_room_where_the_kernel_need_not_allocate_it() -> None:
    """Kernels before 6.1 do not run tracing programs with such maps: there they have bcc's 10,240."""
    maps = "struct key { u32 slot, pid; }; BPF_HASH(h, u32); BPF_PERCPU_HASH(p, u32); BPF_HISTOGRAM(d, struct key);"
    body = "struct key k = {who & 15, who}; h.increment(who); p.increment(who); d.increment(k);"
    with trace(body, maps) as session:
        assert [session.maps[name].info.max_entries for name in "hpd"] == [1 << 20] * 3
        call(range(11_000))
        assert [len(session.maps[name]) for name in "hpd"] == [11_000] * 3
        assert [session.maps[name].lost for name in "hpd"] == [0] * 3
        assert session.maps["d"].hist("linear").to_numpy()[:, 3:].sum() == 11_000


def test_keys_of_a_per_cpu_hash_are_made_with_interrupts_off() -> None:
    """Allocated as they come, every other key would have had no memory."""
    source = """
        BPF_PERCPU_HASH(counts, u32);
        BPF_ARRAY(made, u64, 1);
        RAW_TRACEPOINT_PROBE(sched_switch) {
            u32 key = bpf_get_prandom_u32();
            for (int i = 0; i < 4; i++) { counts.increment(key + i); made.increment(0); }
            return 0;
        }
    """
    with bpfnb.trace(source, name="switches") as session:
        for _ in range(200):
            time.sleep(0.0005)
    counts, made = session.maps["counts"], session.maps["made"][0]
    assert made >= 800
    assert counts.reduced().value.sum() + counts.lost == made
    assert made > 10_240 or not counts.lost


def test_stacks_that_find_their_place_taken_are_counted() -> None:
    maps = "BPF_STACK_TRACE(stacks, 2); BPF_ARRAY(taken, u64, 1); BPF_HASH(counts, int);"
    body = """
        int id = stacks.get_stackid(ctx, BPF_F_USER_STACK);
        if (id == -17) taken.increment(0);
        counts.increment(id);
    """

    def deep(depth: int) -> None:
        if depth:
            deep(depth - 1)
        else:
            _libc.getpriority(MAGIC, 1)

    with trace(body, maps) as session:
        for depth in range(0, 40, 2):
            deep(depth)
            sorted([1, 2], key=lambda key: _libc.getpriority(MAGIC, key))
        taken = session.maps["taken"][0]
        assert taken > 0
        assert session.maps["stacks"].lost == taken
        with pytest.warns(RuntimeWarning, match="another stack had the place its hash gives it, in a map of 2 entries"):
            folded = session.maps["stacks"].folded(session.maps["counts"].df.rename(columns={"key": "stack"}))
        assert folded.attrs["lost"] == taken


def test_a_stack_that_there_was_not_is_no_loss() -> None:
    with trace("int id = stacks.get_stackid(ctx, 255); counts.increment(id);",
               "BPF_STACK_TRACE(stacks, 64); BPF_HASH(counts, int);") as session:  # fmt: skip
        call([1, 2])
        assert dict(session.maps["counts"].items()) == {-14: 2}  # EFAULT: all of its frames were to be skipped
        assert session.maps["stacks"].lost == 0


def test_a_full_queue_and_a_full_trie_refuse() -> None:
    maps = """
        struct net { u32 prefixlen; u32 data; };
        BPF_QUEUE(q, u32, 10);
        BPF_LPM_TRIE(t, struct net, u32, 10);
    """
    with trace("u32 k = who; q.push(&k, 0); struct net n = {32, k}; t.update(&n, &k);", maps) as session:
        call(range(14))
        assert (session.maps["q"].lost, session.maps["t"].lost) == (4, 4)


def test_a_key_that_is_there_is_not_lost_to_insert() -> None:
    with trace("u32 k = 1; u64 v = who; m.insert(&k, &v);", "BPF_HASH(m, u32);") as session:
        call(range(5))
        assert dict(session.maps["m"].items()) == {1: 0}
        assert session.maps["m"].lost == 0


@pytest.mark.parametrize("condition", ["defined(NOTHING)", "!defined(NOTHING)"])
def test_a_map_that_the_preprocessor_chooses_counts_as_what_it_is(condition: str) -> None:
    maps = f"""
#if {condition}
BPF_ARRAY(m, u64, 4);
#else
BPF_HASH(m, int, u64);
#endif"""
    with trace("m.increment(who);", maps) as session:
        call([1, 3, 3])
        assert session.maps["m"].lost == 0
        assert {key: value for key, value in session.maps["m"].items() if value} == {1: 1, 3: 2}


def test_the_value_of_a_call_is_what_it_was() -> None:
    body = """
        u32 k = who; u64 v = 1;
        int key = -m.update(&k, &v); seen.update(&key, &v);
        key = 100 - m.insert(&k, &v); seen.update(&key, &v);
    """
    with trace(body, "BPF_HASH(m, u32, u64, 1); BPF_HASH(seen, int);") as session:
        call([1, 2])
        assert set(session.maps["seen"].keys()) == {0, 7, 117, 107}  # E2BIG is 7, EEXIST 17


def test_results_of_submits_are_counted() -> None:
    maps = "BPF_PERF_OUTPUT(p); BPF_RINGBUF_OUTPUT(r, 8); BPF_HASH(m, int); BPF_HASH(n, int);"
    body = """
        u64 e = who;
        m.increment(p.perf_submit(ctx, &e, sizeof(e))); m.increment(r.ringbuf_output(&e, sizeof(e), 0), 2);
        n.increment(5, p.perf_submit(ctx, &e, sizeof(e)) + 1); n.increment(m.update(&which, &e));
    """
    with trace(body, maps) as session:
        call(range(3))
    assert session.maps["m"].get(0) == 9
    assert dict(session.maps["n"].items()) == {5: 3, 0: 3}
    assert (session.outputs["p"].rows, session.outputs["r"].rows) == (6, 3)


def test_a_full_lru_map_says_so() -> None:
    """What it evicts nobody counts."""
    maps = 'BPF_TABLE("lru_hash", u32, u64, lru, 4096); BPF_TABLE("lru_percpu_hash", u32, u64, each, 4096);'
    with trace("lru.increment(who); each.increment(who);", maps) as session:
        call(range(100))
        assert not any(session.maps[name].df.attrs["full"] for name in ("lru", "each"))
        assert "evicted" not in session.maps["lru"]._repr_html_()
        call(range(5000))
        assert all(session.maps[name].df.attrs["full"] for name in ("lru", "each"))
        assert session.maps["lru"].df.attrs["lost"] == 0
        assert "evicted" in session.maps["lru"]._repr_html_()


@pytest.mark.ends_tracer
def test_the_count_outlives_the_tracer() -> None:
    session = trace("m.increment(who);", "BPF_HASH(m, u32, u64, 1);")
    call(range(5))
    os.kill(default_host.connect().hello().pid, signal.SIGKILL)
    assert session.wait(10)
    assert session.state == "failed"
    assert session.maps["m"].lost == 4


def test_refusals_are_counted_beside_the_losses_of_outputs() -> None:
    maps = "BPF_RINGBUF_OUTPUT(events, 1); BPF_HASH(m, u32, u64, 2);"
    with trace("u32 k = who; events.ringbuf_output(&k, sizeof(k), 0); m.increment(k);", maps) as session:
        call(range(7))
    assert (session.lost, session.maps["m"].lost) == (0, 5)
    assert sorted(session.df.value) == list(range(7))


def test_an_unchanged_cell_counts_anew() -> None:
    for _ in range(2):  # the second time it is loaded without compiling
        with trace("m.increment(who);", "BPF_HASH(m, u32, u64, 2);") as session:
            call(range(7))
        assert session.maps["m"].lost == 5


# --- notes ----------------------------------------------------------------------------------------------------------


def test_an_addition_that_is_not_exact_is_noted_and_the_exact_way_works() -> None:
    def session(addition: str) -> Session:
        return trace(f"u32 k = 1; u64 z = 0;\nu64 *v = m.lookup_or_try_init(&k, &z); if (!v) return 0;\n{addition}",
                     "BPF_HASH(m, u32);")  # fmt: skip

    with session("(*v)++;") as noted:
        (note,) = noted.warnings
    assert (note.severity, note.line) == ("note", 4)
    assert "line 4: two CPUs can add to this value of m" in repr(noted)
    exact = note.message.rpartition("exact: ")[2]
    with session(f"{exact};") as exactly:
        assert exactly.warnings == ()
        calls = call_from_two_cpus(20_000)
        assert exactly.maps["m"][1] == calls


def test_maps_of_an_included_header_are_counted_and_noted_in_its_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "maps.h").write_text(
        "struct unused { int a; };\n"
        "BPF_HASH(m, u32, u64, 2);\n"
        "static inline void add(u32 k) { u64 *v = m.lookup(&k); if (v) *v += 2; }\n"
    )
    monkeypatch.chdir(tmp_path)
    with trace("add(who); m.increment(who);", '#include "maps.h"\n') as session:
        call(range(5))
        with pytest.warns(RuntimeWarning, match=r"3 updates .* larger \(line 2 of maps.h\)"):
            assert len(session.maps["m"].df) == 2
        (note,) = session.warnings
        assert note.line == 1
        assert "__sync_fetch_and_add(v, 2) (in maps.h, line 3)" in note.message
