"""The files that a session is written to, for other tools and other people."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import pandas as pd

from bpfnb.errors import ProgramError
from bpfnb.exports import chrome, perfetto, pprof, tables, timeline
from bpfnb.exports.openmetrics import openmetrics_text
from bpfnb.exports.perfetto import Clocks
from bpfnb.exports.timeline import Event
from bpfnb.results.arguments import Names
from bpfnb.results.flame.source import Choice, of_session
from bpfnb.results.output import Output, Position
from bpfnb.results.presentation import Presentation, Table
from bpfnb.session.metrics import Metrics

if TYPE_CHECKING:
    from bpfnb.results.maps.map import Map
    from bpfnb.results.rates import RateMeter
    from bpfnb.results.snapshot import SessionState
    from bpfnb.results.stream import Source

__all__ = ["Files"]

_BATCH = 1 << 17  # rows in memory at a time
_Path = str | os.PathLike[str]


class Files:
    """The methods of a session that write files. All are written beside and renamed, so that there is never half a
    file; ProgramError, in one line, for a path that exists, unless ``overwrite``, and one that cannot be written."""

    if TYPE_CHECKING:  # what a session has
        name: str
        state: SessionState

        @property
        def df(self) -> pd.DataFrame: ...
        @property
        def outputs(self) -> Mapping[str, Output]: ...
        @property
        def maps(self) -> Mapping[str, Map]: ...
        @property
        def presentation(self) -> Presentation | None: ...
        def growth(self) -> Callable[[], pd.DataFrame]: ...
        def meter(self, by: str | None = None, output: str | None = None, window: float = 60.0) -> RateMeter: ...
        def _source(self, output: str | None) -> Source: ...

    _metrics: Metrics | None = None

    def to_parquet(
        self, path: _Path, output: str | None = None, *, map: str | None = None, overwrite: bool = False
    ) -> None:
        """Write ``df`` as Parquet, compressed by zstd: for pandas, polars, DuckDB, Spark and others.

        ``output``, ``map``: the rows of an output, or the entries of a map, instead. Columns keep their types;
        categories are dictionaries, durations and times have nanoseconds. Integers of 128 bits are decimal digits, as
        text. A field's metadata has its unit ("ns", "bytes"), the file's has lost and dropped rows.
        """
        units = dict(self.presentation.units) if self.presentation and output is None and map is None else {}
        tables.write_parquet(path, self._frames(output, map), units, self._about(output, map), overwrite)

    def to_csv(
        self,
        path: _Path,
        output: str | None = None,
        *,
        map: str | None = None,
        spreadsheet: bool = False,
        overwrite: bool = False,
    ) -> None:
        """Write ``df`` as CSV in UTF-8: times in ISO 8601 with nanoseconds, durations as nanoseconds, bytes as
        hexadecimal digits, all integers exact, text in quotes and as it is. What is missing is empty.

        ``output``, ``map``: the rows of an output, or the entries of a map, instead. ``spreadsheet``: text that begins
        like a formula has a ' in front: names come from other people's processes, and a spreadsheet would compute them.
        """
        tables.write_csv(path, self._frames(output, map), spreadsheet=spreadsheet, overwrite=overwrite)

    def to_jsonl(
        self, path: _Path, output: str | None = None, *, map: str | None = None, overwrite: bool = False
    ) -> None:
        """Write ``df`` as JSON lines, an object a row: values as in ``to_csv``; integers of 128 bits are text. NaN and
        infinite numbers are null.

        ``output``, ``map``: the rows of an output, or the entries of a map, instead.
        """
        tables.write_jsonl(path, self._frames(output, map), overwrite)

    def to_perfetto(
        self,
        path: _Path,
        output: str | None = None,
        *,
        name: Names | None = None,
        duration: str | None = None,
        track: Names | None = None,
        counters: Names = (),
        rate: str | None = None,
        overwrite: bool = False,
    ) -> None:
        """Write the rows of ``df`` as a trace for ui.perfetto.dev and trace_processor.

            slow.to_perfetto("waits.pftrace")                   # of runqslower: a slice for each wait, by thread
            opens.to_perfetto("opens.pftrace", rate="100ms")

        Rows with a duration (timedelta64) are slices that end at ``time``; rows with ``start`` and ``end`` are slices;
        others are instants. They are on the track of the thread (``tid``) of a process (``pid``), or of the process;
        slices that overlap stand beside. All other columns are arguments. Text in column ``stack`` is a sampled
        callstack. Times are CLOCK_MONOTONIC, with a snapshot of CLOCK_BOOTTIME: they agree with those of other traces
        of this machine, and files can be joined.

        ``output``    another output's rows
        ``name``      columns that name slices; unless told the first there is of path, args, syscall, ...
        ``duration``  the column of durations, where there are several; "" for instants
        ``track``     columns whose values make tracks, instead of process and thread: "cpu", "disk"
        ``counters``  columns of numbers that become counters
        ``rate``      an interval ("100ms"): events per second become a counter

        ProgramError for rows without times, such as those of tools that count; unknown columns; a file that exists,
        unless ``overwrite``.
        """
        choice = timeline.Choice(name, duration, track, counters, rate)
        perfetto.write_perfetto(path, *self._events(output, choice), overwrite)

    def to_chrome(
        self,
        path: _Path,
        output: str | None = None,
        *,
        name: Names | None = None,
        duration: str | None = None,
        track: Names | None = None,
        counters: Names = (),
        rate: str | None = None,
        overwrite: bool = False,
    ) -> None:
        """Write the rows of ``df`` as JSON in Chrome's Trace Event Format, for viewers that read nothing newer: see
        ``to_perfetto``. Stacks are arguments."""
        choice = timeline.Choice(name, duration, track, counters, rate)
        chrome.write_chrome(path, *self._events(output, choice), overwrite)

    def to_pprof(
        self,
        path: _Path,
        output: str | None = None,
        *,
        map: str | None = None,
        value: str | None = None,
        by: str | Sequence[str] | None = None,
        overwrite: bool = False,
    ) -> None:
        """Write the stacks as they are now as a profile for pprof and what reads its files: Perfetto, speedscope,
        Pyroscope. ``output``, ``map``, ``value`` and ``by`` as in ``flame``; ``by`` becomes labels."""
        pprof.write_pprof(path, of_session(self, Choice(output, map, value, by)), self.name, overwrite)

    def openmetrics(self, entries: int = 1000) -> str:
        """Return the session's numbers as OpenMetrics text, for Prometheus and others to scrape.

        ``bpfnb_events_total``, ``bpfnb_events_lost_total``, ``bpfnb_events_dropped_total`` of each output;
        ``bpfnb_events_per_second`` over the last ten seconds; ``bpfnb_map_NAME`` (``bpfnb_map_NAME_COLUMN`` where a
        value has several numbers) of each map with numbers, its key as labels, over all CPUs; histograms as such. Of a
        map at most ``entries`` are shown, those with the largest numbers: ``bpfnb_map_hidden_entries`` counts the
        others. Nobody listens: serve the text where it is to be scraped.

        ProgramError for ``entries`` below 1.
        """
        if entries < 1:
            raise ProgramError(f"entries must be at least 1, not {entries}")
        if self._metrics is None:
            self._metrics = Metrics(self.name, lambda output: self.meter(output=output, window=10.0))
        running = self.state in ("starting", "running")
        return openmetrics_text(self._metrics.families(self.outputs, self.maps, running, entries))

    def _events(self, output: str | None, choice: timeline.Choice) -> tuple[Iterator[Event], str, Clocks | None]:
        """Return what is on a timeline, what it is called, and how the clocks stand."""
        timed = not (output is None and isinstance(self.presentation, Table))
        clocks = self._clocks(self._source(output).output) if timed else None
        title = self.presentation.title.partition(": ")[0] if self.presentation and output is None else ""
        title = title if title.isidentifier() else self.name  # a tool's name, else the session's
        return timeline.events(self._frames(output, None), choice, title), title, clocks

    def _clocks(self, output: Output) -> Clocks | None:
        """Return how the clocks of the rows' machine stand to each other, where its CLOCK_MONOTONIC is known."""
        if output.clock is None:
            return None
        monotonic = time.monotonic_ns()
        # Another machine's, or another boot's, do not agree to a second on when this one was booted.
        ours = abs(output.epoch_ns - (time.time_ns() - monotonic)) < 1_000_000_000
        return Clocks(monotonic + output.epoch_ns, monotonic, monotonic + _suspended() if ours else None)

    def _frames(self, output: str | None, map: str | None) -> Iterator[pd.DataFrame]:
        """Return what is written, batch by batch: rows that are there now. At least one frame, with all columns."""
        if output is not None and map is not None:
            raise ProgramError("an output or a map, not both")
        if map is not None:
            return iter([self.maps[map].df])
        if output is None and isinstance(self.presentation, Table):
            return iter([self.df])
        return _batches(self._source(output))

    def _about(self, output: str | None, map: str | None) -> dict[str, str]:
        """Return what a file's metadata says."""
        about = {"bpfnb.session": self.name}
        if map is None and not (output is None and isinstance(self.presentation, Table)):
            of = self._source(output).output
            about |= {"bpfnb.output": of.name, "bpfnb.lost": str(of.lost), "bpfnb.dropped": str(of.dropped)}
        return about


def _suspended() -> int:
    """Return how far CLOCK_BOOTTIME is ahead of CLOCK_MONOTONIC: the best of some readings, for they take a while."""
    readings = []
    for _ in range(10):
        before, boottime, after = time.monotonic_ns(), time.clock_gettime_ns(time.CLOCK_BOOTTIME), time.monotonic_ns()
        readings.append((after - before, boottime - (before + after) // 2))
    return min(readings)[1]


def _batches(source: Source) -> Iterator[pd.DataFrame]:
    end = source.output.rows  # a flood does not keep it going for ever
    position, first = Position(), True
    while True:
        frame, position = source.read(position, _BATCH, stacklevel=6)
        done = position.row + position.undecoded >= end or not len(frame)
        if len(frame) or first:
            yield frame
        first = False
        if done:
            return
