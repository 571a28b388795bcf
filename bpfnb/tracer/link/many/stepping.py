"""Whether this machine computes AVX-512 rightly where a uprobe stands.

The kernel has the instruction that a uprobe is at executed elsewhere, in a single step. On a virtual machine with Linux
6.18 vpbroadcastb, with which libc's memset begins on some CPUs, gave 0 then: every process went on with wrong memory,
and most ended. So it is tried, in a file and a process of its own (as traps.py does), before such a probe is attached.
"""

from __future__ import annotations

import mmap
import os
import platform
import random
import subprocess
import sys
from contextlib import ExitStack
from functools import cache

from bpfnb.errors import few_descriptors
from bpfnb.tracer.kernel import bpf, capabilities, perf
from bpfnb.tracer.kernel.bpf import ProgramAttributes
from bpfnb.tracer.kernel.instructions import RETURN_0
from bpfnb.tracer.kernel.uapi import ProgramType

__all__ = ["is_avx512", "is_computed"]

_TIMEOUT = 10.0  # seconds
_PAGES = 1 << 20  # so many places the code can be at: see traps.py
_CODE = bytes.fromhex("62e27d487ac6 62e1fe487f07 c3")  # vpbroadcastb %esi,%zmm16; vmovdqu64 %zmm16,(%rdi); ret
# Ends with 0 where what it stores is what it was given.
_CALLER = """
import ctypes, mmap, sys
libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
file, place = map(int, sys.argv[1:])
memory = libc.mmap(None, mmap.PAGESIZE, mmap.PROT_READ | mmap.PROT_EXEC, mmap.MAP_PRIVATE, file, place)
store, stored = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int)(memory), ctypes.create_string_buffer(64)
for number in range(1, 100):
    store(ctypes.addressof(stored), number)
    if stored.raw != bytes([number]) * 64:
        sys.exit(1)
"""


def is_avx512(code: bytes) -> bool:
    """Return whether an instruction is one of AVX-512 (EVEX), by what it begins with."""
    return platform.machine() == "x86_64" and code[:1] == b"\x62"


@cache
def is_computed() -> bool:
    """Return whether such an instruction does what it is to with a uprobe on it; False where that cannot be tried."""
    try:
        with ExitStack() as stack:
            return _try(stack)
    except (OSError, subprocess.TimeoutExpired) as error:
        if few_descriptors(error):  # not for good
            raise
        return False


def _try(stack: ExitStack) -> bool:
    file = os.memfd_create("bpfnb-step", os.MFD_CLOEXEC)
    stack.callback(os.close, file)
    place = random.randrange(_PAGES) * mmap.PAGESIZE
    os.pwrite(file, _CODE.ljust(mmap.PAGESIZE, b"\0"), place)
    attributes = ProgramAttributes(ProgramType.KPROBE, b"bpfnb_step", b"GPL", bpf.kernel_version())
    program = bpf.load_program(attributes, RETURN_0)
    stack.callback(os.close, program)
    with capabilities.with_sys_admin():
        event = perf.open_uprobe(f"/proc/self/fd/{file}", place)
        stack.callback(os.close, event)
        link = perf.attach_program(event, program)
        if link is not None:
            stack.callback(os.close, link)
    command = [sys.executable, "-I", "-S", "-c", _CALLER, str(file), str(place)]
    return subprocess.run(command, pass_fds=[file], timeout=_TIMEOUT, check=False, stderr=-3).returncode == 0
