"""The caller's own arrays: results written into them, in place, and what happens to them on an error."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import entrokern as ek
from cases import BY_NAME, FLOATS, call, operands

N, K = 70, 33
X = np.random.default_rng(0).normal(size=(N, K))
Y = np.random.default_rng(1).integers(0, K, size=N)
T = np.random.default_rng(2).integers(0, 2, size=(N, K))
P = np.exp(X) / np.exp(X).sum(axis=1, keepdims=True)

# Each call takes `x` and options; the maps it can write, in the order in which they are returned.
CALLS: dict[str, tuple[Callable[..., Any], tuple[str, ...]]] = {
    "cross_entropy": (lambda x, **o: ek.cross_entropy(x, Y, **o), ("grad_out", "hess_out")),
    "binary_cross_entropy": (lambda x, **o: ek.binary_cross_entropy(x, T, **o), ("grad_out", "hess_out")),
    "bce rows": (lambda x, **o: ek.binary_cross_entropy(x, T, axis=-1, **o), ("grad_out", "hess_out")),
    "entropy": (lambda x, **o: ek.entropy(x, form="logits", **o), ("grad_out",)),
    "kl_divergence": (
        lambda x, **o: ek.kl_divergence(P.astype(x.dtype), x, q_form="logits", **o),
        ("grad_out",),
    ),
    "js_divergence": (
        lambda x, **o: ek.js_divergence(P.astype(x.dtype), x, q_form="logits", **o),
        ("grad_out",),
    ),
}
MAPS = {
    "log_softmax": ek.log_softmax,
    "softmax": ek.softmax,
    "information": ek.information,
}


def results(value: Any) -> tuple[np.ndarray, ...]:
    return value if isinstance(value, tuple) else (value,)


def ask(maps: tuple[str, ...], function: str) -> dict[str, Any]:
    """The options that ask for these maps without giving arrays."""
    wanted = "q" if "divergence" in function else True
    return {f"return_{name.removesuffix('_out')}": wanted for name in maps}


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("function", CALLS)
def test_given_arrays_are_filled_and_returned(backend: str, function: str, reduction: str, dtype: str) -> None:
    compute, maps = CALLS[function]
    x = X.astype(FLOATS[dtype])
    want = results(compute(x, reduction=reduction, **ask(maps, function)))
    given = {name: np.full_like(x, 7) for name in maps}
    out = np.full_like(want[0], 7)
    got = results(compute(x, reduction=reduction, out=out, **given))
    assert got[0] is out
    for value, (name, array), expected in zip(got[1:], given.items(), want[1:], strict=True):
        assert value is array, name
        np.testing.assert_array_equal(array, expected)
    np.testing.assert_array_equal(out, want[0])


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.parametrize("function", CALLS)
def test_gradient_in_place(backend: str, function: str, reduction: str, dtype: str) -> None:
    compute, maps = CALLS[function]
    x = X.astype(FLOATS[dtype])
    want = results(compute(x, reduction=reduction, **ask(maps[:1], function)))
    got = results(compute(x, reduction=reduction, grad_out=x))
    assert got[1] is x
    np.testing.assert_array_equal(x, want[1])
    np.testing.assert_array_equal(got[0], want[0])


@pytest.mark.parametrize("function", ["kl_divergence", "js_divergence"])
def test_both_gradients_in_place(backend: str, function: str) -> None:
    p, q = P.copy(), np.roll(P, 1, axis=0)
    want = getattr(ek, function)(p, q, return_grad="both")
    got = getattr(ek, function)(p, q, grad_out=(p, q))
    assert got[1] is p
    assert got[2] is q
    for g, w in zip(got, want, strict=True):
        np.testing.assert_array_equal(g, w)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("function", MAPS)
def test_maps_out_and_in_place(backend: str, function: str, dtype: str) -> None:
    x = P.astype(FLOATS[dtype])
    want = MAPS[function](x)
    out = np.empty_like(x)
    assert MAPS[function](x, out=out) is out
    np.testing.assert_array_equal(out, want)
    assert MAPS[function](x, out=x) is x
    np.testing.assert_array_equal(x, want)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_wide_outputs_of_narrow_input(backend: str, dtype: str) -> None:
    """For 16-bit `x`, float32 outputs are taken too: the same numbers before their last rounding."""
    x = X.astype(FLOATS[dtype])
    narrow = ek.cross_entropy(x, Y, return_grad=True, return_hess=True)
    wide = [np.empty(x.shape, np.float32) for _ in range(2)]
    got = ek.cross_entropy(x, Y, grad_out=wide[0], hess_out=wide[1])
    for small, large in zip(narrow[1:], got[1:], strict=True):
        assert large.dtype == np.float32
        np.testing.assert_array_equal(large.astype(x.dtype), small)
    out = np.empty(x.shape, np.float32)
    np.testing.assert_array_equal(ek.softmax(x, out=out).astype(x.dtype), ek.softmax(x))
    assert ek.information(P.astype(x.dtype), out=out) is out
    assert ek.log_softmax(x, out=out) is out


def test_strided_outputs(backend: str) -> None:
    """Outputs may have any strides; what lies between their elements stays."""
    frame = np.full((2 * N, 2 * K), 7.0)
    line = np.full(3 * N, 7.0)
    outs = {"out": line[::-3], "grad_out": frame[::2, ::-2], "hess_out": np.full((K, 2 * N), 7.0)[:, ::2].T}
    want = ek.cross_entropy(X, Y, reduction="none", return_grad=True, return_hess=True)
    for found, wanted in zip(ek.cross_entropy(X, Y, reduction="none", **outs), want, strict=True):
        np.testing.assert_array_equal(found, wanted)
    assert (frame[1::2] == 7).all()
    assert (frame[::2, ::2] == 7).all()
    assert (line.reshape(N, 3)[:, :2] == 7).all()


def test_packed_outputs(host_backend: str) -> None:
    """Fields of packed records: no multiple of an element lies between two of them."""
    kind = [("a", np.float64), ("b", np.int8)]
    for function, (compute, maps) in CALLS.items():
        want = results(compute(X, reduction="none", **ask(maps, function)))
        record = np.zeros(X.shape, kind)
        record["a"] = X
        given = {name: np.zeros(X.shape, kind)["a"] for name in maps}
        out = np.zeros(want[0].shape, kind)["a"]
        for value, expected in zip(
            results(compute(record["a"], reduction="none", out=out, **given)), want, strict=True
        ):
            np.testing.assert_array_equal(value, expected)
        want = results(compute(X, reduction="none", **ask(maps[:1], function)))
        compute(record["a"], reduction="none", grad_out=record["a"])
        np.testing.assert_array_equal(record["a"], want[1])
    out = np.zeros(X.shape, kind)["a"]
    np.testing.assert_array_equal(ek.softmax(X, out=out), ek.softmax(X))


def test_score_outputs(backend: str) -> None:
    out, grad, hess = np.empty(N), np.empty((N, K)), np.empty((N, K))
    got = ek.score(X, Y, outputs=("lse",), out=out, grad_out=grad, hess_out=hess)
    assert got.loss is out
    assert got.grad is grad
    assert got.hess is hess
    for name, value in zip(
        ("loss", "grad", "hess"),
        ek.cross_entropy(X, Y, reduction="none", return_grad=True, return_hess=True),
        strict=True,
    ):
        np.testing.assert_allclose(getattr(got, name), value, rtol=1e-14)
    x = X.copy()
    np.testing.assert_allclose(ek.score(x, Y, grad_out=x).grad, grad, rtol=1e-14)
    assert got.rank is None


# --- what is refused ------------------------------------------------------------------------------

_buffer = np.zeros((N + 1, K))
_wide = np.zeros((N, K + 1))
REFUSED: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "out shape": (lambda: ek.cross_entropy(X, Y, out=np.empty(N)), ValueError,
                  r"out has shape \(70,\); the result has shape \(\)"),
    "grad_out shape": (lambda: ek.cross_entropy(X, Y, grad_out=np.empty(N)), ValueError,
                       "grad_out has shape"),
    "out dtype": (lambda: ek.cross_entropy(X, Y, reduction="none", out=np.empty(N, np.float32)), TypeError,
                  "out has dtype float32; allowed: float64"),
    "grad_out dtype": (lambda: ek.cross_entropy(X.astype(np.float32), Y, grad_out=np.empty((N, K))),
                       TypeError, "grad_out has dtype float64; allowed: float32"),
    "float16 grad_out dtype": (lambda: ek.cross_entropy(X.astype(np.float16), Y, grad_out=np.empty((N, K))),
                               TypeError, "allowed: float16 or float32"),
    "hess_out a list": (lambda: ek.cross_entropy(X, Y, hess_out=[0.0]), TypeError,
                        "hess_out is a list; pass a NumPy array"),
    "out masked": (lambda: ek.softmax(X, out=np.ma.zeros((N, K))), TypeError, "out is a MaskedArray"),
    "out read-only": (lambda: ek.softmax(X, out=np.broadcast_to(np.zeros(K), (N, K))), ValueError,
                      "out is read-only"),
    "out broadcast": (lambda: ek.softmax(X, out=np.lib.stride_tricks.as_strided(np.zeros(K), (N, K), (0, 8))),
                      ValueError, "out is a broadcast view"),
    "grad_out part of x": (lambda: ek.cross_entropy(_buffer[:-1], Y, grad_out=_buffer[1:]), ValueError,
                           "grad_out overlaps x in memory; grad_out may be exactly x, but not a part"),
    "grad_out x turned": (lambda: ek.entropy(_buffer[:-1], grad_out=_buffer[-2::-1]), ValueError,
                          "grad_out may be exactly p"),
    "hess_out is x": (lambda: ek.cross_entropy(_buffer[:-1], Y, hess_out=_buffer[:-1]), ValueError,
                      "hess_out overlaps x in memory; pass a hess_out of its own"),
    "grad_out is hess_out": (lambda: ek.cross_entropy(X, Y, grad_out=_wide[:, 1:], hess_out=_wide[:, :-1]),
                             ValueError, "grad_out and hess_out overlap"),
    "out in x": (lambda: ek.logsumexp(_buffer[:-1], out=_buffer[:-1, 0]), ValueError, "out overlaps x"),
    "out in weights": (lambda: ek.cross_entropy(X, Y, reduction="none", sample_weight=_wide[:, 0],
                                                out=_wide[:, 0]), ValueError, "out overlaps sample_weight"),
    "out in class weights": (lambda: ek.cross_entropy(np.zeros((K, K)), Y[:K], reduction="none",
                                                      class_weight=_buffer[0], out=_buffer[0]),
                             ValueError, "out overlaps class_weight"),
    "grad_out is the target": (lambda: ek.cross_entropy(X, _buffer[:-1], grad_out=_buffer[:-1]), ValueError,
                               "grad_out overlaps target"),
    "grad of q is p": (lambda: ek.kl_divergence(_buffer[:-1], P, grad_out=_buffer[:-1]), ValueError,
                       "grad_out overlaps p in memory"),
    "grad of a broadcast row": (lambda: ek.kl_divergence(P, _buffer[0], grad_out=_buffer[0]), ValueError,
                                "grad_out has shape"),
    "pair for one": (lambda: ek.kl_divergence(P, P, return_grad="q", grad_out=(_wide, _wide)), ValueError,
                     "a pair"),
    "one for a pair": (lambda: ek.kl_divergence(P, P, return_grad="both", grad_out=_buffer[:-1]), ValueError,
                       "takes a pair"),
    "pair overlaps": (lambda: ek.js_divergence(P, P, grad_out=(_buffer[1:], _buffer[:-1])), ValueError,
                      r"grad_out\[0\] and grad_out\[1\] overlap"),
    "score out shape": (lambda: ek.score(X, Y, out=np.empty(1)), ValueError, "out has shape"),
    "score hess_out dtype": (lambda: ek.score(X, Y, hess_out=np.empty((N, K), int)), TypeError,
                             "hess_out has dtype"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str) -> None:
    compute, error, message = REFUSED[case]
    with pytest.raises(error, match=message):
        compute()


# --- targets out of range -------------------------------------------------------------------------


def long_labels(bad: dict[int, int], n: int = 200_000) -> tuple[np.ndarray, np.ndarray]:
    """Labels in more chunks than one (whatever a chunk is), some of them out of range."""
    labels = np.zeros(n, np.int64)
    for row, label in bad.items():
        labels[row] = label
    return np.zeros((n, 3), np.float32), labels


@pytest.mark.parametrize("label", [3, -1, -100, 2**40, -(2**63)])
def test_the_lowest_row_is_named(host_backend: str, label: int) -> None:
    x, labels = long_labels({199_999: 7, 140_001: label, 140_002: -5})
    with pytest.raises(IndexError, match=rf"label {label} of row 140001 is out of range for k = 3 classes"):
        ek.cross_entropy(x, labels)
    with pytest.raises(IndexError, match="row 140001 "):
        ek.cross_entropy(x, labels, return_grad=True, reduction="none")
    with pytest.raises(IndexError, match="row 140001 "):
        ek.score(x, labels, outputs=("rank",))
    with pytest.raises(IndexError, match=r"row \(140, 1\) "):
        ek.cross_entropy(x.reshape(200, 1000, 3), labels.reshape(200, 1000))


def test_the_hint_of_minus_100(host_backend: str) -> None:
    x = np.zeros((2, 3))
    for function in (ek.cross_entropy, ek.perplexity, ek.score):
        with pytest.raises(IndexError, match="pass `ignore_index=-100`"):
            function(x, [0, -100])
        with pytest.raises(IndexError) as error:
            function(x, [0, -7], ignore_index=-100)
        assert "pass" not in str(error.value)


@pytest.mark.parametrize("target", [255, -1, 2, -100])
def test_binary_targets(host_backend: str, target: int) -> None:
    t = np.zeros((3, 5), np.int64)
    t[1, 4] = t[2, 0] = target
    for options in ({}, {"axis": -1}, {"return_grad": True}):
        with pytest.raises(IndexError, match=rf"target {target} at row \(1, 4\) is out of range"):
            ek.binary_cross_entropy(np.zeros((3, 5)), t, **options)
    with pytest.raises(IndexError, match="0, 1 and ignore_index=7"):
        ek.binary_cross_entropy(np.zeros((3, 5)), t, ignore_index=7)
    if target == 255:
        with pytest.raises(IndexError, match="target 255 at row 0 is out of range"):
            ek.binary_cross_entropy([0.0], np.array([255], np.uint8))
    # A float target is a number in [0, 1]; outside, only `validate` objects.
    assert np.isfinite(ek.binary_cross_entropy([0.0], [255.0]))


@pytest.mark.parametrize("bad", [0, 100_000, 199_999])
def test_given_outputs_hold_nan_after_an_index_error(host_backend: str, bad: int) -> None:
    """No half-written result can pass for a whole one."""
    x, labels = long_labels({bad: 3})
    out, grad, hess = np.ones(len(x), np.float32), np.ones_like(x), np.ones_like(x)
    with pytest.raises(IndexError):
        ek.cross_entropy(x, labels, reduction="none", out=out, grad_out=grad, hess_out=hess)
    for array in (out, grad, hess):
        assert np.isnan(array).all()
    out = np.ones((), np.float32)
    with pytest.raises(IndexError):
        ek.cross_entropy(x, labels, out=out)
    assert np.isnan(out)
    out, grad = np.ones(len(x), np.float32), np.ones_like(x)
    with pytest.raises(IndexError):
        ek.score(x, labels, out=out, grad_out=grad)
    assert np.isnan(out).all()
    assert np.isnan(grad).all()
    grad = np.ones_like(x)
    with pytest.raises(IndexError):
        ek.binary_cross_entropy(x, np.repeat(labels[:, None], 3, axis=1), reduction="none", grad_out=grad)
    assert np.isnan(grad).all()


def test_untouched_after_an_index_error(host_backend: str) -> None:
    """In place, and for a mean's gradient, all labels are checked before anything is written."""
    x, labels = long_labels({199_999: 3})
    before = x.copy()
    for reduction in ("none", "mean", "sum"):
        out = np.full(x.shape[:1] if reduction == "none" else (), 7, np.float32)
        with pytest.raises(IndexError):
            ek.cross_entropy(x, labels, reduction=reduction, out=out, grad_out=x)
        np.testing.assert_array_equal(x, before)
        assert (out == 7).all()
    grad = np.full_like(x, 7)
    with pytest.raises(IndexError):
        ek.cross_entropy(x, labels, grad_out=grad)
    assert (grad == 7).all()
    with pytest.raises(IndexError):
        ek.score(x, labels, grad_out=x)
    np.testing.assert_array_equal(x, before)


def test_untouched_when_nothing_counts(backend: str) -> None:
    x = np.zeros((2, 3))
    grad = np.full((2, 3), 7.0)
    with pytest.raises(ValueError, match="no row counts"):
        ek.cross_entropy(x, [0, 1], sample_weight=[0, 0], on_empty="raise", grad_out=grad)
    assert (grad == 7).all()


def test_inputs_are_not_written(backend: str) -> None:
    """Read-only operands are enough for every case of the table."""
    for case in BY_NAME.values():
        args, options = operands(case, 5, 9)
        for array in [*args, *options.values()]:
            if isinstance(array, np.ndarray):
                array.flags.writeable = False
        call(case.function, args, options)
