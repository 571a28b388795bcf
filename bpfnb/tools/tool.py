"""What a ready-made tool consists of, and how it is started.

A tool is a module with a value ``TOOL``. Its docstring is the tool's documentation: the first line says what it shows,
the rest what it cannot see. ``build`` makes the program of the tool's own options; name, filters, limits and the like
are options of every session (``SessionOptions``).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from bpfnb.errors import ProgramError, near_or_all
from bpfnb.language.program import Program, parse
from bpfnb.protocol.messages import Limits
from bpfnb.results.presentation import Presentation
from bpfnb.session import Session

__all__ = ["Column", "Option", "Spec", "Starter", "Tool", "View"]

View = Literal["rows", "table", "histogram", "stacks"]  # what a tool's result is looked at as, by default


class Starter(Protocol):
    """What starts a tool's program: a host."""

    def start(
        self,
        program: Program,
        *,
        name: str | None = None,
        keep: int | None = None,
        limits: Limits | None = None,
        presentation: Presentation | None = None,
    ) -> Session: ...


@dataclass(frozen=True)
class Option:
    """An option of a tool's own. ``name``: as in Python; --min-ms in a terminal is min_ms. ``default`` decides its
    type: False is a switch; None a text that may be absent, unless ``type`` says otherwise. ``short``: its letter in
    bcc."""

    name: str
    default: bool | int | float | str | None
    help: str
    short: str = ""
    type: Callable[[str], Any] | None = None
    choices: Sequence[str] = ()


@dataclass(frozen=True)
class Column:
    """A column of a tool. ``heading``: in a terminal's table, bcc's own. ``unit``: of the DataFrame's values, or "".
    ``show``: value -> its text in the terminal's table, whose unit is the heading's. ``width``: characters; numbers
    are aligned to the right."""

    name: str
    heading: str
    doc: str
    unit: str = ""
    width: int = 8
    show: Callable[[Any], str] = str


@dataclass(frozen=True)
class Spec:
    """A tool's program for one set of options: C, what is attached beside its PROBE lines, macros, and what of its
    outputs and maps is ``df``."""

    source: str
    presentation: Presentation
    attach: Sequence[tuple[str, str]] = ()
    cflags: Sequence[str] = ()

    def program(self) -> Program:
        unfiltered = ["-Dbpfnb_selected()=1", "-Dbpfnb_selected_task(task)=1"]  # until sessions have filters
        return parse(self.source, self.attach, [*self.cflags, *unfiltered])


@dataclass(frozen=True)
class Tool:
    """A ready-made tool. Calling one of a ``Toolbox`` starts it."""

    name: str
    subject: str
    doc: str
    columns: Sequence[Column]
    build: Callable[..., Spec]
    options: Sequence[Option] = ()
    view: View = "rows"

    @property
    def summary(self) -> str:
        """Return what it shows, in one line."""
        return inspect.cleandoc(self.doc).splitlines()[0].partition(": ")[2]

    def start(self, host: Starter, **options: Any) -> Session:
        """Start the tool; ``options``: its own, and those of every session."""
        own = {option.name: options.pop(option.name, option.default) for option in self.options}
        self._check(own)
        spec = self.build(**own)
        return host.start(spec.program(), presentation=spec.presentation, **options)

    def _check(self, own: dict[str, Any]) -> None:
        for option in self.options:
            value = own[option.name]
            if option.choices and value is not None and value not in option.choices:
                names = near_or_all(str(value), dict.fromkeys(option.choices))
                raise ProgramError(f"{self.name}: {option.name} cannot be {value!r}{names}")
