"""The room of XGBoost and LightGBM: what its objectives compute, and that both train with them as with their own."""

from __future__ import annotations

import doctest
import pickle
import subprocess
import sys
from inspect import signature
from typing import Any, NamedTuple

import mpmath
import numpy as np
import pytest

import entrokern as ek
import entrokern.gbdt
from entrokern.gbdt import logistic_metric, logistic_objective, softmax_metric, softmax_objective

ROUNDS = 8
HESSIANS = ["exact", "xgboost", "lightgbm"]
SETTINGS = {"verbosity": 0, "nthread": 1, "seed": 0}  # OpenMP's threads wait by spinning, on a busy machine for long


class Data:
    """What a `DMatrix` or `Dataset` says of itself."""

    def __init__(self, labels: Any, weight: Any) -> None:
        self.get_label, self.get_weight = lambda: labels, lambda: weight


# What is computed.


def expected_softmax(x: Any, y: Any, hessian: str) -> tuple[Any, Any]:
    """By 50 digits."""
    k = x.shape[1]
    scale = {"exact": 1, "xgboost": 2, "lightgbm": mpmath.mpf(k) / (k - 1)}[hessian]
    grad, hess = np.empty(x.shape), np.empty(x.shape)
    with mpmath.workdps(50):
        for i, row in enumerate(x):
            e = [mpmath.exp(mpmath.mpf(float(v)) - float(row.max())) for v in row]
            for c in range(k):
                p = e[c] / sum(e)
                grad[i, c], hess[i, c] = p - (c == y[i]), scale * p * (1 - p)
    return grad, np.maximum(hess, 1e-16) if hessian == "xgboost" else hess


@pytest.mark.parametrize("hessian", HESSIANS)
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_softmax_objective(dtype: Any, order: str, hessian: str) -> None:
    rng = np.random.default_rng(0)
    x = np.asarray(rng.normal(size=(60, 7)) * 8, dtype, order)  # type: ignore[call-overload]
    y = rng.integers(0, 7, 60)
    weight = rng.random(60)
    objective = softmax_objective(hessian=hessian)
    found = objective(x, Data(y.astype(np.float32), np.empty(0, np.float32)))
    expected = expected_softmax(x, y, hessian)
    eps = np.finfo(dtype).eps
    label = np.arange(60), y
    for f, e in zip(found, expected, strict=True):
        assert f.dtype == dtype and f.flags.f_contiguous == (order == "F")
        np.testing.assert_allclose(f, e, atol=4 * eps)
        np.testing.assert_allclose(f[label], e[label], rtol=200 * eps, atol=1e-16)  # 4 eps of the logits' range
    for same in (objective(y, x), objective(y, x, None), objective(x, Data(y, None)), objective(y.tolist(), x)):
        np.testing.assert_array_equal(same, found)
    weighted = [f * weight[:, None] for f in found]
    for found in (objective(y, x, weight), objective(y, x, sample_weight=weight), objective(x, Data(y, weight))):
        np.testing.assert_allclose(found, weighted, rtol=4 * eps, atol=1e-16)


@pytest.mark.parametrize("hessian", HESSIANS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(80,), (80, 1), (20, 4)])
def test_logistic_objective(shape: tuple[int, ...], dtype: Any, hessian: str) -> None:
    rng = np.random.default_rng(0)
    x, weight = (rng.normal(size=shape) * 8).astype(dtype), rng.random(shape[0])
    y = np.where(rng.random(shape) < 0.2, 0.25, rng.random(shape) < 0.5)
    w = weight.reshape(-1, *[1] * (len(shape) - 1)) * (1 + 2 * y)
    p = 1 / (1 + np.exp(-x.astype(np.float64)))
    s = weight.reshape(-1, *[1] * (len(shape) - 1))
    grad, hess = logistic_objective(hessian=hessian, pos_weight=3.0)(x, Data(y.astype(np.float32).ravel(), weight))
    assert grad.dtype == hess.dtype == dtype and grad.shape == hess.shape == shape
    eps = float(np.finfo(dtype).eps)
    np.testing.assert_allclose(grad, s * ((1 - y) * p - 3 * y * (1 - p)), rtol=100 * eps, atol=8 * eps)
    np.testing.assert_allclose(hess, w * p * (1 - p), rtol=100 * eps, atol=8 * eps)
    assert hessian != "xgboost" or (hess >= 1e-16).all()
    assert logistic_metric()(y, x, sample_weight=weight) == pytest.approx(
        float(np.sum(s * -(y * np.log(p) + (1 - y) * np.log1p(-p))) / (s.sum() * x.size / len(x))), rel=1e-5
    )


@pytest.mark.parametrize("hessian", HESSIANS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_very_negative_margins(dtype: Any, hessian: str) -> None:
    low = np.finfo(dtype).min
    x = np.array([[-1e30] * 3, [low] * 3, [low, 0, -low], [-np.inf, -1e30, -1e30], [-1000, -1001, -1002]], dtype)
    for y in range(3):
        grad, hess = softmax_objective(hessian=hessian)([y] * 5, x)
        assert np.isfinite(grad).all() and np.isfinite(hess).all() and (hess >= 0).all()
        np.testing.assert_allclose(grad[0], np.where(np.arange(3) == y, -2 / 3, 1 / 3), rtol=1e-6)
        np.testing.assert_allclose(grad.sum(axis=1), 0, atol=1e-6)
        assert np.isfinite(softmax_metric()([y] * 2, x[:2]))
    for v in (-1e30, low, -low):
        for f in logistic_objective(hessian=hessian)([0, 1], np.full(2, v, dtype)):
            assert np.isfinite(f).all()


def test_rows_are_the_same_in_any_batch() -> None:
    """Blocks and threads change nothing: a row's results are its own."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(70_001, 10)).astype(np.float32), rng.integers(0, 10, 70_001)
    whole, part = (softmax_objective()(y[at], x[at]) for at in (slice(None), slice(69_000, None)))
    np.testing.assert_array_equal([f[69_000:] for f in whole], part)
    np.testing.assert_array_equal(whole[0], ek.score(x, y, outputs="grad").grad)
    np.testing.assert_allclose(whole[1], ek.score(x, y, outputs="hess").hess, atol=2**-24)


MARGINS = np.zeros((4, 3))
BAD: dict[str, tuple[Any, Any, Any, str]] = {
    "one margin per row": (softmax_objective(), (np.zeros(4), Data([0] * 4, None)), ValueError, "set num_class"),
    "one class": (softmax_objective(), ([0], np.zeros((1, 1))), ValueError, "k ≥ 2 classes"),
    "labels of another length": (softmax_objective(), ([0] * 3, MARGINS), ValueError, "one class per row"),
    "no labels": (softmax_objective(), (MARGINS, Data(None, None)), ValueError, "the Data has no labels"),
    "fraction": (softmax_objective(), ([0, 1, 1.5, 2], MARGINS), IndexError, r"label 1\.5 of row 2 is no class"),
    "beyond": (softmax_metric(), (MARGINS, Data([0, 1, 2, 3], None)), IndexError, "label 3 of row 3 is no class"),
    "names": (softmax_objective(), (["a"] * 4, MARGINS), ValueError, "dtype <U1; pass one class 0 to 2 per row"),
    "weights": (softmax_objective(), ([0] * 4, MARGINS, np.ones(3)), ValueError, "weights have shape"),
    "strings": (softmax_objective(), ([0] * 4, MARGINS.astype(str)), TypeError, "predictions has dtype <U32"),
    "margins of classes": (logistic_objective(), ([0] * 4, MARGINS), ValueError, "take the softmax objective"),
    "transposed": (logistic_objective(), (MARGINS.T, MARGINS), ValueError, "one label per margin"),
    "label 2": (logistic_objective(), ([0, 2], np.zeros(2)), ValueError, "label 2 of row 1 is out of range"),
    "label NaN": (logistic_metric(), ([0, np.nan], np.zeros(2)), ValueError, "label nan of row 1 is out of range"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arguments(case: str) -> None:
    function, arguments, error, text = BAD[case]
    with pytest.raises(error, match=text):
        function(*arguments)


def test_unknown_options() -> None:
    with pytest.raises(ValueError, match="hessian='newton' is not known; choose one of 'exact', 'xgboost'"):
        softmax_objective(hessian="newton")
    with pytest.raises(ValueError, match="form='margins' is not known"):
        logistic_metric(form="margins")
    with pytest.raises(ValueError, match="pos_weight=0"):
        logistic_objective(pos_weight=0)


def test_objects_are_pickled_equal_and_have_the_signatures_that_both_look_for() -> None:
    for function in (softmax_objective(hessian="xgboost"), logistic_objective(pos_weight=2), softmax_metric()):
        assert pickle.loads(pickle.dumps(function)) == function
    assert list(signature(softmax_objective()).parameters) == ["first", "second", "sample_weight"]
    assert len(signature(logistic_metric()).parameters) == 4


def test_examples() -> None:
    assert doctest.testmod(entrokern.gbdt).failed == 0


def test_neither_library_is_imported() -> None:
    code = "import sys, entrokern.gbdt; print({'xgboost', 'lightgbm', 'sklearn'} & {*sys.modules})"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout.strip() == b"set()"


# In the libraries: the metric of every round is what their own objective gets.


class Task(NamedTuple):
    objective: Any
    metric: Any
    classes: int


SOFTMAX, LOGISTIC = Task(softmax_objective, softmax_metric, 10), Task(logistic_objective, logistic_metric, 2)
TASKS = pytest.mark.parametrize("task", [SOFTMAX, LOGISTIC], ids=["softmax", "logistic"])
WEIGHTED = pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])


def task_data(task: Task, weighted: bool) -> tuple[Any, Any, Any]:
    datasets = pytest.importorskip("sklearn.datasets", reason="the data are scikit-learn's")
    x, y = (datasets.load_digits if task is SOFTMAX else datasets.load_breast_cancer)(return_X_y=True)
    return x, y, np.random.default_rng(0).random(len(y)) + 0.5 if weighted else None


@WEIGHTED
@TASKS
def test_xgboost_trains_as_by_itself(task: Task, weighted: bool) -> None:
    xgboost = pytest.importorskip("xgboost", reason="trains with it")
    x, y, weight = task_data(task, weighted)
    data = xgboost.DMatrix(x, y, weight=weight)
    settings = SETTINGS | {"max_depth": 4} | ({"num_class": 10} if task is SOFTMAX else {})
    curves: list[dict[str, Any]] = [{}, {}, {}]
    own, begin = ("multi:softprob", 0.5) if task is SOFTMAX else ("binary:logistic", 0.0)
    options = {"num_boost_round": ROUNDS, "evals": [(data, "train")], "verbose_eval": False}
    xgboost.train(
        settings | {"objective": own, "base_score": 0.5}, data,
        evals_result=curves[0], custom_metric=task.metric(form="probs"), **options,
    )  # fmt: skip
    for hessian, curve in zip(("xgboost", "exact"), curves[1:], strict=True):
        xgboost.train(
            settings | {"base_score": begin, "disable_default_eval_metric": True}, data,
            obj=task.objective(hessian=hessian), custom_metric=task.metric(), evals_result=curve, **options,
        )  # fmt: skip
    name = "mlogloss" if task is SOFTMAX else "logloss"
    theirs, ours, exact = (curve["train"] for curve in curves)
    (measured,) = ours
    assert measured == ("cross_entropy" if task is SOFTMAX else "binary_cross_entropy")
    np.testing.assert_allclose(ours[measured], theirs[name], atol=2e-6)
    np.testing.assert_allclose(theirs[measured], theirs[name], atol=2e-6)  # of their probabilities
    assert len(ours[measured]) == ROUNDS and ours[measured][-1] < 0.5 * ours[measured][0]
    assert (abs(exact[measured][-1] - theirs[name][-1]) > 1e-3) == (task is SOFTMAX)  # half the Hessian tells


@WEIGHTED
@TASKS
def test_lightgbm_trains_as_by_itself(task: Task, weighted: bool) -> None:
    lightgbm = pytest.importorskip("lightgbm", reason="trains with it")
    x, y, weight = task_data(task, weighted)
    own, name = ("multiclass", "multi_logloss") if task is SOFTMAX else ("binary", "binary_logloss")
    settings = SETTINGS | {"boost_from_average": False, "verbosity": -1, "num_leaves": 8}
    settings |= {"num_class": 10} if task is SOFTMAX else {}

    def trained(form: str, **options: Any) -> Any:
        curve: dict[str, Any] = {}
        data = lightgbm.Dataset(x, y, weight=weight)
        lightgbm.train(
            settings | options, data, ROUNDS, valid_sets=[data], feval=task.metric(form=form),
            callbacks=[lightgbm.record_evaluation(curve)],
        )  # fmt: skip
        return curve["training"]

    theirs = trained("probs", objective=own, metric=name)
    (ours,) = trained("logits", objective=task.objective(hessian="lightgbm"), metric="None").values()
    (exact,) = trained("logits", objective=task.objective(), metric="None").values()
    measured = "cross_entropy" if task is SOFTMAX else "binary_cross_entropy"
    np.testing.assert_allclose(ours, theirs[name], rtol=1e-9)
    np.testing.assert_allclose(theirs[measured], theirs[name], rtol=1e-9)
    assert ours[-1] < 0.8 * ours[0]
    assert (abs(exact[-1] - ours[-1]) > 1e-3) == (task is SOFTMAX)


@WEIGHTED
@TASKS
def test_xgboost_classifier(task: Task, weighted: bool) -> None:
    xgboost = pytest.importorskip("xgboost", reason="trains with it")
    clone = pytest.importorskip("sklearn.base", reason="its interface is scikit-learn's").clone
    x, y, weight = task_data(task, weighted)
    options = {"n_estimators": ROUNDS, "max_depth": 3, "n_jobs": 1}
    fit: dict[str, Any] = {"sample_weight": weight, "eval_set": [(x, y)], "verbose": False}
    fit |= {"sample_weight_eval_set": [weight]} if weighted else {}
    theirs = xgboost.XGBClassifier(base_score=0.5, **options).fit(x, y, **fit)
    ours = xgboost.XGBClassifier(
        objective=task.objective(hessian="xgboost"), eval_metric=task.metric(), base_score=0.5, **options
    )
    ours = clone(ours).fit(x, y, **fit)
    (expected,) = theirs.evals_result()["validation_0"].values()
    found = ours.evals_result()["validation_0"]["cross_entropy" if task is SOFTMAX else "binary_cross_entropy"]
    np.testing.assert_allclose(found, expected, atol=2e-6)
    margins = [model.predict(x, output_margin=True) for model in (ours, theirs)]
    np.testing.assert_allclose(*margins, atol=1e-4)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(ours)).predict(x, output_margin=True), margins[0])


@pytest.mark.filterwarnings("ignore:The argument 'eval_set' is deprecated")
@WEIGHTED
@TASKS
def test_lightgbm_classifier(task: Task, weighted: bool) -> None:
    lightgbm = pytest.importorskip("lightgbm", reason="trains with it")
    x, y, weight = task_data(task, weighted)
    options = {"n_estimators": ROUNDS, "num_leaves": 7, "n_jobs": 1, "verbosity": -1}
    fit = {"sample_weight": weight, "eval_set": [(x, y)]} | ({"eval_sample_weight": [weight]} if weighted else {})
    theirs = lightgbm.LGBMClassifier(boost_from_average=False, **options).fit(
        x, y, eval_metric=task.metric(form="probs"), **fit
    )
    ours = lightgbm.LGBMClassifier(objective=task.objective(hessian="lightgbm"), **options).fit(
        x, y, eval_metric=task.metric(), **fit
    )
    name = "cross_entropy" if task is SOFTMAX else "binary_cross_entropy"
    curves = [model.evals_result_["training"][name] for model in (ours, theirs)]
    np.testing.assert_allclose(*curves, rtol=1e-9)
    margins = [model.predict(x, raw_score=True) for model in (ours, theirs)]
    np.testing.assert_allclose(*margins, atol=1e-6)


def test_margins_of_minus_1e30_train() -> None:
    xgboost = pytest.importorskip("xgboost", reason="trains with it")
    x, y, _ = task_data(SOFTMAX, False)
    low = np.full((len(y), 10), -1e30, np.float32)
    data = xgboost.DMatrix(x, y, base_margin=low)
    seen = []

    def objective(predictions: Any, data: Any) -> Any:
        seen.append(softmax_objective()(predictions, data))
        return seen[-1]

    booster = xgboost.train(SETTINGS | {"num_class": 10}, data, 1, obj=objective)
    assert all(np.isfinite(f).all() for f in seen[0])
    margins = booster.predict(xgboost.DMatrix(x), output_margin=True)
    assert np.mean(margins.argmax(axis=1) == y) > 0.9
