"""A cell that comes again unchanged: without a compiler, and just as if it had been compiled."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from portable import among
from processes import children

import bpfnb
from bpfnb.hosts import default_host

_libc = ctypes.CDLL(None)
FLAGS = [f"-DPID={os.getpid()}"]
ATTACH = {"syscall:getpgid": "f"}

PRINTK = 'int f(void *ctx) { if (bpf_get_current_pid_tgid() >> 32 == PID) bpf_trace_printk("once\\n"); return 0; }'

CELLS = {
    "printk": PRINTK,
    "formats of many kinds": """
#define NAME "from a macro "
static inline void say(u64 x) { bpf_trace_printk("%d in a function of its own\\n", x); }
int f(void *ctx) {
    u64 id = bpf_get_current_pid_tgid();
    char comm[16] = {};
    if (id >> 32 != PID) return 0;
    bpf_get_current_comm(comm, sizeof(comm));
    bpf_trace_printk("");
    bpf_trace_printk("x\\n");
    bpf_trace_printk(NAME "%s and a text of some length, longer than what a register can hold\\n", comm);
    for (int i = 0; i < 3; i++)
        bpf_trace_printk("%d\\n", i);
    if (bpf_ktime_get_ns() & 1) bpf_trace_printk("odd\\n"); else bpf_trace_printk("even\\n");
    say(7);
    return 0;
}
""",
    "perf": """
struct data_t { u64 ts; u32 pid; char comm[16]; struct { s16 x; u8 bits:3; } in; };
BPF_PERF_OUTPUT(events);
int f(void *ctx) {
    if (bpf_get_current_pid_tgid() >> 32 != PID) return 0;
    struct data_t data = { .ts = bpf_ktime_get_ns(), .pid = PID, .in = { -3, 5 } };
    bpf_get_current_comm(data.comm, sizeof(data.comm));
    events.perf_submit(ctx, &data, sizeof(data));
    return 0;
}
""",
    "ring, and a tracepoint's arguments": """
struct data_t { u64 a; s64 b; };
BPF_RINGBUF_OUTPUT(events, 8);
TRACEPOINT_PROBE(syscalls, sys_enter_getpgid) {
    if (bpf_get_current_pid_tgid() >> 32 != PID) return 0;
    struct data_t data = { args->pid, -1 };
    events.ringbuf_output(&data, sizeof(data), 0);
    return 0;
}
""",
    "maps of many kinds": """
struct key_t { u32 pid; char what[4]; };
struct value_t { u64 n; s16 least; };
BPF_HASH(hash, struct key_t, struct value_t);
BPF_ARRAY(array, u64, 3);
BPF_PERCPU_ARRAY(each, u64, 2);
BPF_TABLE("lru_hash", u32, u64, lru, 100);
BPF_TABLE("percpu_hash", u32, u64, each_hash, 10);
BPF_HISTOGRAM(dist);
BPF_LPM_TRIE(trie, struct { u32 length; u32 address; }, u32);
BPF_QUEUE(queue, u32, 10);
BPF_STACK_TRACE(stacks, 64);
BPF_HASH(unused, u32);
int f(void *ctx) {
    if (bpf_get_current_pid_tgid() >> 32 != PID) return 0;
    struct key_t key = { 1, "abc" };
    struct value_t zero = {}, *value = hash.lookup_or_try_init(&key, &zero);
    if (value) { value->n += 1; value->least = -5; }
    u32 two = 2;
    array.increment(two);
    lru.increment(two);
    dist.increment(bpf_log2l(1000));
    queue.push(&two, 0);
    stacks.get_stackid(ctx, BPF_F_USER_STACK);
    return 0;
}
""",
    "a type that takes all headers, and a warning": """
BPF_ARRAY(sizes, u64, 1);
int f(void *ctx) {
    int zero = 0;
    u64 *size = sizes.lookup(&zero);
    if (bpf_get_current_pid_tgid() >> 32 == PID && size) *size = sizeof(struct trace_event_raw_sched_process_fork);
    if (zero = 1) return 0;
    return 0;
}
""",
}


def fresh(cell: str) -> str:
    """The same cell, but never seen before."""
    return f"{cell}// {uuid.uuid4()}\n"


def start(cell: str, name: str = "s", flags: list[str] | None = None) -> bpfnb.Session:
    return bpfnb.trace(cell, name=name, attach={} if "TRACEPOINT_PROBE" in cell else ATTACH, cflags=flags or FLAGS)


def compiler() -> int:
    """The process that compiles for our tracer."""
    (child,) = children(default_host.connect().hello().pid)
    return child


def _wakeups(pid: int) -> int:
    """How often a process has gone to sleep, once it is asleep."""
    while True:
        text = Path(f"/proc/{pid}/status").read_text()
        time.sleep(0.05)
        if Path(f"/proc/{pid}/status").read_text() == text:
            return int(text.partition("\nvoluntary_ctxt_switches:")[2].split()[0])


def compiles(act: Any) -> bool:
    """Whether the compiling process is asked for anything while ``act`` runs."""
    pid = compiler()
    before = _wakeups(pid)
    act()
    return _wakeups(pid) > before


def observed(cell: str) -> dict[str, Any]:
    """All that a session says, but for what is different every time."""
    with start(cell) as session:
        begun = {name: len(session.maps[name].df) for name in ("hash", "dist") if name in session.maps}
        for _ in range(3):
            _libc.getpgid(0)
    frames = {name: output.df for name, output in session.outputs.items()}
    for df in frames.values():
        if "msg" in df:
            df["msg"] = df.msg.replace({"odd": "either", "even": "either"})
    return {
        "begun": begun,
        "probes": session.probes,
        "warnings": session.warnings,
        "lost": session.lost,
        "outputs": {
            name: (
                df.dtypes.astype(str).to_dict(),
                df.drop(columns=["time", "ts", "cpu", "flags"], errors="ignore").to_dict("records"),
            )
            for name, df in frames.items()
        },
        "maps": {
            name: (repr(m).replace(name, ""), m.df.dtypes.to_dict(), m.df.astype(str).to_dict("records"))
            for name, m in session.maps.items()
        },
    }


@pytest.mark.parametrize("name", among(CELLS, ["printk", "perf"]))
def test_again_is_the_same_as_compiled(name: str) -> None:
    cell = fresh(CELLS[name])
    seen: list[dict[str, Any]] = []
    assert compiles(lambda: seen.append(observed(cell)))
    assert not compiles(lambda: seen.append(observed(cell)))
    compiled, again = seen
    assert again == compiled
    assert any(d.severity == "warning" for d in compiled["warnings"]) == ("a warning" in name)
    assert any(rows for _, rows in compiled["outputs"].values()) or any(r for *_, r in compiled["maps"].values())


@pytest.mark.portable
def test_two_at_once_see_each_its_own() -> None:
    """GIVEN one cell three times at once, compiled and not THEN nobody reads another's lines or counts in its map."""
    cell = fresh("""
    BPF_ARRAY(count, u64, 1);
    int f(void *ctx) {
        if (bpf_get_current_pid_tgid() >> 32 != PID) return 0;
        count.atomic_increment(0);
        bpf_trace_printk("x\\n");
        return 0;
    }
    """)
    with start(cell, "one") as one:
        _libc.getpgid(0)
        with start(cell, "two") as two, start(cell, "three") as three:
            _libc.getpgid(0)
            _libc.getpgid(0)
        _libc.getpgid(0)
    assert [len(session.df) for session in (one, two, three)] == [4, 2, 2]
    assert [session.maps["count"][0] for session in (one, two, three)] == [4, 2, 2]
    assert two.lost == three.lost == 0


@contextmanager
def asleep(pid: int) -> Iterator[None]:
    """A process that does not answer; woken after a while, so that who waits for it fails and does not hang."""
    os.kill(pid, signal.SIGSTOP)
    alarm = threading.Timer(10, os.kill, (pid, signal.SIGCONT))
    alarm.start()
    try:
        yield
    finally:
        alarm.cancel()
        alarm.join()
        os.kill(pid, signal.SIGCONT)


def test_no_compiler_is_needed() -> None:
    cell = fresh(PRINTK)
    start(cell).stop()
    with asleep(compiler()):
        begun = time.monotonic()
        with start(cell) as session:
            took = time.monotonic() - begun
            _libc.getpgid(0)
    assert took < 5
    assert session.df.msg.tolist() == ["once"]


def test_what_is_changed_is_compiled() -> None:
    cell = fresh(PRINTK)
    start(cell).stop()
    assert not compiles(lambda: start(cell).stop())
    assert compiles(lambda: start(cell, flags=[*FLAGS, "-DOTHER"]).stop())
    assert compiles(lambda: start(cell.replace("once", "twice")).stop())
    assert compiles(lambda: start("\n" + cell).stop())
    assert not compiles(lambda: start(cell).stop())


def test_an_included_file_is_read_again(tmp_path: Path) -> None:
    header = tmp_path / "words.h"
    said = []
    cell = f'#include "{header}"\n' + PRINTK.replace('"once', 'WORD "')
    for word in ("one", "two"):
        header.write_text(f'#define WORD "{word}"\n')
        with start(cell) as session:
            _libc.getpgid(0)
        said += session.df.msg.tolist()
    assert said == ["one", "two"]


def test_an_error_is_as_clear_the_second_time() -> None:
    """A cell whose probe cannot be attached is instantiated too; one that cannot be loaded is not cached."""
    cell = fresh(PRINTK)
    for _ in range(2):
        with pytest.raises(bpfnb.AttachError, match="no tracepoint no:such"):
            bpfnb.trace(cell, name="s", attach={"tracepoint:no:such": "f"}, cflags=FLAGS)
    refused = fresh("int f(int *ctx) { return *(int *)0; }")
    messages = set()
    for _ in range(2):
        with pytest.raises(bpfnb.VerifierError) as caught:
            start(refused)
        messages.add((str(caught.value), caught.value.line, bool(caught.value.log)))
    assert len(messages) == 1


# --- the worker's side by itself ----------------------------------------------------------------------------------

WORKER = """
import os, sys
from bpfnb.language.program import parse
from bpfnb.tracer.link import kinds, syscall
from bpfnb.tracer.compile.compiler import Compiler
from bpfnb.tracer.compile.jobs import CELL_PATH
from bpfnb.tracer.compile.engine import Engine
from bpfnb.tracer.compile.rewrite import rewrite
from msgspec.structs import replace

engine = Engine()
compiler = Compiler(engine)

def build(source, tag):
    program = parse(source, ATTACH, FLAGS)
    text = rewrite(program, tag=tag if program.prints else "", syscall_mode=syscall.mode(), path=CELL_PATH)
    loads = dict.fromkeys(kinds.spec(probe) for probe in program.probes)
    tables = [table.name for table in (*program.outputs, *program.maps)]
    return compiler.build(text, FLAGS, list(loads), tables)[0]

def cached():
    (built,) = compiler._cache._values.values()
    return built.cached

def forget():
    compiler._cache._values.clear()

def descriptors():
    return sorted(os.listdir("/proc/self/fd"))
"""


def worker(code: str) -> str:
    constants = f"ATTACH = {ATTACH!r}\nFLAGS = {FLAGS!r}\nCELLS = {CELLS!r}\nPRINTK = {PRINTK!r}\n"
    ending = "\ncompiler.close()\nsys.stdout.flush()\nos._exit(0)\n"
    done = subprocess.run(
        [sys.executable, "-c", constants + WORKER + code + ending],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_what_is_filled_in_is_what_the_compiler_would_have_written() -> None:
    """GIVEN a cell compiled twice, with two tags THEN each cached program, filled in alike, gives the same code."""
    said = worker("""
for name, cell in CELLS.items():
    if "TRACEPOINT_PROBE" in cell:
        continue
    instances = []
    for tag in ("abcdefgh", "ZYXWVUTS"):
        forget()
        build(cell, tag).close()
        instances.append(cached())
    one, two = instances
    assert replace(one, programs=()) == replace(two, programs=()), name
    for a, b in zip(one.programs, two.programs, strict=True):
        assert a.instructions != b.instructions or not a.tags
        fds = range(100, 100 + len(one.maps))
        assert a.filled(fds, b"ABCDEFGH") == b.filled(fds, b"ABCDEFGH"), name
        print(name, len(a.tags) > 0)
""")
    assert said.splitlines() == [
        f"{name} {'printk' in cell}" for name, cell in CELLS.items() if "TRACEPOINT_PROBE" not in cell
    ]


def test_a_cached_program_that_the_kernel_refuses_is_compiled() -> None:
    """GIVEN instructions that do not pass, maps that cannot be made or types that are none THEN the cell works."""
    said = worker("""
from bpfnb.tracer.compile.cache import Code

source = CELLS["maps of many kinds"]
build(source, "").close()
held = descriptors()
for spoil in (
    lambda r: replace(r, programs=(replace(r.programs[0], instructions=bytes(len(r.programs[0].instructions))),)),
    lambda r: replace(r, maps=(*r.maps[:-1], r.maps[-1]._replace(type=9999))),
    lambda r: replace(r, btf=b"none"),
):
    ((key, built),) = compiler._cache._values.items()
    broken = replace(built, cached=spoil(built.cached))
    compiler._cache.put(key, broken)
    module = build(source, "")
    print(len(module.programs), len(module.maps), compiler._cache.get(key) is not broken)
    module.close()
    assert descriptors() == held
    good = compiler._cache.get(key)
    build(source, "").close()
    assert compiler._cache.get(key) is good
    assert descriptors() == held
""")
    assert said.splitlines() == ["1 10 True"] * 3


@pytest.mark.parametrize(
    "cell",
    [
        "BPF_PROG_ARRAY(next, 4);\nint f(void *ctx) { next.call(ctx, 1); return 0; }",
        'BPF_TABLE("hash", u32, int, inner, 10);\nBPF_HASH_OF_MAPS(outer, u32, "inner", 10);\n'
        "int f(void *ctx) { u32 k = 1; return outer.lookup(&k) != 0; }",
        'int f(void *ctx) { char x[] = __TIME__; bpf_trace_printk("%s", x); return 0; }',
    ],
)
def test_what_cannot_be_written_down_is_compiled(cell: str) -> None:
    assert worker(f"build({cell!r}, 'abcdefgh').close()\nprint(len(compiler._cache._values))") == "0\n"
