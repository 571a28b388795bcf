"""scripts/demo.py: what it prints, what it leaves, and how it fails."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
from nbclient.exceptions import CellExecutionError
from processes import children, command

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "scripts" / "demo.py"
sys.path.insert(0, str(DEMO.parent))

import demo  # noqa: E402 (it lies in scripts/)


def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(DEMO), *map(str, arguments)]
    env = os.environ | environment
    return subprocess.run(command, capture_output=True, text=True, timeout=100, env=env)


def descendants(pid: int) -> set[int]:
    found = children(pid)
    return found.union(*map(descendants, found))


@pytest.mark.usefixtures("tracing")
def test_shows_what_it_promises(tmp_path: Path) -> None:
    done = run("--out", tmp_path / "new" / "folder")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    text = done.stdout
    assert text.count("TIME(s)            COMM             PID    MESSAGE") == 2
    assert len(re.findall(r"^\d+\.\d{9} .* my bcc program$", text, re.M)) == 10
    assert len(re.findall(r"^\d+\.\d{9} .* sys_sync\(\) called$", text, re.M)) == 10
    assert len(re.findall(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\+00:00 +\d+\.0 +\d+\.0$", text, re.M)) >= 6
    assert re.search(r"^clones +340 +340 +0$", text, re.M)
    assert re.search(r"^syncs +28 +28 +0$", text, re.M)
    assert "exact: every call was traced" in text
    html, png = tmp_path / "new/folder/04_live_rates.html", tmp_path / "new/folder/04_live_rates.png"
    assert str(html) in text
    assert str(png) in text
    assert png.read_bytes().startswith(b"\x89PNG")
    page = html.read_text()
    assert "my bcc program" in page
    assert "data:image/png;base64," in page
    assert not re.findall(r'src="https?:[^"]*"', page)


@pytest.mark.usefixtures("tracing")
def test_says_why_it_cannot_trace(tmp_path: Path) -> None:
    done = run("--out", tmp_path, BPFNB_BCC=str(tmp_path / "nothing-here"))
    assert done.returncode == 1
    assert "demo: this machine cannot trace:\nSetupError: iovisor's bcc for Python is not installed" in done.stderr
    assert "hint: " in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("tracing")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_takes_everything_with_it(number: int, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, DEMO, "--out", tmp_path], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout
    for line in process.stdout:
        if "Something to see" in line:
            break
    deadline = time.monotonic() + 10
    while "workload.py" not in str(family := {pid: command(pid) for pid in descendants(process.pid)}):
        assert time.monotonic() < deadline, family
        time.sleep(0.05)
    assert "bpfnb.tracer" in str(family)
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert errors.strip() == "demo: stopped"
    assert process.returncode == 130
    deadline = time.monotonic() + 10
    while left := {pid: command(pid) for pid in family if Path(f"/proc/{pid}").exists()}:
        assert time.monotonic() < deadline, left
        time.sleep(0.05)
    assert list(tmp_path.iterdir()) == []


def test_counts_that_differ_are_a_failure() -> None:
    cell = nbformat.v4.new_code_cell("assert 1 == 2", metadata={"tags": ["exactness"]})
    error = CellExecutionError("...", "AssertionError", "the counts differ:\nclones 340 339")
    assert str(demo.failure(cell, error)).startswith("NOT exact\nthe counts differ:\nclones 340 339")


def test_the_cells_it_prints_are_there() -> None:
    notebook = nbformat.read(demo.NOTEBOOK, as_version=4)
    for tag in [*demo.PRINTED, "live"]:
        assert demo.tagged(notebook, tag).cell_type == "code"


def test_help() -> None:
    done = run("--help")
    assert done.returncode == 0
    assert "--out" in done.stdout


def test_a_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = run("--out", tmp_path / "file" / "folder")
    assert done.returncode == 1
    assert re.fullmatch(r"demo: cannot write to .*: Not a directory .*\n", done.stderr)
