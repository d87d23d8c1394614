"""What must hold for any input (hypothesis), and independent libraries that compute some of the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.special
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import entrokern as ek

SHAPES = st.tuples(st.integers(1, 6), st.integers(1, 70))
FINITE = st.floats(-30, 30, width=32)


@st.composite
def rows(draw: Any, elements: Any = FINITE, min_classes: int = 1) -> np.ndarray:
    n, k = draw(SHAPES)
    return draw(hnp.arrays(np.float64, (n, max(k, min_classes)), elements=elements))


@st.composite
def labelled(draw: Any) -> tuple[np.ndarray, np.ndarray]:
    x = draw(rows())
    return x, draw(hnp.arrays(np.int64, len(x), elements=st.integers(0, x.shape[1] - 1)))


@st.composite
def distributions(draw: Any) -> tuple[np.ndarray, np.ndarray]:
    """Two tables of probabilities, some of them 0."""
    x = draw(rows())
    y = draw(hnp.arrays(np.float64, x.shape, elements=FINITE))
    holes = draw(hnp.arrays(bool, x.shape))
    e = [np.exp(v) * np.where(h, 0.0, 1.0) for v, h in ((x, holes), (y, holes & (x > 0)))]
    return tuple(v / np.where(v.sum(axis=1, keepdims=True) == 0, 1, v.sum(axis=1, keepdims=True)) for v in e)


def close(got: Any, want: Any, size: float = 1.0) -> None:
    np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-13 * size)


# --- invariances ----------------------------------------------------------------------------------


@given(labelled(), st.integers(-(2**20), 2**20))
def test_shift_invariance(backend: str, data: Any, offset: int) -> None:
    """Adding a number to a row changes nothing but its logsumexp."""
    x, y = data
    x = np.round(x * 2**10) / 2**10  # the sum is exact
    loss, grad, hess = ek.cross_entropy(x, y, reduction="none", return_grad=True, return_hess=True)
    shifted = ek.cross_entropy(x + offset, y, reduction="none", return_grad=True, return_hess=True)
    for got, want in zip(shifted, (loss, grad, hess), strict=True):
        np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(ek.entropy(x + offset, form="logits"), ek.entropy(x, form="logits"))
    close(ek.logsumexp(x + offset), ek.logsumexp(x) + offset, size=abs(offset))


@given(labelled(), st.randoms(use_true_random=False))
def test_class_permutation(backend: str, data: Any, random: Any) -> None:
    x, y = data
    order = np.array(random.sample(range(x.shape[1]), x.shape[1]))
    loss, grad = ek.cross_entropy(x, y, reduction="none", return_grad=True)
    moved = ek.cross_entropy(x[:, order], np.argsort(order)[y], reduction="none", return_grad=True)
    close(moved[0], loss, size=60)
    close(moved[1], grad[:, order])
    close(ek.entropy(x[:, order], form="logits"), ek.entropy(x, form="logits"))


def laid_out_like(z: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """These rows of `z` in an array with as much between them."""
    pitch = z.strides[0] // z.itemsize
    copy = np.zeros((len(rows), pitch), z.dtype)[:, : z.shape[1]]
    copy[...] = z[rows]
    return copy


@given(labelled(), st.randoms(use_true_random=False))
def test_row_order_and_batch_do_not_matter(backend: str, data: Any, random: Any) -> None:
    """The same bits for a row alone, in another place and among other rows; on a device, if it lies alike there."""
    x, y = data
    k = x.shape[-1]
    for dtype in (np.float16, np.float32, np.float64):
        z = x.astype(dtype)
        if backend == "cuda":  # rows that all begin at a boundary of 16 bytes
            z = np.zeros((len(x), -(-k // 8) * 8), dtype)[:, :k]
            z[...] = x
        whole = ek.cross_entropy(z, y, reduction="none", return_grad=True)
        order = np.array(random.sample(range(len(z)), len(z)))
        several = np.repeat(np.arange(len(z)), 70)
        moved, many = (
            ek.cross_entropy(laid_out_like(z, rows), y[rows], reduction="none", return_grad=True)
            for rows in (order, several)
        )
        for i, part in enumerate(whole):
            np.testing.assert_array_equal(moved[i], part[order])
            np.testing.assert_array_equal(many[i], np.repeat(part, 70, axis=0))
            for r in range(len(z)):
                alone = ek.cross_entropy(z[r : r + 1], y[r : r + 1], reduction="none", return_grad=True)
                np.testing.assert_array_equal(alone[i][0], part[r])


@given(labelled(), st.integers(0, 2))
def test_any_axis(backend: str, data: Any, axis: int) -> None:
    x, y = data
    x3, y3 = np.stack([x, x[::-1]]), np.stack([y, y[::-1]])
    want = ek.cross_entropy(x3, y3, reduction="none", return_grad=True)
    got = ek.cross_entropy(np.moveaxis(x3, -1, axis), y3, axis=axis, reduction="none", return_grad=True)
    close(got[0], want[0], size=60)
    close(np.moveaxis(got[1], axis, -1), want[1])


@given(labelled(), st.data())
def test_rows_that_do_not_count_are_as_if_removed(backend: str, data: Any, more: Any) -> None:
    x, y = data
    keep = more.draw(hnp.arrays(bool, len(x)))
    weights = np.where(keep, 2.0, 0.0)
    options: dict[str, Any] = {"return_grad": True, "on_empty": "zero"}
    want = ek.cross_entropy(x[keep], y[keep], **options)
    ignored = ek.cross_entropy(x, np.where(keep, y, -100), ignore_index=-100, **options)
    weighted = ek.cross_entropy(x, y, sample_weight=weights, **options)
    for got in (ignored, weighted):
        close(got[0], want[0], size=60)
        close(got[1][keep], want[1])
        assert (got[1][~keep] == 0).all()
    doubled = ek.cross_entropy(x, y, sample_weight=weights, reduction="sum")
    close(doubled, 2 * ek.cross_entropy(x[keep], y[keep], reduction="sum"), size=1e4)


# --- identities -----------------------------------------------------------------------------------


@given(rows(), st.data())
def test_divergences_from_logits(backend: str, x: np.ndarray, more: Any) -> None:
    """KL ≥ 0, JS in [0, log 2], both exactly 0 for equal operands; JS is symmetric."""
    y = more.draw(hnp.arrays(np.float64, x.shape, elements=FINITE))
    options = {"p_form": "logits", "q_form": "logits"}
    kl, js = ek.kl_divergence(x, y, **options), ek.js_divergence(x, y, **options)
    assert (kl >= 0).all()
    assert (js >= 0).all()
    assert (js <= np.log(2) * (1 + 1e-14)).all()
    np.testing.assert_array_equal(ek.kl_divergence(x, x.copy(), **options), 0)
    np.testing.assert_array_equal(ek.js_divergence(x, x.copy(), **options), 0)
    close(js, ek.js_divergence(y, x, **options))
    close(kl, ek.kl_divergence(ek.softmax(x), ek.log_softmax(y), q_form="log_probs"), size=60)


@given(distributions())
def test_cross_entropy_is_entropy_and_divergence(backend: str, data: Any) -> None:
    """``H(P, Q) = H(P) + D(P‖Q)``, infinities included."""
    p, q = data
    cross = ek.cross_entropy(q, p, form="probs", reduction="none")
    close(cross, ek.entropy(p) + ek.kl_divergence(p, q), size=60)


@given(rows(min_classes=1), st.data())
def test_binary_is_two_classes(backend: str, x: np.ndarray, more: Any) -> None:
    """BCE of z is CE of the logits (0, z)."""
    t = more.draw(hnp.arrays(np.int64, x.shape, elements=st.integers(0, 1)))
    two = np.stack([np.zeros_like(x), x], axis=-1)
    loss, grad, hess = ek.cross_entropy(two, t, reduction="none", return_grad=True, return_hess=True)
    got = ek.binary_cross_entropy(x, t, reduction="none", return_grad=True, return_hess=True)
    np.testing.assert_allclose(got[0], loss, rtol=1e-13)
    np.testing.assert_allclose(got[1], grad[..., 1], rtol=1e-13)
    np.testing.assert_allclose(got[2], hess[..., 1], rtol=1e-13)


@given(labelled(), st.floats(0, 1), st.floats(0.25, 4))
def test_gradients_sum_to_zero(backend: str, data: Any, smoothing: float, temperature: float) -> None:
    """A shift of a row's logits changes no loss, so its gradient sums to 0."""
    x, y = data
    options = {
        "label_smoothing": smoothing,
        "temperature": temperature,
        "reduction": "none",
        "return_grad": True,
    }
    close(ek.cross_entropy(x, y, **options)[1].sum(axis=1), 0)
    close(ek.entropy(x, form="logits", return_grad=True)[1].sum(axis=1), 0, size=60)
    for function in (ek.kl_divergence, ek.js_divergence):
        grads = function(x, x[:, ::-1], p_form="logits", q_form="logits", return_grad="both")[1:]
        for grad in grads:
            close(grad.sum(axis=1), 0, size=60)


@given(rows())
def test_softmax_and_its_logarithm(backend: str, x: np.ndarray) -> None:
    p = ek.softmax(x)
    close(p.sum(axis=1), 1)
    close(np.exp(ek.log_softmax(x)), p)
    np.testing.assert_allclose(ek.log_softmax(x), x - ek.logsumexp(x)[:, None], rtol=1e-9, atol=1e-12)
    record = ek.score(x)
    assert (record.lse >= x.max(axis=1)).all()
    np.testing.assert_array_equal(record.argmax, x.argmax(axis=1))
    close(record.max_prob, p.max(axis=1))


@given(labelled())
def test_perplexity_is_the_exponential(backend: str, data: Any) -> None:
    x, y = data
    np.testing.assert_allclose(ek.perplexity(x, y), np.exp(ek.cross_entropy(x, y)), rtol=1e-13)


# --- gradients are derivatives --------------------------------------------------------------------

RNG = np.random.default_rng(0)
Z = RNG.normal(size=(3, 4))
P, Q = RNG.dirichlet(np.ones(4), size=3), RNG.dirichlet(np.ones(4), size=3)
Y = np.array([0, 2, 3])
S, W, T = RNG.uniform(0.5, 2, size=3), RNG.uniform(0.5, 2, size=4), RNG.uniform(size=(3, 4))
LOGITS = {"p_form": "logits", "q_form": "logits"}
DERIVATIVES = {
    "labels": (ek.cross_entropy, (Z, Y), {}, ""),
    "labels mean": (ek.cross_entropy, (Z, Y), {"reduction": "mean", "class_weight": W, "sample_weight": S},
        ""),
    "dense": (ek.cross_entropy, (Z, P), {"label_smoothing": 0.1, "class_weight": W, "base": 2}, ""),
    "temperature": (ek.cross_entropy, (Z, Y), {"temperature": 0.4, "sample_weight": S}, ""),
    "softcap": (ek.cross_entropy, (3 * Z, Y), {"softcap": 2, "temperature": 0.7, "label_smoothing": 0.2}, ""),
    "z_loss": (ek.cross_entropy, (Z, Y), {"z_loss": 0.3, "temperature": 2, "base": 2, "sample_weight": S},
        ""),
    "probs": (ek.cross_entropy, (P, Q), {"form": "probs", "class_weight": W}, ""),
    "log_probs": (ek.cross_entropy, (Z, Y), {"form": "log_probs", "label_smoothing": 0.1}, ""),
    "bce": (ek.binary_cross_entropy, (Z, T), {"pos_weight": W, "sample_weight": T, "label_smoothing": 0.1},
        ""),
    "bce rows": (ek.binary_cross_entropy, (Z, T), {"axis": 1, "sample_weight": S, "reduction": "mean"}, ""),
    "bce probs": (ek.binary_cross_entropy, (P, T), {"form": "probs", "pos_weight": W}, ""),
    "bce log_probs": (ek.binary_cross_entropy, (np.log(P), T), {"form": "log_probs", "base": 2}, ""),
    **{f"entropy {form}": (ek.entropy, (P if form == "probs" else Z,), {"form": form, "sample_weight": S}, "")
       for form in ("logits", "log_probs", "probs")},
    **{f"{name} {p} {q} by {side}": (
        function, (P if p == "probs" else Z, Q if q == "probs" else Z[::-1]),
        {"p_form": p, "q_form": q, "sample_weight": S} | ({"temperature": 0.7} if "logits" in (p,
            q) else {}), side)
       for name, function in (("kl", ek.kl_divergence), ("js", ek.js_divergence))
       for p in ("logits", "log_probs", "probs") for q in ("logits", "log_probs", "probs") for side in "pq"},
    "js weight": (ek.js_divergence, (Z, Z[::-1]), LOGITS | {"weight": 0.2, "reduction": "mean", "base": 10},
        "p"),
}  # fmt: skip


@pytest.mark.parametrize("name", DERIVATIVES)
def test_gradient_is_the_derivative(backend: str, name: str) -> None:
    """Of the value returned, by central differences of the float64 loss."""
    function, operands, options, side = DERIVATIVES[name]
    options = {"reduction": "sum"} | options
    at = 1 if side == "q" else 0
    grad = function(*operands, **options, return_grad=side or True)[1]
    step = 1e-5
    for index in np.ndindex(grad.shape):
        values = []
        for sign in (1, -1):
            moved = operands[at].copy()
            moved[index] += sign * step
            with ek.use_backend("reference"):
                values.append(function(*operands[:at], moved, *operands[at + 1 :], **options))
        slope = (values[0] - values[1]) / (2 * step)
        np.testing.assert_allclose(grad[index], slope, rtol=1e-6, atol=1e-8, err_msg=str(index))


@pytest.mark.parametrize("name", ["labels", "labels mean", "dense", "temperature", "bce", "bce rows"])
def test_hessian_is_the_derivative_of_the_gradient(backend: str, name: str) -> None:
    function, operands, options, _ = DERIVATIVES[name]
    options = {"reduction": "sum", "return_grad": True} | options
    hess = function(*operands, **options, return_hess=True)[2]
    step = 1e-5
    for index in np.ndindex(hess.shape):
        slopes = []
        for sign in (1, -1):
            moved = operands[0].copy()
            moved[index] += sign * step
            with ek.use_backend("reference"):
                slopes.append(function(moved, *operands[1:], **options)[1][index])
        slope = (slopes[0] - slopes[1]) / (2 * step)
        np.testing.assert_allclose(hess[index], slope, rtol=1e-6, atol=1e-9, err_msg=str(index))


# --- other libraries ------------------------------------------------------------------------------


def test_scipy(backend: str) -> None:
    rng = np.random.default_rng(3)
    x = rng.normal(size=(50, 40)) * 10
    p, q = (rng.dirichlet(np.ones(40), size=50) for _ in range(2))
    p[rng.random(p.shape) < 0.1] = 0
    close(ek.logsumexp(x), scipy.special.logsumexp(x, axis=1), size=60)
    close(ek.softmax(x), scipy.special.softmax(x, axis=1))
    close(ek.log_softmax(x), scipy.special.log_softmax(x, axis=1), size=60)
    close(ek.entropy(p), scipy.special.entr(p).sum(axis=1))
    close(ek.kl_divergence(p, q), scipy.special.rel_entr(p, q).sum(axis=1))
    m = (p + q) / 2
    js = (scipy.special.rel_entr(p, m) + scipy.special.rel_entr(q, m)).sum(axis=1) / 2
    close(ek.js_divergence(p, q), js)
    t = rng.uniform(size=x.shape)
    want = -scipy.special.xlogy(t, scipy.special.expit(x)) - scipy.special.xlogy(1 - t, scipy.special.expit(-x))
    close(ek.binary_cross_entropy(x, t, reduction="none"), want, size=60)


def test_scikit_learn(backend: str) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(4)
    p, y, s = rng.dirichlet(np.ones(7), size=60), rng.integers(0, 7, size=60), rng.uniform(size=60)
    labels = list(range(7))
    close(ek.cross_entropy(p, y, form="probs"), metrics.log_loss(y, p, labels=labels))
    want = metrics.log_loss(y, p, labels=labels, sample_weight=s)
    close(ek.cross_entropy(p, y, form="probs", sample_weight=s), want)
    b = y > 3
    close(ek.binary_cross_entropy(p[:, 0], b, form="probs"), metrics.log_loss(b, p[:, 0]))
