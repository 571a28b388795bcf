"""What programs print for a user with the three capabilities alone: the same rows as root sees through tracefs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from other_user import run_as_nobody
from test_enforcing import SUDOERS, policy
from test_seed import CLONE, HELLO, SYNC

from bpfnb.language.program import parse
from bpfnb.tracer.compile.rewrite import rewrite

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else"),
]

# Every kind of conversion the kernel's printk has, and every way the text of a cell has to print.
FORMATS = r"""
static int helper(u64 n) { return bpf_trace_printk("from a function %llu\n", n); }
int f(struct pt_regs *ctx) {
    char text[8] = "text";
    u64 big = 0xfedcba9876543210ULL;
    bpf_trace_printk("plain");
    bpf_trace_printk("100%%\n");
    bpf_trace_printk("%d %i %u\n", -1, -2147483647 - 1, 4294967295U);
    bpf_trace_printk("%ld %lu %lx\n", -5L, big, big);
    bpf_trace_printk("%lld %llu %llx\n", -5LL, big, big);
    bpf_trace_printk("%x %X %c\n", 0xab, 0xab, 'z');
    bpf_trace_printk("%5d|%05d|%-5d|\n", 42, 42, 42);
    bpf_trace_printk("%s|%16s|\n", text, text);
    bpf_trace_printk("%pI4 \n", &big);
    bpf_trace_printk("two\nlines\n\n");
    bpf_trace_printk("");
    bpf_trace_printk("a" "b"
                     "c %d\n", (char)-3);
    if (PT_REGS_PARM1(ctx)) bpf_trace_printk("branch\n"); else bpf_trace_printk("other %s\n", text);
    int n = bpf_trace_printk("returned\n");
    bpf_trace_printk("%d\n", n > 0);
    helper(7);
    return 0;
}
"""
CELLS = [
    (HELLO, {}),
    (SYNC, {}),
    (CLONE, {"syscall:clone": "hello"}),
    (HELLO.replace("\\n", "\\\\n"), {}),
    (FORMATS, {"syscall:getpgid": "f"}),
    (FORMATS, {"syscall:getpgid": "f"}),  # from the cache
]
RUN = """
import bpfnb, ctypes, json, os
def rows(source, attach):
    with bpfnb.trace(source, attach=attach) as session:
        os.getpgid(0)
        ctypes.CDLL(None).sync()
        child = os.fork()
        if not child:
            os._exit(0)
        os.waitpid(child, 0)
    df = session.df
    mine = df[df.pid == os.getpid()]
    return {
        "msg": mine.msg.tolist(), "comm": mine.comm.tolist(), "lost": session.lost,
        "columns": {name: str(dtype) for name, dtype in df.dtypes.items()},
        "flags": int(mine["flags"].notna().sum()), "sorted": bool(df.time.is_monotonic_increasing),
        "clock": session.outputs["printk"].clock,
    }
print(json.dumps([rows(*cell) for cell in json.loads(CELLS)]))
"""
CODE = f"CELLS = {json.dumps(CELLS)!r}\n{RUN}"


def as_root(code: str) -> Any:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=True)
    return json.loads(done.stdout)


def test_the_rows_are_those_that_root_sees(tmp_path: Path) -> None:
    expected = as_root(CODE)
    found = json.loads(run_as_nobody(CODE, tmp_path, ambient=True)[-1])
    assert len(expected[4]["msg"]) == 16, "the kernel's own, through tracefs"
    for root, ring in zip(expected, found, strict=True):
        assert ring["msg"] == root["msg"]
        assert ring["comm"] == root["comm"]
        assert ring["columns"] == root["columns"]
        assert (ring["clock"], ring["flags"], ring["sorted"], ring["lost"]) == ("stamp", 0, True, 0)
        assert (root["clock"], root["flags"]) == ("submitted", len(root["msg"]))


STORM = """
import bpfnb, ctypes, os, sys
SOURCE = r'''
BPF_ARRAY(hits, u64, 1);
int f(struct pt_regs *ctx) {
    u32 me = bpf_get_current_pid_tgid();
    if (me != %d) return 0;
    for (int i = 0; i < 100; i++) {
        hits.increment(0);
        bpf_trace_printk(%s, (u64)PT_REGS_PARM1(ctx) * 100 + i%s);
    }
    return 0;
}''' % (os.getpid(), FORMAT, MORE)
with bpfnb.trace(SOURCE, attach={"syscall:getpgid": "f"}) as session:
    for i in range(ROUNDS):
        ctypes.CDLL(None).getpgid(i)
df = session.df
numbers = df.msg.str.split().str[0].astype(int).tolist()
produced = session.maps["hits"][0]
print(produced, len(df), session.lost, numbers == sorted(set(numbers)))
"""


def storm(tmp_path: Path, rounds: int, format_: str, more: str = "") -> list[str]:
    code = f"ROUNDS, FORMAT, MORE = {rounds}, {format_!r}, {more!r}\n{STORM}"
    return run_as_nobody(code, tmp_path, ambient=True)[-1].split()


def test_a_storm_is_exact(tmp_path: Path) -> None:
    assert storm(tmp_path, 200, '"%d\\n"') == ["20000", "20000", "0", "True"]


def test_what_is_lost_is_counted(tmp_path: Path) -> None:
    # Lines that may be long take a kilobyte each: the ring is full long before this is over.
    produced, delivered, lost, in_order = storm(tmp_path, 3000, '"%d %s\\n"', ', "x"')
    assert int(produced) == 300_000 == int(delivered) + int(lost)
    assert int(lost) > 0
    assert in_order == "True"


def test_with_kernel_memory_hidden_lines_of_numbers_are_printed_and_pointers_are_not_followed(tmp_path: Path) -> None:
    """A policy's user: printk's own %s would read whatever the program points it at."""
    cells = [[CLONE, {"syscall:clone": "hello"}], [FORMATS, {"syscall:getpgid": "f"}]]
    code = f"CELLS = {json.dumps(cells[:1])!r}\n{RUN}"
    prepare = policy("[user nobody]\nkernel_memory = no\n", tmp_path)
    (rows,) = json.loads(run_as_nobody(code, tmp_path, sudoers=SUDOERS, first=prepare)[-1])
    assert rows["msg"] == ["my bcc program"]
    refused = f"""
import bpfnb
try:
    bpfnb.trace({FORMATS!r}, attach={{"syscall:getpgid": "f"}})
except PermissionError as error:
    print(error)
"""
    other = tmp_path / "other"
    other.mkdir()
    said = run_as_nobody(refused, other, sudoers=SUDOERS, first=policy("[default]\nkernel_memory = no\n", other))[-1]
    assert "print what a pointer points to (%s, %p), which reads the kernel's memory" in said


@pytest.mark.parametrize(
    ("format_", "short"),
    [
        ('"x\\n"', True),
        ('"%d %llx %c\\n", 1, 2, 3', True),
        ('"100%%\\n"', True),
        ('"%5d\\n", 1', False),
        ('"%s\\n", p', False),
        ('"%pI4\\n", p', False),
        ("FORMAT", False),
    ],
)
def test_only_lines_that_may_be_long_take_much_room(format_: str, short: bool) -> None:
    source = f"int f(void *ctx) {{ char *p = 0; bpf_trace_printk({format_}); return 0; }}"
    text = rewrite(parse(source, {"syscall:clone": "f"}), tag="", lines=True, syscall_mode="tracepoint").text
    assert ("BPFNB_SHORT(" + format_ in text) == short
