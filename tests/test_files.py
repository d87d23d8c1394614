"""Arrays of every format in, results in every format out: the same numbers, and one clear line for what is wrong."""

from __future__ import annotations

import itertools
import json
import os
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

import entrokern as ek
from entrokern import cli
from entrokern.files import open_array

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
zarr = pytest.importorskip("zarr")
pytest_plugins = ["cli_fixtures"]
N, K = 1000, 7


def lists(x, kind="fixed", size=None):
    """Rows as an Arrow array of lists."""
    k = x.shape[1]
    flat = pa.array(x.reshape(-1))
    if kind == "fixed":
        return pa.FixedSizeListArray.from_arrays(flat, k)
    make, offset = (pa.ListArray, np.int32) if kind == "list" else (pa.LargeListArray, np.int64)
    return make.from_arrays(pa.array(np.arange(0, x.size + 1, k, dtype=offset)), flat)


def parquet(path, rows=130, **columns):
    pq.write_table(pa.table(columns), path, row_group_size=rows)


def arrow(path, rows=90, compression=None, **columns):
    table = pa.table(columns)
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with pa.ipc.new_file(path, table.schema, options=options) as writer:
        writer.write_table(table, max_chunksize=rows)


def store(path, array, **options):
    zarr.create_array(path, data=array, **options)


def safetensors(path, **arrays):
    header, at = {"__metadata__": {"format": "np"}}, 0
    names = {"f2": "F16", "f4": "F32", "f8": "F64", "i4": "I32", "i8": "I64", "V2": "BF16"}
    for name, array in arrays.items():
        kind = "V2" if array.dtype.name == "bfloat16" else array.dtype.str[1:]
        header[name] = {
            "dtype": names[kind],
            "shape": list(array.shape),
            "data_offsets": [at, at + array.nbytes],
        }
        at += array.nbytes
    text = json.dumps(header).encode()
    body = b"".join(array.tobytes() for array in arrays.values())
    Path(path).write_bytes(len(text).to_bytes(8, "little") + text + body)


def columns(x, order=None):
    return {f"logit_{j}": x[:, j] for j in (range(x.shape[1]) if order is None else order)}


FORMATS = {
    "parquet, fixed lists": (lambda x, y: parquet("d.parquet", id=np.arange(N), v=lists(x), label=y), ["d.parquet"]),
    "parquet, lists": (lambda x, y: parquet("d.parquet", v=lists(x, "list"), y=y), ["d.parquet:v", ":y"]),
    "parquet, large lists": (lambda x, y: parquet("d.parquet", v=lists(x, "large")), ["d.parquet", "y.npy"]),
    "parquet, columns": (lambda x, y: parquet("d.parquet", **columns(x), target=y), ["d.parquet"]),
    "parquet, a pattern of columns": (
        lambda x, y: parquet("d.parquet", t=y, **columns(x, [3, 1, 2, 0, 4, 6, 5]), noise=x[:, 0]),
        ["d.parquet:logit_*", "d.parquet:t"],
    ),
    "parquet, named columns": (
        lambda x, y: parquet("d.parquet", a=x[:, 1], t=y, b=x[:, 0], **columns(x)),
        ["d.parquet:b,a,logit_[2-6]", ":t"],
    ),
    "arrow, in place": (lambda x, y: arrow("d.arrow", x=lists(x), y=y), ["d.arrow"]),
    "arrow, lists in place": (lambda x, y: arrow("d.arrow", x=lists(x, "list"), y=y), ["d.arrow"]),
    "arrow, columns": (lambda x, y: arrow("d.arrow", **columns(x), y=y), ["d.arrow"]),
    "feather, compressed": (lambda x, y: arrow("d.feather", 90, "lz4", x=lists(x), y=y), ["d.feather"]),
    "safetensors": (lambda x, y: safetensors("d.safetensors", y=y, other=x[:3], x=x), ["d.safetensors"]),
    "zarr": (lambda x, y: store("d.zarr", x, chunks=(90, K)), ["d.zarr", "y.npy"]),
    "zarr, chunks of classes": (lambda x, y: store("d.zarr", x, chunks=(300, 2)), ["d.zarr", "y.npy"]),
    "zarr, shards": (lambda x, y: store("d.zarr", x, chunks=(30, K), shards=(300, K)), ["d.zarr", "y.npy"]),
    "zarr, version 2": (lambda x, y: store("d", x, chunks=(90, K), zarr_format=2), ["d", "y.npy"]),
}


@pytest.mark.parametrize("block_rows", [64, None])
@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_what_npy_gives(files, score, name, block_rows):
    write, args = FORMATS[name]
    write(files.x, files.y)
    score("x.npy", "y.npy", "--out", "plain.npy")
    facts = score(*args, "--out", "o.npy", block_rows=block_rows)
    assert facts["rows"] == N
    assert "accuracy" in facts
    assert Path("o.npy").read_bytes() == Path("plain.npy").read_bytes()


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "i4"])
def test_dtypes(files, score, dtype):
    x = (files.x * 4).astype(dtype)
    np.save("x", x)
    parquet("d.parquet", x=lists(x), y=files.y)
    arrow("d.arrow", x=lists(x), y=files.y)
    safetensors("d.safetensors", x=x, y=files.y)
    group = zarr.open_group("d.zarr", mode="w")
    group.create_array("x", data=x, chunks=(90, K))
    group.create_group("labels_of").create_array("y", data=files.y)
    score("x.npy", "y.npy", "--out", "plain.npy")
    for args in (["d.parquet"], ["d.arrow"], ["d.safetensors"], ["d.zarr:x", ":labels_of/y"]):
        score(*args, "--out", "o.npy")
        assert Path("o.npy").read_bytes() == Path("plain.npy").read_bytes(), args


def test_bfloat16_of_safetensors(files, score):
    x = files.x.astype(pytest.importorskip("ml_dtypes").bfloat16)
    safetensors("d.safetensors", logits=x, labels=files.y)
    score("d.safetensors", "--out", "o.npy")
    np.testing.assert_array_equal(np.load("o.npy"), ek.cross_entropy(x, files.y, reduction="none"))


def test_what_the_package_of_safetensors_writes(files, score):
    save_file = pytest.importorskip("safetensors.numpy").save_file
    save_file({"x": files.x, "y": files.y}, "d.safetensors", metadata={"about": "a test"})
    assert score("d.safetensors")["mean"] == score("x.npy", "y.npy")["mean"]


def test_elements_of_an_arrow_file_are_read_where_they_lie(files):
    """And only there: of short batches of several columns pyarrow makes the rows; compressed lists are streamed."""
    arrow("raw.arrow", x=lists(files.x), **columns(files.x))
    arrow("packed.arrow", 90, "zstd", x=lists(files.x), **columns(files.x))
    kinds = {"raw.arrow": "InPlace", "raw.arrow:logit_*": "Decoded", "packed.arrow": "Streamed"}
    for name, kind in kinds.items():
        with closing(open_array(name, "x")) as array:
            assert type(array).__name__ == kind


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_a_table_of_one_group_of_rows_takes_little_memory(tmp_path, monkeypatch, peak_mb, suffix):
    monkeypatch.chdir(tmp_path)
    x = np.random.default_rng(1).random((100_000, 1000), np.float32)
    write = parquet if suffix == "parquet" else arrow
    write(f"d.{suffix}", len(x), x=lists(x), y=np.zeros(len(x), int))
    assert peak_mb("score", f"d.{suffix}", "--out", "o.parquet") - peak_mb() < 400


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("block_rows", [7, 45, None])
def test_a_store_of_any_shape_and_axis(tmp_path, monkeypatch, score, axis, block_rows):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(2)
    x = rng.normal(size=(6, 5, 9))
    q = rng.dirichlet(np.ones(6), 45).reshape(5, 9, 6)
    x, q = np.moveaxis(x, 0, axis), np.moveaxis(q, -1, axis)
    y = rng.integers(0, 6, np.delete(x.shape, axis))
    store("x.zarr", x, chunks=(2, 3, 4))
    store("y.zarr", y, chunks=(3, 4))
    store("q.zarr", q, chunks=(4, 3, 5))
    np.save("x", x)
    np.save("q", q)
    loss = ek.cross_entropy(x, y, axis=axis, reduction="none")
    score("x.zarr", "y.zarr", "--axis", str(axis), "--out", "o.npy", block_rows=block_rows)
    np.testing.assert_allclose(np.load("o.npy"), loss, rtol=1e-15)
    loss = ek.cross_entropy(x, q, axis=axis, reduction="none")
    for second in (["x.zarr", "q.npy"], ["x.npy", "q.zarr"], ["x.zarr", "q.zarr"]):
        score(*second, "--axis", str(axis), "--out", "o.npy", block_rows=block_rows)
        np.testing.assert_allclose(np.load("o.npy"), loss, rtol=1e-14)


# Shards

CUTS = [0, 130, 130, 131, 500, 700, N]  # one of no row, one of one


def shards(folder, suffix, x, y):
    os.mkdir(folder)
    for i, (low, high) in enumerate(itertools.pairwise(CUTS)):
        path = f"{folder}/part-{2 * i}.{suffix}"  # part-10 is the last, though not as text
        if suffix == "npy":
            np.save(path, x[low:high])
        elif suffix == "npz":
            np.savez(path, x=x[low:high], y=y[low:high])
        elif suffix == "parquet":
            parquet(path, 50, v=lists(x[low:high]), y=y[low:high])
        else:
            safetensors(path, x=x[low:high], y=y[low:high])
    Path(folder, "_SUCCESS").touch()
    Path(folder, "README.txt").touch()


@pytest.mark.parametrize(
    ("suffix", "args"),
    [
        ("npy", ["d", "y.npy"]),
        ("npy", ["d/part-*.npy", "y.npy"]),
        ("npz", ["d"]),
        ("parquet", ["d"]),
        ("parquet", ["d/*.parquet:v", ":y"]),
        ("safetensors", ["d:x", "d:y"]),
    ],
)
def test_shards_are_one_array(files, score, suffix, args):
    shards("d", suffix, files.x, files.y)
    score("x.npy", "y.npy", "--out", "plain.npy")
    facts = score(*args, "--out", "o.npy")
    assert "(6 files) float32 (1000, 7)" in facts["x"]
    assert Path("o.npy").read_bytes() == Path("plain.npy").read_bytes()


@pytest.mark.parametrize("block_rows", [7, 45, 100, None])
def test_shards_of_planes(tmp_path, monkeypatch, score, block_rows):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(9, 6, 5, 4)), rng.integers(0, 6, (9, 5, 4))
    os.mkdir("d")
    for i in range(3):
        np.save(f"d/{i}", x[3 * i : 3 * i + 3])
    np.save("y", y)
    score("d", "y.npy", "--axis", "1", "--out", "o.npy", block_rows=block_rows)
    np.testing.assert_allclose(np.load("o.npy"), ek.cross_entropy(x, y, axis=1, reduction="none"), rtol=1e-15)


# Results


@pytest.mark.parametrize("suffix", ["parquet", "arrow", "feather", "npz", "csv"])
@pytest.mark.parametrize("n", [N, 0])
def test_results_in_every_format(files, score, monkeypatch, suffix, n):
    from entrokern.files import formats

    monkeypatch.setattr(formats, "TABLE_ROWS", 300)
    monkeypatch.setattr(formats, "CSV_ROWS", 300)
    np.save("x", files.x[:n])
    np.save("y", files.y[:n])
    names = ("loss", "rank", "entropy")
    score("x.npy", "y.npy", "--out", f"o.{suffix}", "--outputs", ",".join(names))
    record = ek.score(files.x[:n], files.y[:n], outputs=names)
    if suffix == "npz":
        saved = dict(np.load("o.npz"))
    elif suffix == "csv":
        import pyarrow.csv

        table = pyarrow.csv.read_csv("o.csv")
        assert table.column_names == ["row", *names]
        np.testing.assert_array_equal(table["row"].to_numpy(), np.arange(n))
        saved = {name: table[name].to_numpy().astype(getattr(record, name).dtype) for name in names}
    else:
        table = pq.read_table("o.parquet") if suffix == "parquet" else pa.ipc.open_file(f"o.{suffix}").read_all()
        saved = {name: table[name].to_numpy() for name in table.column_names}
    assert list(saved) == list(names)
    for name in names:
        assert saved[name].dtype == getattr(record, name).dtype
        np.testing.assert_array_equal(saved[name], getattr(record, name))
    assert not [name for name in os.listdir() if name.startswith(".")]


# What is refused

MISSING = [
    ("pyarrow", "score d.parquet", "the package pyarrow: pip install 'entrokern[files]'"),
    ("pyarrow", "score x.npy y.npy --out o.parquet", "the package pyarrow: pip install 'entrokern[files]'"),
    ("zarr", "score d.zarr", "a .zarr store needs the package zarr: pip install 'entrokern[files]'"),
    ("ml_dtypes", "score bf.safetensors", "needs the package ml_dtypes: pip install 'entrokern[bfloat16]'"),
]


@pytest.mark.parametrize(("package", "line", "expected"), MISSING)
def test_a_missing_package_is_named(files, complaint, monkeypatch, package, line, expected):
    parquet("d.parquet", v=lists(files.x))
    store("d.zarr", files.x)
    safetensors("bf.safetensors", x=files.x.astype(pytest.importorskip("ml_dtypes").bfloat16))
    for module in [name for name in sys.modules if name.split(".")[0] == package] + [package]:
        monkeypatch.setitem(sys.modules, module, None)
    assert expected in complaint(*line.split())


BAD_CALLS = [
    ("missing.parquet", "missing.parquet: No such file or directory"),
    ("missing.zarr", "missing.zarr: No such file or directory"),
    ("missing.safetensors", "missing.safetensors: No such file or directory"),
    ("nothing/*.npy", "no file that can be read is called nothing/*.npy"),
    ("x.npy:v", "x.npy holds one array; leave :v out"),
    ("d.zarr:v", "d.zarr holds one array; leave :v out"),
    ("cut.parquet", "cut.parquet is not a Parquet file, or damaged: "),
    ("cut.arrow", "cut.arrow is not an Arrow file, or damaged: "),
    ("cut.safetensors", "cut.safetensors:x is truncated: it ends at byte"),
    ("notes.parquet", "notes.parquet is not a Parquet file, or damaged"),
    ("notes.arrow", "notes.arrow is not an Arrow file, or damaged"),
    ("notes.safetensors", "notes.safetensors is not a safetensors file, or damaged"),
    ("wrong.safetensors", "wrong.safetensors:x is damaged: F32 (3, 4) does not take bytes 0 to 40"),
    ("notes.zarr", "notes.zarr is not a Zarr store, or damaged"),
    ("d.parquet:nope", "has no column 'nope'; it has: id (int64), v (fixed_size_list<element: float>[7]), w (string)"),
    ("d.parquet:id,nope", "has no column 'nope'; it has: id"),
    ("d.parquet:id,v*,id", "d.parquet: column 'id' is named twice"),
    ("d.parquet:w", "column w has type string; a column of numbers or of lists of numbers is needed"),
    ("d.parquet:[vw]", "column v has type fixed_size_list"),
    ("d.parquet:id", "d.parquet:id is one column; name those of all classes, as FILE:logit_*"),
    ("d.parquet y.npy --axis 0", "the classes of a table lie in its rows"),
    ("x.npy y.npy --class-weight d.parquet:v", "d.parquet:v float32 (1000, 7) has several numbers in a row"),
    ("two.parquet", "has no column 'x'; it has: a (list<element: float>), b (list<element: float>)"),
    ("ragged.parquet", "ragged.parquet: row 70 has 6 numbers, but others 7"),
    ("ragged.arrow", "ragged.arrow: row 70 has 6 numbers, but others 7"),
    ("nulls.parquet:v", "nulls.parquet:v: column v has no value in row 70 (null)"),
    ("nulls.parquet:inner", "column inner has no value in row 70 (null)"),
    ("x.npy nulls.parquet:y", "nulls.parquet:y: column y has no value in row 70 (null)"),
    ("empty", "empty is a folder without a file that can be read"),
    ("mixed", "mixed has files of several kinds (.npy, .safetensors); name one of them"),
    ("uneven y.npy", "uneven/2.npy has float32 (3, 6), but uneven/1.npy has float32 (3, 7)"),
    ("other y.npy", "other/2.npy has float64 (3, 7), but other/1.npy has float32 (3, 7)"),
    ("fortran", "fortran/1.npy is stored in Fortran order; save np.ascontiguousarray of it"),
    ("good --axis 0", "good: shards hold rows one after the other; their classes cannot lie on axis 0"),
    ("good --out good/3.npy", "--out good/3.npy would be one of the files of good; write it elsewhere"),
    ("good/*.npy --out good/1.npy", "--out good/1.npy is a file that is read"),
    ("d.parquet --out d.parquet", "--out d.parquet is a file that is read"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "expected"), BAD_CALLS)
def test_bad_files_get_one_line(files, complaint, line, expected):
    x, y = files.x, files.y
    for suffix in ("parquet", "arrow", "safetensors"):
        Path(f"notes.{suffix}").write_text("1 2 3 and so on")
    os.mkdir("notes.zarr")
    Path("notes.zarr/zarr.json").write_text("1 2 3 and so on")
    parquet("d.parquet", id=np.arange(N), v=lists(x), w=["text"] * N)
    arrow("d.arrow", x=lists(x))
    safetensors("d.safetensors", x=x)
    store("d.zarr", x)
    for name in ("d.parquet", "d.arrow", "d.safetensors"):
        Path(name.replace("d.", "cut.")).write_bytes(Path(name).read_bytes()[:-1000])
    header = b'{"x": {"dtype": "F32", "shape": [3, 4], "data_offsets": [0, 40]}}'
    Path("wrong.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(48))
    parquet("two.parquet", a=lists(x, "list"), b=lists(x, "list"))
    rows = x.tolist()
    rows[70] = rows[70][:6]
    parquet("ragged.parquet", x=rows)
    arrow("ragged.arrow", x=pa.array(rows, pa.list_(pa.float32())))
    rows[70] = None
    inner = x.tolist()
    inner[70][3] = None
    fixed = pa.list_(pa.float32(), K)
    labels = pa.array(y, mask=np.arange(N) == 70)
    parquet("nulls.parquet", v=pa.array(rows, fixed), inner=pa.array(inner, fixed), y=labels)
    for folder in ("empty", "mixed", "uneven", "other", "fortran", "good"):
        os.mkdir(folder)
    safetensors("mixed/a.safetensors", x=x)
    np.save("mixed/b", x)
    for folder, second in (("uneven", x[:3, :6]), ("other", x[:3].astype(float)), ("good", x[:3])):
        np.save(f"{folder}/1", x[:3])
        np.save(f"{folder}/2", second)
    np.save("fortran/1", np.asfortranarray(x))
    assert expected in complaint("score", *line.split(), "--block-rows", "64")
    assert not [name for name in os.listdir() if name.startswith(("o.", ".o"))]


def test_a_batch_that_breaks_off_is_refused(files, complaint, score):
    """The footer is whole, but a page is not."""
    pq.write_table(pa.table({"v": lists(files.x), "y": files.y}), "d.parquet", compression="snappy",
                   row_group_size=100, write_page_checksum=True)  # fmt: skip
    score("d.parquet")
    data = bytearray(Path("d.parquet").read_bytes())
    data[len(data) // 2 : len(data) // 2 + 8] = b"\xff" * 8
    Path("d.parquet").write_bytes(data)
    assert "d.parquet is damaged: " in complaint("score", "d.parquet", "--out", "o.npy")


def test_a_damaged_chunk_is_refused(files, complaint):
    store("d.zarr", files.x, chunks=(100, K))
    chunk = Path("d.zarr/c/5/0")
    chunk.write_bytes(chunk.read_bytes()[:50])
    assert "d.zarr is damaged: " in complaint("score", "d.zarr")


def test_values_that_are_missing_make_bad_rows(files, score):
    rows = files.x.tolist()
    rows[70], rows[900][3] = None, None
    labels = pa.array(files.y, mask=np.arange(N) == 500)
    parquet("d.parquet", v=pa.array(rows, pa.list_(pa.float32(), K)), y=labels)
    facts = score("d.parquet", "--bad-rows", "nan", "--out", "o.npy")
    assert facts["bad_rows"] == {"NaN": 2, "no label": 1}
    assert [bad["row"] for bad in facts["first_bad_rows"]] == [70, 500, 900]
    expected = ek.cross_entropy(files.x, files.y, reduction="none")
    expected[[70, 500, 900]] = np.nan
    np.testing.assert_array_equal(np.load("o.npy"), expected)


def test_help_says_how_files_are_named(capsys):
    with pytest.raises(SystemExit):
        cli.main(["score", "--help"])
    out = capsys.readouterr().out
    for word in ("FILE.parquet:'logit_*'", "STORE.zarr:PATH", "--resume", "--bad-rows"):
        assert word in out
