"""Blocks of stored arrays: cut, read beside the computing, and computed side by side where any can be read at once."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from itertools import chain
from typing import TypeVar

from .. import _threads
from .._arrays import Array
from .stored import BLOCK_BYTES, StoredArray

R = TypeVar("R")
Span = tuple[int, int]

POSITIONAL_BYTES = 8 << 20  # of a block that one thread reads and computes: Python's share of it is small
SCATTERED_BYTES = 16 << 20  # where classes lie apart and are read one by one: longer pieces of them
HELD_BYTES = 256 << 20  # in the buffers of all threads that read, at most
AT_HAND = 2  # blocks beside those in work: one that is taken, one that waits for a thread


def spans(arrays: Sequence[StoredArray], block_rows: int | None) -> Iterator[Span]:
    """The ranges in which arrays of as many rows are read: `block_rows` at a time, by default what suits their files.

    That does not depend on the number of threads: nor do then the sums of what is found of each range.
    """
    plane = max(array.after for array in arrays)
    size = POSITIONAL_BYTES if _positional(arrays) else BLOCK_BYTES
    step = block_rows or (SCATTERED_BYTES if plane > 1 else size) // max(_row_bytes(arrays), 1)
    return ranges(arrays[0].n_rows, max(1, step), plane)


def ranges(n_rows: int, step: int, plane: int) -> Iterator[Span]:
    """Consecutive ranges of at most `step` rows: whole planes of `plane` rows, or parts of one plane.

    At least one, if only an empty one, so that the dtypes of the results are known.
    """
    if step >= plane:
        step -= step % max(plane, 1)
        plane = max(n_rows, 1)
    for first in range(0, max(n_rows, 1), plane):
        last = min(n_rows, first + plane)
        for start in range(first, max(last, 1), step):
            yield start, min(last, start + step)


def blocks(arrays: Sequence[StoredArray], spans: Iterator[Span]) -> Generator[tuple[int, int, tuple[Array, ...]]]:
    """First row, end, and the rows of every array, span by span, read one span ahead."""

    def read(span: Span) -> tuple[int, int, tuple[Array, ...]]:
        return *span, tuple(array.rows(*span) for array in arrays)

    with _threads.sparing_one(), ThreadPoolExecutor(1) as reader:
        pending = None
        for span in spans:
            block = pending and pending.result()
            pending = reader.submit(read, span)
            if block:
                yield block
        if pending:
            yield pending.result()


def computed(
    arrays: Sequence[StoredArray], spans: Iterator[Span], work: Callable[[int, tuple[Array, ...]], R]
) -> Generator[tuple[int, int, R]]:
    """First row, end, and what `work` makes of the first row and the rows of every array, span by span in order.

    Where each array can be read from several threads, each of these reads a span and works on it alone. Otherwise, or
    where spans are so long that this took much memory, one thread reads a span ahead and the others work on one.
    `work` may be called from several threads and keeps nothing of the rows, whose memory is used again.
    """
    first = next(spans, None)
    if first is None:
        return
    spans = chain([first], spans)
    threads = _threads.num_threads()
    fitting = min(threads, HELD_BYTES // max(1, (first[1] - first[0]) * _row_bytes(arrays)))
    if _positional(arrays) and (fitting > 1 or threads == 1):
        yield from _side_by_side(max(1, fitting), arrays, spans, work)
        return
    with closing(blocks(arrays, spans)) as read:
        for start, stop, rows in read:
            yield start, stop, work(start, rows)


def _side_by_side(
    n: int, arrays: Sequence[StoredArray], spans: Iterator[Span], work: Callable[[int, tuple[Array, ...]], R]
) -> Generator[tuple[int, int, R]]:
    """`computed` by `n` threads; what is found of a few later spans waits for the earlier, whose errors come first."""
    with ExitStack() as stack:
        free = [[stack.enter_context(closing(array.reader())) for array in arrays] for _ in range(n)]

        def run(span: Span) -> tuple[int, int, R]:
            readers = free.pop()
            try:
                with _threads.one_thread():
                    return *span, work(span[0], tuple(reader.rows(*span) for reader in readers))
            finally:
                free.append(readers)

        pool = stack.enter_context(ThreadPoolExecutor(n, "entrokern-score"))
        pending: deque[Future[tuple[int, int, R]]] = deque()
        try:
            for span in spans:
                pending.append(pool.submit(run, span))
                if len(pending) == n + AT_HAND:
                    yield pending[0].result()
                    pending.popleft()
            while pending:
                yield pending[0].result()
                pending.popleft()
        finally:
            _threads.end(pending)  # before the files are closed


def _positional(arrays: Sequence[StoredArray]) -> bool:
    return all(array.positional for array in arrays)


def _row_bytes(arrays: Sequence[StoredArray]) -> int:
    return sum(array.row_bytes for array in arrays)
