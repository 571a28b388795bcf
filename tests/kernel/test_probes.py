"""Every kind of probe, attached for real; and syscall probes that mean the same whatever they attach as."""

from __future__ import annotations

import ctypes
import mmap
import os
import platform
import resource
import signal
import subprocess
import time
from pathlib import Path

import pytest

import bpfnb
from bpfnb.hosts import default_host
from bpfnb.session import Session

_libc = ctypes.CDLL(None, use_errno=True)
KPROBES = Path("/sys/bus/event_source/devices/kprobe/type").exists()
HIT = 'int hit(void *ctx) { bpf_trace_printk("hit\\n"); return 0; }'


def mine(session: Session) -> list[str]:
    df = session.df
    return df[df.pid == os.getpid()].msg.tolist()


@pytest.mark.portable
def test_a_syscall_by_any_name() -> None:
    """By option and by a function's name, each is the same probe."""
    attach = {"syscall:getpgid": "one", "kprobe:__x64_sys_getpgid": "two", "kprobe:sys_getpgid": "three"}
    names = ["kprobe__sys_getpgid", "kprobe____x64_sys_getpgid", "syscall__getpgid"]
    source = "".join(HIT.replace("hit", name) for name in [*attach.values(), *names])
    with bpfnb.trace(source, attach=attach) as session:
        _libc.getpgid(0)
    assert sorted(mine(session)) == sorted([*attach.values(), *names])
    assert sorted(info.requested for info in session.probes) == sorted([*attach, *names])
    for info in session.probes:
        assert info.kind == ("kprobe" if KPROBES else "tracepoint")
        assert info.attached == ("kprobe:__x64_sys_getpgid" if KPROBES else "tracepoint:syscalls:sys_enter_getpgid")
        assert bool(info.note) == (not KPROBES)


# System calls by the names their users know, and a call of each: x86-64's numbers of those that no C library makes any
# more, and arguments that are wrong where a right one would do something.
MADE = {
    "stat": lambda: _libc.syscall(4, b"/", ctypes.create_string_buffer(256)),
    "fstat": lambda: _libc.syscall(5, 0, ctypes.create_string_buffer(256)),
    "lstat": lambda: _libc.syscall(6, b"/", ctypes.create_string_buffer(256)),
    "fstatat": lambda: _libc.syscall(262, -1, b"", None, 0),
    "uname": os.uname,
    "umount2": lambda: _libc.umount2(b"/no/such/place", 0),
    "sendfile": lambda: _libc.sendfile(-1, -1, None, 0),
    "pread": lambda: _libc.pread(-1, None, 0, 0),
    "pwrite": lambda: _libc.pwrite(-1, None, 0, 0),
    "prlimit": lambda: resource.prlimit(0, resource.RLIMIT_CORE),
    "pselect": lambda: _libc.pselect(-1, None, None, None, None, None),
    "sigpending": signal.sigpending,
    "sigprocmask": lambda: _libc.syscall(14, -1, None, None, 8),
}


@pytest.mark.portable
@pytest.mark.skipif(platform.machine() != "x86_64", reason="the numbers are x86-64's")
def test_a_syscall_by_the_name_its_users_know() -> None:
    """stat, which the kernel calls newstat, and the like. A kernel has functions of both names; one is never called."""
    names = list(MADE)
    source = "".join(HIT.replace("hit", f"on_{name}") for name in names)
    with bpfnb.trace(source, attach={f"syscall:{name}": f"on_{name}" for name in names}) as session:
        for call in MADE.values():
            call()
    assert set(mine(session)) >= {f"on_{name}" for name in names}
    assert [info.requested for info in session.probes] == [f"syscall:{name}" for name in names]
    assert session.probes[0].attached.endswith("sys_newstat" if KPROBES else "sys_enter_newstat")


@pytest.mark.portable
def test_one_function_on_one_probe_runs_once() -> None:
    """The kernel would run it twice as a kprobe and once as a tracepoint; asked for twice, it means once."""
    with bpfnb.trace(HIT, attach={"syscall:getpgid": "hit", "kprobe:__x64_sys_getpgid": "hit"}) as session:
        _libc.getpgid(0)
    assert mine(session) == ["hit"]
    assert [info.requested for info in session.probes] == ["syscall:getpgid"]


@pytest.mark.portable
def test_a_syscalls_return() -> None:
    source = "".join(
        f'int {name}(struct pt_regs *ctx) {{ bpf_trace_printk("%d\\n", (int)PT_REGS_RC(ctx)); return 0; }}'
        for name in ("one", "two")
    )
    with bpfnb.trace(source, attach={"sysret:getpgid": "one", "kretprobe:__x64_sys_getpgid": "two"}) as session:
        own = _libc.getpgid(0)
        _libc.getpgid(-5)
    assert mine(session) == [str(own)] * 2 + ["-3"] * 2  # ESRCH


@pytest.mark.portable
def test_a_clone_returns_once_to_each_probe() -> None:
    """The tracepoint also sees the child return from clone, a kretprobe does not: bpfnb means the latter."""
    source = (
        'int kretprobe__sys_clone(struct pt_regs *ctx) { bpf_trace_printk("%d\\n", (int)PT_REGS_RC(ctx)); return 0; }'
    )
    with bpfnb.trace(source) as session:
        pid = os.fork()
        if pid == 0:
            os._exit(0)
        os.waitpid(pid, 0)
    df = session.df
    assert mine(session) == [str(pid)]
    assert not len(df[df.pid == pid])


@pytest.mark.portable
def test_arguments_are_the_syscalls_own() -> None:
    source = """
    int regs(struct pt_regs *ctx) {
        bpf_trace_printk("regs %d %d\\n", (int)PT_REGS_PARM1(ctx), (int)PT_REGS_PARM2(ctx));
        return 0;
    }
    int syscall__kill(struct pt_regs *ctx, int pid, int sig) { bpf_trace_printk("args %d %d\\n", pid, sig); return 0; }
    """
    with bpfnb.trace(source, attach={"syscall:kill": ["regs", "syscall__kill"]}) as session:
        os.kill(os.getpid(), 0)
        with pytest.raises(ProcessLookupError):
            os.kill(2**22 + 1, signal.SIGCONT)
    wanted = [f"{os.getpid()} 0", f"{2**22 + 1} {int(signal.SIGCONT)}"]
    assert sorted(mine(session)) == sorted(f"{how} {what}" for how in ("regs", "args") for what in wanted)


@pytest.mark.portable
def test_tracepoint() -> None:
    source = 'TRACEPOINT_PROBE(sched, sched_process_fork) { bpf_trace_printk("%d\\n", args->child_pid); return 0; }'
    with bpfnb.trace(source) as session:
        pid = os.fork()
        if pid == 0:
            os._exit(0)
        os.waitpid(pid, 0)
    assert mine(session) == [str(pid)]


@pytest.mark.portable
def test_tracepoint_by_option() -> None:
    with bpfnb.trace(HIT, attach={"tracepoint:syscalls:sys_enter_getpgid": "hit"}) as session:
        _libc.getpgid(0)
    assert mine(session) == ["hit"]


@pytest.mark.portable
def test_raw_tracepoint() -> None:
    source = """
    RAW_TRACEPOINT_PROBE(sys_enter) {
        if (ctx->args[1] == 121 && (int)bpf_get_current_pid_tgid() == PID) bpf_trace_printk("raw\\n");
        return 0;
    }
    int other(struct bpf_raw_tracepoint_args *ctx) {
        if (ctx->args[1] == 121 && (int)bpf_get_current_pid_tgid() == PID) bpf_trace_printk("other\\n");
        return 0;
    }
    """
    with bpfnb.trace(source, attach={"rawtracepoint:sys_enter": "other"}, cflags=[f"-DPID={os.getpid()}"]) as session:
        _libc.getpgid(0)
    assert sorted(mine(session)) == ["other", "raw"]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program with a function and a USDT probe of its own."""
    folder = tmp_path_factory.mktemp("user")
    source = folder / "program.c"
    source.write_text(
        """
        #include <stdlib.h>
        #ifdef USDT
        #include <sys/sdt.h>
        #else
        #define DTRACE_PROBE2(provider, name, a, b)
        #endif
        __attribute__((noinline)) int twice(int x) { __asm__(""); return 2 * x; }
        int main(int argc, char **argv) {
            int x = atoi(argv[1]);
            DTRACE_PROBE2(bpfnbtest, doubled, x, twice(x));
            return twice(x) == 2 * x ? 0 : 1;
        }
        """
    )
    have_sdt = Path("/usr/include/x86_64-linux-gnu/sys/sdt.h").exists() or Path("/usr/include/sys/sdt.h").exists()
    binary = folder / "program"
    subprocess.run(["gcc", "-O1", *(["-DUSDT"] if have_sdt else []), "-o", binary, source], check=True)
    return binary


@pytest.mark.portable
def test_uprobe_and_uretprobe(program: Path) -> None:
    source = """
    int in(struct pt_regs *ctx) { bpf_trace_printk("in %d\\n", (int)PT_REGS_PARM1(ctx)); return 0; }
    int out(struct pt_regs *ctx) { bpf_trace_printk("out %d\\n", (int)PT_REGS_RC(ctx)); return 0; }
    """
    attach = {f"uprobe:{program}:twice": "in", f"uretprobe:{program}:twice": "out"}
    with bpfnb.trace(source, attach=attach) as session:
        run = subprocess.Popen([program, "21"])
        run.wait()
    messages = session.df[session.df.pid == run.pid].msg.tolist()
    assert messages[:2] == ["in 21", "out 42"]


def test_usdt(program: Path) -> None:
    source = """
    int doubled(struct pt_regs *ctx) {
        int x = 0, y = 0;
        bpf_usdt_readarg(1, ctx, &x);
        bpf_usdt_readarg(2, ctx, &y);
        bpf_trace_printk("%d doubled is %d\\n", x, y);
        return 0;
    }
    """
    with bpfnb.trace(source, attach={f"usdt:{program}:bpfnbtest:doubled": "doubled"}) as session:
        run = subprocess.Popen([program, "21"])
        run.wait()
    assert session.df[session.df.pid == run.pid].msg.tolist() == ["21 doubled is 42"]


def test_a_misspelt_usdt_probe_has_the_near_ones_offered(program: Path) -> None:
    with pytest.raises(bpfnb.AttachError, match="has no probe bpfnbtest:doubeld") as caught:
        bpfnb.trace(HIT, attach={f"usdt:{program}:bpfnbtest:doubeld": "hit"})
    assert caught.value.hint == f"did you mean usdt:{program}:bpfnbtest:doubled?"


def test_the_kernels_probes_are_a_frame_of_what_can_be_attached() -> None:
    df = bpfnb.probes("*getpgid*")
    assert tuple(df.probe) == default_host.connect().find_probes("*getpgid*", 1 << 20)[0]
    assert {"syscall:getpgid", "sysret:getpgid", "tracepoint:syscalls:sys_enter_getpgid"} <= set(df.probe)
    assert set(df.kind) >= {"syscall", "sysret", "tracepoint"}
    with bpfnb.trace(HIT, attach={df.probe[df.kind == "syscall"].item(): "hit"}) as session:
        os.getpgid(0)
    assert (session.df.pid == os.getpid()).sum() == 1
    with pytest.raises(bpfnb.AttachError, match="there is no file"):
        bpfnb.probes("usdt:/no/such/file:*")


@pytest.mark.portable
def test_sampling() -> None:
    probes = {"profile:199": "hz", "profile:ms:5": "ms", "software:cpu-clock:1000000": "clock"}
    source = "".join(HIT.replace("hit", name) for name in probes.values())
    with bpfnb.trace(source, attach=probes) as session:
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline and set(mine(session)) != set(probes.values()):
            sum(range(100_000))
    assert set(mine(session)) == set(probes.values())


@pytest.mark.portable
def test_software_events() -> None:
    pages = 500
    with mmap.mmap(-1, pages * mmap.PAGESIZE) as memory:
        memory.madvise(mmap.MADV_NOHUGEPAGE)  # a fault for each page
        with bpfnb.trace(HIT, attach={"software:page-faults:1": "hit"}) as session:
            for page in range(pages):
                memory[page * mmap.PAGESIZE] = 1
    assert len(mine(session)) >= pages


@pytest.mark.portable
@pytest.mark.skipif(not KPROBES, reason="this kernel has no kprobes: the VM lane runs it on 6.1 and 6.12")
def test_kprobe_on_a_kernel_function() -> None:
    source = """
    int kprobe__vfs_read(struct pt_regs *ctx) { bpf_trace_printk("in\\n"); return 0; }
    int out(struct pt_regs *ctx) { bpf_trace_printk("out %d\\n", (int)PT_REGS_RC(ctx)); return 0; }
    """
    with bpfnb.trace(source, attach={"kretprobe:vfs_read": "out"}) as session:
        Path("/proc/self/comm").read_bytes()
    assert {"in"} < set(mine(session))


@pytest.mark.portable
@pytest.mark.skipif(not KPROBES, reason="this kernel refuses fentry: the VM lane runs it on 6.1 and 6.12")
def test_fentry() -> None:
    source = """
    KFUNC_PROBE(vfs_read, struct file *file) { bpf_trace_printk("macro\\n"); return 0; }
    int entry(void *ctx) { bpf_trace_printk("entry\\n"); return 0; }
    int leave(void *ctx) { bpf_trace_printk("leave\\n"); return 0; }
    """
    with bpfnb.trace(source, attach={"fentry:vfs_read": "entry", "fexit:vfs_read": "leave"}) as session:
        Path("/proc/self/comm").read_bytes()
    assert {"macro", "entry", "leave"} <= set(mine(session))


@pytest.mark.portable
@pytest.mark.skipif(not KPROBES, reason="this kernel has no kprobes: the VM lane runs it on 6.1 and 6.12")
def test_a_function_that_cannot_be_traced_says_why() -> None:
    for function, why in {"vfs_raed": "no kernel function is called vfs_raed", "do_int3": "notrace"}.items():
        with pytest.raises(bpfnb.AttachError, match=why):
            bpfnb.trace(HIT, attach={f"kprobe:{function}": "hit"})


@pytest.mark.skipif(KPROBES, reason="this kernel has kprobes")
def test_a_kprobe_that_cannot_be_says_so() -> None:
    with pytest.raises(bpfnb.AttachError, match="no kprobes") as caught:
        bpfnb.trace(HIT, attach={"kprobe:vfs_read": "hit"})
    assert caught.value.probe == "kprobe:vfs_read"
    assert caught.value.hint is None
    with pytest.raises(bpfnb.AttachError, match="no kprobes") as caught:
        bpfnb.trace(HIT, attach={"kprobe:finish_task_switch": "hit"})
    assert "-a tracepoint:sched:sched_switch=hit" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("probe", "words", "hint"),
    [
        ("syscall:clonee", "no syscall clonee", "syscall:clone"),
        ("tracepoint:sched:sched_process_frok", "no tracepoint", "tracepoint:sched:sched_process_fork"),
        ("uprobe:/no/such/file:f", "no file /no/such/file", None),
        ("uprobe:/bin/bash:no_such_symbol", "no_such_symbol", None),
        ("usdt:/bin/bash:no:such", "no probe no:such", None),
        ("rawtracepoint:sched_swich", "no raw tracepoint sched_swich", "rawtracepoint:sched_switch"),
    ],
)
def test_a_probe_that_does_not_exist(probe: str, words: str, hint: str | None) -> None:
    with pytest.raises(bpfnb.AttachError, match=words) as caught:
        bpfnb.trace(HIT, attach={probe: "hit"})
    assert caught.value.probe == probe
    if hint:
        assert hint in (caught.value.hint or "")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("offset", ["0x100000000", "5000000"])
def test_a_uprobe_past_the_end_of_its_file_leaves_nothing(offset: str) -> None:
    """bcc tries again by way of tracefs, where a probe outlives its maker; the fixture looks there."""
    with pytest.raises(bpfnb.AttachError, match="no instruction that can be traced begins there"):
        bpfnb.trace("int f(void *ctx) { return 0; }", name="past", attach={f"uprobe:/bin/bash:readline+{offset}": "f"})
