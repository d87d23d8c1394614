"""Lazy results on a real cluster: two worker processes, one of which dies while it works."""

from __future__ import annotations

import os
import signal
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import entrokern as ek

dask = pytest.importorskip("dask")
da = pytest.importorskip("dask.array")
distributed = pytest.importorskip("distributed")

# What the cluster's own machinery has to say: sockets and loops that go down with a killed process.
pytestmark = pytest.mark.filterwarnings("default")

BLOCKS, ROWS, K = 24, 50, 30
RNG = np.random.default_rng(11)
X = RNG.normal(size=(BLOCKS * ROWS, K)).astype(np.float32)
Y = RNG.integers(0, K, BLOCKS * ROWS)
S, W = RNG.uniform(0.1, 3.0, len(X)), RNG.uniform(0.1, 3.0, K)
OPTIONS: dict[str, Any] = {"sample_weight": S, "class_weight": W, "label_smoothing": 0.1, "return_grad": True}


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    with (
        dask.config.set({"distributed.comm.timeouts.connect": "10s"}),  # to a dead worker, half a minute by default
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=2, processes=True, dashboard_address=None, silence_logs=50
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


def lazily(x: Any) -> tuple[Any, ...]:
    """A mean and its gradient, whose denominator is a reduction of its own; scores; two operands; slices of classes."""
    score = ek.score(x, Y, outputs=("loss", "rank"))
    kl = ek.kl_divergence(x, x[::-1], p_form="logits", q_form="logits", reduction="sum")
    split = ek.cross_entropy(x.rechunk({1: 7}), Y, **OPTIONS)  # rows whose classes lie in several blocks
    return (*ek.cross_entropy(x, Y, **OPTIONS), score.loss, score.rank, kl, *split)


def exactly(got: Any, want: Any) -> None:
    for a, b in zip(got, want, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def test_the_same_on_a_cluster_as_here(client: Any) -> None:
    results = lazily(da.from_array(X, chunks=(ROWS, K)))
    got = client.gather(client.compute(list(results)))
    exactly(got, dask.compute(*results, scheduler="synchronous"))
    np.testing.assert_array_equal(got[1], ek.cross_entropy(X, Y, **OPTIONS)[1])


def test_errors_and_the_backend_of_the_call_reach_the_workers(client: Any) -> None:
    x = da.from_array(X, chunks=(ROWS, K))
    y = Y.copy()
    y[777] = K
    with pytest.raises(IndexError, match=f"label {K} of row 777 is out of range"):
        client.compute(ek.cross_entropy(x, y)).result()
    with ek.use_backend("reference"):
        lazy, want = ek.softmax(x), ek.softmax(X)
    np.testing.assert_array_equal(client.compute(lazy).result(), want)
    assert (want != ek.softmax(X)).any()


def test_a_worker_killed_in_mid_run_changes_nothing(client: Any, tmp_path: Path) -> None:
    def slow(block: Any, folder: str) -> Any:
        """A block that leaves a trace of who has begun and ended it."""
        trace = f"{folder}/{os.getpid()}-{uuid.uuid4().hex}"
        open(f"{trace}.begun", "w").close()
        time.sleep(0.1)
        open(f"{trace}.ended", "w").close()
        return block

    def count(pid: int | str, what: str) -> int:
        return len(list(tmp_path.glob(f"{pid}-*.{what}")))

    whole = da.from_array(X, chunks=(ROWS, K))
    want = dask.compute(*lazily(whole), scheduler="synchronous")
    results = lazily(whole.map_blocks(slow, folder=str(tmp_path), dtype=X.dtype, meta=np.empty((0, 0), X.dtype)))
    doomed = min(client.run(os.getpid).values())
    futures = client.compute(list(results))
    patience = time.monotonic() + 60
    while count(doomed, "ended") < 4 or count(doomed, "begun") == count(doomed, "ended"):
        assert time.monotonic() < patience
        time.sleep(0.002)
    assert not all(future.done() for future in futures)
    os.kill(doomed, signal.SIGKILL)
    exactly(client.gather(futures), want)
    assert count("*", "begun") > BLOCKS  # what died with it was computed again
    assert count(doomed, "begun") < BLOCKS
    client.wait_for_workers(2, timeout=30)
    assert doomed not in client.run(os.getpid).values()
