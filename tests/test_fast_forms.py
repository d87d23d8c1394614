"""The fast kernels of log-probabilities beside probabilities, and of labels: what tables of one form cannot show.

`test_fast.py` has their accuracy, layouts and gradients.
"""

from __future__ import annotations

from math import inf, nan
from typing import Any

import numpy as np
import pytest

import entrokern as ek
from cases import FLOATS, IGNORED, KINDS, Case, call, operands
from contract import check, input_dtype
from entrokern.cpu import distributions, divergences
from oracle import LONG, MP, evaluate
from test_fast import BY_NAME, EDGES
from test_layouts import LAYOUTS

FORMS = {"ll": ("log_probs", "log_probs"), "pl": ("probs", "log_probs"), "lp": ("log_probs", "probs")}
PAIRS = ["kl logs", "kl to logs", "kl of logs"]
MASK = -1e9

# Numbers of p and q as their forms hold them, put into a row of ordinary ones: (forms, p, q).
PLACED = [
    ("ll", -inf, -inf), ("ll", -inf, -1.0), ("ll", -1.0, -inf), ("ll", MASK, MASK), ("ll", MASK, -1.0),
    ("ll", -1.0, MASK), ("ll", MASK, -inf), ("ll", -200.0, -inf), ("ll", -800.0, -inf), ("ll", -104.0, -3e4),
    ("ll", nan, -1.0), ("ll", -inf, nan), ("ll", 0.0, -0.0), ("ll", 1.5, -1.0), ("ll", 70.0, 1.0), ("ll", 100.0, 90.0),
    ("ll", inf, 0.0), ("ll", -1.0, inf), ("ll", -inf, inf), ("ll", -90.0, -1.0), ("ll", -1.0, -90.0),
    ("pl", 0.0, -inf), ("pl", 0.0, -1.0), ("pl", 0.0, -800.0), ("pl", 0.5, -inf), ("pl", 0.5, MASK), ("pl", 0.0, MASK),
    ("pl", -0.5, -1.0), ("pl", -0.0, -1.0), ("pl", nan, -1.0), ("pl", 0.0, nan), ("pl", 0.0, inf), ("pl", 0.5, inf),
    ("pl", inf, -1.0), ("pl", 1e-6, -90.0), ("pl", 3.0, 1.0), ("pl", 1.0, 0.0), ("pl", 1e-41, -1.0),
    ("lp", -inf, 0.0), ("lp", -inf, 0.5), ("lp", -1.0, 0.0), ("lp", -200.0, 0.0), ("lp", -800.0, 0.0),
    ("lp", -1.0, -0.5), ("lp", -inf, -0.5), ("lp", nan, 0.5), ("lp", -1.0, nan), ("lp", -inf, nan), ("lp", -1.0, inf),
    ("lp", -inf, inf), ("lp", 1.0, 3.0), ("lp", 70.0, 0.5), ("lp", 0.0, 1.0), ("lp", -1.0, 1e-41), ("lp", -inf, 1e-41),
    ("lp", -90.0, 0.5), ("lp", MASK, 0.5), ("lp", MASK, 0.0),
]  # fmt: skip


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_numbers_that_are_not_ordinary(dtype: str) -> None:
    """Among ordinary ones, at the beginning and the end of a row: what the definition says, other rows as ever."""
    for forms, p, q in PLACED:
        p_form, q_form = FORMS[forms]
        options = {"p_form": p_form, "q_form": q_form}
        for k in (3, 17, 70, 129):
            ordinary = (np.full(k, 1 / k) if form == "probs" else np.full(k, -np.log(k)) for form in (p_form, q_form))
            x, y = (np.tile(row, (4, 1)).astype(dtype) for row in ordinary)
            with np.errstate(over="ignore"):
                x[1, 0], y[1, 0] = x[2, -1], y[2, -1] = p, q
            for asked in ({}, {"return_grad": "both"}):
                got = call("kl_divergence", [x, y], options | asked)
                with ek.use_backend("reference"):
                    want = call("kl_divergence", [x, y], options | asked)
                for name, values in got.items():
                    rtol, atol = (1e-5, 1e-6) if dtype == "float32" else (1e-13, 1e-14)
                    where = f"{name} of {forms} {p} {q}, k = {k}"
                    np.testing.assert_allclose(values, want[name], rtol, atol, err_msg=where)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("forms", FORMS)
def test_nearly_certain_rows(forms: str, dtype: str) -> None:
    """Where one class has nearly all of both, the bound is the smaller of two numbers near 0."""
    p_form, q_form = FORMS[forms]
    rest = 10.0 ** -np.arange(0.3, 8, 0.37)
    a, b = (np.log1p(-v) for v in np.broadcast_arrays(rest[:, None], np.minimum(rest, 0.999 * rest[::-1])[None]))
    for k in (1, 2, 70):
        x, y = np.full((a.size, k), -30.0), np.full((a.size, k), -30.0)
        x[:, 0], y[:, 0] = a.reshape(-1), b.reshape(-1)
        args = [
            (np.exp(v) if form == "probs" else v).astype(dtype)
            for v, form in ((x, p_form), (y, q_form))
        ]  # fmt: skip
        options = {"p_form": p_form, "q_form": q_form}
        want = evaluate(MP if k < 3 else LONG, "kl_divergence", args, options)
        check(call("kl_divergence", args, options), want, np.dtype(dtype), where=f"k={k}")


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", [*PAIRS, "entropy logs"])
def test_ordinary_rows_are_not_left_over(name: str, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """At every edge, as masked rows and those of certain predictions."""

    def never(*_: Any) -> None:
        raise AssertionError("left to the careful kernel")

    monkeypatch.setattr(divergences, "divergence_rows", never)
    monkeypatch.setattr(distributions, "entropy_rows", never)
    case = BY_NAME[name]
    for k in EDGES[1:]:
        args, options = operands(case, 20, k)
        args = [(np.maximum(a, 1e-4) if a.min() >= 0 else a).astype(FLOATS[dtype]) for a in args]  # but q of 0 is not
        masked = [np.where(np.arange(k) == 1, 0 if a.min() >= 0 else -inf, a).astype(a.dtype) for a in args]
        for given in (args, masked):
            assert np.isfinite(call(case.function, given, options)["loss"].astype(float)).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("base", [1 + 1e-9, 1 - 1e-9, 2, 0.5])
def test_gradients_times_what_float32_may_not_hold(base: float, dtype: str) -> None:
    """In the line of short rows and beyond it: the loss's unit multiplies numbers that are nearly nothing."""
    for k in (5, 70, 3000):
        x, y = np.full((6, k), -1.0, dtype), np.full((6, k), -1.5, dtype)
        x[:, 1], y[:, 2] = -100.0, -3.0
        for form in ("log_probs", "probs"):
            args = [x if form == "log_probs" else np.exp(x), y]
            options = {"p_form": form, "q_form": "log_probs", "base": base, "return_grad": "q"}
            got = call("kl_divergence", args, options)
            want = evaluate(LONG, "kl_divergence", args, options)["grad_q"].value.astype(float)
            rtol = 1e-12 if dtype == "float64" else 5e-6 if form == "probs" else 1e-4
            np.testing.assert_allclose(got["grad_q"], want, rtol, atol=1e-37)


# --- labels: one number of each row ---------------------------------------------------------------------

GRAD = {"reduction": "none", "return_grad": True}
PICKED = [
    Case(f"{form} {of}", "cross_entropy", (form, of), GRAD | {"form": form} | options, arrays)
    for form in ("probs", "log_probs")
    for of, options, arrays in (
        ("labels", {}, {}),
        ("some ignored", {"ignore_index": IGNORED, "base": 2},
         {"class_weight": "class weights", "sample_weight": "row weights"}),
    )
]  # fmt: skip


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("case", PICKED, ids=lambda case: case.name)
def test_labels(case: Case, dtype: str) -> None:
    """Every edge, with a gradient and without one, whose losses are the same bits; a row alone; in place."""
    for i, k in enumerate(EDGES):
        args, options = operands(case, 3 + 5 * i if k < 100 else 3, k, dtype, KINDS[i % len(KINDS)])
        got = call("cross_entropy", args, options)
        check(got, evaluate(LONG, "cross_entropy", args, options), input_dtype(case, args), where=f"k={k}")
        alone = call("cross_entropy", args, options | {"return_grad": False})["loss"]
        np.testing.assert_array_equal(got["loss"], alone)
        of_one = {o: v for o, v in options.items() if o not in ("sample_weight", "return_grad")}
        if "sample_weight" not in options:
            assert call("cross_entropy", [a[2:3] for a in args], of_one)["loss"][0] == alone[2]
        given = args[0].copy()
        ek.cross_entropy(given, args[1], **options, grad_out=given)
        np.testing.assert_array_equal(given, got["grad"])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("form", ["probs", "log_probs"])
def test_layouts_of_labels(form: str, layout: str) -> None:
    case, place = PICKED[1 if form == "probs" else 3], LAYOUTS[layout]
    for dtype, (n, k) in zip(FLOATS, ((5, 3), (66, 10), (3, 300), (9, 33)), strict=True):
        args, options = operands(case, n, k, dtype)
        want = evaluate(LONG, "cross_entropy", args, options)
        placed = {o: place(v) if isinstance(v, np.ndarray) else v for o, v in options.items()}
        check(call("cross_entropy", [place(a) for a in args], placed), want, input_dtype(case, args), where=f"{n}x{k}")


@pytest.mark.parametrize("k", [2, 3, 17, 1100])
def test_a_row_is_looked_at_as_a_whole(k: int) -> None:
    """NaN, or a negative probability, anywhere makes the row NaN, but for a row that does not count."""
    for form, bad in (("probs", nan), ("probs", -1e-30), ("log_probs", nan)):
        for at in {1, k // 2, k - 1}:
            x = np.full((20, k), 0.25 if form == "probs" else -1.0)
            x[[4, 9, 18], at] = bad
            y, s = np.zeros(20, int), np.ones(20)
            y[9], s[18] = -1, 0.0
            for given in (x, np.asfortranarray(x)):
                loss, grad = ek.cross_entropy(
                    given, y, form=form, ignore_index=-1, sample_weight=s, reduction="none", return_grad=True
                )
                assert np.flatnonzero(np.isnan(loss)).tolist() == [4]
                assert np.isnan(grad[4]).all()
                assert np.isfinite(np.delete(grad, 4, axis=0)).all()
                assert not loss[[9, 18]].any()
                assert not grad[[9, 18]].any()
    w = np.r_[0.0, np.ones(k - 1)]
    x = np.full((3, k), 0.5)
    x[0, 0], x[1, 1] = 0.0, nan
    got = ek.cross_entropy(x, np.zeros(3, int), form="probs", class_weight=w, reduction="none", return_grad=True)
    np.testing.assert_array_equal(got[0], [0, nan, 0])
    assert not got[1][[0, 2]].any()


@pytest.mark.parametrize("form", ["probs", "log_probs"])
def test_labels_out_of_range(form: str) -> None:
    x = np.full((40, 5), 0.2 if form == "probs" else -1.0)
    y = np.zeros(40, int)
    y[[17, 23]] = 5, -3
    grad = np.zeros_like(x)
    with pytest.raises(IndexError, match="label 5 of row 17 is out of range for k = 5"):
        ek.cross_entropy(x, y, form=form, reduction="none", grad_out=grad)
    assert np.isnan(grad).all()
    y[17] = 4
    loss = ek.cross_entropy(x, y, form=form, ignore_index=-3, reduction="none")
    assert np.flatnonzero(loss == 0).tolist() == [23]
    assert np.flatnonzero(ek.cross_entropy(x, y % 5, form=form, ignore_index=2, reduction="none") == 0).tolist() == [23]
