"""What an import costs and loads, measured in fresh processes."""

from __future__ import annotations

import subprocess
import sys

HEAVY = ("numba", "llvmlite", "cupy", "dask", "torch", "jax", "ml_dtypes", "scipy", "pandas", "argparse")


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


def test_import_loads_nothing_heavy() -> None:
    loaded = run("import sys, entrokern; print(*sorted({m.partition('.')[0] for m in sys.modules}))").split()
    assert "entrokern" in loaded
    # What NumPy itself loads is not ours to count.
    of_numpy = run("import sys, numpy; print(*sorted({m.partition('.')[0] for m in sys.modules}))").split()
    assert not {*HEAVY} & ({*loaded} - {*of_numpy})


def test_reference_and_information_need_no_compiler() -> None:
    code = """
import sys, io, entrokern as ek
ek.use_backend("reference")
ek.cross_entropy([[0.0, 1.0]], [1], return_grad=True)
ek.show_info(io.StringIO())
ek.set_num_threads(1)
print("numba" in sys.modules)
"""
    assert run(code).strip() == "False"


def test_a_first_call_compiles_one_kernel() -> None:
    code = """
import numpy as np, entrokern as ek
ek.cross_entropy(np.zeros((3, 300), np.float32), [0, 1, 2])
from entrokern.cpu.compile import KERNELS
print(sum(len(kernel.signatures) for kernel in KERNELS.values()))
"""
    assert run(code).strip() == "1"
