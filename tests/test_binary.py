"""Binary cross-entropy and the other elementwise quantities where their kernels have edges.

Sizes around every vector, run and chunk; layouts and storage types that go through a spare block; targets
of all integer types; gradients of targets that nearly equal the prediction.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import entrokern as ek
from cases import FLOATS
from contract import check
from device import checked
from oracle import LONG, evaluate

Array = np.ndarray[Any, Any]

EDGES = [*range(1, 131), 1000, 1023, 1024, 1025, 2047, 2049, 3000]
ALL: dict[str, Any] = {"reduction": "none", "return_grad": True, "return_hess": True}
NAMES = ("loss", "grad", "hess")
WHOLE = ["bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"]


def drawn(shape: Any, dtype: str = "float32", seed: int = 0) -> tuple[Array, Array, Array]:
    """Logits, soft and hard targets."""
    rng = np.random.default_rng(seed)
    x = (rng.normal(size=shape) * 10.0 ** rng.uniform(-3, 2, size=shape)).astype(FLOATS[dtype])
    soft = np.clip(rng.uniform(-0.2, 1.2, size=shape), 0, 1).astype(FLOATS[dtype])
    return x, soft, rng.integers(0, 2, size=shape)


def agree(got: Any, x: Array, t: Array, options: dict[str, Any], where: str = "") -> None:
    """Each result within the contract of the long double oracle."""
    want = evaluate(LONG, "binary_cross_entropy", [x, t], options)
    check(dict(zip(NAMES, got, strict=True)), want, x.dtype, where=where)


def same_numbers(backend: str, got: Array, want: Array) -> None:
    """The same bits; on a device, where a layout or a type of targets may have a kernel of its own, nearly."""
    if backend == "cuda":
        np.testing.assert_allclose(got, want, rtol=4e-6, atol=1e-7)
    else:
        np.testing.assert_array_equal(got, want)


def same_bits(got: Array, want: Array) -> None:
    np.testing.assert_array_equal(got.astype(np.float64), want.astype(np.float64))


@pytest.mark.parametrize("dtype", FLOATS)
def test_sizes(backend: str, dtype: str) -> None:
    """An element's results have the same bits wherever it lies, and in an array of any size."""
    x, soft, hard = drawn(3001, dtype)
    for t in (soft, hard):
        whole = ek.binary_cross_entropy(x, t, **ALL)
        agree(whole, x, t, ALL)
        for n in EDGES:
            for start in (0, 1):
                part = ek.binary_cross_entropy(x[start : start + n], t[start : start + n], **ALL)
                for got, want in zip(part, whole, strict=True):
                    np.testing.assert_array_equal(got, want[start : start + n])
            mean = ek.binary_cross_entropy(x[:n], t[:n])
            np.testing.assert_allclose(mean, whole[0][:n].mean(dtype=np.float64), rtol=4e-7)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("k", [1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 100, 255, 256, 257, 1024, 1025, 2100])
def test_rows(backend: str, k: int, dtype: str) -> None:
    """Rows of any length, in batches around the number of rows of a run."""
    options = ALL | {"axis": 1}
    x, soft, hard = drawn((1100 // k + 40, k), dtype)
    weights = np.random.default_rng(1).uniform(0, 2, size=len(x))
    for t, more in ((soft, {}), (hard, {}), (soft, {"sample_weight": weights, "pos_weight": soft[0] + 1})):
        whole = ek.binary_cross_entropy(x, t, **options, **more)
        agree(whole, x, t, options | more, where=f"k={k}")
        weighted = "sample_weight" in more
        for i in (0, 1, 16, len(x) - 1):
            one = more | ({"sample_weight": weights[i : i + 1]} if weighted else {})
            for got, want in zip(
                ek.binary_cross_entropy(x[i : i + 1], t[i : i + 1], **options, **one), whole, strict=True
            ):
                np.testing.assert_array_equal(got[0], want[i])


@pytest.mark.parametrize("k", [3, 20, 200, 300, 1100])
def test_equal_elements(backend: str, k: int) -> None:
    """The same rounding again and again: no sum in single precision may be so long that it shows."""
    for value in np.random.default_rng(0).uniform(-3, 3, size=10):
        x, t = np.full((20, k), value, np.float32), np.full((20, k), 0.3, np.float32)
        agree(ek.binary_cross_entropy(x, t, **ALL, axis=1), x, t, ALL | {"axis": 1})


def test_a_nan_stays_in_its_row(backend: str) -> None:
    for k in (3, 50, 300):
        x, _, hard = drawn((40, k))
        x[7, 1] = np.nan
        got = ek.binary_cross_entropy(x, hard, **ALL, axis=1)
        for values in got:
            assert np.isnan(values[7]).all()
            assert np.isfinite(np.delete(values, 7, axis=0)).all()


LAYOUTS: dict[str, Callable[[Array], Array]] = {
    "fortran": np.asfortranarray,
    "transposed": lambda a: np.ascontiguousarray(a.T).T,
    "row gaps": lambda a: np.repeat(a, 2, axis=0)[::2],
    "class gaps": lambda a: np.repeat(a, 3, axis=1)[:, 1::3],
    "part of a row": lambda a: np.concatenate([a, a], axis=1)[:, : a.shape[1]],
    "backwards": lambda a: a[::-1, ::-1].copy()[::-1, ::-1],
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(backend: str, layout: str) -> None:
    """Operands and outputs through a spare block give the same bits as in place."""
    place = LAYOUTS[layout]
    for shape in ((400, 3), (30, 100), (3, 1100), (1030, 1)):
        x, soft, hard = drawn(shape)
        weights = {"sample_weight": np.abs(x).astype(np.float64), "pos_weight": soft + 1}
        for t in (soft, hard):
            for operands in ((place(x), t), (x, place(t)), (place(x), place(t))):
                for options in (ALL, ALL | weights, ALL | {"axis": 1, "pos_weight": soft[0] + 1}):
                    want = ek.binary_cross_entropy(x, t, **options)
                    outs = [place(np.ones_like(w)) if w.ndim == 2 else np.ones_like(w) for w in want]
                    got = ek.binary_cross_entropy(*operands, **options, out=outs[0], grad_out=outs[1], hess_out=outs[2])
                    for a, b in zip(got, want, strict=True):
                        same_numbers(backend, a, b)
        np.testing.assert_array_equal(ek.information(place(soft)), ek.information(soft))
        for estimator in ("k1", "k2", "k3"):
            options = {"estimator": estimator, "reduction": "none"}
            np.testing.assert_array_equal(
                ek.kl_estimate(place(x), place(soft), **options), ek.kl_estimate(x, soft, **options)
            )


def test_one_for_all(backend: str) -> None:
    """A number broadcast to all elements, also as an operand."""
    x, soft, hard = drawn((50, 60))
    for t in (soft, hard, np.broadcast_to(soft[0], x.shape), np.broadcast_to(hard[:, :1], x.shape)):
        for options in (
            {"pos_weight": 3.0},
            {"sample_weight": 0.5},
            {"pos_weight": soft[0]},
            {"pos_weight": soft[:, :1]},
        ):
            full = {name: np.broadcast_to(w, x.shape).copy() for name, w in options.items()}
            got = ek.binary_cross_entropy(x, t, **ALL, **options)
            for a, b in zip(got, ek.binary_cross_entropy(x, t.copy(), **ALL, **full), strict=True):
                same_numbers(backend, a, b)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("k", [1, 2, 3, 8, 10, 12, 100, 4099, 16385])
def test_weights_of_classes_along_a_line(backend: str, k: int, dtype: str) -> None:
    """Which class an element is of, wherever the line begins and however it is cut."""
    n = 40_000 // k if dtype == "float32" else 1 + 600 // k
    x, soft, hard = drawn(n * k + 1, dtype)
    pos = np.random.default_rng(k).uniform(0.1, 3, size=k).astype(np.float32)
    for t, start in ((soft, 0), (hard.astype(np.uint8), 1)):
        one, targets = (a[start : start + n * k].reshape(n, k) for a in (x, t))
        agree(ek.binary_cross_entropy(one, targets, pos_weight=pos, **ALL), one, targets, ALL | {"pos_weight": pos})


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_one_weight_is_the_same_for_a_longer_line(backend: str, dtype: str) -> None:
    x, soft, _ = drawn((1 << 16) + 1, dtype)
    for pos in (np.array(2.5, np.float32), np.array([2.5])):
        whole = ek.binary_cross_entropy(x, soft, pos_weight=pos, **ALL)
        part = ek.binary_cross_entropy(x[:-1], soft[:-1], pos_weight=pos, **ALL)
        for a, b in zip(whole, part, strict=True):
            np.testing.assert_array_equal(a[:-1], b)


@pytest.mark.parametrize("dtype", FLOATS)
def test_weights_of_elements(backend: str, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float32, beside logits of any type: a weight of 0 leaves an element out, and the mean's denominator too."""
    monkeypatch.setattr("entrokern.cuda.elements.MOST_SUMMING_BLOCKS", 2)
    x, soft, hard = drawn(50_001 if dtype == "float32" else 1001, dtype)
    rng = np.random.default_rng(2)
    weights = np.where(rng.random(x.size) < 0.2, 0, rng.uniform(0.1, 3, size=x.size)).astype(np.float32)
    x[weights == 0] = rng.choice([np.nan, np.inf, -np.inf], size=(weights == 0).sum())
    counts = weights != 0
    for t, first in ((soft, 0), (soft, 1), (hard.astype(np.uint8), 0), (hard.astype(bool), 3)):
        for more in ({}, {"pos_weight": 2.5}, {"base": 2, "label_smoothing": 0.1}):
            given = x[first:], t[first:]
            options = {"sample_weight": weights[first:], **more}
            each = ek.binary_cross_entropy(*given, **ALL, **options)
            clean = np.where(counts, x, 0).astype(x.dtype)[first:]
            agree(each, clean, t[first:], ALL | options)
            for values in each:
                assert not values[~counts[first:]].any()
            wanted = {**ALL, "reduction": "mean"}
            mean, *slopes = ek.binary_cross_entropy(*given, **wanted, **options)
            total = weights[first:].sum(dtype=np.float64)
            np.testing.assert_allclose(mean, each[0].sum(dtype=np.float64) / total, rtol=1e-6)
            for a, b in zip(slopes, each[1:], strict=True):
                tolerance, small = {2: (0.01, 1e-7), 4: (1e-6, 1e-40), 8: (1e-12, 0)}[x.itemsize]
                np.testing.assert_allclose(a.astype(float), b.astype(float) / total, rtol=tolerance, atol=small)


@pytest.mark.parametrize("backend", ["cuda"], indirect=True)  # a CPU would compile one kernel after another
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("k", [1, 3, 40, 300])
def test_rows_of_which_some_do_not_count(backend: str, k: int, dtype: str) -> None:
    """Ignored targets of x's type or of bytes, whatever x holds there: a row of nothing else does not count."""
    x, soft, hard = drawn((60, k), dtype)
    rng = np.random.default_rng(k)
    ignored = rng.random(x.shape) < 0.3
    ignored[::7] = True
    clean = np.where(ignored, 0, x).astype(x.dtype)
    x[ignored] = rng.choice([np.nan, np.inf, -np.inf], size=ignored.sum())
    counted = (~ignored.all(axis=1)).sum()
    for given in (soft, hard.astype(np.uint8)):
        t = np.where(ignored, 77, given).astype(given.dtype)
        for more in ({}, {"pos_weight": rng.uniform(0.1, 3, size=k)}):
            options: dict[str, Any] = {"axis": 1, "ignore_index": 77, **more}
            each = ek.binary_cross_entropy(x, t, **ALL, **options)
            agree(each, clean, t, ALL | options)
            assert not each[0][::7].any() and not each[1][ignored].any() and not each[2][ignored].any()
            mean, grad = ek.binary_cross_entropy(x, t, return_grad=True, **options)
            np.testing.assert_allclose(mean, each[0].sum(dtype=np.float64) / counted, rtol=1e-6)
            tolerance, small = {2: (0.01, 1e-7), 4: (1e-6, 1e-40), 8: (1e-12, 0)}[x.itemsize]
            np.testing.assert_allclose(grad.astype(float), each[1].astype(float) / counted, rtol=tolerance, atol=small)


@pytest.mark.parametrize("dtype", WHOLE)
def test_whole_targets(backend: str, dtype: str) -> None:
    x, _, hard = drawn((13, 99))
    want = ek.binary_cross_entropy(x, hard, **ALL)
    for t in (hard.astype(dtype), np.asfortranarray(hard.astype(dtype))):
        for a, b in zip(ek.binary_cross_entropy(x, t, **ALL), want, strict=True):
            same_numbers(backend, a, b)
    if dtype == "bool":
        return
    limits = np.iinfo(dtype)
    for value in {2, limits.max, limits.min or 3}:
        t = hard.astype(dtype)
        t[5, 98] = value
        for options in ({}, {"axis": 1}, {"ignore_index": 77}, {"reduction": "none"}):
            with pytest.raises(IndexError, match=rf"target {value} at row \(5, 98\)"):
                ek.binary_cross_entropy(x, t, **options, **checked(backend))
        for options in (ALL, ALL | {"axis": 1}):
            kept = ek.binary_cross_entropy(x, t, **options, ignore_index=value)
            clean = ek.binary_cross_entropy(x, np.where(t == value, -7, hard), **options, ignore_index=-7)
            for a, b in zip(kept, clean, strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-4)  # numbers that float32 does not hold take float64


def test_an_ignored_target_beyond_single_precision(backend: str) -> None:
    x, t = np.zeros(3, np.float32), np.array([0, 1 << 24, 1])
    assert np.isfinite(ek.binary_cross_entropy(x, t, ignore_index=1 << 24))
    t[1] += 1
    with pytest.raises(IndexError, match="target 16777217 at row 1 "):
        ek.binary_cross_entropy(x, t, ignore_index=1 << 24, **checked(backend))


@pytest.mark.parametrize("shape", [(500,), (40, 3), (5, 300)])
def test_in_place(backend: str, shape: tuple[int, ...]) -> None:
    for axis in (None, -1):
        for dtype in FLOATS:
            x, soft, hard = drawn(shape, dtype)
            for t in (soft, hard):
                want = ek.binary_cross_entropy(x, t, axis=axis, **ALL)
                mine = x.copy()
                loss, grad, hess = ek.binary_cross_entropy(mine, t, axis=axis, **ALL, grad_out=mine)
                assert grad is mine
                for got, wanted in zip((loss, grad, hess), want, strict=True):
                    np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("options", [{}, {"pos_weight": 3.0}, {"pos_weight": 0.1, "label_smoothing": 0.3}, {"base": 2}])
@pytest.mark.parametrize("scale", [1e-6, 1e-3, 0.1, 0.9, 1.1, 5])
def test_gradient_where_prediction_and_target_nearly_agree(backend: str, scale: float, options: Any) -> None:
    """``b·σ(x) - a·σ(-x)`` is then a small difference of two large numbers."""
    rng = np.random.default_rng(3)
    x = (rng.normal(size=4000) * scale).astype(np.float32)
    s, pos, eps = (
        1 / (1 + np.exp(-x.astype(float))),
        options.get("pos_weight", 1.0),
        options.get("label_smoothing", 0.0),
    )
    t = s / (s + pos * (1 - s))  # where the gradient is 0
    t = (t - eps / 2) / (1 - eps) * (1 + rng.normal(size=x.size) * 10.0 ** rng.uniform(-9, -1, size=x.size))
    t = np.clip(t, 0, 1).astype(np.float32)
    wide = options | ({"pos_weight": np.full(x.size, pos)} if "pos_weight" in options else {})
    for given in (options, wide):
        agree(ek.binary_cross_entropy(x, t, **ALL, **given), x, t, ALL | given)
    hard = rng.integers(0, 2, size=x.size)
    agree(ek.binary_cross_entropy(x, hard, **ALL, **options), x, hard, ALL | options)


def test_targets_finer_than_the_logits(backend: str) -> None:
    """``1 - t`` of a float64 target next to 1 is what decides the loss of a confident logit."""
    rng = np.random.default_rng(4)
    x = rng.uniform(-40, 40, size=1000).astype(np.float32)
    t = np.abs(rng.integers(0, 2, size=x.size) - 10.0 ** rng.uniform(-15, -1, size=x.size))
    agree(ek.binary_cross_entropy(x, t, **ALL), x, t, ALL)


@pytest.mark.parametrize("dtype", FLOATS)
def test_information_and_estimates_of_any_size(backend: str, dtype: str) -> None:
    rng = np.random.default_rng(5)
    p = rng.uniform(0, 1, size=3001).astype(FLOATS[dtype])
    p[:4] = 0, 1, np.nan, -1
    q = rng.normal(size=3001).astype(FLOATS[dtype])
    whole = ek.information(p)
    estimates = {e: ek.kl_estimate(p, q, estimator=e, reduction="none") for e in ("k1", "k2", "k3")}
    np.testing.assert_array_equal(whole[:4].astype(float), [np.inf, 0, np.nan, np.nan])
    for n in EDGES:
        same_bits(ek.information(p[:n]), whole[:n])
        for e, values in estimates.items():
            got = ek.kl_estimate(p[3 : n + 3], q[3 : n + 3], estimator=e, reduction="none")
            same_bits(got, values[3 : n + 3])
            mean = ek.kl_estimate(p[3 : n + 3], q[3 : n + 3], estimator=e)
            np.testing.assert_allclose(mean, values[3 : n + 3].mean(dtype=np.float64), rtol=1e-5, atol=1e-6)
    mine = p.copy()
    ek.information(mine, out=mine)
    same_bits(mine, whole)
