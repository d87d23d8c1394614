"""Series and DataFrames: NumPy's bits, under the labels of the operands, which must fit together."""

from __future__ import annotations

import doctest
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import entrokern as ek
from cases import NAMED, Case, call, operands

pd = pytest.importorskip("pandas", reason="Series and DataFrames")

from entrokern.pandas import unwrapped  # noqa: E402  (once pandas is known to be there)

ROWS, CLASSES = list("abcdef"), ["cat", "dog", "cow", "hen"]
RNG = np.random.default_rng(3)
X, Y = RNG.normal(size=(6, 4)).astype(np.float32), RNG.integers(0, 4, 6)
FRAME, LABELS = pd.DataFrame(X, ROWS, CLASSES), pd.Series(Y, ROWS)


def labelled(value: Any) -> Any:
    """An array of the call's rows, classes or both with their labels; of the rows where these are as many."""
    if not isinstance(value, np.ndarray) or value.ndim == 0:
        return value
    if value.ndim == 2:
        return pd.DataFrame(value, ROWS, CLASSES)
    return pd.Series(value, ROWS if len(value) == len(ROWS) else CLASSES)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("case", NAMED, ids=lambda case: case.name)
def test_bits_of_numpy(case: Case, dtype: str) -> None:
    args, options = operands(case, 6, 4, dtype)
    frames, given = [labelled(a) for a in args], {name: labelled(v) for name, v in options.items()}
    found = call(case.function, frames, given)
    want = call(case.function, [unwrapped(a) for a in frames], {name: unwrapped(v) for name, v in given.items()})
    assert found.keys() == want.keys()
    for name, value in found.items():
        expected = labelled(want[name])
        if want[name].ndim == 2:
            pd.testing.assert_frame_equal(value, expected)
        elif want[name].ndim == 1:
            own = "entropy" if name == "entropy" else name if case.function == "score" else case.function
            pd.testing.assert_series_equal(value, expected.rename(own))
        else:
            assert isinstance(value, np.generic)
            np.testing.assert_array_equal(value, want[name])


def test_labels_come_from_any_operand() -> None:
    """Predictions of NumPy and a Series of labels, as models of scikit-learn leave them; rows across."""
    found = ek.cross_entropy(X, LABELS, reduction="none")
    assert list(found.index) == ROWS
    assert list(ek.cross_entropy(X, LABELS, reduction="none", return_grad=True)[1].columns) == [0, 1, 2, 3]
    pd.testing.assert_series_equal(ek.cross_entropy(FRAME, Y.tolist(), reduction="none"), found)
    pd.testing.assert_series_equal(ek.cross_entropy(FRAME.T, LABELS, axis=0, reduction="none"), found)
    assert list(ek.softmax(FRAME.T, axis=np.int64(0)).columns) == ROWS
    assert list(ek.softmax(FRAME.loc["a"]).index) == CLASSES
    assert isinstance(ek.entropy(ek.softmax(FRAME.loc["a"])), np.float32)


def test_one_row_for_all() -> None:
    p = ek.softmax(FRAME)
    loss, gradient = ek.kl_divergence(p, p.loc["c"], return_grad="q")
    assert loss["c"] == 0
    assert (list(loss.index), list(gradient.columns)) == (ROWS, CLASSES)


def test_columns_of_several_types() -> None:
    """Numbers of any kind; what is missing is NaN, and stays in its row."""
    frame = pd.DataFrame({"a": [1, 2], "b": pd.array([0.5, None], "Float64"), "c": np.float32([0, 1])}, ["x", "y"])
    found = ek.logsumexp(frame)
    assert found.dtype == np.float64
    assert found["x"] == ek.logsumexp([1.0, 0.5, 0.0])
    assert np.isnan(found["y"])


@pytest.mark.parametrize(
    ("function", "error", "message"),
    [
        (
            lambda: ek.cross_entropy(FRAME, LABELS[::-1]),
            ValueError,
            r"target has other labels than x along axis 0; bri",
        ),
        (lambda: ek.cross_entropy(FRAME, LABELS[:4]), ValueError, r"or pass target.to_numpy\(\) to go by position"),
        (
            lambda: ek.cross_entropy(FRAME, LABELS, class_weight=pd.Series(np.ones(4))),
            ValueError,
            "class_weight has other labels than x along axis 1",
        ),
        (
            lambda: ek.kl_divergence(FRAME, FRAME[CLASSES[::-1]], p_form="logits", q_form="logits"),
            ValueError,
            "q has other labels than p along axis 1",
        ),
        (lambda: ek.softmax(FRAME.assign(name="n")), TypeError, r"holds what are no numbers: 'name' \((str|object)\)"),
        (lambda: ek.cross_entropy(FRAME, pd.Series(list("aabbcc"), ROWS)), TypeError, "columns.get_indexer"),
        (lambda: ek.cross_entropy(FRAME, pd.Series([1, None] * 3, ROWS)), ValueError, "target has dtype float64"),
        (lambda: ek.softmax(FRAME, out=np.empty_like(X)), TypeError, "out is given beside pandas objects"),
        (lambda: ek.cross_entropy(np.zeros((6, 4, 1)), LABELS, axis=1), ValueError, "3 axes came"),
        (lambda: ek.cross_entropy(FRAME, LABELS, temperature=LABELS), TypeError, "temperature is a"),
        (lambda: ek.cross_entropy(FRAME, LABELS, axis=2), ValueError, "axis=2 does not exist"),
        (lambda: ek.cross_entropy(FRAME, LABELS, axes=1), TypeError, "unexpected keyword argument 'axes'"),
        (lambda: ek.cross_entropy(FRAME), TypeError, "target"),
        (lambda: ek.cross_entropy(FRAME, LABELS + 2), IndexError, "out of range for k = 4"),
    ],
)
def test_bad_calls(function: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        function()


def test_a_stream_takes_them() -> None:
    stream = ek.Accumulator("cross_entropy").update(FRAME, LABELS)
    assert stream.compute().mean == ek.Accumulator("cross_entropy").update(X, Y).compute().mean


def test_the_example() -> None:
    assert doctest.testmod(sys.modules["entrokern.pandas"]).failed == 0


def test_labels_of_a_linear_layer() -> None:
    """Rows, features and classes each have labels, wherever they come from."""
    features = ["long", "wide", "tall"]
    hidden = pd.DataFrame(RNG.normal(size=(6, 3)), ROWS, features)
    weight = pd.DataFrame(RNG.normal(size=(4, 3)), CLASSES, features)
    bias = pd.Series(RNG.normal(size=4), CLASSES)
    plain = ek.linear_cross_entropy(
        hidden.to_numpy(), weight.to_numpy(), Y, bias=bias.to_numpy(), reduction="none", return_grad=True
    )
    loss, *gradients = ek.linear_cross_entropy(hidden, weight, LABELS, bias=bias, reduction="none", return_grad=True)
    pd.testing.assert_series_equal(loss, pd.Series(plain[0], ROWS, name="linear_cross_entropy"))
    for found, like, expected in zip(gradients, (hidden, weight), plain[1:3], strict=False):
        pd.testing.assert_frame_equal(found, pd.DataFrame(expected, like.index, like.columns))
    pd.testing.assert_series_equal(gradients[2], pd.Series(plain[3], CLASSES, name="grad"))
    only = ek.linear_cross_entropy(hidden.to_numpy(), weight, LABELS, return_grad="weight")[1]
    pd.testing.assert_frame_equal(
        only,
        pd.DataFrame(ek.linear_cross_entropy(hidden, weight, Y, return_grad="weight")[1].to_numpy(), CLASSES, features),
    )
    one = ek.linear_cross_entropy(hidden.iloc[2], weight, Y[2], return_grad="hidden")[1]
    assert list(one.index) == features
    for wrong, message in (
        ({"weight": weight[features[::-1]]}, "weight has other labels than hidden of its features"),
        ({"target": pd.Series(Y)}, "target has other labels than hidden of its rows"),
        ({"bias": pd.Series(bias.to_numpy())}, "bias has other labels than weight of its classes"),
    ):
        with pytest.raises(ValueError, match=message):
            ek.linear_cross_entropy(**{"hidden": hidden, "weight": weight, "target": LABELS, "bias": bias} | wrong)
