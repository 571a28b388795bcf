"""One function at many probes: PROBE(...), wildcards, and bpfnb_probe(ctx), against workloads that count."""

from __future__ import annotations

import ctypes
import os

import pytest

import bpfnb

_libc = ctypes.CDLL(None, use_errno=True)


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
