"""``df.bpf``: methods that write a DataFrame of events for viewers. pandas itself has ``to_parquet`` and ``to_csv``."""

from __future__ import annotations

import os

import pandas as pd

from bpfnb.exports.files import write_text
from bpfnb.results.arguments import Names
from bpfnb.results.flame.files import folded_text, speedscope_text
from bpfnb.results.flame.fold import fold

__all__ = ["WrittenEvents"]


class WrittenEvents:
    """A DataFrame of events as files."""

    _writers: tuple[str, ...] = ("to_folded", "to_speedscope")
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
