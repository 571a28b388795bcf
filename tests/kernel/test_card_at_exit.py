"""The card of a session that still runs as its notebook's kernel is shut down."""

from __future__ import annotations

import subprocess
import sys

# In a process of its own: the client's sockets and its event loop stay in the one that made them.
CLIENT = """
import time
from jupyter_client.manager import start_new_kernel

CELL = '''
import bpfnb, os
syncs = bpfnb.trace('int kprobe__sys_sync(void *ctx) { bpf_trace_printk("hi"); return 0; }', name="syncs")
display(syncs)
os.sync()
'''
manager, client = start_new_kernel()
try:
    reply = client.execute_interactive(CELL, timeout=60, output_hook=lambda message: None)
    assert reply["content"]["status"] == "ok", reply
    client.shutdown()
    last, deadline = "", time.monotonic() + 20
    while "kernel has ended" not in last and time.monotonic() < deadline:
        if client.iopub_channel.msg_ready():
            last = client.get_iopub_msg(timeout=5)["content"].get("data", {}).get("text/plain") or last
        else:
            time.sleep(0.1)
    print(last)
finally:
    client.stop_channels()
    manager.shutdown_kernel(now=True)
"""


def test_card_says_that_the_session_ended_with_its_kernel() -> None:
    done = subprocess.run([sys.executable, "-c", CLIENT], capture_output=True, text=True, timeout=120)
    assert "<Session syncs: stopped, 1 row, 0 lost>" in done.stdout, done.stdout + done.stderr
    assert "the notebook's kernel has ended" in done.stdout
