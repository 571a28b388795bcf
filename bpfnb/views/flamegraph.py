"""Flame graphs: of a session, a DataFrame or a file as it is now, to be looked at with the mouse or the keyboard."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from bpfnb.errors import ProgramError, escape, printable
from bpfnb.exports.files import write_text
from bpfnb.results.arguments import Names
from bpfnb.results.flame.files import folded_text, speedscope_text
from bpfnb.results.flame.fold import Folded, Unit, Values, fold, read_folded
from bpfnb.results.flame.kinds import shown
from bpfnb.results.flame.source import Choice, of_session
from bpfnb.results.flame.tree import FlameTree, own_values, totals
from bpfnb.views.live.view import Part, Static, ViewKind

__all__ = ["FlameGraph", "FlameParts", "amount", "flame", "folded_of", "static_flame"]

Array = npt.NDArray[Any]
Show = Callable[["FlameGraph"], None]

_HOTTEST = 8  # stacks in words
_MAX_NAME = 1_000  # characters of a name that are sent to a page
_MAX_PATH = 110  # characters of a stack in words


def flame(
    source: Any,
    value: str | None = None,
    by: Names | None = None,
    *,
    output: str | None = None,
    map: str | None = None,
    stack: str = "stack",
    unit: str | None = None,
    kernel: str | None = None,
    user: str | None = None,
    minus: Any = None,
    normalise: bool = True,
    inverted: bool = False,
) -> FlameGraph:
    """Make a flame graph of a session, a DataFrame or a file, as it is now. See Session.flame."""
    choice = Choice(output, map, value, by, unit, kernel, user)
    now = folded_of(source, choice, stack)
    before = None if minus is None else folded_of(minus, choice, stack)
    if before and before.unit != now.unit:
        raise ProgramError(f"these cannot be compared: one counts {now.unit}, the other {before.unit}")
    return FlameGraph(now, _name(source), before, "" if minus is None else _name(minus), normalise, inverted)


def folded_of(source: Any, choice: Choice = Choice(), stack: str = "stack") -> Folded:  # noqa: B008
    """Return the stacks of a session, a DataFrame, a file, or another flame graph."""
    if isinstance(source, FlameGraph):
        return source.folded
    if isinstance(source, pd.DataFrame):
        return fold(source, choice.value, choice.by, stack=stack, unit=choice.unit)
    if isinstance(source, str | os.PathLike):
        return read_folded(source)
    if all(hasattr(source, name) for name in ("df", "maps", "outputs", "growth")):
        return of_session(source, choice)
    raise ProgramError(f"a flame graph is of a session, a DataFrame or a file, not of {type(source).__name__}")


class FlameGraph:
    """A flame graph: who called whom, and how much was counted there. It does not change.

    In a notebook, as a cell's last expression, it can be zoomed and searched; a saved notebook keeps a picture of it,
    and the hottest stacks in words.

    ``total``     what was counted in all
    ``unit``      "count", "ns" or "bytes"
    ``df``        a row a node: ``node``, ``parent``, ``depth`` (int32), ``name``, ``self``, ``total``, ``share``; of a
                  comparison also ``before``, what the other has, scaled where the graph is ``normalised``
    ``missing``   rows left out, for they had no stack or no value
    """

    def __init__(
        self,
        folded: Folded,
        name: str,
        before: Folded | None = None,
        minus: str = "",
        normalise: bool = True,
        inverted: bool = False,
    ) -> None:
        self.folded = folded
        self.name = name
        self.inverted = inverted
        self._tree = FlameTree(len(folded.by))
        self._own = own_values(self._tree, folded)
        self._before: Values | None = None
        self._minus = minus
        self._minus_total = before.total if before else 0
        self.normalised = bool(before and normalise and before.total and folded.total and before.total != folded.total)
        if before:
            other = own_values(self._tree, before)
            self._own = np.append(self._own, np.zeros(len(self._tree) - len(self._own), self._own.dtype))
            self._before = other * (folded.total / before.total) if self.normalised else other

    @property
    def total(self) -> int | float:
        return self.folded.total

    @property
    def unit(self) -> Unit:
        return self.folded.unit

    @property
    def missing(self) -> int:
        return self.folded.missing

    @property
    def df(self) -> pd.DataFrame:
        frame = self._tree.frame(self._own)
        return frame if self._before is None else frame.assign(before=totals(self._tree, self._before))

    def to_folded(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write "main;read 42", a line a stack, as flamegraph.pl reads it. ProgramError for a file that exists."""
        write_text(path, folded_text(self.folded), overwrite)

    def to_speedscope(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write a file for speedscope.app. ProgramError for a file that exists."""
        write_text(path, speedscope_text(self.folded, self.name), overwrite)

    def to_html(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write a page of its own, to be opened in any browser, without a server. ProgramError for a file that
        exists."""
        from bpfnb.views.live.flame_page import page

        write_text(path, page(self), overwrite)

    # --- a view (bpfnb.views.live.view.View) --------------------------------------------------------------------------

    kind: ViewKind = "flame"

    @property
    def title(self) -> str:
        against = f", compared with {self._minus}" if self._before is not None else ""
        return f"{self.name}: flame graph of {amount(self.total, self.unit)}{against}"

    def update(self, last: bool) -> None:
        """Do nothing: it is of one moment."""

    def whole(self) -> Part:
        header = {
            "unit": self.unit,
            "groups": printable(", ".join(self.folded.by)),
            "inverted": self.inverted,
            "empty": "no stacks were counted",
            "note": self._note(),
        }
        return FlameParts(self._tree).whole(self._own, header, self._before)

    def delta(self) -> None:
        return None

    def choose(self, **choices: Any) -> None:
        raise ProgramError("this flame graph is of one moment: there is no time to choose")

    def static(self) -> Static:
        empty = "" if self._own.any() else "no stacks were counted"
        return static_flame(
            self._tree, self._own, self.unit, self.title, empty, self._note(), self.inverted, self._before
        )

    def __repr__(self) -> str:
        return self.static_text()

    def static_text(self) -> str:
        return _text(self._tree, self._own, self.unit, self.title, "" if self._own.any() else "no stacks were counted")

    def _ipython_display_(self) -> None:
        from bpfnb.views.live.flame_page import show  # with ipywidgets, which only a page needs

        if not show(self):
            print(repr(self))

    def _note(self) -> str:
        notes = []
        if self._before is not None:
            other = f"{printable(self._minus)} has {amount(self._minus_total, self.unit)} in all"
            how = f"scaled to {amount(self.total, self.unit)}" if self.normalised else "not scaled"
            notes.append(f"{other}, {how}")
        if self.missing:
            notes.append(f"{self.missing:,} rows without a stack or a value are left out")
        return "; ".join(notes)


class FlameParts:
    """What a page is sent of a tree that grows. Names are sent once, numbers as they are."""

    def __init__(self, tree: FlameTree) -> None:
        self._tree = tree
        self._names = self._nodes = 0
        self._own: Values = np.zeros(0, np.int64)

    def whole(self, own: Values, header: dict[str, Any], before: Values | None = None) -> Part:
        tree = self._tree
        self._names, self._nodes, self._own = len(tree.names), len(tree), own
        kind, write_ = _numbers(own, before)
        sides = [own] if before is None else [own, before]
        buffers = (tree.kinds().tobytes(), tree.parents().tobytes(), tree.name_numbers().tobytes(), *map(write_, sides))
        return Part({**header, "names": self._shown(0), "values": kind}, buffers)

    def delta(self, own: Values, header: dict[str, Any]) -> Part | None:
        """Return what has changed since the last ``whole`` or ``delta``; ``header``: what of it has changed."""
        tree = self._tree
        known = np.append(self._own, np.zeros(len(own) - len(self._own), self._own.dtype))
        changed = np.flatnonzero(own != known)
        if not header and not len(changed):
            return None
        kind, write_ = _numbers(own)
        buffers = (
            tree.kinds(self._names).tobytes(),
            tree.parents(self._nodes).tobytes(),
            tree.name_numbers(self._nodes).tobytes(),
            changed.astype("<i4").tobytes(),
            write_(own[changed]),
        )
        part = Part({**header, "names": self._shown(self._names), "values": kind}, buffers)
        self._names, self._nodes, self._own = len(tree.names), len(tree), own
        return part

    def _shown(self, begin: int) -> list[str]:
        return [printable(name[:_MAX_NAME]) for name in self._tree.names[begin:]]


def static_flame(
    tree: FlameTree,
    own: Values,
    unit: Unit,
    title: str,
    empty: str = "",
    note: str = "",
    inverted: bool = False,
    before: Values | None = None,
) -> Static:
    """Return a flame graph for a saved notebook: a picture, and the hottest stacks in words."""
    text = _text(tree, own, unit, title, empty)
    stacks = "\n".join(map(escape, _hottest(tree, own, unit).split("\n")))
    words = f"<details><summary>the hottest stacks</summary><pre>{stacks}</pre></details>"
    below = f"<div>{escape(note)}</div>" if note else ""
    if empty:
        return Static(text, f"<div>{escape(empty)}</div>{below}")
    from bpfnb.views.plots.figure import png  # with matplotlib
    from bpfnb.views.plots.flame import draw

    figure: Any = draw(tree, own, unit, inverted=inverted, before=before).figure
    return Static(text, f"{below}{words}", png(figure))


def amount(value: float, unit: Unit) -> str:
    """Write what was counted, with its unit: "1,234", "1.23 s", "4 MiB"."""
    if unit == "count":
        return f"{value:,.15g}"
    steps: Sequence[tuple[float, str]] = _BYTES if unit == "bytes" else _TIMES
    size, name = next((step for step in steps if value >= step[0]), steps[-1])
    return f"{value / size:.3g} {name}" if value / size < 1000 else f"{value / size:,.0f} {name}"


_TIMES = ((1e9, "s"), (1e6, "ms"), (1e3, "us"), (1, "ns"))
_BYTES = ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"), (1, "B"))


def _text(tree: FlameTree, own: Values, unit: Unit, title: str, empty: str) -> str:
    return f"{printable(title)}\n{printable(empty) if empty else _hottest(tree, own, unit)}"


def _hottest(tree: FlameTree, own: Values, unit: Unit) -> str:
    total = own.sum().item() or 1
    lines = []
    for path, value in tree.hottest(own, _HOTTEST):
        names = " > ".join(printable(shown(name)) for name in path)
        if len(names) > _MAX_PATH:
            names = f"{names[: _MAX_PATH // 4]} ... {names[-(_MAX_PATH * 3 // 4) :]}"
        lines.append(f"{value / total:6.1%}  {amount(value, unit):>10}  {names}")
    return "\n".join(lines)


def _name(source: Any) -> str:
    if isinstance(source, FlameGraph):
        return source.name
    if isinstance(source, pd.DataFrame):
        return "DataFrame"
    return Path(source).name if isinstance(source, str | os.PathLike) else str(source.name)


def _numbers(*values: Values | None) -> tuple[str, Callable[[Values], bytes]]:
    """Return how numbers travel: as int32 where all fit, else as float64, and what writes them so."""
    small = all(v is None or (v.dtype.kind == "i" and (not len(v) or v.max() < 2**31)) for v in values)
    kind = "i4" if small else "f8"
    return kind, lambda numbers: numbers.astype(f"<{kind}").tobytes()
