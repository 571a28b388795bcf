"""Run ``far`` or ``near`` as a program: ``python3 -I .../bpfnb/host/ssh/boot.py far``.

What they import lies in the folder that has bpfnb, or in this Python's own. The package ``bpfnb`` itself is not
executed: it imports the notebook's side, with pandas, which these have no use for.
"""

import importlib.util
import os
import runpy
import sys
from pathlib import Path

if __name__ == "__main__":
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # or numpy starts threads that nobody needs
    sys.path.insert(0, str(Path(__file__).resolve().parents[3]))
    spec = importlib.util.find_spec("bpfnb")
    assert spec
    sys.modules["bpfnb"] = importlib.util.module_from_spec(spec)
    runpy.run_module(f"bpfnb.host.ssh.{sys.argv.pop(1)}", run_name="__main__")
