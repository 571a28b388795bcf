"""The examples of README and of %%bpf?, run as they are written, on this kernel, in a real IPython.

tests/examples.py takes them out of the documents. What must be true afterwards stands here, measured against workloads
that keep count. What this kernel lacks is refused here in words, and runs on 6.1 and 6.12 in the vm lane (portable).
"""

from __future__ import annotations

import _thread
import ast
import ctypes
import json
import mmap
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
from examples import EXAMPLES, ROOT, shown
from IPython.core.interactiveshell import InteractiveShell
from shell import Shell
from traitlets.config import Config
from waiting import until

import bpfnb

pytestmark = pytest.mark.ends_tracer  # each test does: %unload_ext

KPROBES = Path("/sys/bus/event_source/devices/kprobe/type").exists()
ME = "examples"  # what this thread is called meanwhile, and nobody else
_libc = ctypes.CDLL(None, use_errno=True)


@pytest.fixture
def shell() -> Iterator[Shell]:
    """An IPython in which ``%load_ext bpfnb`` was run."""
    inner = InteractiveShell.instance(config=Config(HistoryManager={"enabled": False}), colors="nocolor")
    inner.run_cell(text("%load_ext bpfnb")).raise_error()
    try:
        yield Shell(inner)
    finally:
        bpfnb.stop_all()
        inner.run_cell("%unload_ext bpfnb")
        inner.reset(new_session=False)
        InteractiveShell.clear_instance()


@pytest.fixture(autouse=True)
def own_name() -> Iterator[None]:
    before = Path(f"/proc/self/task/{threading.get_native_id()}/comm").read_bytes().rstrip(b"\n")
    _libc.prctl(15, ME.encode())  # PR_SET_NAME
    yield
    _libc.prctl(15, before)


def text(name: str) -> str:
    return EXAMPLES[name].text


def statements(shell: Shell, block: str) -> dict[str, Any]:
    """Run Python statement by statement. What each came to, by its own text."""
    parts = [ast.get_source_segment(block, node) or "" for node in ast.parse(block).body]
    return {part: shell.run(part) for part in parts}


def fork(count: int) -> None:
    for _ in range(count):
        pid = os.fork()
        if pid == 0:
            os._exit(0)
        os.waitpid(pid, 0)


def table(head: str) -> list[list[str]]:
    """The rows of README's table whose first column is headed so."""
    lines = (ROOT / "README.md").read_text().splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"| {head} |")) + 2
    end = next(i for i in range(start, len(lines)) if not lines[i].startswith("|"))
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[start:end]]


# --- tools --------------------------------------------------------------------------------------------------------


@shown(
    "with bpfnb.tools.exitsnoop(failed=True) as ends:", "session = bpfnb.tools.exitsnoop(failed=True)", "session.source"
)
def test_a_tool(shell: Shell) -> None:
    over = threading.Event()

    def fail() -> None:
        while not over.wait(0.1):
            subprocess.run(["sh", "-c", "exit 3"], check=False)

    shell.run("import bpfnb")
    thread = threading.Thread(target=fail)
    thread.start()
    values = statements(shell, text("with bpfnb.tools.exitsnoop(failed=True) as ends:"))
    over.set()
    thread.join()
    df = values['ends.df[["pcomm", "pid", "age", "exit_code"]]']
    assert ("sh", 768) in zip(df.pcomm, df.exit_code, strict=True)
    shell.run(text("session = bpfnb.tools.exitsnoop(failed=True)"))
    source: Any = shell.run(text("session.source"))
    shell.run("session.stop()")
    again: Any = shell.run(f"%%bpf again -D FAILED=1\n{source}")
    subprocess.run(["sh", "-c", "exit 3"], check=False)
    again.stop()
    assert "sh" in list(again.df.pcomm)


# --- one-liners ---------------------------------------------------------------------------------------------------

QUESTIONS = (
    'bpfnb.count("syscall:*", by=["probe", "comm"])',
    'bpfnb.stats("sysret:read", "retval", by="comm")',
    'bpfnb.hist("syscall:write", "count", by="comm")',
    'bpfnb.latency("syscall:openat", by="errno")',
    'bpfnb.rows("syscall:openat", ["pid", "filename", "retval"])',
    'bpfnb.stacks("software:page-faults:100", by="comm")',
    'bpfnb.hist("syscall:write", "count", kind="linear", bins=(0, 100, 10))',
)
ASKED = 'writes = bpfnb.count("syscall:write", by="comm", where="fd > 2")'
ON_A_LINE = (
    '%bpf count syscall:write,syscall:read --by "comm,large: arg2 > 4096" --name calls -t 100ms',
    '%bpf hist syscall:write count --bins 0,100,10 --where "fd > 2" -t 100ms',
    '%bpf rows syscall:openat "pid,path: filename,retval" --where "errno == 2" -t 100ms',
)


@shown(ASKED, *ON_A_LINE)
def test_questions_without_c(shell: Shell) -> None:
    shell.run("import bpfnb")
    over = threading.Event()

    def work() -> None:
        _libc.prctl(15, ME.encode())
        with open("/dev/null", "wb", buffering=0) as null:  # noqa: PTH123 (a descriptor above 2)
            while not over.wait(0.02):
                null.write(b"x" * 5000)

    thread = threading.Thread(target=work)
    thread.start()
    first, *others = text(ASKED).splitlines()
    shell.run(first)
    time.sleep(0.3)
    values = statements(shell, "\n".join(others))
    counted = values["writes.df"].set_index("comm")["count"]
    quantiles = values["sleeps.quantiles(.5, .99)"]
    assert counted[ME] > 2
    assert list(quantiles) == ["comm", "quantile", "low", "high", "label"]
    for line in ON_A_LINE:
        found: Any = shell.run(text(line))
        assert found.state == "stopped"
    over.set()
    thread.join()
    calls: Any = shell.run("calls.df")
    assert (calls["comm"] == ME).any()
    assert set(calls["large"]) <= {0, 1}
    shell.run("bpfnb.stop_all()")


MISSING = '%bpf count syscall:openat --by comm --where "errno == 2" --name missing -t 100ms'
FAILED = "%bpf run opensnoop --failed --name failed -t 100ms"
IN_A_TERMINAL = ".venv/bin/bpfnb run opensnoop --failed -t 1s"


@shown(MISSING, FAILED, IN_A_TERMINAL)
def test_the_first_answers_without_c(shell: Shell) -> None:
    code = f"""
import time, pathlib
pathlib.Path("/proc/self/comm").write_text("{ME}")
while True:
    time.sleep(0.01)
    try: open("/nonexistent/file")
    except OSError: pass
"""
    with subprocess.Popen([sys.executable, "-ISc", code]) as process:
        until(lambda: Path(f"/proc/{process.pid}/comm").read_text().strip() == ME)
        try:
            shell.run(text(MISSING))
            shell.run(text(FAILED))
            command = [sys.executable, "-m", "bpfnb", *text(IN_A_TERMINAL).split()[1:]]
            printed = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout
        finally:
            process.kill()
    missing: Any = shell.run("missing.df")
    failed: Any = shell.run("failed.df")
    source: Any = shell.run("missing.source")
    assert missing.set_index("comm")["count"][ME] > 0
    paths = set(failed[failed["pid"] == process.pid]["path"].astype(str))
    assert paths == {"/nonexistent/file"}
    assert re.search(rf"\b{process.pid} .* /nonexistent/file$", printed, re.M)
    again: Any = shell.run(f"%%bpf again -t 100ms\n{source}")
    assert list(again.maps) == ["counts"]


@shown(*QUESTIONS)
def test_each_question_has_its_columns(shell: Shell) -> None:
    """The table's, after those of ``by``."""
    shell.run("import bpfnb")
    rows = {cell: columns for cell, columns in table_rows("`df` has the columns of `by`, then") if cell in QUESTIONS}
    assert len(rows) == 6
    for question in QUESTIONS:
        found: Any = shell.run(f"session = {question}\nsession")
        columns = list(found.df.columns)
        found.stop()
        wanted = re.findall(r"`(\w+)`", rows.get(question, "`low` `high` `label` `count`"))
        if question.startswith("bpfnb.rows"):
            wanted = ["time", "pid", "filename", "retval", "retval_errno"]
        assert columns[-len(wanted) :] == wanted


def table_rows(head: str) -> list[tuple[str, str]]:
    """The rows of README's table that has this as its second head; the first cell as code."""
    lines = (ROOT / "README.md").read_text().splitlines()
    start = next(i for i, line in enumerate(lines) if head in line) + 2
    end = next(i for i in range(start, len(lines)) if not lines[i].startswith("|"))
    pairs = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[start:end]]
    return [(cell.strip("`"), rest) for cell, rest in pairs]


# --- lines --------------------------------------------------------------------------------------------------------


@pytest.mark.portable
@shown("%load_ext bpfnb", "%%bpf clones -a syscall:clone=hello", "clones.df.tail()", "clones.lost", "stop()")
def test_a_first_cell(shell: Shell) -> None:
    clones = shell.run(text("%%bpf clones -a syscall:clone=hello"))
    assert shell.inner.user_ns["clones"] is clones
    fork(7)
    until(lambda: (clones.df.comm == ME).sum() == 7)
    values = statements(shell, text("clones.df.tail()"))  # stop() is the last
    df = clones.df
    assert clones.state == "stopped"
    assert df.msg.eq("my bcc program").all()
    assert len(values["clones.df.tail()"]) == 5
    assert values['clones.df.groupby("comm").size()'][ME] == (df.pid == os.getpid()).sum() == 7
    assert values['clones.rate("1s", by="comm")'][ME].sum() == 7
    assert repr(values["clones.live()"]).startswith("<Panel clones: ")
    assert shell.run(text("clones.lost")) == 0


@shown("bpfnb.live(clones, syncs)")
def test_several_live(shell: Shell) -> None:
    clones = shell.run(text("%%bpf clones -a syscall:clone=hello"))
    syncs = shell.run(text("%%bpf clones -a syscall:clone=hello").replace("clones", "syncs").replace("clone", "sync"))
    shell.run("import bpfnb")
    panel: Any = shell.run(text("bpfnb.live(clones, syncs)"))
    os.sync()
    clones.stop()
    syncs.stop()
    assert len(syncs.df[syncs.df.pid == os.getpid()]) == 1
    assert {"clones", "syncs"} <= set(re.findall(r"\w+", repr(panel)))


@shown("%%bpf calls -a 'tracepoint:syscalls:sys_enter_*=f'", 'counts = calls.maps["counts"].df')
def test_many_probes(shell: Shell) -> None:
    name = "%%bpf calls -a 'tracepoint:syscalls:sys_enter_*=f'"
    calls: Any = shell.run(text(name).replace("f'", f"f' --pid {os.getpid()}", 1))
    for _ in range(11):
        _libc.getpgid(0)
    shell.run(text('counts = calls.maps["counts"].df'))
    calls.stop()
    counts: Any = shell.inner.user_ns["counts"]
    assert counts.set_index("name").value["tracepoint:syscalls:sys_enter_getpgid"] == 11


@shown("session.df")
def test_the_columns_of_lines(shell: Shell) -> None:
    """The table of columns and dtypes; a line is there once stop() returns."""
    shell.inner.user_ns["session"] = shell.run(text("%%bpf clones -a syscall:clone=hello"))
    fork(3)
    shell.run("session.stop()")
    df: Any = shell.run(text("session.df"))
    assert len(df[df.pid == os.getpid()]) == 3
    rows = table("column")
    assert [row[0].strip("`") for row in rows] == list(df.columns)
    assert [row[1] for row in rows] == [re.sub("^str$", "string", str(dtype)) for dtype in df.dtypes]


# --- events -------------------------------------------------------------------------------------------------------


@pytest.mark.portable
@shown("%%bpf opens -a syscall:openat=f", "opens.df", 'opens.outputs["events"].df')
@shown("opens.lost", 'opens.outputs["events"].lost', 'df.attrs["lost"]', 'df.attrs["dropped"]')
@shown('opens.outputs["events"].clock', 'opens.df.ts.astype("int64").diff()')
def test_events(shell: Shell) -> None:
    opens: Any = shell.run(text("%%bpf opens -a syscall:openat=f"))
    names = [f"/proc/self/no-such-file-{number}" for number in range(5)]
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    for name in names:
        with pytest.raises(FileNotFoundError):
            os.open(name, os.O_RDONLY)
    after = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    opens.stop()
    df: Any = shell.run(text("opens.df"))
    pd.testing.assert_frame_equal(df, shell.run(text('opens.outputs["events"].df')))  # type: ignore[call-overload]
    assert df.columns.tolist() == ["time", "ts", "pid", "comm", "file"]
    mine = df[df.comm == ME]
    assert mine.file[mine.file.isin(names)].tolist() == names
    assert set(mine.pid) == {os.getpid()}
    assert mine.ts[mine.file.isin(names)].between(before, after).all()
    assert df.dtypes[["ts", "pid", "comm"]].map(str).tolist() == ["uint64", "uint32", "category"]
    shell.inner.user_ns["df"] = df
    for name in ("opens.lost", 'opens.outputs["events"].lost', 'df.attrs["lost"]', 'df.attrs["dropped"]'):
        assert shell.run(text(name)) == 0
    assert shell.run(text('opens.outputs["events"].clock')) == "submitted"
    steps: Any = shell.run(text('opens.df.ts.astype("int64").diff()'))
    assert steps.dropna().abs().max() < 60e9


@shown("for event in opens:", "stream(new=True)", 'stream(output="events")', "iter(session)")
@shown('batch.attrs["dropped"]', 'batch.attrs["lost"]')
def test_rows_as_they_come(shell: Shell, capsys: pytest.CaptureFixture[str]) -> None:
    opens: Any = shell.run(text("%%bpf opens -a syscall:openat=f"))
    shell.inner.user_ns["session"] = opens
    later: Any = shell.run(f"opens.{text('stream(new=True)')}")
    names = [f"/proc/self/no-such-file-{number}" for number in range(5)]

    def act() -> None:
        for name in names:
            with pytest.raises(FileNotFoundError):
                os.open(name, os.O_RDONLY)
        opens.stop()

    thread = threading.Timer(0.3, act)
    thread.start()
    capsys.readouterr()
    statements(shell, text("for event in opens:"))
    thread.join()
    *events, size = capsys.readouterr().out.splitlines()
    assert [line for line in events if line.endswith(tuple(names))] == [f"{os.getpid()} {name}" for name in names]
    assert len(events) == int(size) == len(opens.df)
    assert set(names) <= set(pd.concat(later).file)
    batch: Any = next(iter(shell.run("opens." + text('stream(output="events")'))))  # type: ignore[call-overload]
    shell.inner.user_ns["batch"] = batch
    pd.testing.assert_frame_equal(batch, opens.df)
    assert shell.run(text('batch.attrs["dropped"]')) == shell.run(text('batch.attrs["lost"]')) == 0
    events_of: Any = shell.run(text("iter(session)"))
    assert (len(list(events_of)), events_of.dropped) == (len(batch), 0)


MEMBERS = """
enum kind {{ RED = 1, GREEN }};
struct addr {{ union {{ u32 v4; u8 bytes[4]; }}; u16 port; }};
struct event {{
    void *pointer; s16 small; bool flag; u32 low:3; bool high:1; enum kind kind; struct addr addr;
    {char_name}; {u8_mac}; {u64_slots}; {u32_m}; __int128 big;
    {text};
}};
struct blob {{ u32 n; {data}; }};
struct large {{ u32 many[1025]; }};
BPF_ARRAY(scratch, struct large, 1);
BPF_RINGBUF_OUTPUT(events, 8);
BPF_RINGBUF_OUTPUT(larges, 8);
BPF_RINGBUF_OUTPUT(blobs, 8);

int f(void *ctx) {{
    struct event *e = events.ringbuf_reserve(sizeof(*e) + 8);
    if (!e) return 0;
    __builtin_memset(e, 0, sizeof(*e) + 8);
    e->pointer = (void *)0x1234; e->small = -2; e->flag = 1; e->low = 5; e->high = 1; e->kind = GREEN;
    e->addr.v4 = 0x0100007f; e->addr.port = 80;
    e->name[0] = 'a'; e->name[2] = 'b';
    e->mac[5] = 7; e->slots[99] = 9; e->m[1][1] = 11; e->big = -1;
    e->text[0] = 'h'; e->text[1] = 'i';
    events.ringbuf_submit(e, 0);
    struct blob *b = blobs.ringbuf_reserve(sizeof(*b) + 4);
    if (!b) return 0;
    b->n = 1;
    b->data[0] = 1; b->data[1] = 0; b->data[2] = 2; b->data[3] = 3;
    blobs.ringbuf_submit(b, 0);
    struct large *large = scratch.lookup(&(int){{0}});
    if (!large) return 0;
    large->many[1024] = 3;
    larges.ringbuf_output(large, sizeof(*large), 0);
    return 0;
}}
"""


@shown("char name[16]", "u8 mac[6]", "u64 slots[100]", "u32 m[2][2]", "char text[]", "u8 data[]")
@shown('outputs["events"].raw("name")', "addr.v4", "slots[0]", "m[1][1]", 'df.filter(like="slots[").to_numpy()')
def test_what_becomes_of_each_type(shell: Shell) -> None:
    """The table of C and columns: a struct of its own members."""
    members = {
        "char_name": text("char name[16]"),
        "u8_mac": text("u8 mac[6]"),
        "u64_slots": text("u64 slots[100]"),
        "u32_m": text("u32 m[2][2]"),
        "text": text("char text[]"),
        "data": text("u8 data[]"),
    }
    outputs = submit(shell, MEMBERS.format(**members))
    (row,) = outputs["events"].df.to_dict("records")
    assert (row["pointer"], row["small"], row["flag"], row["low"], row["high"]) == (0x1234, -2, True, 5, True)
    assert (row["kind"], row["name"], row["mac"]) == ("GREEN", "a", b"\0\0\0\0\0\7")
    assert row[text("addr.v4")] == 0x0100007F
    assert [row[f"slots[{i}]"] for i in range(100)] == [0] * 99 + [9]
    assert (row[text("slots[0]")], row[text("m[1][1]")]) == (0, 11)
    assert np.frombuffer(outputs["larges"].df.many[0], "u4").tolist() == [0] * 1024 + [3]
    assert (row["big"], row["text"]) == (-1, "hi")
    shell.inner.user_ns.update(outputs=outputs, df=outputs["events"].df)
    array: Any = shell.run(text('df.filter(like="slots[").to_numpy()'))
    assert (array.dtype, array.tolist()) == (np.uint64, [[0] * 99 + [9]])
    raw: Any = shell.run(text('outputs["events"].raw("name")'))
    assert raw.tolist() == [b"a\0b" + bytes(13)]
    (row,) = outputs["blobs"].df.to_dict("records")
    assert (row["n"], row["data"]) == (1, b"\1\0\2\3")


@shown('df.astype({"addr": str})', 'back["addr"].map(int)')
def test_integers_of_128_bits_through_a_file(shell: Shell, tmp_path: Path) -> None:
    cell = """
struct event { unsigned __int128 addr; };
BPF_PERF_OUTPUT(events);
int f(void *ctx) {
    struct event e = {.addr = bpf_get_current_pid_tgid() >> 32};
    e.addr = e.addr << 96 | 1;
    return events.perf_submit(ctx, &e, sizeof(e));
}
"""
    df = submit(shell, cell)["events"].df
    assert df.addr.tolist() == [(os.getpid() << 96) + 1]
    shell.inner.user_ns["df"] = df
    written: Any = shell.run(text('df.astype({"addr": str})'))
    written.to_parquet(tmp_path / "events.parquet")
    shell.inner.user_ns["back"] = pd.read_parquet(tmp_path / "events.parquet")
    back: Any = shell.run(text('back["addr"].map(int)'))
    assert back.tolist() == df.addr.tolist()


def submit(shell: Shell, cell: str) -> Any:
    """The outputs of a cell whose f ran once, for us."""
    guard = f"int f(void *ctx) {{\n    if (bpf_get_current_pid_tgid() >> 32 != {os.getpid()}) return 0;"
    made: Any = shell.run("%%bpf made -a syscall:getpgid=f\n" + cell.replace("int f(void *ctx) {", guard))
    _libc.getpgid(0)
    made.stop()
    return made.outputs


SLEEPS = """%%bpf sleeps -a syscall:clock_nanosleep=start -a sysret:clock_nanosleep=end
enum kind { start_ = 1, end_ };
struct event { u64 ts; u32 pid; char comm[16]; enum kind kind; };
BPF_PERF_OUTPUT(events);
static int say(void *ctx, int kind) {
    struct event e = {.ts = bpf_ktime_get_ns(), .pid = bpf_get_current_pid_tgid(), .kind = kind};
    bpf_get_current_comm(&e.comm, sizeof(e.comm));
    events.perf_submit(ctx, &e, sizeof(e));
    return 0;
}
int start(void *ctx) { return say(ctx, start_); }
int end(void *ctx) { return say(ctx, end_); }
"""


@shown("df.bpf", """df.bpf.between("kind == 'start'", "kind == 'end'", by="pid")""")
@shown('df.bpf.hist("latency")', 'df.bpf.top("comm")', 'df.bpf.rate("1s", by="comm")')
@shown('df.bpf.top("pid", value="latency", agg="p99")')
def test_what_comes_next(shell: Shell) -> None:
    """Six sleeps of 20 ms, by df.bpf."""
    sleeps: Any = shell.run(SLEEPS)
    for _ in range(6):
        time.sleep(0.02)
    sleeps.stop()
    df = sleeps.df[sleeps.df.comm == ME]
    df["kind"] = df["kind"].cat.rename_categories({"start_": "start", "end_": "end"})
    shell.inner.user_ns["df"] = df
    assert len(df) == 12
    pairs: Any = shell.run(text("""df.bpf.between("kind == 'start'", "kind == 'end'", by="pid")"""))
    assert len(pairs) == 6
    assert pairs.latency.between(pd.Timedelta("20ms"), pd.Timedelta("10s")).all()
    top: Any = shell.run(text('df.bpf.top("comm")'))
    assert (top["comm"].tolist(), top["count"].tolist()) == ([ME], [12])
    rates: Any = shell.run(text('df.bpf.rate("1s", by="comm")'))
    assert rates[ME].sum() == 12
    shell.inner.user_ns["df"] = pairs
    histogram: Any = shell.run(text('df.bpf.hist("latency")'))
    assert histogram["count"].sum() == 6
    assert histogram.loc[histogram["count"] > 0, "high"].min() > 20_000_000
    slowest: Any = shell.run(text('df.bpf.top("pid", value="latency", agg="p99")'))
    assert slowest["pid"].tolist() == [threading.get_native_id()]
    assert slowest["p99"][0] == pd.Series(pairs["latency"]).quantile(0.99)


# --- maps ---------------------------------------------------------------------------------------------------------


def reader(size: int, count: int, cpu: int) -> int:
    """Start a child that calls read so many times, each giving so many bytes, and nothing else. Its pid."""
    zeros = os.open("/dev/zero", os.O_RDONLY)
    memory = ctypes.create_string_buffer(size)
    pid = os.fork()
    if pid == 0:
        os.sched_setaffinity(0, {cpu})
        for _ in range(count):
            _libc.read(zeros, memory, size)
        os._exit(0)
    os.close(zeros)
    return pid


@pytest.mark.portable
@shown("%%bpf reads -a sysret:read=f", 'reads.maps["bytes"].df')
def test_maps(shell: Shell) -> None:
    """Two CPUs read 300,000 bytes at a time, a size nobody else reads meanwhile."""
    size, times = 300_000, 200
    reads: Any = shell.run(text("%%bpf reads -a sysret:read=f"))
    pids = [reader(size, times, cpu) for cpu in (min(os.sched_getaffinity(0)), max(os.sched_getaffinity(0)))]
    for pid in pids:
        os.waitpid(pid, 0)
    assert [reads.maps["bytes"][pid] for pid in pids] == [size * times] * 2
    block = text('reads.maps["bytes"].df').replace("1234", str(pids[0]))
    values = statements(shell, block)
    df = values['reads.maps["bytes"].df']
    assert df.columns.tolist() == ["key", "value"]
    assert df[df.key.isin(pids)].value.tolist() == [size * times] * 2
    histogram = values['reads.maps["sizes"].hist()']
    assert histogram.columns.tolist() == ["low", "high", "label", "count"]
    (bucket,) = histogram[(histogram.low <= size) & (size < histogram.high)].itertuples()
    assert (bucket.low, bucket.high, bucket.count) == (1 << 18, 1 << 19, 2 * times)
    assert values[f'reads.maps["bytes"].get({pids[0]}, 0)'] == size * times
    drained = values['reads.maps["bytes"].drain()']
    assert drained[drained.key.isin(pids)].value.tolist() == [size * times] * 2
    # The block has cleared the map, and told the program to count only what is larger.
    small, large = reader(4095, 10, 0), reader(4096, 10, 0)
    os.waitpid(small, 0)
    os.waitpid(large, 0)
    with pytest.raises(KeyError):
        reads.maps["bytes"][small]
    assert reads.maps["bytes"].get(small, 0) == 0
    assert reads.maps["bytes"].df.set_index("key").value.get(large) == 40_960
    assert reads.maps["limit"][0] == 4096
    every = values['reads.maps["sizes"].every("1s")']
    reads.stop()
    assert every.hist().groupby("time")["count"].sum().iloc[0] >= 2 * times
    assert reads.maps["bytes"][large] == 40_960  # what it was at the end


@shown('moving = reads.maps["sizes"].every("1s", drain=True)', 'reads.maps["sizes"].every("1s")', "drain=True")
def test_maps_over_time(shell: Shell) -> None:
    """Reads of a size nobody else has meanwhile, in a histogram of each snapshot."""
    size, times = 300_000, 200
    shell.run(text("%%bpf reads -a sysret:read=f"))
    block = text('moving = reads.maps["sizes"].every("1s", drain=True)')
    first, rest = block.split("\n", 1)
    statements(shell, first)
    os.waitpid(reader(size, times, 0), 0)
    shell.run("moving.stop()")
    values = statements(shell, rest)
    assert values["moving.df"].columns.tolist() == ["time", "key", "value"]
    hist = values["moving.hist()"]
    assert hist[(hist.low <= size) & (size < hist.high)]["count"].tolist()[-1] == times
    assert hist.columns.tolist() == ["time", "bucket", "low", "high", "label", "count"]
    assert values["moving.reason"] == "stopped"
    assert shell.run(text('reads.maps["sizes"].every("1s")').replace('"1s"', f'"1s", {text("drain=True")}'))


@shown('print(reads.maps["sizes"])')
def test_maps_shown(shell: Shell, capsys: pytest.CaptureFixture[str]) -> None:
    """Reads of a size nobody else has meanwhile: one bar is theirs."""
    shell.run("import bpfnb")
    reads: Any = shell.run(text("%%bpf reads -a sysret:read=f"))
    pid = reader(300_000, 200, 0)
    os.waitpid(pid, 0)
    values = statements(shell, text('print(reads.maps["sizes"])'))
    printed = capsys.readouterr().out
    assert re.search(r"\[256K, 512K\) +200 \|\**", printed)
    assert re.search(r"\[256K, 512K\) +200 \|\**", repr(values['reads.maps["sizes"].hist()']))
    largest = next(value for name, value in values.items() if "largest" in name)
    assert largest["value"].is_monotonic_decreasing
    assert largest[largest.key == pid].value.tolist() == [60_000_000]
    panels = [value for value in values.values() if hasattr(value, "closed")]
    assert len(panels) == 3
    reads.stop()
    assert all(panel.wait(10) for panel in panels)


@shown('opens.live(by="comm", window=300)')
def test_live_views(shell: Shell) -> None:
    shell.run("import bpfnb")
    opens: Any = shell.run(text("%%bpf opens -a syscall:openat=f"))
    reads: Any = shell.run(text("%%bpf reads -a sysret:read=f"))
    values = statements(shell, text('opens.live(by="comm", window=300)'))
    panels = [value for value in values.values() if hasattr(value, "closed")]
    assert len(panels) == 3
    assert [word in repr(panels[2]) for word in ("opens: running", "reads: running")] == [True, True]
    opens.stop()
    reads.stop()
    assert all(panel.wait(10) for panel in panels)


@shown("opens.live()")
def test_views_of_columns(shell: Shell) -> None:
    shell.run("import bpfnb")
    opens: Any = shell.run(text("%%bpf opens -a syscall:openat=f"))
    values = statements(shell, text("opens.live()"))
    panels = [value for value in values.values() if hasattr(value, "closed")]
    assert len(panels) == 4
    opens.stop()
    assert all(panel.wait(10) for panel in panels)


FULL = """%%bpf reads -a syscall:getpgid=f
{hash};
{histogram};
BPF_TABLE("lru_hash", u32, u64, recent, 128);
BPF_HASH(racy, u32, u64, 16);
int f(struct pt_regs *ctx) {{
    u32 n = PT_REGS_PARM1(ctx), zero = 0;
    if (bpf_get_current_pid_tgid() >> 32 != {pid}) return 0;
    bytes.increment(n);
    h.increment(n);
    recent.increment(n);
    u64 *value = racy.lookup(&zero);
    if (value) {racy};
    return 0;
}}
"""


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@shown("(*value)++", 'reads.maps["bytes"].lost', "reads.lost", 'df.attrs["full"]')
@shown("BPF_HISTOGRAM(h)", "BPF_HASH(bytes, u32, u64, 10240)")
def test_full_maps(shell: Shell) -> None:
    """12,000 keys into a map of 10,240, a histogram of 4,096 buckets, an LRU map of 128."""
    made = 12_000
    names = {"hash": "BPF_HASH(bytes, u32, u64, 10240)", "histogram": "BPF_HISTOGRAM(h)", "racy": "(*value)++"}
    cell = FULL.format(pid=os.getpid(), **{key: text(name) for key, name in names.items()})
    reads: Any = shell.run(cell)
    (note,) = [warning for warning in reads.warnings if warning.severity == "note"]
    assert (note.line, "__sync_fetch_and_add(value, 1)" in note.message) == (13, True)  # %%bpf is line 1
    for number in range(made):
        _libc.getpgid(number)
    assert shell.run(text('reads.maps["bytes"].lost')) == made - 10_240
    assert len(reads.maps["bytes"]) == 10_240
    assert shell.run(text("reads.lost")) == 0
    assert reads.maps["h"].df.value.sum() == 4096
    assert reads.maps["h"].lost == made - 4096
    for name, full in (("recent", True), ("bytes", False)):
        shell.inner.user_ns["df"] = reads.maps[name].df
        assert bool(shell.run("df.attrs.get('full')" if not full else text('df.attrs["full"]'))) is full


COUNTS = """%%bpf counts -a syscall:getpgid=f
struct key { u32 pid; int user_stack, kernel_stack; };
BPF_STACK_TRACE(stacks, 1024);
BPF_HASH(counts, struct key, u64);
BPF_PERCPU_ARRAY(calls, u64, 1);
int f(struct pt_regs *ctx) {
    struct key key = {.pid = bpf_get_current_pid_tgid() >> 32};
    if (key.pid != PID) return 0;
    key.user_stack = stacks.get_stackid(ctx, BPF_F_USER_STACK);
    key.kernel_stack = stacks.get_stackid(ctx, 0);
    counts.increment(key);
    u64 *n = calls.lookup(&(int){0});
    if (n) *n += 1;
    return 0;
}
"""


FILLED = """%%bpf filled -a syscall:getpgid=first
BPF_PROG_ARRAY(progs, 4);
BPF_CGROUP_ARRAY(groups, 1);
BPF_PERF_ARRAY(clock, 64);
struct data_t { s64 clock; int within; };
BPF_PERF_OUTPUT(events);
int first(void *ctx) {
    if (bpf_get_current_pid_tgid() >> 32 == PID) progs.call(ctx, 3);
    return 0;
}
int f(void *ctx) {
    struct data_t data = {.within = groups.check_current_task(0)};
    data.clock = clock.perf_read(CUR_CPU_IDENTIFIER);
    events.perf_submit(ctx, &data, sizeof(data));
    return 0;
}
"""


@shown('maps["progs"][3] = "f"', 'maps["groups"][0] = "/sys/fs/cgroup/..."', 'maps["clock"].open("software:cpu-clock")')
def test_arrays_of_the_kernels_objects(shell: Shell) -> None:
    filled: Any = shell.run(FILLED.replace("PID", str(os.getpid())))
    shell.inner.user_ns["maps"] = filled.maps
    _libc.getpgid(0)  # nothing is called
    shell.run(text('maps["progs"][3] = "f"'))
    _libc.getpgid(0)
    shell.run(text('maps["clock"].open("software:cpu-clock")'))
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    (place, *_) = [fields[1] for fields in mounts if fields[2] == "cgroup2"] or [""]
    if place:  # this process is somewhere below the root of them all
        shell.run(text('maps["groups"][0] = "/sys/fs/cgroup/..."').replace("/sys/fs/cgroup/...", place))
    _libc.getpgid(0)
    filled.stop()
    assert filled.df.clock[0] == -2
    assert len(filled.df) == 2
    assert filled.df.clock[1] > 0
    assert filled.df.within.tolist() == [-11, 1 if place else -11]  # EAGAIN: none is there


@shown('session.maps["counts"].df', '.reduced("sum")', 'maps["stacks"].folded(maps["counts"])')
def test_maps_of_every_cpu_and_stacks(shell: Shell) -> None:
    counts: Any = shell.run(COUNTS.replace("PID", str(os.getpid())))
    mine = os.sched_getaffinity(0)
    for cpu in mine:
        os.sched_setaffinity(0, {cpu})
        for _ in range(10):
            _libc.getpgid(0)
    os.sched_setaffinity(0, mine)
    shell.inner.user_ns.update(session=counts, maps=counts.maps)
    df: Any = shell.run(text('session.maps["counts"].df'))
    assert set(df.pid) == {os.getpid()}
    assert df.value.sum() == 10 * len(mine)
    assert counts.maps["calls"].df.set_index("cpu").value.to_dict() == dict.fromkeys(
        range(os.cpu_count() or 1), 0
    ) | dict.fromkeys(mine, 10)
    total: Any = shell.run(f'maps["calls"]{text(".reduced(" + chr(34) + "sum" + chr(34) + ")")}')
    assert total.value.tolist() == [10 * len(mine)]
    code = text('maps["stacks"].folded(maps["counts"])')
    folded: Any = shell.run(code)
    pd.testing.assert_frame_equal(folded, shell.run(code[:-1] + f", pid={os.getpid()})"))  # type: ignore[call-overload]
    assert len(shell.run(code[:-1] + ", pid=1)")) == 0  # type: ignore[arg-type]
    assert folded["count"].sum() == 10 * len(mine)
    assert folded["stack"].str.contains("getpgid").all()
    counts.stop()


FLAMES = "cpu = bpfnb.tools.profile(frequency=199)"


@shown(FLAMES, "session.flame()", 'bpfnb.views.flamegraph.flame("perf.folded")', "df.bpf.plot_flame()")
def test_flame_graphs(shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "yesterday.folded").write_text("python3;main;slow 3\n")
    (tmp_path / "perf.folded").write_text("main;read 42\n")
    shell.run("import bpfnb")
    with subprocess.Popen([sys.executable, "-IS", "-c", "while True: pass"]) as busy:
        try:
            results = statements(shell, text(FLAMES).replace("wait(2)", "wait(0.5)"))
        finally:
            busy.kill()
        cpu: Any = shell.inner.user_ns["cpu"]
        cpu.stop()
    assert results["cpu.flame()"].total > 20
    assert "yesterday.folded has 3 in all" in results['cpu.flame(minus="yesterday.folded")'].whole().header["note"]
    lines = (tmp_path / "cpu.folded").read_text().splitlines()
    assert sum(int(line.rpartition(" ")[2]) for line in lines) > 20
    assert json.loads((tmp_path / "cpu.json").read_text())["profiles"][0]["type"] == "sampled"
    shell.inner.user_ns.update(session=cpu, df=cpu.df)
    assert shell.run(text("session.flame()")).total == cpu.df["count"].sum()  # type: ignore[attr-defined]
    assert shell.run(text('bpfnb.views.flamegraph.flame("perf.folded")')).total == 42  # type: ignore[attr-defined]
    assert shell.run(text("df.bpf.plot_flame()")).collections  # type: ignore[attr-defined]


# --- %%bpf and %bpf -----------------------------------------------------------------------------------------------

CELL = """
struct event { u32 pid; };
enum { Y = 2 };
#ifndef X
#define X 1
#endif
BPF_PERF_OUTPUT(events);
int FN(void *ctx) {
    struct event e = {.pid = bpf_get_current_pid_tgid() >> 32};
    for (int i = 0; i < X && e.pid == PID; i++)
        events.perf_submit(ctx, &e, sizeof(e));
    return 0;
}
"""


def option(shell: Shell, example: str, **placeholders: str) -> Any:
    """Run a cell with an option of the table, its placeholders filled in."""
    written = text(example)
    for name, value in placeholders.items():
        assert name in written
        written = written.replace(name, value)
    attach = "" if "-a" in written else "-a syscall:getpgid=FN"
    return shell.run(f"%%bpf NAME {attach} -D PID={os.getpid()} {written}\n{CELL}")


FLAGS = "-DX=1 -UX -Ifolder -iquote folder -isystem folder -idirafter folder -include file.h -imacros file.h -nostdinc"


@shown(FLAGS)
def test_the_flags_of_the_reference(tmp_path: Path) -> None:
    """clang takes all of them."""
    (tmp_path / "file.h").write_text("#define FROM_THE_FILE 1\n")
    flags = EXAMPLES[FLAGS].text.replace("file.h", str(tmp_path / "file.h")).split()
    cell = "#if !FROM_THE_FILE\n#error\n#endif\nint f(void *ctx) { return 0; }\n"
    bpfnb.trace(cell, attach={"syscall:sync": "f"}, cflags=flags).stop()


@shown("%%bpf", "-a", "-a PROBE=FN", "--keep 512M", "--keep", "512M", "-D X=Y", "--cflags FLAGS", "--headers PATH")
@shown("--dry-run", "--live", "--cpu")
def test_the_options_of_a_cell(shell: Shell, capsys: pytest.CaptureFixture[str]) -> None:
    def works(made: Any, rows: int = 1) -> None:
        _libc.getpgid(0)
        made.stop()
        assert len(made.df) == rows
        assert made.name == "NAME"
        assert shell.inner.user_ns["NAME"] is made

    works(option(shell, "-a PROBE=FN", PROBE="syscall:getpgid"))
    works(option(shell, "-a PROBE=FN", PROBE="syscall:getpgid=FN -a syscall:getpgrp"))  # may be repeated
    kept = option(shell, "--keep 512M")
    assert kept.outputs["events"]._keep.bytes == 512 << 20
    works(kept)
    works(option(shell, "-D X=Y"), rows=2)
    works(option(shell, "--cflags FLAGS", FLAGS="'-Wall -DX=3'"), rows=3)
    works(option(shell, "--headers PATH", PATH="btf"))
    works(option(shell, "--headers PATH", PATH="auto"))
    with pytest.raises(bpfnb.BpfnbError, match="/no/such/headers"):
        option(shell, "--headers PATH", PATH="/no/such/headers")
    works(counted := option(shell, "--cpu"))
    assert counted.df.cpu.isin(os.sched_getaffinity(0)).all()
    capsys.readouterr()
    assert option(shell, "--dry-run") is None
    assert "syscall:getpgid -> FN()" in capsys.readouterr().out
    assert bpfnb.sessions() == {}
    works(option(shell, "--live"))
    again = option(shell, "--keep 512M")
    assert option(shell, "--keep 512M") is not again  # run again, the new one replaces the old one
    assert (again.state, list(bpfnb.sessions())) == ("stopped", ["NAME"])


@shown("clones.cost", "session.cost", "cost = clones.cost", "clones.reason", "session.reason", "--no-guard")
@shown("--max-cost 10%", "--max-cost 25%", "--max-rate 20k", "--max-memory 512M", "--max-memory 1G")
def test_costs_and_the_guard(shell: Shell) -> None:
    """A session that is within all limits goes on; with a lower one for each, the guard ends it."""
    allowed = "".join(f" {text(name)}" for name in ("--max-cost 25%", "--max-rate 20k", "--max-memory 1G"))
    clones: Any = shell.run(text("%%bpf clones -a syscall:clone=hello").replace("=hello", f"=hello{allowed}"))
    shell.inner.user_ns["session"] = clones
    until(lambda: clones.cost.attrs["seconds"] > 0)
    fork(3)
    for example in ("clones.cost", "session.cost"):
        frame: Any = shell.run(text(example))
        assert frame.columns.tolist() == ["program", "runs", "ns_per_run", "cpu_share", "missed"]
        assert frame.program.tolist() == ["hello"]
    values = statements(shell, text("cost = clones.cost"))
    assert 0 < values['cost.attrs["seconds"]'] < 10
    assert 0 <= values['cost.attrs["tracer"]'] < 1
    assert values['cost.attrs["memory"]'] > 1 << 20  # printk's buffers
    assert values['cost.attrs["trap_ns"]'] == {}
    assert (shell.run(text("clones.reason")), clones.state) == ("", "running")
    clones.stop()
    assert shell.run(text("session.reason")) == "stopped"

    over = {
        "max_cost": ("--max-cost 10%", {"10%": "0.001%"}),
        "max_rate": ("--max-rate 20k", {"20k": "1"}),
        "max_memory": ("--max-memory 512M", {"512M": "1k"}),
    }
    for limit, (example, lower) in over.items():
        ended = option(shell, example, **lower)
        deadline = time.monotonic() + 30
        while not ended.wait(0) and time.monotonic() < deadline:
            for _ in range(500):
                _libc.getpgid(0)
        assert limit in ended.reason
        assert ended.state == "stopped"
    free = option(shell, text("--no-guard"))
    assert not free.wait(0.5)
    free.stop()


@shown("-D PID={pid}", "{x}", "$x")
def test_values_of_the_notebook(shell: Shell) -> None:
    shell.inner.user_ns.update(pid=os.getpid(), x=3)
    for x in ("{x}", "$x"):
        made: Any = shell.run(f"%%bpf NAME -a syscall:getpgid=FN {text('-D PID={pid}')} -D X={text(x)}\n{CELL}")
        _libc.getpgid(0)
        made.stop()
        assert made.df.pid.tolist() == [os.getpid()] * 3


@shown("-t 10s", "10s", "500ms", "2m")
def test_for_so_long(shell: Shell, capsys: pytest.CaptureFixture[str]) -> None:
    """Interrupted, which is no error; another waits to its end. tests/unit/test_options.py knows all units."""
    timer = threading.Timer(1, _thread.interrupt_main)
    timer.start()
    traced = option(shell, "-t 10s")
    timer.join()
    assert traced.state == "stopped"
    assert re.search(r"interrupted after [0-9]\.\d s", capsys.readouterr().out)
    assert option(shell, "-t 10s", **{"10s": text("500ms")}).state == "stopped"


@shown("{x}", "$x", "-D PID={pid}", "%bpf help")
def test_values_of_the_notebook_in_the_line(shell: Shell, capsys: pytest.CaptureFixture[str]) -> None:
    cell = (
        'int f(void *ctx) { if (PID == bpf_get_current_pid_tgid() >> 32) bpf_trace_printk("%d %d", X, PID); return 0; }'
    )
    shell.inner.user_ns.update(pid=os.getpid(), x="mine", number=7)
    number = text("$x").replace("x", "number")
    mine: Any = shell.run(f"%%bpf {text('{x}')} -a syscall:getpgid=f {text('-D PID={pid}')} -D X={number}\n{cell}")
    assert shell.inner.user_ns["mine"] is mine
    os.getpgid(0)
    mine.stop()
    assert mine.df.msg.tolist() == [f"7 {os.getpid()}"]
    capsys.readouterr()
    shell.run(text("%bpf help"))
    assert "--attach" in capsys.readouterr().out


@shown("%bpf list", "%bpf show NAME", "%bpf stop NAME", "%bpf stop --all", "%bpf probes PATTERN", "*clone*")
@shown("%bpf doctor", "%bpf probes", "%bpf help")
def test_the_commands(shell: Shell, capsys: pytest.CaptureFixture[str]) -> None:
    def said(name: str, **placeholders: str) -> str:
        command = text(name)
        for word, value in placeholders.items():
            command = command.replace(word, value)
        capsys.readouterr()
        shell.run(command)
        return capsys.readouterr().out

    one, two = (shell.run(f"%%bpf {name} -a syscall:getpgid=FN -D PID=0\n{CELL}") for name in ("NAME", "two"))
    assert re.search(r"\bNAME\b(?s:.*)\btwo\b", said("%bpf list"))
    assert shell.run(text("%bpf show NAME")) is one
    said("%bpf stop NAME")
    assert (one.state, two.state) == ("stopped", "running")  # type: ignore[attr-defined]
    said("%bpf stop --all")
    assert two.state == "stopped"  # type: ignore[attr-defined]
    _, *probes = said("%bpf probes PATTERN", PATTERN=text("*clone*")).splitlines()
    assert {"syscall:clone", "tracepoint:syscalls:sys_enter_clone"} <= {line.split()[0] for line in probes}
    assert all("clone" in line for line in probes if not line.startswith("..."))
    options = set(re.findall(r"--[a-z-]+", said("%bpf help")))
    assert options >= {name for row in table("option") for name in re.findall(r"--[a-z-]+", row[0])}
    assert said("%bpf doctor").startswith("Tracing works.\n")


# --- probes -------------------------------------------------------------------------------------------------------


class Case(NamedTuple):
    """``act`` does what the probe sees and returns the pid it will be seen of; ``least``, ``most``: how many times.
    ``lacks``: the refusal's words where the kernel has no such probes."""

    act: Callable[[], int]
    least: int
    most: int
    lacks: str = ""


def forks() -> int:
    fork(3)
    return os.getpid()


def reads() -> int:
    pid = reader(100, 20, 0)
    os.waitpid(pid, 0)
    return pid


def opens() -> int:
    pid = os.fork()
    if pid == 0:
        for _ in range(20):
            _libc.open(b"/dev/zero", 0)
        os._exit(0)
    os.waitpid(pid, 0)
    return pid


def parents() -> int:
    for _ in range(20):
        os.getppid()
    return os.getpid()


def sleeps() -> int:
    for _ in range(20):
        time.sleep(0.001)
    return os.getpid()


def typed() -> int:
    """Three lines read by bash from a terminal."""
    ours, its = os.openpty()
    command = ["/bin/bash", "-c", "read -e a; read -e b; read -e c; :"]
    bash = subprocess.Popen(command, stdin=its, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    os.write(ours, b"1\n2\n3\n")
    bash.wait()
    os.close(ours)
    os.close(its)
    return bash.pid


def python() -> int:
    """A hundred collections of garbage, beside those at its end."""
    script = "import gc\nfor _ in range(100): gc.collect()"
    run = subprocess.Popen(["/usr/bin/python3", "-I", "-S", "-c", script])
    run.wait()
    return run.pid


def burns() -> int:
    """Half a second of processor time."""
    start = time.process_time()
    while time.process_time() - start < 0.5:
        pass
    return os.getpid()


def touches() -> int:
    pages = 10_000
    with mmap.mmap(-1, pages * mmap.PAGESIZE) as memory:
        memory.madvise(mmap.MADV_NOHUGEPAGE)  # a fault for each page
        for page in range(pages):
            memory[page * mmap.PAGESIZE] = 1
    return os.getpid()


NO_KPROBES = "this kernel has no kprobes"
NO_FENTRY = "this kernel does not let programs attach to its functions"
NO_LSM = "this kernel does not let programs attach to the hooks of its security modules"
NO_COUNTER = "this machine has no such hardware counter"
PROBES = {
    "syscall:clone": Case(forks, 3, 3),
    "sysret:clone": Case(forks, 3, 3),
    "kprobe__sys_clone": Case(forks, 3, 3),
    "kprobe:__x64_sys_clone": Case(forks, 3, 3),
    "syscall__clone": Case(forks, 3, 3),
    "kprobe:vfs_read": Case(reads, 20, 20, NO_KPROBES),
    "kretprobe:vfs_read": Case(reads, 20, 20, NO_KPROBES),
    "fentry:vfs_read": Case(reads, 20, 20, NO_FENTRY),
    "fexit:vfs_read": Case(reads, 20, 20, NO_FENTRY),
    "tracepoint:sched:sched_process_fork": Case(forks, 3, 3),
    "tracepoint:syscalls:sys_enter_getppid": Case(parents, 20, 20),
    "rawtracepoint:sched_switch": Case(sleeps, 20, 10_000),
    "lsm:file_open": Case(opens, 20, 20, NO_LSM),
    "uprobe:/bin/bash:readline": Case(typed, 3, 3),
    "uretprobe:/bin/bash:readline": Case(typed, 3, 3),
    "usdt:/usr/bin/python3:python:gc__start": Case(python, 100, 150),
    "usdt:/usr/bin/python3:gc__start": Case(python, 100, 150),
    "uprobe:bash:readline": Case(typed, 3, 3),
    "profile:99": Case(burns, 10, 100),
    "profile:ms:10": Case(burns, 10, 100),
    "software:page-faults:100": Case(touches, 50, 200),
    "hardware:cache-misses:1000000": Case(burns, 1, 1_000_000, NO_COUNTER),
}


def elsewhere(name: str, case: Case) -> Any:
    """Portable where this kernel lacks it, and another has it."""
    return pytest.param(name, marks=[pytest.mark.portable] if case.lacks not in ("", NO_COUNTER) else [])


COUNTER = 'int FN(void *ctx) { bpf_trace_printk("hit\\n"); return 0; }'


@shown(*PROBES)
@pytest.mark.parametrize("probe", [elsewhere(name, case) for name, case in PROBES.items()])
def test_a_probe(shell: Shell, probe: str) -> None:
    """A row of the table of probes; and each of bcc's names for a probe on clone."""
    check(shell, text(probe), PROBES[probe])


def check(shell: Shell, probe: str, case: Case, cell: str = COUNTER) -> None:
    """Attach, do, count. ``probe``: "" where the cell's function says it by its name."""
    if "__" in probe and ":" not in probe:
        probe, cell = "", cell.replace("FN", probe)
    cell = f"%%bpf probed {f'-a {probe}=FN' if probe else ''}\n{cell}"
    if case.lacks and (not KPROBES or case.lacks == NO_COUNTER):
        with pytest.raises((bpfnb.AttachError, bpfnb.UnsupportedError), match=case.lacks) as refused:
            shell.run(cell)
        assert "\n" not in str(refused.value)
        return
    probed: Any = shell.run(cell)
    pid = case.act()
    probed.stop()
    rows = probed.df[probed.df.pid == pid]
    assert case.least <= len(rows) <= case.most
    assert set(rows.msg) == {"hit"}


W = """
#include <stdio.h>
#include <stdlib.h>
__attribute__((noinline)) int f(int x) { __asm__ volatile(""); return x; }
void *volatile got;
int main(void) { while (getchar() == 10) { got = malloc(f(424242)); free(got); puts(""); fflush(stdout); } }
"""


@shown("uprobe:/proc/PID/exe:main", "uprobe:./w:main", "uprobe:c:malloc", "uprobe:/bin/bash:0xADDR")
def test_files_of_probes(shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "w.c").write_text(W)
    subprocess.run(["gcc", "-O1", "-o", "w", "w.c"], check=True)

    def run(times: int) -> int:
        with subprocess.Popen(["./w"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as w:
            w.communicate(b"\n" * times)
        return w.pid

    check(shell, text("uprobe:./w:main"), Case(lambda: run(0), 1, 1))
    large = 'int FN(struct pt_regs *ctx) { if (PT_REGS_PARM1(ctx) == 424242) bpf_trace_printk("hit\\n"); return 0; }'
    check(shell, text("uprobe:c:malloc"), Case(lambda: run(5), 5, 5), large)
    found = re.search(r"(\w+) T f$", subprocess.run(["nm", "w"], capture_output=True, text=True).stdout, re.M)
    assert found
    address = text("uprobe:/bin/bash:0xADDR").replace("/bin/bash", "./w").replace("ADDR", found[1])
    check(shell, address, Case(lambda: run(4), 4, 4))
    with subprocess.Popen(["./w"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as w:

        def go_on() -> int:
            w.communicate(b"\n\n\n")
            return w.pid

        probe = text("uprobe:/proc/PID/exe:main").replace("PID", str(w.pid)).replace("main", "f")
        check(shell, probe, Case(go_on, 3, 3))


@shown("%bpf probes syscall:openat")
def test_a_probes_arguments(shell: Shell, capsys: pytest.CaptureFixture[str]) -> None:
    shell.run(text("%bpf probes syscall:openat"))
    name, *arguments, returns = map(str.strip, capsys.readouterr().out.splitlines())
    assert (name, returns) == ("syscall:openat", "returns long: negative errno on failure")
    assert arguments == ["int dfd", "const char *filename", "int flags", "umode_t mode"]


@shown("%bpf probes 'usdt:/usr/bin/python3:*'")
def test_a_programs_probes(shell: Shell, capsys: pytest.CaptureFixture[str]) -> None:
    shell.run(text("%bpf probes 'usdt:/usr/bin/python3:*'"))
    notes = subprocess.run(["readelf", "-n", "/usr/bin/python3"], capture_output=True, text=True, check=True).stdout
    names = {f"usdt:/usr/bin/python3:python:{name}" for name in re.findall(r"Name: (\w+)", notes)}
    _, *lines = capsys.readouterr().out.splitlines()
    assert {line.split()[0] for line in lines} == names


@pytest.mark.portable
@shown('bpfnb.probes("*clone*")')
def test_probes_in_python(shell: Shell) -> None:
    shell.run("import bpfnb")
    df: Any = shell.run(text('bpfnb.probes("*clone*")'))
    assert list(df.columns) == ["probe", "kind", "arguments", "returns", "note"]
    assert df.kind[df.probe == "syscall:clone"].tolist() == ["syscall"]


@pytest.mark.portable
@shown("kprobe:vfs_read+OFFSET")
def test_a_probe_within_a_function(shell: Shell) -> None:
    """Past the function's first instruction: endbr64, or the five bytes where its tracing is switched on."""
    for offset in ("0x5", "0x4"):
        try:
            check(shell, text("kprobe:vfs_read+OFFSET").replace("OFFSET", offset), Case(reads, 20, 20, NO_KPROBES))
            return
        except bpfnb.AttachError:
            continue
    pytest.fail("no instruction begins at either")


HIT = '{ bpf_trace_printk("hit\\n"); return 0; }'
MACROS = {
    "TRACEPOINT_PROBE(category, name)": ({"category": "sched", "name": "sched_process_fork"}, Case(forks, 3, 3)),
    "RAW_TRACEPOINT_PROBE(name)": ({"name": "sched_switch"}, Case(sleeps, 20, 10_000)),
    "KFUNC_PROBE(name)": ({"name": "vfs_read"}, Case(reads, 20, 20, NO_FENTRY)),
    "KRETFUNC_PROBE(name)": ({"name": "vfs_read"}, Case(reads, 20, 20, NO_FENTRY)),
    "LSM_PROBE(name)": ({"name": "file_open"}, Case(opens, 20, 20, NO_LSM)),
    "kretprobe__...": ({"...": "sys_clone"}, Case(forks, 3, 3)),
}


@shown(*MACROS)
@pytest.mark.parametrize("name", [elsewhere(name, case) for name, (_, case) in MACROS.items()])
def test_a_name_of_bccs(shell: Shell, name: str) -> None:
    names, case = MACROS[name]
    macro = text(name)
    for word, value in names.items():
        macro = macro.replace(word, value)
    check(shell, "", case, f"{macro if '(' in macro else f'int {macro}(void *ctx)'} {HIT}")


@shown("PT_REGS_PARM1(ctx)", "session.probes")
def test_a_probe_on_a_system_call_is_portable(shell: Shell) -> None:
    """Three names of one probe, and the call's first argument by each."""
    names = ["syscall:kill", "kprobe__sys_kill", "kprobe:__x64_sys_kill"]
    for name in names:
        body = f'{{ bpf_trace_printk("%d\\n", (int){text("PT_REGS_PARM1(ctx)")}); return 0; }}'
        line, function = ("", name) if "__" in name and ":" not in name else (f"-a {name}=f", "f")
        shell.run(f"%%bpf session {line}\nint {function}(struct pt_regs *ctx) {body}")
        os.kill(os.getpid(), 0)
        shell.run("session.stop()")
        df = shell.inner.user_ns["session"].df
        assert df[df.pid == os.getpid()].msg.tolist() == [str(os.getpid())]
        (info,) = shell.run(text("session.probes"))  # type: ignore[misc]
        assert info.requested == name
        assert info.kind == ("kprobe" if KPROBES else "tracepoint")


# --- a refusal ----------------------------------------------------------------------------------------------------

REFUSED = "VerifierError: line 6: the verifier refused f: R0 invalid mem access 'map_value_or_null'"
NULL = """%%bpf refused -a syscall:getpgid=f
BPF_HASH(counts, u32, u64);
int f(void *ctx) {
    u32 pid = bpf_get_current_pid_tgid() >> 32;
    u64 *count = counts.lookup(&pid);
    *count += 1;
    return 0;
}
"""


@shown(REFUSED, "error.log", "error.diagnostics")
def test_a_refusal(shell: Shell, capsys: pytest.CaptureFixture[str]) -> None:
    """The picture of an error, word by word; only its lines are broken to fit the page."""
    with pytest.raises(bpfnb.VerifierError) as caught:
        shell.run(NULL)
    assert capsys.readouterr().out.split()[: len(text(REFUSED).split())] == text(REFUSED).split()
    shell.inner.user_ns["error"] = caught.value
    assert "invalid mem access" in str(shell.run(text("error.log")))
    with pytest.raises(bpfnb.CompileError) as refused:
        shell.run(NULL.replace("*count += 1;", "count += nothing;"))
    shell.inner.user_ns["error"] = refused.value
    (diagnostic, *_) = shell.run(text("error.diagnostics"))  # type: ignore[misc]
    assert "nothing" in str(diagnostic)
    assert refused.value.line == 6


# --- scripts and commands -----------------------------------------------------------------------------------------


@shown("import bpfnb", "bpfnb.BpfnbError")
def test_a_script(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(text("import bpfnb") + "\nprint(session.state)\n")
    process = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True, cwd=tmp_path)
    done = threading.Event()

    def make() -> None:  # until it has ended: how long it takes to attach is its own affair
        _libc.prctl(15, ME.encode())
        while not done.wait(0.05):
            fork(1)

    thread = threading.Thread(target=make)
    thread.start()
    try:
        output, _ = process.communicate(timeout=90)
    finally:
        done.set()
        thread.join()
    assert process.returncode == 0
    assert re.search(rf"^{ME} +[1-9]\d+$", output, re.M)
    assert output.endswith("\nstopped\n")
    for name in re.findall(r"`(\w+Error)`", (ROOT / "README.md").read_text()):
        assert issubclass(getattr(bpfnb, name), bpfnb.BpfnbError)


@shown(".venv/bin/bpfnb doctor", "--json", "bpfnb.doctor()", "bpfnb.doctor().df")
def test_the_doctor(shell: Shell) -> None:
    command = [sys.executable, "-m", "bpfnb", *text(".venv/bin/bpfnb doctor").split()[1:]]
    assert (ROOT / ".venv/bin/bpfnb").exists() or not Path(sys.prefix).is_relative_to(ROOT)
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert done.returncode == 0
    assert done.stdout.startswith("Tracing works.\n")
    done = subprocess.run([*command, text("--json")], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    report = json.loads(done.stdout)
    assert report["ok"] is True
    assert {row["level"] for row in report["rows"]} >= {"required", "optional"}
    shell.run("import bpfnb")
    assert str(shell.run(text("bpfnb.doctor()"))).startswith("Tracing works.\n")
    df: Any = shell.run(text("bpfnb.doctor().df"))
    assert len(df) == len(report["rows"])
