"""What a person sees, with sessions that are made up: no tracer, no kernel, and but for one test no notebook."""

from __future__ import annotations

import html.parser
import subprocess
import sys
from collections.abc import Iterator

import pytest
from made_up import HOSTILE, snapshot
from matplotlib import font_manager

from bpfnb.errors import CompileError, ProgramError, VerifierError
from bpfnb.protocol.messages import Check, ProbeInfo
from bpfnb.results.snapshot import Snapshot
from bpfnb.views import html as pages


@pytest.fixture(autouse=True)
def _fonts_closed() -> Iterator[None]:
    """matplotlib keeps the font files it has opened; the leak check need not hear of them."""
    yield
    font_manager._get_font.cache_clear()


# --- HTML and text ------------------------------------------------------------------------------------------------


class Page(html.parser.HTMLParser):
    """What a browser would make of it: the tags, the attributes and the text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.attributes: set[str] = set()
        self.text = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag not in ("br", "img", "wbr"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def hostile_snapshot() -> Snapshot:
    probe = ProbeInfo(HOSTILE, HOSTILE, HOSTILE, HOSTILE, HOSTILE)
    outputs = ((HOSTILE, 1, 1), ("other", 2, 0))
    return snapshot(name=HOSTILE, state=HOSTILE, reason=HOSTILE, probes=(probe,), outputs=outputs, lost=1, dropped=3)


@pytest.mark.parametrize(
    "page",
    [
        pages.session_card(hostile_snapshot()),
        pages.sessions_table([hostile_snapshot(), snapshot()]),
        pages.checks_table([Check(HOSTILE, "required", False, HOSTILE, HOSTILE)]),
    ],
    ids=["card", "list", "checks"],
)
def test_foreign_text_cannot_become_markup(page: str) -> None:
    seen = Page(page)
    assert set(seen.tags) <= {"div", "b", "span", "br", "wbr", "table", "thead", "tbody", "tr", "th", "td"}
    assert seen.attributes == {"style"}
    assert seen.open == []
    assert seen.text.count("<script>alert('1')</script>\"&amp;\\x1b[2J\\u202e\\udc80\\n$x_$\\frac{") >= 2
    page.encode()  # no lone surrogate either


def test_a_log_is_folded_and_whole() -> None:
    page = pages.error_panel(VerifierError("refused", log="0: (85) call\n\tR0=<b>\n"))
    assert page.count("<details>") == 1
    assert "What the verifier said (2 lines)" in Page(page).text
    assert "0: (85) call\n        R0=<b>" in Page(page).text
    assert "What the compiler said" in pages.error_panel(CompileError("no", log="x"))


def test_of_a_log_too_long_for_a_notebook_the_end_is_shown() -> None:
    page = Page(pages.error_panel(VerifierError("refused", log="\n".join(f"step {n}" for n in range(70_000)))))
    assert "(70,000 lines; here the last 2,000, all are in error.log)" in page.text
    assert "step 69999" in page.text
    assert "step 67999" not in page.text


@pytest.mark.parametrize(
    "error", [VerifierError("no"), CompileError("no", log=" \n"), ProgramError("no"), ValueError("no")]
)
def test_an_error_without_a_log_has_nothing_to_fold(error: Exception) -> None:
    assert pages.error_panel(error) == ""


def test_a_log_has_one_count_of_lines() -> None:
    """Also one that bcc put advice under, and with what only Python takes for the end of a line."""
    log = "\n".join(f"step {n}\x0b\x85" for n in range(1_500))
    error = VerifierError("refused", log=f"{log}\n\nHINT: bcc's\nown\n\n")
    assert "the end of the verifier's log; all 1,500 lines are in error.log:" in error.report()
    assert "What the verifier said (1,500 lines)" in Page(pages.error_panel(error)).text


def test_a_log_cannot_become_markup() -> None:
    page = pages.error_panel(VerifierError("refused", log=HOSTILE))
    seen = Page(page)
    assert set(seen.tags) == {"div", "details", "summary", "span", "pre"}
    assert seen.attributes == {"style"}
    assert "<script>alert('1')</script>\"&amp;\\x1b[2J\\u202e\\udc80\n$x_$" in seen.text
    page.encode()


def test_text_cannot_act_on_a_terminal() -> None:
    texts = [
        pages.session_text(hostile_snapshot()),
        pages.sessions_text([hostile_snapshot()]),
        pages.checks_text([Check(HOSTILE, "required", False, HOSTILE, HOSTILE)]),
    ]
    for text in texts:
        assert all(line.isprintable() for line in text.split("\n"))
        assert "\\x1b[2J\\u202e\\udc80\\n" in text


def test_session_text_says_what_was_asked_and_what_came_of_it() -> None:
    one = "  syscall:clone -> tracepoint:syscalls:sys_enter_clone (tracepoint), runs hello"
    head = "<Session clones: running, 12 rows, 0 lost>"
    assert pages.session_text(snapshot()).splitlines() == [head, one, "  no kprobes"]
    twice = snapshot(probes=snapshot().probes * 2)
    assert pages.session_text(twice).splitlines() == [head, one, one, "  no kprobes"]  # a note is said once
    assert Page(pages.session_card(twice)).text.count("no kprobes") == 1
    plain = ProbeInfo("kprobe:vfs_read", "kprobe:vfs_read", "kprobe", "", "f")
    dead = snapshot(state="failed", rows=1, lost=2_000, dropped=5, probes=(plain,), reason="the tracer died")
    assert pages.session_text(dead).splitlines() == [
        "<Session clones: failed, 1 row, 2,000 lost, 5 dropped by keep>",
        "  kprobe:vfs_read (kprobe), runs f",
        "  the tracer died",
    ]


def test_a_wildcard_that_matches_many_is_one_line() -> None:
    at, note = "tracepoint:raw_syscalls:sys_enter", "by their numbers"
    shared = [ProbeInfo("syscall:*", at, "tracepoint", note, "f", f"syscall:{n:03}") for n in range(360)]
    each = [
        ProbeInfo("uprobe:c:f*", f"uprobe:/c:f{n}", "uprobe", f"also g{n}", "f", f"uprobe:c:f{n}") for n in range(6)
    ]
    few = [ProbeInfo("uprobe:c:g?", f"uprobe:/c:g{n}", "uprobe", "", "f", f"uprobe:c:g{n}") for n in range(2)]
    many = snapshot(probes=(*shared, *each, *few))
    assert pages.session_text(many).splitlines()[1:] == [
        f"  syscall:* -> 360 probes at {at}, syscall:000 to syscall:359 (tracepoint), runs f",
        "  uprobe:c:f* -> 6 probes, uprobe:c:f0 to uprobe:c:f5 (uprobe), runs f",
        "  uprobe:c:g? -> uprobe:/c:g0 (uprobe), runs f",
        "  uprobe:c:g? -> uprobe:/c:g1 (uprobe), runs f",
        f"  {note}",
    ]
    card = Page(pages.session_card(many)).text
    assert card.count(note) == card.count("syscall:*") == 1
    assert len(card) < 1_000
    assert pages.sessions_text([many]).splitlines()[1].endswith("syscall:*, uprobe:c:f*, uprobe:c:g?")


def test_a_session_of_maps_alone_counts_no_rows() -> None:
    counting = snapshot(rows=0, outputs=(), maps=(("counts", "hash", 0),))
    assert pages.session_text(counting).startswith("<Session clones: running>\n")
    assert "row" not in Page(pages.session_card(counting)).text
    both = snapshot(maps=(("counts", "hash", 0),), outputs=(("events", 12, 0),))
    assert pages.session_text(both).startswith("<Session clones: running, 12 rows, 0 lost>\n")
    assert "rows/s" in Page(pages.session_card(both)).text


def test_card_shows_the_numbers_and_makes_loss_loud() -> None:
    calm, lossy = pages.session_card(snapshot()), pages.session_card(snapshot(lost=7, dropped=1_234))
    assert "3rows/s on average" in Page(calm).text
    assert "7lost" in Page(lossy).text
    assert "1,234dropped by keep" in Page(lossy).text
    assert pages.BAD in lossy
    assert pages.BAD not in calm
    assert "dropped" not in Page(calm).text


def test_list_aligns_and_may_be_empty() -> None:
    text = pages.sessions_text([snapshot(), snapshot(name="s", rows=1_000_000, seconds=3_700.0, lost=3)])
    head, first, second = text.splitlines()
    assert head.split() == ["session", "state", "for", "rows", "lost", "probes"]
    assert first.split() == ["clones", "running", "4", "s", "12", "0", "syscall:clone"]
    assert second.split() == ["s", "running", "1", "h", "01", "min", "1,000,000", "3", "syscall:clone"]
    assert head.index("probes") == first.index("syscall") == second.index("syscall")
    assert pages.sessions_text([]) == "No session is running."
    assert Page(pages.sessions_table([])).text == "No session is running."


def test_checks_tell_what_is_needed_from_what_would_be_nice() -> None:
    checks = [
        Check("fentry", "info", False, "refused"),
        Check("bcc", "required", True, "0.26"),
        Check("tracefs", "required", False, "not mounted", "mount it"),
        Check("kprobes", "optional", False, "off"),
        Check("uprobes", "optional", False, "not tried", known=False),
    ]
    assert pages.checks_text(checks).splitlines() == [
        "Tracing does not work: tracefs",
        "",
        "required: without these nothing is traced",
        "  \N{CHECK MARK} ok       bcc      0.26",
        "  \N{BALLOT X} missing  tracefs  not mounted",
        " " * 22 + "\N{RIGHTWARDS ARROW} mount it",
        "",
        "optional: without these something is lacking",
        "  \N{EN DASH} missing  kprobes  off",
        "  ? unknown  uprobes  not tried",
        "",
        "info: good to know",
        "  \N{EN DASH} no       fentry   refused",
    ]
    page = pages.checks_table(checks)
    assert page.count(pages.BAD) == 2  # the conclusion's, and tracefs'
    assert page.count(pages.WARN) == page.count(pages.GOOD) == 1
    assert Page(page).text.index("required") < Page(page).text.index("optional") < Page(page).text.index("info")


def test_checks_that_lack_nothing_needed_say_that_tracing_works() -> None:
    checks = [Check("bcc", "required", True, "0.26"), Check("kprobes", "optional", False, "off")]
    assert pages.checks_text(checks).splitlines()[0] == "Tracing works."
    assert "Tracing works." in Page(pages.checks_table(checks)).text


@pytest.mark.parametrize(("seconds", "text"), [(0, "0 s"), (59.9, "59 s"), (61, "1 min 01 s"), (7_260, "2 h 01 min")])
def test_durations_read_well(seconds: float, text: str) -> None:
    assert pages.duration(seconds) == text


def test_importing_bpfnb_imports_no_plotting_and_plotting_no_pyplot() -> None:
    check = (
        "import sys, bpfnb\n"
        "assert not {'matplotlib', 'anywidget', 'IPython'} & set(sys.modules)\n"
        "import pandas as pd\n"
        "pd.DataFrame({'time': pd.to_datetime([0, 1], unit='s', utc=True)}).bpf.plot_rate()\n"
        "import bpfnb.views.live.panel\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", check], check=True, timeout=60)
