"""A session at one moment: what views, lists and panels show."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from bpfnb.protocol.messages import ProbeInfo
from bpfnb.results.events.rows import Sample

__all__ = ["SessionState", "Snapshot"]

# "failed": the tracer died, and what was collected remains. "detaching" (of a Snapshot only): it has stopped, and the
# kernel still lets go of what it was attached to.
SessionState = Literal["starting", "running", "stopped", "failed"]


class Snapshot(Struct, frozen=True):
    """A session at one moment. It does not change, and holds nothing of the session."""

    name: str
    state: SessionState | Literal["detaching"]
    rows: int
    lost: int
    dropped: int
    seconds: float  # since it started, until it ended
    probes: tuple[ProbeInfo, ...]
    outputs: tuple[tuple[str, int, int], ...]  # name, rows, lost
    reason: str = ""  # why it ended
    maps: tuple[tuple[str, str, int], ...] = ()  # name, kind, updates refused
    pins: tuple[tuple[str, str], ...] = ()  # name of a map, the file it is pinned at
    notes: tuple[str, ...] = ()  # such as that it replaces another
    cost: str = ""  # what its programs take, where it is known
    shares: tuple[float, float] | None = None  # of a CPU: what its programs take, and the tracer to read its events
    filters: str = ""  # whom it is about, where that is not everybody
    title: str = ""  # what it shows, of a tool
    newest: Sample | None = None  # rows of its df, of a session that has ended and has rows
    host: str = ""  # where it runs, where that is not this machine
    entries: tuple[tuple[str, int], ...] = ()  # of maps, where they are known: how many
    recording: str = ""  # where it is recorded while it runs, and how much that is
    recorded: str = ""  # of a recording: where and when that was made, and what it lacks

    @property
    def has_rows(self) -> bool:
        """Whether rows are shown: a session that only has maps has none, and "0 rows" would look like a failure."""
        return bool(self.outputs or not self.maps)
