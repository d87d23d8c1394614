"""Statistics of slices of classes, merged: within the contract for any split, in any order and grouping."""

from __future__ import annotations

import multiprocessing
import pickle
from functools import reduce
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

import device
import entrokern as ek
from cases import FLOATS, KINDS, NAMED, Case, drawn, operands
from contract import check, input_dtype
from oracle import LONG, evaluate

Array = np.ndarray
FUNCTIONS = ("cross_entropy", "entropy", "kl_divergence", "score")
CASES = [case for case in NAMED if case.function in FUNCTIONS]


def cuts_of(k: int, rng: np.random.Generator) -> list[tuple[int, int]]:
    """Slices that make up k classes: one, single classes, or a few of any width."""
    how = rng.integers(4)
    inner = (
        [] if how == 0 else range(1, k) if how == 1 and k <= 40 else np.unique(rng.integers(1, max(k, 2), size=how + 1))
    )
    ends = [0, *(int(c) for c in inner if c < k), k]
    return list(pairwise(ends))


def combined(parts: list[ek.Partial], rng: np.random.Generator) -> ek.Partial:
    """All of them, in a random order: at once, one after the other, or in random pairs."""
    parts = [parts[i] for i in rng.permutation(len(parts))]
    how = rng.integers(3)
    if how == 0:
        return ek.combine(*parts)
    if how == 1:
        return reduce(ek.combine, parts)
    while len(parts) > 1:
        i = rng.integers(len(parts) - 1)
        parts[i : i + 2] = [ek.combine(parts[i + 1], parts[i])]
    return parts[0]


def by_slices(case: Case, args: list[Array], given: dict[str, Any], backend: str, seed: int) -> dict[str, Array]:
    """The results of a call by name, from slices of its operands."""
    rng = np.random.default_rng(seed)
    move, back = (device.to_device, device.to_host) if backend == "cuda" else (lambda a: a, lambda a: a)
    options = dict(given)
    reduction = options.pop("reduction", "mean" if case.function == "cross_entropy" else "none")
    wants_grad, _ = bool(options.pop("return_grad", False)), options.pop("return_hess", False)
    weight = options.pop("class_weight", None)
    x, k = args[0], args[0].shape[-1]
    labels = args[1] if len(args) > 1 and args[1].shape != x.shape else None
    if "outputs" in options:
        options["outputs"] = tuple(o for o in options["outputs"] if o not in ("grad", "hess"))
        wants_grad = "grad" in given["outputs"]
    if "rank" in options.get("outputs", ()):
        kept = np.where(labels == options.get("ignore_index"), 0, labels)
        options["target_logit"] = move(np.take_along_axis(x, kept[:, None], axis=-1)[:, 0])
    if options.get("sample_weight") is not None:
        options["sample_weight"] = move(options["sample_weight"])
    parts, slices = [], []
    for start, stop in cuts_of(k, rng):
        operands = [move(np.ascontiguousarray(a[:, start:stop])) if a.shape == x.shape else move(a) for a in args]
        of_slice = {} if weight is None else {"class_weight": move(weight[start:stop])}
        slices.append((operands, {"class_start": start} | of_slice))
        parts.append(ek.partial(*operands, quantity=case.function, precise=wants_grad, **options, **slices[-1][1]))
    whole = pickle.loads(pickle.dumps(combined(parts, rng))) if backend != "cuda" else combined(parts, rng)
    if case.function == "score":
        record = whole.finish(k)
        results = {name: back(getattr(record, name)) for name in whole.setting.outputs}
    else:
        results = {"loss": back(whole.finish(k, reduction=reduction))}
    if wants_grad and case.function != "kl_divergence":
        scale = 1.0
        if reduction == "mean" and case.function != "score":
            denominator = denominator_of(labels, weight, given, len(x))
            scale = 1.0 / denominator if denominator else 0.0
        grads = [back(whole.gradient(*operands, **how, scale=scale)) for operands, how in slices]
        results["grad"] = np.concatenate(grads, axis=-1)
    return results


def denominator_of(labels: Array | None, weight: Array | None, options: dict[str, Any], n: int) -> float:
    s = np.ones(n) if options.get("sample_weight") is None else options["sample_weight"].copy()
    if labels is not None:
        s[labels == options.get("ignore_index")] = 0.0
        if weight is not None:
            s *= weight[np.where(labels == options.get("ignore_index"), 0, labels)]
    return float(s.sum())


def compare(case: Case, n: int, k: int, dtype: str, kind: str, backend: str, seed: int = 0) -> dict[str, float]:
    args, options = operands(case, n, k, dtype, kind, seed=seed)
    got = by_slices(case, args, options, backend, seed)
    want = evaluate(LONG, case.function, args, options)
    where = f"{case} n={n} k={k} {dtype} {kind} seed={seed}"
    if case.function == "kl_divergence":
        loosen(want, args, options)
    if "grad" in got:
        # log Z of many slices is known to its own rounding, and p = e^(z - m - log Z) to twice the bound.
        want["grad"] = want["grad"]._replace(scale=2 * want["grad"].scale)
    return check(got, want, input_dtype(case, args), where=where)


def loosen(want: Any, args: list[Array], options: dict[str, Any]) -> None:
    """KL from one read: ``8·eps·Σ p·(|a - m_a| + |b - m_b|)``, which `check` sees as four times something."""
    with np.errstate(all="ignore"):
        sizes = []
        for x, form in zip(args, (options["p_form"], options["q_form"]), strict=True):
            x = x.astype(np.longdouble)
            z = np.log(x) if form == "probs" else x
            z = z / options.get("temperature", 1.0) if form == "logits" else z
            sizes.append(z)
        p = np.exp(sizes[0] - (sizes[0].max(axis=-1, keepdims=True) if options["p_form"] == "logits" else 0))
        p = p / p.sum(axis=-1, keepdims=True) if options["p_form"] == "logits" else p
        far = [np.abs(z - z.max(axis=-1, keepdims=True)) if f == "logits" else np.abs(z)
               for z, f in zip(sizes, (options["p_form"], options["q_form"]), strict=True)]  # fmt: skip
        moved = np.where(p == 0, 0, p * (far[0] + far[1])).sum(axis=-1)
        unit = 1 / np.log(options["base"]) if options.get("base") else 1.0
        s = np.ones(len(p)) if options.get("sample_weight") is None else options["sample_weight"]
        extra = 2 * unit * s * moved
        if options.get("reduction", "none") != "none":
            extra = extra.sum() / (s.sum() if options["reduction"] == "mean" else 1.0)
        want["loss"] = want["loss"]._replace(scale=want["loss"].scale + extra)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_contract(case: Case, dtype: str, backend: str, record_error: Any) -> None:
    for i, (n, k) in enumerate([(3, 1), (9, 2), (8, 10), (5, 37), (2, 1000)]):
        for turn in range(2):
            kind = KINDS[(2 * i + turn + list(FLOATS).index(dtype) + CASES.index(case)) % len(KINDS)]
            for output, error in compare(case, n, k, dtype, kind, backend, seed=i + 10 * turn).items():
                record_error(f"partial {case.function}: {output}", backend, dtype, error)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_random_options(function: str, host_backend: str) -> None:
    for i, case in enumerate(drawn(function, 60)):
        compare(case, 7, (1, 5, 23, 64)[i % 4], list(FLOATS)[i % 4], KINDS[i % len(KINDS)], host_backend, seed=i)


def test_many_merges_in_a_row() -> None:
    """A class at a time, a thousand times over: additions lose no more than one, in float64 too."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(16, 1000)) * 10.0 ** rng.uniform(-2, 2, size=(16, 1))
    x[8:] = np.sort(x[8:], axis=1)
    y = rng.integers(0, 1000, 16)
    for quantity, options in (("cross_entropy", {"label_smoothing": 0.1}), ("score", {"outputs": ("lse", "entropy")})):
        target = y if quantity == "cross_entropy" else None
        parts = [ek.partial(x[:, c : c + 1], target, class_start=c, quantity=quantity, **options) for c in range(1000)]
        result = reduce(ek.combine, parts).finish(1000)
        got = {"loss": result} if target is not None else {"lse": result.lse, "entropy": result.entropy}
        args = [x] if target is None else [x, y]
        check(got, evaluate(LONG, quantity, args, options | {"reduction": "none"}), x.dtype, where=quantity)


INF, NAN = np.inf, np.nan
ODD = np.array(
    [
        [-INF, -INF, -INF, -INF], [-INF, -INF, 1.0, 2.0], [1.0, -INF, -INF, -INF], [INF, 1.0, 2.0, -INF],
        [1.0, 2.0, INF, 3.0], [INF, 1.0, INF, -INF], [NAN, 1.0, 2.0, 3.0], [1.0, 2.0, 3.0, NAN], [-INF, -INF, NAN, INF],
        [1e8, 1e8 + 40, -1e8, 0.0], [-1e300, 1e300, 0.0, 1e300], [3.0, 3.0, 3.0, 3.0],
    ]
)  # fmt: skip


@pytest.mark.parametrize("ends", [(0, 4), (0, 2, 4), (0, 1, 2, 3, 4), (0, 3, 4)])
def test_odd_rows(ends: tuple[int, ...], host_backend: str) -> None:
    """Rows with infinities and NaN, split anywhere, are what the whole-row functions say, label by label."""
    outputs = ("loss", "lse", "log_prob", "entropy", "argmax", "max_prob")
    q = np.array([[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5], [0, 1, 0, 0], [0.25, 0.25, 0.25, 0.25]])
    for y in range(4):
        labels, dense = np.full(len(ODD), y), np.broadcast_to(q[y], ODD.shape)
        with np.errstate(all="ignore"):
            options: list[dict[str, Any]] = [{}, {"label_smoothing": 0.5, "z_loss": 0.1}, {"class_weight": q[y]}]
            for o in options:
                for target in (labels, dense):
                    names = outputs if target is labels else ("loss", "entropy")
                    whole = ek.score(ODD, target, outputs=names, **o)
                    merged = merge(ODD, target, ends, quantity="score", outputs=names, **o)
                    record = merged.finish(4)
                    for name in names:
                        np.testing.assert_allclose(
                            getattr(record, name), getattr(whole, name), rtol=1e-13, err_msg=f"{name} {y} {o}"
                        )


@pytest.mark.parametrize("backend", ["cpu", "cuda"])
def test_means_where_every_row_counts(backend: str) -> None:
    x = np.random.default_rng(4).normal(size=(5, 6))
    move = device.to_device if backend == "cuda" else np.asarray
    parts = [ek.partial(move(x[:, c : c + 3].copy()), quantity="entropy", form="logits") for c in (0, 3)]
    got = ek.combine(*parts).finish(6, reduction="mean")
    assert got.shape == ()
    want = ek.entropy(x, form="logits", reduction="mean")
    np.testing.assert_allclose(device.to_host(got) if backend == "cuda" else got, want, rtol=1e-14)


def merge(x: Array, target: Array | None, ends: tuple[int, ...], **options: Any) -> ek.Partial:
    """All slices of the last axis, combined."""
    k, weight = x.shape[-1], options.pop("class_weight", None)
    parts = []
    for start, stop in pairwise(ends):
        of_slice = {} if weight is None else {"class_weight": weight[start:stop]}
        dense = target is not None and target.shape == x.shape
        y = target[..., start:stop] if dense else target
        parts.append(ek.partial(x[..., start:stop], y, class_start=start, **of_slice, **options))
    assert ends[-1] == k
    return ek.combine(*parts)


@pytest.mark.parametrize("ends", [(0, 2, 4), (0, 1, 2, 3, 4)])
def test_odd_divergences(ends: tuple[int, ...]) -> None:
    p, q = ODD[[1, 2, 1, 11, 0, 11, 6, 11]], ODD[[1, 2, 11, 1, 11, 0, 11, 6]]
    logits = {"p_form": "logits", "q_form": "logits"}
    got = merge(p, q, ends, quantity="kl_divergence", **logits).finish()
    np.testing.assert_allclose(got, ek.kl_divergence(p, q, **logits), rtol=1e-12, atol=1e-15)
    same = merge(p, p.copy(), ends, quantity="kl_divergence", **logits).finish()[[0, 1, 3]]
    np.testing.assert_array_equal(same, 0.0)


@pytest.mark.parametrize("shape", [(6,), (3, 4, 6), (0, 6)])
def test_any_batch_and_axis(shape: tuple[int, ...], host_backend: str) -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=shape).astype(np.float32)
    y = rng.integers(0, 6, shape[:-1])
    for axis in range(x.ndim):
        z = np.moveaxis(x, -1, axis)
        slices = [np.moveaxis(x[..., a:b], -1, axis) for a, b in ((0, 4), (4, 6))]
        whole = ek.combine(*(ek.partial(s, y, class_start=c, axis=axis) for s, c in zip(slices, (0, 4), strict=True)))
        want, grad = ek.cross_entropy(z, y, axis=axis, reduction="none", return_grad=True)
        got = whole.finish(6)
        assert got.dtype == want.dtype and got.shape == want.shape
        np.testing.assert_allclose(got, want, rtol=1e-6)
        np.testing.assert_allclose(whole.finish(reduction="mean"), ek.cross_entropy(z, y, axis=axis), rtol=1e-6)
        out = slices[1].copy()
        of_slice = whole.gradient(slices[0], y, class_start=0, axis=axis)
        whole.gradient(out, y, class_start=4, axis=axis, out=out)  # in place
        np.testing.assert_allclose(np.concatenate([of_slice, out], axis=axis), grad, rtol=1e-5, atol=1e-7)


def test_labels_of_any_integer_type() -> None:
    x = np.random.default_rng(2).normal(size=(4, 300))
    for dtype in (np.int8, np.uint8, np.int64, np.uint64):
        y = np.array([0, 3, 100, 127], dtype)
        got = merge(x, y, (0, 100, 280, 300)).finish(300)
        np.testing.assert_allclose(got, ek.cross_entropy(x, y, reduction="none"), rtol=1e-14)


X = np.arange(12.0).reshape(3, 4)
Y = np.array([0, 1, 3])
ERRORS = [
    (lambda: ek.partial(X, Y, quantity="js_divergence"), ValueError, "needs both softmaxes"),
    (lambda: ek.partial(X, Y, quantity="bce"), ValueError, "choose one of"),
    (lambda: ek.partial(X, Y, class_start=-1), ValueError, "class_start=-1"),
    (lambda: ek.partial(X, Y, class_start=1.5), TypeError, "class_start is a float"),
    (lambda: ek.partial(X, quantity="cross_entropy"), ValueError, "needs a target"),
    (lambda: ek.partial(X, quantity="kl_divergence"), ValueError, "slice of Q"),
    (lambda: ek.partial(X, Y, quantity="entropy"), ValueError, "takes no target"),
    (lambda: ek.partial(X, quantity="entropy", label_smoothing=0.1), ValueError, "label_smoothing does not apply"),
    (lambda: ek.partial(X, Y, outputs="loss"), ValueError, "quantity='score'"),
    (lambda: ek.partial(X, Y, quantity="score", outputs="rank"), ValueError, "target_logit"),
    (lambda: ek.partial(X, Y, target_logit=Y), ValueError, "target_logit is for"),
    (lambda: ek.partial(X, Y, quantity="score", outputs="rank", target_logit=[1.0]), ValueError, "one logit per row"),
    (lambda: ek.partial(X, Y, quantity="score", outputs="grad"), ValueError, "Partial.gradient"),
    (lambda: ek.partial(X, Y[:2]), ValueError, "does not fit"),
    (lambda: ek.combine(ek.partial(X), X), TypeError, "takes Partials"),
    (lambda: ek.combine(ek.partial(X), ek.partial(X[:2])), ValueError, "batch shapes"),
    (lambda: ek.combine(ek.partial(X), ek.partial(X, Y)), ValueError, "different quantity"),
    (lambda: ek.combine(ek.partial(X), ek.partial(X, temperature=2.0)), ValueError, "different temperature"),
    (lambda: ek.combine(ek.partial(X, Y), ek.partial(X, Y, class_weight=[1] * 4)), ValueError, "different class_w"),
    (lambda: ek.partial(X, Y).finish(k=8), ValueError, "hold 4 classes, not k=8: some are missing"),
    (lambda: ek.partial(X, Y).finish(k=3), ValueError, "some overlap"),
    (lambda: ek.partial(X[:, :2], Y).finish(), IndexError, "none of the slices combined held the label of row 2"),
    (lambda: ek.combine(ek.partial(X, Y), ek.partial(X, Y)).finish(), ValueError, "label of row 0: they overlap"),
    (lambda: ek.partial(X, [-1, 9, 0]).finish(), IndexError, "row 0"),
    (lambda: ek.partial(X).finish(reduction="mean"), ValueError, "of rows"),
    (lambda: ek.partial(X, Y).finish(reduction="avg"), ValueError, "choose one of"),
    (lambda: ek.partial(X, Y, sample_weight=[0] * 3).finish(reduction="mean", on_empty="raise"), ValueError, "no row"),
    (lambda: ek.partial(X).gradient(X), ValueError, "without a target"),
    (lambda: ek.partial(X, Y).gradient(X), ValueError, "the slices had target 'labels'"),
    (lambda: ek.partial(X, Y).gradient(X[:2], Y[:2]), ValueError, "rows of shape"),
    (lambda: ek.partial(X, X, quantity="kl_divergence").gradient(X, X), ValueError, "no gradient by slices"),
    (lambda: ek.partial(X, Y).gradient(X, Y, class_start=-1), ValueError, "classes -1 to 2 are not among the 4"),
    (lambda: ek.partial(X, Y).gradient(X, Y, class_start=1), ValueError, "classes 1 to 4 are not among the 4"),
    (lambda: ek.partial(X, Y).gradient(X, Y, class_weight=[1] * 4), ValueError, "not given to the slices"),
    (lambda: ek.partial(X, Y, class_weight=[1] * 4).gradient(X, Y), ValueError, "pass those of the slice"),
    (lambda: ek.partial(X, Y).gradient(X, Y, scale="a"), TypeError, "scale is a str"),
    (lambda: ek.partial(X, X, quantity="kl_divergence", form="logits"), ValueError, "form does not apply"),
    (lambda: ek.partial(X, quantity="entropy", p_form="logits"), ValueError, "p_form does not apply"),
    (lambda: ek.partial(X, Y, class_start=2**70), ValueError, "no row has so many"),
    (lambda: ek.combine(ek.partial(X, Y, ignore_index=1), ek.partial(X, Y)), ValueError, "different ignore_index"),
    (lambda: ek.combine(*(ek.partial(X, Y, sample_weight=w) for w in ([1, 1, 1], [1, 2, 1]))), ValueError,
     "different sample_weight"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "error", "text"), ERRORS, ids=lambda v: v if isinstance(v, str) else "")
def test_errors(call: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        call()


def test_a_gradient_overlaps_nothing_but_its_slice() -> None:
    x = np.zeros((3, 8))
    whole = ek.partial(x[:, :4], Y)
    with pytest.raises(ValueError, match="may be exactly x"):
        whole.gradient(x[:, :4], Y, out=x[:, 1:5])


# --- tensor-parallel cross-entropy: each process holds a slice of the classes ------------------------


def worker(rank: int, size: int, x: Array, y: Array, pipe: Any, results: Any) -> None:
    """What a process does that has one slice of the logits: an all-reduce of a Partial, then its gradient."""
    width = x.shape[-1] // size
    own = x[:, rank * width : (rank + 1) * width]
    start = rank * width
    mine = ek.partial(own, y, class_start=start)
    pipe.send(mine)  # a few numbers a row; the logits stay where they are
    both = (mine, pipe.recv())
    whole = ek.combine(*both)
    loss = whole.finish(k=x.shape[-1], reduction="mean")
    results.put((rank, float(loss), whole.gradient(own, y, class_start=start, scale=1 / len(y))))


def test_two_processes_share_a_row() -> None:
    """Losses and gradients of logits that no process has whole."""
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(50, 64)).astype(np.float32), rng.integers(0, 64, 50)
    context = multiprocessing.get_context("spawn")
    ends, results = context.Pipe(), context.Queue()
    processes = [context.Process(target=worker, args=(r, 2, x, y, ends[r], results)) for r in range(2)]
    for process in processes:
        process.start()
    found = sorted((results.get(timeout=120) for _ in processes), key=lambda result: result[0])
    for process in processes:
        process.join(timeout=60)
        assert process.exitcode == 0
    loss, grad = ek.cross_entropy(x, y, return_grad=True)
    assert found[0][1] == found[1][1] == pytest.approx(float(loss), rel=1e-6)
    np.testing.assert_allclose(np.concatenate([g for _, _, g in found], axis=1), grad, rtol=1e-5, atol=1e-9)
