"""Section 3's corner cases as a table: one row of input, and what every backend must make of it.

Each row is also tried among ordinary rows, which must not notice, and padded with classes of
probability 0 to lengths that other kernels handle: that changes no result.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import pytest

import entrokern as ek
from cases import FLOATS, call

inf, nan = math.inf, math.nan
LOG2 = math.log(2.0)
ALL = tuple(FLOATS)
WIDE = ("float32", "float64")


class Corner(NamedTuple):
    """A row (`x`, and a label, target row or second operand) and the results wanted for it."""

    name: str
    function: str
    x: list[float]
    y: Any
    want: Mapping[str, Any]
    options: Mapping[str, Any] = {}
    dtypes: tuple[str, ...] = ALL
    pads: bool = True  # classes of probability 0 do not change the results


def ce(name: str, x: list[float], y: Any, loss: float, grad: Any = None, hess: Any = None, **more: Any) -> Corner:
    want = {"loss": loss, "grad": grad, "hess": hess}
    options = more.pop("options", {})
    return Corner(name, "cross_entropy", x, y, {k: v for k, v in want.items() if v is not None}, options, **more)


def bce(name: str, x: float, t: float, loss: float, grad: Any = None, hess: Any = None, form: str = "logits") -> Corner:
    want = {"loss": [loss], "grad": grad and [grad], "hess": hess and [hess]}
    want = {k: v for k, v in want.items() if v is not None}
    return Corner(name, "binary_cross_entropy", [x], [t], want, {"form": form})


def two(function: str, name: str, form: str, p: list[float], q: list[float], loss: float, grad_p: Any = None,
        grad_q: Any = None) -> Corner:  # fmt: skip
    want = {"loss": loss, "grad_p": grad_p, "grad_q": grad_q}
    options = {"p_form": form, "q_form": form}
    return Corner(name, f"{function}_divergence", p, q, {k: v for k, v in want.items() if v is not None}, options)


def one(function: str, name: str, x: list[float], want: Any, grad: Any = None, **options: Any) -> Corner:
    wanted = {function if function != "entropy" else "loss": want}
    return Corner(name, function, x, None, wanted | ({"grad": grad} if grad is not None else {}), options)


def scored(name: str, x: list[float], y: int | None, options: Mapping[str, Any] = {}, **want: Any) -> Corner:
    return Corner(name, "score", x, y, want, options | {"outputs": tuple(want)})


PROBS, LOGS = {"form": "probs"}, {"form": "log_probs"}
E40 = math.exp(-40.0)

CORNERS = [
    # a logit of -inf: probability 0, adds nothing
    ce("-inf logit", [0, -inf, 0], 0, LOG2, [-0.5, 0, 0.5], [0.25, 0, 0.25]),
    ce("-inf target", [0, -inf, 0], 1, inf, [0.5, -1, 0.5]),
    ce("-inf, soft target 0", [0, -inf, 0], [0.5, 0, 0.5], LOG2, [0, 0, 0], [0.25, 0, 0.25]),
    ce("-inf, soft target", [0, -inf, 0], [0.5, 0.5, 0], inf),
    ce("-inf, weight 0", [0, -inf, 0], 1, 0, [0, 0, 0], options={"class_weight": [1, 0, 1]}),
    ce("-inf, smoothed", [0, -inf, 0], 0, inf, options={"label_smoothing": 0.1}, pads=False),
    ce("-inf, temperature", [0, -inf, 0], 0, LOG2, [-0.25, 0, 0.25], options={"temperature": 2}),
    ce("-inf, softcap", [0, -inf, 0], 0, LOG2, [-0.5, 0, 0.5], options={"softcap": 5}),
    ce("all -inf", [-inf, -inf], 0, nan, [nan, nan], [nan, nan]),
    ce("all -inf, dense", [-inf, -inf], [1, 0], nan, [nan, nan]),
    ce("all -inf, softcap", [-inf, -inf], 0, nan, [nan, nan], options={"softcap": 5}),
    # +inf, NaN
    ce("+inf elsewhere", [0, inf], 0, inf, [nan, nan], [nan, nan]),
    ce("+inf target", [0, inf], 1, nan, [nan, nan], [nan, nan]),
    ce("+inf twice", [inf, inf], 1, nan, [nan, nan]),
    ce("+inf, dense", [0, inf], [1, 0], inf, [nan, nan]),
    ce("NaN elsewhere", [0, nan, 1], 0, nan, [nan, nan, nan], [nan, nan, nan]),
    ce("NaN target", [nan, 0, 1], 0, nan, [nan, nan, nan]),
    ce("NaN beside -inf", [-inf, nan], 0, nan, [nan, nan]),
    ce("NaN beside +inf", [inf, 0, nan], 1, nan, [nan, nan, nan]),
    ce("NaN, target 0 there", [0, nan, 1], [1, 0, 0], nan, [nan, nan, nan]),
    ce("NaN, softcap", [0, nan, 1], 0, nan, [nan, nan, nan], options={"softcap": 5}),
    ce("NaN, z-loss", [0, nan, 1], 0, nan, [nan, nan, nan], options={"z_loss": 0.1}),
    ce("NaN target weight", [0, 1], [nan, 1], nan),
    # size and offset
    ce("k = 1", [3.0], 0, 0, [0], [0]),
    ce("offset", [1e8, 1e8 + 1], 0, math.log1p(math.e), dtypes=("float64",)),
    ce("offset float32", [1e8, 1e8 + 8], 1, math.log1p(math.exp(-8)), dtypes=WIDE),
    ce("offset float16", [2048, 2056], 1, math.log1p(math.exp(-8)), dtypes=("float16", *WIDE)),
    ce("offset, temperature", [3e8, 3e8 + 32], 0, 16 + math.log1p(math.exp(-16)), dtypes=WIDE,
       options={"temperature": 2}),
    ce("negative offset", [-1e8, -1e8 - 8], 0, math.log1p(math.exp(-8)), dtypes=WIDE),
    ce("margin of 40", [0, 40, 0], 1, math.log1p(2 * E40), [E40, -2 * E40, E40], [E40, 2 * E40, E40],
       dtypes=("bfloat16", *WIDE)),
    ce("margin of 40, dense", [0, 40, 0], [0, 1, 0], math.log1p(2 * E40), dtypes=("bfloat16", *WIDE)),
    # probabilities and log-probabilities, as given
    ce("probs", [0.5, 0.25, 0.25], 0, LOG2, [-2, 0, 0], options=PROBS),
    ce("probs, p = 0", [0, 1], 0, inf, options=PROBS),
    ce("probs, 0 elsewhere", [1, 0], 0, 0, [-1, 0], options=PROBS),
    ce("probs, 0·log 0", [0.5, 0, 0.5], [0.5, 0, 0.5], LOG2, [-1, 0, -1], options=PROBS),
    ce("probs below 0", [0.5, -0.5], 0, nan, options=PROBS),
    ce("probs NaN", [0.5, nan], 0, nan, [nan, nan], options=PROBS),
    ce("probs, sum not 1", [2, 2], 0, -LOG2, options=PROBS),
    ce("log_probs", [-1, -2, -inf], 0, 1, [-1, 0, 0], options=LOGS),
    ce("log_probs, -inf", [-1, -2, -inf], 2, inf, [0, 0, -1], options=LOGS),
    ce("log_probs, -inf, target 0", [-1, -2, -inf], [0.5, 0.5, 0], 1.5, [-0.5, -0.5, 0], options=LOGS),
    ce("log_probs NaN", [-1, nan], 0, nan, [nan, nan], options=LOGS),
    # BCE, by element
    bce("x = 0", 0, 1, LOG2, -0.5, 0.25),
    bce("x = 40", 40, 1, math.log1p(E40)),
    bce("large, wrong", 8192, 0, 8192, 1),
    bce("+inf right", inf, 1, 0),
    bce("+inf wrong", inf, 0, inf, 1),
    bce("-inf right", -inf, 0, 0),
    bce("-inf wrong", -inf, 1, inf, -1),
    bce("inf, soft", inf, 0.5, inf),
    bce("NaN", nan, 1, nan, nan, nan),
    bce("NaN target", 0, nan, nan, nan),
    bce("probs right", 1, 1, 0, form="probs"),
    bce("probs wrong", 0, 1, inf, form="probs"),
    bce("probs wrong the other way", 1, 0, inf, form="probs"),
    bce("probs 0 right", 0, 0, 0, form="probs"),
    bce("probs below 0", -0.5, 1, nan, nan, form="probs"),
    bce("log_probs right", 0, 1, 0, form="log_probs"),
    bce("log_probs wrong", -inf, 1, inf, form="log_probs"),
    bce("log_probs 0 wrong", 0, 0, inf, form="log_probs"),
    bce("log_probs -inf right", -inf, 0, 0, form="log_probs"),
    bce("log_probs -1", -1, 0, -math.log1p(-math.exp(-1)), form="log_probs"),
    # entropy
    one("entropy", "certain", [1, 0], 0),
    one("entropy", "0·log 0", [0.5, 0, 0.5], LOG2, [LOG2 - 1, inf, LOG2 - 1]),
    one("entropy", "nothing", [0, 0], 0),
    one("entropy", "sum not 1", [0.5, 0.25], LOG2),
    one("entropy", "below 0", [0.5, -0.5], nan),
    one("entropy", "probs NaN", [0.5, nan], nan, [nan, nan]),
    one("entropy", "k = 1 logit", [3.0], 0, [0], form="logits"),
    one("entropy", "-inf logit", [0, -inf, 0], LOG2, [0, 0, 0], form="logits"),
    one("entropy", "all -inf", [-inf, -inf], nan, [nan, nan], form="logits"),
    one("entropy", "+inf", [0, inf], nan, [nan, nan], form="logits"),
    one("entropy", "logits NaN", [0, nan], nan, [nan, nan], form="logits"),
    one("entropy", "log_probs -inf", [-inf, 0], 0, [0, -1], form="log_probs"),
    # KL
    two("kl", "p = 0", "probs", [1, 0], [0.5, 0.5], LOG2),
    two("kl", "q = 0", "probs", [0.5, 0.5], [1, 0], inf),
    two("kl", "both 0", "probs", [0.5, 0, 0.5], [0.5, 0, 0.5], 0),
    two("kl", "sums differ", "probs", [0.5, 0.25], [0.25, 0.25], 0.5 * LOG2),
    two("kl", "negative", "probs", [0.25, 0.25], [0.5, 0.5], -0.5 * LOG2),
    two("kl", "p below 0", "probs", [-0.5, 0.5], [0.5, 0.5], nan),
    two("kl", "q below 0", "probs", [0.5, 0.5], [-0.5, 0.5], nan),
    two("kl", "NaN", "probs", [0.5, nan], [0.5, 0.5], nan, [nan, nan], [nan, nan]),
    two("kl", "equal logits", "logits", [0, 1, -inf], [0, 1, -inf], 0, [0, 0, 0], [0, 0, 0]),
    two("kl", "p -inf", "logits", [0, -inf], [0, 0], LOG2, [0, 0], [-0.5, 0.5]),
    two("kl", "q -inf", "logits", [0, 0], [0, -inf], inf),
    two("kl", "all of p -inf", "logits", [-inf, -inf], [0, 0], nan, [nan, nan], [nan, nan]),
    two("kl", "all of q -inf", "logits", [0, 0], [-inf, -inf], nan, [nan, nan], [nan, nan]),
    two("kl", "p +inf", "logits", [0, inf], [0, 0], nan, [nan, nan], [nan, nan]),
    two("kl", "logits NaN", "logits", [0, 0], [0, nan], nan, [nan, nan], [nan, nan]),
    two("kl", "log_probs", "log_probs", [0, -inf], [-1, -1], 1),
    two("kl", "log_probs q = 0", "log_probs", [-1, -1], [-1, -inf], inf),
    # JS
    two("js", "apart", "probs", [1, 0], [0, 1], LOG2),
    two("js", "equal", "probs", [0.5, 0, 0.5], [0.5, 0, 0.5], 0, [0, 0, 0], [0, 0, 0]),
    two("js", "below 0", "probs", [-0.5, 0.5], [0.5, 0.5], nan),
    two("js", "NaN", "probs", [0.5, nan], [0.5, 0.5], nan, [nan, nan], [nan, nan]),
    two("js", "logits apart", "logits", [0, -inf], [-inf, 0], LOG2, [0, 0], [0, 0]),
    two("js", "equal logits", "logits", [0, 1, -inf], [0, 1, -inf], 0, [0, 0, 0], [0, 0, 0]),
    two("js", "all -inf", "logits", [-inf, -inf], [0, 0], nan, [nan, nan], [nan, nan]),
    two("js", "equal log_probs", "log_probs", [0, -inf], [0, -inf], 0, [0, 0], [0, 0]),
    # primitives
    one("logsumexp", "all -inf", [-inf, -inf], -inf),
    one("logsumexp", "+inf", [0, inf], inf),
    one("logsumexp", "NaN", [0, nan, inf], nan),
    one("logsumexp", "k = 1", [3.0], 3),
    one("logsumexp", "large", [1000, 1000], 1000 + LOG2),
    one("log_softmax", "-inf", [0, -inf], [0, -inf]),
    one("log_softmax", "all -inf", [-inf, -inf], [nan, nan]),
    one("log_softmax", "+inf", [0, inf], [-inf, nan]),
    one("log_softmax", "NaN", [0, nan], [nan, nan]),
    one("softmax", "-inf", [0, -inf, 0], [0.5, 0, 0.5]),
    one("softmax", "all -inf", [-inf, -inf], [nan, nan]),
    one("softmax", "+inf", [0, inf], [nan, nan]),
    one("softmax", "NaN", [0, nan], [nan, nan]),
    one("information", "all of it", [1, 0.5, 0, nan, -1], [0, LOG2, inf, nan, nan]),
    # score
    scored("ties", [1, 2, 2], 2, argmax=1, rank=0),
    scored("rank", [1, 2, 2], 0, rank=2, argmax=1),
    scored("-inf", [0, -inf, 0], 1, loss=inf, log_prob=-inf, rank=2, lse=LOG2, entropy=LOG2, max_prob=0.5),
    scored("NaN", [0, nan, 1], 0, loss=nan, lse=nan, log_prob=nan, entropy=nan, max_prob=nan,
           argmax=-1, rank=-1, grad=[nan, nan, nan]),
    scored("+inf", [0, inf], 0, loss=inf, lse=inf, log_prob=-inf, entropy=nan, argmax=1, rank=1),
    scored("+inf target", [0, inf], 1, loss=nan, log_prob=nan, rank=0),
    scored("all -inf", [-inf, -inf], 0, loss=nan, lse=-inf, log_prob=nan, entropy=nan),
    scored("no target", [1, 2, 2], None, argmax=1, lse=2 + math.log(2 + math.exp(-1))),
    scored("ignored", [0, 1], 9, {"ignore_index": 9}, loss=0, log_prob=nan, rank=-1, argmax=1, grad=[0, 0]),
    scored("k = 1", [3.0], 0, loss=0, lse=3, log_prob=0, entropy=0, argmax=0, rank=0, max_prob=1, grad=[0]),
]  # fmt: skip

PAD = {"logits": -inf, "log_probs": -inf, "probs": 0.0}


def forms(corner: Corner) -> tuple[str, str]:
    """How `x` and a second operand are given."""
    o = corner.options
    if corner.function in ("kl_divergence", "js_divergence"):
        return o["p_form"], o["q_form"]
    return o.get("form", "probs" if corner.function in ("entropy", "information") else "logits"), "probs"


def call_among(
    corner: Corner, dtype: str, k: int, before: int, after: int, gradients: bool = True
) -> tuple[dict[str, Any], int]:
    """Results of the row, padded to `k` classes, with ordinary rows before and after it."""
    x_form, y_form = forms(corner)
    size = len(corner.x)
    binary = corner.function == "binary_cross_entropy"
    ordinary = np.full(k, 0.5 if binary else 1.0 / k)
    ordinary = ordinary if x_form == "probs" else np.log(ordinary)
    row = np.full(k, PAD[x_form])
    row[:size] = corner.x
    args: list[Any] = [np.array([ordinary] * before + [row] + [ordinary] * after).astype(FLOATS[dtype])]
    options = dict(corner.options)
    if isinstance(corner.y, list):
        second = np.full(k, 0.0 if corner.function in ("cross_entropy", "binary_cross_entropy") else PAD[y_form])
        second[:size] = corner.y
        other = np.full(k, 0.5 if binary else 1.0 / k)
        other = ordinary if corner.function.endswith("divergence") else other
        args.append(np.array([other] * before + [second] + [other] * after).astype(FLOATS[dtype]))
    elif corner.y is not None:
        args.append(np.array([0] * before + [corner.y] + [0] * after))
    if "class_weight" in options:
        options["class_weight"] = options["class_weight"] + [1] * (k - size)
    if corner.function in ("cross_entropy", "binary_cross_entropy"):
        options["reduction"] = "none"
    for name, option in (("grad", "return_grad"), ("hess", "return_hess")):
        if name in corner.want and corner.function != "score":
            options[option] = True
    if gradients and corner.function.endswith("divergence"):
        options["return_grad"] = "both"
    return call(corner.function, args, options), size


@pytest.mark.parametrize("dtype", ALL)
@pytest.mark.parametrize("corner", CORNERS, ids=lambda c: f"{c.function}: {c.name}")
def test_corner(backend: str, corner: Corner, dtype: str) -> None:
    if dtype not in corner.dtypes:
        pytest.skip("the row is not exact in this dtype")
    for k in (len(corner.x), 40, 1100) if corner.pads else (len(corner.x),):
        for before, after in ((0, 0), (2, 3), (70, 1)):
            got, size = call_among(corner, dtype, k, before, after)
            for name, want in corner.want.items():
                value = got[name][before]
                value = np.asarray(value[:size] if np.ndim(value) else value).astype(np.float64)
                where = f"{name} at k = {k} after {before} rows"
                # Exact inputs: an output in 16 bits is rounded, a margin of 40 may cost 4·(1 + 40) eps.
                rtol = {2: 2.0**-8, 4: 164 * 2.0**-23, 8: 164 * 2.0**-52}[got[name].dtype.itemsize]
                np.testing.assert_allclose(value, want, rtol=rtol, atol=1e-300, err_msg=where)
            for name, values in got.items():
                others = np.delete(values, before, axis=0).astype(np.float64)
                assert np.isfinite(others).all(), f"{name}: another row was touched at k = {k}"


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_estimate_corners(backend: str, estimator: str) -> None:
    got = ek.kl_estimate([-1, -1, nan, -1], [-1, -inf, -1, nan], estimator=estimator, reduction="none")
    np.testing.assert_array_equal(got, [0, inf, nan, nan])


# --- rows that do not count -----------------------------------------------------------------------

HOLDING = {"NaN": [nan, 0, nan], "+inf": [inf, 0, inf], "-inf": [-inf] * 3, "all NaN": [nan] * 3}
SILENT: dict[str, Callable[..., Any]] = {
    "ignored label": lambda x, **o: ek.cross_entropy(x, [0, -100, 1], ignore_index=-100, **o),
    "ignored 0": lambda x, **o: ek.cross_entropy(x, [1, 0, 1], ignore_index=0, **o),
    "weight 0": lambda x, **o: ek.cross_entropy(x, [0, 1, 1], sample_weight=[1, 0, 1], **o),
    "dense, weight 0": lambda x, **o: ek.cross_entropy(x, np.eye(3), sample_weight=[1, 0, 1], **o),
    "z-loss, weight 0": lambda x, **o: ek.cross_entropy(
        x, [0, 1, 1], z_loss=1, sample_weight=[1, -0.0, 1], **o
    ),
    "bce ignored": lambda x, **o: ek.binary_cross_entropy(
        x, [[0] * 3, [7] * 3, [1] * 3], ignore_index=7, axis=-1, **o
    ),
    "bce weight 0": lambda x, **o: ek.binary_cross_entropy(
        x, np.ones((3, 3)), axis=1, sample_weight=[1, 0, 1], **o
    ),
    "entropy": lambda x, **o: ek.entropy(x, form="logits", sample_weight=[1, 0, 1], **o),
    "kl": lambda x, **o: ek.kl_divergence(
        x, np.ones(3), p_form="logits", q_form="logits", sample_weight=[1, 0, 1],
        **(o | ({"return_grad": "p"} if "return_grad" in o else {})),
    ),
    "js": lambda x, **o: ek.js_divergence(
        x, np.ones(3), p_form="logits", q_form="logits", sample_weight=[1, 0, 1],
        **(o | ({"return_grad": "p"} if "return_grad" in o else {})),
    ),
}  # fmt: skip


@pytest.mark.parametrize("holding", HOLDING)
@pytest.mark.parametrize("how", SILENT)
def test_rows_that_do_not_count(backend: str, how: str, holding: str) -> None:
    """Loss 0 and gradient 0, whatever the row holds; the reductions are those of the other rows."""
    x = np.array([[0.5, 1, 2], HOLDING[holding], [1, 0, 0.25]])
    clean = x.copy()
    clean[1] = 0
    loss, grad = SILENT[how](x, reduction="none", return_grad=True)
    assert loss[1] == 0
    assert (grad[1] == 0).all()
    assert np.isfinite(loss).all()
    assert np.isfinite(grad).all()
    for reduction in ("sum", "mean"):
        got = SILENT[how](x, reduction=reduction, return_grad=True)
        want = SILENT[how](clean, reduction=reduction, return_grad=True)
        np.testing.assert_array_equal(got[0], want[0])
        np.testing.assert_array_equal(got[1], want[1])


def test_elements_that_do_not_count(backend: str) -> None:
    """BCE without `axis`: single elements are ignored or of weight 0."""
    x = np.array([0.0, nan, inf, -inf, 1.0])
    for options in ({"ignore_index": -1, "target": [1, -1, -1, -1, 0]},
                    {"sample_weight": [1, 0, 0, 0, 1], "target": [1, 1, 0, 1, 0]}):  # fmt: skip
        loss, grad = ek.binary_cross_entropy(x, **options, reduction="none", return_grad=True)
        np.testing.assert_array_equal(loss[1:4], 0)
        np.testing.assert_array_equal(grad[1:4], 0)
        mean = ek.binary_cross_entropy(x, **options)
        np.testing.assert_allclose(mean, (LOG2 + math.log1p(math.e)) / 2, rtol=1e-15)
    # With `axis`, an ignored element is left out of its row, which counts as long as one is left.
    row = ek.binary_cross_entropy([[0.0, nan], [nan, nan]], [[1, -1], [-1, -1]], axis=-1, ignore_index=-1)
    np.testing.assert_allclose(row, LOG2, rtol=1e-15)


# --- nothing counts -------------------------------------------------------------------------------

EMPTY: dict[str, Callable[..., Any]] = {
    "no rows": lambda **o: ek.cross_entropy(np.zeros((0, 3)), np.zeros(0, int), **o),
    "all ignored": lambda **o: ek.cross_entropy(np.full((2, 3), nan), [-100, -100], ignore_index=-100, **o),
    "weights 0": lambda **o: ek.cross_entropy(np.zeros((2, 3)), [0, 1], sample_weight=[0, 0], **o),
    "class weight 0": lambda **o: ek.cross_entropy(np.zeros((2, 3)), [0, 0], class_weight=[0, 1, 1], **o),
    "bce": lambda **o: ek.binary_cross_entropy(np.zeros(2), [5, 5], ignore_index=5, **o),
    "bce rows": lambda **o: ek.binary_cross_entropy(
        np.zeros((2, 2)), np.full((2, 2), 5), axis=1, ignore_index=5, **o
    ),
}  # fmt: skip


@pytest.mark.parametrize("how", EMPTY)
def test_on_empty(backend: str, how: str) -> None:
    assert np.isnan(EMPTY[how]())
    assert EMPTY[how](on_empty="zero") == 0
    loss, grad = EMPTY[how](return_grad=True)
    assert np.isnan(loss)
    assert (grad == 0).all()
    for options in ({}, {"return_grad": True}):
        with pytest.raises(ValueError, match="no row counts: the mean's denominator is 0"):
            EMPTY[how](on_empty="raise", **options)
    assert EMPTY[how](reduction="sum", on_empty="raise") == 0
    assert EMPTY[how](reduction="none").shape == EMPTY[how](reduction="none", return_grad=True)[0].shape


def test_perplexity_on_empty(backend: str) -> None:
    x, y = np.zeros((0, 3)), np.zeros(0, int)
    assert np.isnan(ek.perplexity(x, y))
    assert ek.perplexity(x, y, on_empty="zero") == 1
    with pytest.raises(ValueError, match="no row counts"):
        ek.perplexity(x, y, on_empty="raise")
    assert np.isnan(ek.entropy(np.zeros((0, 3)), reduction="mean"))
    assert np.isnan(ek.kl_divergence(np.zeros((0, 3)), np.zeros(3), reduction="mean"))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("k", [1, 3, 40, 3000])
def test_a_row_of_nothing_is_undefined_whatever_its_target(host_backend: str, dtype: str, k: int) -> None:
    """All -inf: NaN, also where the target distribution is 0 everywhere; other rows are not touched."""
    x = np.zeros((20, k), FLOATS[dtype])
    x[[3, 19]] = -np.inf
    q = np.zeros((20, k), FLOATS[dtype])
    q[4] = 1.0 / k
    loss, grad = ek.cross_entropy(x, q, reduction="none", return_grad=True)
    for result in (ek.cross_entropy(x, q, reduction="none"), loss, grad.astype(float).sum(axis=1)):
        assert np.flatnonzero(np.isnan(result)).tolist() == [3, 19]


def test_a_weight_of_nothing_leaves_the_other_terms(host_backend: str) -> None:
    """A label of weight 0 in a row with +inf: its term is left out, that of the z-loss is not."""
    x, w = np.array([[0.0, np.inf, np.inf]]), [1.0, 0.0, 1.0]
    for y, z_loss, want in ((1, 0.0, 0.0), (1, 0.1, np.inf), (0, 0.0, np.inf)):
        assert ek.cross_entropy(x, [y], class_weight=w, z_loss=z_loss, reduction="none") == want


def test_no_target_is_refused() -> None:
    for function in (ek.cross_entropy, ek.perplexity):
        with pytest.raises(TypeError, match="target is None; pass integer labels"):
            function(np.zeros((2, 3)), None)
