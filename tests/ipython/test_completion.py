"""Tab and Shift-Tab in cells of C, in an IPython shell, against a tracer without a kernel. "|" is the cursor."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from IPython.core.completer import provisionalcompleter
from shell import Shell
from waiting import until

from bpfnb.errors import TracerDied
from bpfnb.host.tracer import Tracer
from bpfnb.language.signature import Argument, Signature, Type
from bpfnb.protocol.messages import Member
from bpfnb.testing import FakeTracer
from magics.completion import inspection
from magics.completion.asking import Asker

CELL = """%%bpf x
struct data_t { u32 pid; char comm[16]; struct task_struct *task; };
BPF_HASH(counts, u32, struct data_t);
BPF_PERF_OUTPUT(events);
BPF_QUEUE(waiting, u64, 10);
int f(void *ctx) { struct data_t data = {}; """
EXEC = "tracepoint:sched:sched_process_exec"


@pytest.fixture
def tracer() -> Any:
    text, number = Type("char []", "string"), Type("pid_t", "int", 4, signed=True)
    signatures = [
        Signature(EXEC, (Argument("filename", text, 0, located=True), Argument("pid", number, 1))),
        Signature("syscall:openat", (Argument("dfd", number), Argument("filename", text)), number),
    ]
    types = {
        "struct task_struct": [Member("tgid", "pid_t", 16), Member("mm", "struct mm_struct *", 24)],
        "struct mm_struct": [Member("<b>&amp;", "u64", 0), Member("total_vm", "unsigned long", 8)],
    }
    with FakeTracer([EXEC, "syscall:openat"], signatures=signatures, types=types) as fake:
        yield fake


def offered(shell: Shell, text: str) -> dict[str, str]:
    cursor = text.index("|")
    with provisionalcompleter():
        found = shell.inner.Completer.completions(text[:cursor] + text[cursor + 1 :], cursor)
        return {c.text: c.type.replace("\N{NO-BREAK SPACE}", " ") for c in found}


def test_members_methods_fields_and_names_in_c(shell: Shell) -> None:
    assert offered(shell, CELL + "data.|\n    return 0;\n}") == {
        "pid": "u32", "comm": "char [16]", "task": "struct task_struct *",
    }  # fmt: skip
    assert offered(shell, CELL + "data.task->mm->|") == {"<b>&amp;": "u64", "total_vm": "unsigned long"}
    assert offered(shell, CELL + "events.|").keys() == {"perf_submit", "perf_submit_skb"}
    assert offered(shell, CELL + "waiting.|").keys() == {"push", "pop", "peek"}
    assert offered(shell, CELL + "counts.look|") == {
        "lookup": "struct data_t *(u32 *key)",
        "lookup_or_try_init": "struct data_t *(u32 *key, struct data_t *value)",
    }
    fields = "%%bpf\nTRACEPOINT_PROBE(sched, sched_process_exec) { args->|"
    assert offered(shell, fields) == {"data_loc_filename": "char []", "pid": "pid_t"}
    assert offered(shell, "%%bpf\nTRACEPOINT_PROBE(sch|").keys() == {"sched"}
    assert offered(shell, "%%bpf\nTRACEPOINT_PROBE(sched, |").keys() == {"sched_process_exec"}
    assert offered(shell, '%%bpf\nPROBE("syscall:op|').keys() == {"syscall:openat"}
    assert offered(shell, CELL + "bpf_ktime_get_n|") == {"bpf_ktime_get_ns": "u64 (void)"}
    assert offered(shell, CELL + "dat|") == {"data": "struct data_t"}
    assert offered(shell, CELL + "struct |").keys() >= {"data_t"}
    assert offered(shell, CELL + "struct task_|") == {"task_struct": "struct of the kernel"}
    assert offered(shell, "%%bpf\nBPF_HIST|").keys() == {"BPF_HISTOGRAM"}


def test_no_name_of_pythons_is_offered_in_c(shell: Shell) -> None:
    shell.run("data = 'a string of Python'\nprinting = 1")
    for typed in ("data.|", "nothing.|", "prin|", "// data.|", "impor|"):
        found = offered(shell, CELL + typed).keys()
        assert not found & {"upper", "print", "printing", "import", "importlib", "data.upper"}, typed
    assert "upper" in {name.rpartition(".")[2] for name in offered(shell, "data.up|")}
    assert "printing" in offered(shell, "printi|")


def test_the_first_line(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "program").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    code = "\nint f(void *ctx) { return 0; }\nint g(void *ctx) { return 0; }"
    assert offered(shell, f"%%bpf x -a syscall:op|{code}").keys() == {"syscall:openat"}
    assert offered(shell, f"%%bpf x -a syscall:openat=|{code}").keys() == {"f", "g"}
    assert offered(shell, f"%%bpf x -a u|{code}").keys() == {"uprobe:", "uretprobe:", "usdt:"}
    assert offered(shell, f"%%bpf x -a software:page|{code}").keys() == {"software:page-faults"}
    start = f"uprobe:{tmp_path}/"
    assert offered(shell, f"%%bpf x -a {start}|{code}").keys() == {f"{start}folder/", f"{start}program:"}
    assert offered(shell, f"%%bpf --headers {tmp_path}/|{code}").keys() == {f"{tmp_path}/folder/"}
    assert offered(shell, f"%%bpf --missing |{code}").keys() == {"error", "warn", "ignore"}
    assert "--headers" in offered(shell, f"%%bpf x --he|{code}")
    assert "root" in offered(shell, f"%%bpf --uid ro|{code}")


def test_lines_without_c(shell: Shell) -> None:
    assert {"filename", "dfd"} <= offered(shell, "%bpf count syscall:openat --by |").keys()
    assert offered(shell, "%bpf count syscall:openat --by comm,filen|").keys() == {"filename"}
    assert offered(shell, "%bpf hist syscall:openat retva|").keys() == {"retval"}
    assert offered(shell, "%bpf hist syscall:openat retval --kind li|").keys() == {"linear"}
    assert offered(shell, "import os\n%bpf count sysc|").keys() >= {"syscall:openat"}


def test_a_tracer_that_does_not_answer_holds_nobody_up(shell: Shell) -> None:
    def never() -> Tracer:
        ended.wait(30)
        raise TracerDied("never")

    ended = threading.Event()
    slow = Asker(never, patience=0.2)
    began = time.monotonic()
    for number in range(30):  # the fifth on: so many are waited for already
        assert slow.ask(number, lambda tracer: tracer.ping(), slow.deadline()) is None
    assert time.monotonic() - began < 4  # not 6
    assert slow.ask(0, lambda tracer: tracer.ping(), slow.deadline()) is None
    ended.set()
    until(lambda: not slow.waiting)


def test_a_late_answer_is_there_the_next_time(tracer: FakeTracer) -> None:
    asked = []

    def late(tracer: Tracer) -> str:
        asked.append(1)
        time.sleep(0.3)
        return "late"

    patient = Asker(tracer.launch, patience=0.05)
    assert patient.ask("x", late, patient.deadline()) is None
    until(lambda: not patient.waiting)
    assert patient.ask("x", late, patient.deadline()) == "late"
    assert len(asked) == 1
    again = Asker(tracer.launch, patience=5)
    assert again.ask("x", late, 0.0) is None  # as what is asked ahead of time
    assert again.ask("x", late, again.deadline()) == "late"
    assert len(asked) == 2
    stale = Asker(tracer.launch, patience=1, fresh=0.0)
    assert [stale.ask("x", late, stale.deadline()) for _ in range(2)] == ["late"] * 2
    assert len(asked) == 4


def test_a_dead_tracer_and_a_wrong_name_are_no_errors(shell: Shell, tracer: FakeTracer, capfd: Any) -> None:
    tracer.die()
    os.sched_yield()
    assert offered(shell, CELL + "data.|").keys() == {"pid", "comm", "task"}
    assert offered(shell, CELL + "data.task->nothing->|").keys() <= {""}
    assert offered(shell, "%%bpf\nTRACEPOINT_PROBE(none, none) { args->|").keys() <= {""}
    assert "Traceback" not in capfd.readouterr().err


class Kernel:
    """As much of ipykernel's as Shift-Tab has to do with."""

    def do_inspect(self, code: str, cursor_pos: int, detail_level: int = 0, omit_sections: object = ()) -> object:
        return code, cursor_pos, detail_level, omit_sections


@pytest.fixture
def explained(shell: Shell) -> Any:
    kernel = Kernel()
    shell.inner.kernel = kernel  # type: ignore[attr-defined]
    shell.run("%reload_ext bpfnb")

    def text(cell: str, kind: str = "text/plain") -> str:
        cursor = cell.index("|")
        reply: Any = kernel.do_inspect(cell[:cursor] + cell[cursor + 1 :], cursor)
        assert reply["status"] == "ok"
        assert reply["found"] == bool(reply["data"])
        return str(reply["data"].get(kind, ""))

    yield text
    inspection.remove(shell.inner)
    del shell.inner.kernel  # type: ignore[attr-defined]


def test_shift_tab_explains_words_of_c(explained: Callable[..., str]) -> None:
    helper = explained(CELL + "u64 t = bpf_ktime_|get_ns();")
    assert helper.startswith("u64 bpf_ktime_get_ns(void)\n")
    assert "since boot" in helper
    assert "since Linux 4.1" in helper
    assert "u64 ns = bpf_ktime_get_ns();" in helper
    assert explained(CELL + "bpf_get_current_comm(|)").startswith("long bpf_get_current_comm(void *buf, u32 size")
    assert "BPF_HASH(NAME[, KEY" in explained("%%bpf\nBPF_HA|SH(c);")
    assert explained(CELL + "counts.loo|kup(&x);").startswith("struct data_t *counts.lookup(u32 *key)")
    assert explained(CELL + "data.co|mm;").startswith("char comm[16]\n")
    assert "16 bytes in" in explained(CELL + "data.task->tg|id;")
    assert "struct mm_struct *mm" in explained(CELL + "struct task_stru|ct *t;")
    assert "pid_t pid" in explained("%%bpf\nTRACEPOINT_PROBE(sched, sched_process_e|xec) {")
    located = explained("%%bpf\nTRACEPOINT_PROBE(sched, sched_process_exec) { args->data_loc_f|ilename")
    assert "TP_DATA_LOC_READ_STR(text, filename, sizeof(text));" in located
    assert explained(CELL + "struct da|ta_t e;").startswith("struct data_t\n")
    assert explained(CELL + "dat|a.pid;").startswith("struct data_t data\n")
    assert explained(CELL + "nothing_su|ch;") == ""
    assert explained(CELL + "// bpf_ktime_get|_ns") == ""


def test_shift_tab_on_the_first_line(explained: Callable[..., str]) -> None:
    assert "the oldest go first" in explained("%%bpf x --ke|ep 5M\nint f(void *c) { return 0; }")
    assert "pid_t dfd" in explained("%%bpf x -a syscall:open|at=f\nint f(void *c) { return 0; }")
    assert explained("%%bpf my_na|me\nint f(void *c) { return 0; }") == ""


def test_what_others_wrote_is_escaped(explained: Callable[..., str]) -> None:
    markup = explained(CELL + "data.task->m|m;", "text/html")
    assert "&lt;b&gt;&amp;amp;" in markup
    assert "<b>&amp;" not in markup


def test_other_cells_and_an_unloaded_extension_have_ipykernels_own(shell: Shell, explained: Callable[..., str]) -> None:
    kernel: Any = shell.inner.kernel  # type: ignore[attr-defined]
    assert kernel.do_inspect("print", 5, 1, {"x"}) == ("print", 5, 1, {"x"})
    assert kernel.do_inspect("%%bpfx\nprint", 9) == ("%%bpfx\nprint", 9, 0, ())
    shell.run("%reload_ext bpfnb")
    shell.run("%unload_ext bpfnb")
    assert "do_inspect" not in vars(kernel)
    cell = "%%bpf\nbpf_ktime_get_ns"
    assert kernel.do_inspect(cell, 9) == (cell, 9, 0, ())
    shell.run("%load_ext bpfnb")


def test_the_do_inspect_of_somebody_else_stays(shell: Shell) -> None:
    kernel: Any = Kernel()
    kernel.do_inspect = before = lambda *given: "theirs"
    shell.inner.kernel = kernel  # type: ignore[attr-defined]
    inspection.install(shell.inner)
    assert kernel.do_inspect("x", 1) == "theirs"
    assert kernel.do_inspect("%%bpf\nBPF_HASH", 10)["found"]
    inspection.remove(shell.inner)
    assert kernel.do_inspect is before
    del shell.inner.kernel  # type: ignore[attr-defined]
