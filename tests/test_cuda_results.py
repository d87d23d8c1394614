"""What is told of rows that are not right, and the one number that comes of all."""

from __future__ import annotations

import math
from typing import Any

import cupy  # the stand-in, if `device` has put it there
import numpy as np
import pytest

import entrokern as ek
from cases import FLOATS
from cuda_calls import Call, bits, distributions, labels, logits, several
from device import to_device, to_host
from entrokern.cuda import quantities

# --- targets and weights out of range --------------------------------------------------------------------


@pytest.mark.parametrize("few", [True, False])
@pytest.mark.parametrize("k", [1, 7, 300, 20_000])
@pytest.mark.parametrize("dtype", FLOATS)
def test_labels_out_of_range_make_their_rows_nan(
    monkeypatch: pytest.MonkeyPatch, dtype: str, k: int, few: bool
) -> None:
    monkeypatch.setattr(quantities, "FEW_BLOCKS", 100 if few else 0)
    n, rows = 8, [1, 4, 7]
    x, y = to_device(logits(n, k, FLOATS[dtype])), labels(n, k)
    spoilt = y.copy()
    spoilt[rows] = [k, -1, -(2**63)]
    outputs = ("loss", "lse", "log_prob", "entropy", "argmax", "rank", "max_prob", "grad", "hess")
    good, bad = (ek.score(x, to_device(t), outputs=outputs) for t in (y, spoilt))
    for name in outputs:
        want, got = to_host(getattr(good, name)), to_host(getattr(bad, name))
        others = np.delete(np.arange(n), rows) if name in ("loss", "log_prob", "rank", "grad", "hess") else np.arange(n)
        assert got[others].tobytes() == want[others].tobytes(), name
    for name in ("loss", "log_prob", "grad", "hess"):
        assert np.isnan(to_host(getattr(bad, name))[rows].astype(np.float32)).all(), name
    assert to_host(bad.rank)[rows].tolist() == [-1] * 3


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1}, {"softcap": 5.0}, {"form": "probs"}])
def test_labels_out_of_range_of_every_kernel(options: dict[str, Any]) -> None:
    x = to_device(distributions(5, 33))
    y = labels(5, 33)
    want = ek.cross_entropy(x, to_device(y), reduction="none", return_grad=True, **options)
    y[2] = 33
    got = ek.cross_entropy(x, to_device(y), reduction="none", return_grad=True, **options)
    others = [0, 1, 3, 4]
    for value, expected in zip(got, want, strict=True):
        assert np.isnan(to_host(value)[2]).all()
        assert to_host(value)[others].tobytes() == to_host(expected)[others].tobytes()
    assert np.isnan(to_host(ek.cross_entropy(x, to_device(y), **options)))
    assert np.isfinite(to_host(ek.cross_entropy(x, to_device(y), ignore_index=33, **options)))


@pytest.mark.parametrize("axis", [None, -1])
def test_binary_targets_out_of_range_are_nan(axis: int | None) -> None:
    x, t = to_device(logits(6, 33)), np.random.default_rng(0).integers(0, 2, size=(6, 33)).astype(np.uint8)
    options: dict[str, Any] = {"axis": axis, "reduction": "none", "return_grad": True, "return_hess": True}
    want = ek.binary_cross_entropy(x, to_device(t), **options)
    t[2, 5] = 255
    got = ek.binary_cross_entropy(x, to_device(t), **options)
    for value, expected in zip(got, want, strict=True):
        bad = np.zeros(value.shape, bool)
        bad[(2, 5) if axis is None else 2] = True
        value, expected = to_host(value), to_host(expected)
        assert np.isnan(value[bad]).all() and value[~bad].tobytes() == expected[~bad].tobytes()


@pytest.mark.parametrize("label", [7, -1, -100, 2**40])
def test_validate_names_the_lowest_row(label: int) -> None:
    x, y = to_device(logits(6, 7)), labels(6, 7)
    y[[3, 5]] = label, -7
    y = to_device(y)
    out, grad = cupy.full((), 7, np.float32), cupy.full((6, 7), 7, np.float32)
    with pytest.raises(
        IndexError, match=rf"label {label} of row 3 is out of range for k = 7 classes \(0 to 6\)"
    ) as error:
        ek.cross_entropy(x, y, out=out, grad_out=grad, validate=True)
    assert ("pass `ignore_index=-100`" in str(error.value)) == (label == -100)
    before = bits(x)
    with pytest.raises(IndexError, match="row 3 "):
        ek.score(x, y, grad_out=x, validate=True)
    with pytest.raises(IndexError, match="row 3 "):
        ek.perplexity(x, y, validate=True)
    with pytest.raises(IndexError, match=r"row \(1, 1\) "):
        ek.cross_entropy(x.reshape(3, 2, 7), y.reshape(3, 2), validate=True)
    assert bits(x) == before
    assert (to_host(out) == 7).all() and (to_host(grad) == 7).all()


def test_validate_names_the_lowest_binary_target() -> None:
    x, t = to_device(logits(3, 5)), np.zeros((3, 5), np.int64)
    t[1, 4] = t[2, 0] = 255
    grad = cupy.full((3, 5), 7, np.float32)
    for axis in (None, -1):
        with pytest.raises(IndexError, match=r"target 255 at row \(1, 4\) is out of range"):
            ek.binary_cross_entropy(x, to_device(t), axis=axis, grad_out=grad, validate=True)
    assert (to_host(grad) == 7).all()


@pytest.mark.parametrize("weight", [-1.0, np.nan, np.inf])
def test_class_weights_are_looked_at_when_asked(weight: float) -> None:
    x, y = to_device(logits(5, 4)), to_device(np.array([0, 1, 2, 3, 1]))
    weights = to_device(np.array([1, 2, weight, 1.0]))
    loss = to_host(ek.cross_entropy(x, y, class_weight=weights, reduction="none"))
    assert np.isfinite(loss[[0, 1, 3, 4]]).all()
    with pytest.raises(ValueError, match=r"class_weight\[2\] = .*; class weights must be finite and 0 or greater"):
        ek.cross_entropy(x, y, class_weight=weights, validate=True)


# --- one number for all rows -----------------------------------------------------------------------------


def reduced(n: int, **options: Any) -> Call:
    return lambda **more: ek.cross_entropy(to_device(logits(n, 5)), to_device(labels(n, 5)), **options, **more)


NOTHING_COUNTS: dict[str, Call] = {
    "no rows": reduced(0),
    "weights 0": reduced(3, sample_weight=[0, 0, 0]),
    "class weights 0": reduced(3, class_weight=[0] * 5),
    "ignored": lambda **o: ek.cross_entropy(to_device(logits(2, 5)), [-100, -100], ignore_index=-100, **o),
    "no elements": lambda **o: ek.binary_cross_entropy(to_device(logits(0, 5)), to_device(logits(0, 5)), **o),
    "elements ignored": lambda **o: ek.binary_cross_entropy(to_device(logits(1, 2)), [[7, 7]], ignore_index=7, **o),
    "summed rows ignored": lambda **o: ek.binary_cross_entropy(
        to_device(logits(1, 2)), [[7, 7]], ignore_index=7, axis=-1, **o
    ),
}


@pytest.mark.parametrize("how", NOTHING_COUNTS)
def test_when_nothing_counts(how: str) -> None:
    compute = NOTHING_COUNTS[how]
    for options in ({}, {"return_grad": True}):
        for on_empty, value in (("nan", np.nan), ("zero", 0.0)):
            loss, *grad = several(compute(on_empty=on_empty, **options))
            assert type(loss) is cupy.ndarray and (loss.shape, loss.dtype) == ((), np.float32)
            np.testing.assert_equal(float(loss), value)
            assert not any(to_host(g).any() for g in grad)
        with pytest.raises(ValueError, match="no row counts: the mean's denominator is 0"):
            compute(on_empty="raise", **options)
    assert float(compute(reduction="sum", on_empty="raise")) == 0
    grad = cupy.full_like(compute(return_grad=True)[1], 7)
    with pytest.raises(ValueError, match="no row counts"):
        compute(on_empty="raise", grad_out=grad)
    assert (to_host(grad) == 7).all()


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("n", [1, 1000, 40_000])
def test_reductions_are_of_the_rows(dtype: str, n: int) -> None:
    x, y = logits(n, 3, FLOATS[dtype]), np.where(np.arange(n) % 5 == 3, -100, labels(n, 3))
    weight = np.linspace(0, 2, n) + 0.5
    there, options = (to_device(x), to_device(y)), {"sample_weight": to_device(weight), "ignore_index": -100}
    rows = to_host(ek.cross_entropy(*there, reduction="none", **options))
    wide = np.dtype(np.float64 if dtype == "float64" else np.float32)
    total, count = math.fsum(rows.astype(float)), math.fsum(weight[y >= 0])
    for reduction, want in (("sum", total), ("mean", total / count)):
        got = ek.cross_entropy(*there, reduction=reduction, **options)
        assert type(got) is cupy.ndarray and (got.shape, got.dtype) == ((), wide)
        np.testing.assert_allclose(float(got), want, rtol=float(np.finfo(wide).eps))
        out = cupy.empty((), wide)
        assert ek.cross_entropy(*there, reduction=reduction, out=out, **options) is out and bits(out) == bits(got)
    perplexity = ek.perplexity(*there, **options)
    assert type(perplexity) is cupy.ndarray and (perplexity.shape, perplexity.dtype) == ((), wide)
    np.testing.assert_allclose(float(perplexity), math.exp(total / count), rtol=4 * float(np.finfo(wide).eps))


def test_a_mean_of_many_rows_is_right_to_the_last_bit() -> None:
    """A sum in float32 would be off in the fourth digit."""
    n = 200_000
    x, y = to_device(logits(n, 3)), to_device(labels(n, 3))
    rows = to_host(ek.cross_entropy(x, y, reduction="none"))
    got = float(ek.cross_entropy(x, y))
    assert abs(got - math.fsum(rows.astype(float)) / n) <= np.spacing(np.float32(got))
    elements = to_host(ek.binary_cross_entropy(x, 0 * x, reduction="none"))
    got = float(ek.binary_cross_entropy(x, 0 * x))
    want = math.fsum(elements.astype(float).ravel()) / elements.size
    assert abs(got - want) <= np.spacing(np.float32(got))


def test_a_perplexity_when_nothing_counts() -> None:
    x, y = to_device(logits(3, 4)), to_device(np.full(3, -100))
    assert np.isnan(float(ek.perplexity(x, y, ignore_index=-100)))
    assert float(ek.perplexity(x, y, ignore_index=-100, on_empty="zero")) == 1
    with pytest.raises(ValueError, match="no row counts"):
        ek.perplexity(x, y, ignore_index=-100, on_empty="raise")


# --- subnormal numbers -----------------------------------------------------------------------------------

TINY: dict[str, Call] = {
    "information": ek.information,
    "entropy": ek.entropy,
    "CE": lambda p, t: ek.cross_entropy(p, t, form="probs", reduction="none"),
    "BCE": lambda p, t: ek.binary_cross_entropy(p, t, form="probs", reduction="none"),
    "KL": ek.kl_divergence,
    "JS": ek.js_divergence,
}


@pytest.mark.parametrize("function", TINY)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_subnormal_probabilities_are_numbers(dtype: str, function: str) -> None:
    """A compiler may be told to take them for 0, as CuPy tells it."""
    p, q = (np.array(row).astype(FLOATS[dtype]) for row in ([[1e-40, 3e-40, 11e-39]], [[8e-39, 2e-40, 5e-40]]))
    operands = (p,) if function in ("information", "entropy") else (p, q)
    with ek.use_backend("reference"):
        want = TINY[function](*(a.astype(np.float64) for a in operands))
    got = to_host(TINY[function](*map(to_device, operands)))
    assert np.allclose(got.astype(np.float64), want, rtol=1e-2, atol=0)
