"""The browser lane: a real JupyterLab, a real kernel, a real Chromium.

BPFNB_BROWSER_TESTS: unset runs where Chromium is installed, 0 skips, 1 insists.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from browsing import TOKEN, Lab, Notebook, wait_until
from pages import PanelPage

_CHROMIUM = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip


@pytest.fixture(scope="session")
def chromium() -> str:
    """Chromium's path, where this lane is to run."""
    wanted = os.environ.get("BPFNB_BROWSER_TESTS")
    if wanted == "0":
        pytest.skip("BPFNB_BROWSER_TESTS=0")
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        message = "no Chromium here: scripts/setup --test installs it"
        if wanted == "1":
            pytest.fail(message)
        pytest.skip(f"{message}; BPFNB_BROWSER_TESTS=1 makes this a failure")
    return path


@pytest.fixture(scope="session")
def lab(chromium: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    base = tmp_path_factory.mktemp("lab")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    lab = Lab(base / "notebooks", port)
    lab.folder.mkdir()
    with _server(base, lab, port):
        yield lab


@contextmanager
def _server(base: Path, lab: Lab, port: int) -> Iterator[None]:
    """JupyterLab with nothing of this account's settings, and with no question about news on the page."""
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
        yield
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


@pytest.fixture(scope="session")
def browser(chromium: str) -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=_CHROMIUM)
        yield browser
        browser.close()


@pytest.fixture
def notebook(lab: Lab, browser: Any) -> Iterator[Callable[[str, list[str] | None], Notebook]]:
    """Opens notebooks, each on a page of its own: ``notebook(name, cells)`` writes it first."""
    pages = []

    def opened(name: str, cells: list[str] | None = None, app: str = "lab/tree") -> Notebook:
        if cells is not None:
            lab.write(name, cells)
        pages.append(browser.new_page(viewport={"width": 1150, "height": 1000}))
        return Notebook(lab, pages[-1], name, app)

    yield opened
    for page in pages:
        page.close()
    lab.end_kernels()


@pytest.fixture
def panel_page(browser: Any) -> Iterator[PanelPage]:
    """An empty page that shows one panel, without JupyterLab and without a kernel."""
    page = browser.new_page(viewport={"width": 1000, "height": 700})
    yield PanelPage(page)
    page.close()
