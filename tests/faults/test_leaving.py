"""A notebook that leaves: at once, whatever its tracer does; and forks, while another thread is at work."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from leaks import bpf_ids

import bpfnb
from bpfnb.hosts import default_host

COUNT = 'int count(void *ctx) { bpf_trace_printk("x\\n"); return 0; }'
ATTACH = {"rawtracepoint:task_rename": "count"}

_STOPPED = f"""
import os, signal, sys, time
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
import bpfnb, processes
from bpfnb.hosts import default_host
session = bpfnb.trace({COUNT!r}, name="s", attach={ATTACH!r})
worker = default_host.connect().hello().pid
supervisor = processes.parent(worker)
held = [number for kind, number in processes.objects(worker) if kind == "program"]
print(worker, *held)
print(time.monotonic(), flush=True)
for pid in (worker, supervisor)[: int(sys.argv[1])]:
    os.kill(pid, signal.SIGSTOP)
if "with" in sys.argv:
    with session:
        sys.exit(7)
sys.exit(7)
"""


def gone(pid: int) -> bool:
    """Whether a process ends within ten seconds."""
    deadline = time.monotonic() + 10
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    return not Path(f"/proc/{pid}").exists()


@pytest.mark.parametrize("how", ["1", "2", "1 with"])
def test_exit_does_not_wait_for_a_stopped_tracer(how: str) -> None:
    """It is continued, and so takes its programs off."""
    command = [sys.executable, "-c", _STOPPED, *how.split()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stderr) == (7, "")
    held, left_at = done.stdout.splitlines()
    assert time.monotonic() - float(left_at) < 8  # docs/reliability.md has what it takes
    worker, *programs = map(int, held.split())
    assert programs
    assert gone(worker)
    assert not bpf_ids("program") & set(programs)


@pytest.mark.ends_tracer
def test_exit_leaves_a_stopped_tracer_that_is_not_ours_to_continue(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Another user's, behind sudo: the notebook leaves, and says what holds the programs."""
    default_host.close()
    worker = default_host.connect().hello().pid

    def refused(group: int, number: int) -> None:
        raise PermissionError

    os.kill(worker, signal.SIGSTOP)
    began = time.monotonic()
    with monkeypatch.context() as patch:
        patch.setattr(os, "killpg", refused)
        default_host.close()
    assert time.monotonic() - began < 8
    assert f"kill -CONT {worker}" in capfd.readouterr().err
    os.kill(worker, signal.SIGCONT)
    assert gone(worker)


def test_a_fork_while_another_thread_decodes_does_not_hang_the_child() -> None:
    """The child has the rows there were, each once, whatever the thread was at."""
    comm = Path("/proc/self/comm")
    name = comm.read_text().rstrip("\n")
    with bpfnb.trace(COUNT, name="s", attach=ATTACH) as session:
        decoding, enough = threading.Event(), False

        def decode() -> None:
            while not enough:
                decoding.set()
                len(session.df)

        thread = threading.Thread(target=decode)
        thread.start()
        decoding.wait(10)
        try:
            statuses = []
            for _ in range(30):
                for _ in range(20):
                    comm.write_text(name)
                least = len(session.df)
                child = os.fork()
                if not child:
                    signal.alarm(10)
                    frame = session.df
                    right = len(frame) >= least and set(frame.msg) <= {"x"} and frame.time.is_monotonic_increasing
                    os._exit(0 if right and session.snapshot().rows >= least else 1)
                statuses.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
                assert statuses[-1] == 0
        finally:
            enough = True
            thread.join()
    assert statuses == [0] * 30
    assert int((session.df.pid == os.getpid()).sum()) + session.lost == 600
