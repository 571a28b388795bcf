"""Fleets: workers of a Dask cluster that pretend to be several machines, with TLS, on this kernel.

Each of them sees what a workload does, and so each counts all of it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from clusters import Cluster, machine
from examples import EXAMPLES
from processes import children, command
from waiting import until

import bpfnb

pytest.importorskip("distributed")

CELL = r"""
struct data_t { u32 pid; u32 size; char comm[16]; };
BPF_PERF_OUTPUT(events);
BPF_PERCPU_HASH(calls, u32, u64);
int f(struct pt_regs *ctx, int pid) {
    struct data_t data = {.size = pid};
    u32 key = data.pid = bpf_get_current_pid_tgid() >> 32;
    u64 zero = 0, *count = calls.lookup_or_try_init(&key, &zero);
    if (count) *count += 1;
    bpf_get_current_comm(&data.comm, sizeof(data.comm));
    events.perf_submit(ctx, &data, sizeof(data));
    return 0;
}
"""
CALL = "syscall:getpgid"
WITHOUT_BPFNB = """
import sys
class Finder:
    def find_spec(self, name, *_):
        if name == "bpfnb":
            raise ModuleNotFoundError("No module named 'bpfnb'", name=name)
sys.meta_path.insert(0, Finder())
"""


class Caller:
    """A process that calls getpgid as often as it is told to, and keeps count."""

    def __init__(self) -> None:
        code = "import os, sys\nfor line in sys.stdin:\n  for _ in range(int(line)): os.getpgid(0)\n  print(flush=True)"
        self.process = subprocess.Popen([sys.executable, "-c", code], stdin=-1, stdout=-1, text=True)
        self.pid = self.process.pid
        self.count = 0

    def call(self, times: int) -> None:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(f"{times}\n")
        self.process.stdin.flush()
        self.process.stdout.readline()
        self.count += times


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("fleet")) as cluster:
        for name in ("ada", "bob"):
            cluster.start(name)
        with cluster.client() as client:  # threads that dask keeps
            client.wait_for_workers(2)
            client.submit(os.getpid).result()
        yield cluster


@pytest.fixture
def client(cluster: Cluster) -> Iterator[Any]:
    with cluster.client() as client:
        client.wait_for_workers(2, timeout=60)
        yield client


@pytest.fixture
def caller() -> Iterator[Caller]:
    caller = Caller()
    with caller.process:
        yield caller
        caller.process.stdin.close()  # type: ignore[union-attr]


def tracers(pid: int) -> set[int]:
    """The tracers that a worker has started."""
    return {child for child in children(pid) if "bpfnb.tracer" in command(child)}


def test_one_table_with_exact_counts(client: Any, caller: Caller, tmp_path: Path) -> None:
    with bpfnb.fleet(client, machine=machine) as fleet:
        assert client.scheduler.address.startswith("tls://")
        assert fleet.hosts == ["ada", "bob"]
        clocks = fleet.clocks  # of one machine: no offset that is not within the error
        assert (clocks["offset"].abs() <= clocks["error"]).all()
        assert (clocks["error"] < pd.Timedelta("1s")).all()
        session = fleet.trace(CELL, name="calls", attach={CALL: "f"}, pid=caller.pid)
        caller.call(300)
        session.stop()
        assert session.state == "stopped"
        assert session.rows.to_dict() == {"ada": 300, "bob": 300}
        assert session.lost.to_dict() == {"ada": 0, "bob": 0}
        frame = session.df
        assert list(frame.columns) == ["host", "time", "pid", "size", "comm"]
        assert list(frame["host"].cat.categories) == ["ada", "bob"]
        whole = frame.compute()
        assert whole.groupby("host", observed=True).size().to_dict() == {"ada": 300, "bob": 300}
        assert dict(frame.dtypes.drop("comm")) == dict(whole.dtypes.drop("comm"))
        assert set(whole["pid"]) == {caller.pid}
        assert session.head(2)["host"].tolist() == ["ada", "ada", "bob", "bob"]
        assert session.outputs["events"].df.groupby("comm", observed=True).size().compute().sum() == 600
        assert session.top(["host", "pid"])["count"].tolist() == [300, 300]
        assert session.top("pid", value="size", how="max")["max"].tolist() == [0]
        assert session.hist("size")[["low", "high", "count"]].to_numpy().tolist() == [[0, 1, 600]]
        assert session.rate()["rate"].sum() == 600
        assert session.rate("100ms", by=["host", "comm"]).sum().sum() / 10 == pytest.approx(600)
        assert session.rate(by="host").sum().to_dict() == {"ada": 300, "bob": 300}
        per_host = session.maps["calls"].df.groupby("host", observed=True)["value"].sum()
        assert per_host.to_dict() == {"ada": 300, "bob": 300}
        reduced = session.maps["calls"].reduced()
        assert reduced.to_numpy().tolist() == [[caller.pid, 600]]
        assert reduced["value"].dtype == np.uint64
        for host in ("ada", "bob"):
            assert host in session._repr_html_()
        session.save(tmp_path / "calls")
        with pytest.raises(bpfnb.ProgramError, match="exists"):
            session.save(tmp_path / "calls")
        for host in ("ada", "bob"):
            saved = bpfnb.open(tmp_path / "calls" / f"{host}.zip")
            own = whole[whole["host"] == host]
            assert saved.df["time"].tolist() == own["time"].tolist()


def test_sessions_that_count_add_up_and_are_drawn(client: Any, caller: Caller) -> None:
    with bpfnb.fleet(client, machine=machine) as fleet:
        counts = fleet.count(CALL, by="pid", pid=caller.pid)
        times = fleet.latency(CALL, pid=caller.pid)
        runs = fleet.tools.syscount(pid=caller.pid)
        caller.call(200)
        for session in (counts, times, runs):
            session.stop()
        assert counts.reduced()[["pid", "count"]].to_numpy().tolist() == [[caller.pid, 400]]
        assert counts.reduced(by="host")["count"].tolist() == [200, 200]
        assert counts.df["count"].sum().compute() == 400
        assert counts.top("host")["count"].tolist() == [200, 200]
        assert times.reduced()["count"].sum() == 400
        assert times.quantiles(0.5, by="host")["host"].tolist() == ["ada", "bob"]
        assert runs.top("syscall", 1).to_numpy().tolist() == [["getpgid", 400]]
        # What a panel draws: as many events as there were, a line a host.
        meter = counts.meter("", "host", 60)
        meter.update()
        assert meter.counts(meter.oldest, meter.until).sum() == 400
        assert meter.top(10, meter.oldest) == {"ada": 200, "bob": 200}
        panel = counts.live()
        assert panel.wait(10)


def test_hosts_that_cannot_are_named_and_errors_of_a_cell_come_once(client: Any, cluster: Cluster) -> None:
    bare = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs"]
    cluster.start("carl", under=bare)
    cluster.start("dora", "--preload", WITHOUT_BPFNB)
    try:
        client.wait_for_workers(4, timeout=60)
        with pytest.warns(RuntimeWarning, match="takes no part: bpfnb is not installed there"):
            fleet = bpfnb.fleet(client, machine=machine)
        with fleet:
            with pytest.warns(RuntimeWarning, match="carl takes no part"):
                session = fleet.count(CALL, by="pid")
            failures = session.failures.set_index("host")
            assert failures.loc["carl", "error"] == "PrivilegeError"
            assert len(failures) == 2
            assert session.rows.index.tolist() == ["ada", "bob"]
            with pytest.raises(bpfnb.CompileError) as caught:
                fleet.trace("int f(void *ctx) {\n    return foo;\n}", attach={CALL: "f"})
            assert caught.value.line == 2
            assert "return foo" in "\n".join(caught.value.report())
            with pytest.raises(bpfnb.ProgramError, match="no column 'pit'; did you mean pid"):
                session.top("pit")
    finally:
        for name in ("carl", "dora"):
            cluster.kill(name)
        until(lambda: len(client.scheduler_info(n_workers=-1)["workers"]) == 2)


def test_a_host_that_is_killed_keeps_its_sums_and_one_that_comes_is_joined(
    client: Any, cluster: Cluster, caller: Caller, request: pytest.FixtureRequest
) -> None:
    cluster.start("eve")
    client.wait_for_workers(3, timeout=60)
    request.addfinalizer(lambda: cluster.kill("fay"))
    with bpfnb.fleet(client, machine=machine) as fleet:
        rows = fleet.trace(CELL, name="calls", attach={CALL: "f"}, pid=caller.pid)
        counts = fleet.count(CALL, by="pid", pid=caller.pid)
        caller.call(100)
        until(lambda: rows.rows.to_dict() == {"ada": 100, "bob": 100, "eve": 100})
        reported = time.time_ns()  # what eve has counted by then is kept, once it has reported it
        until(lambda: all(part.tables_ns > reported for part in (*counts.parts, *rows.parts)))
        its_tracers = tracers(cluster.workers["eve"].pid)
        assert its_tracers
        cluster.kill("eve")
        caller.call(50)
        until(lambda: dict(rows.hosts[["host", "state"]].to_numpy())["eve"] == "left")
        until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in its_tracers), 5)
        cluster.start("fay")
        until(lambda: len(rows.rows) == 4 and len(counts.rows) == 4)
        caller.call(7)
        rows.stop()
        counts.stop()
        assert rows.rows.to_dict() == {"ada": 157, "bob": 157, "eve": 100, "fay": 7}
        assert rows.rate(by="host").sum().to_dict() == {"ada": 157, "bob": 157, "eve": 100, "fay": 7}
        with pytest.warns(RuntimeWarning, match="calls on eve: its worker left the cluster; its 100 rows .* gone"):
            sizes = rows.df.groupby("host", observed=False).size().compute()
        assert sizes.to_dict() == {"ada": 157, "bob": 157, "eve": 0, "fay": 7}
        with pytest.warns(RuntimeWarning, match="tables as of"):
            table = counts.reduced(by="host")
        assert dict(table[["host", "count"]].to_numpy()) == {"ada": 157, "bob": 157, "eve": 100, "fay": 7}
        assert counts.df["count"].sum().compute() == 157 + 157 + 100 + 7
        assert rows.maps["calls"].reduced()["value"].tolist() == [157 + 157 + 100 + 7]
        note = rows.hosts.set_index("host").loc["eve", "note"]
        assert "100 rows that were not fetched are gone" in note
        assert "eve" in rows.failures["host"].tolist()


def test_a_killed_client_leaves_nothing(cluster: Cluster, tmp_path: Path) -> None:
    pids = [cluster.workers[name].pid for name in ("ada", "bob")]
    code = """
        import sys, time
        import bpfnb, clusters, distributed
        security = distributed.Security(tls_ca_file={ca!r}, tls_client_cert={key!r}, tls_client_key={key!r},
                                        require_encryption=True)
        client = distributed.Client({address!r}, security=security)
        fleet = bpfnb.fleet(client, machine=clusters.machine)
        session = fleet.count("syscall:getpgid")
        print("runs", flush=True)
        time.sleep(600)
    """
    paths = {"ca": cluster.security.tls_ca_file, "key": cluster.security.tls_client_cert}
    script = textwrap.dedent(code).format(address=cluster.address, **paths)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    with subprocess.Popen([sys.executable, "-c", script], stdout=-1, text=True, env=environment) as process:
        assert process.stdout
        assert process.stdout.readline() == "runs\n"
        assert all(len(tracers(pid)) == 1 for pid in pids)
        process.kill()
        until(lambda: not any(tracers(pid) for pid in pids), 5)


def test_the_examples() -> None:
    """Those of docs/fleets.md, in a process of their own: its workers are on one kernel, and so one host."""
    first = EXAMPLES["from distributed import Client, LocalCluster, Security"].text
    rest = EXAMPLES['opens = fleet.rows("syscall:openat", ["comm", "filename"], where="errno == 2")'].text
    begun, used = rest.split("\n", 1)
    workload = "for n in range(9):\n    try: open(f'/none/{n}')\n    except OSError: pass\nopens.refresh()"
    last = "assert opens.rows.index.size == 1\nassert all(names[f'/none/{n}'] == 1 for n in range(9))\ncluster.close()"
    body = "\n".join([first, begun, workload, used, last, "print('done')"])
    script = f"if __name__ == '__main__':\n{textwrap.indent(body, '    ')}"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.stdout == "done\n", done.stderr


def test_what_is_no_client_is_refused() -> None:
    with pytest.raises(bpfnb.ProgramError, match=r"takes a distributed.Client, not str"):
        bpfnb.fleet("tls://127.0.0.1:8786")
