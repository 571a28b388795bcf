"""A notebook that is stopped: the tracer holds no more than ``keep`` of its rows, counts the rest, and when the
notebook goes on, so do the rows, with no event unaccounted for."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import bpfnb
from bpfnb.hosts import default_host

MIB = 1 << 20
KEEP = 64 * MIB
_libc = ctypes.CDLL(None)

NOTEBOOK = """
import json, os, sys
import bpfnb
from bpfnb.hosts import default_host
text, function = sys.stdin.readline(), {attach!r}
session = bpfnb.trace(json.loads(text), name="s", attach={attach}, keep={keep}, cflags=["-DPRODUCER=" + {pid!r}])
print(default_host.connect().hello().pid, flush=True)
for line in sys.stdin:
    if line == "rows\\n":
        print(sum(o.rows for o in session.outputs.values()), session.lost, flush=True)
    else:
        session.stop()
        rows = sum(o.rows for o in session.outputs.values())
        made = int(session.maps["made"].df["value"].sum())
        frame = session.df
        print(json.dumps({{"rows": rows, "lost": session.lost, "made": made, "reason": session.reason,
                          "frame": len(frame), "dropped": frame.attrs["dropped"]}}), flush=True)
        break
"""
PRINTK = r"""
BPF_ARRAY(made, u64, 1);
int f(void *ctx) {
    if ((bpf_get_current_pid_tgid() >> 32) != PRODUCER) return 0;
    bpf_trace_printk("a line of the flood, of ordinary length\n");
    made.atomic_increment(0);
    return 0;
}
"""
EVENTS = r"""
struct event { u64 n; char text[120]; };
BPF_ARRAY(made, u64, 1);
OUTPUT;
int f(struct pt_regs *ctx) {
    if ((bpf_get_current_pid_tgid() >> 32) != PRODUCER) return 0;
    struct event event = {};
    event.n = bpf_ktime_get_ns();
    SUBMIT;
    made.atomic_increment(0);
    return 0;
}
"""
TEXTS = {
    "printk": PRINTK,
    "ring": EVENTS.replace("OUTPUT", "BPF_RINGBUF_OUTPUT(events, 4096)").replace(
        "SUBMIT", "events.ringbuf_output(&event, sizeof(event), 0)"
    ),
    "perf": EVENTS.replace("OUTPUT", "BPF_PERF_OUTPUT(events)").replace(
        "SUBMIT", "events.perf_submit(ctx, &event, sizeof(event))"
    ),
}


class Notebook:
    """Another process with a session of its own, and its tracer."""

    def __init__(self, text: str) -> None:
        code = NOTEBOOK.format(attach={"syscall:getpgid": "f"}, keep=KEEP, pid=str(os.getpid()))
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.say(json.dumps(text))
        self.tracer = int(self.hear())

    def say(self, line: str) -> None:
        assert self.process.stdin
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def hear(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline()

    def rows(self) -> tuple[int, int]:
        """Rows and lost events, as it knows them."""
        self.say("rows")
        rows, lost = map(int, self.hear().split())
        return rows, lost

    @contextmanager
    def held_still(self) -> Iterator[None]:
        os.kill(self.process.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.process.pid, signal.SIGCONT)


@contextmanager
def notebook(text: str) -> Iterator[Notebook]:
    made = Notebook(text)
    try:
        yield made
    finally:
        made.process.kill()
        made.process.communicate()


def shared_memory() -> int:
    """Of the machine, in bytes: where segments are, those also that are under way in a socket."""
    text = Path("/proc/meminfo").read_text()
    return int(text.partition("Shmem:")[2].split()[0]) << 10


def own_memory(pid: int) -> int:
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.partition("RssAnon:")[2].split()[0]) << 10


def produce(calls: int) -> None:
    for _ in range(calls):
        _libc.getpgid(0)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("kind", TEXTS)
def test_a_notebook_that_is_stopped(kind: str) -> None:
    """GIVEN more events than keep and the kernel's buffers hold, while the notebook stands still
    THEN the tracer holds no more than keep, ends its other work as ever, and all is delivered or counted."""
    total = 1_000_000
    with notebook(TEXTS[kind]) as other:
        produce(1000)
        wait_for(lambda: other.rows()[0] == 1000)
        before, own = shared_memory(), own_memory(other.tracer)
        with other.held_still():
            produce(total)
            time.sleep(0.2)
            shared, grown = shared_memory() - before, own_memory(other.tracer) - own
        # The tracer's, and what the notebook had mapped before: a segment, which goes on to be filled.
        assert shared < KEEP + KEEP // 4
        assert grown < 100 * MIB
        wait_for(lambda: sum(other.rows()) == total + 1000)
        lost = other.rows()[1]
        assert 0 < lost < total
        produce(5000)  # it goes on as if nothing had been
        wait_for(lambda: sum(other.rows()) == total + 6000)
        assert other.rows()[1] == lost
        other.say("stop")
        end = json.loads(other.hear())
    assert end["rows"] + end["lost"] == end["made"] == total + 6000
    assert end["frame"] + end["dropped"] == end["rows"]
    assert end["reason"] == "stopped"


def test_a_session_that_ends_meanwhile_has_nothing_unaccounted_for() -> None:
    """GIVEN a notebook that stands still beyond its credit WHEN it is told to stop before it goes on
    THEN what the kernel's buffers still held is counted."""
    with notebook(TEXTS["ring"]) as other:
        with other.held_still():
            produce(1_000_000)
            other.say("stop")
        end = json.loads(other.hear())
    assert end["rows"] + end["lost"] == end["made"] == 1_000_000


def test_another_notebook_is_not_held_up() -> None:
    with notebook(TEXTS["printk"]) as other, other.held_still():
        produce(600_000)
        with bpfnb.trace(
            PRINTK, name="mine", attach={"syscall:getpgid": "f"}, cflags=[f"-DPRODUCER={os.getpid()}"]
        ) as s:
            produce(100)
        assert len(s.df) == 100
        assert default_host.connect().hello().pid != other.tracer
