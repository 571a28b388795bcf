"""The audit log of a real tracer: nobody's sessions, through sudo, in a file of root's."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from other_user import NOBODY, run_as_nobody
from test_enforcing import HERE, PRINTS, SILENT, SUDOERS, policy, results

import bpfnb

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")


def test_every_session_and_refusal_is_noted(tmp_path: Path) -> None:
    log = tmp_path / "audit"
    text = f"[default]\nprobes = syscall\nmax_time = 1s\n[audit]\nto = {log}\n"
    cells = [
        {"source": SILENT, "attach": HERE},
        {"source": SILENT, "attach": {"uprobe:/bin/bash:main": "f"}},
        {"source": PRINTS, "attach": HERE, "wait": 2},
    ]
    *_, last = results(text, cells, tmp_path)
    found = [json.loads(line) for line in log.read_text().splitlines()]
    kinds = [(r["event"].removeprefix("session-"), r["session"], r.get("reason", "")) for r in found]
    first = found[0]["session"]
    refusal = "PrivilegeError: line 1: the administrator does not allow user nobody uprobe probes"
    assert kinds[:2] == [("started", first, ""), ("ended", first, "stopped by its user")]
    assert kinds[2][0] == "refused"
    assert kinds[2][2].startswith(refusal)
    assert [kind for kind, _, _ in kinds[3:]] == ["started", "ended"]
    assert kinds[4][2] == "the policy allows sessions of at most 1 s" == last["reason"]
    assert {(r["uid"], r["user"], r["pid"]) for r in found} == {(NOBODY.pw_uid, "nobody", last["pid"])}
    assert found[2]["attached"] == ["uprobe:/bin/bash:main=f"]
    with bpfnb.trace(SILENT, attach=HERE) as session:
        assert found[0]["attached"] == [f"{session.probes[0].attached}=f"]
    assert log.stat().st_mode & 0o777 == 0o600


def test_what_cannot_be_noted_is_not_traced_where_that_is_required(tmp_path: Path) -> None:
    text = f"[audit]\nto = {tmp_path}/nowhere/log\nrequired = yes\n"
    (result,) = results(text, [{"source": SILENT, "attach": HERE}], tmp_path)
    assert result["error"] == "PrivilegeError"
    assert "requires every session in the audit log" in result["message"]


KILLED = """
import os, signal, time, bpfnb
from bpfnb.hosts import default_host
session = bpfnb.trace("int f(void *ctx) { return 0; }", attach={"syscall:getpgid": "f"})
pid = default_host.connect().hello().pid
os.system(f"sudo -n kill -9 {pid}")
while session.state == "running":
    time.sleep(0.01)
print(pid)
"""


def test_a_tracer_that_is_killed_is_noted(tmp_path: Path) -> None:
    log = tmp_path / "audit"
    prepare = policy(f"[audit]\nto = {log}\n", tmp_path)
    worker = run_as_nobody(KILLED, tmp_path, sudoers=SUDOERS, first=prepare)[-1]
    deadline = time.monotonic() + 10
    while "tracer-died" not in log.read_text() and time.monotonic() < deadline:
        time.sleep(0.05)
    deaths = [json.loads(line) for line in log.read_text().splitlines() if "tracer-died" in line]
    assert [(r["tracer"], r["reason"]) for r in deaths] == [(int(worker), "it ended with status -9")]
