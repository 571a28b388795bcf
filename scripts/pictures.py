"""Take README's pictures: JupyterLab in Chromium, real sessions, and a workload that is the same each time."""

from __future__ import annotations

import argparse
import io
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "browser"))

from browsing import CHROMIUM, Notebook, serving  # noqa: E402

WIDTH = 1150  # of the page; a cell is 840 wide on it
SCALE = 2  # pixels of the picture for one of the page
COLOURS = 128

SETUP = "%load_ext bpfnb\nimport bpfnb"
CLONES = """%%bpf clones -a syscall:clone=hello -a syscall:clone3=hello -a syscall:vfork=hello -a syscall:fork=hello
int hello(void *ctx) { bpf_trace_printk("my bcc program\\n"); return 0; }"""
SYNCS = """%%bpf syncs
int kprobe__sys_sync(void *ctx) { bpf_trace_printk("sys_sync() called\\n"); return 0; }"""
PROCESSES = """import time, workload
calm = workload.start(forks=400, vforks=60, spawns=60, subshells=40, syncs=100, seconds=28)
for forks in (500, 250):
    time.sleep(7)
    workload.start(forks=forks, subshells=40, syncs=20, seconds=5).result()"""
READS = """%%bpf reads -a sysret:read=f
// The sizes of what is read, in powers of two, and bytes by process
BPF_HISTOGRAM(sizes);
BPF_HASH(bytes, u32, u64);

int f(struct pt_regs *ctx) {
    long n = PT_REGS_RC(ctx);
    u32 pid = bpf_get_current_pid_tgid() >> 32;
    if (n > 0) {
        sizes.increment(bpf_log2l(n));
        bytes.increment(pid, n);
    }
    return 0;
}"""
FILES = """import time
end = time.time() + 6
while time.time() < end:
    for size in (16, 100, 512, 4096, 4096, 4096, 65536):
        with open("/dev/zero", "rb", buffering=0) as file:
            file.read(size)
    time.sleep(0.001)"""


PLAIN = """.jp-cell-toolbar, .jp-Collapser { visibility: hidden !important; }
.jp-Cell { border-color: transparent !important; outline: none !important; box-shadow: none !important; }"""


class Scene(NamedTuple):
    """Cells, of which ``shown`` is on the picture ``seconds`` after the last was started."""

    cells: list[str]
    shown: int
    seconds: float
    ready: Callable[[Notebook, int], Any]


def panel(book: Notebook, cell: int) -> None:
    """Wait for the panel."""
    book.cell(cell).locator(".jp-OutputArea-output canvas").first.wait_for(timeout=20_000)


def card(book: Notebook, cell: int) -> None:
    """Wait for the session's card."""
    book.cell(cell).locator(".jp-OutputArea-output").first.wait_for(timeout=20_000)


SCENES = {
    "live": Scene([CLONES, SYNCS, "panel = bpfnb.live(clones, syncs, window=30)", PROCESSES], 2, 27, panel),
    "editor": Scene([READS, FILES], 0, 4, card),
}


def page_of(browser: Any) -> Any:
    """A page of the size that the pictures are for."""
    return browser.new_page(viewport={"width": WIDTH, "height": 1400}, device_scale_factor=SCALE)


def take(book: Notebook, scene: Scene) -> bytes:
    """Run the cells; a cell's picture, as PNG."""
    book.run(0)
    for number in range(1, len(scene.cells)):
        book.run(number)
        if number == scene.shown + 1:
            scene.ready(book, number)
    last = len(scene.cells)
    book.start(last)
    book.page.wait_for_timeout(scene.seconds * 1000)
    cell = book.cell(scene.shown + 1)
    # The picture is of the cell alone: no toolbar over it, no mark of being the active one.
    book.page.add_style_tag(content=PLAIN)
    book.page.mouse.move(0, 0)
    cell.scroll_into_view_if_needed()
    return bytes(cell.screenshot(animations="disabled"))


def small(png: bytes) -> Image.Image:
    """Return a picture with a palette: a quarter of the bytes."""
    return Image.open(io.BytesIO(png)).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/pictures", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(SCENES)}; default: all")
    parser.add_argument("--folder", type=Path, default=ROOT / "docs" / "images", help="where they go (docs/images)")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(SCENES):
        parser.error(f"no such picture: {', '.join(sorted(unknown))}")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        print("pictures: no Chromium here: scripts/setup --test installs it", file=sys.stderr)
        return 1
    arguments.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as base, serving(Path(base)) as lab, sync_playwright() as playwright:
        shutil.copy(ROOT / "notebooks" / "workload.py", lab.folder)
        browser = playwright.chromium.launch(executable_path=chromium, args=CHROMIUM)
        for name in arguments.names or SCENES:
            lab.write(f"{name}.ipynb", [SETUP, *SCENES[name].cells])
            page = page_of(browser)
            picture = small(take(Notebook(lab, page, f"{name}.ipynb"), SCENES[name]))
            page.close()
            lab.end_kernels()
            path = arguments.folder / f"{name}.png"
            picture.save(path, optimize=True)
            print(
                f"pictures: {path.name}: {picture.width} x {picture.height}, {path.stat().st_size:,} bytes", flush=True
            )
        browser.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
