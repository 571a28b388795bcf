"""tracepoint and rawtracepoint: tracepoints, with and without the record that the tracepoint makes."""

from __future__ import annotations

import errno
import re
from functools import partial

from bpfnb.errors import AttachError
from bpfnb.language.probes import SYSCALL_ENTRIES, Probe
from bpfnb.tracer.kernel import bpf, perf, tracefs
from bpfnb.tracer.link.errors import near, rejection
from bpfnb.tracer.link.link import Link, Place, by_link, on_events

__all__ = ["attach", "attach_raw", "open_event", "require"]


def require(probe: Probe) -> None:
    """AttachError where this kernel has no such tracepoint."""
    if not tracefs.has_event(probe.target.replace(":", "/")):
        call = re.fullmatch(r"(syscalls:sys_(?:enter|exit)_)(\w+)", probe.target)
        entry = SYSCALL_ENTRIES.get(call[2]) if call else None
        close = f"did you mean tracepoint:{call[1]}{entry}?" if call and entry else None
        close = close or near(probe.target, tracefs.tracepoints(), "tracepoint:")
        raise rejection(probe, f"this kernel has no tracepoint {probe.target}", hint=close)


def attach(probe: Probe, program: int) -> Link:
    """Attach to a tracepoint by a perf event."""
    return on_events(probe, program, [Place(partial(open_event, probe.target))], f"tracepoint:{probe.target}")


def open_event(name: str) -> int:
    """Open the perf event of a tracepoint "category:event"."""
    return perf.open_tracepoint(tracefs.event_id(name.replace(":", "/")))


def attach_raw(probe: Probe, program: int) -> Link:
    """Attach to a tracepoint directly. AttachError, with near names, where there is none: the kernel lists none."""
    try:
        return by_link(probe, partial(bpf.attach_raw_tracepoint, program, probe.target))
    except AttachError as error:
        if error.errno != errno.ENOENT:
            raise
        known = (name.partition(":")[2] for name in tracefs.tracepoints())
        hint = near(probe.target, known, "rawtracepoint:")
        raise rejection(probe, f"this kernel has no raw tracepoint {probe.target}", hint=hint) from None
