"""clang's log, read: the cell's places, each message once, nothing of what was put between."""

from __future__ import annotations

from bpfnb.errors import Diagnostic
from bpfnb.language.program import parse
from bpfnb.tracer.compile.rewrite import rewrite
from bpfnb.tracer.diagnose.clang import diagnostics
from bpfnb.tracer.source_map import Rewritten

FILE = "/proc/self/fd/200"
CELL = """\
BPF_PERF_OUTPUT(events);
int f(void *ctx) {
    u64 x = 1;
    events.perf_submit(ctx, x, sizeof(x)); bpf_trace_printk(FORMAT, x);
    return 0;
}
"""


def source(cell: str = CELL, tag: str = "TAG") -> Rewritten:
    return rewrite(parse(cell, {"syscall:sync": "f"}), tag=tag, syscall_mode="tracepoint", path=FILE)


def compiled_at(text: Rewritten, words: str) -> int:
    """The column that clang counts, in bytes, of some words of the compiled text."""
    line = next(line for line in text.text.split("\n") if words in line and not line.startswith("#"))
    return len(line[: line.index(words)].encode()) + 1


def message(line: int, column: int, text: str, quote: str = "", severity: str = "error", file: str = FILE) -> str:
    return f"{file}:{line}:{column}: {severity}: {text}\n" + (f"{quote}\n" if quote else "")


def test_a_place_is_the_cells_behind_what_was_added() -> None:
    text = source()
    log = message(4, compiled_at(text, "FORMAT"), "use of undeclared identifier 'FORMAT'")
    column = CELL.split("\n")[3].index("FORMAT") + 1
    assert diagnostics(text, log) == (Diagnostic(4, column, "error", "use of undeclared identifier 'FORMAT'"),)


def test_each_message_once_with_its_notes() -> None:
    said = message(3, 9, "unknown") + message(3, 5, "expanded from macro", severity="note")
    assert diagnostics(source(), said * 3) == (
        Diagnostic(3, 9, "error", "unknown"),
        Diagnostic(3, 5, "note", "expanded from macro"),
    )


def test_what_stands_elsewhere_than_clang_quotes_it_is_shown_only_where_nothing_else_is() -> None:
    """bcc reads a parameter in a line of its own, and clang then counts that one, too."""
    wrong = message(3, 2, "not a pointer", " sched = (int)x->di;\n ^")
    right = message(3, 9, "unknown", "    u64 x = 1;\n        ^")
    assert [d.message for d in diagnostics(source(), wrong + right)] == ["unknown"]
    assert [d.message for d in diagnostics(source(), wrong)] == ["not a pointer"]
    assert diagnostics(source(), wrong.replace("error", "warning")) == ()


def test_a_note_about_text_behind_the_cell_is_none_of_its_own() -> None:
    log = message(3, 9, "unknown") + message(99, 1, "'x' declared here", severity="note")
    assert len(diagnostics(source(), log)) == 1


def test_a_method_is_not_declared_where_its_map_is() -> None:
    text = source()
    log = message(4, compiled_at(text, "perf_submit"), "no member named 'send' in 'struct events_table_t'")
    log += message(1, 1, "'perf_submit' declared here", severity="note")
    (found,) = diagnostics(text, log)
    assert found.message == "events has no method send"


def test_a_submit_that_is_handed_no_pointer() -> None:
    text = source()
    own = message(4, compiled_at(text, "x, sizeof"), "incompatible integer to pointer conversion", "", "warning")
    added = message(4, compiled_at(text, "BPFNB_CARRIES"), "indirection requires pointer operand ('u64' invalid)")
    column = CELL.split("\n")[3].index("x, sizeof") + 1
    assert diagnostics(text, own + added + added) == (
        Diagnostic(4, column, "error", "events must be given a pointer, not 'u64'"),
    )


def test_a_format_that_is_no_literal() -> None:
    text = source()
    log = message(4, compiled_at(text, "FORMAT"), "expected ')'") + message(4, 5, "to match this '('", "", "note")
    (found,) = diagnostics(text, log)
    assert found.message == "the format of bpf_trace_printk must be a string literal"


def test_a_guess_has_to_be_near() -> None:
    for guess, kept in {"y": False, "events": True, "nothing": True}.items():
        log = message(3, 9, f"use of undeclared identifier 'nothin'; did you mean '{guess}'?", f" x\n ^\n {guess}")
        (found,) = diagnostics(source(), log)
        assert ("did you mean" in found.message) == bool(found.fix) == kept, guess


def test_what_clang_would_put_there() -> None:
    (found,) = diagnostics(source(), message(3, 14, "expected ';'", "    u64 x = 1\n             ^\n             ;"))
    assert found.fix == ";"


def test_an_error_in_a_header_has_the_line_that_includes_it() -> None:
    log = f"In file included from {FILE}:2:\nIn file included from include/linux/a.h:7:\n"
    log += message(12, 3, "unknown type name 'x'", file="include/linux/b.h")
    log += message(13, 3, "and so on", file="include/linux/b.h") + message(1, 1, "odd", "", "warning", "other.h")
    assert diagnostics(source(), log) == (Diagnostic(2, 0, "error", "unknown type name 'x' (in b.h, line 12)"),)


def test_an_error_in_the_options_quotes_them() -> None:
    log = message(4, 9, "macro name must be an identifier", "#define 1X 2\n        ^", file="<command line>")
    assert diagnostics(source(), log) == (Diagnostic(0, 0, "error", "macro name must be an identifier: #define 1X 2"),)


def test_a_log_of_any_shape_is_read() -> None:
    for log in ("", ":1:2: error: ", "0:0: error: x", f"{FILE}:0:0: error: x", f"{FILE}:9999:9999: error: x", "\udcff"):
        diagnostics(source(), log)
