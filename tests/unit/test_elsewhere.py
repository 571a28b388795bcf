"""bpfnb where there is no Linux: recordings are read there, and tracing says in a line that it cannot be."""

from __future__ import annotations

from pathlib import Path

from elsewhere import run_elsewhere
from made_up_recording import write

from bpfnb.results.presentation import Shown

_TRACING = """
import bpfnb
ways = [
    lambda: bpfnb.trace("int f(void *ctx) { return 0; }", attach={"syscall:clone": "f"}),
    lambda: bpfnb.count("syscall:clone"),
    lambda: bpfnb.tools.execsnoop(),
    lambda: bpfnb.probes("*clone*"),
]
for way in ways:
    try:
        way()
    except bpfnb.SetupError as error:
        print(error)
print(bpfnb.doctor()[0].found)
"""

_READING = """
import warnings
import bpfnb
from bpfnb.language.syscalls import of_machine
from bpfnb.tools.toolbox import find, names
opened = bpfnb.open(sys.argv[1])
print(opened)
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    print(len(opened.df), opened.df["comm"].cat.categories.tolist(), opened.df.bpf.hist("size")["count"].tolist())
    print(opened.rate("10s")["rate"].tolist(), sum(1 for _ in opened), "1,000" in opened.table(rows=5)._repr_html_())
    print(opened.maps["counts"].items(), opened.maps["sizes"].hist()["count"].tolist()[-1], opened.maps["counts"][1])
    print(opened.maps["counts"].every("10s").df["value"].tolist())
    opened.to_folded(sys.argv[2] + "/folded", map="by_stack")
    print(open(sys.argv[2] + "/folded").read().strip(), opened.maps["stacks"].symbols(42)["symbol"].tolist())
    opened.save(sys.argv[2] + "/again.zip")
    print(bpfnb.open(sys.argv[2] + "/again.zip").df.equals(opened.df))
    print("recorded on there" in opened._repr_html_(), opened.df.bpf.decode(pid="syscall")["pid_syscall"].tolist()[:3])
    panel = opened.live(speed=1000)
    print(panel.wait(20), opened.live().wait(20))
    view = bpfnb.live(opened.view("heatmap", "size"), opened.view("top", by="comm"))
    print(view.wait(20))
try:
    opened.maps["counts"][1] = 2
except bpfnb.ProgramError as error:
    print(error)
with of_machine("aarch64"):
    for name in names():
        find(name).presentation({"own": {}, "has": list(find(name).hooks), "cpu": False})
print(bpfnb.open(sys.argv[3]).presentation.title.partition(":")[0])
"""


def test_tracing_says_that_it_needs_linux() -> None:
    said = run_elsewhere(_TRACING, platform="win32").splitlines()
    assert said == ["tracing needs Linux; recordings can be read here: bpfnb.open(PATH)"] * 5


def test_a_recording_is_read_there(tmp_path: Path) -> None:
    write(tmp_path / "trace.zip")
    write(tmp_path / "syscount", Shown("tool", "syscount", {"own": {}, "has": [], "cpu": False}))
    paths = tmp_path / "trace.zip", tmp_path, tmp_path / "syscount"
    assert run_elsewhere(_READING, *paths, platform="darwin").splitlines() == [
        "<Session played: stopped, 1,000 rows, 7 lost>",
        "  recorded on there (Linux 6.18 x86_64) at 2023-11-14 22:14:10 UTC, for 20 s",
        "  syscall:clone -> tracepoint:syscalls:sys_enter_clone (tracepoint), runs f",
        "  maps: counts (hash, 2 updates refused), sizes (hash), by_stack (hash), stacks (stack_trace)",
        "1000 ['a', 'b'] [200, 200, 200, 200, 200]",
        "[50.0, 50.0] 1000 True",
        "[(1, 200), (2, 20)] 100 200",
        "[0, 0, 100, 10, 200, 20]",
        "outer;inner 20 ['inner', 'outer']",
        "True",
        "True ['read', 'write', 'open']",  # the numbers are those of an x86_64
        "True True",
        "True",
        "played is a recording: its map counts cannot be changed",
        "syscount",
    ]
