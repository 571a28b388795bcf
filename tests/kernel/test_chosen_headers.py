"""``--headers``: this kernel's own, those made from BTF, or a folder's."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

import bpfnb
from bpfnb.tracer.compile import headers

CELL = """
#ifdef WANTED
#ifndef CONFIG_OF_THE_BUILD
#error not the headers asked for
#endif
#endif
int f(void *ctx) { bpf_trace_printk("called\\n"); return 0; }
"""


def rows(**options: object) -> tuple[int, list[str]]:
    """How often we were seen to call sync, which is once, and the warnings."""
    with bpfnb.trace(CELL, name="chosen", attach={"syscall:sync": "f"}, **options) as session:  # type: ignore[arg-type]
        os.sync()
    return int((session.df.pid == os.getpid()).sum()), [warning.message for warning in session.warnings]


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """The headers of a kernel built where its sources are: what is made from BTF, and what every build generates."""
    tree = tmp_path / "linux"
    shutil.copytree(headers.choose("btf").source, tree)
    generated = tree / "include/generated"
    generated.mkdir()
    (generated / "autoconf.h").write_text("#define CONFIG_OF_THE_BUILD 1\n")
    (generated / "utsrelease.h").write_text(f'#define UTS_RELEASE "{os.uname().release}"\n')
    kconfig = tree / "include/linux/kconfig.h"
    kconfig.write_text("#include <generated/autoconf.h>\n" + kconfig.read_text())
    return tree


@pytest.fixture
def apart(whole: Path) -> Path:
    """The same, with what was generated in a folder of its own, as Debian has it."""
    build = whole.parent / "build"
    (build / "include").mkdir(parents=True)
    (whole / "include/generated").rename(build / "include/generated")
    (build / "Makefile").write_text(f"include {whole}/Makefile\n")
    return build


@pytest.mark.parametrize("headers", ["auto", "btf"])
def test_the_machines_headers(headers: str) -> None:
    assert rows(headers=headers) == (1, [])
    with pytest.raises(bpfnb.CompileError, match="not the headers asked for"):
        rows(headers=headers, cflags=["-DWANTED"])


def test_a_folders_headers(whole: Path) -> None:
    assert rows(headers=str(whole), cflags=["-DWANTED"]) == (1, [])
    # The machine's again: the choice is a cell's own.
    with pytest.raises(bpfnb.CompileError, match="not the headers asked for"):
        rows(cflags=["-DWANTED"])


def test_a_build_apart_from_its_sources(apart: Path, tmp_path: Path) -> None:
    assert rows(headers=str(apart), cflags=["-DWANTED"]) == (1, [])
    modules = tmp_path / "modules"
    modules.mkdir()
    (modules / "build").symlink_to(apart)
    assert rows(headers=str(modules), cflags=["-DWANTED"]) == (1, [])


def test_a_changed_folder_is_read_again(whole: Path) -> None:
    """GIVEN a cell that ran WHEN the folder's headers change THEN it is compiled anew, not taken from the cache."""
    assert rows(headers=str(whole), cflags=["-DWANTED"])[0] == 1
    (whole / "include/generated/autoconf.h").write_text("")
    with pytest.raises(bpfnb.CompileError, match="not the headers asked for"):
        rows(headers=str(whole), cflags=["-DWANTED"])


def test_headers_of_another_release_are_taken_with_a_warning(whole: Path) -> None:
    (whole / "include/generated/utsrelease.h").write_text('#define UTS_RELEASE "5.4.0-other"\n')
    count, warnings = rows(headers=str(whole))
    assert count == 1
    assert len(warnings) == 1
    assert f"are of Linux 5.4.0-other, this kernel is {os.uname().release}" in warnings[0]


def test_a_folder_without_headers(tmp_path: Path, apart: Path) -> None:
    with pytest.raises(bpfnb.ProgramError, match=r"no kernel headers in .*: there is no .*/include/linux/kconfig\.h"):
        rows(headers=str(tmp_path / "nothing"))
    with pytest.raises(bpfnb.ProgramError, match=r"there is no .*/include/generated/autoconf\.h") as caught:
        rows(headers=str(apart.parent / "linux"))
    assert "/lib/modules/RELEASE/build" in (caught.value.hint or "")
