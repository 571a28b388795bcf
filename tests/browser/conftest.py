"""The browser lane: a real JupyterLab, a real kernel, a real Chromium.

BPFNB_BROWSER_TESTS: unset runs where Chromium is installed, 0 skips, 1 insists.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from browsing import CHROMIUM, Lab, Notebook, serving
from pages import PanelPage

VIEWPORT = {"width": 1150, "height": 1000}


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
    with serving(tmp_path_factory.mktemp("lab")) as lab:
        yield lab


@pytest.fixture(scope="session")
def browser(chromium: str) -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=CHROMIUM)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def visitor(browser: Any) -> Iterator[Any]:
    """A browser context whose cache has JupyterLab's files after the first page."""
    context = browser.new_context(viewport=VIEWPORT)
    yield context
    context.close()


@pytest.fixture
def notebook(lab: Lab, browser: Any, visitor: Any) -> Iterator[Callable[[str, list[str] | None], Notebook]]:
    """Opens notebooks, each on a page of its own: ``notebook(name, cells)`` writes it first.

    A test's further pages are those of other browsers: one that is behind another is visible, too.
    """
    pages = []

    def opened(name: str, cells: list[str] | None = None, app: str = "lab/tree") -> Notebook:
        if cells is not None:
            lab.write(name, cells)
        pages.append(browser.new_page(viewport=VIEWPORT) if pages else visitor.new_page())
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
