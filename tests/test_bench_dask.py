"""bench/dask_scaling.py: what is told of graphs on paper is what Dask makes of the calls."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

pytest.importorskip("dask")
pytest.importorskip("distributed")

BENCH = Path(__file__).resolve().parent.parent / "bench"
sys.path.insert(0, str(BENCH))
try:
    import dask_graphs
    import dask_scaling
finally:
    sys.path.remove(str(BENCH))

BY_NAME = {operation.name: operation for operation in dask_graphs.OPERATIONS}


@pytest.mark.parametrize("name", BY_NAME)
def test_as_many_tasks_as_on_paper(name):
    """Blocks of rows, and of classes, around the powers of what a tree merges at once."""
    for B, C in ((2, 1), (4, 1), (5, 1), (17, 1), (70, 1), (2, 2), (3, 5), (16, 4), (5, 17), (21, 6)):
        cut = dask_graphs.Cut(3 * B, 2 * C, 3, 2)
        paper, graph = dask_graphs.paper(BY_NAME[name], cut), dask_graphs.graph(BY_NAME[name], cut)
        assert (graph["before"], graph["after"]) == (paper["before"], paper["after"]), (B, C)
        assert 0 < graph["task"] < graph["sent"]


@pytest.mark.parametrize("name", BY_NAME)
def test_slices_hand_on_as_much_as_on_paper(name):
    cut = dask_graphs.Cut(60, 20, 20, 4)
    assert dask_graphs.handed(BY_NAME[name], cut) == BY_NAME[name].slice_row
    assert dask_graphs.paper(BY_NAME[name], cut)["handed"] == 20 * BY_NAME[name].slice_row


def test_a_graph_grows_with_its_blocks_and_not_with_its_rows():
    """Nothing of the operands is in it."""
    small, tall, many = (
        dask_graphs.graph(BY_NAME["CE, mean"], dask_graphs.Cut(rows, 1000, rows // blocks, 1000))
        for rows, blocks in ((10**4, 10), (10**9, 10), (10**9, 1000))
    )
    assert abs(tall["sent"] - small["sent"]) < 1000
    assert many["after"] > 90 * tall["after"]


def test_tasks_cost_their_share_where_blocks_are_just_large_enough():
    seconds, bandwidth, tasks = 1e-3, 10e9, 3.0
    reading = dask_graphs.enough(tasks, seconds, bandwidth) / bandwidth
    assert tasks * seconds / (tasks * seconds + reading) == pytest.approx(dask_graphs.SHARE)


@pytest.mark.filterwarnings("default")  # what a cluster's own machinery has to say
def test_a_quick_run_and_its_tables(tmp_path, capsys, monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))
    path = tmp_path / "dask.json"
    dask_scaling.main(["--quick", "--json", str(path)])
    capsys.readouterr()
    result = json.loads(path.read_text())
    for name in ("threads", "classes", "cluster", "cluster_classes", "gradients"):
        losses = [row["loss"] for row in result[name]["rows"]]
        assert losses == pytest.approx([losses[0]] * len(losses), rel=1e-6)
    assert all(0 < row[where] <= 12 for row in result["alive"] for where in ("threads", "cluster"))

    dask_scaling.main(["--from", str(path), "--markdown"])
    told = capsys.readouterr().out
    assert "NOT AS ON PAPER" not in told
    assert told.count("<!-- table: dask_") == told.count("<!-- end of table -->") == len(dask_scaling.TABLES)
