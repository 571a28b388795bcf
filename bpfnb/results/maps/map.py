"""A session's maps: read as DataFrames and histograms, read and written as mappings.

    counts = session.maps["counts"]
    counts.df                            every entry, a row each
    counts.hist()                        a histogram
    counts[42], counts[42] = 7           one entry, read or set; keys and values of a struct are dicts or tuples
    len(counts), 42 in counts, counts.items(), counts.clear()
    counts.drain()                       every entry, taken out
    todo.push(7), todo.pop()             a queue or a stack

Every access asks the kernel again: for one entry, where it names a key, else for the whole map. Nothing is kept but
what the last ``drain`` read (bpfnb.results.maps.baseline).
"""

from __future__ import annotations

import os
import warnings
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pandas as pd

from bpfnb.errors import BpfnbError, ProgramError, UnsupportedError, escape, near_or_all
from bpfnb.interrupts import caller_left, new_lock, start_new_thread, undoing, uninterrupted
from bpfnb.language.probes import KINDS, parse_probe
from bpfnb.protocol.messages import MapInfo
from bpfnb.protocol.schema import BitField, Number, Rows, Schema, Wide
from bpfnb.results import stacks
from bpfnb.results.columns.kinds import shown
from bpfnb.results.maps import refusals
from bpfnb.results.maps.baseline import Baseline, Counter, counters
from bpfnb.results.maps.histograms import bucket_column, buckets_of, counts_of, is_whole
from bpfnb.results.maps.pack import decoded, pack, unpack
from bpfnb.results.maps.padding import count_twins, hidden_places
from bpfnb.results.table import harmless

__all__ = ["Ask", "Map", "stack_frames"]

_SHOWN = 20  # rows of a map's picture
_LRU_HELD = 128

# Kinds without entries that could be read, and why.
_HOLDS = {
    "prog_array": "it holds programs",
    "perf_event_array": "it holds perf events",
    "cgroup_array": "it holds cgroups",
    "devmap": "it holds network devices",
    "devmap_hash": "it holds network devices",
    "cpumap": "it holds CPUs, to send packets to",
    "sockmap": "it holds sockets",
    "sockhash": "it holds sockets",
    "xskmap": "it holds sockets",
    "reuseport_sockarray": "it holds sockets",
    "sk_storage": "its values belong to sockets",
    "inode_storage": "its values belong to files",
    "task_storage": "its values belong to tasks",
    "cgroup_storage": "its values belong to cgroups",
    "percpu_cgroup_storage": "its values belong to cgroups",
    "cgrp_storage": "its values belong to cgroups",
    "ringbuf": "its events go to one reader and are gone",
    "user_ringbuf": "its events go to the program",
    "bloom_filter": "it knows whether it has seen a value, not which",
    "struct_ops": "it holds the kernel's own functions",
}
_REDUCTIONS: dict[str, Callable[..., Any]] = {"sum": np.sum, "max": np.max, "min": np.min, "mean": np.mean}
_NONE = Schema((), 0)
_INDEX = Schema((Number("index", 0, "<u4"),), 4)
_NAMED = {"prog_array": "the name of a function", "cgroup_array": "the path of a cgroup"}  # what is put into them
_QUEUES = ("queue", "stack")
_ARRAYS = ("array", "percpu_array")
_TAKEN = (
    "hash",
    "percpu_hash",
    "lru_hash",
    "lru_percpu_hash",
)  # the kernel gives and deletes their entries in one step
_DRAINS = ("differences", "entries")


class Ask(Protocol):
    """How a map is reached. ``running``: whether it is in the kernel still; else it is what it was at its session's
    end, and can only be read."""

    @property
    def running(self) -> bool: ...

    def read(self) -> tuple[int, bytes]:
        """How many entries there are, and their bytes as protocol.MapRead lays them out."""

    def look_up(self, key: bytes) -> bytes | None:
        """A key's value, all CPUs'; None where there is none."""

    def take(self, most: int = 0) -> tuple[int, bytes]:
        """Take entries out: all, or at most so many. As ``read`` gives them."""

    def write(self, key: bytes, value: bytes | None) -> bool:
        """Set an entry; delete it where ``value`` is None: False where there is none. ProgramError when that cannot
        be."""

    def clear(self) -> None:
        """Delete every entry; an array's values become zero."""

    def open_counter(self, kind: str, event: str) -> None:
        """Fill a perf array with a counter."""

    def symbols(self, pid: int, addresses: Sequence[int]) -> tuple[Sequence[str], Sequence[str]]:
        """Names and modules of code addresses (bpfnb.results.stacks.Resolve)."""


class _Taking:
    """Entries that are taken out of a map for a caller; once that was interrupted, ``abandoned``.

    ``left``: those of them that had been left by another. ``baselines``: what drains compare with, before and after.
    """

    def __init__(self) -> None:
        self.abandoned = False
        self.keys: Rows = np.empty((0, 0), np.uint8)
        self.values: Rows = np.empty((0, 0), np.uint8)
        self.left: list[tuple[Rows, Rows]] = []
        self.baselines: tuple[Baseline | None, Baseline] | None = None


class Map:
    """A map of a session. ``name``; ``kind``: the kernel's name of its type, such as "percpu_hash"; ``info``: the rest.

    What reads it raises UnsupportedError for a kind that has no entries to read (an array of programs, a sockmap ...);
    what changes it raises ProgramError when the kernel refuses or the session has stopped.

    What programs could not put in is counted: see ``lost``. The first frame of a map that lacks it comes with a
    RuntimeWarning.
    """

    def __init__(
        self,
        info: MapInfo,
        ask: Ask,
        replaced: bool = False,
        refused: Callable[[], dict[int, int]] = dict,
        declared: str = "",
    ) -> None:
        """``replaced``: programs set values of this map whole, and change none in place. ``refused``: how many updates
        by programs failed so far, by errno; 0 where it is not known. ``declared``: where, such as "line 3", or ""."""
        self.info = info
        self._ask = ask
        self._refused = refused
        self._declared = declared
        self._key, self._value = info.key or _NONE, info.value or _NONE
        self._replaced = replaced
        self._lock = new_lock()  # of what follows: held while the kernel is asked
        self._drained: Baseline | None = None
        self._left: deque[tuple[Rows, Rows]] = deque()  # taken for somebody who was interrupted
        self._taking: Callable[[], _Taking | None] = lambda: None  # the last, while anybody has it
        self._gone = 0  # entries taken out of a queue as it was at its session's end
        self._twins_said = False
        self._entries = 0  # when it was last read
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
        end, a stack's place taken (get_stackid's -EEXIST), no memory at hand, the map busy. Costs no request.

        Not counted: ``insert`` of a key that is there, ``lookup`` of one that is not, -EFAULT of get_stackid (there was
        no stack to take), and what an LRU map evicts: that it is full is in ``df.attrs["full"]``.
        """
        return refusals.total(self._refused())

    # --- as a whole ---

    @property
    def df(self) -> pd.DataFrame:
        """Every entry, a row each: the key's columns, then the value's, as events have them (schema.Column).

        A number as a key is the column "key", as a value "value"; a struct gives a column for each member. A name that
        the key and the value share becomes "key.NAME" and "value.NAME". Rows are in the kernel's order, an array's in
        that of its index. ``df.attrs``: "map", "kind" and "lost"; of an LRU map "full": it has so many entries that it
        may have evicted others, which nobody counts. BPF_HISTOGRAM without a stated size has 4,096 buckets: the first
        64 are shown, and more up to the last that is not zero. Some kinds differ:

            per-CPU         a row for each key and CPU, with ``cpu`` (int16) after the key's columns; see ``reduced``
            lpm_trie        the key is ``prefixlen`` (uint32) and ``data``, unless its struct names them otherwise
            stack_trace     a row for each frame: ``stack`` (int32), ``depth`` (int16, 0 is the innermost), ``address``
                            (uint64); with BPF_F_STACK_BUILD_ID instead ``status``, ``build_id``, ``offset`` (uint64)
            array_of_maps, hash_of_maps   the value is ``map_id`` (uint32), the kernel's number of the inner map
            queue, stack    no key; only the value that would be taken next: the kernel shows no other
        """
        return self._frame(*self._read())

    def reduced(self, how: str = "sum") -> pd.DataFrame:
        """A row for each key: a per-CPU map's values over all CPUs, by "sum", "max", "min" or "mean".

        Sums are 64 bits wide, means float64. Values that are no numbers are left out. Other maps are as in ``df``.
        """
        if how not in _REDUCTIONS:
            raise ProgramError(f"values are reduced by {', '.join(_REDUCTIONS)}, not {how!r}")
        keys, values = self._read()
        if not self._per_cpu:
            return self._frame(keys, values)
        key_names, value_names = self._names()
        frame = self._columns(key_names, self._key, keys)
        for name, column in zip(value_names, shown(self._value.columns), strict=True):
            if isinstance(column, Number | BitField | Wide):
                per_cpu = np.asarray(decoded(column, self._each_cpu(values))).reshape(len(values), self.info.cpus)
                frame[name] = _REDUCTIONS[how](per_cpu, axis=1)
        return self._marked(frame)

    def hist(self, kind: str = "log2", bucket: str = "", by: str | Sequence[str] | None = None) -> pd.DataFrame:
        """The map as a histogram: its keys are buckets, its values counts. For BPF_HISTOGRAM, or any map of integers.

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
        keys, values = self._names()
        at = bucket_column(self.name, keys, bucket)
        others = [name for name in keys if name != at]
        groups = others if by is None else [by] if isinstance(by, str) else list(by)
        for name in groups:
            if name not in others:
                raise ProgramError(f"{self.name} cannot be told apart by {name!r}{near_or_all(name, others)}")
        if len(values) != 1 or not all(is_whole(frame, name) for name in (at, values[0])):
            raise ProgramError(f"{self.name} is no histogram: its buckets and counts must be whole numbers")
        counted = frame[frame[values[0]] != 0]
        buckets = buckets_of(self.name, kind, counted[at].to_numpy())
        counts = counts_of(counted, at, groups, values[0]).reindex(buckets.index, fill_value=0).astype(np.int64)
        return self._marked(pd.concat([buckets, counts], axis=1))

    def symbols(self, pid: int = 0) -> pd.DataFrame:
        """A stack trace map's ``df`` with names: columns ``symbol`` and ``module`` (category), see stacks.symbolise.

        ``pid``: the process that addresses outside the kernel belong to; 0: not known. ProgramError for other maps.
        """
        self._require_stacks()
        return stacks.symbolise(self.df, self._ask.symbols, pid)

    def folded(self, counts: Map | pd.DataFrame, *, pid: int | None = None, **columns: str | None) -> pd.DataFrame:
        """A stack trace map's stacks as flame graphs take them: ``stack`` ("comm;main;...;do_sys_open_[k]", string) and
        ``count`` (int64), the most frequent first.

        ``counts``: a map, or rows of events, with stack ids in columns that have "stack" in their name, and with "pid"
        or "tgid" for the names of a process's functions. ``pid``: only that process's, or of which it all is, where no
        column says so. ``kernel``, ``user``, ``weight``: these columns, by name; see stacks.folded. ``attrs["lost"]``:
        updates of both maps that were refused. stacks.lines() makes the text for flamegraph.pl or speedscope.
        ProgramError for other maps.
        """
        self._require_stacks()
        rows = counts.df if isinstance(counts, Map) else counts
        found = stacks.folded(rows, self.df, self._ask.symbols, pid=pid, **columns)
        found.attrs["lost"] = self.lost + (counts.lost if isinstance(counts, Map) else 0)
        return found

    def drain(self, how: str = "", as_is: str | Sequence[str] = ()) -> pd.DataFrame:
        """Every entry, as ``df`` has it, and taken out: what a drain has given, no other gives, nor ``df``, ``hist`` or
        the rest. Nothing is lost and nothing counted twice while programs go on counting. After it an array's values
        are zero and other maps are empty, for whoever reads them here. ``how``: what becomes of them in the kernel.

        "differences"   The kernel's map stays as it is. Numbers are what they have grown by since the last drain,
                        modulo their width; the rest is as it is now. Rows that have not changed are left out, but for
                        arrays. Exact, whatever programs add to and however. They still see the entries: a hash whose
                        keys come and go fills up; ``clear`` makes room. Where a program, or a full LRU map, deletes a
                        key, what it counted since the last drain is gone with it; made again, it counts from zero, but
                        is told from the one before only while it is below what that was.
        "entries"       The kernel's map is emptied, each entry being read and deleted in one step. Exact where programs
                        insert, or set values whole (``update``): what they add to a value in place may be lost. What
                        there is no memory for stays for the next drain. For hashes alone.
        ""              "entries" where the cell does nothing with this hash but insert, update and delete, else
                        "differences".

        A queue or a stack gives all its values, in the order they would be popped in, and is empty then.

        ``as_is``: members of the value that are no counts, and are shown as they are: times, maxima, state.

        A stopped session's map drains once more, of what it was at the end. ProgramError for maps of maps and of
        stacks, UnsupportedError for a kind that has no entries to take.
        """
        if how and how not in _DRAINS:
            raise ProgramError(f"a map is drained by {' or '.join(_DRAINS)}, not {how!r}")
        self._require_drainable(how)
        self._say_loss()  # not once the entries are taken: a warning may be an error
        columns = counters(self._value, self._members([as_is] if isinstance(as_is, str) else as_is))
        whole = self.kind in _QUEUES or (how or self._usual()) == "entries"
        taking = _Taking()
        try:
            self._take(taking) if whole else self._take_differences(taking, columns)
            return self._frame(taking.keys, taking.values)
        except:
            taking.abandoned = True
            start_new_thread(undoing, (self._put_back, taking))
            raise

    @uninterrupted
    def clear(self) -> None:
        """Delete every entry; what programs insert meanwhile may stay. An array's values become zero.

        What programs add meanwhile may be lost: ``drain`` loses nothing.
        """
        self._require_entries("cleared")
        with self._lock:
            if caller_left():
                return
            self._ask.clear()
            self._drained = None
            self._left.clear()

    # --- queues and stacks ---

    def push(self, value: object) -> None:
        """Put a value in a queue or on a stack. ProgramError when it is full, or the map is neither."""
        self._require_queue()
        self._write(b"", pack(self._value, value, "value"))

    def pop(self) -> Any:
        """Take the value that a program would take next, of a struct a dict. IndexError where there is none."""
        self._require_queue()
        taking = _Taking()
        try:
            self._take(taking, 1)
            return self._head(taking.values)
        except:
            taking.abandoned = True
            start_new_thread(undoing, (self._put_back, taking))
            raise

    @uninterrupted
    def peek(self) -> Any:
        """The value that ``pop`` would take, which stays. IndexError where there is none."""
        self._require_queue()
        with self._lock:
            if self._left:
                return self._head(self._left[0][1])
            if not self._ask.running:
                return self._head(self._all()[1])
            data = self._ask.look_up(b"")
            return self._head(self._rows(int(data is not None), data or b"")[1])

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
        self._ask.open_counter(kind, name)

    # --- as a mapping ---

    def __getitem__(self, key: object) -> Any:
        """A key's value: a number, text or bytes; of a struct, a dict; of a per-CPU map, a list with one a CPU.

        A trie (lpm_trie) gives the value of the longest prefix it has of the key, as it does to programs. An array of
        programs gives the name of the function.
        """
        if self.kind == "prog_array":
            function = self._function(key)
            if function is None:
                raise KeyError(key)
            return function
        found = self._found(self._packed(key))
        if not len(found):
            raise KeyError(key)
        return self._values(found)[0]

    def __setitem__(self, key: object, value: object) -> None:
        """Set a key's value, on all CPUs. A dict need not name every member: the others are zero.

        The value of a map of maps is another map of the session. That of an array of programs (BPF_PROG_ARRAY) is the
        name of a function of the cell, for tail calls; of one of cgroups (BPF_CGROUP_ARRAY) a cgroup's path.
        """
        if self.kind in _NAMED:
            if not isinstance(value, str):
                raise ProgramError(f"{self.name} ({self.kind}) takes {_NAMED[self.kind]}, not {value!r}")
            self._ask.write(pack(_INDEX, key, "key"), value.encode(errors="surrogateescape"))
            return
        packed = self._packed(key, "set")
        if self.kind == "stack_trace":
            raise ProgramError(f"{self.name} takes its stacks from programs: they can be read and deleted")
        if self.info.kind.endswith("_of_maps"):
            if not isinstance(value, Map):
                raise ProgramError(f"{self.name} holds maps: give it one of the session's")
            self._write(packed, value.name.encode())
            return
        self._write(packed, pack(self._value, value, "value"))

    def __delitem__(self, key: object) -> None:
        """Delete a key; an array's value becomes zero. KeyError where there is none."""
        packed = pack(_INDEX, key, "key") if self.kind in _NAMED else self._packed(key, "changed")
        if not self._write(packed, None):
            raise KeyError(key)

    def __contains__(self, key: object) -> bool:
        if self.kind == "prog_array":
            return self._function(key) is not None
        return len(self._found(self._packed(key))) > 0

    def get(self, key: object, default: Any = None) -> Any:
        try:
            return self[key]
        except KeyError:
            return default

    def keys(self) -> list[Any]:
        """The keys: numbers, text or bytes; of a struct, tuples."""
        self._require_keys()
        return unpack(self._key, self._read()[0], tuple)

    def values(self) -> list[Any]:
        return self._values(self._read()[1])

    def items(self) -> list[tuple[Any, Any]]:
        """All keys and values of one moment. ``dict(m.items())`` asks the kernel once, ``dict(m)`` once a key."""
        self._require_keys()
        keys, values = self._read()
        return list(zip(unpack(self._key, keys, tuple), self._values(values), strict=True))

    def __iter__(self) -> Iterator[Any]:
        return iter(self.keys())

    def __len__(self) -> int:
        """How many entries there are now; of an array, always all of them."""
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
        more = f"<div>{len(values):,} entries; {_SHOWN} are shown</div>" if len(values) > _SHOWN else ""
        if self.kind.startswith("lru_") and self._may_evict():
            more += "<div>it is full, or nearly so: the least recently used entries are evicted, and not counted</div>"
        table = self._frame(keys[:_SHOWN], values[:_SHOWN]).head(_SHOWN).to_html(index=False, border=0)
        return f"<code>{title}</code>{lost}{table}{more}"

    # --- inside ---

    @property
    def _per_cpu(self) -> bool:
        return "percpu" in self.kind

    def _require_entries(self, what: str = "read") -> None:
        if self.info.value is None:
            why = _HOLDS.get(self.kind, "its entries are no data")
            raise UnsupportedError(f"{self.name} ({self.kind}) cannot be {what}: {why}")

    def _require_drainable(self, how: str) -> None:
        self._require_entries("drained")
        if self.kind == "stack_trace" or self.kind.endswith("_of_maps"):
            raise ProgramError(f"{self.name} is a map of kind {self.kind}, which counts nothing: clear() empties it")
        if how == "entries" and self.kind not in (*_TAKEN, *_QUEUES):
            raise ProgramError(
                f"the kernel cannot take entries out of {self.name} ({self.kind}): drain its differences"
            )

    def _require_queue(self) -> None:
        if self.kind not in _QUEUES:
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
        """Names of members of the value, that are there."""
        known = [column.name for column in self._value.columns]
        for name in names:
            if name not in known:
                raise ProgramError(f"the values of {self.name} have no member {name!r}{near_or_all(name, known)}")
        return names

    def _usual(self) -> str:
        """How this map is drained by default."""
        return "entries" if self._replaced and self.kind in _TAKEN else "differences"

    def _function(self, key: object) -> str | None:
        """The function in an array of programs."""
        name = self._ask.look_up(pack(_INDEX, key, "key"))
        return name.decode(errors="replace") if name is not None else None

    @uninterrupted
    def _write(self, key: bytes, value: bytes | None) -> bool:
        with self._lock:
            if caller_left():
                return False
            done = self._ask.write(key, value)
            if self._drained:
                self._drained = self._drained.without(key)
            return done

    @uninterrupted
    def _found(self, key: bytes) -> Rows:
        """The value of a key, as a row; none where there is none."""
        with self._lock:
            trie = self.kind == "lpm_trie"
            if not self._ask.running or (trie and self._drained):  # of a trie's value one does not learn the key
                keys, values = self._since(*self._all())
                return values[
                    _longest_prefix(keys, key) if trie else (keys == np.frombuffer(key, np.uint8)).all(axis=1)
                ]
            data = self._ask.look_up(key)
            return self._since(*self._rows(int(data is not None), _laid_out(key, data)))[1]

    @uninterrupted
    def _take(self, taking: _Taking, most: int = 0) -> None:
        """Take entries, at most so many, which nobody else gets."""
        with self._lock:
            if not self._may_take(taking):
                return
            missing = most - sum(len(values) for _, values in self._left)
            new = self._taken(max(missing, 0)) if not most or missing > 0 else self._rows(0, b"")
            keys, values = self._joined([*self._left, new])
            self._left.clear()
            if most and len(values) > most:
                self._left.append((keys[most:], values[most:]))
            taking.keys, taking.values = keys[: most or None], values[: most or None]

    @uninterrupted
    def _take_differences(self, taking: _Taking, columns: Sequence[Counter]) -> None:
        """Take what the values have grown by since the last drain."""
        with self._lock:
            if not self._may_take(taking):
                return
            keys, values = self._all()
            new = self._since(keys, values, columns)
            taking.keys, taking.values = self._trimmed(*self._joined([*self._left, new]))
            taking.left = list(self._left)
            self._left.clear()
            before = self._drained
            self._drained = Baseline(keys, values, columns, self.info.cpus, self.info.value_stride)
            taking.baselines = before, self._drained

    def _may_take(self, taking: _Taking) -> bool:
        """Whether its caller still waits; then what was taken for another, who did not get it, is there again."""
        if taking.abandoned:
            return False
        if (last := self._taking()) and last.abandoned:
            self._return(last)
        self._taking = weakref.ref(taking)
        return True

    def _put_back(self, taking: _Taking) -> None:
        """Leave what was taken for somebody who did not get it to the next ``drain`` or ``pop``."""
        with self._lock:
            self._return(taking)

    def _return(self, taking: _Taking) -> None:
        if taking.baselines and taking.baselines[1] is self._drained:  # as if it had not been drained
            self._drained = taking.baselines[0]
            self._left.extendleft(reversed(taking.left))
        elif len(taking.values):
            self._left.appendleft((taking.keys, taking.values))
        taking.baselines, taking.keys, taking.values = None, taking.keys[:0], taking.values[:0]

    def _taken(self, most: int) -> tuple[Rows, Rows]:
        if self._ask.running:
            new = self._since(*self._rows(*self._ask.take(most)))
            self._drained = None
            return new
        keys, values = self._all()
        if self.kind in _QUEUES:
            keys, values = keys[: most or None], values[: most or None]
            self._gone += len(values)
            return keys, values
        new = self._since(keys, values)
        self._drained = Baseline(keys, values, (), self.info.cpus, self.info.value_stride)
        return new

    def _joined(self, pieces: Sequence[tuple[Rows, Rows]]) -> tuple[Rows, Rows]:
        keys, values = zip(*pieces, strict=True)
        return (keys[0], values[0]) if len(pieces) == 1 else (np.concatenate(keys), np.concatenate(values))

    def _head(self, values: Rows) -> Any:
        if not len(values):
            raise IndexError(f"{self.name} is empty")
        return self._values(values[:1])[0]

    @uninterrupted
    def _read(self) -> tuple[Rows, Rows]:
        """All keys and all values, a row each; of a per-CPU map, a row has all CPUs' values. Since the last drain."""
        self._require_entries()
        with self._lock:
            return self._trimmed(*self._since(*self._all()))

    def _since(self, keys: Rows, values: Rows, columns: Sequence[Counter] | None = None) -> tuple[Rows, Rows]:
        if self._drained is None:
            return keys, values
        return self._drained.since(keys, values, self.kind in _ARRAYS, columns)

    def _all(self) -> tuple[Rows, Rows]:
        keys, values = self._rows(*self._ask.read())
        self._entries = len(values)
        return keys[self._gone :], values[self._gone :]

    def _rows(self, count: int, data: bytes) -> tuple[Rows, Rows]:
        """Entries as MapRead has them."""
        info = self.info
        sizes = info.key_size, info.cpus * info.value_stride
        begin = -(-count * sizes[0] // 8) * 8
        keys = np.frombuffer(data, np.uint8, count * sizes[0]).reshape(count, sizes[0])
        values = np.frombuffer(data, np.uint8, count * sizes[1], begin).reshape(count, sizes[1])
        return keys, values

    def _trimmed(self, keys: Rows, values: Rows) -> tuple[Rows, Rows]:
        """Without the end of an array that is larger than the cell could expect, as far as it is zero."""
        if not self.info.shown:
            return keys, values
        end = max(self.info.shown, int(np.flatnonzero(values.any(axis=1))[-1:].sum()) + 1)
        return keys[:end], values[:end]

    def _each_cpu(self, values: Rows) -> Rows:
        return values.reshape(-1, self.info.value_stride)

    def _frame(self, keys: Rows, values: Rows) -> pd.DataFrame:
        if self.kind == "stack_trace":
            return self._marked(self._stacks(keys, values))
        self._warn_of_twins(keys)
        key_names, value_names = self._names()
        if self._per_cpu:
            cpus = np.arange(self.info.cpus, dtype=np.int16)
            frame = self._columns(key_names, self._key, np.repeat(keys, self.info.cpus, axis=0))
            frame["cpu"] = np.tile(cpus, len(keys))
        else:
            frame = self._columns(key_names, self._key, keys)
        rest = self._columns(value_names, self._value, self._each_cpu(values))
        return self._marked(pd.concat([frame, rest], axis=1))

    def _warn_of_twins(self, keys: Rows) -> None:
        """Warn, once, of rows with the same key: the program has left bytes of it as they happened to be."""
        if self._twins_said or not (twins := count_twins(self._key, keys)):
            return
        self._twins_said = True
        text = (
            f"{twins:,} rows of {self.name} (line {self.info.line}) have the key of another row: they differ in "
            f"{hidden_places(self._key)}, which the program did not set; declare the key with = {{}}"
        )
        warnings.warn(text, RuntimeWarning, stacklevel=4)

    def _stacks(self, keys: Rows, values: Rows) -> pd.DataFrame:
        owner, depth, frames = stack_frames(values, self._value.size)
        table = pd.DataFrame({"stack": keys.view(np.int32)[:, 0][owner], "depth": depth})
        rest = self._columns([column.name for column in self._value.columns], self._value, frames)
        return pd.concat([table, rest], axis=1)

    def _columns(self, names: list[str], schema: Schema, rows: Rows) -> pd.DataFrame:
        columns = {name: decoded(column, rows) for name, column in zip(names, shown(schema.columns), strict=True)}
        return pd.DataFrame(columns, index=pd.RangeIndex(len(rows)))

    def _names(self) -> tuple[list[str], list[str]]:
        """The names of the key's and the value's columns in a DataFrame: those they share, told apart."""
        sides = [[column.name for column in shown(side.columns)] for side in (self._key, self._value)]
        shared = set(sides[0]) & set(sides[1]) | ({"cpu"} if self._per_cpu else set())
        keys, values = (
            [f"{side}.{name}" if name in shared else name for name in names]
            for side, names in zip(("key", "value"), sides, strict=True)
        )
        return keys, values

    def _values(self, values: Rows) -> list[Any]:
        if self.kind == "stack_trace":
            owner, _, frames = stack_frames(values, self._value.size)
            sizes = np.bincount(owner, minlength=len(values)).tolist()
        elif self._per_cpu:
            frames, sizes = self._each_cpu(values), [self.info.cpus] * len(values)
        else:
            return unpack(self._value, values, dict)
        each = iter(unpack(self._value, frames, dict))
        return [list(islice(each, size)) for size in sizes]

    def _marked(self, frame: pd.DataFrame) -> pd.DataFrame:
        frame.attrs.update(map=self.name, kind=self.kind, lost=self.lost)
        if self.kind.startswith("lru_"):
            frame.attrs["full"] = self._may_evict()
        self._say_loss()
        return harmless(frame)

    def _say_loss(self) -> None:
        """Warn of updates that were refused, once."""
        if self.lost and not self._loss_said:
            self._loss_said = True
            refusals.warn(self.info, self._refused(), self._declared)

    def _may_evict(self) -> bool:
        """Whether an LRU map has come near its size: each CPU holds up to 128 free entries, at most half of them all
        together, that another cannot have without evicting (kernel/bpf/bpf_lru_list.c, LOCAL_FREE_TARGET)."""
        cpus = self.info.cpus if self._per_cpu else os.cpu_count() or 1
        return self._entries >= max(self.info.max_entries - min(_LRU_HELD * cpus, self.info.max_entries // 2), 1)


def _laid_out(key: bytes, value: bytes | None) -> bytes:
    """One entry as MapRead has it."""
    return b"" if value is None else key + bytes(-len(key) % 8) + value


def _longest_prefix(keys: Rows, key: bytes) -> npt.NDArray[np.intp]:
    """Where a trie's longest prefix of a key is, as the kernel finds it; nowhere if it has none. A key is the number of
    bits that count, then the bits (struct bpf_lpm_trie_key)."""
    lengths = np.ascontiguousarray(keys[:, :4]).view(np.uint32)[:, 0].astype(np.int64)
    wanted = np.frombuffer(key, np.uint8)
    most = int(wanted[:4].view(np.uint32)[0])
    if not len(keys) or most > 8 * (len(key) - 4):
        return np.empty(0, np.intp)
    differing = np.unpackbits(keys[:, 4:] ^ wanted[4:], axis=1)
    common = np.where(differing.any(axis=1), differing.argmax(axis=1), differing.shape[1])
    matching = (lengths <= common) & (lengths <= most)
    best = int(np.where(matching, lengths, -1).argmax())
    return np.array([best] if matching[best] else [], np.intp)


def stack_frames(values: Rows, size: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.int16], Rows]:
    """The frames of stack traces, each ``size`` bytes: whose each is (its row in ``values``), its depth, its bytes.

    A stack ends where only zeros follow.
    """
    most = values.shape[1] // size
    frames = values[:, : most * size].reshape(len(values), most, size)
    filled = np.asarray(frames.any(axis=2))
    used = np.flip(np.logical_or.accumulate(np.flip(filled, 1), axis=1), 1)
    owner, depth = np.nonzero(used)
    return owner, depth.astype(np.int16), frames[used]
