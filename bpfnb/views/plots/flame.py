"""A flame graph as a picture: a row a level, a frame as wide as what was counted in it."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator

from bpfnb.results.flame.fold import Folded, Unit, Values
from bpfnb.results.flame.kinds import KINDS, shown
from bpfnb.results.flame.tree import FlameTree, own_values, totals
from bpfnb.views.plots import style
from bpfnb.views.plots.figure import axes_of

__all__ = ["FILLS", "INK", "draw", "draw_folded"]

# Those of light pages in frontend/widgets/src/flame/palette.js: text on them is dark, so they do for dark pages too.
FILLS = ("#d4d7d8", "#a2c4fe", "#ffb166", "#dcfca2", "#d585e1", "#a2a2a2")
LESS, SAME, MORE = "#4393c3", "#f1f1f1", "#e8775f"
INK = "#1b1f24"

_MAX_ROWS = 32
_LEAST = 0.0012  # of the width: a pixel
_TEXT = 0.03  # of the width, from which on a frame has its name
_CHARACTER = 0.0082  # of the width: about what one takes at the size of the names
_SIZE = 7.0


def draw_folded(folded: Folded, ax: Axes | None = None, *, inverted: bool = False, theme: str = "auto") -> Axes:
    """Draw stacks that were added up."""
    tree = FlameTree(len(folded.by))
    return draw(tree, own_values(tree, folded), folded.unit, ax, inverted=inverted, theme=theme)


def draw(
    tree: FlameTree,
    own: Values,
    unit: Unit = "count",
    ax: Axes | None = None,
    *,
    inverted: bool = False,
    theme: str = "auto",
    before: Values | None = None,
) -> Axes:
    """Draw a tree. Of deeper ones the first levels; frames narrower than a pixel are left out."""
    total = totals(tree, own).astype(np.float64)
    starts, depths = _places(tree, total), tree.depths()
    rows = min(int(depths[total > 0].max(initial=0)), _MAX_ROWS) + 1
    ax, colours, _ = axes_of(ax, theme, 0.55 + 0.19 * max(rows, 4))
    whole = total[0]
    if not whole:
        style.empty(ax, "no stacks were counted")
        return ax
    drawn = np.flatnonzero((total >= _LEAST * whole) & (depths < rows))
    kinds = tree.kinds()[tree.name_numbers()]
    fills = _changes(total, totals(tree, before)) if before is not None else np.array(FILLS, object)[kinds]
    edge = colours.background if colours.background != "none" else "white"
    left, right, y = starts[drawn], starts[drawn] + total[drawn], depths[drawn].astype(np.float64)
    corners: Any = np.stack([np.stack([x, y + up], 1) for x, up in ((left, 0), (right, 0), (right, 1), (left, 1))], 1)
    ax.add_collection(PolyCollection(corners, facecolors=fills[drawn].tolist(), edgecolors=edge, linewidths=0.5))
    for node in drawn[total[drawn] >= _TEXT * whole].tolist():
        name = shown(tree.names[tree.name_numbers()[node]]) if node else "all"
        room = int(total[node] / whole / _CHARACTER) - 1
        if room >= 2:
            text = ax.text(starts[node] + 0.004 * whole, depths[node] + 0.53, "", va="center", color=INK, clip_on=True)
            style.plain(text, _SIZE).set_text(style.legible(name, room))
    _frame(ax, whole, rows, unit, inverted)
    _legend(ax, kinds[drawn], before is not None, colours)
    return ax


def _places(tree: FlameTree, total: Any) -> Any:
    """Return where each node begins: brothers stand beside each other, by name."""
    parents, numbers = tree.parents(), tree.name_numbers()
    order = np.array(sorted(range(1, len(tree)), key=lambda node: tree.names[numbers[node]]), np.int64)
    order = order[np.argsort(tree.depths()[order], kind="stable")] if len(order) else order
    starts, ends = np.zeros(len(tree)), np.zeros(len(tree))
    for node in order.tolist():  # callers before those they call
        parent = parents[node]
        starts[node] = ends[node] = ends[parent]
        ends[parent] += total[node]
    return starts


def _changes(now: Any, before: Any) -> Any:
    """Return colours: red for more than before, blue for less, the stronger the more of it changed."""
    most = np.maximum(np.maximum(now, before), 1e-300)
    shares = (now - before) / most
    base, less, more = (np.array([int(c[i : i + 2], 16) for i in (1, 3, 5)]) for c in (SAME, LESS, MORE))
    strength = np.sqrt(np.abs(shares))[:, np.newaxis]
    mixed = base + (np.where(shares[:, np.newaxis] < 0, less, more) - base) * strength
    return np.array([f"#{r:02x}{g:02x}{b:02x}" for r, g, b in mixed.round().astype(int).tolist()], object)


def _frame(ax: Axes, whole: float, rows: int, unit: Unit, inverted: bool) -> None:
    ax.set_xlim(0, whole)
    ax.set_ylim(*((0, rows) if inverted else (rows, 0)))
    ax.yaxis.set_major_locator(MaxNLocator(1))
    ax.yaxis.set_visible(False)
    ax.grid(visible=False)
    for spine in ax.spines.values():
        spine.set_visible(False)
    write = style.with_unit(None if unit == "count" else unit)
    ax.xaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: write(value)))
    words = {"count": "counted", "ns": "time", "bytes": "bytes"}
    style.plain(ax.xaxis.label).set_text(words[unit])


def _legend(ax: Axes, kinds: Any, compared: bool, colours: style.Colours) -> None:
    if compared:
        names, fills = ["less than before", "as before", "more than before"], [LESS, SAME, MORE]
    else:
        used = [kind for kind in sorted(set(kinds.tolist())) if kind]
        names, fills = [KINDS[kind] for kind in used], [FILLS[kind] for kind in used]
    patches = [Patch(facecolor=fill, edgecolor="none") for fill in fills]
    made = ax.legend(
        patches, ["x"] * len(patches), frameon=False, ncols=len(patches) or 1, loc="lower left",
        bbox_to_anchor=(0, 1.0), borderaxespad=0.2, handlelength=1.0, handleheight=1.0, columnspacing=1.4,
    )  # fmt: skip
    for text, name in zip(made.get_texts(), names, strict=True):
        style.plain(text).set_text(name)
        text.set_color(colours.ink)
