"""A tracer on another host, through near and far: what it says is what a tracer of this machine says."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from relaying import FAR, relayed, slow
from waiting import until

import bpfnb

_EVENTS = """
struct event { u64 number; u32 pid; char comm[16]; };
BPF_PERF_OUTPUT(events);
BPF_ARRAY(made, u64, 1);
BPF_HASH(few, u32, u64, 2);

int f(void *ctx) {
    int zero = 0;
    u64 *made_so_far = made.lookup(&zero);
    if (!made_so_far)
        return 0;
    struct event event = {.number = (*made_so_far)++, .pid = bpf_get_current_pid_tgid() >> 32};
    bpf_get_current_comm(&event.comm, sizeof(event.comm));
    events.perf_submit(ctx, &event, sizeof(event));
    u32 key = event.number;
    u64 value = 1;
    few.update(&key, &value);
    return 0;
}
"""
_WIDE = """
struct event { u64 number; u32 random[64]; };
BPF_PERF_OUTPUT(events);
BPF_ARRAY(made, u64, 1);

int f(void *ctx) {
    int zero = 0;
    u64 *made_so_far = made.lookup(&zero);
    if (!made_so_far)
        return 0;
    struct event event = {.number = (*made_so_far)++};
    #pragma unroll
    for (int i = 0; i < 64; i++)
        event.random[i] = bpf_get_prandom_u32();
    events.perf_submit(ctx, &event, sizeof(event));
    return 0;
}
"""
_LARGE = """
struct block { u32 words[64]; };
BPF_ARRAY(large, struct block, 4096);
BPF_ARRAY(sums, u64, 1);
BPF_PERF_OUTPUT(events);

int f(void *ctx) {
    int zero = 0;
    u64 *sum = sums.lookup(&zero);
    if (!sum)
        return 0;
    u32 number = *sum & 4095;
    for (int i = 0; i < 4; i++) {
        struct block *block = large.lookup(&number);
        if (!block)
            return 0;
        #pragma unroll
        for (int j = 0; j < 64; j++) {
            u64 before = block->words[j];
            block->words[j] = bpf_get_prandom_u32();
            *sum += block->words[j] - before;
        }
        number = (number + 1024) & 4095;
    }
    events.perf_submit(ctx, &number, sizeof(number));
    return 0;
}
"""
_LINES = 'int f(void *ctx) { bpf_trace_printk("one of %d\\n", 7); return 0; }'
_ATTACH = {"syscall:getpgid": "f"}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The home of the user there."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def host(home: Path) -> Iterator[bpfnb.Host]:
    """A host whose login shell prints something first."""
    with relayed("relay", f"export HOME={home}; echo welcome; echo to this host >&2; exec {FAR}") as host:
        host.connect()
        yield host


def work(times: int) -> None:
    for _ in range(times):
        os.getpgid(0)


@pytest.mark.filterwarnings("ignore:.*refused:RuntimeWarning")
def test_rows_maps_and_numbers_are_those_of_a_tracer_here(host: bpfnb.Host) -> None:
    """GIVEN the same cell on this machine and through far WHEN 3,000 events are made THEN both have each of them, the
    same map entries, refused updates and text; and the far one's are here before it is stopped."""
    here = bpfnb.trace(_EVENTS, attach=_ATTACH, pid=os.getpid())
    there = host.trace(_EVENTS, attach=_ATTACH, pid=os.getpid())
    lines = host.trace(_LINES, attach=_ATTACH, pid=os.getpid())
    work(3000)
    until(lambda: there.outputs["events"].rows == lines.outputs["printk"].rows == 3000)
    until(lambda: there.cost.attrs["seconds"] > 0)
    for session in (here, there, lines):
        session.stop()
    assert here.lost == there.lost == lines.lost == 0
    mine, theirs = here.df.drop(columns="time"), there.df.drop(columns="time")
    assert mine.equals(theirs)
    assert list(theirs.number) == list(range(3000))
    assert set(theirs.pid) == {os.getpid()}
    assert np.abs(there.df.time - here.df.time).max() < np.timedelta64(1, "ms")
    assert set(lines.df.msg) == {"one of 7"}
    for name in ("made", "few"):
        frames = [session.maps[name].df.sort_values("key", ignore_index=True) for session in (here, there)]
        assert frames[0].equals(frames[1])
        assert here.maps[name].lost == there.maps[name].lost
    assert there.maps["few"].lost == 2998
    assert there.maps["made"].df.value[0] == 3000


def test_errors_probes_symbols_and_the_doctor_come_from_there(host: bpfnb.Host) -> None:
    with pytest.raises(bpfnb.CompileError) as caught:
        host.trace("int f(void *ctx) {\n  return nothing;\n}", attach=_ATTACH)
    assert caught.value.line == 2
    with pytest.raises(bpfnb.AttachError, match="syscall:getpgid"):
        host.trace("int f(void *ctx) { return 0; }", attach={"syscall:getpgidd": "f"})
    assert host.probes("*getpgid*").equals(bpfnb.probes("*getpgid*"))
    with host.count("syscall:getpgid", pid=os.getpid()) as counts:
        work(10)
        until(lambda: counts.df["count"].sum() == 10)
    (address,) = (
        line.split()[0] for line in Path("/proc/kallsyms").read_text().splitlines() if line.endswith(" vfs_read")
    )
    assert host.connect().find_symbols(0, [int(address, 16)])[0][0].startswith("vfs_read")
    rows = host.doctor().df.set_index("name")
    assert rows.loc["way to the tracer", "found"].startswith("ssh relay, there: started directly")


def test_a_command_is_not_started_for_another_host(host: bpfnb.Host) -> None:
    with pytest.raises(bpfnb.ProgramError, match="on this machine, and relay is another"):
        host.trace("int f(void *ctx) { return 0; }", attach=_ATTACH, command="true")


def test_a_session_elsewhere_is_not_recorded_while_it_runs(host: bpfnb.Host, tmp_path: Path) -> None:
    """THEN a line says so, and what to do; saved it is as one of this machine is."""
    cell = "int f(void *ctx) { return 0; }"
    with pytest.raises(bpfnb.UnsupportedError, match=r"relay, another host, .* session\.save"):
        host.trace(cell, attach=_ATTACH, record=tmp_path / "running")
    assert not (tmp_path / "running").exists()
    session = host.trace(_LINES, attach=_ATTACH, pid=os.getpid())
    work(30)
    session.stop()
    session.save(tmp_path / "saved")
    assert bpfnb.open(tmp_path / "saved").df.equals(session.df)


def test_relative_paths_begin_in_the_home_there(host: bpfnb.Host, home: Path) -> None:
    """WHEN a probe is in a file without a folder THEN that is in the user's home there, wherever the notebook is."""
    (library,) = {line.split()[5] for line in Path("/proc/self/maps").read_text().splitlines() if "/libc.so" in line}
    shutil.copy(library, home / "here.so")
    assert list(host.probes("uprobe:./here.so:getpgid").probe) == ["uprobe:./here.so:getpgid"]


def test_sessions_of_several_hosts_run_side_by_side(host: bpfnb.Host) -> None:
    """GIVEN three sessions on each of two hosts, started at once WHEN events are made THEN each has all of them."""
    with relayed("other") as other:
        started: list[bpfnb.Session] = []

        def start(where: bpfnb.Host, name: str) -> None:
            started.append(where.trace(_EVENTS, name=name, attach=_ATTACH, pid=os.getpid()))

        starting = [
            threading.Thread(target=start, args=(where, name)) for where in (host, other) for name in ("a", "b", "c")
        ]
        for thread in starting:
            thread.start()
        for thread in starting:
            thread.join()
        work(500)
        for session in started:
            session.stop()
        assert [(session.outputs["events"].rows, session.lost) for session in started] == [(500, 0)] * 6


def test_what_a_slow_link_does_not_take_is_counted() -> None:
    """GIVEN a link of 4 MB/s WHEN far more is made than it takes THEN what was made is delivered or counted as lost,
    each event once, those that came are in order, and a note says why."""
    with relayed("slowly", slow(4e6)) as host:
        session = host.trace(_WIDE, attach=_ATTACH, pid=os.getpid(), guard=False)
        until(lambda: (work(20_000), session.lost)[1] > 0)
        session.stop()
        made = int(session.maps["made"].df.value[0])
        output = session.outputs["events"]
        assert output.rows + output.lost == made
        assert output.lost > 0
        assert output.rows > 1000
        with pytest.warns(RuntimeWarning, match="the link to slowly was too slow for all events"):
            numbers = session.df.number
        assert numbers.is_monotonic_increasing
        assert numbers.is_unique


def test_a_large_map_does_not_hold_up_rows() -> None:
    """GIVEN a map of a megabyte of random numbers, over a link that takes seconds for it WHEN it is read THEN rows come
    meanwhile, and at the end it is as the program left it."""
    with relayed("slowly", slow(4e5)) as host:
        session = host.trace(_LARGE, attach=_ATTACH, pid=os.getpid())
        work(4000)
        until(lambda: session.outputs["events"].rows == 4000)
        reading = threading.Thread(target=lambda: session.maps["large"].df)
        reading.start()
        seen = 0
        while reading.is_alive():
            work(1)
            time.sleep(0.02)
            if reading.is_alive():
                seen = session.outputs["events"].rows
        assert seen > 4010
        session.stop()
        assert session.lost == 0
        entries = session.maps["large"].df
        assert len(entries) == 4096
        assert int(entries.drop(columns="key").to_numpy().astype(np.int64).sum()) == session.maps["sums"].df.value[0]
