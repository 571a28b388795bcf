"""String literals and tables that are const: what a program reads of them is what the cell says."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import pytest
from portable import among

import bpfnb

_libc = ctypes.CDLL(None)
PGID = {"syscall:getpgid": "f"}
CELL = """
struct event { u32 index; u64 number; char text[16]; };
BPF_PERF_OUTPUT(events);
%s
int f(struct pt_regs *ctx, u32 index) {
    struct event e = { .index = index };
    if (bpf_get_current_pid_tgid() >> 32 != PID) return 0;
    %s
    events.perf_submit(ctx, &e, sizeof(e));
    return 0;
}
"""
READ = "bpf_probe_read_kernel_str(e.text, sizeof(e.text), %s);"
WORDS = ["none", "a", "evenly spread", "odd"]
IN_ORDER = ", ".join(f'"{word}"' for word in WORDS)
NUMBERS = [3, 1, 4, 159]


def seen(before: str, body: str) -> tuple[list[str], list[int]]:
    """What a cell reads for the indices 0 to 3."""
    flags = [f"-DPID={os.getpid()}"]
    with bpfnb.trace(CELL % (before, body), name="constants", attach=PGID, cflags=flags) as session:
        for index in range(4):
            _libc.getpgid(index)
    df = session.df
    assert df["index"].tolist() == [0, 1, 2, 3]
    return df.text.tolist(), df.number.tolist()


CHOICE = 'index == 3 ? "odd" : index == 2 ? "evenly spread" : index ? "a" : "none"'
TEXTS = {
    "a choice": ("", READ % CHOICE),
    "a pointer": ("", f"const char *p = {CHOICE}; {READ % 'p'}"),
    "from a helper": (f"static inline const char *name(u32 index) {{ return {CHOICE}; }}", READ % "name(index)"),
    "a macro": ('#define NONE "none"', READ % CHOICE.replace('"none"', "NONE")),
    "read as memory": ("", f"bpf_probe_read_kernel(e.text, 5, {CHOICE});"),
    "a table of texts": (f"static const char names[][16] = {{ {IN_ORDER} }};", READ % "names[index & 3]"),
    "a switch": (
        "",
        "const char *p = 0; switch (index) {"
        + "".join(f' case {number}: p = "{word}"; break;' for number, word in enumerate(WORDS))
        + f" }} {READ % 'p'}",
    ),
    # What LLVM folds into instructions needs no memory.
    "folded": (
        "",
        "".join(f'if (index == {n}) __builtin_memcpy(e.text, "{w}", {len(w)});' for n, w in enumerate(WORDS)),
    ),
}


@pytest.mark.parametrize("case", among(TEXTS, ["a choice", "a table of texts"]))
def test_a_text_is_what_the_cell_says(case: str) -> None:
    expected = [word[:5] for word in WORDS] if case == "read as memory" else WORDS
    assert seen(*TEXTS[case])[0] == expected


TABLES = {
    "of the cell": (
        f"static const u64 table[] = {{ {', '.join(map(str, NUMBERS))} }};",
        "e.number = table[index & 3];",
    ),
    "of a function": ("", f"u64 table[] = {{ {', '.join(map(str, NUMBERS))} }}; e.number = table[index & 3];"),
    "of structs": (
        f"const struct {{ char c; u64 n; }} table[] = {{ {', '.join(f'{{1, {n}}}' for n in NUMBERS)} }};",
        "e.number = table[index & 3].n;",
    ),
}


@pytest.mark.parametrize("case", among(TABLES, ["of structs"]))
def test_a_table_has_the_numbers_of_the_cell(case: str) -> None:
    assert seen(*TABLES[case])[1] == NUMBERS


def test_a_text_that_is_printed_and_one_that_is_compared() -> None:
    """Also when the cell is loaded again without compiling."""
    cell = r"""
int f(struct pt_regs *ctx, u32 index) {
    char comm[16] = {};
    if (bpf_get_current_pid_tgid() >> 32 != PID) return 0;
    bpf_get_current_comm(comm, sizeof(comm));
    bpf_trace_printk("%s is %s\n", index ? "one" : "zero", bpf_strncmp(comm, 16, COMM) == 0 ? "mine" : "another's");
    return 0;
}
"""
    flags = [f"-DPID={os.getpid()}", f'-DCOMM="{Path("/proc/self/comm").read_text().strip()}"']
    for _ in range(2):
        with bpfnb.trace(cell, name="printed", attach=PGID, cflags=flags) as session:
            _libc.getpgid(0)
            _libc.getpgid(1)
        assert session.df.msg.tolist() == ["zero is mine", "one is mine"]
