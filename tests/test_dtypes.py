"""Which dtypes come in, which come out, and that targets and weights of any real dtype mean the same."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

import entrokern as ek
from cases import BY_NAME, FLOATS, NAMED, Case, call, operands
from contract import check, input_dtype
from device import checked
from oracle import LONG, evaluate

INTEGERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
REALS = (*FLOATS, *INTEGERS)


def dtype_of(name: str) -> np.dtype[Any]:
    return FLOATS.get(name, np.dtype(name if name != "bool" else np.bool_))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("case", NAMED, ids=lambda case: case.name)
def test_what_comes_out(backend: str, case: Case, dtype: str) -> None:
    """Row results float32 or float64, maps in the input's dtype; checked for every case of the table."""
    args, options = operands(case, 4, 6, dtype)
    for name, value in call(case.function, args, options).items():
        wide = dtype == "float64"
        if name in ("argmax", "rank"):
            expected = np.dtype(np.int64)
        elif name.startswith(("grad", "hess", "softmax", "log_softmax", "information")):
            expected = FLOATS[dtype]
        else:
            expected = np.dtype(np.float64 if wide else np.float32)
        assert value.dtype == expected, name


@pytest.mark.parametrize("dtype", INTEGERS)
def test_integer_operands_are_float64(backend: str, dtype: str) -> None:
    """Integers and lists are computed as float64; they are the same numbers."""
    x = np.random.default_rng(0).integers(0, 9, size=(6, 5)).astype(dtype)
    y = np.arange(6) % 5
    for function in (
        lambda x: ek.cross_entropy(x, y, return_grad=True, return_hess=True),
        lambda x: ek.binary_cross_entropy(x, x > 3, return_grad=True),
        lambda x: ek.entropy(x, form="logits", return_grad=True),
        lambda x: ek.kl_divergence(x, x[::-1], p_form="logits", q_form="logits", return_grad="both"),
        lambda x: (ek.softmax(x), ek.logsumexp(x), ek.information(x)),
    ):
        want = function(x.astype(np.float64))
        for got, expected in zip(function(x), want, strict=True):
            assert got.dtype == np.float64
            np.testing.assert_array_equal(got, expected)
    lists = ek.cross_entropy(x.tolist(), y.tolist(), return_grad=True)
    for got, expected in zip(lists, ek.cross_entropy(x, y, return_grad=True), strict=True):
        assert got.dtype == np.float64
        np.testing.assert_array_equal(got, expected)
    np.testing.assert_array_equal(ek.softmax(tuple(map(tuple, x.tolist()))), ek.softmax(x))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("labels", INTEGERS)
def test_label_dtypes(backend: str, labels: str, dtype: str) -> None:
    x = np.random.default_rng(0).normal(size=(40, 100)).astype(FLOATS[dtype])
    y = np.random.default_rng(1).integers(0, 100, size=40)
    want = ek.cross_entropy(x, y, reduction="none", return_grad=True)
    got = ek.cross_entropy(x, y.astype(labels), reduction="none", return_grad=True)
    for g, w in zip(got, want, strict=True):
        assert g.dtype == w.dtype
        np.testing.assert_array_equal(g, w)
    scores = ek.score(x, y.astype(labels), outputs=("rank", "log_prob"))
    np.testing.assert_array_equal(scores.rank, ek.score(x, y, outputs="rank").rank)


@pytest.mark.parametrize("dtype", INTEGERS)
def test_extreme_labels(backend: str, dtype: str) -> None:
    """The ends of each integer type are out of range, also where they wrap to a class in another."""
    info = np.iinfo(dtype)
    x = np.zeros((3, 5), np.float32)
    for extreme in {int(info.max), int(info.min), info.max - 1} - {0}:
        labels = np.array([0, 1, extreme], dtype)
        with pytest.raises(IndexError, match=f"label {extreme} of row 2 is out of range for k = 5"):
            ek.cross_entropy(x, labels, **checked(backend))
        with pytest.raises(IndexError, match=f"label {extreme} of row 2"):
            ek.score(x, labels, outputs=("log_prob",), **checked(backend))
        loss = ek.cross_entropy(x, labels, ignore_index=extreme, reduction="none")
        np.testing.assert_allclose(loss, [np.log(5)] * 2 + [0], rtol=1e-6)


def test_uint64_labels_near_2_to_the_64(backend: str) -> None:
    """2**64 - 100 is not -100, and 2**64 - 1 is not -1."""
    x = np.zeros((2, 5))
    for value, look_alike in ((2**64 - 100, -100), (2**64 - 1, -1)):
        labels = np.array([1, value], np.uint64)
        with pytest.raises(IndexError, match=f"label {value} of row 1"):
            ek.cross_entropy(x, labels, ignore_index=look_alike, **checked(backend))
        np.testing.assert_array_equal(
            ek.cross_entropy(x, labels, ignore_index=value, reduction="none"), [np.log(5.0), 0]
        )
    with pytest.raises(IndexError):
        ek.cross_entropy(x, np.array([-1, 1], np.int8), ignore_index=255, **checked(backend))


def targets() -> list[Any]:
    """All dtypes of targets beside float32, and a few beside the others: most pairs are kernels of their own."""
    few = {(t, d) for d in FLOATS for t in ("bool", "int64", d)}
    return [
        pytest.param(t, d, marks=[] if d == "float32" or (t, d) in few else [pytest.mark.slow])
        for t in ("bool", *REALS)
        for d in FLOATS
    ]


@pytest.mark.parametrize(("target", "dtype"), targets())
def test_target_dtypes(backend: str, target: str, dtype: str) -> None:
    """A target's dtype never promotes the result, and the same numbers give the same loss."""
    rng = np.random.default_rng(0)
    for case, values in (
        ("ce dense grad", np.eye(12)[rng.integers(0, 12, size=30)]),
        ("ce probs dense", np.eye(12)[rng.integers(0, 12, size=30)]),
        ("bce grad", rng.integers(0, 2, size=(30, 12))),
        ("bce rows", rng.integers(0, 2, size=(30, 12))),
        ("bce log_probs", rng.integers(0, 2, size=(30, 12))),
    ):
        (x, _), options = operands(BY_NAME[case], 30, 12, dtype)
        args = [x, values.astype(dtype_of(target))]
        function = BY_NAME[case].function
        want = evaluate(LONG, function, [x, values], options)
        check(call(function, args, options), want, x.dtype, where=case)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
@pytest.mark.parametrize("weights", REALS)
def test_weight_dtypes(backend: str, weights: str, dtype: str) -> None:
    rng = np.random.default_rng(0)
    whole = {"sample_weight": rng.integers(0, 4, size=30), "class_weight": rng.integers(0, 4, size=12)}
    for case, names in (("ce labels grad", ("sample_weight", "class_weight")), ("entropy logits",
        ("sample_weight",)),
                        ("kl logits logits", ("sample_weight",)), ("bce rows",
                            ("sample_weight",))):  # fmt: skip
        args, options = operands(BY_NAME[case], 30, 12, dtype)
        options |= {"pos_weight": rng.integers(1, 4, size=12)} if case == "bce rows" else {}
        given = {n: whole[n] for n in names}
        want = evaluate(LONG, BY_NAME[case].function, args, options | given)
        cast = {n: v.astype(dtype_of(weights)) for n, v in (options | given).items() if isinstance(v, np.ndarray)}
        check(call(BY_NAME[case].function, args, options | cast), want, args[0].dtype, where=case)


@pytest.mark.parametrize("q", FLOATS)
@pytest.mark.parametrize("p", FLOATS)
def test_two_operands_of_two_dtypes(backend: str, p: str, q: str) -> None:
    """KL, JS and the estimates have ``result_type(p, q)``, gradients too."""
    if {p, q} == {"float16", "bfloat16"}:
        for function in (ek.kl_divergence, ek.js_divergence, ek.kl_estimate):
            with pytest.raises(TypeError, match=r"float16, without a common dtype|bfloat16, without"):
                function(np.ones(3, FLOATS[p]), np.ones(3, FLOATS[q]))
        return
    for name in (
        "kl logits logits",
        "kl probs logits",
        "js probs probs",
        "js log_probs logits",
        "estimate k3",
    ):
        case = BY_NAME[name]
        args, options = operands(case, 9, 35)
        args = [args[0].astype(FLOATS[p]), args[1].astype(FLOATS[q])]
        want = evaluate(LONG, case.function, args, options)
        check(call(case.function, args, options), want, input_dtype(case, args), where=name)
    mixed = ek.kl_divergence(np.ones(3, FLOATS[p]), [1, 2, 3], return_grad="p")
    assert mixed[0].dtype == mixed[1].dtype == np.float64


def test_float16_extremes(backend: str) -> None:
    """Subnormal and largest float16 and bfloat16 values are read as what they are."""
    for dtype in ("float16", "bfloat16"):
        info = ml_dtypes.finfo(FLOATS[dtype])
        values = [
            0.0,
            float(info.smallest_subnormal),
            -float(info.tiny),
            float(info.max),
            -float(info.max),
            1.0,
        ]
        x = np.array([values] * 3).astype(FLOATS[dtype])
        wide = np.float64(x.astype(float))
        np.testing.assert_allclose(ek.logsumexp(x), ek.logsumexp(wide), rtol=1e-6)
        np.testing.assert_array_equal(ek.score(x).argmax, [3, 3, 3])
        tiny = np.abs(x[:, 1:3])
        np.testing.assert_allclose(ek.entropy(tiny), ek.entropy(np.abs(wide[:, 1:3])), rtol=1e-5)
        every = np.arange(2**16, dtype=np.uint16).view(FLOATS[dtype])
        with np.errstate(invalid="ignore"):  # some are signalling
            every = every[~np.isnan(every)]
        got = ek.information(every, out=np.empty(every.shape, np.float32))
        want = ek.information(every.astype(np.float64))
        np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-38)
