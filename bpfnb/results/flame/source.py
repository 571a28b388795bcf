"""The stacks of a session: of its table, its rows or its maps, as they are now, or what is new every so often."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple, NoReturn, Protocol

import numpy as np
import pandas as pd

from bpfnb.errors import ProgramError, near_or_all
from bpfnb.results.arguments import Names
from bpfnb.results.flame.fold import Folded, fold, group_columns
from bpfnb.results.maps.frozen import Growing
from bpfnb.results.maps.map import Map
from bpfnb.results.output import Output, Position

__all__ = ["Choice", "Piece", "Stacked", "of_session", "watch"]


class Stacked(Protocol):
    """What is asked of a session (bpfnb.session.Session)."""

    @property
    def name(self) -> str: ...
    @property
    def df(self) -> pd.DataFrame: ...
    @property
    def outputs(self) -> Mapping[str, Output]: ...
    @property
    def maps(self) -> Mapping[str, Map]: ...
    def growth(self) -> Callable[[], pd.DataFrame]: ...


class Choice(NamedTuple):
    """Which stacks of a session. None: the session's own choice.

    ``output``, ``map``   where stacks are counted: an output's rows, or a map's entries; else ``session.df``, and where
                          it has no stacks, the only map that counts some
    ``value``, ``by``, ``unit``   see fold.fold
    ``kernel``, ``user``  columns of numbers of stacks: see stacks.folded
    """

    output: str | None = None
    map: str | None = None
    value: str | None = None
    by: Names | None = None
    unit: str | None = None
    kernel: str | None = None
    user: str | None = None


class Piece(NamedTuple):
    """What was counted from ``begin`` to ``end``, seconds since 1970; None: since the session began. ``state``: what
    there was at ``end``, instead of what came before: of tools that show what is held."""

    begin: float | None
    end: float
    folded: Folded
    state: bool = False


def of_session(session: Stacked, choice: Choice) -> Folded:
    """Return a session's stacks, as they are now. ProgramError where it has none, or it is not clear which."""
    if choice.output is not None:
        return _named(session, session.outputs[choice.output].df, choice)
    if choice.map is None and (frame := _table(session)) is not None:
        return _named(session, frame, choice)
    return _named(session, _counting(session, choice).reduced("sum"), choice)


def watch(session: Stacked, choice: Choice) -> Callable[[float], list[Piece]]:
    """Return a function of the time that returns what was counted since its last call; with the first, all so far.

    Rows are in the seconds that their ``time`` says. What maps have counted is between two calls. Stacks are given
    their names as they come: what has names while a process lives keeps them.
    """
    if choice.output is not None or _has_rows(session, choice):
        return _Rows(session, choice).read
    if choice.map is None and _table(session) is not None:
        return _Growing(session, session.growth(), choice).read
    name, growing = _counting(session, choice).name, Growing(session.maps)
    return _Growing(session, lambda: growing.read(lambda maps: maps[name].reduced("sum")), choice).read


class _Growing:
    """What a session's maps have counted since the last call."""

    def __init__(self, session: Stacked, grown: Callable[[], pd.DataFrame], choice: Choice) -> None:
        self._session, self._grown, self._choice = session, grown, choice
        self._before: float | None = None

    def read(self, now: float) -> list[Piece]:
        frame = self._grown()
        state = not frame.attrs.get("grown", True)
        piece = Piece(self._before, now, _named(self._session, frame, self._choice), state)
        self._before = now
        return [piece]


class _Rows:
    """The rows of an output that have come since the last call."""

    def __init__(self, session: Stacked, choice: Choice) -> None:
        self._session, self._choice = session, choice
        self._output = session.outputs[choice.output or _main(session)]
        self._position = Position()
        self._before: float | None = None
        _named(session, self._output.read(self._position, 0)[0], choice)  # its mistakes are raised here

    def read(self, now: float) -> list[Piece]:
        frame, self._position = self._output.read(self._position)
        before, self._before = self._before, now
        if "time" not in frame:
            return [Piece(before, now, _named(self._session, frame, self._choice))] if len(frame) else []
        seconds = frame["time"].astype("int64").to_numpy() // 1_000_000_000
        return [
            Piece(second, second + 1, _named(self._session, frame[seconds == second], self._choice))
            for second in np.unique(seconds).tolist()
        ]


def _table(session: Stacked) -> pd.DataFrame | None:
    """Return the session's ``df`` where it has stacks, named or by number."""
    try:
        frame = session.df
    except ProgramError:  # a cell without an output
        return None
    return frame if any("stack" in str(name).lower() for name in frame.columns) else None


def _has_rows(session: Stacked, choice: Choice) -> bool:
    if choice.map is not None:
        return False
    try:
        name = _main(session)
    except ProgramError:
        return False
    return any("stack" in column.lower() for column in session.outputs[name].names)


def _main(session: Stacked) -> str:
    """Return the output with stacks in it, the first there is."""
    for name, output in session.outputs.items():
        if any("stack" in column.lower() for column in output.names):
            return name
    raise ProgramError(f"{session.name} has no rows with stacks")


def _counting(session: Stacked, choice: Choice) -> Map:
    """Return the map that counts stacks."""
    if choice.map is not None:
        if (chosen := session.maps[choice.map]).kind == "stack_trace":
            raise ProgramError(f"{choice.map} keeps stacks, and counts none: map= is the map that counts them")
        return chosen
    found = [name for name, map_ in session.maps.items() if map_.kind != "stack_trace" and _has_stack(map_)]
    if len(found) == 1:
        return session.maps[found[0]]
    if found:
        raise ProgramError(f"{session.name} counts stacks in several maps: map={' or '.join(map(repr, found))}")
    raise ProgramError(
        f"{session.name} has no stacks: no column and no map's key has stack in its name; bpfnb.stacks(PROBE) and the "
        "tools profile and offcputime collect some"
    )


def _has_stack(map_: Map) -> bool:
    sides = [side for side in (map_.info.key, map_.info.value) if side]
    return any("stack" in column.name.lower() for side in sides for column in side.columns)


def _named(session: Stacked, frame: pd.DataFrame, choice: Choice) -> Folded:
    """Return a frame's stacks with names: of one with numbers of stacks, by the map that keeps them."""
    named = "stack" in frame.columns and not (len(frame) and pd.api.types.is_numeric_dtype(frame["stack"].dtype))
    if named and not (choice.kernel or choice.user):
        return fold(frame, choice.value, choice.by, unit=choice.unit)
    keeping = [map_ for map_ in session.maps.values() if map_.kind == "stack_trace"]
    if len(keeping) != 1:
        maps = ", ".join(map_.name for map_ in keeping)
        why = f"several maps keep stacks ({maps})" if keeping else "no map of its keeps stacks (BPF_STACK_TRACE)"
        raise ProgramError(f"{session.name}: {why}; session.maps[...].folded(df).bpf.flame() shows those of one")
    by = group_columns(frame, choice.by, "stack")
    weight = choice.value if choice.value is None or choice.value in frame.columns else _no_column(choice.value, frame)
    if len(frame) == 0:
        return Folded((), np.empty(0, np.int64), by=tuple(by))
    table = keeping[0].folded(frame, by=by, kernel=choice.kernel, user=choice.user, weight=weight)
    unit = choice.unit or ("bytes" if weight in ("bytes", "size") else "count")
    return fold(table, "count", by, unit=unit)


def _no_column(name: str, frame: pd.DataFrame) -> NoReturn:
    raise ProgramError(f"no column {name!r}{near_or_all(name, frame.columns)}")
