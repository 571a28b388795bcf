"""A session's maps: read as DataFrames and histograms, read and written as mappings.

    counts = session.maps["counts"]
    counts.df                            every entry, a row each
    counts.hist()                        a histogram
    counts[42], counts[42] = 7           one entry, read or set; keys and values of a struct are dicts or tuples
    len(counts), 42 in counts, counts.items(), counts.clear()
    counts.drain()                       every entry, taken out
    counts.every("1s")                   all of it over time: snapshots
    todo.push(7), todo.pop()             a queue or a stack

Every access asks the kernel again: for one entry, where it names a key, else for the whole map. Nothing is kept but
what the last ``drain`` read (bpfnb.results.maps.baseline).
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, TypeVar

import numpy as np
import pandas as pd

from bpfnb.errors import BpfnbError, ProgramError, UnsupportedError, escape, near_or_all
from bpfnb.interrupts import start_new_thread, undoing
from bpfnb.language.probes import KINDS, parse_probe
from bpfnb.protocol.messages import MapInfo
from bpfnb.protocol.schema import BitField, Number, Rows, Schema, Wide
from bpfnb.results import stacks
from bpfnb.results.buckets import HistKind
from bpfnb.results.columns.kinds import shown
from bpfnb.results.distributions.bars import bars_html, bars_text, number_bars
from bpfnb.results.maps import refusals
from bpfnb.results.maps.baseline import Baseline, Counter, counters
from bpfnb.results.maps.entries import Entries, MapAccess, Snapshot, Still, Taking
from bpfnb.results.maps.frames import NO_SCHEMA, REDUCTIONS, EntryFrames, Reduction
from bpfnb.results.maps.histograms import histogram
from bpfnb.results.maps.kinds import ARRAYS, HOLDS, QUEUES, TAKEN
from bpfnb.results.maps.pack import pack
from bpfnb.results.maps.padding import count_duplicates, hidden_bytes
from bpfnb.results.maps.snapshots import MapSnapshots
from bpfnb.results.rates import interval
from bpfnb.results.table import with_bars, with_escapes

__all__ = ["Map"]

Made = TypeVar("Made")

_SHOWN = 20  # rows of a map's picture
_LRU_HELD = 128

_INDEX = Schema((Number("index", 0, "<u4"),), 4)
_NAMED = {"prog_array": "the name of a function", "cgroup_array": "the path of a cgroup"}  # what is put into them
_DRAINS = ("differences", "entries")


class Map:
    """A map of a session. ``kind``: the kernel's name of its type, such as "percpu_hash". ``info``: all else about it.

    Methods that read raise UnsupportedError for a kind that has no entries to read (an array of programs, a sockmap
    ...). Methods that change the map raise ProgramError when the kernel refuses or the session has stopped.

    Updates that the kernel refused are counted: see ``lost``. The first frame that lacks some comes with a
    RuntimeWarning.
    """

    def __init__(
        self,
        info: MapInfo,
        access: MapAccess,
        replaced: bool = False,
        refused: Callable[[], dict[int, int]] = dict,
        declared: str = "",
        buckets: HistKind = "log2",
    ) -> None:
        """``replaced``: programs only set whole values of this map, and change none in place. ``refused``: how many
        updates by programs failed so far, by errno; 0 where it is not known. ``declared``: where, "line 3" or "".
        ``buckets``: what those of a histogram are, by the cell."""
        self.info = info
        self._access = access
        self._refused = refused
        self._declared = declared
        self.buckets = buckets
        self._key, self._value = info.key or NO_SCHEMA, info.value or NO_SCHEMA
        self._replaced = replaced
        self._entries = Entries(info, access)
        self._frames = EntryFrames(info)
        self._duplicates_said = False
        self._loss_said = False

    @property
    def name(self) -> str:
        return self.info.name

    @property
    def kind(self) -> str:
        return self.info.kind

    @property
    def lost(self) -> int:
        """Updates by the session's programs that the kernel refused so far: the map was full, the index past an array's
        end, a stack's slot taken (get_stackid's -EEXIST), no memory free, the map busy. Costs no request.

        Not counted: ``insert`` of a key that exists, ``lookup`` of one that does not, -EFAULT of get_stackid (there was
        no stack to take), and entries that an LRU map evicts (``df.attrs["full"]`` says that it is full).
        """
        return refusals.total(self._refused())

    @property
    def moment(self) -> int:
        """The time of what is read from it, in nanoseconds of CLOCK_MONOTONIC: now, or when its session ended. Of ages
        of what programs have stamped with bpf_ktime_get_ns()."""
        return self._access.moment

    @property
    def columns(self) -> tuple[list[str], list[str]]:
        """Return the names of the key's and of the value's columns in ``df``."""
        return self._frames.names()

    @property
    def numbers(self) -> list[str]:
        """Return the names of the value's columns that are numbers."""
        names = zip(self._frames.names()[1], shown(self._value.columns), strict=True)
        return [name for name, column in names if isinstance(column, Number | BitField | Wide)]

    @property
    def is_histogram(self) -> bool:
        """Return whether it was declared as one, by BPF_HISTOGRAM or the like."""
        return "HIST" in self.info.macro

    @property
    def session(self) -> Any:
        """Return the session that it belongs to; None for a map that was drained or frozen."""
        return self._access.session

    def live(self, window: float = 60.0) -> Any:
        """Show the map live, in a panel of its own: a histogram's buckets as a histogram that moves, of other maps the
        entries with the largest numbers, or a flame graph of stacks. ``bpfnb.live(a.maps["x"], b)`` shows several.

        ``window``: how many of the last seconds a histogram is of. The map is read once a second at most, less often
        where that takes long. ProgramError for a map that nothing shows, such as one of programs.
        """
        return self._access.show(self, window)

    # --- as a whole ---

    @property
    def df(self) -> pd.DataFrame:
        """All entries, a row each: the key's columns, then the value's, with the dtypes that events have (table.Table).

        A number as a key is the column "key", as a value "value"; a struct gives a column for each member. A name that
        the key and the value share becomes "key.NAME" and "value.NAME". Rows are in the kernel's order, an array's in
        that of its index. ``df.attrs``: "map", "kind" and "lost"; of an LRU map "full": it is so full that it may have
        evicted entries, which nobody counts. BPF_HISTOGRAM without a stated size has 4,096 buckets: the first 64 are
        shown, and more up to the last that is not zero. Some kinds differ:

            per-CPU         a row for each key and CPU, with ``cpu`` (int16) after the key's columns; see ``reduced``
            lpm_trie        the key is ``prefixlen`` (uint32) and ``data``, unless its struct names them otherwise
            stack_trace     a row for each frame: ``stack`` (int32), ``depth`` (int16, 0 is the innermost), ``address``
                            (uint64); with BPF_F_STACK_BUILD_ID instead ``status``, ``build_id``, ``offset`` (uint64)
            array_of_maps, hash_of_maps   the value is ``map_id`` (uint32), the kernel's number of the inner map
            queue, stack    no key; only the value that would be taken next, since the kernel shows no other
        """
        return self._frame(*self._read())

    def reduced(self, how: Reduction = "sum") -> pd.DataFrame:
        """Reduce a per-CPU map's values over all CPUs by "sum", "max", "min" or "mean": a row a key.

        Sums are 64 bits wide, means float64. Values that are no numbers are left out. Other maps are as in ``df``.
        ProgramError for any other ``how``.
        """
        if how not in REDUCTIONS:
            raise ProgramError(f"values are reduced by {', '.join(REDUCTIONS)}, not {how!r}")
        keys, values = self._read()
        if not self._frames.per_cpu:
            return self._frame(keys, values)
        return self._marked(self._frames.reduced(keys, values, how))

    def hist(self, kind: HistKind = "log2", bucket: str = "", by: str | Sequence[str] | None = None) -> pd.DataFrame:
        """Make a histogram: the map's keys are buckets, its values counts. For BPF_HISTOGRAM, or any map of integers.

        ``kind``     "log2": buckets as bcc's bpf_log2l() numbers them and its print_log2_hist() shows them: bucket 1
                     counts the values 0 and 1, bucket i those from 2**(i - 1) to below 2**i, up to bucket 64.
                     bpf_log2l() never gives 0; a program that does, by itself, counts zeros there.
                     "linear": bucket i counts the value i.
        ``bucket``   the key's column that has the bucket; by default its only one, else "slot", else "bucket".
        ``by``       the key's columns to tell histograms apart by; by default all others. Counts of the rest add up.

        A row a bucket, indexed by ``bucket`` (int64): from 1 (linear: from 0) to the last that has a count.

            low, high    float64: the bucket holds the values from low to below high
            label        the same as text: "[4, 8)", "[1K, 2K)" where K is 1024; of a single value "[4]"
            count        int64; or instead a column for each value of ``by``, of several columns for each tuple

        A per-CPU map's counts are added up. ProgramError when keys and values are not of this form.
        """
        frame = self.reduced("sum")
        table = histogram(self.name, frame, *self._frames.names(), kind=kind, bucket=bucket, by=by)
        return with_bars(self._marked(table))

    def largest(self, n: int = 10, column: str = "", containing: str = "") -> pd.DataFrame:
        """Return the entries with the largest numbers, the largest first, with the columns of ``df``. A per-CPU map's
        numbers are sums. Of a million entries only these are decoded.

        ``column``: of the value; by default the first that is a number. ``containing``: only keys with this text in
        one of their columns. ProgramError for a column that is no number, and an ``n`` below 1.
        """
        if n < 1:
            raise ProgramError(f"largest() returns at least one entry, not {n}")
        return self._largest(*self._read(), n, column, containing)

    def _largest(self, keys: Rows, values: Rows, n: int, column: str = "", containing: str = "") -> pd.DataFrame:
        column = column or next(iter(self.numbers), "value")
        numbers = self._frames.numbers(values, column)
        places = np.arange(len(keys))
        if containing:
            places = np.flatnonzero(self._frames.matching(keys, containing))
        if n < len(places):
            places = np.sort(places[np.argpartition(numbers[places], len(places) - n)[len(places) - n :]])
        places = places[::-1][np.argsort(numbers[places][::-1], kind="stable")[::-1]]
        frame = self._marked(self._frames.reduced(keys[places], values[places], "sum"))
        frame.attrs.update(entries=len(keys))
        return frame

    def symbols(self, pid: int = 0) -> pd.DataFrame:
        """Add names to a stack trace map's ``df``: columns ``symbol`` and ``module`` (category), see stacks.symbolise.

        ``pid``: the process that addresses outside the kernel belong to; 0: not known. ProgramError for other maps.
        """
        self._require_stacks()
        return stacks.symbolise(self.df, self._access.symbols, pid)

    @property
    def resolve(self) -> stacks.Resolve:
        """Return what names the addresses of the kernel's and of processes' functions: see stacks.folded."""
        return self._access.symbols

    def folded(
        self,
        counts: Map | pd.DataFrame,
        *,
        pid: int | None = None,
        by: Sequence[str] | None = None,
        **columns: str | None,
    ) -> pd.DataFrame:
        """Fold a stack trace map's stacks for flame graphs: ``stack`` ("comm;main;...;do_sys_open_[k]", string) and
        ``count`` (int64), the most frequent first.

        ``counts``: a map, or rows of events, with stack ids in columns that have "stack" in their name, and with "pid"
        or "tgid" for the names of a process's functions. ``pid``: only the stacks of this process; where no column has
        the process, all stacks are taken to be its. ``kernel``, ``user``, ``weight``, ``owner``: names of these
        columns. ``by``: columns that come first, to tell stacks apart by. See stacks.folded. ``attrs["lost"]``: refused
        updates of both maps. stacks.lines() makes the text for flamegraph.pl or speedscope. ProgramError for other
        maps.
        """
        self._require_stacks()
        rows = counts.df if isinstance(counts, Map) else counts
        found = stacks.folded(rows, self.df, self._access.symbols, pid=pid, by=by, **columns)
        found.attrs["lost"] = self.lost + (counts.lost if isinstance(counts, Map) else 0)
        return found

    def drain(self, how: Literal["", "differences", "entries"] = "", as_is: str | Sequence[str] = ()) -> pd.DataFrame:
        """Take all entries out, as a DataFrame like ``df``. Each count is returned once: by one drain, and by no later
        drain, ``df`` or ``hist``. Nothing is lost or counted twice while programs go on counting. After a drain this
        map reads as empty, an array as zeros. ``how``: what happens in the kernel.

        "differences"   The kernel's map stays as it is. Numbers are what they have grown by since the last drain,
                        modulo their width; all else is as it is now. Rows that have not changed are left out, but for
                        arrays. Exact, however programs count. They still see the entries, so a hash whose keys come
                        and go fills up; ``clear`` makes room. Where a program, or a full LRU map, deletes a key, its
                        counts since the last drain are lost. A key that is made again counts from zero, but is known
                        to be new only while its value is below the old one.
        "entries"       The kernel's map is emptied: each entry is read and deleted in one step. Exact where programs
                        insert, or set whole values (``update``); what they add to a value in place may be lost. For
                        hashes only. Entries that there is no memory for stay for the next drain.
        ""              "entries" where the cell only inserts into, updates and deletes from this hash, else
                        "differences".

        A queue or a stack gives all its values, in the order they would be popped in, and is empty then.

        ``as_is``: members of the value that are no counts (times, maxima, states), which are returned as they are.

        The map of a stopped session can be drained once more, as it was at the end. ProgramError for maps of maps and
        of stacks, UnsupportedError for a kind that has no entries to take.
        """
        return self._drained(self._frame, how, as_is)

    def taken(self) -> Map:
        """Drain the differences as a map of their own, which does not change: for ``hist`` and ``reduced`` of them."""

        def still(keys: Rows, values: Rows) -> Map:
            return Map(self.info, Still(keys, values, self._access), True, self._refused, self._declared)

        return self._drained(still, "differences")

    def frozen(self) -> Map:
        """Return the map as it is in the kernel now, whatever was drained: a map of its own, which does not change and
        warns nobody. For views: one reading, of which several frames are made."""
        self._require_entries()
        return self._still(*self._entries.read_whole())

    def grown_since(self, before: Map) -> Map:
        """Return what this map has grown by since it was ``before``: the entries that are new or have changed, with
        differences for numbers, as ``drain`` has them. For two frozen ones of the same map."""
        keys, values = before._entries.read_whole()
        baseline = Baseline(keys, values, counters(self._value), self.info.cpus, self.info.value_stride)
        return self._still(*baseline.since(*self._entries.read_whole(), array=False))

    def _still(self, keys: Rows, values: Rows) -> Map:
        """Return a map of these entries."""
        still = Map(self.info, Still(keys, values, self._access), True, dict, self._declared)
        still._duplicates_said = True
        return still

    def _drained(self, made: Callable[[Rows, Rows], Made], how: str = "", as_is: str | Sequence[str] = ()) -> Made:
        """Drain the map; return what is made of the keys and values. Where that fails they are put back."""
        if how and how not in _DRAINS:
            raise ProgramError(f"a map is drained by {' or '.join(_DRAINS)}, not {how!r}")
        self._require_drainable(how)
        self._warn_of_loss()  # not once the entries are taken: a warning may be an error
        columns = counters(self._value, self._members([as_is] if isinstance(as_is, str) else as_is))
        taking = Taking()
        try:
            self._take_out(taking, how, columns)
            return made(taking.keys, taking.values)
        except:
            taking.abandoned = True
            start_new_thread(undoing, (self._entries.put_back, taking))
            raise

    def clear(self) -> None:
        """Delete every entry. An array's values become zero.

        What programs insert meanwhile may stay; what they add meanwhile may be lost. ``drain`` loses nothing.
        """
        self._require_entries("cleared")
        self._entries.clear()

    def every(self, every: str = "1s", drain: bool = False) -> MapSnapshots:
        """Take snapshots of the map from now on, one every ``every`` (a pandas interval of at least 1ms), until the
        session ends. See MapSnapshots: ``df``, ``hist``, ``stop``.

        ``drain``   each snapshot is a ``drain``: it has what was counted since the one before. All snapshots together
                    have each count once, the last one included. Where something else drains the map as well, each has
                    its part of the counts. Otherwise a snapshot is what ``df`` would be.

        Of a recording: the snapshots that were taken while it was made, not oftener than ``every``, and the last one.

        Snapshots count towards the session's ``keep``: the oldest are dropped, and counted. ProgramError for a map of
        stacks, and for what cannot be drained; UnsupportedError for a kind without entries; ValueError for what is no
        interval.
        """
        self._require_entries()
        if self.kind == "stack_trace":
            raise ProgramError(f"{self.name} holds stacks, which do not change: take the counts by stack over time")
        if drain:
            self._require_drainable("")
        step = interval(every, at_least="1ms").total_seconds()
        if (recorded := self._access.recorded()) is not None:
            return self._over_time(recorded, step, drain)
        take, access = self._taken_out if drain else self._read, self._access
        snapshots = MapSnapshots(self.name, step, take, self._frames, self._marked, access.keep, access.ended)
        try:
            snapshots.start()
            return snapshots
        except:
            start_new_thread(undoing, (snapshots.stop,))
            raise

    # --- queues and stacks ---

    def push(self, value: object) -> None:
        """Put a value in a queue or on a stack. ProgramError when it is full, or the map is neither."""
        self._require_queue()
        self._entries.write(b"", pack(self._value, value, "value"))

    def pop(self) -> Any:
        """Take the value that a program would take next, of a struct a dict. IndexError where there is none."""
        self._require_queue()
        taking = Taking()
        try:
            self._entries.take(taking, 1)
            return self._head(taking.values)
        except:
            taking.abandoned = True
            start_new_thread(undoing, (self._entries.put_back, taking))
            raise

    def peek(self) -> Any:
        """Return the value that ``pop`` would take, and leave it. IndexError where there is none."""
        self._require_queue()
        return self._head(self._entries.peek())

    # --- arrays of the kernel's objects ---

    def open(self, event: str) -> None:
        """Fill a BPF_PERF_ARRAY with a counter, one a CPU: "hardware:cycles", "software:page-faults".

        From then on, until the session ends, ``perf_read`` and ``perf_counter_value`` of the cell's programs read it. A
        counter opened later takes its place. UnsupportedError where the machine has no such counter.
        """
        if self.kind != "perf_event_array":
            raise ProgramError(f"{self.name} is a map of kind {self.kind}: counters are opened in a BPF_PERF_ARRAY")
        kind, name = parse_probe(event)
        if not KINDS[kind].events or ":" in name:
            raise ProgramError(f"a counter is software:EVENT or hardware:EVENT, such as hardware:cycles; not {event!r}")
        self._access.open_counter(kind, name)

    # --- as a mapping ---

    def __getitem__(self, key: object) -> Any:
        """Return a key's value: a number, text or bytes; of a struct, a dict; of a per-CPU map, a list with one a CPU.

        A trie (lpm_trie) gives the value of its longest prefix of the key, as it does to programs. An array of programs
        gives the name of the function.
        """
        if self.kind == "prog_array":
            function = self._function(key)
            if function is None:
                raise KeyError(key)
            return function
        found = self._entries.find(self._packed(key))
        if not len(found):
            raise KeyError(key)
        return self._frames.values(found)[0]

    def __setitem__(self, key: object, value: object) -> None:
        """Set a key's value, on all CPUs. A dict need not name every member: the others are zero.

        The value of a map of maps is another map of the session. That of an array of programs (BPF_PROG_ARRAY) is the
        name of a function of the cell, for tail calls; of one of cgroups (BPF_CGROUP_ARRAY) a cgroup's path.
        """
        if self.kind in _NAMED:
            if not isinstance(value, str):
                raise ProgramError(f"{self.name} ({self.kind}) takes {_NAMED[self.kind]}, not {value!r}")
            self._access.write(pack(_INDEX, key, "key"), value.encode(errors="surrogateescape"))
            return
        packed = self._packed(key, "set")
        if self.kind == "stack_trace":
            raise ProgramError(f"{self.name} takes its stacks from programs: they can be read and deleted")
        if self.info.kind.endswith("_of_maps"):
            if not isinstance(value, Map):
                raise ProgramError(f"{self.name} holds maps: give it one of the session's")
            self._entries.write(packed, value.name.encode())
            return
        self._entries.write(packed, pack(self._value, value, "value"))

    def __delitem__(self, key: object) -> None:
        """Delete a key; an array's value becomes zero. KeyError where there is none."""
        packed = pack(_INDEX, key, "key") if self.kind in _NAMED else self._packed(key, "changed")
        if not self._entries.write(packed, None):
            raise KeyError(key)

    def __contains__(self, key: object) -> bool:
        if self.kind == "prog_array":
            return self._function(key) is not None
        return len(self._entries.find(self._packed(key))) > 0

    def get(self, key: object, default: Any = None) -> Any:
        try:
            return self[key]
        except KeyError:
            return default

    def keys(self) -> list[Any]:
        """Return the keys: numbers, text or bytes; of a struct, tuples."""
        self._require_keys()
        return self._frames.keys(self._read()[0])

    def values(self) -> list[Any]:
        return self._frames.values(self._read()[1])

    def items(self) -> list[tuple[Any, Any]]:
        """Return keys and values of one moment. ``dict(m.items())`` asks the kernel once, ``dict(m)`` once a key."""
        self._require_keys()
        keys, values = self._read()
        return list(zip(self._frames.keys(keys), self._frames.values(values), strict=True))

    def __iter__(self) -> Iterator[Any]:
        return iter(self.keys())

    def __len__(self) -> int:
        """Return how many entries there are now. An array always has all."""
        return len(self._read()[1])

    # --- shown ---

    def __repr__(self) -> str:
        sides = [", ".join(column.name for column in side.columns) for side in (self._key, self._value)]
        what = f" of {' -> '.join(filter(None, sides))}" if any(sides) else ""
        lost = f", {self.lost:,} updates refused" if self.lost else ""
        return f"<Map {self.name}: {self.kind}{what}, room for {self.info.max_entries:,}{lost}>"

    def _repr_html_(self) -> str:
        title = escape(repr(self))
        lost = f"<div>{escape(refusals.why(self.info, self._refused(), self._declared))}</div>" if self.lost else ""
        if self.info.value is None:
            return f"<code>{title}</code>{lost}"
        try:
            keys, values = self._read()
        except BpfnbError as error:
            return f"<code>{title}</code><div>{escape(str(error))}</div>"
        if self._has_buckets(keys, values):
            return f"<code>{title}</code>{lost}{bars_html(self._buckets(keys, values))}"
        more = f"<div>{len(values):,} entries; {_SHOWN} are shown</div>" if len(values) > _SHOWN else ""
        if self.kind.startswith("lru_") and self._may_evict():
            more += "<div>it is full, or nearly so: the least recently used entries are evicted, and not counted</div>"
        table = self._first_rows(keys, values).to_html(index=False, border=0)
        return f"<code>{title}</code>{lost}{table}{more}"

    def __str__(self) -> str:
        """Return the line of ``repr`` and, of a histogram, its buckets with bars; of others their first entries."""
        if self.info.value is None:
            return repr(self)
        try:
            keys, values = self._read()
        except BpfnbError as error:
            return f"{self!r}\n{error}"
        if self._has_buckets(keys, values):
            return f"{self!r}\n{bars_text(self._buckets(keys, values))}"
        more = f"\n{len(values):,} entries; {_SHOWN} are shown" if len(values) > _SHOWN else ""
        return f"{self!r}\n{self._first_rows(keys, values).to_string(index=False)}{more}"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(repr(self) if cycle else str(self))

    def _has_buckets(self, keys: Rows, values: Rows) -> bool:
        """Return whether its entries are buckets that can be shown as such."""
        if not self.is_histogram:
            return False
        try:
            self._buckets(keys, values)
        except ProgramError:
            return False
        return True

    def _buckets(self, keys: Rows, values: Rows) -> pd.DataFrame:
        frame = self._frames.reduced(keys, values, "sum")
        return histogram(self.name, frame, *self._frames.names(), kind=self.buckets, bucket="", by=None)

    def _first_rows(self, keys: Rows, values: Rows) -> pd.DataFrame:
        """Return the entries that are shown: of counts by key the largest, with bars, else the first."""
        if len(self._value.columns) != 1 or not self.numbers or self.kind not in TAKEN:
            return self._frame(keys[:_SHOWN], values[:_SHOWN]).head(_SHOWN)
        frame = self._largest(keys, values, _SHOWN)
        frame[" "] = number_bars(frame[self.numbers[0]].to_numpy())
        return with_escapes(frame)

    # --- inside ---

    def _require_entries(self, what: str = "read") -> None:
        if self.info.value is None:
            why = HOLDS.get(self.kind, "its entries are no data")
            raise UnsupportedError(f"{self.name} ({self.kind}) cannot be {what}: {why}")

    def _require_drainable(self, how: str) -> None:
        self._require_entries("drained")
        if self.kind == "stack_trace" or self.kind.endswith("_of_maps"):
            raise ProgramError(f"{self.name} is a map of kind {self.kind}, which counts nothing: clear() empties it")
        if how == "entries" and self.kind not in (*TAKEN, *QUEUES):
            raise ProgramError(
                f"the kernel cannot take entries out of {self.name} ({self.kind}): drain its differences"
            )

    def _require_queue(self) -> None:
        if self.kind not in QUEUES:
            raise ProgramError(
                f"{self.name} is a map of kind {self.kind}: push, pop and peek are for queues and stacks"
            )

    def _require_stacks(self) -> None:
        if self.kind != "stack_trace":
            raise ProgramError(f"{self.name} is a map of kind {self.kind}, which holds no stacks")

    def _require_keys(self, what: str = "read") -> None:
        self._require_entries(what)
        if self.info.key is None:
            raise ProgramError(f"{self.name} ({self.kind}) has no keys: it has push(), pop(), peek() and df")

    def _packed(self, key: object, what: str = "read") -> bytes:
        self._require_keys(what)
        return pack(self._key, key, "key")

    def _members(self, names: Sequence[str]) -> Sequence[str]:
        """Check that these are members of the value."""
        known = [column.name for column in self._value.columns]
        for name in names:
            if name not in known:
                raise ProgramError(f"the values of {self.name} have no member {name!r}{near_or_all(name, known)}")
        return names

    def _take_out(self, taking: Taking, how: str, columns: Sequence[Counter]) -> None:
        if self.kind in QUEUES or (how or self._usual()) == "entries":
            self._entries.take(taking)
        else:
            self._entries.take_differences(taking, columns)

    def _taken_out(self) -> tuple[Rows, Rows]:
        """Drain the map, on a thread of ours: nobody is warned or interrupted there."""
        taking = Taking()
        self._take_out(taking, "", counters(self._value))
        return taking.keys, taking.values

    def _over_time(self, recorded: Sequence[Snapshot], step: float, drain: bool) -> MapSnapshots:
        """Return the snapshots of a recording, at least ``step`` seconds apart."""
        access = self._access
        snapshots = MapSnapshots(self.name, step, self._read, self._frames, self._marked, access.keep, access.ended)
        taken: list[Snapshot] = []
        for snapshot in recorded:
            if not taken or snapshot.time - taken[-1].time >= step * 1e9 or snapshot is recorded[-1]:
                taken.append(snapshot)
        if drain and self.kind in QUEUES:
            raise ProgramError(f"{self.name} ({self.kind}) is in a recording: what was taken out of it is not known")
        if drain:
            taken = [self._grown(now, before) for before, now in zip([None, *taken], taken, strict=False)]
        snapshots.fill(Snapshot(time, *self._entries.trimmed(keys, values)) for time, keys, values in taken)
        return snapshots

    def _grown(self, now: Snapshot, before: Snapshot | None) -> Snapshot:
        """Return what entries have grown by between two snapshots, as ``drain`` has it."""
        if before is None:
            return now
        baseline = Baseline(before.keys, before.values, counters(self._value), self.info.cpus, self.info.value_stride)
        keys, values = baseline.since(now.keys, now.values, self.info.kind in ARRAYS)
        return now._replace(keys=keys, values=values)

    def _usual(self) -> str:
        """Return how this map is drained by default."""
        return "entries" if self._replaced and self.kind in TAKEN else "differences"

    def _function(self, key: object) -> str | None:
        """Return the name of the function in an array of programs."""
        name = self._access.look_up(pack(_INDEX, key, "key"))
        return name.decode(errors="replace") if name is not None else None

    def _head(self, values: Rows) -> Any:
        if not len(values):
            raise IndexError(f"{self.name} is empty")
        return self._frames.values(values[:1])[0]

    def _read(self) -> tuple[Rows, Rows]:
        self._require_entries()
        return self._entries.read()

    def _frame(self, keys: Rows, values: Rows) -> pd.DataFrame:
        if self.kind != "stack_trace":
            self._warn_of_duplicates(keys)
        return self._marked(self._frames.frame(keys, values))

    def _warn_of_duplicates(self, keys: Rows) -> None:
        """Warn, once, of rows with the same key: they differ in bytes that the program did not set."""
        if self._duplicates_said or not (duplicates := count_duplicates(self._key, keys)):
            return
        self._duplicates_said = True
        text = (
            f"{duplicates:,} rows of {self.name} (line {self.info.line}) have the key of another row: they differ in "
            f"{hidden_bytes(self._key)}, which the program did not set; declare the key with = {{}}"
        )
        warnings.warn(text, RuntimeWarning, stacklevel=4)

    def _marked(self, frame: pd.DataFrame) -> pd.DataFrame:
        frame.attrs.update(map=self.name, kind=self.kind, lost=self.lost)
        if self.kind.startswith("lru_"):
            frame.attrs["full"] = self._may_evict()
        self._warn_of_loss()
        return with_escapes(frame)

    def _warn_of_loss(self) -> None:
        """Warn of updates that were refused, once."""
        if self.lost and not self._loss_said:
            self._loss_said = True
            refusals.warn(self.info, self._refused(), self._declared)

    def _may_evict(self) -> bool:
        """Return whether an LRU map is nearly full: each CPU holds up to 128 free entries, at most half of them all
        together, that another cannot have without evicting (kernel/bpf/bpf_lru_list.c, LOCAL_FREE_TARGET)."""
        cpus = self.info.cpus if self._frames.per_cpu else os.cpu_count() or 1
        return self._entries.count >= max(self.info.max_entries - min(_LRU_HELD * cpus, self.info.max_entries // 2), 1)
