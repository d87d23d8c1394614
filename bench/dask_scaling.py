"""What Dask costs, on paper and measured: tasks, bytes and graphs for 10⁹ rows, and throughput beside NumPy's.

python bench/dask_scaling.py [--quick] [--json FILE]     measure, print the tables, keep the result
python bench/dask_scaling.py --from FILE --markdown      the tables of a result, between the markers of docs/dask.md

Nothing of the 4 TB is computed: graphs are built, optimised and packed as for a scheduler.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import itertools
import json
import logging
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import distributed
import numpy as np

import entrokern as ek
import machine
from dask_graphs import FLOAT, OPERATIONS, SCORES, Cut, Result, graphs, handed
from dask_tables import TABLES
from entrokern import _threads
from measure import interleaved

WORKERS = 2

# --- what a task costs ---------------------------------------------------------------------------------


def nothing(block: Any) -> Any:
    return block


def task_cost(persist: Callable[[Any], Any], number: int) -> float:
    """Seconds a task of those that do nothing, in a graph of as many blocks."""
    values = itertools.count()  # under new names each time

    def persisted() -> None:
        blocks = da.full(number, next(values), chunks=1, dtype=np.int64)
        persist(blocks.map_blocks(nothing, dtype=np.int64))

    return _median(persisted) / number


def call_cost() -> float:
    """Seconds of a mean of next to nothing, in two blocks, on threads."""
    x, y = da.zeros((2, 2), chunks=(1, 2)), np.zeros(2, int)
    return _median(lambda: on_threads(*mean(x, y)))


def _median(call: Callable[[], Any]) -> float:
    call()
    return interleaved({"": call}, 5, 60.0)[""]["median"]


def on_threads(*arrays: Any) -> Any:
    """The arrays with blocks that are computed, as they were cut; one is given back as such."""
    found = dask.persist(*arrays, scheduler="threads", num_workers=WORKERS)
    return found if len(found) > 1 else found[0]


@contextmanager
def cluster(processes: bool) -> Iterator[Any]:
    """Two workers of one thread each."""
    logging.getLogger("distributed").setLevel(logging.CRITICAL)  # which tells of what closes
    with (
        distributed.LocalCluster(
            n_workers=WORKERS, threads_per_worker=1, processes=processes, dashboard_address=":0", silence_logs=50
        ) as workers,
        distributed.Client(workers) as client,
    ):
        yield client


# --- throughput beside NumPy's, in the same run --------------------------------------------------------


def drawn(n: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.standard_normal((n, k), dtype=np.float32), rng.integers(0, k, n)


def mean(x: Any, y: Any) -> Any:
    return (ek.cross_entropy(x, y),)


def both(x: Any, y: Any) -> Any:
    return ek.cross_entropy(x, y, return_grad=True)


def compared(array: tuple[int, int], blocks: list[tuple[int, int]], call: Any, times: int, rounds: int) -> Result:
    """A call on one array, cut in several ways, beside itself on the NumPy array; threads.

    It is made for several sets of labels at once, so that what a run costs to start is shared by many blocks.
    """
    x, y = drawn(*array)
    sets = [(y + i) % array[1] for i in range(times)]
    calls = {"numpy": lambda: _of_sets(call, x, sets)}
    for rows, classes in blocks:
        cut, cuts = da.from_array(x, chunks=(rows, classes)), [da.from_array(labels, chunks=rows) for labels in sets]
        calls[f"{rows} x {classes}"] = lambda cut=cut, cuts=cuts: on_threads(*_of_sets(call, cut, cuts))
    return _timed(calls, array, times, rounds)


def _of_sets(call: Any, x: Any, sets: list[Any]) -> list[Any]:
    return [result for labels in sets for result in call(x, labels)]


def on_cluster(client: Any, array: tuple[int, int], blocks: list[tuple[int, int]], times: int, rounds: int) -> Result:
    """The mean of blocks that were drawn in the workers and lie there, beside NumPy on the same numbers here."""
    x = da.random.default_rng(0).standard_normal(array, dtype=np.float32, chunks=blocks[0]).persist()
    y = np.random.default_rng(1).integers(0, array[1], array[0])
    sets = [(y + i) % array[1] for i in range(times)]
    here = x.compute()
    calls = {"numpy": lambda: _of_sets(mean, here, sets)}
    for at in blocks:
        cut, cuts = x.rechunk(at).persist(), [da.from_array(labels, chunks=at[0]).persist() for labels in sets]
        distributed.wait([cut, cuts])
        calls[f"{at[0]} x {at[1]}"] = lambda cut=cut, cuts=cuts: client.gather(
            client.compute(_of_sets(mean, cut, cuts))
        )
    return _timed(calls, array, times, rounds)


def _timed(calls: dict[str, Callable[[], Any]], array: tuple[int, int], times: int, rounds: int) -> Result:
    losses = {name: float(call()[0]) for name, call in calls.items()}  # which compiles, too
    seconds = interleaved(calls, rounds, 60.0)
    size, base = times * array[0] * array[1] * FLOAT, seconds["numpy"]["median"]
    rows = []
    for name, found in seconds.items():
        rate = {"bytes_per_second": size / found["median"], "of_numpy": base / found["median"]}
        rows.append({"name": name, "seconds": found["median"], **rate, "loss": losses[name]})
        _say(f"{name}: {rate['bytes_per_second'] / 1e9:.2f} GB/s, {rate['of_numpy']:.2f} of NumPy, loss {losses[name]}")
    return {"array": array, "times": times, "rounds": rounds, "rows": rows}


# --- what split classes cost ---------------------------------------------------------------------------


def second_read(n: int, k: int, slices: int, rounds: int) -> Result:
    """Nanoseconds an element, on one thread: kernels on whole rows beside reads of slices and their formulas."""
    x, y = drawn(n, k)
    q, out, width = x[::-1].copy(), np.empty_like(x), k // slices
    logits = {"p_form": "logits", "q_form": "logits"}
    parts = [ek.partial(x[:, c : c + width], y, class_start=c) for c in range(0, k, width)]
    whole = ek.combine(*parts)
    tasks_kl = da.from_array(x, chunks=(n, width)), da.from_array(q, chunks=(n, width))

    def gradients() -> None:
        for c in range(0, k, width):
            whole.gradient(x[:, c : c + width], y, class_start=c, scale=1 / n, out=out[:, c : c + width])

    calls = {
        "loss, whole rows": lambda: ek.cross_entropy(x, y, reduction="none"),
        "loss and gradient, whole rows": lambda: ek.cross_entropy(x, y, reduction="none", grad_out=out),
        "KL, whole rows": lambda: ek.kl_divergence(x, q, **logits),
        "first read": lambda: [ek.partial(x[:, c : c + width], y, class_start=c) for c in range(0, k, width)],
        "first read for a gradient": lambda: [
            ek.partial(x[:, c : c + width], y, class_start=c, precise=True) for c in range(0, k, width)
        ],
        "merging": lambda: ek.combine(*parts),
        "second read: gradient": gradients,
        "KL, both reads and merging": lambda: dask.compute(
            ek.kl_divergence(*tasks_kl, **logits), scheduler="synchronous"
        ),
    }
    before = _threads.num_threads()
    ek.set_num_threads(1)
    try:
        for call in calls.values():
            call()
        seconds = interleaved(calls, rounds, 20.0)
    finally:
        ek.set_num_threads(before)
    return {
        "n": n,
        "k": k,
        "slices": slices,
        "nanoseconds": {name: 1e9 * found["median"] / (n * k) for name, found in seconds.items()},
        "merge_nanoseconds_a_row": 1e9 * seconds["merging"]["median"] / (n * (slices - 1)),
    }


# --- blocks alive --------------------------------------------------------------------------------------


class Alive:
    """Blocks of logits in memory, counted as they are made and freed."""

    lock = threading.RLock()  # a block can be freed while another is counted
    now = most = 0

    @classmethod
    def count(cls, change: int) -> None:
        with cls.lock:
            cls.now += change
            cls.most = max(cls.most, cls.now)


def made(shape: tuple[int, ...] | None = None, block_info: Any = None) -> np.ndarray:
    """A block of logits that is counted while it is alive."""
    block = np.full(block_info[None]["chunk-shape"], 0.5, np.float32)
    Alive.count(1)
    weakref.finalize(block, Alive.count, -1)
    return block


WAITING: dict[str, Callable[[Any, Any], tuple[Any, ...]]] = {
    "CE, mean": mean,
    "CE, mean + gradient": both,
    "the same, ignore_index": lambda x, y: ek.cross_entropy(x, y, ignore_index=-100, return_grad=True),
    "score": lambda x, y: (ek.score(x, y, outputs=SCORES).loss,),
}


def alive(client: Any, cut: Cut, runs: int) -> list[Result]:
    """The most blocks of logits that are in memory at once, of so many; gradients are summed up, as they come."""
    B, C = cut.blocks
    chunks = ((cut.block_rows,) * B, (cut.block_classes,) * C)
    y = da.zeros(cut.rows, dtype=np.int64, chunks=cut.block_rows)
    found = []
    for name, call in WAITING.items():

        def run(compute: Callable[[list[Any]], Any], call: Any = call) -> int:
            x = da.map_blocks(made, chunks=chunks, dtype=np.float32, meta=np.empty((0, 0), np.float32))
            results = [r.sum() if r.ndim else r for r in call(x, y)]
            gc.collect()
            Alive.now = Alive.most = 0
            compute(results)
            return Alive.most

        threads = max(run(lambda arrays: on_threads(*arrays)) for _ in range(runs))
        workers = max(run(lambda arrays: client.gather(client.compute(arrays))) for _ in range(runs))
        found.append({"call": name, "blocks": (B, C), "threads": threads, "cluster": workers})
        _say(f"{name}, {B} by {C} blocks: {threads} and {workers} alive")
    return found


# --- all of it -----------------------------------------------------------------------------------------

BILLION, MILLION = 10**9, 10**6


def measured(quick: bool) -> Result:
    """Everything; `quick` at sizes that say nothing of speed."""
    cuts = [
        Cut(BILLION, 1000, 10**6, 1000),
        Cut(BILLION, 1000, 10**5, 1000),
        Cut(MILLION, MILLION, 10**4, 10**4),
        Cut(MILLION, MILLION, 10**3, 10**5),
    ]
    n, k, tall, wide, times, rounds = 1 << 17, 1000, 1 << 12, 1 << 16, 6, 7
    heights, stack, seen, number = [n >> shift for shift in (1, 2, 3, 5, 7)], (32, 8), 3, 4000
    if quick:
        cuts = [Cut(5000, 1000, 1000, 1000), Cut(6000, 900, 2000, 180)]
        n, k, tall, wide, times, rounds = 256, 64, 128, 256, 2, 1
        heights, stack, seen, number = [n >> 1, n >> 3], (4, 3), 1, 20
    splits = [(tall // 32 * C, wide // C) for C in (1, 2, 8, 32)]
    result: Result = {
        "date": datetime.date.today().isoformat(),
        "machine": machine.describe(),
        "dask": {name: version(name) for name in ("dask", "distributed")},
        "quick": quick,
        "graphs": graphs(cuts, _say),
        "handed": {o.name: handed(o, Cut(60, 20, 20, 4)) for o in OPERATIONS},
        "tasks": {"threads": task_cost(on_threads, number), "call": call_cost()},
        "threads": compared((n, k), [(rows, k) for rows in heights], mean, times, rounds),
        "classes": compared((tall, wide), splits, mean, times, rounds),
        "gradients": compared((tall, wide), splits, both, 1, rounds),
        "second_read": second_read(max(4, n // 64), 8 * k, 8, rounds),
    }
    with cluster(processes=not quick) as client:
        result["tasks"]["cluster"] = task_cost(lambda blocks: distributed.wait(client.persist(blocks)), number)
        result["cluster"] = on_cluster(client, (n // 2, k), [(r // 2, k) for r in heights], times, rounds)
        halved = [(r // 2, c) for r, c in splits]
        result["cluster_classes"] = on_cluster(client, (tall // 2, wide), halved, times, rounds)
    B, C = stack
    tall_and_wide = Cut(64 * B * C, 256, 64, 256), Cut(64 * B, 256 * C, 64, 256)
    with cluster(processes=False) as client:  # where blocks of all workers can be counted
        result["alive"] = [row for cut in tall_and_wide for row in alive(client, cut, seen)]
    return result


def _say(words: str) -> None:
    print(f"... {words}", flush=True)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny sizes, in seconds: does it run?")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep the result here")
    parser.add_argument("--from", type=Path, metavar="FILE", dest="kept", help="print this result; measure nothing")
    parser.add_argument("--markdown", action="store_true", help="tables between the markers of a document")
    settings = parser.parse_args(arguments)
    result = json.loads(settings.kept.read_text()) if settings.kept else measured(settings.quick)
    if settings.json:
        settings.json.write_text(json.dumps(result, indent=1) + "\n")
    for name, table in TABLES.items():
        mark, end = ("<!-- table: {} -->\n", "<!-- end of table -->\n") if settings.markdown else ("{}\n\n", "")
        print(mark.format(name) + table(result) + end)


if __name__ == "__main__":
    import dask_scaling  # by its name, under which workers find its functions

    dask_scaling.main()
