"""The command line's manners: one clear line for bad input, whole files or none, bounded memory."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import zipfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

import entrokern as ek
from entrokern import _scoring, cli

pytest_plugins = ["cli_fixtures"]
N = 1000  # rows of the files


def command(*args: str, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "entrokern", *args], capture_output=True, text=True, **options)


# What is refused

BAD_CALLS = [
    ("score missing.npy", "missing.npy: No such file or directory"),
    ("score text.txt", "text.txt: the name says how to read; end it in .npy, "),
    ("score notes.npy", "notes.npy is not an array that NumPy saved"),
    ("score notes.npz", "notes.npz is not a .npz file, or damaged"),
    ("score cut.npy", "cut.npy is truncated: float32 (1000, 7) takes 28,000 bytes, but 27,900 follow"),
    ("score objects.npy", "objects.npy holds Python objects"),
    ("score records.npy", "records.npy has dtype"),
    ("score b.npy", "x has dtype bool; allowed"),
    ("score scalar.npy", "x is 0-dimensional"),
    ("score f3.npy", "stored in Fortran order with 3 dimensions"),
    ("score d.npz:nope", "d.npz has no array 'nope'; it has: a, f (pick one with d.npz:NAME)"),
    ("score d.npz", "d.npz has no array 'x'; it has: a, f"),
    ("score d.npz:f", "cannot be read from inside a .npz"),
    ("score x.npy y5.npy", "target of shape (5,) does not fit x of shape (1000, 7)"),
    ("score x.npy w.npy", "target of shape (7,) does not fit"),
    ("score x.npy z.npy", "for labels pass target.astype(int)"),
    ("score x.npy y.npy --axis 5", "axis=5 does not exist"),
    ("score x.npy y.npy --loss bce", "y.npy int64 (1000,) does not fit x.npy float32 (1000, 7)"),
    ("score p.npy y.npy --loss kl", "y.npy int64 (1000,) does not fit p.npy"),
    ("score x.npy --loss ce", "--loss ce needs a second array"),
    ("score x.npy y.npy --loss entropy", "--loss entropy takes one array"),
    ("score x.npy t.npy --loss bce --temperature 2", "--temperature does not apply to --loss bce"),
    ("score x.npy y.npy --y-form probs", "--y-form does not apply to --loss ce"),
    ("score x.npy y.npy --label-smoothing 2", "label_smoothing=2.0 is out of range"),
    ("score p.npy y.npy --form probs --temperature 2", "temperature=2.0 transforms logits"),
    ("score x.npy y.npy --class-weight z.npy", "class_weight has shape (1000,)"),
    ("score x.npy q.npy --ignore-index 3", "ignore_index=3 needs integer labels"),
    ("score x.npy y.npy --form softmax", "argument --form: invalid choice: 'softmax'"),
    ("score x.npy y.npy --block-rows 0", "argument --block-rows: invalid positive number value: '0'"),
    ("score x.npy y.npy --frobnicate", "unrecognized arguments: --frobnicate"),
    ("score x.npy y.npy --outputs rank", "--outputs needs --out FILE"),
    ("score x.npy y.npy --out o.npz --outputs grad", "has no output 'grad'; choose from loss, argmax"),
    ("score p.npy y.npy --form probs --out o.npy --outputs lse", "--loss ce of probs has no output 'lse'"),
    ("score x.npy q.npy --out o.npy --outputs rank", "output 'rank' needs integer labels"),
    ("score x.npy y.npy --out o.npy --outputs loss,rank", "a .npy file holds one array, not 2"),
    ("score x.npy y.npy --out o.txt", "end it in .npy, .npz, .csv, .parquet, "),
    ("score x.npy y.npy --out nowhere/o.npy", "cannot write nowhere/o.npy: No such file or directory"),
    ("score x.npy y.npy --out folder.npy", "--out folder.npy is a folder"),
    ("score x.npy y.npy --out ./y.npy", "--out ./y.npy is a file that is read"),
    ("score", "the following arguments are required: X"),
    ("frobnicate", "invalid choice: 'frobnicate'"),
    ("", "the following arguments are required: COMMAND"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "expected"), BAD_CALLS)
def test_bad_calls_get_one_line(files, complaint, line, expected):
    Path("text.txt").write_text("1 2 3")
    Path("notes.npy").write_text("1 2 3")
    Path("notes.npz").write_text("1 2 3")
    Path("folder.npy").mkdir()
    Path("cut.npy").write_bytes(Path("x.npy").read_bytes()[:-100])
    np.save("objects", np.array([[{}]]), allow_pickle=True)
    np.save("records", np.zeros((3, 2), "f4,f4"))
    np.save("b", np.ones((2, 2), bool))
    np.save("scalar", np.float64(1))
    np.save("f3", np.asfortranarray(np.ones((2, 3, 4))))
    np.save("y5", np.arange(5))
    np.savez("d", a=files.x, f=np.asfortranarray(files.x))
    assert expected in complaint(*line.split())
    assert not [name for name in os.listdir() if name.startswith(("o.", ".o"))]


@pytest.mark.parametrize("block_rows", [1, 64, N])
@pytest.mark.parametrize("order", ["C", "F"])
def test_a_bad_label_is_named_by_its_row_in_the_file(files, complaint, order, block_rows):
    np.save("x", np.asarray(files.x, order=order))
    files.y[[777, 900]] = 7, -1
    np.save("y", files.y)
    message = complaint("score", "x.npy", "y.npy", "--block-rows", str(block_rows), "--out", "o.npy")
    assert message == "y.npy: label 7 of row 777 is out of range for k = 7 classes (0 to 6)"
    assert os.listdir().count("o.npy") == 0


def test_bad_targets_of_other_shapes_are_named_by_their_place(tmp_path, monkeypatch, complaint):
    monkeypatch.chdir(tmp_path)
    y = np.zeros((4, 5, 6), int)
    y[2, 3, 4] = -100
    np.save("x", np.zeros((4, 3, 5, 6)))
    np.save("y", y)
    for step in ("1", "7", "60"):
        message = complaint("score", "x.npy", "y.npy", "--axis", "1", "--block-rows", step)
        assert "label -100 of row (2, 3, 4) is out of range" in message
        assert "ignore_index=-100" in message
    np.save("x", np.zeros((100, 3)))
    t = np.zeros((100, 3), np.uint8)
    t[70, 1] = 255
    np.save("t", t)
    message = complaint("score", "x.npy", "t.npy", "--loss", "bce", "--block-rows", "64")
    assert message == "t.npy: target 255 at row (70, 1) is out of range: integer targets are 0 and 1"


def test_validate_names_the_row_in_the_file(files, complaint, score):
    files.p[777] *= 2
    np.save("p", files.p)
    assert score("p.npy", "--form", "probs")["rows"] == N
    message = complaint("score", "p.npy", "--form", "probs", "--validate", "--block-rows", "64")
    assert "row 777 sums to 2" in message


def test_a_damaged_npz_member_is_refused(files, complaint):
    np.savez_compressed("d", x=files.x, y=files.y)
    data = bytearray(Path("d.npz").read_bytes())
    middle = zipfile.ZipFile("d.npz").getinfo("x.npy").compress_size // 2
    data[middle : middle + 8] = bytes(8)
    Path("d.npz").write_bytes(data)
    assert complaint("score", "d.npz").startswith("d.npz:x is damaged: ")


def test_a_file_that_shrinks_while_read_is_refused(files, complaint, monkeypatch):
    whole = _scoring._Job.spans

    def cut_first(job):
        os.truncate("x.npy", 20_000)
        return whole(job)

    monkeypatch.setattr(_scoring._Job, "spans", cut_first)
    message = complaint("score", "x.npy", "y.npy", "--block-rows", "64", "--out", "o.npy")
    assert message.startswith("x.npy ended early")
    assert not Path("o.npy").exists()


# How it behaves


@pytest.mark.parametrize("name", ["o.npy", "o.npz", "o.csv"])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_no_half_file_remains(files, monkeypatch, capsys, name, error):
    Path(name).write_text("as before")
    run = _scoring._Job.run

    def failing(job, start, arrays):
        if start == 128:
            raise error
        return run(job, start, arrays)

    monkeypatch.setattr(_scoring._Job, "run", failing)
    args = ["score", "x.npy", "y.npy", "--out", name, "--block-rows", "64"]
    if error is KeyboardInterrupt:
        assert cli.main(args) == 130
        assert capsys.readouterr().err == "entrokern: interrupted; run again with --resume to continue at row 128\n"
    else:
        with pytest.raises(RuntimeError):  # a fault of ours is not dressed up as one of the user's
            cli.main(args)
    assert Path(name).read_text() == "as before"
    assert not [path for path in Path(f".{name}.entrokern").iterdir() if "part" in path.name]


def test_progress_is_for_terminals_only(files, monkeypatch, capsys):
    monkeypatch.setattr(cli.time, "monotonic", iter(np.arange(0.0, 1e6, 0.3)).__next__)
    assert cli.main(["score", "x.npy", "y.npy", "--block-rows", "64"]) == 0
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert cli.main(["score", "x.npy", "y.npy", "--block-rows", "64"]) == 0
    err = capsys.readouterr().err
    assert "#" in err
    assert "100 %" in err
    assert "rows/s" in err
    assert "GB/s" in err
    assert err.endswith("\r\x1b[K")


def test_warmup_and_info(monkeypatch, capsys, complaint):
    def warmup(functions=None, dtypes=None, *, progress=None):
        if functions == ("nope",):
            raise ValueError("function 'nope' is not known")
        assert (functions, dtypes) == (("cross_entropy", "entropy"), ("float32",))
        progress(1, 2, "cross_entropy")
        progress(2, 2, "entropy")

    monkeypatch.setattr(cli.runtime, "warmup", warmup)
    assert cli.main(["warmup", "--functions", "cross_entropy,entropy", "--dtypes", "float32"]) == 0
    assert capsys.readouterr().out.startswith("ready: 2 pairs of function and dtype in ")
    assert complaint("warmup", "--functions", "nope") == "function 'nope' is not known"
    monkeypatch.setattr(cli.runtime, "show_info", lambda: sys.stdout.write("a report\n"))
    assert cli.main(["info"]) == 0
    assert capsys.readouterr().out == "a report\n"


def test_it_is_a_program(files):
    done = command("score", "x.npy", "y.npy", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["mean"] == pytest.approx(float(ek.cross_entropy(files.x, files.y)), rel=1e-6)
    done = command("score", "missing.npy")
    assert (done.returncode, done.stderr) == (2, "entrokern: missing.npy: No such file or directory\n")
    assert command("--version").stdout == f"entrokern {ek.__version__}\n"


@pytest.mark.parametrize("line", [["info"], ["--help"], ["score", "missing.npy"]])
def test_a_callers_signals_are_its_own_again(line):
    def own(*_: object) -> None: ...

    before = signal.signal(signal.SIGTERM, own)
    try:
        with suppress(SystemExit):
            cli.main(line)
        assert signal.getsignal(signal.SIGTERM) is own
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_closed_pipe_is_no_error(files):
    line = f"{sys.executable} -m entrokern score x.npy y.npy --hardest 1000 | head -1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", line], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_library_does_not_load_the_command_line():
    code = "import sys, entrokern; sys.exit('entrokern.cli' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow
def test_a_large_file_takes_little_memory(tmp_path, monkeypatch, peak_mb):
    """4 GB take at most 400 MB on top of an interpreter that has loaded Numba."""
    monkeypatch.chdir(tmp_path)
    n, k = 1_000_000, 1000
    with open("x.npy", "wb") as file:  # a hole in a file reads as zeros
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (n, k)})
        file.truncate(file.tell() + 4 * n * k)
    np.save("y", np.zeros(n, np.int64))
    peak = peak_mb("score", "x.npy", "y.npy", "--out", "o.npz", "--outputs", "loss,rank")
    assert peak - peak_mb() < 400


@pytest.mark.slow
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("k", [10, 1000])
def test_memory_is_bounded(tmp_path, monkeypatch, peak_mb, k, order):
    """A file of 200 MB takes less than half of that on top of what a small one takes."""
    monkeypatch.chdir(tmp_path)
    n = 50_000_000 // k
    for name, rows in (("small", 1000), ("large", n)):
        shape = (rows, k) if order == "C" else (k, rows)
        x = np.lib.format.open_memmap(f"{name}.npy", "w+", np.float32, shape, fortran_order=False)
        for i in range(0, shape[0], max(1, shape[0] // 10)):
            x[i : i + max(1, shape[0] // 10)] = np.random.default_rng(i).random(shape[1], np.float32)
        x.flush()
        np.save(f"{name}_y", np.zeros(rows, np.int64))
        del x
    axis = "-1" if order == "C" else "0"
    peaks = [
        peak_mb("score", f"{name}.npy", f"{name}_y.npy", "--axis", axis, "--out", f"{name}_out.npz",
                "--outputs", "loss,rank")
        for name in ("small", "large")
    ]  # fmt: skip
    assert peaks[1] - peaks[0] < (150 if order == "F" else 100)
