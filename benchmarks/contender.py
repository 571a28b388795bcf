"""The process of one contender: python -m benchmarks.contender MODULE:FUNCTION JSON-ARGUMENTS [twice]

Its figures are the last line of standard output, as JSON; the last of standard error says why it failed.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import traceback
from functools import partial

from benchmarks.common import CPUS
from bpfnb.hosts import default_host


def main() -> int:
    name, arguments, *twice = sys.argv[1:]
    module, _, function = name.partition(":")
    os.sched_setaffinity(0, {min(CPUS)})
    try:
        measure = partial(getattr(importlib.import_module(module), function), **json.loads(arguments))
        first = {f"first_{name}": value for name, value in measure().items()} if twice else {}
        figures = {**measure(), **first}
    except Exception as error:
        traceback.print_exc()
        print(f"{type(error).__name__}: {error}".replace("\n", " "), file=sys.stderr, flush=True)
        return 1
    print("\n" + json.dumps(figures), flush=True)
    return 0


if __name__ == "__main__":
    status = main()
    default_host.close()
    sys.stderr.flush()
    os._exit(status)  # bcc's own ways to the exit raise errors, and wait for a thread that waits for another line
