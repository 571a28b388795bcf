"""The tutorials as a member of the group of `bpfnb setup` runs them: without sudo, by the socket.

One of them; all with BPFNB_VM_WHOLE=1 (scripts/test --full).
"""

from __future__ import annotations

import os
import pwd
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from namespaces import GROUP, ROOT, SETUP, Machine, bare_machine, group_of, listening_on, needs_root_and_systemd
from test_notebooks import NOTEBOOKS, RUNNER, check, ids

NOBODY = pwd.getpwnam("nobody")
CHOSEN = NOTEBOOKS if os.environ.get("BPFNB_VM_WHOLE") == "1" else [p for p in NOTEBOOKS if p.stem == "01_hello_clone"]
BY_THE_SOCKET = "import bpfnb; assert bpfnb.sessions() == {}; print(bpfnb.hosts.default_host.connect().peer.way.kind)"

pytestmark = [*needs_root_and_systemd, pytest.mark.usefixtures("tracing")]


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    with bare_machine(tmp_path_factory.mktemp("machine")) as made:
        made.run(*SETUP, "--group", GROUP, "--by", "systemd")
        with listening_on(made):
            yield made


@pytest.fixture
def home() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="bpfnb-home-"))  # pytest's own are closed to others
    os.chown(folder, NOBODY.pw_uid, NOBODY.pw_gid)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.parametrize("path", CHOSEN, ids=ids(CHOSEN))
def test_runs_for_a_member(path: Path, machine: Machine, home: Path) -> None:
    out = home / "executed.ipynb"
    runner = [sys.executable, "-c", RUNNER, path, ROOT / "scripts", path.parent, out, BY_THE_SOCKET]
    machine.run(
        *("env", f"HOME={home}", "PYTHONDONTWRITEBYTECODE=1", *runner),
        uid=NOBODY.pw_uid,
        gid=NOBODY.pw_gid,
        groups=[group_of(machine)],  # type: ignore[arg-type]
    )
    notebook = nbformat.read(out, as_version=4)
    check(path.stem, notebook)
    assert notebook.cells[-1].outputs[0].text == "socket\n"
