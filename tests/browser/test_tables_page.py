"""Tables that are sorted and searched on the page: in a page of its own, and in JupyterLab without a kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pandas as pd
import pytest
from browsing import Notebook

import bpfnb.views.events  # noqa: F401  (registers df.bpf)

HOSTILE = "</script><img src=x onerror=\"document.title='hit'\"><script>document.title='hit'</script>"
FRAME = pd.DataFrame(
    {
        "time": pd.Timestamp("2026-11-30", tz="UTC") + pd.to_timedelta(range(50), unit="s"),
        "comm": [["nginx", HOSTILE, "bash"][n % 3] for n in range(50)],
        "latency": pd.to_timedelta([None if n == 7 else (n * 37 % 50) * 10**n % 10**10 for n in range(50)], unit="ns"),
        "n": [n * 7 % 50 - 9 for n in range(50)],
    }
)


@pytest.fixture
def page(browser: Any) -> Any:
    page = browser.new_page(viewport={"width": 600, "height": 700})
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.set_content(f"<!doctype html><title>mine</title>{FRAME.bpf.table()._repr_html_()}")
    yield page
    assert page.title() == "mine"
    assert not errors
    page.close()


def column(page: Any, number: int) -> list[str]:
    return [str(text) for text in page.locator(f"tbody td:nth-child({number})").all_inner_texts()]


def test_it_is_sorted_searched_and_turned(page: Any) -> None:
    newest = FRAME[::-1]
    assert column(page, 4) == [str(n) for n in newest.n[:20]]
    said = page.get_by_role("status")
    assert said.inner_text() == "1 to 20 of 50 rows"
    page.get_by_label("next rows").click()
    page.get_by_label("next rows").click()
    assert column(page, 4) == [str(n) for n in newest.n[40:]]
    assert page.get_by_label("next rows").is_disabled()

    page.locator("th").nth(3).click()  # numbers by value: -9 comes before 1
    assert column(page, 4) == [str(n) for n in sorted(FRAME.n)[:20]]
    assert page.locator("th").nth(3).get_attribute("aria-sort") == "ascending"
    page.locator("th").nth(3).click()
    assert column(page, 4) == [str(n) for n in sorted(FRAME.n, reverse=True)[:20]]

    page.locator("th").nth(2).focus()
    page.keyboard.press("Enter")
    assert column(page, 4) == [str(n) for n in newest.sort_values("latency", kind="stable").n[:20]]
    for _ in range(2):
        page.get_by_label("next rows").click()
    assert column(page, 3)[-1] == "-"  # missing is last

    page.get_by_label("search in all columns").fill("NGINX")
    assert said.inner_text() == "1 to 17 of 17 rows found of 50"
    assert set(column(page, 2)) == {"nginx"}
    page.get_by_label("search in all columns").fill("onerror")
    assert set(column(page, 2)) == {HOSTILE}
    page.get_by_label("search in all columns").fill("no such")
    assert said.inner_text() == "none of 50 rows"
    assert column(page, 1) == []


def test_jupyterlab_runs_it_and_shows_it_in_a_notebook_that_was_saved(
    notebook: Callable[[str, list[str] | None], Notebook],
) -> None:
    code = f"import bpfnb, pandas as pd\npd.DataFrame({{'n': range(100), 'comm': {HOSTILE!r}}}).bpf.table()"
    first = notebook("table.ipynb", [code, "1"])
    first.run(0)
    searched(first)  # and Ctrl-S saves, pressed in the field
    assert {"text/html", "text/plain"} in first.saved(0)
    first.page.close()
    # Nobody has run this one: a notebook is trusted on the machine that wrote it.
    again = notebook("table.ipynb", None)
    assert again.prompt(0) == "[1]:"
    searched(again)


def searched(shown: Notebook) -> None:
    cell = shown.cell(0)
    cell.get_by_label("search in all columns").fill("97")
    shown.until(lambda: cell.locator("tbody tr").count() == 1, 5, lambda: cell.inner_text())
    assert cell.locator("tbody td").first.inner_text() == "97"
    assert shown.page.evaluate("document.title") != "hit"
