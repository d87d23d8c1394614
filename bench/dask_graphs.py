"""Dask's graphs of the calls: what is told of them on paper, and what they are, without computing anything."""

from __future__ import annotations

import itertools
import pickle
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import dask
import dask.array as da
import numpy as np
from dask.base import collections_to_expr
from dask.callbacks import Callback
from dask.order import order
from distributed.protocol import serialize, to_serialize
from distributed.utils import nbytes

import entrokern as ek

Result = dict[str, Any]
FLOAT = 4  # bytes of a logit
RECORD = 24  # bytes of a block's reduced losses
LABEL = 8
WIDTH = 4  # branches of Dask's trees
SHARE = 0.05  # of a run, that tasks may cost

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


# --- as they are ---------------------------------------------------------------------------------------


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


def graphs(cuts: list[Cut], say: Callable[[str], None]) -> list[Result]:
    found = []
    for cut, operation in itertools.product(cuts, OPERATIONS):
        told = {"cut": cut._asdict(), "block": cut.block_bytes, "blocks": cut.blocks}
        found.append({"operation": operation.name, **told, "paper": paper(operation, cut), **graph(operation, cut)})
        say(f"{operation.name}, blocks of {cut.block_rows} by {cut.block_classes}: {found[-1]['after']} tasks")
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
