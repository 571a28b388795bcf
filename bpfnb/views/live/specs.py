"""From what ``live()`` was given to views: sessions, outputs, maps and ViewSpecs -> ViewSpecs -> Views."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

from bpfnb.errors import ProgramError
from bpfnb.results.maps.map import Map
from bpfnb.results.output import Output
from bpfnb.results.snapshot import SessionState, Snapshot
from bpfnb.views.live.counters import CountersView
from bpfnb.views.live.counts.heatmap import HeatmapView
from bpfnb.views.live.counts.hist import HistView
from bpfnb.views.live.counts.top import TopView
from bpfnb.views.live.fitting import fitting_maps, fitting_view, spec_of_map
from bpfnb.views.live.flame import FlameView
from bpfnb.views.live.rates import RatesView
from bpfnb.views.live.view import View, ViewKind, ViewSpec

__all__ = ["KINDS", "Played", "Traced", "ended", "sessions_of", "specs_of", "views_of"]


class Traced(Protocol):
    """What a panel needs of a session: bpfnb.session.Session."""

    @property
    def name(self) -> str: ...
    @property
    def state(self) -> SessionState: ...
    def snapshot(self) -> Snapshot: ...
    def stop(self) -> None: ...


@runtime_checkable
class Played(Protocol):
    """A recording that is played (bpfnb.session.replay.Replay): its clock can be held."""

    def pause(self) -> None: ...
    def resume(self) -> None: ...


# A row a kind: what makes the view, of one spec; "rates" and "counters" of several sessions, in one picture.
KINDS: dict[ViewKind, Callable[[Sequence[ViewSpec]], View]] = {
    "rates": RatesView,
    "counters": CountersView,
    "hist": HistView,
    "heatmap": HeatmapView,
    "top": TopView,
    "flame": FlameView,
}
_SHARED: tuple[ViewKind, ...] = ("rates", "counters")
_SESSION = ("name", "state", "snapshot", "outputs", "maps", "stop")


def specs_of(
    things: Sequence[Any], by: str | None = None, output: str | None = None, window: float = 60.0
) -> list[list[ViewSpec]]:
    """Return the views that were asked for, as groups of specs: a group a view. Sessions share one picture of rates.

    ProgramError for nothing, and for what cannot be shown.
    """
    if not things:
        raise ProgramError("live() needs a session: bpfnb.live(clones)")
    groups: list[list[ViewSpec]] = []
    shared: dict[ViewKind, list[ViewSpec]] = {}
    for thing in things:
        for spec in _specs(thing, by, output, window):
            if isinstance(thing, ViewSpec):
                groups.append([spec])
            elif spec.kind not in _SHARED:
                groups += [[spec]] if [spec] not in groups else []  # a session, and a map of its
            elif spec.kind in shared:
                shared[spec.kind].append(spec)
            else:
                shared[spec.kind] = [spec]
                groups.append(shared[spec.kind])
    if "rates" in shared:
        shared["rates"][:] = _without_twice(shared["rates"])
    return sorted(groups, key=lambda group: group[0].kind == "counters")


def _without_twice(specs: Sequence[ViewSpec]) -> list[ViewSpec]:
    """Leave out an output whose session is there too: it has a line already, of the same name."""
    whole = {id(spec.session) for spec in specs if spec.output is None}
    kept = [spec for spec in specs if spec.output is None or id(spec.session) not in whole]
    return list({(id(spec.session), spec.output): spec for spec in kept}.values())


def views_of(groups: Sequence[Sequence[ViewSpec]]) -> list[View]:
    """Make the views. Raises what a view's maker raises, such as ValueError for an unknown column."""
    return [KINDS[group[0].kind](group) for group in groups]


def sessions_of(groups: Sequence[Sequence[ViewSpec]]) -> list[Traced]:
    """Return the sessions that the views are about, each once."""
    found: dict[int, Traced] = {}
    for group in groups:
        for spec in group:
            found.setdefault(id(spec.session), spec.session)
    return list(found.values())


def ended(sessions: Sequence[Traced]) -> bool:
    """Return whether none of them runs any more."""
    return all(session.state not in ("starting", "running") for session in sessions)


def _specs(thing: Any, by: str | None, output: str | None, window: float) -> list[ViewSpec]:
    """Return the views of one thing that was given to ``live()``."""
    if isinstance(thing, ViewSpec):
        return [thing]
    if isinstance(thing, Map) and thing.session is not None:
        return [spec_of_map(thing.session, thing.name)._replace(by=by, window=window)]
    if isinstance(thing, Output) and (session := thing.owner()) is not None:
        return [ViewSpec(session, "rates", by=by, output=thing.name, window=window)]
    if not all(hasattr(thing, name) for name in _SESSION):
        raise ProgramError(f"live() shows sessions, outputs, maps and views, not {type(thing).__name__}")
    kind = fitting_view(thing)
    if kind is None and output is None and not thing.outputs and thing.maps and (maps := fitting_maps(thing)):
        return [spec._replace(by=by, window=window) for spec in maps]
    views = [ViewSpec(thing, kind or "rates", by=by, output=output, window=window)]
    return views if kind not in (None, "rates") else [*views, ViewSpec(thing, "counters")]
