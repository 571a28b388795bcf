"""The seed tutorial's programs, their C to the letter, through bpfnb.trace and through cells."""

from __future__ import annotations

import ctypes
import os
import subprocess
import time
from pathlib import Path

import pandas as pd
import pytest
import workload
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

import bpfnb
from bpfnb.session import Session

pytestmark = pytest.mark.portable

# As they stand in the tutorial, inside Python strings: there "\\n" is C's "\n".
HELLO = 'int kprobe__sys_clone(void *ctx) { bpf_trace_printk("Hello, World!\\n"); return 0; }'
SYNC = 'int kprobe__sys_sync(void *ctx) { bpf_trace_printk("sys_sync() called\\n"); return 0; }'
CLONE = """
int hello(void *ctx) {
    bpf_trace_printk("my bcc program\\n");
    return 0;
}
"""


def fork() -> int:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    return pid


def own(session: Session, rows: int) -> pd.DataFrame:
    """This process's rows, once there are so many, or after two seconds."""
    deadline = time.monotonic() + 2
    while True:
        df = session.df
        mine = df[df.pid == os.getpid()]
        if len(mine) >= rows or time.monotonic() > deadline:
            return mine
        time.sleep(0.02)


def test_hello_world_on_clone() -> None:
    with bpfnb.trace(HELLO, name="hello") as session:
        for _ in range(3):
            fork()
        rows = own(session, 3)
    assert list(rows.msg) == ["Hello, World!"] * 3
    assert session.state == "stopped"
    assert [p.requested for p in session.probes] == ["kprobe__sys_clone"]


def test_sync() -> None:
    with bpfnb.trace(SYNC, name="syncs") as session:
        ctypes.CDLL(None).sync()
        ctypes.CDLL(None).sync()
        rows = own(session, 2)
    assert list(rows.msg) == ["sys_sync() called"] * 2


def test_clone_attached_by_call() -> None:
    with bpfnb.trace(CLONE, name="clones", attach={"syscall:clone": "hello"}) as session:
        before = time.time()
        fork()
        rows = own(session, 1)
        after = time.time()
    (row,) = rows.itertuples()
    assert row.msg == "my bcc program"
    assert row.comm == Path("/proc/self/comm").read_text().rstrip("\n")
    assert row.pid == os.getpid()
    assert 0 <= row.cpu < os.cpu_count()
    assert before <= row.time.timestamp() <= after
    assert abs(row.ts - time.monotonic()) < 10


def test_pasted_c_means_the_same() -> None:
    """Copied out of the tutorial's Python, ``\\\\n`` reaches C as a backslash and an n."""
    for source, message, act in (
        (HELLO, "Hello, World!", fork),
        (SYNC, "sys_sync() called", ctypes.CDLL(None).sync),
    ):
        pasted = source.replace("\\n", "\\\\n")
        assert '\\\\n"' in pasted
        with bpfnb.trace(pasted, name="pasted") as session:
            act()
            assert list(own(session, 1).msg) == [message]


def test_columns() -> None:
    with bpfnb.trace(HELLO, name="hello") as session:
        fork()
        own(session, 1)
        df = session.df
    assert list(df.columns) == ["time", "comm", "pid", "cpu", "flags", "ts", "msg"]
    kinds = {name: str(dtype) for name, dtype in df.dtypes.items()}
    assert kinds.pop("msg") in ("str", "string")
    assert kinds == {
        "time": "datetime64[ns, UTC]",
        "comm": "category",
        "pid": "int32",
        "cpu": "int16",
        "flags": "category",
        "ts": "float64",
    }
    assert df.attrs["lost"] == 0


CREATIONS = {f"syscall:{name}": "hello" for name in ("clone", "clone3", "vfork", "fork")}


def test_exactly_what_happened() -> None:
    """N processes made and M syncs by a known process tree give exactly N and M rows."""
    with (
        # An emulated CPU that its host gives no time seems to spend all of its own on reading: no guard.
        bpfnb.trace(CLONE, name="clones", attach=CREATIONS, guard=False) as clones,
        bpfnb.trace(SYNC, name="syncs", guard=False) as syncs,
    ):
        work = workload.start(forks=40, vforks=20, spawns=20, subshells=20, syncs=10)
        done = work.result()
    df = clones.df
    assert (clones.reason, syncs.reason) == ("stopped", "stopped")
    assert done["created"] == 40 + 20 + 20 + 20 + 10
    assert {pid: int((df.pid == pid).sum()) for pid in done["processes"]} == done["processes"]
    assert int((syncs.df.pid == done["sync_pid"]).sum()) == done["syncs"] == 10
    assert clones.lost == syncs.lost == 0
    assert set(df[df.pid.isin(done["processes"])].msg) == {"my bcc program"}


def test_a_storm_is_exact() -> None:
    """20,000 lines as fast as one process prints them: each arrives, in order, at its own time."""
    source = """
    int hello(struct pt_regs *ctx) { bpf_trace_printk("%lu\\n", (unsigned long)PT_REGS_PARM1(ctx)); return 0; }
    """
    getpgid = ctypes.CDLL(None).getpgid
    with bpfnb.trace(source, name="storm", attach={"syscall:getpgid": "hello"}) as session:
        for i in range(20_000):
            getpgid(i)
    df = session.df
    mine = df[df.pid == os.getpid()]
    assert session.lost == 0
    assert mine.msg.astype(int).tolist() == list(range(20_000))
    assert mine.time.is_monotonic_increasing


def test_a_program_run_by_a_shell_is_seen_with_its_name() -> None:
    with bpfnb.trace(CLONE, name="clones", attach={"syscall:clone": "hello"}) as session:
        shell = subprocess.Popen(["bash", "-c", "(:); (:); :"])
        shell.wait()
    rows = session.df[session.df.pid == shell.pid]
    assert list(rows.comm) == ["bash", "bash"]


@pytest.mark.portable
def test_the_seeds_c_in_cells() -> None:
    """Each program's C goes into a cell as it stands in the tutorial, the backslash of its newline still doubled."""
    shell = InteractiveShell.instance(config=Config(HistoryManager={"enabled": False}))
    shell.run_line_magic("load_ext", "bpfnb")
    pasted = {
        name: source.replace("\\n", "\\\\n") for name, source in (("hello", HELLO), ("syncs", SYNC), ("c", CLONE))
    }
    assert all('\\\\n"' in source for source in pasted.values())
    try:
        for line, name in (("hello", "hello"), ("syncs", "syncs"), ("clones -a syscall:clone=hello", "c")):
            result = shell.run_cell(f"%%bpf {line}\n{pasted[name]}")
            result.raise_error()
            assert isinstance(result.result, Session)
        fork()
        ctypes.CDLL(None).sync()
        shell.run_cell("%bpf stop --all").raise_error()
        said = {name: own(shell.user_ns[name], 1).msg.tolist() for name in ("hello", "syncs", "clones")}
    finally:
        bpfnb.stop_all()
        shell.reset(new_session=False)
        InteractiveShell.clear_instance()
    assert said == {"hello": ["Hello, World!"], "syncs": ["sys_sync() called"], "clones": ["my bcc program"]}
