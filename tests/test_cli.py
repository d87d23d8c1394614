"""`entrokern score` gives what the library gives, whatever the blocks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import entrokern as ek
from entrokern import cli

pytest_plugins = ["cli_fixtures"]
N = 1000  # rows of the files


@pytest.mark.parametrize("block_rows", [1, 64, N - 1, N, None])
def test_cross_entropy_is_the_librarys(files, score, block_rows):
    facts = score("x.npy", "y.npy", "--out", "o.npz", "--outputs", "loss,rank,argmax,max_prob", block_rows=block_rows)
    record = ek.score(files.x, files.y, outputs=("loss", "rank", "argmax", "max_prob"))
    with np.load("o.npz") as saved:
        assert saved.files == ["loss", "rank", "argmax", "max_prob"]
        for name in saved.files:
            expected = getattr(record, name)
            assert saved[name].dtype == expected.dtype
            np.testing.assert_array_equal(saved[name], expected)
    loss = record.loss.astype(np.float64)
    assert facts["rows"] == N
    assert facts["mean"] == pytest.approx(loss.mean(), rel=1e-12)
    assert facts["mean"] == pytest.approx(float(ek.cross_entropy(files.x, files.y)), rel=1e-6)
    assert facts["perplexity"] == pytest.approx(float(ek.perplexity(files.x, files.y)), rel=1e-6)
    assert facts["accuracy"] == pytest.approx(np.mean(record.argmax == files.y))
    quantiles = np.quantile(record.loss, [0, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1], method="inverted_cdf")
    assert list(facts["quantiles"].values()) == [float(v) for v in quantiles]
    assert facts["quantiles_exact"]
    hardest = np.argsort(-record.loss, kind="stable")[:5]
    assert [row["row"] for row in facts["hardest"]] == hardest.tolist()
    for row in facts["hardest"]:
        i = row["row"]
        assert row == {
            "row": i, "label": files.y[i], "argmax": record.argmax[i], "rank": record.rank[i],
            "loss": float(record.loss[i]),
        }  # fmt: skip


OPTIONS = [
    ("ce", {"label_smoothing": 0.1, "temperature": 2.0, "softcap": 3.0, "base": 2.0}),
    ("ce", {"ignore_index": 3}),
    ("ce", {"ignore_index": 3, "class_weight": "w"}),
    ("bce", {"pos_weight": 3.0, "label_smoothing": 0.1}),
    ("kl", {"temperature": 2.0, "base": 2.0}),
    ("js", {}),
    ("entropy", {"temperature": 0.5}),
]


@pytest.mark.parametrize(("loss", "options"), OPTIONS)
def test_losses_and_options_are_the_librarys(files, score, loss, options):
    second = {"ce": "y", "bce": "t", "kl": "q", "js": "q", "entropy": None}[loss]
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    flags = [flag.replace("=w", "=w.npy") for flag in flags]
    if loss in ("kl", "js"):
        flags.append("--y-form=probs")
    facts = score("x.npy", *([f"{second}.npy"] if second else []), "--loss", loss, "--out", "o.npy", *flags)
    options = options | ({"class_weight": files.w} if "class_weight" in options else {})
    target = getattr(files, second) if second else None
    if loss == "ce":
        rows = ek.cross_entropy(files.x, target, reduction="none", **options)
        mean = ek.cross_entropy(files.x, target, **options)
    elif loss == "bce":
        rows = ek.binary_cross_entropy(files.x, target, axis=-1, reduction="none", **options)
        mean = ek.binary_cross_entropy(files.x, target, axis=-1, **options)
    elif loss == "entropy":
        rows = ek.score(files.x, outputs="entropy", **options).entropy
        mean = rows.mean(dtype=np.float64)
    else:
        measure = ek.kl_divergence if loss == "kl" else ek.js_divergence
        rows = measure(files.x, target, p_form="logits", **options)
        mean = measure(files.x, target, p_form="logits", reduction="mean", **options)
    np.testing.assert_allclose(np.load("o.npy"), rows, rtol=1e-6)
    assert facts["mean"] == pytest.approx(float(mean), rel=1e-6)
    if "ignore_index" in options:
        assert facts["ignored"] == np.count_nonzero(files.y == 3)
        counted = files.y != 3
        assert facts["accuracy"] == pytest.approx(np.mean((files.x.argmax(1) == files.y)[counted]))
    if loss == "ce":
        expected = float(ek.perplexity(files.x, target, **{n: v for n, v in options.items() if n != "base"}))
        assert facts["perplexity"] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("form", ["log_probs", "probs"])
def test_forms(files, score, form):
    x = files.p if form == "probs" else np.log(files.p)
    np.save("x", x)
    facts = score("x.npy", "y.npy", "--form", form, "--out", "o.npz", "--outputs", "loss,entropy,rank")
    with np.load("o.npz") as saved:
        np.testing.assert_array_equal(saved["loss"], ek.cross_entropy(x, files.y, form=form, reduction="none"))
        np.testing.assert_array_equal(saved["entropy"], ek.entropy(x, form=form))
        np.testing.assert_array_equal(saved["rank"], ek.score(x, files.y, outputs="rank").rank)
    assert facts["accuracy"] == pytest.approx(np.mean(x.argmax(1) == files.y))
    assert score("x.npy", "--form", form)["mean"] == pytest.approx(ek.entropy(x, form=form).mean())


def test_distribution_targets_have_no_accuracy(files, score):
    facts = score("x.npy", "q.npy")
    assert facts["mean"] == pytest.approx(float(ek.cross_entropy(files.x, files.q)), rel=1e-6)
    assert "accuracy" not in facts


def test_one_reference_row(files, score):
    expected = ek.kl_divergence(files.p, files.r).mean()
    np.save("r2", files.r[None])
    for name in ("r.npy", "r2.npy"):
        assert score("p.npy", name, "--loss", "kl", "--form", "probs")["mean"] == pytest.approx(expected)


def test_binary_of_a_vector(files, score):
    score("z.npy", "zt.npy", "--loss", "bce", "--out", "o.npy")
    np.testing.assert_array_equal(np.load("o.npy"), ek.binary_cross_entropy(files.z, files.zt, reduction="none"))


@pytest.mark.parametrize("block_rows", [1, 7, 10, 45, None])
@pytest.mark.parametrize(
    ("shape", "axis"), [((4, 6, 5, 9), 1), ((6, 50), 0), ((5, 9, 6), -1), ((6, 5, 9), 0), ((6,), 0)]
)
def test_class_axis_and_batch_shape(tmp_path, monkeypatch, score, shape, axis, block_rows):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(2)
    x = rng.normal(size=shape)
    y = rng.integers(0, 6, np.delete(shape, axis))
    np.save("x", x)
    np.save("y", y)
    facts = score("x.npy", "y.npy", "--axis", str(axis), "--out", "o.npy", block_rows=block_rows)
    loss = ek.cross_entropy(x, y, axis=axis, reduction="none")
    saved = np.load("o.npy")
    assert saved.shape == loss.shape
    np.testing.assert_allclose(saved, loss, rtol=1e-15)
    hardest = np.unravel_index(loss.argmax(), loss.shape)
    place = facts["hardest"][0]["row"]
    assert tuple(place) == hardest if loss.ndim > 1 else place == (hardest[0] if hardest else 0)


@pytest.mark.parametrize("dtype", ["<f2", "<f4", "<f8", ">f4", "<i4"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_dtypes_and_orders(files, score, dtype, order):
    x = np.asarray(files.x * 4, dtype, order=order)
    np.save("x", x)
    score("x.npy", "y.npy", "--out", "o.npy")
    saved, expected = np.load("o.npy"), ek.cross_entropy(x, files.y, reduction="none")
    assert saved.dtype == expected.dtype
    np.testing.assert_allclose(saved, expected, rtol=1e-6)


def test_bfloat16(files, score, complaint):
    x = files.x.astype(pytest.importorskip("ml_dtypes").bfloat16)
    np.save("x", x)
    assert score("x.npy", "y.npy", "--dtype", "bfloat16")["mean"] == pytest.approx(
        float(ek.cross_entropy(x, files.y)), rel=1e-6
    )
    assert complaint("score", "x.npy", "y.npy").endswith("if it is bfloat16, pass --dtype bfloat16")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz(files, score, save):
    save("d", x=files.x, y=files.y, other=-files.x)
    plain = score("x.npy", "y.npy")
    facts = score("d.npz")
    assert facts["mean"] == plain["mean"]
    assert score("d.npz:x", "y.npy")["mean"] == plain["mean"]
    assert score("d.npz:other", "d.npz")["mean"] == score("d.npz:other", "d.npz:y")["mean"] != plain["mean"]
    assert score("d.npz", "--loss", "entropy")["value"] == "entropy"
    save("one", files.x)
    assert score("one.npz", "y.npy")["mean"] == plain["mean"]


def test_csv(files, score):
    score("x.npy", "y.npy", "--out", "o.csv", "--outputs", "loss,rank")
    lines = Path("o.csv").read_text().splitlines()
    assert lines[0] == "row,loss,rank"
    table = np.loadtxt(lines[1:], delimiter=",")
    record = ek.score(files.x, files.y, outputs=("loss", "rank"))
    np.testing.assert_array_equal(table[:, 0], np.arange(N))
    np.testing.assert_array_equal(table[:, 1].astype(np.float32), record.loss)
    np.testing.assert_array_equal(table[:, 2], record.rank)


def test_no_rows(tmp_path, monkeypatch, score):
    monkeypatch.chdir(tmp_path)
    np.save("x", np.empty((0, 3), np.float32))
    np.save("y", np.empty(0, np.int64))
    facts = score("x.npy", "y.npy", "--out", "o.npy")
    assert facts["rows"] == 0
    assert facts["mean"] is None
    assert np.load("o.npy").shape == (0,)
    assert np.load("o.npy").dtype == np.float32


def test_nan_and_infinite_rows_are_told(files, score, capsys):
    files.x[[70, 900], 2] = np.nan
    files.y[500] = 1
    files.x[500, 1] = -np.inf
    np.save("x", files.x)
    np.save("y", files.y)
    facts = score("x.npy", "y.npy")
    assert (facts["nan_rows"], facts["first_nan_row"]) == (2, 70)
    assert facts["mean"] is None
    assert facts["quantiles"]["max"] == facts["hardest"][0]["loss"] == "Infinity"
    assert cli.main(["score", "x.npy", "y.npy"]) == 0
    assert "2 with NaN, the first is row 70" in capsys.readouterr().out


def test_the_summary_to_read(files, capsys):
    np.save("y", np.where(np.arange(N) < 3, -100, files.y))
    code = cli.main(["score", "x.npy", "y.npy", "--ignore-index", "-100", "--base", "2", "--out", "o.npy"])
    out, err = capsys.readouterr()
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert "x             x.npy float32 (1000, 7) logits" in lines
    assert "rows          1,000  (3 ignored)" in lines
    for start in ("mean loss     3.", "perplexity    ", "accuracy      ", "quantiles of the loss (exact)"):
        assert any(line.startswith(start) for line in lines), start
    assert any(line.endswith(" bits") for line in lines)
    assert lines[-1] == "wrote o.npy: loss"
