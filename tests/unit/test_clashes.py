"""Names of the cell's own that the headers made from BTF have too."""

from __future__ import annotations

from pathlib import Path

import pytest

from bpfnb.tracer.compile.headers import clashes
from bpfnb.tracer.compile.headers.clashes import Clash, find, replacements
from bpfnb.tracer.compile.headers.contents import GENERATED, body, guarded

STRUCT = """\
/proc/self/fd/200:2:8: error: redefinition of 'request'
struct request { u64 n; };
       ^
include/bpfnb/kernel.h:6475:8: note: previous definition is here
struct request {
       ^
"""
ENUMERATOR = """\
/proc/self/fd/200:1:41: error: redefinition of enumerator 'DONE'
enum { DONE };
       ^
include/bpfnb/all.h:70868:2: note: previous definition is here
        DONE = 26,
        ^
"""
MACRO = """\
/proc/self/fd/200:4:41: error: expected identifier
enum {READ};
      ^
include/bpfnb/internals.h:10:14: note: expanded from macro 'READ'
#define READ 0
             ^
"""
OTHER_WAY = """\
In file included from /proc/self/fd/200:1:
include/bpfnb/all.h:70871:2: error: expected identifier
        DONE = 26,
        ^
/proc/self/fd/200:1:14: note: expanded from macro 'DONE'
#define DONE 9
             ^
"""
BY_A_FLAG = OTHER_WAY.replace(
    "/proc/self/fd/200:1:14: note: expanded from macro 'DONE'", "<command line>:4:14: note: expanded from here"
)
REDEFINED = """\
include/bpfnb/internals.h:10:9: warning: 'READ' macro redefined [-Wmacro-redefined]
#define READ 0
        ^
/proc/self/fd/200:1:9: note: previous definition is here
#define READ 7
        ^
"""
TWICE = STRUCT.replace("include/bpfnb/kernel.h:6475", "/proc/self/fd/200:1")
LATER = """\
/proc/self/fd/200:2:9: warning: 'READ' macro redefined [-Wmacro-redefined]
#define READ 7
        ^
include/bpfnb/internals.h:10:9: note: previous definition is here
#define READ 0
        ^
"""


@pytest.mark.parametrize(
    ("log", "cell", "expected"),
    [
        (STRUCT, "struct request { u64 n; };", {Clash("request", "tag", "kernel.h")}),
        (STRUCT, "#define MAKE struct request { u64 n; };\nMAKE", {Clash("request", "tag", "kernel.h")}),
        (ENUMERATOR, "enum { DONE };", {Clash("DONE", "name", "all.h")}),
        (MACRO, "enum {READ};", {Clash("READ", "macro", "internals.h")}),
        (OTHER_WAY, "#define DONE 9", {Clash("DONE", "word", "all.h")}),
        (BY_A_FLAG, "", {Clash("DONE", "word", "all.h")}),
        (REDEFINED, "#define READ 7", {Clash("READ", "word", "internals.h")}),
        (
            STRUCT + MACRO,
            "struct request { enum { READ } a; };",
            {("request", "tag", "kernel.h"), ("READ", "macro", "internals.h")},
        ),
        # A macro that is used and no name of the cell's; what is there twice in the cell; a macro the cell has later;
        # fields that are found at load; and no log.
        (MACRO, "int f(void *ctx) { enum { x = READ, }; }", set()),
        (TWICE, "struct request { u64 n; }; struct request { u64 n; };", set()),
        (LATER, "#define READ 7", set()),
        (STRUCT, "struct request { u64 n; } __attribute__((preserve_access_index));", set()),
        ("", "struct request { u64 n; };", set()),
    ],
)
def test_what_clang_says_tells_which_names_clash(log: str, cell: str, expected: set[Clash]) -> None:
    assert find(log, cell) == expected


GENERATED_TEXT = """\
struct config {
\tint config;
\tconfig other;
\tstruct config *config[2];
\tu32 config: 3;
\tvoid (*config)(config, struct config *, config *);
};

typedef struct config config;

typedef struct {
\tint a;
} config;

enum some {
\tconfig = 1,
\tconfig_not = 2,
};
"""


def test_a_member_keeps_its_name_when_a_type_or_a_constant_loses_it() -> None:
    renamed = clashes.rename_names(GENERATED_TEXT, "config", True)
    k = "bpfnb_kernel_config"
    assert renamed == (
        f"struct config {{\n\tint config;\n\t{k} other;\n\tstruct config *config[2];\n\tu32 config: 3;\n"
        f"\tvoid (*config)({k}, struct config *, {k} *);\n}};\n\ntypedef struct config {k};\n\n"
        f"typedef struct {{\n\tint a;\n}} {k};\n\nenum some {{\n\t{k} = 1,\n\tconfig_not = 2,\n}};\n"
    )
    tags = clashes.rename_tags(GENERATED_TEXT, "config", True)
    assert tags.count(k) == tags.count(f"struct {k}") == GENERATED_TEXT.count("struct config ")


def test_only_files_with_the_name_are_replaced_and_no_guard_is_in_the_way(tmp_path: Path) -> None:
    folder = tmp_path / "include/bpfnb"
    folder.mkdir(parents=True)
    for file in GENERATED:
        (folder / file).write_text(guarded(file, "struct request;\n" if file == "all.h" else "struct other;\n"))
    assert replacements(tmp_path, [Clash("request", "tag", "all.h")]) == {"all.h": "struct bpfnb_kernel_request;\n\n"}
    assert body((folder / "core.h").read_text()) == "struct other;\n\n"
