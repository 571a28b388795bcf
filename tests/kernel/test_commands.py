"""What is seen of a command: its own system calls from its execve on, those of all it starts, and no others."""

from __future__ import annotations

import platform
import shutil
import subprocess
from pathlib import Path

import pytest

import bpfnb

# A call that does not return, exit and the like, is not in the table of strace.
CALLS = r"""
BPF_HASH(calls, u32, u64);
BPF_PERF_OUTPUT(first);
TRACEPOINT_PROBE(raw_syscalls, sys_enter) {
    u32 number = args->id;
    calls.increment(number);
    first.perf_submit(args, &number, sizeof(number));
    return 0;
}
"""
EXECVE, EXITS = {"x86_64": (59, (60, 231))}.get(platform.machine(), (221, (93, 94)))
SCRIPT = "for i in 1 2 3 4 5; do /bin/true; ls / >/dev/null; done; (/bin/true & wait); exit 3"


@pytest.mark.skipif(not shutil.which("strace"), reason="no strace is here")
def test_its_system_calls_are_those_that_strace_counts(tmp_path: Path) -> None:
    command = ["/bin/sh", "-c", SCRIPT]
    with bpfnb.trace(CALLS, command=command) as session:
        assert session.wait(30)
    assert session.returncode == 3
    table = tmp_path / "strace"
    subprocess.run(["strace", "-f", "-c", "-o", table, *command], check=False)
    total = int(table.read_text().splitlines()[-1].split()[3])  # behind the share, the seconds, and those of a call
    assert sum(n for number, n in session.maps["calls"].items() if number not in EXITS) == total
    assert session.outputs["first"].df.iloc[0, -1] == EXECVE


def test_nothing_is_attached_for_a_command_that_does_not_start(tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text("#!/no/such/interpreter\n")
    script.chmod(0o755)
    with pytest.raises(bpfnb.ProgramError, match="does not start"):
        bpfnb.trace(CALLS, command=[str(script)])
    assert bpfnb.sessions() == {}
