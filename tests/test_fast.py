"""The fast kernels of whole distributions: every edge of theirs.

Their vectors hold 8 or 16 numbers, their blocks 1024 and their segments 2**16; up to 64 classes a row is
a lane. What they do not serve, and rows with anything unusual in them, the careful kernels do.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import entrokern as ek
from cases import FLOATS, KINDS, Case, call, operands
from contract import check, input_dtype
from oracle import LONG, MP, evaluate
from test_corners import CORNERS, call_among
from test_layouts import LAYOUTS

LOGITS = {"p_form": "logits", "q_form": "logits"}
LOGS = {"p_form": "log_probs", "q_form": "log_probs"}
CASES = [
    Case("kl", "kl_divergence", ("probs", "other probs")),
    Case("kl weights", "kl_divergence", ("probs", "other probs"), {"base": 2}, {"sample_weight": "row weights"}),
    Case("kl logits", "kl_divergence", ("logits", "other logits"), LOGITS),
    Case("kl logits T", "kl_divergence", ("logits", "other logits"), LOGITS | {"temperature": 2.5},
         {"sample_weight": "row weights"}),
    Case("kl logits grad", "kl_divergence", ("logits", "other logits"), LOGITS | {"return_grad": "both"}),
    Case("kl logits grad q", "kl_divergence", ("logits", "other logits"),
         LOGITS | {"temperature": 2.5, "return_grad": "q"}, {"sample_weight": "row weights"}),
    Case("kl logits grad p", "kl_divergence", ("logits", "other logits"), LOGITS | {"return_grad": "p"}),
    Case("js", "js_divergence", ("probs", "other probs")),
    Case("js logits", "js_divergence", ("logits", "other logits"), LOGITS),
    Case("js logits weight", "js_divergence", ("logits", "other logits"), LOGITS | {"weight": 0.2, "temperature": 0.5},
         {"sample_weight": "row weights"}),
    Case("js weight", "js_divergence", ("probs", "other probs"), {"weight": 0.2}, {"sample_weight": "row weights"}),
    Case("entropy", "entropy", ("probs",)),
    Case("entropy mean", "entropy", ("probs",), {"reduction": "mean", "base": 2}, {"sample_weight": "row weights"}),
    Case("kl grad", "kl_divergence", ("probs", "other probs"), {"return_grad": "both"},
         {"sample_weight": "row weights"}),
    Case("js grad", "js_divergence", ("probs", "other probs"), {"return_grad": "both"}),
    Case("js weight grad", "js_divergence", ("probs", "other probs"), {"weight": 0.2, "return_grad": "q", "base": 2}),
    Case("entropy grad", "entropy", ("probs",), {"return_grad": True}, {"sample_weight": "row weights"}),
    Case("kl logs", "kl_divergence", ("log_probs", "other log_probs"), LOGS),
    Case("kl to logs", "kl_divergence", ("probs", "other log_probs"), {"q_form": "log_probs"}),
    Case("kl of logs", "kl_divergence", ("log_probs", "other probs"), {"p_form": "log_probs"}),
    Case("kl logs grad", "kl_divergence", ("log_probs", "other log_probs"), LOGS | {"return_grad": "both"}),
    Case("kl logs grad q", "kl_divergence", ("log_probs", "other log_probs"), LOGS | {"return_grad": "q", "base": 2},
         {"sample_weight": "row weights"}),
    Case("kl to logs grad", "kl_divergence", ("probs", "other log_probs"),
         {"q_form": "log_probs", "return_grad": "both"}, {"sample_weight": "row weights"}),
    Case("kl of logs grad", "kl_divergence", ("log_probs", "other probs"),
         {"p_form": "log_probs", "return_grad": "both"}),
    Case("entropy logs", "entropy", ("log_probs",), {"form": "log_probs"}),
    Case("entropy logs grad", "entropy", ("log_probs",), {"form": "log_probs", "return_grad": True},
         {"sample_weight": "row weights"}),
    Case("dense", "cross_entropy", ("logits", "dense"), {"reduction": "none"}),
    Case("one-hot", "cross_entropy", ("logits", "one hot"), {"reduction": "none"}),
    Case("dense T", "cross_entropy", ("logits", "dense"), {"reduction": "none", "temperature": 0.5},
         {"sample_weight": "row weights"}),
    Case("dense grad", "cross_entropy", ("logits", "dense"), {"reduction": "none", "return_grad": True}),
    Case("one-hot grad", "cross_entropy", ("logits", "one hot"),
         {"reduction": "none", "return_grad": True, "temperature": 2}, {"sample_weight": "row weights"}),
]  # fmt: skip
BY_NAME = {case.name: case for case in CASES}
EDGES = (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 80, 96, 100, 127, 128, 129, 1000, 1023, 1024,
         1025, 1040, 2048, 2049)  # fmt: skip


def judged(case: Case, n: int, k: int, dtype: str, kind: str, field: object = LONG, seed: int = 0) -> float:
    """The worst error in units of the bound. Near operands in float64 are too much for the long double oracle."""
    args, options = operands(case, n, k, dtype, kind, seed)
    got, where = call(case.function, args, options), f"{case.name} n={n} k={k} {dtype} {kind}"
    want = evaluate(field, case.function, args, options)
    try:
        worst = check(got, want, input_dtype(case, args), where=where)
    except AssertionError:
        if field is MP or n * k > 10_000:
            raise
        worst = check(got, evaluate(MP, case.function, args, options), input_dtype(case, args), where=where)
    return max(worst.values())


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_contract(case: Case, dtype: str, record_error) -> None:
    for i, kind in enumerate(KINDS):
        for n, k in ((5, 1 + i), (3, 20 + i), (2, 66 + i)):
            record_error(f"{case.function}: loss", "cpu", dtype, judged(case, n, k, dtype, kind, MP, seed=3))


REPEATED = {"kl weights", "kl logits T", "kl logits grad q", "kl logits grad p", "js weight", "js logits weight",
            "js weight grad", "entropy mean", "dense T", "one-hot grad", "kl logs grad q", "kl to logs grad",
            "kl of logs grad", "entropy logs grad"}  # fmt: skip


def edges() -> list[Any]:
    """All cases and dtypes; in the default run those that repeat a kernel with other options in float32 only, and
    none of JS in float64, of which only mpmath knows enough, taking its time."""
    found = []
    for case in CASES:
        for dtype in FLOATS:
            deep = case.name in REPEATED if dtype != "float32" else False
            deep |= case.name.startswith("js") and dtype == "float64"
            marks = [pytest.mark.slow] if deep else []
            found.append(pytest.param(case, dtype, marks=marks, id=f"{case.name}-{dtype}"))
    return found


@pytest.mark.parametrize(("case", "dtype"), edges())
def test_edges(case: Case, dtype: str, record_error) -> None:
    for i, k in enumerate(EDGES):
        # Long rows are taken one by one; and their bounds are sums of k² terms.
        for n in {1 + i % 7, 16 + i % 3, 70 - i if k < 100 else 1} if k < 1000 else {1, 2}:
            error = judged(case, n, k, dtype, KINDS[i % len(KINDS)])
            record_error(f"{case.function}: loss", "cpu", dtype, error)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("case", [c for c in CASES if "one hot" not in c.operands], ids=lambda case: case.name)
def test_long_rows(case: Case, dtype: str) -> None:
    for i, k in enumerate((2**16 - 1, 2**16 + 1, 300_000)):
        for kind in ("normal", KINDS[(i + 3) % len(KINDS)]):
            judged(case, 1 + i % 2, k, dtype, kind)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(
    "name",
    [
        "kl grad",
        "kl logits grad q",
        "js",
        "js logits",
        "entropy",
        "one-hot grad",
        "dense T",
        "kl to logs grad",
        "kl logs grad",
        "entropy logs grad",
    ],
)
def test_layouts(name: str, dtype: str, layout: str) -> None:
    case, place = BY_NAME[name], LAYOUTS[layout]
    for n, k in ((5, 3), (66, 10), (37, 70), (3, 300)):
        args, options = operands(case, n, k, dtype)
        want = evaluate(LONG, case.function, args, options)
        for which in range(1, 2 ** len(args)):
            placed = [place(a) if which >> i & 1 else a for i, a in enumerate(args)]
            check(call(case.function, placed, options), want, input_dtype(case, args), where=f"{which}, {n}x{k}")


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize(
    "name", ["kl", "kl logits grad", "js", "js logits", "entropy", "dense grad", "one-hot", "kl logs grad"]
)
def test_class_axis(name: str, axis: int) -> None:
    """Adjacent rows (NCHW is axis 1), also over the end of a batch axis, and one reference for all rows."""
    case = BY_NAME[name]
    for k in (3, 21, 100):
        args, options = operands(case, 2 * 3 * 19, k, "float32")
        for reference in (False, True):
            if reference and len(args) > 1 and case.function != "cross_entropy":
                args[1] = np.broadcast_to(args[1][:1], args[1].shape)
            want = evaluate(LONG, case.function, args, options)
            placed = [np.moveaxis(a.reshape(2, 3, 19, k), -1, axis) for a in args]
            contiguous = [np.ascontiguousarray(a) for a in placed]
            for given in (placed, contiguous, [contiguous[0], *placed[1:]]):
                got = call(case.function, given, options | {"axis": axis})
                for output in got:
                    rows = got[output] if output == "loss" else np.moveaxis(got[output], axis, -1)
                    got[output] = rows.reshape(want[output].value.shape)
                check(got, want, np.dtype(np.float32), where=f"k={k}")


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("case", [c for c in CASES if "mean" not in c.name], ids=lambda case: case.name)
def test_same_bits(case: Case, dtype: str) -> None:
    """A row alone, in any place, among rows that need the careful kernel."""
    for k in (3, 17, 64, 65, 130):
        args, options = operands(case, 40, k, dtype, "normal")
        options = {o: v for o, v in options.items() if o != "sample_weight"}
        whole = call(case.function, args, options)["loss"]
        for i in (0, 7, 39):
            alone = call(case.function, [a[i : i + 1] for a in args], options)["loss"]
            assert alone[0] == whole[i]
        args[0] = args[0].copy()
        args[0][::5] = np.nan
        among = call(case.function, args, options)["loss"]
        assert np.isnan(among[::5]).all()
        np.testing.assert_array_equal(np.delete(among, np.s_[::5]), np.delete(whole, np.s_[::5]))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("case", [c for c in CASES if "return_grad" in c.options], ids=lambda case: case.name)
def test_gradients_in_place(case: Case, dtype: str) -> None:
    """Written over the operands, also where rows are left to the careful kernel, which must find them as they were;
    and the same bits for a row alone."""
    for k in (3, 17, 64, 130, 300):
        args, options = operands(case, 40, k, dtype, "normal")
        args = [a.copy() for a in args]
        args[0][3, -1], args[0][7, 0], args[-1][20, k // 2] = np.nan, np.inf, -1.0
        options = {o: v for o, v in options.items() if o not in ("sample_weight", "reduction")}
        weights = np.where(np.arange(40) % 13 == 12, 0.0, 1.5)
        args[0][12, 0] = np.nan
        where = {True: args[0], "p": args[0], "q": args[-1], "both": tuple(args)}[options["return_grad"]]
        apart = call(case.function, [a.copy() for a in args], options | {"sample_weight": weights, "reduction": "none"})
        alone = call(case.function, [a[5:6].copy() for a in args], options | {"reduction": "sum"})
        function = getattr(ek, case.function)
        function(*args, **options, sample_weight=weights, reduction="none", grad_out=where)
        names = [name for name in ("grad", "grad_p", "grad_q") if name in apart]
        for name, written in zip(names, where if isinstance(where, tuple) else (where,), strict=True):
            np.testing.assert_array_equal(written.astype(float), apart[name].astype(float))
            assert not written[12].any()
            np.testing.assert_allclose(
                apart[name][5].astype(float), 1.5 * alone[name][0].astype(float), rtol=1e-2, atol=1e-6
            )


FAST_CORNERS = [
    c for c in CORNERS
    if (isinstance(c.y, list) and c.function != "binary_cross_entropy")
    or (c.function == "entropy" and c.options.get("form") != "logits")
]  # fmt: skip


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("corner", FAST_CORNERS, ids=lambda c: f"{c.function}: {c.name}")
def test_corner(corner, dtype: str) -> None:
    """The table of corner cases once more, for the loss alone."""
    if dtype not in corner.dtypes:
        pytest.skip("the row is not exact in this dtype")
    alone = corner._replace(want={"loss": corner.want["loss"]})
    for k in (len(corner.x), 40, 70, 1100) if corner.pads else (len(corner.x),):
        for before, after in ((0, 0), (2, 3), (70, 1)):
            got = call_among(alone, dtype, k, before, after, gradients=False)[0]["loss"]
            rtol = {4: 164 * 2.0**-23, 8: 164 * 2.0**-52}[got.dtype.itemsize]
            want, value = corner.want["loss"], float(got[before])
            np.testing.assert_allclose(value, want, rtol=rtol, atol=1e-300, err_msg=f"k = {k}")
            assert np.isfinite(np.delete(got, before)).all()


@pytest.mark.parametrize("k", [5, 65, 300, 40_000])
def test_gradients_of_near_classes_beside_far_ones(k: int) -> None:
    """What large terms lose by rounding must not show in a class where p and q nearly agree."""
    x, y = np.full((20, k), -8.0, np.float32), np.full((20, k), -8.0, np.float32)
    x[:, [1, 2]], y[:, [2, 4]] = 0, 0
    y[:, 3] += np.linspace(0, 1, 20, dtype=np.float32)
    options = LOGITS | {"return_grad": "both"}
    want = evaluate(LONG, "kl_divergence", [x, y], options)
    check(call("kl_divergence", [x, y], options), want, np.dtype(np.float32))


def test_subnormal_probabilities() -> None:
    """Numbers without a full mantissa: the fast kernels know nothing of them, the results are right all the same."""
    for dtype, small in (("float32", 1e-44), ("float64", 3e-322)):
        for k in (3, 5, 70, 100):
            p, q = np.full((4, k), small), np.full((4, k), 3 * small)
            p[1, 0], q[2, 0], p[3, 0], q[3, 0] = 0.5, 0.5, 0.25, 0.75
            args = [p.astype(FLOATS[dtype]), q.astype(FLOATS[dtype])]
            for function, given in (("kl_divergence", args), ("js_divergence", args), ("entropy", args[:1])):
                want = evaluate(MP, function, given, {})
                check(call(function, given, {}), want, np.dtype(dtype), where=f"{function} {dtype} k={k}")


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("k", [2, 3, 10, 33, 64, 65, 1000, 2049])
def test_equal_operands_have_exactly_no_divergence(dtype: str, k: int) -> None:
    rng = np.random.default_rng(k)
    x = (rng.normal(size=(9, k)) * 10.0 ** rng.uniform(-2, 3, size=(9, 1))).astype(FLOATS[dtype])
    p = (np.abs(x) / np.abs(x).max()).astype(FLOATS[dtype])
    p[0] = 0
    for weight in (0.5, 0.2):
        np.testing.assert_array_equal(ek.js_divergence(p, p.copy(), weight=weight), 0.0)
    np.testing.assert_array_equal(ek.kl_divergence(p, p.copy()), 0.0)
    np.testing.assert_array_equal(ek.kl_divergence(x, x.copy(), **LOGITS), 0.0)
    assert (ek.kl_divergence(x, x[::-1], **LOGITS) >= 0).all()
    assert (ek.js_divergence(p, p[::-1]) >= 0).all()


# --- what a reader of the kernels found: rounded targets, weights beyond float32, finite masks -------------


@pytest.mark.parametrize("k", [4, 400])
def test_targets_of_more_digits_than_the_logits(k: int) -> None:
    """A float64 target that float32 would round to 0, and whole ones beyond 2**24."""
    x = np.zeros((2, k), np.float32)
    x[:, 1] = -np.inf
    target = np.full((2, k), 0.5)
    target[:, 1] = 1e-60
    for with_gradient in (False, True):
        loss = ek.cross_entropy(x, target, reduction="none", return_grad=with_gradient)
        np.testing.assert_array_equal(loss[0] if with_gradient else loss, np.inf)
    x = np.full((2, k), -200, np.float32)
    x[:, :2] = 0
    for dtype in (np.int64, np.int32, np.uint32, np.float64, np.longdouble):
        counts = np.zeros((2, k), dtype)
        counts[:, 0], counts[:, 1] = 2**24 + 1, 2**24 + 2
        gradient = ek.cross_entropy(x, counts, reduction="none", return_grad=True)[1]
        np.testing.assert_array_equal(gradient[:, :2], [[0.5, -0.5]] * 2)


@pytest.mark.parametrize("k", [10, 400])
@pytest.mark.parametrize("weight", [1e-44, 1e-40, 1e39])
def test_weights_beyond_float32(k: int, weight: float) -> None:
    """Of a mean only their ratio counts."""
    rng = np.random.default_rng(k)
    x, y = rng.normal(size=(2, 4, k)).astype(np.float32)
    heavy, plain = (
        [
            *ek.kl_divergence(x, y, **LOGITS, reduction="mean", sample_weight=np.full(4, w), return_grad="both")[1:],
            ek.cross_entropy(x, abs(y), sample_weight=np.full(4, w), return_grad=True)[1],
        ]
        for w in (weight, 1.0)
    )
    for found, wanted in zip(heavy, plain, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5)


@pytest.mark.parametrize("k", [4, 400])
def test_finite_masks(k: int) -> None:
    """p of a masked class may be subnormal, and what it is multiplied by as large as float32 goes."""
    for low in (-85, -90, -95, -100, -103):
        x, y = np.zeros((1, k), np.float32), np.zeros((1, k), np.float32)
        x[0, 1], y[0, 1] = low, np.finfo(np.float32).min
        options = LOGITS | {"return_grad": "both"}
        want = evaluate(MP, "kl_divergence", [x, y], options)
        check(call("kl_divergence", [x, y], options), want, np.dtype(np.float32))


@pytest.mark.parametrize("k", [16, 300])
def test_gradient_of_a_class_with_nearly_all_of_p(k: int) -> None:
    rng = np.random.default_rng(5)
    x, y = (0.25 * rng.normal(size=(2, 8, k))).astype(np.float32)
    x[:, 0] += 15
    options = LOGITS | {"return_grad": "both", "temperature": 0.5}
    want = evaluate(MP, "kl_divergence", [x, y], options)
    check(call("kl_divergence", [x, y], options), want, np.dtype(np.float32))
