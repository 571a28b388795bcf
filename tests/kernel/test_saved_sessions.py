"""Sessions saved, and opened without a tracer: the same to the last value and dtype, names of stacks too."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from waiting import until

import bpfnb
from bpfnb.session import Session

MAPS = r"""
struct key_t { u32 pid; int kernel_stack; int user_stack; char comm[16]; };
enum what_t { ONE = 1, TWO = 2 };
struct event_t { struct key_t key; u64 at; enum what_t what; unsigned char raw[6]; __u128 wide; u16 some[3];
                 bool yes; };
struct prefix_t { u32 bits; u32 address; };
BPF_STACK_TRACE(traces, 1024);
BPF_HASH(counts, struct key_t, u64);
BPF_TABLE("percpu_hash", u32, u64, by_cpu, 16);
BPF_TABLE("lru_hash", u32, u64, newest, 16);
BPF_ARRAY(numbers, u64, 4);
BPF_PERCPU_ARRAY(cpu_numbers, u64, 4);
BPF_LPM_TRIE(routes, struct prefix_t, u64, 16);
BPF_QUEUE(waiting, u64, 1000);
BPF_STACK(piled, u64, 1000);
BPF_HISTOGRAM(sizes);
BPF_PERF_OUTPUT(events);
BPF_RINGBUF_OUTPUT(ring, 8);

TRACEPOINT_PROBE(syscalls, sys_enter_getppid) {
    u32 one = 1;
    struct prefix_t prefix = {32, 7};
    struct event_t event = {};
    event.key.pid = bpf_get_current_pid_tgid() >> 32;
    bpf_get_current_comm(event.key.comm, sizeof(event.key.comm));
    event.key.kernel_stack = traces.get_stackid(args, 0);
    event.key.user_stack = traces.get_stackid(args, BPF_F_USER_STACK);
    event.at = bpf_ktime_get_ns();
    event.what = (event.at & 1) + 1;
    event.raw[0] = event.at;
    event.wide = (__u128)event.at << 64;
    event.some[1] = event.at;
    event.yes = event.at & 2;
    counts.increment(event.key);
    by_cpu.increment(one);
    newest.increment(one);
    numbers.increment(one);
    cpu_numbers.increment(one);
    u64 now = event.at;
    routes.update(&prefix, &now);
    waiting.push(&now, 0);
    piled.push(&now, 0);
    sizes.increment(bpf_log2l(now & 1023));
    events.perf_submit(args, &event, sizeof(event));
    ring.ringbuf_output(&event, sizeof(event), 0);
    bpf_trace_printk("at %llu\n", now);
    return 0;
}
"""
CALLS = 200
CALLER = f"import os\n[os.getppid() for _ in range({CALLS})]"


def frames(session: Session) -> dict[str, pd.DataFrame]:
    found = {"df": session.df, **{f"output {name}": output.df for name, output in session.outputs.items()}}
    found |= {f"map {name}": map_.df for name, map_ in session.maps.items()}
    if "traces" in session.maps and "counts" in session.maps:
        traces = session.maps["traces"]
        found |= {"symbols": traces.symbols(), "folded": traces.folded(session.maps["counts"])}
        if "events" in session.outputs:
            columns: dict[str, Any] = {"kernel": "key.kernel_stack", "user": "key.user_stack", "owner": "key.pid"}
            found |= {"rows folded": traces.folded(session.outputs["events"].df, **columns)}
    return found


def stacks_of(session: Session, path: Path, **choice: Any) -> str:
    session.flame(**choice).to_folded(path)
    return path.read_text()


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # another stack may have the place of one
def test_every_column_and_map_comes_back(tmp_path: Path) -> None:
    session = bpfnb.trace(MAPS, name="calls", command=[sys.executable, "-c", CALLER])
    assert session.wait(30)
    before, stacks = frames(session), stacks_of(session, tmp_path / "before", map="counts")
    session.save(tmp_path / "trace.bpfnb.zip")
    opened = bpfnb.open(tmp_path / "trace.bpfnb.zip")
    after = frames(opened)
    assert list(after) == list(before)
    for name, frame in before.items():
        pd.testing.assert_frame_equal(after[name], frame, obj=name)
        assert after[name].attrs == frame.attrs
    assert (len(opened.df), opened.outputs["printk"].rows, opened.lost) == (CALLS, CALLS, 0)
    assert opened.maps["numbers"][1] == CALLS
    assert opened.maps["waiting"].peek() == opened.outputs["ring"].df["at"][0]
    assert "getppid" in stacks
    assert stacks_of(opened, tmp_path / "after", map="counts") == stacks
    assert opened.probes == session.probes
    assert opened.returncode == 0
    pd.testing.assert_frame_equal(opened.cost, session.cost)


@pytest.mark.parametrize(
    "start",
    [
        lambda: bpfnb.tools.profile(frequency=499),
        lambda: bpfnb.stacks("tracepoint:syscalls:sys_enter_getppid", by="comm"),
        lambda: bpfnb.rows("syscall:getppid", ["pid", "cgroup", "probe"]),
        lambda: bpfnb.tools.opensnoop(cpu=True),
    ],
    ids=["profile", "stacks", "rows", "opensnoop"],
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_what_tools_and_questions_show_comes_back(start: Callable[[], Session], tmp_path: Path) -> None:
    session = start()
    subprocess.run([sys.executable, "-c", CALLER], check=True)
    until(lambda: len(session.df))
    session.save(tmp_path / "running")
    session.stop()
    session.save(tmp_path / "stopped")
    before = session.df
    opened = bpfnb.open(tmp_path / "stopped")
    pd.testing.assert_frame_equal(opened.df, before)
    assert len(before)
    assert not opened.manifest.note
    assert opened.presentation is not None
    assert session.presentation is not None
    assert opened.presentation.units == session.presentation.units
    assert len(bpfnb.open(tmp_path / "running").df)
