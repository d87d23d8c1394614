"""The CUDA kernels under AddressSanitizer and UndefinedBehaviorSanitizer, on memory of exactly the size that is due.

One process runs the whole table: this file as a program, in `shim.sanitizer_environment`. Whatever a kernel reads or
writes beyond its operands, be it with the end of a load of 16 bytes, ends the process with a report.
"""

from __future__ import annotations

import itertools
import json
import random
import subprocess
import sys
from typing import Any, NamedTuple

import numpy as np
import pytest

import device
import entrokern as ek
import fake_cupy
import shim
from cases import FLOATS, Case, call, operands
from cuda_cases import LONG, TABLE, in_place, spoil
from entrokern.cuda import quantities, sources

Host = np.ndarray[Any, Any]

LENGTHS = (1, 2, 3, 7, 8, 9, 17, 33, 100, 257, 1000, 4100)
CLASSES = 50_001  # of long rows
KINDS = ("normal", "holes", "peaked", "ties", "wide")
SAMPLE = 10  # of the runs of a case: those of the default run

pytestmark = pytest.mark.skipif(device.REAL, reason="of the kernels on a CPU")


# --- where operands lie ----------------------------------------------------------------------------------

GAP = 3  # numbers between the rows that lie apart


class Place(NamedTuple):
    """An array on the device, the memory that it lies in to the last byte, and what of that lies between its rows."""

    array: Any
    memory: Host
    gaps: Any = slice(0)


def exact(values: Host) -> Place:
    array = fake_cupy.asarray(np.ascontiguousarray(values))
    return Place(array, fake_cupy.unwrap(array))


def turned(values: Host) -> Place:
    """In Fortran's order: classes lie apart."""
    array = fake_cupy.asarray(np.asfortranarray(values))
    return Place(array, fake_cupy.unwrap(array))


def backwards(values: Host) -> Place:
    turn = (slice(None, None, -1),) * values.ndim
    place = exact(values[turn])
    return place._replace(array=place.array[turn])


def late(values: Host) -> Place:
    """Rows that start one number late, with gaps between them: the last one ends with the memory."""
    n, k = values.shape if values.ndim == 2 else (1, values.size)

    def rows(line: Host) -> Host:
        return np.lib.stride_tricks.as_strided(line[1:], (n, k), ((k + GAP) * line.itemsize, line.itemsize))

    memory = fake_cupy.unwrap(fake_cupy.empty(1 + n * k + max(n - 1, 0) * GAP, values.dtype))
    rows(memory)[...] = values
    gaps = np.ones(memory.size, bool)
    rows(gaps)[...] = False
    return Place(fake_cupy.wrap(rows(memory) if values.ndim == 2 else memory[1:]), memory, gaps)


LAYOUTS = (exact, late, turned, backwards)


# --- the program -----------------------------------------------------------------------------------------


class Run(NamedTuple):
    """A call of a case; `turn` says which layout and kind of data are due."""

    case: Case
    n: int
    k: int
    dtype: str
    turn: int
    order: int  # of the shim
    few: int = 0  # blocks, for which long rows are cut into parts


def run(case: Case, n: int, k: int, dtype: str, turn: int, order: int, few: int) -> None:
    shim.order, quantities.FEW_BLOCKS = order, few
    layout = LAYOUTS[turn % len(LAYOUTS)]
    args, options = operands(case, n, k, dtype, KINDS[turn % len(KINDS)])
    spoil(case, args)
    places = [layout(a) for a in args]
    there = [place.array for place in places]
    options = {name: layout(v).array if isinstance(v, np.ndarray) else v for name, v in options.items()}
    call(case.function, there, options)
    written = in_place(case, there)
    if there[0].itemsize == 2 and "grad_out" in written and type(written["grad_out"]) is fake_cupy.ndarray:
        call(case.function, there, options | {"grad_out": fake_cupy.empty(there[0].shape, np.float32)})
    before = [place.memory[place.gaps].tobytes() for place in places]
    call(case.function, there, options | written)
    assert before == [place.memory[place.gaps].tobytes() for place in places], f"{case.name} writes between rows"


def rows_for(k: int, turn: int) -> int:
    return max(1, min((1, 37, 3, 7)[turn % 4], 8200 // k))


def runs_of(case: Case) -> list[Run]:
    """Every length, dtype and layout, in both orders of the shim."""
    return [
        Run(case, rows_for(k, k + layout), k, dtype, layout + len(LAYOUTS) * (k + order), order)
        for k, dtype, layout, order in itertools.product(LENGTHS, FLOATS, range(len(LAYOUTS)), (0, 1))
    ]


def long_runs_of(case: Case) -> list[Run]:
    """Cut into parts, and shared by blocks."""
    return [
        Run(case, 1 + turn, CLASSES, dtype, turn, turn, few)
        for dtype, turn, few in itertools.product(FLOATS, (0, 1), (0, quantities.FEW_BLOCKS))
    ]


def main(what: str) -> None:
    """Run some calls of the table, or all, or one whose kernel is told of more memory than there is."""
    shim.build(sources.FAMILIES)
    if what in PLANTED:
        memory = fake_cupy.unwrap(fake_cupy.zeros(3 * 100 - 1, np.float32))
        beyond = fake_cupy.wrap(np.lib.stride_tricks.as_strided(memory, (3, 100), (400, 4)))
        PLANTED[what](beyond)
        sys.stdout.write("ended")
        return
    draw = random.Random(0)
    runs = []
    for case in TABLE:
        runs += draw.sample(runs_of(case), SAMPLE) if what == "some" else runs_of(case)
    for case in LONG:
        runs += draw.sample(long_runs_of(case), 1) if what == "some" else long_runs_of(case)
    for one in runs:
        run(*one)
    kernels = sorted({*shim.launches})
    families = sorted({sources.KERNELS[name].family for name in kernels})
    found = {"runs": len(runs), "kernels": kernels, "families": families, "clusters": sorted({*shim.clusters})}
    sys.stdout.write(json.dumps(found) + "\n")


# Of the last row's last 16 bytes, the last 4 are not there.
PLANTED = {
    "reads": lambda beyond: ek.logsumexp(beyond),
    "writes": lambda beyond: ek.softmax(fake_cupy.zeros((3, 100), np.float32), out=beyond),
}


# --- the tests -------------------------------------------------------------------------------------------


def program(what: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, __file__, what], env=shim.sanitizer_environment(), capture_output=True, text=True
    )


def succeeded(what: str) -> dict[str, Any]:
    done = program(what)
    assert done.returncode == 0, done.stderr[:6000]
    return json.loads(done.stdout)


def test_the_table() -> None:
    found = succeeded("some")
    assert found["runs"] == SAMPLE * len(TABLE) + len(LONG)
    assert found["families"] == sorted(sources.FAMILIES)
    assert found["clusters"] == [1, 2, 4]


@pytest.mark.slow
def test_the_whole_table() -> None:
    assert succeeded("all")["kernels"] == sorted(sources.KERNELS)


@pytest.mark.parametrize("fault", PLANTED)
def test_a_planted_overrun_is_seen(fault: str) -> None:
    done = program(fault)
    assert done.returncode != 0 and "ended" not in done.stdout
    assert "AddressSanitizer: heap-buffer-overflow" in done.stderr, done.stderr[:6000]


if __name__ == "__main__":
    main(sys.argv[1])
