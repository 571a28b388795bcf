"""Names of code addresses: real processes, real files, and files and processes that mean us harm."""

from __future__ import annotations

import ctypes
import json
import lzma
import os
import platform
import random
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest

from bpfnb.tracer.symbols import demangle, elf, symbols
from bpfnb.tracer.symbols.symbols import Symbols

ROOT = Path(__file__).parents[2]
LINUX = tuple(int(n) for n in re.findall(r"\d+", platform.release())[:2])
needs_gcc = pytest.mark.skipif(not shutil.which("gcc") or not shutil.which("objcopy"), reason="no gcc here")

PROGRAM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <unistd.h>
int lib_function(int);
static __attribute__((noinline)) int static_function(int n) { return getppid() + n; }
__attribute__((noinline)) int known_caller(int n) { return static_function(n) + 1; }
int main(int argc, char **argv) {
    printf("{\"main\": %lu, \"static_function\": %lu, \"known_caller\": %lu, ",
           (long)main, (long)static_function, (long)known_caller);
    printf("\"lib_function\": %lu, \"getppid\": %lu}\n", (long)dlsym(0, "lib_function"), (long)dlsym(0, "getppid"));
    fflush(stdout);
    for (int n = 0; getchar() == '\n';) {
        for (int i = 0; i < 10; i++) n = known_caller(n);
        puts("called");
        fflush(stdout);
    }
    return lib_function(argc) * 0;
}
"""
LIBRARY = "int lib_function(int n) { return n + 1; }"

Build = Callable[..., Path]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the program and its library: position independent, and not."""
    folder = tmp_path_factory.mktemp("symbols")
    folder.chmod(0o755)
    (folder / "program.c").write_text(PROGRAM)
    (folder / "library.c").write_text(LIBRARY)
    common = ["gcc", "-O1", "-fno-omit-frame-pointer", "-fno-optimize-sibling-calls", "-Wl,--build-id"]
    subprocess.run([*common, "-shared", "-fPIC", "-o", folder / "libmine.so", folder / "library.c"], check=True)
    for name, option in (("pie", "-pie"), ("fixed", "-no-pie")):
        command = [*common, option, "-o", folder / name, folder / "program.c"]
        subprocess.run([*command, f"-Wl,-rpath,{folder}", f"-L{folder}", "-lmine", "-ldl"], check=True)
    return folder


@contextmanager
def running(*command: str | Path, user: int | None = None) -> Iterator[tuple[subprocess.Popen[str], dict[str, int]]]:
    """The program and its functions' addresses. It goes through its calls for each line it is sent."""
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, user=user) as process:
        assert process.stdout is not None
        try:
            yield process, json.loads(process.stdout.readline())
        finally:
            process.kill()


@pytest.fixture
def named() -> Iterator[Callable[..., Symbols]]:
    """Makes Symbols, with arguments of a test's own."""
    with ExitStack() as stack:
        yield lambda **arguments: stack.enter_context(closing(Symbols(**arguments)))


@pytest.fixture
def names(named: Callable[..., Symbols]) -> Symbols:
    return named()


def objcopy(*arguments: str | Path) -> None:
    subprocess.run(["objcopy", *arguments], check=True)


# --- the kernel ---------------------------------------------------------------------------------------------------


@pytest.mark.portable
def test_the_kernels_functions_are_those_of_kallsyms(names: Symbols) -> None:
    lines = [line.split() for line in Path("/proc/kallsyms").read_text().splitlines()]
    code = [(int(a, 16), name, *module) for a, kind, name, *module in lines if kind in "tT"]
    code = [line for line in code if line[2:] != ("[bpf]",)]  # programs come and go
    places: dict[int, list[tuple[str, str]]] = {}
    for address, name, *module in code:
        places.setdefault(address, []).append((name, module[0] if module else ""))
    modules = [a for a, found in places.items() if found[0][1]]
    chosen = random.Random(1).sample(sorted(places), 300) + modules[:50]
    for address, found in zip(chosen, names.kernel(chosen), strict=True):
        assert found in places[address]
    assert names.why(0) == ""


def test_addresses_that_are_no_kernel_code_are_unknown(names: Symbols) -> None:
    assert names.kernel([0, 1, 0x7F0000000000, 2**64 - 1]) == [("[unknown]", "")] * 4
    assert names.find(0, []) == ((), ())


def test_of_several_names_the_plain_global_one_is_taken() -> None:
    """GIVEN lines as kallsyms has them THEN data has no name, hidden addresses neither, and modules say so."""
    text = b"""\
ffffffff81000000 T __do_read
ffffffff81000000 t do_read
ffffffff81000000 W do_read_weak
ffffffff81000000 T do_read_global
ffffffff81000100 D some_data
0000000000000000 T hidden
ffffffffc0000000 t nft_do_chain\t[nf_tables]
ffffffffc0000080 t last\t[bpf]
"""
    table = symbols.parse_kallsyms(text)
    addresses = [0xFFFFFFFF81000000, 0xFFFFFFFF81000123, 0xFFFFFFFFC000007F, 0xFFFFFFFFC0000080, 0xFFFFFFFFC0200000, 5]
    assert table.names(symbols.np.array(addresses, symbols.np.uint64)) == [
        b"do_read_global",
        b"do_read_global",
        b"nft_do_chain\t[nf_tables]",
        b"last\t[bpf]",
        b"",
        b"",
    ]
    assert len(symbols.parse_kallsyms(b"0000000000000000 T hidden\n")) == 0
    assert len(symbols.parse_kallsyms(b"")) == 0


# --- processes ----------------------------------------------------------------------------------------------------


@needs_gcc
@pytest.mark.portable
@pytest.mark.parametrize("kind", ["pie", "fixed"])
def test_functions_of_a_program_and_its_libraries(kind: str, compiled: Path, names: Symbols) -> None:
    with running(compiled / kind) as (process, at):
        addresses = [at[name] + 1 for name in at]
        found = dict(zip(at, names.user(process.pid, addresses), strict=True))
    assert {asked: name for asked, (name, _) in found.items()} == {name: name for name in at}
    assert {found[name][1] for name in ("main", "static_function", "known_caller")} == {str(compiled / kind)}
    assert found["lib_function"][1] == str(compiled / "libmine.so")
    assert "libc" in found["getppid"][1]


@needs_gcc
def test_a_stripped_file_has_a_name_but_its_functions_none(compiled: Path, tmp_path: Path, names: Symbols) -> None:
    stripped = tmp_path / "stripped"
    objcopy("--strip-all", compiled / "pie", stripped)
    with running(stripped) as (process, at):
        found = names.user(process.pid, [at["known_caller"], at["lib_function"], 0x10, 2**64 - 1])
    assert found[0] == ("[unknown]", str(stripped))
    assert found[1][0] == "lib_function"
    assert found[2:] == [("[unknown]", "")] * 2


@needs_gcc
@pytest.mark.parametrize("place", ["beside", "folder", "linked", "id", "packed"])
def test_a_stripped_files_debug_file(place: str, compiled: Path, tmp_path: Path, named: Callable[..., Symbols]) -> None:
    """Found by name beside the file, in .debug and in /usr/lib/debug, by build id there, or packed into the file."""
    names = named(debug=bytes(tmp_path / "debug"))
    stripped, debug = tmp_path / "stripped", tmp_path / "stripped.debug"
    objcopy("--only-keep-debug", compiled / "pie", debug)
    objcopy("--strip-all", compiled / "pie", stripped)
    if place in ("beside", "folder", "linked"):
        objcopy(f"--add-gnu-debuglink={debug}", stripped)
    build_id = elf.Elf(elf.reader(stripped.read_bytes())).build_id().hex()
    packed = debug.with_suffix(".xz")
    if place == "packed":
        packed.write_bytes(lzma.compress(debug.read_bytes()))
        objcopy(f"--add-section=.gnu_debugdata={packed}", stripped)
    targets = {
        "beside": debug,
        "folder": tmp_path / ".debug" / debug.name,
        "linked": Path(f"{tmp_path}/debug{tmp_path}/{debug.name}"),
        "id": tmp_path / "debug" / ".build-id" / build_id[:2] / f"{build_id[2:]}.debug",
        "packed": tmp_path / "elsewhere",
    }
    targets[place].parent.mkdir(parents=True, exist_ok=True)
    debug.rename(targets[place])
    with running(stripped) as (process, at):
        assert names.user(process.pid, [at["static_function"]]) == [("static_function", str(stripped))]


@needs_gcc
@pytest.mark.parametrize("build_id", [True, False])
def test_another_files_debug_file_is_not_believed(
    build_id: bool, compiled: Path, tmp_path: Path, names: Symbols
) -> None:
    stripped, debug = tmp_path / "stripped", tmp_path / "stripped.debug"
    options = [] if build_id else ["--remove-section=.note.gnu.build-id"]
    objcopy(*options, "--only-keep-debug", compiled / "pie", debug)
    objcopy(*options, "--strip-all", f"--add-gnu-debuglink={debug}", compiled / "pie", stripped)
    with running(stripped) as (process, at):
        assert names.user(process.pid, [at["main"]])[0][0] == "main"
    objcopy(*options, "--only-keep-debug", compiled / "fixed", debug)
    copy = tmp_path / "copy"
    shutil.copy(stripped, copy)
    with running(copy) as (process, at):
        assert names.user(process.pid, [at["main"]])[0][0] == "[unknown]"


def test_the_vdso(names: Symbols) -> None:
    start = next(
        m.start for m in symbols.parse_mappings(Path("/proc/self/maps").read_bytes().split(b"\n")) if b"vdso" in m.path
    )
    found = names.user(os.getpid(), list(range(start, start + 8192, 16)))
    assert any("gettime" in name and file == "[vdso]" for name, file in found)


@needs_gcc
def test_a_library_loaded_since_the_last_time(compiled: Path, tmp_path: Path, names: Symbols) -> None:
    names.user(os.getpid(), [1])
    shutil.copy(compiled / "libmine.so", tmp_path / "libnew.so")
    function = ctypes.CDLL(str(tmp_path / "libnew.so")).lib_function
    address = ctypes.cast(function, ctypes.c_void_p).value or 0
    assert names.user(os.getpid(), [address]) == [("lib_function", str(tmp_path / "libnew.so"))]


@needs_gcc
def test_a_process_that_is_gone_keeps_its_names(compiled: Path, names: Symbols) -> None:
    with running(compiled / "pie") as (process, at):
        before = names.user(process.pid, [at["main"]])
    assert names.user(process.pid, [at["main"], at["lib_function"]]) == [
        *before,
        ("lib_function", str(compiled / "libmine.so")),
    ]
    assert before[0][0] == "main"
    assert names.why(process.pid) == ""


def test_a_process_never_seen_is_unknown(names: Symbols) -> None:
    with subprocess.Popen(["true"]) as process:
        pass
    assert names.user(process.pid, [1, 2]) == [("[unknown]", "")] * 2
    assert names.why(process.pid) == f"process {process.pid} is gone"


@needs_gcc
def test_a_number_used_again_is_another_process(compiled: Path, named: Callable[..., Symbols]) -> None:
    """GIVEN a process that began at another time than the one remembered THEN what is remembered is dropped."""
    with running(compiled / "pie") as (process, at):
        beginnings = iter([5, 6])
        names = named(start_time=lambda pid: next(beginnings))
        names.user(process.pid, [at["main"]])
        earlier = names._processes[0, process.pid]
        assert names.user(process.pid, [at["main"]])[0][0] == "main"
        assert names._processes[0, process.pid] is not earlier


@needs_gcc
def test_a_thread_has_its_processs_names(names: Symbols, compiled: Path) -> None:
    with running(compiled / "pie") as (process, at):
        thread = int(os.listdir(f"/proc/{process.pid}/task")[0])  # noqa: PTH208
        assert names.user(thread, [at["main"]])[0][0] == "main"


@needs_gcc
def test_a_program_replaced_while_it_runs(compiled: Path, tmp_path: Path, names: Symbols) -> None:
    """The file of that name is another now: its functions would be wrong, the running one's are right."""
    program = tmp_path / "program"
    shutil.copy(compiled / "pie", program)
    with running(program) as (process, at):
        program.unlink()
        shutil.copy(compiled / "fixed", program)
        name, file = names.user(process.pid, [at["known_caller"]])[0]
    assert name == "known_caller"
    assert file.startswith(str(program))


@needs_gcc
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a mount namespace")
def test_a_process_in_a_mount_namespace_of_its_own(compiled: Path, tmp_path: Path, names: Symbols) -> None:
    """The file is where only that process sees it; what is at its path here is another one."""
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "program").write_bytes(b"decoy")
    command = f"mount -t tmpfs none {inside} && cp {compiled}/pie {inside}/program && exec {inside}/program"
    with running("unshare", "--mount", "sh", "-ec", command) as (process, at):
        assert names.user(process.pid, [at["main"]]) == [("main", str(inside / "program"))]


def test_many_processes_are_forgotten_again(named: Callable[..., Symbols]) -> None:
    names = named(max_processes=2)
    sleepers = [subprocess.Popen(["sleep", "60"]) for _ in range(4)]
    try:
        for sleeper in sleepers:
            names.user(sleeper.pid, [1])
        names.user(sleepers[2].pid, [1])
        assert list(names._processes) == [(0, sleepers[3].pid), (0, sleepers[2].pid)]
    finally:
        for sleeper in sleepers:
            sleeper.kill()
            sleeper.wait()


def test_a_thousand_addresses_take_milliseconds_once_warm(names: Symbols) -> None:
    mapped = [
        m for m in symbols.parse_mappings(Path("/proc/self/maps").read_bytes().split(b"\n")) if m.path.startswith(b"/")
    ]
    some = random.Random(1)
    addresses = [some.randrange(m.start, m.end) for m in some.choices(mapped, k=1000)]
    kernel = [0xFFFFFFFF81000000 + some.randrange(1 << 22) for _ in range(1000)]
    names.user(os.getpid(), addresses)
    names.kernel(kernel)
    began = time.process_time()
    names.user(os.getpid(), addresses)
    names._kernel.names(symbols.np.array(kernel, symbols.np.uint64))
    assert time.process_time() - began < 0.1  # 6 ms here


# --- code that compilers made as they went ------------------------------------------------------------------------


def test_perf_maps(names: Symbols) -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        path = Path(f"/tmp/perf-{process.pid}.map")
        try:
            path.write_text("100000 20 LazyCompile:*f /a@b.js:1\nnonsense\n100040 10 old\n0x100040 0x10 new\n")
            jit = str(path)
            assert names.user(process.pid, [0x10001F, 0x100020, 0x100045]) == [
                ("LazyCompile:*f /a@b.js:1", jit),
                ("[unknown]", ""),
                ("new", jit),
            ]
            with path.open("a") as file:
                file.write("100020 8 later\n")
            assert names.user(process.pid, [0x100020]) == [("later", jit)]
        finally:
            path.unlink()
            process.kill()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_perf_map_somebody_else_made_is_not_believed(tmp_path: Path, names: Symbols) -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        path = Path(f"/tmp/perf-{process.pid}.map")
        try:
            path.write_text("100000 20 lie\n")
            os.chown(path, 65534, 65534)
            assert names.user(process.pid, [0x100000]) == [("[unknown]", "")]
            path.unlink()
            (tmp_path / "roots").write_text("100000 20 secret\n")
            path.symlink_to(tmp_path / "roots")
            assert names.user(process.pid, [0x100000]) == [("[unknown]", "")]
        finally:
            path.unlink()
            process.kill()


# --- readable names -----------------------------------------------------------------------------------------------


def test_cpp_and_rust_names_are_as_they_were_written() -> None:
    demangler = demangle.Demangler()
    implementation = b"_$LT$alloc..vec..Vec$LT$T$GT$$u20$as$u20$core..fmt..Debug$GT$"
    readable = {
        b"_ZNSt6vectorIiSaIiEE9push_backEOi": "std::vector<int, std::allocator<int> >::push_back(int&&)",
        b"_ZN4core3ptr13drop_in_place17h0123456789abcdefE": "core::ptr::drop_in_place",
        b"_ZN%d%b3fmt17h0123456789abcdefE" % (len(implementation), implementation): (
            "<alloc::vec::Vec<T> as core::fmt::Debug>::fmt"
        ),
        b"_Znonsense": "_Znonsense",
        b"plain": "plain",
        b"": "",
    }
    assert demangler.names(list(readable)) == list(readable.values())
    assert demangler.names([b"\xff"]) == ["\ufffd"]


def test_a_name_that_stands_for_more_than_there_is_memory_stays_as_it_is() -> None:
    """f(A<int, int>, A<the first, the first>, A<the second, the second>, ...): each is twice the one before."""
    digits = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    bomb = ("_Z1f1AIiiE" + "".join(f"S_IS{n}_S{n}_E" for n in digits)).encode()
    began = time.monotonic()
    names = demangle.Demangler().names([b"_Z3fooi", bomb, b"_Zline\nbreak"])
    assert time.monotonic() - began < 4
    assert names[0] == "foo(int)"
    assert len(names[1]) <= 4096


# --- files that mean us harm --------------------------------------------------------------------------------------


@needs_gcc
def test_whatever_a_file_says_it_is_read_or_it_is_not(compiled: Path) -> None:
    """GIVEN an ELF file with bytes changed at random THEN nothing but the errors that are expected comes of it."""
    original = (compiled / "pie").read_bytes()
    some = random.Random(1)
    refused = 0
    for _ in range(1500):
        data = bytearray(original[: some.choice([len(original), some.randrange(len(original))])])
        tables = [range(64), range(max(len(data) - 3000, 0), len(data)), range(len(data))]
        for _ in range(some.choice([1, 3, 30])):
            where = some.choice(tables)
            if len(where) and where[-1] < len(data):
                data[some.choice(where)] = some.choice([0, 1, 0x7F, 0xFF, some.randrange(256)])
        try:
            image = elf.read_image(elf.reader(bytes(data)), b"")
        except elf.UNREADABLE:
            refused += 1
            continue
        image.names(symbols.np.arange(0, len(original), 64, dtype=symbols.np.uint64))
    assert 0 < refused < 1500


@needs_gcc
def test_a_build_id_longer_than_any(compiled: Path, tmp_path: Path, names: Symbols) -> None:
    """What overruns a buffer of bcc's."""
    note = tmp_path / "note"
    note.write_bytes(b"".join(n.to_bytes(4, sys.byteorder) for n in (4, 60000, 3)) + b"GNU\0" + b"A" * 60000)
    hostile = tmp_path / "hostile"
    objcopy("--remove-section=.note.gnu.build-id", compiled / "pie", hostile)
    objcopy(f"--add-section=.note.gnu.build-id={note}", hostile)
    with running(hostile) as (process, at):
        assert names.user(process.pid, [at["main"]])[0][0] == "main"


def test_only_ordinary_files_are_opened(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for path in (fifo, tmp_path, Path("/dev/zero")):
        with pytest.raises(FileNotFoundError), elf.opened(bytes(path), symbols.nullcontext):
            pass


# --- with no more rights than the tracer keeps --------------------------------------------------------------------

TRACER = """
import json, os, sys
from bpfnb.tracer.kernel import capabilities
from bpfnb.tracer.symbols.symbols import Symbols
kallsyms = os.open("/proc/kallsyms", os.O_RDONLY)
capabilities.drop()
names, late = Symbols(kallsyms), Symbols()
job = json.load(sys.stdin)
json.dump({
    "user": [names.user(pid, addresses) for pid, addresses in job["processes"]],
    "why": [names.why(pid) for pid, _ in job["processes"]],
    "kernel": names.kernel(job["kernel"]),
    "late": late.kernel(job["kernel"]),
    "late why": late.why(0),
}, sys.stdout)
"""


@needs_gcc
@pytest.mark.portable
@pytest.mark.skipif(os.geteuid() != 0, reason="only root has rights to drop")
def test_what_the_tracer_can_name_after_dropping_its_rights(compiled: Path) -> None:
    """Root's processes and other people's since Linux 6.15; the kernel's functions when kallsyms was open before."""
    for folder in (compiled, *compiled.parents[:-2]):
        folder.chmod(folder.stat().st_mode | 0o711)
    kernel = int(next(re.finditer(r"^(\w+) T do_exit$", Path("/proc/kallsyms").read_text(), re.M))[1], 16)
    with running(compiled / "pie") as (mine, at), running(compiled / "pie", user=65534) as (theirs, at_theirs):
        job = {"processes": [(mine.pid, [at["main"]]), (theirs.pid, [at_theirs["main"]])], "kernel": [kernel + 4]}
        done = subprocess.run(
            [sys.executable, "-c", TRACER], input=json.dumps(job), capture_output=True, text=True, check=True, cwd=ROOT
        )
    said = json.loads(done.stdout)
    if LINUX >= (6, 15):
        assert said["user"] == [[["main", str(compiled / "pie")]]] * 2
        assert said["why"] == ["", ""]
    else:
        assert said["user"] == [[["[unknown]", ""]]] * 2
        assert all("CAP_SYS_PTRACE" in why for why in said["why"])
    assert said["kernel"] == [["do_exit", ""]]
    if said["late"] != [["do_exit", ""]]:
        assert "kernel.kptr_restrict is" in said["late why"]


# --- a real stack -------------------------------------------------------------------------------------------------

TRACE = r'''
import ctypes, json, os, sys
import numpy as np, pandas as pd
from bpfnb.results import stacks
from bpfnb.tracer.compile.engine import Engine
from bpfnb.tracer.loaded import ProgramSpec
from bpfnb.tracer.symbols.symbols import Symbols

TEXT = r"""
#include <uapi/linux/ptrace.h>
struct key { u32 pid; int user_stack_id; int kernel_stack_id; char comm[16]; };
BPF_STACK_TRACE(traces, 1024);
BPF_HASH(counts, struct key, u64);
int hello(void *ctx) {
    struct key key = {.pid = bpf_get_current_pid_tgid() >> 32};
    if (key.pid != PID) return 0;
    bpf_get_current_comm(key.comm, sizeof(key.comm));
    key.user_stack_id = traces.get_stackid(ctx, BPF_F_USER_STACK);
    key.kernel_stack_id = traces.get_stackid(ctx, 0);
    counts.increment(key);
    return 0;
}
"""
pid = int(sys.argv[1])
names = Symbols()
engine = Engine()
compiled = engine.compile(TEXT, [f"-DPID={pid}"])
lib = engine.lib
program = compiled.load(ProgramSpec("hello", 5))
assert lib.bpf_attach_tracepoint(program, b"syscalls", b"sys_enter_getppid") >= 0
print("attached", flush=True)
sys.stdin.readline()


def entries(name, key_size, value_size):
    fd = lib.bpf_table_fd(compiled._module, name)
    key, value = ctypes.create_string_buffer(key_size), ctypes.create_string_buffer(value_size)
    more = lib.bpf_get_first_key(fd, key, key_size)
    while more == 0:
        lib.bpf_lookup_elem(fd, key, value)
        yield key.raw, value.raw
        more = lib.bpf_get_next_key(fd, key, key)


key = np.dtype([("pid", "u4"), ("user_stack_id", "i4"), ("kernel_stack_id", "i4"), ("comm", "S16")])
rows = [np.frombuffer(k, key)[0].tolist() + (int.from_bytes(v, sys.byteorder),) for k, v in entries(b"counts", 28, 8)]
counts = pd.DataFrame(rows, columns=[*key.names, "value"])
counts["comm"] = counts["comm"].str.decode("ascii")
frames = [
    (int.from_bytes(k, sys.byteorder), depth, address)
    for k, v in entries(b"traces", 4, 127 * 8)
    for depth, address in enumerate(np.frombuffer(v, np.uint64).tolist()) if address
]
frames = pd.DataFrame(np.array(frames, [("stack", "i4"), ("depth", "i2"), ("address", "u8")]))
print(stacks.lines(stacks.folded(counts, frames, names.find)), end="")
'''


@needs_gcc
@pytest.mark.portable
def test_a_stack_of_the_kernel_folded(compiled: Path) -> None:
    """From main to the kernel's entry; the caller of a function without a frame, as libc's getppid, is not in it."""
    with running(compiled / "pie") as (process, _):
        command = [sys.executable, "-c", TRACE, str(process.pid)]
        with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as tracer:
            assert tracer.stdout is not None
            assert tracer.stdout.readline() == "attached\n"
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write("\n")
            process.stdin.flush()
            assert process.stdout.readline() == "called\n"
            folded, _ = tracer.communicate("\n", timeout=30)
    stack, _, count = folded.splitlines()[0].rpartition(" ")
    assert count == "10"
    assert re.match(r"pie;.*;main;known_caller;getppid(;|$)", stack)
    below = stack.partition(";getppid;")[2]
    if below or LINUX >= (6, 12):  # on older kernels (seen: 6.1) a syscall's tracepoint has no stack inside the kernel
        assert all(frame.endswith("_[k]") for frame in below.split(";"))
        assert re.search("syscall|svc", below.split(";")[0].lower())
