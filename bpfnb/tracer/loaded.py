"""What a loader hands over: programs and maps in the kernel, however they came about, and what is known of them."""

from __future__ import annotations

import os

from msgspec import Struct

from bpfnb.errors import BpfnbError, Diagnostic
from bpfnb.protocol.schema import Schema
from bpfnb.tracer.source_map import Handed

__all__ = ["FENTRY", "FEXIT", "LSM_MAC", "Loaded", "LoadedMap", "ProgramSpec"]

FENTRY, FEXIT, LSM_MAC = 24, 25, 27  # enum bpf_attach_type: BPF_TRACE_FENTRY, BPF_TRACE_FEXIT, BPF_LSM_MAC


class ProgramSpec(Struct, frozen=True):
    """A function, and what it is to be loaded as.

    ``type``: enum bpf_prog_type. ``attach_type``, ``attach_to``: of programs that are loaded for one target (fentry,
    fexit, lsm): enum bpf_attach_type, and the function, ``module:function`` or hook; 0 and "" for others. ``optional``:
    where the kernel rejects it, the rest is loaded without.
    """

    function: str
    type: int
    attach_type: int = 0
    attach_to: str = ""
    optional: bool = False


class LoadedMap(Struct, frozen=True):
    """A map or an output: its descriptor, and what its keys and values are where that is known."""

    fd: int
    key: Schema | None
    value: Schema | None


class Loaded:
    """Programs and maps, loaded. ``close`` lets them go.

    ``payloads``: for each of the source's submits that was compiled, what it submits; None altogether where the kernel
    was given no BTF. ``rejected``: why the kernel did not take an optional program, by its function.
    """

    def __init__(
        self,
        programs: dict[ProgramSpec, int],
        maps: dict[str, LoadedMap],
        payloads: dict[int, Handed] | None,
        warnings: tuple[Diagnostic, ...],
        rejected: dict[str, BpfnbError],
    ) -> None:
        self.programs = programs
        self.maps = maps
        self.payloads = payloads
        self.warnings = warnings
        self.rejected = rejected

    def close(self) -> None:
        """Close all descriptors. Idempotent."""
        while self.programs:
            os.close(self.programs.popitem()[1])
        while self.maps:
            os.close(self.maps.popitem()[1].fd)
