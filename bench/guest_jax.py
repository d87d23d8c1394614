"""Cross-entropy of JAX arrays beside the same loss in jax.numpy, compiled: the loss, and with its gradient.

python bench/guest_jax.py                 medians of 9 rounds, all ways in turn, in milliseconds
python bench/guest_jax.py --rounds 31
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

SHAPES = ((16, 10), (4096, 1000), (256, 32000), (65536, 10))
WAYS = ("jax.numpy, jit", "entrokern, jit", "entrokern", "NumPy arrays")


def ways(n: int, k: int) -> dict[tuple[str, str], Callable[[], Any]]:
    import jax
    import jax.numpy as jnp

    import entrokern as ek

    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(n, k)).astype(np.float32), rng.integers(0, k, n)
    jx, jy = jnp.asarray(x), jnp.asarray(y)

    def theirs(x: Any, y: Any) -> Any:
        return -jnp.take_along_axis(jax.nn.log_softmax(x), y[:, None], -1).mean()

    def compiled(function: Callable[..., Any]) -> Callable[[], Any]:
        program = jax.jit(function)
        return lambda: jax.block_until_ready(program(jx, jy))

    return {
        ("loss", WAYS[0]): compiled(theirs),
        ("loss", WAYS[1]): compiled(ek.cross_entropy),
        ("loss", WAYS[2]): lambda: jax.block_until_ready(ek.cross_entropy(jx, jy)),
        ("loss", WAYS[3]): lambda: ek.cross_entropy(x, y),
        ("and gradient", WAYS[0]): compiled(jax.value_and_grad(theirs)),
        ("and gradient", WAYS[1]): compiled(jax.value_and_grad(ek.cross_entropy)),
        ("and gradient", WAYS[2]): lambda: jax.block_until_ready(ek.cross_entropy(jx, jy, return_grad=True)),
        ("and gradient", WAYS[3]): lambda: ek.cross_entropy(x, y, return_grad=True),
    }


def medians(n: int, k: int, rounds: int) -> dict[tuple[str, str], float]:
    found = ways(n, k)
    repeats = max(1, 20_000 // (n * k))  # of what takes microseconds
    times: dict[tuple[str, str], list[float]] = {name: [] for name in found}
    for turn in range(rounds + 2):
        for name, way in found.items():
            begun = time.perf_counter()
            for _ in range(repeats):
                way()
            if turn > 1:  # the first compile
                times[name].append((time.perf_counter() - begun) / repeats)
    return {name: statistics.median(seconds) for name, seconds in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))
    import jax

    jax.config.update("jax_platforms", "cpu")
    print(f"float32, ms of a call; x: of {WAYS[0]}\n")
    print(f"{'shape':>13}  {'':<13}" + "".join(f"{way:>22}" for way in WAYS))
    for n, k in SHAPES:
        found = medians(n, k, rounds)
        for what in ("loss", "and gradient"):
            theirs = found[what, WAYS[0]]
            row = (f"{1e3 * found[what, way]:>13.3f}  {theirs / found[what, way]:4.1f} x" for way in WAYS)
            print(f"{f'({n}, {k})':>13}  {what:<13}" + "".join(f"{cell:>22}" for cell in row), flush=True)


if __name__ == "__main__":
    main()
