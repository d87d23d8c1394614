"""Measure every operation on a GPU beside its peers and the copy's bandwidth, print the tables, keep the JSON.

    python bench/bench_gpu.py                      what has a target first: float32 and bfloat16, seven k
    python bench/bench_gpu.py --full               sixteen k, float16 and float64 too, more rounds
    python bench/bench_gpu.py --only KL --classes 1024 --peers cupy
    python bench/bench_gpu.py --budget-seconds 500 --out gpu.json; python bench/bench_gpu.py --resume gpu.json
    python bench/report.py bench/results/gpu/FILE  print a result again; --markdown, --plots

The result is written after every cell, so that nothing is lost when the time is up; a cell that fails is noted in it.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib.metadata
import json
import os
import re
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import entrokern as ek
import gpu_cells
import gpu_peers
import machine
import operations
from gpu_cells import Effort, Result
from gpu_device import Device, Lost, check, gpu_name, why_not, words
from gpu_tables import columns, heading, line, small_text, summary, tables
from report import OURS

RESULTS = Path(__file__).resolve().parent / "results" / "gpu"
NO_GPU = 3  # the exit code


def measured(device: Device, settings: argparse.Namespace, path: Path, begun: float) -> Result:
    """Everything, cell by cell, as far as the time goes (that has run since `begun`); `path` is written after each."""
    effort = effort_of(settings)
    result = resumed(settings, device) or {
        "date": datetime.date.today().isoformat(),
        "machine": described(device),
        "settings": {"megabytes": effort.megabytes, "rounds": effort.rounds, "budget": effort.budget},
        "peers": list(effort.peers),
        "aims": gpu_cells.AIMS,
        "small_target": gpu_cells.SMALL_CALL,
        "rows": [],
    }
    print(heading(result))
    if "small" not in result:
        result["small"] = {}
        save(result, path)  # as below
        result["small"] = gpu_cells.small_call(device, effort.peers)
        print(f"{small_text(result)}\n")
    print(columns(result["peers"]), flush=True)
    done = {(row["operation"], row["dtype"], row["k"]) for row in result["rows"]}
    asked = gpu_cells.cells(settings.only, classes_of(settings), dtypes_of(settings))
    asked = [cell for cell in asked if (cell[0].name, *cell[1:]) not in done]
    result["left_out"] = len(asked)
    save(result, path)
    for number, cell in enumerate(asked, start=1):
        if settings.budget_seconds is not None and time.monotonic() - begun > settings.budget_seconds:
            break
        operation, dtype, k = cell
        failed: Result = {"operation": operation.name, "dtype": dtype, "k": k, "failed": {OURS: "it did not end"}}
        # On file before it begins: where it ends the process, it is not begun again.
        result["rows"].append(failed)
        result["left_out"] = len(asked) - number
        save(result, path)
        try:
            result["rows"][-1] = gpu_cells.row(device, cell, effort)
        except Exception as failure:
            failed["failed"][OURS] = words(failure)
        save(result, path)
        told = line(result["rows"][-1], result["peers"])
        print(f"{told}   {number}/{len(asked)} {time.monotonic() - begun:.0f} s", flush=True)
        check(device)
        device.free()
    return result


def described(device: Device) -> Result:
    import cupy

    about = machine.describe()
    about["gpu"] = device.describe()
    about["backend"] = f"cuda: {ek.backends()['cuda']}"
    about["versions"]["cupy"] = cupy.__version__
    for package in ("triton", "liger_kernel"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            about["versions"][package] = importlib.metadata.version(package)
    return about


def resumed(settings: argparse.Namespace, device: Device) -> Result | None:
    if settings.resume is None or not settings.resume.exists():
        return None
    result: Result = json.loads(settings.resume.read_text())
    there, here = result["machine"]["gpu"]["name"], device.describe()["name"]
    if there != here:
        raise SystemExit(f"{settings.resume} was measured on {there}, and this is {here}: begin a new one")
    return result


def save(result: Result, path: Path) -> None:
    """All at once: what is there is whole, whenever the process is ended."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".part")
    beside.write_text(json.dumps(result, indent=1, default=float) + "\n")
    beside.replace(path)


# --- the command ----------------------------------------------------------------------------------


def settings_of(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--only", default="", metavar="TEXT", help="operations whose name contains this")
    parser.add_argument("--classes", type=int, nargs="+", metavar="K")
    parser.add_argument("--dtypes", nargs="+", choices=gpu_cells.DTYPES + gpu_cells.MORE_DTYPES)
    parser.add_argument("--megabytes", type=float, help="of the operands (1000)")
    parser.add_argument("--rounds", type=int, help="how often each is timed (9; --full: 15)")
    parser.add_argument("--budget", type=float, help="seconds for one peer or limit in one cell (0.2; --full: 0.5)")
    parser.add_argument("--peers", nargs="*", choices=gpu_peers.PEERS, help="default: those installed")
    parser.add_argument("--budget-seconds", type=float, metavar="S", help="begin no cell after so many seconds")
    parser.add_argument("--out", type=Path, help="the JSON (default: bench/results/gpu/DATE-GPU.json)")
    parser.add_argument("--resume", type=Path, metavar="FILE", help="go on with a JSON that is not complete")
    parser.add_argument("--if-possible", action="store_true", help="without a GPU, say so and succeed")
    parser.add_argument("--probe", action="store_true", help="only say what GPU there is, or why there is none")
    settings = parser.parse_args(arguments)
    if not gpu_cells.cells(settings.only, classes_of(settings), dtypes_of(settings)):
        names = ", ".join(dict.fromkeys(operation.name for operation in operations.OPERATIONS))
        parser.error(f"no operation has {settings.only!r} in its name; there are: {names}")
    return settings


def classes_of(settings: argparse.Namespace) -> tuple[int, ...]:
    return tuple(settings.classes or gpu_cells.CLASSES + (gpu_cells.MORE_CLASSES if settings.full else ()))


def dtypes_of(settings: argparse.Namespace) -> tuple[str, ...]:
    return tuple(settings.dtypes or gpu_cells.DTYPES + (gpu_cells.MORE_DTYPES if settings.full else ()))


def effort_of(settings: argparse.Namespace) -> Effort:
    usual = Effort(rounds=15, budget=0.5) if settings.full else Effort()
    here = gpu_peers.installed()
    return Effort(
        megabytes=settings.megabytes or usual.megabytes,
        rounds=settings.rounds or usual.rounds,
        budget=settings.budget or usual.budget,
        peers=tuple(here if settings.peers is None else [name for name in here if name in settings.peers]),
    )


def main() -> int:
    settings, begun = settings_of(), time.monotonic()
    path: Path | None = None
    try:
        # Kernels are kept in a folder that is new: first calls compile.
        with tempfile.TemporaryDirectory() as folder, np.errstate(all="ignore"):
            os.environ["CUPY_CACHE_DIR"] = os.environ["ENTROKERN_CACHE_DIR"] = folder
            if (reason := why_not()) is not None:
                print(f"no GPU to measure on: {reason}")
                return 0 if settings.if_possible else NO_GPU
            if settings.probe:
                print(gpu_name())
                return 0
            path = settings.resume or settings.out or RESULTS / f"{datetime.date.today()}-{slug(gpu_name())}.json"
            result = measured(Device(effort_of(settings).megabytes), settings, path, begun)
            print(f"\n{summary(result, tables(result)[:1])}\n\n{path}")
            return 0
    except Lost as failure:
        print(f"the device answers no more ({failure}): going on in a new process", flush=True)
    again = [*sys.argv, "--resume", str(path)]
    if settings.budget_seconds is not None:
        again += ["--budget-seconds", str(settings.budget_seconds - (time.monotonic() - begun))]
    os.execv(sys.executable, [sys.executable, *again])


def slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


if __name__ == "__main__":
    sys.exit(main())
