"""`Accumulator`: any split of the rows, merged in any order, tells what a look at all of them would."""

from __future__ import annotations

import copy
import itertools
import math
import pickle
from dataclasses import FrozenInstanceError, fields
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import device
import entrokern as ek
from cases import FLOATS
from entrokern import _quantiles
from entrokern._quantiles import Quantiles
from entrokern._report import Summary
from entrokern._tally import Rows, Tally

RNG = np.random.default_rng(0)
N, K = 90, 7
X = RNG.normal(size=(N, K)) * 3
Y = np.where(np.arange(N) % 8 == 3, -100, RNG.integers(0, K, N))
W = RNG.uniform(0.5, 2, K)
S = np.where(np.arange(N) % 5 == 2, 0.0, RNG.uniform(0.1, 3, N))
P, Q = RNG.dirichlet(np.ones(K), (2, N))
T = RNG.integers(0, 2, (N, K))

STREAMS: dict[str, tuple[str, tuple[np.ndarray, ...], dict[str, Any]]] = {
    "labels": ("cross_entropy", (X, Y % K), {}),
    "weights": ("cross_entropy", (X, Y), {"ignore_index": -100, "class_weight": W, "label_smoothing": 0.1}),
    "transforms": ("cross_entropy", (X, Y % K), {"temperature": 2.0, "softcap": 9.0, "z_loss": 0.1, "base": 2}),
    "distributions": ("cross_entropy", (X, Q), {"class_weight": W}),
    "probs": ("cross_entropy", (P, Y), {"form": "probs", "ignore_index": -100}),
    "entropy": ("entropy", (P,), {"base": 2}),
    "binary": ("binary_cross_entropy", (X, T), {"pos_weight": W}),
    "multi-label": ("binary_cross_entropy", (X, T), {"axis": 1, "ignore_index": 1}),
    "kl": ("kl_divergence", (X, Q), {"p_form": "logits", "temperature": 2.0}),
    "js": ("js_divergence", (P, Q), {"weight": 0.25}),
}


def values_stream(**options: Any) -> ek.Accumulator:
    """One that takes any values: their negatives are log-probabilities of the only class."""
    return ek.Accumulator(form="log_probs", **options)


def feed(total: ek.Accumulator, values: Any, weights: Any = None, label: int = 0) -> ek.Accumulator:
    x = -np.asarray(values, np.float64)[:, None]
    return total.update(x, np.full(len(x), label), weights)


def assert_same(a: ek.StreamSummary, b: ek.StreamSummary, rtol: float) -> None:
    """Counts and quantiles are equal, sums within rounding."""
    for field in fields(a):
        got, want = getattr(a, field.name), getattr(b, field.name)
        if field.name in ("weight", "sum", "mean", "variance", "std", "perplexity", "class_mean") and got is not None:
            np.testing.assert_allclose(got, want, rtol=rtol, err_msg=field.name)
        else:
            np.testing.assert_equal(got, want, err_msg=field.name)


# What it tells


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", STREAMS)
def test_the_mean_is_the_librarys_of_the_whole(host_backend: str, name: str, weighted: bool) -> None:
    quantity, arrays, options = STREAMS[name]
    elementwise = name == "binary"
    weights = None if not weighted else np.broadcast_to(S[:, None], X.shape) if elementwise else S
    total = ek.Accumulator(quantity, **options)
    for at in (slice(0, 1), slice(1, 64), slice(64, 64), slice(64, N)):
        block = None if weights is None else weights[at]
        assert total.update(*(a[at] for a in arrays), sample_weight=block) is total
    found, function = total.compute(), getattr(ek, quantity)
    assert found.mean == pytest.approx(float(function(*arrays, sample_weight=weights, reduction="mean", **options)))
    assert found.sum == pytest.approx(float(function(*arrays, sample_weight=weights, reduction="sum", **options)))
    assert found.rows == (N * K if elementwise else N)
    values = function(*arrays, reduction="none", **options)
    counts = np.ones(values.shape, bool) if weights is None else weights != 0
    if "ignore_index" in options:
        counts = counts & ((T != 1).any(axis=1) if name == "multi-label" else Y != -100)
    assert found.ignored == np.count_nonzero(~counts)
    assert (found.min, found.max) == (values[counts].min(), values[counts].max())
    assert found.quantiles_exact
    assert list(found.quantiles.values()) == [
        np.quantile(values[counts], f, method="inverted_cdf") for f in found.quantiles
    ]
    shares = None if weights is None else weights[counts]
    assert found.variance == pytest.approx(np.cov(values[counts], aweights=shares, bias=True))
    assert (found.accuracy is None) == (found.top5 is None) == (quantity != "cross_entropy" or name == "distributions")
    assert (found.perplexity is None) == (quantity != "cross_entropy" or "z_loss" in options)


@pytest.mark.parametrize("dtype", FLOATS)
def test_labelled_rows_by_hand(backend: str, dtype: str) -> None:
    """All of it against NumPy in float64, for each backend and an axis that is not the last."""
    x = X.reshape(9, 10, K).astype(FLOATS[dtype])
    if dtype != "float64":
        x[:, :2] = np.round(x[:, :2].astype(float))  # ties
    y, s = Y.reshape(9, 10), S.reshape(9, 10)
    total = ek.Accumulator(axis=1, class_weight=W, ignore_index=-100, base=2, per_class=True)
    put = device.to_device if backend == "cuda" else np.asarray
    for i in range(0, 9, 4):
        total.update(*(put(a[i : i + 4]) for a in (np.moveaxis(x, 2, 1), y, s)))
    found = total.compute()

    z = x.astype(np.float64).reshape(N, K)
    counts = (Y != -100) & (S != 0)
    z, labels, s = z[counts], Y[counts], S[counts]
    own = z[np.arange(len(z)), labels]
    values = W[labels] * (np.log(np.exp(z).sum(axis=1)) - own) / math.log(2)
    weight = math.fsum(s * W[labels])
    mean = math.fsum(s * values) / weight
    rank = (z > own[:, None]).sum(axis=1)
    v_mean = math.fsum(s * values) / math.fsum(s)
    close = {"rel": 1e-12 if dtype == "float64" else 1e-6}
    assert (found.rows, found.count, found.ignored) == (N, counts.sum(), (~counts).sum())
    assert (found.nan_rows, found.inf_rows) == (0, 0)
    assert found.weight == pytest.approx(weight, rel=1e-15)
    assert found.mean == pytest.approx(mean, **close)
    assert found.variance == pytest.approx(math.fsum(s * (values - v_mean) ** 2) / math.fsum(s), **close)
    assert found.std == math.sqrt(found.variance)
    assert found.perplexity == pytest.approx(2**mean, **close)
    assert found.accuracy == np.mean(z.argmax(axis=1) == labels)
    assert found.top5 == np.mean(rank < 5)
    assert 0.5 < found.top5 < 1
    assert found.class_count.tolist() == np.bincount(labels, minlength=K).tolist()
    of_class = np.bincount(labels, s * values, K) / np.bincount(labels, s * W[labels], K)
    np.testing.assert_allclose(found.class_mean, of_class, rtol=close["rel"])
    assert total.quantile(1.0) == found.max == pytest.approx(values.max(), **close)


def test_equal_logits_share_the_best_rank() -> None:
    found = ek.Accumulator().update(np.zeros((6, 6)), np.arange(6)).compute()
    assert (found.accuracy, found.top5) == (1 / 6, 1.0)


def test_a_class_of_no_weight() -> None:
    """Its rows count and its smoothed loss is in the sum, but not in the denominator: as the library's mean."""
    options = {"class_weight": [0.0, 1.0], "label_smoothing": 0.5}
    x, y = np.array([[1.0, 3.0], [2.0, 1.0]]), np.array([0, 1])
    total = ek.Accumulator(per_class=True, **options).update(x, y)
    found = total.compute()
    assert found.mean == pytest.approx(float(ek.cross_entropy(x, y, **options)))
    assert np.isfinite(found.variance)
    assert found.count == 2
    assert np.isnan(found.class_mean[0])


@pytest.mark.parametrize(("on_empty", "mean", "perplexity"), [("nan", np.nan, np.nan), ("zero", 0.0, 1.0)])
def test_no_rows(on_empty: str, mean: float, perplexity: float) -> None:
    total = ek.Accumulator(on_empty=on_empty)
    for labelled in (False, True):
        found = total.compute()
        np.testing.assert_equal((found.mean, found.perplexity), (mean, perplexity))
        assert found.count == found.sum == found.weight == 0
        assert np.isnan([found.variance, found.std, found.min, found.max, *found.quantiles.values()]).all()
        assert (found.accuracy is None) == (not labelled)
        total.update(np.zeros((0, 3)), np.zeros(0, int)).update([[0.0, 1.0]], [1], [0.0])
    with pytest.raises(ValueError, match="no row counts"):
        ek.Accumulator(on_empty="raise").compute()


# Rounding


def test_what_rounds_off_is_kept() -> None:
    """Plain float64 sums lose every one of these ones, whether they come in one block or each in its own."""
    values = np.concatenate([[1e16], np.ones(1001), [-1e16]])
    assert feed(values_stream(), values).compute().sum == 1001
    total = values_stream(per_class=True)
    for value in values:
        feed(total, [value])
    assert total.compute().sum == total.compute().class_mean[0] * values.size == 1001
    parts = [feed(values_stream(), part) for part in np.array_split(values, 40)]
    first = parts.pop(7)
    for part in parts:
        first.merge(part)
    assert first.compute().sum == 1001
    mixed = np.concatenate([RNG.normal(size=5000) * 10.0 ** RNG.integers(-10, 20, 5000)])
    assert feed(values_stream(), mixed).compute().sum == pytest.approx(math.fsum(mixed), rel=2**-52)


@pytest.mark.parametrize("n", [1, 2, 50, 3000])
def test_variance_beside_a_large_mean(n: int) -> None:
    values = 1e9 + RNG.normal(size=n)
    weights = RNG.uniform(0.1, 5, n)
    total = values_stream()
    for part, w in zip(np.array_split(values, 7), np.array_split(weights, 7), strict=True):
        feed(total, part, w)
    exact = np.average((values - 1e9 - np.average(values - 1e9, weights=weights)) ** 2, weights=weights)
    assert total.compute().variance == pytest.approx(exact, rel=1e-6, abs=1e-13)


def test_sums_beyond_float64_are_infinite() -> None:
    total = feed(feed(values_stream(), [1.7e308, 1.7e308, 1.0]), [1.7e308])
    found = total.compute()
    assert found.sum == found.mean == np.inf
    assert (found.count, found.max, found.quantiles[0.5]) == (4, 1.7e308, 1.7e308)


# Splits and merges


@given(st.lists(st.integers(0, N), max_size=6), st.randoms(use_true_random=False), st.sampled_from([None, S]))
def test_any_split_merges_to_the_whole(cuts: list[int], random: Any, weights: np.ndarray | None) -> None:
    x = X.astype(np.float32)
    x[[5, 40]], x[60, 2] = np.nan, np.inf

    def made() -> ek.Accumulator:
        return ek.Accumulator(ignore_index=-100, class_weight=W, per_class=True)

    whole = made().update(x, Y, weights)
    edges = [0, *sorted(cuts), N]
    parts = [
        made().update(x[a:b], Y[a:b], None if weights is None else weights[a:b]) for a, b in itertools.pairwise(edges)
    ]
    while len(parts) > 1:
        random.shuffle(parts)
        a, b = parts.pop(), parts.pop()
        parts.append(a + b if random.random() < 0.5 else a.merge(b))
    assert_same(parts[0].compute(), whole.compute(), rtol=1e-13)


def test_pickles_in_mid_stream_and_forgets_on_demand() -> None:
    def made() -> ek.Accumulator:
        return ek.Accumulator(class_weight=W, per_class=True)

    total, y = made().update(X[:50], Y[:50] % K), Y % K
    resumed = pickle.loads(pickle.dumps(total)).update(X[50:], y[50:])
    twin = copy.copy(total)
    twin.update(X[50:], y[50:])
    whole = made().update(X[:50], y[:50]).update(X[50:], y[50:])
    for other in (resumed, twin):
        assert_same(other.compute(), whole.compute(), rtol=0)
    assert total.compute().rows == 50
    both = total + total
    assert (total.compute().rows, both.compute().rows) == (50, 100)
    assert_same(total.merge(total).compute(), both.compute(), rtol=0)
    total.reset()
    assert total.compute().rows == 0
    assert_same(total.merge(whole).compute(), whole.compute(), rtol=0)


def test_the_record_is_frozen_and_its_own() -> None:
    total = ek.Accumulator(per_class=True).update(X, Y % K)
    record = total.compute()
    with pytest.raises(FrozenInstanceError):
        record.mean = 0.0
    record.class_count[:] = 0
    assert total.compute().class_count.sum() == N


# NaN and infinite rows


def test_rows_that_are_not_finite() -> None:
    values = np.array([1.0, np.nan, 2.0, np.inf, 6.0, np.nan])
    weights = np.array([1.0, 1.0, 2.0, 1.0, 1.0, 0.0])  # the last does not count, whatever it holds
    apart = feed(values_stream(per_class=True), values, weights)
    found = apart.compute()
    assert (found.rows, found.count, found.ignored, found.nan_rows, found.inf_rows) == (6, 3, 1, 1, 1)
    assert (found.mean, found.min, found.max, apart.quantile(0.5)) == (11 / 4, 1, 6, 2)
    assert (found.class_count[0], found.class_mean[0], found.accuracy) == (3, 11 / 4, 4 / 5)  # a NaN is wrong
    kept = feed(values_stream(nonfinite="keep", per_class=True), values, weights)
    found = kept.compute()
    assert (found.count, found.weight, found.nan_rows) == (5, 6, 1)
    assert np.isnan([found.mean, found.variance, found.min, found.max, kept.quantile(0.5), found.class_mean[0]]).all()
    kept = feed(values_stream(nonfinite="keep"), values[[0, 2, 3, 4]], weights[[0, 2, 3, 4]])
    found = kept.compute()
    assert (found.mean, found.min, found.max, kept.quantile(0.5), kept.quantile(0.75)) == (np.inf, 1, np.inf, 2, 6)
    assert np.isnan(found.variance)
    assert np.isnan(feed(kept, [-np.inf]).compute().mean)
    assert kept.quantile(0) == -np.inf
    strict = feed(values_stream(nonfinite="raise"), values[:1])
    with pytest.raises(ValueError, match="row 4 of the stream has cross_entropy inf"):
        feed(strict, values[[0, 1, 2, 3]], [1, 0, 1, 1])
    assert strict.compute().rows == 1


# What is refused

BAD_BLOCKS = {
    "label": ((X, np.full(N, K)), IndexError, "label 7 of row 0 is out of range"),
    "shape": ((X, Y[:5]), ValueError, "does not fit"),
    "no target": ((X,), ValueError, "takes a second array"),
    "classes": ((X[:, :3], Y % 3), ValueError, "k = 3 classes came where the stream has k = 7"),
    "negative": ((X, Y % K, -S), ValueError, "sample_weight of row 0 is -"),
    "no number": ((X, Y % K, np.where(Y == 3, np.nan, 1)), ValueError, "is nan; weights must be finite"),
    "weights": ((X, Y % K, S[:5]), ValueError, "sample_weight has shape"),
    "strings": ((X.astype(str), Y % K), TypeError, "x has dtype"),
}


@pytest.mark.parametrize("name", BAD_BLOCKS)
def test_a_bad_block_leaves_no_trace(name: str) -> None:
    arrays, error, says = BAD_BLOCKS[name]
    total = ek.Accumulator(per_class=True).update(X, Y % K)
    before = pickle.dumps(total)
    with pytest.raises(error, match=says) as caught:
        total.update(*arrays)
    assert f"begins at row {N} of the stream" in caught.value.__notes__[0]
    assert pickle.dumps(total) == before


BAD_OPTIONS = [
    (("mse",), {}, ValueError, "quantity='mse' is not known"),
    ((), {"reduction": "sum"}, TypeError, "takes no reduction; options are form, axis"),
    ((), {"sample_weight": S}, TypeError, "weights come with the rows, in update"),
    (("entropy",), {"ignore_index": 3}, TypeError, "an Accumulator of entropy takes no ignore_index"),
    ((), {"nonfinite": "drop"}, ValueError, "choose one of 'apart', 'keep', 'raise'"),
    ((), {"label_smoothing": 2}, ValueError, "label_smoothing=2.0 is out of range"),
    ((), {"form": "probs", "temperature": 2.0}, ValueError, "transforms logits"),
    ((), {"class_weight": [1.0, -1.0, 1.0]}, ValueError, "class_weight"),
    ((), {"axis": 0.5}, TypeError, "axis is a float"),
    ((), {"validate": 1}, TypeError, "validate"),
    (("kl_divergence",), {"per_class": True}, ValueError, "per_class=True needs labels"),
    (("js_divergence",), {"weight": 1.0}, ValueError, "weight=1.0 is out of range"),
]  # fmt: skip


@pytest.mark.parametrize(("args", "options", "error", "says"), BAD_OPTIONS)
def test_bad_options_are_refused_at_once(args: Any, options: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        ek.Accumulator(*args, **options)


@pytest.mark.parametrize(
    "options", [{"quantity": "entropy"}, {"class_weight": W}, {"nonfinite": "keep"}, {"per_class": True}, {"base": 2}]
)
def test_unlike_accumulators_do_not_merge(options: dict[str, Any]) -> None:
    total = ek.Accumulator()
    with pytest.raises(ValueError, match=f"(?s){next(iter(options))}=.* do not merge"):
        total.merge(ek.Accumulator(**options))
    assert ek.Accumulator(label_smoothing=0.0).merge(total).compute().rows == 0
    with pytest.raises(TypeError, match="a float does not merge"):
        total.merge(1.0)
    with pytest.raises(TypeError):
        total + 1


def test_lazy_arrays_and_needless_targets_are_refused() -> None:
    dask_array = pytest.importorskip("dask.array")
    with pytest.raises(TypeError, match="x is a Dask array, which is lazy"):
        ek.Accumulator().update(dask_array.from_array(X), Y % K)
    with pytest.raises(ValueError, match="entropy takes one array"):
        ek.Accumulator("entropy").update(P, Q)
    with pytest.raises(ValueError, match=r"fraction=1\.5"):
        ek.Accumulator().quantile(1.5)


@pytest.mark.gpu
@pytest.mark.skipif(bool(device.absent()), reason=device.absent() or "-")
def test_a_label_out_of_range_on_a_gpu_is_found() -> None:
    total = ek.Accumulator(class_weight=W, per_class=True)
    with pytest.raises(IndexError, match="label 9 of row 4 is out of range for k = 7"):
        total.update(device.to_device(X), device.to_device(np.where(np.arange(N) == 4, 9, 0)))
    assert total.compute().rows == 0


# Quantiles


def merged(parts: list[np.ndarray], kept: int) -> Quantiles:
    quantiles = Quantiles(kept)
    for part in parts:
        quantiles.merge(Quantiles.of(part))
    return quantiles


FRACTIONS_ASKED = [0, 0.004, 0.006, 0.01, 0.25, 0.5, 0.9, 0.999, 1]


def test_quantiles_that_do_not_fit_are_close() -> None:
    rng = np.random.default_rng(3)
    values = np.concatenate([rng.exponential(size=120_000), -rng.exponential(size=700), np.zeros(300)])
    values = np.concatenate([values, [1e-30, 1e300, -1e300]])
    rng.shuffle(values)
    for kept, dtype in ((values.size, np.float64), (1000, np.float64), (1000, np.float32)):
        with np.errstate(over="ignore"):
            given = np.clip(values.astype(dtype), -1e300, 1e300) if dtype == np.float64 else values.clip(-9, 9)
        quantiles = merged(np.array_split(given.astype(dtype), 7), kept)
        exact = np.quantile(given.astype(dtype), FRACTIONS_ASKED, method="inverted_cdf")
        assert quantiles.exact == (kept == values.size)
        np.testing.assert_allclose(quantiles.at(FRACTIONS_ASKED), exact, rtol=0 if quantiles.exact else 2**-10, atol=0)
        with_infinite = np.concatenate([given.astype(dtype), np.full(900, -np.inf), np.full(200, np.inf)])
        exact = np.quantile(with_infinite, FRACTIONS_ASKED, method="inverted_cdf")
        np.testing.assert_allclose(quantiles.at(FRACTIONS_ASKED, below=900, above=200), exact, rtol=2**-10)


def test_small_parts_are_kept_exactly() -> None:
    values = RNG.normal(size=2000).astype(np.float32)
    quantiles = merged([values[i : i + 1] for i in range(values.size)], values.size)
    assert quantiles.exact
    assert len(quantiles._parts) < 20
    assert quantiles.at(FRACTIONS_ASKED) == np.quantile(values, FRACTIONS_ASKED, method="inverted_cdf").tolist()


@given(st.permutations(range(6)), st.integers(1, 5), st.integers(0, 700))
def test_bins_do_not_depend_on_the_order(order: list[int], first: int, kept: int) -> None:
    parts = np.array_split(np.random.default_rng(1).normal(size=600), 6)
    a = merged([parts[i] for i in order[:first]], kept)
    a.merge(merged([parts[i] for i in order[first:]], kept))
    b = merged(parts, kept)
    assert a.exact == b.exact == (kept >= 600)
    if not a.exact:
        np.testing.assert_array_equal(a._bins, b._bins)
    fractions = np.linspace(0, 1, 101).tolist()
    assert a.at(fractions) == b.at(fractions) == pickle.loads(pickle.dumps(a)).at(fractions)


def test_a_long_stream_stays_small() -> None:
    total, rng = Tally(), np.random.default_rng(0)
    for _ in range(40):
        total.merge(Tally.of(Rows(rng.exponential(size=250_000).astype(np.float32))))
    assert total.rows == total.quantiles.n == 10_000_000
    stored = pickle.dumps(total)
    assert len(stored) < 1 << 20
    assert len(pickle.dumps(merged([np.zeros(_quantiles.KEPT)], _quantiles.KEPT))) < 1 << 20
    again = pickle.loads(stored)
    assert again.quantiles_at([0.5], keep=False) == total.quantiles_at([0.5], keep=False)
    assert again.quantiles_at([0.5], keep=False)[0] == pytest.approx(math.log(2), rel=2e-3)


# The command line's summary is a tally too


def test_a_summary_resumes_and_agrees(monkeypatch: pytest.MonkeyPatch) -> None:
    x = X.astype(np.float32)
    record = ek.score(x, Y, outputs=("loss", "argmax", "rank"), ignore_index=-100, class_weight=W)
    columns = {name: getattr(record, name) for name in ("loss", "argmax", "rank")}
    whole, resumed = Summary("loss", (N,), 3), Summary("loss", (N,), 3)
    counts, weight = Y != -100, W[np.where(Y < 0, 0, Y)]
    whole.add(0, columns, counts, Y, weight)
    for at in (slice(0, 31), slice(31, N)):
        block = {name: column[at] for name, column in columns.items()}
        resumed.add(at.start, block, counts[at], Y[at], weight[at])
        resumed = pickle.loads(pickle.dumps(resumed))
    facts = resumed.facts(None, True)
    assert facts["mean"] == pytest.approx(whole.facts(None, True)["mean"], rel=1e-15)
    assert facts["hardest"] == whole.facts(None, True)["hardest"]
    found = ek.Accumulator(ignore_index=-100, class_weight=W).update(x[:31], Y[:31]).update(x[31:], Y[31:]).compute()
    assert (facts["mean"], facts["perplexity"], facts["accuracy"]) == (found.mean, found.perplexity, found.accuracy)
    assert (facts["rows"], facts["ignored"]) == (found.rows, found.ignored)
    assert [facts["quantiles"][name] for name in ("min", "median", "max")] == [
        found.min, found.quantiles[0.5], found.max,
    ]  # fmt: skip
