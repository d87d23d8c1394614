"""What the first call costs: in a fresh process, with an empty cache of kernels and then with a full one.

`measured()` starts the processes over one new cache folder; run as a script with the number of an
operation, this file is such a process.
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
MEGABYTES = 0.05
NAMES = ("CE", "CE + gradient", "entropy, logits", "KL, logits", "KL, probs", "BCE mean")


def measured() -> dict[str, dict[str, float]]:
    """Seconds of import and first call together, each operation in processes of its own.

    ``{"CE": {"compiling": …, "cached": …, "import": …}}``
    """
    found = {}
    for name in NAMES:
        with tempfile.TemporaryDirectory() as folder:
            compiling, cached = (_process(name, folder) for _ in range(2))
        found[name] = {"compiling": compiling["total"], "cached": cached["total"], "import": cached["import"]}
    return found


def _process(name: str, folder: str) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, str(Path(__file__).resolve()), name],
        env={**os.environ, "ENTROKERN_CACHE_DIR": folder},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


def first_call(name: str) -> dict[str, float]:
    """Numba's import falls into the first call; NumPy's into the import of the package."""
    begun = time.perf_counter()
    import entrokern  # noqa: F401

    imported = time.perf_counter() - begun
    import operations

    operation, dtype, k = operations.cells(name, (CLASSES,))[0]
    case = operations.prepare(operation, dtype, k, MEGABYTES)
    begun = time.perf_counter()
    operation.ours(case)
    return {"import": imported, "total": imported + time.perf_counter() - begun}


if __name__ == "__main__":
    print(json.dumps(first_call(sys.argv[1])))
