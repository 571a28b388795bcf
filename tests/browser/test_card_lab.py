"""A session's card as a person sees it: it moves and stops while a cell runs; what is saved; what a restart leaves."""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib.metadata import version

import pytest
from browsing import Notebook

pytestmark = pytest.mark.timeout(240)

CELLS = [
    "%load_ext bpfnb",
    '%%bpf clones -a syscall:clone=hello\nint hello(void *ctx) { bpf_trace_printk("my bcc program\\n"); return 0; }',
    "import os, time\n"
    "end = time.time() + 60\n"
    "while time.time() < end and clones.state == 'running':\n"
    "    os.waitpid(os.fork() or os._exit(0), 0)\n"
    "    time.sleep(0.02)\n"
    "time.sleep(3)",
    "clones.state, len(clones.df)",
    "clones.stop()",
]
SETUP, TRACE, FORK, STATE, STOP = range(5)
WAITS = 2
HEARS = int(version("ipykernel").split(".")[0]) >= 7  # pages are heard while a cell runs
BADGE = "[class*=bpfnb-badge]"  # of a card that is kept up to date
BUTTONS = ".bpfnb-card button"


def begin(open_notebook: Callable[..., Notebook], name: str, cells: list[str] = CELLS) -> Notebook:
    book = open_notebook(name, cells)
    book.run(SETUP)
    assert "running" in book.run(TRACE)
    book.cell(TRACE).locator(BUTTONS).first.wait_for(timeout=20_000)
    return book


def card(book: Notebook) -> str:
    return str(book.cell(TRACE).locator(".jp-OutputArea").inner_text())


def rows(book: Notebook) -> int:
    found = re.search(r"^([\d,]+)\s+rows$", card(book), re.M) or re.search(r"([\d,]+)\s*\n\s*rows", card(book))
    assert found, card(book)
    return int(found[1].replace(",", ""))


def is_green(book: Notebook) -> bool:
    """Whether the state has the colour of success of JupyterLab's theme."""
    return bool(
        book.cell(TRACE)
        .locator(BADGE)
        .evaluate(
            """badge => {
              const sample = badge.appendChild(document.createElement("i"));
              sample.style.color = "var(--jp-success-color1)";
              const wanted = getComputedStyle(sample).color;
              sample.remove();
              return getComputedStyle(badge).color === wanted;
            }"""
        )
    )


def test_card_moves_and_stop_stops_while_a_cell_runs(notebook: Callable[..., Notebook]) -> None:
    book = begin(notebook, "card.ipynb")
    assert is_green(book)
    book.start(FORK)
    before = rows(book)
    book.until(lambda: rows(book) > before, 15, lambda: f"the card does not move: {card(book)}")
    moved = rows(book)
    book.until(lambda: rows(book) > moved, 15, lambda: f"the card does not go on: {card(book)}")
    book.cell(TRACE).locator(BUTTONS, has_text="Stop").click()
    book.until(lambda: "stopped" in card(book), 15, lambda: f"Stop does nothing: {card(book)}")
    assert book.prompt(FORK) == "[*]:"  # all of this was while the cell ran
    book.cell(TRACE).locator(BUTTONS).first.wait_for(state="detached", timeout=15_000)
    book.until(lambda: book.prompt(FORK) != "[*]:", 30, lambda: "the cell does not end")
    said = book.run(STATE)
    state, count = re.search(r"\('(\w+)', (\d+)\)", said).groups()  # type: ignore[union-attr]
    assert state == "stopped"
    assert rows(book) == int(count) > 0
    assert book.saved(TRACE) == [{"text/html", "text/plain"}] * 3
    saved = book.lab.read("card.ipynb")["cells"][TRACE]["outputs"][0]["data"]
    assert f"stopped, {int(count):,} rows" in "".join(saved["text/plain"])
    assert "running" not in "".join(saved["text/html"])


def test_an_idle_card_sends_nothing_and_a_restart_leaves_no_green(notebook: Callable[..., Notebook]) -> None:
    book = notebook("idle.ipynb", [CELLS[SETUP], CELLS[TRACE].replace("syscall:clone", "syscall:acct")])
    book.run(SETUP)
    book.run(TRACE)
    book.cell(TRACE).locator(BUTTONS).first.wait_for(timeout=20_000)
    assert is_green(book)
    book.page.evaluate(COUNT)
    book.page.wait_for_timeout(2_500)
    assert book.page.evaluate("window.changes") == 0
    assert [len(kinds) for kinds in book.saved(TRACE)] == [2, 2, 2]
    (book.lab.folder / "found.ipynb").write_text((book.lab.folder / "idle.ipynb").read_text())

    book.page.locator(".lm-MenuBar-item", has_text="Kernel").click()
    book.page.locator(".lm-Menu-item", has_text="Restart Kernel…").first.click()
    book.page.locator(".jp-Dialog button.jp-mod-accept").click()
    book.cell(TRACE).locator(BUTTONS).first.wait_for(state="detached", timeout=20_000)
    nothing_broken(book)
    found = notebook("found.ipynb", None)  # a kernel that knows nothing of this widget
    found.until(lambda: found.page.locator("text=Error displaying widget").count(), 20, lambda: "Jupyter has changed")
    nothing_broken(found)
    assert "as of" in card(found)


# Counts changes of the cell's outputs.
COUNT = """() => {
  window.changes = 0;
  new MutationObserver((list) => (window.changes += list.length)).observe(
    document.querySelectorAll(".jp-CodeCell")[1].querySelector(".jp-OutputArea"),
    { childList: true, subtree: true, characterData: true });
}"""


def nothing_broken(book: Notebook) -> None:
    book.until(lambda: not is_green(book), 10, lambda: "the state is still green")
    assert not book.page.locator("text=Error displaying widget").locator("visible=true").count()
    broken = book.page.locator(".jupyter-widgets-disconnected").locator("visible=true")
    icons = [broken.nth(i).evaluate("e => getComputedStyle(e, '::before').content") for i in range(broken.count())]
    assert [icon for icon in icons if icon not in ("none", "normal")] == []


def test_live_opens_the_panel_below_its_card(notebook: Callable[..., Notebook]) -> None:
    book = begin(notebook, "live.ipynb")
    book.cell(TRACE).locator(BUTTONS, has_text="Live").click()
    panel = book.cell(TRACE).locator(".bpfnb-panel")
    panel.wait_for(timeout=20_000)
    assert book.cell(TRACE).locator(BUTTONS).count() == 0
    assert is_green(book)
    book.start(FORK)
    panel.get_by_role("button", name="Stop").click()
    panel.wait_for(state="detached", timeout=20_000)
    book.until(lambda: "stopped" in card(book), 10, lambda: f"the card does not follow: {card(book)}")
    assert card(book).count("stopped") == 1
    assert book.saved(TRACE)[1] == {"text/html", "text/plain"}  # and both are empty


def test_live_from_the_start_is_one_card_and_stop_ends_the_cell_that_waits(notebook: Callable[..., Notebook]) -> None:
    cells = [CELLS[TRACE].replace("clones", f"{options} --live", 1) for options in ("clones -t 3s", "more -t 60s")]
    book = notebook("timed.ipynb", [CELLS[SETUP], *cells])
    book.run(SETUP)
    book.start(TRACE)
    book.cell(TRACE).locator(".bpfnb-panel").wait_for(timeout=20_000)
    book.until(lambda: "of 3 s" in card(book), 15, lambda: f"no time in {card(book)}")
    book.until(lambda: book.prompt(TRACE) != "[*]:", 20, lambda: "the cell does not end")
    assert card(book).count("stopped") == 1
    assert "stopped" in card(book)
    assert "of 3 s" not in card(book)
    if HEARS:
        book.start(WAITS)
        panel = book.cell(WAITS).locator(".bpfnb-panel")
        panel.wait_for(timeout=20_000)
        panel.get_by_role("button", name="Stop", exact=True).click()
        book.until(lambda: book.prompt(WAITS) != "[*]:", 20, lambda: "the cell waits on")
        stopped = book.cell(WAITS).locator(".jp-OutputArea")
        book.until(lambda: "stopped" in stopped.inner_text(), 15, lambda: str(stopped.inner_text()))
