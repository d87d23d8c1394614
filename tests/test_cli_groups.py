"""`entrokern score --by`: the mean of each group is the library's of its rows alone, whatever the blocks."""

from __future__ import annotations

import json

import numpy as np
import pytest

import entrokern as ek
from entrokern import _groups, _scoring, cli
from entrokern._groups import Groups
from entrokern._tally import Rows

pytest_plugins = ["cli_fixtures"]
N = 1000  # rows of the files
COLOURS = np.array(["red", "green", "blue, dark", "ä"])


@pytest.fixture
def keyed(files):
    """The files, with a group for each row as numbers (the largest group is 3) and in other forms."""
    rng = np.random.default_rng(5)
    files.g = rng.choice(4, N, p=[0.1, 0.2, 0.3, 0.4])
    forms = {
        "ints": files.g * 1000 - 1, "bytes": files.g.astype(np.uint8), "bools": files.g > 1,
        "strings": COLOURS[files.g], "ascii": files.g.astype("S2"), "big": files.g.astype(">i4"),
    }  # fmt: skip
    for name, keys in forms.items():
        np.save(name, keys)
        setattr(files, name, keys)
    return files


def means(x, y, keys, **options):
    """Mean cross-entropy of each group, as the library has it."""
    return {key: float(ek.cross_entropy(x[keys == key], y[keys == key], **options)) for key in np.unique(keys)}


def of(groups: list[dict], name: str) -> dict:
    return {group["group"]: group[name] for group in groups}


@pytest.mark.parametrize(
    ("form", "block_rows"),
    [
        ("ints", 64),
        ("ints", None),
        ("bytes", 64),
        ("bools", 64),
        ("strings", 1),
        ("strings", 64),
        ("ascii", 64),
        ("big", 64),
    ],
)
def test_means_are_the_librarys(keyed, score, form, block_rows):
    facts = score("x.npy", "y.npy", "--by", f"{form}.npy", block_rows=block_rows)
    keys = getattr(keyed, form)
    keys = keys.astype(str) if form == "ascii" else keys
    groups = facts["groups"]
    assert facts["by"] == f"{form}.npy"
    assert of(groups, "mean") == pytest.approx(means(keyed.x.astype(float), keyed.y, keys), rel=1e-6)
    assert of(groups, "rows") == dict(zip(*(a.tolist() for a in np.unique(keys, return_counts=True)), strict=True))
    assert [group["mean"] for group in groups] == sorted(of(groups, "mean").values(), reverse=True)
    for group in groups:
        rows = keys == group["group"]
        assert group["perplexity"] == pytest.approx(np.exp(group["mean"]))
        assert group["accuracy"] == pytest.approx(np.mean(keyed.x[rows].argmax(1) == keyed.y[rows]))
    without = score("x.npy", "y.npy", block_rows=block_rows)
    added = {"by", "groups", "bytes", "seconds"}
    assert {n: v for n, v in facts.items() if n not in added} == {n: v for n, v in without.items() if n not in added}


def test_weights_ignored_rows_and_the_base_count_as_in_the_whole(keyed, score):
    keyed.y[keyed.g == 0] = 3  # a group of which nothing counts
    np.save("y", keyed.y)
    options = {"class_weight": keyed.w, "ignore_index": 3, "base": 2.0}
    flags = ["--class-weight", "w.npy", "--ignore-index", "3", "--base", "2"]
    facts = score("x.npy", "y.npy", "--by", "bytes.npy", *flags)
    expected = means(keyed.x, keyed.y, keyed.g, **options)
    assert np.isnan(expected.pop(0))
    assert of(facts["groups"][:3], "mean") == pytest.approx(expected, rel=1e-6)
    assert of(facts["groups"], "ignored") == {g: np.sum((keyed.g == g) & (keyed.y == 3)) for g in range(4)}
    last = facts["groups"][-1]
    assert last["group"] == 0
    assert last["mean"] is last["perplexity"] is last["accuracy"] is None
    for group in facts["groups"][:3]:
        assert group["perplexity"] == pytest.approx(2 ** group["mean"])


@pytest.mark.parametrize("loss", ["bce", "kl", "entropy"])
def test_other_losses(keyed, score, loss):
    y = {"bce": ["t.npy"], "kl": ["r.npy", "--form", "probs"], "entropy": ["--form", "probs"]}[loss]
    facts = score("x.npy" if loss == "bce" else "p.npy", *y, "--loss", loss, "--by", "strings.npy")
    rows = {
        "bce": lambda: ek.binary_cross_entropy(keyed.x, keyed.t, axis=-1, reduction="none"),
        "kl": lambda: ek.kl_divergence(keyed.p, keyed.r),
        "entropy": lambda: ek.entropy(keyed.p),
    }[loss]()
    expected = {str(c): rows[keyed.strings == c].astype(float).mean() for c in COLOURS}
    assert of(facts["groups"], "mean") == pytest.approx(expected, rel=1e-9)
    assert {"perplexity", "accuracy"}.isdisjoint(facts["groups"][0])


def test_keys_have_the_shape_of_the_rows(tmp_path, monkeypatch, score, complaint):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(2)
    x, y, g = rng.normal(size=(4, 3, 5, 6)), rng.integers(0, 3, (4, 5, 6)), rng.integers(0, 4, (4, 5, 6))
    for name, array in {"x": x, "y": y, "g": g, "flat": g.reshape(-1)}.items():
        np.save(name, array)
    facts = score("x.npy", "y.npy", "--axis", "1", "--by", "g.npy", block_rows=7)
    expected = means(np.moveaxis(x, 1, -1).reshape(-1, 3), y.reshape(-1), g.reshape(-1))
    assert of(facts["groups"], "mean") == pytest.approx(expected, rel=1e-12)
    message = complaint("score", "x.npy", "y.npy", "--axis", "1", "--by", "flat.npy")
    assert message == "flat.npy int64 (120,) does not fit x.npy float64 (4, 3, 5, 6); pass one key for each of its " \
        "rows (4, 5, 6)"  # fmt: skip


@pytest.mark.parametrize("block_rows", [7, 64, None])
@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_columns_of_tables(keyed, score, suffix, block_rows):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    missing = np.arange(N) % 9 == 0
    keys = {
        "text": (pa.array(COLOURS[keyed.g], mask=missing), COLOURS),
        "large": (pa.array(COLOURS[keyed.g], pa.large_string(), mask=missing), COLOURS),
        "dictionary": (pa.array(COLOURS[keyed.g], mask=missing).dictionary_encode(), COLOURS),
        "number": (pa.array(keyed.g, pa.int16(), mask=missing), np.arange(4)),
        "truth": (pa.array(keyed.g > 1, mask=missing), np.array([False, False, True, True])),
    }
    table = pa.table({"x": pa.array(list(keyed.x)), "y": keyed.y} | {name: keys for name, (keys, _) in keys.items()})
    if suffix == "parquet":
        pq.write_table(table, "d.parquet", row_group_size=130)
    else:
        with pa.ipc.new_file("d.arrow", table.schema) as writer:
            writer.write_table(table.unify_dictionaries(), max_chunksize=90)
    for name, (_, values) in keys.items():
        facts = score(f"d.{suffix}", "--by", f":{name}", block_rows=block_rows)
        number = np.where(missing, -1, np.unique(values, return_inverse=True)[1][keyed.g])
        expected = means(keyed.x.astype(float), keyed.y, number)
        expected = {None if i < 0 else np.unique(values)[i].item(): mean for i, mean in expected.items()}
        assert of(facts["groups"], "mean") == pytest.approx(expected, rel=1e-6)


def test_keys_of_a_folder_go_by_their_values(keyed, score):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    for i, part in enumerate(np.array_split(np.arange(N), 3)):
        order = part[np.argsort(keyed.g[part] * (-1) ** i, kind="stable")]  # each file begins with another key
        columns = {"x": pa.array(list(keyed.x[order])), "y": keyed.y[order], "by": COLOURS[keyed.g[order]]}
        pq.write_table(pa.table(columns), f"part-{i}.parquet")
    facts = score("part-*.parquet", "--by", "part-*.parquet", block_rows=50)
    expected = means(keyed.x.astype(float), keyed.y, COLOURS[keyed.g])
    assert of(facts["groups"], "mean") == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("policy", ["nan", "skip"])
def test_bad_rows_are_left_out_of_their_group(keyed, score, policy):
    bad, ignored = [3, 70, 500], [70, 600]
    fine = np.delete(np.arange(N), [*bad, *ignored])
    expected = means(keyed.x[fine].astype(float), keyed.y[fine], keyed.g[fine])
    keyed.x[bad, 2] = np.nan
    keyed.y[ignored] = -1
    np.save("x", keyed.x)
    np.save("y", keyed.y)
    facts = score("x.npy", "y.npy", "--by", "bytes.npy", "--bad-rows", policy, "--ignore-index", "-1", "--out", "o.npy")
    groups = facts["groups"]
    assert of(groups, "mean") == pytest.approx(expected, rel=1e-6)
    assert of(groups, "rows") == {g: np.sum(keyed.g == g) for g in range(4)}
    assert of(groups, "bad_rows") == {g: np.sum(keyed.g[[3, 500]] == g) for g in range(4)}
    assert of(groups, "ignored") == {g: np.sum(keyed.g[ignored] == g) for g in range(4)}
    assert sum(of(groups, "bad_rows").values()) == sum(facts["bad_rows"].values())


def test_a_group_with_nan_comes_first(keyed, score):
    keyed.x[keyed.g.argmin(), 0] = np.nan
    np.save("x", keyed.x)
    groups = score("x.npy", "y.npy", "--by", "bytes.npy")["groups"]
    assert (groups[0]["group"], groups[0]["nan_rows"]) == (0, 1)
    assert groups[0]["mean"] is None
    assert None not in [group["mean"] for group in groups[1:]]


@pytest.mark.parametrize("block_rows", [2, 3, 100])
def test_equal_means_go_in_the_order_of_the_rows(tmp_path, monkeypatch, score, block_rows):
    monkeypatch.chdir(tmp_path)
    keys = np.array([5, 3, 9, 3, 1, 5, 7, 2])
    np.save("x", np.ones((8, 3)))
    np.save("keys", keys)
    groups = score("x.npy", "--by", "keys.npy", block_rows=block_rows)["groups"]
    assert [group["group"] for group in groups] == list(dict.fromkeys(keys.tolist()))


def test_an_interrupted_run_goes_on_to_the_same_bits(keyed, capsys, complaint, monkeypatch):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    order = np.argsort(keyed.g, kind="stable")[::-1]  # what comes first is not what is read first when it goes on
    pq.write_table(pa.table({"x": pa.array(list(keyed.x)), "y": keyed.y, "key": COLOURS[keyed.g[order]]}), "d.parquet")
    asked = ["score", "d.parquet", "--by", ":key", "--block-rows", "16", "--json"]
    assert cli.main([*asked, "--out", "whole.npy"]) == 0
    expected = json.loads(capsys.readouterr().out) | {"seconds": 0}
    run = _scoring._Job.run
    for block in (5, 34):

        def failing(job, start, arrays, last=16 * (block - 1)):
            if start == last:
                raise KeyboardInterrupt
            return run(job, start, arrays)

        with monkeypatch.context() as patch:
            patch.setattr(_scoring._Job, "run", failing)
            assert cli.main([*asked, "--out", "o.npy", "--resume"]) == 130
        capsys.readouterr()
    assert "differs in --by; ask for the same" in complaint(*asked[:3], ":y", *asked[4:], "--out", "o.npy", "--resume")
    assert cli.main([*asked, "--out", "o.npy", "--resume"]) == 0
    assert json.loads(capsys.readouterr().out) | {"seconds": 0} == expected


def test_many_groups(tmp_path, monkeypatch, score, complaint):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(3)
    x, keys = rng.normal(size=(20_000, 3)), rng.permutation(np.arange(20_000) % 5000)
    np.save("x", x)
    np.save("keys", keys)
    groups = score("x.npy", "--by", "keys.npy", block_rows=999)["groups"]
    expected = np.bincount(keys, ek.entropy(x, form="logits")) / np.bincount(keys)
    found = of(groups, "mean")
    np.testing.assert_allclose([found[key] for key in range(5000)], expected, rtol=1e-12)
    monkeypatch.setattr(_groups, "MOST", 4000)
    message = complaint("score", "x.npy", "--by", "keys.npy", "--out", "o.npy", "--block-rows", "999")
    assert message == "--by has more than 4,000 different values; choose a column of fewer groups"
    assert not list(tmp_path.glob("*o.npy*"))


def test_sums_lose_nothing_between_blocks():
    groups = Groups()
    for values in ([1e16, 5.0], [1.0, 6.0], [-1e16, 7.0], [1.0, 8.0]):
        groups.add(["a", "b"], np.array([0, 1]), Rows(np.array(values)), None, None)
    assert {g["group"]: g["mean"] for g in groups.facts(None, False, False)} == {"a": 0.5, "b": 6.5}


def test_the_table_to_read(keyed, capsys):
    keys = np.array([f"{i:03}" for i in range(30)])[np.arange(N) % 30]
    keys[keys == "007"] = "a\nb"
    np.save("keys", keys)
    asked = ["score", "x.npy", "y.npy", "--by", "keys.npy"]
    assert cli.main(asked) == 0
    lines = capsys.readouterr().out.splitlines()
    at = lines.index("groups by keys.npy, largest mean loss first, 20 of 30")
    assert lines[at + 1].split() == ["rows", "mean", "perplexity", "accuracy"]
    assert len(lines) == at + 2 + 20
    key, *_, accuracy, sign = lines[at + 2].split()
    hits = (keyed.x.argmax(axis=1) == keyed.y)[keys == key]
    assert (accuracy, sign) == (f"{100 * hits.mean():.2f}", "%")  # as the summary has it
    assert cli.main([*asked, "--groups", "30"]) == 0
    out = capsys.readouterr().out
    assert "\n  'a\\nb'   " in out
    assert "groups by keys.npy, largest mean loss first\n" in out
    assert cli.main([*asked, "--groups", "0"]) == 0
    assert capsys.readouterr().out.endswith("\n\n30 groups by keys.npy\n")


BAD_CALLS = [
    ("--by z.npy", "z.npy float32 (1000,): a group is named by an integer, a bool or a string in each row"),
    ("--by w.npy", "w.npy float64 (7,): a group is named by"),
    ("--by t.npy", "t.npy int64 (1000, 7) does not fit x.npy float32 (1000, 7); pass one key for each"),
    ("--by objects.npy", "objects.npy holds Python objects"),
    ("--by nowhere.npy", "nowhere.npy: No such file or directory"),
    ("--by key", "key: No such file or directory; for a column in the file of X write :key"),
    ("--by d.parquet", "d.parquet has no array 'by'; it has: day, list (pick one with d.parquet:NAME)"),
    ("--by d.parquet:nope", "d.parquet has no array 'nope'"),
    ("--by d.parquet:day", "d.parquet: column day has type date32[day]; a group is named by integers, bools, strings"),
    ("--by d.parquet:list", "d.parquet: column list has type list<"),
    ("--by :key", "x.npy holds one array; leave :key out"),
    ("--groups 3", "--groups needs --by COLUMN"),
    ("--by ints.npy --out ints.npy", "--out ints.npy is a file that is read"),
]


@pytest.mark.parametrize(("flags", "expected"), BAD_CALLS)
def test_bad_calls_get_one_line(keyed, complaint, flags, expected):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    day = pa.array(np.arange(N), pa.int32()).cast(pa.date32())
    pq.write_table(pa.table({"day": day, "list": pa.array([[1]] * N)}), "d.parquet")
    np.save("objects", np.array([None] * N), allow_pickle=True)
    assert expected in complaint("score", "x.npy", "y.npy", *flags.split())
