"""bench/bench_gpu.py from its command to its tables and plots; without a GPU, on the stand-in and by a wall clock."""

from __future__ import annotations

import functools
import itertools
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import cupy
import numpy as np
import pytest
from scipy import special

import device

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "bench"))
try:
    import bench_gpu
    import gpu_cells
    import gpu_device
    import gpu_peers
    import gpu_tables
    import operations
    import report
finally:
    sys.path.pop(0)

OURS = report.OURS
BY_NAME = {operation.name: operation for operation in reversed(operations.OPERATIONS)}
FORMULAS = {operation.formula: operation for operation in operations.OPERATIONS}


class StandIn(gpu_device.Device):
    """Arrays of whatever `cupy` is, a wall clock, and limits that move a megabyte each."""

    def __init__(self, megabytes):
        self._cp = cupy

    def describe(self):
        about = {"name": "A GPU", "compute_capability": "90", "multiprocessors": 132, "memory": 8e10, "L2": 5e7}
        return about | {"driver": "1.2.3"}

    def seconds(self, call):
        begun = time.perf_counter()
        call()
        return time.perf_counter() - begun

    def synchronize(self):
        pass

    def free(self):
        pass

    def copy(self):
        return 10**6

    def read(self):
        return 10**6


def on_host():
    """A peer for the place of CuPy's functions: NumPy's and SciPy's."""

    def make(loss, case):
        operands = [gpu_peers.wide(device.to_host(array)) for array in case.operands]
        return lambda: tuple(cupy.asarray(np.asarray(part)) for part in gpu_peers.tuple_of(loss(*operands)))

    return {name: functools.partial(make, loss) for name, loss in gpu_peers.formulas(np, special).items()}


def broken():
    def call():
        raise ValueError("planted\nin two lines")

    return {"ce": lambda case: call}


def keep_in(monkeypatch, folder):
    """What `bench_gpu.py` sets is given back afterwards."""
    for name in ("CUPY_CACHE_DIR", "ENTROKERN_CACHE_DIR"):
        monkeypatch.setenv(name, str(folder))


@pytest.fixture
def small(monkeypatch, tmp_path):
    """Short periods, peers that need no package, and no GPU asked for."""
    monkeypatch.syspath_prepend(str(ROOT / "bench"))  # plots and the like are imported when they are asked for
    monkeypatch.setattr(gpu_cells, "PERIOD", 128)
    monkeypatch.setattr(gpu_cells, "PICTURE", 4)
    monkeypatch.setattr(bench_gpu, "Device", StandIn)
    monkeypatch.setattr(bench_gpu, "why_not", lambda: None)
    monkeypatch.setattr(bench_gpu, "gpu_name", lambda: "A GPU")
    monkeypatch.setattr(gpu_cells, "small_call", functools.partial(gpu_cells.small_call, repeats=2))
    monkeypatch.setattr(gpu_peers, "PEERS", {"cupy": ((), on_host), "broken": ((), broken)})
    keep_in(monkeypatch, tmp_path)
    gpu_peers.losses_of.cache_clear()
    yield
    gpu_peers.losses_of.cache_clear()


def run(monkeypatch, *arguments):
    given = [*arguments, "--megabytes", "0.001", "--rounds", "2"]
    monkeypatch.setattr(sys, "argv", ["bench_gpu.py", *map(str, given)])
    return bench_gpu.main()


# --- what is timed is right -----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("operation", BY_NAME.values(), ids=BY_NAME)
def test_what_is_timed_agrees_with_the_reference(small, operation, dtype):
    effort = gpu_cells.Effort(megabytes=0.002, rounds=1, peers=("cupy",))
    k = 10 if operation.classes == operations.CLASSES else operation.classes[0]
    row = gpu_cells.row(StandIn(0), (operation, dtype, k), effort)
    assert row["failed"] == {}
    assert set(row["seconds"]) == set(row["first"]) == {OURS, "cupy"}
    writes_16_bits = dtype == "bfloat16" and ("gradient" in operation.name or operation.name == "information")
    assert row["error"][OURS] < (5e-3 if writes_16_bits else 1e-5)
    assert row["error"]["cupy"] < 2  # loses the digits of a confident row


@pytest.mark.parametrize("formula", gpu_peers.formulas(np, special))
def test_the_formulas_of_the_peers_are_right(formula):
    """With NumPy and SciPy in the place of CuPy."""
    operation = FORMULAS[formula]
    k = 10 if operation.classes == operations.CLASSES else operation.classes[0]
    case = operation.case(64, k, np.dtype(np.float64))
    with np.errstate(all="ignore"):
        found = gpu_peers.tuple_of(gpu_peers.formulas(np, special)[formula](*case.operands))
    assert operations.error(operation, found, operations.expected(operation, case)) < 1e-10


def test_the_device_repeats_what_was_drawn(small):
    operation = BY_NAME["CE, peaked"]
    case, true, period = gpu_cells.prepared(StandIn(0), (operation, "float32", 4), 3 * 512e-6)
    host = operation.case(32, 4, np.dtype(np.float32))
    np.testing.assert_array_equal(device.to_host(case.x), np.concatenate([host.x] * 3))
    np.testing.assert_array_equal(device.to_host(case.y), np.concatenate([host.y] * 3))
    assert case.out.shape == (96,) and case.out.dtype == np.float32
    assert np.isnan(device.to_host(case.out)).all()
    assert len(true[0]) == period == 32


# --- what follows from it -------------------------------------------------------------------------


def test_shares_and_aims_by_hand(small, monkeypatch):
    """Of 32 rows of 4: 16 bytes of logits, 8 of a label, 4 of a loss: 896; a copy moves 10⁶ in 2 ms."""
    times = itertools.cycle([4e-6, 22e-6, 2e-3, 1e-3])  # ours, the peer, copy, read
    monkeypatch.setattr(StandIn, "seconds", lambda self, call: next(times))
    monkeypatch.setitem(gpu_cells.TARGETS, "CE", ((4, 0.4), (3, 0.9)))
    row = gpu_cells.row(StandIn(0), (BY_NAME["CE"], "float32", 4), gpu_cells.Effort(1e-6, 3, 1.0, ("cupy",)))
    assert (row["n"], row["bytes"]) == (32, 896)
    assert row["limits"] == {"copy": 5e8, "read": 1e9}
    assert row["bytes_per_second"] == pytest.approx(224e6)
    assert row["share"] == pytest.approx(0.448)
    assert (row["target"], row["met"]) == (0.4, True)
    assert row["times_faster_than"]["cupy"] == pytest.approx(5.5)
    assert row["peers_met"] == {"cupy": False}
    assert gpu_tables.beside(row, "cupy").startswith("5.5×✗ ")


def test_a_wrong_result_meets_no_target(small):
    operation = BY_NAME["KL, probs"]
    row = {"dtype": "float32", "k": 8192, "bytes": 100, "seconds": {OURS: {"median": 1e-6}}, "limits": {"copy": 1e8}}
    assert gpu_cells.judged(operation, row | {"error": {OURS: 1e-6}})["met"]
    assert not gpu_cells.judged(operation, row | {"error": {OURS: 0.5}})["met"]
    exact = np.array([np.inf, 2.0])
    found = {name: cupy.asarray(np.array(values)) for name, values in (
        ("right", [np.inf, 2.0]), ("off", [np.inf, 3.0]), ("finite", [1.0, 2.0]), ("nan", [np.inf, np.nan]),
    )}  # fmt: skip
    errors = {name: gpu_cells.error(operation, (values,), (exact,), 2) for name, values in found.items()}
    assert errors == {"right": 0.0, "off": 0.5, "finite": np.inf, "nan": np.inf}
    first_wrong, last_wrong = (cupy.asarray(np.array(rows)) for rows in ([2.0, 1.0] * 2 + [1.0, 1.0], [1.0, 1.0, 2.0]))
    assert gpu_cells.error(operation, (first_wrong,), (np.array([1.0]),), 2) == 1
    assert gpu_cells.error(operation, (last_wrong,), (np.array([1.0]),), 1) == 1
    assert gpu_cells.error(operation, (None,), (np.array([1.0]),), 1) is None


def test_score_is_judged_beside_the_loss(small, monkeypatch):
    times = itertools.cycle([5e-6, 4e-6, 2e-3, 1e-3])  # ours, the loss alone, copy, read
    monkeypatch.setattr(StandIn, "seconds", lambda self, call: next(times))
    row = gpu_cells.row(StandIn(0), (BY_NAME["score, all rows"], "float32", 4), gpu_cells.Effort(1e-6, 3))
    assert row["times_loss"] == pytest.approx(1.25)
    assert row["met"] is False
    assert report.target(row) == "1.25≤1.15"


@pytest.mark.parametrize(
    ("name", "dtype", "of_a_row"),  # k = 4
    [
        ("CE", "bfloat16", 8 + 8 + 4),
        ("CE + gradient", "float32", 16 + 8 + 4 + 16),
        ("CE + gradient into x", "float32", 16 + 8 + 4 + 16),
        ("CE, dense target", "float32", 2 * 16 + 4),
        ("KL, logits + gradient", "float64", 3 * 32 + 8),
        ("score, all rows", "float32", 16 + 8 + 5 * 4 + 2 * 8),
        ("BCE, multi-label rows", "float16", 2 * 8 + 4),
    ],
)
def test_bytes_count_each_operand_and_result_once(small, name, dtype, of_a_row):
    row = gpu_cells.row(StandIn(0), (BY_NAME[name], dtype, 4), gpu_cells.Effort(1e-6, 1))
    assert row["bytes"] == row["n"] * of_a_row


def test_bytes_of_elements(small):
    row = gpu_cells.row(StandIn(0), (BY_NAME["BCE mean, uint8 targets"], "float32", 1), gpu_cells.Effort(1e-6, 1))
    assert row["bytes"] == 128 * 5 + 4  # and the mean


def test_targets():
    at = gpu_cells.target_at
    assert [at("CE", "float32", k) for k in (3, 10, 256, 1000, 1024, 4096, 8192, 262_144)] == [
        None, 0.60, 0.60, 0.60, 0.75, 0.85, 0.92, 0.92,
    ]  # fmt: skip
    assert at("CE", "float16", 8192) is None
    assert at("CE + gradient", "bfloat16", 4096) == 0.88
    assert at("BCE mean, uint8 targets", "bfloat16", 1) == 0.88
    assert at("JS, probs", "float32", 8192) is None
    assert gpu_cells.TARGETS.keys() <= BY_NAME.keys()


def test_what_has_a_target_comes_first():
    cells = gpu_cells.cells("", gpu_cells.CLASSES + gpu_cells.MORE_CLASSES, gpu_cells.DTYPES + gpu_cells.MORE_DTYPES)
    names = [(operation.name, dtype, k) for operation, dtype, k in cells]
    assert len(set(names)) == len(names)
    assert names[0] == ("CE", "float32", 8192)
    assert all(gpu_cells.target_at(*name) is not None or name[0] == "score, all rows" for name in names[:20])
    assert all(gpu_cells.target_at(*name) is None for name in names[len(names) // 2 :])
    assert {operation.name for operation, _, _ in cells} == set(BY_NAME)


# --- the command ----------------------------------------------------------------------------------


def test_from_the_command_to_the_tables(small, monkeypatch, tmp_path, capsys):
    path = tmp_path / "there" / "gpu.json"
    assert run(monkeypatch, "--only", "CE", "--classes", 3, 10, "--dtypes", "float32", "bfloat16", "--out", path) == 0
    result, shown = json.loads(path.read_text()), capsys.readouterr().out
    assert result["machine"]["gpu"]["name"] == "A GPU"
    assert result["left_out"] == 0
    assert not path.with_suffix(".part").exists()
    for row in result["rows"]:
        assert gpu_tables.line(row, result["peers"]) in shown
        assert row["failed"] == ({"broken": "ValueError: planted"} if row["formula"] == "ce" else {})
    page, text = gpu_tables.markdown(result), gpu_tables.text(result)
    assert gpu_tables.summary(result, gpu_tables.tables(result)[:1]) in shown
    assert "| CE + gradient, bfloat16 | " in page and "| share of the copy's bandwidth (target) | k = 21 | " in page
    assert "ValueError: planted" in text and "targets met: " in text and "slower than a peer" in text
    assert "a call on (32, 10) returns after" in page.replace("A call", "a call")
    monkeypatch.setattr(sys, "argv", ["report.py", str(path), "--markdown"])
    report.main()
    assert capsys.readouterr().out == page + "\n"


def test_the_plots_are_drawn(small, monkeypatch, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    path = tmp_path / "gpu.json"
    run(monkeypatch, "--classes", 3, 10, 64, "--only", "CE", "--peers", "cupy", "--out", path)
    monkeypatch.setattr(sys, "argv", ["report.py", str(path), "--plots", str(tmp_path)])
    report.main()
    assert all((tmp_path / name).stat().st_size > 10_000 for name in ("gpu-share.png", "gpu-rates.png"))


def test_a_cell_that_fails_is_noted_and_the_next_one_is_measured(small, monkeypatch, tmp_path, capsys):
    measured = gpu_cells.row

    def row(device, cell, effort):
        if cell[2] == 10:
            raise MemoryError("planted")
        return measured(device, cell, effort)

    monkeypatch.setattr(gpu_cells, "row", row)
    path, chosen = tmp_path / "gpu.json", ["--only", "KL, logits", "--dtypes", "float32", "--peers"]
    run(monkeypatch, *chosen, "--classes", 10, 3, "--out", path)
    rows = json.loads(path.read_text())["rows"]
    assert [(row["k"], row["failed"]) for row in rows] == [
        (10, {OURS: "MemoryError: planted"}), (3, {}), (10, {OURS: "MemoryError: planted"}), (3, {}),
    ]  # fmt: skip
    assert "failed: KL, logits, k = 10, entrokern (MemoryError: planted)" in capsys.readouterr().out
    # What has failed is done: going on adds only what is not there.
    run(monkeypatch, *chosen, "--classes", 10, 3, 4, "--resume", path)
    again = json.loads(path.read_text())["rows"]
    assert again[:4] == rows and [row["k"] for row in again[4:]] == [4, 4]


def test_a_lost_device_is_left_for_a_new_process(small, monkeypatch, tmp_path, capsys):
    path, begun = tmp_path / "gpu.json", []

    def synchronize(self):
        if path.exists() and json.loads(path.read_text())["rows"]:
            raise RuntimeError("cudaErrorIllegalAddress")

    def execv(program, arguments):
        begun.append((program, arguments))
        raise SystemExit

    monkeypatch.setattr(StandIn, "synchronize", synchronize)
    monkeypatch.setattr(os, "execv", execv)
    with pytest.raises(SystemExit):
        run(monkeypatch, "--only", "CE", "--peers", "--out", path, "--budget-seconds", 100)
    (row,) = json.loads(path.read_text())["rows"]
    assert row["failed"] == {OURS: "RuntimeError: cudaErrorIllegalAddress"}
    ((program, arguments),) = begun
    assert program == arguments[0] == sys.executable
    assert arguments[-4:-1] == ["--resume", str(path), "--budget-seconds"]
    assert 0 < float(arguments[-1]) < 100


def test_the_time_is_kept(small, monkeypatch, tmp_path, capsys):
    path = tmp_path / "gpu.json"
    assert run(monkeypatch, "--only", "KL, probs", "--out", path, "--budget-seconds", -1) == 0
    result = json.loads(path.read_text())
    assert result["rows"] == []
    assert result["left_out"] == len(gpu_cells.CLASSES) * len(gpu_cells.DTYPES)
    assert "the time was up: 14 cells" in capsys.readouterr().out


def test_a_result_of_another_gpu_is_not_gone_on_with(small, monkeypatch, tmp_path, capsys):
    path = tmp_path / "gpu.json"
    path.write_text(json.dumps({"machine": {"gpu": {"name": "Another"}}}))
    with pytest.raises(SystemExit, match="measured on Another, and this is A GPU"):
        run(monkeypatch, "--resume", path)


def test_the_result_names_no_host_and_no_folder(small, monkeypatch, tmp_path):
    import platform

    path = tmp_path / "gpu.json"
    run(monkeypatch, "--only", "information", "--out", path)
    text = path.read_text()
    assert platform.node() not in text or len(platform.node()) < 3
    assert str(Path.home()) not in text
    assert str(ROOT) not in text


# --- without a GPU --------------------------------------------------------------------------------


@pytest.mark.skipif(device.REAL, reason="there is one")
@pytest.mark.parametrize(("arguments", "code"), [([], 3), (["--if-possible"], 0), (["--probe"], 3)])
def test_no_gpu_is_one_clear_line(monkeypatch, tmp_path, capsys, arguments, code):
    import fake_cupy

    monkeypatch.setattr(fake_cupy, "device_count", 0)
    keep_in(monkeypatch, tmp_path)
    assert run(monkeypatch, *arguments) == code
    said = "no GPU to measure on: CuPy finds no GPU (cudaErrorNoDevice: no CUDA-capable device is detected)\n"
    assert capsys.readouterr().out == said


def test_no_cupy_is_one_clear_line(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "cupy", None)
    keep_in(monkeypatch, tmp_path)
    assert run(monkeypatch) == 3
    assert capsys.readouterr().out.startswith("no GPU to measure on: CuPy cannot be imported (")


def test_the_host_s_part_of_small_calls_is_told():
    command = [sys.executable, str(ROOT / "bench" / "gpu_host.py"), "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    told = [line.rsplit(maxsplit=2) for line in done.stdout.splitlines()]
    assert len(told) == 15 and all(0 < float(number) < 1e6 and unit == "µs" for _, number, unit in told)


@pytest.mark.skipif(device.REAL, reason="there is a GPU")
def test_the_script_says_that_there_is_no_gpu():
    environment = {**os.environ, "ENTROKERN_SYSTEM": "1", "PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(["bash", str(ROOT / "ci" / "gpu")], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("ci/gpu: no GPU to measure on: ")
    assert done.stdout.count("\n") == 1


# --- with one -------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.skipif(not device.REAL, reason="no GPU")
def test_the_clock_and_the_limits_of_the_device():
    real = gpu_device.Device(256)
    assert real.describe()["name"] == gpu_device.gpu_name()
    rates = {limit: limit() / real.seconds(limit) for limit in (real.copy, real.read)}
    assert all(1e10 < rate < 2e13 for rate in rates.values())
