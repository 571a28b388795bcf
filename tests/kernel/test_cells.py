"""What a cell may hold beside the function that a probe runs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import bpfnb
from bpfnb.errors import CompileError

ROUNDS = 50
MINE = "if (bpf_get_current_pid_tgid() >> 32 != PID) return 0;"
FLAGS = [f"-DPID={os.getpid()}"]
PGID = {"syscall:getpgid": "f"}


def work(rounds: int = ROUNDS) -> None:
    for _ in range(rounds):
        os.getpgid(0)


# --- functions that nothing attaches ------------------------------------------------------------------------------

UNATTACHED = f"""
BPF_PERF_OUTPUT(events);
int f(struct pt_regs *ctx) {{
    u64 one = 1;
    {MINE}
    events.perf_submit(ctx, &one, sizeof(one));
    return 0;
}}
"""


@pytest.mark.parametrize(
    "more",
    [
        "int later(struct pt_regs *ctx) { return PT_REGS_RC(ctx) > 0; }",
        "int twice(int n) { return 2 * n; }",
        "int drop(struct xdp_md *ctx) { return XDP_DROP; }",
        "BPF_ITER(task) { return 0; }",
    ],
)
def test_the_rest_of_a_cell_runs_without_a_function_that_nothing_attaches(more: str) -> None:
    with bpfnb.trace(UNATTACHED + more, name="rest", attach=PGID, cflags=FLAGS) as session:
        work()
        (warning,) = (d for d in session.warnings if "it never runs" in d.message)
    assert len(session.df) == ROUNDS
    assert warning.line == 1 + UNATTACHED.count("\n")


def test_an_error_in_a_function_that_nothing_attaches_is_an_error() -> None:
    with pytest.raises(CompileError, match="undeclared identifier 'nothere'") as caught:
        bpfnb.trace(UNATTACHED + "int g(void *ctx) { return nothere; }", name="rest", attach=PGID, cflags=FLAGS)
    assert caught.value.line == 1 + UNATTACHED.count("\n")


# --- the main output ----------------------------------------------------------------------------------------------


def test_the_main_output_is_not_the_printk_of_an_error_path() -> None:
    cell = UNATTACHED.replace("u64 one", 'if (!ctx) bpf_trace_printk("no context");\n    u64 one')
    with bpfnb.trace(cell, name="main", attach=PGID, cflags=FLAGS) as session:
        work()
    assert session.df.value.tolist() == [1] * ROUNDS
    assert session.outputs["printk"].df.empty


# --- headers of the user's own ------------------------------------------------------------------------------------

HEADER = """#ifndef EVENTS_H
#define EVENTS_H
struct event { u32 pid; u64 number; };
BPF_PERF_OUTPUT(events);
BPF_RINGBUF_OUTPUT(ring, 8);
BPF_HASH(counts, u32, u64);
static inline int submit(void *ctx, u64 number) {
    struct event e = { .pid = bpf_get_current_pid_tgid() >> 32, .number = number };
    counts.increment(e.pid);
    bpf_trace_printk("number %d\\n", number);
    ring.ringbuf_output(&e, sizeof(e), 0);
    return events.perf_submit(ctx, &e, sizeof(e));
}
#endif
"""
INCLUDING = f"""#include <uapi/linux/ptrace.h>
#include "events.h"
#include "again.h"
int f(struct pt_regs *ctx) {{
    {MINE}
    return submit(ctx, 77);
}}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, to which the tracer has no way: nobody but its owner may enter it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "events.h").write_text(HEADER)
    (tmp_path / "again.h").write_text('#pragma once\n#include "events.h"\n')
    return tmp_path


@pytest.mark.parametrize("include", ['"events.h"', '"lib/events.h"', "<events.h>"])
def test_outputs_and_maps_of_an_included_header_are_the_cells(folder: Path, include: str) -> None:
    (folder / "lib").mkdir()
    (folder / "lib/events.h").write_text(HEADER)
    cell = INCLUDING.replace('"events.h"', include)
    with bpfnb.trace(cell, name="included", attach=PGID, cflags=[*FLAGS, "-Ilib"]) as session:
        work()
        assert session.maps["counts"][os.getpid()] == ROUNDS
    for name in ("events", "ring"):
        df = session.outputs[name].df
        assert df[["pid", "number"]].drop_duplicates().values.tolist() == [[os.getpid(), 77]]
        assert len(df) == ROUNDS
    assert session.outputs["printk"].df.msg.tolist() == ["number 77"] * ROUNDS


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ("e.nothing = 1;", "no member named 'nothing' in 'struct event'"),
        ("u32 k = 1; u64 *v = counts.lookup(&k); e.number = *v;", "the verifier refused f"),
    ],
)
def test_an_error_in_a_header_names_the_header_and_its_line(folder: Path, wrong: str, words: str) -> None:
    (folder / "events.h").write_text(HEADER.replace("    counts.increment", f"    {wrong}\n    counts.increment"))
    with pytest.raises(bpfnb.BpfnbError) as caught:
        bpfnb.trace(INCLUDING, name="wrong", attach=PGID, cflags=FLAGS)
    error = caught.value
    assert words in str(error)
    assert str(error).endswith("(in events.h, line 9)")
    assert (error.line, error.source) == (2, INCLUDING)
    assert '    2 | #include "events.h"' in error.report()


@pytest.mark.parametrize(
    ("wrong", "column"),
    [("return nothere;", 12), ("u32 k = 1; u64 *v = counts.lookup(&k); return *v;", None)],
)
def test_an_error_behind_a_header_has_the_cells_own_line(folder: Path, wrong: str, column: int | None) -> None:
    with pytest.raises(bpfnb.BpfnbError) as caught:
        bpfnb.trace(INCLUDING.replace("return submit(ctx, 77);", wrong), name="wrong", attach=PGID, cflags=FLAGS)
    assert (caught.value.line, caught.value.column) == (6, column)
    assert f"    6 |     {wrong}" in caught.value.report()


def test_a_header_that_is_not_there_is_missed_where_it_is_included(folder: Path) -> None:
    with pytest.raises(CompileError, match=r"line 3: 'nothere\.h' file not found"):
        bpfnb.trace(INCLUDING.replace("again.h", "nothere.h"), name="missing", attach=PGID, cflags=FLAGS)
