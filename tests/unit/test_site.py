"""The docs site builds without the network, has every page, and its links lead somewhere."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import docs  # noqa: E402

pytestmark = pytest.mark.skipif(sys.version_info < (3, 11), reason="Zensical is for Python 3.11 and newer")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built where there is no network, when this is root's."""
    if not (ROOT / ".venv/.bpfnb-setup").exists():
        pytest.skip("scripts/setup did not make this checkout's .venv")
    folder = tmp_path_factory.mktemp("docs") / "built"
    offline = ["unshare", "--net"] if os.geteuid() == 0 else []
    command = [*offline, ROOT / "scripts/docs", "--no-run"]
    environment = os.environ | {"BPFNB_DOCS": str(folder)}
    done = subprocess.run(
        command, cwd="/", env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert done.returncode == 0, done.stdout
    return folder / "site"


def test_every_page_is_there_and_in_the_menu(site: Path) -> None:
    index = (site / "index.html").read_text()
    for name in [*docs.TEXTS[1:], *(f"notebooks/{path.name}" for path in docs.NOTEBOOKS)]:
        page = name.rpartition(".")[0] + ".html"
        assert (site / page).exists(), page
        menu = (site / "notebooks/index.html").read_text() if "notebooks" in name else index
        assert f'href="./{page}"' in menu or f'href="{page}"' in menu or f'href="./{Path(page).name}"' in menu, page


def test_tutorials_have_c(site: Path) -> None:
    page = (site / "notebooks/01_hello_clone.html").read_text()
    assert '<span class="kt">int</span>' in page
    assert '<span class="kn">import</span>' in page


def test_the_interface_has_its_docstrings(site: Path) -> None:
    page = (site / "api/session.html").read_text()
    for method in ("stream", "wait", "stop"):
        assert f'id="bpfnb.session.Session.{method}"' in page
    assert "<li><code>df</code>: the main output as a DataFrame" in page  # an aligned list of a docstring's
    assert 'id="bpfnb.hosts.Host.trace"' in (site / "api/bpfnb.html").read_text()


def test_it_is_served_to_this_machine(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {"BPFNB_DOCS": str(tmp_path / "built"), "BPFNB_DOCS_PORT": str(port)}
    command = [ROOT / "scripts/docs", "--no-run", "--serve"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as server:
        assert server.stdout
        try:
            while b"Serving HTTP on 127.0.0.1" not in (line := server.stdout.readline()):
                assert line, "it has ended"
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=10) as answer:
                assert b"<title>" in answer.read()
        finally:
            server.terminate()


def test_faults_are_found(site: Path, tmp_path: Path) -> None:
    assert docs.check(site) == []
    broken = tmp_path / "site"
    shutil.copytree(site, broken)
    page = broken / "docs/tools.html"
    page.write_text(
        page.read_text() + '<a href="nowhere.html">a</a><a href="../index.html#nowhere">b</a>'
        '<img src="https://example.org/x.png"><link href="//example.org/y.css">'
    )
    assert docs.check(broken) == [
        "docs/tools.html loads https://example.org/x.png from elsewhere",
        "docs/tools.html loads //example.org/y.css from elsewhere",
        "docs/tools.html links to nowhere.html, which is not there",
        "docs/tools.html links to ../index.html#nowhere: that page has no such place",
    ]
