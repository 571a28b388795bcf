"""What it takes to reach a program by a uprobe on this machine: a trap into the kernel and back, for each hit.

The kernel's statistics time a program from its first instruction on. A uprobe's trap takes ten times as long as most
programs, and is measured here: calls of a function of two instructions, with an empty program on it and without.

It depends on the instruction that the uprobe is at. The kernel emulates some of them; others it has run elsewhere, one
single step, for which it is trapped into a second time, and on a virtual machine that can take twenty times as long.
Which it emulates differs between kernels, so each sort is measured with an instruction of that sort, and where a sort
has several, with each of them: the least counts. Linux: arch/x86/kernel/uprobes.c, arch_uprobe_analyze_insn().

The code runs in a process of its own. The kernel knows a uprobe by a file's inode and the place in it, and does not
hold on to the inode. One of a tracer that was killed can stay ("failed to unregister, leaking uprobe"), and be taken
for that of the next tracer's file: the kernel then steps over another instruction than is there (seen on 6.18, where
the tracer died of it). So the code is at a random place in its file, too.
"""

from __future__ import annotations

import mmap
import os
import platform
import random
import select
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache

from bpfnb.errors import few_descriptors
from bpfnb.tracer.kernel import bpf, capabilities, perf
from bpfnb.tracer.kernel.bpf import ProgramAttributes
from bpfnb.tracer.kernel.instructions import RETURN_0
from bpfnb.tracer.kernel.uapi import ProgramType

__all__ = ["nanoseconds"]

# Instructions to measure with, by sort, and a return. What they do changes nothing for the caller.
_RETURN = {"x86_64": b"\xc3", "aarch64": b"\xc0\x03\x5f\xd6"}
_SAMPLES = {
    "nop": [b"\x90"],
    "push": [b"\x51\x59"],  # push %rcx; pop %rcx
    "nopl": [b"\x0f\x1f\x00"],
    "endbr64": [b"\xf3\x0f\x1e\xfa"],
    "other": [b"\x31\xc9", b"\x48\x89\xc9", b"\x48\x83\xec\x00"],  # xor %ecx,%ecx; mov %rcx,%rcx; sub $0,%rsp
    "aarch64": [b"\x1f\x20\x03\xd5"],  # nop; all but branches are stepped or emulated much alike
}
_PAGES = 1 << 20  # so many places the code can be at
_TIMEOUT = 10.0  # seconds for some thousand calls

# What calls the code: a descriptor, and its place in that file. For each line that it reads it writes the nanoseconds a
# call, in the best of several rounds: what disturbs makes it longer, never shorter.
_CALLER = """
import ctypes, mmap, sys, time
libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
file, place = map(int, sys.argv[1:])
memory = libc.mmap(None, mmap.PAGESIZE, mmap.PROT_READ | mmap.PROT_EXEC, mmap.MAP_PRIVATE, file, place)
call, calls = ctypes.CFUNCTYPE(None)(memory), range(300)
for _ in sys.stdin:
    rounds = []
    for _ in range(7):
        began = time.thread_time_ns()
        for _ in calls:
            call()
        rounds.append((time.thread_time_ns() - began) / len(calls))
    print(min(rounds), flush=True)
"""


def nanoseconds(code: bytes, returning: bool) -> float:
    """The least that a uprobe, or a uretprobe, adds to a call beside its program's own time; 0 where that cannot be
    measured. ``code``: what the instruction that it is at begins with. Takes some milliseconds the first time, and a
    grace period of the kernel's. OSError where no descriptor is free."""
    sort = _sort(code)
    return _of_sort(sort, returning) if sort else 0.0


def _sort(code: bytes) -> str:
    """The sort of an instruction, "" where it is not known."""
    if platform.machine() != "x86_64":
        return platform.machine() if platform.machine() in _SAMPLES else ""
    if not code:
        return ""
    if code.startswith(b"\xf3\x0f\x1e\xfa"):
        return "endbr64"
    first, second = code[0], (code + b"\0")[1]
    if 0x50 <= (second if first == 0x41 else first) <= 0x57:
        return "push"
    if first == 0x0F and second == 0x1F:
        return "nopl"
    jumps = (0x70 <= first <= 0x7F) or (first == 0x0F and 0x80 <= second <= 0x8F) or first in (0xE8, 0xE9, 0xEB)
    return "nop" if first == 0x90 or jumps else "other"


@cache
def _of_sort(sort: str, returning: bool) -> float:
    try:
        return min(_measured(sample, returning) for sample in _SAMPLES[sort])
    except OSError as error:
        if few_descriptors(error):  # not for good
            raise
        return 0.0


def _measured(sample: bytes, returning: bool) -> float:
    with ExitStack() as stack:
        return _measure(sample + _RETURN[platform.machine()], returning, stack)


def _measure(code: bytes, returning: bool, stack: ExitStack) -> float:
    file = os.memfd_create("bpfnb-trap", os.MFD_CLOEXEC)
    stack.callback(os.close, file)
    place = random.randrange(_PAGES) * mmap.PAGESIZE
    os.pwrite(file, code.ljust(mmap.PAGESIZE, b"\0"), place)
    caller = stack.enter_context(_calling(file, place))
    plain = _fastest(caller)
    attributes = ProgramAttributes(ProgramType.KPROBE, b"bpfnb_trap", b"GPL", bpf.kernel_version())
    program = bpf.load_program(attributes, RETURN_0)
    stack.callback(os.close, program)
    with capabilities.with_sys_admin():
        event = perf.open_uprobe(f"/proc/self/fd/{file}", place, returning=returning)
        stack.callback(os.close, event)
        link = perf.attach_program(event, program)
        if link is not None:
            stack.callback(os.close, link)
    return max(_fastest(caller) - plain, 0.0)


@contextmanager
def _calling(file: int, place: int) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-I", "-S", "-c", _CALLER, str(file), str(place)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, bufsize=0, pass_fds=[file]) as caller:
        try:
            yield caller
        finally:
            caller.kill()


def _fastest(caller: subprocess.Popen[bytes]) -> float:
    """Nanoseconds a call. OSError where the process that calls has ended, or takes too long."""
    assert caller.stdin
    assert caller.stdout
    caller.stdin.write(b"\n")
    ready = select.poll()
    ready.register(caller.stdout, select.POLLIN)
    if not ready.poll(_TIMEOUT * 1000):
        raise TimeoutError("the code with the uprobe on it takes too long")
    answer = caller.stdout.readline()
    if not answer:
        raise ChildProcessError("the process that runs the code with the uprobe on it has ended")
    return float(answer)
