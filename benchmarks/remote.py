"""What it costs that the tracer is on another host: events a second, bytes on the link, processor time of near and far.

    .venv/bin/python -m benchmarks.remote [--runs 3] [--seconds 4] [--rates 100000 300000 0] [--ssh "ssh -T root@box"]

One program (40 bytes an event: a time, a pid, a name) on a producer's getppid calls, at each rate (0: as many as it
can), read by a tracer of this machine, and by one behind near and far, whose link is a pipe; with ``--ssh`` also by ssh
to this very machine, where bpfnb has to be in the same folder. Each figure is the median of the runs.

made, delivered   events a second
lost              share of those made
link              MB/s from far to near, of rows MB/s
near, far, tracer share of a CPU, while events come
stop              seconds that stop takes
"""

from __future__ import annotations

import argparse
import shlex
import statistics
import sys
import tempfile
import time
from pathlib import Path

import bpfnb
from benchmarks.common import Producer, build_producer, cpu_of
from bpfnb.host.ssh.peer import far_command, launch

_CELL = """
struct event { u64 ts; u32 pid; char comm[16]; };
BPF_PERF_OUTPUT(events);
BPF_ARRAY(made, u64, 1);
TRACEPOINT_PROBE(syscalls, sys_enter_getppid) {
    struct event event = {.ts = bpf_ktime_get_ns(), .pid = bpf_get_current_pid_tgid() >> 32};
    bpf_get_current_comm(&event.comm, sizeof(event.comm));
    made.atomic_increment(0);
    events.perf_submit(args, &event, sizeof(event));
    return 0;
}
"""
_SIZE = 40  # bytes of a row, with its time
_COLUMNS = ("made", "delivered", "lost", "rows MB/s", "link MB/s", "near", "far", "tracer", "stop s")


def processes(host: bpfnb.Host) -> dict[str, int]:
    """The tracer's worker, and near and far where there are any."""
    worker = host.connect().hello().pid
    found = {"tracer": worker}
    name = host.connect().reached.split(",")[0].removeprefix("ssh ")
    for task in Path("/proc/self/task").iterdir():
        for pid in map(int, (task / "children").read_text().split()):
            if f"boot.py\0near\0{name}\0".encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                found |= {"near": pid, "far": parent(parent(worker))}
    return found


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def measure(host: bpfnb.Host, rate: float, seconds: float) -> dict[str, float]:
    found = processes(host)
    with Producer(rate=rate, seconds=seconds) as producer:
        session = host.trace(_CELL, pid=producer.pid, guard=False, keep=1 << 30)
        before = {name: cpu_of(pid) for name, pid in found.items()}
        came = _read(found)
        made, lasted = producer.run()
        after = {name: cpu_of(pid) for name, pid in found.items()}
        came = _read(found) - came
        began = time.monotonic()
        session.stop()
        stop = time.monotonic() - began
    counted = int(session.maps["made"].df.value.iloc[0])
    rows = session.outputs["events"].rows
    assert counted == made == rows + session.lost, (made, counted, rows, session.lost)
    figures = {"made": made / lasted, "delivered": rows / lasted, "lost": session.lost / made}
    figures |= {"rows MB/s": rows * _SIZE / lasted / 1e6, "link MB/s": came / lasted / 1e6, "stop s": stop}
    return figures | {name: (after[name] - before[name]) / lasted for name in found}


def _read(found: dict[str, int]) -> int:
    """How many bytes near has read so far."""
    if "near" not in found:
        return 0
    return int(Path(f"/proc/{found['near']}/io").read_text().split()[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--rates", type=float, nargs="+", default=[100_000, 300_000, 0])
    parser.add_argument("--ssh", help="words that run a command on this machine by ssh")
    options = parser.parse_args()
    far = shlex.join(far_command(sys.executable, str(Path(__file__).parents[1])))
    ways = {"this machine": bpfnb.Host(), "pipe": bpfnb.Host(lambda: launch(("sh", "-c", f"exec {far}"), "pipe"))}
    if options.ssh:
        ways["ssh"] = bpfnb.Host(lambda: launch((*shlex.split(options.ssh), far), "ssh"))
    print(f"{'':22}" + "".join(f"{name:>12}" for name in _COLUMNS))
    with tempfile.TemporaryDirectory() as folder:
        build_producer(Path(folder))
        for rate in options.rates:
            runs: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
            for _ in range(options.runs):
                for name, host in ways.items():
                    runs[name].append(measure(host, rate, options.seconds))
            for name, results in runs.items():
                medians = {key: statistics.median(run[key] for run in results) for key in results[0]}
                cells = (f"{medians[key]:12,.3g}" if key in medians else f"{'':12}" for key in _COLUMNS)
                print(f"{rate or 'most':>8} {name:13}" + "".join(cells))
    for host in ways.values():
        host.close()


if __name__ == "__main__":
    main()
