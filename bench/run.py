"""Measure every operation beside its peers and the machine's limits, print the table, keep the JSON.

    python bench/run.py                 all, about two minutes
    python bench/run.py --only CE --classes 1000
    python bench/report.py              print the newest result again

All that is compared is timed in turn within one loop: ours, the limits, a peer, and again. What slows
the machine for a while slows them all. Medians are kept.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import re
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import entrokern as ek
import first_call
import machine
import report
from entrokern import _dispatch
from limits import Limits
from operations import CLASSES, OPERATIONS, Case, Operation, errors, participants, prepare

RESULTS = Path(__file__).resolve().parent / "results"


def interleaved(thunks: dict[str, Callable[[], Any]], rounds: int, budget: float) -> dict[str, dict[str, float]]:
    """Seconds of each: median, lowest and how often timed. One that has used its budget (in seconds)
    sits out after three rounds, so that slow peers do not set the length of the run."""
    times: dict[str, list[float]] = {name: [] for name in thunks}
    for _ in range(rounds):
        for name, thunk in thunks.items():
            if len(times[name]) >= 3 and sum(times[name]) > budget:
                continue
            start = time.perf_counter()
            thunk()
            times[name].append(time.perf_counter() - start)
    return {name: {"median": statistics.median(t), "lowest": min(t), "rounds": len(t)} for name, t in times.items()}


def limit_thunks(limits: Limits, operation: Operation, case: Case) -> dict[str, Callable[[], int]]:
    """The limits that bear on an operation; each thunk returns the work done (bytes or results)."""
    grad = case.grad
    operands = [case.x] if case.y is None or case.y.ndim == 1 else [case.x, case.y]
    thunks: dict[str, Callable[[], int]] = (
        {"read": lambda: sum(limits.read(operand) for operand in operands)}
        if grad is None
        else {"copy": lambda: limits.copy(case.x, grad)}
    )
    if operation.exponentials:
        thunks["exp"] = lambda: limits.exponentials(case.x.dtype)
    if operation.logarithms:
        thunks["log"] = limits.logarithms
    return thunks


def measured(operation: Operation, k: int, limits: Limits, settings: argparse.Namespace) -> dict[str, Any]:
    """One row of the results."""
    case = prepare(operation, k, settings.megabytes, settings.dtype)
    who = participants(operation, settings.torch_compile)
    error = errors(operation, case, who)
    ours_and_peers = {name: bind(case) for name, bind in who.items()}
    for name in who:
        if name in ("jax", "torch.compile"):  # compiled anew for each shape
            ours_and_peers[name]()
    bounds = limit_thunks(limits, operation, case)
    work = {name: thunk() for name, thunk in bounds.items()}
    seconds = interleaved({**ours_and_peers, **bounds}, settings.rounds, settings.budget)
    rates = {name: work[name] / seconds.pop(name)["median"] for name in bounds}
    memory = case.bytes_moved / rates["read" if case.grad is None else "copy"]
    arithmetic = case.x.size * (
        (operation.exponentials / rates["exp"] if operation.exponentials else 0.0)
        + (operation.logarithms / rates["log"] if operation.logarithms else 0.0)
    )
    ours = seconds["entrokern"]["median"]
    return {
        "operation": operation.name,
        "n": len(case.x),
        "k": k,
        "dtype": settings.dtype,
        "bytes": case.bytes_moved,
        "seconds": seconds,
        "limits": rates,
        "roof": {"memory": memory, "arithmetic": arithmetic},
        "share": max(memory, arithmetic) / ours,
        "bytes_per_second": case.bytes_moved / ours,
        "times_faster_than": {name: value["median"] / ours for name, value in seconds.items() if name != "entrokern"},
        "error": error,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="operations whose name contains this")
    parser.add_argument("--classes", type=int, nargs="+", default=list(CLASSES), metavar="K")
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32")
    parser.add_argument("--megabytes", type=float, default=128.0, help="of the operands (default 128)")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--budget", type=float, default=0.6, help="seconds for one peer or limit in one row")
    parser.add_argument("--out", type=Path, help="the JSON (default: bench/results/DATE-CPU.json)")
    parser.add_argument("--torch-compile", action="store_true", help="time torch.compile too (it starts slowly)")
    parser.add_argument("--no-first-call", action="store_true", help="leave the first calls out")
    settings = parser.parse_args()

    chosen = [operation for operation in OPERATIONS if settings.only in operation.name]
    if not chosen:
        names = ", ".join(operation.name for operation in OPERATIONS)
        parser.error(f"no operation has {settings.only!r} in its name; there are: {names}")
    about = machine.describe()
    about["load"] = round(os.getloadavg()[0], 2)
    about["backend"] = f"{_dispatch.chosen()}: {ek.backends()[_dispatch.chosen()]}"
    if _dispatch.backend().run.__module__ == "entrokern.reference":
        about["backend"] = "reference (the kernels are not there)"
    result: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "machine": about,
        "settings": {name: getattr(settings, name) for name in ("megabytes", "rounds", "budget", "dtype")},
    }
    print(report.heading(result))
    if not settings.no_first_call:
        result["first_call"] = first_call.measure()
    limits = Limits(about["threads"])
    rows: list[dict[str, Any]] = []
    peers = [name for name in participants(chosen[0], settings.torch_compile) if name != "entrokern"]
    print(report.columns(peers))
    with np.errstate(all="ignore"):
        for operation in chosen:
            for k in settings.classes:
                rows.append(measured(operation, k, limits, settings))
                print(report.line(rows[-1]), flush=True)
    result["rows"] = rows
    print(report.closing(result))
    cpu = re.sub(r"[^a-z0-9]+", "-", about["cpu"].lower()).strip("-")
    path = settings.out or RESULTS / f"{result['date']}-{cpu}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
