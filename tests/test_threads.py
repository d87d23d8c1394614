"""Threads: the same bits for any number, safe to enter from several at once, alive after a fork."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import entrokern as ek
from entrokern import _threads

RNG = np.random.default_rng(3)
X = RNG.standard_normal((3_000, 1_000)).astype(np.float32)  # several chunks
Y = RNG.integers(0, 1_000, 3_000)


@pytest.fixture(autouse=True)
def _default_threads() -> Iterator[None]:
    chosen = _threads._chosen
    yield
    _threads._chosen = chosen


def results() -> list[np.ndarray]:
    loss, grad = ek.cross_entropy(X, Y, return_grad=True)
    few = X.reshape(-1, 10)
    return [
        loss,
        grad,
        ek.entropy(X, form="logits"),
        ek.kl_divergence(X, X[::-1], p_form="logits", q_form="logits", reduction="sum"),
        ek.binary_cross_entropy(X, X > 0),
        ek.cross_entropy(few, np.zeros(len(few), int)),
    ]


def test_the_number_of_threads_changes_no_bit() -> None:
    ek.set_num_threads(1)
    alone = results()
    for n in (2, 3, 8):
        ek.set_num_threads(n)
        for a, b in zip(alone, results(), strict=True):
            np.testing.assert_array_equal(a, b)


def test_eight_callers_at_once() -> None:
    ek.set_num_threads(2)
    alone = results()
    with ThreadPoolExecutor(8) as callers:
        for found in callers.map(lambda _: results(), range(8)):
            for a, b in zip(alone, found, strict=True):
                np.testing.assert_array_equal(a, b)


def _in_child(queue: multiprocessing.Queue) -> None:
    queue.put([np.asarray(r).sum(dtype=np.float64) for r in results()])


def compare_with_a_forked_child() -> None:
    ek.set_num_threads(2)
    wanted = [np.asarray(r).sum(dtype=np.float64) for r in results()]  # the pool exists now
    context = multiprocessing.get_context("fork")
    queue: multiprocessing.Queue = context.Queue()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # forking a process with threads
        child = context.Process(target=_in_child, args=(queue,))
        child.start()
    found = queue.get(timeout=120)
    child.join(timeout=60)
    assert child.exitcode == 0
    np.testing.assert_array_equal(found, wanted)


def test_a_forked_child_computes_on() -> None:
    # in a process of its own: other libraries that this one has loaded by now may not survive a fork
    code = f"import {__name__}; {__name__}.compare_with_a_forked_child()"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr


def test_one_thread_starts_none() -> None:
    ek.set_num_threads(1)
    before = threading.active_count()
    seen: set[str] = set()
    _threads.run_chunks(5, lambda i: seen.add(threading.current_thread().name))
    assert seen == {threading.current_thread().name}
    assert threading.active_count() == before


@pytest.mark.parametrize("threads", [1, 4])
def test_an_error_ends_the_work_before_it_is_raised(threads: int) -> None:
    ek.set_num_threads(threads)
    running, done = [], []

    def work(i: int) -> None:
        running.append(i)
        if i == 3:
            raise ZeroDivisionError("chunk 3")
        time.sleep(0.01)
        done.append(i)

    with pytest.raises(ZeroDivisionError, match="chunk 3"):
        _threads.run_chunks(100, work)
    finished = list(done)
    assert set(running) - {3} == set(finished)  # nobody is left half way
    assert len(finished) < 20  # chunks not yet begun were dropped
    time.sleep(0.05)
    assert done == finished


def test_interrupt_waits_for_the_helpers(monkeypatch: pytest.MonkeyPatch) -> None:
    ek.set_num_threads(2)
    main, done = threading.get_ident(), []

    def work(i: int) -> None:
        if threading.get_ident() == main:
            time.sleep(0.02)
            raise KeyboardInterrupt
        time.sleep(0.1)
        done.append(i)

    with pytest.raises(KeyboardInterrupt):
        _threads.run_chunks(50, work)
    finished = len(done)
    time.sleep(0.15)
    assert len(done) == finished


@pytest.mark.parametrize(
    ("value", "error"), [(0, ValueError), (-1, ValueError), (1.5, TypeError), ("2", TypeError), (True, TypeError)]
)
def test_set_num_threads_refuses(value: object, error: type[Exception]) -> None:
    with pytest.raises(error, match="pass"):
        ek.set_num_threads(value)  # type: ignore[arg-type]


@pytest.mark.parametrize(("value", "cores", "wanted"), [("1", 4, 1), ("9", 4, 4), ("0", 4, 4), ("x", 4, 4), ("", 2, 2)])
def test_environment_sets_the_default(monkeypatch: pytest.MonkeyPatch, value: str, cores: int, wanted: int) -> None:
    monkeypatch.setenv("ENTROKERN_NUM_THREADS", value)
    monkeypatch.setattr(_threads, "available_cores", lambda: cores)
    assert _threads.default_threads() == wanted
