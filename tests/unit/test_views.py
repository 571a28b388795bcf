"""What a person sees, with sessions that are made up: no tracer, no kernel, and but for one test no notebook."""

from __future__ import annotations

import html.parser
import io
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest
from made_up import HOSTILE, snapshot
from matplotlib import font_manager, rc_context
from PIL import Image

from bpfnb.errors import CompileError, ProgramError, VerifierError
from bpfnb.protocol.messages import Check, ProbeInfo
from bpfnb.results.snapshot import Snapshot
from bpfnb.views import html as pages
from bpfnb.views import plots
from bpfnb.views.plots import Curve, RatesFigure, levels, pick, short


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


# --- the picture --------------------------------------------------------------------------------------------------


_PLOT = 0.09  # where the plot begins, from the top: the legend is above


def curve(label: str, *newest: int, key: object = None) -> Curve:
    """A curve that ends with these counts and is 0 before."""
    counts = np.zeros(plots.SECONDS, np.int64)
    counts[len(counts) - len(newest) :] = newest
    return Curve(key or label, label, counts)


def pixels(png: bytes, colour: str) -> tuple[np.ndarray, np.ndarray]:
    """The rows and columns, as fractions from the top and the left, where the picture has this colour."""
    image = np.asarray(Image.open(io.BytesIO(png)).convert("RGBA")).astype(int)
    wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    rows, columns = np.nonzero((abs(image[..., :3] - wanted).max(axis=2) < 6) & (image[..., 3] > 240))
    return rows / image.shape[0], columns / image.shape[1]


def test_line_is_high_where_events_were() -> None:
    figure = RatesFigure()
    busy, colour = figure.paint([curve("clones", *[10] * 30)], 0.0), figure.colour("clones")
    rows, columns = pixels(busy, colour)
    plot = rows > _PLOT  # below the legend
    early, late = plot & (columns < 0.4), plot & (columns > 0.6)
    assert early.any()
    assert late.any()
    assert rows[early].min() > 0.8  # nothing in the first half minute
    assert rows[late].max() < 0.2  # all of it in the second
    idle = figure.paint([curve("clones")], 0.0)
    assert pixels(idle, colour)[0][pixels(idle, colour)[0] > _PLOT].min() > 0.8


def test_every_group_has_its_colour_and_keeps_it() -> None:
    figure = RatesFigure()
    names = ["bash", "cc1", "ld"]
    png = figure.paint([curve(name, 5 * i + 5) for i, name in enumerate(names)], 0.0)
    colours = {name: figure.colour(name) for name in names}
    assert len(set(colours.values())) == 3
    assert all(len(pixels(png, colour)[0]) > 100 for colour in colours.values())
    figure.paint([curve("ld", 1), curve("make", 2)], 0.0)
    assert figure.colour("ld") == colours["ld"]
    assert figure.colour("make") not in (colours["ld"], figure.colour("bash"))


def test_small_groups_are_summed() -> None:
    many = [curve(f"g{i}", i, i + 1) for i in range(30)]
    picked = pick(many)
    assert [c.label for c in picked] == [f"g{i}" for i in range(21, 30)] + ["other (21)"]
    assert sum(c.counts for c in picked).tolist() == sum(c.counts for c in many).tolist()
    assert pick(many[:10]) == many[:10]
    RatesFigure().paint(many, 0.0)


@pytest.mark.parametrize(
    "label", [HOSTILE, "$x_$", "$\\frac{$", "_hidden", "", "\N{GRINNING FACE}", "日本", "a" * 300, "\u0301\u200d"]
)
@pytest.mark.parametrize("alone", [True, False])
def test_any_name_can_be_painted(label: str, alone: bool) -> None:
    # Warnings are errors here, and matplotlib warns of glyphs its font lacks and of labels that begin with "_".
    curves = [curve(label, 1)] if alone else [curve(label, 1), curve("bash", 2)]
    png = RatesFigure().paint(curves, 0.0)
    assert len(pixels(png, plots.COLOURS[0])[0]) > 20


def test_picture_is_the_same_whatever_style_the_person_chose() -> None:
    plain = RatesFigure().paint([curve("clones", 3)], 0.0)
    styles = {
        "text.usetex": True, "lines.linestyle": ":", "lines.marker": "o", "figure.facecolor": "red", "font.size": 30,
        "figure.autolayout": True, "axes.grid": True, "savefig.dpi": 30, "savefig.facecolor": "red",
        "axes.formatter.use_mathtext": True, "axes.formatter.limits": (0, 0), "axes.formatter.useoffset": True,
    }  # fmt: skip
    with rc_context(styles):
        assert RatesFigure().paint([curve("clones", 3)], 0.0) == plain


@pytest.mark.parametrize("most", [0, 1, 2, 3, 5, 6, 9, 11, 99, 1_234, 10**7 + 1])
def test_scale_is_round_whole_and_high_enough(most: int) -> None:
    scale = levels(most)
    step, top = scale[1], scale[-1]
    assert scale == list(range(0, top + step, step))
    assert str(step).rstrip("0") in ("1", "2", "5")
    assert top >= most
    assert top % step == 0
    assert 2 <= top // step <= 5
    assert top - step < max(most, 2)  # no higher than it must be


def test_levels_are_short() -> None:
    assert [short(n) for n in (0, 250, 999, 1_000, 1_500, 20_000, 1_500_000)] == [
        "0", "250", "999", "1k", "1.5k", "20k", "1.5M",
    ]  # fmt: skip


def test_importing_bpfnb_imports_no_plotting_and_painting_no_pyplot() -> None:
    check = (
        "import sys, bpfnb\n"
        "assert not {'matplotlib', 'ipywidgets', 'IPython'} & set(sys.modules)\n"
        "import numpy as np\n"
        "from bpfnb.views.plots import Curve, RatesFigure\n"
        "RatesFigure().paint([Curve('a', 'a', np.zeros(60, int))], 0.0)\n"
        "import bpfnb.views.live.panel\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", check], check=True, timeout=60)
