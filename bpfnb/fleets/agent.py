"""A fleet on one host: runs in the process of the worker that was chosen there, and has its sessions.

It lives as long as the client has its *lease*, a key that the client holds on this worker: dask drops it when the
client lets go of it, and when the client is gone. So nothing has to be renewed. The sessions end with it, with the
worker, and when the client says so.
"""

from __future__ import annotations

import asyncio
import os
import socket
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pandas as pd
from distributed import WorkerPlugin, get_worker

from bpfnb import release
from bpfnb.errors import BpfnbError, InternalError, ProgramError, SetupError
from bpfnb.fleets import tables
from bpfnb.fleets.clocks import Offset, measure
from bpfnb.fleets.sums import Counter, HostSums
from bpfnb.host import local
from bpfnb.host.connector import Launch
from bpfnb.hosts import Host
from bpfnb.results.presentation import Table
from bpfnb.session import Session

__all__ = ["Agent", "Identity", "MapFacts", "Spec", "Started", "attach", "detach", "identify", "perform", "read_rows"]

PERIOD = 1.0  # seconds between two reports
_CLOCK_EVERY = 60.0
_PIECE = 4 << 20  # bytes of a recording that travel at a time

Machine = Callable[[Any], str]


@dataclass(frozen=True)
class Identity:
    """A worker. ``machine``: what tells machines apart; ``name``: what this one is called."""

    machine: str
    name: str
    version: str
    build: str
    kernel: str


@dataclass(frozen=True)
class Spec:
    """What a fleet is to its agents. ``topic``: of their reports. ``lease``: the key that they live by."""

    fleet: str
    topic: str
    lease: str
    launch: Launch | None = None


@dataclass(frozen=True)
class MapFacts:
    """A map. ``keys`` and ``values``: its columns."""

    kind: str
    keys: tuple[str, ...]
    values: tuple[str, ...]


@dataclass(frozen=True)
class Started:
    """A session that runs on a host. ``frames``: empty ones, with the columns of each output and, as "", of ``df``.
    ``no_df``: why there is no ``df``."""

    number: int
    source: str
    table: bool
    frames: Mapping[str, pd.DataFrame]
    maps: Mapping[str, MapFacts]
    no_df: str = ""
    warnings: Sequence[str] = ()


class Agent(WorkerPlugin):  # type: ignore[misc]
    """The sessions of a fleet on this host, by number. dask calls ``setup`` and ``teardown``."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.name = _name(spec.fleet)
        self._host = Host(spec.launch or local.launch)
        self._counters: dict[int, Counter] = {}
        self._reports = 0
        self._offset = Offset(0, 0)
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._files: dict[str, tempfile.TemporaryDirectory[str]] = {}
        self._pool = ThreadPoolExecutor(4, f"bpfnb-fleet-{spec.fleet}")
        self._worker: Any = None

    async def setup(self, worker: Any) -> None:
        self._worker = worker
        self._offset = await measure(worker.scheduler)
        self._thread = threading.Thread(target=self._run, name="bpfnb-fleet", daemon=True)
        self._thread.start()

    async def teardown(self, worker: Any) -> None:
        await asyncio.to_thread(self.close)

    def close(self) -> None:
        """End all sessions and the tracer. Idempotent."""
        self._over.set()
        self._thread.join()
        self._pool.shutdown(wait=True, cancel_futures=True)
        with self._host:
            self._counters.clear()
        for folder in self._files.values():
            folder.cleanup()

    async def perform(self, what: str, args: Sequence[Any]) -> Any:
        """Do what the client asks for, beside the worker's loop."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._do, what, args)

    def _do(self, what: str, args: Sequence[Any]) -> Any:
        """Return what is asked for, or the error: raised, dask would log it here."""
        try:
            return getattr(self, f"do_{what}")(*args)
        except BpfnbError as error:
            return error
        except Exception as error:
            return InternalError(f"{type(error).__name__}: {error}", remote_traceback=traceback.format_exc())

    # --- what the client asks for ---

    def do_start(self, number: int, verb: str, args: Sequence[Any], options: Mapping[str, Any]) -> Started:
        """Start a session by a method of ``Host``, or by a tool: "tools.NAME". ``number``: the client's."""
        starter: Any = self._host
        for name in verb.split("."):
            starter = getattr(starter, name)
        session: Session = starter(*args, **options)
        with self._lock:
            self._counters[number] = Counter(session, number)
        return self.do_describe(number)

    def do_describe(self, number: int) -> Started:
        session = self._session(number)
        frames = {name: pd.DataFrame(output.newest(0)) for name, output in list(session.outputs.items())}
        no_df = ""
        try:
            frames[""] = pd.DataFrame(session.df.iloc[:0])
        except ProgramError as error:
            no_df = error.message
        return Started(
            number,
            session.source,
            isinstance(session.presentation, Table),
            frames,
            {
                name: MapFacts(map_.kind, tuple(map_.columns[0]), tuple(map_.columns[1]))
                for name, map_ in session.maps.items()
            },
            no_df,
            [str(warning.message) for warning in session.warnings],
        )

    def do_stop(self, number: int) -> bytes:
        self._session(number).stop()
        return self.report(last=True)

    def do_report(self) -> bytes:
        return self.report(last=True)

    def do_rows(self, number: int, output: str, rows: int) -> pd.DataFrame:
        return pd.DataFrame(self.frame(number, output).iloc[:rows])

    def do_top(self, number: int, output: str, *args: Any) -> tables.Groups:
        return tables.groups(self.frame(number, output), *args)

    def do_hist(self, number: int, output: str, *args: Any) -> pd.DataFrame:
        return tables.buckets(self.frame(number, output), *args)

    def do_rate(self, number: int, output: str, every: str, by: Sequence[str], offset_ns: int) -> pd.DataFrame:
        """Count rows in intervals, of the client's clock: from this host's take ``offset_ns``."""
        return tables.counts(self.frame(number, output), every, by, offset_ns)

    def do_map(self, number: int, name: str, how: str) -> pd.DataFrame:
        map_ = self._session(number).maps[name]
        return pd.DataFrame(map_.reduced(how) if how else map_.df)  # type: ignore[arg-type]

    def do_save(self, number: int) -> int:
        """Write a recording here; return its size. ``do_piece`` reads it."""
        folder = self._files[f"{number}"] = tempfile.TemporaryDirectory(prefix="bpfnb-fleet-")
        path = Path(folder.name) / "recording.zip"
        session: Any = self._session(number)
        session.save(path)
        return path.stat().st_size

    def do_piece(self, number: int, at: int) -> bytes:
        """Return a piece of the recording; behind the last one nothing, and then it is gone here."""
        folder = self._files[f"{number}"]
        with (Path(folder.name) / "recording.zip").open("rb") as file:
            file.seek(at)
            piece = file.read(_PIECE)
        if not piece:
            self._files.pop(f"{number}").cleanup()
        return piece

    def frame(self, number: int, output: str) -> pd.DataFrame:
        """Return the rows of an output; "" is ``df``."""
        session = self._session(number)
        return pd.DataFrame(session.outputs[output].df if output else session.df)

    def report(self, last: bool = False) -> bytes:
        """Return what is new since the last report: of each event one report tells."""
        with self._lock:
            sessions = [counter.read(last) for counter in self._counters.values() if last or not counter.done]
            self._reports += 1
            return msgspec.msgpack.encode(HostSums(self._reports, time.time_ns(), *self._offset, sessions))

    def _session(self, number: int) -> Session:
        if number not in self._counters:
            raise ProgramError("the session is gone from this host: its worker has been started again")
        return self._counters[number].session

    # --- on its thread ---

    def _run(self) -> None:
        measured = time.monotonic()
        while not self._over.wait(PERIOD):
            worker = self._worker
            if self.spec.lease not in worker.data:
                worker.loop.add_callback(self._look_for_lease)
            if self._counters:
                worker.log_event(
                    self.spec.topic, {"fleet": self.spec.fleet, "of": worker.address, "sums": self.report()}
                )
            if time.monotonic() - measured > _CLOCK_EVERY:
                measured = time.monotonic()
                worker.loop.add_callback(self._measure)

    async def _measure(self) -> None:
        self._offset = await measure(self._worker.scheduler)

    async def _look_for_lease(self) -> None:
        """End, unless the scheduler knows of the lease: it may have been moved to another worker."""
        worker = self._worker
        try:
            holders = await worker.scheduler.who_has(keys=[self.spec.lease])
        except OSError:
            return  # the worker ends when its scheduler has
        if not holders.get(self.spec.lease) and self.name in worker.plugins:
            await worker.plugin_remove(name=self.name)


def _name(fleet: str) -> str:
    return f"bpfnb-fleet-{fleet}"


# --- run on workers -----------------------------------------------------------------------------------------------


def boot_id(worker: Any) -> str:
    """Return what tells kernels apart: containers of one machine have one kernel, and its tracer sees them all."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def identify(machine: Machine | None, dask_worker: Any) -> Identity:
    """Return which machine a worker is on, and its bpfnb."""
    where = machine(dask_worker) if machine else ""
    return Identity(
        str(where) or boot_id(dask_worker),
        str(where) or _hostname(dask_worker),
        release.version(),
        release.build(),
        os.uname().release,
    )


def _hostname(worker: Any) -> str:
    """Return what its machine calls itself; what the cluster calls the worker, where that is no name."""
    name = socket.gethostname()
    return str(worker.name) if name in ("", "(none)", "localhost") else name


async def attach(spec: Spec, dask_worker: Any) -> bytes:
    """Have an agent on this worker, and return its first report."""
    if _name(spec.fleet) not in dask_worker.plugins:
        agent = Agent(spec)
        done = await dask_worker.plugin_add(plugin=agent, name=agent.name)
        if done["status"] != "OK":
            raise SetupError(f"dask could not add its plugin: {done.get('text') or done.get('exception_text')}")
    found: Agent = dask_worker.plugins[_name(spec.fleet)]
    return found.report()


async def detach(fleet: str, dask_worker: Any) -> None:
    """End the agent on this worker."""
    if _name(fleet) in dask_worker.plugins:
        await dask_worker.plugin_remove(name=_name(fleet))


async def perform(fleet: str, what: str, args: Sequence[Any], dask_worker: Any) -> Any:
    """Have the agent on this worker do something."""
    agent = dask_worker.plugins.get(_name(fleet))
    if agent is None:
        return ProgramError("the fleet has ended on this host")
    return await agent.perform(what, args)


def read_rows(fleet: str, number: int, output: str, host: str, hosts: Sequence[str]) -> pd.DataFrame:
    """Return a host's rows, with the column ``host``: a task, which stays on the worker that has the session."""
    agent = get_worker().plugins.get(_name(fleet))
    if agent is None:
        raise ProgramError(f"the fleet has ended on {host}")
    return tables.with_host(agent.frame(number, output), host, hosts)
