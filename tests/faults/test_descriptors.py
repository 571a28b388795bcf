"""Few descriptors (`ulimit -n`), in the tracer and in the notebook: one clear line, and nothing left."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

SCRIPT = r"""
import ctypes, json, os, sys, time
import bpfnb
from bpfnb.hosts import default_host
libc = ctypes.CDLL(None)
MAPS = "".join(f"BPF_HASH(h{i}, u32);\n" for i in range(30))
CELLS = {
    "perf": 'BPF_PERF_OUTPUT(e); int f(void *ctx) { u32 x = 1; e.perf_submit(ctx, &x, sizeof(x)); return 0; }',
    "ring": 'BPF_RINGBUF_OUTPUT(e, 8); int f(void *ctx) { u32 x = 1; e.ringbuf_output(&x, sizeof(x), 0); return 0; }',
    "print": 'int f(void *ctx) { bpf_trace_printk("x\\n"); return 0; }',
    "maps": MAPS + "int f(void *ctx) {" + "".join(f"h{i}.increment(1);" for i in range(30)) + "return 0; }",
}
def trace(cell):
    return bpfnb.trace(CELLS[cell], name=f"s{len(bpfnb.sessions())}", attach={"syscall:getpgid": "f"})
def open_files():
    return [len(os.listdir(f"/proc/{pid}/fd")) for pid in (os.getpid(), default_host.connect().hello().pid)]
def described(error):
    return [type(error).__name__, str(error), error.hint]
"""

UNTIL_REFUSED = """
default_host.connect()
before = open_files()
sessions = []
try:
    while True:
        sessions.append(trace(sys.argv[1]))
except bpfnb.BpfnbError as error:
    found = described(error)
libc.getpgid(0)
states = {session.state for session in sessions}
bpfnb.stop_all()
states |= {session.state for session in sessions}
delivered = sys.argv[1] == "maps" or all(len(session.df) for session in sessions)
with trace("ring"):  # all is as it was
    pass
deadline = time.monotonic() + 30
while open_files() != before and time.monotonic() < deadline:
    time.sleep(0.05)
print(json.dumps([len(sessions), found, sorted(states), delivered, open_files() == before]))
"""

NOTEBOOK_IS_FULL = """
first = trace("ring")
libc.getpgid(0)
opened = []
try:
    while True:
        opened.append(open("/dev/null"))
except OSError:
    pass
try:
    trace("print")
    found = None
except bpfnb.BpfnbError as error:
    found = described(error)
opened.clear()
print(json.dumps([found, first.state, first.reason, len(first.df) > 0]))
trace("ring").stop()  # by a new tracer
"""


def run(script: str, limit: int, *arguments: str) -> Any:
    command = ["sh", "-c", f'ulimit -n {limit}; exec "$@"', "sh", sys.executable, "-c", SCRIPT + script, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("cell", ["perf", "ring", "print", "maps"])
def test_a_tracer_without_descriptors_says_so_and_goes_on(cell: str) -> None:
    started, (kind, message, hint), states, delivered, as_before = run(UNTIL_REFUSED, 128, cell)
    assert started >= 3
    assert kind == "SetupError"
    assert "128" in message
    assert "\n" not in message
    assert "ulimit -n" in hint
    assert (states, delivered, as_before) == (["running", "stopped"], True, True)


def test_a_notebook_without_descriptors_says_so_and_keeps_its_rows() -> None:
    found, state, reason, kept = run(NOTEBOOK_IS_FULL, 128)
    assert found[0] in ("TracerDied", "SetupError")
    assert "too many open files: a process may have 128" in found[1]
    assert "ulimit -n" in found[2]
    assert "\n" not in found[1]
    assert state in ("running", "failed")
    assert state == "running" or "too many open files" in reason
    assert kept
