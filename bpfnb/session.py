"""A running trace: what the kernel was asked, what came of it, and all it has answered so far."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from functools import partial
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import numpy.typing as npt
import pandas as pd

from bpfnb import views
from bpfnb.errors import BpfnbError, Diagnostic, MapError, ProgramError, TracerDied, near_or_all
from bpfnb.host.tracer import Listener, Tracer
from bpfnb.interrupts import Flag, new_lock, start_new_thread, undoing, uninterrupted
from bpfnb.language.program import Program
from bpfnb.protocol.messages import (
    CostsAdded,
    CountersAdded,
    Ended,
    Limits,
    Loaded,
    MapInfo,
    MapLost,
    MapRead,
    Noted,
    ProbeInfo,
    SegmentAdded,
)
from bpfnb.results import table
from bpfnb.results.cost import Costs, no_costs
from bpfnb.results.maps.map import Map
from bpfnb.results.maps.refusals import Counters
from bpfnb.results.output import Keep, Output
from bpfnb.results.snapshot import SessionState, Snapshot

if TYPE_CHECKING:
    from bpfnb.views.panel import Panel

__all__ = ["DETACH_TIMEOUT", "Session"]

Value = TypeVar("Value")


DETACH_TIMEOUT = 0.5  # seconds
_DECODE_TIMEOUT = 0.5  # seconds of a stop; what is left is decoded when somebody asks for it
_MAP_TIMEOUT = 15.0  # seconds; the tracer reads for ten
_EXIT_TIMEOUT = 1.0  # seconds
_STOPPED = "stopped"  # the reason, where nothing else ended it


class Session:
    """A trace, from attached to stopped. Made by ``bpfnb.trace`` or a ``%%bpf`` cell; used once.

    ``df``          the main output as a DataFrame: the first declared that something submits to, else printk
    ``outputs``     every output by name; bpf_trace_printk's is "printk"
    ``maps``        every map by name
    ``probes``      one entry a probe: .requested .attached .kind .note
    ``state``       "running", "stopped" or "failed" (the tracer died; what was collected remains)
    ``reason``      why it ended, in one line: "stopped" by ``stop``, or what else ended it; "" while it runs
    ``detaching``   whether it has stopped and the kernel is still letting go of what it was attached by
    ``lost``        events known lost, over all outputs
    ``cost``        what each program takes: runs, nanoseconds a run, share of a CPU, runs missed
    ``warnings``    about the cell: "note"s on additions to maps that are not exact, functions nothing attaches, the
                    compiler's; notes when another session was replaced, and on what befell it while it ran (another
                    process read its lines, say); as bpfnb.errors.Diagnostic
    ``program``     the parsed cell
    """

    def __init__(
        self,
        name: str,
        program: Program,
        keep: int,
        connect: Callable[[], Tracer],
        let_go: Callable[[Session], None] = lambda session: None,
    ) -> None:
        self.name = name
        self.program = program
        self.state: SessionState = "starting"
        self.reason = ""
        self.probes: tuple[ProbeInfo, ...] = ()
        self.warnings: tuple[Diagnostic, ...] = ()
        self._keep = Keep(keep)
        self._outputs: dict[str, Output] = {}
        self._maps: dict[str, Map] = {}
        self._notes: tuple[str, ...] = ()
        self._counters: Counters | None = None
        self._costs: Costs | None = None
        # The maps' entries at the end, or why they are not there; those in ``_behind`` may still be on their way.
        self._final: dict[str, tuple[int, bytes] | MapError] = {}
        self._behind: frozenset[str] = frozenset()
        self._connect = connect
        self._let_go = let_go  # called once it has ended, and again once it is detached
        self._tracer: Tracer | None = None
        self._number = 0
        self._origin: Hashable = None  # the line an unnamed one was started from
        self._unnamed = False
        self._ended = Flag()
        self._detached = Flag()
        self._stopping = new_lock()  # held while it is started and while it is stopped
        self._ending = new_lock()
        self._abandoned = False  # its starter was interrupted: nobody has it, and it is stopped
        self._error: TracerDied | None = None
        self._started = time.monotonic()
        self._finished: float | None = None

    # --- what it delivered ---

    @property
    def df(self) -> pd.DataFrame:
        """The main output so far, a DataFrame of its own. ProgramError when the cell has no output."""
        return self._main().df

    @property
    def outputs(self) -> Mapping[str, Output]:
        """Every output by name. KeyError, with near names, for one that is not there."""
        return _Named(self._outputs, self._why_no_output)

    @property
    def maps(self) -> Mapping[str, Map]:
        """Every map by name; of a stopped session, as they were at its end. KeyError for one that is not there."""
        return _Named(self._maps, self._why_no_map)

    @property
    @uninterrupted
    def lost(self) -> int:
        """Events known lost, over all outputs."""
        return sum(output.lost for output in list(self._outputs.values()))

    @property
    def cost(self) -> pd.DataFrame:
        """What the session's programs take, a row each; since it started, brought up to date a few times a second.

        ``program``     the function's name (str)
        ``runs``        how often it ran while it was timed (Int64). The kernel times programs only when told to, and
                        is told so for about 40 ms of each second, in short windows at random moments: these are not
                        all runs.
        ``ns_per_run``  nanoseconds of one, interruptions included (float64)
        ``cpu_share``   of the time it was timed, that it ran: 1.0 is one CPU (float64)
        ``missed``      runs the kernel left out because a program was running on that CPU already: events it never saw.
                        Of all the time, as far as the kernel counts them: not those at a tracepoint that a program on
                        another tracepoint has hit itself (Int64).

        What is not known is NA: of the first three where the tracer lacks CAP_SYS_ADMIN (Linux 5.8 or newer), until
        the first window, and of ``ns_per_run`` without a run; ``missed`` before Linux 5.12, of ``profile``,
        ``software`` and ``hardware`` always, and of kprobes, uprobes and tracepoints before 6.7.

        The time is the kernel's own (bpf_prog_info.run_time_ns), of a program from its first instruction to its last:
        without what it takes to reach it. A program called by another, as a tail call, counts as the one that called.

        ``attrs["seconds"]``: how long programs were timed. ``attrs["tracer"]``: the share of a CPU that the tracer
        takes to read the session's events. ``attrs["memory"]``: bytes in the kernel, of its maps and buffers.
        ``attrs["trap_ns"]``: for programs that only uprobes run, the nanoseconds that the uprobe's trap takes at least,
        as measured on this machine, for each run.

        The kernel's statistics slow every BPF program of the machine while they are on, by some 20 ns a run.
        """
        return self._costs.frame() if self._costs else no_costs()

    def rate(self, every: str = "1s", by: str | Sequence[str] | None = None) -> pd.DataFrame:
        """Events per second (float64) of the main output, in intervals of ``every``, indexed by time (UTC).

        One column for each value of column ``by`` ("comm", "pid", ...), else the column "rate". ProgramError for a
        session without output, ValueError for an unknown column or interval.
        """
        return table.rate(self.df, every, by)

    def live(self, by: str | None = None) -> Panel:
        """Show a panel: the rate over the last minute, Pause and Stop; with ``by`` a line for each value of it.

        ProgramError for a session without output, ValueError for an unknown column.
        """
        return views.live(self, by=by)

    def meter(self, by: str | None = None) -> table.RateMeter:
        """Events per second of the main output, kept up to date cheaply: what a panel draws."""
        names = self._main().names
        if by is not None and by not in names:
            raise ValueError(f"no column {by!r}: there are {', '.join(names)}")
        return table.RateMeter(self._since, by)

    @uninterrupted
    def snapshot(self) -> Snapshot:
        outputs = tuple((name, output.rows, output.lost) for name, output in list(self._outputs.items()))
        return Snapshot(
            name=self.name,
            state=self.state,
            rows=sum(rows for _, rows, _ in outputs),
            lost=sum(lost for _, _, lost in outputs),
            dropped=sum(output.dropped for output in list(self._outputs.values())),
            seconds=(self._finished or time.monotonic()) - self._started,
            probes=self.probes,
            outputs=outputs,
            reason=self.reason,
            maps=tuple((name, map_.info.kind, map_.lost) for name, map_ in self._maps.items()),
            pins=tuple((name, map_.info.pinned) for name, map_ in self._maps.items() if map_.info.pinned),
            cost=self._costs.line() if self._costs else "",
            notes=(
                *(w.message for w in self.warnings if w.severity == "note" and not w.line),
                *self._notes,
                *(entries.message for entries in list(self._final.values()) if isinstance(entries, MapError)),
            ),
        )

    # --- its life ---

    def wait(self, seconds: float | None = None) -> bool:
        """Wait until the session ends, at most so many seconds. Whether it has ended. Ctrl-C interrupts the wait."""
        return self._ended.wait(seconds)

    @uninterrupted
    def stop(self) -> None:
        """Take the programs off and take in what was still on its way. Safe to call again, from any thread.

        Ctrl-C interrupts the wait only: the session stops all the same.

        On return no program runs. The kernel lets go of many tracepoints slowly: that is waited for half a second, and
        then goes on behind (``detaching``).
        """
        self._stop(DETACH_TIMEOUT)

    def _stop(self, patience: float) -> None:
        with self._stopping:
            if self.state == "running" and self._tracer:
                try:
                    reply = self._tracer.stop(self._number)
                except TracerDied:
                    return  # on_death said the rest
                if not reply.detaching:
                    self._detached.set()
                self._behind = frozenset(reply.maps)
                self._end("stopped", _STOPPED)
        if self.detaching:
            self._detached.wait(patience)

    @property
    def detaching(self) -> bool:
        """Whether it has stopped, and the kernel is still letting go of what it was attached by; nothing runs."""
        return self.state == "stopped" and not self._detached.is_set()

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is SystemExit:  # the process is leaving: a tracer that does not answer does not keep it
            start_new_thread(undoing, (self._stop, 0))
            self._ended.wait(_EXIT_TIMEOUT)
        else:
            self.stop()

    def __repr__(self) -> str:
        from bpfnb.views.html import session_text

        return session_text(self.snapshot())

    def _repr_html_(self) -> str:
        from bpfnb.views.html import session_card

        return session_card(self.snapshot())

    # --- inside ---

    def _run(self, limits: Limits) -> None:
        tracer = self._tracer = self._connect()
        try:
            self._number = tracer.load(self.program, _Hearing(self), limits, self._keep.bytes)
        except BaseException as error:
            self._outputs.clear()  # an error's traceback may keep this session, but not its shared memory
            if isinstance(error, BpfnbError):
                self.program.line_map.error(error)
            raise

    def _end(self, state: SessionState, reason: str) -> None:
        with self._ending:
            if self.state not in ("stopped", "failed"):  # it may have ended otherwise while it was being stopped
                self._take_leave(state, reason)
        self._ended.set()

    def _take_leave(self, state: SessionState, reason: str) -> None:
        deadline = time.monotonic() + _DECODE_TIMEOUT
        for output in list(self._outputs.values()):  # which who could not start it lets go of at the same time
            output.finish(deadline)
        if self._counters:
            self._counters.keep()
        if self._costs:
            self._costs.keep()
        self.reason = reason
        self.state = state
        self._finished = time.monotonic()
        self._let_go(self)

    def _last_entries(self, name: str) -> tuple[int, bytes] | MapError | None:
        """A map's entries at the end, waited for where it was so large that it is read behind ``stop``."""
        deadline = time.monotonic() + _MAP_TIMEOUT
        while name in self._behind and name not in self._final and time.monotonic() < deadline:
            time.sleep(0.01)
        if name in self._behind and name not in self._final:
            return MapError(f"the map {name} has not been read yet")
        return self._final.get(name)

    def _refused(self, info: MapInfo) -> dict[int, int]:
        return self._counters.of(info) if self._counters else {}

    def _main(self) -> Output:
        declared = [output.name for output in self.program.outputs]
        for name in [*declared, "printk"]:
            if name in self._outputs:
                return self._outputs[name]
        if declared:
            raise ProgramError(self._why_no_output(declared[0]))
        maps = [f"{self._variable}.maps[{name!r}].df" for name in self._maps]
        kept = f"; its results are in maps: {', '.join(maps)}" if maps else ""
        raise ProgramError(f"{self.name} has no output: its C neither prints nor submits to one{kept}")

    @property
    def _variable(self) -> str:
        """What to call this session in a line of Python: a name that was given is one of the notebook's."""
        return "session" if self._unnamed else self.name

    def _since(self, row: int, by: str | None) -> tuple[int, npt.NDArray[np.int64], pd.Categorical | None]:
        return self._main().since(row, by)

    def _why_no_output(self, name: str) -> str:
        if any(output.name == name for output in self.program.outputs):
            return f"output {name} is declared, but nothing in this cell submits to it"
        if any(declared.name == name for declared in self.program.maps):
            return f"{name} is a map, not an output: {self._variable}.maps[{name!r}]"
        declared = [output.name for output in self.program.outputs]
        return f"{self.name} has no output {name!r}{near_or_all(name, dict.fromkeys([*self._outputs, *declared]))}"

    def _why_no_map(self, name: str) -> str:
        if name in self._outputs:
            return f"{name} is an output, not a map: {self._variable}.outputs[{name!r}]"
        return f"{self.name} has no map {name!r}{near_or_all(name, self._maps)}"


class _Hearing(Listener):
    """What a session hears of its tracer."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def on_segment(self, message: SegmentAdded, fd: int) -> None:
        session = self._session
        output = session._outputs.get(message.output)
        if output is None and message.schema:
            kinds = {output.name: output.kind for output in session.program.outputs}
            kind = kinds.get(message.output, "printk")
            output = Output(message.output, message.schema, message.epoch_ns, session._keep, kind)
            session._outputs[message.output] = output
        if output:
            output.add_segment(message.layout, fd, message.epoch_ns)

    def on_loaded(self, message: Loaded) -> None:
        session = self._session
        place = session.program.line_map.diagnostic
        notes = tuple(map(place, message.notes))
        early = session.warnings
        session.probes = message.probes
        session.warnings = (*notes, *session.program.warnings, *map(place, message.warnings), *early)
        session._notes = tuple(f"line {note.line}: {note.message}" for note in notes)
        session._maps = {
            info.name: Map(
                info,
                _MapAccess(session, info.name),
                _only_sets(session.program.source, info.name),
                partial(session._refused, info),
                session.program.line_map.describe(info.line),
            )
            for info in message.maps
        }
        session._started = time.monotonic()
        session.state = "running"

    def on_counters(self, message: CountersAdded, fd: int) -> None:
        self._session._counters = Counters(message, fd)

    def on_costs(self, message: CostsAdded, fd: int) -> None:
        self._session._costs = Costs(message, fd)

    def on_map(self, message: MapRead, data: bytes) -> None:
        self._session._final[message.map] = message.count, data

    def on_map_lost(self, message: MapLost) -> None:
        self._session._final[message.map] = MapError(message.message)

    def on_ended(self, message: Ended) -> None:
        session = self._session
        if not message.detaching:
            session._detached.set()
        session._behind = frozenset(message.maps)
        session._end("stopped", message.reason)

    def on_note(self, message: Noted) -> None:
        session = self._session
        session.warnings += (Diagnostic(0, 0, "note", message.text),)
        for name, output in list(session._outputs.items()):
            if message.output in ("", name):
                output.note(message.text)

    def on_detached(self) -> None:
        self._session._detached.set()
        self._session._let_go(self._session)

    def on_death(self, error: TracerDied) -> None:
        session = self._session
        session._detached.set()
        for name in session._behind - set(session._final):
            session._final[name] = MapError(f"the map {name} had not been read when the tracer ended")
        if session.state == "stopped":
            return
        session._error = error
        session._end("failed", error.message)


def _only_sets(source: str, name: str) -> bool:
    """Whether all a cell's C does with a map is to set and delete whole entries, so that none changes in place."""
    methods = set(re.findall(rf"\b{re.escape(name)}\s*\.\s*(\w+)\s*\(", source))
    return bool(methods) and methods <= {"insert", "update", "delete"}


class _MapAccess:
    """How a Map reaches its entries: in the kernel while the session runs, and then as they were at its end."""

    def __init__(self, session: Session, name: str) -> None:
        self._session = session
        self._name = name

    @property
    def running(self) -> bool:
        return self._session.state == "running"

    def read(self) -> tuple[int, bytes]:
        session = self._session
        if not self.running:
            entries = session._last_entries(self._name)
            if entries is None:
                raise session._error or ProgramError(f"{session.name} ended before its map {self._name} could be read")
            if isinstance(entries, MapError):
                raise MapError(entries.message)
            return entries
        return self._tracer().read_map(session._number, self._name)

    def look_up(self, key: bytes) -> bytes | None:
        return self._tracer().look_up(self._session._number, self._name, key)

    def take(self, most: int = 0) -> tuple[int, bytes]:
        return self._tracer().take_map(self._session._number, self._name, most)

    def write(self, key: bytes, value: bytes | None) -> bool:
        return self._tracer().write_map(self._session._number, self._name, key, value)

    def open_counter(self, kind: str, event: str) -> None:
        self._tracer().open_counter(self._session._number, self._name, kind, event)

    def clear(self) -> None:
        self._tracer().clear_map(self._session._number, self._name)

    def symbols(self, pid: int, addresses: Sequence[int]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Names and modules of code addresses; asked of this notebook's tracer, which outlives its sessions."""
        return self._session._connect().find_symbols(pid, addresses)

    def _tracer(self) -> Tracer:
        if self._session.state != "running" or not self._session._tracer:
            raise ProgramError(f"{self._session.name} is {self._session.state}: its map {self._name} cannot be changed")
        return self._session._tracer


class _Named(Mapping[str, Value]):
    """A read-only mapping whose KeyError explains."""

    def __init__(self, values: dict[str, Value], why: Callable[[str], str]) -> None:
        self._values = MappingProxyType(values)
        self._why = why

    def __getitem__(self, name: str) -> Value:
        if name in self._values:
            return self._values[name]
        raise KeyError(self._why(name))

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return repr(dict(self._values))
