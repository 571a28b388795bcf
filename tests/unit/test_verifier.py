"""What is made of a verifier's log: its class, its line, the register at fault, in the formats of all kernels."""

from __future__ import annotations

import errno

import pytest

from bpfnb.tracer.diagnose.lineinfo import Lines
from bpfnb.tracer.diagnose.verifier import read

CELL = "int f(void *ctx) {\n    u32 key = 0;\n    u64 *value = counts.lookup(&key);\n    return *value;\n}\n"

NEW = """\
0: R1=ctx() R10=fp0
; u64 *value = counts.lookup(&key); @ 200:3
6: (85) call bpf_map_lookup_elem#1    ; R0=map_value_or_null(id=1,map=counts,ks=4,vs=8)
; return *value; @ 200:4
7: (79) r0 = *(u64 *)(r0 +0)
R0 invalid mem access 'map_value_or_null'
processed 7 insns (limit 1000000) max_states_per_insn 0 total_states 0 peak_states 0 mark_read 0
"""
# Linux 6.1 quotes, but does not say which line; 5.8 to 5.17 call a number "inv".
OLD = """\
; u64 *value = counts.lookup(&key);
6: (85) call bpf_map_lookup_elem#1
; return *value;
7: (79) r0 = *(u64 *)(r0 +0)
 R0=map_value_or_null(id=1,off=0,ks=4,vs=8,imm=0) R10=fp0
R0 invalid mem access 'map_value_or_null'
"""
# Linux 7.3: the message stays, and a report follows it (kernel/bpf/diagnostics.c).
STATS = NEW[NEW.index("processed") :]
REPORT = NEW.replace(
    "processed",
    """
Verification failed: Register Type Safety: Invalid dereference

Reason:
  R0 may be NULL here (a nullable map value pointer). The program could dereference NULL on this
  path, so the verifier cannot prove this access is safe.

At:
  f @ 200:4:12
  Source context:
      2 |     u32 key = 0;
      3 |     u64 *value = counts.lookup(&key);
  >>> 4 |     return *value;
        |     ^-- error: invalid dereference of R0 (a nullable map value pointer)
      5 | ...
      6 | ...
  Instruction context:
      6 | (85) call bpf_map_lookup_elem#1
  >>> 7 | (79) r0 = *(u64 *)(r0 +0)
      8 | (95) exit

Causal path:
  f @ 200:3:25
  Source context:
      1 | int f(void *ctx) {
      2 |     u32 key = 0;
  >>> 3 |     u64 *value = counts.lookup(&key);
        |     ^-- update: R0 changed from uninitialized value to nullable map value from counts at
        |         offset 0
      4 |     return *value;
      5 | ...
  Instruction context:
      4 | (18) r1 = 0xffff888105e0be00
  >>> 6 | (85) call bpf_map_lookup_elem#1
      7 | (79) r0 = *(u64 *)(r0 +0)
      8 | (95) exit

Suggestion:
  Add a NULL check before the access and dereference the pointer only on the non-NULL path.

processed""",
)
# Without line information, which bcc leaves out when it loads a refused program again, a report says instructions only.
STACK = f"""\
5: (79) r0 = *(u64 *)(r10 -16)
invalid read from stack off -16+0 size 8

Verification failed: Memory Safety: Uninitialized stack read

Reason:
  This rejected read uses 8 bytes at stack offset -16, but byte 0 in that range is uninitialized on
  this path. Programs loaded with CAP_PERFMON can be allowed to read uninitialized stack bytes, but
  this program is being rejected without that allowance.

At:
  insn 5
       | ^-- error: uninitialized stack read
  Instruction context:
      3 | (bf) r6 = r1
      4 | (b7) r7 = 0
  >>> 5 | (79) r0 = *(u64 *)(r10 -16)
      6 | (95) exit

Suggestion:
  Initialize every byte in the stack range before reading it, adjust the offset and size so the read
  covers only initialized bytes, or load with CAP_PERFMON if uninitialized stack reads are intended.

{STATS}"""
VALUE = f"""\
9: (79) r0 = *(u64 *)(r0 +0)
invalid access to map value, value_size=64 off=64 size=8
R0 max value is outside of the allowed memory range

Verification failed: Memory Safety: Access outside bounds

Reason:
  The verifier cannot prove offset + access_size <= object_size. Here, the maximal bound for a
  memory access is 72: start 64 + access_size 8, beyond object_size 64. R0 is map_value; offset is
  variable: known bits 0x0, unknown mask 0x7f; signed range [0, 64], unsigned range [0, 64];
  access_size is 8; object_size is 64.

At:
  insn 9
       | ^-- error: access may be outside object bounds
  Instruction context:
       7 | (15) if r0 == 0x0 goto pc+2
       8 | (0f) r0 += r6
  >>>  9 | (79) r0 = *(u64 *)(r0 +0)
      10 | (95) exit

Causal path:
  insn 6
       | ^-- update: R0 changed from uninitialized value to nullable map value from counts at offset
       |     0
  Instruction context:
       4 | (18) r1 = 0xffff888105e0be00
  >>>  6 | (85) call bpf_map_lookup_elem#1
       7 | (15) if r0 == 0x0 goto pc+2
       8 | (0f) r0 += r6

  insn 7
       | ^-- branch: took the false branch of this conditional, goto not followed
  Instruction context:
       6 | (85) call bpf_map_lookup_elem#1
  >>>  7 | (15) if r0 == 0x0 goto pc+2
       8 | (0f) r0 += r6
       9 | (79) r0 = *(u64 *)(r0 +0)

  insn 8
       | ^-- update: R0 changed from map value from counts at offset 0 to map value from counts with
       |     variable offset: known bits 0x0, unknown mask 0x7f, signed range [0, 64], unsigned
       |     range [0, 64]
  Instruction context:
       6 | (85) call bpf_map_lookup_elem#1
       7 | (15) if r0 == 0x0 goto pc+2
  >>>  8 | (0f) r0 += r6
       9 | (79) r0 = *(u64 *)(r0 +0)
      10 | (95) exit

Suggestion:
  Add or adjust a bounds check that proves offset + access_size stays within the object.

{STATS}"""
LEAK = f"""\
6: (85) call bpf_ringbuf_reserve#131
7: (85) call bpf_ringbuf_reserve#131
8: (95) exit
Unreleased reference id=2 alloc_insn=6

Verification failed: Resource Lifetime Safety: Unreleased resource

Reason:
  Owned resource (id=2) was acquired at instruction 6 and still needs to be released before this
  exit path.

At:
  insn 8
       | ^-- error: owned resource (id=2) still needs release
  Instruction context:
      6 | (85) call bpf_ringbuf_reserve#131
      7 | (85) call bpf_ringbuf_reserve#131
  >>> 8 | (95) exit

Causal path:
  insn 6
       | ^-- acquired: owned resource (id=2)
  Instruction context:
      4 | (b7) r2 = 8
      5 | (b7) r3 = 0
  >>> 6 | (85) call bpf_ringbuf_reserve#131
      7 | (85) call bpf_ringbuf_reserve#131
      8 | (95) exit

Suggestion:
  Release or transfer ownership of the acquired resource on every path before the program exits.

Unreleased reference id=4 alloc_insn=7

Verification failed: Resource Lifetime Safety: Unreleased resource

Reason:
  Owned resource (id=4) was acquired at instruction 7 and still needs to be released before this
  exit path.

At:
  insn 8
       | ^-- error: owned resource (id=4) still needs release
  Instruction context:
      6 | (85) call bpf_ringbuf_reserve#131
      7 | (85) call bpf_ringbuf_reserve#131
  >>> 8 | (95) exit

Causal path:
  insn 7
       | ^-- acquired: owned resource (id=4)
  Instruction context:
      5 | (b7) r3 = 0
      6 | (85) call bpf_ringbuf_reserve#131
  >>> 7 | (85) call bpf_ringbuf_reserve#131
      8 | (95) exit

Suggestion:
  Release or transfer ownership of the acquired resource on every path before the program exits.

BPF_EXIT instruction in main prog would lead to reference leak
{STATS}"""
HELPER = f"""\
2: (85) call bpf_redirect#23
program of this type cannot use helper bpf_redirect#23

Verification failed: Policy: Operation is not allowed

Reason:
  The helper bpf_redirect#23 is not allowed: this program type does not allow the helper.

At:
  insn 2
       | ^-- error: policy check failed for helper bpf_redirect#23
  Instruction context:
      0 | (b7) r1 = 1
      1 | (b7) r2 = 0
  >>> 2 | (85) call bpf_redirect#23
      3 | (95) exit

Suggestion:
  Use a helper allowed for this program type, or move the logic to a compatible program type.

{STATS}"""
REPORTS = {  # class, summary, line in TABLE; how the reason begins and the suggestion ends
    REPORT: (
        "unchecked map lookup",
        "R0 invalid mem access 'map_value_or_null'",
        4,
        "R0 may be NULL",
        "non-NULL path.",
    ),
    STACK: ("uninitialised stack", "invalid read from stack off -16+0 size 8", 2, "This rejected", "are intended."),
    VALUE: (
        "out of bounds of a map value",
        "R0 max value is outside of the allowed memory range",
        4,
        "The verifier cannot prove offset + access_size <= object_size. Here",
        "within the object.",
    ),
    LEAK: ("unreleased reference", "Unreleased reference id=2 alloc_insn=6", 3, "Owned resource (id=2)", "exits."),
    HELPER: (
        "helper not allowed here",
        "program of this type cannot use helper bpf_redirect#23",
        1,
        "The helper bpf_redirect#23",
        "compatible program type.",
    ),
}
TABLE = Lines((0, 3, 6, 7), (1, 2, 3, 4))


@pytest.mark.parametrize("log", [NEW, OLD, REPORT], ids=["6.9", "6.1", "7.3"])
def test_the_class_and_the_line_are_found_in_every_format(log: str) -> None:
    found = read(log, errno.EACCES, CELL)
    assert found.kind == "unchecked map lookup"
    assert found.summary == "R0 invalid mem access 'map_value_or_null'"
    assert found.line == 4


def test_the_register_at_fault_and_where_it_got_its_value() -> None:
    found = read(NEW, errno.EACCES, CELL)
    assert "R0 is map_value_or_null(id=1,map=counts,ks=4,vs=8)" in found.explanation
    assert "it got its value in line 3: u64 *value = counts.lookup(&key);" in found.explanation
    assert found.hint is not None
    assert "if (!value)" in found.hint


@pytest.mark.parametrize("log", REPORTS, ids=["null", "stack", "value", "leak", "helper"])
def test_the_kernels_own_explanation_is_believed(log: str) -> None:
    kind, summary, line, reason, suggestion = REPORTS[log]
    found = read(log, errno.EACCES, CELL, TABLE)
    assert (found.kind, found.summary, found.line) == (kind, summary, line)
    assert found.explanation.startswith(reason)
    assert found.hint is not None
    assert found.hint.endswith(suggestion)
    assert "  " not in found.explanation + found.hint
    assert "\n" not in found.explanation + found.hint


@pytest.mark.parametrize("log", REPORTS, ids=["null", "stack", "value", "leak", "helper"])
def test_a_report_alone_tells_the_class_and_the_line(log: str) -> None:
    kind, _, line, reason, _ = REPORTS[log]
    report = log[log.index("\nVerification failed") :]
    found = read(report, errno.EACCES, CELL, TABLE)
    assert (found.kind, found.line) == (kind, line)
    assert found.summary in report.splitlines()[1]
    assert found.explanation.startswith(reason)


def test_a_report_alone_names_the_line_of_the_cell() -> None:
    report = REPORT[REPORT.index("\nVerification failed") :]
    assert read(report, errno.EACCES, CELL).line == 4
    assert read(report.replace("f @ 200:4:12", "200:4:12"), errno.EACCES, CELL).line == 4
    assert read(report.replace("f @ 200:4:12", "f @ helpers.h:4:12"), errno.EACCES, CELL).line is None


def test_a_report_whose_beginning_did_not_fit() -> None:
    found = read(REPORT[REPORT.index("path, so the verifier") :], errno.EACCES, CELL)
    assert found.kind == "unchecked map lookup"
    assert found.summary == "invalid dereference of R0 (a nullable map value pointer)"
    assert found.line == 4
    assert found.explanation.startswith("A lookup gives NULL when the key is not in the map")
    assert found.hint == "Add a NULL check before the access and dereference the pointer only on the non-NULL path."

    found = read(LEAK[LEAK.index("Suggestion:") : LEAK.index("Unreleased reference id=4")], errno.EINVAL, CELL)
    assert (found.kind, found.summary, found.line) == ("unreleased reference", "Invalid argument", None)


@pytest.mark.parametrize("end", ["The program could", "path, so the", "At:", "      5 | ...", "Causal path", "  Add a"])
def test_a_report_whose_end_did_not_fit(end: str) -> None:
    found = read(REPORT[: REPORT.index(end) + len(end)], errno.EACCES, CELL)
    assert found[:3] == REPORTS[REPORT][:3]
    halved = end in ("The program could", "path, so the")  # then there is none
    assert found.explanation.startswith("A lookup gives" if halved else "R0 may be NULL")
    assert found.hint == "check the pointer before it is used: if (!value) return 0;"


def test_what_is_wrong_with_memory_comes_before_the_argument_that_it_is() -> None:
    log = "8: (85) call bpf_perf_event_output#25\ninvalid read from stack R4 off -16+4 size 16\n"
    log += "R4 and R5 memory, len pair leads to invalid memory access\n"
    found = read(log + STATS, errno.EACCES, CELL)
    assert (found.kind, found.summary) == ("uninitialised stack", "invalid read from stack R4 off -16+4 size 16")


def test_lines_come_from_the_compilers_table_where_the_log_quotes_nothing() -> None:
    log = "0: (b7) r1 = 0\n7: (79) r0 = *(u64 *)(r0 +0)\nR0 invalid mem access 'map_value_or_null'\n"
    assert read(log, errno.EACCES, CELL).line is None
    lines = Lines((0, 5, 7), (2, 3, 4))
    assert read(log, errno.EACCES, CELL, lines).line == 4
    assert read("infinite loop detected at insn 6", errno.EINVAL, CELL, lines).line == 3
    # A line behind the cell's end is none of its lines.
    assert read(log, errno.EACCES, CELL, Lines((0, 7), (2, 99))).line == 2
    # An instruction that is none of the cell's: the last before it that is.
    assert read(log, errno.EACCES, CELL, Lines((0, 7), (2, 0))).line == 2


MESSAGES = {
    "R1 invalid mem access 'inv'": "direct memory access",
    "R1 invalid mem access 'scalar'": "direct memory access",
    "R1 invalid mem access 'ringbuf_mem_or_null'": "unchecked pointer",
    "R1 invalid mem access 'alloc_mem_or_null'": "unchecked pointer",
    "R1 invalid mem access 'mem_or_null'": "unchecked pointer",
    "invalid access to map value, value_size=64 off=64 size=8\nR6 max value is outside of the allowed memory range": (
        "out of bounds of a map value"
    ),
    "invalid access to packet, off=0 size=14, R1(id=0,off=0,r=0)\nR1 offset is outside of the packet": (
        "unchecked packet access"
    ),
    "invalid stack off=-520 size=8": "out of bounds of the stack",
    "invalid write to stack R10 off=-520 size=8": "out of bounds of the stack",
    "invalid stack type R1 off=-16 access_size=64": "out of bounds of the stack",
    "invalid unbounded variable-offset indirect access to stack R1": "out of bounds of the stack",
    "invalid indirect read from stack off -8+4 size 16": "uninitialised stack",
    "invalid indirect read from stack R2 off -16+4 size 16": "uninitialised stack",
    "invalid read from stack off -8+0 size 8": "uninitialised stack",
    "invalid read from stack R2 off -8+0 size 8": "uninitialised stack",
    "combined stack size of 2 calls is 800. Too large": "stack too large",
    "R5 !read_ok": "uninitialised register",
    "infinite loop detected at insn 3": "endless loop",
    "back-edge from insn 12 to 4": "endless loop",
    "BPF program is too large. Processed 1000001 insn": "too complex",
    "The sequence of 8193 jumps is too complex.": "too complex",
    "unknown func bpf_redirect#23": "helper not allowed here",
    "program of this type cannot use helper bpf_redirect#23": "helper not allowed here",
    "cannot call GPL-restricted function from non-GPL compatible program": "missing GPL licence",
    "cannot call GPL only function from proprietary program": "missing GPL licence",
    "Unreleased reference id=2 alloc_insn=5": "unreleased reference",
    "Unreleased reference id=2 alloc_insn=5\nBPF_EXIT instruction in main prog would lead to reference leak": (
        "unreleased reference"
    ),
    "helper call might sleep in a non-sleepable prog": "sleepable mismatch",
    "R2 pointer arithmetic on map_value prohibited": "wrong pointer arithmetic",
    "R0 bitwise operator &= on pointer prohibited": "wrong pointer arithmetic",
    "R0 32-bit pointer arithmetic prohibited": "wrong pointer arithmetic",
    "R1 pointer += pointer prohibited": "wrong pointer arithmetic",
    "unreachable insn 4": "unreachable instruction",
    "last insn is not an exit or jmp": "call of a function",
    "jump out of range from insn 0 to 2001": "jump out of range",
    "At program exit the register R0 has value (0x1; 0x0) should have been in (0x0; 0x0)": "bad return value",
    "At program exit the register R0 has smin=7 smax=7 should have been in [0, 0]": "bad return value",
    "invalid bpf_context access off=4000 size=4": "invalid context access",
    "dereference of modified ctx ptr R1 off=8 disallowed": "invalid context access",
    "variable ctx access var_off=(0x0; 0x7) disallowed": "invalid context access",
    "R1 type=scalar expected=fp": "wrong argument",
    "R1 type=inv expected=fp, pkt, pkt_meta, map_key, map_value": "wrong argument",
    "write into map forbidden, value_size=8 off=0 size=8": "write to read-only memory",
    "misaligned stack access off (0x0; 0x0)+-7+0 size 8": "misaligned access",
    "something that nobody has seen": "",
}


@pytest.mark.parametrize("message", MESSAGES)
def test_every_message_has_its_class(message: str) -> None:
    found = read(f"0: (b7) r0 = 0\n{message}\nprocessed 3 insns (limit 1000000)\n", errno.EINVAL, CELL)
    assert found.kind == MESSAGES[message]
    assert found.summary == message.splitlines()[-1]
    assert bool(found.explanation) == bool(found.kind)


def test_a_pointer_the_compiler_knows_to_be_null() -> None:
    log = "5: (85) call bpf_ringbuf_reserve#131 ; R0=ringbuf_mem_or_null(id=2,ref_obj_id=2,sz=8)\n"
    log += "6: (bf) r6 = r0 ; R6=ringbuf_mem_or_null(id=2)\n7: (55) if r6 != 0x0 goto pc+9 ; R6=0\n"
    log += "8: (7b) *(u64 *)(r6 +0) = r0\nR6 invalid mem access 'scalar'\n"
    assert read(log, errno.EACCES, CELL).kind == "unchecked pointer"
    assert read(log.replace("ringbuf_mem_or_null", "map_value_or_null"), 13, CELL).kind == "unchecked map lookup"
    assert read(log.replace("ringbuf_mem_or_null", "scalar"), 13, CELL).kind == "direct memory access"


def test_too_long_without_a_log() -> None:
    found = read("", errno.E2BIG, CELL)
    assert (found.kind, found.summary) == ("program too long", "more instructions than the kernel takes")


def test_nothing_said_is_the_error_itself() -> None:
    found = read("", errno.EPERM, CELL)
    assert found == ("", "Operation not permitted", None, "", None)


@pytest.mark.parametrize("log", ["Verification failed: x", "; @", "7: (79)", "R0", "\x00\xff", "; " * 1000])
def test_a_log_of_any_shape_is_read(log: str) -> None:
    read(log, errno.EINVAL, "")
