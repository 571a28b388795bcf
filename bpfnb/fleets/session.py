"""A session that runs on every host of a fleet, as the client has it."""

from __future__ import annotations

import os
import re
import secrets
import time
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import dask
import dask.dataframe as dd
import pandas as pd
from dask.dataframe.utils import clear_known_categories

from bpfnb.errors import BpfnbError, ProgramError, escape, near_or_all, printable
from bpfnb.fleets import agent, tables
from bpfnb.fleets.agent import MapFacts, Started
from bpfnb.fleets.heard import Counts, FleetMeter
from bpfnb.fleets.sums import COUNTED, HostSums, OutputSums, SessionSums, unpack
from bpfnb.fleets.tables import HOST
from bpfnb.origins import stack_level
from bpfnb.results.answers import quantiles
from bpfnb.results.arguments import names_of
from bpfnb.results.columns.text import text_dtype
from bpfnb.results.rates import Life, interval
from bpfnb.results.snapshot import SessionState, Snapshot
from bpfnb.results.table import with_bars, with_escapes
from bpfnb.session.named import NamedMapping
from bpfnb.views import html
from bpfnb.views.live import live

if TYPE_CHECKING:
    from bpfnb.fleets.fleet import Fleet, Member
    from bpfnb.views.live.panel import Panel

__all__ = ["FleetMap", "FleetOutput", "FleetSession", "Part"]

_RING = 3500  # seconds of counts that the client has for certain


@dataclass
class Part:
    """A session on one host, while one worker has it: what was heard of it last."""

    host: str
    address: str
    kernel: str
    started: Started
    state: str = "running"
    reason: str = ""
    report: int = 0
    heard: float = 0.0
    outputs: dict[str, OutputSums] = field(default_factory=dict)
    refused: dict[str, int] = field(default_factory=dict)
    tables: dict[str, bytes] = field(default_factory=dict)
    tables_ns: int = 0
    unkept: str = ""

    @property
    def here(self) -> bool:
        """Whether its worker is there, and with it its rows."""
        return self.state not in ("left", "gone")

    def total(self, what: str) -> int:
        return sum(getattr(sums, what) for name, sums in self.outputs.items() if name != COUNTED)


class FleetSession:
    """One program on every host of a fleet. Rows stay on the hosts until they are asked for.

    ``name``     as given, or bpf1, bpf2, ...
    ``outputs``  every output by name; ``maps``: every map
    ``source``   the C that runs

    The client hears from each host once a second how many rows it has, when, and how many were lost. So ``rate``,
    ``rows``, ``lost`` and ``live`` ask nobody, and keep what a host has reported when it has left the cluster. Its rows
    are gone then, unless they were fetched. ``df`` of a one-liner or tool that counts, and maps, are kept as well, as
    they were reported last, up to 8 KiB each (compressed).
    """

    def __init__(
        self, fleet: Fleet, number: int, name: str, verb: str, args: Sequence[Any], options: Mapping[str, Any]
    ) -> None:
        self._fleet = fleet
        self.number = number
        self.name = name
        self._call = (verb, args, options)
        self.parts: list[Part] = []
        self._counts: dict[str, Counts] = {}
        self._began_ns = time.time_ns()
        self._ended_ns = 0
        self._stopped = False
        self._loss_said = False
        self._gone: list[Part] = []  # that were warned of

    # --- what it is ---

    @property
    def state(self) -> SessionState:
        """Return "running" while it runs on any host; "failed" where every host has left or lost its tracer."""
        states = {part.state for part in self.parts}
        if not self._stopped and (not states or "running" in states):
            return "running"
        return "stopped" if self._stopped or "stopped" in states else "failed"

    @property
    def reason(self) -> str:
        """Return why it ended, the most frequent reason of its hosts; "" while it runs."""
        reasons = Counter(part.reason for part in self.parts if part.reason)
        return "" if self.state == "running" or not reasons else reasons.most_common(1)[0][0]

    @property
    def source(self) -> str:
        return self._any().started.source

    @property
    def hosts(self) -> pd.DataFrame:
        """Return a row for each host: ``host``, ``state`` ("running", "stopped", "failed", "left"), ``rows``, ``lost``,
        ``dropped``, ``refused`` (updates of maps; all int64), ``kernel``, ``heard`` (when it reported last, UTC) and
        ``note``. A host that has left and come back has the sum of both."""
        rows: dict[str, dict[str, Any]] = {}
        for part in self.parts:
            row = rows.setdefault(part.host, {HOST: part.host, "rows": 0, "lost": 0, "dropped": 0, "refused": 0})
            for what in ("rows", "lost", "dropped"):
                row[what] += part.total(what)
            row["refused"] += sum(part.refused.values())
            row |= {"state": part.state, "kernel": part.kernel, "heard": part.heard, "note": _note(part)}
        columns = [HOST, "state", "rows", "lost", "dropped", "refused", "kernel", "heard", "note"]
        frame = pd.DataFrame(list(rows.values()), columns=columns)
        frame["heard"] = pd.to_datetime(frame["heard"], unit="s", utc=True)
        texts = dict.fromkeys([HOST, "state", "kernel", "note"], text_dtype())
        return with_escapes(frame.astype({**texts, **dict.fromkeys(columns[2:6], "int64")}))

    @property
    def rows(self) -> pd.Series[Any]:
        """Return how many rows each host has delivered to its worker (int64, by host), as it reported last."""
        return self.hosts.set_index(HOST)["rows"]

    @property
    def lost(self) -> pd.Series[Any]:
        """Return how many events each host has lost (int64, by host)."""
        return self.hosts.set_index(HOST)["lost"]

    @property
    def dropped(self) -> pd.Series[Any]:
        """Return how many rows each host has let go of, to stay within ``keep`` (int64, by host)."""
        return self.hosts.set_index(HOST)["dropped"]

    @property
    def failures(self) -> pd.DataFrame:
        """Return the hosts that take no part, or have left: see ``Fleet.failures``."""
        frame = self._fleet.failures
        return with_escapes(frame[frame["of"].isin(["", self.name])].reset_index(drop=True))

    @property
    def clocks(self) -> pd.DataFrame:
        """Return how far hosts' clocks are from ours, and how well that is known: see ``Fleet.clocks``."""
        return self._fleet.clocks

    @property
    def warnings(self) -> dict[str, list[str]]:
        """Return what there is to say of the program, and of which hosts."""
        found: dict[str, list[str]] = {}
        for part in self.parts:
            for text in part.started.warnings:
                found.setdefault(text, []).append(part.host)
        return found

    # --- its rows ---

    @property
    def df(self) -> dd.DataFrame:
        """Return the rows as they are now, as a dask DataFrame: ``host`` (category), then what ``Session.df`` has.

        A partition a host, made there and kept there until it is computed; dask lets go of it with the DataFrame. Rows
        of a host are in their order, and ``time`` is its own clock's: see ``clocks``. ProgramError for a session
        without rows.
        """
        return self._dask("")

    def head(self, n: int = 5) -> pd.DataFrame:
        """Return the first ``n`` rows of each host. Nothing else travels."""
        return self._head("", n)

    @property
    def outputs(self) -> Mapping[str, FleetOutput]:
        names = dict.fromkeys(name for part in self.parts for name in [*part.started.frames, *part.outputs] if name)
        found = {name: FleetOutput(self, name) for name in names}
        return NamedMapping(found, lambda name: f"{self.name} has no output {name!r}{near_or_all(name, found)}")

    @property
    def maps(self) -> Mapping[str, FleetMap]:
        found = {name: FleetMap(self, name, facts) for name, facts in self._any().started.maps.items()}
        return NamedMapping(found, lambda name: f"{self.name} has no map {name!r}{near_or_all(name, found)}")

    # --- reduced on the hosts ---

    def top(
        self, by: str | Sequence[str], n: int = 10, value: str | None = None, how: str = "sum",
        output: str | None = None,
    ) -> pd.DataFrame:  # fmt: skip
        """Return the largest ``n`` groups of all hosts: the columns of ``by``, of which ``host`` may be one, then
        "count", of rows; or of ``value`` the "sum", "max" or "min". Of a session whose ``df`` counts, "count" adds that
        up.

        Each host groups its rows; of more than 10,000 groups the largest travel, and ``attrs["left_out"]`` has how many
        rows were in the others.
        """
        names = names_of(by)
        if not names:
            raise ProgramError("top wants columns to group by")
        if how not in tables.AGGREGATES:
            raise ProgramError(f"hosts' groups are added up by {', '.join(tables.AGGREGATES)}, not {how!r}")
        counted = value is None and output is None and self._is_table
        asked = "count" if counted else value
        own = [name for name in names if name != HOST]
        args = (own, asked, how)
        found = self._ask("top", output or "", *args)
        found |= self._of_tables(output, lambda frame: tables.groups(frame, *args))
        name = "count" if value is None else how
        found = {host: replace(group, frame=group.frame.rename(columns={how: name})) for host, group in found.items()}
        return with_escapes(tables.add_groups(found, names, n, name))

    def hist(
        self, column: str | None = None, by: str | Sequence[str] | None = None, kind: str = "log2",
        bins: Sequence[float] | None = None, unit: str | None = None, output: str | None = None,
    ) -> pd.DataFrame:  # fmt: skip
        """Return a histogram of a column over all hosts: the columns of ``by``, of which ``host`` may be one, then
        ``low``, ``high``, ``label`` and ``count``, as ``df.bpf.hist`` has them; buckets without a value are left out.

        ``column``   None: of a session of ``hist`` or ``latency``, its table added up
        ``kind``     "log2"; "linear", with its edges as ``bins``: hosts have to have the same buckets
        """
        names = names_of(by)
        if column is None:
            return with_bars(self.reduced(by=names))
        if kind == "linear" and bins is None:
            raise ProgramError("linear buckets of several hosts need their edges: bins=[0, 10, 20]")
        own = [name for name in names if name != HOST]
        found = self._ask("hist", output or "", column, own, kind, None if bins is None else list(bins), unit)
        return with_bars(tables.summed(found, names))

    def reduced(self, by: str | Sequence[str] | None = None) -> pd.DataFrame:
        """Return ``df`` of a session that counts, added up over all hosts. ``by``: the columns that tell rows apart, of
        which ``host`` may be one; unless told all of ``df``'s. Means are those of all hosts."""
        if not self._is_table:
            raise ProgramError(f"{self.name} has rows: use top, hist or rate, or df")
        return with_escapes(tables.summed(self._tables(), None if by is None else names_of(by)))

    def quantiles(self, *shares: float, by: str | Sequence[str] | None = None) -> pd.DataFrame:
        """Return the buckets that quantiles of all hosts lie in, of a session of ``hist`` or ``latency``; with
        ``by="host"`` of each. See ``Session.quantiles``."""
        return with_bars(quantiles(pd.DataFrame(self.reduced(by)), shares))

    def rate(self, every: str = "1s", by: str | Sequence[str] | None = None, output: str | None = None) -> pd.DataFrame:
        """Return events per second in intervals of ``every`` of our clock, indexed by time: the column "rate"; with
        ``by`` one for each value, of several for each tuple. ``by="host"``: a column a host.

        Of whole seconds by host or in sum, the client knows them of the last hour, hosts that have left included. Else
        the hosts count the rows that they keep.
        """
        names = names_of(by)
        step = interval(every)
        chosen = self._main(output)
        counts = self._counts.get(chosen)
        whole = step == step.floor("s") and set(names) <= {HOST}
        if whole and time.time_ns() - self._began_ns < _RING * 10**9:
            return (counts or Counts()).rates(int(step.total_seconds()), bool(names))
        if chosen == COUNTED:
            raise ProgramError(f"{self.name} counts in maps: its rate is of whole seconds, in sum or by host")
        own = [name for name in names if name != HOST]
        offsets = {
            part.address: self._fleet.clock_of(self._fleet.member(part.address)).offset_ns for part in self._here()
        }
        found: dict[str, pd.DataFrame] = {}
        for offset in set(offsets.values()):  # each host has its own
            some = [address for address, mine in offsets.items() if mine == offset]
            found |= self._ask("rate", output or "", every, own, offset, of=some)
        return tables.add_rates(found, every, names)

    def live(self, by: str | None = HOST, output: str | None = None, window: float = 60.0) -> Panel:
        """Show a panel: events per second, a line a host (the ten with the most; in the panel up to 20), or with
        ``by=None`` their sum; and the session's numbers. It draws what hosts report once a second."""
        from bpfnb.fleets.panel import Watched

        watched: Any = Watched(self, output)
        return live(*watched.specs(by, window))

    def meter(self, output: str, by: str | None, window: float) -> FleetMeter:
        """Return a counter of events per second of what was heard, as ``Session.meter`` does."""
        return FleetMeter(self._counts.setdefault(output, Counts()), by, window, self._life)

    # --- ending ---

    def stop(self) -> None:
        """Stop it on every host, and hear what they had to say last. Idempotent."""
        if self.state == "running":
            self._fleet.client.sync(self.end)
        self._stopped = True

    def wait(self, seconds: float | None = None) -> bool:
        """Wait until it has ended on all hosts, at most so many seconds; return whether it has."""
        deadline = None if seconds is None else time.monotonic() + seconds
        while self.state == "running" and (deadline is None or time.monotonic() < deadline):
            time.sleep(0.1 if deadline is None else max(min(0.1, deadline - time.monotonic()), 0))
        return self.state != "running"

    def refresh(self) -> None:
        """Hear now what hosts have to report, instead of within a second."""
        self._fleet.client.sync(self._refresh)

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write a recording of each host, HOST.zip, into a folder; ``bpfnb.open`` opens one. They are made on the hosts
        and travel in pieces. ProgramError for a folder that exists, unless ``overwrite``."""
        folder = Path(path)
        if folder.exists() and not overwrite:
            raise ProgramError(f"{folder} exists: choose another path, or overwrite=True")
        sizes = self._ask("save")
        folder.mkdir(parents=True, exist_ok=True)
        for part in self._here():
            if part.host in sizes:
                self._fleet.client.sync(self._fetch, part, folder / f"{_file_name(part.host)}.zip")

    def __enter__(self) -> FleetSession:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def __repr__(self) -> str:
        frame = pd.DataFrame(self.hosts)[[HOST, "state", "rows", "lost"]]
        return printable(f"{self._title()}\n{frame.to_string(index=False)}", keep="\n")

    def _repr_html_(self) -> str:
        heads = ["host", "state", "rows", "lost", "kernel", "clock", ""]
        clocks: dict[str, Any] = {row.host: row for row in self.clocks.itertuples()}  # type: ignore[misc]
        cells = []
        each: Any = self.hosts.itertuples()
        for row in each:
            clock = clocks.get(row.host)
            apart = (
                f"{clock.offset.total_seconds() * 1e3:+.1f} ± {clock.error.total_seconds() * 1e3:.1f} ms"
                if clock
                else ""
            )
            cells.append([
                escape(row.host), html.badge(row.state), f"{row.rows:,}", html.lost_cell(row.lost),
                escape(row.kernel), html.muted(apart), html.muted(escape(row.note)),
            ])  # fmt: skip
        table = html.table(heads, cells, numbers=(2, 3))
        return html.card(f"<b>{escape(self._title())}</b>{table}")

    # --- on the client's loop ---

    async def begin(self, addresses: Collection[str]) -> dict[str, BaseException]:
        """Start it on hosts. Return the errors of those that cannot; they are among the fleet's failures."""
        answers = await self._fleet.each(addresses, "start", self.number, *self._call)
        errors: dict[str, BaseException] = {}
        for address, answer in answers.items():
            member = self._fleet.member(address)
            if isinstance(answer, Started):
                self.parts.append(Part(member.host, address, member.kernel, answer))
                for report, sums in self._fleet.early(member, self.number):
                    self.hear(member, report, sums)
            else:
                errors[address] = answer
                self._fleet.fail(member.host, self.name, answer)
        return errors

    async def end(self) -> None:
        answers = await self._fleet.each([part.address for part in self._here()], "stop", self.number)
        await self._take(answers)
        self._stopped = True
        self._ended_ns = self._ended_ns or time.time_ns()

    async def _refresh(self) -> None:
        await self._take(await self._fleet.each([part.address for part in self._here()], "report"))

    async def _fetch(self, part: Part, path: Path) -> None:
        """Write what a host has saved, a piece at a time."""
        at = 0
        with path.open("wb") as file:
            while True:
                answer = (await self._fleet.each([part.address], "piece", self.number, at)).get(part.address)
                if not isinstance(answer, bytes):
                    raise (
                        answer
                        if isinstance(answer, BpfnbError)
                        else ProgramError(f"{part.host} left: {path} is cut short")
                    )
                if not answer:
                    return
                file.write(answer)
                at += len(answer)

    async def _take(self, answers: Mapping[str, Any]) -> None:
        for address, answer in answers.items():
            if isinstance(answer, Exception):
                self._fleet.fail(self._fleet.member(address).host, self.name, answer)
        await self._fleet.hear_all({address: data for address, data in answers.items() if isinstance(data, bytes)})

    def hear(self, member: Member, report: HostSums, sums: SessionSums) -> bool:
        """Take what a host reports; False where it has no part yet."""
        part = next((part for part in reversed(self.parts) if part.address == member.address), None)
        if part is None:
            return False
        offset = self._fleet.clock_of(member).offset_ns
        for output in sums.outputs:  # these add up, whatever order they come in
            self._counts.setdefault(output.name, Counts()).add(part.host, output, offset)
        if report.number > part.report:
            part.report, part.heard = report.number, report.time_ns / 1e9
            part.state, part.reason, part.refused, part.unkept = sums.state, sums.reason, sums.refused, sums.unkept
            part.outputs.update({output.name: output for output in sums.outputs})
            part.tables.update(sums.tables)
            part.tables_ns = sums.tables_ns or part.tables_ns
            if self.state != "running":
                self._ended_ns = self._ended_ns or time.time_ns()
        return True

    def leave(self, member: Member) -> None:
        """A host's worker has left."""
        for part in self.parts:
            if part.address == member.address and part.here:
                part.state, part.reason = "left", "its worker left the cluster"
                self._fleet.fail(part.host, self.name, _note(part), said=True)
                if self.state != "running":
                    self._ended_ns = self._ended_ns or time.time_ns()

    # --- inside ---

    def _any(self) -> Part:
        if not self.parts:
            raise ProgramError(f"{self.name} runs on no host")
        return next((part for part in self.parts if part.here), self.parts[0])

    def _here(self) -> list[Part]:
        return [part for part in self.parts if part.here]

    @property
    def _is_table(self) -> bool:
        return self._any().started.table

    def _main(self, output: str | None) -> str:
        """Return the output whose events are counted: of ``df``, unless another is named."""
        if output is not None:
            return self.outputs[output].name
        if self._is_table:
            return COUNTED
        names = [name for part in self.parts for name in [*part.started.frames, *part.outputs] if name != COUNTED]
        if not names:
            raise ProgramError(self._any().started.no_df or f"{self.name} has no output")
        others = [name for name in names if name != "printk"]
        return (others or names)[0]

    def _ask(self, what: str, *args: Any, of: Collection[str] | None = None) -> dict[str, Any]:
        """Have hosts do something with this session; return their answers by host. An error that no host is without is
        raised once; hosts alone with theirs are among the failures."""
        self._say()
        addresses = [part.address for part in self._here() if of is None or part.address in of]
        answers = self._fleet.client.sync(self._fleet.each, addresses, what, self.number, *args)
        errors = {address: answer for address, answer in answers.items() if isinstance(answer, Exception)}
        if errors and len(errors) == len(answers):
            raise next(iter(errors.values()))
        for address, error in errors.items():
            self._fleet.fail(self._fleet.member(address).host, self.name, error)
        self._fleet._warn()
        hosts = {part.address: part.host for part in self.parts}
        return {hosts[address]: answer for address, answer in answers.items() if address not in errors}

    def _say(self) -> None:
        """Warn of lost events, and of hosts that have left, once each."""
        lost, gone = self.lost, [part for part in self.parts if not part.here and part not in self._gone]
        if lost.any() and not self._loss_said:
            self._loss_said = True
            names = ", ".join(f"{host}: {count:,}" for host, count in lost[lost > 0].items())
            self._tell(f"events of {self.name} were lost: {names}")
        self._gone += gone
        if gone:
            more = f" (and {len(gone) - 1} more)" if len(gone) > 1 else ""
            self._tell(f"{self.name} on {gone[0].host}: {_note(gone[0])}{more}")

    def _tell(self, text: str) -> None:
        warnings.warn(printable(text), RuntimeWarning, stacklevel=stack_level())

    def _names(self) -> list[str]:
        return list(dict.fromkeys(part.host for part in self.parts))

    def _dask(self, output: str) -> dd.DataFrame:
        self._say()
        hosts = self._names()
        meta = self._meta(output, hosts)
        parts: list[Any] = []
        for part in self._here():
            parts.append(self._fleet.client.submit(
                agent.read_rows, self._fleet.id, self.number, output, part.host, hosts, pure=False,
                key=f"bpfnb-{self.name}-{part.host}-{secrets.token_hex(8)}",
                workers=[part.address], allow_other_workers=False,
            ))  # fmt: skip
        if not output and self._is_table:
            kept = {part.host: part for part in self.parts if not part.here and "" in part.tables}
            parts += [
                dask.delayed(tables.with_host(unpack(part.tables[""]), host, hosts)) for host, part in kept.items()
            ]
        if not parts:
            return dd.from_pandas(meta, npartitions=1)
        return dd.from_delayed(parts, meta=meta, verify_meta=False)

    def _meta(self, output: str, hosts: Sequence[str]) -> pd.DataFrame:
        """Return an empty frame with the columns; categories but ``host``'s are not known before rows are computed."""
        frame = next((part.started.frames[output] for part in self.parts if output in part.started.frames), None)
        if frame is None:
            found = self._fleet.client.sync(
                self._fleet.each, [p.address for p in self._here()], "describe", self.number
            )
            for part in self._here():
                if isinstance(found.get(part.address), Started):
                    part.started = found[part.address]
            frame = next((part.started.frames[output] for part in self.parts if output in part.started.frames), None)
        if frame is None:
            raise ProgramError(self._any().started.no_df or f"{self.name} has no rows")
        meta = tables.with_host(frame, hosts[0], hosts)
        others = [name for name in meta if name != HOST and isinstance(meta[name].dtype, pd.CategoricalDtype)]
        return clear_known_categories(meta, cols=others) if others else meta

    def _head(self, output: str, n: int) -> pd.DataFrame:
        hosts = self._names()
        found = self._ask("rows", output, n)
        found |= self._of_tables(output or None, lambda frame: frame.head(n))
        frames = [tables.with_host(found[host], host, hosts) for host in hosts if host in found]
        whole = pd.concat([_as_text(frame) for frame in frames], ignore_index=True) if frames else pd.DataFrame()
        errors = self.clocks["error"]
        whole.attrs = {"clock_error": errors.max() if len(errors) else pd.NaT}
        return with_escapes(whole)

    def _tables(self) -> dict[str, pd.DataFrame]:
        """Return ``df`` of each host: of those that have left, as they reported it last."""
        return self._of_tables(None, lambda frame: frame) | self._ask("rows", "", 1 << 62)

    def _of_tables(self, output: str | None, reduce: Callable[[pd.DataFrame], Any]) -> dict[str, Any]:
        """Reduce the tables of hosts that have left, where it has a table."""
        if output is not None or not self._is_table:
            return {}
        left = [part for part in self.parts if not part.here and "" in part.tables]
        here = {part.host for part in self._here()}
        return {part.host: reduce(unpack(part.tables[""])) for part in left if part.host not in here}

    def _life(self) -> Life:
        ended = self.state != "running"
        return Life(self._began_ns, (self._ended_ns or time.time_ns()) if ended else time.time_ns(), ended)

    def snapshot(self) -> Snapshot:
        """Return the sums over hosts: what a panel shows."""
        outputs = [sums for part in self.parts for sums in part.outputs.values()]
        life = self._life()
        return Snapshot(
            name=self.name,
            state=self.state,
            rows=sum(sums.rows for sums in outputs),
            lost=sum(sums.lost for sums in outputs),
            dropped=sum(sums.dropped for sums in outputs),
            seconds=(life.now - life.began) / 1e9,
            probes=(),
            outputs=tuple((sums.name, sums.rows, sums.lost) for sums in outputs),
            reason=self.reason,
        )

    def _title(self) -> str:
        hosts = len(self._names())
        here = sum(part.state == "running" for part in self.parts)
        running = f", running on {here}" if self.state == "running" else ""
        return f"{self.name}: {self.state}, {hosts} host{'' if hosts == 1 else 's'}{running}"


class FleetOutput:
    """An output of a fleet's session. ``df``, ``head``, ``top``, ``hist`` and ``rate`` are as the session's."""

    def __init__(self, session: FleetSession, name: str) -> None:
        self.name = name
        self._session = session
        self.top = partial(session.top, output=name)
        self.hist = partial(session.hist, output=name)
        self.rate = partial(session.rate, output=name)

    @property
    def df(self) -> dd.DataFrame:
        return self._session._dask(self.name)

    def head(self, n: int = 5) -> pd.DataFrame:
        return self._session._head(self.name, n)

    def _sums(self, what: str) -> pd.Series[Any]:
        found: Counter[str] = Counter(dict.fromkeys(self._session._names(), 0))
        for part in self._session.parts:
            if self.name in part.outputs:
                found[part.host] += getattr(part.outputs[self.name], what)
        return pd.Series(dict(found), name=what, dtype="int64").rename_axis(HOST)

    @property
    def rows(self) -> pd.Series[Any]:
        return self._sums("rows")

    @property
    def lost(self) -> pd.Series[Any]:
        return self._sums("lost")

    def __repr__(self) -> str:
        return f"<FleetOutput {self.name}: {int(self.rows.sum()):,} rows, {int(self.lost.sum()):,} lost>"


class FleetMap:
    """A map of a fleet's session: one on each host. Of hosts that have left, as it was reported last."""

    def __init__(self, session: FleetSession, name: str, facts: MapFacts) -> None:
        self.name = name
        self.kind = facts.kind
        self._session = session
        self._facts = facts

    @property
    def df(self) -> pd.DataFrame:
        """Return all entries of all hosts: the columns of ``Map.df`` behind ``host``. They travel."""
        hosts = self._session._names()
        found = self._frames("")
        frames = [tables.with_host(found[host], host, hosts) for host in hosts if host in found]
        return with_escapes(pd.concat(frames, ignore_index=True) if frames else pd.DataFrame())

    def reduced(self, how: str = "sum") -> pd.DataFrame:
        """Return a row a key: values of all CPUs and hosts reduced by "sum", "max" or "min". Each host reduces its own
        first. Sums are 64 bits wide."""
        if how not in tables.AGGREGATES:
            raise ProgramError(f"a fleet's maps are reduced by {', '.join(tables.AGGREGATES)}, not {how!r}")
        return with_escapes(tables.merged(self._frames(how), self._facts.keys, self._facts.values, how))

    def _frames(self, how: str) -> dict[str, pd.DataFrame]:
        session = self._session
        left = {part.host: unpack(part.tables[self.name]) for part in session.parts
                if not part.here and self.name in part.tables}  # fmt: skip
        return left | session._ask("map", self.name, how)

    def __repr__(self) -> str:
        return f"<FleetMap {self.name}: {self.kind}, on {len(self._session._names())} hosts>"


def _note(part: Part) -> str:
    """Return what there is to know of a host that has left."""
    if part.here:
        return part.reason if part.state == "failed" else ""
    rows = part.total("rows")
    words = [f"its {rows:,} rows that were not fetched are gone, their counts stay"] if rows else []
    if part.tables:
        words.append(f"tables as of {pd.Timestamp(part.tables_ns, tz='UTC'):%H:%M:%S} UTC")
    words += [part.unkept] if part.unkept else []
    return "; ".join([part.reason, *words])


def _as_text(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a frame whose categories, which differ from host to host, are text; but for ``host``."""
    return pd.DataFrame({name: frame[name] if name == HOST else tables.plain(frame[name]) for name in frame})


def _file_name(host: str) -> str:
    return re.sub(r"[^\w.-]", "_", host).lstrip(".") or "host"
