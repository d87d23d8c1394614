"""`linear_cross_entropy`: the same as CE of the logits that it does not store, in tiles of every kind."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import device
import entrokern as ek
from entrokern import _linear

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
DTYPES = [np.dtype(np.float64), np.dtype(np.float32), np.dtype(np.float16), BFLOAT16]

# Bytes of a tile, rows of slices, fewest rows of whole ones, and bytes of a piece and of what is held: by default all
# of a small call is one tile.
TILES = {
    "one": {},
    "whole rows": {"BYTES": 1500, "ENOUGH": 1, "ENOUGH_WITH_GRADIENTS": 1, "PIECE": 300, "DEVICE_PIECE": 300},
    "slices": {"BYTES": 1500, "ENOUGH": 10**9, "ENOUGH_WITH_GRADIENTS": 10**9, "SLICED_ROWS": 7, "PIECE": 300},
    "a row, a class": {"BYTES": 1, "PIECE": 1, "HELD": 0},
    "classes in turn": {"BYTES": 1500, "PIECE": 300, "HELD": 600},
    "nothing is held": {"BYTES": 1500, "PIECE": 300, "HELD": 0},
}


@pytest.fixture(params=TILES)
def tiles(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    for name, value in TILES[request.param].items():
        monkeypatch.setattr(_linear, name, value)
    return request.param


Arrays = dict[str, Any]


def operands(n: int, k: int, d: int, dtype: Any = np.float64, seed: int = 0) -> Arrays:
    rng = np.random.default_rng(seed)
    return {
        "hidden": rng.normal(size=(n, d)).astype(dtype),
        "weight": (rng.normal(size=(k, d)) / np.sqrt(max(d, 1))).astype(dtype),
        "bias": rng.normal(size=k).astype(dtype),
        "target": rng.integers(0, k, n),
    }


def by_definition(hidden: Any, weight: Any, target: Any, bias: Any = None, **options: Any) -> tuple[Any, ...]:
    """The loss and all gradients from logits in float64, by the reference."""
    h, w = hidden.astype(np.float64), weight.astype(np.float64)
    x = h @ w.T if bias is None else h @ w.T + bias.astype(np.float64)
    with ek.use_backend("reference"):
        loss, g = ek.cross_entropy(x, target, return_grad=True, **options)
    k, d = w.shape
    rows, g = h.reshape(math.prod(h.shape[:-1]), d), g.reshape(-1, k)
    grads = ((g @ w).reshape(h.shape), g.T @ rows, g.sum(axis=0))
    return (loss, *(grads if bias is not None else grads[:2]))


def tolerance(dtype: np.dtype[Any], out: np.dtype[Any]) -> float:
    eps = float(np.finfo(np.float64 if dtype.itemsize == 8 else np.float32).eps)
    return 64 * eps + (float(ml_dtypes.finfo(out).eps) if out.itemsize == 2 else 0.0)


def agree(got: tuple[Any, ...], want: tuple[Any, ...], dtype: np.dtype[Any]) -> None:
    for a, b in zip(got, want, strict=True):
        assert a.shape == b.shape
        allowed = tolerance(dtype, a.dtype) * max(1e-30, float(np.max(np.abs(b), initial=0.0)))
        if a.dtype == np.float16:
            allowed += 2.0**-25
        np.testing.assert_allclose(a.astype(np.float64), b.astype(np.float64), rtol=0, atol=allowed)


OPTIONS: dict[str, Any] = {
    "mean": {},
    "sum": {"reduction": "sum", "base": 2},
    "none": {"reduction": "none", "label_smoothing": 0.1},
    "ignored": {"ignore_index": 3, "on_empty": "zero"},
    "weighted": {"sample_weight": True, "class_weight": True, "ignore_index": 3, "label_smoothing": 0.2},
    "transformed": {"temperature": 2.0, "softcap": 3.0, "z_loss": 0.01},
    "distributions": {"target": True, "sample_weight": True, "class_weight": True, "softcap": 5.0},
}


def with_arrays(options: Any, n: int, k: int) -> Any:
    rng = np.random.default_rng(1)
    made = {
        "sample_weight": rng.integers(0, 3, n).astype(np.float32),
        "class_weight": rng.random(k),
        "target": rng.dirichlet(np.ones(k), n).astype(np.float32),
    }
    return options | {name: array for name, array in made.items() if options.get(name) is True}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_options(options: Any, tiles: str) -> None:
    n, k, d = 19, 31, 7
    given = operands(n, k, d) | with_arrays(options, n, k)
    agree(ek.linear_cross_entropy(**given, return_grad=True), by_definition(**given), np.dtype(np.float64))
    value = ek.linear_cross_entropy(**given)
    np.testing.assert_allclose(value, by_definition(**given)[0], rtol=1e-13)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtypes(dtype: Any, tiles: str) -> None:
    given = operands(19, 31, 7, dtype)
    got, want = ek.linear_cross_entropy(**given, return_grad=True), by_definition(**given)
    assert got[0].dtype == (np.float64 if dtype == np.float64 else np.float32)
    assert [g.dtype for g in got[1:]] == [dtype] * 3
    agree(got, want, dtype)
    if dtype.itemsize == 2:  # sums in float32, as they are
        wide = tuple(np.empty(given[name].shape, np.float32) for name in ("hidden", "weight", "bias"))
        found = ek.linear_cross_entropy(**given, grad_out=wide)
        assert all(a is b for a, b in zip(found[1:], wide, strict=True))
        agree(found, want, dtype)
        # Rounded once, at the end: not as if each tile's share had been.
        again = ek.linear_cross_entropy(**given, return_grad=True)
        for narrow, exact in zip(again[1:], wide, strict=True):
            step = np.spacing(np.abs(narrow)).astype(np.float64)
            assert (np.abs(narrow.astype(np.float64) - exact) <= 0.51 * step + 1e-6 * np.abs(exact).max()).all()


@pytest.mark.parametrize("mixed", [("f4", "f8"), ("f8", "f4"), ("f2", "f4"), ("i8", "f4")], ids="-".join)
def test_mixed_dtypes(mixed: tuple[str, str]) -> None:
    given = operands(9, 7, 5)
    given["hidden"], given["weight"] = (given["hidden"] * 3).astype(mixed[0]), given["weight"].astype(mixed[1])
    got = ek.linear_cross_entropy(**given, return_grad=True)
    dtype = np.result_type(np.float64 if mixed[0] == "i8" else mixed[0], mixed[1])
    assert got[0].dtype == dtype
    assert got[1].dtype == (np.float64 if mixed[0] == "i8" else mixed[0]) and got[2].dtype == mixed[1]
    agree(got, by_definition(**given), np.dtype(np.float32) if "f4" in mixed else dtype)


SHAPES = [(1, 1, 1), (5, 1, 3), (5, 3, 1), (1, 53, 7), (0, 4, 3), (3, 4, 0), (9, 65, 33), (33, 2, 5)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [np.float32, np.float16], ids=["float32", "float16"])
def test_shapes(shape: tuple[int, int, int], dtype: Any, tiles: str) -> None:
    given = operands(*shape, dtype)
    for reduction in ("mean", "sum", "none"):
        got = ek.linear_cross_entropy(**given, reduction=reduction, return_grad=True)
        agree(got, by_definition(**given, reduction=reduction), np.dtype(dtype))


@pytest.mark.parametrize("batch", [(), (6,), (2, 3), (2, 1, 3)], ids=str)
def test_batches(batch: tuple[int, ...], tiles: str) -> None:
    """Any number of batch axes, of a single row too; labels and distributions."""
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(5, 4))
    hidden = rng.normal(size=(*batch, 4))
    for target in (rng.integers(0, 5, batch), rng.dirichlet(np.ones(5), batch)):
        for reduction in ("none", "mean"):
            got = ek.linear_cross_entropy(hidden, weight, target, reduction=reduction, return_grad=True)
            agree(got, by_definition(hidden, weight, target, reduction=reduction), hidden.dtype)


def layouts(array: Any) -> dict[str, Any]:
    """The same values, lying differently."""
    *batch, d = array.shape
    wide = np.zeros((*(2 * n for n in batch), 2 * d), array.dtype)
    apart = wide[(*(slice(None, None, 2) for _ in array.shape),)]
    apart[...] = array
    shifted = np.zeros((*batch[:-1], batch[-1] + 1, d), array.dtype)[..., 1:, :]
    shifted[...] = array
    read_only = array.copy()
    read_only.flags.writeable = False
    backwards = array[..., ::-1].copy()[..., ::-1]
    return {"apart": apart, "shifted": shifted, "Fortran": np.asfortranarray(array), "read-only": read_only,
            "backwards": backwards, "upside down": array[::-1].copy()[::-1]}  # fmt: skip


@pytest.mark.parametrize("lies", ["apart", "shifted", "Fortran", "read-only", "backwards", "upside down"])
@pytest.mark.parametrize("dtype", [np.float32, BFLOAT16], ids=["float32", "bfloat16"])
def test_layouts(lies: str, dtype: Any, tiles: str) -> None:
    rng = np.random.default_rng(0)
    hidden, weight = rng.normal(size=(3, 7, 5)).astype(dtype), rng.normal(size=(11, 5)).astype(dtype)
    q = rng.dirichlet(np.ones(11), (3, 7)).astype(np.float32)
    y, s = rng.integers(0, 11, (3, 7)), rng.random((3, 7))
    for target in (y, q):
        want = by_definition(hidden, weight, target, sample_weight=s)
        h, w, t = layouts(hidden)[lies], layouts(weight)[lies], layouts(target)[lies]
        got = ek.linear_cross_entropy(h, w, t, sample_weight=layouts(s)[lies], return_grad=True)
        agree(got, want, np.dtype(dtype))
        if lies == "read-only":
            continue
        out, grads = layouts(np.zeros((3, 7), np.float32))[lies], (layouts(hidden)[lies], layouts(weight)[lies])
        rows = ek.linear_cross_entropy(h, w, t, reduction="none", out=out, grad_out=grads)
        assert rows[0] is out and rows[1] is grads[0] and rows[2] is grads[1]
        agree(rows, by_definition(hidden, weight, target, reduction="none"), np.dtype(dtype))


def test_broadcast_rows(tiles: str) -> None:
    """One row for all, read where it lies."""
    given = operands(1, 13, 5)
    hidden = np.broadcast_to(given["hidden"], (21, 5))
    y = np.arange(21) % 13
    agree(ek.linear_cross_entropy(hidden, given["weight"], y, return_grad=True),
          by_definition(hidden, given["weight"], y), hidden.dtype)  # fmt: skip


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=str)
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_accuracy(dtype: Any, scale: float, tiles: str) -> None:
    """What the documentation says of it: the rounding of the product, and that of `cross_entropy`."""
    n, k, d = 12, 101, 129
    rng = np.random.default_rng(0)
    h, w = (scale * rng.normal(size=(n, d))).astype(dtype), (rng.normal(size=(k, d)) / np.sqrt(d)).astype(dtype)
    y = rng.integers(0, k, n)
    eps = float(np.finfo(dtype).eps)
    loss, grad_hidden = ek.linear_cross_entropy(h, w, y, reduction="none", return_grad="hidden")
    H, W = h.astype(np.longdouble), w.astype(np.longdouble)
    x = H @ W.T
    p = np.exp(x - x.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    off = 4 * eps * (np.abs(H) @ np.abs(W).T)  # of each logit
    rest = np.abs(p - (np.arange(k) == y[:, None]))  # |dloss / dlogit|
    want = -np.log(p[np.arange(n), y])
    shifted = np.abs(x - x.max(axis=1, keepdims=True))
    allowed = 4 * eps * (np.abs(want) + (rest * shifted).sum(axis=1)) + (rest * off).sum(axis=1)
    assert (np.abs(loss - want) <= allowed).all()
    g = p - (np.arange(k) == y[:, None])
    # A gradient's error: that of its logits, through the softmax, and of the last product.
    moved = p * (off + 4 * eps * shifted)
    of_g = moved + p * moved.sum(axis=1, keepdims=True) + 4 * eps * np.abs(g)
    allowed = of_g @ np.abs(W) + 4 * eps * (np.abs(g) @ np.abs(W))
    assert (np.abs(grad_hidden - g @ W) <= allowed).all()


# --- rows that do not count, and rows that are not finite ----------------------------------------------


def test_rows_that_do_not_count(tiles: str) -> None:
    """They are left out whatever they hold: of loss, gradients and denominators."""
    given = operands(20, 9, 5)
    y, s = given["target"] % 9, np.ones(20)
    y[::3], s[1::3] = -100, 0.0
    hidden = given["hidden"].copy()
    hidden[::3], hidden[1::3] = np.nan, np.inf
    got = ek.linear_cross_entropy(
        hidden, given["weight"], y, bias=given["bias"], ignore_index=-100, sample_weight=s, return_grad=True
    )
    counted = (y != -100) & (s != 0)
    want = by_definition(given["hidden"][counted], given["weight"], y[counted], given["bias"])
    agree((got[0], got[1][counted], *got[2:]), want, np.dtype(np.float64))
    assert (got[1][~counted] == 0).all()


def test_a_nan_stays_in_its_row(tiles: str) -> None:
    given = operands(20, 9, 5)
    given["hidden"][7, 2] = np.nan
    loss, grad = ek.linear_cross_entropy(**given, reduction="none", return_grad="hidden")
    others = np.arange(20) != 7
    assert np.isnan(loss[7]) and np.isnan(grad[7]).all()
    want = by_definition(**given | {"hidden": np.nan_to_num(given["hidden"])}, reduction="none")
    agree((loss[others], grad[others]), (want[0][others], want[1][others]), loss.dtype)


def test_a_class_that_is_masked_out(tiles: str) -> None:
    """A bias of -inf is probability 0, and leaves no NaN behind."""
    given = operands(12, 9, 5)
    given["bias"][4] = -np.inf
    given["target"] = np.where(given["target"] == 4, 5, given["target"])
    got = ek.linear_cross_entropy(**given, return_grad=True)
    kept = np.arange(9) != 4
    target = given["target"] - (given["target"] > 4)
    want = by_definition(given["hidden"], given["weight"][kept], target, given["bias"][kept])
    agree((got[0], got[1], got[2][kept], got[3][kept]), want, np.dtype(np.float64))
    assert (got[2][4] == 0).all() and got[3][4] == 0


@pytest.mark.parametrize("on_empty", ["nan", "zero", "raise"])
def test_no_row_counts(on_empty: Any, tiles: str) -> None:
    given = operands(6, 4, 3)
    given["target"][:] = -100
    grads = tuple(np.ones_like(given[name]) for name in ("hidden", "weight", "bias"))
    if on_empty == "raise":
        with pytest.raises(ValueError, match="no row counts"):
            ek.linear_cross_entropy(**given, ignore_index=-100, on_empty=on_empty, grad_out=grads)
        assert all((g == 1).all() for g in grads)
        return
    loss = ek.linear_cross_entropy(**given, ignore_index=-100, on_empty=on_empty, grad_out=grads)[0]
    assert loss == 0 if on_empty == "zero" else np.isnan(loss)
    assert all((g == 0).all() for g in grads)


# --- properties ------------------------------------------------------------------------------------------


@given(st.integers(1, 30), st.integers(1, 40), st.integers(1, 9), st.integers(0, 99), st.integers(1, 9000))
def test_permutations(n: int, k: int, d: int, seed: int, budget: int) -> None:
    """Classes and rows in another order: the same loss, and the gradients in that order."""
    given = operands(n, k, d, seed=seed)
    rng = np.random.default_rng(seed)
    rows, classes = rng.permutation(n), rng.permutation(k)
    other = {
        "hidden": given["hidden"][rows], "weight": given["weight"][classes], "bias": given["bias"][classes],
        "target": np.argsort(classes)[given["target"][rows]],
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_linear, "BYTES", budget)
        loss, gh, gw, gb = ek.linear_cross_entropy(**given, return_grad=True)
        got = ek.linear_cross_entropy(**other, return_grad=True)
    agree(got, (loss, gh[rows], gw[classes], gb[classes]), np.dtype(np.float64))


def test_gradient_is_the_slope(tiles: str) -> None:
    given, step = operands(5, 6, 3), 1e-6
    options: Any = {"label_smoothing": 0.1, "softcap": 2.0, "z_loss": 0.1, "temperature": 1.5}
    gradients = ek.linear_cross_entropy(**given, **options, return_grad=True)[1:]
    for name, gradient in zip(("hidden", "weight", "bias"), gradients, strict=True):
        for at in np.ndindex(gradient.shape):
            moved = [given | {name: given[name].copy()} for _ in range(2)]
            moved[0][name][at] += step
            moved[1][name][at] -= step
            up, down = (ek.linear_cross_entropy(**m, **options) for m in moved)
            assert abs((up - down) / (2 * step) - gradient[at]) < 1e-8


def test_same_bits() -> None:
    given = operands(300, 500, 33, np.float32)
    a, b = (ek.linear_cross_entropy(**given, return_grad=True) for _ in range(2))
    assert all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def test_reference_backend(tiles: str) -> None:
    given = operands(19, 31, 7)
    with ek.use_backend("reference"):
        agree(ek.linear_cross_entropy(**given, return_grad=True), by_definition(**given), np.dtype(np.float64))


def test_every_float16_is_widened_exactly() -> None:
    values = np.arange(2**16, dtype=np.uint16).view(np.float16)
    for part in (values, values[np.isfinite(values)], values[::-3], values[:0]):
        wide = np.empty(part.shape, np.float32)
        _linear.widen(part, wide)
        np.testing.assert_array_equal(wide, part.astype(np.float32))
        np.testing.assert_array_equal(np.signbit(wide), np.signbit(part))


# --- what is asked for -------------------------------------------------------------------------------------


@pytest.mark.parametrize("asked", ["hidden", ("weight",), ["bias", "hidden"], ("hidden", "weight", "bias"), (), True])
def test_some_gradients(asked: Any, tiles: str) -> None:
    given = operands(9, 7, 5)
    got = ek.linear_cross_entropy(**given, return_grad=asked)
    order = ("hidden", "weight", "bias")
    wanted = order if asked is True else [n for n in order if n == asked or (not isinstance(asked, str) and n in asked)]
    loss, *all_of_them = by_definition(**given)
    want = (loss, *(g for n, g in zip(order, all_of_them, strict=True) if n in wanted))
    agree(got if wanted else (got,), want, np.dtype(np.float64))


def test_grad_out() -> None:
    given = operands(9, 7, 5)
    mine, out = np.empty((7, 5)), np.empty(())
    got = ek.linear_cross_entropy(**given, out=out, grad_out=(None, mine, None))
    assert got[0] is out and got[2] is mine
    agree(got, by_definition(**given), np.dtype(np.float64))
    only = ek.linear_cross_entropy(**given, return_grad="weight", grad_out=[mine])
    assert len(only) == 2 and only[1] is mine


H, W, Y = np.zeros((4, 3)), np.zeros((5, 3)), np.zeros(4, int)
ERRORS: list[tuple[Any, dict[str, Any], type[Exception], str]] = [
    ((H, W.T, Y), {}, ValueError, r"weight of shape \(3, 5\) does not fit hidden of shape \(4, 3\).*weight.T"),
    ((H, W[:, :2], Y), {}, ValueError, r"expected \(k, 3\)"),
    ((H, W[0], Y), {}, ValueError, r"weight has shape \(3,\)"),
    ((H, W[:0], Y), {}, ValueError, "at least one class"),
    ((1.0, W, 0), {}, ValueError, "hidden is 0-dimensional"),
    ((H, W, None), {}, TypeError, "target is None"),
    ((H, W, Y[:3]), {}, ValueError, r"target of shape \(3,\) does not fit logits of shape \(4, 5\)"),
    ((H, W, Y.astype(float)), {}, ValueError, "pass target.astype"),
    ((H, W, Y), {"bias": np.zeros(4)}, ValueError, "one number per class"),
    ((H, W, Y), {"sample_weight": np.ones(5)}, ValueError, "one weight per row"),
    ((H, W, Y), {"class_weight": np.ones(4)}, ValueError, "one weight per class"),
    ((H, W, Y), {"label_smoothing": 2}, ValueError, "label_smoothing"),
    ((H, W, Y), {"reduction": "avg"}, ValueError, "reduction"),
    ((H, W, Y), {"on_empty": "no"}, ValueError, "on_empty"),
    ((H, W, np.ones((4, 5))), {"ignore_index": 1}, ValueError, "needs integer labels"),
    ((H, W, np.ones((4, 5))), {"validate": True}, ValueError, "target: row 0 sums to 5"),
    ((H, W, Y), {"return_grad": "x"}, ValueError, "return_grad names 'x'"),
    ((H, W, Y), {"return_grad": "bias"}, ValueError, "there is no bias"),
    ((H, W, Y), {"return_grad": 1}, TypeError, "return_grad"),
    ((H, W, Y), {"grad_out": np.empty((4, 3))}, ValueError, "pass a tuple of 2 arrays"),
    ((H, W, Y), {"grad_out": (None,)}, ValueError, "hidden, weight"),
    ((H, W, Y), {"grad_out": (None, np.empty((3, 5)))}, ValueError, r"grad_out\[1\] has shape"),
    ((H, W, Y), {"grad_out": (H, None)}, ValueError, r"grad_out\[0\] overlaps hidden"),
    ((H, W, Y), {"out": np.empty(4)}, ValueError, "out has shape"),
    ((H.astype(complex), W, Y), {}, TypeError, "hidden has dtype complex128"),
    ((H, W > 0, Y), {}, TypeError, "weight has dtype bool"),
    ((H.astype(np.float16), W.astype(BFLOAT16), Y), {}, TypeError, "without a common dtype"),
    ((H, W, Y), {"axis": 0}, TypeError, "axis"),
]


@pytest.mark.parametrize(("args", "options", "kind", "says"), ERRORS, ids=[e[3] for e in ERRORS])
def test_errors(args: Any, options: Any, kind: Any, says: str) -> None:
    with pytest.raises(kind, match=says):
        ek.linear_cross_entropy(*args, **options)


def test_bad_labels_leave_all_as_it_was(tiles: str) -> None:
    given = operands(20, 7, 5)
    given["target"][[11, 17]] = -100, 7
    out, grads = np.ones(20), tuple(np.ones_like(given[name]) for name in ("hidden", "weight", "bias"))
    with pytest.raises(IndexError, match=r"label -100 of row 11 .* k = 7 .*ignore_index=-100"):
        ek.linear_cross_entropy(**given, reduction="none", out=out, grad_out=grads)
    assert (out == 1).all() and all((g == 1).all() for g in grads)


def test_tensors_reach_their_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """Arrays of a guest are left to its room, the options as they came."""
    from entrokern import _guests

    class Room:
        @staticmethod
        def run(function: Any, args: Any, options: Any) -> Any:
            return function, args, options

    monkeypatch.setattr(_guests, "guest_of", lambda values: "torch" if any(v == "tensor" for v in values) else None)
    monkeypatch.setattr(_guests, "room", lambda name: Room)
    found = ek.linear_cross_entropy("tensor", "weight", 0, softcap=3.0)
    assert found == (ek.linear_cross_entropy, ("tensor", "weight", 0), {"softcap": 3.0})


# --- memory ------------------------------------------------------------------------------------------------

ALLOWED = 64 << 20  # bytes beside the outputs
CASES = [
    ("float32", True, (4096, 25000, 16)),
    ("float32", False, (4096, 25000, 16)),
    ("float16", True, (4096, 25000, 128)),  # sums by the weight are held
    pytest.param("float16", True, (6656, 7000, 1000), marks=pytest.mark.slow),  # those by the rows
    pytest.param("bfloat16", True, (8192, 7000, 1000), marks=pytest.mark.slow),  # none
]


@pytest.mark.parametrize(("dtype", "gradients", "shape"), CASES, ids=str)
def test_memory(dtype: Any, gradients: bool, shape: tuple[int, int, int]) -> None:
    """Logits of 200 to 400 MB in less than 64 MB: what NumPy allocates."""
    n, k, d = shape
    given = operands(n, k, d, dtype)
    grads = [np.empty_like(given[name]) for name in ("hidden", "weight", "bias")] if gradients else None
    ek.linear_cross_entropy(**operands(2, k, d, dtype), return_grad=gradients)  # kernels and threads
    tracemalloc.start()
    try:
        ek.linear_cross_entropy(**given, grad_out=grads)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < ALLOWED, peak / 2**20


PROGRAM = """
import json, numpy as np, entrokern as ek
from test_memory import status
n, k, d = {n}, {k}, 64
rng = np.random.default_rng(0)
h, w = rng.standard_normal((n, d), np.float32), rng.standard_normal((k, d), np.float32)
y, grads = rng.integers(0, k, n), (np.ones_like(h), np.ones_like(w))
ek.linear_cross_entropy(h[:64], w, y[:64], return_grad=True)  # kernels and threads
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # forget the peak
before = status("VmRSS")
loss = ek.linear_cross_entropy(h, w, y, grad_out=grads)[0]
print(json.dumps([float(loss), status("VmHWM") - before]))
"""


@pytest.mark.slow
@pytest.mark.parametrize(("n", "k"), [(16384, 65536), (2048, 524288)], ids=["whole rows", "slices"])
def test_memory_of_the_process(n: int, k: int) -> None:
    """Logits of 4 GB: the process's own peak, BLAS included."""
    command = [sys.executable, "-c", PROGRAM.format(n=n, k=k)]
    run = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent)
    if "clear_refs" in run.stderr:
        pytest.skip("the peak of resident memory cannot be reset here")
    assert run.returncode == 0, run.stderr
    loss, grown = json.loads(run.stdout)
    assert loss > np.log(k)
    assert grown <= ALLOWED, f"{grown / 2**20:.1f} MB"


# --- a device ----------------------------------------------------------------------------------------------

ON_DEVICE = ("mean", "none", "weighted", "transformed", "distributions")


@pytest.mark.gpu
@pytest.mark.skipif(bool(device.absent()), reason=str(device.absent()))
@pytest.mark.parametrize("options", [OPTIONS[name] for name in ON_DEVICE], ids=ON_DEVICE)
@pytest.mark.parametrize("dtype", [np.float32, np.float16], ids=["float32", "float16"])
def test_on_a_device(options: Any, dtype: Any, tiles: str) -> None:
    """CuPy's arrays in, CuPy's arrays out: its own products, the CUDA kernels, and one sweep's order of steps."""
    n, k, d = 9, 11, 5
    given = operands(n, k, d, dtype) | with_arrays(options, n, k)
    moved = {name: device.to_device(v) if isinstance(v, np.ndarray) else v for name, v in given.items()}
    got = ek.linear_cross_entropy(**moved, return_grad=True)
    agree(tuple(map(device.to_host, got)), by_definition(**given), np.dtype(dtype))


@pytest.mark.gpu
@pytest.mark.skipif(bool(device.absent()), reason=str(device.absent()))
def test_lists_beside_device_arrays() -> None:
    given = operands(4, 5, 3)
    lists = {"target": [0, 4, -1, 2], "bias": [1.0] * 5, "sample_weight": [1, 2, 3, 0], "class_weight": [1, 2, 3, 4, 5]}
    moved = {name: device.to_device(given[name]) for name in ("hidden", "weight")}
    got = ek.linear_cross_entropy(**moved, **lists, ignore_index=-1, return_grad=True)
    want = by_definition(**given | {name: np.array(v) for name, v in lists.items()}, ignore_index=-1)
    agree(tuple(map(device.to_host, got)), want, np.dtype(np.float64))


@pytest.mark.gpu
@pytest.mark.skipif(bool(device.absent()), reason=str(device.absent()))
def test_device_errors() -> None:
    h, w, y = (device.to_device(a) for a in (H, W, Y + 9))
    assert np.isnan(device.to_host(ek.linear_cross_entropy(h, w, y, reduction="none"))).all()
    with pytest.raises(IndexError, match="label 9 of row 0"):
        ek.linear_cross_entropy(h, w, y, validate=True)
    with pytest.raises(TypeError, match="libraries"):
        ek.linear_cross_entropy(h, W, y)
    with pytest.raises(TypeError, match="one library"):
        ek.linear_cross_entropy(h, W.tolist(), y)
