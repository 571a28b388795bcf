"""A hash map of a million entries into a DataFrame, beside bcc's items() and items_lookup_batch()."""

from __future__ import annotations

import time

import pandas as pd

import bpfnb
from benchmarks import readers
from benchmarks.common import (
    TRACEPOINT,
    Contender,
    Figures,
    Group,
    Producer,
    Row,
    Runs,
    at_least,
    at_most,
    comparison,
    count,
    cpu_of,
    seconds,
)
from bpfnb.hosts import default_host

__all__ = ["MAPS"]

_ENTRIES = 1_000_000
_CELL = """
BPF_ARRAY(serial, u64, 1);
BPF_HASH(counts, u64, u64, 1 << 20);
int fill(void *ctx) {
    int zero = 0;
    if (bpf_get_current_pid_tgid() >> 32 != PRODUCER) return 0;
    u64 *number = serial.lookup(&zero);
    if (!number) return 0;
    u64 key = (*number)++, value = key * 3;
    counts.update(&key, &value);
    return 0;
}
"""


def _figures(entries: int, taken: float, cpu: float) -> Figures:
    return {"entries": entries, "seconds": taken, "cpu": cpu, "entries_per_second": entries / taken}


def through_bpfnb() -> Figures:
    tracer = default_host.connect().hello().pid
    with Producer(count=_ENTRIES) as producer:
        attach = {f"tracepoint:{TRACEPOINT}": "fill"}
        with bpfnb.trace(_CELL, attach=attach, cflags=readers.flags_for(producer)) as session:
            producer.run()
            counts = session.maps["counts"]
            before, began = cpu_of(tracer) + time.process_time(), time.monotonic()
            frame = counts.df
            taken = time.monotonic() - began
            return _figures(len(frame), taken, cpu_of(tracer) + time.process_time() - before)


def through_bcc(method: str) -> Figures:
    """``method``: "items" or "items_lookup_batch"."""
    with Producer(count=_ENTRIES) as producer, readers.plain_bcc(_CELL, readers.flags_for(producer)) as b:
        b.attach_tracepoint(tp=TRACEPOINT, fn_name="fill")
        producer.run()
        table = b["counts"]
        before, began = time.process_time(), time.monotonic()
        rows: list[tuple[int, int]] = []
        try:
            if method == "items":
                rows.extend((key.value, value.value) for key, value in table.items())
            else:
                rows.extend(table.items_lookup_batch())
        except Exception as error:
            raise RuntimeError(f"{method}() raised after {len(rows):,} entries: {error}") from None
        frame = pd.DataFrame(rows, columns=("key", "value"))
        return _figures(len(frame), time.monotonic() - began, time.process_time() - before)


def _contenders(quick: bool) -> dict[str, Contender]:
    contenders = {"bpfnb": Contender(through_bpfnb, warm=True)}
    for method in ("items", "items_lookup_batch"):
        contenders[f"bcc {method}()"] = Contender(through_bcc, {"method": method}, warm=True)
    return contenders


def _rows(runs: Runs) -> list[Row]:
    rows = []
    for method, ratio in (("items", 0.1), ("items_lookup_batch", 1)):
        peer = f"bcc {method}()"
        rows += [
            comparison(runs, "map of 1 M entries: read", "entries", count, ours="bpfnb", peer=peer, wanted=at_least(1)),
            comparison(
                runs,
                "map of 1 M entries: to the DataFrame",
                "seconds",
                seconds,
                ours="bpfnb",
                peer=peer,
                wanted=at_most(ratio),
            ),
            comparison(runs, "map of 1 M entries: processor time", "cpu", seconds, ours="bpfnb", peer=peer),
        ]
    return rows


MAPS = Group("a map of a million entries", _contenders, _rows)
