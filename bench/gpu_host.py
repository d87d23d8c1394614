"""What a small call on a GPU's arrays costs the host beside CuPy: python bench/gpu_host.py [TURNS], without a GPU.

CuPy is the tests' stand-in (`tests/fake_cupy.py`) with all that is its own made as cheap as it goes: attributes of an
array are looked up, an allocation hands out an array that exists, a launch does nothing. What is left is our part of a
call on (32, 10) or (2, 10, 4, 4), in float32; allocations and launches come on top, which `bench_gpu.py` measures with
it on a device, and what CuPy takes to convert or to validate, which the stand-in does in its own time.
"""

from __future__ import annotations

import functools
import itertools
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

import fake_cupy

cupy = fake_cupy.install()

import entrokern as ek  # noqa: E402

ATTRIBUTES = ("dtype", "shape", "strides", "ndim", "size", "itemsize", "nbytes", "flags", "data", "device")


def make_cheap() -> None:
    """From here on arrays know what they are, and neither allocations nor launches take time."""
    for name in ATTRIBUTES:
        found: Any = functools.cached_property(getattr(fake_cupy.ndarray, name).fget)
        found.__set_name__(fake_cupy.ndarray, name)
        setattr(fake_cupy.ndarray, name, found)
    cupy.empty = functools.partial(_ready, cupy.empty)
    fake_cupy.RawKernel.__call__ = lambda *args, **options: None  # type: ignore[method-assign]


def _ready(empty: Any, shape: Any, dtype: Any) -> Any:
    return next(_some(empty, shape, dtype))


@functools.cache
def _some(empty: Any, shape: Any, dtype: Any) -> Iterator[Any]:
    """Arrays in turn: those of one call must differ."""
    return itertools.cycle([empty(shape, dtype) for _ in range(16)])


def calls() -> dict[str, functools.partial[Any]]:
    rng = np.random.default_rng(0)

    def given(*shape: int) -> Any:
        return fake_cupy.wrap(rng.random(shape).astype(np.float32))

    x, other, targets, weights = given(32, 10), given(32, 10), given(32, 10), given(10)
    labels, labels_of_pixels = (fake_cupy.wrap(rng.integers(0, 10, shape)) for shape in ((32,), (2, 4, 4)))
    ce, bce = (functools.partial(f, x) for f in (ek.cross_entropy, ek.binary_cross_entropy))
    of_pixels = functools.partial(ek.cross_entropy, given(2, 10, 4, 4), labels_of_pixels, axis=1)
    return {
        "CE": functools.partial(ce, labels, reduction="none"),
        "CE mean": functools.partial(ce, labels),
        "CE + gradient": functools.partial(ce, labels, reduction="none", return_grad=True),
        "CE mean + gradient": functools.partial(ce, labels, return_grad=True),
        "CE mean + gradient, some ignored": functools.partial(ce, labels, ignore_index=-100, return_grad=True),
        "CE mean, class weights": functools.partial(ce, labels, class_weight=weights),
        "CE mean + gradient, class weights": functools.partial(ce, labels, class_weight=weights, return_grad=True),
        "CE mean, axis=1": of_pixels,
        "CE mean + gradient, axis=1": functools.partial(of_pixels, return_grad=True),
        "KL, logits": functools.partial(ek.kl_divergence, x, other, p_form="logits", q_form="logits"),
        "BCE mean": functools.partial(bce, targets),
        "BCE mean, pos_weight": functools.partial(bce, targets, pos_weight=weights),
        "score": functools.partial(ek.score, x, labels),
        "CE mean, class weights of float64": functools.partial(ce, labels, class_weight=weights.astype(np.float64)),
        "CE mean, validate=True": functools.partial(ce, labels, validate=True),
    }


def measured(turns: int) -> dict[str, float]:
    """Seconds of each call, timed in turn, ten times running as in a loop of the caller's: medians."""
    asked = calls()
    times: dict[str, list[float]] = {name: [] for name in asked}
    for turn in range(-2, turns):
        for name, call in asked.items():
            for _ in range(10):
                begun = time.perf_counter()
                call()
                if turn >= 0:
                    times[name].append(time.perf_counter() - begun)
    return {name: statistics.median(of) for name, of in times.items()}


if __name__ == "__main__":
    make_cheap()
    for name, seconds in measured(int((sys.argv[1:] or ["500"])[0])).items():
        print(f"{name:36} {1e6 * seconds:5.1f} µs")
