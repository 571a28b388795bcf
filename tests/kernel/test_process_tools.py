"""Tools about processes, beside workloads that keep count of what they did."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import bpfnb

ARGUMENTS = [
    ["true", "", "two words", "line\nfeed", "'", '"', "*", "\\x41", "é", ""],
    ["true", *map(str, range(1000))],
    ["true", "x" * 230],
    ["true", "x" * 5000],
    ["true", "y" * 100_000, "z"],
    ["true", *["w" * 100_000] * 19],
]


@pytest.mark.portable
def test_execsnoop_has_every_exec_with_all_its_arguments() -> None:
    pids = []
    with bpfnb.tools.execsnoop() as session:
        for words in ARGUMENTS:
            with subprocess.Popen(words) as process:
                pids.append(process.pid)
    df = session.df[session.df.ppid == os.getpid()]
    assert df.pid.tolist() == pids
    assert [shlex.split(args) for args in df["args"]] == ARGUMENTS
    assert set(df.pcomm) == {"true"}
    assert set(df.ret) == {0}
    assert set(df.uid) == {os.getuid()}
    assert session.lost == 0


def test_execsnoop_has_what_a_thread_of_another_name_starts_and_scripts(tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text("#!/bin/sh -e\nexit 0\n")
    script.chmod(0o755)
    code = f"""
import os, threading
def run(): os.execv({str(script)!r}, ["renamed", "a"])
threading.Thread(target=run).start()
threading.Event().wait()
"""
    with bpfnb.tools.execsnoop() as session, subprocess.Popen([sys.executable, "-c", code]) as process:
        process.wait()
    df = session.df[session.df.pid == process.pid]
    assert [shlex.split(args) for args in df["args"]] == [
        [sys.executable, "-c", code],
        ["/bin/sh", "-e", str(script), "a"],  # as the kernel has it: /proc/PID/cmdline
    ]


@pytest.mark.portable
def test_execsnoop_has_what_could_not_be_started() -> None:
    code = r"""
import ctypes, os
libc = ctypes.CDLL(None)
for path in ("/no/such/program", "/etc"):
    try: os.execv(path, [path, "", "two words", *"abc"])
    except OSError: pass
argv = (ctypes.c_char_p * 3)(b"at", b"x", None)
libc.syscall(322 if os.uname().machine == "x86_64" else 281, -100, b"/none", argv, 0, 0)
os.execv("/no/such/program", ["x"] * 100)
"""
    with (
        bpfnb.tools.execsnoop(fails=True) as session,
        subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL) as process,
    ):
        process.wait()
    df = session.df[(session.df.pid == process.pid) & (session.df.ret < 0)]
    assert df.ret_errno.tolist() == ["ENOENT", "EACCES", "ENOENT", "ENOENT"]
    rest = ["", "two words", *"abc"]
    found = [shlex.split(args) for args in df["args"]]
    assert found == [["/no/such/program", *rest], ["/etc", *rest], ["at", "x"], [*["x"] * 64, "..."]]


@pytest.mark.portable
def test_exitsnoop_has_each_process_once_with_the_status_that_its_parent_gets() -> None:
    """Also of processes whose first thread ends first, and whose threads end at the same time."""
    threads = r"""
import ctypes, os, threading, time
for _ in range(20): threading.Thread(target=time.sleep, args=[0.2]).start()
def end():
    time.sleep(0.1)
    os._exit(7)
threading.Thread(target=end).start()
ctypes.CDLL(None).pthread_exit(None)
"""
    together = "import threading, os; [threading.Thread(target=lambda: None).start() for _ in range(8)]; os._exit(0)"
    commands = [
        ["true"],
        ["sh", "-c", "exit 3"],
        ["sh", "-c", "kill -9 $$"],
        [sys.executable, "-c", threads],
        *[[sys.executable, "-Sc", together]] * 5,
    ]
    statuses = {}
    with bpfnb.tools.exitsnoop() as session:
        for command in commands:
            process = subprocess.Popen(command)
            statuses[process.pid] = os.waitpid(process.pid, 0)[1]
            process.returncode = 0
    df = session.df[session.df.ppid == os.getpid()]
    assert dict(zip(df.pid.tolist(), df.exit_code.tolist(), strict=True)) == statuses
    assert len(df) == len(commands)
    assert df.age.between("0s", "1min").all()
