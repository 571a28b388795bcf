"""A fleet, as the client has it: which machines there are, who traces on each, and what they report.

The client's event loop runs everything that waits for a worker; methods that users call wait for it (``Client.sync``).
Once a second it asks the scheduler which workers there are: new ones are asked which machine they are on, and the first
of a machine gets an agent. A machine whose agent's worker is gone gets another one where it has further workers.
"""

from __future__ import annotations

import asyncio
import itertools
import re
import secrets
import time
import warnings
import weakref
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any

import distributed
import msgspec
import pandas as pd

from bpfnb import release
from bpfnb.errors import BpfnbError, ProgramError, SetupError, printable
from bpfnb.fleets import agent
from bpfnb.fleets.agent import Identity, Machine, Spec
from bpfnb.fleets.clocks import UNKNOWN, Offset, measure
from bpfnb.fleets.session import FleetSession
from bpfnb.fleets.sums import HostSums, SessionSums
from bpfnb.fleets.tools import FleetTools
from bpfnb.host.connector import Launch
from bpfnb.hosts import check_name
from bpfnb.language.oneliner.question import ask
from bpfnb.language.program import parse
from bpfnb.options import SessionOptions, check_options
from bpfnb.origins import stack_level
from bpfnb.results.columns.text import text_dtype

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["Fleet", "Member"]

_WATCH_EVERY = 1.0
_CLOCK_EVERY = 60.0
_HEAR_TIMEOUT = 3.0
_MISSING = re.compile(r"(?:No module named '|import of )bpfnb(\.\w+)?")
_EARLY = 1000  # reports of a session that has not been entered yet

Probes = str | Sequence[str]
Columns = str | Sequence[str] | Mapping[str, str] | None


@dataclass
class Member:
    """A host, while one of its workers has an agent. ``clock``: its minus ours. ``heard``: when it reported, on our
    clock. ``reports``: how many were heard. ``lease``: a future, by which the agent lives."""

    host: str
    address: str
    kernel: str
    lease: Any = None
    clock: Offset = UNKNOWN
    heard: float = 0.0
    reports: int = 0
    left: bool = False
    early: dict[int, list[tuple[HostSums, SessionSums]]] = field(default_factory=dict)


@dataclass(frozen=True)
class Failure:
    host: str
    of: str
    error: str
    reason: str


class Fleet:
    """The machines of a Dask cluster. It starts sessions as a ``Host`` does, on all of them at once; what it returns is
    a ``FleetSession``. See ``bpfnb.fleet``.

    ``tools``   the ready-made tools: ``fleet.tools.opensnoop()``

    Errors of a cell, such as CompileError, are raised once, as on one machine, where no host can run it. Where some
    can, the others are in ``failures``, and a RuntimeWarning names them.
    """

    def __init__(
        self, client: distributed.Client, machine: Machine | None = None, launch: Launch | None = None
    ) -> None:
        if client.asynchronous:
            raise ProgramError("fleet() takes a client that waits: Client(..., asynchronous=False)")
        self.client = client
        self.id = secrets.token_hex(4)
        self.tools = FleetTools(self)
        self._machine, self._launch = machine, launch
        self._topic = f"bpfnb-fleet-{self.id}"
        self._members: dict[str, Member] = {}  # by address; those that have left, too
        self._workers: dict[str, Identity | None] = {}  # that were asked; None: they cannot
        self._names: dict[str, str] = {}  # a machine's host
        self._failures: list[Failure] = []
        self._sessions: dict[int, FleetSession] = {}
        self._numbers, self._unnamed = itertools.count(1), itertools.count(1)
        self._clock = UNKNOWN  # ours minus the scheduler's
        self._closed = False
        self._said: set[Failure] = set()
        me = weakref.ref(self)
        client.subscribe_topic(self._topic, lambda event: _hear(me, event))
        try:
            client.sync(self._open)
        except BaseException:
            self._closed = True
            client.unsubscribe_topic(self._topic)
            raise
        self._warn()

    # --- what starts a session on every host ---

    def trace(
        self,
        source: str,
        *,
        attach: Mapping[str, str | Sequence[str]] | Sequence[tuple[str, str]] = (),
        cflags: Sequence[str] = (),
        headers: str = "auto",
        **options: Unpack[SessionOptions],
    ) -> FleetSession:
        """Compile C on every host, attach it there, and return the running session; see ``Host.trace``.

        Files that the C includes are read here. ``pid``, ``cgroup``, ``uid`` and ``command`` are meant on each host.
        """
        return self._start("run", (parse(source, attach, cflags, headers),), options)

    def count(
        self, probe: Probes, *, by: Columns = None, where: str | None = None, **options: Unpack[SessionOptions]
    ) -> FleetSession:
        """Count events; see ``Host.count``."""
        ask("count", probe, columns=by, where=where)
        return self._start("count", (probe,), {"by": by, "where": where, **options})

    def stats(
        self, probe: Probes, value: str, *, by: Columns = None, where: str | None = None,
        **options: Unpack[SessionOptions],
    ) -> FleetSession:  # fmt: skip
        """Sum up a value; see ``Host.stats``."""
        ask("stats", probe, value=value, columns=by, where=where)
        return self._start("stats", (probe, value), {"by": by, "where": where, **options})

    def hist(
        self, probe: Probes, value: str, *, by: Columns = None, where: str | None = None, kind: str = "log2",
        bins: Sequence[int] | None = None, **options: Unpack[SessionOptions],
    ) -> FleetSession:  # fmt: skip
        """Make a histogram of a value; see ``Host.hist``."""
        ask("hist", probe, value=value, columns=by, where=where, kind=kind, bins=bins)
        asked = {"by": by, "where": where, "kind": kind, "bins": bins}
        return self._start("hist", (probe, value), {**asked, **options})

    def latency(
        self, probe: Probes, *, by: Columns = None, where: str | None = None, **options: Unpack[SessionOptions]
    ) -> FleetSession:
        """Make a histogram of the time from entry to return; see ``Host.latency``."""
        ask("latency", probe, columns=by, where=where)
        return self._start("latency", (probe,), {"by": by, "where": where, **options})

    def rows(
        self, probe: Probes, columns: Columns = None, *, where: str | None = None, **options: Unpack[SessionOptions]
    ) -> FleetSession:
        """Report each event; see ``Host.rows``."""
        ask("rows", probe, columns=columns, where=where)
        return self._start("rows", (probe, columns), {"where": where, **options})

    def stacks(
        self, probe: Probes, *, by: Columns = None, where: str | None = None, kernel: bool = True, user: bool = True,
        **options: Unpack[SessionOptions],
    ) -> FleetSession:  # fmt: skip
        """Count stacks; see ``Host.stacks``."""
        ask("stacks", probe, columns=by, where=where, kernel=kernel, user=user)
        return self._start("stacks", (probe,), {"by": by, "where": where, "kernel": kernel, "user": user, **options})

    def start(self, verb: str, args: Sequence[Any], options: Mapping[str, Any]) -> FleetSession:
        """Start a session on every host, by a method of ``Host`` or a tool: "tools.opensnoop"."""
        return self._start(verb, args, options)

    # --- what there is ---

    @property
    def hosts(self) -> list[str]:
        """Return the names of the hosts that take part now."""
        return [member.host for member in self._present()]

    @property
    def failures(self) -> pd.DataFrame:
        """Return what could not be had: ``host`` (a worker's address where its host is not known), ``of`` (a session,
        or "" for the fleet), ``error`` (its class) and ``reason``; all text."""
        rows = [(each.host, each.of, each.error, each.reason) for each in self._failures]
        return pd.DataFrame(rows, columns=["host", "of", "error", "reason"], dtype=text_dtype())

    @property
    def clocks(self) -> pd.DataFrame:
        """Return how far each host's clock is from ours: ``host``, ``offset`` and ``error`` (timedelta64[ns]; positive
        offsets are ahead). What two hosts report is in no order that is finer than their errors together."""
        present = self._present()
        offsets = [self.clock_of(member) for member in present]
        return pd.DataFrame(
            {
                "host": pd.array([member.host for member in present], dtype=text_dtype()),
                "offset": pd.to_timedelta([each.offset_ns for each in offsets], unit="ns"),
                "error": pd.to_timedelta([min(each.error_ns, 1 << 62) for each in offsets], unit="ns"),
            }
        )

    def sessions(self) -> dict[str, FleetSession]:
        """Return the running sessions, by name."""
        return {session.name: session for session in self._sessions.values() if session.state == "running"}

    def close(self) -> None:
        """Stop all sessions, and end the tracers. Idempotent."""
        if not self._closed:
            self._closed = True
            if self.client.status == "running":
                self.client.sync(self._close)

    def __enter__(self) -> Fleet:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        failed = len({each.host for each in self._failures if not each.of})
        more = f", {failed} cannot: see its failures" if failed else ""
        names = printable(", ".join(self.hosts[:8])) + (", ..." if len(self.hosts) > 8 else "")
        return f"<Fleet of {len(self.hosts)} hosts: {names}{more}>"

    # --- for its sessions ---

    async def each(self, addresses: Collection[str], what: str, *args: Any) -> dict[str, Any]:
        """Have agents do something; return what each answers, or the exception. A worker that is gone has no answer."""
        there = await self._there()
        addresses = [address for address in addresses if address in there]
        if not addresses:
            return {}
        answers = await self.client.run(agent.perform, self.id, what, args, workers=addresses, on_error="return")
        lost = [address for address, answer in answers.items() if isinstance(answer, OSError)
                and not isinstance(answer, BpfnbError)]  # fmt: skip
        there = await self._there() if lost else there
        return {address: answer for address, answer in answers.items() if address not in lost or address in there}

    def member(self, address: str) -> Member:
        return self._members[address]

    def clock_of(self, member: Member) -> Offset:
        """Return a host's clock minus ours."""
        return Offset(member.clock.offset_ns - self._clock.offset_ns, member.clock.error_ns + self._clock.error_ns)

    def fail(self, host: str, of: str, error: BaseException | str, *, said: bool = False) -> None:
        """Note that a host cannot, once. ``said``: who does, warns of it."""
        kind = "" if isinstance(error, str) else type(error).__name__
        failure = Failure(host, of, kind, str(error) or kind)
        if failure not in self._failures:
            self._failures.append(failure)
            self._said |= {failure} if said else set()

    def take(self, address: str, data: bytes) -> None:
        """Take a host's report."""
        member, report = self._members.get(address), msgspec.msgpack.decode(data, type=HostSums)
        if member is None:
            return
        member.heard, member.clock = time.time(), Offset(report.offset_ns, report.error_ns)
        member.reports += 1
        for sums in report.sessions:
            session = self._sessions.get(sums.session)
            if session is None or not session.hear(member, report, sums):
                early = member.early.setdefault(sums.session, [])
                early.append((report, sums))
                del early[:-_EARLY]

    async def hear_all(self, reports: Mapping[str, bytes]) -> None:
        """Take reports that were asked for, and wait for those that hosts had sent by themselves before."""
        numbers = {address: msgspec.msgpack.decode(data, type=HostSums).number for address, data in reports.items()}
        for address, data in reports.items():
            self.take(address, data)
        deadline = time.monotonic() + _HEAR_TIMEOUT
        while any(self._members[a].reports < n for a, n in numbers.items()) and time.monotonic() < deadline:
            await asyncio.sleep(0.01)

    # --- on the client's loop ---

    async def _open(self) -> None:
        self._joining = asyncio.Lock()
        self._clock = await measure(self.client.scheduler)
        await self._join(await self._there())
        self._task = asyncio.ensure_future(_watch(weakref.ref(self)))

    async def _close(self) -> None:
        self._task.cancel()
        present = self._present()
        if self._sessions and present:
            numbers = [number for number, session in self._sessions.items() if session.state == "running"]
            await asyncio.gather(*(self._sessions[number].end() for number in numbers))
        there = await self._there()
        if here := [member.address for member in present if member.address in there]:
            await self.client.run(agent.detach, self.id, workers=here, on_error="ignore")
        for member in present:
            member.lease = None
            member.left = True
        self.client.unsubscribe_topic(self._topic)

    async def _there(self) -> set[str]:
        return set(await self.client.scheduler.ncores())

    async def look(self) -> None:
        """Find out who has come and who has gone."""
        there = await self._there()
        gone = [member for member in self._present() if member.address not in there]
        for member in gone:
            member.left, member.lease = True, None
            for session in list(self._sessions.values()):
                session.leave(member)
        for address in set(self._workers) - there:
            del self._workers[address]
        new = there - set(self._workers)
        if new or gone:
            await self._join(new)

    async def _join(self, addresses: Collection[str]) -> None:
        """Ask workers which machine they are on, and have an agent on each machine that has none."""
        async with self._joining:
            await self._identify([address for address in addresses if address not in self._workers])
            held = {self._workers[m.address].machine for m in self._present() if self._workers.get(m.address)}  # type: ignore[union-attr]
            machines: dict[str, list[str]] = {}
            for address, identity in sorted(self._workers.items()):
                if identity and identity.machine not in held:
                    machines.setdefault(identity.machine, []).append(address)
            joined = await asyncio.gather(*(self._elect(found) for found in machines.values()))
            addresses = [member.address for member in joined if member]
            for session in list(self._sessions.values()):
                if session.state == "running" and addresses:
                    await session.begin(addresses)

    async def _identify(self, addresses: Collection[str]) -> None:
        if not addresses:
            return
        found = await self.client.run(agent.identify, self._machine, workers=list(addresses), on_error="return")
        for address in addresses:
            identity = found.get(address)
            self._workers[address] = None
            missing = _MISSING.search(str(identity)) if isinstance(identity, Exception) else None
            if missing:  # dask gives another exception with its text
                self.fail(address, "", "its bpfnb is older" if missing[1] else "bpfnb is not installed there")
            elif not isinstance(identity, Identity):
                self.fail(address, "", identity or "it did not answer")
            elif (identity.version, identity.build) != (release.version(), release.build()):
                mine, other = release.version(), identity.version
                what = f"{other} there, {mine} here" if mine != other else f"two builds of {mine}"
                self.fail(identity.name, "", f"another bpfnb: {what}")
            else:
                self._workers[address] = identity

    async def _elect(self, addresses: Sequence[str]) -> Member | None:
        """Have an agent on one of a machine's workers: on the first that takes it."""
        for address in addresses:
            identity = self._workers[address]
            assert identity
            member = Member(self._name(identity), address, identity.kernel)
            key = f"{self._topic}-lease-{secrets.token_hex(4)}"
            try:
                leases = await self.client.scatter({key: self.id}, workers=[address], direct=False, hash=False)
                member.lease = leases[key]
                spec = Spec(self.id, self._topic, key, self._launch)
                answer = (await self.client.run(agent.attach, spec, workers=[address], on_error="return"))[address]
                if not isinstance(answer, bytes):
                    raise answer
                self._members[address] = member
                self.take(address, answer)
                return member
            except (OSError, BpfnbError, KeyError, TimeoutError) as error:
                self.fail(member.host, "", error)
        return None

    def _name(self, identity: Identity) -> str:
        """Return what a machine is called: its hostname, and a number where another one has that."""
        if identity.machine not in self._names:
            taken = set(self._names.values())
            names = itertools.chain([identity.name], (f"{identity.name}-{n}" for n in itertools.count(2)))
            self._names[identity.machine] = next(name for name in names if name not in taken)
        return self._names[identity.machine]

    def _present(self) -> list[Member]:
        return sorted((m for m in self._members.values() if not m.left), key=lambda member: member.host)

    async def _measure(self) -> None:
        self._clock = await measure(self.client.scheduler)

    # --- starting ---

    def _start(self, verb: str, args: Sequence[Any], options: Mapping[str, Any]) -> FleetSession:
        if self._closed:
            raise ProgramError("this fleet is closed: make another one")
        options = dict(options)
        name = options.pop("name", None)
        if name is not None:
            check_name(name)
        if verb == "run":
            check_options(options)
        others = self.sessions()
        name = name or next(free for n in self._unnamed if (free := f"bpf{n}") not in others)
        session = FleetSession(self, next(self._numbers), name, verb, args, {**options, "name": name})
        self.client.sync(self._begin, session)
        self._warn()
        if name in others:
            others[name].stop()
        return session

    async def _begin(self, session: FleetSession) -> None:
        await self.look()
        present = [member.address for member in self._present()]
        if not present:
            why = f": {self._failures[0].host}: {self._failures[0].reason}" if self._failures else ""
            raise SetupError(f"no host of this cluster can trace{why}")
        self._sessions[session.number] = session
        try:
            errors = await session.begin(present)
        except BaseException:
            self._sessions.pop(session.number, None)
            raise
        if len(errors) == len(present) or not session.parts:
            self._sessions.pop(session.number, None)
            self._failures = [each for each in self._failures if each.of != session.name]
            raise next(iter(errors.values())) if errors else SetupError("every host left as the session began")

    def early(self, member: Member, number: int) -> list[tuple[HostSums, SessionSums]]:
        """Return the reports of a session that came before it was entered."""
        return member.early.pop(number, [])

    def _warn(self) -> None:
        """Warn of hosts that cannot, of each once, in one line."""
        new = [each for each in self._failures if each not in self._said]
        self._said.update(new)
        if new:
            more = f" (and {len(new) - 1} more: see failures)" if len(new) > 1 else ""
            warnings.warn(
                printable(f"{new[0].host} takes no part: {new[0].reason}{more}"),
                RuntimeWarning,
                stacklevel=stack_level(),
            )


def _hear(fleet: weakref.ref[Fleet], event: tuple[float, Any]) -> None:
    """Take an event of dask's, on the client's loop."""
    mine, (_, message) = fleet(), event
    if mine is not None and isinstance(message, dict) and message.get("fleet") == mine.id:
        with suppress(msgspec.MsgspecError, KeyError, OverflowError):  # not a report of ours
            mine.take(message["of"], message["sums"])


async def _watch(fleet: weakref.ref[Fleet]) -> None:
    """Look after a fleet while anybody has it."""
    measured = time.monotonic()
    while True:
        await asyncio.sleep(_WATCH_EVERY)
        mine = fleet()
        if mine is None or mine.client.status in ("closing", "closed"):
            return
        try:
            await mine.look()
            if time.monotonic() - measured > _CLOCK_EVERY:
                measured = time.monotonic()
                await mine._measure()
        except OSError:
            pass  # the scheduler is away, or ends
        except Exception as error:
            mine.fail("", "", error)
        del mine
