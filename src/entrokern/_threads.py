"""The library's own threads: fixed chunks of rows, taken in turn, by a pool that survives a fork.

Kernels release the GIL, so plain threads run them side by side. Unlike `numba.prange` this is safe
when several threads call at once and after a fork, and a chunk is the same whoever computes it.
"""

from __future__ import annotations

import itertools
import math
import os
import threading
from collections.abc import Callable, Iterator, Reversible
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

_lock = threading.Lock()
_pool: ThreadPoolExecutor | None = None
_pool_size = 0
_chosen: int | None = None


def available_cores() -> int:
    """Cores this process may use: its affinity, and the quota of its control group."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not on Linux
        cores = os.cpu_count() or 1
    try:
        with open("/sys/fs/cgroup/cpu.max") as file:
            quota, period = file.read().split()
        if quota != "max":
            cores = min(cores, max(1, int(quota) // int(period)))
    except (OSError, ValueError):
        pass
    return cores


def default_threads() -> int:
    """``ENTROKERN_NUM_THREADS`` if it is a positive whole number, but no more than the cores at hand."""
    cores = available_cores()
    asked = os.environ.get("ENTROKERN_NUM_THREADS", "")
    return min(cores, int(asked)) if asked.isdigit() and int(asked) > 0 else cores


def num_threads() -> int:
    return _chosen if _chosen is not None else default_threads()


def choose(n: int) -> None:
    global _chosen
    _chosen = n


@contextmanager
def sparing_one() -> Iterator[None]:
    """Where no number was chosen, leave a core to a thread beside those that compute."""
    global _chosen
    before = _chosen
    if before is None:
        _chosen = max(1, default_threads() - 1)
    try:
        yield
    finally:
        _chosen = before


_of_thread = threading.local()


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute in the calling thread alone, whatever was chosen: it is one of several that do."""
    before = alone()
    _of_thread.alone = True
    try:
        yield
    finally:
        _of_thread.alone = before


def alone() -> bool:
    """Whether the calling thread computes alone."""
    return getattr(_of_thread, "alone", False)


def _forget() -> None:
    """In a forked child: the parent's threads do not exist here."""
    global _pool, _lock
    _lock = threading.Lock()
    _pool = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def _helpers(count: int) -> ThreadPoolExecutor:
    """A pool of at least `count` threads."""
    global _pool, _pool_size
    with _lock:
        if _pool is None or _pool_size < count:
            # A smaller pool is left to finish what it runs; its idle threads end with it.
            if _pool is not None:
                _pool.shutdown(wait=False)
            _pool, _pool_size = ThreadPoolExecutor(count, thread_name_prefix="entrokern"), count
        return _pool


def sum_chunks(count: int, work: Callable[[int], float]) -> float:
    """The sum of ``work(0) … work(count - 1)``, whoever computed them."""
    if count == 1:
        return work(0)
    sums = [0.0] * count

    def run(i: int) -> None:
        sums[i] = work(i)

    run_chunks(count, run)
    try:
        return math.fsum(sums)
    except (ValueError, OverflowError):  # infinities of both signs; a sum beyond float64
        return sum(sums)


def run_chunks(count: int, work: Callable[[int], None]) -> None:
    """Call ``work(0) … work(count - 1)``, spread over the threads.

    If a call raises, chunks not yet begun are dropped, running ones are awaited, and the exception of
    the lowest chunk is raised: when this function ends, no thread works for it any more.
    """
    many = count > 1 and not alone()
    threads = min(num_threads(), count) if many else 1  # how many there are is a file's read away
    if threads <= 1:
        for i in range(count):
            work(i)
        return
    turn = itertools.count()
    stop = threading.Event()
    errors: dict[int, BaseException] = {}

    def take_turns() -> None:
        while not stop.is_set() and (i := next(turn)) < count:
            try:
                work(i)
            except BaseException as error:
                errors[i] = error
                stop.set()

    futures: list[Future[None]] = []
    try:
        try:
            pool = _helpers(threads - 1)
            futures = [pool.submit(take_turns) for _ in range(threads - 1)]
        except RuntimeError:  # the interpreter is shutting down: no new threads
            pass
        take_turns()
    except BaseException:
        stop.set()
        raise
    finally:
        end(futures, stop.set)
    if errors:
        raise errors[min(errors)]


def end(futures: Reversible[Future[Any]], interrupted: Callable[[], None] = lambda: None) -> None:
    """Drop what has not begun and wait until the rest has ended. Ctrl-C is told to `interrupted` and raised then."""
    interrupt: BaseException | None = None
    for future in reversed(futures):  # those that wait for a thread are the last
        while not future.done():
            if future.cancel():
                break
            try:
                future.exception()
            except BaseException as error:
                interrupt = error
                interrupted()
    if interrupt is not None:
        raise interrupt
