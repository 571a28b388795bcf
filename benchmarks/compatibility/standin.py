"""Processes with the USDT probes that tools look for in Java, Ruby, MySQL and others, which are not installed.

They never run through any of them: the tools' programs are to compile, load and attach. The probes' arguments are
eight registers, as the compilers of those programs would place some.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

__all__ = ["build"]

# Program: its providers, each with its probes. ustat finds its programs by their names.
_PROGRAMS = {
    "java": (
        "hotspot class__loaded class__unloaded gc__begin gc__end mem__pool__gc__begin mem__pool__gc__end method__entry "
        "method__return object__alloc thread__start thread__stop; libpthread pthread_start"
    ),
    "mysqld": "mysql query__start query__done",
    "node": "node gc__start gc__done http__server__request",
    "perl": "perl sub__entry sub__return",
    "php": "php compile__file__entry exception__caught function__entry function__return object__create",
    "postgres": "postgresql query__start query__done",
    "python": "python function__entry function__return gc__start gc__done",
    "ruby": (
        "ruby array__create cmethod__entry cmethod__return gc__mark__begin gc__mark__end gc__sweep__begin "
        "gc__sweep__end hash__create load__entry method__entry method__return object__create raise string__create"
    ),
    "tclsh": "tcl cmd__entry cmd__return obj__create obj__free proc__args proc__entry proc__return",
    "threads": "libpthread pthread_start",
}
# A note as SystemTap's <sys/sdt.h> writes them: addresses of probe, section and semaphore, then three strings.
_PROBE = r"""
    __asm__("990: nop\n"
            ".pushsection .note.stapsdt,\"?\",\"note\"\n"
            ".balign 4\n.4byte 992f-991f, 994f-993f, 3\n"
            "991: .asciz \"stapsdt\"\n"
            "992: .balign 4\n"
            "993: .8byte 990b\n.8byte _.stapsdt.base\n.8byte 0\n"
            ".asciz \"%s\"\n.asciz \"%s\"\n"
            ".asciz \"8@%%rdi 8@%%rsi 8@%%rdx 8@%%rcx 8@%%r8 8@%%r9 8@%%r10 8@%%r11\"\n"
            "994: .balign 4\n"
            ".popsection\n");
"""
_PROGRAM = r"""
__asm__(".pushsection .stapsdt.base,\"aG\",\"progbits\",.stapsdt.base,comdat\n"
        ".weak _.stapsdt.base\n.hidden _.stapsdt.base\n"
        "_.stapsdt.base: .space 1\n.size _.stapsdt.base, 1\n"
        ".popsection\n");
int pause(void);
void _Z16dispatch_command19enum_server_commandP3THDPcj(void) {%s} /* what dbslower looks for in MySQL */
int main(void) { for (;;) pause(); }
"""


def build(folder: Path) -> dict[str, Path]:
    """The programs, compiled into a folder with the C compiler (x86_64 only): name to file."""
    programs = {}
    for name, words in _PROGRAMS.items():
        groups = [group.split() for group in words.split(";")]
        probes = [(provider, probe) for provider, *names in groups for probe in names]
        programs[name] = folder / name
        if not programs[name].exists():
            source = _PROGRAM % "".join(_PROBE % probe for probe in probes)
            command = ["cc", "-x", "c", "-", "-o", str(programs[name])]
            subprocess.run(command, input=source, text=True, check=True, capture_output=True)
    return programs
