"""A refused program as a person sees it: the reason at once, the whole log one click away."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from browsing import Notebook

pytestmark = pytest.mark.timeout(240)

CELLS = [
    "%load_ext bpfnb",
    """%%bpf counted -a syscall:sync=f
BPF_HASH(counts, u32, u64);
int f(void *ctx) {
    u32 pid = bpf_get_current_pid_tgid() >> 32; // <b>"&amp;
    u64 *count = counts.lookup(&pid);
    *count += 1;
    return 0;
}""",
    """%%bpf misspelt
TRACEPOINT_PROBE(sched, sched_process_fork) {
    bpf_trace_printk("%d\\\\n", args->child_pod);
    return 0;
}""",
]
SETUP, REFUSED, MISSPELT = range(3)


def test_the_log_is_one_click_away_and_a_misspelt_field_has_its_place(notebook: Callable[..., Notebook]) -> None:
    book = notebook("refused.ipynb", CELLS)
    book.run(SETUP)
    said = book.run(REFUSED)
    assert "VerifierError: line 6: the verifier refused f: R0 invalid mem access 'map_value_or_null'" in said
    assert "hint: check the pointer before it is used" in said
    assert "Traceback" not in said
    output = book.cell(REFUSED).locator(".jp-OutputArea")
    log = output.locator("details pre")
    assert not log.is_visible()
    output.locator("summary").click()
    log.wait_for(state="visible", timeout=5_000)
    assert "call bpf_map_lookup_elem#1" in log.inner_text()
    assert '// <b>"&amp;' in log.inner_text()  # what a cell holds is text, also in a page

    said = book.run(MISSPELT)
    assert "line 3: the tracepoint sched:sched_process_fork has no field child_pod" in said
    assert "child_pid" in said
    caret = next(line for line in said.splitlines() if line.strip("| ") == "^")
    code = next(line for line in said.splitlines() if "args->child_pod" in line and " | " in line)
    assert caret.index("^") == code.index("child_pod")
