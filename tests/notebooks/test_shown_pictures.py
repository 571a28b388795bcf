"""Pictures in a real kernel: each is shown once, however its cell ends."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

# Runs cells in a kernel of its own process group, and prints their outputs. In a process of its own, since nbclient
# leaves sockets and an event loop behind.
RUNNER = """
import json, sys
import nbformat
from nbclient import NotebookClient
notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in json.load(sys.stdin)])
NotebookClient(notebook, timeout=60, kernel_name="python3", allow_errors=True).execute()
print(json.dumps([cell.outputs for cell in notebook.cells]))
"""
FRAME = """
import bpfnb, pandas as pd
df = pd.DataFrame({"time": pd.to_datetime(range(90), unit="s", utc=True), "pid": 1, "n": range(90)})
"""
AFTERWARDS = "import sys; print('pyplot' if 'matplotlib.pyplot' in sys.modules else 'no pyplot')"
# A cell, and how many pictures it shows.
CELLS = [
    ("df.bpf.plot_rate()", 1),
    ("df.bpf.plot_rate();", 1),
    ("ax = df.bpf.plot_hist('n')\nax.set_title('mine')", 1),
    ("display(df.bpf.plot_rate())", 1),
    ("display(df.bpf.plot_rate().figure)", 1),
    ("df.bpf.plot_rate()\ndf.bpf.plot_hist('n')", 2),
    ("for by in ('pid', 'n'): df.bpf.plot_timeline(by)", 2),
    ("ax.figure", 1),
    ("ax = df.bpf.plot_rate()\ndf.bpf.plot_rate(ax=ax)", 1),
    ("%%capture shown\nhidden = df.bpf.plot_rate()", 0),
    ("len(shown.outputs)", 0),
    ("1 + 1", 0),
    ("df.bpf.plot_rate()\n1 / 0", 1),
]


def run(cells: list[str]) -> list[list[dict[str, Any]]]:
    done = subprocess.run(
        [sys.executable, "-c", RUNNER], input=json.dumps(cells), capture_output=True, text=True, check=True, timeout=100
    )
    outputs: list[list[dict[str, Any]]] = json.loads(done.stdout)
    return outputs


@pytest.mark.parametrize("before", ["", "%matplotlib inline"])
def test_every_picture_is_shown_once(before: str) -> None:
    cells = [cell for cell, _ in CELLS]
    theirs = ["import matplotlib.pyplot as plt\nfig, ax = plt.subplots()\ndf.bpf.plot_rate(ax=ax)"] if before else []
    outputs = run([f"{before}\n{FRAME}", *cells, AFTERWARDS, *theirs])
    shown = [sum("image/png" in output.get("data", {}) for output in cell) for cell in outputs]
    assert dict(zip(cells, shown[1:], strict=False)) == dict(CELLS)
    assert outputs[1 + cells.index("len(shown.outputs)")][0]["data"]["text/plain"] == "1"
    assert outputs[1 + len(cells)][0]["text"] == ("pyplot\n" if before else "no pyplot\n")
    assert shown[2 + len(cells) :] == [1] * len(theirs)
    sizes = [
        len(output["data"]["image/png"]) for cell in outputs for output in cell if "image/png" in output.get("data", {})
    ]
    assert max(sizes) < 60_000
