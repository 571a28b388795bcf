"""Files that strangers write: ELF files, notes of USDT probes, perf maps, texts of /proc, changed at random; and files
made to keep the tracer busy for hours. None holds it up, ends it, or leaves anything in it.

``mutate(count)`` does as many as it is asked; here a few hundred. ``python tests/faults/test_mutated_files.py 5000``
"""

from __future__ import annotations

import ctypes
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import hostile
import numpy as np
import pytest

import bpfnb
from bpfnb.errors import AttachError
from bpfnb.hosts import default_host
from bpfnb.language.probes import Probe
from bpfnb.tracer.kernel import files
from bpfnb.tracer.link import locate, usdt
from bpfnb.tracer.symbols import cxx, elf, symbols

MANY = int(os.environ.get("BPFNB_MUTATED_FILES", "300"))
SLOW = 10.0  # seconds: far beyond what any should take, and far below what they took
F = "int f(void *ctx) { return 0; }"

needs_gcc = pytest.mark.skipif(not shutil.which("gcc"), reason="no gcc here")


# --- at random ----------------------------------------------------------------------------------------------------


def read_elf(data: bytes) -> None:
    """All that is read of a program or library."""
    image = elf.read_image(elf.reader(data), b"")
    image.names(np.arange(0, 1 << 15, 64, dtype=np.uint64))
    found = elf.Elf(elf.reader(data))
    for name in ("main", "called", ""):
        elf.find_symbols(found, b"", name)
    names = list(elf.function_names(found, b""))
    cxx.related("app::main", names)
    found.ifuncs()
    found.value("counter")
    for each in found.usdt():
        usdt.parse_arguments(found, each)


def read_perf_map(data: bytes) -> None:
    symbols.parse_perf_map(data).names(np.arange(0, 1 << 20, 4096, dtype=np.uint64))


def read_proc(data: bytes) -> None:
    list(symbols.parse_mappings(data.split(b"\n")))
    symbols.parse_stat(data)
    symbols.parse_status(data)


def read_loader_cache(data: bytes) -> None:
    list(locate.parse_cache(data))


Reader = Callable[[bytes], None]


def samples(folder: Path) -> list[tuple[str, Reader, bytes, list[int]]]:
    """What is changed: a name, what reads it, the right text, and where in it changes matter most."""
    program = hostile.compiled(folder).read_bytes()
    found = elf.Elf(elf.reader(program))
    sections = int(found._header["shoff"])
    notes = hostile.elf(
        folder / "notes",
        [(".note.stapsdt", hostile.NOTE, hostile.usdt_note("p", "n", "-4@112(%rsp) 8@%rbx 4@counter+8(%rip)") * 20)],
    ).read_bytes()
    perf = b"".join(b"%x %x function_%d(int)\n" % (4096 * n, 64, n) for n in range(200))
    proc = [Path(f"/proc/self/{name}").read_bytes() for name in ("maps", "stat", "status")]
    cache = Path("/etc/ld.so.cache")
    around = [0, 32, sections, sections + 64, sections + len(found._sections) * 64 - 64]
    return [
        ("ELF", read_elf, program, around),
        ("notes", read_elf, notes, [64, 128, 512]),
        ("perf map", read_perf_map, perf, []),
        *(("/proc", read_proc, text, []) for text in proc),
        *([("ld.so.cache", read_loader_cache, cache.read_bytes(), [0, 48])] if cache.exists() else []),
    ]


def mutate(count: int, seed: int = 1) -> tuple[Counter[str], float]:
    """Read so many changed texts of each kind in turn: how many were read and how many refused, and the seconds that
    the slowest took. Any other error than those of files.UNREADABLE is raised."""
    rng = random.Random(seed)
    outcomes: Counter[str] = Counter()
    slowest = 0.0
    with tempfile.TemporaryDirectory() as folder:
        kinds = samples(Path(folder))
    for number in range(count):
        name, read, text, around = kinds[number % len(kinds)]
        data = hostile.mutated(text, rng, around)
        began = time.monotonic()
        try:
            read(data)
            outcomes[f"{name}: read"] += 1
        except files.UNREADABLE:
            outcomes[f"{name}: refused"] += 1
        slowest = max(slowest, time.monotonic() - began)
    return outcomes, slowest


def mutate_for_the_tracer(count: int, folder: Path, seed: int = 2) -> tuple[Counter[str], float]:
    """Have the live tracer list the functions and probes of so many changed programs, and attach to them."""
    rng = random.Random(seed)
    outcomes: Counter[str] = Counter()
    slowest = 0.0
    _, _, text, around = samples(folder)[0]
    path = folder / "changed"
    tracer = default_host.connect()
    for number in range(count):
        path.unlink(missing_ok=True)  # the kernel may still have the one before
        path.write_bytes(hostile.mutated(text, rng, around))
        began = time.monotonic()
        try:
            match number % 4:
                case 0:
                    tracer.find_probes(f"uprobe:{path}:*", 10)
                case 1:
                    tracer.list_probes(f"usdt:{path}:*", 10)
                case 2:
                    bpfnb.trace(F, name="mutated", attach={f"uprobe:{path}:called": "f"}).stop()
                case 3:
                    bpfnb.trace(F, name="mutated", attach={f"usdt:{path}:mutated:probe": "f"}).stop()
            outcomes["done"] += 1
        except bpfnb.BpfnbError as error:
            if not isinstance(error, (AttachError, bpfnb.UnsupportedError)):
                raise
            outcomes[type(error).__name__] += 1
        slowest = max(slowest, time.monotonic() - began)
    return outcomes, slowest


@needs_gcc
def test_changed_at_random_they_are_read_or_refused() -> None:
    outcomes, slowest = mutate(MANY)
    assert sum(outcomes.values()) == MANY
    # Of ELF alone 2 or 3 of 43 are refused, and none in one run of twenty: gcc's output differs.
    assert sum(number for outcome, number in outcomes.items() if outcome.endswith("refused")) > 10
    assert outcomes["ELF: read"]
    assert slowest < SLOW


@needs_gcc
def test_the_tracer_survives_changed_programs(tmp_path: Path) -> None:
    pid = default_host.connect().hello().pid
    outcomes, slowest = mutate_for_the_tracer(max(MANY // 10, 20), tmp_path)
    assert outcomes["done"]
    assert outcomes["AttachError"]
    assert slowest < SLOW
    assert default_host.connect().hello().pid == pid


# --- made to measure ----------------------------------------------------------------------------------------------


def refused(probe: str) -> str:
    """The one line by which a probe is refused, soon."""
    began = time.monotonic()
    with pytest.raises(AttachError) as caught:
        bpfnb.trace(F, name="refused", attach={probe: "f"})
    assert time.monotonic() - began < SLOW
    return str(caught.value)


@needs_gcc
def test_a_build_id_of_4000_bytes(tmp_path: Path) -> None:
    """bcc's reader writes it past the end of a buffer on its stack; nothing of bcc's is asked about files."""
    path = hostile.compiled(tmp_path)
    (tmp_path / "note").write_bytes(hostile.note(b"GNU\0", 3, b"A" * 4000))
    section = ".note.gnu.build-id"
    subprocess.run(["objcopy", f"--remove-section={section}", path], check=True)
    subprocess.run(["objcopy", f"--add-section={section}={tmp_path / 'note'}", path], check=True)
    cell = 'int f(void *ctx) { bpf_trace_printk("called\\n"); return 0; }'
    with bpfnb.trace(cell, name="long", attach={f"uprobe:{path}:called": "f"}) as session:
        subprocess.run([path], check=True)
    assert session.df.comm.tolist() == [path.name]


def test_sixty_thousand_notes_of_255_mib(tmp_path: Path) -> None:
    path = hostile.elf(tmp_path / "notes", [(".note", hostile.NOTE, 255 << 20)] * 60_000)
    assert path.stat().st_blocks < 100_000  # it is full of holes
    assert "has no function main" in refused(f"uprobe:{path}:main")
    assert "no probe" in refused(f"usdt:{path}:p:n")


def test_symbols_without_end(tmp_path: Path) -> None:
    path = hostile.elf(tmp_path / "symbols", [(".symtab", hostile.SYMTAB, 255 << 20), (".strtab", 3, 255 << 20)])
    assert "too many" in refused(f"uprobe:{path}:main")


@pytest.mark.parametrize(
    ("notes", "words"),
    [
        (hostile.usdt_note("p", "n", "[ " * 1_000_000), "too long"),
        (hostile.usdt_note("p", "n", "8@%rax") * 50_000, "too many"),
        (hostile.usdt_note("p", "n", "[ " * 2000) * 400, "is not in the file"),
        (hostile.usdt_note("p", "n", " 8@" + "x+" * 1900 + "x(%rip)") * 900, "is not in the file"),
    ],
    ids=["one long", "many", "brackets", "variables"],
)
def test_notes_made_to_be_slow(tmp_path: Path, notes: bytes, words: str) -> None:
    path = hostile.elf(tmp_path / "notes", [(".note.stapsdt", hostile.NOTE, notes)])
    message = refused(f"usdt:{path}:p:n")
    assert words in message or "too large" in message


def test_what_is_no_ordinary_file(tmp_path: Path) -> None:
    fifo, link = tmp_path / "fifo", tmp_path / "link"
    os.mkfifo(fifo)
    link.symlink_to("/dev/zero")
    for path in (fifo, link, Path("/dev/tty"), tmp_path):
        assert str(path) in refused(f"uprobe:{path}:main")
        assert str(path) in refused(f"usdt:{path}:p:n")


def test_a_file_that_never_ends_is_read_so_far(tmp_path: Path) -> None:
    """GIVEN a file longer than its kind, or one read too slowly THEN it is cut, or refused."""
    path = tmp_path / "long"
    path.touch()
    os.truncate(path, 1 << 40)
    with pytest.raises(files.TooMuch):
        files.read_bytes(str(path), 1 << 20)
    assert len(files.read_bytes(str(path), 1 << 20, cut=True)) == 1 << 20
    with files.opened(str(path)) as file, pytest.raises(files.TooMuch):
        [file.read(0, files.MAX_READ // 4) for _ in range(20)]


def test_reading_ends_after_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "slow").write_bytes(b"x" * 100)
    pread = os.pread

    def slowly(fd: int, size: int, offset: int) -> bytes:
        time.sleep(0.03)
        return pread(fd, size, offset)

    monkeypatch.setattr(os, "pread", slowly)
    with files.opened(str(tmp_path / "slow"), timeout=0.05) as file, pytest.raises(files.TooMuch):
        [file.read(at, 1) for at in range(10)]


def test_a_path_swapped_for_a_fifo_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between looking at it and opening it: what was looked at is opened."""
    path = tmp_path / "swapped"
    path.write_text("first")
    fstat, swaps = os.fstat, []

    def swapping(fd: int) -> os.stat_result:
        if not swaps:
            swaps.append(path.unlink())
            os.mkfifo(path)
        return fstat(fd)

    monkeypatch.setattr(os, "fstat", swapping)
    assert files.read_text(str(path)) == "first"


def test_naming_a_process_that_maps_many_files_ends() -> None:
    """GIVEN a process with many files THEN what is not named in time is unknown, and is named when asked again."""
    address = ctypes.cast(ctypes.CDLL(None).getppid, ctypes.c_void_p).value
    assert address
    named = symbols.Symbols()
    try:
        ((before, file),) = named.user(os.getpid(), [address], timeout=-1)
        ((after, _),) = named.user(os.getpid(), [address], timeout=60)
    finally:
        named.close()
    assert (before, after) == ("[unknown]", "getppid")
    assert "/" in file


def test_a_perf_map_longer_than_any_is_read_from_its_end() -> None:
    lines = b"".join(b"%x 10 f%d\n" % (n * 16, n) for n in range(5000))
    functions = symbols.parse_perf_map(lines, 1000)
    assert functions.names(np.array([4999 * 16 + 1, 16], np.uint64)) == [b"f4999", b""]


def test_nothing_of_bccs_reads_other_peoples_files() -> None:
    """Its resolvers of symbols and USDT probes: see symbols.py."""
    import bpfnb.tracer

    folder = Path(bpfnb.tracer.__file__).parent
    words = ("bcc_resolve_", "bcc_symcache", "bcc_usdt", "bcc_foreach", "bcc.USDT", "attach_uprobe(")
    for path in folder.rglob("*.py"):
        text = path.read_text().replace("(bcc_symcache_new)", "")
        assert not [word for word in words if word in text], path


def test_a_probe_is_not_a_place_to_hide(tmp_path: Path) -> None:
    """A name of a probe from a file that a stranger made has nothing that acts on a terminal when it is shown."""
    path = hostile.elf(tmp_path / "shown", [(".note.stapsdt", hostile.NOTE, hostile.usdt_note("p", "\x1b[31mred", ""))])
    probe = Probe("usdt", f"{path}:p:red", "f", f"usdt:{path}:p:red", 0)
    with pytest.raises(AttachError) as caught:
        usdt.find(probe, "")
    assert not [line for line in caught.value._render_traceback_() if "\x1b" in line]


if __name__ == "__main__":
    many = int(sys.argv[1]) if len(sys.argv) > 1 else 5000
    print(*mutate(many))
    with tempfile.TemporaryDirectory() as place:
        print(*mutate_for_the_tracer(many // 10, Path(place)))
    default_host.close()
