"""One row of the results: ours, the peers and the limits, timed in turn within one loop.

What slows the machine for a while slows them all. Medians are kept.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

import operations
import peers
from data import Case
from limits import Limits
from operations import Operation

Call = Callable[[], Any]
OURS = "entrokern"
LEAST = 5  # rounds in which ours is timed, whatever they take
AIMS = {"torch": 8, "torch.compile": 3, "scikit-learn": 10, "scipy": 10}  # so many times faster than a peer
LOG_SOFTMAX = ("ce", "ce_axis1", "ce+gradient", "ce_dense")  # where SciPy's counts: it is SciPy's log_softmax


@dataclass(frozen=True)
class Effort:
    """How much time a row may take: `budget` is in seconds, for one peer or limit."""

    megabytes: float = 128.0
    rounds: int = 15
    budget: float = 0.5
    peers: tuple[str, ...] = ()


def row(operation: Operation, dtype: str, k: int, limits: Limits, effort: Effort) -> dict[str, Any]:
    """All about one operation, dtype and k."""
    case = operations.prepare(operation, dtype, k, effort.megabytes)
    true = operations.expected(operation, case)
    theirs = replace(case, x=case.x.copy()) if case.grad is case.x else case  # ours writes over its operand
    calls: dict[str, Call] = {OURS: lambda: operation.ours(case)}
    for peer in effort.peers:
        if (call := peers.call_of(peer, operation.formula, theirs)) is not None:
            calls[peer] = call
    # The first call of each is not timed: it compiles, and what comes out is what is checked.
    errors = {name: operations.error(operation, call(), true) for name, call in calls.items()}
    if operation.beside_loss:
        calls["loss alone"] = lambda: operations.cross_entropy(case)
        calls["loss alone"]()
    bounds = bounds_of(operation, case, limits)
    work = {name: bound() for name, bound in bounds.items()}
    memory: dict[str, float] = {}
    seconds = interleaved({**calls, **bounds}, effort.rounds, effort.budget, memory)
    rates = {name: work[name] / seconds.pop(name)["median"] for name in bounds}
    alone = seconds.pop("loss alone", None)
    for name in ("loss alone", *bounds):
        memory.pop(name, None)
    found = {
        "operation": operation.name,
        "formula": operation.formula,
        "dtype": dtype,
        "k": k,
        "n": case.x.size // k,
        "shape": list(case.x.shape),
        "bytes": case.bytes_moved,
        "seconds": seconds,
        "limits": rates,
        "error": errors,
        "memory": memory,
    }
    if alone is not None:
        found["loss_alone"] = alone["median"]
    return found | judged(operation, found, case)


def judged(operation: Operation, row: dict[str, Any], case: Case) -> dict[str, Any]:
    """What follows from the times: the roof, our share of it, the ratios, and whether the aims are met."""
    ours, rates = row["seconds"][OURS]["median"], row["limits"]
    memory = case.bytes_moved / rates["copy" if "copy" in rates else "read"]
    arithmetic = case.x.size * (
        (operation.exponentials / rates["exp"] if operation.exponentials else 0.0)
        + (operation.logarithms / rates["log"] if operation.logarithms else 0.0)
    )
    share = max(memory, arithmetic) / ours
    times = {name: value["median"] / ours for name, value in row["seconds"].items() if name != OURS}
    found: dict[str, Any] = {
        "roof": {"memory": memory, "arithmetic": arithmetic},
        "share": share,
        "bytes_per_second": case.bytes_moved / ours,
        "times_faster_than": times,
        "target": operation.target_at(row["k"]),
    }
    if found["target"] is not None:
        found["met"] = share >= found["target"]
    if operation.beside_loss:
        found["target_times_loss"] = operations.SCORE_TIMES_CE
        found["times_loss"] = ours / row["loss_alone"]
        found["met"] = found["times_loss"] <= operations.SCORE_TIMES_CE
    found["peers_met"] = {
        name: times[name] >= aim
        for name, aim in AIMS.items()
        if name in times and (name != "scipy" or operation.formula in LOG_SOFTMAX)
    }
    return found


def bounds_of(operation: Operation, case: Case, limits: Limits) -> dict[str, Call]:
    """The limits that bear on an operation; each call returns the work done: bytes or results."""
    bounds: dict[str, Call] = {}
    if case.writes_map:
        spare = np.zeros_like(case.x)
        bounds["copy"] = lambda: limits.copy(case.x, spare)
    else:
        bounds["read"] = lambda: limits.read([a for a in case.operands if a.size == case.x.size])
    if operation.exponentials:
        bounds["exp"] = lambda: limits.exponentials(case.x.dtype == np.float64)
    if operation.logarithms:
        bounds["log"] = limits.logarithms
    return bounds


def interleaved(
    calls: dict[str, Call], rounds: int, budget: float, memory: dict[str, float] | None = None
) -> dict[str, dict[str, float]]:
    """Seconds of each: median, lowest and how often timed.

    One that has used its budget of seconds sits out, so that slow peers do not set the length of the run; ours
    is timed `LEAST` times all the same. The growth of memory is noted in the first round.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds):
        for name, call in calls.items():
            if len(times[name]) >= (LEAST if name == OURS else 1) and sum(times[name]) > budget:
                continue
            before = resident() if memory is not None and turn == 0 else None
            begun = time.perf_counter()
            result = call()
            times[name].append(time.perf_counter() - begun)
            if before is not None and memory is not None:
                memory[name] = max(0.0, peak() - before)
            del result
    return {name: {"median": statistics.median(t), "lowest": min(t), "rounds": len(t)} for name, t in times.items()}


# --- memory: what the kernel says of this process -------------------------------------------------


def resident() -> float | None:
    """Bytes in memory now, from where `peak` counts; None where the kernel does not tell."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
        return _status("VmRSS")
    except OSError:
        return None


def peak() -> float:
    """The most bytes in memory since `resident` was called."""
    return _status("VmHWM")


def _status(name: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return 1024.0 * int(line.split()[1])
    raise OSError(f"/proc/self/status has no {name}")
