"""What a loader hands over: programs and maps in the kernel, however they came about, and what is known of them."""

from __future__ import annotations

import dataclasses
import os
from typing import Literal

from msgspec import Struct

from bpfnb.errors import BpfnbError, Diagnostic
from bpfnb.protocol.messages import MapInfo
from bpfnb.protocol.schema import Schema

__all__ = [
    "Counters",
    "Loaded",
    "LoadedMap",
    "LoadedOutput",
    "NotAllowed",
    "ProgramSpec",
]


class ProgramSpec(Struct, frozen=True):
    """A function, and what it is to be loaded as.

    ``type``: of uapi.ProgramType. ``attach_type``, ``attach_to``: of programs that are loaded for one target (fentry,
    fexit, lsm): of uapi.AttachType, and the function, ``module:function`` or hook; 0 and "" for others. ``optional``:
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
    key: Schema | None = None
    value: Schema | None = None


class Counters(Struct, frozen=True):
    """Numbers that programs keep in an array whose memory can be mapped: its descriptor, and which of them (u64)."""

    fd: int
    first: int = 0
    count: int = 1


class LoadedOutput(Struct, frozen=True):
    """A buffer that programs submit events to, and how they are read from it.

    ``kind``: a perf array; a ring buffer; a ring buffer of printed lines (lines.py). ``schema``: what an event begins
    with. ``lost``: where programs count the events that did not fit. ``sizes``, ``padded``: see PerfSource.
    ``stamped``: each event of a ring buffer ends with the time it was submitted. ``cpu``: events have their CPU's
    number. Descriptors are of the Loaded that has the output.
    """

    name: str
    kind: Literal["perf", "ring", "lines"]
    fd: int
    schema: Schema
    lost: Counters
    sizes: frozenset[int] = frozenset()
    padded: tuple[int, ...] = ()
    stamped: bool = False
    cpu: bool = False


@dataclasses.dataclass
class Loaded:
    """Programs and maps, loaded. ``close`` lets them go.

    ``programs``, ``maps``: their descriptors; of maps all, also those that a loader has added. ``warnings``: about the
    cell. ``rejected``: why the kernel did not take an optional program, by its function. ``map_infos``: the cell's own
    maps. ``outputs``: those that something is submitted to. ``tag``: what each line printed into the trace buffer
    begins with; "" where none is. ``refused``: where programs count refused updates (MapInfo.counters). ``notes``: on
    what is left as it is.
    """

    programs: dict[ProgramSpec, int]
    maps: dict[str, LoadedMap]
    warnings: tuple[Diagnostic, ...] = ()
    rejected: dict[str, BpfnbError] = dataclasses.field(default_factory=dict)
    map_infos: tuple[MapInfo, ...] = ()
    outputs: tuple[LoadedOutput, ...] = ()
    tag: str = ""
    refused: Counters | None = None
    notes: tuple[Diagnostic, ...] = ()

    def close(self) -> None:
        """Close all descriptors. Idempotent."""
        while self.programs:
            os.close(self.programs.popitem()[1])
        while self.maps:
            os.close(self.maps.popitem()[1].fd)


class NotAllowed(BpfnbError):
    """Raised by a loader: a program does what the policy does not allow. Whoever knows the policy says it in full."""

    def __init__(self, what: str, line: int) -> None:
        super().__init__(f"programs that {what} are not allowed", line=line or None)
        self.what = what
