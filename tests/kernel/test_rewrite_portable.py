"""What rewrite.py promises, on the kernel under us: a function on a syscall reads the same as kprobe and as tracepoint.

Each program is compiled and attached by plain bcc in a process of its own (this file, run as a script), which then
makes the system call with arguments it knows and reports what the program saw.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

KPROBES = Path("/sys/bus/event_source/devices/kprobe/type").exists()
MODE = "kprobe" if KPROBES else "tracepoint"

# out[i] is what a test looks at; MINE is true in the process that makes the calls.
HEAD = """\
#include <uapi/linux/ptrace.h>
BPF_ARRAY(out, u64, 16);
static inline void put(int i, u64 value) { out.update(&i, &value); }
static inline void add(int i, u64 value) { u64 *old = out.lookup(&i); if (old) lock_xadd(old, value); }
#define MINE ((bpf_get_current_pid_tgid() >> 32) == PID)
"""


# --- the process that traces itself ----------------------------------------------------------------------------------


def _worker() -> None:
    """Reads a job from stdin: the text, its probes and the calls to make. Writes what the program saw."""
    job = json.load(sys.stdin)
    if not Path("/sys/kernel/tracing/events").exists():
        subprocess.run(["mount", "-t", "tracefs", "tracefs", "/sys/kernel/tracing"], check=True)
    sys.path.append("/usr/lib/python3/dist-packages")
    bcc = importlib.import_module("bcc")

    class Plain(bcc.BPF):  # type: ignore[misc, name-defined]
        def _trace_autoload(self) -> None:
            """We attach."""

    cflags = [f"-DPID={os.getpid()}"]
    for _, _, function in job["probes"] if job["other"] else ():
        kind = bcc.BPF.TRACEPOINT if MODE == "kprobe" else bcc.BPF.KPROBE
        Plain(text=job["other"].encode(), cflags=cflags).load_func(function.encode(), kind)
    b = Plain(text=job["text"].encode(), cflags=cflags)
    for kind, target, function in job["probes"]:  # others are there to be compiled
        if kind in ("syscall", "sysret"):
            _attach(bcc, b, kind, target, function.encode())
    scope: dict[str, Any] = {"libc": ctypes.CDLL(None, use_errno=True), "ctypes": ctypes, "os": os, "b": b}
    exec(job["act"], scope)
    out = [value.value for value in b[b"out"].values()]
    json.dump({"out": out, "said": scope.get("said")}, sys.stdout)


def _attach(bcc: Any, b: Any, kind: str, target: str, function: bytes) -> None:
    if MODE == "tracepoint":
        b.load_func(function, bcc.BPF.TRACEPOINT)
        way = "enter" if kind == "syscall" else "exit"
        b.attach_tracepoint(tp=f"syscalls:sys_{way}_{target}".encode(), fn_name=function)
        return
    b.load_func(function, bcc.BPF.KPROBE)
    call = b.attach_kprobe if kind == "syscall" else b.attach_kretprobe
    call(event=b.get_syscall_fnname(target.encode()), fn_name=function)


if __name__ == "__main__":
    _worker()
    sys.exit()


# --- the tests -------------------------------------------------------------------------------------------------------

import pytest  # noqa: E402 (the worker runs without it)

from bpfnb.language.program import parse  # noqa: E402
from bpfnb.tracer.compile import headers  # noqa: E402
from bpfnb.tracer.compile.rewrite import Rewritten, rewrite  # noqa: E402


def start(
    source: str, probes: dict[str, str], act: str, path: str = "", fds: tuple[int, ...] = ()
) -> tuple[Rewritten, subprocess.CompletedProcess[str]]:
    program = parse(source, probes)
    rewritten = rewrite(program, tag="", syscall_mode="kprobe" if KPROBES else "tracepoint", path=path)
    # What this kernel cannot attach it can verify.
    other = rewrite(program, tag="", syscall_mode="tracepoint" if KPROBES else "kprobe").text if act else ""
    job = {
        "other": other,
        "text": rewritten.text,
        "probes": [(p.kind, p.target, p.function) for p in program.probes],
        "act": act,
    }
    environment = dict(os.environ)
    tree = headers.kernel_source()
    if tree is not None:
        environment["BCC_KERNEL_SOURCE"] = str(tree)
    done = subprocess.run(
        [sys.executable, __file__],
        input=json.dumps(job),
        capture_output=True,
        text=True,
        env=environment,
        pass_fds=fds,
        check=False,
    )
    return rewritten, done


def run(source: str, probes: dict[str, str], act: str) -> tuple[list[int], Any]:
    """What the program put into ``out``, and ``said`` by the calls."""
    rewritten, done = start(HEAD + source, probes, act)
    assert done.returncode == 0, done.stderr + rewritten.text
    result = json.loads(done.stdout)
    return result["out"], result["said"]


# A mapping nobody else asks for: a hint, 3 pages, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, no descriptor, page 5.
MMAP = """
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
address = libc.mmap(0x7e0000000000, 0x3000, 1, 0x22, 77, 0x5000)
libc.munmap(ctypes.c_void_p(address), 0x3000)
"""
MMAP_ARGUMENTS = [0x7E0000000000, 0x3000, 1, 0x22, 77, 0x5000]


def portable_first(cases: dict[str, str]) -> list[Any]:
    """All cases here; of each kind one is enough under emulation."""
    return [
        pytest.param(case, id=name, marks=[] if n else [pytest.mark.portable])
        for n, (name, case) in enumerate(cases.items())
    ]


READS = {
    "PT_REGS_PARMn": "put({i}, PT_REGS_PARM{n}(ctx));",
    "PT_REGS_PARMn_SYSCALL": "put({i}, PT_REGS_PARM{n}_SYSCALL(ctx));",
    "cast": "put({i}, (u64)PT_REGS_PARM{n}((struct pt_regs *)ctx));",
    "alias": "{{ struct pt_regs *other = ctx; put({i}, PT_REGS_PARM{n}(other)); }}",
    "syscall context": "put({i}, PT_REGS_PARM{n}_SYSCALL(PT_REGS_SYSCALL_CTX(ctx)));",
    "address": "{{ u64 v; bpf_probe_read_kernel(&v, sizeof(v), &PT_REGS_PARM{n}(ctx)); put({i}, v); }}",
    "helper": "put({i}, argument{n}(ctx));",
}
HELPERS = "".join(
    f"static u64 argument{n}(struct pt_regs *regs) {{ return PT_REGS_PARM{n}(regs); }}\n" for n in range(1, 7)
)


@pytest.mark.parametrize("read", portable_first(READS))
def test_all_six_arguments(read: str) -> None:
    """GIVEN a function on mmap that reads its arguments THEN it reads mmap's, the fourth (r10) to the sixth too."""
    body = "".join(read.format(i=n - 1, n=n) + "\n" for n in range(1, 7))
    helpers = HELPERS if "argument" in read else ""
    guard = "if (!MINE || PT_REGS_PARM2(ctx) != 0x3000) return 0;"
    source = f"{helpers}int f(struct pt_regs *ctx) {{\n{guard}\n{body}return 0; }}"
    out, _ = run(source, {"syscall:mmap": "f"}, MMAP)
    assert out[:6] == MMAP_ARGUMENTS


@pytest.mark.parametrize(
    "name", portable_first({n: n for n in ("syscall__mmap", "kprobe__sys_mmap", "kprobe____x64_sys_mmap", "f")})
)
@pytest.mark.parametrize("context", ["struct pt_regs *ctx", "void *ctx"])
def test_parameters(name: str, context: str) -> None:
    """GIVEN a function of any name with extra parameters THEN they are the syscall's arguments."""
    source = f"""
int {name}({context}, unsigned long addr, unsigned long len, int prot,
           int flags /* the fourth */, const int fd, unsigned long offset)
{{
    if (!MINE || len != 0x3000) return 0;
    put(0, addr); put(1, len); put(2, prot); put(3, flags); put(4, fd); put(5, offset);
    return 0;
}}
"""
    out, _ = run(source, {"syscall:mmap": "f"} if name == "f" else {}, MMAP)
    assert out[:6] == MMAP_ARGUMENTS


UNWRAPS = {
    "initialised": "struct pt_regs *regs = (struct pt_regs *)PT_REGS_PARM1(ctx);",
    "by void": "struct pt_regs *regs = (void *)PT_REGS_PARM1(ctx);",
    "assigned": "struct pt_regs *regs; regs = (struct pt_regs *)PT_REGS_PARM1(ctx);",
    "by bcc's macro": "struct pt_regs *regs = PT_REGS_SYSCALL_CTX(ctx);",
    "by member": "struct pt_regs *regs = (struct pt_regs *)ctx->di;",
}


@pytest.mark.parametrize("unwrap", portable_first(UNWRAPS))
def test_code_that_unwraps_by_itself(unwrap: str) -> None:
    """GIVEN C written for kernels with syscall wrappers THEN it reads the same arguments still."""
    fourth = "PT_REGS_PARM4_SYSCALL(regs)"
    members = [f"PT_REGS_PARM{n}(regs)" if n != 4 else fourth for n in range(1, 7)]
    reads = "".join(
        f"bpf_probe_read_kernel(&v, sizeof(v), &{m}); if (ours) put({i}, v);\n" for i, m in enumerate(members)
    )
    source = f"""
int f(struct pt_regs *ctx) {{
    {unwrap}
    u64 v = 0;
    bpf_probe_read_kernel(&v, sizeof(v), &PT_REGS_PARM2(regs));
    int ours = MINE && v == 0x3000;
    {reads}
    return 0;
}}
"""
    out, _ = run(source, {"syscall:mmap": "f"}, MMAP)
    assert out[:6] == MMAP_ARGUMENTS


@pytest.mark.portable
def test_members_read_by_bcc() -> None:
    """GIVEN code that dereferences the inner registers and lets bcc insert the read THEN that works too."""
    source = """
int f(struct pt_regs *ctx) {
    struct pt_regs *regs = (struct pt_regs *)PT_REGS_PARM1(ctx);
    if (!MINE || regs->si != 0x3000) return 0;
    put(0, regs->di); put(1, regs->si); put(2, regs->dx); put(3, regs->r10); put(4, regs->r8); put(5, regs->r9);
    return 0;
}
"""
    out, _ = run(source, {"syscall:mmap": "f"}, MMAP)
    assert out[:6] == MMAP_ARGUMENTS


def test_members_of_the_context() -> None:
    source = """
int f(struct pt_regs *ctx) {
    if (!MINE || ctx->si != 0x3000) return 0;
    put(0, ctx->di); put(1, ctx->si); put(2, ctx->dx); put(3, ctx->r10); put(4, ctx->r8); put(5, ctx->r9);
    return 0;
}
"""
    out, _ = run(source, {"syscall:mmap": "f"}, MMAP)
    assert out[:6] == MMAP_ARGUMENTS


@pytest.mark.portable
def test_parameters_of_every_width_beside_a_struct_that_fills_the_stack() -> None:
    """As in bcc's mountsnoop: most of the 512 bytes are the struct's, and there are five parameters."""
    source = """
struct data_t { u64 words[57]; };
BPF_PERF_OUTPUT(events);
int f(struct pt_regs *ctx, void *address, const size_t length, short protection, unsigned char flags, int fd) {
    struct data_t data = {};
    if (!MINE || length != 0x3000) return 0;
    data.words[0] = length;
    events.perf_submit(ctx, &data, sizeof(data));
    put(0, address); put(1, length); put(2, protection); put(3, flags); put(4, fd);
    data.words[56] = fd;
    events.perf_submit(ctx, &data, sizeof(data));
    return 0;
}
"""
    out, _ = run(source, {"syscall:mmap": "f"}, MMAP)
    address, length, protection, flags, fd, _ = MMAP_ARGUMENTS
    assert out[:5] == [address, length, protection, flags & 0xFF, fd]


def test_a_string() -> None:
    """GIVEN a path in user memory THEN both the parameter and the register lead to it."""
    source = """
int syscall__openat(struct pt_regs *ctx, int dfd, const char __user *filename, int flags) {
    if (!MINE) return 0;
    u64 by_name[2] = {}, by_register[2] = {};
    bpf_probe_read_user_str(by_name, sizeof(by_name), filename);
    bpf_probe_read_user_str(by_register, sizeof(by_register), (void *)PT_REGS_PARM2(ctx));
    if (by_name[0] != 0x7265746661657265) return 0;  /* "ereafter", little endian */
    put(0, by_name[0]); put(1, by_name[1]); put(2, by_register[0]); put(3, by_register[1]); put(4, dfd);
    return 0;
}
"""
    out, _ = run(source, {}, "try:\n  os.open('ereafter-all', os.O_RDONLY)\nexcept OSError:\n  pass")
    words = [int.from_bytes(b"ereafter", "little"), int.from_bytes(b"-all", "little")]
    assert out[:4] == words * 2
    assert ctypes.c_int(out[4]).value == -100  # AT_FDCWD


@pytest.mark.parametrize("how", portable_first({how: how for how in ("parameter", "register")}))
def test_a_struct_in_user_memory(how: str) -> None:
    """bcc turns ``t->nanoseconds`` into a read; it has to see that t points outside of the program."""
    head = "struct pair { long seconds; long nanoseconds; };\n"
    body = "if (MINE && t->nanoseconds == 123457) { put(0, t->seconds + 1); put(1, t->nanoseconds); } return 0; }"
    source = {
        "parameter": f"int f(struct pt_regs *ctx, int clock, int flags, struct pair *t) {{ {body}",
        "register": f"int f(struct pt_regs *ctx) {{ struct pair *t = (struct pair *)PT_REGS_PARM3(ctx); {body}",
    }[how]
    act = "pair = (ctypes.c_long * 2)(0, 123457); libc.clock_nanosleep(1, 0, pair, None)"
    out, _ = run(head + source, {"syscall:clock_nanosleep": "f"}, act)
    assert out[:2] == [1, 123457]


@pytest.mark.portable
def test_results() -> None:
    """GIVEN a function on the return WHEN the call succeeds, and fails THEN it sees both results."""
    source = """
static long result(struct pt_regs *regs) { return PT_REGS_RC(regs); }
int f(struct pt_regs *ctx) {
    if (!MINE) return 0;
    int ret = PT_REGS_RC(ctx);
    if (ret > 0) put(0, ret); else put(1, ret);
    put(2, result(ctx)); put(3, ctx->ax);
    return 0;
}
"""
    # A session of its own: the group's number is the process's, where we may have been started by process 0.
    out, said = run(source, {"sysret:getpgid": "f"}, "os.setsid(); said = libc.getpgid(0); libc.getpgid(-5)")
    assert out[0] == said > 0
    assert [ctypes.c_long(v).value for v in out[1:4]] == [-3] * 3  # ESRCH


def test_kill() -> None:
    source = (
        "int f(struct pt_regs *ctx) { if (MINE) { put(0, PT_REGS_PARM1(ctx)); put(1, PT_REGS_PARM2(ctx)); } return 0; }"
    )
    out, said = run(source, {"syscall:kill": "f"}, f"said = os.getpid(); os.kill(said, {int(signal.SIGCONT)})")
    assert out[:2] == [said, int(signal.SIGCONT)]


@pytest.mark.parametrize("signature", portable_first({s: s for s in ("struct pt_regs *ctx", "void *ctx", "void", "")}))
def test_a_fork_returns_once(signature: str) -> None:
    """GIVEN a function on clone's return WHEN a process forks THEN it runs in the parent alone, as a kretprobe does."""
    source = f"""
int f({signature}) {{
    struct {{ u64 words[2]; }} comm = {{}};
    bpf_get_current_comm(&comm, sizeof(comm));
    if (comm.words[0] != 0x2d66696273726f66) return 0;  /* "forsbif-" */
    add(0, 1);
    if (!MINE) add(1, 1);
    return 0;
}}
"""
    act = """
libc.prctl(15, b'forsbif-x', 0, 0, 0)
for _ in range(5):
    pid = os.fork()
    if not pid:
        os._exit(0)
    os.waitpid(pid, 0)
"""
    out, _ = run(source, {"sysret:clone": "f"}, act)
    assert out[:2] == [5, 0]


@pytest.mark.portable
def test_the_context_stays_the_context() -> None:
    """GIVEN arguments read and the context handed to a helper THEN the event arrives."""
    source = """
BPF_PERF_OUTPUT(events);
int f(struct pt_regs *ctx) {
    if (!MINE) return 0;
    u64 signal = PT_REGS_PARM2(ctx);
    events.perf_submit(ctx, &signal, sizeof(signal));
    return 0;
}
"""
    act = """
said = []
def heard(cpu, data, size):
    said.append(ctypes.cast(data, ctypes.POINTER(ctypes.c_uint64))[0])
b[b'events'].open_perf_buffer(heard)
os.kill(os.getpid(), 0)
b.perf_buffer_poll(2000)
"""
    _, said = run(source, {"syscall:kill": "f"}, act)
    assert said == [0]


# --- positions -------------------------------------------------------------------------------------------------------

PLACES = re.compile(r"^(\S+?):(\d+):(\d+): error: .*'(\w+)'$", re.M)


def test_diagnostics_name_the_cells_lines_and_columns() -> None:
    """GIVEN errors behind everything bcc adds lines for, and behind our edits THEN each is placed where it stands."""
    source = """\
/* é */ int one(void *ctx) { wrong1(); return absent1; }
TRACEPOINT_PROBE(sched, sched_process_fork) {
    return absent2;
}
static int helper(int a) { return absent3; }
int two(struct pt_regs *ctx,
        int pid) {
    bpf_trace_printk("x\\\\n"); u64 s = PT_REGS_PARM2(ctx) + PT_REGS_PARM1(ctx); return absent4;
}
RAW_TRACEPOINT_PROBE(sched_switch)
{ return absent5; }"""
    rewritten, done = start(source, {"syscall:kill": "two", "syscall:clone": "one"}, "")
    found = PLACES.findall(done.stderr)
    assert [name for *_, name in found] == [f"absent{i}" for i in range(1, 6)], done.stderr
    lines = source.splitlines()
    for file, line, column, name in found:
        assert file == "/virtual/main.c"
        at = rewritten.to_cell(int(line), int(column))
        assert lines[at[0] - 1][at[1] - 1 :].startswith(name), (at, name)


def test_the_verifiers_log_carries_the_cells_text() -> None:
    """GIVEN the cell in a file, even one without a name WHEN the verifier refuses THEN its log quotes the cell."""
    source = (
        HEAD
        + """\
TRACEPOINT_PROBE(sched, sched_process_fork) { return 0; }
int f(struct pt_regs *ctx) {
    u32 key = PT_REGS_PARM1(ctx);
    u64 *value = out.lookup(&key);
    *value = 3;  // the map may have no such key
    return 0;
}
"""
    )
    fd = os.memfd_create("cell")
    try:
        os.write(fd, source.encode())
        _, done = start(source, {"syscall:kill": "f"}, "", path=f"/proc/self/fd/{fd}", fds=(fd,))
    finally:
        os.close(fd)
    assert done.returncode != 0
    assert "; *value = 3;  // the map may have no such key" in done.stderr
    lines = re.findall(r"^; \*value = 3;.* @ .*:(\d+)$", done.stderr, re.M)  # Linux 6.9 and later say so
    assert set(lines) <= {str(source[: source.index("*value = 3")].count("\n") + 1)}
