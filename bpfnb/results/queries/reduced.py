"""Rows summed up by DuckDB, where they lie in files that it reads: the other Reducer of blocks.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from bpfnb.results.queries.blocks import BUCKET, COUNT, VALUE, Extent, Reducer, quantile_of
from bpfnb.results.queries.sql import Source, identifier, query
from bpfnb.results.queries.tables import frame_of

__all__ = ["SqlRows", "where"]

Array = npt.NDArray[Any]
_ROWS = "rows"
_TIME = '"time"'
_EXACT = 1 << 46  # below it log2() of a number that is no power of two is less than the next one's
_KINDS = {
    "b": ("BIGINT", np.int64),
    "i": ("BIGINT", np.int64),
    "u": ("UBIGINT", np.uint64),
    "f": ("DOUBLE", np.float64),
}


def where(between: tuple[int | None, int | None]) -> str:
    """Return what is true of rows with a time from one to before another, in nanoseconds since 1970."""
    begin, end = between
    terms = [] if begin is None else [f"{_TIME} >= '{_stamp(begin)}'"]
    terms += [] if end is None else [f"{_TIME} < '{_stamp(end)}'"]
    return " and ".join(terms) or "true"


def _stamp(ns: int) -> str:
    seconds, rest = divmod(ns, 1_000_000_000)
    return f"{datetime.fromtimestamp(seconds, timezone.utc):%Y-%m-%d %H:%M:%S}.{rest:09}+00"


class SqlRows:
    """The rows of ``source`` for which ``where`` is true; see blocks.Reducer. ``others``: reads the columns that DuckDB
    does not have as a frame does, 128-bit integers. ``count``: how many rows there are, where that is known."""

    def __init__(
        self,
        empty: pd.DataFrame,
        source: Source,
        where: str = "true",
        others: Reducer | None = None,
        count: int | None = None,
    ) -> None:
        self.empty = empty
        self._source = source
        self._where = where
        self._others = others
        self._count = count

    def _other(self, *columns: str) -> Reducer | None:
        """Return what answers about these columns instead, if any."""
        return self._others if any(self.empty[name].dtype == object for name in columns) else None

    def rows(self) -> int:
        if self._count is not None:
            return self._count
        return int(self._ask(f"select count(*) as n {self._from()}").column("n")[0].as_py())

    def rates(self, step_ns: int, by: Sequence[str]) -> pd.DataFrame:
        if other := self._other(*by):
            return other.rates(step_ns, by)
        number = f"epoch_ns(time) // {step_ns}"
        names = self._names(by)
        text = f"select {number} as at, {names}count(*) as n {self._from(by)} group by all"
        table = self._ask(text)
        found = self._keys(table, by)
        starts = table.column("at").to_numpy() * np.int64(step_ns)
        found.insert(0, "time", pd.to_datetime(starts, unit="ns", utc=True).as_unit("ns"))
        return found.assign(**{COUNT: table.column("n").to_numpy()})

    def extent(self, column: str, unit: str | None) -> Extent:
        if other := self._other(column):
            return other.extent(column, unit)
        number, known, dtype = self._number(column)
        ends = ", ".join(f"{end}({number}) filter ({which})" for which in (known, f"{known} and {number} > 0")
                         for end in ("min", "max"))  # fmt: skip
        row = list(self._ask(f"select count(*), {ends} {self._from()}").to_pylist()[0].values())
        return Extent(row[0], np.array([end for end in row[1:] if end is not None], dtype))

    def buckets(self, column: str, unit: str | None, edges: Array, by: Sequence[str]) -> pd.DataFrame:
        if other := self._other(column, *by):
            return other.buckets(column, unit, edges, by)
        number, known, dtype = self._number(column)
        if edges.dtype.kind != "f" and edges.tolist() == [0, *(1 << bit for bit in range(len(edges) - 1))]:
            return self._powers(number, known, by)
        if edges.dtype.kind != "f":  # the bins of histogram() hold their upper bound, ours the lower one
            limits = np.iinfo(dtype)
            below = [int(edge) - 1 for edge in edges if edge > limits.min]
            bounds, kind = [*map(str, below), str(limits.max)], _KINDS[np.dtype(dtype).kind][0]
            numbers = np.arange(len(edges) - len(below), len(edges) + 1)
        else:
            number, kind = f"-({number}::DOUBLE)", "DOUBLE"
            bounds = [*(f"{-float(edge)!r}::DOUBLE" for edge in edges[::-1]), "'inf'::DOUBLE"]
            numbers = np.arange(len(edges) + 1)[::-1]
        counts = f"map_values(histogram({number}, [{', '.join(bounds)}]::{kind}[]) filter ({known}))"
        unknown = f"count(*) filter (not ({known}))"
        table = self._ask(
            f"select {self._names(by)}{counts} as n, {unknown} as unknown {self._from(by)} {self._grouped(by)}"
        )
        found = self._keys(table, by)
        lists = [each or [0] * len(bounds) for each in table.column("n").to_pylist()]
        cells = np.column_stack(
            [table.column("unknown").to_numpy(), np.array(lists, np.int64).reshape(-1, len(bounds))]
        )
        found = found.loc[found.index.repeat(1 + len(bounds))].reset_index(drop=True)
        found = found.assign(**{BUCKET: np.tile([-1, *numbers], len(lists)), COUNT: cells.reshape(-1)})
        return found[found[COUNT] > 0].reset_index(drop=True)

    def _powers(self, number: str, known: str, by: Sequence[str]) -> pd.DataFrame:
        """Return the same of whole numbers and the powers of two: several times as quick as histogram()."""
        power = f"floor(log2({number}))::INT"
        large = f"least({power}, 63)"  # where a double rounds up to the next power
        exact = f"{large} - ({number}::UBIGINT < (1::UBIGINT << {large}))::INT"
        bucket = (
            f"case when {number} > 0 and {number} < {_EXACT} then {power} + 2 when {number} = 0 then 1 "
            f"when {number} < 0 then 0 when not ({known}) then -1 else {exact} + 2 end"
        )
        table = self._ask(
            f"select {self._names(by)}{bucket} as bucket_, count(*) as count_ {self._from(by)} group by all"
        )
        found = self._keys(table, by)
        return found.assign(**{BUCKET: table.column("bucket_").to_numpy(), COUNT: table.column("count_").to_numpy()})

    def groups(self, by: Sequence[str], value: str | None, agg: str, n: int) -> pd.DataFrame:
        if other := self._other(*by):
            return other.groups(by, value, agg, n)
        largest = f"order by value desc nulls last limit {n + 1}"
        what = self._aggregate(value, agg)
        text = f"select {self._names(by)}{what} as value {self._from(by)} {self._grouped(by)} {largest}"
        table = self._ask(text)
        if len(table.column("value").unique()) < len(table):  # equals are in the order they first appear in
            numbered = f"(select *, row_number() over () as row_ from {_ROWS})"
            where = self._from(by).replace(f"from {_ROWS}", f"from {numbered}", 1)
            table = self._ask(
                f"select {self._names(by)}{what} as value, min(row_) as first_ {where} {self._grouped(by)} "
                f"order by value desc nulls last, first_ limit {n + 1}"
            )
        found = self._keys(table, by)
        values = frame_of(table.select(["value"]))["value"]
        return found.assign(**{VALUE: _as(values, self._dtype_of(value, agg))})

    def _aggregate(self, value: str | None, agg: str) -> str:
        if value is None:
            return "count(*)"
        number, column = self._plain(value), identifier(value)
        filtered = f"filter (not isnan({column}))" if self.empty[value].dtype.kind == "f" else ""
        if (quantile := quantile_of(agg)) is not None:
            return f"quantile_cont({number}, {quantile!r}) {filtered}"
        return f"coalesce(sum({number}) {filtered}, 0)" if agg == "sum" else f"{_SQL[agg]}({number}) {filtered}"

    def _dtype_of(self, value: str | None, agg: str) -> Any:
        """Return the dtype that pandas gives an aggregate."""
        if value is None:
            return np.dtype(np.int64)
        column = self.empty[value]
        if agg == "max":
            return column.dtype
        if agg == "sum" and column.dtype.kind in "biu":
            return np.dtype(np.uint64 if column.dtype.kind == "u" else np.int64)
        return column.dtype if column.dtype.kind == "f" else np.dtype(np.float64)

    def _plain(self, column: str) -> str:
        kind = self.empty[column].dtype.kind
        return f"{identifier(column)}::BIGINT" if kind == "b" else identifier(column)

    def _number(self, column: str) -> tuple[str, str, Any]:
        """Return a column as a number, what is true where it has one, and its dtype."""
        kind = self.empty[column].dtype.kind
        name = identifier(column)
        sql, dtype = _KINDS[kind]
        return f"{name}::{sql}", f"isfinite({name})" if kind == "f" else f"{name} is not null", dtype

    def _names(self, by: Sequence[str]) -> str:
        return "".join(f"{identifier(name)}, " for name in by)

    def _grouped(self, by: Sequence[str]) -> str:
        return f"group by {', '.join(map(identifier, by))}" if by else ""

    def _from(self, by: Sequence[str] = ()) -> str:
        """Return where the rows are from, that have a value in ``by``."""
        terms = [self._where]
        for name in by:
            terms.append(f"{identifier(name)} is not null")
            if self.empty[name].dtype.kind == "f":
                terms.append(f"not isnan({identifier(name)})")
        return f"from {_ROWS} where {' and '.join(terms)}"

    def _keys(self, table: pa.Table, by: Sequence[str]) -> pd.DataFrame:
        """Return the columns of ``by``, as a frame of the rows has them."""
        found = frame_of(table.select(list(by)))
        return found.assign(**{name: _as(found[name], self.empty[name].dtype) for name in by})

    def _ask(self, text: str) -> pa.Table:
        sources: Mapping[str, Source] = {_ROWS: self._source}
        return query(text, sources.get, lambda: [_ROWS])


_SQL = {"mean": "avg", "max": "max"}


def _as(values: pd.Series[Any], dtype: Any) -> Any:
    """Return values by a column's dtype. Categories are those that it begins with, then what there is."""
    if isinstance(dtype, pd.CategoricalDtype):
        new = pd.Index(sorted(set(values.dropna()) - set(dtype.categories)), dtype=dtype.categories.dtype)
        return pd.Categorical(values, dtype.categories.append(new))
    if values.dtype == dtype:
        return values
    try:
        return values.astype(dtype)
    except (OverflowError, ValueError, TypeError):  # a sum beyond 64 bits
        return values
