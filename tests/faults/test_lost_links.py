"""kill -9 of anything between a notebook and its tracer on another host, and a link that hangs: the session has failed
with its rows, a line says why, and on neither side is anything left within five seconds."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
from leaks import bpf_ids
from processes import alive, objects
from relaying import FAR, parts, parts_of
from sshd import Sshd, needs_sshd, sshd
from waiting import until

import bpfnb
from bpfnb.host.ssh.peer import launch

pytestmark = needs_sshd

_SILENCE = 2.0  # seconds
_LIMIT = 5.0
_CELL = 'int f(void *ctx) { bpf_trace_printk("x\\n"); return 0; }'
_ATTACH = {"syscall:getpgid": "f"}


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    with sshd(tmp_path_factory.mktemp("machine")) as made:
        yield made


def _ssh(machine: Sshd) -> tuple[str, ...]:
    return ("ssh", "-T", "-o", "BatchMode=yes", *machine.options, "root", FAR)


def _left(processes: dict[str, int], held: set[tuple[str, int]]) -> list[object]:
    """Of processes, and of BPF objects."""
    programs = {number for kind, number in held if kind == "program"}
    return [*(name for name, pid in processes.items() if alive(pid)), *(programs & bpf_ids("program"))]


@pytest.mark.parametrize(
    ("victim", "number", "why"),
    [
        ("command", signal.SIGKILL, "the connection to box was lost: signal 9"),
        ("command", signal.SIGSTOP, "the connection to box was lost: nothing was heard for 2 s"),
        ("far", signal.SIGKILL, "the connection to box was lost: "),
        ("worker", signal.SIGKILL, "box: the tracer process ended (signal 9)"),
        ("near", signal.SIGKILL, "the process that speaks to box ended (signal 9)"),
    ],
)
def test_whatever_is_lost_the_session_keeps_its_rows(
    machine: Sshd, victim: str, number: signal.Signals, why: str
) -> None:
    with bpfnb.Host(lambda: launch(_ssh(machine), "box", _SILENCE)) as host:
        session = host.trace(_CELL, attach=_ATTACH, pid=os.getpid())
        for _ in range(100):
            os.getpgid(0)
        until(lambda: session.outputs["printk"].rows == 100)
        processes = parts(host)
        held = objects(processes["worker"])
        assert held
        os.kill(processes[victim], number)
        until(lambda: session.state == "failed")
        failed = time.monotonic()
        until(lambda: not _left(processes, held))
        assert time.monotonic() - failed < _LIMIT
        assert session.reason.startswith(why)
        assert session.reason.endswith("; what was collected so far is kept")
        assert "\n" not in session.reason
        assert len(session.df) == 100


def test_nothing_stays_when_the_notebook_is_killed(machine: Sshd) -> None:
    code = f"""
import bpfnb, time
from bpfnb.host.ssh.peer import launch
host = bpfnb.Host(lambda: launch({_ssh(machine)!r}, "box", {_SILENCE}))
session = host.trace({_CELL!r}, attach={_ATTACH!r})
print(host.connect().hello().pid, flush=True)
time.sleep(60)
"""
    notebook = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    with notebook:
        assert notebook.stdout
        processes = parts_of(int(notebook.stdout.readline()), notebook.pid)
        held = objects(processes["worker"])
        notebook.kill()
        killed = time.monotonic()
        until(lambda: not _left(processes, held))
        assert time.monotonic() - killed < _LIMIT


def test_what_ssh_says_last_is_the_reason(machine: Sshd) -> None:
    unknown = ("ssh", "-T", "-o", "BatchMode=yes", *machine.options, "unknown", FAR)
    with (
        bpfnb.Host(lambda: launch(unknown, "box")) as host,
        pytest.raises(bpfnb.SetupError, match=r"^box cannot be reached: Host key verification failed"),
    ):
        host.connect()


def test_a_command_that_is_no_far_is_said_to_be_none() -> None:
    with (
        bpfnb.Host(lambda: launch(("sh", "-c", "echo hello; exit 3"), "box")) as host,
        pytest.raises(bpfnb.SetupError, match=r"^box cannot be reached: hello$"),
    ):
        host.connect()
