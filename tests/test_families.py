"""Rows of every length run in the kernel family that suits them: results do not tell which, nor where a row lies."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import entrokern as ek
from entrokern.cpu.lanes import stage_rows
from entrokern.cpu.quantities import GROUPS_UP_TO, LANES_UP_TO
from entrokern.cpu.simd import BYTES

DTYPES = (np.float32, np.float64, np.float16)


def lanes_of(dtype):
    return BYTES // max(4, np.dtype(dtype).itemsize)


def lengths(dtype):
    """Around every length at which something changes: vectors, families, blocks."""
    w = lanes_of(dtype)
    ends = (2, 3, 4, 5, 8, 9, w, w + 1, LANES_UP_TO * w, LANES_UP_TO * w + 1, 6 * w + 3, 600, GROUPS_UP_TO * w, 2500)
    return sorted({*ends, GROUPS_UP_TO * w + 1})


CASES = [(dtype, k) for dtype in DTYPES for k in lengths(dtype)]
names = [f"{np.dtype(dtype)}-{k}" for dtype, k in CASES]


ALL = {"reduction": "none", "return_grad": True, "return_hess": True}


def rows(dtype, k, n):
    rng = np.random.default_rng(k)
    x = (rng.standard_normal((n, k)) * 3).astype(dtype)
    x[:, 0] = x[:, 1]  # ties, in some rows of the largest
    return x, rng.integers(0, k, n)


@pytest.mark.parametrize(("dtype", "k"), CASES, ids=names)
def test_loss_maps_and_details(dtype, k):
    x, y = rows(dtype, k, 37)
    with ek.use_backend("reference"):
        loss, gradient, hessian = ek.cross_entropy(x, y, **ALL)
        row = ek.score(x, y, outputs=("argmax", "rank", "entropy", "max_prob"))
    found, found_gradient = ek.cross_entropy(x, y, reduction="none", return_grad=True)
    details = ek.score(x, y, outputs=("argmax", "rank", "entropy", "max_prob", "grad"))
    eps = np.finfo(np.float32 if dtype == np.float16 else dtype).eps
    np.testing.assert_allclose(found, loss, rtol=40 * eps, atol=4 * eps)
    np.testing.assert_allclose(details.entropy, row.entropy, rtol=40 * eps, atol=4 * eps)
    np.testing.assert_allclose(details.max_prob, row.max_prob, rtol=40 * eps)
    np.testing.assert_array_equal(details.argmax, row.argmax)
    np.testing.assert_array_equal(details.rank, row.rank)
    np.testing.assert_array_equal(details.grad, found_gradient)
    for some in (("argmax",), ("rank",), ("argmax", "rank")):  # without the entropy, another sweep
        apart = ek.score(x, y, outputs=some)
        for name in some:
            np.testing.assert_array_equal(getattr(apart, name), getattr(row, name))
    tiny = {"rtol": 2e-3, "atol": 1e-7} if dtype == np.float16 else {"rtol": 100 * eps, "atol": eps * 1e-3}
    np.testing.assert_allclose(found_gradient.astype(float), gradient.astype(float), **tiny)
    _, both_gradient, both_hessian = ek.cross_entropy(x, y, **ALL)
    np.testing.assert_array_equal(both_gradient, found_gradient)
    np.testing.assert_allclose(both_hessian.astype(float), hessian.astype(float), **tiny)
    strided, strided_hessian, planes = np.zeros((k, 37), dtype).T, np.zeros((k, 37), dtype).T, np.asfortranarray(x)
    ek.cross_entropy(x, y, reduction="none", grad_out=strided, hess_out=strided_hessian)
    np.testing.assert_array_equal(strided, found_gradient)
    np.testing.assert_array_equal(strided_hessian, both_hessian)
    _, alone = ek.cross_entropy(x, y, reduction="none", return_hess=True)
    np.testing.assert_array_equal(alone, both_hessian)
    _, of_planes = ek.cross_entropy(planes, y, reduction="none", return_hess=True)
    np.testing.assert_allclose(of_planes.astype(float), hessian.astype(float), **tiny)
    in_place = x.copy()
    ek.cross_entropy(in_place, y, reduction="none", grad_out=in_place, hess_out=alone)
    np.testing.assert_array_equal(in_place, found_gradient)
    np.testing.assert_array_equal(alone, both_hessian)


@pytest.mark.parametrize(("dtype", "k"), CASES, ids=names)
def test_a_bad_row_anywhere_changes_no_other(dtype, k):
    """Every place in a tile, a group and a vector; the gradient apart, in place, and in rows with gaps."""
    n = 70
    x, y = rows(dtype, k, n)
    clean, clean_gradient, clean_hessian = ek.cross_entropy(x, y, **ALL)
    for first, step in ((0, 7), (1, 7), (2, 7), (3, 7), (4, 7), (5, 7), (6, 7), (n - 1, 1)):
        bad = np.zeros(n, bool)
        bad[first::step] = True
        spoilt = x.copy()
        kinds = itertools.cycle((np.nan, np.inf, -np.inf))
        for r, value in zip(np.flatnonzero(bad), kinds, strict=False):
            spoilt[r, slice(None) if value == -np.inf else y[r]] = value
        loss, gradient = ek.cross_entropy(spoilt, y, reduction="none", return_grad=True)
        _, both_gradient, hessian = ek.cross_entropy(spoilt, y, **ALL)
        assert np.isnan(loss[bad]).all()
        assert np.isnan(gradient[bad].astype(float)).all()
        assert np.isnan(hessian[bad].astype(float)).all()
        np.testing.assert_array_equal(both_gradient, gradient)
        np.testing.assert_array_equal(hessian[~bad], clean_hessian[~bad])
        np.testing.assert_array_equal(loss[~bad], clean[~bad])
        np.testing.assert_array_equal(gradient[~bad], clean_gradient[~bad])
        wide = np.zeros((n, k + 3), dtype)
        wide_hessian = wide.copy()
        ek.cross_entropy(spoilt, y, reduction="none", grad_out=wide[:, :k], hess_out=wide_hessian[:, :k])
        np.testing.assert_array_equal(wide[:, :k], gradient)
        np.testing.assert_array_equal(wide_hessian[:, :k], hessian)
        assert not wide[:, k:].any() and not wide_hessian[:, k:].any()
        in_place = spoilt.copy()
        ek.cross_entropy(in_place, y, reduction="none", grad_out=in_place, hess_out=hessian)
        np.testing.assert_array_equal(in_place, gradient)
        np.testing.assert_array_equal(hessian, wide_hessian[:, :k])
        ek.cross_entropy(spoilt, y, reduction="none", grad_out=spoilt)
        np.testing.assert_array_equal(spoilt, gradient)


@pytest.mark.parametrize("k", [10, 100, 2500])
def test_weights_and_ignored_rows(k):
    x, y = rows(np.float32, k, 150)
    weight, of_class = np.linspace(0, 2, 150), np.linspace(0.5, 1.5, k)
    y[::5] = -100
    options = {"sample_weight": weight, "class_weight": of_class, "ignore_index": -100, "temperature": 1.5}
    x[0] = np.nan  # of weight 0
    x[5] = np.inf  # ignored
    with ek.use_backend("reference"):
        loss, gradient, hessian = ek.cross_entropy(x, y, **options, **ALL)
    found, found_gradient, found_hessian = ek.cross_entropy(x, y, **options, **ALL)
    np.testing.assert_allclose(found, loss, rtol=1e-5)
    np.testing.assert_allclose(found_gradient, gradient, rtol=2e-5, atol=1e-9)
    np.testing.assert_allclose(found_hessian, hessian, rtol=2e-5, atol=1e-9)
    assert not found_gradient[::5].any() and not found_hessian[::5].any()


@pytest.mark.parametrize("k", [1024, 1025, 1500, 2049])
def test_rows_of_logits_in_blocks(k):
    """The careful kernels take a row's normaliser block by block as the fast ones do."""
    x, y = rows(np.float32, k, 5)
    other = np.roll(x, 1, 0).copy()
    labels = {"label_smoothing": 0.1, "return_grad": True, "reduction": "none"}
    for function, args, options in (
        (ek.kl_divergence, (x, other), {"p_form": "logits", "q_form": "logits", "return_grad": "both"}),
        (ek.js_divergence, (x, other), {"p_form": "logits", "q_form": "logits", "return_grad": "both"}),
        (ek.entropy, (x,), {"form": "logits", "return_grad": True}),
        (ek.cross_entropy, (x, y), labels),
        (ek.cross_entropy, (x, y), labels | {"softcap": 5.0}),
    ):
        with ek.use_backend("reference"):
            wanted = function(*args, **{"reduction": "none"} | options)
        for got, want in zip(function(*args, **{"reduction": "none"} | options), wanted, strict=True):
            np.testing.assert_allclose(got, want, rtol=2e-5, atol=1e-8)


@pytest.mark.parametrize("k", [2, 3, 21, 130, 300, 700])
@pytest.mark.parametrize("dtype", DTYPES)
def test_stages_of_rows_side_by_side(dtype, k):
    """Several tiles are brought in at a time: as many rows as end before, with, after and far from such a stage; in
    pictures whose planes end in the middle of one; the gradient apart and in place. All as for rows in one piece."""
    stage = stage_rows(k, compute(dtype))
    for pictures, points in ((1, stage - 1), (1, stage), (2, 3 * stage + 1), (3, 2 * stage + stage // 2)):
        x, y = rows(dtype, k, pictures * points)
        x[points // 2] = np.nan
        loss, gradient, hessian = ek.cross_entropy(x, y, **ALL)
        planes = np.ascontiguousarray(x.reshape(pictures, points, k).swapaxes(1, 2))
        options = {"axis": 1, "reduction": "none"}
        labels = y.reshape(pictures, points)
        details = ek.score(planes, labels, outputs=("loss", "entropy", "argmax", "rank"), axis=1)
        same = ek.score(x, y, outputs=("loss", "entropy", "argmax", "rank"))
        for name in ("loss", "entropy", "argmax", "rank"):
            found = getattr(details, name).reshape(-1)
            np.testing.assert_allclose(found, getattr(same, name), rtol=1e-4, atol=1e-5)
        found, found_gradient = ek.cross_entropy(planes, labels, **options, return_grad=True)
        np.testing.assert_allclose(found.reshape(-1), loss, rtol=1e-4, atol=1e-5)
        as_rows = found_gradient.swapaxes(1, 2).reshape(-1, k).astype(float)
        tiny = {"rtol": 2e-3, "atol": 1e-6} if dtype == np.float16 else {"rtol": 1e-4, "atol": 1e-7}
        np.testing.assert_allclose(as_rows, gradient.astype(float), **tiny)
        _, both_gradient, found_hessian = ek.cross_entropy(planes, labels, axis=1, **ALL)
        np.testing.assert_array_equal(both_gradient, found_gradient)
        np.testing.assert_allclose(
            found_hessian.swapaxes(1, 2).reshape(-1, k).astype(float), hessian.astype(float), **tiny
        )
        again = np.empty_like(found_hessian)
        ek.cross_entropy(planes, labels, **options, grad_out=planes, hess_out=again)
        np.testing.assert_array_equal(planes, found_gradient)
        np.testing.assert_array_equal(again, found_hessian)


def compute(dtype):
    return np.dtype(np.float64 if dtype == np.float64 else np.float32)


@pytest.mark.parametrize("k", [10, 300, 3000])
def test_infinite_losses_in_place(k):
    """What a row without a finite maximum has for a loss is seen from the row itself, before a map overwrites it."""
    x, y = rows(np.float32, k, 150)
    x[::7, 3] = np.inf
    y[::7] = 4
    loss, gradient, hessian = ek.cross_entropy(x, y, **ALL)
    assert np.isposinf(loss[::7]).all()
    for maps in ({}, {"hess_out": np.empty_like(x)}):
        in_place = x.copy()
        found = ek.cross_entropy(in_place, y, reduction="none", grad_out=in_place, **maps)
        for got, want in zip(found, (loss, gradient, hessian), strict=False):
            np.testing.assert_array_equal(got, want)
