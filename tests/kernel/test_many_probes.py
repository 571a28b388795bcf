"""One function at many probes: PROBE(...), wildcards, and bpfnb_probe(ctx), against workloads that count."""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

import bpfnb
from bpfnb.session import Session

_libc = ctypes.CDLL(None, use_errno=True)
KPROBES = Path("/sys/bus/event_source/devices/kprobe/type").exists()
COUNT = r"""
BPF_HASH(counts, u32, u64);
int f(void *ctx) {
    if (bpf_get_current_pid_tgid() >> 32 == OWN) counts.increment(bpfnb_probe(ctx));
    return 0;
}
"""
OWN = f"-DOWN={os.getpid()}"


def counted(session: Session) -> dict[str, int]:
    """What a session's map has counted, by the names of the probes."""
    entries = session.maps["counts"].df
    return {session.probes[number].name: count for number, count in zip(entries.key, entries.value, strict=True)}


@pytest.mark.portable
def test_probes_that_stand_in_the_cell() -> None:
    source = r"""
    PROBE("syscall:getpgid")
    PROBE("uprobe:c:getpgid")
    int f(void *ctx) { bpf_trace_printk("f\n"); return 0; }

    PROBE("sysret:getpgid") int g(void *ctx) { bpf_trace_printk("g\n"); return 0; }
    """
    with bpfnb.trace(source) as session:
        _libc.getpgid(0)
    df = session.df
    assert sorted(df[df.pid == os.getpid()].msg) == ["f", "f", "g"]
    assert [p.requested for p in session.probes] == ["syscall:getpgid", "uprobe:c:getpgid", "sysret:getpgid"]


@pytest.mark.parametrize(
    ("probe", "error", "words"),
    [
        ("uprobe:c:mallocc", bpfnb.AttachError, "no function mallocc"),
        ("uprob:c:malloc", bpfnb.ProgramError, "unknown kind of probe 'uprob'"),
    ],
)
def test_a_probe_that_stands_in_the_cell_and_cannot_be_has_its_line(
    probe: str, error: type[bpfnb.BpfnbError], words: str
) -> None:
    with pytest.raises(error, match=words) as raised:
        bpfnb.trace(f'\nPROBE("syscall:getpgid")\nPROBE("{probe}")\nint f(void *ctx) {{ return 0; }}')
    assert raised.value.line == 3


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library with f1 to f20, another name of f1, and g."""
    folder = tmp_path_factory.mktemp("library")
    functions = "".join(f"int f{n}(int x) {{ return x + {n}; }}\n" for n in range(1, 21))
    text = functions + 'int _f1_too(int) __attribute__((alias("f1")));\nint g(int x) { return x; }\n'
    (folder / "many.c").write_text(text)
    built = ["gcc", "-O1", "-shared", "-fPIC", "-o", "libmany.so", "many.c"]
    subprocess.run(built, cwd=folder, check=True)
    return folder / "libmany.so"


@pytest.mark.portable
@pytest.mark.parametrize("time", ["compiled", "from the cache"])
def test_each_function_of_a_file_is_counted_as_itself(library: Path, time: str) -> None:
    loaded = ctypes.CDLL(str(library))
    with bpfnb.trace(COUNT, attach={f"uprobe:{library}:*f?*": "f"}, cflags=[OWN]) as session:
        for n in range(1, 21):
            for _ in range(n):
                loaded[f"f{n}"](0)
        loaded._f1_too(0)
        loaded.g(0)
        counts = counted(session)
    assert counts == {f"uprobe:{library}:f{n}": n + (n == 1) for n in range(1, 21)}
    assert [p.name for p in session.probes] == sorted(counts)
    assert {p.requested for p in session.probes} == {f"uprobe:{library}:*f?*"}
    assert session.probes[0].note == "also called _f1_too"
    assert not session.warnings


def test_a_number_is_that_of_the_probe_whatever_its_kind(library: Path) -> None:
    """Programs of one function: one at three probes, which have cookies; those of raw tracepoints; of a clock."""
    loaded = ctypes.CDLL(str(library))
    attach = [
        ("rawtracepoint:sys_enter", "f"),
        (f"uprobe:{library}:f2", "f"),
        ("tracepoint:syscalls:sys_enter_getpgid", "f"),
        ("rawtracepoint:sys_exit", "f"),
        (f"uprobe:{library}:f3", "f"),
        ("tracepoint:syscalls:sys_exit_getpgid", "f"),
        ("tracepoint:syscalls:sys_exit_getsid", "f"),
    ]
    with bpfnb.trace(COUNT, attach=attach, cflags=[OWN]) as session:
        for _ in range(2):
            loaded.f2(0)
        for _ in range(3):
            loaded.f3(0)
        for _ in range(5):
            _libc.getpgid(0)
        for _ in range(7):
            _libc.getsid(0)
        counts = counted(session)
    assert [p.name for p in session.probes] == [probe for probe, _ in attach]
    assert counts.pop("rawtracepoint:sys_enter") >= 12
    assert counts.pop("rawtracepoint:sys_exit") >= 12
    assert counts == {
        f"uprobe:{library}:f2": 2,
        f"uprobe:{library}:f3": 3,
        "tracepoint:syscalls:sys_enter_getpgid": 5,
        "tracepoint:syscalls:sys_exit_getpgid": 5,
        "tracepoint:syscalls:sys_exit_getsid": 7,
    }


def test_what_is_left_out_is_named_and_takes_no_number(library: Path) -> None:
    loaded = ctypes.CDLL(str(library))
    attach = {f"uprobe:{library}:f{n}": "f" for n in (1, 99, 2)}
    with pytest.raises(bpfnb.AttachError, match="no function f99"):
        bpfnb.trace(COUNT, attach=attach, cflags=[OWN])
    with bpfnb.trace(COUNT, attach=attach, cflags=[OWN], missing="warn") as session:
        loaded.f1(0)
        for _ in range(2):
            loaded.f2(0)
        counts = counted(session)
    assert counts == {f"uprobe:{library}:f1": 1, f"uprobe:{library}:f2": 2}
    assert [w.message for w in session.warnings] == [f"uprobe:{library}:f99 is left out: {library} has no function f99"]
    with bpfnb.trace(COUNT, attach=attach, cflags=[OWN], missing="ignore") as session:
        assert len(session.probes) == 2
    assert not session.warnings
    with pytest.raises(bpfnb.AttachError, match="no function f99"):
        bpfnb.trace(COUNT, attach={f"uprobe:{library}:f99": "f"}, cflags=[OWN], missing="warn")
    with pytest.raises(bpfnb.ProgramError, match="missing must be"):
        bpfnb.trace(COUNT, attach=attach, cflags=[OWN], missing="no")  # type: ignore[arg-type]


# --- system calls -------------------------------------------------------------------------------------------------

CALLS = r"""
BPF_HASH(counts, u32, u64);
BPF_HASH(first, u32, u64);
int f(struct pt_regs *ctx, unsigned long number) {
    u32 probe = bpfnb_probe(ctx);
    u64 seen = number;
    counts.increment(probe);
    first.update(&probe, &seen);
    return 0;
}
BPF_HASH(returns, u32, u64);
BPF_HASH(results, u32, s64);
int g(struct pt_regs *ctx) {
    u32 probe = bpfnb_probe(ctx);
    s64 seen = PT_REGS_RC(ctx);
    returns.increment(probe);
    results.update(&probe, &seen);
    return 0;
}
"""
# Calls each so often, and with int 0x80 the 32-bit call 20 (getpid), whose number among the 64-bit calls is writev's.
WORKLOAD = """
import ctypes, mmap, os, sys
libc = ctypes.CDLL(None)
page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
page.write(bytes.fromhex("b814000000cd80c3"))
at = ctypes.addressof(ctypes.c_char.from_buffer(page))
getpid_32 = ctypes.CFUNCTYPE(ctypes.c_int)(at)
print("ready", flush=True)
sys.stdin.readline()
for _ in range(3): libc.getpgid(4_000_000)
for _ in range(5): libc.getsid(0)
for _ in range(7): libc.getppid()
for _ in range(2):
    child = os.fork()
    if child == 0: os._exit(0)
    os.waitpid(child, 0)
print(os.getsid(0), flush=True)
sys.stdin.readline()
print(getpid_32() if WITH_32_BIT else 0, flush=True)
sys.stdin.readline()
"""
WITH_32_BIT = platform.machine() == "x86_64"


def named(session: Session, name: str) -> dict[str, int]:
    """A map by the names of the probes, without their kinds."""
    entries = session.maps[name].df
    names = {number: probe.name.partition(":")[2] for number, probe in enumerate(session.probes)}
    return {names[number]: value for number, value in zip(entries.key, entries.value, strict=True)}


@pytest.mark.portable
def test_system_calls_that_share_a_probe_are_told_apart() -> None:
    workload = WORKLOAD.replace("WITH_32_BIT", str(WITH_32_BIT))
    with subprocess.Popen([sys.executable, "-c", workload], stdin=-1, stdout=-1, text=True) as child:
        assert child.stdin
        assert child.stdout
        child.stdout.readline()
        with bpfnb.trace(CALLS, attach={"syscall:*": "f", "sysret:*": "g"}, follow=child.pid) as session:
            child.stdin.write("go\n")
            child.stdin.flush()
            sid = int(child.stdout.readline())
            counts, first = named(session, "counts"), named(session, "first")
            returns, results = named(session, "returns"), named(session, "results")
            child.stdin.write("go\n")
            child.stdin.flush()
            child.stdout.readline()
            later = named(session, "counts")
        began = time.monotonic()
        session.stop()
        assert time.monotonic() - began < 2
        assert not session.detaching
        child.stdin.write("go\n")
    wanted = {"getpgid": 3, "getsid": 6, "getppid": 7, "wait4": 2, "clone": 2}
    assert {name: counts.get(name) for name in wanted} == wanted
    assert {name: returns.get(name) for name in wanted} == wanted  # the two children's own return from clone is none
    assert (first["getpgid"], results["getpgid"]) == (4_000_000, -3)
    assert results["getsid"] == sid
    assert "writev" not in later
    assert {p.kind for p in session.probes} == {"tracepoint"}
    assert {p.attached for p in session.probes} == {f"tracepoint:raw_syscalls:sys_{way}" for way in ("enter", "exit")}
    assert len(session.probes) == len({(p.function, p.name) for p in session.probes}) > 500


def test_system_calls_that_share_a_probe_are_those_of_their_own_tracepoints() -> None:
    names = ["getpgid", "getsid", "getppid", "dup", "close", "newfstat", "lseek", "umask", "getuid", "getrusage"]
    source = COUNT + COUNT.replace("counts", "others").replace("int f(", "int g(")
    attach = [("tracepoint:syscalls:sys_enter_*", "f")]
    attach += [(f"tracepoint:syscalls:sys_enter_{name}", "g") for name in names]
    with bpfnb.trace(source, attach=attach, cflags=[OWN]) as session:
        for n in range(20):
            _libc.umask(_libc.umask(0))
            os.close(os.dup(0))
            os.fstat(0)
            resource.getrusage(resource.RUSAGE_SELF)
            if n % 2:
                _libc.getpgid(0)
        session.stop()
    shared, own = named(session, "counts"), named(session, "others")
    own_names = {f"syscalls:sys_enter_{name}" for name in names}
    assert own
    assert {name: count for name, count in shared.items() if name in own_names} == own


@pytest.mark.parametrize("time", ["compiled", "from the cache"])
def test_what_matches_two_patterns_is_attached_once(time: str) -> None:
    with bpfnb.trace(COUNT, attach={"syscall:getp*": "f", "syscall:*": "f"}, cflags=[OWN]) as session:
        _libc.getpgid(0)
        counts = counted(session)
    assert counts["syscall:getpgid"] == 1
    assert len(session.probes) == len({p.name for p in session.probes})


# --- kernel functions ---------------------------------------------------------------------------------------------


@pytest.mark.portable
@pytest.mark.skipif(not KPROBES, reason="this kernel has no kprobes: the VM lane runs it on 6.1 and 6.12")
def test_kernel_functions_that_match_are_counted_as_themselves() -> None:
    """kprobe:vfs_* is one link for many functions; fentry:vfs_f* a program for each."""
    attach = {"kprobe:vfs_*": "f", "kretprobe:vfs_f*": "f", "fentry:vfs_f*": "f"}
    file = os.memfd_create("many")
    with bpfnb.trace(COUNT, attach=attach, cflags=[OWN]) as session:
        for _ in range(3):
            os.posix_fallocate(file, 0, 4096)
        for _ in range(5):
            os.fsync(file)
        counts = counted(session)
    os.close(file)
    for kind in ("kprobe", "kretprobe", "fentry"):
        assert counts[f"{kind}:vfs_fallocate"] == 3, kind
        assert counts[f"{kind}:vfs_fsync_range"] == 5, kind
    assert len([p for p in session.probes if p.requested == "kprobe:vfs_*"]) > 20


@pytest.mark.skipif("avx512bw" not in Path("/proc/cpuinfo").read_text(), reason="this CPU has no AVX-512")
def test_a_uprobe_never_has_processes_go_on_with_wrong_memory(tmp_path: Path) -> None:
    """The function stores what it is given, 64 times: with AVX-512, in a library of its own."""
    (tmp_path / "store.s").write_text(
        ".globl store\n.type store,@function\nstore:\nvpbroadcastb %esi,%zmm16\nvmovdqu64 %zmm16,(%rdi)\nret\n"
        '.size store,.-store\n.section .note.GNU-stack,"",@progbits\n'
    )
    subprocess.run(["gcc", "-shared", "-nostdlib", "-o", "libstore.so", "store.s"], cwd=tmp_path, check=True)
    library, stored = ctypes.CDLL(str(tmp_path / "libstore.so")), ctypes.create_string_buffer(64)
    probe = f"uprobe:{tmp_path}/libstore.so:store"
    with suppress(bpfnb.AttachError), bpfnb.trace(COUNT, attach={probe: "f"}, cflags=[OWN]):
        library.store(stored, 7)
        assert stored.raw == bytes([7]) * 64
