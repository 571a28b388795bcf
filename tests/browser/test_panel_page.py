"""The panel in an empty page: what it draws and what it answers, without JupyterLab."""

from __future__ import annotations

from pages import PanelPage

import bpfnb
from bpfnb.testing import FakeTracer, Line
from bpfnb.views.live.specs import specs_of, views_of

SOURCE = 'int hello(void *ctx) { bpf_trace_printk("hi\\n"); return 0; }'


def test_frames_reach_the_page_and_buttons_reach_python(panel_page: PanelPage) -> None:
    with FakeTracer() as tracer:
        clones = bpfnb.trace(SOURCE, name="clones", attach={"syscall:clone": "hello"})
        panel = panel_page.show(views_of(specs_of([clones])), [clones])
        panel_page.until(lambda: panel_page.text(".bpfnb-title") == "clones")
        tracer.printk(clones, [Line("bash", 1, "hi")] * 5)
        panel_page.until(lambda: panel_page.text(".bpfnb-count dd") == "5")
        panel_page.page.get_by_role("button", name="Stop").click()
        panel_page.until(lambda: panel.closed)
        assert clones.state == "stopped"
