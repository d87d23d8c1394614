"""Operands of any strides are read where they lie: the same results, and no copy of the whole."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import entrokern as ek
from cases import BY_NAME, FLOATS, Case, call, operands
from contract import check, input_dtype
from oracle import LONG, evaluate


def spread(array: np.ndarray, step: tuple[int, ...]) -> np.ndarray:
    """`array` as a view with gaps (or backwards) into a larger one full of NaN or 99."""
    fill = 99 if array.dtype.kind in "iub" else np.nan
    shape = tuple(abs(s) * n for s, n in zip(step, array.shape, strict=True))
    view = np.full(shape, fill).astype(array.dtype)[tuple(slice(None, None, s) for s in step)]
    view[...] = array
    return view


def unaligned(array: np.ndarray) -> np.ndarray:
    """`array` one element off every boundary of a vector."""
    flat = np.empty(array.size + 1, array.dtype)[1:]
    view = flat.reshape(array.shape)
    view[...] = array
    return view


def misaligned(array: np.ndarray) -> np.ndarray:
    """`array` one byte off its own alignment, as in a packed record."""
    raw = np.empty(array.nbytes + 1, np.uint8)[1:]
    view = raw.view(array.dtype).reshape(array.shape)
    view[...] = array
    return view


def read_only(array: np.ndarray) -> np.ndarray:
    copy = array.copy()
    copy.flags.writeable = False
    return copy


LAYOUTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "fortran": np.asfortranarray,
    "row gaps": lambda a: spread(a, (3,) + (1,) * (a.ndim - 1)),
    "class gaps": lambda a: spread(a, (1,) * (a.ndim - 1) + (2,)),
    "both gaps": lambda a: spread(a, (2,) * a.ndim),
    "rows backwards": lambda a: spread(a, (-1,) + (1,) * (a.ndim - 1)),
    "classes backwards": lambda a: spread(a, (1,) * (a.ndim - 1) + (-1,)),
    "all backwards": lambda a: spread(a, (-2,) * a.ndim),
    "unaligned": unaligned,
    "misaligned": misaligned,
    "read-only": read_only,
    "byte-swapped": lambda a: a if a.dtype.name == "bfloat16" else a.astype(a.dtype.newbyteorder()),
}
CASES = ("ce labels hess", "ce weights", "ce dense grad", "ce probs", "bce weights", "bce rows",
    "entropy logits",
         "kl logits logits", "kl probs probs", "js probs logits", "estimate k3", "information", "log_softmax",
         "score labels")  # fmt: skip
SIZES = ((5, 3), (66, 10), (3, 300))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", CASES)
def test_strides(backend: str, name: str, dtype: str) -> None:
    """Every operand and array option in another layout gives the results of contiguous ones."""
    case = BY_NAME[name]
    for n, k in SIZES:
        args, options = operands(case, n, k, dtype)
        want = evaluate(LONG, case.function, args, options)
        for layout, place in LAYOUTS.items():
            if backend == "cuda" and layout == "misaligned":
                continue  # what a GPU cannot read is refused
            placed = [place(a) for a in args]
            other = {o: place(v) if isinstance(v, np.ndarray) else v for o, v in options.items()}
            got = call(case.function, placed, other)
            check(got, want, input_dtype(case, args), where=f"{layout}, {n}x{k}")


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("name", CASES)
def test_stride_0(backend: str, name: str, dtype: str) -> None:
    """A broadcast operand is n rows without n rows of memory; results are as for n rows."""
    case = BY_NAME[name]
    for n, k in SIZES:
        args, options = operands(case, 1, k, dtype)
        options = {o: v for o, v in options.items() if o != "sample_weight"}
        wide = [np.broadcast_to(a, (n, *a.shape[1:])) for a in args]
        got = call(case.function, wide, options)
        full = call(case.function, [a.copy() for a in wide], options)
        for output, values in got.items():
            rtol = 1e-2 if dtype == "bfloat16" else 1e-6
            np.testing.assert_allclose(values.astype(float), full[output].astype(float), rtol=rtol)
        args, options = operands(case, n, 1, dtype)
        wide = [np.broadcast_to(a, (n, k)) if a.ndim == 2 else np.zeros_like(a) for a in args]
        options = {o: v for o, v in options.items() if not isinstance(v, np.ndarray)}
        options.pop("ignore_index", None)
        if "binary, some ignored" in case.operands:
            wide[1] = np.broadcast_to(np.int64(1), (n, k))
        want = evaluate(LONG, case.function, wide, options)
        check(call(case.function, wide, options), want, input_dtype(case, wide), where=f"columns {n}x{k}")


def moved(case: Case, args: list[Any], shape: tuple[int, ...], axis: int) -> list[np.ndarray]:
    """The operands as arrays of `shape` (batch axes) with the class axis moved to `axis`."""
    return [np.moveaxis(a.reshape(*shape, a.shape[-1]), -1, axis) if a.ndim == 2 else a.reshape(shape) for a in args]


@pytest.mark.parametrize("contiguous", [False, True])
@pytest.mark.parametrize("axis", [0, 1, 2, -2, -4])
@pytest.mark.parametrize("name", ["ce labels hess", "ce dense grad", "bce rows", "entropy probs",
    "kl probs logits",
                                  "js logits logits", "score labels", "softmax", "log_softmax",
                                      "logsumexp"])  # fmt: skip
def test_class_axis(backend: str, name: str, axis: int, contiguous: bool) -> None:
    """Any class axis (NCHW is 1) gives the results of the last one; maps come out laid out as `x`."""
    case = BY_NAME[name]
    for k in (3, 21, 130):
        args, options = operands(case, 2 * 3 * 4, k, "float32")
        options.pop("axis", None)
        options = {o: v for o, v in options.items() if o not in ("sample_weight", "pos_weight")}
        flat = {"axis": -1} if case.function == "binary_cross_entropy" else {}
        want = evaluate(LONG, case.function, args, options | flat)
        placed = moved(case, args, (2, 3, 4), axis)
        placed = [np.ascontiguousarray(a) if contiguous else a for a in placed]
        got = call(case.function, placed, options | {"axis": axis})
        for output, values in got.items():
            if values.ndim == 4:
                assert values.shape == placed[0].shape
                got[output] = np.moveaxis(values, axis, -1).reshape(-1, k)
            else:
                assert values.shape == (2, 3, 4)
                got[output] = values.reshape(-1)
        check(got, want, np.dtype(np.float32), where=f"k={k}")


def test_vector_and_many_axes(backend: str) -> None:
    """One row without a batch, and many batch axes, some of length 1 or 0."""
    x = np.random.default_rng(0).normal(size=7)
    row = ek.cross_entropy(x[None], [3], reduction="none")
    assert ek.cross_entropy(x, 3, reduction="none") == row[0]
    assert ek.cross_entropy(x, np.int8(3), reduction="none").shape == ()
    assert ek.entropy(x, form="logits").shape == ()
    np.testing.assert_array_equal(ek.softmax(x), ek.softmax(x[None])[0])
    many = np.broadcast_to(x, (1, 2, 1, 3, 1, 7))
    assert ek.cross_entropy(many, np.full((1, 2, 1, 3, 1), 3), reduction="none").shape == (1, 2, 1, 3, 1)
    assert ek.logsumexp(np.zeros((3, 0, 7))).shape == (3, 0)
    assert ek.softmax(np.zeros((3, 0, 7))).shape == (3, 0, 7)
    for shape in ((0,), (0, 3), (3, 0)):
        for _ in range(2):
            assert ek.information(np.zeros(shape)).shape == shape
            assert ek.binary_cross_entropy(np.zeros(shape), np.zeros(shape), reduction="none").shape == shape
            assert np.isnan(ek.kl_estimate(np.zeros(shape), np.zeros(shape)))


def test_kl_broadcasts_both_ways(backend: str) -> None:
    p = np.random.default_rng(0).dirichlet(np.ones(5), size=(3, 1))
    q = np.random.default_rng(1).dirichlet(np.ones(5), size=(4,))
    for function in (ek.kl_divergence, ek.js_divergence):
        loss, grad_p, grad_q = function(p, q, return_grad="both")
        assert loss.shape == (3, 4)
        assert grad_p.shape == grad_q.shape == (3, 4, 5)
        for i, j in np.ndindex(3, 4):
            one = function(p[i, 0], q[j], return_grad="both")
            for got, want in zip((loss[i, j], grad_p[i, j], grad_q[i, j]), one, strict=True):
                np.testing.assert_allclose(got, want, rtol=1e-14)


def test_memmap(backend: str, tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(300, 40)).astype(np.float32)
    y = np.random.default_rng(1).integers(0, 40, size=300)
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", y)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r"), np.load(tmp_path / "y.npy", mmap_mode="r")
    loss, grad = ek.cross_entropy(*mapped, return_grad=True, reduction="none")
    want = ek.cross_entropy(x, y, return_grad=True, reduction="none")
    assert type(loss) is type(grad) is np.ndarray
    np.testing.assert_array_equal(loss, want[0])
    np.testing.assert_array_equal(grad, want[1])
    writeable = np.load(tmp_path / "x.npy", mmap_mode="r+")
    ek.softmax(writeable, out=writeable)
    writeable.flush()
    np.testing.assert_array_equal(np.load(tmp_path / "x.npy"), ek.softmax(x))


# --- memory ---------------------------------------------------------------------------------------

BIG = (20_000, 100)
# Vectors of one float64 per row (weights, labels, losses, results) and some tiles for each thread: less
# than half of the narrowest copy of the whole, of 4 MB.
ALLOWED = 8 * 8 * BIG[0] + 2**19


def strided(dtype: Any, kind: str) -> np.ndarray:
    base = np.random.default_rng(0).random(BIG).astype(dtype)
    if kind == "contiguous":
        return base
    if kind == "fortran":
        return np.asfortranarray(base)
    if kind == "broadcast":
        return np.broadcast_to(base[0], BIG)
    return np.repeat(base, 2, axis=1)[:, ::-2]


LEAN: dict[str, Callable[[np.ndarray], Any]] = {
    "cross_entropy": lambda x: ek.cross_entropy(x, np.zeros(len(x), np.int8)),
    "weighted": lambda x: ek.cross_entropy(x, np.zeros(len(x), np.int8), sample_weight=x[:, 0], label_smoothing=0.1),
    "dense": lambda x: ek.cross_entropy(x, x),
    "bool target": lambda x: ek.cross_entropy(x, np.broadcast_to(np.True_, x.shape)),
    "probs": lambda x: ek.cross_entropy(x, np.zeros(len(x), np.int8), form="probs"),
    "softcap": lambda x: ek.cross_entropy(x, np.zeros(len(x), np.int8), softcap=5, temperature=2),
    "bce": lambda x: ek.binary_cross_entropy(x, x),
    "bce rows": lambda x: ek.binary_cross_entropy(x, x, axis=-1, pos_weight=x[0]),
    "entropy": lambda x: ek.entropy(x),
    "kl": lambda x: ek.kl_divergence(x, x[0]),
    "js": lambda x: ek.js_divergence(x, x, p_form="logits"),
    "score": lambda x: ek.score(x, np.zeros(len(x), np.int8), outputs=("rank", "entropy", "argmax")),
    "logsumexp": lambda x: ek.logsumexp(x),
    "validate": lambda x: ek.information(x[:, :1], validate=True),
}


@pytest.mark.parametrize("kind", ["contiguous", "fortran", "broadcast", "backwards"])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("function", LEAN)
def test_no_temporary_of_the_whole(function: str, dtype: str, kind: str) -> None:
    """The kernels' own memory is tiles and one number per row, whatever the layout and dtype."""
    x = strided(FLOATS[dtype], kind)
    with ek.use_backend("cpu"):
        LEAN[function](x)  # compiles
        tracemalloc.start()
        try:
            LEAN[function](x)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert peak < ALLOWED


def test_gradient_needs_its_own_memory_only() -> None:
    x = strided(np.float32, "contiguous")
    grad = np.empty_like(x)
    labels = np.zeros(len(x), np.int32)
    with ek.use_backend("cpu"):
        for out in (grad, x):
            ek.cross_entropy(x, labels, grad_out=out)
            tracemalloc.start()
            try:
                ek.cross_entropy(x, labels, grad_out=out)
                peak = tracemalloc.get_traced_memory()[1]
            finally:
                tracemalloc.stop()
            assert peak < ALLOWED
