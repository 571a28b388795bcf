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

from bpfnb.errors import AttachError, UnsupportedError, did_you_mean, few_descriptors
from bpfnb.language.probes import Probe
from bpfnb.protocol.messages import ProbeInfo
from bpfnb.tracer.kernel import perf, syscall, uapi
from bpfnb.tracer.kernel.uapi import ENOTSUPP

__all__ = [
    "Closer",
    "Link",
    "Place",
    "close_all",
    "made",
    "near",
    "on_events",
    "reason",
    "refused",
    "silence",
]

_MAX_THREADS = 64


class Link(NamedTuple):
    """An attached probe. Closing ``links`` takes the program off; the kernel may be slow to close ``events``.

    ``code``: of a uprobe, what the instructions it is at begin with.
    ``renew``: of one that is attached to each CPU, attaches it to one that has come online (cpus.py).
    """

    info: ProbeInfo
    links: list[int]
    events: list[int]
    code: list[bytes]
    renew: Callable[[int], None] | None = None

    def close(self) -> None:
        """Detach. Idempotent."""
        close_all(self.links)
        close_all(self.events)


class Place(NamedTuple):
    """Where a program is put: ``open`` opens the perf event; ``cookie`` is what bpf_get_attach_cookie gives there.
    ``code``: see Link."""

    open: Callable[[], int]
    cookie: int = 0
    code: bytes = b""


def on_events(probe: Probe, program: int, places: Iterable[Place], attached: str, note: str = "") -> Link:
    """Put a program on perf events. AttachError, with nothing left, when the kernel refuses one of them."""
    link = made(probe, [], attached, note)
    try:
        for place in places:
            event = place.open()
            link.events.append(event)
            link.code.append(place.code)
            _give(link, program, event, place.cookie)
    except OSError as error:
        link.close()
        raise reason(probe, error) from None
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


def made(probe: Probe, links: list[int], attached: str, note: str = "") -> Link:
    return Link(ProbeInfo(probe.requested, attached, attached.partition(":")[0], note, probe.function), links, [], [])


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
        """No close begins inside."""
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
    while fds:
        os.close(fds.pop())


# --- what went wrong ----------------------------------------------------------------------------------------------

_NOT_TRACEABLE = "the kernel does not let this function be traced (notrace, or part of tracing itself)"
_TOO_FAR = "the function reads beyond this tracepoint's fields, or may not be attached to it"
_REASONS = {
    **dict.fromkeys((("kprobe", errno.EINVAL), ("kretprobe", errno.EINVAL)), _NOT_TRACEABLE),
    ("kprobe", errno.EILSEQ): "no instruction begins at this offset",
    **dict.fromkeys(
        ((kind, number) for kind in ("uprobe", "uretprobe") for number in (errno.EINVAL, errno.EOPNOTSUPP, ENOTSUPP)),
        "no instruction that can be traced begins there",
    ),
    ("tracepoint", errno.EACCES): _TOO_FAR,
    ("", errno.EBUSY): "it is in use by another tracer",
    ("", errno.EPERM): "not permitted",
    ("", errno.EACCES): "not permitted",
}


def reason(probe: Probe, error: OSError) -> Exception:
    """Why a probe could not be attached."""
    if few := few_descriptors(error):  # that says nothing of the probe
        return few
    number = error.errno or 0
    why = _REASONS.get((probe.kind, number)) or _REASONS.get(("", number)) or os.strerror(number)
    if probe.kind == "hardware" and number in (errno.ENOENT, errno.EOPNOTSUPP):
        return UnsupportedError(f"{probe.requested}: this machine has no such hardware counter ({why})")
    return refused(probe, why, number)


def refused(probe: Probe, why: str, number: int = errno.ENOENT, hint: str | None = None) -> AttachError:
    # A probe that was asked for beside the cell has no place in it.
    line = probe.line if ":" not in probe.requested else 0
    return AttachError(f"{probe.requested}: {why}", probe=probe.requested, errno=number, hint=hint, line=line or None)


def near(name: str, known: Iterable[str], prefix: str) -> str | None:
    """Near names as a hint, each with what it is called by in full."""
    return did_you_mean(name, known, 0.75).replace("mean ", f"mean {prefix}").replace(" or ", f" or {prefix}") or None
