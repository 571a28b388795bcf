"""The exercises' checks: wrong answers are not right. That the folded answers are is seen when the notebooks run."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest

import bpfnb
from bpfnb.hosts import default_host

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"
sys.path.insert(0, str(NOTEBOOKS))

import exercises  # noqa: E402 (it lies in notebooks/)

QUICK = r"""
struct data_t { u32 pid; u32 ms; };
BPF_HASH(last);
BPF_PERF_OUTPUT(events);
int f(struct pt_regs *ctx) {
    u64 key = 0, now = bpf_ktime_get_ns(), *then = last.lookup(&key);
    struct data_t data = { .pid = bpf_get_current_pid_tgid() >> 32, .ms = then ? (now - *then) / 1000 : 0 };
    events.perf_submit(ctx, &data, sizeof(data));
    last.update(&key, &now);
    return 0;
}"""
ONCE = """
BPF_HASH(counts);
int kprobe__sys_sync(void *ctx) { u64 key = 0, one = 1; counts.update(&key, &one); return 0; }"""
PRINTS = 'int f(void *ctx) { bpf_trace_printk("%d\\n", 0); return 0; }'
WRONG: dict[str, tuple[Callable[[], bpfnb.Session], str]] = {
    "caller": (lambda: bpfnb.trace(PRINTS, name="caller", attach={"syscall:clone": "f"}), "says '0'"),
    "ends": (lambda: bpfnb.trace(PRINTS, name="ends", attach={"syscall:sync": "f"}), "the return of sync alone"),
    "made": (lambda: bpfnb.trace(PRINTS, name="made", attach={"syscall:clone": "f"}), "15 processes were made"),
    "setuids": (lambda: bpfnb.rows("syscall:setuid", ["pid"], name="setuids"), "no column uid"),
    "sync_count": (lambda: bpfnb.trace(ONCE, name="sync_count"), "the count grew by"),
    "touched": (lambda: bpfnb.stacks("software:page-faults:1000", by="comm", name="touched"), "400 fresh pages"),
    "misses": (lambda: bpfnb.count("syscall:openat", by="comm", name="misses"), "no column errno"),
    "quick": (lambda: bpfnb.trace(QUICK, name="quick", attach={"syscall:sync": "f"}), "the milliseconds cannot be"),
    "strings": (lambda: bpfnb.count("uprobe:c:strlen", by="comm", comm="measurer", name="strings"), "0 are counted"),
    "switches": (lambda: bpfnb.count("tracepoint:sched:sched_switch", by="prev_pid", name="switches"), "two columns"),
}


@pytest.mark.usefixtures("tracing")
def test_wrong_answers_are_not_right_and_are_stopped() -> None:
    try:
        for name, (answer, said) in WRONG.items():
            session = answer()
            verdict = exercises.check(name, {name: session})
            assert not verdict, name
            assert repr(verdict).startswith("Not yet: ")
            assert said in repr(verdict)
            assert "\n" not in repr(verdict)
            assert session.state == "stopped"
            assert "Run the cell above again" in repr(exercises.check(name, {name: session}))
    finally:
        bpfnb.stop_all()
        default_host.close()


def test_without_an_answer_it_says_what_to_do() -> None:
    assert repr(exercises.check("ends", {})) == (
        "Not yet: there is no session called ends. Write it in the cell above, and run it"
    )
    assert not exercises.check("ends", {"ends": 5})
    with pytest.raises(ValueError, match="there is no exercise 'nothing'"):
        exercises.check("nothing", {})


def test_each_exercise_has_its_cells_in_order() -> None:
    found = []
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        cells = nbformat.read(path, as_version=4).cells
        for at, cell in enumerate(cells):
            if "exercise" in cell.metadata.get("tags", ()):
                name = cell.id.removesuffix("-yours")
                assert [c.id for c in cells[at - 1 : at + 3]] == [
                    f"{name}-{w}" for w in ("task", "yours", "check", "answer")
                ]
                assert cells[at + 2].source.count("<details>") == 2
                found.append(name)
    assert sorted(found) == sorted(WRONG)
