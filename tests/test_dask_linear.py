"""`linear_cross_entropy` of Dask arrays: rows in blocks, the layer whole, nothing computed before it is asked for."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import entrokern as ek
from entrokern import _dispatch

dask = pytest.importorskip("dask")
da = pytest.importorskip("dask.array")

N, K, D = 23, 7, 5
RNG = np.random.default_rng(5)
ARRAYS: dict[str, Any] = {
    "hidden": RNG.normal(size=(N, D)),
    "weight": RNG.normal(size=(K, D)),
    "bias": RNG.normal(size=K),
    "target": RNG.integers(0, K, N),
}
S, C, Q = RNG.uniform(0, 3.0, N), RNG.uniform(0.1, 3.0, K), RNG.dirichlet(np.ones(K), N)
BY_ROWS = {"hidden", "target", "sample_weight"}
CUTS = [(N,), (7, 1, 0, 15), (1,) * N]


def cut(given: dict[str, Any], rows: tuple[int, ...], lazy: Any = BY_ROWS) -> dict[str, Any]:
    return {
        name: da.from_array(v, chunks=(rows, *v.shape[1:])) if name in lazy and isinstance(v, np.ndarray) else v
        for name, v in given.items()
    }


@pytest.fixture(autouse=True)
def computed() -> Iterator[list[int]]:
    """How many graphs have been computed: none, until a test asks for it."""
    runs: list[int] = []

    def scheduler(graph: Any, keys: Any, **options: Any) -> Any:
        runs.append(1)
        return dask.get(graph, keys, **options)

    with dask.config.set(scheduler=scheduler):
        yield runs


def agree(lazy: Any, given: dict[str, Any], rtol: float = 1e-12) -> None:
    """Type, dtype, shape and meta before a value is known; then the values of the call on whole arrays."""
    want = ek.linear_cross_entropy(**given)
    lazy, want = (v if isinstance(v, tuple) else (v,) for v in (lazy, want))
    assert len(lazy) == len(want)
    for one, other in zip(lazy, want, strict=True):
        assert type(one) is da.Array and type(one._meta) is np.ndarray
        assert one.dtype == one._meta.dtype == other.dtype
        assert np.isnan(one.shape).any() or one.shape == other.shape
    for got, other in zip(dask.compute(*lazy), want, strict=True):
        assert (type(got), got.dtype, got.shape) == (np.ndarray, other.dtype, other.shape)
        wide, exact = got.astype(np.float64), other.astype(np.float64)
        np.testing.assert_allclose(wide, exact, rtol=rtol, atol=rtol * np.max(np.abs(exact), initial=0))


OPTIONS: dict[str, dict[str, Any]] = {
    "mean": {},
    "sum": {"reduction": "sum", "base": 2},
    "rows": {"reduction": "none", "label_smoothing": 0.1},
    "ignored": {"ignore_index": 3},
    "weights": {"sample_weight": S, "class_weight": C, "ignore_index": 3},
    "transformed": {"temperature": 2.0, "softcap": 3.0, "z_loss": 0.01},
    "distributions": {"target": Q, "sample_weight": S, "class_weight": C},
    "rows of distributions": {"target": Q, "reduction": "none", "validate": True},
}


@pytest.mark.parametrize("rows", CUTS, ids=["one block", "blocks", "rows"])
@pytest.mark.parametrize("what", OPTIONS)
def test_the_call_on_whole_arrays(what: str, rows: tuple[int, ...], computed: list[int]) -> None:
    for asked in (False, True, "hidden", ("weight",)):
        given = ARRAYS | OPTIONS[what] | {"return_grad": asked}
        lazy = ek.linear_cross_entropy(**cut(given, rows))
        assert not computed
        agree(lazy, given)
        del computed[:]


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16], ids=["f4", "f2", "bf16"])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_dtypes(dtype: Any, reduction: str) -> None:
    given = {n: v if n == "target" else v.astype(dtype) for n, v in ARRAYS.items()}
    given |= {"reduction": reduction, "return_grad": True}
    eps = float(ml_dtypes.finfo(dtype).eps)
    agree(ek.linear_cross_entropy(**cut(given, CUTS[1])), given, 4 * max(eps, 1e-6))


@pytest.mark.parametrize("lazy", [("hidden",), ("target",), ("sample_weight",), ("weight",), ("bias", "class_weight")])
def test_what_is_lazy(lazy: tuple[str, ...]) -> None:
    """Any of the operands, and blocks that are cut differently."""
    given = ARRAYS | {"sample_weight": S, "class_weight": C, "return_grad": True}
    whole = {n: da.from_array(given[n], chunks=-1) for n in lazy if n not in BY_ROWS}
    agree(ek.linear_cross_entropy(**cut(given, CUTS[1], BY_ROWS.intersection(lazy)) | whole), given)
    apart = cut(given, CUTS[1], ("hidden",)) | {"target": da.from_array(given["target"], chunks=4)}
    agree(ek.linear_cross_entropy(**apart), given)


@pytest.mark.parametrize("batch", [(), (4,), (2, 3), (0,)], ids=str)
def test_batches(batch: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    given: dict[str, Any] = {
        "hidden": rng.normal(size=(*batch, D)), "weight": ARRAYS["weight"], "target": rng.integers(0, K, batch),
        "sample_weight": rng.uniform(size=batch),
    }  # fmt: skip
    for reduction in ("none", "mean"):
        options = given | {"reduction": reduction, "return_grad": True}
        hidden = da.from_array(given["hidden"], chunks=(*(2 for _ in batch), D))
        agree(ek.linear_cross_entropy(**options | {"hidden": hidden}), options)


def test_sizes_that_dask_does_not_know() -> None:
    kept = ARRAYS["target"] != 2
    lazy = cut(ARRAYS, CUTS[1])
    chosen = {n: lazy[n][da.from_array(kept, chunks=(CUTS[1],))] for n in ("hidden", "target")}
    given = ARRAYS | {n: ARRAYS[n][kept] for n in ("hidden", "target")}
    for options in ({}, {"reduction": "none"}, {"ignore_index": 3}, {"class_weight": C}):
        options = options | {"return_grad": True}
        agree(ek.linear_cross_entropy(**lazy | chosen, **options), given | options)
    with pytest.raises(ValueError, match=r"target is a ndarray.*compute_chunk_sizes"):
        ek.linear_cross_entropy(chosen["hidden"], ARRAYS["weight"], given["target"])


@pytest.mark.parametrize("on_empty", ["nan", "zero", "raise"])
def test_no_row_counts(on_empty: Any) -> None:
    given = ARRAYS | {"target": np.full(N, -100), "ignore_index": -100, "on_empty": on_empty, "return_grad": True}
    found = ek.linear_cross_entropy(**cut(given, CUTS[1]))
    if on_empty == "raise":
        for lazy in found:
            with pytest.raises(ValueError, match="no row counts"):
                lazy.compute()
    else:
        agree(found, given)


def test_one_run_of_a_block_and_the_layer_is_there_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from entrokern import _linear

    runs = []
    run = _linear.Layer.run
    monkeypatch.setattr(_linear.Layer, "run", lambda layer, losses: (runs.append(layer.n), run(layer, losses))[1])
    found = ek.linear_cross_entropy(**cut(ARRAYS, CUTS[1]), return_grad=True)
    dask.compute(*found)
    assert sorted(runs) == sorted(CUTS[1])


def test_a_call_costs_the_same_for_a_petabyte(computed: list[int]) -> None:
    n = 10**12
    hidden, target = da.zeros((n, D), chunks=10**9, dtype=np.float32), da.zeros(n, chunks=10**9, dtype=int)
    loss, by_hidden, by_weight = ek.linear_cross_entropy(hidden, ARRAYS["weight"], target, return_grad=True)
    assert (loss.shape, by_hidden.shape, by_weight.shape) == ((), (n, D), (K, D))
    assert not computed


def test_the_backend_is_that_of_the_call() -> None:
    with ek.use_backend("reference"):
        lazy = ek.linear_cross_entropy(**cut(ARRAYS, CUTS[1]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_dispatch.named("cpu"), "run", lambda call: pytest.fail("the other backend ran"))
        lazy.compute()


def test_threads_and_processes() -> None:
    lazy = ek.linear_cross_entropy(**cut(ARRAYS | {"sample_weight": S}, CUTS[1]), return_grad=True)
    want = dask.compute(*lazy)
    for scheduler in ("threads", "processes"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the pool's own
            got = dask.compute(*lazy, scheduler=scheduler, num_workers=2)
        for a, b in zip(got, want, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-15)


L = cut(ARRAYS, CUTS[1])
REFUSED: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "cut d": (lambda: ek.linear_cross_entropy(**L | {"hidden": L["hidden"].rechunk((7, 2))}), ValueError,
              r"hidden lies in 3 blocks along axis 1.*the layer whole.*hidden\.rechunk\(\{1: -1\}\)"),
    "cut weight": (lambda: ek.linear_cross_entropy(**L | {"weight": da.from_array(ARRAYS["weight"], chunks=4)}),
                   ValueError, r"weight lies in 2 blocks along axis 0"),
    "cut target": (lambda: ek.linear_cross_entropy(**L | {"target": da.from_array(Q, chunks=4)}), ValueError,
                   r"target lies in 2 blocks along axis 1"),
    "out": (lambda: ek.linear_cross_entropy(**L, out=np.empty(())), TypeError, "out is given beside Dask arrays"),
    "shape": (lambda: ek.linear_cross_entropy(**L | {"weight": ARRAYS["weight"].T}), ValueError, r"pass weight\.T"),
    "target": (lambda: ek.linear_cross_entropy(**L | {"target": L["target"][:-1]}), ValueError, "target of shape"),
    "rank": (lambda: ek.linear_cross_entropy(**L | {"sample_weight": L["hidden"]}), ValueError, "one weight per row"),
    "bias": (lambda: ek.linear_cross_entropy(**L | {"bias": np.ones(3)}), ValueError, "one number per class"),
    "option": (lambda: ek.linear_cross_entropy(**L, reduction="avg"), ValueError, "reduction"),
    "gradient": (lambda: ek.linear_cross_entropy(**L, return_grad="x"), ValueError, "return_grad names 'x'"),
    "lazy option": (lambda: ek.linear_cross_entropy(**L, temperature=L["target"][0]), TypeError, "temperature is a"),
    "unknown": (lambda: ek.linear_cross_entropy(**L, axis=1), TypeError, "axis"),
    "nothing": (lambda: ek.linear_cross_entropy(**L | {"hidden": None}), TypeError, "hidden is None"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_errors_come_with_the_call(what: str, computed: list[int]) -> None:
    compute, error, message = REFUSED[what]
    with pytest.raises(error, match=message):
        compute()
    assert not computed


def test_errors_in_a_block_name_the_row_of_the_whole() -> None:
    target = ARRAYS["target"].copy()
    target[[9, 12]] = K
    for options in ({}, {"reduction": "none"}, {"return_grad": True, "class_weight": C}):
        lazy = ek.linear_cross_entropy(**cut(ARRAYS | {"target": target}, CUTS[1]), **options)
        with pytest.raises(IndexError, match=f"label {K} of row 9 is out of range"):
            dask.compute(lazy)
    bad = Q.copy()
    bad[9] = 1
    lazy = ek.linear_cross_entropy(**cut(ARRAYS | {"target": bad}, CUTS[1]), validate=True)
    with pytest.raises(ValueError, match="row 9 sums to 7"):
        lazy.compute()
