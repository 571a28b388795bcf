"""Real sessions of every kind, saved and opened: they say what the session said once it had stopped."""

from __future__ import annotations

import os
import re
import subprocess
import time
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pandas as pd
import pytest
from pandas.testing import assert_frame_equal
from test_map_contents import CELL, UNREADABLE
from waiting import until

import bpfnb
from bpfnb.results.maps.map import Map
from bpfnb.session import Session
from bpfnb.session.recorded import Recorded

# A column of each kind, in a ring buffer and a perf buffer, and lines.
COLUMNS = r"""
enum colour { RED, GREEN = 5, BLUE = 70000 };
struct all_t {
    unsigned __int128 wide; __int128 wide_signed;
    u64 u64_; s64 s64_; u32 u32_; s32 s32_; u16 u16_; s16 s16_; u8 u8_; s8 s8_; bool bool_; char char_;
    enum colour colour; void *pointer;
    u32 slots[3]; u64 matrix[2][2]; u8 mac[6]; char comm[16]; char odd[5];
    u32 low : 3, high : 29; s32 sign : 5; bool bit : 1;
    char tail[];
};
struct timed_t { u64 ts; u32 n; char text[8]; };
struct bytes_t { u32 n; u8 data[]; };
BPF_ARRAY(calls, u32, 1);
BPF_RINGBUF_OUTPUT(whole, 16);
BPF_RINGBUF_OUTPUT(blobs, 16);
BPF_PERF_OUTPUT(events);
int f(void *ctx) {
    int zero = 0;
    u32 n, *count = calls.lookup(&zero);
    struct timed_t timed = {.ts = bpf_ktime_get_ns()};
    if (!count)
        return 0;
    n = (*count)++;
    bpf_trace_printk("call %d\n", n);
    struct all_t *e = whole.ringbuf_reserve(sizeof(*e) + 16);
    if (!e)
        return 0;
    __builtin_memset(e, 0, sizeof(*e) + 16);
    e->u64_ = -(u64)n; e->s64_ = (s64)n << 40; e->u32_ = -n; e->s32_ = -(s32)n; e->u16_ = n; e->s16_ = -(s16)n;
    e->u8_ = n; e->s8_ = -(s8)n; e->bool_ = n & 1; e->char_ = 'a' + (n & 15); e->pointer = (void *)(u64)(n * 4096);
    e->colour = n & 1 ? BLUE : n & 2 ? 7 : GREEN;
    e->wide = (unsigned __int128)n << 70; e->wide_signed = -(__int128)n;
    e->slots[1] = n; e->matrix[1][0] = n; e->mac[5] = n;
    bpf_get_current_comm(&e->comm, sizeof(e->comm));
    e->odd[0] = n & 1 ? 0xff : 'x'; e->odd[2] = 'y';  // no UTF-8, and something behind the end
    e->low = n; e->high = -n; e->sign = -(s32)n; e->bit = n & 1;
    e->tail[0] = 'h'; e->tail[1] = n & 1 ? 0xc3 : 'i'; e->tail[2] = n & 3 ? 0xa9 : 0;
    whole.ringbuf_submit(e, 0);
    struct bytes_t *b = blobs.ringbuf_reserve(sizeof(*b) + 4);
    if (!b)
        return 0;
    b->n = n; b->data[0] = n; b->data[3] = 0xff;
    blobs.ringbuf_submit(b, 0);
    timed.n = n; timed.text[0] = 'a' + (n & 1); timed.text[4] = n;
    timed.ts -= (n & 1) * 1000000;  // not in the order of their times
    if (n % 10)
        events.perf_submit(ctx, &timed, sizeof(timed));
    return 0;
}
"""
# A map of each kind that is made for programs which are attached here.
MAPS = "\n".join(line for line in CELL.splitlines() if not re.match(r"BPF_(DEV|CPU|XSK|SOCK|\w+_STORAGE)", line))
CALLS = 100


def assert_same(opened: Recorded, session: Session) -> None:
    """Hold all that a recording says against what its session says."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # losses are said once a session, by both
        assert list(opened.outputs) == list(session.outputs)
        assert list(opened.maps) == list(session.maps)
        for name, output in session.outputs.items():
            mine = opened.outputs[name]
            same(mine.df, output.df)
            facts = ("rows", "lost", "dropped", "names", "clock", "kind")
            assert [getattr(mine, fact) for fact in facts] == [getattr(output, fact) for fact in facts], name
        for name, map_ in session.maps.items():
            same_map(opened.maps[name], map_)
        said = ("name", "source", "probes", "warnings", "state", "reason", "returncode", "lost", "detaching")
        assert [getattr(opened, fact) for fact in said] == [getattr(session, fact) for fact in said]
        same(opened.cost, session.cost)
        assert opened.elapsed == pytest.approx(session.elapsed, abs=1e-3)
        if session.presentation or session.outputs:
            same(opened.df, session.df)
            if isinstance(session.df.dtypes.get("time"), pd.DatetimeTZDtype):
                same(opened.rate("10ms"), session.rate("10ms"))
        assert repr(opened).splitlines()[0] == repr(session).splitlines()[0]
        assert "recorded on" in repr(opened)


def same(mine: pd.DataFrame, theirs: pd.DataFrame) -> None:
    assert_frame_equal(mine, theirs, check_exact=True, check_freq=False)
    assert mine.attrs == theirs.attrs


def same_map(mine: Map, theirs: Map) -> None:
    assert (mine.info, repr(mine), mine.lost) == (theirs.info, repr(theirs), theirs.lost)
    if theirs.name in UNREADABLE:
        with pytest.raises(bpfnb.UnsupportedError):
            _ = mine.df
        return
    same(mine.df, theirs.df)
    same(mine.reduced("max"), theirs.reduced("max"))
    assert (len(mine), mine.values()) == (len(theirs), theirs.values())
    if theirs.info.key:
        assert mine.items() == theirs.items()
    if theirs.is_histogram:
        same(mine.hist(), theirs.hist())
    if theirs.kind == "stack_trace" and not theirs.info.macro.endswith("BUILDID"):
        same(mine.symbols(os.getpid()), theirs.symbols(os.getpid()))
        same(mine.symbols(), theirs.symbols())


def saved(session: Session, path: Path) -> Recorded:
    session.stop()
    session.save(path)
    return bpfnb.open(path)


def test_cells_of_every_column_and_every_map(tmp_path: Path) -> None:
    pid = f"-DPID={os.getpid()}"
    with ExitStack() as running:
        columns = running.enter_context(
            bpfnb.trace(COLUMNS, name="columns", attach={"syscall:getpgid": "f"}, pid=os.getpid(), cpu=True)
        )
        maps = running.enter_context(
            bpfnb.trace(MAPS, attach={"syscall:getpgid": "fill"}, cflags=[pid], pid=os.getpid())
        )
        for _ in range(CALLS):
            os.getpgid(0)
        maps.maps["plain"][77] = 5
        until(lambda: columns.outputs["whole"].rows == CALLS)
    opened = saved(columns, tmp_path / "columns.zip")
    assert [len(opened.outputs[name].df) for name in opened.outputs] == [
        len(columns.outputs[name].df) for name in columns.outputs
    ]
    assert {name: len(output.df) for name, output in opened.outputs.items()} == {
        "printk": CALLS, "whole": CALLS, "blobs": CALLS, "events": 90,
    }  # fmt: skip
    assert_same(opened, columns)
    of_maps = saved(maps, tmp_path / "maps")
    assert_same(of_maps, maps)
    assert of_maps.maps["plain"][77] == 5
    for path in ("again", "again.zip"):  # a recording of the recording
        opened.save(tmp_path / path)
        assert_same(bpfnb.open(tmp_path / path), columns)


def asked() -> dict[str, Callable[[], Session]]:
    """One-liners of all six verbs, and tools of each view, about this process and what it starts."""
    pid, call = os.getpid(), "syscall:getpgid"
    tools = bpfnb.tools
    return {
        "count": lambda: bpfnb.count([call, "syscall:getppid"], by=["comm", "probe", "cgroup"], pid=pid, name="count"),
        "stats": lambda: bpfnb.stats(call, "pid", by={"who": "comm"}, pid=pid, name="stats"),
        "hist": lambda: bpfnb.hist(call, "pid", kind="linear", bins=(0, 1 << 22, 1 << 10), pid=pid, name="hist"),
        "latency": lambda: bpfnb.latency(call, by="comm", pid=pid, name="latency"),
        "rows": lambda: bpfnb.rows(call, ["pid", "comm", "retval", "latency"], pid=pid, name="rows"),
        "stacks": lambda: bpfnb.stacks(call, by="comm", pid=pid, name="stacks"),
        "execsnoop": lambda: tools.execsnoop(name="execsnoop"),
        "syscount": lambda: tools.syscount(name="syscount", failed=True, latency=True),
        "runqlat": lambda: tools.runqlat(name="runqlat", comms=True),
        "profile": lambda: tools.profile(name="profile", frequency=499, pid=pid),
        "memleak": lambda: tools.memleak(name="memleak", pid=pid, older=0.0, top=0),
    }


def test_one_liners_and_tools(tmp_path: Path) -> None:
    questions = asked()
    with ExitStack() as running:
        sessions = {name: running.enter_context(start()) for name, start in questions.items()}
        for _ in range(CALLS):
            os.getpgid(0)
        os.getppid()
        subprocess.run(["/bin/true", "caf\xe9"], check=True)
        busy = time.monotonic() + 0.3
        while time.monotonic() < busy:
            sum(range(1000))
        until(lambda: sessions["rows"].outputs and sessions["rows"].main_output.rows == CALLS)
    for name, session in sessions.items():
        opened = saved(session, tmp_path / name)
        assert_same(opened, session)
        assert len(opened.df), name
        assert opened.presentation is not None
        assert session.presentation is not None
        assert (opened.presentation.title, opened.presentation.units) == (
            session.presentation.title,
            session.presentation.units,
        )
    assert bpfnb.open(tmp_path / "rows").df["retval"].nunique() == 1
    same(bpfnb.open(tmp_path / "latency").quantiles(0.5, 0.9), sessions["latency"].quantiles(0.5, 0.9))
    for name in ("stacks", "profile"):
        opened = bpfnb.open(tmp_path / name)
        opened.to_folded(tmp_path / f"{name}.opened")
        sessions[name].to_folded(tmp_path / f"{name}.stopped")
        assert (tmp_path / f"{name}.opened").read_text() == (tmp_path / f"{name}.stopped").read_text()
