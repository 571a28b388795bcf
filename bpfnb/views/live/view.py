"""What a view on a panel is: the data of one picture, kept up to date, for the browser and for a saved notebook.

A view has a class here, in Python, which reads a session and says what the browser lacks, and a renderer of the same
kind in ``frontend/widgets/src/views``, which draws. The panel owns both, and carries what goes between them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, Protocol

from bpfnb.errors import printable

__all__ = ["Part", "Static", "View", "ViewKind", "ViewSpec", "now_of"]

ViewKind = Literal["rates", "hist", "heatmap", "top", "flame", "counters"]


class ViewSpec(NamedTuple):
    """A view that was asked for: ``session.view("heatmap", "latency")``. None: the view's own choice.

    ``value``    a column of numbers: what hist and heatmap put into buckets
    ``by``       a column: a line, or a row, for each of its values
    ``output``   an output's name
    ``map``      a map's name, instead of an output
    ``top``      how many values of ``by``, or rows; the rest is summed as "other"
    ``window``   seconds that are shown
    """

    session: Any
    kind: ViewKind
    value: str | None = None
    by: str | None = None
    output: str | None = None
    map: str | None = None
    top: int = 10
    window: float = 60.0

    def __repr__(self) -> str:
        of = ", ".join(filter(None, [self.value, self.output, self.map]))
        words = f"{self.kind} of {self.session.name}{f': {of}' if of else ''}{f' by {self.by}' if self.by else ''}"
        return f"<ViewSpec {printable(words)}; bpfnb.live(it) shows it>"


def now_of(session: Any) -> Callable[[], float]:
    """Return what tells the present of a session, in seconds since 1970. Of a recording that is played it was then."""
    now: Callable[[], float] = getattr(session, "now", time.time)
    return now


class Part(NamedTuple):
    """Data for the browser. ``header``: what JSON can hold; ``buffers``: arrays of numbers, little-endian, of the types
    that the header names."""

    header: dict[str, Any]
    buffers: tuple[bytes, ...] = ()


class Static(NamedTuple):
    """A view as it is kept in a notebook's file. ``image``: a PNG or an SVG, or b"" where ``html`` says all."""

    text: str
    html: str = ""
    image: bytes = b""
    mimetype: Literal["image/png", "image/svg+xml"] = "image/png"


class View(Protocol):
    """Made on the caller's thread: its mistakes are raised there. After that only the refresh thread calls it."""

    @property
    def kind(self) -> ViewKind: ...

    @property
    def title(self) -> str:
        """Return what stands above the view: of which session, output or map it is. Not escaped."""

    def update(self, last: bool) -> None:
        """Read what is new. ``last``: nothing more will come, so the newest interval is whole."""

    def whole(self) -> Part:
        """Return all that the browser needs to draw the view from nothing."""

    def delta(self) -> Part | None:
        """Return what has changed since ``whole`` or ``delta`` was called last; None where nothing has."""

    def choose(self, **choices: Any) -> None:
        """Take what a person chose on the page (window, by, top, log, ...). ValueError, in one line, for what cannot be
        chosen: choices come from a page and are checked like any input. The panel sends ``whole`` next."""

    def static(self) -> Static:
        """Return the view as it is now, for a saved notebook."""
