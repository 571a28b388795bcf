"""A reader of Perfetto's traces, by Perfetto's own schema (package perfetto) and the rules of its trace processor:
src/trace_processor/importers/proto/{proto_trace_reader,track_event_tokenizer,stack_profile_sequence_state}.cc."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from google.protobuf.unknown_fields import UnknownFieldSet
from perfetto.protos.perfetto.trace import perfetto_trace_pb2 as pb

__all__ = ["Trace", "read_trace"]


class Slice(NamedTuple):
    """``end``: None of an instant. ``track``: the names from the outermost track inwards."""

    name: str
    begin: int
    end: int | None
    pid: int | None
    tid: int | None
    track: tuple[str, ...]
    args: dict[str, Any]
    category: str


@dataclass
class Trace:
    """``clock``: the trace's own, which all times are of. ``samples``: pid, tid, time, functions outermost first."""

    clock: int = 0
    snapshot: dict[int, int] = field(default_factory=dict)
    processes: dict[int, str] = field(default_factory=dict)
    threads: dict[tuple[int, int], str] = field(default_factory=dict)
    slices: list[Slice] = field(default_factory=list)
    instants: list[Slice] = field(default_factory=list)
    counters: list[tuple[tuple[str, ...], int, float]] = field(default_factory=list)
    samples: list[tuple[int, int, int, tuple[tuple[str, str], ...]]] = field(default_factory=list)


def read_trace(path: Path) -> Trace:
    """Read a trace; assert what trace_processor counts as an error."""
    whole = pb.Trace()
    whole.ParseFromString(path.read_bytes())
    _require_known(whole)
    trace, tracks, interned, timed = Trace(), {}, {}, []
    valid, default_clock = False, 0
    for packet in whole.packet:
        assert packet.trusted_packet_sequence_id
        if packet.sequence_flags & pb.TracePacket.SEQ_INCREMENTAL_STATE_CLEARED:
            interned, valid = {}, True
            default_clock = packet.trace_packet_defaults.timestamp_clock_id
        if packet.sequence_flags & pb.TracePacket.SEQ_NEEDS_INCREMENTAL_STATE:
            assert valid
        if packet.HasField("clock_snapshot"):
            trace.snapshot = {clock.clock_id: clock.timestamp for clock in packet.clock_snapshot.clocks}
            trace.clock = packet.clock_snapshot.primary_trace_clock
        for kind, entries in packet.interned_data.ListFields():
            for entry in entries:
                assert (kind.name, entry.iid) not in interned
                interned[kind.name, entry.iid] = entry
        if packet.HasField("track_descriptor"):
            _describe(trace, tracks, packet.track_descriptor)
        if packet.HasField("track_event") or packet.HasField("perf_sample"):
            shift = trace.snapshot[trace.clock] - trace.snapshot[default_clock]
            timed.append((packet.timestamp + shift, packet, interned))
    for time, packet, names in sorted(timed, key=lambda entry: entry[0]):  # stable, as trace_processor sorts
        if packet.HasField("perf_sample"):
            sample = packet.perf_sample
            trace.samples.append((sample.pid, sample.tid, time, _functions(names, sample.callstack_iid)))
        else:
            _event(trace, tracks, time, packet.track_event, names)
    assert not any(track.open for track in tracks.values())
    return trace


def _require_known(message: Any) -> None:
    """Assert that the schema has all fields, in all messages below."""
    assert not len(UnknownFieldSet(message))
    for kind, value in message.ListFields():
        if kind.type == kind.TYPE_MESSAGE:
            for each in value if isinstance(value, Sequence) else [value]:
                _require_known(each)


@dataclass
class _Track:
    name: str
    parent: _Track | None
    pid: int | None
    tid: int | None
    counter: bool
    open: list[tuple[int, Any, dict[Any, Any]]] = field(default_factory=list)

    @property
    def names(self) -> tuple[str, ...]:
        return (*(self.parent.names if self.parent else ()), self.name)


def _describe(trace: Trace, tracks: dict[int, _Track], described: Any) -> None:
    parent = tracks[described.parent_uuid] if described.parent_uuid else None
    pid, tid = (parent.pid, parent.tid) if parent else (None, None)
    name = described.name
    if described.HasField("process"):
        assert described.process.HasField("pid")
        pid, name = described.process.pid, described.process.process_name
        trace.processes[pid] = name or trace.processes.get(pid, "")
    if described.HasField("thread"):
        assert described.thread.HasField("pid")
        assert described.thread.HasField("tid")
        pid, tid, name = described.thread.pid, described.thread.tid, described.thread.thread_name
        trace.threads[pid, tid] = name
    known = tracks.get(described.uuid)
    open_ = known.open if known else []
    tracks[described.uuid] = _Track(name, parent, pid, tid, described.HasField("counter"), open_)


def _event(trace: Trace, tracks: dict[int, _Track], time: int, event: Any, names: dict[Any, Any]) -> None:
    track = tracks[event.track_uuid]
    if event.type == pb.TrackEvent.TYPE_COUNTER:
        assert track.counter
        value = event.counter_value if event.HasField("counter_value") else event.double_counter_value
        trace.counters.append((track.names, time, value))
        return
    assert not track.counter
    if event.type == pb.TrackEvent.TYPE_SLICE_BEGIN:
        track.open.append((time, event, names))
        assert len(track.open) == 1  # slices of one track do not overlap: they would be cut
        return
    begin, first, then = track.open.pop() if event.type == pb.TrackEvent.TYPE_SLICE_END else (time, event, names)
    args = {}
    for annotation in first.debug_annotations:
        value = getattr(annotation, annotation.WhichOneof("value"))
        if annotation.WhichOneof("value") == "string_value_iid":
            value = then["debug_annotation_string_values", value].str.decode()
        args[then["debug_annotation_names", annotation.name_iid].name] = value
    made = Slice(
        then["event_names", first.name_iid].name,
        begin,
        time if first is not event else None,
        track.pid,
        track.tid,
        track.names,
        args,
        then["event_categories", first.category_iids[0]].name,
    )
    (trace.instants if made.end is None else trace.slices).append(made)


def _functions(names: dict[Any, Any], stack: int) -> tuple[tuple[str, str], ...]:
    found = []
    for frame_id in names["callstacks", stack].frame_ids:
        frame = names["frames", frame_id]
        mapping = names["mappings", frame.mapping_id]
        path = names["mapping_paths", mapping.path_string_ids[0]].str.decode()
        found.append((names["function_names", frame.function_name_id].str.decode(), path))
    return tuple(found)
