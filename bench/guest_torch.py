"""Losses of tensors beside PyTorch's own, eager and compiled: medians of all ways in turn, in milliseconds.

python bench/guest_torch.py                 eager, float32 and bfloat16
python bench/guest_torch.py --compile       torch.compile at the first size too (it starts slowly)
python bench/guest_torch.py --only ce --rounds 51
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

import torch
from torch.nn import functional

import entrokern as ek
import entrokern.torch  # before anything is compiled

SIZES = ((4096, 1000), (256, 32000), (65536, 10))
SMALL = (8, 10)
NAMES = ("ce", "bce", "kl logits", "kl")
Way = Callable[[], Any]


def operands(name: str, n: int, k: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    x = torch.randn(n, k).mul(3).to(dtype)
    if name.startswith("kl"):
        y = torch.randn(n, k).to(dtype)
        return (x, y) if name == "kl logits" else (x.log_softmax(-1), y.log_softmax(-1))
    return x, torch.randint(0, k, (n,)) if name == "ce" else torch.rand(n, k).round().to(dtype)


def theirs(name: str) -> Callable[..., Any]:
    if name == "ce":
        return functional.cross_entropy
    if name == "bce":
        return functional.binary_cross_entropy_with_logits
    if name == "kl":
        return lambda x, y: functional.kl_div(x, y, reduction="batchmean", log_target=True)
    return lambda x, y: functional.kl_div(x.log_softmax(-1), y.log_softmax(-1), reduction="batchmean", log_target=True)


def ours(name: str) -> Callable[..., Any]:
    if name == "ce":
        return ek.cross_entropy
    if name == "bce":
        return ek.binary_cross_entropy
    form = "log_probs" if name == "kl" else "logits"
    return lambda x, y: ek.kl_divergence(y, x, p_form=form, q_form=form, reduction="mean")


def ways(name: str, n: int, k: int, dtype: torch.dtype, compiled: bool) -> dict[str, dict[str, Way]]:
    """By what is computed, the ways to do so."""
    x, y = operands(name, n, k, dtype)
    leaf = x.clone().requires_grad_()
    losses = {"entrokern": ours(name), "torch": theirs(name)}
    if compiled:
        losses |= {"compiled": torch.compile(theirs(name))}

    def forward(loss: Callable[..., Any]) -> Way:
        return lambda: loss(x, y)

    def backward(loss: Callable[..., Any]) -> Way:
        return lambda: torch.autograd.grad(loss(leaf, y), leaf)

    return {what: {of: way(loss) for of, loss in losses.items()} for what, way in
            (("forward", forward), ("and back", backward))}  # fmt: skip


def milliseconds(ways: dict[str, Way], rounds: int) -> dict[str, float]:
    times: dict[str, list[float]] = {of: [] for of in ways}
    for turn in range(rounds + 2):
        for of, way in ways.items():
            begun = time.perf_counter()
            way()
            if turn > 1:  # the first compile
                times[of].append(1e3 * (time.perf_counter() - begun))
    return {of: statistics.median(found) for of, found in times.items()}


def table(only: str | None, rounds: int, compiled: bool) -> Iterator[str]:
    yield f"PyTorch {torch.__version__}, threads of each: {torch.get_num_threads()}"
    yield f"{'':40}{'entrokern':>10}{'torch':>10}{'ratio':>8}{'compiled':>10}{'ratio':>8}"
    for name in NAMES:
        if only not in (None, name):
            continue
        for dtype in (torch.float32, torch.bfloat16):
            for n, k in (*SIZES, SMALL):
                every = ways(name, n, k, dtype, compiled and (n, k) == SIZES[0])
                for what, of in every.items():
                    took = milliseconds(of, rounds if n * k > 1000 else 50 * rounds)
                    kind = str(dtype).removeprefix("torch.")
                    line = f"{name:10}{kind:9}{f'{n} x {k}':12} {what:8}{took['entrokern']:10.3f}"
                    for other in ("torch", "compiled"):
                        if other in took:
                            line += f"{took[other]:10.3f}{took[other] / took['entrokern']:7.1f}x"
                    yield line


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--only", choices=NAMES)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--compile", action="store_true")
    settings = parser.parse_args()
    torch.set_num_threads(settings.threads)
    ek.set_num_threads(settings.threads)
    for line in table(settings.only, settings.rounds, settings.compile):
        print(line, flush=True)


if __name__ == "__main__":
    main()
