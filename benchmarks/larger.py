"""A recording of 100 million events: opening it, and questions beside DuckDB on bare Parquet of the same rows.

    .venv/bin/python -m benchmarks.larger [--events MILLIONS] [--runs N] [--folder FOLDER]

The rows are a sample really recorded on this machine (``syscall:*`` would be too many of one kind: openat, read, close
and getpid of a workload with several processes), which is written again and again with times that go on, by the
``Writer`` that recordings are written with. Bare Parquet has the same rows, row groups and codec, in one file, written
by pyarrow; DuckDB asks it with the threads and the memory that ``session.sql`` has. Each question runs in a process of
its own. Contenders take turns; figures are medians.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

import bpfnb
from bpfnb.recordings.columns import arrow_schema
from bpfnb.recordings.format import Manifest, OutputInfo
from bpfnb.recordings.parts import ROW_GROUP
from bpfnb.recordings.reader import open_recording
from bpfnb.recordings.writer import Writer
from bpfnb.results.queries.sql import memory_limit

SOURCE = """
struct data_t { u64 ts; u32 pid; u32 tid; u32 cpu; s64 ret; u64 took; char comm[16]; };
BPF_HASH(began, u64, u64);
BPF_RINGBUF_OUTPUT(events, 4096);

TRACEPOINT_PROBE(raw_syscalls, sys_enter) {
    u64 id = bpf_get_current_pid_tgid(), now = bpf_ktime_get_ns();
    began.update(&id, &now);
    return 0;
}

TRACEPOINT_PROBE(raw_syscalls, sys_exit) {
    u64 id = bpf_get_current_pid_tgid();
    u64 *from = began.lookup(&id);
    if (!from) return 0;
    struct data_t data = {};
    data.ts = bpf_ktime_get_ns();
    data.took = data.ts - *from;
    data.pid = id >> 32;
    data.tid = id;
    data.cpu = bpf_get_smp_processor_id();
    data.ret = args->ret;
    bpf_get_current_comm(&data.comm, sizeof(data.comm));
    events.ringbuf_output(&data, sizeof(data), 0);
    return 0;
}
"""
WORK = "for i in $(seq 200); do cat /proc/self/status | grep -c Name; ls /usr/bin | sort -r | head -3; done > /dev/null"
SAMPLE = 2_000_000  # rows


def sample() -> tuple[pd.DataFrame, bpfnb.Session]:
    """Return rows of real system calls."""
    with bpfnb.trace(SOURCE, name="calls", keep=1 << 30) as session:
        deadline = time.monotonic() + 60
        while session.outputs["events"].rows < SAMPLE and time.monotonic() < deadline:
            subprocess.run(["sh", "-c", WORK], check=True)
    return session.df.iloc[:SAMPLE], session


def record(folder: Path, millions: int) -> dict[str, float]:
    """Write the recording and the bare Parquet; return how long the first took, and its size."""
    frame, session = sample()
    schema = session.outputs["events"].schema
    info = OutputInfo("events", "ringbuf", schema, session.outputs["events"].epoch_ns)
    began = int(frame.time.iloc[0].value)
    span = int(frame.time.iloc[-1].value) - began + 1000
    manifest = Manifest(
        1, "benchmark", "", os.uname().release, os.uname().machine, "here", "", "calls", session.program, began,
        info.epoch_ns, (info,),
    )  # fmt: skip
    writer = Writer(folder / "trace", manifest)
    arrow = arrow_schema(schema)
    bare = pq.ParquetWriter(folder / "bare.parquet", arrow, compression="zstd", compression_level=1, version="2.6")
    spent, written, start = 0.0, 0, time.monotonic()
    names = [frame.columns.get_loc(name) for name in ("time", "ts")]
    while written < millions * 1_000_000:
        block = frame.iloc[: millions * 1_000_000 - written].copy()
        shift = written // len(frame) * span
        block.isetitem(names[0], block.iloc[:, names[0]] + pd.Timedelta(shift))
        block.isetitem(names[1], block.iloc[:, names[1]] + np.uint64(shift))
        before = time.monotonic()
        for first in range(0, len(block), 40_000):
            writer.rows(0, block.iloc[first : first + 40_000])
        spent += time.monotonic() - before
        written += len(block)
        table = pa.Table.from_pandas(block, preserve_index=False)
        bare.write_table(table.cast(arrow), row_group_size=ROW_GROUP)
    before = time.monotonic()
    ended = OutputInfo("events", "ringbuf", schema, info.epoch_ns, rows=written, written=written, lost=0)
    last = {"outputs": (ended,), "state": "stopped", "ended_ns": began + written // len(frame) * span}
    import msgspec

    writer.close(msgspec.structs.replace(manifest, **last))
    bare.close()
    assert not writer.failed
    spent += time.monotonic() - before
    size = sum(file.stat().st_size for file in (folder / "trace").rglob("*") if file.is_file())
    return {
        "seconds": spent,
        "bytes": size,
        "bare": (folder / "bare.parquet").stat().st_size,
        "all": time.monotonic() - start,
    }


# --- questions ----------------------------------------------------------------------------------------------------


def middle(path: Path) -> tuple[pd.Timestamp, pd.Timestamp]:
    """Return a hundredth of the recording's time, in its middle."""
    manifest = open_recording(path).manifest
    first, last = (pd.Timestamp(ns, tz="UTC") for ns in (manifest.began_ns, manifest.ended_ns))
    half = first + (last - first) / 2
    return half, half + (last - first) / 100


BUCKET = "case when took = 0 then 0 else floor(log2(took))::int + 1 end"
QUESTIONS: dict[str, tuple[Callable[[Any, Any], Any], str]] = {
    "sql: count by comm": (
        lambda session, window: session.sql("select comm, count(*) as n from events group by 1 order by 2 desc"),
        "select comm, count(*) as n from bare group by 1 order by 2 desc",
    ),
    "sql: quantiles of took by comm": (
        lambda session, window: session.sql(
            "select comm, approx_quantile(took, [.5, .99]) as q from events group by 1 order by 1"
        ),
        "select comm, approx_quantile(took, [.5, .99]) as q from bare group by 1 order by 1",
    ),
    "top(comm)": (
        lambda session, window: session.top("comm"),
        "select comm, count(*) as n, n / sum(n) over () as share from bare group by 1 order by 2 desc limit 10",
    ),
    "top(pid, value=took)": (
        lambda session, window: session.top("pid", value="took"),
        "select pid, sum(took) as total from bare group by 1 order by 2 desc limit 10",
    ),
    "hist(took)": (
        lambda session, window: session.hist("took"),
        f"select {BUCKET} as bucket, count(*) as n from bare group by 1 order by 1",
    ),
    "hist(took, by=comm)": (
        lambda session, window: session.hist("took", by="comm"),
        f"select comm, {BUCKET} as bucket, count(*) as n from bare group by all order by all",
    ),
    "rate(1s)": (
        lambda session, window: session.rate("1s"),
        "select date_trunc('second', time) as t, count(*) as n from bare group by 1 order by 1",
    ),
    "rate(1s, by=comm)": (
        lambda session, window: session.rate("1s", by="comm"),
        "select date_trunc('second', time) as t, comm, count(*) as n from bare group by all order by all",
    ),
    "between(a hundredth)": (
        lambda session, window: session.between(*window),
        "select * from bare where time >= '{0}' and time < '{1}'",
    ),
    "top(comm) of a hundredth": (
        lambda session, window: session.top("comm", between=window),
        "select comm, count(*) as n from bare where time >= '{0}' and time < '{1}' group by 1 order by 2 desc limit 10",
    ),
}


def ask(folder: Path, name: str, contender: str) -> dict[str, float]:
    """Answer one question in this process; return the seconds, and the growth of its peak memory."""
    ours, theirs = QUESTIONS[name]
    import duckdb

    window = middle(folder / "trace")
    if contender == "DuckDB":
        connection = duckdb.connect(
            config={"threads": min(os.cpu_count() or 1, 8), "memory_limit": f"{memory_limit() >> 20}MiB"}
        )
        connection.execute(f"create view bare as select * from read_parquet('{folder}/bare.parquet')")
        answer = lambda: connection.sql(theirs.format(*window)).to_arrow_table().to_pandas()  # noqa: E731
    else:
        session = bpfnb.open(folder / "trace")
        answer = lambda: ours(session, window)  # noqa: E731
    duckdb.sql("select 1").to_arrow_table().to_pandas()  # what is imported and started once
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    began = time.monotonic()
    answer()
    return {"seconds": time.monotonic() - began, "peak": memory("VmHWM") - before}


def memory(what: str) -> float:
    """Return a line of /proc/self/status, in MiB."""
    return (
        int(next(line for line in Path("/proc/self/status").read_text().splitlines() if what in line).split()[1]) / 1024
    )


def opened(folder: Path) -> dict[str, float]:
    began = time.monotonic()
    session = bpfnb.open(folder / "trace", keep=256 << 20)
    rows = session.outputs["events"].rows
    seconds = time.monotonic() - began
    began = time.monotonic()
    session._repr_html_()
    card = time.monotonic() - began
    before = memory("VmRSS")
    began = time.monotonic()
    frame = session.df
    return {
        "seconds": seconds, "card": card, "rows": rows, "df": time.monotonic() - began, "kept": len(frame),
        "MiB": memory("VmHWM") - before,
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.larger", description=__doc__.splitlines()[0])
    parser.add_argument("--events", type=int, default=100, metavar="MILLIONS")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where a recording of an earlier run is, or is to be")
    parser.add_argument("--ask", nargs=2, metavar=("QUESTION", "CONTENDER"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.ask:
        figures = opened(args.folder) if args.ask[0] == "open" else ask(args.folder, *args.ask)
        print(json.dumps(figures))
        return 0
    with tempfile.TemporaryDirectory(prefix="bpfnb-larger-") as temporary:
        folder = args.folder or Path(temporary)
        folder.mkdir(exist_ok=True)
        if not (folder / "trace" / "manifest.json").exists():
            made = record(folder, args.events)
            print(", ".join(f"{name} {value:,.1f}" for name, value in made.items()), flush=True)
        figures = measured(folder, "open", "bpfnb")
        print(", ".join(f"{name} {value:,.3f}" for name, value in figures.items()), flush=True)
        print(f"{'question':34}{'bpfnb':>9}{'DuckDB':>9}{'ratio':>8}{'peak MiB':>10}{'DuckDB':>9}")
        for name in QUESTIONS:
            runs = {who: [] for who in ("bpfnb", "DuckDB")}  # type: dict[str, list[dict[str, float]]]
            for _ in range(args.runs):
                for who in runs:
                    runs[who].append(measured(folder, name, who))
            ours, theirs = (statistics.median(run["seconds"] for run in runs[who]) for who in runs)
            peaks = [max(run["peak"] for run in runs[who]) for who in runs]
            print(f"{name:34}{ours:8.2f}s{theirs:8.2f}s{ours / theirs:8.2f}{peaks[0]:10.0f}{peaks[1]:9.0f}", flush=True)
    return 0


def measured(folder: Path, name: str, contender: str) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.larger", "--folder", str(folder), "--ask", name, contender]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


if __name__ == "__main__":
    sys.exit(main())
