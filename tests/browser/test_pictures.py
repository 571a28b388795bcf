"""scripts/pictures can take README's pictures: of the same width each time, with something on them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from browsing import Lab, Notebook
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import pictures  # noqa: E402

pytestmark = pytest.mark.timeout(240)


def test_a_picture_of_a_cell_and_its_card(lab: Lab, browser: Any, tmp_path: Path) -> None:
    scene = pictures.SCENES["editor"]
    lab.write("picture.ipynb", [pictures.SETUP, *scene.cells])
    page = pictures.page_of(browser)
    picture = pictures.small(pictures.take(Notebook(lab, page, "picture.ipynb"), scene))
    page.close()
    lab.end_kernels()
    assert picture.width == 1600
    assert 800 < picture.height < 1600
    assert len(picture.getcolors() or []) > 20
    with Image.open(ROOT / "docs/images/editor.png") as committed:
        assert committed.width == picture.width, "scripts/pictures takes it anew"
