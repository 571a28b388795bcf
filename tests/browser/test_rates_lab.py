"""Rates in JupyterLab: two outputs are two lines, the values under the cursor and what is brushed are those of a
workload that keeps count."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any

import pytest
from browsing import Notebook

pytestmark = pytest.mark.timeout(240)

# Each second's calls are made well within it: workload and kernel agree which second it was.
CELLS = [
    "%load_ext bpfnb\nimport os\npid = os.getpid()",
    """%%bpf two -a syscall:getsid=sessions_of -a syscall:getpgid=groups_of --pid {pid}
struct event { u64 n; };
BPF_PERF_OUTPUT(sessions);
BPF_PERF_OUTPUT(groups);
int sessions_of(void *ctx) { struct event e = {}; sessions.perf_submit(ctx, &e, sizeof(e)); return 0; }
int groups_of(void *ctx) { struct event e = {}; groups.perf_submit(ctx, &e, sizeof(e)); return 0; }
""",
    "panel = two.live()",
    """import time
made = {}
for turn in range(6):
    second = int(time.time()) + 1
    time.sleep(max(second + 0.3 - time.time(), 0))
    made[second] = 20 + turn, 5 * turn + 1
    for _ in range(made[second][0]):
        os.getsid(0)
    for _ in range(made[second][1]):
        os.getpgid(0)
print(made)""",
    "begin, end = panel.selection; print([begin.timestamp(), end.timestamp(), len(panel.df)])",
    "two.stop()",
]
SETUP, TRACE, LIVE, WORK, SELECTED, STOP = range(6)


def test_two_outputs_in_jupyterlab(notebook: Callable[..., Notebook]) -> None:
    book = notebook("two.ipynb", CELLS)
    book.run(SETUP)
    assert "running" in book.run(TRACE)
    book.run(LIVE)
    view = book.cell(LIVE).locator(".bpfnb-view[data-kind='rates']")
    view.locator(".u-over").wait_for(timeout=20_000)
    made: dict[int, tuple[int, int]] = ast.literal_eval(book.run(WORK).strip())
    names = view.locator(".bpfnb-rt-legend .bpfnb-rt-entry-name")
    book.until(lambda: names.all_inner_texts() == ["sessions", "groups"], 10, lambda: str(names.all_inner_texts()))
    book.page.wait_for_timeout(1_500)  # the last second is over, and sent
    view.scroll_into_view_if_needed()

    found: dict[int, tuple[float, float]] = {}
    box = view.locator(".u-over").bounding_box()
    for place in range(int(box["width"] * 0.75), int(box["width"]), 4):
        book.page.mouse.move(box["x"] + place, box["y"] + 60)
        found.update(pointed_at(view, made))
    assert {second: values for second, values in found.items() if second in made} == made

    book.page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + 60)
    book.page.mouse.down()
    book.page.mouse.move(box["x"] + box["width"] * 0.7, box["y"] + 60)
    book.page.mouse.move(box["x"] + box["width"] * 0.93, box["y"] + 60)
    book.page.mouse.up()
    view.locator(".bpfnb-rt-range", has_text="in panel.df").wait_for(timeout=10_000)
    book.page.wait_for_timeout(500)
    begin, end, rows = ast.literal_eval(book.run(SELECTED).strip())
    within = [made[second][0] for second in made if begin <= second < end]
    assert 0 < len(within) <= len(made)
    assert rows == sum(within)  # of the output that session.df has, too
    book.run(STOP)
    assert book.page.locator("text=Error displaying widget").locator("visible=true").count() == 0


def pointed_at(view: Any, made: dict[int, tuple[int, int]]) -> dict[int, tuple[float, float]]:
    """The second under the cursor, and what is said of it: sessions, groups."""
    tip = view.locator(".bpfnb-rt-tip")
    said = tip.evaluate("""tip => tip.hidden ? null : [
        tip.querySelector(".bpfnb-rt-tip-time").textContent,
        [...tip.querySelectorAll(".bpfnb-rt-entry")].map(({ children }) => [1, 2].map((n) => children[n].textContent)),
    ]""")
    if said is None or len(said[1]) != 2:
        return {}
    day = datetime.fromtimestamp(min(made), timezone.utc).date()
    clock = re.findall(r"\d\d:\d\d:\d\d", said[0])[0]
    second = int(datetime.fromisoformat(f"{day}T{clock}+00:00").timestamp())
    values = {name: float(value) for name, value in said[1]}
    return {second: (values["sessions"], values["groups"])}
