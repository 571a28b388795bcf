"""``df.bpf``: methods that write a DataFrame of events for viewers. pandas itself has ``to_parquet`` and ``to_csv``."""

from __future__ import annotations

import os

import pandas as pd

from bpfnb.exports.chrome import write_chrome
from bpfnb.exports.files import write_text
from bpfnb.exports.perfetto import write_perfetto
from bpfnb.exports.pprof import write_pprof
from bpfnb.exports.timeline import Choice, events
from bpfnb.results.arguments import Names
from bpfnb.results.flame.files import folded_text, speedscope_text
from bpfnb.results.flame.fold import fold

__all__ = ["WrittenEvents"]


class WrittenEvents:
    """A DataFrame of events as files."""

    _writers: tuple[str, ...] = ("to_folded", "to_speedscope", "to_pprof", "to_perfetto", "to_chrome")
    _frame: pd.DataFrame

    def to_folded(
        self,
        path: str | os.PathLike[str],
        value: str | None = None,
        by: Names | None = None,
        *,
        stack: str = "stack",
        overwrite: bool = False,
    ) -> None:
        """Write stacks as "main;read 42", a line each different one: for flamegraph.pl, inferno and others.

        Columns as in ``flame``. Times are nanoseconds. ProgramError for a file that exists, unless ``overwrite``.
        """
        write_text(path, folded_text(fold(self._frame, value, by, stack=stack)), overwrite)

    def to_speedscope(
        self,
        path: str | os.PathLike[str],
        value: str | None = None,
        by: Names | None = None,
        *,
        stack: str = "stack",
        unit: str | None = None,
        overwrite: bool = False,
    ) -> None:
        """Write stacks as a file for speedscope.app. Columns as in ``flame``. ProgramError for a file that exists,
        unless ``overwrite``."""
        folded = fold(self._frame, value, by, stack=stack, unit=unit)
        write_text(path, speedscope_text(folded, "DataFrame"), overwrite)

    def to_pprof(
        self,
        path: str | os.PathLike[str],
        value: str | None = None,
        by: Names | None = None,
        *,
        stack: str = "stack",
        unit: str | None = None,
        overwrite: bool = False,
    ) -> None:
        """Write stacks as a profile for pprof and what reads its files, Perfetto too. Columns as in ``flame``; ``by``
        becomes labels. ProgramError for a file that exists, unless ``overwrite``."""
        write_pprof(path, fold(self._frame, value, by, stack=stack, unit=unit), "DataFrame", overwrite)

    def to_perfetto(
        self,
        path: str | os.PathLike[str],
        *,
        name: Names | None = None,
        duration: str | None = None,
        track: Names | None = None,
        counters: Names = (),
        rate: str | None = None,
        title: str = "events",
        overwrite: bool = False,
    ) -> None:
        """Write events as a trace for ui.perfetto.dev: slices of pairs and durations, instants, counters.

            calls.bpf.between("kind == 'entry'", "kind == 'exit'", by=["pid", "tid"]).bpf.to_perfetto("calls.pftrace")
            calls.bpf.rate("100ms", by="comm").bpf.to_perfetto("rates.pftrace")     # a counter a column

        Which column is what: see Session.to_perfetto. ``title``: what slices without a name are called, and their
        category. Times are the wall clock's. ProgramError for a frame without times, and a file that exists, unless
        ``overwrite``.
        """
        choice = Choice(name, duration, track, counters, rate)
        write_perfetto(path, events([self._frame], choice, title), title, None, overwrite)

    def to_chrome(
        self,
        path: str | os.PathLike[str],
        *,
        name: Names | None = None,
        duration: str | None = None,
        track: Names | None = None,
        counters: Names = (),
        rate: str | None = None,
        title: str = "events",
        overwrite: bool = False,
    ) -> None:
        """Write events as JSON in Chrome's Trace Event Format: see ``to_perfetto``. Stacks are arguments."""
        choice = Choice(name, duration, track, counters, rate)
        write_chrome(path, events([self._frame], choice, title), title, None, overwrite)
