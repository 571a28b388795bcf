"""The table of docs/security.md, where this kernel is one with those kinds: a part of it, made anew."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from namespaces import ROOT, opened
from other_user import SHADOW

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")


def test_fewer_rights_do_for_some_kinds() -> None:
    commands = [f"mkdir -p {SHADOW}", f"mount -t tmpfs -o mode=755 none {SHADOW}"]
    for number, folder in enumerate({Path(sys.base_prefix), ROOT, Path(sys.prefix)}):
        commands += opened(folder, SHADOW / str(number))
    inside = ["unshare", "--mount", "sh", "-ec", "\n".join([*commands, 'exec "$@"']), "sh"]
    script = [sys.executable, str(ROOT / "scripts/capabilities"), "raw_tracepoint", "tracepoint"]
    try:
        done = subprocess.run([*inside, *script], capture_output=True, text=True, timeout=100, check=True, cwd="/")
    finally:
        SHADOW.rmdir()
    rows = {}
    for line in done.stdout.splitlines()[4:]:
        kind, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        rows[kind] = [cell == "yes" for cell in cells]
    # With: nothing, BPF, and PERFMON, and DAC_READ_SEARCH, and SYS_ADMIN; SYS_ADMIN alone.
    assert rows["raw tracepoints"] == [False, False, True, True, True, True]
    assert rows["tracepoints"] == [False, False, False, True, True, False]
