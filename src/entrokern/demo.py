"""``entrokern demo``: the theory's worked examples, a trained classifier's logits, and one large array."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.resources import files
from typing import Literal

import numpy as np

from . import _arrays, divergences, entropies, losses
from ._report import table
from ._speed import large_array
from .score import score

Array = _arrays.Array
SHADES = " .:-=+*#%"  # a pixel of 0 to 16, two characters wide


def run(*, quick: bool = False) -> None:
    """Print the demo.

    Parameters
    ----------
    quick : bool, default False
        Smaller large arrays and fewer repeats.
    """
    print("All numbers are computed now, by this library, in nats unless it says bits.")
    parts = [
        information(),
        entropy(),
        divergence(),
        cross_entropies(),
        identities(),
        digits(),
        large_array(quick),
    ]
    for number, part in enumerate(parts, start=1):
        print(f"\n{number}. {next(part)}\n", flush=True)
        for line in part:
            print(f"   {line}".rstrip(), flush=True)


def information() -> Iterator[str]:
    yield "Information: how surprising an event of probability p is, I(p) = -log p"
    p = np.array([1.0, 0.5, 0.25, 0.125])
    rows = [["p", "I(p) nats", "I(p) bits"]]
    rows += [
        [f"{a:g}", f"{b:.4f}", f"{c:.4f}"]
        for a, b, c in zip(p, entropies.information(p), entropies.information(p, base=2), strict=True)
    ]
    yield from table(rows)
    one, a, b, both = (float(v) for v in entropies.information(np.array([1.0, 0.5, 0.25, 0.5 * 0.25])))
    yield ""
    yield f"What is certain says nothing:      I(1) = {one:g}"
    yield f"The rarer, the more it says:       I(0.25) = {b:.4f} > I(0.5) = {a:.4f}"
    yield f"Independent events add up:         I(0.5·0.25) = {both:.4f} = {a:.4f} + {b:.4f}"


def entropy() -> Iterator[str]:
    yield "Entropy: the information to expect, H(P) = -Σ p·log p"
    coins = {"a fair coin": (0.5, 0.5), "a biased coin": (0.9, 0.1), "a certain coin": (1.0, 0.0)}
    values = entropies.entropy(np.array([*coins.values()]))
    yield from table(
        [["", "P", "H(P)"]] + [[name, f"{p}", f"{h:.4f}"] for (name, p), h in zip(coins.items(), values, strict=True)]
    )


def divergence() -> Iterator[str]:
    yield "KL divergence: what it costs to believe Q where P holds, D(P‖Q) = Σ p·log(p/q)"
    p, q = np.array([0.7, 0.2, 0.1]), np.array([0.5, 0.2, 0.3])
    exact, back, none = (float(divergences.kl_divergence(a, b)) for a, b in ((p, q), (q, p), (p, p)))
    yield f"P = {_row(p)}, Q = {_row(q)}"
    yield f"D(P‖Q) = {exact:.4f}, D(Q‖P) = {back:.4f}, D(P‖P) = {none:g}"
    yield ""
    yield "From n samples drawn from P, with r = q/p: k1 = mean of -log r, k2 of ½·log² r (which"
    yield "converges to something near), k3 of (r - 1) - log r (as k1, with less noise):"
    yield ""
    names: tuple[Literal["k1", "k2", "k3"], ...] = ("k1", "k2", "k3")
    samples = np.random.default_rng(0).choice(3, 1_000_000, p=p)
    rows = [["n", *names]]
    for n in (100, 1_000, 10_000, 100_000, 1_000_000):
        log_p, log_q = np.log(p[samples[:n]]), np.log(q[samples[:n]])
        estimates = [divergences.kl_estimate(log_p, log_q, estimator=name) for name in names]
        rows.append([f"{n:,}", *(f"{float(e):.4f}" for e in estimates)])
    each = [divergences.kl_estimate(np.log(p), np.log(q), estimator=name, reduction="none") for name in names]
    rows.append(["limit", *(f"{float(np.sum(p * values)):.4f}" for values in each)])
    yield from table(rows)


def cross_entropies() -> Iterator[str]:
    yield "Cross-entropy with a label: the surprise at what came, ℓ = -log q_y"
    q = np.array([[0.5, 0.3, 0.2], [0.2, 0.7, 0.1], [0.1, 0.3, 0.6]])
    labels = np.arange(3)
    values = losses.cross_entropy(q, labels, form="probs", reduction="none")
    rows = [["prediction", "label", "loss"]]
    rows += [[_row(row), f"{y}", f"{loss:.4f}"] for row, y, loss in zip(q, labels, values, strict=True)]
    yield from table(rows)
    mean = float(losses.cross_entropy(q, labels, form="probs"))
    yield ""
    yield f"mean {mean:.4f}, perplexity {float(losses.perplexity(q, labels, form='probs')):.4f}"


def identities() -> Iterator[str]:
    yield "How they hang together"
    z = 1.3
    binary = float(losses.binary_cross_entropy([z], [1]))
    two = float(losses.cross_entropy([[0.0, z]], [1]))
    yield f"BCE is CE with two classes:  BCE({z}, 1) = {binary:.4f} = CE((0, {z}), 1) = {two:.4f}"
    p, q = np.array([0.7, 0.2, 0.1]), np.array([0.5, 0.2, 0.3])
    cross = float(losses.cross_entropy(q, p, form="probs"))
    h, d = float(entropies.entropy(p)), float(divergences.kl_divergence(p, q))
    yield f"CE is entropy plus KL:       H(P, Q) = {cross:.4f} = H(P) + D(P‖Q) = {h:.4f} + {d:.4f}"


def digits() -> Iterator[str]:
    yield "A classifier of handwritten digits: logits for 899 images that it was not trained on"
    with (files("entrokern") / "data" / "digits.npz").open("rb") as file, np.load(file) as data:
        x, y, images = data["x"], data["y"], data["images"]
    rows = score(x, y, outputs=("loss", "argmax", "rank", "entropy", "max_prob"))
    assert rows.loss is not None
    assert rows.argmax is not None
    yield f"mean cross-entropy {float(losses.cross_entropy(x, y)):.4f}"
    yield f"perplexity         {float(losses.perplexity(x, y)):.4f}  of {x.shape[1]} classes"
    yield f"accuracy           {100 * np.mean(rows.argmax == y):.2f} %"
    yield ""
    hardest = np.argsort(-rows.loss, kind="stable")[:5]
    names = ("loss", "argmax", "rank", "entropy", "max_prob")
    yield "the five hardest:"
    yield from table(
        [["row", "label", *names]]
        + [[f"{i}", f"{y[i]}", *(f"{getattr(rows, name)[i]:.4g}" for name in names)] for i in hardest]
    )
    yield ""
    captions = [f"a {y[i]}, taken for a {rows.argmax[i]}" for i in hardest[:3]]
    yield "      ".join(caption.ljust(16) for caption in captions)
    for line in range(8):
        yield "      ".join("".join(2 * SHADES[int(pixel) // 2] for pixel in images[i, line]) for i in hardest[:3])


def _row(p: Array) -> str:
    return f"({', '.join(f'{v:g}' for v in p)})"
