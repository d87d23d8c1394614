"""`entrokern drift` against histograms by hand and SciPy: columns and rows, levels, exit codes, formats, bad input."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.distance import jensenshannon
from scipy.stats import entropy

from cli_fixtures import not_json
from entrokern import _drift, _intervals, _scoring, cli

pytest_plugins = ["cli_fixtures"]
NP, NQ, BINS = 900, 1300, 16


def columns(n: int, seed: int, moved: float) -> dict[str, np.ndarray]:
    """Columns of every kind; where they moved, from n numbers."""
    rng = np.random.default_rng(seed)
    same = rng.normal(size=n)
    return {
        "same": same,
        "shifted": rng.normal(size=n) + moved,
        "spread": rng.standard_cauchy(n) * (1 + moved),
        "few": rng.integers(0, 3 + round(2 * moved), n).astype(float),  # with values that were not there
        "many": rng.poisson(100 * (1 + moved), n).astype(float),
        "zeros": np.where(rng.random(n) < 0.6 + moved / 4, 0.0, rng.normal(size=n)),
        "constant": np.full(n, 1.0 + moved),
        "nothing": np.where(rng.random(n) < moved, 3.0, np.nan),
        "gaps": np.where(rng.random(n) < 0.1 + moved, np.nan, rng.choice([1.0, 2.0, np.inf, -np.inf], n)),
    }


@pytest.fixture
def tables(tmp_path, monkeypatch):
    """A folder, made the current one, with the data in p.npy and the reference in q.npy; both by name."""
    monkeypatch.chdir(tmp_path)
    found = columns(NP, 1, 0.5), columns(NQ, 2, 0.0)
    for name, table in zip("pq", found, strict=True):
        np.save(name, np.stack([*table.values()], axis=1))
    return found


@pytest.fixture
def drift(capsys):
    """Run `entrokern drift … --json` and return the exit code and the facts."""

    def run(*args: str, block_rows: int | None = 100):
        blocks = [] if block_rows is None else ["--block-rows", str(block_rows)]
        code = cli.main(["drift", *args, "--json", *blocks])
        out, err = capsys.readouterr()
        assert err == ""
        return code, json.loads(out, parse_constant=not_json)

    return run


def by_hand(p, q, bins=BINS, stride=1):
    """The counts of a column of data and of a reference, bin by bin, and what is outside the reference."""
    found = []
    fine = q[np.isfinite(q)]
    values = np.unique(fine)
    sample = np.sort(q[::stride][np.isfinite(q[::stride])])
    inner = [sample[i * sample.size // bins] for i in range(1, bins)] if values.size > bins else []
    edges = {e for e in inner if e > fine.min()} | {np.nextafter(e, np.inf) for e in inner if inner.count(e) > 1}
    for column in (p, q):
        numbers = column[np.isfinite(column)]
        if values.size > bins:
            counts = np.histogram(numbers, [-1e300, *sorted(edges), 1e300])[0].tolist()
            outside = np.sum((numbers < fine.min()) | (numbers > fine.max()))
        else:
            outside = np.sum(~np.isin(numbers, values))
            counts = [np.sum(numbers == value) for value in values] + [outside]
        found.append(np.array([*counts, np.isnan(column).sum(), (column == np.inf).sum(), (column == -np.inf).sum()]))
        if column is p:
            outside_p = outside
    return *found, outside_p / max(1, np.sum(~np.isnan(p)))


def divergence(p, q, measure="js", base=None):
    if measure == "js":
        return jensenshannon(p, q, base) ** 2
    filled = (p > 0) | (q > 0)
    return entropy(p[filled] + 0.5, q[filled] + 0.5, base)


# Columns


@pytest.mark.parametrize("block_rows", [7, 100, None])
@pytest.mark.parametrize(("measure", "base"), [("js", None), ("kl", 2.0)])
def test_columns_are_as_by_hand(tables, drift, measure, base, block_rows):
    flags = ["--measure", measure, "--bins", str(BINS), *([] if base is None else ["--base", str(base)])]
    code, facts = drift("p.npy", "q.npy", *flags, block_rows=block_rows)
    assert code == 0
    assert (facts["rows_p"], facts["rows_q"], facts["unit"]) == (NP, NQ, "nats" if base is None else "bits")
    found = [column["divergence"] for column in facts["columns"]]
    assert found == sorted(found, reverse=True)
    for column in facts["columns"]:
        p, q = ([*table.values()][column["column"]] for table in tables)
        counts_p, counts_q, outside = by_hand(p, q)
        expected = divergence(counts_p, counts_q, measure, base)
        assert column["divergence"] == pytest.approx(expected, rel=1e-9, abs=1e-15), [*tables[0]][column["column"]]
        assert column["outside"] == pytest.approx(outside)
        assert (column["n_p"], column["n_q"]) == (np.sum(~np.isnan(p)), np.sum(~np.isnan(q)))
        assert (column["nan_p"], column["inf_q"]) == pytest.approx((np.mean(np.isnan(p)), np.mean(np.isinf(q))))


def test_what_moved_is_found_and_nothing_else(tables, drift):
    _, facts = drift("p.npy", "q.npy")
    found = {[*tables[0]][column["column"]]: column["divergence"] for column in facts["columns"]}
    assert found["constant"] == pytest.approx(np.log(2))
    assert found.pop("same") < 0.01 < min(found.values())
    _, facts = drift("q.npy", "q.npy", "--measure", "kl")
    assert [column["divergence"] for column in facts["columns"]] == [0.0] * len(tables[0])


def test_equal_masses_are_told_by_an_even_sample(tables, drift, monkeypatch):
    monkeypatch.setattr(_intervals, "SAMPLE_BYTES", 0)
    monkeypatch.setattr(_intervals, "LEAST_ROWS", 200)
    results = [drift("p.npy", "q.npy", "--bins", str(BINS), block_rows=rows)[1]["columns"] for rows in (3, 100, None)]
    assert results[0] == results[1] == results[2]
    for column in results[0]:
        p, q = ([*table.values()][column["column"]] for table in tables)
        counts_p, counts_q, outside = by_hand(p, q, stride=-(-NQ // 200))
        assert column["divergence"] == pytest.approx(divergence(counts_p, counts_q), rel=1e-9, abs=1e-15)
        assert column["outside"] == pytest.approx(outside)


@pytest.mark.parametrize("threads", ["1", "3"])
def test_wide_tables_are_counted_in_pieces(tmp_path, monkeypatch, drift, threads):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(_intervals, "CELLS", 300)
    rng = np.random.default_rng(4)
    p, q = rng.normal(size=(150, 70)).astype(np.float32), rng.integers(0, 40, (150, 70)).astype(np.float32)
    np.save("p", np.asfortranarray(p))
    np.save("q", q)
    _, facts = drift("p.npy", "q.npy", "--bins", str(BINS), "--threads", threads)
    assert [column["column"] for column in facts["columns"]] != list(range(70))
    for column in facts["columns"]:
        counts_p, counts_q, _ = by_hand(p[:, column["column"]], q[:, column["column"]])
        assert column["divergence"] == pytest.approx(divergence(counts_p, counts_q), rel=1e-9)


@pytest.mark.parametrize("dtype", ["<f2", "<f4", ">f8", "<i8", "?", "bfloat16"])
def test_dtypes_and_one_column(tmp_path, monkeypatch, drift, dtype):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(6)
    p, q = (scale * rng.normal(size=500) for scale in (2, 3))
    if dtype == "bfloat16":
        stored = [column.astype(pytest.importorskip("ml_dtypes").bfloat16) for column in (p, q)]
        header = json.dumps({n: {"dtype": "BF16", "shape": [500], "data_offsets": [1000 * i, 1000 * i + 1000]}
                             for i, n in enumerate("pq")}).encode()  # fmt: skip
        data = b"".join(column.tobytes() for column in stored)
        Path("d.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + data)
        names = ["d.safetensors:p", ":q"]
    else:
        stored, names = [column.astype(dtype) for column in (p, q)], ["p.npy", "q.npy"]
        for name, column in zip("pq", stored, strict=True):
            np.save(name, column)
    _, facts = drift(*names, "--bins", str(BINS))
    counts_p, counts_q, _ = by_hand(*(column.astype(float) for column in stored))
    assert [column["column"] for column in facts["columns"]] == [0]
    assert facts["columns"][0]["divergence"] == pytest.approx(divergence(counts_p, counts_q), rel=1e-9)


def test_a_value_is_the_same_in_every_float_type(tmp_path, monkeypatch, drift):
    monkeypatch.chdir(tmp_path)
    values = np.array([0.1, 0.2, 0.7])[np.arange(90) % 3]
    np.save("p", values)
    np.save("q", values.astype(np.float32))
    for pair in (("p.npy", "q.npy"), ("q.npy", "p.npy")):
        (column,) = drift(*pair)[1]["columns"]
        assert (column["divergence"], column["outside"], column["bins"]) == (0, 0, 3)


# Tables with names


def table(**given):
    pa = pytest.importorskip("pyarrow")
    rng = np.random.default_rng(7)
    n = 300
    made = {
        "age": rng.integers(18, 90, n),
        "price": rng.lognormal(size=n).astype(np.float32),
        "flag": pa.array(rng.random(n) < 0.3),
        "city": pa.array(np.array(["Ulm", "Bonn"])[rng.integers(0, 2, n)]),
        "gap": pa.array(rng.integers(0, 3, n), mask=rng.random(n) < 0.2),
    }
    return pa.table(made | given)


def save(name, table):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    if name.endswith(".parquet"):
        return pq.write_table(table, name, row_group_size=77)
    with pa.ipc.new_file(name, table.schema) as writer:
        return writer.write_table(table, max_chunksize=90)


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_columns_go_by_their_names(tmp_path, monkeypatch, drift, capsys, suffix):
    monkeypatch.chdir(tmp_path)
    q = table()
    flag = np.arange(300) % 2 == 0
    p = table(flag=flag, gap=q["gap"].fill_null(0))
    save(f"p.{suffix}", p.select(["gap", "flag", "price", "city", "age"]))
    save(f"q.{suffix}", q)
    code, facts = drift(f"p.{suffix}", f"q.{suffix}", "--threshold", "0.01")
    assert code == 1
    assert facts["left_out_p"] == facts["left_out_q"] == ["city"]
    found = {column["column"]: column for column in facts["columns"]}
    assert [name for name in found if found[name]["divergence"] > 0] == ["gap", "flag"]
    missing = q["gap"].null_count / 300
    assert (found["gap"]["nan_p"], found["gap"]["nan_q"]) == pytest.approx((0, missing))
    share = np.array(q["flag"]).mean()
    expected = divergence(np.array([0.5, 0.5]), np.array([1 - share, share]))
    assert found["flag"]["divergence"] == pytest.approx(expected)
    assert list(found)[2:] == ["price", "age"]  # of equal divergence: in the order of P
    _, facts = drift(f"p.{suffix}:flag", f"q.{suffix}:flag")
    assert facts["columns"] == [found["flag"]]
    _, facts = drift(f"p.{suffix}:flag", f"q.{suffix}:age")  # asked for by name
    assert facts["columns"][0]["outside"] == 1
    assert cli.main(["drift", f"p.{suffix}", f"q.{suffix}"]) == 0
    assert "left out      city: no columns of numbers" in capsys.readouterr().out


def test_names_of_one_side_and_files_of_a_folder(tmp_path, monkeypatch, drift, complaint):
    monkeypatch.chdir(tmp_path)
    whole = table().select(["age", "price"])
    save("q.parquet", whole)
    np.save("p", np.stack([whole["age"].to_numpy(), whole["price"].to_numpy()], axis=1))
    for pair in (("p.npy", "q.parquet"), ("q.parquet", "p.npy")):
        assert [c["column"] for c in drift(*pair)[1]["columns"]] == ["age", "price"]
    for i in range(3):
        save(f"part-{i}.parquet", whole.slice(100 * i, 100))
    assert [c["divergence"] for c in drift("part-*.parquet", "q.parquet")[1]["columns"]] == [0, 0]
    save("part-3.parquet", whole.select(["price", "age"]))
    assert "part-3.parquet has other columns than part-0.parquet" in complaint("drift", "part-*.parquet", "q.parquet")


# Levels, output, exit codes


def test_levels_decide_the_exit_code(tables, drift, capsys):
    _, facts = drift("p.npy", "q.npy")
    values = [column["divergence"] for column in facts["columns"]]
    assert {"above", "warned"}.isdisjoint(facts)
    threshold, warn = values[2], values[5]  # what is equal is not above
    levels = ["--threshold", repr(threshold), "--warn", repr(warn)]
    code, facts = drift("p.npy", "q.npy", *levels)
    assert (code, facts["above"], facts["warned"]) == (1, 2, 3)
    assert drift("p.npy", "q.npy", "--threshold", "1")[0] == 0
    code, facts = drift("p.npy", "q.npy", "--warn", repr(warn))
    assert (code, facts["warned"]) == (0, 5)
    assert cli.main(["drift", "p.npy", "q.npy", *levels, "--top", "6"]) == 1
    lines = capsys.readouterr().out.splitlines()
    at = lines.index("columns of most divergence, 6 of 9")
    assert [line.split()[-1] for line in lines[at + 2 : at + 8]] == ["above"] * 2 + ["warn"] * 3 + ["%"]
    worst = facts["columns"][0]["column"]
    assert lines[-1] == (
        f"2 of 9 columns above {threshold:g}; 3 more above {warn:g}; "
        f"the largest is column {worst}, {values[0]:.4g} nats"
    )


@pytest.mark.parametrize("name", ["o.npy", "o.csv", "o.parquet"])
def test_divergences_are_written_in_the_order_of_p(tables, drift, capsys, name):
    _, facts = drift("p.npy", "q.npy", "--out", name)
    expected = [c["divergence"] for c in sorted(facts["columns"], key=lambda column: column["column"])]
    if name == "o.npy":
        found = np.load(name)
    elif name == "o.csv":
        assert Path(name).read_text().startswith("row,js\n0,")
        found = np.loadtxt(name, delimiter=",", skiprows=1)[:, 1]
    else:
        found = pytest.importorskip("pyarrow.parquet").read_table(name)["js"].to_numpy()
    assert found.tolist() == expected
    assert cli.main(["drift", "p.npy", "q.npy", "--out", name]) == 0
    assert capsys.readouterr().out.endswith(f"\n\nwrote {name}\n")


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_the_exit_code_survives_a_closed_pipe(tables, monkeypatch, unbuffered):
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    line = f"{sys.executable} -m entrokern drift p.npy q.npy --threshold 0.01 | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("1\n", "")


def test_progress_is_for_terminals(tables, monkeypatch, capsys):
    monkeypatch.setattr(cli.time, "monotonic", iter(np.arange(0.0, 1e6, 0.3)).__next__)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert cli.main(["drift", "p.npy", "q.npy", "--block-rows", "100"]) == 0
    err = capsys.readouterr().err
    assert all(part in err for part in ("#", "100 %", "rows/s", "GB/s"))


@pytest.mark.slow
@pytest.mark.parametrize("k", [10, 1000])
def test_memory_is_bounded(tmp_path, monkeypatch, peak_mb, k):
    """Files of 400 MB take no more than the sample and a few blocks on top of what small ones take."""
    monkeypatch.chdir(tmp_path)
    for name, rows in (("small", 1000), ("large", 100_000_000 // k)):
        x = np.lib.format.open_memmap(f"{name}.npy", "w+", np.float32, (rows, k))
        for i in range(0, rows, max(1, rows // 10)):
            part = x[i : i + max(1, rows // 10)]
            part[:] = np.random.default_rng(i).random(part.shape, np.float32)
        x.flush()
        del x
    small, large = (peak_mb("drift", f"{name}.npy", f"{name}.npy") for name in ("small", "large"))
    assert large - small < 250


# Rows


@pytest.mark.parametrize("measure", ["js", "kl"])
@pytest.mark.parametrize("reference", ["q", "r"])
def test_rows_are_scipys(files, drift, measure, reference):
    q = np.broadcast_to(getattr(files, reference), files.p.shape)
    expected = jensenshannon(files.p, q, 2, axis=1) ** 2 if measure == "js" else entropy(files.p, q, 2, axis=1)
    threshold, warn = np.sort(expected)[[-4, -11]] + 1e-12
    flags = ["--of", "rows", "--form", "probs", "--measure", measure, "--base", "2", "--out", "o.npy", "--top", "2"]
    code, facts = drift("p.npy", f"{reference}.npy", *flags, "--threshold", str(threshold), "--warn", str(warn))
    assert (code, facts["above"], facts["warned"], facts["rows"]) == (1, 3, 7, len(q))
    np.testing.assert_allclose(np.load("o.npy"), expected, rtol=1e-9)
    assert [row["row"] for row in facts["hardest"]] == np.argsort(-expected)[:2].tolist()
    assert facts["quantiles"]["median"] == pytest.approx(np.quantile(expected, 0.5, method="inverted_cdf"))
    assert drift("p.npy", f"{reference}.npy", *flags, "--threshold", "1e3")[0] == 0


def test_a_row_of_nan_is_not_known_to_be_below(files, drift, capsys):
    files.p[17, 3] = np.nan
    np.save("p", files.p)
    asked = ["p.npy", "q.npy", "--of", "rows", "--form", "probs", "--threshold", "10"]
    code, facts = drift(*asked)
    assert (code, facts["above"]) == (1, 1)
    assert cli.main(["drift", *asked]) == 1
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith(
        "1 of 1,000 rows above 10; 1 of them NaN, which is not known to be below; the largest is row "
    )


def test_an_interrupted_run_leaves_nothing(files, monkeypatch, capsys):
    def failing(job, start, arrays):
        raise KeyboardInterrupt

    monkeypatch.setattr(_scoring._Job, "run", failing)
    asked = ["drift", "p.npy", "q.npy", "--of", "rows", "--out", "o.npy", "--block-rows", "100"]
    assert cli.main(asked) == 130
    assert capsys.readouterr().err == "entrokern: interrupted\n"
    assert not list(Path().glob("*o.npy*"))


# What is refused

BAD_CALLS = [
    ("p.npy missing.npy", "missing.npy: No such file or directory"),
    ("p.npy x4.npy", "p.npy float64 (900, 9) has 9 columns and x4.npy float64 (5, 4) has 4; as many are needed"),
    ("p.npy empty.npy", "empty.npy float64 (0, 9) has no rows to compare"),
    ("none.npy none.npy", "none.npy float64 (9, 0) has no columns to compare"),
    ("p.npy cube.npy", "cube.npy float64 (2, 3, 4): a table of rows and columns, or one column, is needed"),
    ("p.npy text.npy", "text.npy <U1 (3,): columns of numbers are needed"),
    ("d.parquet e.parquet", "e.parquet has no column of numbers price, which d.parquet has; name those to compare"),
    ("e.parquet d.parquet", "e.parquet has no column of numbers price, which d.parquet has"),
    ("d.parquet:city e.parquet", "d.parquet: column city has type string; a column of numbers"),
    ("d.parquet:nope e.parquet", "d.parquet has no column 'nope'"),
    ("d.parquet:price,nope e.parquet", "d.parquet has no column 'nope'"),
    ("p.npy q.npy --form probs", "--form says how rows are given; it needs --of rows"),
    ("p.npy q.npy --of rows --bins 3", "--bins are those of columns"),
    ("p.npy q.npy --bins 1", "--bins 1 is out of range; pass 2 to 4096"),
    ("p.npy q.npy --threshold -1", "argument --threshold: invalid level value: '-1'"),
    ("p.npy q.npy --threshold nan", "argument --threshold: invalid level value: 'nan'"),
    ("p.npy q.npy --threshold 1 --warn 2", "--warn 2 is above --threshold 1"),
    ("p.npy q.npy --base 1", "base=1 has no logarithm"),
    ("p.npy q.npy --base 0.5", "--base 0.5 makes divergences negative"),
    ("p.npy q.npy --out q.npy", "--out q.npy is a file that is read"),
    ("p.npy q.npy --out o.txt", "end it in .npy"),
    ("p.npy q.npy --of rows", "q.npy float64 (1300, 9) does not fit p.npy float64 (900, 9); pass as many rows"),
    ("p.npy", "the following arguments are required: Q"),
]


@pytest.mark.parametrize(("line", "expected"), BAD_CALLS)
def test_bad_calls_get_one_line(tables, complaint, line, expected):
    arrays = {"x4": np.ones((5, 4)), "empty": np.ones((0, 9)), "none": np.ones((9, 0)), "cube": np.ones((2, 3, 4))}
    for name, array in (arrays | {"text": np.array(["a", "b", "c"])}).items():
        np.save(name, array)
    if "parquet" in line:
        save("d.parquet", table())
        save("e.parquet", table().drop_columns("price"))
    assert expected in complaint("drift", *line.split())
    assert not [name for name in os.listdir() if name.startswith(("o.", ".o"))]


def test_a_reference_that_changes_is_refused(tables, complaint, monkeypatch):
    add = _drift.Survey.add

    def touching(survey, start, rows):
        os.utime("q.npy", (0, 0))
        return add(survey, start, rows)

    monkeypatch.setattr(_drift.Survey, "add", touching)
    message = complaint("drift", "p.npy", "q.npy", "--out", "o.npy")
    assert message == f"{Path('q.npy').resolve()} changed while it was read"
    assert not Path("o.npy").exists()


def test_lists_beside_numbers_are_not_guessed(tmp_path, monkeypatch, capsys, drift):
    monkeypatch.chdir(tmp_path)
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    lists = arrow.FixedSizeListArray.from_arrays(np.arange(12.0), 3)
    parquet.write_table(arrow.table({"logits": lists, "y": [1, 2, 3, 4]}), "p.parquet")
    assert cli.main(["drift", "p.parquet", "p.parquet"]) == 2
    said = capsys.readouterr().err
    assert "has columns of lists (logits) and of numbers (y); pick with p.parquet:logits or p.parquet:y" in said
    code, facts = drift("p.parquet:logits", "p.parquet:logits", "--threshold", "0.01")
    assert (code, len(facts["columns"])) == (0, 3)
    # Of the two files of a divergence, both are distributions.
    assert cli.main(["score", "p.parquet", "p.parquet", "--loss", "kl", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["mean"] == 0.0
