"""The panel in an empty page: what it draws and what it answers, without JupyterLab."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from pages import PanelPage

import bpfnb
from bpfnb.session import Session
from bpfnb.testing import FakeTracer, Line
from bpfnb.views.live.specs import specs_of, views_of

SOURCE = 'int hello(void *ctx) { bpf_trace_printk("hi\\n"); return 0; }'
HOSTILE = "<img src=x onerror=window.hacked=1>\u202e" + "n" * 10_000


class Broken:
    """A view that raises, and one of a kind that the page does not know."""

    title = HOSTILE

    def __init__(self, kind: str, raises: bool) -> None:
        self.kind, self._raises = kind, raises

    def update(self, last: bool) -> None:
        if self._raises:
            raise RuntimeError(HOSTILE)

    def whole(self) -> Any:
        from bpfnb.views.live.view import Part

        return Part({})

    def delta(self) -> None:
        return None


@pytest.fixture
def tracer() -> Iterator[FakeTracer]:
    with FakeTracer() as tracer:
        yield tracer


@pytest.fixture
def clones(tracer: FakeTracer) -> Session:
    return bpfnb.trace(SOURCE, name="clones", attach={"syscall:clone": "hello"})


def test_frames_reach_the_page_and_buttons_reach_python(
    panel_page: PanelPage, tracer: FakeTracer, clones: Session
) -> None:
    panel = panel_page.show(views_of(specs_of([clones])), [clones])
    panel_page.until(lambda: panel_page.text(".bpfnb-title") == "clones")
    tracer.printk(clones, [Line("bash", 1, "hi")] * 5)
    panel_page.until(lambda: panel_page.text(".bpfnb-count dd") == "5")
    button = panel_page.page.get_by_role("button", name="Pause", exact=True)
    button.focus()
    panel_page.page.keyboard.press("Enter")  # by the keyboard
    resume = panel_page.page.get_by_role("button", name="Resume", exact=True)
    panel_page.until(lambda: resume.count(), what="there is no Resume")
    assert "paused" in panel_page.text(".bpfnb-state")
    panel_page.page.get_by_role("button", name="Stop", exact=True).click()
    panel_page.until(lambda: panel.closed)
    assert clones.state == "stopped"


def test_page_that_has_lost_a_frame_or_is_opened_again_gets_all(
    panel_page: PanelPage, tracer: FakeTracer, clones: Session
) -> None:
    panel = panel_page.show(views_of(specs_of([clones])), [clones])
    panel_page.until(lambda: panel_page.text(".bpfnb-count dd") == "0")
    wire = panel_page.wire
    assert wire
    tracer.printk(clones, [Line("bash", 1, "hi")] * 7)
    panel_page.page.wait_for_timeout(1_500)
    assert wire.messages
    wire.messages.clear()  # lost on the way
    tracer.printk(clones, [Line("bash", 1, "hi")])
    panel_page.until(lambda: panel_page.text(".bpfnb-count dd") == "8")
    panel_page.page.evaluate("() => window.close_panel()")
    panel_page.pump()
    assert not panel_page.text(".bpfnb-panel")
    sent = wire.count
    tracer.printk(clones, [Line("bash", 1, "hi")])
    panel_page.page.wait_for_timeout(1_500)
    assert wire.count == sent  # no page, no message
    panel_page.attach()
    panel_page.until(lambda: panel_page.text(".bpfnb-count dd") == "9")
    panel.close()


def test_view_that_fails_is_one_line_of_text_and_the_others_go_on(
    panel_page: PanelPage, tracer: FakeTracer, clones: Session
) -> None:
    views = [Broken("hist", raises=True), Broken("nothing", raises=False), *views_of(specs_of([clones]))]
    panel = panel_page.show(views, [clones])
    panel_page.until(lambda: panel_page.page.locator(".bpfnb-error").count() == 2)
    first, second = panel_page.page.locator(".bpfnb-error").all_inner_texts()
    assert first.startswith("RuntimeError: <img src=x")
    assert "no view of kind nothing" in second
    tracer.printk(clones, [Line("bash", 1, "hi")])
    panel_page.until(lambda: panel_page.text(".bpfnb-count dd") == "1")
    panel_page.page.set_viewport_size({"width": 600, "height": 700})
    panel_page.rest(0.3)
    assert panel_page.page.evaluate("() => document.documentElement.scrollWidth") <= 600
    assert panel_page.page.evaluate("() => window.hacked") is None
    panel.close()


def test_kernel_that_is_gone_leaves_the_last_frame_and_no_button(panel_page: PanelPage, clones: Session) -> None:
    panel = panel_page.show(views_of(specs_of([clones])), [clones])
    panel_page.until(lambda: panel_page.text(".bpfnb-count dd") == "0")
    panel_page.page.evaluate("() => window.listeners.comm_live_update.forEach((heard) => heard())")
    assert "the kernel is gone; last update" in panel_page.text(".bpfnb-state")
    assert panel_page.text(".bpfnb-count dd") == "0"
    assert all(button.is_disabled() for button in panel_page.page.locator(".bpfnb-buttons button:visible").all()[-2:])
    panel.close()


def test_colours_follow_the_page_and_motion_is_reduced_where_asked(panel_page: PanelPage, clones: Session) -> None:
    page = panel_page.page
    page.emulate_media(color_scheme="dark", reduced_motion="reduce")
    panel = panel_page.show(views_of(specs_of([clones])), [clones])
    panel_page.until(lambda: panel_page.text(".bpfnb-count dd") == "0")
    colour = "() => getComputedStyle(document.querySelector('.bpfnb-panel')).color"
    moving = "() => getComputedStyle(document.querySelector('.bpfnb-state'), '::before').animationName"
    assert page.evaluate(moving) == "none"
    dark = page.evaluate(colour)
    page.emulate_media(color_scheme="light", reduced_motion="no-preference")
    panel_page.until(lambda: page.evaluate(colour) != dark, what="the colours stay dark")
    assert page.evaluate(moving) == "bpfnb-pulse"
    panel.close()
