"""The process that demangles names: one mangled name a line on stdin, one demangled name a line on stdout.

A mangled name of a few hundred characters can stand for more text than there is memory, and names come from other
people's files. So this process drops every capability, and the kernel ends it when it takes too much memory or time.
demangle.py runs this file by its path, with ``python -I -S``: it imports nothing but the standard library.
"""

from __future__ import annotations

import ctypes
import resource
import sys

_MAX_MEMORY = 1 << 30  # bytes of address space
_MAX_CPU_SECONDS = 1
_MAX_TEXT = 4096  # bytes of a demangled name
_CAPABILITY_VERSION_3 = 0x20080522


def main() -> None:
    """Demangle names until stdin ends. A name that cannot be demangled is written as it is."""
    _confine()
    demangle = ctypes.CDLL("libstdc++.so.6").__cxa_demangle
    demangle.restype = ctypes.c_void_p
    for line in sys.stdin.buffer:
        name = line.rstrip(b"\n")
        found = demangle(name, None, None, None)
        text = ctypes.string_at(found) if found else name
        sys.stdout.buffer.write(text[:_MAX_TEXT].split(b"\n")[0] + b"\n")
        sys.stdout.buffer.flush()


def _confine() -> None:
    """Limit this process's memory and CPU time, allow no core dump, and drop all capabilities: capset(2)."""
    limits = {
        resource.RLIMIT_AS: _MAX_MEMORY,
        resource.RLIMIT_CPU: _MAX_CPU_SECONDS,
        resource.RLIMIT_CORE: 0,
    }
    for limit, value in limits.items():
        resource.setrlimit(limit, (value, value))
    ctypes.CDLL(None).capset((ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0), (ctypes.c_uint32 * 6)())


if __name__ == "__main__":
    main()
