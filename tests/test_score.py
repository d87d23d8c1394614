"""`score`: each output alone equals the public function of the same name, on any mixture of outputs."""

from __future__ import annotations

import itertools
from dataclasses import FrozenInstanceError
from typing import Any

import numpy as np
import pytest

import entrokern as ek
from cases import FLOATS, IGNORED, SCORES

RNG = np.random.default_rng(0)
X = RNG.normal(size=(37, 21)) * 4
Y = RNG.integers(0, 21, size=37)
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "temperature": {"temperature": 2.5},
    "softcap": {"softcap": 8.0},
    "weights": {"sample_weight": RNG.uniform(size=37), "class_weight": RNG.uniform(size=21)},
    "smoothed": {"label_smoothing": 0.1, "base": 2},
}


def transformed(x: np.ndarray, o: dict[str, Any]) -> np.ndarray:
    c = o.get("softcap")
    z = x.astype(float) if c is None else c * np.tanh(x.astype(float) / c)
    return z / o.get("temperature", 1.0)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("options", OPTIONS)
def test_outputs(backend: str, options: str, dtype: str) -> None:
    o = OPTIONS[options]
    x = X.astype(FLOATS[dtype])
    wanted = tuple(name for name in SCORES if not (name == "hess" and "softcap" in o))
    got = ek.score(x, Y, outputs=wanted, **o)
    z = transformed(x, o)
    rows = np.arange(len(z))
    lse = np.log(np.exp(z).sum(axis=1))
    tolerance: dict[str, float] = {"rtol": 1e-5, "atol": 1e-6} if dtype != "float64" else {"rtol": 1e-12}
    log_p = z - lse[:, None]
    for name, want in {
        "lse": lse,
        "log_prob": log_p[rows, Y],
        "entropy": -(np.exp(log_p) * log_p).sum(axis=1) / np.log(o.get("base", np.e)),
        "max_prob": np.exp(log_p).max(axis=1),
        "loss": ek.cross_entropy(x, Y, reduction="none", **o),
    }.items():
        np.testing.assert_allclose(getattr(got, name), want, **tolerance, err_msg=name)
    np.testing.assert_array_equal(got.argmax, z.argmax(axis=1))
    np.testing.assert_array_equal(got.rank, (z > z[rows, Y][:, None]).sum(axis=1))
    maps = ek.cross_entropy(x, Y, reduction="none", return_grad=True, return_hess="hess" in wanted, **o)
    for name, want in zip(("grad", "hess"), maps[1:], strict=False):
        assert getattr(got, name).dtype == x.dtype
        small = {"rtol": 2e-2, "atol": 1e-6} if FLOATS[dtype].itemsize == 2 else tolerance | {"atol": 1e-12}
        np.testing.assert_allclose(getattr(got, name).astype(float), want.astype(float), **small, err_msg=name)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_any_mixture(backend: str, count: int) -> None:
    """What else is asked for changes no output (beyond rounding), and only what is asked for is there."""
    every = ek.score(X, Y, outputs=SCORES)
    for names in itertools.combinations(SCORES, count):
        got = ek.score(X, Y, outputs=names)
        for name in SCORES:
            if name in names:
                np.testing.assert_allclose(getattr(got, name), getattr(every, name), rtol=1e-12, atol=1e-300)
            else:
                assert getattr(got, name) is None


def test_defaults(backend: str) -> None:
    with_target = ek.score(X, Y)
    assert [n for n in SCORES if getattr(with_target, n) is not None] == ["loss"]
    without = ek.score(X)
    assert [n for n in SCORES if getattr(without, n) is not None] == ["lse", "entropy", "argmax", "max_prob"]
    assert ek.score(X, outputs="lse").lse.shape == (37,)
    assert ek.score(X, Y, outputs=["rank", "rank"]).rank.dtype == np.int64


def test_record_is_frozen(backend: str) -> None:
    record = ek.score(X, Y)
    assert isinstance(record, ek.Score)
    with pytest.raises(FrozenInstanceError):
        record.loss = None


@pytest.mark.parametrize("k", [2, 5, 17, 64, 1000, 3000])
def test_ties(backend: str, k: int) -> None:
    """argmax is the lowest index; rank counts the strictly larger."""
    for dtype in FLOATS:
        x = np.zeros((3, k), FLOATS[dtype])
        x[1, k // 2 :] = 1
        x[2, k - 1] = 1
        got = ek.score(x, [0, 0, k - 1], outputs=("argmax", "rank"))
        assert got.argmax.tolist() == [0, k // 2, k - 1]
        assert got.rank.tolist() == [0, k - k // 2, 0]


def test_ignored_rows(backend: str) -> None:
    labels = np.where(np.arange(37) % 3 == 0, IGNORED, Y)
    got = ek.score(X, labels, outputs=SCORES, ignore_index=IGNORED)
    plain = ek.score(X, Y, outputs=SCORES)
    ignored = labels == IGNORED
    assert (got.loss[ignored] == 0).all()
    assert (got.grad[ignored] == 0).all()
    assert np.isnan(got.log_prob[ignored]).all()
    assert (got.rank[ignored] == -1).all()
    for name in ("lse", "entropy", "argmax", "max_prob"):  # not of the target: they do not know
        np.testing.assert_array_equal(getattr(got, name), getattr(plain, name))
    for name in ("loss", "log_prob", "rank", "grad"):
        np.testing.assert_array_equal(getattr(got, name)[~ignored], getattr(plain, name)[~ignored])


def test_weight_zero_leaves_the_rest_alone(backend: str) -> None:
    """A row of weight 0 has loss 0; its log-probability and rank are still those of its label."""
    weights = np.where(np.arange(37) % 2 == 0, 0.0, 2.0)
    got = ek.score(X, Y, outputs=SCORES, sample_weight=weights)
    plain = ek.score(X, Y, outputs=SCORES)
    assert (got.loss[::2] == 0).all()
    assert (got.grad[::2] == 0).all()
    for name in ("log_prob", "rank", "lse", "argmax"):
        np.testing.assert_array_equal(getattr(got, name), getattr(plain, name))


def test_other_axis_and_batch_shape(backend: str) -> None:
    x = RNG.normal(size=(2, 5, 3, 4))
    y = RNG.integers(0, 5, size=(2, 3, 4))
    got = ek.score(x, y, axis=1, outputs=SCORES)
    flat = ek.score(np.moveaxis(x, 1, -1).reshape(-1, 5), y.reshape(-1), outputs=SCORES)
    for name in SCORES:
        value = getattr(got, name)
        value = np.moveaxis(value, 1, -1).reshape(-1, 5) if name in ("grad", "hess") else value.reshape(-1)
        np.testing.assert_allclose(value, getattr(flat, name), rtol=1e-12)


def test_accuracy_is_not_rank_zero() -> None:
    """Two classes may tie for the largest: both have rank 0, one is the argmax."""
    got = ek.score([[1.0, 1.0]], [1], outputs=("argmax", "rank"))
    assert got.rank[0] == 0
    assert got.argmax[0] != 1


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("k", [2, 7, 300, 5000])
def test_the_lowest_number_is_a_logit(backend: str, dtype: str, k: int) -> None:
    """Masks are often the lowest finite number: above -inf it is the largest."""
    for at in (0, 1, k // 2, k - 1):
        x = np.full((1, k), -np.inf, dtype)
        x[0, at] = np.finfo(dtype).min
        assert ek.score(x, outputs=("argmax",)).argmax == at
        x[0, k - 1] = x[0, at]
        assert ek.score(x, outputs=("argmax",)).argmax == at
