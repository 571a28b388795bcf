"""The format of recordings: what lies where, and what it says.

A recording is a folder, or a zip of one::

    manifest.json             ``Manifest``; written first, and replaced as a whole when the recording ends
    outputs/0/000000.arrows   rows of the first output of the manifest: a part, as an Arrow IPC *stream*. A batch a
                              second or a megabyte, each flushed: what was written before a crash can be read
    outputs/0/000001.parquet  a part that is finished may be Parquet instead, with the same columns
    maps/0.arrows             snapshots of the first map of the manifest: ``SNAPSHOTS``; the last one is that at the end
    symbols.arrows            names of code addresses: ``SYMBOLS``
    progress.arrows           how many rows there were by when, and how many events were lost: ``PROGRESS``

No path is written in any of these files: names of folders and parts are numbers. So a forged manifest leads nowhere.
Readers ignore fields that they do not know, and refuse a ``version`` that is newer than theirs.

The columns of a part are those of ``Output.df``, in their order, by their types in protocol.schema:

    time            timestamp[ns, UTC]
    Number          numpy's type of the same name; BitField without labels too
    Enum, Text      dictionary<int32, string>: the names shown; BitField with labels too
    Tail            large_string, or large_binary
    Bytes           large_binary
    Wide            fixed_size_binary[16], little-endian
    NumberArray     a column an element, as a DataFrame has it
"""

from __future__ import annotations

import pyarrow as pa
from msgspec import Struct

from bpfnb.errors import Diagnostic
from bpfnb.language.program import Program
from bpfnb.protocol.messages import MapInfo, ProbeInfo
from bpfnb.protocol.schema import Schema
from bpfnb.results.presentation import Shown

__all__ = ["PROGRESS", "SNAPSHOTS", "SYMBOLS", "VERSION", "CostWords", "Manifest", "OutputInfo", "Shown"]

VERSION = 1

# Entries of a map at one moment: ``count`` keys end to end, then the values, as MapRead lays them out.
SNAPSHOTS = pa.schema(
    [("time", pa.timestamp("ns", "UTC")), ("count", pa.int64()), ("entries", pa.large_binary()), ("lost", pa.int64())]
)
# pid 0: the kernel's. The latest row of an address counts.
SYMBOLS = pa.schema([("pid", pa.int64()), ("address", pa.uint64()), ("name", pa.string()), ("module", pa.string())])
# A row an output and flush. ``rows``: delivered since the session began; ``written``: those of them in the parts;
# ``lost``: events that could not be delivered.
PROGRESS = pa.schema(
    [
        ("time", pa.timestamp("ns", "UTC")),
        ("output", pa.int32()),
        ("rows", pa.int64()),
        ("written", pa.int64()),
        ("lost", pa.int64()),
    ]
)


class OutputInfo(Struct, frozen=True):
    """An output. ``kind``: "printk", "perf" or "ringbuf". ``epoch_ns``: CLOCK_REALTIME minus CLOCK_MONOTONIC as it
    began. ``units``: of columns, "ns" or "bytes". At the end: ``rows`` delivered, ``written`` those in the parts,
    ``lost`` events; -1 while it is being written."""

    name: str
    kind: str
    schema: Schema
    epoch_ns: int
    units: dict[str, str] = {}
    rows: int = -1
    written: int = -1
    lost: int = -1


class CostWords(Struct, frozen=True):
    """What the session's programs took: ``programs`` and the ``words`` of CostsAdded, as they were last."""

    programs: tuple[str, ...] = ()
    words: tuple[int, ...] = ()


class Manifest(Struct, frozen=True):
    """What a recording is of, and how it ended.

    ``state``: "recording" until it has ended, then the session's: "stopped" or "failed". ``began_ns`` and ``ended_ns``:
    wall clock, nanoseconds since 1970; ``epoch_ns``: CLOCK_REALTIME minus CLOCK_MONOTONIC at its beginning.
    ``boot``: /proc/sys/kernel/random/boot_id. ``counters``: updates refused, of each map by errno. ``costs``: None
    where nothing is known. ``note``: why it is not whole, such as that the disk was full; or "".
    """

    version: int
    bpfnb: str
    bcc: str
    kernel: str
    machine: str
    host: str
    boot: str
    name: str
    program: Program
    began_ns: int
    epoch_ns: int
    outputs: tuple[OutputInfo, ...] = ()
    maps: tuple[MapInfo, ...] = ()
    probes: tuple[ProbeInfo, ...] = ()
    warnings: tuple[Diagnostic, ...] = ()
    shown: Shown = Shown()
    command: tuple[str, ...] = ()
    returncode: int | None = None
    state: str = "recording"
    reason: str = ""
    ended_ns: int = 0
    counters: dict[str, dict[int, int]] = {}
    costs: CostWords | None = None
    note: str = ""
