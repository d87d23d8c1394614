"""The benchmarks in bench/: what is timed is right, and what is printed follows from it."""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path

import numpy as np
import pytest

BENCH = Path(__file__).resolve().parent.parent / "bench"
sys.path.insert(0, str(BENCH))
try:
    import against
    import data
    import limits
    import measure
    import operations
    import peers
    import report
    import run
    import scaling
finally:
    sys.path.remove(str(BENCH))

MEGABYTES = 0.01
SMALL = operations.cells(classes=(3, 1000))
LIGHT = [name for name in peers.installed() if name in ("numpy", "scipy", "scikit-learn", "numkong")]


@pytest.fixture(autouse=True)
def _bench_on_path(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))  # peers are imported when they are asked for


@pytest.mark.parametrize(("operation", "dtype", "k"), SMALL, ids=[f"{o.name}-{d}-{k}" for o, d, k in SMALL])
def test_all_that_is_timed_agrees_with_the_reference(operation, dtype, k):
    if dtype == "bfloat16":
        pytest.importorskip("ml_dtypes")
    true = operations.expected(operation, operations.prepare(operation, dtype, k, MEGABYTES))
    for who in ("entrokern", *LIGHT):
        case = operations.prepare(operation, dtype, k, MEGABYTES)
        with np.errstate(all="ignore"):
            if who == "entrokern":
                found = operation.ours(case)
            elif (call := peers.call_of(who, operation.formula, case)) is not None:
                found = call()
            else:
                continue
        assert len(found) == len(true)
        error = operations.error(operation, found, true)
        # The peers lose the digits of a confident row, and NumKong adds an epsilon.
        assert error < (1e-5 if who == "entrokern" else 2.0), who


def test_each_target_of_a_share_is_found():
    by_name = {operation.name: operation for operation in operations.OPERATIONS}
    assert [by_name["CE + gradient"].target_at(k) for k in operations.CLASSES] == [0.35, 0.5, 0.65, 0.85, 0.85, 0.85]
    assert by_name["CE, axis=1"].target_at(21) == 0.65
    assert by_name["BCE mean"].target_at(1) == 0.85
    assert by_name["CE, sorted rows"].target_at(10) is None
    assert operations.OPERATIONS[3].target_at(100) == 0.6  # float64


def test_bytes_count_each_operand_and_output_once():
    float32 = np.dtype(np.float32)
    assert data.labelled(5, 7, float32).bytes_moved == 5 * (7 * 4 + 8 + 4)
    assert data.labelled_in_place(5, 7, float32).bytes_moved == 5 * (2 * 7 * 4 + 8 + 4)
    assert data.binary_bytes(5, 7, float32).bytes_moved == 5 * 7 * 5
    assert data.pictures(8 * 512 * 512, 2, float32).x.shape == (8, 2, 512, 512)


def test_the_limits_say_what_they_did():
    bounds = limits.Limits(2)
    x = np.arange(1001, dtype=np.float32)
    y = np.zeros_like(x)
    assert bounds.read([x, x]) == 2 * x.nbytes
    assert bounds.copy(x[:1000], y[:1000]) == 8000
    np.testing.assert_array_equal(x[:1000], y[:1000])
    block = np.linspace(-3, 0, 64).astype(np.float32)
    shifts = np.arange(limits.SWEEPS) * 2.0**-10
    expected = np.exp2(block.astype(np.float64)[:, None] - shifts).sum()
    assert limits._exponentials_f32(block, limits._taylor(6, np.float32)) == pytest.approx(expected, rel=1e-4)
    assert limits._exponentials_f64(block.astype(float), limits._taylor(12, float)) == pytest.approx(expected)
    positive = np.linspace(0.1, 1, 64).astype(np.float32)
    expected = np.log(positive.astype(np.float64)[:, None] * (1 + shifts)).sum()
    assert limits._logarithms(positive) == pytest.approx(expected, rel=1e-4)


def test_a_slow_peer_sits_out_before_ours_does(monkeypatch):
    clock = itertools.count()  # every call takes a second
    monkeypatch.setattr(measure.time, "perf_counter", lambda: next(clock))
    timed = measure.interleaved({measure.OURS: int, "slow": int}, rounds=9, budget=1.5)
    assert {name: found["rounds"] for name, found in timed.items()} == {measure.OURS: measure.LEAST, "slow": 2}


@pytest.fixture(scope="module")
def result():
    arguments = ["--only", "CE", "--classes", "10", "1000", "--megabytes", "0.01", "--rounds", "2", "--budget", "0"]
    settings = run.settings_of([*arguments, "--peers", "numpy", "--no-first-call", "--no-scaling"])
    sys.path.insert(0, str(BENCH))
    try:
        with np.errstate(all="ignore"):
            found = run.results(settings)
            found["scaling"] = scaling.measured(["numpy"], largest=10**5)
    finally:
        sys.path.remove(str(BENCH))
    return json.loads(json.dumps(found))


def test_the_result_names_no_host_and_no_folder(result):
    import platform

    text = json.dumps(result)
    assert platform.node() not in text or len(platform.node()) < 3
    assert str(Path.home()) not in text
    assert str(BENCH.parent) not in text


def test_what_follows_from_the_times(result):
    for row in result["rows"]:
        ours = row["seconds"]["entrokern"]["median"]
        assert row["share"] == max(row["roof"].values()) / ours
        assert row["bytes_per_second"] == row["bytes"] / ours
        if row["target"] is not None:
            assert row["met"] == (row["share"] >= row["target"])


def test_the_tables_have_every_row(result):
    text, page = report.text(result), report.markdown_page(result, "some.json")
    for row in result["rows"]:
        assert report.line(row, result["peers"]) in text
        assert f"| {report.named(row)} " in page
    assert "limits, median over the rows" in text
    assert "✓" in page or "✗" in page


def test_the_short_table_has_the_rows_of_one_length(result):
    rows = [dict(row, k=1000, share=0.5) for row in result["rows"][:1]]
    told = report.markdown_summary(result | {"rows": [*rows, dict(rows[0], k=3, operation="another")]})
    assert f"| {rows[0]['operation']} | " in told and "| 0.50 |" in told and "| another |" not in told


def test_slower_peers_and_faster_ones_are_both_told(result):
    rows = [dict(row, times_faster_than={"numpy": 0.5}) for row in result["rows"][:1]]
    assert "CE than numpy at k = 10 (0.50)" in report.losses_text(result | {"rows": rows})
    rows = [dict(row, times_faster_than={"numpy": 1.5}) for row in result["rows"]]
    assert "nowhere" in report.losses_text(result | {"rows": rows})


def test_the_plots_are_drawn(result, tmp_path):
    pytest.importorskip("matplotlib")
    import plots

    names = [path.name for path in plots.written(result, tmp_path)]
    assert names == ["speed-share.png", "speed-peers.png", "speed-error.png", "speed-scaling.png"]
    assert all((tmp_path / name).stat().st_size > 10_000 for name in names)


def test_a_median_lies_between_its_bounds():
    assert against.bounds_of_median([float(i) for i in range(1, 16)]) == (3.0, 13.0)  # 99.3 % of 15, by ranks
    assert against.bounds_of_median([1.0, 2.0]) == (1.0, 2.0)


@pytest.mark.parametrize(
    ("low", "high", "slower", "faster"),
    [(1.05, 1.2, True, False), (1.02, 1.2, False, False), (0.9, 0.95, False, True), (0.9, 1.1, False, False)],
)
def test_slower_is_what_is_beyond_noise(low, high, slower, faster):
    found = against.Comparison("CE", (low + high) / 2, low, high)
    assert (found.slower, found.faster) == (slower, faster)
    assert ("SLOWER" in against.line(found)) == slower
