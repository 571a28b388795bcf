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
from bpfnb.tracer.signatures.kernel import kernel_types

__all__ = ["attach", "attach_raw", "open_event", "raw_names", "require", "require_raw"]


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


def raw_names() -> list[str]:
    """Return the raw tracepoints: those the kernel's types know, else those that tracefs shows."""
    known = kernel_types.tracepoints()
    return known or sorted({name.partition(":")[2] for name in tracefs.tracepoints()})


def require_raw(probe: Probe) -> None:
    """AttachError where this kernel is known to have no such raw tracepoint."""
    if kernel_types.mentions(f"btf_trace_{probe.target}"):
        return
    if kernel_types.is_complete() and probe.target not in raw_names():
        raise _no_raw(probe)


def attach_raw(probe: Probe, program: int) -> Link:
    """Attach to a tracepoint directly. AttachError, with near names, where there is none."""
    try:
        return by_link(probe, partial(bpf.attach_raw_tracepoint, program, probe.target))
    except AttachError as error:
        if error.errno != errno.ENOENT:
            raise
        raise _no_raw(probe) from None


def _no_raw(probe: Probe) -> AttachError:
    hint = near(probe.target, raw_names(), "rawtracepoint:")
    return rejection(probe, f"this kernel has no raw tracepoint {probe.target}", hint=hint)
