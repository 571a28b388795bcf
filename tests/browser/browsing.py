"""JupyterLab and a notebook in it, as the browser lane drives them."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nbformat
from nbformat.v4 import new_code_cell, new_notebook

__all__ = ["CHROMIUM", "TOKEN", "Lab", "Notebook", "serving", "wait_until"]

CHROMIUM = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip

TOKEN = "for-a-test-on-loopback-only"


class Lab:
    """JupyterLab on a folder of its own."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder = folder
        self._port = port

    def url(self, notebook: str, app: str = "lab/tree") -> str:
        return f"http://127.0.0.1:{self._port}/{app}/{notebook}?token={TOKEN}&reset"

    def write(self, notebook: str, cells: list[str]) -> None:
        document = new_notebook(cells=[new_code_cell(cell) for cell in cells])
        document.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
        nbformat.write(document, self.folder / notebook)

    def read(self, notebook: str) -> Any:
        return json.loads((self.folder / notebook).read_text())

    def end_kernels(self) -> None:
        for kernel in json.loads(self.ask("api/kernels")):
            self.ask(f"api/kernels/{kernel['id']}", "DELETE")

    def ask(self, path: str, method: str = "GET") -> bytes:
        headers = {"Authorization": f"token {TOKEN}"}
        request = urllib.request.Request(f"http://127.0.0.1:{self._port}/{path}", method=method, headers=headers)
        with urllib.request.urlopen(request, timeout=30) as answer:
            return bytes(answer.read())


class Notebook:
    """A notebook on a page of JupyterLab, or of Notebook 7: ``app="notebooks"``."""

    def __init__(self, lab: Lab, page: Any, name: str, app: str = "lab/tree") -> None:
        self.lab, self.page, self.name = lab, page, name
        page.goto(lab.url(name, app))
        self._idle = "text=/Python 3 .*\\| Idle/" if app == "lab/tree" else ".jp-NotebookKernelLogo"
        self.wait_for_kernel()

    def wait_for_kernel(self) -> None:
        """Wait until the notebook is on the page, and its kernel waits for cells."""
        self.page.wait_for_selector(".jp-Notebook .jp-CodeCell", timeout=60_000)
        self.page.wait_for_selector(self._idle, timeout=60_000)

    def cell(self, number: int) -> Any:
        return self.page.locator(".jp-Notebook .jp-CodeCell").nth(number)

    def start(self, number: int) -> None:
        """Run a cell and return when it is running, or has run."""
        before = self.prompt(number)
        self.cell(number).locator(".jp-InputArea .cm-content").click()
        self.page.keyboard.press("Control+Enter")
        self.until(lambda: self.prompt(number) != before, 10, lambda: f"cell {number} does not start")

    def run(self, number: int) -> str:
        """Run a cell to its end; the text of its outputs."""
        self.start(number)
        self.until(lambda: self.prompt(number) != "[*]:", 60, lambda: f"cell {number} does not end")
        return str(self.cell(number).locator(".jp-OutputArea").inner_text()) if self.outputs(number) else ""

    def interrupt(self) -> None:
        """Press the notebook's own interrupt button, and wait until no cell runs."""
        self.page.get_by_role("button", name="Interrupt the kernel").first.click()
        # Not the status bar: a panel's acknowledgements make ipykernel say "idle" while a cell runs.
        running = self.page.locator(".jp-InputPrompt", has_text="[*]")
        self.until(lambda: not running.count(), 20, lambda: "a cell runs on")

    def restart(self) -> None:
        """Restart the kernel, by JupyterLab's menu."""
        self.page.locator(".lm-MenuBar-item", has_text="Kernel").first.click()
        self.page.locator(".lm-Menu-item", has_text="Restart Kernel\N{HORIZONTAL ELLIPSIS}").first.click()
        self.page.locator(".jp-Dialog button.jp-mod-accept").click()

    def outputs(self, number: int) -> int:
        return int(self.cell(number).locator(".jp-OutputArea-output").count())

    def prompt(self, number: int) -> str:
        return str(self.cell(number).locator(".jp-InputPrompt").inner_text()).strip()

    def saved(self, number: int) -> list[set[str]]:
        """Save; the mimetypes of each of a cell's outputs in the file."""
        path = self.lab.folder / self.name
        before = path.stat().st_mtime_ns
        self.page.keyboard.press("Control+s")
        self.until(lambda: path.stat().st_mtime_ns != before, 10, lambda: "the notebook is not saved")
        self.page.wait_for_timeout(500)  # it may be written in pieces
        return [set(output.get("data", ())) for output in self.lab.read(self.name)["cells"][number]["outputs"]]

    def until(self, happened: Callable[[], object], seconds: float, what: Callable[[], str]) -> None:
        # Not time.sleep(): Playwright's own loop must go on.
        wait_until(happened, seconds, what, lambda: self.page.wait_for_timeout(100))


def wait_until(
    happened: Callable[[], object], seconds: float, what: Callable[[], str], rest: Callable[[], None] | None = None
) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, what()
        rest() if rest else time.sleep(0.2)


@contextmanager
def serving(base: Path) -> Iterator[Lab]:
    """JupyterLab with nothing of this account's settings, and with no question about news on the page.

    ``base``: an empty folder, for the notebooks and for Jupyter's own.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    lab = Lab(base / "notebooks", port)
    lab.folder.mkdir()
    settings = base / "config" / "labconfig"
    settings.mkdir(parents=True)
    disabled = {"disabledExtensions": {"@jupyterlab/apputils-extension:announcements": True}}
    (settings / "page_config.json").write_text(json.dumps(disabled))
    places = {"JUPYTER_CONFIG_DIR": "config", "JUPYTER_DATA_DIR": "data", "JUPYTER_RUNTIME_DIR": "runtime"}
    command = [
        sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}",
        "--ServerApp.port_retries=0", f"--IdentityProvider.token={TOKEN}", f"--ServerApp.root_dir={lab.folder}",
    ]  # fmt: skip
    environment = os.environ | {name: str(base / folder) for name, folder in places.items()}
    environment["IPYTHONDIR"] = str(base / "ipython")
    log = base / "server.log"
    with log.open("wb") as output:
        server = subprocess.Popen(command, env=environment, stdout=output, stderr=output, stdin=subprocess.DEVNULL)
    try:
        wait_until(lambda: _answers(lab), 60, lambda: f"JupyterLab does not start:\n{log.read_text()[-3000:]}")
        yield lab
        lab.end_kernels()
    finally:
        server.terminate()
        server.wait(30)


def _answers(lab: Lab) -> bool:
    try:
        lab.ask("api/status")
    except OSError:
        return False
    return True
