"""Dask arrays whose classes lie in several blocks: within the contract, and no row is ever put together."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import device
import entrokern as ek
from cases import BY_NAME, FLOATS, KINDS, NAMED, OPTIONS, Case, call, drawn, operands
from contract import check, input_dtype
from oracle import LONG, evaluate

dask = pytest.importorskip("dask")
da = pytest.importorskip("dask.array")

CLASSES = ("cross_entropy", "entropy", "kl_divergence", "js_divergence", "score", "softmax", "log_softmax", "logsumexp",
           "perplexity")  # fmt: skip
CASES = [c for c in NAMED if c.function in CLASSES or c.options.get("axis") is not None]


@pytest.fixture(autouse=True)
def computed() -> Iterator[list[int]]:
    """How many graphs have been computed: none, until a test asks for it."""
    runs: list[int] = []

    def scheduler(graph: Any, keys: Any, **options: Any) -> Any:
        runs.append(1)
        return dask.get(graph, keys, **options)

    with dask.config.set(scheduler=scheduler):
        yield runs


def cut_all(args: list[Any], options: dict[str, Any], rows: tuple[int, ...], classes: tuple[int, ...]) -> Any:
    """Arrays of rows and of classes as Dask arrays, cut alike."""
    n, k = sum(rows), sum(classes)

    def cut(value: Any, name: str = "") -> Any:
        if not isinstance(value, np.ndarray):
            return value
        if value.shape == (n, k):
            return da.from_array(value, chunks=(rows, classes))
        return da.from_array(value, chunks=(classes if name in ("class_weight", "pos_weight") else rows,))

    return [cut(a) for a in args], {name: cut(v, name) for name, v in options.items()}


def compare(case: Case, rows: tuple[int, ...], classes: tuple[int, ...], dtype: str, kind: str) -> None:
    args, options = operands(case, sum(rows), sum(classes), dtype, kind)
    lazy = call(case.function, *cut_all(args, options, rows, classes))
    whole = call(case.function, args, options)
    assert lazy.keys() == whole.keys()
    for name, array in lazy.items():
        assert (array.dtype, array.shape, array.ndim) == (whole[name].dtype, whole[name].shape, whole[name].ndim)
        assert type(array._meta) is np.ndarray and array._meta.dtype == whole[name].dtype
        assert array.chunks == (rows, classes)[: array.ndim]
    got = dict(zip(lazy, dask.compute(*lazy.values()), strict=True))
    want = evaluate(LONG, case.function, args, options)
    for name in ("grad", "grad_p", "grad_q", "hess", "softmax"):
        if name in got:
            # log Z of many slices is known to its own rounding, and p = e^(z - m - log Z) to twice the bound.
            want[name] = want[name]._replace(scale=2 * want[name].scale)
    check({n: np.asarray(a) for n, a in got.items()}, want, input_dtype(case, args), where=f"{case} {dtype} {kind}")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_case(case: Case) -> None:
    turn = CASES.index(case)
    cuts = [((4, 1, 2), (3, 3, 1)), ((9,), (1,) * 12), ((2, 6), (100, 33, 67, 100))]
    for i, (rows, classes) in enumerate(cuts):
        for j in range(2):
            compare(case, rows, classes, list(FLOATS)[(turn + i + 2 * j) % 4], KINDS[(turn + 3 * i + j) % len(KINDS)])


@pytest.mark.parametrize("function", OPTIONS)
def test_random_options(function: str) -> None:
    rng = np.random.default_rng(3)
    for i, case in enumerate(drawn(function, 25)):
        if function == "binary_cross_entropy" and case.options.get("axis") is None:
            continue
        rows = tuple(int(c) for c in rng.integers(0, 5, 3))
        classes = tuple(int(c) for c in rng.integers(1, 9, 1 + i % 4))
        if sum(rows):
            compare(case, rows, classes, ("float32", "float64")[i % 2], KINDS[i % len(KINDS)])


RNG = np.random.default_rng(7)
X, Y = RNG.normal(size=(20, 12)).astype(np.float32), RNG.integers(0, 12, 20)
LAZY = da.from_array(X, chunks=((8, 12), (5, 4, 3)))


def test_nothing_is_computed_before_it_is_asked_for(computed: list[int]) -> None:
    results = [
        *ek.cross_entropy(LAZY, Y, return_grad=True, sample_weight=RNG.uniform(size=20)),
        *ek.kl_divergence(LAZY, LAZY[::-1], p_form="logits", q_form="logits", return_grad="both"),
        ek.score(LAZY, Y, outputs="rank").rank, ek.softmax(LAZY), ek.perplexity(LAZY, Y),
    ]  # fmt: skip
    assert not computed
    dask.compute(*results)
    assert len(computed) == 1


def test_no_task_sees_a_whole_row() -> None:
    """Tasks are given blocks as they are: every array of two dimensions has the classes of one block."""
    widths = set()

    def look(block: Any) -> Any:
        widths.add(block.shape[1])
        return block

    x = LAZY.map_blocks(look, dtype=X.dtype, meta=np.empty((0, 0), X.dtype))
    loss, grad = ek.cross_entropy(x, Y, return_grad=True)
    seen: list[tuple[int, ...]] = []

    class Watch(dask.callbacks.Callback):
        def _posttask(self, key: Any, result: Any, *rest: Any) -> None:
            if not str(key[0] if isinstance(key, tuple) else key).startswith("cross_entropy"):
                return  # the array that the blocks are cut from
            for value in result if isinstance(result, (list, tuple)) else [result]:
                if isinstance(value, np.ndarray) and value.ndim == 2:
                    seen.append(value.shape)

    with Watch(), dask.config.set(scheduler="synchronous"):
        dask.compute(loss, grad, optimize_graph=False)
    assert widths - {0} == {5, 4, 3}  # 0: of what Dask infers types from
    assert {shape[1] for shape in seen} <= {5, 4, 3} and len(seen) > 6


def test_class_axis_in_the_middle() -> None:
    x, y = RNG.normal(size=(4, 9, 6)), RNG.integers(0, 9, (4, 6))
    lazy = da.from_array(x, chunks=(3, 4, 5))
    options: dict[str, Any] = {
        "axis": 1,
        "class_weight": RNG.uniform(0.5, 2, 9),
        "sample_weight": RNG.uniform(size=(4, 6)),
    }
    want, want_grad = ek.cross_entropy(x, y, return_grad=True, **options)
    loss, grad = ek.cross_entropy(lazy, y, return_grad=True, **options)
    assert grad.chunks == lazy.chunks
    np.testing.assert_allclose(loss.compute(), want, rtol=1e-14)
    np.testing.assert_allclose(grad.compute(), want_grad, rtol=1e-12, atol=1e-16)
    np.testing.assert_allclose(ek.logsumexp(lazy, axis=1).compute(), ek.logsumexp(x, axis=1), rtol=1e-14)
    got = ek.binary_cross_entropy(lazy, x > 0, axis=1, reduction="none")
    np.testing.assert_allclose(got.compute(), ek.binary_cross_entropy(x, x > 0, axis=1, reduction="none"), rtol=1e-13)


def test_no_batch_and_no_rows() -> None:
    x = RNG.normal(size=12)
    lazy = da.from_array(x, chunks=5)
    np.testing.assert_allclose(ek.cross_entropy(lazy, 7).compute(), ek.cross_entropy(x, 7), rtol=1e-14)
    np.testing.assert_allclose(ek.softmax(lazy).compute(), ek.softmax(x), rtol=1e-14)
    nothing = da.from_array(X[:0], chunks=(1, 5))
    assert np.isnan(ek.cross_entropy(nothing, Y[:0]).compute())
    assert ek.softmax(nothing).compute().shape == (0, 12)


def test_sizes_that_dask_does_not_know() -> None:
    kept = Y % 3 != 0
    x, y = LAZY[da.from_array(kept, chunks=(LAZY.chunks[0],))], da.from_array(Y, chunks=(LAZY.chunks[0],))
    y = y[da.from_array(kept, chunks=(LAZY.chunks[0],))]
    weight = da.ones_like(y, dtype=float)
    loss, grad = ek.cross_entropy(x, y, sample_weight=weight, return_grad=True)
    want, want_grad = ek.cross_entropy(X[kept], Y[kept], return_grad=True)
    np.testing.assert_allclose(loss.compute(), want, rtol=1e-6)
    np.testing.assert_allclose(grad.compute(), want_grad, rtol=1e-5, atol=1e-9)


def test_large_operands_are_cut_alike() -> None:
    q = da.from_array(X[::-1].copy(), chunks=((3, 17), (2, 10)))
    got = ek.kl_divergence(LAZY, q, p_form="logits", q_form="logits", return_grad="q")
    want = ek.kl_divergence(X, X[::-1], p_form="logits", q_form="logits", return_grad="q")
    assert got[1].chunks == ((3, 5, 12), (2, 3, 4, 3))
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a.compute(), b, rtol=2e-5, atol=1e-7)
    reference = ek.kl_divergence(LAZY, X[0], p_form="logits", q_form="logits")
    np.testing.assert_allclose(
        reference.compute(), ek.kl_divergence(X, X[:1], p_form="logits", q_form="logits"), rtol=1e-5
    )


def test_odd_rows_and_equal_operands() -> None:
    odd = X.copy()
    odd[0], odd[1, 3], odd[2, 7], odd[3] = -np.inf, np.inf, np.nan, -np.inf
    odd[3, 11] = 1.0
    lazy = da.from_array(odd, chunks=(20, 4))
    for name, options in (("cross_entropy", {"return_grad": True}), ("score", {"outputs": ("lse", "argmax", "rank")})):
        options |= {"reduction": "none"} if name == "cross_entropy" else {}
        got, want = call(name, [lazy, Y], options), call(name, [odd, Y], options)
        for output, array in got.items():
            np.testing.assert_allclose(array.compute(), want[output], rtol=1e-5, atol=1e-7, err_msg=output)
    for function, form in itertools.product((ek.kl_divergence, ek.js_divergence), ("logits", "probs")):
        x = LAZY if form == "logits" else abs(LAZY)
        assert (function(x, x.copy(), p_form=form, q_form=form).compute() == 0).all()


def test_labels_out_of_range_are_named_as_in_the_whole(computed: list[int]) -> None:
    y = Y.copy()
    y[13] = 12
    with pytest.raises(IndexError, match="label 12 of row 13 is out of range for k = 12"):
        ek.cross_entropy(LAZY, y).compute()
    y[13] = -100
    with pytest.raises(IndexError, match="ignore_index=-100"):
        ek.cross_entropy(LAZY, y, reduction="none").compute()
    got = ek.cross_entropy(LAZY, y, ignore_index=-100).compute()
    np.testing.assert_allclose(got, ek.cross_entropy(X, y, ignore_index=-100), rtol=1e-6)


def test_binary_targets() -> None:
    """A NaN is everywhere in its row; errors name elements as in the whole; blocks of no class say nothing."""
    x, t = RNG.normal(size=(6, 8)), RNG.integers(0, 2, (6, 8))
    x[2, 1] = np.nan
    lazy = da.from_array(x, chunks=((3, 3), (4, 0, 4)))
    for options in ({"reduction": "none"}, {}, {"sample_weight": [1, 2, 0, 1, 1, 1], "reduction": "sum"}):
        options |= {"axis": 1, "return_grad": True, "return_hess": True}
        for a, b in zip(
            ek.binary_cross_entropy(lazy, t, **options), ek.binary_cross_entropy(x, t, **options), strict=True
        ):
            np.testing.assert_allclose(a.compute(), b, rtol=1e-14)
    np.testing.assert_allclose(ek.softmax(lazy).compute(), ek.softmax(x), rtol=1e-14)
    t[4, 6] = 5
    with pytest.raises(IndexError, match=r"target 5 at row \(4, 6\)"):
        ek.binary_cross_entropy(lazy, t, axis=1).compute()


def test_what_needs_whole_rows_says_so() -> None:
    with pytest.raises(ValueError, match=r"validate=True looks at whole rows.*rechunk\({1: -1}\)"):
        ek.entropy(abs(LAZY), validate=True)


@pytest.mark.parametrize("scheduler", ["threads", "processes"])
def test_schedulers(scheduler: str) -> None:
    loss, grad = ek.cross_entropy(LAZY, Y, return_grad=True, label_smoothing=0.1)
    here = dask.compute(loss, grad, scheduler="synchronous")
    there = dask.compute(loss, grad, scheduler=scheduler)
    for a, b in zip(here, there, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_tree_merges_few_at_a_time(computed: list[int]) -> None:
    """Of 64 slices, no task is given more than a few; the result is that of any other cut."""
    x = RNG.normal(size=(5, 640))
    lse = ek.logsumexp(da.from_array(x, chunks=(5, 10)))
    graph = lse.__dask_graph__()
    most = max(len(of) for of in graph.get_all_dependencies().values())
    assert 2 <= most <= 20
    np.testing.assert_allclose(lse.compute(), ek.logsumexp(x), rtol=1e-15)


@pytest.mark.parametrize("backend", ["cuda"])
@pytest.mark.parametrize("name", ["ce labels grad", "ce weights", "perplexity", "bce rows", "bce rows mean",
                                  "entropy mean", "kl mean", "js probs probs", "js weight", "score labels", "softmax",
                                  "logsumexp"])  # fmt: skip
def test_slices_on_a_device(backend: str, name: str) -> None:
    case, n, k = BY_NAME[name], 9, 12
    args, options = operands(case, n, k, "float32")

    def moved(value: Any, of_classes: bool = False) -> Any:
        if not isinstance(value, np.ndarray):
            return value
        cuts = (5, 4, 3) if of_classes else ((4, 5), (5, 4, 3))[: value.ndim]
        chunks = (cuts,) if of_classes else cuts
        return da.from_array(device.to_device(value), chunks, name=False, asarray=False)

    lazy = {name: moved(v, name in ("class_weight", "pos_weight")) for name, v in options.items()}
    got = call(case.function, [moved(a) for a in args], lazy)
    for result, array in call(case.function, args, options).items():
        assert type(got[result]._meta) is type(device.to_device(array))
        assert (got[result].dtype, got[result].shape) == (array.dtype, array.shape)
        found = device.to_host(got[result].compute())
        np.testing.assert_allclose(found, array, rtol=1e-4, atol=1e-5)
