"""One revision's side of against.py: prepares an operation, times it, as lines of JSON ask."""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

import operations

TURN = 0.02  # seconds of a turn, at least three calls


def prepared(name: str, dtype: str, k: int, megabytes: float) -> Callable[[], Any]:
    """The call, made once: its kernels are there."""
    operation = next(o for o in operations.OPERATIONS if o.name == name and dtype in o.dtypes)
    case = operations.prepare(operation, dtype, k, megabytes)
    operation.ours(case)
    return lambda: operation.ours(case)


def timed(call: Callable[[], Any]) -> float:
    """The median of a turn's calls, in seconds."""
    times: list[float] = []
    while len(times) < 3 or sum(times) < TURN:
        begun = time.perf_counter()
        call()
        times.append(time.perf_counter() - begun)
    return statistics.median(times)


def main() -> None:
    call: Callable[[], Any] = lambda: None  # noqa: E731
    for text in sys.stdin:
        request = json.loads(text)
        answer: Any = None
        if "prepare" in request:
            try:
                call = prepared(*request["prepare"])
            except Exception as error:  # an older revision may not have it
                answer = f"{type(error).__name__}: {error}"
        else:
            answer = timed(call)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    with np.errstate(all="ignore"):
        main()
