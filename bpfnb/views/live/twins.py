"""Static twins: views as they are kept in a notebook's file, for wherever the widget does not run."""

from __future__ import annotations

import base64
import time

from bpfnb.errors import escape, printable
from bpfnb.views import html
from bpfnb.views.live.view import Static, View
from bpfnb.views.notebook import Bundle

__all__ = ["Twin"]


class Twin:
    """A view's static twin. ``mark``: the widget's; where that is on the page, the twin is hidden."""

    def __init__(self, view: View, mark: str) -> None:
        self._view: View | None = view
        self._mark = mark
        self._static: Static | None = None

    def placeholder(self) -> Bundle:
        """Return what stands there until the twin is drawn the first time."""
        return self._hidden(self._caption(), printable(self._title()))

    def renewed(self) -> Bundle | None:
        """Return the view as it is now, hidden where the widget is; None if it has not changed."""
        static = self._drawn()
        if static == self._static:
            return None
        self._static = static
        as_of = time.strftime("%H:%M:%S")
        page = f"{self._caption(f'as of {as_of}')}{static.html}{_image(static)}"
        return {**self._hidden(page, static.text), **_raw(static)}

    def final(self) -> Bundle:
        """Return the view as it is now, for good."""
        if self._view:
            self._static = self._drawn()
        static = self._static or Static("")
        if not static.html and static.mimetype == "image/png" and static.image:
            return {**_raw(static), "text/plain": static.text}
        page = f"{self._caption()}{static.html}{_image(static)}"
        return {"text/html": html.card(page), "text/plain": static.text, **_raw(static)}

    def let_go(self) -> None:
        self._title_kept = self._title()
        self._view = None

    def _title(self) -> str:
        return self._view.title if self._view else self._title_kept

    def _drawn(self) -> Static:
        assert self._view
        try:
            return self._view.static()
        except Exception as error:
            why = f"{type(error).__name__}: {printable(str(error))[:500]}"
            return Static(why, f'<div style="color:{html.BAD}">{escape(why)}</div>')

    def _caption(self, more: str = "") -> str:
        words = " ".join(filter(None, [escape(self._title()), more]))
        return f"<div>{html.muted(words)}</div>" if words else ""

    def _hidden(self, page: str, text: str) -> Bundle:
        """Return a page whose rules hide it where the widget is, and hide what JupyterLab says of widgets whose kernel
        is gone."""
        mark, live = f"bpfnb-twin-{self._mark}", f"bpfnb-live-{self._mark}"
        output = ".jp-OutputArea-child"
        rules = (
            f"body:has(.{live}) .{mark}, body:has(.{live}) {output}:has(.{mark}),"
            f" {output}:has(~ {output} .{mark}) > .jupyter-widgets:not(:has(*)) {{ display: none }}"
        )
        return {"text/html": f'<style>{rules}</style><div class="{mark}">{html.card(page)}</div>', "text/plain": text}


def _image(static: Static) -> str:
    if not static.image:
        return ""
    data = base64.b64encode(static.image).decode("ascii")
    return f'<img alt="{escape(static.text)}" style="max-width:100%" src="data:{static.mimetype};base64,{data}">'


def _raw(static: Static) -> Bundle:
    if not static.image:
        return {}
    if static.mimetype == "image/svg+xml":
        return {static.mimetype: static.image.decode()}
    return {static.mimetype: base64.b64encode(static.image).decode("ascii")}
