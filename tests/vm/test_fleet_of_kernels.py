"""A fleet of three real kernels in one table: this one, and Debian's 6.1 and 6.12 as workers in QEMU. Takes minutes.

Guests reach the scheduler by QEMU's user network; it reaches them by ports that are forwarded on loopback.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pandas as pd
import pytest
from clusters import ROOT, Cluster
from waiting import until

import bpfnb

pytest.importorskip("distributed")

VM = ROOT / "scripts" / "vm"
VERSIONS = ["6.1", "6.12"]
PORTS = {"6.1": 34561, "6.12": 34562}
PATIENCE = 900  # seconds: guests are emulated
WHOLE = os.environ.get("BPFNB_VM_WHOLE") == "1" and os.environ.get("BPFNB_VM_TESTS") != "0"

# Calls getpgid as often as the kernel's name says: each host another number of times.
WORKLOAD = "import os\nfor _ in range(sum(map(ord, os.uname().release))): os.getpgid(0)"
ENDLESS = "import os, time\nwhile True:\n    os.getpgid(0)\n    time.sleep(0.01)"

CELL = r"""
struct data_t { u32 pid; char comm[16]; };
BPF_PERF_OUTPUT(events);
BPF_HASH(calls, u32, u64);
int f(struct pt_regs *ctx) {
    struct data_t data = {};
    data.pid = bpf_get_current_pid_tgid() >> 32;
    bpf_get_current_comm(&data.comm, sizeof(data.comm));
    calls.increment(data.pid);
    events.perf_submit(ctx, &data, sizeof(data));
    return 0;
}
"""


@pytest.fixture(autouse=True)
def no_leaks() -> None:
    """Guests outlive a test on purpose."""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if not WHOLE:
        pytest.skip("takes minutes: BPFNB_VM_WHOLE=1 (scripts/test --full)")
    if not shutil.which("qemu-system-x86_64") or not all((ROOT / ".vm" / v / "vmlinuz").exists() for v in VERSIONS):
        pytest.fail("no QEMU, or no kernels in .vm: scripts/setup --test gets them")
    with Cluster(tmp_path_factory.mktemp("fleet")) as cluster:
        cluster.start("here")
        until(lambda: (cluster.folder / "scheduler.json").exists())
        scheduler = cluster.address.replace("127.0.0.1", "10.0.2.2")
        guests = {}
        for version, port in PORTS.items():
            addresses = ["--listen-address", f"tls://0.0.0.0:{port}", "--contact-address", f"tls://127.0.0.1:{port}"]
            worker = cluster.command(f"guest {version}", scheduler, *addresses)
            command = [VM, "run", version, "--forward", f"{port}:{port}", "--timeout", "1800", "--", *worker]
            with (cluster.folder / f"{version}.log").open("wb") as log:
                guests[version] = subprocess.Popen(command, stdout=log, stderr=log)
        cluster.workers |= guests
        try:
            yield cluster
        finally:
            for version in VERSIONS:
                print(cluster.log(version)[-3000:])


def end(guest: subprocess.Popen[bytes]) -> None:
    guest.terminate()  # scripts/vm then kills QEMU
    guest.wait()


def sizes(client: Any, session: Any) -> dict[str, int]:
    """How many rows each host has in the table: by partitions, since these guests cannot reach one another."""
    frame = session.df  # held until then: dask lets go of the rows with it
    parts = client.gather(client.compute(frame.to_delayed()))
    return {host: count for host, count in pd.concat(parts)["host"].value_counts().items() if count}


@pytest.mark.timeout(3 * PATIENCE)
def test_three_kernels_in_one_table(cluster: Cluster, capsys: Any) -> None:
    with cluster.client() as client:
        client.wait_for_workers(3, timeout=PATIENCE)
        with bpfnb.fleet(client) as fleet:  # told apart by their boot ids
            assert set(fleet.hosts) == {socket.gethostname(), "guest 6.1", "guest 6.12"}
            words = [sys.executable, "-c", WORKLOAD]
            session = fleet.trace(CELL, name="calls", attach={"syscall:getpgid": "f"}, command=words)
            kernels = dict(session.hosts[["host", "kernel"]].to_numpy())
            expected = {host: sum(map(ord, release)) for host, release in kernels.items()}
            series = sorted(re.match(r"\d+\.\d+", release)[0] for release in kernels.values())  # type: ignore[index]
            assert series == sorted(["6.1", "6.12", re.match(r"\d+\.\d+", os.uname().release)[0]])  # type: ignore[index]
            assert session.wait(PATIENCE)
            session.stop()
            assert session.rows.to_dict() == expected
            assert not session.lost.any()
            assert sizes(client, session) == expected
            assert session.rate(by="host").sum().to_dict() == expected
            per_host = session.maps["calls"].df.groupby("host", observed=True)["value"].sum()
            assert per_host.to_dict() == expected
            with capsys.disabled():
                print(session, fleet.clocks, sep="\n")

            with fleet.trace(
                CELL, name="more", attach={"syscall:getpgid": "f"}, command=[sys.executable, "-c", ENDLESS]
            ) as more:
                until(lambda: (more.rows > 20).all(), PATIENCE)
                victim = next(host for host, release in kernels.items() if release.startswith("6.1."))
                end(cluster.workers.pop("6.1"))
                until(lambda: dict(more.hosts[["host", "state"]].to_numpy())[victim] == "left", PATIENCE)
                kept = more.rows[victim]
                others = more.rows.drop(victim)
                until(lambda: (more.rows.drop(victim) > others).all(), PATIENCE)
                with pytest.warns(RuntimeWarning, match="left the cluster"):
                    there = sizes(client, more)
                assert set(there) == set(others.index)
                assert all(there[host] >= others[host] for host in there)
            assert more.rows[victim] == kept
            with capsys.disabled():
                print(more)
