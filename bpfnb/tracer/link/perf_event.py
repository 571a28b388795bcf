"""profile, software and hardware: clocks and counters, a perf event on every CPU."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable
from functools import cache, partial
from pathlib import Path

from bpfnb.errors import few_descriptors
from bpfnb.language.probes import KINDS, Probe
from bpfnb.tracer.kernel import features, perf, uapi
from bpfnb.tracer.kernel.cpus import online_cpus
from bpfnb.tracer.link.errors import rejection
from bpfnb.tracer.link.link import Link, Place, new_link, on_events

__all__ = ["attach_counter", "attach_profile", "hardware_events", "no_hardware", "open_counter", "software_events"]

_MAX_FREQUENCY = Path("/proc/sys/kernel/perf_event_max_sample_rate")
_TYPES = {"software": uapi.PERF_TYPE_SOFTWARE, "hardware": uapi.PERF_TYPE_HARDWARE}
_DEFAULT_COUNT = {"software": 1, "hardware": 1_000_000}  # events to a hit, as bpftrace has it
_NANOSECONDS = {"s": 10**9, "ms": 10**6, "us": 10**3}


def attach_profile(probe: Probe, program: int) -> Link:
    """Attach to the CPUs' clocks, at a frequency or at an interval."""
    unit, _, number = probe.target.rpartition(":")
    nanoseconds = _NANOSECONDS.get(unit, 0) * int(number)
    frequency = 0 if nanoseconds else int(number)
    most = int(_MAX_FREQUENCY.read_text())
    if frequency > most:
        why = f"kernel.perf_event_max_sample_rate allows {most} times a second at most"
        raise rejection(probe, why, errno.EINVAL)
    clock = partial(perf.open_event, uapi.PERF_TYPE_SOFTWARE, uapi.PERF_COUNT_SW_CPU_CLOCK)
    return _attach(probe, program, partial(clock, period=nanoseconds, frequency=frequency))


def attach_counter(probe: Probe, program: int) -> Link:
    """Attach to a counter, every so many events."""
    kind = probe.kind
    event, _, count = probe.target.partition(":")
    return _attach(probe, program, partial(open_counter, kind, event, period=int(count or _DEFAULT_COUNT[kind])))


def software_events() -> Iterable[str]:
    """Return the names of the software events, which every kernel has."""
    return KINDS["software"].events


def hardware_events() -> Iterable[str]:
    """Return the names of the hardware events, where this machine counts any."""
    return () if no_hardware() else KINDS["hardware"].events


@cache
def no_hardware() -> str:
    """Return why no hardware event can be counted; "" where some can."""
    try:
        features.hardware_event()
    except OSError as error:
        if few := few_descriptors(error):  # that says nothing of the machine
            raise few from None
        return "this machine has no hardware counters"
    return ""


def open_counter(kind: str, event: str, *, cpu: int, period: int = 0) -> int:
    """Open a CPU's counter: its descriptor. OSError. ``kind``, ``event``: as probes.KINDS has them."""
    number = list(KINDS[kind].events).index(event)  # in the order of the kernel's enum
    return perf.open_event(_TYPES[kind], number, cpu=cpu, period=period)


def _attach(probe: Probe, program: int, opening: Callable[..., int]) -> Link:
    """Attach to one perf event a CPU that is online, now or later."""
    cpus = sorted(online_cpus())
    attached = f"{probe.kind}:{probe.target}"
    whole = new_link(probe, [], attached, f"on {len(cpus)} CPUs")
    parts: dict[int, Link] = {}

    def put_on(cpu: int) -> None:
        new = on_events(probe, program, [Place(partial(opening, cpu=cpu))], attached)
        old, parts[cpu] = parts.get(cpu), new
        whole.links.extend(new.links)
        whole.events.extend(new.events)
        if old:  # it is dead
            whole.links[:] = [fd for fd in whole.links if fd not in old.links]
            whole.events[:] = [fd for fd in whole.events if fd not in old.events]
            old.close()

    try:
        for cpu in cpus:
            put_on(cpu)
    except BaseException:
        whole.close()
        raise
    return whole._replace(renew=put_on)
