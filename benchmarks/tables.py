"""Rows to DataFrame: how long the first df of many rows takes, and how much memory.

    .venv/bin/python -m benchmarks.tables [--rows 1 10] [--comms 50] [--runs 3] [--untouched]

Segments are filled as the tracer fills them, with M million rows of

    struct { u64 ts; u32 pid; u32 tgid; u64 value; char comm[16]; }

behind an 8-byte header; each measure is taken in a process of its own, and medians of the runs are shown:
  first     seconds for the first df, with all rows waiting
  cpu       of those, seconds of the processor: less than first where something else ran
  again     microseconds for a df when nothing is new
  10k more  milliseconds for a df after ten thousand more rows
  memory    what the process has grown by once the df is there (Rss of /proc/self/smaps_rollup), to the raw bytes of
            the columns, 40 a row; segments still mapped were counted before
  peak      the most it had grown by meanwhile (VmHWM), the segment being read included
With --untouched, which is what people see: the first df of a process, of segments that another process has filled, and
then as many rows of another output. A line each:
  wall, user, sys   seconds
  faults            page faults
  M/s               million rows a second of the processor
Else memory is touched before, since the host of a virtual machine may take seconds to give what was never used.
--rows 30 takes 4 GiB. --comms 10000000 gives every row a name of its own. Nothing else should run meanwhile.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from bpfnb.protocol.schema import Number, Schema, Text
from bpfnb.protocol.segments import Layout, SegmentWriter
from bpfnb.results.output import Keep, Output

SCHEMA = Schema(
    (
        Number("ts", 8, "<u8"),
        Number("pid", 16, "<u4"),
        Number("tgid", 20, "<u4"),
        Number("value", 24, "<u8"),
        Text("comm", 32, 16),
    ),
    48,
    time="ts",
)
RAW = 40  # bytes a row, less the header
ROW = np.dtype(
    [("header", "V8"), ("ts", "<u8"), ("pid", "<u4"), ("tgid", "<u4"), ("value", "<u8"), ("comm", "S16")], align=False
)
CHUNK = 250_000
KEEP = 1 << 40


def fill(writer: SegmentWriter, first: int, count: int, comms: int) -> None:
    """Append the rows from ``first`` on."""
    random = np.random.default_rng(first)
    for start in range(first, first + count, CHUNK):
        rows = np.zeros(min(CHUNK, first + count - start), ROW)
        number = np.arange(start, start + len(rows))
        rows["ts"] = number * 100
        rows["pid"] = random.integers(1, 1 << 22, len(rows))
        rows["tgid"] = rows["pid"]
        rows["value"] = random.integers(0, 1 << 60, len(rows))
        names = np.char.add(b"comm-", np.arange(min(comms, CHUNK)).astype("S8"))
        if comms <= CHUNK:
            rows["comm"] = names[random.integers(0, comms, len(rows))]
        else:
            rows["comm"] = np.char.add(b"c", (number % comms).astype("S14"))
        writer.append(rows.view(np.uint8).reshape(len(rows), -1))


def memory(file: str, field: str) -> int:
    found = re.search(rf"^{field}:\s+(\d+) kB", Path(f"/proc/self/{file}").read_text(), re.M)
    assert found
    return int(found[1]) << 10


def touch(size: int) -> None:
    np.ones(size >> 3)


def measure(rows: int, comms: int) -> dict[str, float]:
    touch(rows * 120)
    output = Output("events", SCHEMA, 1_700_000_000_000_000_000, Keep(KEEP), "perf")
    writer = SegmentWriter(SCHEMA, output.add_segment)
    warm = Output("warm", SCHEMA, 0, Keep(KEEP), "perf")  # what pandas and Arrow import at their first use
    fill(SegmentWriter(SCHEMA, warm.add_segment), 0, 1000, 10)
    str(warm.df.tail())
    fill(writer, 0, rows, comms)
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
    before = memory("smaps_rollup", "Rss")
    began, worked = time.perf_counter(), time.process_time()
    df = output.df
    first, cpu = time.perf_counter() - began, time.process_time() - worked
    after, peak = memory("smaps_rollup", "Rss"), memory("status", "VmHWM")
    assert len(df) == rows
    assert int(df["ts"].iloc[-1]) == (rows - 1) * 100
    began = time.perf_counter()
    for _ in range(100):
        df = output.df
    again = (time.perf_counter() - began) / 100
    fill(writer, rows, 10_000, comms)
    began = time.perf_counter()
    df = output.df
    more = time.perf_counter() - began
    assert len(df) == rows + 10_000
    raw = rows * RAW
    return {
        "first s": first,
        "cpu s": cpu,
        "again us": again * 1e6,
        "10k more ms": more * 1e3,
        "memory": (after - before) / raw,
        "peak": (peak - before) / raw,
    }


def measure_untouched(rows: int, comms: int) -> dict[str, dict[str, float]]:
    warm = Output("warm", SCHEMA, 0, Keep(KEEP), "perf")
    fill(SegmentWriter(SCHEMA, warm.add_segment), 0, 1000, 10)
    str(warm.df.tail())
    return {which: first_df(rows, comms) for which in ("first", "second")}


def first_df(rows: int, comms: int) -> dict[str, float]:
    output = Output("events", SCHEMA, 0, Keep(KEEP), "perf")
    fill_elsewhere(output, rows, comms)
    before, began = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    df = output.df
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF)
    assert len(df) == rows
    user, system = after.ru_utime - before.ru_utime, after.ru_stime - before.ru_stime
    faults = after.ru_minflt - before.ru_minflt
    return {"wall": wall, "user": user, "sys": system, "faults": faults, "M/s": rows / (user + system) / 1e6}


def fill_elsewhere(output: Output, rows: int, comms: int) -> None:
    """Have a child process write the segments, as the tracer does."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    child = os.fork()
    if not child:
        writer = SegmentWriter(
            SCHEMA, lambda layout, fd: socket.send_fds(theirs, [f"{layout.rows} {layout.text}".encode()], [fd])
        )
        for first in range(0, rows, CHUNK):
            fill(writer, first, min(CHUNK, rows - first), comms)
        os._exit(0)
    theirs.close()
    with ours:
        while (received := socket.recv_fds(ours, 99, 1))[0]:
            output.add_segment(Layout(*map(int, received[0].split())), received[1][0])
            os.close(received[1][0])
    os.waitpid(child, 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=float, nargs="+", default=[1, 10], metavar="M", help="millions")
    parser.add_argument("--comms", type=int, default=50, help="different names")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--untouched", action="store_true", help="measure what people see: memory not touched before")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps((measure_untouched if args.untouched else measure)(args.one, args.comms)))
        return
    if args.untouched:
        show_untouched(args)
        return
    print(f"{'rows':>12}{'first s':>10}{'cpu s':>8}{'again us':>10}{'10k more ms':>13}{'memory':>9}{'peak':>7}")
    for millions in args.rows:
        rows = int(millions * 1_000_000)
        runs = []
        for _ in range(args.runs):
            runs.append(in_a_process(rows, args.comms))
        middle = medians(runs)
        times = (
            f"{middle['first s']:10.3f}{middle['cpu s']:8.3f}{middle['again us']:10.1f}{middle['10k more ms']:13.2f}"
        )
        print(f"{rows:12,}{times}{middle['memory']:8.2f}x{middle['peak']:6.2f}x", flush=True)


def show_untouched(args: argparse.Namespace) -> None:
    print(f"{'rows':>12}{'':>8}{'wall':>8}{'user':>8}{'sys':>8}{'faults':>10}{'M/s':>7}")
    for millions in args.rows:
        rows = int(millions * 1_000_000)
        runs = [in_a_process(rows, args.comms, "--untouched") for _ in range(args.runs)]
        for which in runs[0]:
            middle = medians([run[which] for run in runs])
            times = "".join(f"{middle[name]:8.3f}" for name in ("wall", "user", "sys"))
            print(f"{rows:12,}{which:>8}{times}{middle['faults']:10,.0f}{middle['M/s']:7.1f}", flush=True)


def in_a_process(rows: int, comms: int, *options: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.tables", "--one", str(rows), "--comms", str(comms), *options]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)


def medians(runs: list[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.median(run[name] for run in runs) for name in runs[0]}


if __name__ == "__main__":
    main()
