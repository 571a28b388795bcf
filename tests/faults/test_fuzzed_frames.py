"""What strangers send: a few thousand frames; ``python tests/fuzz_frames.py 100000`` sends as many as one likes."""

from __future__ import annotations

import os

from fuzz_frames import fuzz


def test_no_frame_hangs_ends_or_fills_a_tracer() -> None:
    frames = int(os.environ.get("BPFNB_FRAMES", "3000"))
    seen = fuzz(frames, seed=1)
    assert seen["ProgramError"] > frames / 10
    assert seen["MapRead"] > frames / 100
    assert seen["InternalError"] == 0
    assert not [what for what in seen if what.startswith("kernel objects left")]
