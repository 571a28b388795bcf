"""Outputs of notebook cells that can be replaced later, also from a thread.

IPython is looked up, not imported: if nobody imported it, this is no notebook. Outside a notebook (a script, IPython in
a terminal) nothing can be shown, and nothing here does anything.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any
from uuid import uuid4

__all__ = ["EMPTY", "DisplayHandle", "Notebook", "notebook"]

_process = os.getpid()
Bundle = Mapping[str, Any]  # mimetype -> data
EMPTY: Bundle = {"text/html": "", "text/plain": ""}  # an output that nobody sees; without any data nbconvert warns


class Notebook:
    """The notebook that this process is the kernel of."""

    def __init__(self, shell: Any) -> None:
        self._shell = shell
        # Taken now, since %%capture swaps it for a while, which must not affect the refresh thread.
        self._publisher = shell.display_pub

    @property
    def cell(self) -> int:
        """The number of the cell being run."""
        return int(self._shell.execution_count)

    @property
    def cell_id(self) -> str | None:
        """The id of that cell in its notebook, where the page tells it."""
        parent = self._shell.kernel.get_parent()
        return parent.get("metadata", {}).get("cellId") or None

    @property
    def kernel(self) -> Any:
        return self._shell.kernel

    def display(self, bundle: Bundle, metadata: Bundle | None = None) -> DisplayHandle:
        """Show something in the cell being run."""
        return DisplayHandle(self._publisher, bundle, metadata)

    def at_cell_start(self, callback: Callable[[Any], None]) -> None:
        """Call it with IPython's ExecutionInfo whenever a cell is run."""
        self._shell.events.register("pre_run_cell", callback)

    def at_cell_end(self, callback: Callable[[Any], None]) -> None:
        self._shell.events.register("post_run_cell", callback)

    def forget(self, *callbacks: Callable[[Any], None]) -> None:
        """Call them no more. What was not to be called does no harm."""
        for event in ("pre_run_cell", "post_run_cell"):
            for callback in callbacks:
                with suppress(ValueError):
                    self._shell.events.unregister(event, callback)


class DisplayHandle:
    """An output of a cell, which can be replaced."""

    def __init__(self, publisher: Any, bundle: Bundle, metadata: Bundle | None = None) -> None:
        self._publisher = publisher
        self._id = uuid4().hex
        self._publish(bundle, metadata or {}, update=False)

    def replace(self, bundle: Bundle, metadata: Bundle | None = None) -> None:
        """Show something else instead, also in the notebook's file."""
        self._publish(bundle, metadata or {}, update=True)

    def _publish(self, bundle: Bundle, metadata: Bundle, update: bool) -> None:
        self._publisher.publish(
            data=dict(bundle), metadata=dict(metadata), transient={"display_id": self._id}, update=update
        )


def notebook() -> Notebook | None:
    """Return the notebook that runs this process, or None: also in a child that it has forked, where no page would be
    heard and no thread of ours goes on."""
    if os.getpid() != _process:
        return None
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return Notebook(shell) if getattr(shell, "kernel", None) is not None else None
