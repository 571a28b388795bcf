"""The lines of bpf_trace_printk as a table, and ftrace's way of writing their state."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from bpfnb.protocol.schema import PRINTK, PRINTK_LINES, PRINTK_ROW, Rows, Schema
from bpfnb.results.columns.base import ColumnBuffer
from bpfnb.results.columns.categories import EnumColumn, MissingColumn
from bpfnb.results.columns.numeric import NumberColumn
from bpfnb.results.columns.strings import StringColumn
from bpfnb.results.table import BATCH, Table

__all__ = ["PrintkTable", "latency_format"]


class PrintkTable(Table):
    """The lines of bpf_trace_printk (schema.PRINTK).

    ``frame()`` has the columns: time (datetime64[ns, UTC]), comm (category: the task's name when it printed), pid
    (int32: the thread's number), cpu (int16), flags (category: as ftrace's irqs-off, need-resched, hard/softirq,
    preempt-depth letters; NA where lines come through a ring buffer), ts (float64: seconds since boot,
    CLOCK_MONOTONIC), msg (string: without the final newline, invalid UTF-8 replaced).
    """

    COLUMNS = ("time", "comm", "pid", "cpu", "flags", "ts", "msg")

    def __init__(self, epoch_ns: int, schema: Schema = PRINTK, *, batch: int = BATCH) -> None:
        super().__init__(schema, epoch_ns, batch=batch)

    def _plan(self) -> dict[str, ColumnBuffer]:
        columns = super()._plan()
        clock = next(column for column in PRINTK.columns if column.name == "mono_ns")
        columns["ts"] = NumberColumn(lambda rows: clock.values(rows) / 1e9, "<f8")
        columns["flags"] = EnumColumn(_state, "<u2", lambda state: latency_format(state >> 8, state & 0xFF))
        if self._schema == PRINTK_LINES:
            columns["flags"] = MissingColumn()
        columns["msg"] = StringColumn()
        return {name: columns[name] for name in self.COLUMNS}


def latency_format(flags: int, preempt: int) -> str:
    """Write an ftrace record's state as trace_pipe does: "d..2.".

    Kernel: trace_print_lat_fmt() in kernel/trace/trace_output.c, enum trace_flag_type in trace_events.h.
    """
    irqs_off, bh_off = flags & 0x01, flags & 0x80
    irqs = "D" if irqs_off and bh_off else "d" if irqs_off else "b" if bh_off else "."
    # 0x04 need-resched, 0x20 preempt-resched, 0x02 lazy since 6.14 (before: no irq state, on machines long gone)
    need = {0x26: "B", 0x24: "N", 0x22: "L", 0x06: "b", 0x04: "n", 0x02: "l", 0x20: "p"}.get(flags & 0x26, ".")
    nmi, hard, soft = flags & 0x40, flags & 0x08, flags & 0x10
    context = ("Z" if hard else "z") if nmi else "H" if hard and soft else "h" if hard else "s" if soft else "."
    depth = "".join(f"{n:x}" if n else "." for n in (preempt & 0xF, preempt >> 4))
    return irqs + need + context + depth


def _state(rows: Rows) -> npt.NDArray[Any]:
    """Return PRINTK's flags and preempt as one number."""
    flags, preempt = (rows[:, PRINTK_ROW.fields[name][1]] for name in ("flags", "preempt"))  # type: ignore[index]
    return flags.astype(np.uint16) << 8 | preempt
