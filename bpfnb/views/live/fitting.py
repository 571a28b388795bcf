"""Which view fits a session, or a map: what ``session.live()`` and ``Map.live()`` show unless told."""

from __future__ import annotations

from typing import Any

from bpfnb.errors import ProgramError
from bpfnb.results.maps.map import Map
from bpfnb.results.presentation import Table
from bpfnb.views.live.view import ViewKind, ViewSpec

__all__ = ["fitting_maps", "fitting_view", "spec_of_map"]

_MAX_VIEWS = 4  # of one session's maps
_ORDER: tuple[ViewKind, ...] = ("hist", "flame", "top")  # which come first


def fitting_view(session: Any) -> ViewKind | None:
    """Return the view of a one-liner's or a tool's ``df``; None for a cell, which has outputs and maps instead."""
    presentation = session.presentation
    if presentation is None:
        return None
    return presentation.view if isinstance(presentation, Table) else "rates"


def fitting_maps(session: Any) -> list[ViewSpec]:
    """Return views of a session's maps, for one that has no rows: histograms first, then stacks, then the rest."""
    kinds = {name: view_of_map(session, map_) for name, map_ in session.maps.items()}
    fitting = [ViewSpec(session, kind, map=name) for kind in _ORDER for name, k in kinds.items() if k == kind]
    return fitting[:_MAX_VIEWS]


def spec_of_map(session: Any, name: str) -> ViewSpec:
    """Return the view of one map, by its name. KeyError for a map that is not there, ProgramError where none fits."""
    map_ = session.maps[name]
    kind = view_of_map(session, map_)
    if kind is None:
        raise ProgramError(f"{name} is a map of kind {map_.kind}: there is no live view of what it holds")
    return ViewSpec(session, kind, map=name)


def view_of_map(session: Any, map_: Map) -> ViewKind | None:
    """Return what shows a map: buckets, stacks that it counts, or its largest entries; None where nothing does."""
    if map_.info.key is None or map_.info.value is None or map_.kind == "stack_trace":
        return None
    if map_.is_histogram:
        return "hist"
    names = [column.name for column in (*map_.info.key.columns, *map_.info.value.columns)]
    if any("stack" in name for name in names) and any(m.kind == "stack_trace" for m in session.maps.values()):
        return "flame"
    return "top" if map_.numbers else None
