"""Hosts: where programs run, each with a tracer and sessions of its own."""

from __future__ import annotations

import gc
import os
import socket
import subprocess
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import bpfnb
from bpfnb.host.tracer import Listener, Tracer
from bpfnb.hosts import default_host
from bpfnb.language.program import Program
from bpfnb.protocol.messages import Limits, Loaded, SegmentAdded, Stopped
from bpfnb.protocol.schema import PRINTK, PRINTK_ROW
from bpfnb.protocol.segments import Layout, SegmentWriter
from bpfnb.testing import FakeTracer

ROOT = Path(__file__).parents[2]
HELLO = 'int kprobe__sys_clone(void *ctx) { bpf_trace_printk("Hello, World!\\n"); return 0; }'


@pytest.fixture
def default() -> Iterator[FakeTracer]:
    with FakeTracer() as tracer:
        yield tracer
        bpfnb.stop_all()


def test_each_has_a_tracer_and_sessions_of_its_own(default: FakeTracer) -> None:
    with FakeTracer() as other, FakeTracer() as innermost:
        assert bpfnb.trace(HELLO, name="s") is bpfnb.sessions()["s"]
        with bpfnb.Host(other.launch) as host:
            session = host.trace(HELLO, name="s")
            other.printk(session, [("bash", 1, "over there")])
            assert session.df.msg.tolist() == ["over there"]
            assert host.sessions() == {"s": session}
            assert bpfnb.sessions()["s"] is not session
            assert (len(default.loaded), len(other.loaded), len(innermost.loaded)) == (0, 1, 1)
        assert (session.state, host.sessions()) == ("stopped", {})
        assert bpfnb.sessions()["s"].state == "running"
        bpfnb.stop_all()


def test_a_tracer_that_died_is_followed_by_another(default: FakeTracer) -> None:
    first = bpfnb.trace(HELLO, name="s")
    before = default_host.connect()
    default.die()
    assert first.wait(5)
    second = bpfnb.trace(HELLO, name="s")
    assert default_host.connect() is not before
    assert (first.state, second.state) == ("failed", "running")


@pytest.mark.parametrize("kind", [bpfnb.SetupError, bpfnb.PrivilegeError])
def test_what_keeps_a_tracer_from_starting_is_said_to_who_needs_it(kind: type[bpfnb.BpfnbError]) -> None:
    """Not to %load_ext, which only starts it early."""

    def launch() -> Tracer:
        raise kind("no")

    host = bpfnb.Host(launch)
    host.warm_up()
    with pytest.raises(kind, match="no"):
        host.trace(HELLO)
    assert not host.doctor().ok


def test_the_tracer_before_a_fake_one_lives_on(default: FakeTracer) -> None:
    session = bpfnb.trace(HELLO, name="s")
    before = default_host.connect()
    with FakeTracer():
        assert default_host.connect() is not before
    assert default_host.connect() is before
    default.printk(session, [("bash", 1, "x")])
    assert len(session.df) == 1


def test_the_child_of_a_fork_has_no_tracer_and_no_session_of_any_host(default: FakeTracer) -> None:
    with bpfnb.Host(default.launch) as host:
        tracer = host.connect()
        host.trace(HELLO, name="s")
        child = os.fork()
        if not child:
            os._exit(0 if host.sessions() == {} and tracer.died else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert list(host.sessions()) == ["s"]


def test_one_fork_handler_serves_the_notebooks_side() -> None:
    """State of a process is reset in an order, locks first: see forget_after_fork."""
    files = [*(ROOT / "bpfnb").rglob("*.py"), *(ROOT / "magics").rglob("*.py")]
    assert [path.name for path in files if "register_at_fork" in path.read_text()] == ["interrupts.py"]


def test_a_host_that_nobody_holds_is_let_go(default: FakeTracer) -> None:
    """Nothing of a process's own keeps one: not the table of what a forked child forgets, nor that of the exit."""
    host = bpfnb.Host(default.launch)
    host.trace(HELLO, name="s").stop()
    host.close()
    parts = [weakref.ref(part) for part in (host, host._connector, host._registry)]
    del host
    gc.collect()
    assert [part() for part in parts] == [None] * 3


class Recorded(Tracer):
    """A tracer that plays what it once heard: the shortest there can be."""

    died = None
    reached = "a recording"

    def hello(self) -> None: ...

    def load(
        self, program: Program, listener: Listener, limits: Limits, keep: int, follower: socket.socket | None = None
    ) -> int:
        def publish(layout: Layout, fd: int) -> None:
            listener.on_segment(SegmentAdded(1, "printk", PRINTK, layout, 0), fd)

        rows = np.zeros(2, PRINTK_ROW)
        rows["pid"], rows["text_end"] = (7, 8), (1, 3)
        writer = SegmentWriter(PRINTK, publish)
        writer.append(rows.view(np.uint8).reshape(2, -1), np.frombuffer(b"abc", np.uint8))
        listener.on_loaded(Loaded(1, (), ()))
        return 1

    def stop(self, session: int) -> Stopped:
        return Stopped(1)

    def close(self) -> None: ...


def test_sessions_run_on_whatever_is_a_tracer() -> None:
    with bpfnb.Host(Recorded) as host, host.trace(HELLO, name="played") as session:
        assert session.df.pid.tolist() == [7, 8]
        assert session.df.msg.tolist() == ["a", "bc"]
        assert session.state == "running"
    assert (session.state, len(session.df)) == ("stopped", 2)


def test_probes_are_a_frame() -> None:
    names = ["syscall:clone", "tracepoint:sched:sched_process_fork", "usdt:/bin/x:p:\x1b[31m"]
    with FakeTracer(probes=names):
        df = bpfnb.probes("*")
    assert list(df.columns) == ["probe", "kind", "arguments", "returns", "note"]
    assert df.probe.tolist() == names
    assert df.kind.tolist() == ["syscall", "tracepoint", "usdt"]
    assert df[["arguments", "returns", "note"]].eq("").all(axis=None)
    assert df.attrs["more"] == 0
    assert "\x1b" not in repr(df)
    with FakeTracer():
        empty = bpfnb.probes("nothing")
    assert (len(empty), list(empty.columns), set(map(str, empty.dtypes))) == (
        0,
        list(df.columns),
        {str(df.probe.dtype)},
    )


# --- what completion offers ---------------------------------------------------------------------------------------


def test_a_package_shows_its_public_names_alone() -> None:
    done = subprocess.run([sys.executable, "-c", "import bpfnb; print(*dir(bpfnb))"], capture_output=True, text=True)
    hooks = ["load_ipython_extension", "unload_ipython_extension"]
    assert [name for name in done.stdout.split() if not name.startswith("_")] == sorted(
        [*bpfnb.__all__, "open", *hooks]
    )
    own = {n for n, v in vars(bpfnb).items() if not n.startswith("_") and not isinstance(v, type(sys))}
    # ``open`` is not of __all__, so that "from bpfnb import *" leaves Python's.
    assert own - {"annotations", "open"} == {*bpfnb.__all__, *hooks}


def test_a_session_shows_its_public_names_alone(default: FakeTracer) -> None:
    assert [name for name in dir(bpfnb.trace(HELLO, name="s")) if not name.startswith("_")] == [
        "arrow",
        "between",
        "cost",
        "detaching",
        "df",
        "drain",
        "elapsed",
        "flame",
        "growth",
        "heatmap",
        "hist",
        "host",
        "live",
        "lost",
        "main_output",
        "maps",
        "meter",
        "name",
        "now",
        "openmetrics",
        "output_with",
        "outputs",
        "presentation",
        "probes",
        "program",
        "quantiles",
        "rate",
        "reason",
        "recording",
        "returncode",
        "save",
        "snapshot",
        "source",
        "sql",
        "state",
        "stop",
        "stream",
        "table",
        "to_chrome",
        "to_csv",
        "to_folded",
        "to_jsonl",
        "to_parquet",
        "to_perfetto",
        "to_pprof",
        "to_speedscope",
        "top",
        "unfinished",
        "view",
        "wait",
        "warnings",
    ]


def test_what_the_package_offers_is_the_default_hosts() -> None:
    for name in ("trace", "sessions", "stop_all", "probes", "doctor", "live"):
        assert getattr(bpfnb, name) == getattr(default_host, name)
        assert getattr(bpfnb, name).__doc__
