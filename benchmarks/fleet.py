"""What a fleet costs its client and its scheduler: simulated hosts, without kernels, that report once a second.

    .venv/bin/python -m benchmarks.fleet --hosts 200

The scheduler is a process of its own, with TLS. The hosts are workers in a few processes, each with an agent, a session
and a ``FakeTracer`` that delivers lines. Printed are shares of a core: of the scheduler and of the client, first with
idle workers (what dask takes by itself), then with a fleet that traces, then with a panel's lines drawn from it too.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import distributed

import bpfnb
from bpfnb.errors import BpfnbError
from bpfnb.host.tracer import Tracer
from bpfnb.testing import FakeTracer

CELL = 'int kprobe__sys_sync(void *ctx) { bpf_trace_printk("hi\\n"); return 0; }'
PROCESSES = 4


class Simulated(FakeTracer):
    """A tracer without a kernel, that delivers lines to all its sessions."""

    def flood(self, lines: int) -> None:
        for number in {number for number, _ in list(self._writers)}:
            session: Any = SimpleNamespace(_number=number)
            with suppress(KeyError, BpfnbError):  # it has just been stopped
                self.printk(session, [("worker", 1, "hi")] * lines)


_tracers: list[Simulated] = []


def launch() -> Tracer:
    """Start a tracer in a worker."""
    tracer = Simulated()
    _tracers.append(tracer)
    return tracer.launch()


def machine(worker: Any) -> str:
    return str(worker.name)


def feed(seconds: float, lines: int) -> int:
    """Have all tracers of this process deliver lines every 200 ms; return how many there are. Once a process."""
    if not getattr(feed, "begun", False):
        feed.begun = True  # type: ignore[attr-defined]
        threading.Thread(target=_feed, args=(seconds, lines), daemon=True).start()
    return len(_tracers)


def _feed(seconds: float, lines: int) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        for tracer in _tracers:
            tracer.flood(lines)
        time.sleep(0.2)


async def work(address: str, first: int, count: int, security: distributed.Security) -> None:
    """Be so many workers."""
    made = [
        distributed.Worker(
            address, name=f"host{first + number}", nthreads=1, security=security, dashboard=False, memory_limit=0
        )
        for number in range(count)
    ]
    await asyncio.gather(*made)
    await asyncio.gather(*(worker.finished() for worker in made))


def seconds_of(pid: int) -> float:
    """Return the processor time that a process has taken."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def shares(scheduler: int, seconds: float, each: Any = lambda: None) -> tuple[float, float]:
    """Return the shares of a core that scheduler and client take; ``each`` is called once a second."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    before, began = (seconds_of(scheduler), usage.ru_utime + usage.ru_stime), time.monotonic()
    while time.monotonic() - began < seconds:
        each()
        time.sleep(1)
    usage, passed = resource.getrusage(resource.RUSAGE_SELF), time.monotonic() - began
    return (seconds_of(scheduler) - before[0]) / passed, (usage.ru_utime + usage.ru_stime - before[1]) / passed


def security_in(folder: Path) -> distributed.Security:
    made = distributed.Security.temporary()
    (folder / "ca.pem").write_text(made.tls_ca_file)
    (folder / "key.pem").write_text(made.tls_client_key + made.tls_client_cert)
    return security_of(folder)


def security_of(folder: Path) -> distributed.Security:
    key = str(folder / "key.pem")
    sides = {f"tls_{side}_{what}": key for side in ("client", "worker", "scheduler") for what in ("cert", "key")}
    return distributed.Security(tls_ca_file=str(folder / "ca.pem"), require_encryption=True, **sides)


def measure(hosts: int, seconds: float, lines: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        security = security_in(folder)
        key = str(folder / "key.pem")
        tls = ["--tls-ca-file", str(folder / "ca.pem"), "--tls-cert", key, "--tls-key", key, "--protocol", "tls"]
        where = ["--scheduler-file", str(folder / "scheduler.json"), "--host", "127.0.0.1", "--port", "0"]
        quiet = ["--no-dashboard", "--dashboard-address", "127.0.0.1:0"]
        started = [
            subprocess.Popen(
                [sys.executable, "-m", "distributed.cli.dask_scheduler", *where, *tls, *quiet],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        ]
        try:
            with distributed.Client(scheduler_file=str(folder / "scheduler.json"), security=security) as client:
                each = -(-hosts // PROCESSES)
                for first in range(0, hosts, each):
                    count = min(each, hosts - first)
                    words = ["--work", client.scheduler.address, str(first), str(count), name]
                    process = [sys.executable, "-m", "benchmarks.fleet", *words]
                    started.append(subprocess.Popen(process, stderr=subprocess.DEVNULL))
                client.wait_for_workers(hosts, timeout=300)
                time.sleep(5)
                print(f"{hosts} workers, idle: {_text(shares(started[0].pid, seconds))}")
                began = time.monotonic()
                with bpfnb.fleet(client, machine=machine, launch=launch) as fleet:
                    print(f"fleet of {len(fleet.hosts)} hosts: {time.monotonic() - began:.1f} s")
                    began = time.monotonic()
                    session = fleet.trace(CELL)
                    print(f"a session on all: {time.monotonic() - began:.1f} s")
                    client.run(feed, 10 * seconds, lines)
                    time.sleep(3)
                    reports, began = sum(part.report for part in session.parts), time.monotonic()
                    rows = int(session.rows.sum())
                    print(f"reports once a second: {_text(shares(started[0].pid, seconds))}")
                    passed = time.monotonic() - began
                    reports = sum(part.report for part in session.parts) - reports
                    delivered = int(session.rows.sum()) - rows
                    print(f"    {reports / passed:,.0f} reports a second of {delivered / passed:,.0f} lines a second")
                    read = shares(started[0].pid, seconds, lambda: session.rate(by="host"))
                    print(f"and rate(by='host') read once a second: {_text(read)}")
                    meter = session.meter("printk", "host", 60)

                    def draw() -> None:
                        meter.update()
                        meter.counts_of(list(meter.top(20)), meter.oldest, meter.until)

                    print(f"and a panel's lines: {_text(shares(started[0].pid, seconds, draw))}")
                    began = time.monotonic()
                    session.stop()
                    rows, lost = int(session.rows.sum()), int(session.lost.sum())
                    print(f"stop: {time.monotonic() - began:.1f} s; {rows:,} rows, {lost} lost")
                    began = time.monotonic()
                    print(session.top(["comm"]).to_string(), f"\ntop: {time.monotonic() - began:.1f} s")
        finally:
            for process in started:
                process.kill()
                process.wait()


def _text(found: tuple[float, float]) -> str:
    return f"scheduler {100 * found[0]:.1f} %, client {100 * found[1]:.1f} % of a core"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hosts", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=30, help="of each measurement")
    parser.add_argument("--lines", type=int, default=10, help="of each host every 200 ms")
    parser.add_argument("--work", nargs=4, metavar=("ADDRESS", "FIRST", "COUNT", "FOLDER"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        address, first, count, folder = args.work
        asyncio.run(work(address, int(first), int(count), security_of(Path(folder))))
    else:
        measure(args.hosts, args.seconds, args.lines)


if __name__ == "__main__":
    from benchmarks import fleet

    fleet.main()  # workers import these functions from there
