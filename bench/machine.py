"""What the numbers were measured on: no names of hosts, users or folders."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
from pathlib import Path
from typing import Any

import entrokern as ek
from entrokern import _dispatch, _threads

PACKAGES = ("numpy", "numba", "llvmlite", "scipy", "scikit-learn", "numkong", "torch", "jax", "ml_dtypes")


def cpu_name() -> str:
    try:
        found = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()


def caches() -> dict[str, str]:
    """The data caches of the first core, as the kernel tells them: ``{"L1": "48K", …}``."""
    sizes = {}
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        try:
            if (index / "type").read_text().strip() != "Instruction":
                sizes["L" + (index / "level").read_text().strip()] = (index / "size").read_text().strip()
        except OSError:
            continue
    return sizes


def versions() -> dict[str, str]:
    found = {"entrokern": ek.__version__}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def backend() -> str:
    name = _dispatch.chosen()
    if _dispatch.backend().run.__module__ == "entrokern.reference":
        return "reference (the kernels are not there)"
    return f"{name}: {ek.backends()[name]}"


def describe() -> dict[str, Any]:
    return {
        "cpu": cpu_name(),
        "cores": _threads.available_cores(),
        "threads": _threads.num_threads(),
        "caches": caches(),
        "system": platform.system(),
        "architecture": platform.machine(),
        "python": platform.python_version(),
        "load": round(os.getloadavg()[0], 2),
        "backend": backend(),
        "versions": versions(),
    }
