"""The editor knows that a %%bpf cell is C, in JupyterLab and Notebook 7, by the extension that pip installs."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from browsing import Lab, Notebook

pytestmark = pytest.mark.timeout(240)

ROOT = Path(__file__).resolve().parents[2]
C = """%%bpf quiet -a syscall:sync=f
// a note // in C
int f(void *ctx) {
    return 0;
}"""
PYTHON = "x = 7 // 2  # a note in Python"
NOTE, BODY = 1, 3  # lines of C

# The spans of a cell's lines: text, and whether it is set as a comment.
SPANS = """cell => [...cell.querySelectorAll('.cm-line')].map(line => [...line.querySelectorAll('span')].map(
    span => [span.textContent, getComputedStyle(span).fontStyle === 'italic']))"""

# A kernel of another language, which runs nothing.
OTHER = """
from ipykernel.kernelapp import IPKernelApp
from ipykernel.kernelbase import Kernel

class Other(Kernel):
    implementation = banner = "other"
    implementation_version = "1"
    language_info = {"name": "bash", "mimetype": "text/x-sh", "file_extension": ".sh"}

IPKernelApp.launch_instance(kernel_class=Other)
"""


@pytest.fixture(autouse=True, scope="module")
def built() -> None:
    def files(folder: Path) -> dict[str, bytes]:
        return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}

    installed = files(Path(sys.prefix, "share/jupyter/labextensions/bpfnb"))
    assert installed.pop("install.json", None), "the extension is not in this environment: run scripts/setup"
    assert installed == files(ROOT / "bpfnb/labextension"), (
        "this environment has another build of it: run scripts/setup"
    )


def comments(book: Notebook, number: int) -> list[str]:
    """What the editor sets as comments in a cell."""
    return [text for line in book.cell(number).evaluate(SPANS) for text, comment in line if comment]


def is_set(book: Notebook, number: int, note: str) -> None:
    book.until(lambda: comments(book, number) == [note], 10, lambda: f"cell {number}: {comments(book, number)}")


def is_c(book: Notebook, number: int) -> None:
    is_set(book, number, "// a note // in C")


def is_python(book: Notebook, number: int) -> None:
    book.until(lambda: comments(book, number) != ["// a note // in C"], 10, lambda: f"cell {number} is still C")


def text(book: Notebook, number: int) -> str:
    return "\n".join(book.cell(number).locator(".cm-line").all_inner_texts()).replace("\u200b", "")


def click(book: Notebook, number: int, line: int, key: str = "End") -> None:
    book.cell(number).locator(".cm-line").nth(line).click()
    book.page.keyboard.press(key)


def press(book: Notebook, *keys: str) -> None:
    for key in keys:
        book.page.keyboard.press(key)


def becomes(book: Notebook, number: int, wanted: str) -> None:
    book.until(lambda: text(book, number) == wanted, 5, lambda: f"cell {number} is:\n{text(book, number)}")


def edits_as_c(book: Notebook, number: int) -> None:
    """The comment key, the indentation, and the whole cell put aside and brought back."""
    click(book, number, BODY)
    press(book, "Control+/")
    becomes(book, number, C.replace("    return 0;", "    // return 0;"))
    press(book, "Control+/")
    becomes(book, number, C)
    click(book, number, BODY)
    press(book, "Enter")
    book.page.keyboard.type("for (;;) {")
    press(book, "Enter")
    book.page.keyboard.type("f;")
    becomes(book, number, C.replace("return 0;", "return 0;\n    for (;;) {\n        f;"))
    press(book, "Control+a", "Control+/")
    book.until(lambda: text(book, number).startswith("# %%bpf quiet"), 5, lambda: text(book, number))
    is_python(book, number)
    press(book, "Control+/")
    is_c(book, number)


def test_a_cell_is_c_as_long_as_its_first_line_says_so(notebook: Callable[..., Notebook]) -> None:
    book = notebook("editor.ipynb", ["%load_ext bpfnb", C, PYTHON, "y = 1"])
    is_c(book, 1)
    is_set(book, 2, "# a note in Python")
    head = book.cell(1).evaluate(SPANS)[0]
    assert [span for span, _ in head] == ["%%bpf", "-a"]  # the first line is no C
    edits_as_c(book, 1)

    # Taken back and given again, by a letter and by an undo.
    click(book, 1, 0, "Home")
    book.page.keyboard.type("x")
    is_python(book, 1)
    press(book, "Backspace")
    is_c(book, 1)
    for before, c in (("\n  \n", True), ("# ", False), ("%%time\n", False)):
        press(book, "Control+a")
        book.page.keyboard.insert_text(before + C)
        (is_c if c else is_python)(book, 1)
    for wrong in ("%%bpftrace", "%%bpf?", "%bpf"):
        press(book, "Control+a")
        book.page.keyboard.insert_text(C.replace("%%bpf", wrong))
        is_python(book, 1)
    press(book, "Control+a")
    book.page.keyboard.insert_text(C)
    is_c(book, 1)

    # Copied, moved, split, deleted and brought back.
    press(book, "Escape", "c", "v")
    book.until(lambda: text(book, 2) == C, 5, lambda: text(book, 2))
    is_c(book, 2)
    press(book, "Control+Shift+ArrowDown")
    book.until(lambda: text(book, 3) == C, 5, lambda: text(book, 3))
    is_c(book, 3)
    click(book, 3, BODY, "Home")
    press(book, "Control+Shift+-")
    book.until(lambda: text(book, 4).strip() == "return 0;\n}", 5, lambda: text(book, 4))
    is_c(book, 3)
    book.page.wait_for_timeout(600)  # what follows sooner is undone together
    press(book, "Escape", "ArrowUp", "d", "d")
    book.until(lambda: text(book, 3).startswith("return"), 5, lambda: text(book, 3))
    press(book, "z")
    book.until(lambda: text(book, 3).startswith("%%bpf"), 5, lambda: text(book, 3))
    is_c(book, 3)


def asked(book: Notebook, sent: list[bytes], key: str, request: bytes) -> bytes:
    """Press a key until the kernel is asked: JupyterLab attends to it a moment after a cell became the active one."""
    book.until(lambda: press(book, key) or any(request in frame for frame in sent), 10, lambda: f"{key} asks nobody")
    return next(frame for frame in sent if request in frame)


def test_the_kernel_is_asked_as_before(notebook: Callable[..., Notebook]) -> None:
    """Tab and Shift-Tab; a restart, after which JupyterLab sets the language of all cells; the saved file."""
    book = notebook("asked.ipynb", ["%load_ext bpfnb", C, PYTHON])
    sent: list[bytes] = []
    book.page.on("websocket", lambda socket: socket.on("framesent", lambda frame: sent.append(bytes(frame))))
    book.page.reload()
    book.wait_for_kernel()
    is_c(book, 1)
    book.run(0)
    click(book, 1, BODY)
    book.page.keyboard.type(" bpf_get_curr")
    for key, request in (("Shift+Tab", b"inspect_request"), ("Tab", b"complete_request")):
        frame = asked(book, sent, key, request)
        assert json.dumps(C.replace("return 0;", "return 0; bpf_get_curr")).encode() in frame
    press(book, "Escape", "Escape", "0", "0")
    book.page.locator(".jp-Dialog .jp-mod-accept").click()
    book.page.locator(".jp-Dialog").wait_for(state="detached")
    book.wait_for_kernel()
    book.until(lambda: book.run(2) is not None and book.prompt(2) == "[1]:", 20, lambda: "no restart")
    is_c(book, 1)
    book.saved(1)
    cells = book.lab.read("asked.ipynb")["cells"]
    assert [set(cell["metadata"]) - {"trusted"} for cell in cells] == [set()] * 3
    assert "x-bpf" not in json.dumps(cells)


def test_other_languages_are_left_alone(lab: Lab, notebook: Callable[..., Notebook]) -> None:
    (lab.folder.parent / "other.py").write_text(OTHER)
    spec = {"argv": [sys.executable, str(lab.folder.parent / "other.py"), "-f", "{connection_file}"]}
    folder = lab.folder.parent / "data/kernels/other"
    folder.mkdir(parents=True)
    (folder / "kernel.json").write_text(json.dumps(spec | {"display_name": "Python 3 no more", "language": "bash"}))
    lab.write("second.ipynb", [C])
    lab.write("other.ipynb", ["%%bpf x\n# a note of bash\n// in C"])
    document = lab.read("other.ipynb")
    document["metadata"]["kernelspec"] = {"name": "other", "display_name": "Other", "language": "bash"}
    (lab.folder / "other.ipynb").write_text(json.dumps(document))
    book = notebook("other.ipynb", None)
    book.until(lambda: comments(book, 0) == ["# a note of bash"], 10, lambda: str(comments(book, 0)))
    # A second notebook in the same page.
    book.page.locator(".jp-DirListing-item", has_text="second.ipynb").dblclick()
    second = book.page.locator(".jp-NotebookPanel:not(.lm-mod-hidden) .jp-CodeCell")
    book.until(lambda: "// a note // in C" in str(second.first.evaluate(SPANS)), 20, lambda: "the second is not C")


def test_notebook_7_alike(lab: Lab, browser: Any) -> None:
    lab.write("seven.ipynb", [C, PYTHON])
    page = browser.new_page(viewport={"width": 1150, "height": 1000})
    book = Notebook(lab, page, "seven.ipynb", "notebooks")
    is_c(book, 0)
    is_set(book, 1, "# a note in Python")
    edits_as_c(book, 0)
    page.close()
    lab.end_kernels()
