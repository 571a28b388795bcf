"""One function at many probes: PROBE(...), wildcards, and bpfnb_probe(ctx), against workloads that count."""

from __future__ import annotations

import ctypes
import os
import subprocess
from pathlib import Path

import pytest

import bpfnb
from bpfnb.session import Session

_libc = ctypes.CDLL(None, use_errno=True)
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
def test_each_function_of_a_file_is_counted_as_itself(library: Path) -> None:
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
        bpfnb.trace(COUNT, attach=attach, cflags=[OWN], missing="no")
