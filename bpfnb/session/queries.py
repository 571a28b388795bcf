"""What is asked of all of a session's rows, also of those that do not fit into memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd
import pyarrow as pa

from bpfnb.errors import ProgramError
from bpfnb.results.accessor import EventsAccessor
from bpfnb.results.arguments import Names, names_of
from bpfnb.results.buckets import HistKind
from bpfnb.results.presentation import Table
from bpfnb.results.queries.sql import Source, query
from bpfnb.results.queries.tables import frame_of, table_of
from bpfnb.results.table import with_escapes

if TYPE_CHECKING:
    from bpfnb.results.maps.map import Map
    from bpfnb.results.output import Output
    from bpfnb.results.presentation import Presentation

__all__ = ["Queries"]

_DF = "df"


class Queries:
    """The methods of a session that ask its rows."""

    if TYPE_CHECKING:  # of Session
        name: str

        @property
        def df(self) -> pd.DataFrame: ...
        @property
        def outputs(self) -> Mapping[str, Output]: ...
        @property
        def maps(self) -> Mapping[str, Map]: ...
        @property
        def presentation(self) -> Presentation | None: ...
        @property
        def main_output(self) -> Output: ...
        def _output_with(self, *columns: str, known: Iterable[str] = ()) -> Output: ...

    def arrow(self, output: str | None = None) -> pa.Table:
        """Return the rows of ``df``, or of an output, as a pyarrow.Table, which shares the memory of numbers, times and
        strings with the session.

            polars.from_arrow(opens.arrow()), polars.DataFrame(opens)        # a session is itself an Arrow stream
            pyarrow.parquet.write_table(opens.arrow("events"), "events.parquet")

        Columns are those of the DataFrame: times timestamp[ns, UTC], durations duration[ns], numbers of the same size,
        categories dictionary<int32, large_string>, text large_string, bytes large_binary, 128-bit integers
        fixed_size_binary[16], little-endian. ProgramError for a session without output, KeyError for an unknown one.
        """
        if output is not None:
            return self.outputs[output].arrow()
        return self.main_output.arrow() if self.presentation is None else table_of(self.df)

    def __arrow_c_stream__(self, requested_schema: object = None) -> Any:
        """Return ``arrow()`` as what Arrow's other libraries take: polars.DataFrame(session), and so on. Of a recording
        all its rows, batch by batch."""
        if self.presentation is None:
            return self.main_output.__arrow_c_stream__(requested_schema)
        return self.arrow().__arrow_c_stream__(requested_schema)

    def sql(self, text: str) -> pd.DataFrame:
        """Return what a query in SQL selects, as a DataFrame. DuckDB answers it: ``pip install 'bpfnb[sql]'``.

            opens.sql("select comm, count(*) as n from events group by comm order by n desc limit 10")
            opens.sql("select date_trunc('second', time) as second, max(ret) from df group by 1 order by 1")

        Tables are the outputs and maps, by their names, and the session's ``df``, as they are now; of a recording's
        outputs all rows, which are read from its files, also where ``df`` has no room for them; columns are named as
        in the DataFrames (``"addr.v4"`` in double quotes). Categories are VARCHAR, times TIMESTAMPTZ in UTC, to the
        nanosecond where DuckDB has TIMESTAMPTZ_NS, durations BIGINT nanoseconds, bytes and 128-bit integers BLOB.
        ``epoch_ns(time)`` is a number, to subtract.

        In the result integers with missing values are Int64, sums beyond 64 bits Python integers, intervals
        timedelta64[ns], times datetime64[ns, UTC].

        The query sees these tables only: no files, no network, no Python variables. It may take a quarter of the
        memory; Ctrl-C ends it. ProgramError, one line, for what is wrong in it; SetupError without DuckDB.
        """
        return with_escapes(frame_of(query(text, self._source_of, self._tables)))

    def between(self, begin: object = None, end: object = None, output: str | None = None) -> pd.DataFrame:
        """Return the rows of ``df``, or of an output, from time ``begin`` to before ``end``.

            opens.between("2026-12-31 23:59:58", "2026-12-31 23:59:58.5").bpf.top("comm")
            opens.between(*panel.selection)

        Times are whatever pandas takes for a time with its day (without a time zone: UTC), or nanoseconds since 1970;
        None: no limit. Of a recording only what lies in that time is read, also where ``df`` has no room for it; where
        it is more than ``keep``, it is the newest of it, ``attrs["dropped"]`` counts the rest, and a warning says so.

        ProgramError for a session without rows, events without times, and what is no time.
        """
        if output is not None:
            return self.outputs[output].between(begin, end)
        if isinstance(self.presentation, Table):
            raise ProgramError(f"{self.name} counts in maps: it has no rows of some time")
        rows = self.main_output.between(begin, end)
        return with_escapes(self.presentation.convert(rows)) if self.presentation else rows

    def hist(
        self,
        column: str,
        by: Names | None = None,
        kind: HistKind = "log2",
        bins: int | Sequence[float] | None = None,
        unit: str | None = None,
        *,
        top: int | None = None,
        output: str | None = None,
        between: tuple[object, object] | None = None,
    ) -> pd.DataFrame:
        """Return how many values of a column of ``df`` lie in each bucket, as ``df.bpf.hist`` does.

        ``output``: of that one instead. ``between``: only rows of that time, (begin, end) as for ``between``. Of a
        recording all rows are counted, also where ``df`` has no room for them, and no more of them is in memory than a
        block. ProgramError for what is not there.
        """
        found: pd.DataFrame = self._asked(output, between, [column, *names_of(by)]).hist(
            column, by, kind, bins, unit, top=top
        )
        return found

    def top(
        self,
        by: Names,
        n: int = 10,
        value: str | None = None,
        agg: str | None = None,
        *,
        output: str | None = None,
        between: tuple[object, object] | None = None,
    ) -> pd.DataFrame:
        """Return the ``n`` largest groups of ``df``, as ``df.bpf.top`` does; see ``hist`` for the rest."""
        names = [*names_of(by), *names_of(value)]
        found: pd.DataFrame = self._asked(output, between, names).top(by, n, value, agg)
        return found

    def _asked(self, output: str | None, between: tuple[object, object] | None, names: Sequence[str]) -> Any:
        """Return what has the methods ``rate``, ``hist`` and ``top`` of ``df.bpf``, of the rows of ``df`` or of an
        output: of a cell the one that has these columns."""
        if output is not None:
            return self.outputs[output].asked(between)
        if isinstance(self.presentation, Table):
            return EventsAccessor(self.df)
        main = self.main_output
        convert = self.presentation.convert if self.presentation else None
        columns = convert(main.newest(0)).columns if convert else main.names
        if set(names) - {"time"} <= set(columns):
            return main.asked(between, convert)
        return self._output_with(*names, known=columns).asked(between)

    def _tables(self) -> list[str]:
        """Return the names of the tables of ``sql``."""
        return list(dict.fromkeys([*self.outputs, *self.maps, _DF]))

    def _source_of(self, name: str) -> Source | None:
        """Return the table that SQL calls so: upper and lower case are the same there."""
        names = self._tables()
        if name not in names:
            alike = [known for known in names if known.casefold() == name.casefold()]
            if len(alike) > 1:
                raise ProgramError(f"SQL: {name} is {' or '.join(alike)}: write it as it is declared")
            if not alike:
                return None
            name = alike[0]
        if name in self.outputs:
            return self.outputs[name].source()
        if name in self.maps:
            return table_of(self.maps[name].df)
        return self.main_output.source() if self.presentation is None else table_of(self.df)
