"""Wide and compressed tables: the rows that a narrow table gives, in bounded memory, or one clear line."""

from __future__ import annotations

import errno
import itertools
import os
import tempfile
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

import entrokern as ek
from entrokern.files import InputError, decoded, open_array, scratch

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
pytest_plugins = ["cli_fixtures"]
N, K = 500, 11
CUTS = [0, 130, 130, 131, 300, N]  # parts of a file: one of no row, one of one


@pytest.fixture
def narrow_memory(monkeypatch):
    """So little that a file of a few columns is read by way of the scratch file, three or so at a time."""
    monkeypatch.setattr(decoded, "TOO_MUCH", 1000)
    monkeypatch.setattr(decoded, "GROUP_BYTES", 3000)
    monkeypatch.setattr(decoded, "PART_BYTES", 700)


@pytest.fixture
def x(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return np.random.default_rng(1).normal(size=(N, K)).astype(np.float32).round(1)  # a dictionary pays


def write(path, table, compression="lz4"):
    parts = [table.slice(low, high - low) for low, high in itertools.pairwise(CUTS)]
    if path.endswith("parquet"):
        with pq.ParquetWriter(path, table.schema) as writer:
            for part in parts:
                writer.write_table(part)
    else:
        options = pa.ipc.IpcWriteOptions(compression=compression)
        with pa.ipc.new_file(path, table.schema, options=options) as writer:
            for part in parts:
                writer.write(pa.record_batch([column.combine_chunks() for column in part.columns], part.schema.names))


def columns(x, **others):
    return pa.table({f"c{j}": x[:, j] for j in range(x.shape[1])} | others)


def lists(x, kind):
    flat = pa.array(x.reshape(-1))
    if kind == "fixed":
        return pa.FixedSizeListArray.from_arrays(flat, x.shape[1])
    make, dtype = (pa.ListArray, np.int32) if kind == "list" else (pa.LargeListArray, np.int64)
    return make.from_arrays(pa.array(np.arange(len(x) + 1, dtype=dtype) * x.shape[1]), flat)


def rows_of(name, step=64, start=0, null=None):
    """All rows from `start` on, and how they were read."""
    with closing(open_array(name, "x")) as array:
        array.lay_out(1)
        array.null = null
        read = [array.rows(at, min(at + step, array.n_rows)).copy() for at in range(start, array.n_rows, step)]
        read = read or [np.empty((0, array.k), array.dtype)]
        how = type(array).__name__
        if how == "Decoded" and array._scratch is not None:
            how = "Scratch"
        return np.concatenate(read), how


# Many columns


@pytest.mark.parametrize("step", [7, 64, N])
@pytest.mark.parametrize("name", ["d.parquet", "d.feather", "d.arrow"])
@pytest.mark.usefixtures("narrow_memory")
def test_columns_by_way_of_the_scratch_file(x, name, step):
    write(name, columns(x, y=np.arange(N)), None if name == "d.arrow" else "zstd")
    for start in (0, 5, 130, 250, N - 1):
        rows, how = rows_of(name, step, start)
        assert how == "Scratch"
        np.testing.assert_array_equal(rows, x[start:])


@pytest.mark.parametrize("name", ["d.parquet", "d.feather"])
def test_small_parts_need_no_scratch_file(x, monkeypatch, name):
    write(name, columns(x))
    rows, how = rows_of(name)
    assert how == "Decoded"
    np.testing.assert_array_equal(rows, x)
    largest = 2 * 4 * K * max(np.diff(CUTS))
    monkeypatch.setattr(decoded, "TOO_MUCH", largest - 1 if name == "d.feather" else 4000)  # but one part is not small
    monkeypatch.setattr(decoded, "GROUP_BYTES", 3000)
    rows, how = rows_of(name)
    assert how == "Scratch"
    np.testing.assert_array_equal(rows, x)


@pytest.mark.usefixtures("narrow_memory")
@pytest.mark.parametrize("name", ["d.parquet", "d.feather"])
def test_columns_of_several_dtypes(x, name):
    table = {f"c{j}": x[:, j].astype("f8" if j % 3 else "f2") for j in range(K)} | {"i": np.arange(N)}
    write(name, pa.table(table))
    rows, how = rows_of(f"{name}:c*,i")
    assert (rows.dtype, how) == (np.float64, "Scratch")
    expected = np.stack([column.astype(float) for column in table.values()], axis=1)
    np.testing.assert_array_equal(rows, expected)


@pytest.mark.usefixtures("narrow_memory")
@pytest.mark.parametrize("name", ["d.parquet", "d.feather"])
def test_values_that_are_missing(x, score, complaint, name):
    y = np.random.default_rng(2).integers(0, K, N)
    table = columns(x, y=y)
    for at, column in ((299, 4), (70, 9)):
        column = table.schema.get_field_index(f"c{column}")
        mask = np.arange(N) == at
        table = table.set_column(column, f"c{column}", pa.array(x[:, column], mask=mask))
    write(name, table)
    facts = score(name, "--bad-rows", "nan", "--out", "o.npy")
    assert [bad["row"] for bad in facts["first_bad_rows"]] == [70, 299]
    expected = ek.cross_entropy(x, y, reduction="none")
    expected[[70, 299]] = np.nan
    np.testing.assert_array_equal(np.load("o.npy"), expected)
    assert f"{name}: column c9 has no value in row 70 (null)" in complaint("score", name)


@pytest.mark.usefixtures("narrow_memory")
@pytest.mark.parametrize("name", ["d.parquet", "d.feather"])
def test_no_rows(x, score, name):
    write(name, columns(x, y=np.zeros(N, int)).slice(0, 0))
    assert score(name, "--out", "o.npy")["rows"] == 0


@pytest.mark.usefixtures("narrow_memory")
def test_drift_of_wide_tables(x, capsys):
    from entrokern import cli

    np.save("x", x)
    write("d.parquet", columns(x))
    write("d.feather", columns(x[::-1] * 0.9))
    np.save("z", x[::-1] * np.float32(0.9))
    said = []
    for p, q in (("x.npy", "z.npy"), ("d.parquet", "d.feather")):
        assert cli.main(["drift", p, q, "--out", f"{p}.npy"]) == 0
        said.append(np.load(f"{p}.npy"))
    np.testing.assert_array_equal(*said)
    capsys.readouterr()


# The scratch file


@pytest.mark.usefixtures("narrow_memory")
@pytest.mark.parametrize("full", ["before", "while writing"])
def test_a_full_disk(x, complaint, monkeypatch, full):
    write("d.parquet", columns(x, y=np.zeros(N, int)))

    def pwrite(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if full == "before":
        monkeypatch.setattr(scratch, "_room", lambda file: 1000)
    else:
        monkeypatch.setattr(os, "pwrite", pwrite)
    line = complaint("score", "d.parquet", "--out", "o.npy")
    assert f"d.parquet is a wide table and needs a scratch file of {130 * K * 4:,} bytes, but " in line
    assert "No space left on device; set TMPDIR" in line
    assert os.listdir() == ["d.parquet"]


def test_where_the_scratch_file_is(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert scratch._folder() == str(tmp_path)
    with closing(scratch.Scratch("it", np.dtype("f4"))):
        assert not os.listdir(tmp_path)  # it has no name
    for name in ("TMPDIR", "TEMP", "TMP"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(tempfile, "tempdir", None)
    assert scratch._folder() in ("/var/tmp", tempfile.gettempdir())


# Elements that are not decoded by pyarrow


@pytest.mark.parametrize("kind", ["fixed", "list", "large"])
@pytest.mark.parametrize("compression", [None, "lz4", "zstd"])
def test_lists_come_out_of_the_file_as_they_are(x, kind, compression):
    before = {
        "s": pa.array(["a", None] * (N // 2)),
        "d": pa.array(["a", "b"] * (N // 2)).dictionary_encode(),
        "r": pa.array([{"a": 1, "b": ["t"]}] * N),
        "b": pa.array([True] * N),
    }
    after = {"z": pa.array([[1], [2, 3]] * (N // 2))}
    write("d.arrow", pa.table(before | {"x": lists(x, kind)} | after), compression)
    for start, step in ((0, 64), (0, N), (5, 1), (140, 13)):
        rows, how = rows_of("d.arrow", step, start)
        assert how == ("Streamed" if compression else "InPlace")
        np.testing.assert_array_equal(rows, x[start:])


def test_a_slice_of_a_table_and_a_column_of_labels(x, score):
    y = np.random.default_rng(2).integers(0, K, 2 * N)
    twice = pa.table({"x": lists(np.concatenate([x[::-1], x]), "list"), "y": y})
    write("d.feather", twice.slice(N))
    score("d.feather", "--out", "o.npy")
    np.testing.assert_array_equal(np.load("o.npy"), ek.cross_entropy(x, y[N:], reduction="none"))


def test_long_columns_are_read_in_place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    table = {"a": np.arange(40_000.0), "b": np.arange(40_000, dtype="f4")[::-1], "i": np.arange(40_000)}
    with pa.ipc.new_file("d.arrow", pa.table(table).schema) as writer:
        writer.write_table(pa.table(table), max_chunksize=30_000)
    rows, how = rows_of("d.arrow:*", 7777)
    assert how == "InPlace"
    np.testing.assert_array_equal(rows, np.stack([column.astype(float) for column in table.values()], axis=1))


@pytest.mark.parametrize("where", ["a list", "a value"])
def test_lists_with_nulls_are_decoded(x, where):
    rows = x.tolist()
    if where == "a list":
        rows[70], x[70] = None, np.nan
    else:
        rows[70][3] = x[70, 3] = np.nan
        rows[70][3] = None
    for kind in (pa.list_(pa.float32(), K), pa.list_(pa.float32())):
        write("d.feather", pa.table({"x": pa.array(rows, kind)}))
        read, how = rows_of("d.feather", null=np.nan)
        assert how == "Decoded"
        np.testing.assert_array_equal(read, x)


def test_lists_of_several_lengths_are_refused(x, complaint):
    rows = x.tolist()
    rows[70] = rows[70][1:]
    write("d.feather", pa.table({"x": rows, "y": np.zeros(N, int)}))
    assert f"row 70 has {K - 1} numbers, but others {K}" in complaint("score", "d.feather")


def test_types_whose_layout_is_not_known_are_decoded(x):
    odd = pa.array([None] * N, pa.null())
    write("d.feather", pa.table({"n": odd, "x": lists(x, "fixed")}))
    rows, how = rows_of("d.feather")
    assert how == "Decoded"
    np.testing.assert_array_equal(rows, x)


@pytest.mark.parametrize("name", ["lists.feather", "uneven.feather", "lists.arrow", "columns.feather"])
@pytest.mark.usefixtures("narrow_memory")
def test_damaged_metadata_is_refused_or_harmless(x, name):
    """What lies about places and sizes leads to one line, and never out of the file."""
    what = {"lists": {"x": lists(x, "fixed")}, "uneven": {"x": lists(x, "list")}}.get(name.split(".")[0])
    write(name, pa.table(what) if what else columns(x), None if name.endswith("arrow") else "zstd")
    good = Path(name).read_bytes()
    rng = np.random.default_rng(3)
    lines = []
    for _ in range(150):
        bad = bytearray(good)
        for at in len(bad) - 1 - rng.integers(0, min(900, len(bad)), 2):
            bad[at] = rng.choice([0, 1, 127, 128, 255, bad[at] ^ 1])
        Path(f"bad.{name}").write_bytes(bad)
        try:
            rows, _ = rows_of(f"bad.{name}")
            assert rows.dtype.kind == "f"
        except InputError as error:
            lines.append(str(error))
    assert len(lines) > 20
    assert not any("\n" in line for line in lines)


# Memory


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lists.feather", "columns.feather", "columns.parquet"])
def test_tables_of_a_thousand_classes_take_little_memory(tmp_path, monkeypatch, peak_mb, name):
    monkeypatch.chdir(tmp_path)
    x = np.random.default_rng(1).random((100_000, 1000), np.float32)
    y = np.zeros(len(x), int)
    if name == "lists.feather":
        table = pa.table({"x": lists(x, "fixed"), "y": y})
    else:
        table = pa.table({f"c{j}": x[:, j] for j in range(1000)} | {"y": y})
    if name.endswith("parquet"):
        pq.write_table(table, name)
    else:
        pytest.importorskip("pyarrow.feather").write_feather(table, name, compression="lz4")
    del table, x
    assert peak_mb("score", name, "--out", "o.parquet") - peak_mb() < 400
