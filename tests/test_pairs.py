"""Later reads of slices of classes on the CPU, by kernels: corner cases, layouts and digits, as of whole rows."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

import entrokern as ek
from cases import FLOATS

dask = pytest.importorskip("dask")
da = pytest.importorskip("dask.array")

Array = np.ndarray
INF, NAN = np.inf, np.nan
FORMS = ("logits", "log_probs", "probs")
FUNCTIONS = (ek.kl_divergence, ek.js_divergence)
CUTS = [(5,), (3, 2), (1, 1, 1, 1, 1)]

# Rows of nothing but -inf or with +inf among logits, without probability at all, with all of it in one class.
LOGITS = np.array(
    [
        [0.0, 1.0, -1.0, 0.5, 2.0], [-INF, -INF, 1.0, 2.0, 0.0], [1.0, -INF, -INF, 0.0, 3.0], [0.0, 0.0, 0.0, 0, -INF],
        [-INF] * 5, [INF, 1.0, 2.0, -INF, 0.0], [1.0, INF, 2.0, INF, 0.0], [1.0, 2.0, 3.0, NAN, 0.0],
        [1e8, 1e8 + 40, -1e8, 0.0, 1e8], [-1e300, 1e300, 0.0, 1e300, 0.0], [1e307, -1e307, 0.0, 0.0, 0.0],
    ]
)  # fmt: skip
PROBS = np.array(
    [
        [0.2, 0.3, 0.1, 0.3, 0.1], [0.0, 0.0, 0.5, 0.5, 0.0], [0.5, 0.0, 0.0, 0.25, 0.25], [1.0, 0.0, 0.0, 0.0, 0.0],
        [0.0] * 5, [0.3, -0.1, 0.4, 0.2, 0.2], [NAN, 0.25, 0.25, 0.25, 0.25], [1e-310, 1e-300, 0.5, 0.5, 0.0],
        [0.5, 0.5, 1e-300, 0.0, 1e-310], [2.0, 3.0, 4.0, 5.0, 6.0], [1e-16, 1.0, 1e-17, 0.0, 1e-15],
    ]
)  # fmt: skip


def rows(form: str) -> Array:
    with np.errstate(all="ignore"):
        return LOGITS if form == "logits" else PROBS if form == "probs" else np.log(PROBS)


def sliced(function: Any, p: Array, q: Array, classes: tuple[int, ...], **options: Any) -> list[Array]:
    """The results over slices of so many classes, and of a few rows at a time."""
    p, q = np.broadcast_arrays(p, q)
    step = -(-len(p) // 3)
    lazy = [da.from_array(a, chunks=(step, classes)) for a in (p, q)]
    results = function(*lazy, **options)
    return list(dask.compute(*(results if isinstance(results, tuple) else (results,)), scheduler="synchronous"))


@pytest.mark.parametrize("classes", CUTS, ids=len)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_odd_rows(function: Any, classes: tuple[int, ...], host_backend: str) -> None:
    """All pairs of odd rows in all forms are what whole rows of them are, by the definition."""
    for p_form, q_form in itertools.product(FORMS, FORMS):
        p, q = (a.reshape(-1, 5) for a in np.broadcast_arrays(rows(p_form)[:, None], rows(q_form)[None]))
        weight = np.where(np.arange(len(p)) % 7 == 3, 0.0, np.linspace(0.5, 2.0, len(p)))
        options: dict[str, Any] = {"p_form": p_form, "q_form": q_form, "return_grad": "both", "sample_weight": weight}
        options |= {"temperature": 0.75} if "logits" in (p_form, q_form) else {}
        options |= {"weight": 0.3} if function is ek.js_divergence else {"base": 2}
        with ek.use_backend("reference"):
            want = function(p, q, **options)
        got = sliced(function, p, q, classes, **options)
        # A gradient is a difference of what can be as large as the loss.
        size = np.where(np.isfinite(want[0]), np.maximum(want[0], 1.0), 1.0)
        for name, a, b in zip(("loss", "grad_p", "grad_q"), got, want, strict=True):
            s = size if name == "loss" else size[:, None]
            np.testing.assert_allclose(a / s, b / s, rtol=1e-12, atol=1e-14, err_msg=f"{name} {p_form} {q_form}")


@pytest.mark.parametrize("function", FUNCTIONS)
def test_layouts_and_dtypes(function: Any) -> None:
    """Slices of any strides, of one row for all, and of P and Q in different dtypes."""
    rng = np.random.default_rng(0)
    p, q = rng.normal(size=(6, 40)), rng.normal(size=(6, 40))
    for dtype, other in (
        ("bfloat16", "bfloat16"),
        ("float16", "float64"),
        ("float32", "float16"),
        ("float64", "float32"),
    ):
        a, b = p.astype(FLOATS[dtype]), q.astype(FLOATS[other])
        packed = np.zeros(b.shape, [("byte", "u1"), ("q", b.dtype)])
        packed["q"] = b
        for left, right in ((a, np.asfortranarray(b)), (a[::-1, ::-1], b[:1]), (a, packed["q"])):
            options: dict[str, Any] = {"p_form": "logits", "q_form": "logits", "return_grad": "both"}
            got = sliced(function, left, right, (17, 23), **options)
            want = function(*np.broadcast_arrays(left, right), **options)
            for name, x, y in zip(("loss", "grad_p", "grad_q"), got, want, strict=True):
                assert x.dtype == y.dtype
                eps = 8 * np.finfo(np.float32 if x.dtype.itemsize < 8 else x.dtype).eps
                eps = eps if x.dtype.itemsize > 2 else 2.0**-7
                np.testing.assert_allclose(x.astype(float), y.astype(float), rtol=eps, atol=eps / 8, err_msg=name)


def test_sums_lose_nothing_over_many_slices() -> None:
    """A million small differences in 64 slices: KL of nearly equal tables is right to its last digits."""
    rng = np.random.default_rng(1)
    p = rng.uniform(0.5, 1.5, size=(2, 1 << 16))
    p = (p / p.sum(axis=1, keepdims=True)).astype(np.longdouble)
    q = p * (1 + 1e-6 * rng.normal(size=p.shape))
    q = (q / q.sum(axis=1, keepdims=True)).astype(float)
    p = p.astype(float)
    s = (p.astype(np.longdouble) - q) / q
    want = np.sum(q * (s * s / 2 - s**3 / 6 + s**4 / 12), axis=1) + np.sum(p.astype(np.longdouble) - q, axis=1)
    (got,) = sliced(ek.kl_divergence, p, q, (1 << 10,) * 64)
    gap = np.abs(p - q).sum(axis=1)
    assert (np.abs(got - want) <= 4 * 2.0**-52 * np.abs(want) + 4 * 2.0**-53 * gap).all()


@pytest.mark.parametrize("form", FORMS)
def test_gradients_of_targets(form: str, host_backend: str) -> None:
    """By slices of target distributions, and of other forms than logits: those of whole rows, odd ones too."""
    x = rows(form)
    n, k = x.shape
    soft = np.array([[0.5, 0.5, 0, 0, 0], [0, 0, 0.25, 0.75, 0], [0.2] * 5, [0, 0, 0, 0, 1], [NAN, 0, 0, 0, 1]])
    targets: list[Array] = [
        np.full(n, 2),
        *(np.broadcast_to(t, x.shape) for t in soft),
        soft[:, 3:4].T > np.ones((n, k)),
    ]
    given: list[dict[str, Any]] = [{}, {"label_smoothing": 0.25, "class_weight": np.array([1.0, 0.0, 2.0, 3.0, 0.5])}]
    given += [{"temperature": 0.5, "z_loss": 0.125}, {"softcap": 2.0}] if form == "logits" else []
    weight = np.where(np.arange(n) % 5 == 3, 0.0, np.linspace(0.5, 2.0, n))
    for target, options, cuts in itertools.product(targets, given, ((0, 5), (0, 2, 3, 5))):
        plain = {name: value for name, value in options.items() if name != "class_weight"} | {"form": form}
        w = options.get("class_weight")
        with ek.use_backend("reference"):
            _, want = ek.cross_entropy(
                x, target, return_grad=True, reduction="none", sample_weight=weight, class_weight=w, **plain
            )
        slices = []
        for a, b in itertools.pairwise(cuts):
            of_slice = {} if w is None else {"class_weight": w[a:b]}
            y = target[:, a:b] if target.ndim == 2 else target
            slices.append(((x[:, a:b], y), {"class_start": a} | of_slice))
        parts = [ek.partial(*args, **o, sample_weight=weight, precise=True, **plain) for args, o in slices]
        whole = ek.combine(*parts)
        got = np.concatenate([whole.gradient(*args, **o) for args, o in slices], axis=1)
        np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-15, err_msg=f"{target[0]} {options} {cuts}")


def test_huge_logits_smoothed(host_backend: str) -> None:
    """The surprises at all classes would be infinite together; their mean is not."""
    x = np.array([[1e308, 0, 0, 0], [1e308, 1e308, 1e308, 0], [-1e308, 0, 0, 0], [1e307, -1e307, 3e307, 0]])
    for y, w in itertools.product((0, 1), (None, np.array([1.0, 0.5, 0.5, 1e-3]))):
        options = {"label_smoothing": 0.1, "class_weight": w}
        want = ek.cross_entropy(x, np.full(4, y), reduction="none", **options)
        assert np.isfinite(want).all() and want.max() > 1e307
        for cuts in ((0, 2, 4), (0, 1, 2, 3, 4)):
            parts = []
            for a, b in itertools.pairwise(cuts):
                of_slice = options | {"class_weight": None if w is None else w[a:b]}
                parts.append(ek.partial(x[:, a:b], np.full(4, y), class_start=a, **of_slice))
            np.testing.assert_allclose(ek.combine(*parts).finish(4), want, rtol=1e-14)


def test_one_row_alone_and_packed_records() -> None:
    """Operands without a batch; gradients into a field of records, whose elements lie at odd addresses."""
    rng = np.random.default_rng(2)
    p, q = rng.dirichlet(np.ones(9), size=(2, 4))
    lazy = [da.from_array(a[0], chunks=4) for a in (p, q)]
    for function in FUNCTIONS:
        for a, b in zip(function(*lazy, return_grad="both"), function(p[0], q[0], return_grad="both"), strict=True):
            np.testing.assert_allclose(a.compute(scheduler="synchronous"), b, rtol=1e-13)
    for target in (q, np.arange(4)):
        whole = ek.partial(p, target, label_smoothing=0.1, precise=True)
        packed = np.zeros(p.shape, [("byte", "u1"), ("grad", "f8")])
        whole.gradient(p, target, out=packed["grad"])
        np.testing.assert_array_equal(packed["grad"], whole.gradient(p, target))
