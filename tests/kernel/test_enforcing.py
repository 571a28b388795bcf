"""A policy file enforced: a real user, root's tracer through sudo, and what the kernel then shows and does not show."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from other_user import NOBODY, SHADOW, run_as_nobody

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")

SUDOERS = "nobody ALL=(root) NOPASSWD: ALL\n"
RUN = """
import bpfnb, json, os, subprocess, time
def outcome(cell):
    try:
        with bpfnb.trace(cell["source"], attach=cell["attach"], **cell.get("options", {})) as session:
            for command in cell.get("commands", ()):
                subprocess.run(command, shell=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            os.getpgid(0)
            time.sleep(cell.get("wait", 0))
        df = session.df if session.outputs else []
        rows = [{k: str(v) for k, v in row.items()} for row in df.to_dict("records")] if len(df) else []
        return {"rows": rows, "reason": session.reason, "pid": os.getpid()}
    except bpfnb.BpfnbError as error:
        return {"error": type(error).__name__, "message": str(error), "line": error.line}
print(json.dumps([outcome(cell) for cell in json.loads(CELLS)]))
"""
SILENT = "int f(void *ctx) { return 0; }"
PRINTS = 'int f(void *ctx) { bpf_trace_printk("x\\n"); return 0; }'


def policy(text: str, tmp_path: Path) -> list[str]:
    """Commands that put a policy where the tracer looks, for a mount namespace."""
    folder = tmp_path / "etc" / "bpfnb"
    folder.mkdir(parents=True)
    for made in (tmp_path / "etc", folder):
        made.chmod(0o755)
    (folder / "policy.conf").write_text(text)
    (folder / "policy.conf").chmod(0o644)
    return [f"mount -t overlay -o 'lowerdir={tmp_path / 'etc'}:/etc' none /etc"]


def results(text: str, cells: Sequence[dict[str, Any]], tmp_path: Path) -> list[dict[str, Any]]:
    """What became of each cell that nobody ran under a policy."""
    code = f"CELLS = {json.dumps(json.dumps(cells))}\n{RUN}"
    lines = run_as_nobody(code, tmp_path, sudoers=SUDOERS, first=policy(text, tmp_path))
    found: list[dict[str, Any]] = json.loads(lines[-1])
    return found


# Every system call, with the users of its task as the kernel has them.
USERS = """
struct event { u32 uid; u32 pid; char comm[16]; };
BPF_PERF_OUTPUT(events);
int f(void *ctx) {
    struct event e = {};
    e.uid = bpf_get_current_uid_gid();
    e.pid = bpf_get_current_pid_tgid() >> 32;
    bpf_get_current_comm(&e.comm, sizeof(e.comm));
    events.perf_submit(ctx, &e, sizeof(e));
    return 0;
}
"""
# A C library call of a setuid program, whose real user stays the caller: sudo.
WATCH = {"source": USERS, "attach": {"tracepoint:raw_syscalls:sys_enter": "f"}, "commands": ["sudo -n true", "id"]}


def test_programs_run_in_own_processes_only(tmp_path: Path) -> None:
    (free,) = results("[default]\nprobes = all\n", [WATCH], tmp_path / "free")
    assert {row["uid"] for row in free["rows"]} >= {"0", str(NOBODY.pw_uid)}, "the tracer's own calls are root's"
    setuid = {row["comm"] for row in free["rows"] if row["uid"] == str(NOBODY.pw_uid)}
    assert "sudo" in setuid, "sudo runs as root, for a user whose real number it keeps"
    again = {**WATCH, "commands": WATCH["commands"]}
    first, cached = results("[default]\nprocesses = own\n", [WATCH, again], tmp_path / "own")
    for own in (first, cached):  # compiled, and from the cache
        assert {row["uid"] for row in own["rows"]} == {str(NOBODY.pw_uid)}
        assert own["pid"] in {int(row["pid"]) for row in own["rows"]}
        comms = {row["comm"] for row in own["rows"]}
        assert "id" in comms
        assert "sudo" not in comms


READS = """int f(struct pt_regs *ctx) {
    char text[8] = {};
    %s(text, sizeof(text), (void *)PT_REGS_PARM1(ctx));
    return 0;
}"""
STACKS = """BPF_STACK_TRACE(stacks, 64);
int f(struct pt_regs *ctx) {
    stacks.get_stackid(ctx, BPF_F_USER_STACK);
    return 0;
}"""
SIGNALS = """int f(void *ctx) {
    if ((u32)bpf_get_current_uid_gid() == 4711)
        bpf_send_signal(9);
    return 0;
}"""
# What the preprocessor makes of names does not matter: what is looked at are instructions.
HIDDEN = """#define PASTE(a, b) a ## b
int f(struct pt_regs *ctx) {
    char text[8] = {};
    PASTE(bpf_probe_read_ker, nel)(text, sizeof(text), (void *)PT_REGS_PARM1(ctx));
    return 0;
}"""
# The number of bpf_probe_read_kernel as a pointer to a function, which needs no name at all.
NUMBERED = """int f(struct pt_regs *ctx) {
    char text[8] = {};
    int (*helper)(void *, int, void *) = (void *)113;
    helper(text, sizeof(text), (void *)PT_REGS_PARM1(ctx));
    return 0;
}"""
HERE = {"syscall:getpgid": "f"}


def test_what_programs_may_not_do_is_said_at_its_line(tmp_path: Path) -> None:
    text = "[user nobody]\nkernel_memory = no\nstacks = no\ninterfere = no\nprobes = syscall tracepoint\n"
    sources = [READS % "bpf_probe_read_kernel", HIDDEN, NUMBERED, STACKS, SIGNALS, READS % "bpf_probe_read_user"]
    cells = [{"source": source, "attach": HERE} for source in sources]
    cells += [{"source": SILENT, "attach": {"uprobe:/bin/bash:main": "f"}}]
    *refused, allowed, other = results(text, cells, tmp_path)
    assert [r["error"] for r in refused] == ["PrivilegeError"] * 5
    assert [r["line"] for r in refused] == [3, 4, 4, None, 3]  # get_stackid is called in bcc's own text
    assert all("[user nobody] of /etc/bpfnb/policy.conf says so" in r["message"] for r in refused)
    for helper, r in zip(("bpf_probe_read",) * 3 + ("bpf_get_stackid)", "bpf_send_signal)"), refused, strict=True):
        assert helper in r["message"]
    assert "error" not in allowed
    assert "does not allow user nobody uprobe probes (uprobe:/bin/bash:main)" in other["message"]


def test_uprobes_in_own_files_only(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    shutil.copy("/bin/bash", mine)
    os.chown(mine, NOBODY.pw_uid, NOBODY.pw_gid)
    shown = f"{SHADOW}/{mine.name}"
    probes = [f"uprobe:{path}:{name}" for name in ("main", "mai[n]") for path in (shown, "/bin/bash")]
    cells = [{"source": SILENT, "attach": {probe: "f"}} for probe in probes]
    text = "[group nogroup]\nfiles = own\n"
    code = f"CELLS = {json.dumps(json.dumps(cells))}\n{RUN}"
    prepare = [f"cp -p '{mine}' {shown}", *policy(text, tmp_path)]
    results = json.loads(run_as_nobody(code, tmp_path, sudoers=SUDOERS, first=prepare)[-1])
    for own, others in (results[:2], results[2:]):  # by name, and by a wildcard
        assert "error" not in own
        assert others["error"] == "PrivilegeError"
        assert "probes in files of others (/bin/bash)" in others["message"]


def test_a_session_ends_when_its_time_is_over(tmp_path: Path) -> None:
    cell = {"source": PRINTS, "attach": HERE, "wait": 3}
    (result,) = results("[default]\nmax_time = 1s\n", [cell], tmp_path)
    assert result["reason"] == "the policy allows sessions of at most 1 s"
    assert len(result["rows"]) >= 1


def test_the_guard_holds_to_the_policys_limit_though_the_notebook_switches_it_off(tmp_path: Path) -> None:
    cell = {"source": PRINTS, "attach": {"tracepoint:raw_syscalls:sys_enter": "f"}, "options": {"guard": False}}
    (result,) = results("[default]\nmax_memory = 1M\n", [{**cell, "wait": 4}], tmp_path)
    assert "max_memory is 1,048,576" in result["reason"]


def test_a_mistake_in_the_file_lets_nobody_trace_and_no_variable_leads_elsewhere(tmp_path: Path) -> None:
    code = f"import os\nos.environ.update(BPFNB_POLICY='/tmp/x', XDG_CONFIG_HOME='/tmp')\nCELLS = {RUN_ONE!r}\n{RUN}"
    text = "[default]\nprbes = all\n"
    (result,) = json.loads(run_as_nobody(code, tmp_path, sudoers=SUDOERS, first=policy(text, tmp_path))[-1])
    assert result["error"] == "SetupError"
    assert result["message"].startswith("/etc/bpfnb/policy.conf, line 2: unknown key 'prbes'")


RUN_ONE = json.dumps([{"source": SILENT, "attach": HERE}])


def test_the_doctor_shows_what_holds_for_who_asks(tmp_path: Path) -> None:
    code = "import bpfnb\nprint([row.found for row in bpfnb.doctor() if row.name == 'policy'][0])"
    text = "[user nobody]\nprobes = syscall\nmax_time = 10min\n"
    said = run_as_nobody(code, tmp_path, sudoers=SUDOERS, first=policy(text, tmp_path))[-1]
    assert said == "user nobody: only syscall, sessions of at most 10 min ([user nobody] of /etc/bpfnb/policy.conf)"
