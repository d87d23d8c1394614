"""How time grows: with n, with k, with fewer threads; and what a small call costs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

import data
import entrokern as ek
import operations
import peers
from entrokern import _threads
from measure import OURS, interleaved

FLOAT32 = np.dtype(np.float32)
ROUNDS = 9
BUDGET = 1.0
ALIKE = ("CE", "CE + gradient", "KL, logits", "KL, probs", "JS, probs", "BCE mean", "entropy, logits")


def measured(who: Iterable[str], largest: int = 10**8) -> dict[str, Any]:
    return {
        "n": against_n(largest),
        "k": against_k(largest // 10),
        "threads": against_threads(),
        "small": small_call(who),
    }


def against_n(largest: int, classes: Iterable[int] = (10, 1000)) -> list[dict[str, Any]]:
    """CE of 10⁴ elements up to `largest`."""
    found = []
    for k in classes:
        sizes = [10**e for e in range(4, 9) if 10**e <= largest]
        calls = {str(size): _cross_entropy(size // k, k) for size in sizes}
        for size, seconds in _medians(calls).items():
            found.append({"k": k, "elements": int(size), "seconds": seconds})
    return found


def against_k(elements: int) -> list[dict[str, Any]]:
    """CE of so many elements in rows of 10² up to 10⁶ classes."""
    calls = {str(k): _cross_entropy(max(1, elements // k), k) for k in (10**e for e in range(2, 7))}
    return [
        {"k": int(k), "elements": max(1, elements // int(k)) * int(k), "seconds": seconds}
        for k, seconds in _medians(calls).items()
    ]


def against_threads(megabytes: float = 8.0) -> list[dict[str, Any]]:
    """One thread, then all, on operands that a last-level cache holds: where arithmetic bounds."""
    found = []
    every = _threads.num_threads()
    for operation in operations.OPERATIONS:
        k = 1000 if 1000 in operation.classes else operation.classes[0]
        if operation.name not in ALIKE or operation.dtypes != ("float32",):
            continue
        case = operations.prepare(operation, "float32", k, megabytes)
        call = lambda operation=operation, case=case: operation.ours(case)  # noqa: E731
        try:
            seconds = _medians({"1": _on(1, call), "all": _on(every, call)})
        finally:
            ek.set_num_threads(every)
        found.append({"operation": operation.name, "k": k, "threads": every, **seconds})
    return found


def small_call(who: Iterable[str], repeats: int = 200) -> dict[str, float]:
    """Seconds of one call on (32, 10), a number for each row."""
    case = data.labelled(32, 10, FLOAT32)
    calls: dict[str, Callable[[], Any]] = {OURS: lambda: ek.cross_entropy(case.x, case.y, reduction="none")}
    for peer in who:
        if (call := peers.call_of(peer, "ce", case)) is not None:
            calls[peer] = call

    def repeated(call: Callable[[], Any]) -> Callable[[], Any]:
        return lambda: [call() for _ in range(repeats)]

    seconds = _medians({name: repeated(call) for name, call in calls.items()})
    return {name: value / repeats for name, value in seconds.items()}


def _cross_entropy(n: int, k: int) -> Callable[[], Any]:
    case = data.labelled(n, k, FLOAT32)
    return lambda: operations.cross_entropy(case)


def _on(threads: int, call: Callable[[], Any]) -> Callable[[], Any]:
    def run() -> None:
        ek.set_num_threads(threads)
        call()

    return run


def _medians(calls: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Each called once before the clock starts, then all in turn; short calls many times in a row."""
    numbers = {}
    for name, call in calls.items():
        call()
        begun = time.perf_counter()
        call()
        numbers[name] = max(1, int(1e-3 / (time.perf_counter() - begun)))

    def turns(call: Callable[[], Any], number: int) -> Callable[[], Any]:
        return lambda: [call() for _ in range(number)]

    timed = interleaved({name: turns(call, numbers[name]) for name, call in calls.items()}, ROUNDS, BUDGET)
    return {name: value["median"] / numbers[name] for name, value in timed.items()}
