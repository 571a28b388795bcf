"""Signatures of probes, against the kernel's own text, and against programs that see the arguments themselves."""

from __future__ import annotations

import re
import statistics
import subprocess
import time
from pathlib import Path

import pytest

import bpfnb
from bpfnb.errors import SetupError
from bpfnb.hosts import default_host
from bpfnb.language.program import Probe
from bpfnb.language.signature import Signature, Type
from bpfnb.tracer.probes.describe import known
from bpfnb.tracer.signatures.kernel import BtfFolder

EVENTS = Path("/sys/kernel/tracing/events")


def described(*probes: str, paths: tuple[tuple[str, ...], ...] = (), limit: int = 10_000) -> tuple[Signature, ...]:
    return default_host.connect().describe(probes, paths, limit)


def lines_of(event: str) -> list[tuple[str, int, bool]]:
    """The fields of a format file, read in another way than the code under test: declaration, size, signed."""
    found = []
    for line in (EVENTS / event / "format").read_text().splitlines():
        if line.startswith("\tfield:"):
            parts = [part.strip() for part in line.split(";")]
            found.append((parts[0].removeprefix("field:"), int(parts[2][5:]), parts[3:4] == ["signed:1"]))
    return [line for line in found if "common_" not in line[0]]


def squeezed(text: str) -> str:
    return "".join(text.split())


def test_every_tracepoint_has_the_fields_of_its_format_file() -> None:
    checked = 0
    for signature in described("tracepoint:*"):
        event = signature.probe.removeprefix("tracepoint:").replace(":", "/")
        lines = lines_of(event)
        assert len(signature.arguments) == len(lines), event
        for argument, (declaration, size, signed) in zip(signature.arguments, lines, strict=True):
            type_ = argument.type
            assert re.search(rf"\b{argument.name}(\[.*\])?$", declaration), (event, declaration)
            assert argument.located == declaration.startswith("__data_loc")
            if type_.kind in ("int", "bool", "enum") and not event.startswith("syscalls/sys_enter_"):
                assert (type_.size, type_.signed) == (size, signed), (event, declaration)
                assert squeezed(declaration) == squeezed(type_.text + argument.name)
            if "[" in declaration and not argument.located:
                assert (type_.kind in ("array", "string"), type_.size) == (True, size), (event, declaration)
            checked += 1
    assert checked > 5000


@pytest.mark.parametrize(
    "probe", ["tracepoint:syscalls:sys_exit_read", "tracepoint:syscalls:sys_enter_dup2", "syscall:dup2"]
)
def test_what_has_types_of_c_alone_needs_no_btf(tmp_path: Path, probe: str) -> None:
    """To read the kernel's takes most of the time of a tracer's first one-liner."""
    (tmp_path / "vmlinux").write_bytes(b"this is no BTF")
    kind, _, target = probe.partition(":")
    without = known(Probe(kind, target, "", probe, 0), btf=BtfFolder(tmp_path))
    assert without.arguments == described(probe)[0].arguments != ()
    with pytest.raises(SetupError, match="cannot be read"):
        known(Probe("syscall", "openat", "", "syscall:openat", 0), btf=BtfFolder(tmp_path))  # a umode_t


def type_of(signature: Signature, name: str) -> Type:
    return next(argument.type for argument in signature.arguments if argument.name == name)


def test_parameters_of_system_calls() -> None:
    """As the manual has them."""
    openat, write, clone3 = described("syscall:openat", "sysret:write", "syscall:clone3", paths=(("uargs", "flags"),))
    assert [(a.name, a.type.text) for a in openat.arguments] == [
        ("dfd", "int"),
        ("filename", "const char *"),
        ("flags", "int"),
        ("mode", "umode_t"),
    ]
    assert [(t.kind, t.size, t.signed, t.user) for t in (a.type for a in openat.arguments)] == [
        ("int", 4, True, False),
        ("string", 8, False, True),
        ("int", 4, True, False),
        ("int", 2, False, False),
    ]
    assert (type_of(write, "buf").kind, type_of(write, "buf").user) == ("pointer", True)  # of a length of its own
    assert openat.returns == write.returns == Type("long", "int", 8, signed=True)
    assert [t.text for t in clone3.members[0]] == ["struct clone_args *", "__u64"]
    assert (openat.members, openat.near) == (((),), (("flags",),))


@pytest.mark.portable
def test_the_kernel_knows_what_leads_where() -> None:
    paths = (
        ("skaddr", "__sk_common", "skc_dport"),
        ("skaddr", "__sk_common", "skc_dprt"),
        ("skaddr", "sk_protocol"),
        ("skaddr", "__sk_common", "skc_reuse"),  # a bit-field of four
        ("oldstat",),
    )
    (state,) = described("tracepoint:sock:inet_sock_set_state", paths=paths)
    port, misspelt, protocol, bits, unknown = state.members
    assert [t.text for t in port] == ["const struct sock *", "struct sock_common", "__be16"]
    assert (port[2].big_endian, port[2].size, port[2].signed) == (True, 2, False)
    assert [t.text for t in misspelt] == ["const struct sock *", "struct sock_common"]
    assert (protocol[1].text, bits[2].bits, unknown) == ("u16", 4, ())
    assert state.near == ((), ("skc_dport",), (), (), ("oldstate",))

    path = ("prev", "mm", "exe_file", "f_path", "dentry", "d_name", "name")
    (switch,) = described("rawtracepoint:sched_switch", paths=(path, ("next", "comm"), ("next", "comm", "0")))
    assert [a.name for a in switch.arguments][:3] == ["preempt", "prev", "next"]
    assert [(a.type.kind, a.position) for a in switch.arguments][:3] == [("bool", 0), ("pointer", 1), ("pointer", 2)]
    types = [t.text.removeprefix("const ") for t in switch.members[0]]
    assert types[-3:] == ["struct dentry *", "struct qstr", "unsigned char *"]
    assert switch.members[0][-1].kind == "string"
    comm = switch.members[1][1]
    assert (comm.text, comm.kind, comm.count, comm.size) == ("char [16]", "string", 16, 16)
    assert switch.members[2][2].text == "char"


def test_wildcards_and_what_matches_nothing() -> None:
    calls = {p.name.removeprefix("sys_enter_") for p in (EVENTS / "syscalls").glob("sys_enter_*")}
    found = [signature.probe for signature in described("syscall:*")]
    assert found == sorted(f"syscall:{call}" for call in calls)
    assert [s.probe for s in described("t:sched:sched_process_exi*", "syscall:getpgid")] == [
        "tracepoint:sched:sched_process_exit",
        "syscall:getpgid",
    ]
    with pytest.raises(bpfnb.ProgramError, match=r"^syscall:\*: \d+ probes match, more than 10: narrow the pattern$"):
        described("syscall:*", limit=10)
    with pytest.raises(bpfnb.AttachError, match=r"^tracepoint:schd:\*: no probe matches$"):
        described("tracepoint:schd:*")
    with pytest.raises(bpfnb.AttachError, match="no raw tracepoint sched_swich") as caught:
        described("rawtracepoint:sched_swich")
    assert caught.value.hint == "did you mean rawtracepoint:sched_switch?"
    with pytest.raises(bpfnb.AttachError, match="no syscall openta") as caught:
        described("syscall:openta")
    assert "syscall:openat" in str(caught.value.hint)


def test_arguments_of_usdt_probes(tmp_path: Path) -> None:
    """As the C that makes them says: their sizes and signs are those of the expressions."""
    source = """
    #include <sys/sdt.h>
    int main(int argc, char **argv) {
        long wide = argc; unsigned short narrow = argc; signed char small = -argc;
        DTRACE_PROBE4(bpfnbtest, four, argc, wide, narrow, small);
        DTRACE_PROBE(bpfnbtest, none);
        return 0;
    }
    """
    (tmp_path / "p.c").write_text(source)
    subprocess.run(["gcc", "-O1", "-o", tmp_path / "p", tmp_path / "p.c"], check=True)
    four, none = described(f"usdt:{tmp_path}/p:bpfnbtest:*")
    assert [(a.name, a.type.size, a.type.signed) for a in four.arguments] == [
        ("arg0", 4, True),
        ("arg1", 8, True),
        ("arg2", 2, False),
        ("arg3", 1, True),
    ]
    assert (none.probe, none.arguments) == (f"usdt:{tmp_path}/p:bpfnbtest:none", ())


# --- bpfnb.probes -------------------------------------------------------------------------------------------------

KPROBES = Path("/sys/bus/event_source/devices/kprobe/type").exists()


@pytest.mark.portable
def test_kernel_functions_are_listed_whether_or_not_they_can_be_probed() -> None:
    """Prototypes as fs/read_write.c, fs/namei.c and net/ipv4/tcp_ipv4.c have them, alike from 6.1 to 6.18."""
    expected = {
        "vfs_read": ("struct file *file, char *buf, size_t count, loff_t *pos", "ssize_t"),
        "tcp_v4_destroy_sock": ("struct sock *sk", "void"),
        "do_sys_openat2": ("int dfd, const char *filename, struct open_how *how", ("long", "int")),
    }
    for name, (arguments, returns) in expected.items():
        for kind in ("kprobe", "kretprobe"):
            row = bpfnb.probes(f"{kind}:{name}").iloc[0]
            assert (row.probe, row.kind, row.arguments) == (f"{kind}:{name}", kind, arguments)
            assert row.returns in returns if isinstance(returns, tuple) else row.returns == returns
            assert row.note.startswith("this kernel has no kprobes") == (not KPROBES)
    if KPROBES:
        assert bpfnb.probes("kprobe:do_sys_openat2").note.item() == ""
    else:
        assert bpfnb.probes("kprobe:do_sys_openat2").note.item().endswith("; in its place: syscall:openat")
        assert "kprobe" not in set(bpfnb.probes("*open*").kind)


def test_what_is_listed() -> None:
    df = bpfnb.probes("*getpgid*")
    assert df.probe.tolist()[:2] == ["syscall:getpgid", "sysret:getpgid"]
    assert df.arguments.tolist()[:2] == ["pid_t pid"] * 2
    assert df.returns.tolist()[:2] == ["long: negative errno on failure"] * 2
    assert df[df.probe == "tracepoint:syscalls:sys_exit_getpgid"].arguments.item() == "int __syscall_nr, long ret"
    assert bpfnb.probes("rawtracepoint:sched_process_fork").arguments.item() == (
        "struct task_struct *parent, struct task_struct *child"
    )
    assert bpfnb.probes("lsm:file_open").arguments.item() == "struct file *file"
    assert "page-faults" in " ".join(bpfnb.probes("software:*").probe)
    assert len(bpfnb.probes("hardware:*")) == 10
    assert "every CPU" in bpfnb.probes("profile:*").note.item()
    assert "uprobe:c:memcpy" in set(bpfnb.probes("uprobe:c:mem*").probe)
    assert bpfnb.probes("uprobe:c:malloc").probe.tolist() == ["uprobe:c:malloc"]
    assert bpfnb.probes("no such probe").empty


def test_usdt_probes_are_listed_with_their_arguments() -> None:
    df = bpfnb.probes("usdt:/usr/bin/python3:*")
    notes = subprocess.run(["readelf", "-n", "/usr/bin/python3"], capture_output=True, text=True, check=True).stdout
    counts = {
        name: len(arguments.split()) for name, arguments in re.findall(r"Name: (\w+)(?s:.*?)Arguments: (.*)", notes)
    }
    assert df.probe.tolist() == sorted(f"usdt:/usr/bin/python3:python:{name}" for name in counts)
    for probe, arguments in zip(df.probe, df.arguments, strict=True):
        assert len(arguments.split(", ")) == counts[probe.rpartition(":")[2]]


def test_lists_come_at_once() -> None:
    """After the first. On two cores that others use as well, a median, and three times what is promised."""
    for pattern in ("*clone*", "tracepoint:*", "kprobe:tcp_*"):
        bpfnb.probes(pattern)
        times = []
        for _ in range(5):
            begin = time.perf_counter()
            bpfnb.probes(pattern)
            times.append(time.perf_counter() - begin)
        assert statistics.median(times) < 0.9, (pattern, times)


@pytest.mark.portable
@pytest.mark.skipif(not KPROBES, reason="this kernel has no kprobes: the VM lane runs it on 6.1 and 6.12")
def test_functions_that_can_be_attached_to() -> None:
    path = ("file", "f_path", "dentry", "d_name", "name")
    for signature in described("kprobe:vfs_read", "fentry:vfs_read", "fexit:vfs_read", paths=(path, ("retval",))):
        assert [f"{a.name} {a.position}" for a in signature.arguments] == ["file 0", "buf 1", "count 2", "pos 3"]
        types = [t.text for t in signature.members[0]]
        assert types[::2] == ["struct file *", "struct dentry *", "const unsigned char *"]
        assert [t.text for t in signature.members[1]] == ["ssize_t"]
    lines = Path("/sys/kernel/tracing/available_filter_functions").read_text().splitlines()
    names = {line.split()[0] for line in lines}
    wanted = {f"kprobe:{name}" for name in names if name.startswith("tcp_v4_")}
    assert {s.probe for s in described("kprobe:tcp_v4_*")} == wanted
    with pytest.raises(bpfnb.AttachError, match=r"^kprobe:tpc_v4_\*: no probe matches$"):
        described("kprobe:tpc_v4_*")
    df = bpfnb.probes("*getpgid*")
    assert "kprobe:__x64_sys_getpgid" in set(df.probe)
    assert not set(df.kind) & {"kretprobe", "fentry", "fexit", "rawtracepoint"}
