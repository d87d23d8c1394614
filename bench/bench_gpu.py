"""Measure every operation on a GPU beside its peers and the copy's bandwidth, print the tables, keep the JSON.

    python bench/bench_gpu.py                      what has a target first: float32 and bfloat16, seven k
    python bench/bench_gpu.py --full               sixteen k, float16 and float64 too, more rounds
    python bench/bench_gpu.py --only KL --classes 1024 --peers cupy
    python bench/bench_gpu.py --budget-seconds 500 --out gpu.json; python bench/bench_gpu.py --resume gpu.json
    python bench/report.py bench/results/gpu/FILE  print a result again; --markdown, --plots

All that is compared is timed in turn within one loop by CUDA events around single calls, each with a cold cache. The
result is written after every cell, so that nothing is lost when the time is up; a cell that fails is noted in it.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import functools
import importlib.metadata
import json
import math
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

import data
import entrokern as ek
import gpu_peers
import machine
import operations
import report
from data import Case
from operations import Operation
from report import OURS

RESULTS = Path(__file__).resolve().parent / "results" / "gpu"
Result = dict[str, Any]
Call = Callable[[], Any]

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
NO_GPU = 3  # the exit code
LEAST = 5  # rounds in which ours is timed, whatever they take


@dataclass(frozen=True)
class Effort:
    """How much a cell may take: `budget` is in seconds, for one peer or limit."""

    megabytes: float = 1000.0
    rounds: int = 9
    budget: float = 0.2
    peers: tuple[str, ...] = ()


# --- the device -----------------------------------------------------------------------------------

READ = r"""
extern "C" __global__ void __launch_bounds__(512) read_all(const uint4 *x, long long tiles, unsigned *never) {
    unsigned folded = 0;
    for (long long tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        uint4 v[8];
#pragma unroll
        for (int i = 0; i < 8; ++i) v[i] = x[(tile * 8 + i) * 512 + threadIdx.x];
#pragma unroll
        for (int i = 0; i < 8; ++i) folded ^= v[i].x ^ v[i].y ^ v[i].z ^ v[i].w;
    }
    if (folded == 0x9e3779b9) *never = folded;  // or the loads would be left out
}
"""
TILE = 8 * 512 * 16  # bytes
BLOCKS = 4  # of a multiprocessor: all the threads it has
FLUSHED = 8  # times the size of the L2 cache: long enough, too, for the host to be ahead of the device


class Device:
    """The GPU: its arrays, its clock and its limits. Nothing else here asks CuPy for more than arrays."""

    def __init__(self, megabytes: float) -> None:
        import cupy

        self._cp = cupy
        self._attributes = cupy.cuda.Device().attributes
        self._begin, self._end = cupy.cuda.Event(), cupy.cuda.Event()
        self._read = cupy.RawKernel(READ, "read_all")
        self._never = cupy.zeros(1, cupy.uint32)
        drawn = np.random.default_rng(0).integers(0, 256, TILE * 16, np.uint8)
        self._source = self.tiled(drawn, max(1, round(megabytes * 1e6 / drawn.size)))
        self._target = cupy.empty_like(self._source)
        self._scratch = self.tiled(drawn, -(-FLUSHED * self._attributes["L2CacheSize"] // drawn.size))
        begun = time.perf_counter()
        while time.perf_counter() - begun < 0.5:  # clocks rise
            self.copy()
            self.synchronize()

    def describe(self) -> dict[str, Any]:
        cuda, runtime = self._cp.cuda, self._cp.cuda.runtime
        return {
            "name": gpu_name(),
            "compute_capability": cuda.Device().compute_capability,
            "multiprocessors": self._attributes["MultiProcessorCount"],
            "memory": cuda.Device().mem_info[1],
            "L2": self._attributes["L2CacheSize"],
            "driver": driver(),
            "driver_cuda": runtime.driverGetVersion(),
            "runtime_cuda": runtime.runtimeGetVersion(),
            "nvrtc": list(cuda.nvrtc.getVersion()),
        }

    # --- arrays

    def output(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
        """Filled with what is NaN in every type: memory that is used again may hold the right results."""
        result = self._cp.empty(shape, dtype)
        result.reshape(-1).view(np.uint8).fill(0xFF)
        return result

    def tiled(self, host: np.ndarray[Any, Any], repeats: int) -> Any:
        """So many copies of `host` along the first axis. Only bytes are moved: no dtype needs to be known."""
        result = self._cp.empty((repeats * host.shape[0], *host.shape[1:]), host.dtype)
        there, period = result.reshape(-1).view(np.uint8), host.nbytes
        there[:period] = self._cp.asarray(np.ascontiguousarray(host).reshape(-1).view(np.uint8))
        done = period
        while done < there.size:
            more = min(done, there.size - done)
            there[done : done + more] = there[:more]
            done += more
        return result

    # --- time

    def seconds(self, call: Call) -> float:
        """Of one call that finds nothing in the L2 cache.

        The cache is flushed by reading: what a write leaves there would be written back at the call's expense.
        """
        self._read_all(self._scratch)
        self._begin.record()
        result = call()
        self._end.record()
        self._end.synchronize()
        del result
        return 1e-3 * self._cp.cuda.get_elapsed_time(self._begin, self._end)

    def synchronize(self) -> None:
        self._cp.cuda.runtime.deviceSynchronize()

    # --- limits: each returns the bytes moved

    def copy(self) -> int:
        self._target.data.copy_from_device_async(self._source.data, self._source.nbytes)
        return 2 * self._source.nbytes

    def read(self) -> int:
        self._read_all(self._source)
        return self._source.nbytes

    def _read_all(self, array: Any) -> None:
        blocks = BLOCKS * self._attributes["MultiProcessorCount"]
        self._read((blocks,), (512,), (array, np.int64(array.nbytes // TILE), self._never))

    def free(self) -> None:
        """Give memory back that CuPy and PyTorch keep from each other."""
        self._cp.get_default_memory_pool().free_all_blocks()
        if "torch" in sys.modules:
            sys.modules["torch"].cuda.empty_cache()


class Lost(RuntimeError):
    """The device answers no more: after an illegal access, nothing in this process can use it."""


def check(device: Device) -> None:
    try:
        device.synchronize()
    except Exception as error:
        raise Lost(words(error)) from error


def words(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:300]


def why_not() -> str | None:
    """Why there is no GPU to measure on, if so."""
    try:
        import cupy
    except ImportError as error:
        return f"CuPy cannot be imported ({words(error)})"
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        return f"CuPy finds no GPU ({error})"
    return None if count else "CuPy finds no GPU"


def gpu_name() -> str:
    import cupy

    name: bytes = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)["name"]
    return name.decode()


def driver() -> str | None:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.split("\n")[0].strip() or None


# --- cells ----------------------------------------------------------------------------------------

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


# --- the whole run --------------------------------------------------------------------------------


def measured(device: Device, settings: argparse.Namespace, path: Path, begun: float) -> Result:
    """Everything, cell by cell, as far as the time goes (that has run since `begun`); `path` is written after each."""
    effort = effort_of(settings)
    result = resumed(settings, device) or {
        "date": datetime.date.today().isoformat(),
        "machine": described(device),
        "settings": {"megabytes": effort.megabytes, "rounds": effort.rounds, "budget": effort.budget},
        "peers": list(effort.peers),
        "aims": AIMS,
        "small_target": SMALL_CALL,
        "rows": [],
    }
    print(heading(result))
    if "small" not in result:
        result["small"] = {}
        save(result, path)  # as below
        result["small"] = small_call(device, effort.peers)
        print(f"{small_text(result)}\n")
    print(columns(result["peers"]), flush=True)
    done = {(row["operation"], row["dtype"], row["k"]) for row in result["rows"]}
    asked = cells(settings.only, classes_of(settings), dtypes_of(settings))
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
            result["rows"][-1] = row(device, cell, effort)
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


# --- what is printed ------------------------------------------------------------------------------

WIDTHS = {
    "operation": 28, "dtype": 8, "k": 6, "ms": 8, "GB/s": 5, "copy": 5, "read": 5, "share": 5, "target": 9, "": 4,
    "error": 6, "first s": 7,
}  # fmt: skip


def columns(peers: list[str]) -> str:
    """Names of the columns; copy and read are the limits, in GB/s, and the first call compiles."""
    return _aligned([*WIDTHS, *peers])


def line(row: Result, peers: list[str]) -> str:
    """Ours, then each peer: how many times faster we are than it, and its error."""
    if "seconds" not in row:
        return f"{_aligned([row['operation'], row['dtype'], str(row['k'])])} FAILED: {row['failed'][OURS]}"
    rates = (row["bytes_per_second"], row["limits"]["copy"], row["limits"]["read"])
    ours = [f"{1e3 * row['seconds'][OURS]['median']:.3f}", *(f"{rate / 1e9:.0f}" for rate in rates)]
    ours += [f"{row['share']:.2f}", report.target(row), report.verdict(row), f"{row['error'][OURS]:.0e}"]
    ours += [f"{row['first'][OURS]:.2f}"]
    return _aligned([row["operation"], row["dtype"], str(row["k"]), *ours, *(beside(row, peer) for peer in peers)])


def _aligned(cells: list[str]) -> str:
    widths = [*WIDTHS.values()] + [13] * len(cells)
    first, *rest = zip(cells, widths, strict=False)
    return first[0].ljust(first[1]) + "".join(" " + text.rjust(width) for text, width in rest)


def beside(row: Result, peer: str) -> str:
    """How many times faster we are than the peer, ✗ where that is less than is aimed at; its error."""
    if peer in row["failed"]:
        return "failed"
    if peer not in row["times_faster_than"]:
        return "–"
    mark = "" if row["peers_met"].get(peer, True) else "✗"
    off = f" {row['error'][peer]:.0e}" if peer in row["error"] else ""
    return f"{report.ratio(row['times_faster_than'][peer])}×{mark}{off}"


def heading(result: Result) -> str:
    about, settings = result["machine"], result["settings"]
    gpu = about["gpu"]
    return (
        f"{gpu['name']}, {gpu['memory'] / 1e9:.0f} GB, {gpu['multiprocessors']} multiprocessors, "
        f"L2 {gpu['L2'] / 1e6:.0f} MB, driver {gpu['driver']}; {about['cpu']}, {about['system']}\n"
        f"{report.versions(result)}; {result['date']}\n"
        f"{settings['megabytes']:g} MB of operands, {settings['rounds']} rounds\n"
    )


def tables(result: Result) -> list[list[list[str]]]:
    """Operations × k: our share, then beside each peer, then our error."""
    rows = [row for row in result["rows"] if "seconds" in row]

    def matrix(title: str, cell: Callable[[Result], str]) -> list[list[str]]:
        of = report.grouped({"rows": rows})
        classes = sorted({row["k"] for row in rows}, reverse=True)
        body = [[name, *(cell(by_k[k]) if k in by_k else "–" for k in classes)] for name, by_k in of.items()]
        body = [cells for cells in body if set(cells[1:]) != {"–"}]
        return [[title, *(f"k = {k}" if k > 1 else "elements" for k in classes)], *body]

    found = [matrix("share of the copy's bandwidth (target)", report.share_cell)]
    for peer in result["peers"]:
        aim = f" (aim: {result['aims'][peer]})" if peer in result["aims"] else ""
        found.append(matrix(f"times faster than {peer}{aim}, its error", functools.partial(beside, peer=peer)))
    found.append(matrix("our error", lambda row: f"{row['error'][OURS]:.0e}"))
    return [table for table in found if len(table) > 1]


def padded(table: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return "\n".join(
        cells[0].ljust(widths[0]) + "".join("  " + c.rjust(w) for c, w in zip(cells[1:], widths[1:], strict=True))
        for cells in table
    )


def closing(result: Result) -> list[str]:
    """What is said of the whole run: what is met and what is not, losses included."""
    whole = result | {"rows": [row for row in result["rows"] if "seconds" in row]}
    lines = [
        "limits, median over the rows (lowest to highest): " + report.limits_text(whole) if whole["rows"] else "",
        report.targets_text(whole),
        missed_text(whole),
        report.losses_text(whole),
        small_text(result),
        first_text(whole),
        wrong_text(whole),
        failed_text(result),
        f"not measured, the time was up: {result['left_out']} cells" if result.get("left_out") else "",
    ]
    return [line for line in lines if line]


def missed_text(result: Result) -> str:
    missed: dict[str, list[str]] = {}
    for row in result["rows"]:
        if row.get("met") is False:
            missed.setdefault(f"{report.named(row)}:", []).append(f"{row['k']} ({report.share_cell(row)})")
        for peer in [peer for peer, met in row["peers_met"].items() if not met]:
            times = report.ratio(row["times_faster_than"][peer])
            missed.setdefault(f"{report.named(row)} beside {peer}:", []).append(f"{row['k']} ({times}×)")
    return "missed, at k: " + ("; ".join(f"{what} {', '.join(at)}" for what, at in missed.items()) or "nothing")


def small_text(result: Result) -> str:
    spans, small = [], result.get("small", {})
    for who, found in small.items():
        both = "failed" if "failed" in found else f"{1e6 * found['returns']:.1f} µs ({1e6 * found['done']:.1f})"
        spans.append(f"{who} {both}")
    if "returns" not in small.get(OURS, {}):
        return ", ".join(spans)
    met = "met" if small[OURS]["returns"] <= result["small_target"] else "NOT met"
    aim = f"target of {1e6 * result['small_target']:.0f} µs {met}"
    return f"a call on (32, 10) returns after (its result is there after): {', '.join(spans)}; {aim}"


def first_text(result: Result) -> str:
    times: dict[str, list[float]] = {}
    for row in result["rows"]:
        for who, seconds in row["first"].items():
            times.setdefault(who, []).append(seconds)
    spans = [f"{who} {statistics.median(t):.2f} s (at most {max(t):.2f})" for who, t in times.items()]
    return "first call of a cell, which compiles what is new, median: " + ", ".join(spans) if spans else ""


def wrong_text(result: Result) -> str:
    wrong = [
        f"{report.named(row)}, k = {row['k']} ({row['error'][OURS]:.0e})"
        for row in result["rows"]
        if not row["error"][OURS] < WRONG
    ]
    return f"our error is above {WRONG:g} in: {'; '.join(wrong) or 'none'}"


def failed_text(result: Result) -> str:
    failed = [
        f"{report.named(row)}, k = {row['k']}, {who} ({why})"
        for row in result["rows"]
        for who, why in row["failed"].items()
    ]
    return f"failed: {'; '.join(failed) or 'nothing'}"


def text(result: Result) -> str:
    lines = "\n".join([columns(result["peers"]), *(line(row, result["peers"]) for row in result["rows"])])
    return "\n".join([heading(result), lines, "", summary(result, tables(result))])


def summary(result: Result, tables: list[list[list[str]]]) -> str:
    return "\n".join([*(padded(table) + "\n" for table in tables), *closing(result)])


def markdown(result: Result) -> str:
    about, settings = result["machine"], result["settings"]
    parts = [
        f"{settings['megabytes']:g} MB of operands; ✓ the target is met, ✗ it is not.",
        *map(report.table, tables(result)),
        "\n".join(map(report.sentence, closing(result))),
        f"{about['gpu']['name']}, driver {about['gpu']['driver']}; {report.versions(result)}; {result['date']}.",
    ]
    return "\n\n".join(part.rstrip("\n") for part in parts) + "\n"


# --- the command ----------------------------------------------------------------------------------


def settings_of(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--only", default="", metavar="TEXT", help="operations whose name contains this")
    parser.add_argument("--classes", type=int, nargs="+", metavar="K")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES + MORE_DTYPES)
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
    if not cells(settings.only, classes_of(settings), dtypes_of(settings)):
        names = ", ".join(dict.fromkeys(operation.name for operation in operations.OPERATIONS))
        parser.error(f"no operation has {settings.only!r} in its name; there are: {names}")
    return settings


def classes_of(settings: argparse.Namespace) -> tuple[int, ...]:
    return tuple(settings.classes or CLASSES + (MORE_CLASSES if settings.full else ()))


def dtypes_of(settings: argparse.Namespace) -> tuple[str, ...]:
    return tuple(settings.dtypes or DTYPES + (MORE_DTYPES if settings.full else ()))


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
            os.environ["CUPY_CACHE_DIR"] = folder
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
