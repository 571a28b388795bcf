"""Read the verifier's log: why it rejected a program, where in the cell, what the register holds, what to do.

The messages are those of kernel/bpf/verifier.c, Linux 5.8 to 7.3. From 7.3 on a report of the kernel's own follows many
of them ("Verification failed: ... Reason: ... At: ... Suggestion: ..."), which is then believed before our own words.
"""

from __future__ import annotations

import errno
import os
import re
from collections import Counter
from typing import NamedTuple

from bpfnb.tracer.diagnose.lineinfo import Lines

__all__ = ["Rejection", "read"]


_NO_LINES = Lines()


class Rejection(NamedTuple):
    """Why a program was rejected.

    ``kind``: a name for this class of error, "" where it is not known. ``summary``: the verifier's own sentence.
    ``line``: of the cell, or None. ``explanation``: what it means here, or "". ``hint``: what to do, where that is
    certain, or None.
    """

    kind: str
    summary: str
    line: int | None
    explanation: str
    hint: str | None


def read(log: str, number: int, cell: str, lines: Lines = _NO_LINES) -> Rejection:
    """Read a verifier's log.

    ``number``: the errno of loading it. ``cell``: the user's text. ``lines``: which of its lines each
    instruction comes from, as far as that is known; else the log's own quotes have to do.
    """
    report = _report(log)
    own = (log[: report.start] if report else log).partition("\nHINT:")[0]  # without bcc's hints
    steps = _Steps(own, cell, lines)
    summary = _summary(own) or (report.problem if report else "") or _error(number)
    rule = next((rule for rule in _RULES if re.search(rule.pattern, summary if rule.alone else own)), None)
    if number == errno.E2BIG and not own.strip() and not report:
        rule = _TOO_LONG
    line = steps.line_of(_named_instruction(summary, own)) or (
        steps.loop() if rule and rule.kind == "too complex" else steps.last_line()
    )
    if rule and rule.kind in _REFINED:
        rule = _REFINED[rule.kind](summary, own) or rule
    if report:
        rule = rule or report.rule()
        line = line or steps.line_of(report.instruction) or steps.within(report.line)
    explanation = " ".join(filter(None, [rule.explanation if rule else "", _register(summary, steps)]))
    hint = rule.hint if rule else None
    if report:
        explanation, hint = report.reason or explanation, report.suggestion or hint
    return Rejection(rule.kind if rule else "", summary, line, explanation, hint)


# --- what it means ------------------------------------------------------------------------------------------------


class _Rule(NamedTuple):
    """A class of rejections. ``alone``: the pattern is for the summary, else it may be anywhere in the log."""

    kind: str
    pattern: str
    explanation: str
    hint: str | None = None
    alone: bool = True


_TOO_LONG = _Rule("program too long", "", "The program has more instructions than the kernel takes (a million).")

_RULES = [
    _Rule(
        "unchecked map lookup",
        r"invalid mem access 'map_value_or_null'|R\d+ pointer arithmetic on map_value_or_null",
        "A lookup gives NULL when the key is not in the map, and the verifier wants that case out of the way.",
        "check the pointer before it is used: if (!value) return 0;",
    ),
    _Rule(
        "unchecked pointer",
        r"(invalid mem access|pointer arithmetic on) '?\w+_or_null",
        "This pointer is NULL when the call that gave it failed, and the verifier wants that case out of the way.",
        "check the pointer before it is used: if (!pointer) return 0;",
    ),
    _Rule(
        "direct memory access",
        r"invalid mem access '(inv|scalar|user_\w*|rcu_\w*|untrusted_\w*)",
        "To the verifier this is a number, not an address: a program may not follow the kernel's or a process's "
        "pointers by itself.",
        "read what it points to with bpf_probe_read_kernel() or, where it is a process's, bpf_probe_read_user()",
    ),
    _Rule(
        "unchecked packet access",
        r"invalid access to packet",
        "The verifier has not seen that the packet reaches this far.",
        "compare with data_end before reading: if (data + size > data_end) return 0;",
        alone=False,
    ),
    _Rule(
        "out of bounds of a map value",
        r"invalid access to map[ _]value|math between map_value pointer",
        "This may read or write outside the map's value.",
        None,
        alone=False,
    ),
    _Rule(
        "uninitialised stack",
        r"invalid (indirect )?read from stack (R\d+ )?(off|var_off) [^=]*$|invalid indirect read from stack",
        "Memory of this function's stack is used that was never written. A struct has unwritten bytes where it is "
        "padded, too.",
        "set the variable to zero where it is declared: struct data_t data = {};",
    ),
    _Rule(
        "out of bounds of the stack",
        r"invalid ((write to|read from|indirect access to|zero-sized \S+) )?(unbounded )?(variable-offset )?"
        r"(\w+ \w+ )?stack|invalid stack type|invalid (unbounded )?variable-offset|math between fp pointer",
        "This may read or write outside the array or variable on the stack.",
    ),
    _Rule(
        "stack too large",
        r"combined stack size|stack size .* exceed|stack limit",
        "A program has 512 bytes of stack, all functions it calls together.",
        "keep large data in a map: BPF_PERCPU_ARRAY(scratch, struct data_t, 1);",
        alone=False,
    ),
    _Rule(
        "out of bounds",
        r"(min|max) value is (outside|negative)|unbounded (min|max) value|unbounded memory access|"
        r"invalid access to memory|exceeds? .*memory|invalid read of size|invalid access to",
        "The verifier cannot tell that this index or size stays within its bounds.",
        None,
    ),
    _Rule(
        "uninitialised register",
        r"R\d+ !read_ok",
        "A value is used that was never set on this way through the program.",
        None,
    ),
    _Rule(
        "endless loop",
        r"infinite loop detected|back-edge from insn",
        "The verifier follows a loop round by round and has seen this one come back to where it was: it would not end.",
        "give the loop a bound that the compiler can see: for (int i = 0; i < 16; i++)",
    ),
    _Rule(
        "too complex",
        r"BPF program is too large\. Processed|sequence of \d+ jumps is too complex|too many states",
        "The verifier gave up after a million instructions followed: a loop without a near end, or too many branches.",
        "give loops a small bound that the compiler can see, or do less in one program",
    ),
    _Rule(
        "helper not allowed here",
        r"unknown func |cannot use helper|helper call is not allowed|invalid func",
        "This kernel does not offer that helper to programs of this type.",
    ),
    _Rule(
        "missing GPL licence",
        r"GPL[- ](restricted|only|compatible)",
        "This helper is for programs under a GPL-compatible licence only.",
        "remove #define BPF_LICENSE from the cell, or make it GPL: without one, bcc says GPL",
        alone=False,
    ),
    _Rule(
        "unreleased reference",
        r"Unreleased reference|reference leak",
        "What was reserved or acquired here is not given back on every way out of the program.",
        "submit or discard a reserved record, or release the reference, before every return",
        alone=False,
    ),
    _Rule(
        "sleepable mismatch",
        r"might sleep|non-sleepable|sleepable",
        "This may wait, and a program of this type must not.",
    ),
    _Rule(
        "wrong pointer arithmetic",
        r"pointer arithmetic|bitwise operator|pointer [-+*/|&^]=? pointer|makes .* pointer be out of bounds|"
        r"pointer operation|with pointer|math between|subtract pointer|unsupported alu|partial copy of spilled|"
        r"arithmetic prohibited|pointer comparison",
        "The verifier allows few sums with pointers: adding a number it knows the bounds of, to a pointer it knows.",
    ),
    _Rule(
        "call of a function",
        r"last insn is not an exit or jmp|call to invalid destination|invalid call insn",
        "clang made a call of a function out of this, such as memcmp or memset, which no BPF program has.",
    ),
    _Rule("unreachable instruction", r"unreachable insn", "No way through the program reaches these instructions."),
    _Rule("jump out of range", r"jump out of range", "A jump leaves the program."),
    _Rule(
        "bad return value",
        r"At program exit|R0 has (unknown scalar )?value|should have been",
        "Programs of this type may return certain numbers only.",
    ),
    _Rule(
        "invalid context access",
        r"invalid bpf_context access|dereference of modified ctx|variable ctx access",
        "A program of this type is handed a context that has nothing readable there.",
    ),
    _Rule("misaligned access", r"misaligned", "The kernel wants this access aligned to its size."),
    _Rule(
        "wrong argument",
        r"type=\S+ expected=|R\d+ type=|Possibly NULL pointer passed|invalid .* argument|arg#\d",
        "A helper was handed something else than it takes.",
    ),
    _Rule(
        "write to read-only memory",
        r"cannot write into|write into .* forbidden|read-only",
        "This memory is not to be written.",
    ),
]  # fmt: skip


def _or_null(summary: str, log: str) -> _Rule | None:
    """The rule for a pointer that is NULL where it is followed, if this register was one that may be NULL.

    A compiler that knows the pointer is NULL on this way has the verifier see the number 0 followed.
    """
    register = summary.split()[0]
    states = re.findall(rf"\b{register}(?:_\w+)?=(\w+)", log)
    if not states or states[-1] != "0":
        return None
    before = next((state for state in reversed(states) if state.endswith("_or_null")), "")
    return _rule({"": "", "map_value_or_null": "unchecked map lookup"}.get(before, "unchecked pointer"))


def _whose(summary: str, log: str) -> _Rule | None:
    """The rule for an access out of bounds, by what the register at fault points to."""
    state = re.findall(rf"\b{summary.split()[0]}(?:_\w+)?=(\w+)", log)
    wanted = {
        "map_value": "out of bounds of a map value",
        "fp": "out of bounds of the stack",
        "pkt": "unchecked packet access",
    }
    return _rule(wanted.get(state[-1], "")) if state else None


def _rule(kind: str) -> _Rule | None:
    return next((rule for rule in _RULES if rule.kind == kind), None)


_REFINED = {"direct memory access": _or_null, "out of bounds": _whose}


# --- reading the log ----------------------------------------------------------------------------------------------

# Lines that give no reason: instructions, quotes, states, and what libbpf and bcc say around it.
_NO_REASON = re.compile(
    r"\s*(\d+: |;|(cur|old) state|last_idx|first_idx|parent (didn't|already)|regs=|from \d|func#|stack depth|"
    r"mark_precise|mark_stack|processed |"
    r"verification time|R\d+(_\w+)?=|caller:|callee:|frame\d+:|propagating|Validating|falling back|"
    r"max_states|arg#\d+ reference|\S+ and \S+ memory, len pair|bpf: |libbpf:|-- (BEGIN|END)|\[\.\.\.|$)"
)
_QUOTE = re.compile(r"^; (.*?)(?: @ [^@\s]+:(\d+))?$")  # Linux says which line since v6.9
_INSTRUCTION = re.compile(r"^(\d+): \([0-9a-f]{2}\) (.*)$")


def _summary(log: str) -> str:
    reasons = [line.strip() for line in log.splitlines() if not _NO_REASON.match(line)]
    return reasons[-1] if reasons else ""


def _error(number: int) -> str:
    return "more instructions than the kernel takes" if number == errno.E2BIG else os.strerror(number)


def _named_instruction(summary: str, log: str) -> int:
    """The instruction a message names, -1 where it names none: the loop, the jump, what took a reference."""
    named = re.search(r"(?:at|unreachable|from) insn (\d+)", summary)
    taken = re.search(r"Unreleased reference .*alloc_insn=(\d+)", log)
    found = taken or named
    return int(found[1]) if found else -1


class _Steps:
    """The instructions of a log in the order they were followed, with the lines of the cell they come from."""

    def __init__(self, log: str, cell: str, lines: Lines) -> None:
        self._cell = [line.strip() for line in cell.removesuffix("\n").split("\n")]
        self._lines = lines
        self.steps: list[tuple[int, str, int | None]] = []  # instruction number, its text, the cell's line
        self.log = log
        quoted: int | None = None
        for text in log.splitlines():
            if quote := _QUOTE.match(text):
                quoted = self._place(quote[1], quote[2]) or quoted
            elif step := _INSTRUCTION.match(text):
                self.steps.append((int(step[1]), step[2], self.within(lines.line(int(step[1]))) or quoted))
        self._last = quoted

    def last_line(self) -> int | None:
        """The cell's line the verifier was at when it gave up; None when that is not known."""
        return next((line for _, _, line in reversed(self.steps) if line), self._last)

    def line_of(self, instruction: int) -> int | None:
        if instruction < 0:
            return None
        quoted = (line for number, _, line in reversed(self.steps) if number == instruction)
        return self.within(self._lines.line(instruction)) or next(quoted, None)

    def loop(self) -> int | None:
        """The line of the jump back that was taken most often."""
        back = Counter(line for _, text, line in self.steps if line and re.search(r"goto pc-", text))
        return back.most_common(1)[0][0] if back else self.last_line()

    def writer_of(self, register: int) -> int | None:
        """The line that gave a register its value last, before the instruction at fault."""
        written = re.compile(rf"[rw]{register} (=|[-+*/%&|^]=|<<=|>>=|s>>=)|\([ui]\d+\)r{register} =")
        for _, text, line in reversed(self.steps[:-1]):
            if written.match(text) or (register == 0 and text.startswith("call ")):
                return line
        return None

    def within(self, line: int | None) -> int | None:
        """A line of the cell; None for one behind its end, where what bcc appends has its lines."""
        return line if line and line <= len(self._cell) else None

    def quoted(self, line: int) -> str:
        return self._cell[line - 1]

    def _place(self, text: str, number: str | None) -> int | None:
        if number and 0 < int(number) <= len(self._cell):
            return int(number)
        if not number and self._cell.count(text.strip()) == 1:  # older kernels quote, but do not say where
            return self._cell.index(text.strip()) + 1
        return None


def _register(summary: str, steps: _Steps) -> str:
    """What the register at fault holds, and the line that put it there."""
    found = re.match(r"R(\d+) ", summary)
    if not found or found[1] == "10":
        return ""
    states = re.findall(rf"\bR{found[1]}(?:_\w+)?=([^\s(]+(?:\([^)]*\))?)", steps.log)
    parts = [f"R{found[1]} is {states[-1]}"] if states else []
    line = steps.writer_of(int(found[1]))
    if line:
        parts.append(f"it got its value in line {line}: {steps.quoted(line)}")
    text = "; ".join(parts)
    return text if text.endswith(";") or not parts else f"{text}."  # a line of C has its own full stop


# --- the report of Linux 7.3 --------------------------------------------------------------------------------------

# kernel/bpf/diagnostics.c, 5ad746166341 ("bpf: Add verifier diagnostics report helpers") to ac545b00ca56 ("bpf: Report
# Policy helper and kfunc errors"), v7.3. A report follows the message that it explains, which is as it always was, and
# more may come behind: a report of each reference not released, or of memory and then of the argument it is handed over
# as, with their messages. The first is the nearest to the cause.
_HEAD = "Verification failed: "
_MARK = re.compile(rf"^(?:{_HEAD}(?:[^:\n]+: )?(.+)|(?:Reason|At|Active lock|Causal path|Suggestion):)$", re.M)
_SECTION = re.compile(r"^(\w[\w ]*):\n((?:  .*\n)+)(?=\n)", re.M)  # one that is cut off is none

# Our classes of what a report says, where there is no message.
_REPORTED = [
    ("unchecked map lookup", r"nullable map value"),
    ("unchecked pointer", r"may be NULL|nullable|NULL check"),
    ("direct memory access", r"dereference.*integer scalar"),
    ("uninitialised stack", r"uninitialized stack"),
    ("out of bounds of the stack", r"variable stack access"),
    ("out of bounds of a map value", r"is map_value;"),
    ("unchecked packet access", r"is pkt;"),
    ("out of bounds", r"outside (object )?bounds|bounds check"),
    ("uninitialised register", r"unreadable register|R\d+ is not readable|Initialize (R\d|the register)"),
    ("unreleased reference", r"unreleased resource|still needs release|acquired resource"),
    ("missing GPL licence", r"GPL-compatible"),
    ("sleepable mismatch", r"sleep"),
    ("helper not allowed here", r"helper \S+ is not allowed|policy check failed for helper"),
    ("wrong argument", r"invalid call argument|invalid .*argument .*for "),
    ("jump out of range", r"jump out of range"),
    ("unreachable instruction", r"unreachable"),
]


class _Report(NamedTuple):
    """``instruction`` and ``line`` (of the cell): where it is; -1 and None where that is not known."""

    start: int
    problem: str
    reason: str
    suggestion: str
    instruction: int
    line: int | None

    def rule(self) -> _Rule | None:
        text = f"{self.problem} {self.reason} {self.suggestion}"
        return _rule(next((kind for kind, pattern in _REPORTED if re.search(pattern, text, re.I)), ""))


def _report(log: str) -> _Report | None:
    """The first report; without its beginning where a log was too large, of which the kernel keeps the end."""
    mark = _MARK.search(log)
    if not mark:
        return None
    sections = dict(_SECTION.findall(log[mark.start() :].split(f"\n{_HEAD}")[0]))
    reason, suggestion = (" ".join(sections.get(name, "").split()) for name in ("Reason", "Suggestion"))
    at = sections.get("At", "")
    error = re.search(r"\^-- error: (.+)", at)
    taken = re.search(r"acquired at instruction (\d+)", reason)
    instruction = taken or re.search(r">>> +(\d+) \| \([0-9a-f]{2}\) ", at)
    line = re.search(r"^  (?:\S+ @ )?\d+:(\d+):\d+$", at, re.M)  # of the cell, whose name is its descriptor's number
    return _Report(
        start=mark.start() if mark[1] else 0,
        problem=mark[1] or (error[1] if error else ""),
        reason=reason,
        suggestion=suggestion,
        instruction=int(instruction[1]) if instruction else -1,
        line=int(line[1]) if line else None,
    )
