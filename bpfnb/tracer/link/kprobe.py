"""kprobe and kretprobe: perf events on kernel functions."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, partial

from bpfnb.language.probes import Probe
from bpfnb.tracer.kernel import perf, tracefs
from bpfnb.tracer.link.errors import rejection
from bpfnb.tracer.link.functions import alternative, kernel_functions, no_function
from bpfnb.tracer.link.link import Link, Place, on_events

__all__ = ["attach", "has_kprobes", "names", "require", "unavailable"]


@cache
def has_kprobes() -> bool:
    """Return whether this kernel has kprobes (CONFIG_KPROBE_EVENTS): it then offers them as a perf event source."""
    return perf.has_pmu("kprobe")


def unavailable() -> str:
    """Return why no function can be probed, "" where some can."""
    return "" if has_kprobes() else "this kernel has no kprobes (CONFIG_KPROBES is off)"


def require(probe: Probe) -> None:
    """AttachError where this kernel has no such function, or no kprobes."""
    function = probe.target.partition("+")[0]
    if why := unavailable():
        raise rejection(probe, why, hint=alternative(probe, function))
    if function in kernel_functions:
        return
    parts = sorted(name for name in kernel_functions.all() if name.startswith(f"{function}."))
    if parts:
        hint = f"the compiler made it {', '.join(parts[:3])}: {probe.kind}:{parts[0]}"
        raise rejection(probe, f"no kernel function is called just {function}", hint=hint)
    raise no_function(probe, function, kernel_functions.all())


def attach(probe: Probe, program: int) -> Link:
    """Attach to the function, or to an instruction of it."""
    function, _, offset = probe.target.partition("+")
    returning = probe.kind == "kretprobe"
    place = Place(partial(perf.open_kprobe, function, int(offset or "0", 0), returning=returning))
    return on_events(probe, program, [place], f"{probe.kind}:{probe.target}")


def names() -> Iterator[str]:
    """Yield the functions that can be probed, as far as the kernel says which: without ftrace, all there are."""
    if not has_kprobes():
        return
    try:
        functions = (tracefs.root() / "available_filter_functions").read_text().splitlines()
    except FileNotFoundError:
        yield from kernel_functions.all()
        return
    yield from (line.split()[0] for line in functions if line)
