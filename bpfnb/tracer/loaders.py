"""Which loader each kind of program has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from bpfnb.language.program import Kind, Program
from bpfnb.tracer.access.confine import Confinement
from bpfnb.tracer.cancel import Cancel
from bpfnb.tracer.compile.compiler import Compiler
from bpfnb.tracer.compile.loader import BccLoader
from bpfnb.tracer.link.kinds import Files
from bpfnb.tracer.loaded import Loaded

__all__ = ["Loader", "Loaders", "loaders"]


class Loader(Protocol):
    """Makes programs and maps of a Program; for any thread."""

    def load(self, program: Program, files: Files, confinement: Confinement, cancel: Cancel) -> Loaded:
        """Load a program whose probes are there.

        ``files``: the notebook's folder and the USDT probes found. ``confinement``: what its programs may not do;
        NotAllowed where one does. ``cancel``: ends the wait, with CancelledError. A BpfnbError where it cannot be
        loaded; then nothing stays.
        """


Loaders = Mapping[Kind, Loader]


def loaders(compiler: Compiler) -> Loaders:
    """Return the loader of each kind of program: a row for each."""
    return {
        "bcc": BccLoader(compiler),
    }
