"""Section 4's accuracy contract: every output against mpmath at 50 digits, in units of its bound.

The oracle computes from the exact stored inputs, so a row in bfloat16 is judged by what it holds. The
worst errors are printed at the end of the run (see `conftest.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest

import entrokern as ek
from cases import BY_NAME, EACH, FLOATS, KINDS, Case, call, operands
from contract import bound, check, input_dtype, output_dtype, units
from oracle import LONG, MP, Result, Results, evaluate

Record = Callable[[str, str, str, float], None]

# What is measured: all outputs of logits, of probabilities and of log-probabilities, unreduced.
MEASURED = [
    "ce labels", "ce labels hess", "ce dense grad", "ce smoothed", "ce temperature", "ce softcap",
        "ce z-loss",
    "ce base 2", "ce mean grad", "ce weights", "ce probs", "ce log_probs", "ce log_probs dense", "perplexity",
    "bce grad", "bce smoothed", "bce pos_weight", "bce fractions", "bce rows", "bce probs", "bce log_probs",
    "entropy logits", "entropy probs", "entropy log_probs",
    *(f"{f} {p} {q}" for f in ("kl", "js") for p in ("logits", "log_probs", "probs")
      for q in ("logits", "log_probs", "probs")),
    "kl mean", "js weight", "estimate k1", "estimate k2", "estimate k3",
    "information", "logsumexp", "log_softmax", "softmax", "score labels",
]  # fmt: skip

# (rows, classes, kinds of data): mpmath takes about 40 µs for an element of a case.
DRAWS = [(2, 1, KINDS[:3]), (3, 2, KINDS), (2, 3, KINDS), (2, 10, KINDS), (1, 100, KINDS[2:5])]
LARGE = [(1, 1000, ("wide", "confident"))]
LARGE_CASES = (
    "ce labels hess",
    "ce dense grad",
    "entropy logits",
    "kl logits logits",
    "js probs probs",
    "score labels",
)


@cache
def expected(name: str, n: int, k: int, dtype: str, kind: str) -> tuple[list[Any], dict[str, Any], Results]:
    """Inputs and oracle of a draw, computed once for all backends."""
    case = BY_NAME[name]
    args, options = operands(case, n, k, dtype, kind, seed=1)
    return args, options, evaluate(MP, case.function, args, options)


def measure(case: Case, n: int, k: int, dtype: str, kind: str, backend: str, record: Record) -> None:
    args, options, want = expected(case.name, n, k, dtype, kind)
    got = call(case.function, args, options)
    worst = check(got, want, input_dtype(case, args), where=f"{case.name} n={n} k={k} {dtype} {kind}")
    for output, error in worst.items():
        record(f"{case.function}: {output}", backend, dtype, error)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", MEASURED)
def test_contract(name: str, dtype: str, backend: str, record_error: Record) -> None:
    for n, k, kinds in DRAWS + (LARGE if name in LARGE_CASES else []):
        for kind in kinds:
            measure(BY_NAME[name], n, k, dtype, kind, backend, record_error)


DEEP = ((100, 3), (20, 17), (6, 100), (1, 1000))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", MEASURED)
def test_contract_deep(name: str, dtype: str, backend: str, record_error: Record) -> None:
    """Any two of dtype, kind of data and shape meet, for every case."""
    for i, kind in enumerate(KINDS):
        n, k = DEEP[(i + list(FLOATS).index(dtype)) % len(DEEP)]
        measure(BY_NAME[name], n, k, dtype, kind, backend, record_error)


# --- long rows: mpmath would take minutes, the long double oracle is enough -----------------------

LONG_DRAWS = [(name, kind) for name in ("ce labels hess", "ce dense grad", "entropy logits", "score labels",
                                        "log_softmax", "ce probs", "bce rows")
              for kind in ("normal", "wide", "confident", "sorted", "holes")]  # fmt: skip


@pytest.mark.parametrize("name", sorted({name for name, _ in LONG_DRAWS}))
def test_long_double_is_a_fair_oracle(name: str) -> None:
    """Where both run, the two oracles agree to a hundredth of the float64 bound."""
    case = BY_NAME[name]
    for kind in ("normal", "wide", "confident", "sorted", "holes"):
        args, options, exact = expected(name, 3, 10, "float64", kind)
        for output, want in evaluate(LONG, case.function, args, options).items():
            if output in ("argmax", "rank"):
                np.testing.assert_array_equal(want.value, exact[output].value.astype(int))
                continue
            allowed = bound(exact[output], np.dtype(float), output_dtype(output, np.dtype(float)))
            finite = np.isfinite(want.value.astype(float))
            low = want.value[finite] - want.value[finite].astype(np.float64)
            exactly = MP.array(want.value[finite]) + MP.array(low)
            error = abs(exactly - exact[output].value[finite]) / allowed[finite]
            assert np.max(error, initial=0.0) < 0.01, (output, kind)


def measure_long(name: str, kind: str, k: int, dtype: str, backend: str, record: Record) -> None:
    case = BY_NAME[name]
    args, options = operands(case, 1, k, dtype, kind, seed=2)
    want = evaluate(LONG, case.function, args, options)
    got = call(case.function, args, options)
    where = f"{name} k={k} {dtype} {kind}"
    for output, error in check(got, want, input_dtype(case, args), where=where).items():
        record(f"{case.function}: {output}", backend, dtype, error)


@pytest.mark.parametrize(("name", "kind"), LONG_DRAWS[::3])
def test_long_rows(name: str, kind: str, backend: str, record_error: Record) -> None:
    for dtype in ("float32", "float64"):
        measure_long(name, kind, 100_000, dtype, backend, record_error)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kind"), LONG_DRAWS)
def test_longest_rows(name: str, kind: str, backend: str, record_error: Record) -> None:
    """Every case meets every kind of data and every dtype."""
    at = LONG_DRAWS.index((name, kind))
    measure_long(name, kind, 1_000_000, list(FLOATS)[(at + at // 5) % 4], backend, record_error)


# --- options of labels, where A·p - b is a difference of numbers that can be equal ----------------------------

OPTIONS: dict[str, dict[str, Any]] = {
    "smoothed": {"label_smoothing": 0.1},
    "smoothed, temperature": {"label_smoothing": 0.25, "temperature": 3.0},
    "half smoothed": {"label_smoothing": 0.5},
    "all but smoothed away": {"label_smoothing": 1.0},
    "z-loss": {"z_loss": 1e-3},
    "softcap": {"softcap": 5.0},
    "softcap of a unit": {"softcap": 1.0, "z_loss": 2.0},
    "all": {"label_smoothing": 0.1, "z_loss": 0.01, "softcap": 10.0, "temperature": 0.5, "base": 2},
    "weights": {"label_smoothing": 0.3, "class_weight": True},
    "equal weights": {"label_smoothing": 1.0, "class_weight": 1.1},
    "weights, z-loss": {"z_loss": 1e-3, "class_weight": True},
}


def near_targets(rng: np.random.Generator, n: int, k: int, y: Any) -> dict[str, Any]:
    """Logits whose softmax comes near the smoothed target, or is next to even, or that are at the cap."""
    z = rng.normal(size=(n, k))
    won = z * 10.0 ** rng.uniform(-3, 0, (n, 1))
    won[np.arange(n), y] += np.log(9 * k) * rng.uniform(0.9, 1.1, n)
    few = np.where(rng.random((n, k)) < 0.2, -np.inf, 0.01 * z)
    few[np.arange(n), y] = 0
    return {
        "even": 10.0 ** rng.uniform(-4, 0, (n, 1)) * z,
        "equal": np.zeros((n, k)) + rng.normal(size=(n, 1)),
        "won": won,
        "masked": few,
        "capped": np.sign(z) * rng.uniform(10, 40, (n, k)),
        "rising": np.sort(z * 10.0 ** rng.uniform(-1, 1, (n, 1)), axis=1),
    }


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", OPTIONS)
def test_gradients_that_nearly_cancel(name: str, dtype: str, backend: str, record_error: Record) -> None:
    """In float32 too, where p may be the smoothed target's to the last digit; 16-bit logits with maps of float32."""
    given = EACH | OPTIONS[name]
    for n, k in ((8, 2), (6, 3), (4, 10), (3, 130), (1, 2000)):
        rng = np.random.default_rng(k)
        y = rng.integers(0, k, n)
        options = {"return_grad": True, **given}
        if weight := options.get("class_weight"):
            options["class_weight"] = np.full(k, weight) if weight != 1 else rng.uniform(0.1, 3, k)
        if not {"softcap", "z_loss"} & set(options):
            options["return_hess"] = True
        for kind, z in near_targets(rng, n, k, y).items():
            x = z.astype(FLOATS[dtype])
            maps = {o: np.empty(x.shape, np.float32) for o in ("grad_out", "hess_out")} if x.itemsize == 2 else {}
            if "return_hess" not in options:
                maps.pop("hess_out", None)
            got = call("cross_entropy", [x, y], options | maps)
            for output, want in evaluate(LONG, "cross_entropy", [x, y], options).items():
                if output not in got:
                    continue
                error = units(got[output], want, bound(want, x.dtype, got[output].dtype))
                assert error.max() <= 1, (output, kind, n, k, float(error.max()))
                record_error(f"cross_entropy: {output}", backend, dtype, float(error.max()))


# --- statements of section 4 that are not a bound -------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("k", [2, 3, 10, 33, 1000, 2049])
def test_equal_operands_have_exactly_no_divergence(backend: str, dtype: str, k: int) -> None:
    rng = np.random.default_rng(k)
    x = (rng.normal(size=(9, k)) * 10.0 ** rng.uniform(-2, 3, size=(9, 1))).astype(FLOATS[dtype])
    for function in (ek.kl_divergence, ek.js_divergence):
        for form in ("logits", "log_probs", "probs"):
            p = np.abs(x) / np.abs(x).max() if form == "probs" else x if form == "logits" else -np.abs(x)
            p = p.astype(FLOATS[dtype])
            loss = function(p, p.copy(), p_form=form, q_form=form, temperature=1.0)
            np.testing.assert_array_equal(loss, 0.0, err_msg=f"{function.__name__} {form}")
    assert (ek.kl_divergence(x, x[::-1], p_form="logits", q_form="logits") >= 0).all()
    assert (ek.js_divergence(x, x[::-1], p_form="logits", q_form="logits") >= 0).all()


def test_true_class_gradient(backend: str) -> None:
    """``-(Σ_{j≠y} p_j)``, not ``p_y - 1``: in bfloat16 too, where 1 - 0.9999 has no digits left."""
    for dtype, rtol in (("float32", 1e-5), ("bfloat16", 2.0**-8), ("float16", 2.0**-10)):
        x = np.array([[9.25, 0, 0]]).astype(FLOATS[dtype])
        grad = ek.cross_entropy(x, [0], return_grad=True, reduction="none")[1].astype(float)
        others = 2 * np.exp(-9.25) / (1 + 2 * np.exp(-9.25))
        np.testing.assert_allclose(grad[0, 0], -others, rtol=rtol)


def test_the_test_can_fail() -> None:
    """A result off by 5 eps is out of bounds, one off by 3 is not; a wrong infinity or NaN always is."""
    want = Result(np.array([1.0], np.longdouble), np.array([1.0]))
    for dtype in (np.dtype(np.float32), np.dtype(np.float64)):
        allowed = bound(want, dtype, dtype)
        eps = np.finfo(dtype).eps
        assert units(np.array([1 + 3 * eps], dtype), want, allowed) <= 1
        assert units(np.array([1 + 5 * eps], dtype), want, allowed) > 1
        for wrong in (np.inf, np.nan, -np.inf):
            assert units(np.array([wrong], dtype), want, allowed) == np.inf
    args, options, want_all = expected("ce labels", 4, 2, "float32", "normal")
    got = call("cross_entropy", args, options)
    got["loss"] = got["loss"] * np.float32(1 + 2e-5)
    with pytest.raises(AssertionError, match="times the bound"):
        check(got, want_all, np.dtype(np.float32))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("k", [2, 10, 1000])
def test_rows_that_differ_by_a_constant_have_exactly_no_divergence(backend: str, dtype: str, k: int) -> None:
    x = np.random.default_rng(k).integers(-30, 30, size=(9, k))
    p, q = x.astype(FLOATS[dtype]), (x + 64).astype(FLOATS[dtype])
    for function in (ek.kl_divergence, ek.js_divergence):
        np.testing.assert_array_equal(function(p, q, p_form="logits", q_form="logits"), 0.0, err_msg=function.__name__)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("k", [2, 3, 10, 100])
def test_rows_that_hardly_differ(backend: str, dtype: str, k: int, record_error: Record) -> None:
    """By a last bit in one class or in some: the divergence is of the size of what rounding does to log(p/q)."""
    rng = np.random.default_rng(k)
    n = max(2, 40 // k)
    p = (rng.normal(size=(n, k)) * 10.0 ** rng.uniform(-3, 2, size=(n, 1))).astype(FLOATS[dtype])
    bits = p.copy().view(f"u{p.itemsize}")
    bits += (np.arange(k) == rng.integers(k, size=(n, 1))) | (rng.random((n, k)) < rng.choice([0, 0.5], size=(n, 1)))
    q, forms = bits.view(p.dtype), {"p_form": "logits", "q_form": "logits"}
    for function, options in (("kl_divergence", forms | {"return_grad": "q"}), ("js_divergence", forms)):
        want = evaluate(MP, function, [p, q], options)
        for output, error in check(call(function, [p, q], options), want, p.dtype).items():
            record_error(f"{function}: {output}", backend, dtype, error)
