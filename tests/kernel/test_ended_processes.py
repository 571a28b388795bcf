"""Functions of processes that have ended have their names where the session followed them."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from processes import descriptors
from waiting import until

import bpfnb
from bpfnb.hosts import default_host

pytestmark = pytest.mark.skipif(not shutil.which("gcc"), reason="no gcc here")

# Its arguments, one after the other: "calls", call getpgid from known functions; a number, start so many children, each
# of which does that; a program, become it.
PROGRAM = r"""
#define _GNU_SOURCE
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
__attribute__((noinline)) int inner_NAME(void) { int n = getpgid(0); __asm__ volatile("" ::: "memory"); return n; }
__attribute__((noinline)) int outer_NAME(void) { int n = inner_NAME(); __asm__ volatile("" ::: "memory"); return n; }
int main(int argc, char **argv) {
    for (int n = 1; n < argc; n++) {
        int children = atoi(argv[n]);
        if (!strcmp(argv[n], "calls")) outer_NAME();
        else if (!children) execv(argv[n], argv + n);
        for (int i = 0; i < children; i++) if (!fork()) { outer_NAME(); _exit(0); }
        while (wait(0) > 0);
    }
    return 0;
}
"""
STACKS = r"""
struct owner_t { u32 pid; int user_stack; };
BPF_STACK_TRACE(stacks, 4096);
BPF_HASH(counts, struct owner_t);
int hit(void *ctx) {
    struct owner_t owner = {};
    owner.pid = bpf_get_current_pid_tgid() >> 32;
    owner.user_stack = stacks.get_stackid(ctx, BPF_F_USER_STACK);
    counts.increment(owner);
    return 0;
}
"""
GETPGID = {"syscall:getpgid": "hit"}


def built(folder: Path, name: str) -> Path:
    source, program = folder / f"{name}.c", folder / name
    source.write_text(PROGRAM.replace("NAME", name))
    options = ["-g", "-O1", "-fno-omit-frame-pointer", "-fno-optimize-sibling-calls"]
    subprocess.run(["gcc", *options, "-o", program, source], check=True)
    return program


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(tmp_path_factory.mktemp("ended"), "first")


def stacks(session: bpfnb.Session) -> dict[str, int]:
    """The known functions of each stack, and how often it was; without inner_*, whose frame the C library skips."""
    table = session.maps["stacks"].folded(session.maps["counts"])
    found: dict[str, int] = {}
    for stack, count in zip(table["stack"], table["count"], strict=True):
        functions = ";".join(re.findall(r"\b(?:main|outer_\w+)(?=;|$)", stack))
        found[functions] = found.get(functions, 0) + int(count)
    return found


def ran(*command: str | Path) -> bpfnb.Session:
    with bpfnb.trace(STACKS, attach=GETPGID, command=[str(word) for word in command]) as session:
        assert session.wait(30)
    return session


@pytest.mark.portable
def test_a_command(first: Path) -> None:
    session = ran(first, "calls")
    assert stacks(session) == {"main;outer_first": 1}
    assert session.warnings == ()


def test_its_children_that_live_for_a_moment(first: Path) -> None:
    assert stacks(ran(first, "20")) == {"main;outer_first": 20}
    script = f"for i in $(seq 20); do {first} calls; done"
    assert stacks(ran("/bin/sh", "-c", script)) == {"main;outer_first": 20}


def test_a_program_takes_the_place_of_another(first: Path, tmp_path: Path) -> None:
    """Only the names of the later one are known: by its number and an address nobody can tell which it was."""
    second = built(tmp_path, "second")
    assert stacks(ran(first, second, "calls")) == {"main;outer_second": 1}
    found = stacks(ran(first, "calls", second, "calls"))
    assert found["main;outer_second"] == 1
    assert not [names for names in found if "first" in names]


def test_a_file_that_has_changed_since_names_nothing(tmp_path: Path) -> None:
    program = built(tmp_path, "changed")
    session = ran(program, "calls")
    with program.open("r+b") as file:
        file.write(b"\x7f")  # as it was: that a file was written to is all that can be told
    assert not [names for names in stacks(session) if "outer" in names]


def test_a_tool_of_a_command(tmp_path: Path) -> None:
    source, program = tmp_path / "spin.c", tmp_path / "spin"
    source.write_text(
        "#include <time.h>\nvolatile unsigned long n;\n"
        "void known_inner(void) { for (int i = 0; i < 1000000; i++) n++; }\n"
        "void known_spin(void) { while (clock() < CLOCKS_PER_SEC * 3 / 10) known_inner(); }\n"
        "int main(void) { known_spin(); return 0; }\n"
    )
    options = ["-g", "-O0", "-fno-omit-frame-pointer"]
    subprocess.run(["gcc", *options, "-o", program, source], check=True)
    with bpfnb.tools.profile(command=str(program)) as session:
        assert session.wait(30)
    assert session.df["stack"].str.contains("main;known_spin;known_inner").any()


def test_nothing_is_held_open_for_those_that_have_ended(first: Path) -> None:
    ran(first, "calls")
    tracer = default_host.connect().hello().pid
    held = len(descriptors(tracer))
    for _ in range(3):
        ran(first, "20")
    until(lambda: len(descriptors(tracer)) <= held)
