"""A session: one program that runs in the kernel, and all that it has delivered so far."""

from __future__ import annotations

import shlex
import signal
import socket
import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import TypeVar

import msgspec
import pandas as pd

from bpfnb import views
from bpfnb.command import Command
from bpfnb.errors import (
    BpfnbError,
    CompileError,
    Diagnostic,
    MapError,
    ProgramError,
    TracerDied,
    VerifierError,
    near_or_all,
)
from bpfnb.host.tracer import Tracer
from bpfnb.interrupts import Flag, new_lock, start_new_thread, undoing, uninterrupted
from bpfnb.language.program import Program
from bpfnb.protocol.messages import (
    Limits,
    MapInfo,
    ProbeInfo,
)
from bpfnb.recordings import talk
from bpfnb.recordings.reader import Recording
from bpfnb.recordings.running import RecordFailed, RunningRecording
from bpfnb.results import rates
from bpfnb.results.answers import quantiles
from bpfnb.results.arguments import names_of
from bpfnb.results.cost import Costs, no_costs
from bpfnb.results.events.rows import BUDGET, ROWS, RowsTable, Sample, require_limits, sample
from bpfnb.results.maps.drained import Drained
from bpfnb.results.maps.entries import Snapshot as MapSnapshot
from bpfnb.results.maps.frozen import Growing
from bpfnb.results.maps.kinds import GROWING
from bpfnb.results.maps.map import Map
from bpfnb.results.maps.refusals import Counters
from bpfnb.results.output import Keep, Output
from bpfnb.results.presentation import Presentation, Rows, Table
from bpfnb.results.snapshot import SessionState, Snapshot
from bpfnb.results.stream import Batches, Events, Source
from bpfnb.results.table import with_bars, with_escapes
from bpfnb.session.files import Files
from bpfnb.session.listener import SessionListener
from bpfnb.session.map_access import MapAccess
from bpfnb.session.named import NamedMapping
from bpfnb.session.pictures import Pictures
from bpfnb.session.queries import Queries
from bpfnb.session.saving import Saving, manifest_of

__all__ = ["DETACH_TIMEOUT", "Session"]

Value = TypeVar("Value")


DETACH_TIMEOUT = 0.5  # seconds
_DECODE_TIMEOUT = 0.5  # seconds of a stop; what is left is decoded when somebody asks for it
_MAP_TIMEOUT = 15.0  # seconds; the tracer reads for ten
_EXIT_TIMEOUT = 1.0  # seconds
_SAMPLE = 5  # rows on the card of a session that has ended
_STOPPED = "stopped"  # the reason, where nothing else ended it


class Session(Pictures, Queries, Files, Saving):
    """A running BPF program and its results. ``bpfnb.trace`` and ``%%bpf`` cells make sessions; each is used once.

    ``df``          the main output as a DataFrame: the first declared output that the cell submits to, else printk
    ``outputs``     every output by name; that of bpf_trace_printk is "printk"
    ``maps``        every map by name
    ``probes``      one entry a probe: .name .requested .attached .kind .note
    ``host``        the name of the host that it runs on; "" is this machine
    ``state``       "starting", "running", "stopped" or "failed" (the tracer died; what was collected remains)
    ``reason``      why it ended, in one line: "stopped" by ``stop``, or what else ended it; "" while it runs
    ``detaching``   whether it has stopped and the kernel is still detaching its probes
    ``lost``        events known to be lost, over all outputs
    ``cost``        what each program takes: runs, nanoseconds a run, share of a CPU, runs missed
    ``warnings``    bpfnb.errors.Diagnostic each: the compiler's warnings, functions that nothing attaches; with
                    severity "note" additions to maps that are not exact, that another session was replaced, and what
                    happened to the session while it ran (such as that another process read its lines)
    ``returncode``  the exit status of the session's command, negative for a signal; None while it runs, and without one
    ``program``     the parsed cell; ``source`` is its C
    ``recording``   of a session that is recorded while it runs: .path .rows .bytes .finished .failed .note; else None

    Leaving a ``with`` block stops the session. Results can be read while it runs and after it has stopped. Methods and
    properties may be used from any thread.
    """

    def __init__(
        self,
        name: str,
        program: Program,
        keep: int,
        connect: Callable[[], Tracer],
        on_end: Callable[[Session], None] = lambda session: None,
        presentation: Presentation | None = None,
        command: Command | None = None,
        recording: RunningRecording | None = None,
        record_failed: RecordFailed = "continue",
    ) -> None:
        self.name = name
        self.recording: RunningRecording | Recording | None = recording
        self._recorder = recording
        self._record_failed = record_failed
        self.host = ""
        self.returncode: int | None = None
        self._command = command
        self._words: Sequence[str] = command.words if command else ()
        if command:
            command.on_end = self._command_ended
        self.program = program
        self._presentation = presentation
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
        # The maps' entries at the end, or why they are not there; those of ``_pending`` may arrive after the stop.
        self._final_maps: dict[str, tuple[int, bytes] | MapError] = {}
        self._pending: frozenset[str] = frozenset()
        self._entries: dict[str, int] = {}  # of maps, as they were counted last
        self._connect = connect
        self._on_end = on_end  # called once it has ended, and again once it is detached
        self._tracer: Tracer | None = None
        self._number = 0
        self._origin: Hashable = None  # the line an unnamed one was started from
        self._unnamed = False
        self._ended = Flag()
        self._detached = Flag()
        self._stopping = new_lock()  # held while it is started and while it is stopped
        self._ending = new_lock()
        self._abandoned = False  # the call that started it was interrupted: nobody has it, and it is stopped
        self._error: TracerDied | None = None
        self._started = time.monotonic()
        self._finished: float | None = None

    # --- results ---

    @property
    def df(self) -> pd.DataFrame:
        """Return the session's result so far, as a new DataFrame: of a cell its main output, of a one-liner or a tool
        the columns it is documented to have. ProgramError where the cell has no output."""
        if self._presentation is None:
            return self._main().df
        if isinstance(self._presentation, Rows):
            return with_escapes(self._presentation.convert(self._main().df))
        return _shown(self._presentation, self.maps)

    def drain(self) -> pd.DataFrame:
        """Return ``df`` of what was counted since the last drain, of a session whose ``df`` is made of maps. Each count
        is in one of them; see Map.drain. ProgramError for a session that has rows, or a cell: drain its maps."""
        if not isinstance(self._presentation, Table):
            raise ProgramError(f"{self.name} has no table to drain: its maps can be drained, one by one")
        return _shown(self._presentation, Drained(self.maps, self._presentation.as_is))

    def growth(self) -> Callable[[], pd.DataFrame]:
        """Return a function that returns ``df`` of what was counted since its last call; with the first, all so far.
        Of a session whose ``df`` is made of maps. Nobody else sees anything of it, and no drain is changed by it.
        ``attrs["grown"]``: False of a table of what there is (memleak), which does not add up.

        ProgramError for a session that has rows, or a cell.
        """
        if not isinstance(table := self._presentation, Table):
            raise ProgramError(f"{self.name} has no table that grows")
        growing = Growing(self.maps, table.as_is)

        def grown() -> pd.DataFrame:
            frame = growing.read(table.compute)
            frame.attrs["grown"] = table.grows
            return with_escapes(frame)

        return grown

    @property
    def source(self) -> str:
        """Return the C that runs, as it was written or generated."""
        return self.program.cell or self.program.source

    @property
    def presentation(self) -> Presentation | None:
        """Return what makes ``df`` of the outputs and maps; None for a cell, whose main output is ``df`` as it is."""
        return self._presentation

    @property
    def main_output(self) -> Output:
        """Return the output that ``df`` is of. ProgramError where there is none."""
        return self._main()

    def output_with(self, *columns: str, output: str | None = None) -> Output:
        """Return the output that is named, else the one that has these columns: the main one, or the only one that has
        them all. ProgramError for a session without output, KeyError for an unknown output, ValueError for columns that
        none or several others have."""
        if output is not None:
            return self.outputs[output]
        main = self._main()
        return main if set(columns) <= set(main.names) else self._output_with(*columns)

    @property
    def outputs(self) -> Mapping[str, Output]:
        """Return every output by name. KeyError, with near names, for one that is not there."""
        return NamedMapping(self._outputs, self._why_no_output)

    @property
    def maps(self) -> Mapping[str, Map]:
        """Return every map by name; of a stopped session as at its end. KeyError for one that is not there."""
        return NamedMapping(self._maps, self._why_no_map)

    @property
    @uninterrupted
    def lost(self) -> int:
        """Return the number of events known to be lost, over all outputs."""
        return sum(output.lost for output in list(self._outputs.values()))

    @property
    def cost(self) -> pd.DataFrame:
        """Return what the session's programs have taken since it started: a row each, updated a few times a second.

        ``program``     name of the function (str)
        ``runs``        runs while the program was timed (Int64). The tracer has the kernel time programs for about
                        40 ms of each second, in short windows at random moments: these are not all runs.
        ``ns_per_run``  nanoseconds a run, interruptions included (float64)
        ``cpu_share``   share of the timed time that the program ran: 1.0 is one CPU (float64)
        ``missed``      runs that the kernel left out because a program was running on that CPU already (Int64): events
                        that the program never saw, over the whole time. The kernel does not count those at a tracepoint
                        that a program on another tracepoint hit itself.

        Unknown values are NA: ``runs``, ``ns_per_run`` and ``cpu_share`` where the tracer lacks CAP_SYS_ADMIN (Linux
        5.8 or newer), and until the first window; ``ns_per_run`` without a run; ``missed`` before Linux 5.12, of
        ``profile``, ``software`` and ``hardware`` always, and of kprobes, uprobes and tracepoints before 6.7.

        The time is the kernel's bpf_prog_info.run_time_ns: from a program's first instruction to its last, without what
        it takes to reach the program. A program that another one tail-calls counts as its caller.

        ``attrs["seconds"]``: how long programs were timed. ``attrs["tracer"]``: share of a CPU that the tracer takes to
        read the session's events. ``attrs["memory"]``: bytes of maps and buffers in the kernel. ``attrs["trap_ns"]``:
        for each program that only uprobes run, the least nanoseconds that the uprobe's trap takes for each run, as
        measured on this machine.

        While the kernel times programs, each run of any BPF program on the machine takes some 20 ns longer.
        """
        return self._costs.frame() if self._costs else no_costs()

    def rate(self, every: str = "1s", by: str | Sequence[str] | None = None, output: str | None = None) -> pd.DataFrame:
        """Return events per second (float64) of the rows of ``df``, in intervals of ``every``, indexed by time (UTC).

        One column for each value of column ``by`` ("comm", "pid", ...), else the column "rate". ``output``: of another
        output; where ``df`` has not all columns of ``by``, it is the one output that has them. ProgramError for a
        session without output, KeyError for an unknown output, ValueError for an unknown column or interval.
        """
        found: pd.DataFrame = self._asked(output, None, ["time", *names_of(by)]).rate(every, by)
        return found

    def __iter__(self) -> Events:
        """Return the rows of ``df`` as named tuples, as they come: first all that are kept, until the session has
        ended and none is left. ``for event in session`` does not stop the session, however it is left.

        Rows come within about 50 ms, in the order in which they arrive; those that arrive together by time. Several
        loops, also in several threads, each get all rows. A loop that is slow leaves rows waiting within ``keep``;
        beyond it the oldest are dropped, counted (``iter(session).dropped``) and warned of once.

        A field has its column's name, with ``_`` for what a name may not hold (``slots[0]`` is ``slots_0_``), behind a
        keyword ``_``, and before a digit or ``_`` an ``x``. Values are int, float, bool, str, bytes, Timestamp and
        Timedelta. Missing ones are None, but a float's nan. ProgramError for a session without rows.
        """
        return Events(self._source(None))

    def stream(self, output: str | None = None, every: str = "100ms", new: bool = False) -> Batches:
        """Return an iterator of DataFrames, each with the rows that are new: at once those kept, then every ``every``
        (a pandas interval of at least 1ms) those that have come, if any, until the session has ended and none is left.

        ``output``   an output's name; None: the rows of ``df``
        ``new``      begin with the next row, not with the oldest kept

        Rows are sorted by time within each frame. ``attrs["lost"]`` counts the events lost so far, and
        ``attrs["dropped"]`` the rows that this iterator missed because it was slow: they wait within ``keep``, then the
        oldest are dropped; that is warned of once. Several iterators each get all rows. Leaving the loop does not stop
        the session.

        ProgramError for a session without rows, KeyError for an unknown output, ValueError for what is no interval.
        """
        return Batches(self._source(output), every, new)

    def quantiles(self, *shares: float) -> pd.DataFrame:
        """Return the buckets that quantiles lie in, of a session of ``hist`` or ``latency``: ``quantiles(.5, .99)``.

        A row for each group of ``by`` and quantile: the columns of ``by``, ``quantile`` (float64), and ``low``,
        ``high`` and ``label`` of its bucket, as in ``df``. ProgramError for other sessions.
        """
        return with_bars(quantiles(self.df, shares))

    def meter(self, by: str | None = None, output: str | None = None, window: float = 60.0) -> rates.RateMeter:
        """Return a counter of an output's events per second that is cheap to update: what a panel draws.

        ``output``: by default the main one, or where that has no column ``by`` the one that has it. ``window``: how
        many seconds it is for. ProgramError for a session without output, KeyError for an unknown output, ValueError
        for an unknown column.
        """
        chosen = self._main() if output is None else self.outputs[output]
        if by is not None and by not in chosen.names:
            if output is not None:
                raise ProgramError(
                    f"output {output} has no column {by!r}{near_or_all(by, dict.fromkeys(chosen.names))}"
                )
            chosen = self._output_with(by)
        return rates.RateMeter(chosen.since, by, window, life=partial(self._life, chosen))

    def _output_with(self, *columns: str, known: Iterable[str] = ()) -> Output:
        """Return the one output that has these columns. ``known``: further ones that a message names."""
        self._main()  # its errors come first
        having = [output for output in list(self._outputs.values()) if set(columns) <= set(output.names)]
        if len(having) == 1:
            return having[0]
        if having:
            names = " or ".join(f"output={output.name!r}" for output in having)
            raise ProgramError(f"several outputs of {self.name} have a column {columns[0]!r}: choose one, {names}")
        there = dict.fromkeys([*known, *(name for output in list(self._outputs.values()) for name in output.names)])
        missing = next((column for column in columns if column not in there), columns[0])
        raise ProgramError(f"no column {missing!r} in {self.name}{near_or_all(missing, there)}")

    def _life(self, output: Output) -> rates.Life:
        """Return since when an output was written, and until when, on the clock of its times."""
        to_clock = output.now() - time.monotonic_ns()
        finished = self._finished is not None  # first: what is found to have ended has all its time
        began = int(self._started * 1e9) + to_clock
        return rates.Life(began, int(self._present() * 1e9) + to_clock, finished)

    @property
    def elapsed(self) -> float:
        """Return for how long it has run, in seconds."""
        return self._present() - self._started

    def now(self) -> float:
        """Return the present by the clock of the session, in seconds since 1970; of a recording when that was."""
        return time.time()

    def _present(self) -> float:
        """Return CLOCK_MONOTONIC in seconds: now, or when it ended."""
        return self._finished or time.monotonic()

    @uninterrupted
    def snapshot(self, count: bool = False) -> Snapshot:
        """Return the session's numbers at this moment, as one frozen value: what cards and panels show.

        ``count``: count the entries of its maps before, of those that grow. That reads them all; of a session that has
        ended they are known.
        """
        if count:
            self._count_entries()
        outputs = tuple((name, output.rows, output.lost) for name, output in list(self._outputs.items()))
        return Snapshot(
            name=self.name,
            state=self.state,
            rows=sum(rows for _, rows, _ in outputs),
            lost=sum(lost for _, _, lost in outputs),
            dropped=sum(output.dropped for output in list(self._outputs.values())),
            seconds=self.elapsed,
            probes=self.probes,
            outputs=outputs,
            reason=self.reason,
            maps=tuple((name, map_.info.kind, map_.lost) for name, map_ in self._maps.items()),
            entries=self._known_entries(),
            newest=self._newest(),
            pins=tuple((name, map_.info.pinned) for name, map_ in self._maps.items() if map_.info.pinned),
            cost=self._costs.line() if self._costs else "",
            shares=self._costs.shares() if self._costs else None,
            filters=self._filters(),
            title=self._presentation.title if self._presentation else "",
            recording=str(self._recorder or ""),
            recorded=self._recorded(),
            host=self.host,
            notes=(
                *(w.message for w in self.warnings if w.severity == "note" and not w.line),
                *self._notes,
                *(entries.message for entries in list(self._final_maps.values()) if isinstance(entries, MapError)),
            ),
        )

    def _newest(self) -> Sample | None:
        """Return the last rows of ``df``, once the session has ended. Before, taking them would decode them all."""
        if self.state in ("starting", "running") or isinstance(self._presentation, Table) or not self._ended.is_set():
            return None
        try:
            rows = self._main().newest(_SAMPLE)
        except ProgramError:  # a cell without an output
            return None
        return sample(self._presentation.convert(rows) if self._presentation else rows, _SAMPLE) if len(rows) else None

    def table(self, output: str | None = None, rows: int = ROWS, budget: int = BUDGET) -> RowsTable:
        """Return the newest rows of ``df``, or of an output, to look at: sorted and searched on the page.

        At most ``rows`` of them, and ``budget`` bytes of the notebook's file: see ``df.bpf.table``. ProgramError where
        the cell has no output, ValueError for numbers below 1; an unknown output is a KeyError.
        """
        require_limits(rows, budget)
        if output is not None:
            return self.outputs[output].table(rows, budget)
        if isinstance(self._presentation, Table):
            return RowsTable(self.df, rows, budget)
        newest = self._main().newest(rows)
        shown = self._presentation.convert(newest) if self._presentation else newest
        return RowsTable(shown, rows, budget, of=self._main().rows)

    # --- starting and stopping ---

    def wait(self, seconds: float | None = None) -> bool:
        """Wait until the session ends, at most so many seconds; return whether it has. Ctrl-C interrupts the wait.

        Its recording is whole then."""
        ended = self._ended.wait(seconds)
        if ended and self._recorder:
            self._recorder.wait()
        return ended

    @uninterrupted
    def stop(self) -> None:
        """Detach the programs and collect what they had delivered. Idempotent, and for any thread.

        On return no program runs. The kernel takes long to detach many tracepoints: this waits half a second for it,
        and the kernel goes on afterwards (``detaching``). Its recording is whole. Ctrl-C interrupts the wait; the
        session stops all the same.
        """
        self._stop(DETACH_TIMEOUT)

    def _stop(self, timeout: float, reason: str = _STOPPED) -> None:
        """Stop it, and end its command."""
        try:
            self._detach(timeout, reason)
        finally:
            if self._command:
                self._command.end()
        if self._recorder:
            self._recorder.wait()

    def _detach(self, timeout: float, reason: str) -> None:
        with self._stopping:
            if self.state == "running" and self._tracer:
                try:
                    reply = self._tracer.stop(self._number)
                except TracerDied:
                    return  # on_death does the rest
                if not reply.detaching:
                    self._detached.set()
                self._pending = frozenset(reply.maps)
                self._end("stopped", reason)
        if self.detaching:
            self._detached.wait(timeout)

    @property
    def unfinished(self) -> bool:
        """Return whether it has stopped and its recording is still being finished."""
        return self._recorder is not None and not self._recorder.over

    @property
    def detaching(self) -> bool:
        """Return whether the session has stopped and the kernel is still detaching its probes. No program runs."""
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

    def _ipython_display_(self) -> None:
        """Show the card. A notebook's is kept up to date; elsewhere IPython shows the text."""
        if not views.show_card(self):
            raise NotImplementedError

    # --- inside ---

    def _run(self, limits: Limits) -> None:
        tracer = self._tracer = self._connect()
        follower = self._start_recorder()
        try:
            self._number = tracer.load(self.program, SessionListener(self), limits, self._keep.bytes, follower)
        except BaseException as error:
            if self._recorder:
                self._recorder.abandon()
            self._outputs.clear()  # the error's traceback may keep this session, but not its shared memory
            if isinstance(error, BpfnbError):
                self.program.line_map.error(error)
                if self._presentation and not isinstance(error, (CompileError, VerifierError)):
                    error.line = error.column = error.source = None  # nobody wrote its C
            raise
        finally:
            if follower:
                follower.close()

    def _start_recorder(self) -> socket.socket | None:
        """Start the process that records the session, if one is to: return what the tracer is to get."""
        if not self._recorder:
            return None
        units = self._presentation.units if isinstance(self._presentation, Rows) else {}
        return self._recorder.start(manifest_of(self), units, self._recording_failed)

    def _tell_recorder(self) -> None:
        """Tell the recorder what it cannot know."""
        if self._recorder:
            self._recorder.tell(talk.Update(self.name, tuple(self._words), self.returncode, self.warnings))

    def _recording_failed(self, why: str) -> None:
        if self.state not in ("starting", "running"):
            return
        self.warnings += (Diagnostic(0, 0, "note", f"not recorded any further: {why}"),)
        if self._record_failed == "stop":
            reason = f"its recording could not go on: {why}"
            start_new_thread(undoing, (self._stop, DETACH_TIMEOUT, reason))

    def _count_entries(self) -> None:
        for name, map_ in list(self._maps.items()):
            if map_.kind in GROWING and self.state == "running":
                with suppress(BpfnbError):  # it has ended, or is not to be read: then none are shown
                    self._entries[name] = MapAccess(self, name).read()[0]

    def _known_entries(self) -> tuple[tuple[str, int], ...]:
        """Return how many entries maps have: at the session's end, or when they were counted last."""
        known = self._entries | {
            name: last[0]
            for name, last in list(self._final_maps.items())
            if not isinstance(last, MapError) and name in self._maps and self._maps[name].kind in GROWING
        }
        return tuple((name, known[name]) for name in self._maps if name in known)

    @property
    def _in_kernel(self) -> bool:
        """Return whether its maps are in the kernel."""
        return self.state == "running"

    def _recorded(self) -> str:
        """Return where and when it was recorded, of a recording."""
        return ""

    def _filters(self) -> str:
        filters = self.program.filters
        if not self._words:
            return str(filters)
        others = str(msgspec.structs.replace(filters, follow=0))
        return f"command {shlex.join(self._words)}{others and f', {others}'}"

    def _command_ended(self, status: int) -> None:
        self.returncode = status
        self._tell_recorder()
        how = f"ended with status {status}" if status >= 0 else f"was ended by {_signal_name(-status)}"
        self._stop(DETACH_TIMEOUT, f"its command {how}")

    def _end(self, state: SessionState, reason: str) -> None:
        with self._ending:
            if self.state not in ("stopped", "failed"):  # it may end by itself while it is stopped
                self._finish(state, reason)
        self._ended.set()

    def _finish(self, state: SessionState, reason: str) -> None:
        self._finished = self._present()
        deadline = time.monotonic() + _DECODE_TIMEOUT
        for output in list(self._outputs.values()):  # a copy: a start that fails clears it at the same time
            output.finish(deadline)
        if self._counters:
            self._counters.keep()
        if self._costs:
            self._costs.keep()
        self.reason = reason
        self.state = state
        self._on_end(self)

    def _last_entries(self, name: str) -> tuple[int, bytes] | MapError | None:
        """Return a map's entries at the end. Waits for a map so large that it is read after ``stop`` has returned."""
        deadline = time.monotonic() + _MAP_TIMEOUT
        while name in self._pending and name not in self._final_maps and time.monotonic() < deadline:
            time.sleep(0.01)
        if name in self._pending and name not in self._final_maps:
            return MapError(f"the map {name} has not been read yet")
        return self._final_maps.get(name)

    def _resolve(self, pid: int, addresses: Sequence[int]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Return names and modules of code addresses. The host's tracer knows them, also when the session has ended."""
        tracer = self._connect()
        mine = tracer is self._tracer  # another tracer's sessions are other ones
        return tracer.find_symbols(pid, addresses, self._number if mine else 0)

    def _snapshots(self, name: str) -> Sequence[MapSnapshot] | None:
        """Return what a map was over time, of a recording; None where it is to be asked for from now on."""
        return None

    def _refused(self, info: MapInfo) -> dict[int, int]:
        return self._counters.of(info) if self._counters else {}

    def _source(self, output: str | None) -> Source:
        """Return what is streamed: an output's rows, or those of ``df``."""
        if output is not None:
            return Source(self.outputs[output], self._ended)
        if isinstance(self._presentation, Table):
            maps = " or ".join(f"{self._variable}.maps[{name!r}].every('1s')" for name in self._maps)
            raise ProgramError(
                f"{self.name} counts in maps, and has no rows to stream: its table is {self._variable}.df"
                f"{f'; over time: {maps}' if maps else ''}"
            )
        return Source(self._main(), self._ended, self._presentation.convert if self._presentation else None)

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
        """Return a name for this session in a line of Python: the notebook has a variable for a name that was given."""
        return "session" if self._unnamed else self.name

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


def _shown(table: Table, maps: Mapping[str, Map]) -> pd.DataFrame:
    """Return a table of maps; one of buckets is shown with bars."""
    frame = table.compute(maps)
    return with_bars(frame) if table.view == "hist" else with_escapes(frame)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
