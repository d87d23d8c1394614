"""One large array in the demo: the library's time beside this machine's read limit and SciPy's time."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from ._arrays import Array
from ._dispatch import use_backend
from ._report import table
from .losses import cross_entropy


def large_array(quick: bool) -> Iterator[str]:
    """Lines about the cross-entropy of every row of two large arrays of float32 logits."""
    size, repeats = (16 << 20, 5) if quick else (256 << 20, 7)
    cached = " (which may fit in the cache)" if quick else ""
    yield f"Large arrays: cross-entropy of each row of {size >> 20} MiB of float32 logits{cached}"
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    rng = np.random.default_rng(0)
    values = rng.standard_normal(size // 4, np.float32)
    with ThreadPoolExecutor(threads) as pool:
        for k in (1000, 10):
            x = values[: values.size // k * k].reshape(-1, k)
            y = rng.integers(0, k, len(x))
            yield f"{len(x):,} rows of {k:,} classes"
            yield from table(_compared(x, y, repeats, threads, pool))
            yield ""
    yield "Medians of interleaved runs. Bytes counted are those of the logits, the labels and the losses,"
    yield "each once; of the limit, the logits alone. Errors are relative, on 1000 rows, against float64."


def _compared(x: Array, y: Array, repeats: int, threads: int, pool: ThreadPoolExecutor) -> list[list[str]]:
    """A table: the read limit, the library and another way, timed in turn on the same array."""
    out = np.empty(len(x), np.float32)
    parts = np.array_split(x.reshape(-1), threads)
    about, other = _other_way()
    ways: list[tuple[str, Callable[[], object]]] = [
        (f"read limit: NumPy's max, {threads} threads", lambda: [*pool.map(np.max, parts)]),
        ("entrokern.cross_entropy", lambda: cross_entropy(x, y, reduction="none", out=out)),
        (about, lambda: other(x, y)),
    ]
    for _, way in ways:
        way()
    runs = [[_seconds(way) for _, way in ways] for _ in range(repeats)]
    limit, ours, theirs = (statistics.median(times) for times in zip(*runs, strict=True))
    moved = x.nbytes + y.nbytes + out.nbytes
    share = moved / ours / (x.nbytes / limit)
    sample, labels = x[:1000], y[:1000]
    results = [
        (limit, x.nbytes, "", ""),
        (ours, moved, f"{100 * share:.0f} % of the limit", _error(out[:1000], sample, labels)),
        (theirs, moved, f"{theirs / ours:.1f} × our time", _error(other(sample, labels), sample, labels)),
    ]
    rows = [["", "time", "GB/s", "compared", "error"]]
    for (name, _), (seconds, size, compared, error) in zip(ways, results, strict=True):
        rows.append([name, f"{1e3 * seconds:.1f} ms", f"{size / seconds / 1e9:.2f}", compared, error])
    return rows


def _seconds(way: Callable[[], object]) -> float:
    begun = time.perf_counter()
    way()
    return time.perf_counter() - begun


def _error(found: Array, x: Array, y: Array) -> str:
    """The largest relative error."""
    with use_backend("reference"):
        exact = cross_entropy(x.astype(np.float64), y, reduction="none")
    return f"{np.max(np.abs(found - exact) / exact):.0e}"


def _other_way() -> tuple[str, Callable[[Array, Array], Array]]:
    """How one does it without this library: with SciPy, else with NumPy alone."""
    try:
        from scipy.special import log_softmax
    except ImportError:
        return "NumPy: log of the sum of exp", _with_numpy
    return (
        "SciPy: log_softmax, then take",
        lambda x, y: -np.take_along_axis(log_softmax(x, axis=1), y[:, None], axis=1)[:, 0],
    )


def _with_numpy(x: Array, y: Array) -> Array:
    shifted = x - x.max(axis=1, keepdims=True)
    picked = np.take_along_axis(shifted, y[:, None], axis=1)[:, 0]
    losses: Array = np.log(np.exp(shifted).sum(axis=1)) - picked
    return losses
