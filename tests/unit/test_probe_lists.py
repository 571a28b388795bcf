"""%bpf probes, in text and HTML: escaped, bounded, and whole for a single probe."""

from __future__ import annotations

from bpfnb.protocol.messages import ProbesListed
from bpfnb.views.probes import probes_table, probes_text

NOTE = "this kernel has no kprobes"


def listed(*rows: tuple[str, tuple[str, ...], str, str], more: int = 0) -> ProbesListed:
    names, arguments, returns, notes = zip(*rows, strict=True) if rows else ((), (), (), ())
    return ProbesListed(1, names, arguments, returns, notes, more)


def test_a_table() -> None:
    one = ("kprobe:a", ("int x", "char *y"), "int", NOTE)
    found = listed(one, ("kprobe:long_name", (), "void", NOTE), more=1200)
    assert probes_text(found, "kprobe:*").splitlines() == [
        "probe             arguments",
        "kprobe:a          int x, char *y",
        "kprobe:long_name",
        "... and 1,200 more: narrow the pattern",
        "this kernel has no kprobes (all of them)",
    ]
    html = probes_table(found, "kprobe:*").replace("<wbr>", "")
    assert html.count("<tr") == 3
    assert all(text in html for text in ("int x, char *y", "1,200 more", NOTE))
    assert "(1 of them)" in probes_text(listed(one, ("b", (), "", "")), "*")


def test_all_that_is_known_of_one() -> None:
    found = listed(("syscall:dup", ("unsigned int fildes",), "long: negative errno on failure", ""))
    assert probes_text(found, "syscall:dup").splitlines() == [
        "syscall:dup",
        "    unsigned int fildes",
        "    returns long: negative errno on failure",
    ]
    assert "<table" not in probes_table(found, "syscall:dup")
    assert "returns long" in probes_table(found, "syscall:dup")


def test_names_of_files_act_on_neither_a_page_nor_a_terminal() -> None:
    evil = "usdt:/tmp/<img src=x>\x1b[31m:a"
    for rows in (((evil, ("<b>",), "<i>", "<u>\x1b"),), ((evil, ("<b>",), "", "<u>\x1b"),) * 2):
        page, text = probes_table(listed(*rows), "*"), probes_text(listed(*rows), "*")
        assert not any(tag in page for tag in ("<img", "<b>", "<i>", "<u>"))
        assert "\x1b" not in page + text
        assert "&lt;img" in page
    none = probes_table(listed(), "<img>\x1b")
    assert "<img" not in none
    assert "\x1b" not in none + probes_text(listed(), "<img>\x1b")
