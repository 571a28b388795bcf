"""Broken cells of every kind: programs of the corpus and of bcc's tools with tokens deleted, swapped and doubled.

Each gives a session or an error of ours. BPFNB_MUTATIONS: how many, 40 unless told; 10000 takes about an hour.
"""

from __future__ import annotations

import os
import random
import re
import time
from collections.abc import Iterator
from pathlib import Path

from recordings import record

import bpfnb
from bpfnb.hosts import default_host
from bpfnb.language.probes import split_attach
from bpfnb.language.tokens import lex

COUNT = int(os.environ.get("BPFNB_MUTATIONS", "40"))
TOOLS = [
    "biolatency", "biosnoop", "capable", "execsnoop", "filetop", "mountsnoop",
    "offcputime", "opensnoop", "runqlat", "tcpconnect", "tcplife", "tcpstates",
]  # fmt: skip
CORPUS = sorted((Path(__file__).parents[1] / "corpus/verifier").glob("*.c"))
GOOD = """// attach: syscall:getppid=f
struct data_t { u64 ts; u32 pid; char comm[16]; };
BPF_PERF_OUTPUT(events);
BPF_HASH(counts, u32, u64);
int f(struct pt_regs *ctx) {
    struct data_t data = {};
    u32 key = bpf_get_current_pid_tgid() >> 32;
    u64 zero = 0, *value = counts.lookup_or_try_init(&key, &zero);
    if (value) *value += 1;
    data.ts = bpf_ktime_get_ns();
    bpf_get_current_comm(&data.comm, sizeof(data.comm));
    events.perf_submit(ctx, &data, sizeof(data));
    return 0;
}
"""
ATTACHED = '\nint g(void *ctx) { bpf_trace_printk("%d %s\\n", 1, "x"); return 0; }\n'


def mutated(source: str, chance: random.Random) -> str:
    """One to four of the text's tokens deleted, doubled, or swapped with another."""
    tokens = [(t.start, t.end) for t in lex(source, directives=True) if t.kind != "comment"]
    pieces = [source[start:end] for start, end in tokens]
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(pieces))
        match chance.randrange(3):
            case 0:
                pieces[at] = ""
            case 1:
                pieces[at] += f" {pieces[at]}"
            case _:
                other = chance.randrange(len(pieces))
                pieces[at], pieces[other] = pieces[other], pieces[at]
    out, end = "", 0
    for piece, (start, stop) in zip(pieces, tokens, strict=True):
        out += source[end:start] + piece
        end = stop
    return out + source[end:]


Original = tuple[str, list[tuple[str, str]]]  # text, attachments


def corpus() -> Iterator[Original]:
    for text in [GOOD, *(path.read_text() for path in CORPUS)]:
        yield text, [split_attach(re.findall(r"^// attach: (.*)$", text, re.M)[0])]


def tools() -> Iterator[Original]:
    for recording in record(*TOOLS).values():
        yield recording.text, recording.probes


def outcome_of(source: str, attach: list[tuple[str, str]]) -> tuple[str, bpfnb.BpfnbError | None]:
    try:
        with bpfnb.trace(source, name="mutant", attach=[*attach, ("syscall:sync", "g")]):
            return "session", None
    except bpfnb.BpfnbError as error:
        return type(error).__name__, error


def test_a_mutated_program_gives_a_session_or_an_error_of_ours() -> None:
    chance = random.Random(20261124)
    tracer = default_host.connect().hello().pid
    outcomes: dict[str, int] = {}
    ours, others = list(corpus()), list(tools())
    for number in range(COUNT):
        # The first is a good program: some of its mutants run.
        original, attach = ours[0] if chance.random() < 0.3 else chance.choice(chance.choice([ours, others]))
        source = mutated(original + ATTACHED, chance)
        begun = time.monotonic()
        outcome, error = outcome_of(source, attach)
        assert time.monotonic() - begun < 70, (number, source)
        if error:
            assert not isinstance(error, (bpfnb.InternalError, bpfnb.TracerDied)), (number, source, error.report())
            assert "Failed to compile BPF module" not in str(error), (number, source)
            assert len(str(error).splitlines()) == 1, (number, source, str(error))
            assert error.report()
        outcomes[outcome] = outcomes.get(outcome, 0) + 1
        if number % 500 == 499:
            print(f"{number + 1} of {COUNT}: {outcomes}", flush=True)
    assert default_host.connect().hello().pid == tracer
    assert {"session", "CompileError"} <= outcomes.keys(), outcomes
