"""Every option: what it does in plain formulas, and every error text for what is not allowed."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import entrokern as ek
from entrokern import _dispatch

RNG = np.random.default_rng(0)
X = RNG.normal(size=(6, 5))
Y = RNG.integers(0, 5, size=6)
Q = RNG.dirichlet(np.ones(5), size=6)
P = RNG.dirichlet(np.ones(5), size=6)
W = RNG.uniform(0.5, 2, size=5)
S = RNG.uniform(0.5, 2, size=6)
B = RNG.integers(0, 2, size=(6, 5))
V = RNG.uniform(0.5, 2, size=(6, 5))
LOG_P = X - np.log(np.exp(X).sum(axis=1, keepdims=True))
LOSSES = -LOG_P[np.arange(6), Y]
SOFTPLUS, SOFTPLUS_NEG = np.log1p(np.exp(X)), np.log1p(np.exp(-X))


def ce(**o: Any) -> Any:
    return ek.cross_entropy(X, o.pop("target", Y), **({"reduction": "none"} | o))


def bce(**o: Any) -> Any:
    return ek.binary_cross_entropy(X, o.pop("target", B), **({"reduction": "none"} | o))


def softened(cap: float) -> np.ndarray:
    z = cap * np.tanh(X / cap)
    return np.log(np.exp(z).sum(axis=1)) - z[np.arange(6), Y]


SMOOTH = 0.9 * np.eye(5)[Y] + 0.1 / 5
LSE = np.log(np.exp(X).sum(axis=1))
BCE = B * SOFTPLUS_NEG + (1 - B) * SOFTPLUS

# An option at work, and the same from NumPy in the formula of section 2.
MEANING: dict[str, tuple[Callable[[], Any], Any]] = {
    "reduction none": (lambda: ce(), LOSSES),
    "reduction sum": (lambda: ce(reduction="sum"), LOSSES.sum()),
    "reduction mean": (lambda: ek.cross_entropy(X, Y), LOSSES.mean()),
    "class_weight": (lambda: ce(class_weight=W), W[Y] * LOSSES),
    "class_weight mean": (lambda: ce(class_weight=W, reduction="mean"), (W[Y] * LOSSES).sum() / W[Y].sum()),
    "class_weight dense": (lambda: ce(target=Q, class_weight=W), -(W * Q * LOG_P).sum(axis=1)),
    "class_weight dense mean": (lambda: ce(target=Q, class_weight=W, reduction="mean"),
                                -(W * Q * LOG_P).sum() / 6),
    "class_weight smoothed": (lambda: ce(class_weight=W, label_smoothing=0.1),
        -(W * SMOOTH * LOG_P).sum(axis=1)),
    "class_weight smoothed mean": (lambda: ce(class_weight=W, label_smoothing=0.1, reduction="mean"),
                                   -(W * SMOOTH * LOG_P).sum() / W[Y].sum()),
    "sample_weight": (lambda: ce(sample_weight=S), S * LOSSES),
    "sample_weight mean": (lambda: ce(sample_weight=S, reduction="mean"), (S * LOSSES).sum() / S.sum()),
    "both weights mean": (lambda: ce(sample_weight=S, class_weight=W, reduction="mean"),
                          (S * W[Y] * LOSSES).sum() / (S * W[Y]).sum()),
    "label_smoothing": (lambda: ce(label_smoothing=0.1), -(SMOOTH * LOG_P).sum(axis=1)),
    "label_smoothing dense": (lambda: ce(target=Q, label_smoothing=0.1),
                              -((0.9 * Q + 0.02) * LOG_P).sum(axis=1)),
    "ignore_index": (lambda: ce(ignore_index=int(Y[0])), np.where(Y == Y[0], 0, LOSSES)),
    "ignore_index mean": (lambda: ce(ignore_index=int(Y[0]), reduction="mean"), LOSSES[Y != Y[0]].mean()),
    "temperature": (lambda: ce(temperature=2), np.log(np.exp(X / 2).sum(axis=1)) - X[np.arange(6), Y] / 2),
    "softcap": (lambda: ce(softcap=2), softened(2.0)),
    "z_loss": (lambda: ce(z_loss=0.1), LOSSES + 0.1 * LSE**2),
    "z_loss weighted": (lambda: ce(z_loss=0.1, class_weight=W, sample_weight=S),
                        S * (W[Y] * LOSSES + 0.1 * LSE**2)),
    "base": (lambda: ce(base=2), LOSSES / math.log(2)),
    "base not of z_loss": (lambda: ce(base=2, z_loss=0.1), LOSSES / math.log(2) + 0.1 * LSE**2),
    "base below 1": (lambda: ce(base=0.5), -LOSSES / math.log(2)),
    "form log_probs": (lambda: ek.cross_entropy(LOG_P, Y, form="log_probs", reduction="none"), LOSSES),
    "form probs": (lambda: ek.cross_entropy(np.exp(LOG_P), Y, form="probs", reduction="none"), LOSSES),
    "bool target": (lambda: ce(target=np.eye(5, dtype=bool)[Y]), LOSSES),
    "perplexity": (lambda: ek.perplexity(X, Y), np.exp(LOSSES.mean())),
    "perplexity weighted": (lambda: ek.perplexity(X, Y, sample_weight=S),
                            np.exp((S * LOSSES).sum() / S.sum())),
    "bce": (lambda: bce(), BCE),
    "bce mean": (lambda: ek.binary_cross_entropy(X, B), BCE.mean()),
    "bce axis": (lambda: bce(axis=1), BCE.sum(axis=1)),
    "bce axis 0": (lambda: bce(axis=0), BCE.sum(axis=0)),
    "bce axis mean": (lambda: ek.binary_cross_entropy(X, B, axis=1), BCE.sum() / 6),
    "bce pos_weight": (lambda: bce(pos_weight=W), W * B * SOFTPLUS_NEG + (1 - B) * SOFTPLUS),
    "bce pos_weight column": (lambda: bce(pos_weight=S[:, None]), S[:,
        None] * B * SOFTPLUS_NEG + (1 - B) * SOFTPLUS),
    "bce pos_weight number": (lambda: bce(pos_weight=3.0), 3 * B * SOFTPLUS_NEG + (1 - B) * SOFTPLUS),
    "bce sample_weight": (lambda: bce(sample_weight=V), V * BCE),
    "bce sample_weight row": (lambda: bce(sample_weight=W, reduction="mean"),
        (W * BCE).sum() / (6 * W.sum())),
    "bce sample_weight axis": (lambda: bce(sample_weight=S, axis=1, reduction="mean"),
                               (S * BCE.sum(axis=1)).sum() / S.sum()),
    "bce smoothed": (lambda: bce(label_smoothing=0.2),
        (0.8 * B + 0.1) * SOFTPLUS_NEG + (0.9 - 0.8 * B) * SOFTPLUS),
    "bce ignored": (lambda: bce(ignore_index=1, reduction="mean"), BCE[B == 0].mean()),
    "bce base": (lambda: bce(base=2), BCE / math.log(2)),
    "entropy": (lambda: ek.entropy(P), -(P * np.log(P)).sum(axis=1)),
    "entropy base": (lambda: ek.entropy(P, base=2), -(P * np.log2(P)).sum(axis=1)),
    "entropy mean": (lambda: ek.entropy(P, reduction="mean", sample_weight=S),
                     -(S[:, None] * P * np.log(P)).sum() / S.sum()),
    "entropy sum": (lambda: ek.entropy(P, reduction="sum"), -(P * np.log(P)).sum()),
    "entropy axis": (lambda: ek.entropy(P, axis=0), -(P * np.log(P)).sum(axis=0)),
    "kl": (lambda: ek.kl_divergence(P, Q), (P * np.log(P / Q)).sum(axis=1)),
    "kl base": (lambda: ek.kl_divergence(P, Q, base=2), (P * np.log2(P / Q)).sum(axis=1)),
    "kl one reference": (lambda: ek.kl_divergence(P, Q[0]), (P * np.log(P / Q[0])).sum(axis=1)),
    "kl mean": (lambda: ek.kl_divergence(P, Q, reduction="mean"), (P * np.log(P / Q)).sum() / 6),
    "kl weights": (lambda: ek.kl_divergence(P, Q, reduction="mean", sample_weight=S),
                   (S[:, None] * P * np.log(P / Q)).sum() / S.sum()),
    "kl logits": (lambda: ek.kl_divergence(P, X, q_form="logits"), (P * (np.log(P) - LOG_P)).sum(axis=1)),
    "kl temperature is the logits' alone": (
        lambda: ek.kl_divergence(P, X * 2, q_form="logits", temperature=2),
        (P * (np.log(P) - LOG_P)).sum(axis=1),
    ),
    "js": (lambda: ek.js_divergence(P, Q),
           (P * np.log(2 * P / (P + Q)) + Q * np.log(2 * Q / (P + Q))).sum(axis=1) / 2),
    "js weight": (lambda: ek.js_divergence(P, Q, weight=0.25),
                  (P * np.log(P / (P / 4 + Q * 3 / 4)) / 4 + 3 / 4 * Q * np.log(Q / (P / 4 + Q * 3 / 4))).sum(axis=1)),
    "estimate k1": (lambda: ek.kl_estimate(LOG_P[0], LOG_P[1]), (LOG_P[0] - LOG_P[1]).mean()),
    "estimate k2": (lambda: ek.kl_estimate(LOG_P[0], LOG_P[1], estimator="k2", reduction="sum"),
                    0.5 * ((LOG_P[0] - LOG_P[1]) ** 2).sum()),
    "estimate k3": (lambda: ek.kl_estimate(LOG_P[0], LOG_P[1], estimator="k3", reduction="none"),
                    np.exp(LOG_P[1] - LOG_P[0]) - 1 - (LOG_P[1] - LOG_P[0])),
    "information base": (lambda: ek.information(P, base=2), -np.log2(P)),
}  # fmt: skip


@pytest.mark.parametrize("option", MEANING)
def test_meaning(backend: str, option: str) -> None:
    compute, want = MEANING[option]
    np.testing.assert_allclose(compute(), want, rtol=1e-12, atol=1e-14)


def test_asking_for_gradients(backend: str) -> None:
    """The order is loss, grad, hess; `"both"` gives p's gradient first; alone `grad_out` means q."""
    loss, hess = ce(return_hess=True)
    loss2, grad, hess2 = ce(return_grad=True, return_hess=True)
    np.testing.assert_array_equal(hess, hess2)
    np.testing.assert_array_equal(loss, loss2)
    assert grad.shape == X.shape
    assert isinstance(ce(return_grad=np.False_), np.ndarray)
    both = ek.kl_divergence(P, Q, return_grad="both")
    np.testing.assert_array_equal(both[1], ek.kl_divergence(P, Q, return_grad="p")[1])
    np.testing.assert_array_equal(both[2], ek.kl_divergence(P, Q, return_grad="q")[1])
    np.testing.assert_array_equal(both[2], ek.kl_divergence(P, Q, grad_out=np.empty_like(P))[1])
    pair = ek.kl_divergence(P, Q, return_grad="both", grad_out=(None, np.empty_like(P)))
    np.testing.assert_array_equal(both[1], pair[1])


def test_validate(backend: str) -> None:
    """What `validate=True` objects to, and that it changes no result."""
    bad = P.copy()
    bad[3, 2] = -0.25
    off = P.copy()
    off[4] *= 1.01
    for function in (
        ek.entropy,
        lambda p, **o: ek.kl_divergence(p, Q, **o),
        lambda p, **o: ek.js_divergence(Q, p, **o),
        lambda p, **o: ek.cross_entropy(p, Y, form="probs", **o),
        lambda p, **o: ek.cross_entropy(X, p, **o),
    ):
        with pytest.raises(ValueError, match="row 3 holds a probability below 0"):
            function(bad, validate=True)
        with pytest.raises(ValueError, match=r"row 4 sums to 1\.01"):
            function(off, validate=True)
        np.testing.assert_array_equal(function(P, validate=True), function(P))
        function((P * 1.001).astype(np.float32), validate=True)  # within 8·√eps of float32
    with pytest.raises(ValueError, match="row 4 sums to"):
        ek.entropy(np.log(off), form="log_probs", validate=True)
    with pytest.raises(ValueError, match=r"row \(1, 1\)"):
        ek.entropy(bad.reshape(3, 2, 5), validate=True)
    with pytest.raises(ValueError, match=r"row \(3, 2\) is -0.25"):
        ek.information(bad, validate=True)
    with pytest.raises(ValueError, match=r"row \(0, 1\) is 1.5; allowed: targets in \[0, 1\]"):
        ek.binary_cross_entropy([[0.0, 0.0]], [[0.5, 1.5]], validate=True)
    with pytest.raises(ValueError, match=r"row 1 is -0\.5"):
        ek.binary_cross_entropy([0.5, -0.5], [1, 1], form="probs", validate=True)
    with pytest.raises(ValueError, match=r"row 0 is 0\.5; allowed: log-probabilities"):
        ek.kl_estimate([0.5], [-1], validate=True)
    ek.binary_cross_entropy([0.0, 0.0], [0.5, 7.0], ignore_index=7, validate=True)
    assert np.isnan(ek.entropy(bad)[3])
    assert np.isfinite(ek.entropy(off)).all()


# --- errors ---------------------------------------------------------------------------------------

ERRORS: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    # the class axis and shapes
    "0-d x": (lambda: ek.logsumexp(3.0), ValueError, "x is 0-dimensional; it needs a class axis"),
    "0-d p": (lambda: ek.entropy(0.5), ValueError, "p is 0-dimensional"),
    "k = 0": (lambda: ek.cross_entropy(np.zeros((3, 0)), [0, 0, 0]), ValueError, "has no class along axis 1"),
    "k = 0, kl": (lambda: ek.kl_divergence(np.zeros((3, 0)), np.zeros((3, 0))), ValueError, "has no class"),
    "axis": (lambda: ek.entropy(P, axis=2),
        ValueError, r"axis=2 does not exist in p of shape \(6, 5\); pass -2 to 1"),
    "axis float": (lambda: ek.entropy(P, axis=1.0), TypeError, "axis is a float"),
    "axis bool": (lambda: ek.softmax(P, axis=True), TypeError, "axis is a bool"),
    "NCHW": (lambda: ek.cross_entropy(np.zeros((2, 3, 4, 5)), np.zeros((2, 4, 5), int)), ValueError,
             "pass `axis=1`"),
    "labels of another shape": (lambda: ek.cross_entropy(X, Y[:5]), ValueError,
                                r"target of shape \(5,\) does not fit x of shape \(6, 5\)|pass `axis=0`"),
    "labels too long": (lambda: ek.cross_entropy(X, np.zeros(7, int)), ValueError,
                        r"expected integer labels of shape \(6,\) or a distribution of shape \(6, 5\)"),
    "float labels": (lambda: ek.cross_entropy(X, Y.astype(float)), ValueError, r"pass target.astype\(int\)"),
    "dense row for all": (lambda: ek.cross_entropy(X, Q[:1]), ValueError, "does not fit"),
    "bce shape": (lambda: ek.binary_cross_entropy(X, B[0]), ValueError, "pass one target per element"),
    "kl shapes": (lambda: ek.kl_divergence(P, P[:, :4]), ValueError, "do not broadcast together"),
    "estimate shapes": (lambda: ek.kl_estimate([1, 2], [1, 2, 3]), ValueError, "do not broadcast together"),
    "class_weight shape": (lambda: ce(class_weight=W[:4]), ValueError, r"class_weight has shape \(4,\)"),
    "sample_weight shape": (lambda: ce(sample_weight=S[:, None]), ValueError, "expected one weight per row"),
    "sample_weight scalar": (lambda: ce(sample_weight=2.0), ValueError, "sample_weight has shape"),
    "bce axis sample_weight": (lambda: bce(axis=1, sample_weight=V),
        ValueError, "expected one weight per row"),
    "bce sample_weight shape": (lambda: bce(sample_weight=S), ValueError, "does not broadcast against x"),
    "pos_weight shape": (lambda: bce(pos_weight=np.ones((2, 6, 5))), ValueError, "pos_weight of shape"),
    # dtypes and types
    "bool x": (lambda: ek.softmax(X > 0), TypeError, "x has dtype bool; allowed: float16, bfloat16, float32"),
    "complex x": (lambda: ek.entropy(P + 0j), TypeError, "p has dtype complex128"),
    "string x": (lambda: ek.cross_entropy(np.array([["a", "b"]]), [0]), TypeError, "x has dtype <U1"),
    "object x": (lambda: ek.cross_entropy(X.astype(object), Y), TypeError, "x has dtype object"),
    "longdouble x": (lambda: ek.softmax(X.astype(np.longdouble)), TypeError, "x has dtype"),
    "datetime x": (lambda: ek.softmax(np.zeros((1, 2), "M8[s]")), TypeError, "x has dtype datetime64"),
    "masked x": (lambda: ek.softmax(np.ma.masked_less(X, 0)), TypeError, "x is a masked array"),
    "masked target": (lambda: ek.cross_entropy(X, np.ma.masked_equal(Y, 1)),
        TypeError, "target is a masked array"),
    "bool p": (lambda: ek.kl_divergence(P > 0.1, Q), TypeError, "p has dtype bool"),
    "object q": (lambda: ek.js_divergence(P, Q.astype(object)), TypeError, "q has dtype object"),
    "string target": (lambda: ek.cross_entropy(X, np.array(["a"] * 6)), TypeError, "target has dtype"),
    "complex weights": (lambda: ce(sample_weight=S + 0j), TypeError, "sample_weight has dtype complex128"),
    "bool weights": (lambda: ce(class_weight=W > 1), TypeError, "class_weight has dtype bool"),
    "ragged": (lambda: ek.softmax([[1.0], [1.0, 2.0]]), ValueError, "inhomogeneous"),
    "None": (lambda: ek.softmax(None), TypeError, "x has dtype object"),
    # options
    "form": (lambda: ce(form="logit"), ValueError, "form='logit' is not known; choose one of 'logits'"),
    "p_form": (lambda: ek.kl_divergence(P, Q, p_form="prob"), ValueError, "p_form='prob' is not known"),
    "q_form": (lambda: ek.js_divergence(P, Q, q_form=None), ValueError, "q_form=None is not known"),
    "reduction": (lambda: ce(reduction="avg"), ValueError, "reduction='avg' is not known"),
    "on_empty": (lambda: ce(on_empty=0), ValueError, "on_empty=0 is not known; choose one of 'nan'"),
    "estimator": (lambda: ek.kl_estimate([0.0], [0.0], estimator="k4"), ValueError, "estimator='k4'"),
    "label_smoothing": (lambda: ce(label_smoothing=1.5), ValueError, r"must lie in \[0, 1\]"),
    "label_smoothing negative": (lambda: bce(label_smoothing=-0.1),
        ValueError, "label_smoothing=-0.1 is out of range"),
    "label_smoothing NaN": (lambda: ce(label_smoothing=math.nan),
        ValueError, "label_smoothing=nan is not finite"),
    "temperature 0": (lambda: ce(temperature=0), ValueError, "temperature=0.0 is out of range"),
    "temperature text": (lambda: ce(temperature="2"), TypeError, "temperature is a str"),
    "temperature bool": (lambda: ce(temperature=True), TypeError, "temperature is a bool"),
    "temperature array": (lambda: ce(temperature=S), TypeError, "temperature is a ndarray"),
    "kl temperature": (lambda: ek.kl_divergence(X, X, p_form="logits", temperature=-1),
        ValueError, "temperature=-1"),
    "softcap": (lambda: ce(softcap=0), ValueError, "softcap=0.0 is out of range"),
    "z_loss": (lambda: ce(z_loss=-1), ValueError, "z_loss=-1.0 is out of range; it must be 0 or greater"),
    "base 1": (lambda: ce(base=1), ValueError, "base=1 has no logarithm"),
    "base 0": (lambda: ek.information(P, base=0), ValueError, "base=0.0 is out of range"),
    "base inf": (lambda: ek.entropy(P, base=math.inf), ValueError, "base=inf is not finite"),
    "weight": (lambda: ek.js_divergence(P, Q, weight=1), ValueError, "strictly between 0 and 1"),
    "class_weight negative": (lambda: ce(class_weight=-W), ValueError, r"class_weight\[0\] = -"),
    "class_weight NaN": (lambda: ce(class_weight=[1, math.nan, 1, 1, 1]),
        ValueError, r"class_weight\[1\] = nan"),
    "class_weight inf": (lambda: ce(class_weight=[1, 1, 1, 1, math.inf]),
        ValueError, r"class_weight\[4\] = inf"),
    "ignore_index float": (lambda: ce(ignore_index=1.0), TypeError, "ignore_index is a float"),
    "ignore_index dense": (lambda: ce(target=Q, ignore_index=1),
        ValueError, "ignore_index=1 needs integer labels"),
    "return_grad 1": (lambda: ce(return_grad=1), TypeError, "return_grad is a int"),
    "return_grad text": (lambda: ce(return_grad="q"), TypeError, "return_grad is a str"),
    "kl return_grad True": (lambda: ek.kl_divergence(P, Q, return_grad=True), ValueError, "return_grad=True"),
    "validate text": (lambda: ek.softmax(X, validate="yes"), TypeError, "validate is a str"),
    # what does not go together
    "hess, softcap": (lambda: ce(return_hess=True, softcap=5), ValueError, "return_hess with softcap=5.0"),
    "hess, z_loss": (lambda: ce(return_hess=True, z_loss=0.1), ValueError, "return_hess with z_loss=0.1"),
    "hess, probs": (lambda: ek.cross_entropy(P, Y, form="probs", return_hess=True),
        ValueError, "needs logits"),
    "hess, bce": (lambda: ek.binary_cross_entropy(P, B, form="probs", return_hess=True),
        ValueError, "needs logits"),
    "hess_out, probs": (lambda: ek.cross_entropy(P, Y, form="probs", hess_out=P.copy()),
        ValueError, "needs logits"),
    **{
        f"{name}, {form}": (lambda name=name, form=form: ek.cross_entropy(P, Y, form=form, **{name: 2.0}),
                            ValueError, f"{name}=2.0 transforms logits, but form='{form}'")
        for name in ("temperature", "softcap", "z_loss") for form in ("probs", "log_probs")
    },
    "kl temperature, probs": (lambda: ek.kl_divergence(P, Q, temperature=2),
        ValueError, "temperature=2.0 transforms"),
    "unknown option": (lambda: ce(smoothing=0.1), TypeError, "smoothing"),
    "option by position": (lambda: ek.cross_entropy(X, Y, "logits"), TypeError, "positional"),
    # score
    "score output": (lambda: ek.score(X, Y, outputs=("nll",)),
        ValueError, "output 'nll' is not known; choose from"),
    "score no target": (lambda: ek.score(X, outputs="loss"), ValueError, "output 'loss' needs a target"),
    "score no labels": (lambda: ek.score(X, Q, outputs="rank"),
        ValueError, "output 'rank' needs integer labels"),
    "score grad_out": (lambda: ek.score(X, grad_out=X.copy()), ValueError, "output 'grad' needs a target"),
    "score hess": (lambda: ek.score(X, Y, outputs="hess", z_loss=1), ValueError, "return_hess with z_loss"),
    "score form": (lambda: ek.score(P, Y, form="probs"), TypeError, "form"),
    "score reduction": (lambda: ek.score(P, Y, reduction="mean"), TypeError, "reduction"),
    # backends
    "backend": (lambda: ek.use_backend("gpu"),
        ValueError, "backend 'gpu' is not known; choose one of 'auto', 'cpu'"),
}  # fmt: skip


@pytest.mark.parametrize("case", ERRORS)
def test_error(host_backend: str, case: str) -> None:
    compute, error, message = ERRORS[case]
    with pytest.raises(error, match=message):
        compute()


def test_arrays_of_other_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    """An array of a library without a backend is refused by name, never converted in silence."""

    class Tensor:
        def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
            raise AssertionError("converted")

    monkeypatch.setitem(_dispatch.LIBRARIES, "torch", lambda array: isinstance(array, Tensor))
    with pytest.raises(TypeError, match="x is a test_options Tensor, for which no backend is installed"):
        ek.softmax(Tensor())
    with pytest.raises(TypeError, match="different libraries: x is a numpy ndarray and target is a test_options"):
        ek.cross_entropy(X, Tensor())
    with pytest.raises(TypeError, match="different libraries"):
        ek.kl_divergence(P, Q, grad_out=(Tensor(), None))
