"""What is asked of all of a session's rows: as Arrow tables and in SQL."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pandas as pd
import pyarrow as pa

from bpfnb.errors import ProgramError
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
        """Return ``arrow()`` as what Arrow's other libraries take: polars.DataFrame(session), and so on."""
        return self.arrow().__arrow_c_stream__(requested_schema)

    def sql(self, text: str) -> pd.DataFrame:
        """Return what a query in SQL selects, as a DataFrame. DuckDB answers it: ``pip install 'bpfnb[sql]'``.

            opens.sql("select comm, count(*) as n from events group by comm order by n desc limit 10")
            opens.sql("select date_trunc('second', time) as second, max(ret) from df group by 1 order by 1")

        Tables are the outputs and maps, by their names, and the session's ``df``, as they are now; columns are named as
        in the DataFrames (``"addr.v4"`` in double quotes). Categories are VARCHAR, times TIMESTAMPTZ in UTC, to the
        nanosecond where DuckDB has TIMESTAMPTZ_NS, durations BIGINT nanoseconds, bytes and 128-bit integers BLOB.
        ``epoch_ns(time)`` is a number, to subtract.

        In the result integers with missing values are Int64, sums beyond 64 bits Python integers, intervals
        timedelta64[ns], times datetime64[ns, UTC].

        The query sees these tables only: no files, no network, no Python variables. It may take a quarter of the
        memory; Ctrl-C ends it. ProgramError, one line, for what is wrong in it; SetupError without DuckDB.
        """
        return with_escapes(frame_of(query(text, self._source_of, self._tables)))

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
            return self._output_source(self.outputs[name])
        return table_of(self.maps[name].df if name in self.maps else self.df)

    def _output_source(self, output: Output) -> Source:
        return output.arrow()
