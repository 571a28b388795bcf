"""The number of the probe that fires, ``bpfnb_probe(ctx)``: an index into the session's probes.

A program is told its *place* when it is loaded: the C loads a constant, PLACE, that is replaced in its instructions.
The verifier knows it as a number then, and drops the branches for other places. A place is

    less than RAW        of a program that runs at one probe: the index in an array that has the probe's number
    RAW + n              of the n-th that system calls share, whose numbers say which it is (raw_syscalls.py)
    COOKIE               of one that runs at several probes, each of which gives its number by bpf_get_attach_cookie

The numbers go into the arrays, and to the kernel as cookies, when a probe is attached: only then is it known which of
those before it were.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from functools import cache

from msgspec.structs import replace

from bpfnb.errors import UnsupportedError, few_descriptors
from bpfnb.language.probes import Probe
from bpfnb.language.program import Program
from bpfnb.tracer.kernel import bpf, features
from bpfnb.tracer.kernel.instructions import IMMEDIATE_AT, LDDW, NUMBER, SIZE, helper, operations
from bpfnb.tracer.link import kinds
from bpfnb.tracer.link.link import NUMBER_SHIFT
from bpfnb.tracer.link.many.raw_syscalls import CALLS_MAP, MAX_NUMBER
from bpfnb.tracer.loaded import Loaded, ProgramSpec

__all__ = ["NUMBERS_MAP", "RAW", "is_raw", "numbered", "placed", "places", "prelude", "require_cookies", "wanted_maps"]

NUMBERS_MAP = "bpfnb_numbers"
RAW, COOKIE = 1 << 16, 0xFFFFFFFF
_PLACE = 0x62706670726F6265  # "bpfprobe"
_PRELUDE = f"""\
BPF_ARRAY({NUMBERS_MAP}, u32, %d);
static __always_inline u32 bpfnb_probe(void *ctx) {{
    u64 bpfnb_place;
    asm volatile("%%0 = {_PLACE:#x} ll" : "=r"(bpfnb_place));
    if (bpfnb_place == {COOKIE:#x}) return ((u64 (*)(void *)){helper("bpf_get_attach_cookie")})(ctx) >> {NUMBER_SHIFT};
    int bpfnb_index = bpfnb_place;
    %s
    u32 *bpfnb_number = {NUMBERS_MAP}.lookup(&bpfnb_index);
    return bpfnb_number ? *bpfnb_number : 0;
}}
"""
_CALLS = f"BPF_ARRAY({CALLS_MAP}, u32, %d);\n"
_BY_CALL = f"""\
if (bpfnb_place >= {RAW}) {{
        bpfnb_index = (bpfnb_place - {RAW}) * {MAX_NUMBER} + ((u64 *)ctx)[1];
        u32 *bpfnb_call = {CALLS_MAP}.lookup(&bpfnb_index);
        return bpfnb_call ? (*bpfnb_call & 0x7fffffff) - 1 : 0;
    }}"""


def prelude(program: Program) -> str:
    """Return the C of bpfnb_probe, where the program asks for it, and the arrays that are wanted."""
    where = places(program).values()
    sharing = len({place for place in where if is_raw(place)})
    calls = _CALLS % (sharing * MAX_NUMBER) if sharing else ""
    return calls + (_PRELUDE % (max(len(where), 1), _BY_CALL if sharing else "") if program.numbered else "")


def is_raw(place: int | None) -> bool:
    """Return whether a place is that of a program that system calls share."""
    return place is not None and RAW <= place < COOKIE


def places(program: Program) -> dict[ProgramSpec, int]:
    """Return the places of programs that are loaded for probes: of those that system calls share, and of all where the
    program asks for their numbers."""
    probes: dict[ProgramSpec, int] = {}
    for probe in program.probes:
        spec = kinds.spec(probe)
        probes[spec] = probes.get(spec, 0) + 1
    shared = [kinds.spec(probe) for probe in program.probes if probe.way == "raw_syscalls"]
    found = {spec: RAW + index for index, spec in enumerate(dict.fromkeys(shared))}
    if program.numbered:
        for index, spec in enumerate(spec for spec in probes if spec not in found):
            # A function that several programs tail-call can ask for a cookie alone.
            several = probes[spec] > 1 or (program.tail_calls and not spec.attach_to)
            found[spec] = COOKIE if several else index
    called = {kinds.tail_call(name, spec): place for name in program.tail_calls for spec, place in found.items()}
    return called | found


def require_cookies(program: Program) -> None:
    """Raise UnsupportedError where probes cannot tell their programs which they are."""
    if COOKIE in places(program).values() and not _has_cookies():
        raise UnsupportedError(
            "bpfnb_probe(ctx) of a function at several probes takes Linux 5.15: this kernel cannot tell a program "
            "which of its probes fires",
            hint="write a function for each probe",
        )


@cache
def _has_cookies() -> bool:
    try:
        features.attach_cookie()
    except OSError as error:
        if few_descriptors(error):  # that says nothing of the kernel
            raise
        return False
    return True


def numbered(probe: Probe, number: int, loaded: Loaded, where: Mapping[ProgramSpec, int]) -> Probe:
    """Return a probe that is about to be attached, with its number, which is also put where its program looks."""
    place = where.get(kinds.spec(probe))
    if place is None or is_raw(place):
        return probe
    if place == COOKIE:
        return replace(probe, number=number)
    bpf.update(loaded.maps[NUMBERS_MAP].fd, struct.pack("=I", place), struct.pack("=I", number))
    return probe


def placed(code: bytes, place: int | None) -> bytes:
    """Return a program's instructions with its place; as they are where it has none."""
    if place is None:
        return code
    found = bytearray(code)
    for at, instruction in operations(code):
        low, high = (SIZE * (at + half) + IMMEDIATE_AT for half in range(2))
        if instruction.op == LDDW and instruction.src == NUMBER and _number(code, low, high) == _PLACE:
            found[low : low + 4], found[high : high + 4] = struct.pack("=I", place), bytes(4)
    return bytes(found)


def _number(code: bytes, low: int, high: int) -> int:
    return int(struct.unpack_from("=I", code, low)[0] | struct.unpack_from("=I", code, high)[0] << 32)


def wanted_maps(program: Program) -> Iterable[str]:
    """Return the maps that ``prelude`` declares."""
    calls = any(map(is_raw, places(program).values()))
    return [NUMBERS_MAP] * program.numbered + [CALLS_MAP] * calls
