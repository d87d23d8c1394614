"""Calls inside a user's ``@njit``: beside the loop that a user would write there, and beside the call from Python.

python bench/guest_njit.py                  rows one by one, and tables of 2 MB, float32, one thread
python bench/guest_njit.py --rounds 21
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

import numba

import entrokern as ek
import entrokern.numba

CLASSES = (10, 100, 1000)
ELEMENTS = 1 << 19
LOOP = "a loop of one's own"


@numba.njit
def naive(x, y, losses, gradient):
    """What a user would write: the largest logit, the sum, the loss and its gradient, of all rows."""
    n, k = x.shape
    for i in range(n):
        m = x[i, 0]
        for c in range(1, k):
            m = max(m, x[i, c])
        Z = np.float32(0.0)
        for c in range(k):
            Z += math.exp(x[i, c] - m)
        losses[i] = math.log(Z) + m - x[i, y[i]]
        if gradient is not None:
            for c in range(k):
                gradient[i, c] = math.exp(x[i, c] - m) / Z
            gradient[i, y[i]] -= np.float32(1.0)


@numba.njit
def by_rows(x, y, losses, gradient):
    for i in range(x.shape[0]):
        if gradient is None:
            losses[i] = ek.cross_entropy(x[i], y[i])
        else:
            losses[i] = ek.cross_entropy(x[i], y[i], grad_out=gradient[i])[0]


@numba.njit
def whole(x, y, losses, gradient):
    if gradient is None:
        ek.cross_entropy(x, y, out=losses, reduction="none")
    else:
        ek.cross_entropy(x, y, out=losses, grad_out=gradient, reduction="none")


def from_python(x, y, losses, gradient):
    ek.cross_entropy(x, y, out=losses, grad_out=gradient, reduction="none")


WAYS: dict[str, Callable[..., None]] = {
    LOOP: naive,
    "row by row": by_rows,
    "the whole table": whole,
    "from Python": from_python,
}


def medians(rounds: int, *args: object) -> dict[str, float]:
    """Seconds of each way, in turn."""
    times: dict[str, list[float]] = {name: [] for name in WAYS}
    for turn in range(rounds + 1):
        for name, way in WAYS.items():
            begun = time.perf_counter()
            way(*args)
            if turn:  # the first compiles
                times[name].append(time.perf_counter() - begun)
    return {name: statistics.median(seconds) for name, seconds in times.items()}


def first_call(way: Callable[..., None], *args: object) -> float:
    begun = time.process_time()
    way(*args)
    return time.process_time() - begun


def report(rounds: int) -> Iterator[str]:
    ek.set_num_threads(1)
    rng = np.random.default_rng(0)
    small = rng.normal(size=(2, 4)).astype(np.float32), np.array([0, 1]), np.empty(2, np.float32)
    for name in (LOOP, "row by row", "the whole table"):
        yield f"first call, {name:<22}{first_call(WAYS[name], *small, None):6.2f} s of the processor"
    for with_gradient in (False, True):
        yield f"\nns per row, {'with' if with_gradient else 'without'} the gradient (times as fast as the loop)"
        yield f"{'':<22}" + "".join(f"{f'k = {k}':>18}" for k in CLASSES)
        table = {}
        for k in CLASSES:
            n = ELEMENTS // k
            x, y = rng.normal(size=(n, k)).astype(np.float32), rng.integers(0, k, n)
            gradient = np.empty_like(x) if with_gradient else None
            table[k] = {
                name: 1e9 * s / n for name, s in medians(rounds, x, y, np.empty(n, np.float32), gradient).items()
            }
        for name in WAYS:
            cells = (f"{table[k][name]:9.1f} ({table[k][LOOP] / table[k][name]:5.1f})" for k in CLASSES)
            yield f"{name:<22}" + "".join(f"{cell:>18}" for cell in cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=11)
    for line in report(parser.parse_args().rounds):
        print(line, flush=True)


if __name__ == "__main__":
    main()
