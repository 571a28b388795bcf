"""syscall(2): system calls that the C library has no function for."""

from __future__ import annotations

import ctypes
import os

from bpfnb.tracer.kernel.uapi import ENOTSUPP

__all__ = ["error_of", "invoke"]

_syscall = ctypes.CDLL(None, use_errno=True).syscall


def invoke(number: int, *arguments: object) -> int:
    """Make a system call, with the GIL released, and return its result. OSError with the kernel's errno.

    ``arguments``: as ctypes passes them; integers are C's int.
    """
    result: int = _syscall(number, *arguments)
    if result < 0:
        raise error_of(ctypes.get_errno())
    return result


def error_of(number: int) -> OSError:
    """An errno as OSError: one of the subclasses Python has for some, with a message for ENOTSUPP, too."""
    return OSError(number, "not supported" if number == ENOTSUPP else os.strerror(number))
