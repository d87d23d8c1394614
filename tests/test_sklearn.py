"""The room of scikit-learn: its own tests on our functions, and our functions in its estimators."""

from __future__ import annotations

import doctest
import pickle
import tracemalloc
import warnings
from collections.abc import Callable, Iterator
from types import FunctionType
from typing import Any

import numpy as np
import pytest

pytest.importorskip("sklearn", minversion="1.9", reason="the texts of errors that are compared are those of 1.9")

import sklearn._loss.loss as their_losses
import sklearn._loss.tests.test_loss as tests_of_losses
import sklearn.linear_model._logistic
import sklearn.metrics
import sklearn.metrics.tests.test_classification as tests_of_metrics
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.linear_model._linear_loss import LinearModelLoss
from sklearn.model_selection import GridSearchCV, cross_val_score
from threadpoolctl import threadpool_limits

import entrokern as ek
import entrokern.sklearn as room
from entrokern.sklearn import HalfBinomialLoss, HalfMultinomialLoss, log_loss

# scikit-learn's own tests: those of its log loss as they stand, with our function in their module …


@pytest.fixture(autouse=True)
def ours_in_their_tests(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(tests_of_metrics, "log_loss", log_loss)
    for name in ("HalfBinomialLoss", "HalfMultinomialLoss"):
        monkeypatch.setattr(tests_of_losses, name, getattr(room, name))
    return


def theirs_calling(module: Any, *names: str) -> dict[str, FunctionType]:
    return {
        f"{name}_of_theirs": test
        for name, test in vars(module).items()
        if name.startswith("test_") and not {*names}.isdisjoint(getattr(test, "__code__", log_loss.__code__).co_names)
    }


theirs = theirs_calling(tests_of_metrics, "log_loss")
assert len(theirs) >= 6, sorted(theirs)  # else they have moved
globals().update(theirs)

# … and those of its losses, with ours in place of the table of all losses.

INSTANCES = [HalfBinomialLoss(), HalfMultinomialLoss(), HalfMultinomialLoss(n_classes=4)]
OF_LOSSES = (
    *("loss_boundary", "loss_same_as_C_functions", "loss_of_perfect_prediction", "graceful_squeezing"),
    *("loss_intercept_only", "loss_pickle", "loss_gradients_are_the_same", "sample_weight_multiplies"),
    *("gradients_hessians_numerically", "predict_proba"),
)
OF_CLASSES = ("loss_dtype", "init_gradient_and_hessians", "init_gradient_and_hessian_raises")


def with_our_losses(test: FunctionType, losses: list[Any]) -> Any:
    """A copy of a test of theirs whose `loss` is one of ours."""
    copy = FunctionType(test.__code__, test.__globals__, test.__name__, test.__defaults__, test.__closure__)
    marks = [mark for mark in test.pytestmark if mark.args[:1] != ("loss",)]  # type: ignore[attr-defined]
    copy.pytestmark = [*marks, pytest.mark.parametrize("loss", losses, ids=repr_of).mark]  # type: ignore[attr-defined]
    return copy


def repr_of(loss: Any) -> str:
    return loss.__name__ if isinstance(loss, type) else f"{type(loss).__name__}{loss.n_classes}"


for _name in OF_LOSSES:
    globals()[f"test_{_name}_of_theirs"] = with_our_losses(getattr(tests_of_losses, f"test_{_name}"), INSTANCES)
for _name in OF_CLASSES:
    globals()[f"test_{_name}_of_theirs"] = with_our_losses(
        getattr(tests_of_losses, f"test_{_name}"), [HalfBinomialLoss, HalfMultinomialLoss]
    )
test_binomial_and_multinomial_loss_of_theirs = tests_of_losses.test_binomial_and_multinomial_loss
test_binomial_vs_alternative_formulation_of_theirs = tests_of_losses.test_binomial_vs_alternative_formulation
test_multinomial_loss_fit_intercept_only_of_theirs = tests_of_losses.test_multinomial_loss_fit_intercept_only


@pytest.fixture
def global_random_seed() -> int:
    return 42


@pytest.fixture
def global_dtype() -> Any:
    return np.float64  # what they run by default: in float32 two formulas need not agree to an ulp, as is asked there


SPECIFIC = next(m for m in tests_of_losses.test_loss_on_specific_values.pytestmark if m.args[0].startswith("loss,"))
OURS = {their_losses.HalfBinomialLoss: HalfBinomialLoss, their_losses.HalfMultinomialLoss: HalfMultinomialLoss}


@pytest.mark.parametrize("case", [case for case in SPECIFIC.args[1] if type(case[0]) in OURS])
def test_loss_on_specific_values_of_theirs(case: tuple[Any, ...]) -> None:
    tests_of_losses.test_loss_on_specific_values(OURS[type(case[0])](), *case[1:])


# Beside theirs: results, warnings and errors are what scikit-learn's function gives.


def probabilities(n: int, k: int, dtype: Any = np.float64, seed: int = 0) -> Any:
    p = np.random.default_rng(seed).dirichlet(np.full(k, 0.3), n).astype(dtype)
    p[::7] = np.eye(k, dtype=dtype)[np.arange(len(p[::7])) % k]  # certain, right and wrong: clipped
    return p


def outcome(function: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """What a call gives: its value, or the type and text of its error; and its warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            value = function(*args, **options)
        except Exception as error:
            value = (type(error), str(error))
    return value, sorted(str(w.message) for w in caught)


N = 3000
RNG = np.random.default_rng(1)
CODES = RNG.integers(0, 5, N)
WEIGHTS = RNG.random(N) * (RNG.random(N) > 0.2)
NAMES = np.array(["ant", "bee", "cow", "dog", "eel"])
LABELS: dict[str, Any] = {
    "int64": CODES,
    "int8 with gaps": np.array([-128, -3, 0, 100, 127], np.int8)[CODES],
    "uint64": CODES.astype(np.uint64) + np.uint64(2**63),
    "far apart": CODES * 10**9,
    "float": CODES.astype(np.float64),
    "str": NAMES[CODES],
    "object": NAMES.astype(object)[CODES],
    "list": CODES.tolist(),
    "column": CODES[:, None],
    "read-only, reversed": CODES[::-1],
}


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("weight", [None, WEIGHTS, WEIGHTS.tolist()], ids=["none", "array", "list"])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_log_loss_is_scikit_learns(dtype: Any, order: str, weight: Any, normalize: bool) -> None:
    p = np.asarray(probabilities(N, 5, dtype), order=order)
    options = {"sample_weight": weight, "normalize": normalize}
    expected = sklearn.metrics.log_loss(CODES, p, **options)
    assert log_loss(CODES, p, **options) == pytest.approx(expected, rel=1e-12 if dtype == np.float64 else 1e-5)


@pytest.mark.parametrize("kind", LABELS)
def test_log_loss_takes_any_labels(kind: str) -> None:
    p, y = probabilities(N, 5), LABELS[kind]
    classes = np.unique(y)
    expected = sklearn.metrics.log_loss(y, p)
    assert log_loss(y, p) == pytest.approx(expected, rel=1e-12)
    assert log_loss(y[:50], p[:50], labels=classes) == pytest.approx(
        sklearn.metrics.log_loss(y[:50], p[:50], labels=classes), rel=1e-12
    )


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("columns", [0, 1, 2])
def test_log_loss_of_two_classes(columns: int, dtype: Any) -> None:
    p = probabilities(N, 2, dtype)
    p = p if columns == 2 else p[:, 1:] if columns else p[:, 1]
    for y in (CODES > 2, NAMES[(CODES > 2) * 2], (CODES > 2) * 2.0 - 1.0):
        expected = sklearn.metrics.log_loss(y, p, sample_weight=WEIGHTS)
        assert log_loss(y, p, sample_weight=WEIGHTS) == pytest.approx(expected, rel=1e-6)


def test_log_loss_of_float16_is_summed_in_float64() -> None:
    p = probabilities(N, 5, np.float16)
    eps = np.finfo(np.float16).eps
    expected = -np.log(p[np.arange(N), CODES].astype(np.float64).clip(eps, 1 - eps)).mean()
    assert log_loss(CODES, p) == pytest.approx(expected, rel=1e-5)


def test_log_loss_of_indicators() -> None:
    y = (RNG.random((N, 4)) < 0.4).astype(int)
    p = probabilities(N, 4)
    for targets in (y, y.tolist()):
        assert log_loss(targets, p) == pytest.approx(sklearn.metrics.log_loss(targets, p), rel=1e-12)


P = probabilities(6, 3)
Y = [0, 1, 2, 0, 1, 2]
BAD: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "above 1": (Y, P * 1.5, {}),
    "below 0": (Y, P - 0.1, {}),
    "NaN": (Y, np.where(P == 1, np.nan, P), {}),
    "infinite": (Y, np.where(P == 1, np.inf, P), {}),
    "lengths": (Y[:5], P, {}),
    "length of weights": (Y, P, {"sample_weight": [1.0] * 5}),
    "NaN weight": (Y, P, {"sample_weight": [np.nan] * 6}),
    "two classes, three columns": ([0, 1] * 3, P, {}),
    "one class": ([1] * 6, P, {}),
    "one class, as strings": (["a"] * 6, P, {}),
    "one label": ([1] * 6, P, {"labels": [1]}),
    "undeclared": (Y, P, {"labels": [0, 1, 5]}),
    "undeclared beyond": (np.array([0, 1, 9] * 2).tolist(), P, {"labels": [0, 1, 2]}),
    "too few labels": ([0, 1] * 3, P, {"labels": [0, 1]}),
    "continuous": ([0.5, 1.1, 2.2] * 2, P, {}),
    "no rows": ([], np.empty((0, 3)), {}),
    "weights of 0": (Y, P, {"sample_weight": [0.0] * 6}),
    "unsorted labels": (Y, P, {"labels": [2, 1, 0]}),
    "not normalised": (Y, P * 0.5, {}),
    "renamed": (Y, None, {"y_pred": P}),
    "both names": (Y, P, {"y_pred": P}),
}


@pytest.mark.parametrize("case", BAD)
def test_log_loss_errs_and_warns_as_scikit_learn(case: str) -> None:
    y, p, options = BAD[case]
    (ours, our_warnings), (their, their_warnings) = (
        outcome(function, y, p, **options) for function in (log_loss, sklearn.metrics.log_loss)
    )
    assert our_warnings == their_warnings
    if isinstance(their, tuple):
        assert ours == their
    else:
        assert ours == pytest.approx(their, rel=1e-12)


def test_examples() -> None:
    assert doctest.testmod(room).failed == 0


def test_log_loss_makes_no_tables() -> None:
    p, y = probabilities(20_000, 200), RNG.integers(0, 200, 20_000)
    log_loss(y, p)
    tracemalloc.start()
    log_loss(y, p)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < p.nbytes / 16


def test_log_loss_needs_a_bool() -> None:
    with pytest.raises(TypeError, match="normalize is a str"):
        log_loss(Y, P, normalize="yes")  # type: ignore[arg-type]


@pytest.fixture
def one_thread() -> Iterator[None]:
    """For whole estimators: the threads of OpenMP and BLAS wait by spinning, on a busy machine for long."""
    with threadpool_limits(1):
        yield


@pytest.mark.usefixtures("one_thread")
def test_scorer() -> None:
    x, y = load_breast_cancer(return_X_y=True)
    model = HistGradientBoostingClassifier(max_iter=2)
    for data in ((x, y), load_digits(return_X_y=True)):
        ours = cross_val_score(model, *data, scoring=room.neg_log_loss_scorer, cv=3)
        np.testing.assert_allclose(ours, cross_val_score(model, *data, scoring="neg_log_loss", cv=3), rtol=1e-9)
    search = GridSearchCV(model, {"max_leaf_nodes": [3, 7]}, scoring=room.neg_log_loss_scorer, cv=2).fit(x, y)
    assert search.best_score_ < 0


# The losses: array by array what scikit-learn's are, and in its estimators.


def case_of(k: int, dtype: Any, order: str, n: int = 9000, scale: float = 4.0) -> tuple[Any, Any, Any]:
    rng = np.random.default_rng(k)
    raw = np.asarray(rng.normal(size=(n, k)) * scale, dtype, order)  # type: ignore[call-overload]
    y = rng.integers(0, max(k, 2), n).astype(dtype)
    return y, raw[:, 0].copy() if k == 1 else raw, rng.random(n).astype(dtype)


def both(k: int) -> tuple[Any, Any]:
    if k == 1:
        return HalfBinomialLoss(), their_losses.HalfBinomialLoss()
    return HalfMultinomialLoss(n_classes=k), their_losses.HalfMultinomialLoss(n_classes=k)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("out", [None, np.float32, np.float64])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("k", [1, 3, 40])
def test_losses_are_scikit_learns(k: int, dtype: Any, order: str, out: Any, weighted: bool) -> None:
    y, raw, weight = case_of(k, dtype, order)
    ours, theirs = both(k)
    weight = weight if weighted else None
    methods = ["loss", "loss_gradient", "gradient", "gradient_hessian"] + ["gradient_proba"] * (k > 1)
    wide = dtype == np.float64 and out != np.float32
    for method in methods:
        results = []
        for loss, threads in ((ours, 2), (ours, 1), (theirs, 1)):
            outs = {}
            if out is not None:
                names = method.replace("_hessian", " hessian").replace("_proba", " proba").replace("s_g", "s g")
                for name in names.split():
                    like = y if name == "loss" else raw
                    outs[f"{name}_out"] = np.empty_like(like, dtype=out)
            found = getattr(loss, method)(y, raw, sample_weight=weight, n_threads=threads, **outs)
            found = found if isinstance(found, tuple) else (found,)
            assert all(a is b for a, b in zip(found, outs.values(), strict=False))
            results.append(found)
        for parallel, serial, expected in zip(*results, strict=True):
            assert serial.dtype == expected.dtype and serial.flags.f_contiguous == expected.flags.f_contiguous
            np.testing.assert_array_equal(parallel, serial)
            tolerance = {"rtol": 1e-11, "atol": 1e-15} if wide else {"rtol": 2e-5, "atol": 1e-6}
            np.testing.assert_allclose(serial, expected, **tolerance)
    assert ours(y, raw, weight) == pytest.approx(theirs(y, raw, weight), rel=1e-12 if dtype == np.float64 else 1e-5)


def test_small_probabilities_keep_their_hessian() -> None:
    """``p·(1-p)`` is relatively accurate for the label's class, whether ``p`` or ``1-p`` is small."""
    raw = np.array([[0.0, -30.0, -31.0], [0.0, -30.0, -31.0]], np.float32)
    y = np.array([1, 0], np.float32)
    _, hessian = HalfMultinomialLoss().gradient_hessian(y, raw)
    expected = ek.score(raw.astype(np.float64), [1, 0], outputs="hess").hess
    np.testing.assert_allclose(hessian[[0, 1], [1, 0]], expected[[0, 1], [1, 0]], rtol=2e-6)
    np.testing.assert_allclose(hessian, expected, atol=2**-24)


def test_rows_of_weight_0_do_not_count() -> None:
    raw = np.array([[np.nan, 0.0, np.inf], [1.0, 2.0, 3.0]])
    y, weight = np.array([0.0, 1.0]), np.array([0.0, 2.0])
    for found in HalfMultinomialLoss().gradient_hessian(y, raw, weight):
        assert not found[0].any() and np.isfinite(found[1]).all()


@pytest.mark.parametrize(
    ("method", "names"),
    [
        ("gradient", ["gradient_out"]),
        ("gradient_hessian", ["gradient_out"]),
        ("gradient_hessian", ["hessian_out"]),
        ("gradient_proba", ["gradient_out"]),
        ("gradient_proba", ["proba_out"]),
    ],
)
def test_results_may_overwrite_the_predictions(method: str, names: list[str]) -> None:
    y, raw, _ = case_of(5, np.float64, "C", 40000)
    expected = getattr(HalfMultinomialLoss(n_classes=5), method)(y, raw)
    found = getattr(HalfMultinomialLoss(n_classes=5), method)(y, raw, **dict.fromkeys(names, raw))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("bad", [3.0, -1.0, 0.5, np.nan])
def test_labels_that_are_no_class(bad: float) -> None:
    y = np.array([0.0, bad, 7.0])
    with pytest.raises(IndexError, match=rf"label {bad} of row 1 is no class: the 3 classes are 0 to 2"):
        HalfMultinomialLoss().gradient_hessian(y, np.zeros((3, 3)))


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(
    ("load", "loss"), [(load_breast_cancer, HalfBinomialLoss()), (load_digits, HalfMultinomialLoss(n_classes=10))]
)
def test_in_histogram_boosting(load: Any, loss: Any, weighted: bool) -> None:
    """The whole path: baseline, gradients and Hessians in float32 of Fortran-ordered float64, early stopping."""
    x, y = load(return_X_y=True)
    weight = np.random.default_rng(0).random(len(y)) + 0.5 if weighted else None
    options: Any = {"max_iter": 5, "early_stopping": True, "random_state": 0}
    theirs = HistGradientBoostingClassifier(**options).fit(x, y, weight)
    ours = HistGradientBoostingClassifier(loss=loss, **options).fit(x, y, weight)
    np.testing.assert_allclose(ours.validation_score_, theirs.validation_score_, rtol=1e-5)
    np.testing.assert_allclose(ours.predict_proba(x), theirs.predict_proba(x), atol=1e-4)
    again = pickle.loads(pickle.dumps(ours))
    np.testing.assert_array_equal(again.predict_proba(x), ours.predict_proba(x))


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("solver", ["lbfgs", "newton-cg", "newton-cholesky"])
@pytest.mark.parametrize("load", [load_breast_cancer, load_digits])
def test_in_logistic_regression(load: Any, solver: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = load(return_X_y=True)
    x = (x[:500] - x.mean(axis=0)) / (x.std(axis=0) + 1e-3)
    model = LogisticRegression(solver=solver, tol=1e-6, max_iter=500)
    theirs = model.fit(x, y[:500]).predict_proba(x)
    used = []

    class Noted(HalfMultinomialLoss):
        def __init__(self, **options: Any) -> None:
            used.append(options)
            super().__init__(**options)

    monkeypatch.setattr(sklearn.linear_model._logistic, "HalfMultinomialLoss", Noted)
    monkeypatch.setattr(sklearn.linear_model._logistic, "HalfBinomialLoss", HalfBinomialLoss)
    ours = model.fit(x, y[:500]).predict_proba(x)
    assert used or load is load_breast_cancer
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_as_base_of_a_linear_loss() -> None:
    x, y = load_digits(return_X_y=True)
    y = y.astype(np.float64)
    coef = np.random.default_rng(0).normal(size=(10, 65), scale=0.01)
    (ours, our_gradient), (theirs, their_gradient) = (
        LinearModelLoss(base_loss=loss, fit_intercept=True).loss_gradient(coef, x, y, l2_reg_strength=0.1)
        for loss in both(10)
    )
    assert ours == pytest.approx(theirs, rel=1e-12)
    np.testing.assert_allclose(our_gradient, their_gradient, rtol=1e-9, atol=1e-12)
