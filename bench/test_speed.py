"""Every operation, ours and its peers, under pytest-benchmark: `python -m pytest bench`.

Only times and rates are here. The share of the machine's limits needs interleaved measurements: that is run.py.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest

import operations
import peers
from data import Case
from operations import Operation

OURS = "entrokern"
TIMED = [
    pytest.param(operation, dtype, k, who, id=f"{operation.name}-{dtype}-k{k}-{who}".replace(" ", "_").replace(",", ""))
    for operation, dtype, k in operations.cells()
    for who in (OURS, *peers.installed(slow_ones=False))
]


@functools.lru_cache(1)  # ours and the peers come one after the other
def prepared(operation: Operation, dtype: str, k: int, megabytes: float) -> Case:
    return operations.prepare(operation, dtype, k, megabytes)


@pytest.mark.parametrize(("operation", "dtype", "k", "who"), TIMED)
def test_speed(
    benchmark: Any, request: pytest.FixtureRequest, operation: Operation, dtype: str, k: int, who: str
) -> None:
    case = prepared(operation, dtype, k, request.config.getoption("--megabytes"))
    with np.errstate(all="ignore"):
        call = functools.partial(operation.ours, case) if who == OURS else peers.call_of(who, operation.formula, case)
        if call is None:
            pytest.skip(f"{who} has no such function")
        benchmark.group = f"{operation.name}, {dtype}, k = {k}"
        benchmark.pedantic(call, rounds=5 if who == OURS else 3, warmup_rounds=1)
    benchmark.extra_info.update(shape=case.x.shape, bytes=case.bytes_moved)
    if benchmark.stats is not None:  # None with --benchmark-disable
        benchmark.extra_info["GB/s"] = round(case.bytes_moved / benchmark.stats.stats.median / 1e9, 2)
