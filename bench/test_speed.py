"""Every operation, ours and its peers, timed by pytest-benchmark: `python -m pytest bench`.

Only times and rates are here, and what is timed is checked to be right. The share of the machine's
limits needs interleaved measurements: that is run.py.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest

from operations import CLASSES, OPERATIONS, Case, Operation, errors, participants, prepare

NAMED = {operation.name: operation for operation in OPERATIONS}
TIMED = [
    pytest.param(operation.name, k, who, id=f"{operation.name}-k{k}-{who}".replace(" ", "_").replace(",", ""))
    for operation in OPERATIONS
    for k in CLASSES
    for who in participants(operation)
]


@functools.lru_cache(1)  # ours and the peers come one after the other
def prepared(name: str, k: int, megabytes: float) -> tuple[Operation, Case, dict[str, float]]:
    operation = NAMED[name]
    case = prepare(operation, k, megabytes)
    return operation, case, errors(operation, case, participants(operation))


@pytest.mark.parametrize(("name", "k", "who"), TIMED)
def test_speed(benchmark: Any, request: pytest.FixtureRequest, name: str, k: int, who: str) -> None:
    operation, case, error = prepared(name, k, request.config.getoption("--megabytes"))
    call = participants(operation)[who](case)
    benchmark.group = f"{name}, k = {k}, n = {len(case.x)}"
    benchmark.pedantic(call, rounds=5 if who == "entrokern" else 3, warmup_rounds=1)
    benchmark.extra_info.update(n=len(case.x), k=k, bytes=case.bytes_moved, error=error[who])
    if benchmark.stats is not None:  # None with --benchmark-disable
        rate = case.bytes_moved / benchmark.stats.stats.median
        benchmark.extra_info["GB/s"] = round(rate / 1e9, 2)
    # A sum of k terms of float32, relative to a sum that may be small: wide for the peers' sake.
    assert error[who] < (1e-4 if who == "entrokern" else np.inf)
