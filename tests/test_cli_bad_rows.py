"""`--bad-rows`: which rows are bad, what becomes of them, and that all others are as without them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import entrokern as ek
from entrokern import cli

pytest_plugins = ["cli_fixtures"]
N, K = 1000, 7
BAD = {70: "NaN", 80: "infinite", 500: "label out of range", 900: "label out of range"}
LABELS = ["x.npy", "y.npy"]


@pytest.fixture
def spoiled(files):
    """Files with rows that are bad in each way."""
    files.fine_x, files.fine_y = files.x.copy(), files.y.copy()
    files.x[70, 2] = np.nan
    files.x[80, files.y[80]] = -np.inf
    files.y[[500, 900]] = 7, -1
    np.save("x", files.x)
    np.save("y", files.y)
    files.fine = np.delete(np.arange(N), list(BAD))
    return files


@pytest.mark.parametrize("block_rows", [1, 64, None])
def test_bad_rows_are_nan(spoiled, score, block_rows):
    facts = score(*LABELS, "--bad-rows", "nan", "--out", "o.npz", "--outputs", "loss,rank,argmax,entropy",
                  block_rows=block_rows)  # fmt: skip
    record = ek.score(spoiled.fine_x, spoiled.fine_y, outputs=("loss", "rank", "argmax", "entropy"))
    saved = np.load("o.npz")
    for name in saved.files:
        expected = getattr(record, name).copy()
        expected[list(BAD)] = -1 if expected.dtype.kind == "i" else np.nan
        np.testing.assert_array_equal(saved[name], expected)
    fine = spoiled.fine
    assert facts["bad_rows"] == {"NaN": 1, "infinite": 1, "label out of range": 2}
    assert facts["first_bad_rows"] == [{"row": row, "reason": reason} for row, reason in BAD.items()]
    assert (facts["rows"], facts["ignored"], facts["nan_rows"]) == (N, 0, 0)
    assert facts["mean"] == pytest.approx(record.loss[fine].astype(float).mean(), rel=1e-12)
    assert facts["accuracy"] == pytest.approx(np.mean((record.argmax == spoiled.fine_y)[fine]))
    assert facts["quantiles"]["max"] == facts["hardest"][0]["loss"] == record.loss[fine].max()


@pytest.mark.parametrize("suffix", ["npz", "npy", "csv", "parquet"])
def test_bad_rows_are_skipped(spoiled, score, suffix):
    facts = score(*LABELS, "--bad-rows", "skip", "--out", f"o.{suffix}")
    assert facts["bad_rows"] == {"NaN": 1, "infinite": 1, "label out of range": 2}
    rows = None
    if suffix == "npy":
        loss = np.load("o.npy")
    elif suffix == "npz":
        saved = np.load("o.npz")
        assert saved.files == ["row", "loss"]
        rows, loss = saved["row"], saved["loss"]
    elif suffix == "csv":
        assert Path("o.csv").read_text().startswith("row,loss\n")
        rows, loss = np.loadtxt("o.csv", delimiter=",", skiprows=1).T
    else:
        table = pytest.importorskip("pyarrow.parquet").read_table("o.parquet")
        assert table.column_names == ["row", "loss"]
        rows, loss = table["row"].to_numpy(), table["loss"].to_numpy()
    expected = ek.cross_entropy(spoiled.fine_x, spoiled.fine_y, reduction="none")[spoiled.fine]
    np.testing.assert_array_equal(loss.astype(np.float32), expected)
    if rows is not None:
        np.testing.assert_array_equal(rows, spoiled.fine)


def test_the_first_bad_row_ends_the_run(spoiled, complaint):
    def message(*args: str) -> str:
        return complaint("score", *args, "--bad-rows", "raise", "--out", "o.npy", "--block-rows", "64")

    assert message(*LABELS) == "x.npy: bad row 70: NaN; pass --bad-rows nan or skip to go on without such rows"
    np.save("x", spoiled.fine_x)
    assert message(*LABELS).startswith("y.npy: bad row 500: label 7 is out of range for k = 7 classes; ")
    assert not list(Path().glob("*o.npy*"))
    np.save("x", spoiled.fine_x.reshape(20, 50, K))
    np.save("y", spoiled.y.reshape(20, 50))
    assert message(*LABELS).startswith("y.npy: bad row (10, 0): label 7 ")


def test_rows_that_are_ignored_are_not_bad(spoiled, score):
    spoiled.y[[70, 500]] = -1
    np.save("y", spoiled.y)
    np.save("w", np.arange(1.0, K + 1))
    facts = score(*LABELS, "--bad-rows", "nan", "--ignore-index", "-1", "--class-weight", "w.npy", "--out", "o.npy")
    assert facts["bad_rows"] == {"infinite": 1}
    assert facts["ignored"] == 3
    counted = np.delete(np.arange(N), [70, 80, 500, 900])
    expected = ek.cross_entropy(spoiled.x[counted], spoiled.y[counted], class_weight=np.arange(1.0, K + 1))
    assert facts["mean"] == pytest.approx(float(expected), rel=1e-6)


def test_many_bad_rows_are_counted_and_the_first_listed(files, score, capsys):
    files.y[::3] = 99
    np.save("y", files.y)
    facts = score(*LABELS, "--bad-rows", "nan")
    assert facts["bad_rows"] == {"label out of range": 334}
    assert [bad["row"] for bad in facts["first_bad_rows"]] == list(range(0, 60, 3))
    assert cli.main(["score", *LABELS, "--bad-rows", "nan"]) == 0
    out = capsys.readouterr().out
    assert "bad rows, which do not count: 334 label out of range\n  row" in out
    assert "  57  label out of range" in out
    files.y[:] = 99
    np.save("y", files.y)
    assert score(*LABELS, "--bad-rows", "nan")["mean"] is None


def test_without_bad_rows_nothing_differs(files, score):
    plain = score(*LABELS, "--out", "plain.npy")
    for policy in ("raise", "skip", "nan"):
        facts = score(*LABELS, "--bad-rows", policy, "--out", "o.npy")
        assert (facts.pop("bad_rows"), facts.pop("first_bad_rows")) == ({}, [])
        assert facts | {"seconds": 0} == plain | {"seconds": 0}
        assert Path("o.npy").read_bytes() == Path("plain.npy").read_bytes()


# A file, what is put where, the request, and the reason that row 70 is bad for
DISTRIBUTIONS = [
    ("p", (70, 1), -0.5, "p.npy --form probs", "probability below 0"),
    ("p", (70, 1), 3.0, "p.npy --form probs", "does not sum to 1"),
    ("p", (70, 1), np.nan, "p.npy --form probs", "NaN"),
    ("p", (70, 1), 3.0, "p.npy y.npy --form probs", "does not sum to 1"),
    ("x", (70, 1), 3.0, "x.npy --form log_probs", "does not sum to 1"),
    ("q", (70, 1), 3.0, "p.npy q.npy --loss kl --form probs", "Y does not sum to 1"),
    ("q", (70, 1), -0.5, "p.npy q.npy --loss js --form probs", "probability below 0 in Y"),
    ("q", (70, 1), 3.0, "p.npy q.npy --form probs", "Y does not sum to 1"),
    ("t", (70, 1), 255, "x0.npy t.npy --loss bce", "target out of range"),
    ("p", (70, 1), 1.5, "p.npy t.npy --loss bce --form probs", "probability outside [0, 1]"),
    ("x", (70, 1), 1.5, "x.npy t.npy --loss bce --form log_probs", "probability outside [0, 1]"),
]


@pytest.mark.parametrize(("name", "place", "value", "line", "reason"), DISTRIBUTIONS)
def test_rows_that_are_no_distributions_are_bad(files, score, name, place, value, line, reason):
    arrays = {"x": np.log(files.p), "p": files.p, "q": files.q, "t": files.t, "x0": files.x}
    for each, array in arrays.items():
        np.save(each, array)
    fine = score(*line.split(), "--out", "fine.npy", "--bad-rows", "raise")
    assert fine["bad_rows"] == {}
    arrays[name][place] = value
    np.save(name, arrays[name])
    facts = score(*line.split(), "--out", "o.npy", "--bad-rows", "nan")
    assert facts["bad_rows"] == {reason: 1}
    expected = np.load("fine.npy")
    expected[70] = np.nan
    np.testing.assert_array_equal(np.load("o.npy"), expected)


def test_a_bad_reference_row_is_refused(files, complaint):
    np.save("r", files.r * 2)
    message = complaint("score", "p.npy", "r.npy", "--loss", "kl", "--form", "probs", "--bad-rows", "nan")
    assert message == "r.npy: its row does not sum to 1; no row can be compared with it"


def test_validate_says_the_same(files, complaint):
    message = complaint("score", "p.npy", "--form", "probs", "--validate", "--bad-rows", "nan")
    assert message == "--validate is what --bad-rows raise does; leave one of them out"
