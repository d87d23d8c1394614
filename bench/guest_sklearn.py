"""The room of scikit-learn beside scikit-learn: time and memory of `log_loss`, time of a loss's array methods.

python bench/guest_sklearn.py                 medians of 7 interleaved rounds
python bench/guest_sklearn.py --rounds 21

`HalfMultinomialLoss` and `HalfBinomialLoss` of both compute with all threads. Memory is what a call allocates through
NumPy at its peak, beside its arguments.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

Calls = dict[str, Callable[[], Any]]  # theirs first


def medians(calls: Calls, rounds: int) -> dict[str, float]:
    """Seconds of each, taken in turn."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + 1):
        for name, call in calls.items():
            begun = time.perf_counter()
            call()
            if turn:  # the first compiles
                times[name].append(time.perf_counter() - begun)
    return {name: statistics.median(seconds) for name, seconds in times.items()}


def peak_mb(call: Callable[[], Any]) -> float:
    tracemalloc.start()
    call()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / 1e6


def line(case: str, calls: Calls, rounds: int, memory: bool = False) -> str:
    theirs, ours = medians(calls, rounds).values()
    text = f"{case:<54}{1e3 * theirs:9.1f}{1e3 * ours:9.1f} ms{theirs / ours:7.1f} ×"
    if memory:
        text += "".join(f"{peak_mb(call):9.0f}" for call in calls.values()) + " MB"
    return text


def log_losses(rounds: int) -> Iterator[str]:
    import sklearn.metrics

    from entrokern.sklearn import log_loss

    rng = np.random.default_rng(0)
    for n, k in ((1_000_000, 10), (100_000, 100), (1_000_000, 2)):
        y = rng.integers(0, k, n)
        labels = {"integers": y, "strings": np.array([f"class {c:03}" for c in range(k)])[y]}
        for dtype in (np.float64, np.float32):
            p = rng.dirichlet(np.ones(k), n).astype(dtype)
            p = p[:, 1] if k == 2 else p
            for kind, targets in labels.items():
                if kind == "strings" and dtype == np.float32:
                    continue
                calls: Calls = {
                    "theirs": partial(sklearn.metrics.log_loss, targets, p),
                    "ours": partial(log_loss, targets, p),
                }
                yield line(f"log_loss {p.shape} {p.dtype}, {kind}", calls, rounds, memory=True)


def losses(rounds: int) -> Iterator[str]:
    from sklearn._loss import loss as theirs

    from entrokern import sklearn as ours

    rng, threads = np.random.default_rng(0), len(os.sched_getaffinity(0))
    for n, k in ((1_000_000, 10), (100_000, 100), (1_000_000, 1)):
        for dtype, order in ((np.float64, "F"), (np.float64, "C"), (np.float32, "C")):
            if k == 1 and order == "F":
                continue
            raw = np.asarray(rng.normal(size=(n, k)), dtype, order)  # type: ignore[call-overload]
            raw = raw[:, 0].copy() if k == 1 else raw
            y = rng.integers(0, max(2, k), n).astype(dtype)
            name, options = ("HalfBinomialLoss", {}) if k == 1 else ("HalfMultinomialLoss", {"n_classes": k})
            pair = [getattr(module, name)(**options) for module in (theirs, ours)]
            out = np.float32 if order == "F" else dtype  # the first is what histogram boosting asks for
            outs = {f"{a}_out": np.empty_like(raw, dtype=out) for a in ("gradient", "hessian")}
            for method in ("loss", "gradient", "gradient_hessian"):
                arrays = {a: outs[a] for a in outs if a[:-4] in method}
                calls: Calls = {
                    who: partial(getattr(loss, method), y, raw, n_threads=threads, **arrays)
                    for who, loss in zip(("theirs", "ours"), pair, strict=True)
                }
                yield line(f"{method} {raw.shape} {raw.dtype} {order} → {np.dtype(out)}", calls, rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    settings = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))
    print(f"{'':<54}{'sklearn':>9}{'entrokern':>10}")
    for text in (*log_losses(settings.rounds), *losses(settings.rounds)):
        print(text, flush=True)


if __name__ == "__main__":
    main()
