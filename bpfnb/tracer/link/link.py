"""Attachments: the descriptors a probe is held by, and how they are let go.

A perf event (a tracepoint, a kprobe, a uprobe, a sampling clock) is given its program by a BPF link, where the kernel
has those for perf events. Closing the link takes the program off. Closing a tracepoint's event waits for a grace period
under a lock, so that 360 of them take many seconds; with links the programs are gone long before.

Everything here closes by itself when the process dies.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import NamedTuple

from bpfnb.errors import UnsupportedError
from bpfnb.language.probes import Probe
from bpfnb.protocol.messages import ProbeInfo
from bpfnb.tracer.kernel import perf, syscall, uapi
from bpfnb.tracer.link.errors import explained

__all__ = [
    "NUMBER_SHIFT",
    "Closer",
    "Link",
    "Place",
    "by_link",
    "close_all",
    "new_link",
    "on_events",
    "silence",
]

_MAX_THREADS = 64


NUMBER_SHIFT = 32  # of a probe's number in its cookies


class Link(NamedTuple):
    """An attached probe. Closing ``links`` takes the program off; the kernel may be slow to close ``events``.

    ``code``: of a uprobe, what the instructions it is at begin with.
    ``renew``: of one that is attached to each CPU, attaches it to one that has come online (cpus.py).
    ``others``: further probes that it is the attachment of.
    """

    info: ProbeInfo
    links: list[int]
    events: list[int]
    code: list[bytes]
    renew: Callable[[int], None] | None = None
    others: tuple[ProbeInfo, ...] = ()

    @property
    def infos(self) -> tuple[ProbeInfo, ...]:
        return (self.info, *self.others)

    def close(self) -> None:
        """Detach. Idempotent."""
        close_all(self.links)
        close_all(self.events)


class Place(NamedTuple):
    """Where a program is put: ``open`` opens the perf event; ``cookie`` is the lower half of what bpf_get_attach_cookie
    gives there, below the probe's number. ``code``: see Link."""

    open: Callable[[], int]
    cookie: int = 0
    code: bytes = b""


def on_events(probe: Probe, program: int, places: Iterable[Place], attached: str, note: str = "") -> Link:
    """Attach a program to perf events. AttachError, with nothing left, when the kernel refuses one of them.

    Each place takes two descriptors, and its event is closed by itself. BPF links for many functions (kprobe.multi,
    commit 0dcac2725406, in v5.18; uprobe.multi, commit 89ae89f53d20, in v6.6) would take one for all, but programs have
    to be loaded for them, and run at nothing else; most probes have one place.
    """
    link = new_link(probe, [], attached, note)
    try:
        for place in places:
            event = place.open()
            link.events.append(event)
            link.code.append(place.code)
            _give(link, program, event, place.cookie | probe.number << NUMBER_SHIFT)
    except OSError as error:
        link.close()
        raise explained(probe, error) from None
    except BaseException:
        link.close()
        raise
    return link


def _give(link: Link, program: int, event: int, cookie: int) -> None:
    """Have the program run at the last of the link's events."""
    try:
        by_link = perf.attach_program(event, program, cookie)
    except OSError as error:
        if error.errno != errno.EINVAL or not cookie:
            raise
        raise UnsupportedError(
            f"{link.info.requested}: its arguments lie elsewhere in each of its places, and telling these apart takes "
            "Linux 5.15"
        ) from None
    # Without a BPF link closing the event is all there is.
    link.links.append(link.events.pop() if by_link is None else by_link)


def by_link(probe: Probe, attach: Callable[[], int]) -> Link:
    """Attach a program by a BPF link alone, which ``attach`` opens. AttachError when the kernel refuses."""
    try:
        return new_link(probe, [attach()], f"{probe.kind}:{probe.target}")
    except OSError as error:
        raise explained(probe, error) from None


def new_link(probe: Probe, links: list[int], attached: str, note: str = "") -> Link:
    """Return the Link of a probe that is ``attached`` as it is named there."""
    notes = "; ".join(filter(None, (probe.note, note)))
    kind = attached.partition(":")[0]
    return Link(ProbeInfo(probe.requested, attached, kind, notes, probe.function, probe.name), links, [], [])


# --- letting go ---------------------------------------------------------------------------------------------------


def silence(links: Sequence[Link]) -> None:
    """Take the programs off. When this returns none of them runs, nor will again; the events are still open.

    Since Linux 6.13 (commit ef1b808e3b7c) closing a link waits for a grace period, which several can wait for at once.
    """
    fds = [fd for link in links for fd in link.links]
    for link in links:
        link.links.clear()
    if len(fds) > 1:
        with ThreadPoolExecutor(min(len(fds), _MAX_THREADS), "bpfnb-detach") as pool:
            list(pool.map(os.close, fds))
    else:
        close_all(fds)
    if fds:
        # Older kernels do not wait for programs that are running just now; this waits for an RCU grace period.
        with suppress(OSError):
            syscall.invoke(uapi.SYSCALLS.membarrier, uapi.MEMBARRIER_CMD_GLOBAL, 0, 0)


class Closer:
    """Closes events that the kernel is slow to close, in threads of its own, so that nobody waits.

    Each close holds a lock of the kernel's that attaching, and making tracefs instances, want as well: so there is one
    at a time, however many sessions are let go of.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._pausing = 0
        self._closing = threading.Lock()

    def close(self, fds: list[int], done: Callable[[], None] = lambda: None) -> None:
        """Close these descriptors some time; then call ``done``, in another thread."""
        if fds:
            threading.Thread(target=self._run, args=(fds, done), name="bpfnb-detach", daemon=True).start()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Begin no close inside."""
        with self._changed:
            self._pausing += 1
        try:
            yield
        finally:
            with self._changed:
                self._pausing -= 1
                self._changed.notify_all()

    def _run(self, fds: list[int], done: Callable[[], None]) -> None:
        while fds:
            with self._changed:
                self._changed.wait_for(lambda: not self._pausing)
            with self._closing:
                os.close(fds.pop())
        done()


def close_all(fds: list[int]) -> None:
    """Close descriptors. Idempotent."""
    while fds:
        os.close(fds.pop())
