"""`linear_cross_entropy` beside the matrix products alone, PyTorch's and the plain compositions: time and memory.

python bench/guest_linear.py                                  two shapes, with gradients and without
python bench/guest_linear.py --shape 4096 32000 256 --rounds 9
python bench/guest_linear.py --embeddings l2_supercat_256.safetensors
    a real weight (any safetensors file with one matrix; this one is in the wheel of PyPI's `wordllama`): each of
    2048 tokens told from its own, noisy, vector

Times are medians of all ways in turn; memory is the peak of a process of its own beside operands and outputs.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

import entrokern as ek
import measure

SHAPES = ((2048, 32000, 768), (8192, 50257, 64))
Arrays = tuple[Any, Any, Any]
Way = Callable[[Any, Any, Any, bool], Any]


def drawn(n: int, k: int, d: int) -> Arrays:
    rng = np.random.default_rng(0)
    hidden, weight = rng.standard_normal((n, d), np.float32), rng.standard_normal((k, d), np.float32)
    weight /= np.float32(np.sqrt(d))
    return hidden, weight, rng.integers(0, k, n)


@functools.cache
def place(*shape: int) -> Any:
    """An output that is there already: NumPy's products and ours take one."""
    return np.ones(shape, np.float32)


def products(hidden: Any, weight: Any, target: Any, gradients: bool) -> Any:
    """One product forward; with gradients, three."""
    logits = np.matmul(hidden, weight.T, out=place(len(hidden), len(weight)))
    if not gradients:
        return logits
    by_hidden = np.matmul(logits, weight, out=place(*hidden.shape))
    return None, by_hidden, np.matmul(logits.T, hidden, out=place(*weight.shape))


def entrokern(hidden: Any, weight: Any, target: Any, gradients: bool) -> Any:
    outs = (place(*hidden.shape), place(*weight.shape)) if gradients else None
    return ek.linear_cross_entropy(hidden, weight, target, grad_out=outs)


def composed(hidden: Any, weight: Any, target: Any, gradients: bool) -> Any:
    logits = hidden @ weight.T
    if not gradients:
        return ek.cross_entropy(logits, target)
    loss, g = ek.cross_entropy(logits, target, grad_out=logits)
    return loss, g @ weight, g.T @ hidden


def in_numpy(hidden: Any, weight: Any, target: Any, gradients: bool) -> Any:
    x, rows = hidden @ weight.T, np.arange(len(hidden))
    x -= x.max(axis=1, keepdims=True)
    p = np.exp(x)
    total = p.sum(axis=1, keepdims=True)
    loss = (np.log(total[:, 0]) - x[rows, target]).mean()
    if not gradients:
        return loss
    p /= total * len(hidden)
    p[rows, target] -= 1 / len(hidden)
    return loss, p @ weight, p.T @ hidden


def in_torch(function: Callable[..., Any]) -> Way:
    def way(hidden: Any, weight: Any, target: Any, gradients: bool) -> Any:
        import torch

        h, w, y = map(torch.from_numpy, (hidden, weight, target))
        h, w = h.requires_grad_(gradients), w.requires_grad_(gradients)
        loss = function(h, w, y)
        if gradients:
            loss.backward()
            return loss.detach(), h.grad, w.grad
        return loss

    return way


def torch_linear(h: Any, w: Any, y: Any) -> Any:
    from torch import nn

    return nn.functional.linear_cross_entropy(h, w, y, options=nn.LinearCrossEntropyOptions())


def torch_composed(h: Any, w: Any, y: Any) -> Any:
    from torch.nn import functional

    return functional.cross_entropy(functional.linear(h, w), y)


WAYS: dict[str, Way] = {
    "matrix products alone": products,
    "entrokern": entrokern,
    "products and ek.cross_entropy": composed,
    "torch linear_cross_entropy": in_torch(torch_linear),
    "torch linear and cross_entropy": in_torch(torch_composed),
    "NumPy": in_numpy,
}


def seconds(arrays: Arrays, gradients: bool, rounds: int) -> dict[str, float]:
    times: dict[str, list[float]] = {name: [] for name in WAYS}
    for turn in range(rounds + 1):
        for name, way in WAYS.items():
            begun = time.perf_counter()
            way(*arrays, gradients)
            if turn:  # the first compiles, and starts threads
                times[name].append(time.perf_counter() - begun)
    return {name: statistics.median(found) for name, found in times.items()}


def megabytes(name: str, shape: tuple[int, int, int], gradients: bool) -> float:
    """The peak of a process of its own beside its operands and outputs."""
    command = [sys.executable, __file__, "--peak", name, "--shape", *map(str, shape), *(["--gradients"] * gradients)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def grown(name: str, shape: tuple[int, int, int], gradients: bool) -> float:
    hidden, weight, target = drawn(*shape)
    WAYS[name](hidden[:64], weight[:640], target[:64] % 640, gradients)  # libraries, kernels, threads
    before = measure.resident()
    if before is None:
        return float("nan")
    result = WAYS[name](hidden, weight, target, gradients)
    outputs = sum(a.nbytes for a in result[1:]) if gradients else 0
    return (measure.peak() - before - outputs) / 2**20


def table(arrays: Arrays, gradients: bool, rounds: int) -> Iterator[str]:
    n, (k, d) = len(arrays[0]), arrays[1].shape
    logits = n * k * arrays[1].itemsize / 2**20
    yield f"\nn = {n}, k = {k}, d = {d}, {'loss and gradients' if gradients else 'loss'}; the logits: {logits:.0f} MB"
    times = seconds(arrays, gradients, rounds)
    for name, found in times.items():
        ratio = found / times["matrix products alone"]
        yield f"{name:<32}{1e3 * found:9.0f} ms {ratio:6.2f} {megabytes(name, (n, k, d), gradients):8.0f} MB"


def real(path: str) -> Arrays:
    from safetensors.numpy import load_file

    (weight,) = (array for array in load_file(path).values() if array.ndim == 2)
    rng = np.random.default_rng(0)
    target = rng.integers(0, len(weight), 2048)
    hidden = weight[target].astype(np.float32)
    scale = np.sqrt((hidden**2).mean())
    hidden = (4 * (hidden + 0.5 * scale * rng.standard_normal(hidden.shape, np.float32)) / scale).astype(weight.dtype)
    return hidden, (weight.astype(np.float32) / scale).astype(weight.dtype), target


def of_embeddings(path: str) -> Iterator[str]:
    """Half operands as they are stored: the loss, and how far all is from float64."""
    hidden, weight, target = real(path)
    found = ek.linear_cross_entropy(hidden, weight, target, return_grad=True, softcap=30.0)
    x = hidden.astype(np.float64) @ weight.astype(np.float64).T
    loss, g = ek.cross_entropy(x, target, return_grad=True, softcap=30.0)
    yield f"\n{Path(path).name}: {weight.dtype} {weight.shape}"
    yield f"loss {float(found[0]):.7f}, in float64 {float(loss):.7f}"
    for name, a, b in zip(("hidden", "weight"), found[1:], (g @ weight, g.T @ hidden), strict=True):
        off = float(np.abs(a.astype(np.float64) - b).max() / np.abs(b).max())
        yield f"gradient by {name}: {off:.1e} of its largest element off (half an eps of {a.dtype}: 4.9e-04)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", type=int, nargs=3, metavar=("N", "K", "D"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--embeddings", metavar="FILE")
    parser.add_argument("--peak", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--gradients", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.peak:
        print(grown(chosen.peak, tuple(chosen.shape), chosen.gradients))
        return
    if chosen.embeddings:
        lines = of_embeddings(chosen.embeddings)
        print(*lines, sep="\n")
        h, w, y = real(chosen.embeddings)
        shapes = [(h.astype(np.float32), w.astype(np.float32), y)]
    else:
        shapes = [drawn(*shape) for shape in ([chosen.shape] if chosen.shape else SHAPES)]
    for arrays in shapes:
        for gradients in (False, True):
            for line in table(arrays, gradients, chosen.rounds):
                print(line, flush=True)
        place.cache_clear()


if __name__ == "__main__":
    main()
