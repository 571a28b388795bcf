"""Every ready-made tool on the kernel under us, in Python and by ``bpfnb run``."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress

import pytest
from waiting import until

import bpfnb
from bpfnb.__main__ import main
from bpfnb.session import Session
from bpfnb.tools.toolbox import find, names


@pytest.mark.parametrize("name", names())
def test_it_runs_in_a_terminal(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """And its session has the columns that are documented."""
    tool = find(name)
    sessions: list[Session] = []

    def keep_session() -> None:
        with suppress(AssertionError):
            until(lambda: sessions.extend(bpfnb.sessions().values()) or sessions, 10)

    thread = threading.Thread(target=keep_session)
    thread.start()
    status = main(["run", name, "--json", "-t", "100ms"])
    thread.join()
    out, err = capsys.readouterr()
    if status and "this kernel" in err:
        pytest.skip(err)
    assert (status, err) == (0, "")
    documented = [column.name for column in tool.columns]
    for line in out.splitlines():
        assert set(json.loads(line)) <= {"until", *documented}
    assert not [said for said in sessions[0].warnings if said.line], "warnings of its own C"
    columns = list(sessions[0].df.columns)
    assert columns == [column for column in documented if column in columns]
    if len(columns) < len(documented):
        assert tool.options or tool.hooks, "a column that is never there"


def test_rows_as_they_come() -> None:
    """A row is there long before the tool ends."""
    command = [sys.executable, "-m", "bpfnb", "run", "exitsnoop", "--failed", "-t", "10s"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout
        assert running.stdout.readline().startswith("TIME ")
        begun = time.monotonic()
        subprocess.run(["sh", "-c", "exit 3"], check=False)
        while " sh " not in running.stdout.readline():
            pass
        assert time.monotonic() - begun < 2
        running.terminate()
        assert running.wait(10) == 0


def test_a_command_and_what_it_could_not_open(capsys: pytest.CaptureFixture[str]) -> None:
    """The exit status is the command's."""
    assert main(["run", "opensnoop", "--failed", "--command", "cat /none"]) == 1
    out, err = capsys.readouterr()
    assert "/none" in [line.split()[-1] for line in out.splitlines()]
    assert err == "opensnoop: its command ended with status 1\n"
    assert main(["run", "opensnoop", "--command", "true"]) == 0
    assert capsys.readouterr().err == ""
    assert main(["run", "exitsnoop", "--command", "sh -c 'kill -9 $$'"]) == 128 + signal.SIGKILL


def test_tables_of_what_was_counted_since_the_last(capsys: pytest.CaptureFixture[str]) -> None:
    """Each call is in one table."""

    def work() -> None:
        until(bpfnb.sessions, 10)
        for _ in range(500):
            os.getpgid(0)
            time.sleep(0.001)

    thread = threading.Thread(target=work)
    thread.start()
    command = ["run", "syscount", "--latency", "--every", "300ms", "-t", "1500ms", "--pid", str(os.getpid()), "--json"]
    assert main(command) == 0
    thread.join()
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    calls = [row["count"] for row in rows if row["syscall"] == "getpgid"]
    assert len(calls) >= 2
    assert sum(calls) == 500
    assert all(row["time"] > 0 for row in rows)


def test_ctrl_c_ends_it_within_a_second_and_leaves_nothing() -> None:
    command = [sys.executable, "-m", "bpfnb", "run", "exitsnoop"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        assert running.stdout
        assert running.stderr
        assert running.stdout.readline().startswith("TIME ")
        with subprocess.Popen(["sh", "-c", "exit 3"]) as child:
            child.wait()
        begun = time.monotonic()
        running.send_signal(signal.SIGINT)
        rest = running.stdout.read()
        assert running.wait(10) == 0
        assert time.monotonic() - begun < 1
        assert running.stderr.read() == ""
    (row,) = (line.split() for line in rest.splitlines() if f" {child.pid} " in line)
    assert row[1:5] == ["sh", str(child.pid), str(os.getpid()), str(child.pid)]
    assert row[-2:] == ["code", "3"]


def test_head_ends_it() -> None:
    command = f"{sys.executable} -m bpfnb run exitsnoop | head -n 2"
    with subprocess.Popen(["bash", "-c", command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as shell:
        assert shell.stdout
        assert shell.stderr
        while shell.poll() is None:  # else it waits for somebody's process to end
            subprocess.run(["true"], check=True)
        assert len(shell.stdout.readlines()) == 2
        assert shell.stderr.read() == ""


def test_a_command_line_that_is_wrong() -> None:
    done = subprocess.run([sys.executable, "-m", "bpfnb", "run", "exitsnop"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "bpfnb run: there is no tool 'exitsnop'; did you mean exitsnoop?\n"
