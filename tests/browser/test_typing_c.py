"""Tab and Shift-Tab in the C of a cell, as a person presses them in JupyterLab."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from browsing import Notebook

pytestmark = pytest.mark.timeout(240)

CELLS = [
    # What the kernel's types take the first time, a Tab does not wait for on a busy machine.
    "%load_ext bpfnb\n"
    "from bpfnb.hosts import default_host\n"
    "default_host.connect().describe_type('struct task_struct', (), 1).size > 1000",
    """%%bpf tasks
BPF_HASH(counts, u32, u64);
int f(void *ctx) {
    struct task_struct *task = (struct task_struct *)bpf_get_current_task();
    u64 now = bpf_ktime_get_ns();
    """,
]
SETUP, C = range(2)


def at_the_end(book: Notebook, typed: str) -> Any:
    """Put the cursor behind the cell's text, and type."""
    book.cell(C).locator(".jp-InputArea .cm-content").click()
    book.page.keyboard.press("Control+End")
    book.page.keyboard.type(typed)
    return book.page.locator(".jp-Completer")


def press_tab_until(book: Notebook, shown: Any) -> None:
    """JupyterLab waits a second for a kernel, on a busy machine too; then one presses Tab again."""

    def visible() -> bool:
        if not shown.is_visible():
            book.page.keyboard.press("Tab")
            book.page.wait_for_timeout(1_500)
        return bool(shown.is_visible())

    book.until(visible, 30, lambda: str(book.page.locator(".jp-Completer").all_inner_texts()))


def test_tab_offers_members_and_shift_tab_explains_a_helper(notebook: Callable[..., Notebook]) -> None:
    book = notebook("typing.ipynb", CELLS)
    assert "True" in book.run(SETUP)
    offered = at_the_end(book, "task->start_bo")
    press_tab_until(book, offered.locator("text=start_boottime"))
    assert offered.locator(".jp-Completer-item").all_inner_texts() == ["u\nstart_boottime\nu64"]
    book.page.keyboard.press("Enter")
    offered.wait_for(state="hidden")
    line = book.cell(C).locator(".cm-line").last
    book.until(lambda: "task->start_boottime" in line.inner_text(), 10, lambda: str(line.inner_text()))
    book.page.keyboard.type("; counts.l")
    press_tab_until(book, offered.locator("text=lookup_or_try_init"))
    items = offered.locator(".jp-Completer-item").all_inner_texts()
    assert len(items) == 2, items
    assert "u64 *(u32 *key)" in items[0].replace("\N{NO-BREAK SPACE}", " ")
    book.page.keyboard.press("Escape")
    offered.wait_for(state="hidden")
    book.page.keyboard.type("; bpf_ktime_get_ns")
    book.page.keyboard.press("Shift+Tab")
    tooltip = book.page.locator(".jp-Tooltip")
    tooltip.locator("text=since Linux 4.1").wait_for(timeout=10_000)
    assert "u64 bpf_ktime_get_ns(void)" in tooltip.inner_text()
