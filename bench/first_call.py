"""What the first call costs: in a fresh process, with an empty cache of kernels and then with a full one.

`measure()` starts two processes over one new cache folder; run as a script, this file is such a process.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CLASSES = 1000
ROWS = 8


def measure() -> dict[str, dict[str, float]]:
    """Seconds of the import and of each operation's first call: ``{"compiling": …, "cached": …}``."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "ENTROKERN_CACHE_DIR": folder}
        for name in ("compiling", "cached"):
            done = subprocess.run(
                [sys.executable, str(Path(__file__).resolve())],
                env=environment,
                capture_output=True,
                text=True,
                check=True,
            )
            found[name] = json.loads(done.stdout)
    return found


def first_calls() -> dict[str, float]:
    start = time.perf_counter()
    import entrokern  # noqa: F401

    seconds = {"import entrokern": time.perf_counter() - start}
    start = time.perf_counter()
    import numba  # noqa: F401

    seconds["import numba"] = time.perf_counter() - start
    import numpy as np

    from operations import OPERATIONS

    for operation in OPERATIONS:
        case = operation.setup(ROWS, CLASSES, np.dtype(np.float32), np.random.default_rng(0))
        start = time.perf_counter()
        operation.ours(case)
        seconds[operation.name] = time.perf_counter() - start
    return seconds


if __name__ == "__main__":
    print(json.dumps(first_calls()))
