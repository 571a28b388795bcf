"""What a cached program needs to know of instructions and of C, and when it is used."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

import pytest

from bpfnb.language.program import parse
from bpfnb.tracer.cancel import Cancel
from bpfnb.tracer.compile import cache
from bpfnb.tracer.compile.cache import CachedProgram, Code, Lru, decided
from bpfnb.tracer.compile.compiler import Compiler
from bpfnb.tracer.compile.jobs import Built, Job
from bpfnb.tracer.compile.printk_tag import begin_with_tag
from bpfnb.tracer.compile.rewrite import Rewritten, rewrite
from bpfnb.tracer.kernel.bpf import ProgramAttributes
from bpfnb.tracer.kernel.instructions import decode
from bpfnb.tracer.loaded import ProgramSpec

TAG = b"abcdEFGH"
LOW, HIGH = struct.unpack("<ii", TAG)
ATTRIBUTES = ProgramAttributes(5, b"f", b"GPL", 0)


def instruction(op: int, dst: int = 0, src: int = 0, offset: int = 0, number: int = 0) -> bytes:
    return struct.pack("<BBhi", op, dst | src << 4, offset, number)


def load(register: int, low: int = LOW, high: int = HIGH, src: int = 0) -> bytes:
    return instruction(0x18, register, src, 0, low) + instruction(0, number=high)


def store(place: int, register: int, op: int = 0x7B) -> bytes:
    return instruction(op, 10, register, place)


def point(register: int, place: int) -> bytes:
    return instruction(0xBF, register, 10) + instruction(0x07, register, number=place)


def unless(skip: int) -> bytes:
    return instruction(0x15, 0, offset=skip)


def go(skip: int) -> bytes:
    return instruction(0x05, offset=skip)


RANDOM, PRINT, EXIT = instruction(0x85, number=7), instruction(0x85, number=6), instruction(0x95)
END = instruction(0xB7) + EXIT


# --- filling in ---------------------------------------------------------------------------------------------------


def test_descriptors_and_tags_come_to_their_places() -> None:
    """GIVEN two maps, one asked for its value at an offset, and two tags THEN nothing but their numbers changes."""
    code = load(1, 5, 0, src=1) + load(6) + load(2, 9, 24, src=2) + RANDOM + load(7) + END
    filled = Code(ATTRIBUTES, code, ((0, 1), (4, 0)), (2, 7)).filled([30, 31], b"ZYXWvuts")
    low, high = struct.unpack("<ii", b"ZYXWvuts")
    wanted = load(1, 31, 0, src=1) + load(6, low, high) + load(2, 30, 24, src=2) + RANDOM + load(7, low, high) + END
    assert filled == wanted


# --- does each format begin with the tag? -------------------------------------------------------------------------


def tagged(*code: bytes) -> bool:
    whole = b"".join(code)
    tags = [at for at, i in enumerate(decode(whole)) if i.op == 0x18 and (i.src, i.immediate) == (0, LOW)]
    return begin_with_tag(decode(whole), tags)


SAID = [load(1), store(-16, 1), point(1, -16), PRINT]

TAGGED: dict[str, Sequence[bytes]] = {
    "nothing printed": [END],
    "once": [*SAID, END],
    "twice": [*SAID, *SAID, END],
    "one register for two": [load(6), store(-16, 6), point(1, -16), PRINT, store(-32, 6), point(1, -32), PRINT, END],
    "what is around it": [load(1), store(-16, 1), store(-8, 0, 0x73), store(-24, 0), point(1, -16), PRINT, END],
    "by a copied pointer": [load(1), store(-16, 1), point(7, -16), instruction(0xBF, 1, 7), PRINT, END],
    "a pointer put by": [
        point(7, -16), store(-40, 7), load(1), store(-16, 1), instruction(0x79, 1, 10, -40), PRINT, END,
    ],
    "another call for a value": [load(1), store(-16, 1), RANDOM, point(1, -16), PRINT, END],
    "branches with a common end": [
        RANDOM, unless(6), load(1), store(-16, 1), point(1, -16), go(5),
        load(1), store(-32, 1), point(1, -32), PRINT, END,
    ],
    "in a loop": [load(6), store(-16, 6), point(1, -16), PRINT, unless(-5), END],
}  # fmt: skip

NOT_TAGGED: dict[str, Sequence[bytes]] = {
    "no tag": [point(1, -16), PRINT, END],
    "another place": [load(1), store(-16, 1), point(1, -24), PRINT, END],
    "not from the stack": [load(1), store(-16, 1), instruction(0x79, 1, 7, 0), PRINT, END],
    "half of it": [load(1), store(-16, 1, 0x63), point(1, -16), PRINT, END],
    "another number": [load(1, LOW, HIGH), load(1, 1, 2), store(-16, 1), point(1, -16), PRINT, END],
    "overwritten": [load(1), store(-16, 1), store(-12, 0, 0x73), point(1, -16), PRINT, END],
    "overwritten through a pointer": [
        load(1), store(-16, 1), point(1, -16), instruction(0x63, 1, 0, 4), PRINT, END,
    ],
    "lost in a call": [load(1), RANDOM, store(-16, 1), point(1, -16), PRINT, END],
    "on one way only": [RANDOM, unless(3), load(1), store(-16, 1), point(1, -16), PRINT, END],
    "a common end, one without": [
        RANDOM, unless(6), load(1), store(-16, 1), point(1, -16), go(2), point(1, -32), PRINT, END,
    ],
    "the second time round": [load(1), store(-16, 1), point(1, -16), PRINT, store(-16, 0), unless(-5), END],
    "a common end, then overwritten": [
        RANDOM, unless(6), load(1), store(-16, 1), point(1, -16), go(5),
        load(1), store(-32, 1), point(1, -32), store(-32, 0, 0x73), PRINT, END,
    ],
    "in a function of its own": [*SAID, instruction(0x85, src=1, number=1), END, *SAID, END],
}  # fmt: skip


@pytest.mark.parametrize("code", TAGGED.values(), ids=TAGGED.keys())
def test_formats_that_begin_with_the_tag(code: Sequence[bytes]) -> None:
    assert tagged(*code)


@pytest.mark.parametrize("code", NOT_TAGGED.values(), ids=NOT_TAGGED.keys())
def test_formats_that_may_begin_otherwise(code: Sequence[bytes]) -> None:
    assert not tagged(*code)


# --- what decides the result --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "int f(void *ctx) { return 0; }",
        "#include <linux/sched.h>",
        "  #  include <linux/sched.h>  // for task_struct",
        '#include "net/sock.h"',
        "#include_next <linux/sched.h>",
        'bpf_trace_printk("include /etc/passwd"); // #define',
        "/* what pinned this process to its CPU */",
    ],
)
def test_text_that_decides_by_itself(text: str) -> None:
    assert decided(text, ["-DX=1", "-UY", "-Wno-unused", "-O2", "-std=gnu11", "-fno-jump-tables", '-DTEXT="a b"'])


@pytest.mark.parametrize(
    "text",
    [
        "#include </etc/passwd>",
        '#include "/home/me/mine.h"',
        '#include "../../../mine.h"',
        "#include MINE",
        '#inc\\\nlude "/home/me/mine.h"',
        '# /* a */ include "/home/me/mine.h"',
        '%:include "/home/me/mine.h"',
        '#import "/home/me/mine.h"',
        '#embed "/home/me/mine.bin"',
        '#if __has_include("/home/me/mine.h")\n#endif',
        'asm(".incbin \\"/home/me/mine.bin\\"");',
        "char when[] = __DATE__;",
        "char when[] = __TIME__;",
        "char when[] = __TIMESTAMP__;",
        'BPF_TABLE_PINNED("hash", u32, u64, m, 10, "/sys/fs/bpf/m");',
    ],
)
def test_text_that_depends_on_more(text: str) -> None:
    assert not decided(text, [])


@pytest.mark.parametrize(
    "flags",
    [
        ["-I/home/me"],
        ["-include", "/home/me/mine.h"],
        ["-isystem", "/home/me"],
        ["-Wp,-include,/home/me/mine.h"],
        ["-fplugin=mine.so"],
        ["-DWHEN=__TIME__"],
        ["@flags"],
        ["-Xclang", "-ast-dump"],
    ],
)
def test_flags_that_bring_in_more(flags: list[str]) -> None:
    assert not decided("", flags)


def test_the_formats_of_tracepoints_are_read(tmp_path: Path) -> None:
    """bcc declares the arguments of a TRACEPOINT_PROBE as it finds the event; one that is not there has no format."""
    for event in ("sched/sched_switch", "my/own__event"):
        (tmp_path / "events" / event).mkdir(parents=True)
        (tmp_path / "events" / event / "format").write_text(f"ID of {event}")
    text = """
    TRACEPOINT_PROBE(sched, sched_switch) { return 0; }
    RAW_TRACEPOINT_PROBE(sched_switch) { return 0; }
    int f(struct tracepoint__my__own__event *args) { return 0; }
    TRACEPOINT_PROBE ( no , such ) { return 0; }
    """
    assert cache.formats(text, tmp_path) == {
        "sched/sched_switch": "ID of sched/sched_switch",
        "my/own__event": "ID of my/own__event",
        "no/such": "",
    }


# --- when a cached program is used ----------------------------------------------------------------------------


def test_the_programs_used_last_are_kept() -> None:
    kept: Lru[int] = Lru(2)
    for key in "ab":
        kept.put(key, ord(key))
    assert kept.get("a") == ord("a")
    kept.put("c", ord("c"))
    assert (kept.get("a"), kept.get("b"), kept.get("c")) == (ord("a"), None, ord("c"))
    kept.forget("a")
    kept.forget("a")
    assert kept.get("a") is None


class Instantiated(CachedProgram, frozen=True):
    """A cached program whose instances are noted."""

    refusal: OSError | None = None

    def instantiate(self, tag: str) -> list[int]:
        if self.refusal:
            raise self.refusal
        return []


class Recorder(Compiler):
    """The worker's side, without a process that compiles."""

    def __init__(self, cached: CachedProgram | None = None) -> None:
        self._generated = False
        self._cache = Lru(2)
        self._cached = cached or Instantiated((), (), (), b"")
        self.jobs: list[Job] = []

    def _compile(self, source: Rewritten, job: Job, cancel: Cancel) -> tuple[Built, list[int]]:
        self.jobs.append(job)
        cached = self._cached if job.cacheable else None
        return Built((), (), None, "", cached), []


CELL = 'BPF_HASH(m, u32);\nint f(void *ctx) { bpf_trace_printk("x\\n"); return 0; }'


def source(tag: str, cell: str = CELL) -> Rewritten:
    return rewrite(parse(cell, {"syscall:sync": "f"}), tag=tag, syscall_mode="tracepoint")


def test_a_cell_is_compiled_once_whatever_its_tag() -> None:
    compiler = Recorder()
    for tag in ("abcdefgh", "ABCDEFGH"):
        compiler.build(source(tag), ["-DX=1"], [ProgramSpec("f", 5)], ["m"])
    assert [job.tag for job in compiler.jobs] == ["abcdefgh"]


@pytest.mark.parametrize("other", ["text", "lines", "flags", "program type", "tables", "no tag"])
def test_a_cell_that_differs_is_compiled(other: str) -> None:
    compiler = Recorder()
    arguments = (["-DX=1"], [ProgramSpec("f", 5)], ["m"])
    compiler.build(source("abcdefgh"), *arguments)
    changed = {"text": CELL + " ", "lines": "\n" + CELL}.get(other, CELL)
    flags = ["-DX=2"] if other == "flags" else arguments[0]
    kind = 2 if other == "program type" else 5
    tables = [] if other == "tables" else ["m"]
    tag = "" if other == "no tag" else "ABCDEFGH"
    compiler.build(source(tag, changed), flags, [ProgramSpec("f", kind)], tables)
    assert len(compiler.jobs) == 2


def test_an_event_made_anew_with_other_fields_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = Recorder()
    for fields in ("one", "two"):
        monkeypatch.setattr(cache, "formats", lambda text, fields=fields: {"x/y": fields})
        compiler.build(source("abcdefgh"), [], [])
    assert len(compiler.jobs) == 2


def test_what_depends_on_more_than_the_text_is_always_compiled() -> None:
    compiler = Recorder()
    for _ in range(2):
        compiler.build(source("abcdefgh"), ["-I/home/me"], [])
    assert [job.cacheable for job in compiler.jobs] == [False] * 2


def test_a_cached_program_that_fails_is_forgotten() -> None:
    compiler = Recorder(Instantiated((), (), (), b"", refusal=OSError(1, "refused")))
    for _ in range(3):
        compiler.build(source("abcdefgh"), [], [])
    assert len(compiler.jobs) == 3
