"""Tools about processes, beside workloads that keep count of what they did."""

from __future__ import annotations

import ctypes
import os
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pandas as pd
import pytest
from waiting import until

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
    assert df["args"].tolist() == [shlex.join(words) for words in ARGUMENTS]
    assert shlex.split(df["args"].iloc[0]) == ARGUMENTS[0]
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


def test_killsnoop_has_calls_and_results() -> None:
    libc = ctypes.CDLL(None)
    me, thread = os.getpid(), threading.get_native_id()
    with bpfnb.tools.killsnoop() as session:
        with subprocess.Popen(["sleep", "60"]) as process:
            process.terminate()
        assert libc.kill(me, 0) == 0
        assert libc.kill(process.pid, signal.SIGUSR1) == -1
        assert libc.syscall(200, thread, 0) == 0  # tkill
        assert libc.syscall(234, me, thread, 99) == -1  # tgkill
    df = session.df[session.df.pid == me]
    assert df[["tpid", "sig", "result"]].to_numpy().tolist() == [
        [process.pid, signal.SIGTERM, 0],
        [me, 0, 0],
        [process.pid, signal.SIGUSR1, -3],
        [thread, 0, 0],
        [thread, 99, -22],
    ]
    assert df.result_errno.astype(object).fillna("").tolist() == ["", "", "ESRCH", "", "EINVAL"]
    assert df.sig_signal.tolist()[0] == "SIGTERM"


@pytest.mark.portable
def test_sigsnoop_has_every_signal_and_what_became_of_it() -> None:
    """Of another process, of the kernel, and of one that ignores them."""
    code = "import signal, time; signal.signal(signal.SIGUSR1, signal.SIG_IGN); print(flush=True); time.sleep(60)"
    with bpfnb.tools.sigsnoop() as session:
        with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
            assert process.stdout
            process.stdout.readline()
            os.kill(process.pid, signal.SIGUSR1)
            os.kill(process.pid, signal.SIGTERM)
        crash = subprocess.run(["sh", "-c", "kill -SEGV $$"], check=False)
    assert crash.returncode == -signal.SIGSEGV
    df = session.df
    mine = df[df.tpid == process.pid]
    assert mine[["pid", "sig_signal", "result"]].to_numpy().tolist() == [
        [os.getpid(), "SIGUSR1", "ignored"],
        [os.getpid(), "SIGTERM", "delivered"],
    ]
    assert "SIGSEGV" in set(df.sig_signal)
    ended = df[(df.sig == signal.SIGCHLD) & (df.pid == process.pid)]  # the kernel's, to us
    assert ended.tpid.tolist() == [os.getpid()]


def test_sigsnoop_of_one_signal() -> None:
    with bpfnb.tools.sigsnoop(signal=signal.SIGCONT) as session:
        os.kill(os.getpid(), signal.SIGCONT)
        os.kill(os.getpid(), signal.SIGWINCH)
    df = session.df[session.df.pid == os.getpid()]
    assert df.sig.tolist() == [signal.SIGCONT]


COUNTED = r"""
import os, sys, time
sys.stdin.read()
for _ in range(1000): os.getppid()
for _ in range(100): os.path.exists("/none"), os.path.exists("/etc")
time.sleep(0.2)
pid = os.fork()
for _ in range(50): os.getpgid(0)
if pid: os.waitpid(pid, 0)
"""


@pytest.mark.portable
def test_syscount_counts_what_strace_counts(tmp_path: Path) -> None:
    """Of a process that waits until both are there, and of its child. Reads differ: strace interrupts the first."""
    log = tmp_path / "strace"
    with subprocess.Popen([sys.executable, "-Sc", COUNTED], stdin=subprocess.PIPE) as process:
        assert process.stdin
        command = ["strace", "-q", "-f", "-c", "-o", log, "-p", str(process.pid)]
        with bpfnb.tools.syscount(latency=True, follow=process.pid) as session, subprocess.Popen(command) as strace:
            status = Path(f"/proc/{process.pid}/status")
            until(lambda: f"TracerPid:\t{strace.pid}\n" in status.read_text(), 10)
            process.stdin.close()
            process.wait()
            strace.wait()
    # A column a field: % time, seconds, usecs/call, calls, errors (perhaps), syscall
    rows = [line.split() for line in log.read_text().splitlines()[2:-2]]
    expected = {row[-1]: int(row[3]) for row in rows}
    df = session.df.set_index("syscall")
    assert expected["getppid"] == 1000
    assert df["count"].drop("read").to_dict() == {name: count for name, count in expected.items() if name != "read"}
    # 200 ms by the clock of the sleep. Emulated CPUs' clocks differ: 199.98 ms were seen in a guest.
    assert pd.Timedelta("199ms") <= df.time["clock_nanosleep"] < pd.Timedelta("10s")
    assert (df.time > pd.Timedelta(0)).all()


def test_syscount_by_process_name_and_error() -> None:
    def act() -> None:
        for _ in range(300):
            os.getppid()
            Path("/none").exists()

    counted = {}
    for by in ("pid", "comm", "errno"):
        with bpfnb.tools.syscount(by=by, pid=os.getpid(), name=by) as session:
            act()
        counted[by] = session.df
    (mine,) = counted["pid"].to_dict("records")
    assert (mine["pid"], mine["count"] >= 600) == (os.getpid(), True)
    assert counted["comm"]["count"].sum() >= 600
    errors = counted["errno"].set_index("errno_error")["count"]
    assert errors["ENOENT"] == 300
    assert list(counted["errno"].columns) == ["errno", "errno_error", "count"]


def test_capable_has_what_is_granted_and_what_is_not() -> None:
    nobody = ["setpriv", "--reuid=65534", "--clear-groups", "chroot", "/", "true"]
    with bpfnb.tools.capable() as session:
        with subprocess.Popen(nobody, stderr=subprocess.DEVNULL) as refused:
            refused.wait()
        with subprocess.Popen(["chroot", "/", "true"]) as granted:
            granted.wait()
    df = session.df[session.df.name == "CAP_SYS_CHROOT"]
    found = {row.pid: (row.uid, row.comm, row.ret, row.ret_errno) for row in df.itertuples()}
    assert found[refused.pid] == (65534, "chroot", -1, "EPERM")
    assert found[granted.pid][:3] == (0, "chroot", 0)
    with bpfnb.tools.capable(failed=True, name="failed") as session:
        subprocess.run(nobody, stderr=subprocess.DEVNULL, check=False)
    assert set(session.df.ret) == {-1}


@pytest.fixture
def small_cgroup() -> Iterator[Path]:
    """A memory cgroup with 24 MB."""
    for root, limit in (("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")):
        group = Path(root) / f"bpfnb-test-{os.getpid()}"
        with suppress(OSError):
            group.mkdir()
            try:
                (group / limit).write_text(str(24 << 20))
                with suppress(OSError):  # no swap, where that is counted
                    (group / "memory.swap.max").write_text("0")
                yield group
                return
            finally:
                group.rmdir()
    pytest.skip("no memory cgroup can be made here")


def test_oomkill_has_who_was_killed(small_cgroup: Path) -> None:
    """In a cgroup, so that nobody else is."""
    code = "import os, sys; open(sys.argv[1], 'w').write(str(os.getpid())); bytearray(200 << 20)"
    command = [sys.executable, "-Sc", code, small_cgroup / "cgroup.procs"]
    with bpfnb.tools.oomkill() as session, subprocess.Popen(command) as process:
        assert process.wait() == -signal.SIGKILL
    (row,) = session.df[session.df.tpid == process.pid].to_dict("records")
    assert (row["fpid"], row["fcomm"], row["tcomm"]) == (process.pid, row["tcomm"], Path(sys.executable).name[:15])
