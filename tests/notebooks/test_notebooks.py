"""The notebooks: as they are committed, and as they run from top to bottom on this kernel."""

from __future__ import annotations

import base64
import io
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest
from nbformat import NotebookNode
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))

# Executes a notebook in a process of its own, since nbclient leaves sockets and an event loop behind. The cells of
# exercises get the answers that are folded below them.
RUNNER = """
import re
import sys
import nbformat
notebook, scripts, folder, out, last = sys.argv[1:]
sys.path.insert(0, scripts)
import demo
nb = nbformat.read(notebook, as_version=4)
exercises = [cell for cell in nb.cells if "exercise" in cell.metadata.get("tags", ())]
answers = [cell for cell in nb.cells if "answer" in cell.metadata.get("tags", ())]
for exercise, answer in zip(exercises, answers, strict=True):
    exercise.source = re.search("```\\n(.*?)\\n```", answer.source, re.DOTALL)[1]
nb.cells.append(nbformat.v4.new_code_cell(last))
try:
    demo.execute(nb, demo.Path(folder))
finally:
    nbformat.write(nb, out)
"""
# What a notebook must have come to by its end; run as its last cell.
NOTHING_ATTACHED = f"""
import sys
sys.path.insert(0, {str(ROOT / "tests")!r})
import bpfnb, processes
from bpfnb.hosts import default_host
assert bpfnb.sessions() == {{}}
held = processes.objects(default_host.connect().hello().pid)
assert not [kind for kind, _ in held if kind != "map"], held
"""
TABLE = r"^(\w+) +(-?\d+) +(\d+) +(\d+)$"  # a name and three numbers
# What BPF asks of a kernel's configuration, and bcc's examples, in the lists of tutorials.
OPTIONS = {
    *("CONFIG_BPF", "CONFIG_BPF_SYSCALL", "CONFIG_NET_CLS_BPF", "CONFIG_NET_ACT_BPF", "CONFIG_BPF_JIT"),
    *("CONFIG_HAVE_EBPF_JIT", "CONFIG_BPF_EVENTS", "CONFIG_NET_SCH_SFQ", "CONFIG_NET_ACT_POLICE"),
    *("CONFIG_NET_ACT_GACT", "CONFIG_DUMMY", "CONFIG_VXLAN"),
}
# The programs that the verifier refuses: their class, and the line.
REFUSED = {
    "count": ("unchecked map lookup", "7"),
    "too_long": ("program too long", "<NA>"),
    "jump_out": ("jump out of range", "3"),
    "unreachable": ("unreachable instruction", "3"),
    "wait": ("endless loop", "9"),
    "rounds": ("too complex", "3"),
    "users": ("out of bounds of a map value", "11"),
    "name": ("out of bounds of the stack", "4"),
    "task": ("direct memory access", "6"),
    "nothing": ("uninitialised register", "3"),
    "record": ("unreleased reference", "6"),
    "licence": ("missing GPL licence", "5"),
    "where": ("helper not allowed here", "5"),
}
LINE = re.compile(r"\d+\.\d{9} {3,} \S.{14,} \d+ +my bcc program")


def ids(paths: list[Path]) -> list[str]:
    return [path.stem for path in paths]


# --- as committed -------------------------------------------------------------------------------------------------


def test_they_are_counted_from_nought() -> None:
    lessons = ["01_hello_clone", "02_sync", "03_clone_fields", "04_live_rates", "05_records", "06_maps", "07_stacks"]
    last = ["12_a_trace_to_a_colleague", "13_one_table_of_a_fleet"]
    rest = ["08_verifier", "09_without_c", "10_slow_service", "11_lessons", *last]
    assert ids(NOTEBOOKS) == ["00_ready", *lessons, *rest]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=ids(NOTEBOOKS))
def test_committed_clean(path: Path) -> None:
    """No outputs, no counts, no traces of who ran it last; runs with whatever kernel is called python3."""
    notebook = nbformat.read(path, as_version=nbformat.NO_CONVERT)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert notebook.metadata.kernelspec.name == "python3"
    assert "widgets" not in notebook.metadata
    names = [cell.id for cell in notebook.cells]
    assert len(set(names)) == len(names)
    for cell in notebook.cells:
        assert set(cell.metadata) <= {"tags"}
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None


@pytest.mark.parametrize("path", NOTEBOOKS, ids=ids(NOTEBOOKS))
def test_links_lead_somewhere(path: Path) -> None:
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "markdown":
            for target in re.findall(r"\]\((?!https://)([^)#]+)", cell.source):
                assert (path.parent / target).is_file()


# --- as run -------------------------------------------------------------------------------------------------------


class Executed:
    """A notebook with its outputs."""

    def __init__(self, notebook: NotebookNode) -> None:
        self._cells = {cell.id: cell for cell in notebook.cells}

    def text(self, cell: str) -> str:
        """What a cell printed and showed, as text."""
        outputs = self._cells[cell].outputs
        return "\n".join(o.text if o.output_type == "stream" else o.data["text/plain"] for o in outputs)

    def data(self, cell: str, mimetype: str) -> list[str]:
        return [o.data[mimetype] for o in self._cells[cell].outputs if mimetype in o.get("data", {})]

    def error(self, cell: str) -> str:
        """The picture of the error a cell ended in; above it stands no more than a folded log, and on a slow machine an
        empty output where its progress was."""
        *panels, error = self._cells[cell].outputs
        logs = ["<details>" in panel.data["text/html"] for panel in panels if panel.data["text/html"]]
        assert logs in ([], [True])
        return "\n".join(error.traceback)


def ready(nb: Executed) -> None:
    report = nb.text("doctor")
    assert report.startswith("Tracing works.\n")
    rows = re.findall(r"^  (\S \w+) +(\S.*?)  +(\S.*)$", report, re.M)
    names = [name for _, name, _ in rows]
    for name in ("a first trace", "bcc", "tracefs", "ring buffers", "kprobes", "pandas", "kernel configuration"):
        assert name in names
    assert "<table" in nb.data("doctor", "text/html")[0]
    assert nb.text("ok") == "True"
    counts = re.findall(r"^(?:required|optional|info)? +(?:ok|missing|unknown) +(\d+)$", nb.text("counts"), re.M)
    assert sum(map(int, counts)) == len(rows)
    options = re.findall(r"^\d+ +(CONFIG_\w+) +\w+ +(\w+)", nb.text("options"), re.M)
    assert {name for name, _ in options} == OPTIONS
    by_hand = dict(re.findall(r"^(CONFIG_\w+)=(\w)$", nb.text("by-hand"), re.M))
    for name, state in options:
        assert by_hand.get(name, "y") in "ym" if state == "ok" else name not in by_hand
    assert re.search(r"^\d+ .* it works$", nb.text("event"), re.M)


def verifier(nb: Executed) -> None:
    table = re.findall(r"^\d+ +(\w+) +(\w+) {2,}(?:(\S.*\S) {2,})?(\S+)$", nb.text("refused"), re.M)
    assert {program: (kind, line) for program, error, kind, line in table if error == "VerifierError"} == REFUSED
    assert [(program, line) for program, error, _, line in table if error == "CompileError"] == [("large", "6")]
    for program, error, _, line in table:
        picture = nb.error(program)
        assert picture.startswith(f"{error}: " + (f"line {line}: " if line != "<NA>" else ""))
        assert re.search(rf"^ +{line} \| ", picture, re.M) or line == "<NA>"
        # The card of a session goes on until its end.
        assert re.search(rf"<Session {program}: (running|stopped)", nb.text(f"{program}-fixed"))
        assert program in nb.text("running") or program == "where"  # which is stopped to be looked at
    assert "hint: check the pointer before it is used" in nb.error("count")
    values = dict(re.findall(r"^(\w+): +(\S.*)$", nb.text("values"), re.M))
    assert values["kind"] == "unchecked map lookup"
    assert values["line"] == "7"
    assert values["summary"] == "R0 invalid mem access 'map_value_or_null'"
    assert values["hint"] in nb.error("count")
    assert values["explanation"] in nb.error("count")
    assert "call bpf_map_lookup_elem" in nb.text("log")
    assert re.search(r"^\d+ +\d+ +[1-9]\d*$", nb.text("count-works"), re.M)
    assert "Processed 1000001 insn" in nb.error("rounds")
    assert nb.text("padding").startswith(
        ("this kernel takes it", "this kernel refuses it: uninitialised stack\nline 9:")
    )
    assert re.search(r"<Session padding: (running|stopped)", nb.text("padding-fixed"))
    assert nb.text("where-works") == "['.']"
    assert nb.text("nothing-left") == "{}"


def hello(nb: Executed) -> None:
    assert "Hello, World!" in nb.text("rows")
    assert "the verifier refused kprobe__sys_clone" in nb.text("refused")
    assert "kprobe__sys_clone" in nb.text("probes")
    assert re.search(r"stopped, \d+ rows, 0 lost", nb.text("stop"))


def sync(nb: Executed) -> None:
    assert "sys_sync() called" in nb.text("rows")
    assert re.search(r"\bsync +\d+ +1$", nb.text("who"), re.M)
    assert "stopped" in nb.text("syncs")
    assert nb.text("done") == "(8, 0)"


def fields(nb: Executed) -> None:
    head, *lines = nb.text("table-text").rstrip("\n").split("\n")
    assert head == "TIME(s)            COMM             PID    MESSAGE"
    assert [line for line in lines if LINE.fullmatch(line)] == lines != []
    assert "<table" in nb.data("table-frame", "text/html")[0]
    made, seen = re.findall(r"\d+", nb.text("all-ways"))
    assert int(seen) < int(made)
    made, seen = re.findall(r"\d+", nb.text("again"))
    assert int(seen) == int(made) == 24
    assert {"clone", "vfork"} <= set(nb.text("by-call").split())
    assert nb.text("trace").count("my bcc program") == 4


def live(nb: Executed) -> None:
    (png,) = nb.data("live", "image/png")
    picture = Image.open(io.BytesIO(base64.b64decode(png)))
    assert picture.width > 400
    assert len(picture.convert("RGBA").getcolors(1 << 24)) > 10
    assert not nb.data("live", "application/vnd.jupyter.widget-view+json")
    assert "clones: stopped" in nb.text("live")
    for session in ("clones", "syncs"):
        (verdict,) = re.findall(rf"^{session} +(\d+) +(\d+) +(\d+)$", nb.text("exactness"), re.M)
        assert verdict == {"clones": ("340", "340", "0"), "syncs": ("28", "28", "0")}[session]
    assert nb.text("sessions") == "No session is running."


def records(nb: Executed) -> None:
    assert "takes at most 3 values beside its format, here are 4" in nb.text("four-values")
    assert len(re.findall(r"^\d+ +\d+ +\d+$", nb.text("extract"), re.M)) == 5
    for column in ("time +datetime64.ns, UTC.", "pid +uint32", "ts +uint64", "comm +category"):
        assert re.search(rf"^{column}$", nb.text("dtypes"), re.M)
    assert "<table" in nb.data("rows", "text/html")[0]
    assert len(re.findall(r"^\d+\.\d{9} {3,}python +\d+ +Hello, perf_output!$", nb.text("lesson"), re.M)) >= 5
    assert re.search(r"\bCLONE +CLONE3 +VFORK +FORK$", nb.text("by-call"), re.M)
    assert nb.text("births-exact") == "24 processes were made, we have 24 records, 0 were lost\n"
    assert re.search(r"^(CLONE 0|CLONE3 1|VFORK 2|FORK 3)$", nb.text("raw"), re.M)
    assert re.search(r"^\S.* b'.*\\x00'$", nb.text("raw"), re.M)
    assert nb.text("opens-work").count("/proc/self/comm") == 3
    assert "workload.py" not in nb.text("opens-work")
    rows, lost = re.findall(r"<Session burst: stopped, (\S+) rows, (\S+) lost>", nb.text("burst"))[0]
    assert f"RuntimeWarning: {lost} events of pages were lost" in nb.text("lost-df")
    assert f"{{'lost': {lost.replace(',', '')}, 'dropped': 0}}" in nb.text("lost-df")
    assert int(rows.replace(",", "")) + int(lost.replace(",", "")) == 2000
    assert nb.text("small") == "2000 delivered + 0 lost\n"
    costs = {way: tuple(map(int, numbers)) for way, *numbers in re.findall(TABLE, nb.text("speed"), re.M)}
    assert list(costs) == ["printk", "perf", "ring"]
    assert {rows + lost for _, rows, lost in costs.values()} == {80_000}
    assert costs["printk"][0] > max(costs["perf"][0], costs["ring"][0])
    assert nb.data("live", "image/png")
    assert nb.text("stop") == "150,000 and 150,000 rows, 0 lost\n"
    assert nb.text("nothing-left") == "{}"


def bars(text: str) -> list[tuple[str, int]]:
    """The labels and counts of a histogram as text."""
    found = re.findall(r"^ *(\[\S+, \S+\)) +([\d,]+) \|", text, re.M)
    return [(label, int(count.replace(",", ""))) for label, count in found]


def maps(nb: Executed) -> None:
    (reader,) = re.findall(r"\breader +(\d+)$", nb.text("counts"), re.M)
    assert int(reader) >= 1300
    assert nb.text("entries").startswith(f"reader: {reader}\nnobody: 0 False\n")
    cleared = nb.text("cleared")
    assert 130 <= int(cleared) < 1300
    assert nb.text("after") == f"reader: {cleared}\ncalls is stopped: its map counts cannot be changed\n"
    buckets = bars(nb.text("bytes"))
    assert [label for label, _ in buckets][:13:6] == ["[0, 2)", "[64, 128)", "[4K, 8K)"]
    assert min(count for _, count in buckets[:13]) >= 100
    assert nb.data("bytes-plot", "image/png")
    assert nb.data("latency-plot", "image/png")
    both = re.findall(r"\) +(\d+) +(\d+)$", nb.text("latency-table"), re.M)
    assert [sum(map(int, counts)) for counts in zip(*both, strict=True)] == [1300, 5]
    assert nb.text("turned-up") == "50000000"
    ((count, least, _),) = re.findall(r"^waiter +(\d+) +(\d+) +(\d+)$", nb.text("turned-down"), re.M)
    assert int(count) == 5
    assert int(least) > 67_000_000
    per_cpu = [list(map(int, row.split()[-2:])) for row in nb.text("totals").splitlines()[1:]]
    (reads, nanoseconds) = map(int, nb.text("reduced").split()[-2:])
    assert [sum(column) for column in zip(*per_cpu, strict=True)] == [reads, nanoseconds]
    assert reads >= 1300 + 5 + 130
    assert "latency" in nb.text("pairs")
    assert re.search(r"'unmatched_starts': \d+, 'unmatched_ends': \d+", nb.text("attrs"))
    reader, waiter = nb.text("pairs-hist").split("waiter\n")
    assert [sum(count for _, count in bars(text)) for text in (reader, waiter)] == [1300, 5]
    assert re.search(r"^0 +reader +1300 +0\.996169$", nb.text("top-count"), re.M)
    assert re.search(r"^0 +waiter +0 days 00:00:0", nb.text("top-latency"), re.M)
    assert re.search(r"^what +ENTRY +EXIT$", nb.text("rate"), re.M)
    assert nb.text("nothing-left") == "{}"


def stacks(nb: Executed) -> None:
    assert re.search(r"^burner +\d+$", nb.text("samples"), re.M)
    assert "entry_SYSCALL" in nb.text("one-stack") or "el0t_64_sync" in nb.text("one-stack")
    assert " vfs_read " in nb.text("one-stack")
    assert re.search(r"<td>burner;\S.*;\S+_\[k\]</td>", nb.data("folded", "text/html")[0])
    total, itself = re.findall(r"^vfs_read_\[k\] +(\d+) +(\d+)$", nb.text("top"), re.M)[0]
    assert int(total) > int(itself)
    for cell in ("flame", "flame-off"):
        (png,) = nb.data(cell, "image/png")
        picture = Image.open(io.BytesIO(base64.b64decode(png)))
        assert len(picture.convert("RGBA").getcolors(1 << 24)) > 10
    assert len(re.findall(r"^burner;\S.* \d+$", nb.text("text"), re.M)) == 3
    counts = re.findall(r"<td>toucher;.*unknown.*</td>\s*<td>(\d+)</td>", nb.data("too-late", "text/html")[0])
    assert int(counts[0]) >= 500
    calls = re.findall(r"^\S.*;\w*sync;.*_\[k\] (\d+)$", nb.text("sync"), re.M)
    assert sum(map(int, calls)) == 3
    waits = re.findall(r"^waiter;.*;vfs_read_\[k\];.*n_tty_read_\[k\];.*schedule.* (\d+)$", nb.text("waiter"), re.M)
    assert sum(map(int, waits)) >= 5
    assert nb.text("nothing-left") == "{}"


def without_c(nb: Executed) -> None:
    assert re.search(r"^\d+ +searcher +60$", nb.text("missing"), re.M)
    assert "const char *filename" in nb.text("probe")
    assert 'PROBE("sysret:openat")' in nb.text("source")
    assert "only comm searcher" in nb.text("tries")
    assert re.search(r"^0 +3 +20$", nb.text("tried"), re.M)
    assert re.search(r"^\d+ +syscall:openat +80$", nb.text("wildcard"), re.M)
    assert re.search(r"^\d+ +syscall:execve +1$", nb.text("command"), re.M)
    assert re.search(r"waiter\s+p50 \[67.1ms, 134ms\)", nb.text("latency-ask"))
    assert nb.data("latency-plot", "image/png")
    events = re.findall(r"^\d+ (\S+) O_RDONLY\|O_CLOEXEC (\S+)$", nb.text("stream"), re.M)
    missing = [(f"/nonexistent/{folder}/passwd", "ENOENT") for folder in "abc"]
    assert events == [*missing, ("/etc/passwd", "3")] * 2
    assert "SIGKILL" in nb.text("decode")
    assert "drwxr-xr-x" in nb.text("decode")
    assert nb.data("every", "image/png")
    assert re.search(r"^reader +1300$", nb.text("every-exact"), re.M)
    assert "execsnoop" in nb.text("toolbox")
    assert len(re.findall(r"^\d +true +\d+ +\d+ +0", nb.text("execsnoop"), re.M)) == 3
    assert nb.text("nothing-left") == "{}"


def slow_service(nb: Executed) -> None:
    for cell in ("complaint-table", "customers"):
        assert re.search(r"^GET /price +\d", nb.text(cell), re.M)
    for cell in ("complaint-plot", "where-plot", "timeline", "customers-plot"):
        assert nb.data(cell, "image/png")
    assert {"syscall:fsync", "syscall:futex"} <= set(nb.text("calls").split())
    assert re.search(r"^journal +\w", nb.text("files"), re.M)
    ((share, by_chance),) = re.findall(r"^(\d+)% of \d+ waits .*, (\d+)%$", nb.text("asof"), re.M)
    assert int(share) > 2 * int(by_chance)
    assert "with self._lock:" in nb.text("source")
    ((before, at_disk, mended, _),) = re.findall(r"^GET /price" + 4 * r" +(\d+\.\d+)" + "$", nb.text("mended"), re.M)
    assert float(before) > 2 * float(mended)
    assert float(at_disk) == 0
    assert nb.text("nothing-left") == "{}"


def fleet(nb: Executed) -> None:
    assert nb.text("cluster").startswith("'tls://")
    assert nb.text("fleet") == "<Fleet of 3 hosts: web0, web1, web2>"
    ((odd, most),) = re.findall(r"^0 +(web\d) +(\d+)$", nb.text("top"), re.M)
    assert int(most) >= 300
    assert re.search(rf"^{odd} +300$", nb.text("df-computed"), re.M)
    assert re.fullmatch(rf"'{odd}, process \d+: 300 of 300'", nb.text("check"))
    assert len(re.findall(r"^host = web\d$", nb.text("latency"), re.M)) == 3
    assert nb.text("error").startswith("CompileError: line 2: use of undeclared identifier 'missing_name'")
    states = re.findall(r"^\d+ +web\d +(\w+) +[1-9]", nb.text("leave"), re.M)
    assert sorted(states) == ["left", "running", "running"]
    assert len(re.findall(r"web\d", nb.text("rate"))) == 3


def lessons(nb: Executed) -> None:
    ago = [int(ms) for ms in re.findall(r"^\d+ +\S+ \S+ +\S.* +\d+ +(\d+)$", nb.text("sync-timing-rows"), re.M)]
    assert len(ago) >= 3  # of four calls, and of others who sync
    assert max(ago) < 1000
    assert len(re.findall(r"^\d+ +.* python", nb.text("sync-timing-ours"), re.M)) >= 4
    assert re.search(r"waiter\s+p50 \[67.1ms, 134ms\)", nb.text("vfsreadlat"))
    assert nb.data("disk-heat", "image/png")
    assert re.search(r"^\S.* +[1-9]\d*$", nb.text("strlen-rows"), re.M)
    collections = nb.text("usdt-collections")
    assert re.search(r"^\d+ +2 +[1-9]", collections, re.M) or "without such probes" in collections
    assert nb.text("nothing-left") == "{}"


def to_a_colleague(nb: Executed) -> None:
    assert "stopped, 80 rows, 0 lost" in nb.text("open")
    assert "recorded on" in nb.text("open")
    assert nb.text("equal") == "(True, True, 0)"
    found = re.findall(r"^(\S+) +(ENOENT|NaN) +(\d+) ", nb.text("ask"), re.M)
    missing = [(f"/nonexistent/{folder}/passwd", "ENOENT", "20") for folder in "abc"]
    assert sorted(found) == [("/etc/passwd", "NaN", "20"), *missing]
    assert nb.text("play-end") == "True"
    assert re.search(r"^2 +0\.99 ", nb.text("again"), re.M)
    theirs = nb.text("colleague")
    assert "Error: " in theirs.splitlines()[0] or os.geteuid() != 0
    assert "stopped, 80 rows, 0 lost" in theirs
    assert re.search(r"^/etc/passwd +20$", theirs, re.M)
    assert re.search(r"^burner \S.*_\[k\]$", theirs, re.M)
    assert nb.text("nothing-left") == "{}"


FACTS: dict[str, Callable[[Executed], None]] = {
    "00_ready": ready,
    "01_hello_clone": hello,
    "02_sync": sync,
    "03_clone_fields": fields,
    "04_live_rates": live,
    "05_records": records,
    "06_maps": maps,
    "07_stacks": stacks,
    "08_verifier": verifier,
    "09_without_c": without_c,
    "10_slow_service": slow_service,
    "11_lessons": lessons,
    "12_a_trace_to_a_colleague": to_a_colleague,
    "13_one_table_of_a_fleet": fleet,
}


@pytest.mark.usefixtures("tracing")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=ids(NOTEBOOKS))
def test_runs_from_top_to_bottom(path: Path, tmp_path: Path) -> None:
    out = tmp_path / "executed.ipynb"
    command = [sys.executable, "-c", RUNNER, path, ROOT / "scripts", path.parent, out, NOTHING_ATTACHED]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=100)
    assert done.returncode == 0, done.stdout
    check(path.stem, nbformat.read(out, as_version=4))


def check(name: str, notebook: NotebookNode) -> None:
    """All cells ran, those failed that are to fail, and what is shown is what is to be shown."""
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    failed = [cell.id for cell in code if any(output.output_type == "error" for output in cell.outputs)]
    assert failed == [cell.id for cell in code if "raises-exception" in cell.metadata.get("tags", ())]
    executed = Executed(notebook)
    for cell in code:
        if "check" in cell.metadata.get("tags", ()):
            assert executed.text(cell.id).startswith("Right: "), executed.text(cell.id)
    FACTS[name](executed)
