"""What a cell may hold beside the function that a probe runs."""

from __future__ import annotations

import os

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
