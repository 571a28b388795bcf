"""Why a probe cannot be attached: what the kernel's errno means for its kind."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable

from bpfnb.errors import AttachError, UnsupportedError, did_you_mean, few_descriptors
from bpfnb.language.probes import Probe
from bpfnb.tracer.kernel.uapi import ENOTSUPP

__all__ = ["explained", "near", "rejection"]

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


def explained(probe: Probe, error: OSError) -> Exception:
    """Return the error that says why a probe could not be attached."""
    if few := few_descriptors(error):  # that says nothing of the probe
        return few
    number = error.errno or 0
    why = _REASONS.get((probe.kind, number)) or _REASONS.get(("", number)) or os.strerror(number)
    if probe.kind == "hardware" and number in (errno.ENOENT, errno.EOPNOTSUPP):
        return UnsupportedError(f"{probe.label}: this machine has no such hardware counter ({why})")
    return rejection(probe, why, number)


def rejection(probe: Probe, why: str, number: int = errno.ENOENT, hint: str | None = None) -> AttachError:
    """Return the error that says in words why a probe could not be attached."""
    # A probe that was asked for beside the cell has no place in it.
    line = probe.asked or (probe.line if ":" not in probe.requested else 0)
    return AttachError(f"{probe.label}: {why}", probe=probe.requested, errno=number, hint=hint, line=line or None)


def near(name: str, known: Iterable[str], prefix: str) -> str | None:
    """Return near names as a hint, each with what it is called by in full."""
    return did_you_mean(name, known, 0.75).replace("mean ", f"mean {prefix}").replace(" or ", f" or {prefix}") or None
