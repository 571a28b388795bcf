"""SQL about tables, by DuckDB: a connection for each query, which reaches nothing but these tables.

DuckDB is an optional dependency: ``pip install 'bpfnb[sql]'``.
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import pyarrow as pa

from bpfnb.errors import ProgramError, SetupError, near_or_all
from bpfnb.interrupts import Flag, start_new_thread, undoing

__all__ = ["Files", "Source", "available", "identifier", "memory_limit", "query", "tables_in"]

_MAX_THREADS = 8
_INTERRUPT_EVERY = 0.02  # seconds
_NO_TABLE = re.compile(r"Table with name (.+?) does not exist", re.DOTALL)
_NO_COLUMN = re.compile(r'Referenced column "(.+?)" (?:was )?not found|does not have a column named "(.+?)"', re.DOTALL)
_READING = {"SELECT", "EXPLAIN", "RELATION", "LOGICAL_PLAN"}  # kinds of statements; describe and show are SELECT
_OF_TIMES = "epoch_ns(time) is a number, to subtract; time::timestamptz has microseconds"
_LAST_SETTINGS = ("enable_external_access=false", "lock_configuration=true")


class Files:
    """A table that lies in Parquet files, with the same columns each, and what follows them in memory."""

    def __init__(self, paths: Sequence[str], names: Sequence[str], rest: Any) -> None:
        """``rest``: a table, or any other source of Arrow's streams; None."""
        self.paths = tuple(paths)
        self.column_names = list(names)
        self.rest = rest


Source: TypeAlias = Any  # a pa.Table, or Files


def memory_limit() -> int:
    """Return how many bytes a query may take: a quarter of this machine's memory, at least 256 MiB."""
    return max(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 4, 256 << 20)


def available() -> bool:
    """Return whether DuckDB is installed."""
    return importlib.util.find_spec("duckdb") is not None


def query(
    text: str, find: Callable[[str], Source | None], known: Callable[[], Sequence[str]], *, memory: int | None = None
) -> pa.Table:
    """Return the rows that one statement selects.

    ``find`` returns the table of a name, or None: it is asked for those named in the statement. ``known``: the names
    there are. ``memory``: bytes that the query may take. The statement reads these tables: no file, no network, no
    variable of Python's, no extension. Ctrl-C ends it.

    ProgramError, of one line, for what is no statement, names that are not there, and whatever fails; SetupError
    without DuckDB.
    """
    duckdb = _duckdb()
    sources: dict[str, Source] = {}
    for name in tables_in(text, known()):
        source = find(name)
        if source is not None:
            sources[name] = source
    work = _Query(duckdb, text, sources, known, memory or memory_limit())
    try:
        start_new_thread(undoing, (work.run,))
        work.done.wait()
        return work.outcome()
    except BaseException:
        work.abandoned = True
        start_new_thread(undoing, (work.interrupt,))
        raise


def tables_in(text: str, known: Sequence[str] = ()) -> list[str]:
    """Return the names of tables in a statement, those of its own WITH left out. ProgramError for what is none.

    ``known``: of these, where DuckDB cannot tell without the tables, those that are words of the statement.
    """
    duckdb = _duckdb()
    with duckdb.connect(":memory:", config=_config(1 << 28, 1)) as connection:
        for setting in _LAST_SETTINGS:
            connection.execute(f"set {setting}")
        try:
            statements = connection.extract_statements(text)
            if len(statements) != 1:
                raise ProgramError(f"SQL: one statement is wanted, not {len(statements)}")
            if (kind := statements[0].type.name) not in _READING:
                raise ProgramError(f"SQL: rows can be selected here, and nothing else done: no {kind.lower()}")
            return sorted(connection.get_table_names(text))
        except duckdb.ParserException as error:
            raise ProgramError(_line(error)) from None
        except duckdb.Error:  # said when it runs, if it is one then
            words = text.casefold()
            return [name for name in known if re.search(rf"(?<!\w){re.escape(name.casefold())}(?!\w)", words)]


def _duckdb() -> Any:
    try:
        import duckdb
    except ImportError:
        raise SetupError("SQL needs DuckDB: pip install 'bpfnb[sql]'") from None
    return duckdb


def _config(memory: int, threads: int) -> dict[str, Any]:
    return {
        "autoinstall_known_extensions": False,
        "autoload_known_extensions": False,
        "python_enable_replacements": False,  # tables by the names of Python's variables
        "temp_directory": "",  # what does not fit into the memory is an error
        "memory_limit": f"{memory >> 20}MiB",
        "threads": threads,
    }


def _cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Query:
    """A statement that runs on a thread of its own. ``done``: set at its end, when the connection is closed."""

    def __init__(
        self, duckdb: Any, text: str, sources: Mapping[str, Source], known: Callable[[], Sequence[str]], memory: int
    ) -> None:
        self._duckdb = duckdb
        self._text = text
        self._sources = sources
        self._known = known
        self._memory = memory
        self._connection: Any = None
        self._result: pa.Table | None = None
        self._error: Exception | None = None
        self.abandoned = False
        self.done = Flag()

    def run(self) -> None:
        try:
            if not self.abandoned:
                self._result = self._select()
        except Exception as error:
            self._error = error
        finally:
            self.done.set()

    def interrupt(self) -> None:
        """End the statement. Again and again: one that has not begun is not interrupted."""
        while not self.done.wait(_INTERRUPT_EVERY):
            if (connection := self._connection) is not None:
                connection.interrupt()

    def outcome(self) -> pa.Table:
        if isinstance(self._error, self._duckdb.Error):
            raise ProgramError(self._explained(self._error), hint=self._hint(self._error)) from None
        if self._error:
            raise self._error
        return self._result

    def _select(self) -> pa.Table:
        config = _config(self._memory, min(_cpus(), _MAX_THREADS))
        with self._duckdb.connect(":memory:", config=config) as connection:
            self._connection = connection
            try:
                self._prepare(connection)
                relation = connection.sql(self._text)
                fetch = getattr(relation, "to_arrow_table", None) or relation.fetch_arrow_table
                return fetch()
            finally:
                self._connection = None

    def _prepare(self, connection: Any) -> None:
        connection.execute("set TimeZone='UTC'")
        files = [path for source in self._sources.values() if isinstance(source, Files) for path in source.paths]
        if files:
            connection.execute(f"set allowed_paths=[{', '.join(map(_quoted, files))}]")
        for setting in _LAST_SETTINGS:
            connection.execute(f"set {setting}")
        for name, source in self._sources.items():
            if isinstance(source, Files):
                self._create_view(connection, name, source)
            else:
                connection.register(name, _for_sql(source))

    def _create_view(self, connection: Any, name: str, source: Files) -> None:
        selected = [f"select * from read_parquet([{', '.join(map(_quoted, source.paths))}])"] if source.paths else []
        if source.rest is not None:
            connection.register(rest := f"{name} (newest)", _for_sql(source.rest))
            selected.append(f"select * from {identifier(rest)}")
        connection.execute(f"create view {identifier(name)} as {' union all '.join(selected)}")

    def _explained(self, error: Exception) -> str:
        if found := _NO_TABLE.search(str(error)):
            return f"SQL: no table {found[1]}{near_or_all(found[1], self._known())}"
        if found := _NO_COLUMN.search(str(error)):
            names = dict.fromkeys(name for source in self._sources.values() for name in source.column_names)
            missing = found[1] or found[2]
            return f"SQL: no column {missing}{near_or_all(missing, names)}"
        if isinstance(error, self._duckdb.OutOfMemoryException):
            return f"SQL: the query takes more memory than the {self._memory / (1 << 30):.3g} GiB that it may"
        return _line(error)

    def _hint(self, error: Exception) -> str | None:
        return _OF_TIMES if "TIMESTAMPTZ_NS" in str(error) and "No function matches" in str(error) else None


def _for_sql(table: Any) -> Any:
    """Return a table with its durations as nanoseconds, as in Parquet files: DuckDB's intervals have microseconds."""
    if not isinstance(table, pa.Table):
        return table
    for index, field in enumerate(table.schema):
        if pa.types.is_duration(field.type):
            numbers = table.column(index).cast(pa.duration("ns")).cast(pa.int64())
            table = table.set_column(index, field.name, numbers)
    return table


def _line(error: Exception) -> str:
    """Return the first line of DuckDB's message, without its kind."""
    first = str(error).split("\n", 1)[0]
    return f"SQL: {first.partition(' Error: ')[2] or first}"


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def identifier(name: str) -> str:
    """Return a name as SQL has it."""
    return '"' + name.replace('"', '""') + '"'
