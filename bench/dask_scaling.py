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
import pickle
import statistics
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import dask
import dask.array as da
import distributed
import numpy as np
from dask.base import collections_to_expr
from dask.callbacks import Callback
from dask.order import order
from distributed.protocol import serialize, to_serialize
from distributed.utils import nbytes

import entrokern as ek
import machine
from entrokern import _threads
from measure import interleaved

Result = dict[str, Any]
FLOAT = 4  # bytes of a logit
RECORD = 24  # bytes of a block's reduced losses
LABEL = 8
WIDTH = 4  # branches of Dask's trees
SHARE = 0.05  # of a run, that tasks may cost
WORKERS = 2
ON_PAPER = 0.2e-3, 1e-3  # seconds a task of a distributed scheduler, as its users tell
BANDWIDTHS = 1e9, 10e9, 100e9  # bytes of logits a second, of all workers together


# --- on paper ------------------------------------------------------------------------------------------


def tree(n: int) -> int:
    """Tasks that merge `n` blocks, a few at a time."""
    return 1 if n <= WIDTH else -(-n // WIDTH) + tree(-(-n // WIDTH))


def merges(n: int) -> int:
    """Those that are left when Dask has fused what has one child with it; at the leaves, an alias stays."""
    left, level = 0, 0
    while n > 1:
        left += -(-n // WIDTH) - (level > 0 and n % WIDTH == 1)
        n, level = -(-n // WIDTH), level + 1
    return left


class Count(NamedTuple):
    """Tasks as the call makes them, and as the scheduler gets them: optimised, aliases counted."""

    before: int
    after: int


@dataclass(frozen=True)
class Operation:
    """A call on logits `x`, labels `y` and other logits `q`, and what is known of it on paper.

    `whole(B)` counts tasks of B blocks of whole rows, `split(B, C)` those of B by C blocks; the tasks that load a block
    are among them. The others are bytes: of a row's results, of a class's maps, and of what a slice says of a row.
    """

    name: str
    call: Callable[[Any, Any, Any], Any]
    whole: Callable[[int], Count]
    split: Callable[[int, int], Count]
    reads: int  # of x, where classes are split
    slice_row: int
    row: int = 0
    map: int = 0
    pair: bool = False
    labels: bool = True

    def arrays(self, x: Any, y: Any, q: Any) -> list[Any]:
        """The lazy results."""
        found = self.call(x, y, q)
        if isinstance(found, ek.Score):
            found = tuple(getattr(found, name) for name in SCORES)
        return list(found) if isinstance(found, tuple) else [found]


SCORES = ("loss", "entropy", "argmax", "rank")
# One slice of a row: max, log Z, whether it is ignored, the label's share and loss; sums have what was rounded away.
SOFTMAX, LABELLED, SUM = 24, 25, 16
OPERATIONS = (
    Operation(
        "CE, none",
        lambda x, y, q: ek.cross_entropy(x, y, reduction="none"),
        lambda B: Count(4 * B, B),
        lambda B, C: Count(3 * B * C + B * tree(C) + 2 * B, B * C + B * merges(C) + 2 * B),
        reads=1, slice_row=SOFTMAX + LABELLED, row=4,
    ),
    Operation(
        "CE, mean",
        lambda x, y, q: ek.cross_entropy(x, y),
        lambda B: Count(5 * B + tree(B) + 1, 2 * B + merges(B) + 1 - (B % WIDTH == 1)),
        lambda B, C: Count(
            3 * B * C + B * tree(C) + 3 * B + tree(B) + 1, B * C + B * merges(C) + 2 * B + merges(B) + 1
        ),
        reads=1, slice_row=SOFTMAX + LABELLED,
    ),
    Operation(
        "CE, mean + gradient",
        lambda x, y, q: ek.cross_entropy(x, y, return_grad=True),
        lambda B: Count(6 * B + tree(B) + 1, 3 * B + merges(B) + 1),
        lambda B, C: Count(
            4 * B * C + B * tree(C) + 3 * B + tree(B) + 1, 3 * B * C + B * merges(C) + 2 * B + merges(B) + 1
        ),
        reads=2, slice_row=SOFTMAX + LABELLED, map=FLOAT,
    ),
    Operation(
        "score",
        lambda x, y, q: ek.score(x, y, outputs=SCORES),
        lambda B: Count(7 * B, 5 * B),
        lambda B, C: Count(5 * B * C + 2 * B * tree(C) + 7 * B, 3 * B * C + 2 * B * merges(C) + 6 * B),
        reads=2, slice_row=SOFTMAX + LABELLED + 2 * SUM + 2 * 8, row=4 + 4 + 8 + 8,
    ),
    Operation(
        "KL of logits",
        lambda x, y, q: ek.kl_divergence(x, q, p_form="logits", q_form="logits"),
        lambda B: Count(4 * B, B),
        lambda B, C: Count(6 * B * C + 2 * B * tree(C) + 2 * B, 4 * B * C + 2 * B * merges(C) + B),
        reads=2, slice_row=2 * SOFTMAX + 1 + 2 * SUM, row=4, pair=True, labels=False,
    ),
    Operation(
        "logsumexp",
        lambda x, y, q: ek.logsumexp(x),
        lambda B: Count(3 * B, B),
        lambda B, C: Count(3 * B * C + B * tree(C) + B, B * C + B * merges(C) + B),
        reads=1, slice_row=SOFTMAX, row=4, labels=False,
    ),
)  # fmt: skip


class Cut(NamedTuple):
    """An array and the size of its blocks."""

    rows: int
    classes: int
    block_rows: int
    block_classes: int

    @property
    def blocks(self) -> tuple[int, int]:
        return self.rows // self.block_rows, self.classes // self.block_classes

    @property
    def block_bytes(self) -> int:
        return self.block_rows * self.block_classes * FLOAT


def paper(operation: Operation, cut: Cut) -> Result:
    """Tasks in all; bytes that a task which looks at a block reads, writes, and hands to the tasks that merge."""
    B, C = cut.blocks
    n = cut.block_rows
    count = operation.whole(B) if C == 1 else operation.split(B, C)
    read = cut.block_bytes * (2 if operation.pair else 1) + (LABEL * n if operation.labels else 0)
    reduced = operation.row == 0
    return {
        "before": count.before,
        "after": count.after,
        "reads": 1 if C == 1 else operation.reads,
        "read": read,
        "written": operation.map * n * cut.block_classes + (operation.row * n if C == 1 else 0),
        "handed": (RECORD if reduced else 0) if C == 1 else operation.slice_row * n,
    }


def enough(tasks: float, seconds: float, bandwidth: float) -> float:
    """Bytes of a block from which its `tasks` cost no more than `SHARE` of the run, at bytes a second of all workers.

    One scheduler serves all workers, so that what it does takes as long for one block as for any of them.
    """
    return tasks * seconds * bandwidth * (1.0 - SHARE) / SHARE


# --- graphs, measured but not computed -----------------------------------------------------------------


def operands(cut: Cut) -> tuple[Any, Any, Any]:
    """Logits, labels and other logits, of one task a block; never computed where they are large."""
    shape, chunks = (cut.rows, cut.classes), (cut.block_rows, cut.block_classes)
    x, q = (da.full(shape, value, dtype=np.float32, chunks=chunks) for value in (0.0, 1.0))
    return x, da.zeros(cut.rows, dtype=np.int64, chunks=cut.block_rows), q


def graph(operation: Operation, cut: Cut) -> Result:
    """The call's graph: how many tasks, how large, how long it takes to make."""
    given = operands(cut)
    begun = time.perf_counter()
    arrays = operation.arrays(*given)
    built = time.perf_counter()
    expression = collections_to_expr(arrays).optimize()
    header, frames = serialize(to_serialize(expression))
    packed = time.perf_counter()
    optimised = expression.__dask_graph__()  # which the scheduler does
    done = time.perf_counter()
    order(optimised)
    ordered = time.perf_counter()
    sample = list(itertools.islice(optimised.values(), 0, None, max(1, len(optimised) // 200)))
    return {
        "before": len({key for array in arrays for key in array.__dask_graph__()}),
        "after": len(optimised),
        "sent": nbytes(header) + sum(map(nbytes, frames)),
        "task": statistics.fmean(len(pickle.dumps(task)) for task in sample),
        "seconds": {
            "build": built - begun, "pack": packed - built, "optimise": done - packed, "order": ordered - done,
        },
    }  # fmt: skip


def graphs(cuts: list[Cut]) -> list[Result]:
    found = []
    for cut, operation in itertools.product(cuts, OPERATIONS):
        told = {"cut": cut._asdict(), "block": cut.block_bytes, "blocks": cut.blocks}
        found.append({"operation": operation.name, **told, "paper": paper(operation, cut), **graph(operation, cut)})
        _say(f"{operation.name}, blocks of {cut.block_rows} by {cut.block_classes}: {found[-1]['after']} tasks")
    return found


def handed(operation: Operation, cut: Cut) -> float:
    """Bytes a row that slices hand to the trees, counted in a run of a small array."""
    total = 0

    def count(key: Any, value: Any, *_: Any) -> None:
        nonlocal total
        if str(key[0]).startswith("as_it_is"):
            arrays = value if isinstance(value, dict) else value.arrays
            total += sum(array.nbytes for array in arrays.values())

    with Callback(posttask=count):
        dask.compute(*operation.arrays(*operands(cut)), scheduler="synchronous")
    return total / (cut.rows * cut.blocks[1])


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
        "graphs": graphs(cuts),
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


# --- tables --------------------------------------------------------------------------------------------


def markdown(header: list[str], rows: list[list[str]]) -> str:
    return "".join("| " + " | ".join(line) + " |\n" for line in [header, ["---"] * len(header), *rows])


def size(number: float) -> str:
    """Bytes in a unit that suits them."""
    for unit in ("B", "KB", "MB", "GB", "TB"):
        if number < 999.5 or unit == "TB":
            return f"{number:.3g} {unit}" if number else "–"
        number /= 1000
    raise AssertionError


def _by_operation(result: Result, told: Callable[[Result], str]) -> str:
    """Operations down, cuts across; of each, what is `told`."""
    cuts = dict.fromkeys(Cut(**row["cut"]) for row in result["graphs"])
    rows = {row["operation"]: [row["operation"]] for row in result["graphs"]}
    for row in result["graphs"]:
        rows[row["operation"]].append(told(row))
    return markdown(["blocks of", *(f"{c.block_rows:,} x {c.block_classes:,}" for c in cuts)], list(rows.values()))


def table_of_tasks(result: Result) -> str:
    def told(row: Result) -> str:
        agree = all(row["paper"][when] == row[when] for when in ("before", "after"))
        a_block = row["after"] / (row["blocks"][0] * row["blocks"][1])
        return f"{row['before']:,} → {row['after']:,} ({a_block:.2f}){'' if agree else ' NOT AS ON PAPER'}"

    return _by_operation(result, told)


def table_of_graphs(result: Result) -> str:
    """From the smallest to the largest of the operations, for each way to cut."""
    rows = []
    for cut in dict.fromkeys(Cut(**row["cut"]) for row in result["graphs"]):
        found = [row for row in result["graphs"] if row["cut"] == cut._asdict()]
        sent, task = ([row[what] for row in found] for what in ("sent", "task"))
        here = [row["seconds"]["build"] + row["seconds"]["pack"] for row in found]
        there = [row["seconds"]["optimise"] + row["seconds"]["order"] for row in found]
        sizes = [f"{size(min(each))} … {size(max(each))}" for each in (sent, task)]
        times = [f"{min(each):.2f} … {max(each):.2f} s" for each in (here, there)]
        rows.append([f"{cut.block_rows:,} x {cut.block_classes:,}", sizes[0], *times, sizes[1]])
    return markdown(["blocks of", "sent", "build, pack", "optimise, order", "a task"], rows)


def table_of_bytes(result: Result) -> str:
    def told(row: Result) -> str:
        paper = row["paper"]
        times = f"{paper['reads']} x " if paper["reads"] > 1 else ""
        return f"{times}{size(paper['read'])}, {size(paper['written'])}, {size(paper['handed'])}"

    return _by_operation(result, told)


def table_of_costs(result: Result) -> str:
    """What a task costs, and how large the blocks of a mean have to be for that."""
    row = next(row for row in result["graphs"] if row["operation"] == "CE, mean")
    a_block = row["after"] / row["blocks"][0]
    costs = {
        "threads, here": result["tasks"]["threads"],
        "`LocalCluster`, here": result["tasks"]["cluster"],
        "distributed, at its best": ON_PAPER[0],
        "distributed, busy": ON_PAPER[1],
    }
    rows = [
        [name, f"{1e6 * cost:.0f} µs", *(size(enough(a_block, cost, bandwidth)) for bandwidth in BANDWIDTHS)]
        for name, cost in costs.items()
    ]
    call = f"A call on two blocks of next to nothing, computed on threads: {1e3 * result['tasks']['call']:.1f} ms.\n"
    return markdown(["scheduler", "a task", *(f"{size(b)}/s" for b in BANDWIDTHS)], rows) + "\n" + call


def table_of_rows(result: Result) -> str:
    return _throughput(result, ["threads", "cluster"], ["threads", "`LocalCluster`"])


def table_of_classes(result: Result) -> str:
    return _throughput(
        result, ["classes", "cluster_classes", "gradients"], ["threads", "`LocalCluster`", "threads, mean + gradient"]
    )


def _throughput(result: Result, names: list[str], words: list[str]) -> str:
    """NumPy, then one line for each way to cut; arrays, and so blocks, differ from column to column."""
    lines = []
    for found in zip(*(result[name]["rows"] for name in names), strict=True):
        cells = [f"{row['bytes_per_second'] / 1e9:.1f} GB/s" for row in found]
        if found[0]["name"] != "numpy":
            pairs = zip(found, cells, strict=True)
            cells = [f"{row['name'].replace('x', '×')}: {cell}, **{row['of_numpy']:.2f}**" for row, cell in pairs]
        lines.append([str(len(lines)) if lines else "NumPy", *cells])
    return markdown(["", *words], lines)


def table_of_reads(result: Result) -> str:
    rows = [[name, f"{value:.2f}"] for name, value in result["second_read"]["nanoseconds"].items()]
    return markdown(["one thread", "ns a class"], rows)


def table_of_blocks(result: Result) -> str:
    shapes = list(dict.fromkeys(tuple(row["blocks"]) for row in result["alive"]))
    rows: dict[str, list[str]] = {}
    for row in result["alive"]:
        rows.setdefault(row["call"], [row["call"]]).extend([str(row["threads"]), str(row["cluster"])])
    headings = [f"{B} x {C} blocks: {where}" for B, C in shapes for where in ("threads", "`LocalCluster`")]
    return markdown(["call", *headings], list(rows.values()))


TABLES: dict[str, Callable[[Result], str]] = {
    "dask_tasks": table_of_tasks,
    "dask_graphs": table_of_graphs,
    "dask_bytes": table_of_bytes,
    "dask_costs": table_of_costs,
    "dask_rows": table_of_rows,
    "dask_classes": table_of_classes,
    "dask_reads": table_of_reads,
    "dask_blocks": table_of_blocks,
}


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
