"""What another user has compiled in the tracer, which is root: with that user's permissions for files, and without
flags that do more than say how to compile."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace
from other_user import ANYTHING, run_as_nobody

import bpfnb
from bpfnb.errors import ProgramError
from bpfnb.hosts import default_host
from bpfnb.language.program import parse

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")

F = "int f(void *ctx) { return 0; }"
CODE = """
import bpfnb, json, os, sys
from bpfnb.hosts import default_host

def tried(cell, attach={{"syscall:getpgid": "f"}}, **options):
    options["cflags"] = [*options.get("cflags", []), f"-DME={{os.getpid()}}"]  # others call it, too
    try:
        with bpfnb.trace(cell, attach=attach, **options) as session:
            os.getpgid(0)
            os.sync()
    except bpfnb.BpfnbError as error:
        return [type(error).__name__, str(error), "".join([*error.report(), getattr(error, "log", "")])]
    maps = {{name: m.df.value.tolist() for name, m in session.maps.items()}}
    return ["ok", int((session.df.pid == os.getpid()).sum()) if session.outputs else maps, ""]

for cell, options in json.loads({cells!r}):
    print(json.dumps(tried(cell, **options)))
"""


def as_nobody(shared: Path, *cells: str | tuple[str, dict[str, object]], **options: object) -> list[list[str]]:
    """How cells of user nobody end: "ok" and rows, or an error's class and text; and all that is said of it."""
    pairs = [cell if isinstance(cell, tuple) else (cell, {}) for cell in cells]
    code = CODE.format(cells=json.dumps(pairs))
    return [json.loads(line) for line in run_as_nobody(code, shared, sudoers=ANYTHING, **options)]  # type: ignore[arg-type]


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder that everybody may look into; pytest's are root's."""
    with tempfile.TemporaryDirectory(prefix="bpfnb-asking-") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def folder_with_secrets(shared: Path) -> tuple[Path, Path]:
    """A header that root alone may read, and a folder nobody else may look into."""
    secret, closed = shared / "secret.h", shared / "closed"
    secret.write_text("#error the secret\n")
    secret.chmod(0o600)
    closed.mkdir()
    (closed / "inner.h").write_text("#error the secret\n")
    closed.chmod(0o700)
    return secret, closed


def test_a_cell_reads_what_its_user_may_read_and_no_more(shared: Path) -> None:
    secret, closed = folder_with_secrets(shared)
    (shared / "mine.h").write_text("#define MINE 1\n")
    (shared / "mine.h").chmod(0o644)
    assembled = f'asm(".section .rodata\\n .incbin \\"{secret}\\"\\n.text");'
    open_one, *closed_ones = as_nobody(
        shared,
        (f'#define FILE "{shared}/mine.h"\n#include FILE\n#if MINE != 1\n#error\n#endif\n{F}', {}),
        f'#include "{secret}"\n{F}',
        f'#define FILE "{secret}"\n#include FILE\n{F}',
        f'#if __has_include("{secret}")\n#error there\n#endif\n{F}',
        f"{assembled}\n{F}",
        (f"#include <inner.h>\n{F}", {"cflags": [f"-I{closed}"]}),
        (F, {"cflags": ["-include", str(secret)]}),
        (F, {"headers": str(closed)}),
    )
    assert open_one[0] == "ok"
    for kind, message, whole in closed_ones:
        assert kind in ("CompileError", "ProgramError"), message
        assert "the secret" not in whole
        assert "error there" not in whole
    # The very same cells, of root: what is refused above is there to be read.
    with pytest.raises(bpfnb.CompileError, match="the secret"):
        bpfnb.trace(f'#define FILE "{secret}"\n#include FILE\n{F}', attach={"syscall:getpgid": "f"})


def test_groups_count(shared: Path) -> None:
    """A file that belongs to root's group is not the user's, whatever group the tracer is in."""
    (shared / "group.h").write_text("#error the secret\n")
    (shared / "group.h").chmod(0o640)
    ((kind, _, whole),) = as_nobody(shared, f'#define FILE "{shared}/group.h"\n#include FILE\n{F}')
    assert kind == "CompileError"
    assert "the secret" not in whole


def test_what_bcc_needs_of_roots_files_is_there(shared: Path) -> None:
    """The fields of a tracepoint, which are in tracefs, and printk's and events' instances."""
    tracepoint = """
    TRACEPOINT_PROBE(syscalls, sys_enter_sync) { bpf_trace_printk("%d\\n", args->__syscall_nr); return 0; }
    """
    others = 'int f(void *ctx) { bpf_trace_printk("x\\n"); return 0; }'
    first, second = as_nobody(shared, (tracepoint, {"attach": {}}), others)
    assert first[:2] == ["ok", 1], first
    assert second[:2] == ["ok", 1], second


@pytest.fixture
def pin() -> Iterator[Path]:
    path = Path(f"/sys/fs/bpf/bpfnb-asking-{os.getpid()}/counted")
    yield path
    path.unlink(missing_ok=True)
    if path.parent.is_dir():
        path.parent.rmdir()


def test_maps_are_pinned_and_found_again(shared: Path, pin: Path) -> None:
    """In a bpffs that is root's alone, as systemd mounts it."""
    cell = f"""
    BPF_TABLE_PINNED("hash", u32, u64, counted, 1024, "{pin}");
    int f(void *ctx) {{
        u32 one = 1;
        if (bpf_get_current_pid_tgid() >> 32 == ME) counted.increment(one);
        return 0;
    }}
    """
    bpffs = Path("/sys/fs/bpf")
    mode = bpffs.stat().st_mode & 0o7777
    bpffs.chmod(0o700)
    try:
        first, second = as_nobody(shared, cell, cell)
    finally:
        bpffs.chmod(mode)
    assert first[:2] == ["ok", {"counted": [1]}], first
    assert second[:2] == ["ok", {"counted": [2]}], second
    assert pin.exists()
    assert pin.owner() == "root"


def test_the_worker_keeps_no_right_to_become_others(shared: Path) -> None:
    code = """
import bpfnb, os
from bpfnb.hosts import default_host
tracer = default_host.connect().hello().pid
for task in os.listdir(f"/proc/{tracer}/task"):
    try:
        status = open(f"/proc/{tracer}/task/{task}/status").read().splitlines()
    except OSError:
        continue  # the thread has ended
    print(next(int(line.split()[1], 16) >> 6 & 3 for line in status if line.startswith("CapPrm")))
"""
    assert set(run_as_nobody(code, shared, sudoers=ANYTHING)) == {"0"}


@pytest.mark.parametrize(
    "flags", [("-fpass-plugin=FILE",), ("-MF", "FILE"), ("-Xclang", "-load"), ("-MJFILE",), ("@FILE",)]
)
def test_the_tracer_refuses_flags_whatever_the_notebook_says(tmp_path: Path, flags: tuple[str, ...]) -> None:
    """A notebook that does not check: the program is changed after it was parsed."""
    file = tmp_path / "written"
    program = replace(parse(F, {"syscall:getpgid": "f"}), cflags=tuple(f.replace("FILE", str(file)) for f in flags))
    with pytest.raises(ProgramError, match="flag"):
        default_host.start(program)
    assert not file.exists()


def test_harmless_flags_still_reach_clang() -> None:
    cell = "#if X != 3\n#error\n#endif\n" + F
    flags = ["-D", "X=3", "-Wall", "-O2", "-fno-unroll-loops", "-ferror-limit=2", "-std=gnu11", "-I", "/usr/include"]
    bpfnb.trace(cell, attach={"syscall:getpgid": "f"}, cflags=flags).stop()
