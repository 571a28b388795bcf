"""A panel in outputs that a card has kept for it, of a cell that has run: nothing new can be shown there any more."""

from __future__ import annotations

from bpfnb.views.notebook import EMPTY, Bundle, DisplayHandle, Notebook

__all__ = ["Below"]


class Below(Notebook):
    """The notebook as a panel sees it that is opened below a card. What it shows first, its widget, goes into the first
    of two outputs, which is empty again in the end, as the card has the numbers; all else into the second, together."""

    def __init__(self, where: Notebook, cell: int, cell_id: str | None, widget: DisplayHandle, rest: DisplayHandle):
        self.__dict__.update(where.__dict__)
        self._cell, self._cell_id = cell, cell_id
        self._widget, self._rest = widget, rest
        self._places: list[_Part] | None = None

    @property
    def cell(self) -> int:
        return self._cell

    @property
    def cell_id(self) -> str | None:
        return self._cell_id

    def display(self, bundle: Bundle, metadata: Bundle | None = None) -> DisplayHandle:
        if self._places is None:
            self._places = []
            self._widget.replace(EMPTY)  # JupyterLab hides an output whose widget has closed, whatever comes there next
            self._widget.replace(bundle)
            return _Emptied(self._widget)
        part = _Part(self._rest, self._places)
        self._places.append(part)
        part.replace(bundle)
        return part


class _Emptied(DisplayHandle):
    """An output that is empty from the next change on."""

    def __init__(self, handle: DisplayHandle) -> None:
        self._handle = handle

    def replace(self, bundle: Bundle, metadata: Bundle | None = None) -> None:
        self._handle.replace(EMPTY)


class _Part(DisplayHandle):
    """A part of an output that shows several things one below another. Those alone keep all that they consist of."""

    def __init__(self, handle: DisplayHandle, parts: list[_Part]) -> None:
        self._handle = handle
        self._parts = parts
        self._bundle: Bundle = {}

    def replace(self, bundle: Bundle, metadata: Bundle | None = None) -> None:
        self._bundle = bundle
        shown = [part._bundle for part in self._parts if part._bundle]
        if len(shown) == 1:
            self._handle.replace(shown[0], metadata)
        else:
            page = "".join(_html(one) for one in shown)
            self._handle.replace({"text/html": page, "text/plain": "\n".join(one["text/plain"] for one in shown)})


def _html(bundle: Bundle) -> str:
    """Return what shows the same as HTML: what else a bundle can be is a picture."""
    if "text/html" in bundle:
        return str(bundle["text/html"])
    if "image/svg+xml" in bundle:
        return f"<div>{bundle['image/svg+xml']}</div>"
    return f'<div><img style="max-width:100%" src="data:image/png;base64,{bundle["image/png"]}"></div>'
