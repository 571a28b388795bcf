"""bpf_trace_printk through a ring buffer of the session's, for users who may not make tracefs instances.

The kernel formats each line (bpf_snprintf, Linux v5.13) with the same code as bpf_trace_printk's. The program records
what ftrace would: time, task, CPU and name. It cannot know whether interrupts were off and the like, so the column
``flags`` has no values. The program counts lines that do not fit. The global pipe is never read.

The ring's records become the same rows as a tracefs instance's lines (printk.py), so no reader sees a difference.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from bpfnb.language.vocabulary import helpers
from bpfnb.protocol.schema import PRINTK_ROW, Number, Rows, Schema, Tail, Text
from bpfnb.protocol.segments import SegmentWriter

__all__ = ["LINES", "LINES_MAP", "LOST_MAP", "PRELUDE", "SHORT_PRINT", "LineWriter"]

SHORT_PRINT = "BPFNB_SHORT"  # the macro that rewrite.py uses for lines of numbers only
LINES_MAP, LOST_MAP = "bpfnb_lines", "bpfnb_lines_lost"
_RING_BYTES = 16 << 20
_HEAD = 24  # bytes of struct bpfnb_line, before the text
# Bytes of a line's text, with its NUL: the kernel's limit of 1,024 without the session's tag.
_MAX_TEXT = 1016
_NEWLINE = 10
_NO_TEXT = np.empty(0, np.uint8)

# The format is constant memory, as bpf_snprintf demands (constants.py). It always gets three values, even if it uses
# fewer, as the kernel's bpf_trace_printk takes whatever is in the registers. The time is in the record's last 8 bytes,
# where RingSource expects it (submits.py); the record's size is a multiple of 8.
PRELUDE = f"""\
#define BPFNB_SNPRINTF ((long (*)(char *, u32, const char *, u64 *, u32)){helpers()["bpf_snprintf"].number})
struct bpfnb_line {{ u32 pid; u16 cpu; u16 length; char comm[16]; }};
BPF_RINGBUF_OUTPUT({LINES_MAP}, {_RING_BYTES} / PAGE_SIZE);
BPF_F_TABLE("array", int, u64, {LOST_MAP}, 1, 1024);
static inline __attribute__((always_inline)) int bpfnb_print(const char *format, u64 *values, u32 room) {{
    struct bpfnb_line *line = {LINES_MAP}.ringbuf_reserve({_HEAD} + room + 8);
    if (!line) {{
        int first = 0;
        u64 *lost = {LOST_MAP}.lookup(&first);
        if (lost) __sync_fetch_and_add(lost, 1);
        return -28;
    }}
    *(u64 *)((void *)line + {_HEAD} + room) = bpf_ktime_get_ns();
    line->pid = bpf_get_current_pid_tgid();
    line->cpu = bpf_get_smp_processor_id();
    bpf_get_current_comm(line->comm, sizeof(line->comm));
    long length = BPFNB_SNPRINTF((void *)line + {_HEAD}, room, format, values, 24);
    line->length = length < 1 ? 0 : length > room ? room - 1 : length - 1;
    {LINES_MAP}.ringbuf_submit(line, 0);
    return length;
}}
#define BPFNB_PRINT(room, format, a, b, c, ...) ({{ \\
    static const char bpfnb_format[] = format; \\
    u64 bpfnb_values[] = {{(u64)(a), (u64)(b), (u64)(c)}}; \\
    bpfnb_print(bpfnb_format, bpfnb_values, room); }})
#define {SHORT_PRINT}(...) BPFNB_PRINT((sizeof(bpfnb_format) + 71) & ~7, __VA_ARGS__, 0, 0, 0, 0)
#define bpf_trace_printk(...) BPFNB_PRINT({_MAX_TEXT}, __VA_ARGS__, 0, 0, 0, 0)
"""

# A record, as a struct. Its text follows the struct.
LINES = Schema(
    (
        Number("pid", 0, "<i4"),
        Number("cpu", 4, "<u2"),
        Number("length", 6, "<u2"),
        Text("comm", 8, 16),
        Tail("text", _HEAD, text=False),
    ),
    _HEAD,
)


class LineWriter(SegmentWriter):
    """Takes the rows that RingSource makes of ``LINES``, and writes them as PRINTK_LINES describes."""

    _read: Schema

    def reads(self, schema: Schema) -> LineWriter:
        """Set the schema of the rows that ``append`` will be given."""
        self._read = schema
        return self

    def append(self, rows: Rows, text: npt.NDArray[np.uint8] = _NO_TEXT) -> None:
        columns = {column.name: column for column in self._read.columns}
        values = {name: columns[name].values(rows) for name in ("pid", "cpu", "length", "comm", self._read.time)}
        ends = rows[:, self._read.text_end :].view(np.int64)[:, 0]
        begins = np.concatenate([[0], ends[:-1]])
        lengths = _shortened(text, begins, np.minimum(values["length"], ends - begins))
        made = np.zeros(len(rows), PRINTK_ROW)
        made["mono_ns"] = values[self._read.time]
        made["text_end"] = np.cumsum(lengths)
        made["pid"], made["cpu"], made["comm"] = values["pid"], values["cpu"], values["comm"]
        made["comm"][values["pid"] == 0] = b"<idle>"  # as ftrace calls the idle task of every CPU
        shift = np.repeat(begins - (np.cumsum(lengths) - lengths), lengths)
        super().append(made.view(np.uint8).reshape(len(made), -1), text[shift + np.arange(len(shift))])


def _shortened(
    text: npt.NDArray[np.uint8], begins: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """Return lengths without a final newline, and of lines with a NUL only up to it, as ftrace has them."""
    nuls = np.flatnonzero(text == 0)
    first = np.append(nuls, len(text))[np.searchsorted(nuls, begins)]
    lengths = np.minimum(lengths, first - begins)
    final = text[np.minimum(begins + np.maximum(lengths - 1, 0), max(len(text) - 1, 0))] if len(text) else lengths
    kept: npt.NDArray[np.int64] = lengths - ((lengths > 0) & (final == _NEWLINE))
    return kept
