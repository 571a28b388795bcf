"""Record every event of a flood while it comes: bpfnb's --record, perf record, bpftrace -f json.

    .venv/bin/python -m benchmarks.recording --events 100_000_000 --rate 1_000_000
    .venv/bin/python -m benchmarks.recording --events 10_000_000 --beside

A producer on one CPU calls getppid(2); an event has its time, its number, the process and its name: 40 bytes. For each
recorder: how many events are in the file, how many were lost, its size, and the CPU time of each process. Of bpfnb also
the memory of recorder and tracer over time, and that every number from 0 to the last is in the recording, in order.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import bpfnb
from benchmarks.common import CPUS, PRODUCER, build_producer
from bpfnb.hosts import default_host

SOURCE = """
struct event { u64 n; u32 pid; char comm[16]; };
BPF_RINGBUF_OUTPUT(events, 1 << 14);
BPF_ARRAY(made, u64, 1);
int f(void *ctx) {
    if ((bpf_get_current_pid_tgid() >> 32) != PRODUCER_PID) return 0;
    int zero = 0;
    u64 *n = made.lookup(&zero);
    if (!n) return 0;
    struct event *event = events.ringbuf_reserve(sizeof(*event));
    (*n)++;
    if (!event) return 0;
    event->n = *n - 1;
    event->pid = PRODUCER_PID;
    bpf_get_current_comm(event->comm, 16);
    events.ringbuf_submit(event, 0);
    return 0;
}
"""
BPFTRACE = 'tracepoint:syscalls:sys_enter_getppid /pid == {pid}/ {{ printf("%llu %d %s\\n", nsecs, pid, comm); }}'
_SAMPLES = 10  # of memory, a recording


class Flood:
    """A process that calls as often as it is told, once ``go`` is called."""

    def __init__(self, events: int, rate: int) -> None:
        command = [os.environ[PRODUCER], str(CPUS[-1]), str(events), str(rate), "3600"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.pid = self._process.pid

    def go(self) -> None:
        assert self._process.stdin
        self._process.stdin.write(b"x")
        self._process.stdin.flush()

    @property
    def over(self) -> bool:
        return self._process.poll() is not None

    def made(self) -> tuple[int, float]:
        """How many calls, and in how many seconds."""
        calls, nanoseconds = self._process.communicate()[0].split()
        return int(calls), int(nanoseconds) / 1e9


def cpu(pid: int) -> float:
    """Seconds of CPU that a process has taken."""
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def resident(pid: int) -> int:
    """Bytes of memory of its own, without segments, which are shared."""
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.partition("RssAnon:")[2].split()[0]) << 10


def size(path: Path) -> int:
    return (
        sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) if path.is_dir() else path.stat().st_size
    )


def record(events: int, rate: int, folder: Path) -> dict[str, object]:
    flood = Flood(events, rate)
    path = folder / "recording"
    session = bpfnb.trace(
        SOURCE,
        name="flood",
        attach={"tracepoint:syscalls:sys_enter_getppid": "f"},
        cflags=[f"-DPRODUCER_PID={flood.pid}"],
        record=path,
        keep=64 << 20,
        guard=False,
    )
    assert session._recorder
    assert session._recorder._process
    recorder, tracer = session._recorder._process.pid, default_host.connect().hello().pid
    time.sleep(2)  # it imports pandas
    before = cpu(recorder), cpu(tracer)
    flood.go()
    memory, every = [], events / rate / _SAMPLES
    while not flood.over:
        time.sleep(every)
        memory.append((resident(recorder) >> 20, resident(tracer) >> 20))
    made, seconds = flood.made()
    after = cpu(recorder), cpu(tracer)
    began = time.monotonic()
    session.stop()
    finished = time.monotonic() - began
    assert session.recording
    written = session.recording.rows  # type: ignore[union-attr]
    assert int(session.maps["made"][0]) == made
    began = time.monotonic()
    opened = bpfnb.open(path)
    opening = time.monotonic() - began
    assert opened.outputs["events"].rows == written
    return {
        "made": made,
        "events a second": round(made / seconds),
        "in the recording": written,
        "lost": session.lost,
        "note": opened.manifest.note,
        "bytes": size(path),
        "bytes an event": round(size(path) / max(written, 1), 2),
        "CPU of the recorder, share of one": round((after[0] - before[0]) / seconds, 3),
        "CPU of the tracer, share of one": round((after[1] - before[1]) / seconds, 3),
        "memory of recorder and tracer over time, MiB": memory,
        "seconds to finish": round(finished, 2),
        "seconds to open": round(opening, 2),
        "in order": _in_order(path, written),
    }


def _in_order(path: Path, rows: int) -> bool:
    """Whether the events' numbers are 0, 1, 2 ... in the parts, read by Arrow alone."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    due = 0
    for part in sorted((path / "outputs" / "0").iterdir()):
        if part.suffix == ".parquet":
            batches = pq.ParquetFile(part).iter_batches(columns=["n"])
        else:
            batches = pa.ipc.open_stream(part.open("rb"))
        for batch in batches:
            numbers = batch.column("n").to_numpy()
            if not np.array_equal(numbers, np.arange(due, due + len(numbers), dtype=np.uint64)):
                return False
            due += len(numbers)
    return due == rows


def beside(name: str, command: list[str], events: int, rate: int, flood: Flood, out: Path) -> dict[str, object]:
    """Run another recorder about a flood."""
    before = os.times()
    with (out.parent / "said").open("w+b") as said:
        process = subprocess.Popen(["taskset", "-c", str(CPUS[0]), *command], stdout=said, stderr=said)
        time.sleep(3)
        flood.go()
        made, seconds = flood.made()
        time.sleep(1)
        process.send_signal(2)
        process.wait()
        said.seek(0)
        text = said.read().decode(errors="replace")
    after = os.times()
    taken = after.children_user + after.children_system - before.children_user - before.children_system
    result: dict[str, object] = {"made": made, "events a second": round(made / seconds), "bytes": size(out)}
    result["CPU, with the producer's, share of one"] = round(taken / seconds, 3)
    result["said"] = text.strip().splitlines()[-4:]
    return result


def perf(events: int, rate: int, folder: Path) -> dict[str, object]:
    flood, out = Flood(events, rate), folder / "perf.data"
    event = ["-e", "syscalls:sys_enter_getppid", "-p", str(flood.pid)]
    command = ["perf", "record", "-c", "1", "-m", "4096", *event, "-o", str(out)]
    result = beside("perf", command, events, rate, flood, out)
    counted = subprocess.run(
        f"perf script -i {out} -F time 2>/dev/null | wc -l", shell=True, capture_output=True, text=True, check=True
    )
    return {
        **result,
        "in the file": int(counted.stdout),
        "bytes an event": round(size(out) / max(int(counted.stdout), 1), 2),
    }


def bpftrace(events: int, rate: int, folder: Path) -> dict[str, object]:
    flood, out = Flood(events, rate), folder / "bpftrace.json"
    command = ["bpftrace", "-f", "json", "-o", str(out), "-e", BPFTRACE.format(pid=flood.pid)]
    os.environ["BPFTRACE_PERF_RB_PAGES"] = "4096"
    result = beside("bpftrace", command, events, rate, flood, out)
    lines = sum(line.count(b'"printf"') for line in out.open("rb"))
    lost = [json.loads(line)["data"]["events"] for line in out.open() if '"lost_events"' in line]
    return {**result, "in the file": lines, "lost": sum(lost), "bytes an event": round(size(out) / max(lines, 1), 2)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=5_000_000)
    parser.add_argument("--rate", type=int, default=1_000_000, help="a second")
    parser.add_argument("--beside", action="store_true", help="perf record and bpftrace too, where they are installed")
    parser.add_argument("--folder", type=Path, help="where to write; by default a new folder, removed at the end")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        build_producer(Path(folder))
        runs = {"bpfnb": record}
        if args.beside:
            runs |= {name: run for name, run in (("perf", perf), ("bpftrace", bpftrace)) if shutil.which(name)}
        for name, run in runs.items():
            print(name, flush=True)
            for what, value in run(args.events, args.rate, Path(folder)).items():
                print(f"  {what:45} {value:,}" if isinstance(value, int) else f"  {what:45} {value}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
