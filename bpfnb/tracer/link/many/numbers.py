"""The number of the probe that fires, ``bpfnb_probe(ctx)``: an index into the session's probes.

A program is told its *place* when it is loaded: the C loads a constant, PLACE, that is replaced in its instructions.
The verifier knows it as a number then, and drops the branches for other places. A place is

    less than 1 << 16    of a program that runs at one probe: the index in an array that has the probe's number
    COOKIE               of one that runs at several, each of which gives its number by bpf_get_attach_cookie

The numbers go into the array, and to the kernel as cookies, when a probe is attached: only then is it known which of
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
from bpfnb.tracer.loaded import Loaded, ProgramSpec

__all__ = ["NUMBERS_MAP", "numbered", "placed", "places", "prelude", "require_cookies", "wanted_maps"]

NUMBERS_MAP = "bpfnb_numbers"
COOKIE = 0xFFFFFFFF
_PLACE = 0x62706670726F6265  # "bpfprobe"
_PRELUDE = f"""\
BPF_ARRAY({NUMBERS_MAP}, u32, %d);
static __always_inline u32 bpfnb_probe(void *ctx) {{
    u64 bpfnb_place;
    asm volatile("%%0 = {_PLACE:#x} ll" : "=r"(bpfnb_place));
    if (bpfnb_place == {COOKIE:#x}) return ((u64 (*)(void *)){helper("bpf_get_attach_cookie")})(ctx) >> {NUMBER_SHIFT};
    int bpfnb_index = bpfnb_place;
    u32 *bpfnb_number = {NUMBERS_MAP}.lookup(&bpfnb_index);
    return bpfnb_number ? *bpfnb_number : 0;
}}
"""


def prelude(program: Program) -> str:
    """Return the C of bpfnb_probe, where the program asks for it."""
    return _PRELUDE % max(len(places(program)), 1) if program.numbered else ""


def places(program: Program) -> dict[ProgramSpec, int]:
    """Return the place of each program that is loaded for probes, where they are asked for their numbers."""
    if not program.numbered:
        return {}
    probes: dict[ProgramSpec, int] = {}
    for probe in program.probes:
        spec = kinds.spec(probe)
        probes[spec] = probes.get(spec, 0) + 1
    return {spec: COOKIE if several > 1 else index for index, (spec, several) in enumerate(probes.items())}


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
    if place is None:
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
    return [NUMBERS_MAP] if program.numbered else []
