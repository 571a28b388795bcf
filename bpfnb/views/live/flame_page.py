"""A flame graph of one moment on a page: in a notebook's output, with its static twin, or in a file of its own."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any
from uuid import uuid4

import traitlets

from bpfnb.errors import escape, printable
from bpfnb.views.flamegraph import FlameGraph
from bpfnb.views.live.twins import Twin
from bpfnb.views.live.widget import VIEW_MIMETYPE, Bundled
from bpfnb.views.notebook import Notebook, notebook

__all__ = ["FlameWidget", "page", "show"]

_BUNDLE = Path(__file__).parents[1] / "static" / "flame.js"

# The bundle is a module, which a page can only import from an address: it gets one of its own.
_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>%(title)s</title>
<style>:root { color-scheme: light dark } body { margin: 16px; font-family: system-ui, sans-serif }</style>
<body>
<noscript><pre>%(text)s</pre></noscript>
<script type="application/json" id="graph">%(graph)s</script>
<script type="text/plain" id="bundle">%(bundle)s</script>
<script type="module">
const text = (id) => document.getElementById(id).textContent;
const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
const graph = JSON.parse(text("graph"));
graph.data = graph.data.map((data) => new DataView(bytes(data).buffer));
const url = URL.createObjectURL(new Blob([bytes(text("bundle"))], { type: "text/javascript" }));
const { default: widget } = await import(url);
widget.render({ model: { get: (name) => graph[name] }, el: document.body });
</script>
"""


class FlameWidget(Bundled):
    """A flame graph on the page. All of it is in the widget's state: the kernel may be busy, or gone."""

    _esm = traitlets.Unicode(_BUNDLE.read_text(encoding="utf-8")).tag(sync=True)
    mark = traitlets.Unicode().tag(sync=True)  # in the class of the element, for the static twin's rules
    header = traitlets.Dict().tag(sync=True)
    data: Any = traitlets.List().tag(sync=True)


class _Shown:
    """A flame graph in a cell's output, until the cell is run again."""

    def __init__(self, graph: FlameGraph, here: Notebook) -> None:
        part = graph.whole()
        header = {**part.header, "title": printable(graph.title)}
        self._widget = FlameWidget(mark=uuid4().hex[:12], header=header, data=list(part.buffers))
        self._here = here
        self._cell_id = here.cell_id
        here.display({VIEW_MIMETYPE: self._widget.view(), "text/plain": header["title"]})  # the twin has the words
        if twin := Twin(graph, self._widget.mark).renewed():
            here.display(twin)
        here.at_cell_start(self._cell_begins)

    def _cell_begins(self, info: Any) -> None:
        if self._cell_id and getattr(info, "cell_id", None) == self._cell_id:
            self._here.forget(self._cell_begins)
            self._widget.close()


def show(graph: FlameGraph) -> bool:
    """Show a flame graph in the cell being run. Return False where this is no notebook."""
    here = notebook()
    if here is None:
        return False
    _Shown(graph, here)
    return True


def page(graph: FlameGraph) -> str:
    """Return a flame graph as a page of its own."""
    part = graph.whole()
    whole = {
        "mark": "",
        "header": {**part.header, "title": printable(graph.title)},
        "data": [base64.b64encode(buffer).decode("ascii") for buffer in part.buffers],
    }
    return _PAGE % {
        "title": escape(graph.title),
        "text": "\n".join(map(escape, repr(graph).split("\n"))),
        "graph": json.dumps(whole).replace("<", "\\u003c"),  # no end of the script in a name
        "bundle": base64.b64encode(_BUNDLE.read_bytes()).decode("ascii"),
    }
