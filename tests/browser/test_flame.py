"""A flame graph in JupyterLab: of a real profile of a program whose functions take known shares, and as it is saved."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from browsing import Notebook

pytestmark = pytest.mark.timeout(240)

# Three quarters of its time in one function, a quarter in another.
SPINNER = r"""
static long spin(long times) { volatile long sum = 0; for (long i = 0; i < times; i++) sum += i; return sum; }
void spin_long(void) { spin(3000000); }
void spin_short(void) { spin(1000000); }
int main(void) { for (;;) { spin_long(); spin_short(); } }
"""
CELLS = [
    "%load_ext bpfnb",
    "import bpfnb, subprocess\n"
    'spinner = subprocess.Popen(["./spinner"])\n'
    "cpu = bpfnb.tools.profile(frequency=499, pid=spinner.pid)\n"
    "cpu.live()",
    "cpu.stop()\nspinner.kill()\nspinner.wait()",
    "cpu.flame()",
]
LOAD, TRACE, STOP, FLAME = range(4)
VIEW = "application/vnd.jupyter.widget-view+json"


def test_a_profile_as_a_flame_graph(notebook: Callable[..., Notebook], tmp_path: Path) -> None:
    (tmp_path / "spinner.c").write_text(SPINNER)
    book = notebook("flames.ipynb", CELLS)
    compiler = shutil.which("cc") or shutil.which("clang")
    assert compiler
    flags = ["-O1", "-fno-inline", "-fno-omit-frame-pointer", "-fno-optimize-sibling-calls"]
    subprocess.run([compiler, *flags, "-o", book.lab.folder / "spinner", tmp_path / "spinner.c"], check=True)
    book.run(LOAD)
    book.run(TRACE)
    live = book.cell(TRACE)
    live.locator(".bpfnb-fl-chart canvas").first.wait_for(timeout=20_000)
    counted = live.locator(".bpfnb-fl-sum")
    book.until(lambda: _count(counted.inner_text()) > 600, 30, lambda: "the live view does not count")
    book.run(STOP)

    book.run(FLAME)
    cell = book.cell(FLAME)
    cell.locator(".bpfnb-fl-chart canvas").first.wait_for(timeout=20_000)
    search = cell.get_by_label("search functions")
    for name, share in ("spin_long", 75), ("spin_short", 25):
        search.fill(name)
        found = re.fullmatch(r"([\d.]+) % \(([\d,]+)\) in 1 function", cell.locator("[role=status]").inner_text())
        assert found
        assert abs(float(found[1]) - share) < 12
    search.fill("")
    tree = cell.get_by_role("tree")
    tree.focus()
    for _ in range(4):
        book.page.keyboard.press("ArrowDown")  # a key that JupyterLab takes where it may
    book.page.keyboard.press("Enter")
    path = cell.locator("nav button").all_inner_texts()
    assert path[:2] == ["all", "spinner"]
    assert path[4:5] == [tree.locator("[aria-selected=true]").get_attribute("aria-label").split(",")[0]]  # type: ignore[union-attr]
    assert cell.locator(".jp-OutputArea-output img").locator("visible=true").count() == 0  # the twin is hidden

    cell.locator(".jp-InputArea .cm-content").click()  # in the graph, keys are the graph's
    assert book.saved(FLAME) == [{VIEW, "text/plain"}, {"text/html", "image/png", "text/plain"}]
    texts = book.lab.read("flames.ipynb")["cells"][FLAME]["outputs"][1]["data"]["text/plain"]
    assert "spin_long" in "".join(texts)
    # The page of somebody who opens it later, without its kernel.
    book.lab.end_kernels()
    later = notebook("flames.ipynb")
    picture = later.cell(FLAME).locator(".jp-OutputArea-output img")
    picture.wait_for(timeout=20_000)
    assert picture.is_visible()
    assert later.page.locator("text=Error displaying widget").locator("visible=true").count() == 0


def _count(text: str) -> int:
    return int(re.sub(r"\D", "", text) or 0)
