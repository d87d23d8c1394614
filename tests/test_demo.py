"""The demo prints the theory's numbers, and what it says of the bundled logits is so."""

from __future__ import annotations

import re
from importlib.resources import files

import numpy as np
import pytest

import entrokern as ek
from entrokern import cli


@pytest.fixture(scope="module")
def text():
    """What `entrokern demo --quick` prints."""
    with pytest.MonkeyPatch.context() as patch:
        lines = []
        patch.setattr("builtins.print", lambda *args, **_: lines.append(" ".join(map(str, args))))
        assert cli.main(["demo", "--quick"]) == 0
    return "\n".join(lines)


@pytest.fixture(scope="module")
def digits():
    with (files("entrokern") / "data" / "digits.npz").open("rb") as file, np.load(file) as data:
        return dict(data)


@pytest.mark.parametrize(
    "line",
    [
        "I(1) = 0",
        "I(0.25) = 1.3863 > I(0.5) = 0.6931",
        "I(0.5·0.25) = 2.0794 = 0.6931 + 1.3863",
        "a fair coin (0.5, 0.5) 0.6931",
        "a certain coin (1.0, 0.0) 0.0000",
        "D(P‖Q) = 0.1257, D(Q‖P) = 0.1613, D(P‖P) = 0",
        "limit 0.1257 0.1000 0.1257",
        "(0.5, 0.3, 0.2) 0 0.6931",
        "(0.2, 0.7, 0.1) 1 0.3567",
        "(0.1, 0.3, 0.6) 2 0.5108",
        "mean 0.5202, perplexity 1.6824",
        "BCE(1.3, 1) = 0.2410 = CE((0, 1.3), 1) = 0.2410",
        "H(P, Q) = 0.9275 = H(P) + D(P‖Q) = 0.8018 + 0.1257",
    ],
)
def test_the_worked_examples(text, line):
    assert line in re.sub(" +", " ", text)


def test_the_estimates_converge(text):
    errors = []
    for n in ("100", "10,000", "1,000,000"):
        _, k1, _, k3 = re.search(rf"^ +({n}) +(\S+) +(\S+) +(\S+)$", text, re.MULTILINE).groups()
        errors.append((abs(float(k1) - 0.1257), abs(float(k3) - 0.1257)))
    assert errors[2][0] < 0.002
    assert errors[2][1] < 0.002
    assert errors[2] < errors[1] < errors[0]


def test_the_digits_are_a_trained_classifiers(digits):
    x, y = digits["x"], digits["y"]
    assert (x.shape, x.dtype, y.shape) == ((899, 10), np.float32, (899,))
    assert digits["images"].shape == (899, 8, 8)
    assert np.mean(x.argmax(axis=1) == y) > 0.95
    shifted = np.exp(x.astype(np.float64) - x.max(axis=1, keepdims=True))
    p = shifted / shifted.sum(axis=1, keepdims=True)
    expected = -np.log(p[np.arange(899), y])
    np.testing.assert_allclose(ek.cross_entropy(x, y, reduction="none"), expected, rtol=1e-4, atol=1e-7)


def test_the_digits_are_scored(text, digits):
    x, y = digits["x"], digits["y"]
    loss = ek.cross_entropy(x, y, reduction="none")
    assert f"mean cross-entropy {loss.mean():.4f}" in text
    assert f"accuracy           {100 * np.mean(x.argmax(axis=1) == y):.2f} %" in text
    worst = int(loss.argmax())
    assert re.search(rf"^ +{worst} +{y[worst]} +{loss[worst]:.4g} ", text, re.MULTILINE)
    assert f"a {y[worst]}, taken for a {x[worst].argmax()}" in text


def test_the_speed_table_compares_three_ways(text):
    for k in ("1,000", "10"):
        assert f"rows of {k} classes" in text
    for name in ("read limit: NumPy's max", "entrokern.cross_entropy", "(SciPy|NumPy): log"):
        rates = re.findall(rf"{name}.*? ms +(\d+\.\d+)", text)
        assert len(rates) == 2
    errors = re.findall(r"entrokern.cross_entropy.*?(\d+e-\d+)$", text, re.MULTILINE)
    assert [float(error) < 1e-6 for error in errors] == [True, True]
