"""Large arrays, for `entrokern bench` and the demo: our time beside the memory's limit and NumPy's time."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from . import _threads
from ._arrays import Array
from ._dispatch import use_backend
from ._report import table
from .divergences import kl_divergence
from .entropies import entropy
from .losses import binary_cross_entropy, cross_entropy

CLASSES = (10, 100, 1000, 32_000)


@dataclass(frozen=True)
class Arrays:
    """Operands, and where our results go."""

    x: Array
    y: Array | None
    out: Array
    grad: Array | None = None

    @property
    def size(self) -> int:
        """Bytes, each array once."""
        return sum(array.nbytes for array in (self.x, self.y, self.out, self.grad) if array is not None)

    def head(self, rows: int) -> Arrays:
        y, grad = (None if array is None else array[:rows] for array in (self.y, self.grad))
        return Arrays(self.x[:rows], y, self.out[:rows], grad)


class Work(NamedTuple):
    """A call to time: how its operands are made, ours, and NumPy as people write it."""

    name: str
    arrays: Callable[[int, int], Arrays]
    ours: Callable[[Arrays], object]
    numpys: Callable[[Arrays], Array]


class Measured(NamedTuple):
    """Median seconds, and the largest relative errors on some rows."""

    limit: float
    ours: float
    numpys: float
    share: float
    error: float
    numpys_error: float


# --- what is reported -----------------------------------------------------------------------------


def bench(megabytes: float, progress: Callable[[int, int, str], None]) -> Iterator[str]:
    """Lines of a table: every work and k, on operands of so many megabytes."""
    cells = [(work, k) for work in WORKS for k in CLASSES]
    rows = [["", "k", "time", "GB/s", "of the limit", "NumPy takes", "error", "NumPy's"]]
    with Memory() as memory:
        for done, (work, k) in enumerate(cells):
            progress(done, len(cells), f"{work.name}, k = {k}")
            arrays = _arrays(work, k, megabytes)
            found = _measured(work, arrays, 7, memory)
            rows.append(
                [
                    work.name,
                    f"{k}",
                    f"{1e3 * found.ours:.2f} ms",
                    f"{arrays.size / found.ours / 1e9:.1f}",
                    f"{100 * found.share:.0f} %",
                    f"{found.numpys / found.ours:.1f} ×",
                    f"{found.error:.0e}",
                    f"{found.numpys_error:.0e}",
                ]
            )
    yield f"float32, {megabytes:g} MB of operands; threads: {_threads.num_threads()}"
    yield from table(rows)
    yield "Medians of interleaved runs. The limit is the time of NumPy's max over the operands on all threads,"
    yield "or of a copy where a gradient is written. Errors are the largest relative ones of some rows' losses."


def large_array(quick: bool) -> Iterator[str]:
    """Lines about the cross-entropy of every row of two large arrays of float32 logits."""
    size, repeats = (16 << 20, 5) if quick else (256 << 20, 7)
    cached = " (which may fit in the cache)" if quick else ""
    yield f"Large arrays: cross-entropy of each row of {size >> 20} MiB of float32 logits{cached}"
    with Memory() as memory:
        for k in (1000, 10):
            arrays = _arrays(WORKS[0], k, size / 1e6)
            found = _measured(WORKS[0], arrays, repeats, memory)
            rows = [
                ["", "time", "GB/s", "compared", "error"],
                [f"read limit: NumPy's max, {_threads.num_threads()} threads", *_rate(found.limit, arrays.x.nbytes)],
                ["entrokern.cross_entropy", *_rate(found.ours, arrays.size)],
                ["NumPy: log of the sum of exp", *_rate(found.numpys, arrays.size)],
            ]
            rows[1] += ["", ""]
            rows[2] += [f"{100 * found.share:.0f} % of the limit", f"{found.error:.0e}"]
            rows[3] += [f"{found.numpys / found.ours:.1f} × our time", f"{found.numpys_error:.0e}"]
            yield f"{len(arrays.x):,} rows of {k:,} classes"
            yield from table(rows)
            yield ""
    yield "Medians of interleaved runs. Bytes counted are those of the logits, the labels and the losses,"
    yield "each once; of the limit, the logits alone. Errors are relative, on some rows, against float64."


def _rate(seconds: float, size: int) -> list[str]:
    return [f"{1e3 * seconds:.1f} ms", f"{size / seconds / 1e9:.2f}"]


# --- how it is measured ---------------------------------------------------------------------------


class Memory:
    """The machine's memory, used by NumPy on all threads: what no call can beat."""

    def __init__(self) -> None:
        self._threads = _threads.num_threads()

    def __enter__(self) -> Memory:
        self._pool = ThreadPoolExecutor(self._threads)
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()

    def read(self, array: Array) -> None:
        list(self._pool.map(np.max, self._parts(array)))

    def copy(self, source: Array, target: Array) -> None:
        list(self._pool.map(np.copyto, self._parts(target), self._parts(source)))

    def _parts(self, array: Array) -> list[Array]:
        return np.array_split(array.reshape(-1), self._threads)


def _arrays(work: Work, k: int, megabytes: float) -> Arrays:
    """Operands of x's shape take so much together."""
    y = work.arrays(2, 2).y
    operands = 1 if y is None or y.ndim == 1 else 2
    return work.arrays(max(1, int(megabytes * 1e6) // (4 * k * operands)), k)


def _measured(work: Work, arrays: Arrays, repeats: int, memory: Memory) -> Measured:
    """All ways in turn on the same arrays; NumPy sits out when it has taken half a second."""
    x, y, grad = arrays.x, arrays.y, arrays.grad

    def limit() -> None:
        if grad is not None:
            memory.copy(x, grad)
        else:
            memory.read(x)
            if y is not None and y.shape == x.shape:
                memory.read(y)

    ways: list[Callable[[], object]] = [limit, lambda: work.ours(arrays), lambda: work.numpys(arrays)]
    times: list[list[float]] = [[], [], []]
    for way in ways[:2]:
        way()
    for _ in range(repeats):
        for way, found in zip(ways, times, strict=True):
            if way is not ways[2] or sum(found) < 0.5:
                begun = time.perf_counter()
                way()
                found.append(time.perf_counter() - begun)
    bound, ours, numpys = map(statistics.median, times)
    moved = sum(array.nbytes for array in (x, y, grad) if array is not None and array.shape == x.shape)
    return Measured(bound, ours, numpys, bound * arrays.size / moved / ours, *_errors(work, arrays))


def _errors(work: Work, arrays: Arrays) -> tuple[float, float]:
    """The largest relative errors, ours and NumPy's, on some rows."""
    few = arrays.head(min(1000, max(1, 2**20 // arrays.x.shape[1])))
    y = few.y if few.y is None or few.y.ndim == 1 else few.y.astype(np.float64)
    wide = replace(few, x=few.x.astype(np.float64), y=y, out=np.empty(len(few.x)), grad=None)
    with use_backend("reference"):
        work.ours(wide)
    work.ours(few)
    ours, numpys = (float(np.max(np.abs(found - wide.out) / wide.out)) for found in (few.out, work.numpys(few)))
    return ours, numpys


# --- what is measured -----------------------------------------------------------------------------


def _normal(n: int, k: int, seed: int = 0) -> Array:
    drawn = np.random.default_rng(seed).standard_normal(min(n * k, 1 << 22), np.float32)
    return np.resize(drawn, (n, k))


def _probabilities(n: int, k: int, seed: int = 0) -> Array:
    p = np.exp(_normal(n, k, seed))
    p /= p.sum(axis=1, keepdims=True)
    return p


def _out(n: int) -> Array:
    return np.zeros(n, np.float32)


def _labelled(n: int, k: int) -> Arrays:
    return Arrays(_normal(n, k), np.random.default_rng(1).integers(0, k, n), _out(n))


def _labelled_gradient(n: int, k: int) -> Arrays:
    arrays = _labelled(n, k)
    return replace(arrays, grad=np.zeros_like(arrays.x))


def _log_softmax(x: Array) -> Array:
    shifted = x - x.max(axis=1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return shifted


def _numpy_cross_entropy(a: Arrays) -> Array:
    assert a.y is not None
    shifted = a.x - a.x.max(axis=1, keepdims=True)
    losses: Array = np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(len(a.y)), a.y]
    return losses


def _numpy_cross_entropy_gradient(a: Arrays) -> Array:
    assert a.y is not None
    rows = np.arange(len(a.y))
    log_p = _log_softmax(a.x)
    losses: Array = -log_p[rows, a.y]
    gradient = np.exp(log_p, out=log_p)
    gradient[rows, a.y] -= 1
    return losses


def _numpy_entropy(a: Arrays) -> Array:
    log_p = _log_softmax(a.x)
    values: Array = -(np.exp(log_p) * log_p).sum(axis=1)
    return values


def _numpy_divergence(a: Arrays) -> Array:
    assert a.y is not None
    values: Array = (a.x * np.log(a.x / a.y)).sum(axis=1)
    return values


def _numpy_binary(a: Arrays) -> Array:
    assert a.y is not None
    losses = np.maximum(a.x, 0) - a.x * a.y + np.log1p(np.exp(-np.abs(a.x)))
    total: Array = losses.sum(axis=1)
    return total


WORKS = (
    Work(
        "cross_entropy",
        _labelled,
        lambda a: cross_entropy(a.x, a.y, reduction="none", out=a.out),
        _numpy_cross_entropy,
    ),
    Work(
        "cross_entropy + gradient",
        _labelled_gradient,
        lambda a: cross_entropy(a.x, a.y, reduction="none", out=a.out, grad_out=a.grad),
        _numpy_cross_entropy_gradient,
    ),
    Work(
        "entropy of logits",
        lambda n, k: Arrays(_normal(n, k), None, _out(n)),
        lambda a: entropy(a.x, form="logits", out=a.out),
        _numpy_entropy,
    ),
    Work(
        "kl_divergence of probs",
        lambda n, k: Arrays(_probabilities(n, k), _probabilities(n, k, 1), _out(n)),
        lambda a: kl_divergence(a.x, a.y, out=a.out),
        _numpy_divergence,
    ),
    Work(
        "binary_cross_entropy rows",
        lambda n, k: Arrays(_normal(n, k), (_normal(n, k, 1) > 1).astype(np.float32), _out(n)),
        lambda a: binary_cross_entropy(a.x, a.y, axis=-1, reduction="none", out=a.out),
        _numpy_binary,
    ),
)
