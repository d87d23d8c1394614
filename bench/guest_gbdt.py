"""The objectives for XGBoost and LightGBM beside one written in NumPy, and a training run beside the built-in one.

python bench/guest_gbdt.py                        medians of 7 interleaved rounds, training of 3
python bench/guest_gbdt.py --rows 200000 --rounds 21

Predictions are as the libraries pass them: XGBoost's float32 in C order, LightGBM's float64 in Fortran order; labels
are float32.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

TRAINING_ROUNDS, CLASSES = 10, 10
Calls = dict[str, Callable[[], Any]]


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


def softmax_in_numpy(y: Any, x: Any) -> tuple[Any, Any]:
    """What users write."""
    p = np.exp(x - x.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    grad = p.copy()
    grad[np.arange(len(y)), y.astype(int)] -= 1.0
    return grad, np.maximum(2.0 * p * (1.0 - p), 1e-16)


def logistic_in_numpy(y: Any, x: Any) -> tuple[Any, Any]:
    p = 1.0 / (1.0 + np.exp(-x))
    return p - y, np.maximum(p * (1.0 - p), 1e-16)


def objectives(rounds: int) -> Iterator[str]:
    from entrokern.gbdt import logistic_objective, softmax_objective

    rng = np.random.default_rng(0)
    yield f"{'objective':<44}{'NumPy':>10}{'entrokern':>10}"
    for n, k in ((1_000_000, 10), (100_000, 100), (1_000_000, 1), (1_800, 10)):
        for dtype, order in ((np.float32, "C"), (np.float64, "F")):
            x = np.asarray(rng.normal(size=(n, k)), dtype, order)  # type: ignore[call-overload]
            x = x[:, 0].copy() if k == 1 else x
            y = rng.integers(0, max(k, 2), n).astype(np.float32)
            name = "logistic" if k == 1 else "softmax"
            theirs, ours = (
                (logistic_in_numpy, logistic_objective(hessian="xgboost"))
                if k == 1
                else (softmax_in_numpy, softmax_objective(hessian="xgboost"))
            )
            own, fused = medians({"numpy": partial(theirs, y, x), "entrokern": partial(ours, y, x)}, rounds).values()
            yield (
                f"{name} {x.shape} {x.dtype} {order if k > 1 else ''}".ljust(44)
                + f"{1e3 * own:10.2f}{1e3 * fused:10.2f} ms{own / fused:7.1f} ×"
            )


def training(rows: int, rounds: int) -> Iterator[str]:
    import lightgbm
    import xgboost

    from entrokern.gbdt import softmax_objective

    rng = np.random.default_rng(0)
    x = rng.normal(size=(rows, 20)).astype(np.float32)
    y = (x[:, :CLASSES] + rng.normal(size=(rows, CLASSES))).argmax(axis=1)
    matrix = xgboost.DMatrix(x, y)
    of_xgboost = {"num_class": CLASSES, "base_score": 0.5, "max_depth": 4, "verbosity": 0}
    of_lightgbm = {"num_class": CLASSES, "boost_from_average": False, "verbosity": -1}

    def with_xgboost(objective: Any) -> None:
        if isinstance(objective, str):
            xgboost.train(of_xgboost | {"objective": objective}, matrix, TRAINING_ROUNDS)
        else:
            xgboost.train(of_xgboost, matrix, TRAINING_ROUNDS, obj=objective)

    def with_lightgbm(objective: Any) -> None:
        lightgbm.train(of_lightgbm | {"objective": objective}, lightgbm.Dataset(x, y), TRAINING_ROUNDS)

    def in_numpy(predictions: Any, data: Any) -> tuple[Any, Any]:
        return softmax_in_numpy(data.get_label(), predictions)

    what = f"{TRAINING_ROUNDS} rounds, {rows} rows, {CLASSES} classes"
    yield f"\n{what:<34}{'built-in':>10}{'NumPy':>10}{'entrokern':>10}"
    for name, train, builtin, hessian in (
        ("XGBoost", with_xgboost, "multi:softprob", "xgboost"),
        ("LightGBM", with_lightgbm, "multiclass", "lightgbm"),
    ):
        ways = {"built-in": builtin, "NumPy": in_numpy, "entrokern": softmax_objective(hessian=hessian)}
        found = medians({way: partial(train, objective) for way, objective in ways.items()}, rounds)
        yield f"{name:<34}" + "".join(f"{seconds:10.2f}" for seconds in found.values()) + " s"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--rows", type=int, default=50_000)
    settings = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))
    for text in objectives(settings.rounds):
        print(text, flush=True)
    for text in training(settings.rows, 3):
        print(text, flush=True)


if __name__ == "__main__":
    main()
