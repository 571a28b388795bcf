"""kill -9 at random moments, of the notebook and of each of its tracer's processes: nothing stays, no row is gone, one
clear error, and another tracer. BPFNB_KILLS: how many."""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path

import kills
import pytest
from processes import parent

import bpfnb
from bpfnb.errors import BpfnbError
from bpfnb.hosts import default_host
from bpfnb.tracer.kernel import tracefs


@pytest.mark.ends_tracer
@pytest.mark.timeout(600)
def test_whoever_is_killed_nothing_stays_and_no_row_is_gone() -> None:
    report = kills.run(int(os.environ.get("BPFNB_KILLS", "15")), seed=os.getpid())
    assert not report.wrong, "\n".join(report.wrong)


@pytest.mark.ends_tracer
def test_a_session_that_starts_leaves_no_instance_when_the_supervisor_is_killed() -> None:
    """GIVEN a worker that has just made its first tracefs instance WHEN its supervisor, who would remove what is left,
    is killed THEN it removes them itself."""

    def left(pid: int) -> list[str]:
        return [entry.name for entry in (tracefs.root() / "instances").glob(f"bpfnb-{pid}-*")]

    def start() -> None:
        with suppress(BpfnbError):
            bpfnb.trace('int f(void *ctx) { bpf_trace_printk("x\\n"); return 0; }', attach={"syscall:getpgid": "f"})

    default_host.close()
    pid = default_host.connect().hello().pid
    supervisor = parent(pid)
    starting = threading.Thread(target=start)
    starting.start()
    limit = time.monotonic() + 60
    while not left(pid) and starting.is_alive() and time.monotonic() < limit:
        time.sleep(0.0002)
    os.kill(supervisor, signal.SIGKILL)
    starting.join(60)
    default_host.close()
    while left(pid) and time.monotonic() < limit:
        time.sleep(0.01)
        if not Path(f"/proc/{pid}/fd/0").exists():  # it has ended
            break
    assert left(pid) == []
