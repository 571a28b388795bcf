"""What a ready-made tool consists of, and how it is started.

A tool is a module with a value ``TOOL``. Its docstring is the tool's documentation: the first line says what it shows,
the rest what it cannot see. ``build`` makes the program of the tool's own options; name, filters, limits and the like
are options of every session (``SessionOptions``).
"""

from __future__ import annotations

import functools
import inspect
import time as clocks
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, Literal, Protocol

import pandas as pd

from bpfnb.errors import ProgramError, near_or_all
from bpfnb.language.program import Program, parse
from bpfnb.options import SessionOptions
from bpfnb.results.presentation import Presentation, Rows, Shown, Table, TableView
from bpfnb.session import Session

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["SESSION_OPTIONS", "Column", "Option", "Spec", "Starter", "Tool", "View", "clock"]

SESSION_OPTIONS = tuple(SessionOptions.__annotations__)

View = Literal["rows", "table", "histogram", "stacks"]  # what a tool's result is looked at as, by default
_LIVE: dict[View, TableView] = {"histogram": "hist", "stacks": "flame"}


class Starter(Protocol):
    """What starts a tool's program: a host."""

    def run(
        self, program: Program, presentation: Presentation | None = None, **options: Unpack[SessionOptions]
    ) -> Session: ...

    @property
    def trace(self) -> Callable[..., Session]: ...

    def probes(self, pattern: str) -> pd.DataFrame: ...


@dataclass(frozen=True)
class Option:
    """An option of a tool's own. ``name``: as in Python; --min-ms in a terminal is min_ms. ``default`` decides its
    type: False is a switch; None a text that may be absent, unless ``type`` says otherwise: int, float, str, or a
    function that makes a value of text. ``short``: its letter in bcc."""

    name: str
    default: bool | int | float | str | None
    help: str
    short: str = ""
    type: Callable[[str], Any] | None = None
    choices: Sequence[str] = ()

    @property
    def kind(self) -> Callable[[str], Any]:
        """Return what its values are: bool, int, float, str, or a function that makes them of text."""
        return self.type or (str if self.default is None else type(self.default))

    def check(self, value: Any) -> Any:
        """Return a value as ``build`` gets it. ProgramError, which does not name the tool, for one that cannot be."""
        if value is None and self.default is None:
            return None
        kind, word = _KINDS.get(self.kind, (object, ""))
        if not isinstance(value, kind) or (isinstance(value, bool) and self.kind is not bool and word):
            raise ProgramError(f"{self.name} must be {word}, not {value!r}")
        if self.choices and value not in self.choices:
            raise ProgramError(f"{self.name} cannot be {value!r}{near_or_all(str(value), self.choices)}")
        return self.parse(value) if isinstance(value, str) or word else value

    def parse(self, value: Any) -> Any:
        """Return the value of a text, such as a terminal's word; of a number, the same as Python's own."""
        try:
            return self.kind(value)
        except ValueError as error:
            if isinstance(error, ProgramError):
                raise
            word = _KINDS[self.kind][1] if self.kind in _KINDS else "something else"
            raise ProgramError(f"{self.name} must be {word}, not {value!r}") from None


_KINDS: dict[Any, tuple[type, str]] = {
    bool: (bool, "True or False"),
    int: (Integral, "a whole number"),
    float: (Real, "a number"),
    str: (str, "text"),
}


def clock(time: pd.Timestamp) -> str:
    """Return a time as bcc's tools show it: HH:MM:SS, of this machine's time zone."""
    return _clock(time.value // 1_000_000_000)


@functools.lru_cache(maxsize=64)
def _clock(seconds: int) -> str:
    return clocks.strftime("%H:%M:%S", clocks.localtime(seconds))


@dataclass(frozen=True)
class Column:
    """A column of a tool. ``heading``: in a terminal's table, bcc's own; "" for a column that is left out there.
    ``unit``: of the DataFrame's values, or "". ``show``: value -> its text in the terminal's table, whose unit is the
    heading's. ``width``: characters; numbers are aligned to the right."""

    name: str
    heading: str
    doc: str
    unit: str = ""
    width: int = 8
    show: Callable[[Any], str] = str


@dataclass(frozen=True)
class Spec:
    """A tool's program for one set of options: C, what is attached beside its PROBE lines, macros, and what of its
    outputs and maps is ``df``. ``columns``: names of the tool's columns that there are with these options, where not
    all."""

    source: str
    presentation: Presentation
    attach: Sequence[tuple[str, str]] = ()
    cflags: Sequence[str] = ()
    columns: Sequence[str] = ()

    def program(self) -> Program:
        return parse(self.source, self.attach, self.cflags)


@dataclass(frozen=True)
class Tool:
    """A ready-made tool. Calling one of a ``Toolbox`` starts it.

    ``hooks``: probes that not every kernel has. ``build`` gets those of them that this one has, as ``has``; a raw
    tracepoint stands there as "tracepoint:CATEGORY:NAME". It raises UnsupportedError where nothing will do.
    ``interval``: seconds between two tables in a terminal, of a tool that has tables; None: one at the end. What is
    counted begins anew with each table, as bcc's tools have it.
    """

    name: str
    subject: str
    doc: str
    columns: Sequence[Column]
    build: Callable[..., Spec]
    options: Sequence[Option] = ()
    view: View = "rows"
    hooks: Sequence[str] = ()
    interval: float | None = None

    @property
    def summary(self) -> str:
        """Return what it shows, in one line."""
        return inspect.cleandoc(self.doc).splitlines()[0].partition(": ")[2].rstrip(".")

    def start(self, host: Starter, **options: Any) -> Session:
        """Start the tool; ``options``: its own, and those of every session."""
        own = {option.name: options.pop(option.name) for option in self.options if option.name in options}
        if unknown := [name for name in options if name not in SESSION_OPTIONS]:
            known = [*(option.name for option in self.options), *SESSION_OPTIONS]
            raise ProgramError(f"{self.name} has no option {unknown[0]!r}{near_or_all(unknown[0], known)}")
        self.values(**own)  # its mistakes come before what the host has to be asked
        has = [hook for hook in self.hooks if _is_there(host.probes(hook), hook)]
        spec, presentation = self._built(own, has, bool(options.get("cpu")))
        return host.run(spec.program(), presentation, **options)

    def presentation(self, options: Mapping[str, Any]) -> Presentation:
        """Return what makes ``df``, by the options of a ``Shown``: "own", those of the tool that were given; "has",
        which of its hooks there were; "cpu", whether events have their CPU. ProgramError for what cannot be."""
        own, has, known = options.get("own"), options.get("has"), {option.name for option in self.options}
        if not isinstance(own, dict) or not isinstance(has, list) or not {*own} <= known:
            raise ProgramError(f"{self.name}: these are no options of it: {options!r:.200}")
        return self._built(own, [hook for hook in self.hooks if hook in has], options.get("cpu") is True)[1]

    def _built(self, own: Mapping[str, Any], has: Sequence[str], cpu: bool) -> tuple[Spec, Presentation]:
        """Return the program for its own options, and what makes ``df``."""
        values = self.values(**own)
        if self.hooks:
            values["has"] = frozenset(has)
        spec = self.build(**values)
        shown = Shown("tool", self.name, {"own": _plain(own), "has": list(has), "cpu": cpu})
        return spec, self._presentation(spec, cpu, shown)

    def values(self, **own: Any) -> dict[str, Any]:
        """Return the values of all its own options, as ``build`` gets them. ProgramError for one that cannot be."""
        return {option.name: self._say(option.check, own.get(option.name, option.default)) for option in self.options}

    def parse(self, option: Option, value: Any) -> Any:
        """Return an option's value of a terminal's word. ProgramError where that is none."""
        return self._say(option.parse, value)

    def _presentation(self, spec: Spec, cpu: bool, shown: Shown) -> Presentation:
        """Return the spec's own, with the columns that are documented, in that order, and with the tool's name."""
        names = [*(spec.columns or [column.name for column in self.columns]), *(["cpu"] if cpu else [])]
        title = f"{self.name}: {self.summary}"
        units = {column.name: column.unit for column in self.columns if column.unit in ("bytes", "ns")}
        own = spec.presentation
        if isinstance(own, Rows):
            return Rows(lambda events: own.convert(events)[names], title, units, lambda: shown)
        view = _LIVE.get(self.view, "top")
        return Table(lambda maps: own.compute(maps)[names], title, own.as_is, view, units, own.grows, lambda: shown)

    def _say(self, make: Callable[[Any], Any], value: Any) -> Any:
        """Return a value that is made of another. A ProgramError says which tool it is about."""
        try:
            return make(value)
        except ProgramError as error:
            raise ProgramError(f"{self.name}: {error.message}", hint=error.hint) from None


def _plain(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options as a file has them: what is not a number or a truth value is text."""
    plain = {name: value.item() if hasattr(value, "item") else value for name, value in options.items()}
    return {
        name: value if value is None or isinstance(value, bool | int | float) else str(value)
        for name, value in plain.items()
    }


def _is_there(probes: pd.DataFrame, hook: str) -> bool:
    """Return whether a hook can be attached to: probes() has those of kinds that this kernel lacks as well, and says so
    in their note."""
    note = probes.loc[probes["probe"] == hook, "note"]
    return bool(len(note)) and not note.iloc[0].startswith("this kernel")
