"""A flame graph of the last seconds: what was counted in them, stack by stack."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from bpfnb.errors import ProgramError, printable
from bpfnb.results.flame.fold import Folded, Unit, Values
from bpfnb.results.flame.source import Choice, Piece, watch
from bpfnb.results.flame.tree import FlameTree
from bpfnb.views.flamegraph import FlameParts, static_flame
from bpfnb.views.live.view import Part, Static, ViewKind, ViewSpec, now_of

__all__ = ["FlameView"]

_EVERY = 1.0  # seconds between two looks, at least
_REST = 20  # times what a look has taken until the next
_MAX_KEPT = 2_000_000  # counts of all pieces together; the oldest are dropped
_MAX_NODES = 500_000  # of the tree, which never forgets one: beyond it the view begins anew
_WINDOWS = (
    (10, "last 10 s"),
    (60, "last minute"),
    (300, "last 5 minutes"),
    (900, "last 15 minutes"),
    (3600, "last hour"),
)
_OVER = ("stopped", "failed", "detaching")


class _Kept(NamedTuple):
    begin: float | None  # None: the session's beginning
    end: float
    nodes: npt.NDArray[np.int64]
    values: Values


class FlameView:
    """The flame graph of a session's last seconds, or of a range of them; of a session that has ended, of all of it."""

    kind: ViewKind = "flame"

    def __init__(
        self, specs: Sequence[ViewSpec], now: Callable[[], float] | None = None, every: float = _EVERY
    ) -> None:
        """Raises ProgramError for a session without stacks, or where it is not clear which."""
        (spec,) = specs
        self._session = spec.session
        self._window = _checked_window(spec.window)
        self._range: tuple[float, float] | None = None
        choice = Choice(spec.output, spec.map, spec.value, spec.by)
        self._watch = watch(spec.session, choice)
        self._now = now or now_of(spec.session)
        self._every = every
        self._over = False
        self._due = 0.0
        self._unit: Unit = "count"
        self._by: tuple[str, ...] = ()
        self._state: Folded | None = None  # of a session that shows what there is, not what has come
        self._sent: dict[str, Any] = {}
        self._anew()
        self.update(False)

    @property
    def title(self) -> str:
        when = "all of it" if self._over and not self._range else dict(_WINDOWS).get(int(self._window), "")
        if self._range:
            when = f"{_clock(self._range[0])} to {_clock(self._range[1])}"
        elif self._state is not None:
            when = "now"
        return f"{self._session.name}: flame graph, {when or f'last {self._window:g} s'}"

    def update(self, last: bool) -> None:
        began = time.monotonic()
        if not last and began < self._due:
            return
        self._over = last or self._session.state in _OVER
        for piece in self._watch(self._now()):
            self._take(piece)
        self._drop()
        self._due = time.monotonic() + max(self._every, self._every and _REST * (time.monotonic() - began))

    def whole(self) -> Part:
        self._sent = self._header()
        return self._parts.whole(self.own(), self._sent)

    def delta(self) -> Part | None:
        header = self._header()
        changed = {key: value for key, value in header.items() if self._sent.get(key) != value}
        self._sent = header
        return self._parts.delta(self.own(), changed)

    def choose(self, **choices: Any) -> None:
        """``window``: seconds. ``range``: two times, in seconds since 1970; None: the window again."""
        for name, value in choices.items():
            if name == "window":
                self._window = _checked_window(value)
                self._range = None
            elif name == "range":
                self._range = _checked_range(value)
            else:
                raise ProgramError(f"a flame graph has window and range to choose, not {printable(str(name))[:50]}")

    def static(self) -> Static:
        own = self.own()
        return static_flame(self.tree, own, self._unit, self.title, self._empty(own))

    # --- what was counted ---------------------------------------------------------------------------------------------

    def _anew(self) -> None:
        self.tree = FlameTree(len(self._by))
        self._parts = FlameParts(self.tree)
        self._kept: deque[_Kept] = deque()
        self._sent = {}
        self._since: float | None = None  # what came before is not kept any more

    def _take(self, piece: Piece) -> None:
        folded = piece.folded.positive()
        if (folded.by, folded.unit) != (self._by, self._unit) and not self._kept:
            self._by, self._unit = folded.by, folded.unit
            self._anew()
        if piece.state:
            self._state = folded
            self._kept.clear()
        if len(folded.stacks) or piece.state:
            nodes = self.tree.add(folded.stacks)
            self._kept.append(_Kept(piece.begin, piece.end, nodes, folded.values))

    def _drop(self) -> None:
        """Drop what no window reaches, and the oldest where it is too much."""
        oldest = self._now() - _WINDOWS[-1][0]
        if len(self.tree) > _MAX_NODES:
            self._since = self._now()
            since, self._kept = self._since, deque()
            self._anew()
            self._since = since
        kept = sum(len(piece.values) for piece in self._kept)
        while len(self._kept) > 1 and not self._over and (kept > _MAX_KEPT or self._kept[0].end < oldest):
            piece = self._kept.popleft()
            kept -= len(piece.values)
            self._since = piece.end

    def own(self) -> Values:
        """Return what was counted at each node of ``tree`` in the time that is shown."""
        kinds = {piece.values.dtype.kind for piece in self._kept}
        own: Values = np.zeros(len(self.tree), np.float64 if "f" in kinds else np.int64)
        for piece in self._kept:
            if self._shows(piece):
                np.add.at(own, piece.nodes, piece.values)
        return own

    def _shows(self, piece: _Kept) -> bool:
        if self._state is not None:
            return True
        if self._range:
            begin = self._started() if piece.begin is None else piece.begin
            return piece.end > self._range[0] and begin < self._range[1]
        if self._over:
            return True
        begin = self._started() if piece.begin is None else piece.begin
        return bool(begin >= self._now() - self._window - _EVERY)

    def _started(self) -> float:
        return float(self._now() - self._session.snapshot().seconds)

    def _header(self) -> dict[str, Any]:
        windows = [] if self._over or self._state is not None else [list(choice) for choice in _WINDOWS]
        return {
            "unit": self._unit,
            "groups": printable(", ".join(self._by)),
            "window": self._window,
            "windows": windows or None,
            "range": list(self._range) if self._range else None,
            "empty": self._empty(None),
            "note": self._note(),
            "title": printable(self.title),
        }

    def _empty(self, own: Values | None) -> str:
        if own is not None and own.any():
            return ""
        return "no stacks were counted" if self._over else "no stacks were counted in this time"

    def _note(self) -> str:
        if self._since is None:
            return ""
        return f"what came before {_clock(self._since)} is not kept"


def _checked_window(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 1 <= value <= _WINDOWS[-1][0]:
        raise ProgramError(f"a window is 1 to {_WINDOWS[-1][0]} seconds, not {printable(repr(value))[:50]}")
    return float(value)


def _checked_range(value: Any) -> tuple[float, float] | None:
    if value is None:
        return None
    try:
        begin, end = (float(edge) for edge in value)
    except (TypeError, ValueError):
        raise ProgramError("a range is two times, in seconds since 1970") from None
    if not 0 <= begin < end < 1e11:
        raise ProgramError("a range is two times, the earlier first, in seconds since 1970")
    return begin, end


def _clock(seconds: float) -> str:
    return time.strftime("%H:%M:%S", time.gmtime(seconds))
