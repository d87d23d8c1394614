"""Cells of the GPU's benchmark, an operation with a dtype and a number of classes each: data, peers, times, targets.

All that is compared is timed in turn within one loop by CUDA events around single calls, each with a cold cache.
"""

from __future__ import annotations

import functools
import math
import statistics
import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

import data
import entrokern as ek
import gpu_peers
import operations
from data import Case
from gpu_device import Call, Device, check, words
from operations import Operation
from report import OURS

Result = dict[str, Any]

# What matters most comes first, for when the time is up.
CLASSES = (8192, 1024, 10, 131_072, 256, 4096, 32_768)
MORE_CLASSES = (262_144, 65_536, 16_384, 1000, 100, 64, 32, 3, 2)
DTYPES = ("float32", "bfloat16")
MORE_DTYPES = ("float16", "float64")

# Of float32 and bfloat16 on an H100: share of the copy's bandwidth, from a number of classes on.
LOGITS = ((8192, 0.92), (4096, 0.85), (1024, 0.75), (10, 0.60))
TARGETS = {
    "CE": LOGITS,
    "CE, peaked": LOGITS,
    "CE + gradient": ((4096, 0.88),),
    "CE + gradient into x": ((4096, 0.88),),
    "CE, dense target": ((4096, 0.85),),
    "KL, logits": ((4096, 0.85),),
    "KL, probs": ((4096, 0.90),),
    "BCE mean": ((1, 0.88),),
    "BCE mean, uint8 targets": ((1, 0.88),),
}
SCORE_TIMES_CE = 1.15
AIMS = {"cupy": 6, "torch.compile": 1, "liger": 1}  # so many times faster than a peer
SMALL_CALL = 20e-6  # seconds
WRONG = 0.01  # a relative error that no rounding explains, but of a gradient that is too small for float16

PERIOD = 1 << 21  # elements that are drawn; the device repeats them
PICTURE = 512 * 512  # pixels
LEAST = 5  # rounds in which ours is timed, whatever they take


@dataclass(frozen=True)
class Effort:
    """How much a cell may take: `budget` is in seconds, for one peer or limit."""

    megabytes: float = 1000.0
    rounds: int = 9
    budget: float = 0.2
    peers: tuple[str, ...] = ()


# --- which --------------------------------------------------------------------------------------

Cell = tuple[Operation, str, int]


def cells(only: str, classes: tuple[int, ...], dtypes: tuple[str, ...]) -> list[Cell]:
    """Every operation of the table with these dtypes and numbers of classes; what has a target first, by k."""
    by_name: dict[str, Operation] = {}
    for operation in operations.OPERATIONS:
        by_name.setdefault(operation.name, operation)
    found = [
        (operation, dtype, k)
        for operation in by_name.values()
        for dtype in dtypes
        for k in (classes if operation.classes == operations.CLASSES else operation.classes)
        if only in operation.name
    ]

    def importance(cell: Cell) -> tuple[Any, ...]:
        operation, dtype, k = cell
        aimed = operation.name in TARGETS or operation.beside_loss
        return dtype not in DTYPES, not aimed, classes.index(k) if k in classes else 0

    return sorted(found, key=importance)


def prepared(device: Device, cell: Cell, megabytes: float) -> tuple[Case, Any, int]:
    """The case on the device, its operands of about `megabytes` together, what its first rows must give, its period.

    A few million elements are drawn, the device repeats them. So the mean of all is the mean of what was drawn.
    """
    operation, dtype, k = cell
    rows = PICTURE if operation.case is data.pictures else max(1, PERIOD // k)
    host = operation.case(rows, k, data.dtype_of(dtype))
    size = sum(array.nbytes for array in host.operands if array.size == host.x.size)
    repeats = max(1, round(megabytes * 1e6 / size))
    true = operations.expected(operation, host)
    if operation.case is data.binary_gradient:
        true = (true[0], true[1] / repeats)

    def output(array: Any) -> Any:
        return None if array is None else device.output((repeats * array.shape[0], *array.shape[1:]), array.dtype)

    x = device.tiled(host.x, repeats)
    y = None if host.y is None else device.tiled(host.y, repeats)
    grad = x if host.grad is host.x else output(host.grad)
    return replace(host, x=x, y=y, out=output(host.out), grad=grad), true, len(host.x)


# --- one of them --------------------------------------------------------------------------------


def row(device: Device, cell: Cell, effort: Effort) -> Result:
    """All about one cell. What a peer cannot do is noted; what ours cannot do is raised."""
    operation, dtype, k = cell
    case, true, period = prepared(device, cell, effort.megabytes)
    theirs = replace(case, x=case.x.copy()) if case.grad is case.x else case  # ours writes over its operand
    found: Result = {
        "operation": operation.name,
        "formula": operation.formula,
        "dtype": dtype,
        "k": k,
        "n": case.x.size // k,
        "shape": list(case.x.shape),
        "first": {},
        "error": {},
        "failed": {},
    }
    calls: dict[str, Call] = {}
    for who in (OURS, *effort.peers):
        try:
            begun = time.perf_counter()
            call: Call | None = functools.partial(operation.ours, case)
            if who != OURS:
                call = gpu_peers.call_of(who, operation.formula, theirs)
            if call is None:
                continue
            results = call()  # not timed with the others: it compiles, and what comes out is what is checked
            device.synchronize()
            found["first"][who] = time.perf_counter() - begun
            if (off := error(operation, results, true, period)) is not None:
                found["error"][who] = off
            if who == OURS:
                found["bytes"] = sum(array.nbytes for array in (*case.operands, *results))
            calls[who] = call
            del results
        except Exception as failure:
            if who == OURS:
                raise
            check(device)
            found["failed"][who] = words(failure)
    if operation.beside_loss:
        calls["loss alone"] = functools.partial(operations.cross_entropy, case)
        calls["loss alone"]()
    bounds: dict[str, Call] = {"copy": device.copy, "read": device.read}
    work = {name: bound() for name, bound in bounds.items()}
    seconds = interleaved(device, calls | bounds, effort)
    found["limits"] = {name: work[name] / seconds.pop(name)["median"] for name in bounds}
    if operation.beside_loss:
        found["loss_alone"] = seconds.pop("loss alone")["median"]
    found["seconds"] = seconds
    return found | judged(operation, found)


def interleaved(device: Device, calls: dict[str, Call], effort: Effort) -> dict[str, dict[str, float]]:
    """Seconds of each, timed in turn. One that has used its budget sits out; ours is timed `LEAST` times."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(effort.rounds):
        for name, call in calls.items():
            if len(times[name]) < (LEAST if name == OURS else 1) or sum(times[name]) <= effort.budget:
                times[name].append(device.seconds(call))
    return {name: {"median": statistics.median(t), "lowest": min(t), "rounds": len(t)} for name, t in times.items()}


def judged(operation: Operation, row: Result) -> Result:
    """What follows from the times: our share of the copy's bandwidth, the ratios, and whether the aims are met."""
    ours = row["seconds"][OURS]["median"]
    times = {name: value["median"] / ours for name, value in row["seconds"].items() if name != OURS}
    found: Result = {
        "bytes_per_second": row["bytes"] / ours,
        "share": row["bytes"] / ours / row["limits"]["copy"],
        "target": target_at(operation.name, row["dtype"], row["k"]),
        "times_faster_than": times,
        "peers_met": {name: times[name] >= aim for name, aim in AIMS.items() if name in times},
    }
    right = row["error"][OURS] < WRONG  # or its time counts for nothing
    if found["target"] is not None:
        found["met"] = right and found["share"] >= found["target"]
    if operation.beside_loss:
        found["times_loss"], found["target_times_loss"] = ours / row["loss_alone"], SCORE_TIMES_CE
        found["met"] = right and found["times_loss"] <= SCORE_TIMES_CE
    return found


def target_at(name: str, dtype: str, k: int) -> float | None:
    if dtype not in DTYPES:
        return None
    return next((share for least, share in TARGETS.get(name, ()) if k >= least), None)


def error(operation: Operation, found: Any, true: Any, period: int) -> float | None:
    """As on the CPU, of the first rows of the first and of the last period; None where no result is told.

    What is not finite must be so in both: small probabilities are 0 in float16, and a divergence infinite.
    """
    pairs = [(one, np.asarray(exact)) for one, exact in zip(found, true, strict=True) if one is not None]
    worst = 0.0
    for end in (False, True):
        parts, exacts = [], []
        for one, exact in pairs:
            first = len(one) - period if one.ndim and end else 0
            part = on_host(one[first : first + len(exact)] if one.ndim else one)
            finite = np.isfinite(exact)
            if not np.array_equal(np.isfinite(part), finite) or not np.array_equal(part[~finite], exact[~finite]):
                return math.inf
            parts.append(np.where(finite, part, 0))
            exacts.append(np.where(finite, exact, 0))
        worst = max(worst, operations.error(operation, tuple(parts), tuple(exacts)))
    return worst if pairs else None


def on_host(array: Any) -> np.ndarray[Any, Any]:
    """What CuPy's array or PyTorch's tensor holds, in float64."""
    return (array.get() if hasattr(array, "get") else array.cpu().double().numpy()).astype(np.float64)


# --- a small call -------------------------------------------------------------------------------


def small_call(device: Device, peers: tuple[str, ...], repeats: int = 1000) -> Result:
    """Seconds of one call on (32, 10), a number for each row: until it returns, and until the result is there."""
    host = data.labelled(32, 10, np.dtype(np.float32))
    case = replace(host, x=device.tiled(host.x, 1), y=device.tiled(host.y, 1), out=None)
    calls: dict[str, Call] = {OURS: lambda: ek.cross_entropy(case.x, case.y, reduction="none")}
    found: Result = {}
    for who in (OURS, *peers):
        try:
            call = calls[OURS] if who == OURS else gpu_peers.call_of(who, "ce", case)
            if call is None:
                continue
            times: dict[bool, list[float]] = {False: [], True: []}
            for turn in range(-20, repeats):
                for waits in times:
                    device.synchronize()
                    begun = time.perf_counter()
                    call()
                    if waits:
                        device.synchronize()
                    if turn >= 0:
                        times[waits].append(time.perf_counter() - begun)
            found[who] = {"returns": statistics.median(times[False]), "done": statistics.median(times[True])}
        except Exception as failure:
            check(device)
            found[who] = {"failed": words(failure)}
    return found
