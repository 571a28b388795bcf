"""The panel as a person sees it in JupyterLab: it moves and obeys while a cell runs; what is saved of it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from browsing import Notebook

pytestmark = pytest.mark.timeout(240)

HELLO = """%%bpf clones -a syscall:clone=hello{}
int hello(void *ctx) {{ bpf_trace_printk("my bcc program\\n"); return 0; }}"""
FORK = (
    "import os, time\n"
    "end = time.time() + {}\n"
    "while time.time() < end{}:\n"
    "    os.waitpid(os.fork() or os._exit(0), 0)\n"
    "    time.sleep(0.02)"
)
CELLS = [
    "%load_ext bpfnb",
    HELLO.format(""),
    "clones.live()",
    FORK.format(60, " and clones.state == 'running'") + "\ntime.sleep(3)",
    "clones.state",
    "clones.stop()",
    "import gc\nfrom bpfnb.views.live.panel import Panel\n"
    "sum(isinstance(one, Panel) and not one.closed for one in gc.get_objects())",
]
SETUP, TRACE, LIVE, BUSY, STATE, STOP, PANELS = range(7)
VIEW = "application/vnd.jupyter.widget-view+json"
HEARS = int(version("ipykernel").split(".")[0]) >= 7  # pages are heard while a cell runs


def begin(open_notebook: Callable[..., Notebook], name: str) -> Notebook:
    """A notebook with a session running and its panel on the page."""
    book = open_notebook(name, CELLS)
    book.run(SETUP)
    book.run(TRACE)
    book.start(LIVE)
    panel(book).locator(".bpfnb-view canvas").first.wait_for(timeout=20_000)
    book.until(lambda: state(book) == "live", 10, lambda: f"the panel is {state(book)}")
    return book


def panel(book: Notebook, cell: int = LIVE) -> Any:
    return book.cell(cell).locator(".bpfnb-panel")


def state(book: Notebook, cell: int = LIVE) -> Any:
    return panel(book, cell).get_attribute("data-state")


def rows(book: Notebook, cell: int = LIVE) -> int:
    """The number of rows that the panel shows."""
    return int(panel(book, cell).locator(".bpfnb-count dd").first.inner_text().replace(",", ""))


def press(book: Notebook, name: str, cell: int = LIVE) -> None:
    panel(book, cell).get_by_role("button", name=name, exact=True).click()


def errors(book: Notebook) -> int:
    return int(book.page.locator("text=Error displaying widget").locator("visible=true").count())


class Wire:
    """The messages that this page gets on kernels' websockets, by what they are."""

    def __init__(self, page: Any) -> None:
        self.frames = self.others = self.bytes = 0
        page.on("websocket", lambda socket: socket.on("framereceived", self._receive))

    def _receive(self, data: Any) -> None:
        raw = data if isinstance(data, bytes) else str(data).encode()
        self.bytes += len(raw)
        if b'"comm_msg"' in raw and b'"frame"' in raw and b'"base"' in raw:  # of a card there are others
            self.frames += 1
        else:
            self.others += 1


@pytest.mark.skipif(not HEARS, reason="ipykernel 6 hears a page between cells only")
def test_panel_moves_pauses_and_stops_while_a_cell_runs(notebook: Callable[..., Notebook]) -> None:
    book = begin(notebook, "story.ipynb")
    assert panel(book).count() == 1  # the cell's last expression shows it once
    assert not book.cell(LIVE).locator("img").locator("visible=true").count()  # the twins are hidden
    book.start(BUSY)
    first = rows(book)
    book.until(lambda: rows(book) > first, 10, lambda: "the numbers do not move")
    second = rows(book)
    book.until(lambda: rows(book) > second, 10, lambda: "the numbers do not go on moving")
    press(book, "Pause")
    book.until(lambda: state(book) == "paused", 10, lambda: "it is not paused")
    held = rows(book)
    book.page.wait_for_timeout(1_500)
    assert rows(book) == held
    press(book, "Resume")
    book.until(lambda: rows(book) > held, 15, lambda: "the numbers do not go on")
    press(book, "Stop")
    panel(book).wait_for(state="detached", timeout=15_000)
    assert book.prompt(BUSY) == "[*]:"  # all of this was while the cell ran
    left = book.cell(LIVE).locator(".jp-OutputArea")
    book.until(lambda: "stopped" in left.inner_text(), 15, lambda: f"what is left says {left.inner_text()}")
    assert errors(book) == 0
    book.until(lambda: book.prompt(BUSY) != "[*]:", 20, lambda: "the cell runs on")
    assert "stopped" in book.run(STATE)
    saved = book.saved(LIVE)
    assert {"image/png", "text/plain"} in saved
    assert VIEW not in set.union(*saved)


@pytest.mark.skipif(HEARS, reason="newer ipykernels hear pages at once")
def test_where_a_page_is_heard_between_cells_the_panel_says_so_and_moves(notebook: Callable[..., Notebook]) -> None:
    book = begin(notebook, "six.ipynb")
    note = panel(book).locator(".bpfnb-note")
    assert not note.is_visible()
    book.start(BUSY)
    first = rows(book)
    book.until(lambda: rows(book) > first, 10, lambda: "the numbers do not move")
    assert "interrupt button" in note.inner_text()
    press(book, "Stop")
    book.interrupt()
    panel(book).wait_for(state="detached", timeout=10_000)
    assert "stopped" in book.run(STATE)


def test_panel_that_cannot_be_seen_is_sent_nothing_and_asks_only_its_own_server(
    notebook: Callable[..., Notebook],
) -> None:
    book = notebook("hidden.ipynb", [*CELLS, *["# nothing"] * 60])
    wire = Wire(book.page)
    asked: list[str] = []
    book.page.on("request", lambda request: asked.append(request.url))
    book.page.reload()
    book.wait_for_kernel()
    book.run(SETUP)
    book.run(TRACE)
    book.run(LIVE)
    # Events without a running cell, whose messages would be counted too.
    with subprocess.Popen([sys.executable, "-c", FORK.format(60, "")]) as forks:
        first = rows(book)
        book.until(lambda: rows(book) > first, 10, lambda: "the numbers do not move")
        book.cell(60).scroll_into_view_if_needed()
        book.page.wait_for_timeout(1_500)
        sent = wire.frames
        book.page.wait_for_timeout(2_500)
        assert wire.frames == sent
        book.cell(LIVE).scroll_into_view_if_needed()
        book.until(lambda: wire.frames > sent, 15, lambda: "it does not go on where it is seen again")
        press(book, "Pause")
        book.until(lambda: state(book) == "paused", 10, lambda: "it is not paused")
        book.page.wait_for_timeout(500)
        sent = wire.frames
        book.page.wait_for_timeout(2_500)
        assert wire.frames == sent
        press(book, "Resume")
        book.until(lambda: wire.frames > sent, 15, lambda: "it does not resume")
        forks.terminate()
    book.run(STOP)
    assert len(asked) > 10
    strangers = [url for url in asked if not url.startswith((book.lab.url("")[:21], "data:", "blob:"))]
    assert not strangers


def test_cell_run_again_has_one_panel_and_both_tabs_are_live(notebook: Callable[..., Notebook]) -> None:
    book = begin(notebook, "tabs.ipynb")
    book.run(LIVE)
    book.until(lambda: panel(book).count() == 1 and state(book) == "live", 10, lambda: "there is not one panel")
    assert book.run(PANELS).strip().endswith("1")
    book.saved(LIVE)
    other = notebook("tabs.ipynb", None)
    panel(other).locator(".bpfnb-view canvas").first.wait_for(timeout=20_000)
    book.page.bring_to_front()
    book.start(BUSY)
    first = rows(book), rows(other)
    for each in (book, other):
        each.until(lambda each=each: rows(each) > max(first), 10, lambda: "a page does not move")
    if HEARS:
        press(book, "Stop")
    else:
        book.interrupt()
        book.run(STOP)
    for each in (book, other):
        panel(each).wait_for(state="detached", timeout=10_000)


def test_saved_while_running_it_has_pictures_and_a_restart_leaves_the_last_frame(
    notebook: Callable[..., Notebook], browser: Any
) -> None:
    book = begin(notebook, "running.ipynb")
    pictures = {"image/svg+xml", "image/png"}
    book.until(lambda: pictures & set.union(*book.saved(LIVE)), 10, lambda: "there is no twin")
    assert VIEW in book.saved(LIVE)[0]
    # The same file under another name gets a kernel that knows nothing of these widgets.
    (book.lab.folder / "found.ipynb").write_text((book.lab.folder / "running.ipynb").read_text())
    found = notebook("found.ipynb", None)
    found.until(lambda: found.page.locator("text=Error displaying widget").count(), 20, lambda: "Jupyter has changed")
    assert errors(found) == 0
    twin = found.cell(LIVE).locator("img").locator("visible=true").first
    twin.wait_for(timeout=5_000)
    assert twin.evaluate("image => image.naturalWidth") >= 300
    assert panel(book).count() == 1
    has_pictures_for_nbconvert(book.lab.folder, browser)
    book.page.bring_to_front()
    book.restart()
    book.until(lambda: state(book) == "gone", 15, lambda: f"the panel is {state(book)}")
    assert "the kernel is gone" in panel(book).inner_text()
    assert panel(book).get_by_role("button", name="Stop").is_disabled()
    broken = "element => getComputedStyle(element.closest('.jupyter-widgets') ?? element, '::before').content"
    assert panel(book).evaluate(broken) in ("none", "normal")
    book.run(SETUP)
    book.run(TRACE)
    book.run(LIVE)
    book.until(lambda: panel(book).count() == 1 and state(book) == "live", 10, lambda: "it does not begin again")
    book.run(STOP)


def has_pictures_for_nbconvert(folder: Path, browser: Any) -> None:
    command = [sys.executable, "-m", "nbconvert", "--to", "html", "running.ipynb"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=60)
    page = browser.new_page()
    page.route("**/*", lambda route: route.continue_() if route.request.url.startswith("file:") else route.abort())
    page.goto((folder / "running.html").as_uri(), wait_until="domcontentloaded")
    assert page.locator(".jp-OutputArea img, .jp-OutputArea svg").locator("visible=true").count()
    page.close()


def test_notebook_7_shows_it_live_and_stops_it(notebook: Callable[..., Notebook]) -> None:
    book = notebook("seven.ipynb", CELLS, "notebooks")
    book.run(SETUP)
    book.run(TRACE)
    book.run(LIVE)
    book.until(lambda: panel(book).count() == 1 and state(book) == "live", 10, lambda: "there is no live panel")
    press(book, "Stop")
    panel(book).wait_for(state="detached", timeout=15_000)
    assert "stopped" in book.run(STATE)
