"""Dask arrays in, lazy Dask arrays out: the bits of the call on whole arrays, whatever the chunks, nothing computed."""

from __future__ import annotations

import itertools
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import device
import entrokern as ek
from cases import BY_NAME, FLOATS, NAMED, OPTIONS, Case, call, drawn, operands
from entrokern import _dispatch, _threads

dask = pytest.importorskip("dask")
da = pytest.importorskip("dask.array")

N, ROWS = 23, (7, 1, 0, 15)
RNG = np.random.default_rng(5)
X, Y = RNG.normal(size=(N, 10)), RNG.integers(0, 10, N)
S, W = RNG.uniform(0.1, 3.0, N), RNG.uniform(0.1, 3.0, 10)


def cut(value: Any, rows: tuple[int, ...] = ROWS) -> Any:
    """An array of `N` rows as a Dask array; anything else as it is."""
    if isinstance(value, np.ndarray) and value.shape[:1] == (sum(rows),):
        return da.from_array(value, chunks=(rows, *value.shape[1:]))
    return value


def cut_all(args: list[Any], options: dict[str, Any], rows: tuple[int, ...] = ROWS) -> tuple[list[Any], dict[str, Any]]:
    return [cut(a, rows) for a in args], {name: cut(v, rows) for name, v in options.items()}


@pytest.fixture(autouse=True)
def computed(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """How many graphs have been computed: none, until a test asks for it."""
    runs: list[int] = []

    def scheduler(graph: Any, keys: Any, **options: Any) -> Any:
        runs.append(1)
        return dask.get(graph, keys, **options)

    with dask.config.set(scheduler=scheduler):
        yield runs


def agree(lazy: Any, want: Any, *, reduced: bool = False) -> None:
    """Type, dtype, shape, meta and chunks before a value is known, then each block, then bits."""
    assert type(lazy) is da.Array
    assert lazy.dtype == want.dtype
    assert lazy.ndim == want.ndim
    assert type(lazy._meta) is np.ndarray
    assert lazy._meta.dtype == want.dtype
    if not np.isnan(lazy.shape).any():
        assert lazy.shape == want.shape
    got = lazy.compute()
    assert type(got) is np.ndarray
    assert (got.dtype, got.shape) == (want.dtype, want.shape)
    for place in itertools.product(*map(range, lazy.numblocks)):
        size = tuple(c[i] for c, i in zip(lazy.chunks, place, strict=True))
        if size and not np.isnan(size).any():
            assert lazy.blocks[place].compute().shape == size
    if reduced:
        np.testing.assert_allclose(got, want, rtol=1e-13 if want.dtype == np.float64 else 2.0**-23)
    else:
        np.testing.assert_array_equal(got, want)


def agree_all(case: Case, args: list[Any], options: dict[str, Any], lazy: tuple[list[Any], dict[str, Any]]) -> Any:
    want = call(case.function, args, options)
    got = call(case.function, *lazy)
    assert got.keys() == want.keys()
    reduced = case.function == "perplexity" or options.get("reduction", "none") != "none"
    reduced |= case.function in ("cross_entropy", "binary_cross_entropy", "kl_estimate") and "reduction" not in options
    for name, array in want.items():
        agree(got[name], array, reduced=reduced and name == "loss")
    return got


# --- every function ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", NAMED, ids=lambda case: case.name)
def test_every_case_has_the_bits_of_the_whole(case: Case, computed: list[int]) -> None:
    for dtype, k in (("float32", 10), ("float64", 300), (list(FLOATS)[NAMED.index(case) % 2], 3)):
        args, options = operands(case, N, k, dtype)
        lazy = cut_all(args, options)
        del computed[:]
        got = call(case.function, *lazy)
        assert not computed
        for array in got.values():
            if array.ndim:
                assert array.chunks == (ROWS, (k,))[: array.ndim]
        agree_all(case, args, options, lazy)


@pytest.mark.parametrize("function", OPTIONS)
def test_options_and_cuts_at_random(function: str) -> None:
    rng = np.random.default_rng(2)
    for i, case in enumerate(drawn(function, 20)):
        n = int(rng.integers(1, 40))
        cuts = np.sort(rng.integers(0, n + 1, 3))
        rows = tuple(int(c) for c in np.diff([0, *cuts, n]))
        args, options = operands(case, n, 7, ("float32", "float64")[i % 2])
        agree_all(case, args, options, cut_all(args, options, rows))


@pytest.mark.parametrize("name", ["ce weights", "bce rows", "entropy mean", "kl logits logits", "score", "softmax",
                                  "information", "estimate mean", "perplexity"])  # fmt: skip
@pytest.mark.parametrize(("n", "rows"), [(0, (0,)), (1, (1,)), (5, (1,) * 5)])
def test_few_rows(name: str, n: int, rows: tuple[int, ...]) -> None:
    case = BY_NAME[name]
    args, options = operands(case, n, 4, "float32")
    agree_all(case, args, options, cut_all(args, options, rows))


def test_one_row_without_a_batch() -> None:
    x = RNG.normal(size=10)
    lazy = da.from_array(x, chunks=10)
    for options in ({}, {"reduction": "none"}, {"return_grad": True}, {"sample_weight": 2.0, "return_grad": True}):
        want, got = ek.cross_entropy(x, 3, **options), ek.cross_entropy(lazy, 3, **options)
        for a, b in zip(got if type(got) is tuple else (got,), want if type(want) is tuple else (want,), strict=True):
            agree(a, b)
    agree(ek.softmax(lazy), ek.softmax(x))
    agree(ek.logsumexp(lazy), ek.logsumexp(x))
    number = da.from_array(np.array(0.3), chunks=())
    agree(ek.binary_cross_entropy(number, 1, reduction="none"), ek.binary_cross_entropy(0.3, 1, reduction="none"))
    agree(ek.information(number), ek.information(np.array(0.3)))


def test_class_axis_in_the_middle_and_cuts_along_every_other() -> None:
    x, y = RNG.normal(size=(6, 5, 8)).astype(np.float32), RNG.integers(0, 5, (6, 8))
    s = RNG.uniform(0.1, 3.0, (6, 8))
    options: dict[str, Any] = {"axis": 1, "class_weight": RNG.uniform(0.5, 2, 5)}
    want = ek.cross_entropy(x, y, return_grad=True, sample_weight=s, **options)
    lazy = da.from_array(x, chunks=((4, 2), 5, (3, 5)))
    got = ek.cross_entropy(lazy, y, return_grad=True, sample_weight=da.from_array(s, chunks=2), **options)
    agree(got[0], want[0], reduced=True)
    agree(got[1], want[1])
    assert got[1].chunks == lazy.chunks
    got = ek.cross_entropy(lazy, da.from_array(y, chunks=4), reduction="none", **options)
    agree(got, ek.cross_entropy(x, y, reduction="none", **options))
    assert got.chunks == ((4, 2), (3, 5))
    options = {"axis": 1, "reduction": "none"}
    agree(ek.binary_cross_entropy(lazy, x > 0, **options), ek.binary_cross_entropy(x, x > 0, **options))
    agree(ek.entropy(lazy, form="logits", axis=-2), ek.entropy(x, form="logits", axis=-2))


def test_what_has_no_class_axis_takes_any_chunks() -> None:
    p = RNG.uniform(0.01, 1, (11, 9))
    lazy = da.from_array(p, chunks=((4, 7), (5, 4)))
    agree(ek.information(lazy), ek.information(p))
    agree(ek.kl_estimate(da.log(lazy), np.log(p[:1])), ek.kl_estimate(np.log(p), np.log(p[:1])), reduced=True)
    t, pos = p > 0.5, RNG.uniform(0.5, 2, 9)
    weights: dict[str, Any] = {"pos_weight": pos, "sample_weight": RNG.uniform(0.5, 2, (11, 1)), "return_grad": True}
    want = ek.binary_cross_entropy(p, t, **weights)
    for pos_weight, target in itertools.product((pos, da.from_array(pos, chunks=2)), (t, da.from_array(t, chunks=3))):
        got = ek.binary_cross_entropy(lazy, target, **weights | {"pos_weight": pos_weight})
        agree(got[0], want[0], reduced=True)
        agree(got[1], want[1])


# --- operands of other kinds and chunks -------------------------------------------------------------------------------


@pytest.mark.parametrize("lazy", [("x",), ("y",), ("s",), ("w",), ("x", "s"), ("y", "w"), ("x", "y", "s", "w")])
def test_numpy_beside_dask(lazy: tuple[str, ...]) -> None:
    values: dict[str, Any] = {"x": X, "y": Y, "s": S, "w": W}
    values |= {name: da.from_array(values[name], chunks=(4, 10)[: values[name].ndim]) for name in lazy}
    options = {"return_grad": True, "label_smoothing": 0.1}
    got = ek.cross_entropy(values["x"], values["y"], sample_weight=values["s"], class_weight=values["w"], **options)
    want = ek.cross_entropy(X, Y, sample_weight=S, class_weight=W, **options)
    agree(got[0], want[0], reduced=True)
    agree(got[1], want[1])
    rows = (4, 4, 4, 4, 4, 3) if {"x", "y", "s"} & {*lazy} else (N,)
    assert got[1].chunks == (rows, (10,))


def test_lists_and_integers() -> None:
    x = RNG.integers(-3, 3, (N, 4))
    want = ek.cross_entropy(x, (Y % 4).tolist(), reduction="none", sample_weight=S.tolist())
    agree(ek.cross_entropy(cut(x), (Y % 4).tolist(), reduction="none", sample_weight=S.tolist()), want)
    agree(ek.cross_entropy(x.tolist(), cut(Y % 4), reduction="none", sample_weight=cut(S)), want)
    big = x.astype(">f4")
    agree(ek.softmax(cut(big)), ek.softmax(big))


def test_other_chunks_are_cut_alike_never_merged() -> None:
    q = ek.softmax(RNG.normal(size=X.shape))
    p = ek.softmax(X)
    got = ek.kl_divergence(cut(p, (10, 13)), cut(q, (4, 10, 9)), return_grad="both", reduction="mean", sample_weight=S)
    want = ek.kl_divergence(p, q, return_grad="both", reduction="mean", sample_weight=S)
    agree(got[0], want[0], reduced=True)
    for a, b in zip(got[1:], want[1:], strict=True):
        agree(a, b)
        assert a.chunks[0] == (4, 6, 4, 9)
    loss = ek.cross_entropy(cut(X, (10, 13)), cut(p, (11, 12)), reduction="none", sample_weight=cut(S, (1, 22)))
    agree(loss, ek.cross_entropy(X, p, reduction="none", sample_weight=S))
    assert loss.chunks == ((10, 1, 12),)
    loss = ek.cross_entropy(cut(X, (10, 13)), cut(Y, (1, 22)), reduction="none")
    agree(loss, ek.cross_entropy(X, Y, reduction="none"))
    assert loss.chunks == ((10, 13),)


def test_rows_against_one_reference_row() -> None:
    p, q = ek.softmax(X), ek.softmax(RNG.normal(size=10))
    for row in (q, q[None], da.from_array(q, chunks=10), da.from_array(q[None], chunks=10)):
        for a, b in ((cut(p), row), (row, cut(p)), (p, row)):
            if not any(isinstance(v, da.Array) for v in (a, b)):
                continue
            plain = [np.asarray(v.compute()) if isinstance(v, da.Array) else v for v in (a, b)]
            got, want = (ek.js_divergence(*v, return_grad="both") for v in ((a, b), plain))
            for i in range(3):
                agree(got[i], want[i])
    several = da.from_array(p[:, None], chunks=(5, 1, 10)), da.from_array(p[:4][None], chunks=(1, 3, 10))
    agree(ek.kl_divergence(*several), ek.kl_divergence(p[:, None], p[:4][None]))


def test_unknown_chunk_sizes() -> None:
    x, y, s = cut(X), cut(Y), cut(S)
    kept = X[:, 0] > 0
    x, y, s = (v[cut(kept)] for v in (x, y, s))
    assert np.isnan(x.shape[0])
    for options in ({}, {"sample_weight": s}, {"sample_weight": s, "class_weight": W}):
        plain = {n: S[kept] if n == "sample_weight" else v for n, v in options.items()}
        got = ek.cross_entropy(x, y, return_grad=True, **options)
        want = ek.cross_entropy(X[kept], Y[kept], return_grad=True, **plain)
        agree(got[0], want[0], reduced=True)
        agree(got[1], want[1])
        want = ek.cross_entropy(X[kept], Y[kept], reduction="none", **plain)
        agree(ek.cross_entropy(x, y, reduction="none", **options), want)
    got = ek.entropy(x, form="logits", reduction="mean", return_grad=True)
    agree(got[1], ek.entropy(X[kept], form="logits", reduction="mean", return_grad=True)[1])
    agree(ek.binary_cross_entropy(x, x > 0, sample_weight=S[:1], return_grad=True)[1],
          ek.binary_cross_entropy(X[kept], X[kept] > 0, sample_weight=S[:1], return_grad=True)[1])  # fmt: skip
    agree(ek.kl_divergence(ek.softmax(x), ek.softmax(X[0])), ek.kl_divergence(ek.softmax(X[kept]), ek.softmax(X[0])))
    known = da.from_array(Y[kept], chunks=(tuple(int(c.sum()) for c in np.split(kept, np.cumsum(ROWS)[:-1])),))
    agree(ek.cross_entropy(x, known, reduction="none"), ek.cross_entropy(X[kept], Y[kept], reduction="none"))
    with pytest.raises(ValueError, match=r"target is a ndarray.*4 blocks.*compute_chunk_sizes"):
        ek.cross_entropy(x, Y[kept])
    with pytest.raises(ValueError, match=r"target has 2 blocks along axis 0.* 4,.*compute_chunk_sizes"):
        ek.cross_entropy(x, da.from_array(Y[kept], chunks=(int(kept.sum()) + 1) // 2))
    with pytest.raises(ValueError, match=r"q has 1 blocks along axis 0.* 4,.*q.compute_chunk_sizes"):
        ek.kl_divergence(cut(X), cut(X, (N,))[cut(kept, (N,))])
    with pytest.raises(ValueError, match=r"x has an unknown number of classes along axis 1; call x.compute_chunk"):
        ek.softmax(cut(X)[:, da.from_array(np.arange(10) > 3, chunks=10)])
    with pytest.raises(ValueError, match="target of shape") as caught:
        ek.cross_entropy(x, da.zeros((3, 3), int))
    assert "does not know" in caught.value.__notes__[0]
    with pytest.raises(ValueError, match="does not fit"):  # of blocks, when they are there
        ek.cross_entropy(x, cut(Y), reduction="none").compute()


# --- reductions -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grad", [False, True])
def test_nothing_counts(grad: bool) -> None:
    for options in ({"sample_weight": np.zeros(N)}, {"ignore_index": 0}):
        target = np.zeros(N, int)
        for on_empty, value in (("nan", np.nan), ("zero", 0.0)):
            got = ek.cross_entropy(cut(X), cut(target), on_empty=on_empty, return_grad=grad, **options)
            if grad:
                got, map_ = got
                assert not map_.compute().any()
            np.testing.assert_array_equal(got.compute(), value)
        lazy = ek.cross_entropy(cut(X), cut(target), on_empty="raise", return_grad=grad, **options)
        for result in lazy if grad else (lazy,):
            with pytest.raises(ValueError, match="no row counts"):
                result.compute()
    assert ek.perplexity(cut(X), target, ignore_index=0, on_empty="zero").compute() == 1.0
    assert np.isnan(ek.entropy(cut(X), form="logits", sample_weight=np.zeros(N), reduction="mean").compute())


def test_sums_stay_in_float64_until_the_end() -> None:
    """Blocks of losses that float32 could not add up."""
    x = np.zeros((40_000, 2), np.float32)
    x[:, 0] = 1e-3 * np.arange(40_000)
    y = np.ones(40_000, int)
    exact = np.logaddexp(x[:, 0].astype(float), 0).sum()
    got = ek.cross_entropy(da.from_array(x, chunks=(100, 2)), y, reduction="sum").compute()
    assert got == np.float32(exact)
    infinite = np.array([-np.inf, np.inf])
    lazy = ek.kl_estimate(da.from_array(infinite, chunks=1), np.zeros(2), reduction="sum")
    assert np.isnan(lazy.compute())
    assert np.isnan(_threads.sum_chunks(2, infinite.tolist().__getitem__))  # as of chunks of a whole array
    assert _threads.sum_chunks(2, [1e308, 1e308].__getitem__) == np.inf


@pytest.mark.parametrize("dtype", [np.float32, int])
def test_a_call_costs_the_same_for_a_petabyte(dtype: Any, computed: list[int]) -> None:
    n, k = 10**12, 1000
    x, y = (da.zeros(shape, chunks=10**9, dtype=dtype) for shape in ((n, k), (n,)))
    y, s = y.astype(int), da.ones(n, chunks=10**10)
    assert ek.cross_entropy(x, y, sample_weight=s, return_grad=True, return_hess=True)[2].shape == (n, k)
    assert ek.binary_cross_entropy(x, x, sample_weight=s[:, None], pos_weight=np.ones(k)).shape == ()
    assert ek.js_divergence(x, x[:1], return_grad="both")[2].shape == (n, k)
    assert ek.score(x, y).loss.shape == ek.information(x[:, 0]).shape == ek.logsumexp(x).shape == (n,)
    assert not computed


def test_results_of_a_block_are_computed_together(monkeypatch: pytest.MonkeyPatch) -> None:
    from entrokern import cpu

    calls, run = [], cpu.run

    def counting(call: Any) -> float:
        calls.append(call.n_rows)
        return run(call)

    monkeypatch.setattr(cpu, "run", counting)
    x = cut(X)
    loss, grad, hess = ek.cross_entropy(x, Y, sample_weight=S, return_grad=True, return_hess=True)
    dask.compute(loss, grad, hess)
    assert sorted(calls) == sorted(ROWS)
    del calls[:]
    score = ek.score(x, Y, outputs=("loss", "rank", "grad", "entropy"))
    (found,) = dask.compute(score)
    assert sorted(calls) == sorted(ROWS)
    assert isinstance(found, ek.Score)
    np.testing.assert_array_equal(found.rank, ek.score(X, Y, outputs="rank").rank)
    assert found.lse is None
    # The denominator is of labels and weights: x goes to one layer alone.
    readers = [name for name, of in grad.dask.dependencies.items() if x.name in of]
    assert len(readers) == 1


def test_names_tell_calls_apart() -> None:
    x, y = cut(X), cut(Y)

    def name(**options: Any) -> str:
        return ek.cross_entropy(x, y, reduction="none", **options).name

    assert name() == name()
    assert len({name(), name(temperature=2.0), name(base=2), name(label_smoothing=0.1), ek.logsumexp(x).name}) == 5
    with ek.use_backend("reference"):
        other = name()
    assert other != name()


# --- errors -----------------------------------------------------------------------------------------------------------

P = np.full((N, 3), 1 / 3)
WRONG: list[tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]] = [
    (ek.cross_entropy, (X, Y), {"reduction": "avg"}),
    (ek.cross_entropy, (X, Y), {"on_empty": None}),
    (ek.cross_entropy, (X, Y), {"temperature": 0.0}),
    (ek.cross_entropy, (X, Y), {"label_smoothing": 1.5}),
    (ek.cross_entropy, (X, Y), {"axis": 2}),
    (ek.cross_entropy, (X, Y), {"axis": 0.5}),
    (ek.cross_entropy, (X, Y), {"form": "logit"}),
    (ek.cross_entropy, (X, Y), {"form": "probs", "temperature": 2.0}),
    (ek.cross_entropy, (X, Y), {"form": "probs", "return_hess": True}),
    (ek.cross_entropy, (X, Y), {"softcap": 5.0, "return_hess": True}),
    (ek.cross_entropy, (X, Y), {"return_grad": 1}),
    (ek.cross_entropy, (X, Y), {"validate": "yes"}),
    (ek.cross_entropy, (X, Y), {"nonsense": 1}),
    (ek.cross_entropy, (X,), {}),
    (ek.cross_entropy, (X, Y), {"axis": 0}),
    (ek.cross_entropy, (X, Y[:-1]), {}),
    (ek.cross_entropy, (X, Y.astype(float)), {}),
    (ek.cross_entropy, (X, X), {"ignore_index": 3}),
    (ek.cross_entropy, (X, Y), {"sample_weight": S[:5]}),
    (ek.cross_entropy, (X, Y), {"sample_weight": S[:, None]}),
    (ek.cross_entropy, (X, Y), {"class_weight": W[:5]}),
    (ek.cross_entropy, (X, Y), {"class_weight": -W}),
    (ek.cross_entropy, (X[:, :0], Y), {}),
    (ek.cross_entropy, (X > 0, Y), {}),
    (ek.cross_entropy, (X.astype(complex), Y), {}),
    (ek.cross_entropy, (np.ma.masked_array(X), Y), {}),
    (ek.binary_cross_entropy, (X, Y), {}),
    (ek.binary_cross_entropy, (X, X > 0), {"pos_weight": W[:3]}),
    (ek.binary_cross_entropy, (X, X > 0), {"sample_weight": S}),
    (ek.binary_cross_entropy, (X, X > 0), {"sample_weight": W, "axis": -1}),
    (ek.kl_divergence, (X, X[:5]), {}),
    (ek.kl_divergence, (X, X), {"return_grad": True}),
    (ek.kl_divergence, (X, X), {"temperature": 2.0}),
    (ek.kl_divergence, (X.astype(np.float16), X.astype(FLOATS["bfloat16"])), {}),
    (ek.js_divergence, (X, X), {"weight": 1.0}),
    (ek.kl_estimate, (X, X[:5]), {}),
    (ek.kl_estimate, (X, X), {"estimator": "k4"}),
    (ek.entropy, (X,), {"base": 1}),
    (ek.information, (X,), {"base": -1}),
    (ek.softmax, (X,), {"axis": -3}),
    (ek.score, (X, Y), {"outputs": ("loss", "losses")}),
    (ek.score, (X,), {"outputs": "rank"}),
    (ek.perplexity, (X, Y), {"base": 2}),
]


@pytest.mark.parametrize("i", range(len(WRONG)), ids=lambda i: f"{WRONG[i][0].__name__} {WRONG[i][2] or i}")
def test_errors_come_with_the_call_and_in_the_same_words(i: int, computed: list[int]) -> None:
    function, args, options = WRONG[i]
    with pytest.raises((TypeError, ValueError)) as plain:
        function(*args, **options)
    for lazy in ([cut(args[0]), *args[1:]], [da.from_array(a, chunks=4) for a in args]):
        if lazy[0].numblocks[-1] > 1:
            lazy = [a.rechunk({a.ndim - 1: -1}) if a.ndim > 1 else a for a in lazy]
        with pytest.raises(type(plain.value)) as caught:
            function(*lazy, **options)
        assert str(caught.value) == str(plain.value)
    assert not computed


def test_what_cannot_be_lazy() -> None:
    x, y = cut(X), cut(Y)
    for name in ("out", "grad_out", "hess_out"):
        with pytest.raises(TypeError, match=f"{name} is given beside Dask arrays.*leave it out"):
            ek.cross_entropy(x, y, **{name: np.zeros(N)})
    with pytest.raises(TypeError, match="out is given beside Dask arrays"):
        ek.softmax(X, out=x)
    with pytest.raises(TypeError, match=r"temperature is a Dask array.*temperature\.compute"):
        ek.cross_entropy(X, Y, temperature=da.from_array(np.array(2.0), chunks=()))
    with pytest.raises(TypeError, match="of different libraries"):
        ek.cross_entropy(x, device.to_device(Y))
    with ek.use_backend("cuda"), pytest.raises(TypeError, match="takes cupy arrays"):
        ek.softmax(x)


def test_errors_in_a_block_name_the_row_of_the_whole() -> None:
    y = Y.copy()
    y[[9, 12]] = 10
    for options in ({}, {"reduction": "none"}, {"return_grad": True, "class_weight": W}, {"validate": True}):
        lazy = ek.cross_entropy(cut(X), cut(y), **options)
        with pytest.raises(IndexError, match=r"label 10 of row 9 is out of range for k = 10"):
            dask.compute(lazy)
    x3, y3 = RNG.normal(size=(6, 5, 8)), np.zeros((6, 8), int)
    y3[4, 7] = -100
    with pytest.raises(IndexError, match=r"label -100 of row \(4, 7\).*ignore_index=-100"):
        ek.cross_entropy(da.from_array(x3, chunks=(4, 5, 3)), y3, axis=1).compute()
    t = np.zeros((N, 10), int)
    t[20, 7] = 255
    for axis, chunks in ((None, 4), (-1, (4, 10)), (0, (N, 4))):
        lazy = ek.binary_cross_entropy(da.from_array(X, chunks=chunks), t, axis=axis)
        where = r"\(7, 20\)" if axis == 0 else r"\(20, 7\)"
        with pytest.raises(IndexError, match=f"target 255 at row {where}"):
            lazy.compute()
    p = P.copy()
    p[8] = 2
    with pytest.raises(ValueError, match="row 8 sums to 6"):
        ek.entropy(cut(p), validate=True).compute()
    some = cut(np.arange(N) > 1)
    loss = ek.cross_entropy(cut(X)[some], cut(y)[some])
    with pytest.raises(IndexError, match="label 10 of row") as caught:
        loss.compute()
    assert "within their block" in caught.value.__notes__[0]


# --- where and how tasks run ------------------------------------------------------------------------------------------


def test_threads_and_processes() -> None:
    lazy = ek.cross_entropy(cut(X), Y, sample_weight=S, return_grad=True)
    perplexity = ek.perplexity(cut(X), Y)
    want = dask.compute(*lazy, perplexity)
    for scheduler in ("threads", "processes"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the pool's own
            got = dask.compute(*lazy, perplexity, scheduler=scheduler, num_workers=2)
        for a, b in zip(got, want, strict=True):
            np.testing.assert_array_equal(a, b)


def test_a_task_uses_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    x = RNG.standard_normal((3000, 1000)).astype(np.float32)  # several chunks of the kernels'
    y = np.zeros(3000, int)
    monkeypatch.setattr(_threads, "_chosen", 4)
    want = ek.cross_entropy(x, y, return_grad=True)[1]
    monkeypatch.setattr(_threads, "_helpers", lambda count: pytest.fail("a task asked for threads"))
    lazy = ek.cross_entropy(da.from_array(x, chunks=(1500, 1000)), y, return_grad=True)[1]
    np.testing.assert_array_equal(lazy.compute(scheduler="threads"), want)
    with pytest.raises(pytest.fail.Exception, match="asked for threads"):
        ek.cross_entropy(x, y)


def test_the_backend_is_that_of_the_call() -> None:
    """Whatever is in force when it is computed."""
    x = X.astype(np.float32) * 30
    found = {}
    for name, other in itertools.permutations(("reference", "cpu")):
        with ek.use_backend(name):
            lazy, want = ek.cross_entropy(cut(x), Y, return_grad=True), ek.cross_entropy(x, Y, return_grad=True)
        with ek.use_backend(other), pytest.MonkeyPatch.context() as patch:
            patch.setattr(_dispatch.named(other), "run", lambda call: pytest.fail("the other backend ran"))
            agree(lazy[1], want[1])
        found[name] = want[1]
    assert (found["reference"] != found["cpu"]).any()


@pytest.mark.parametrize("backend", ["cuda"])
@pytest.mark.parametrize("name", ["ce labels grad", "ce weights", "perplexity", "bce weights", "entropy mean",
                                  "kl mean", "js probs probs", "score labels", "softmax", "estimate mean"])  # fmt: skip
def test_blocks_on_a_device(backend: str, name: str) -> None:
    case = BY_NAME[name]
    args, options = operands(case, N, 12, "float32")

    def moved(value: Any) -> Any:
        if not isinstance(value, np.ndarray):
            return value
        there = device.to_device(value)
        return da.from_array(there, (ROWS, *value.shape[1:]), name=False, asarray=False) if len(value) == N else there

    got = call(case.function, [moved(a) for a in args], {n: moved(v) for n, v in options.items()})
    want = call(case.function, args, options)
    for result, array in want.items():
        assert type(got[result]._meta) is type(device.to_device(array))
        assert (got[result].dtype, got[result].shape) == (array.dtype, array.shape)
        found = device.to_host(got[result].compute())
        np.testing.assert_allclose(found, array, rtol=1e-4, atol=1e-5)


def test_dask_is_loaded_by_its_arrays_alone() -> None:
    code = """
import sys, numpy as np, entrokern as ek
ek.use_backend("reference")
ek.cross_entropy(np.zeros((2, 3)), [0, 1], validate=True)
print("dask" in sys.modules, "entrokern.dask" in sys.modules)
"""
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert out.split() == ["False", "False"]
