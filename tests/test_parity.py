"""Every backend against the float64 reference, over the table of cases and the sizes around its edges.

Inputs are the same, so what is allowed is section 4's bound, once for each of the two.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import entrokern as ek
from cases import FLOATS, KINDS, NAMED, OPTIONS, Case, call, drawn, operands
from contract import check, input_dtype
from oracle import LONG, evaluate

OTHERS = [name for name in ek.backends() if name != "reference"]

# Around vectors of 4 to 64 numbers, blocks of 1024 and 2048, and the first split of a row, at 2**16.
CLASSES = (1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 100, 1000, 1023, 1024, 1025, 2049)
LONG_ROWS = (65535, 65536, 65537, 70000)
ROWS = (0, 1, 2, 3, 63, 64, 65, 257)
LIMIT = 20_000  # elements of an operand in the default run


def compare(backend: str, case: Case, n: int, k: int, dtype: str, kind: str) -> None:
    args, kwargs = operands(case, n, k, dtype, kind)
    with ek.use_backend("reference"):
        like = call(case.function, args, kwargs)
    with ek.use_backend(backend):
        got = call(case.function, args, kwargs)
    want = evaluate(LONG, case.function, args, kwargs)  # for its bounds
    check(got, want, input_dtype(case, args), like, where=f"{case} n={n} k={k} {dtype} {kind}")


def sizes(turn: int, every: int) -> list[tuple[int, int, str]]:
    """One in `every` of the class counts, each with a number of rows that fits and a kind of data."""
    chosen = []
    for i, k in enumerate(CLASSES):
        if (i + turn) % every == 0:
            fitting = [n for n in ROWS if n * k <= LIMIT]
            chosen.append((fitting[(turn + 3 * i) % len(fitting)], k, KINDS[(turn + i) % len(KINDS)]))
    return chosen


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("case", NAMED, ids=lambda case: case.name)
@pytest.mark.parametrize("backend", OTHERS)
def test_named(backend, case, dtype):
    turn = 7 * NAMED.index(case) + list(FLOATS).index(dtype)
    for n, k, kind in sizes(turn, every=4):
        compare(backend, case, n, k, dtype, kind)


@pytest.mark.parametrize("case", NAMED, ids=lambda case: case.name)
@pytest.mark.parametrize("backend", OTHERS)
def test_rows_that_begin_anywhere(backend, case):
    """Each of 8 rows of 16 bits at another place between boundaries of 16 bytes; few classes for a GPU's team."""
    turn = NAMED.index(case)
    compare(backend, case, 8, 129, ("bfloat16", "float16")[turn % 2], ("normal", "ties")[turn // 2 % 2])


@pytest.mark.parametrize("case", NAMED, ids=lambda case: case.name)
@pytest.mark.parametrize("backend", OTHERS)
def test_no_rows(backend, case):
    """n = 0 gives empty results of the right dtype and shape, and NaN for a mean."""
    for dtype, k in itertools.product(FLOATS, (1, 40)):
        compare(backend, case, 0, k, dtype, "normal")


@pytest.mark.parametrize("function", OPTIONS)
@pytest.mark.parametrize("backend", OTHERS)
def test_random_options(backend, function):
    """Options together that no one thought of together."""
    rng = np.random.default_rng(1)
    count = 60 if function == "binary_cross_entropy" else 120  # each draw of that is a kernel of its own
    for i, case in enumerate(drawn(function, count)):
        k = int(rng.choice(CLASSES[:16]))
        n = int(rng.choice([n for n in ROWS if n * k <= LIMIT // 4]))
        compare(backend, case, n, k, list(FLOATS)[i % 4], KINDS[i % len(KINDS)])


LONG_CASES = ("ce labels", "ce labels hess", "ce dense grad", "entropy logits", "kl logits logits",
              "js probs probs", "score labels", "bce rows", "log_softmax", "ce probs")  # fmt: skip


@pytest.mark.parametrize("case", [c for c in NAMED if c.name in LONG_CASES], ids=lambda case: case.name)
@pytest.mark.parametrize("backend", OTHERS)
def test_long_rows(backend, case):
    for i, k in enumerate(LONG_ROWS):
        compare(backend, case, 1 + i % 2, k, ("float32", "float64")[i % 2], KINDS[(i + 3) % len(KINDS)])


@pytest.mark.slow
@pytest.mark.parametrize("case", NAMED, ids=lambda case: case.name)
@pytest.mark.parametrize("backend", OTHERS)
def test_every_size(backend, case):
    """Every number of classes with every kind of data, each of them with every dtype and number of rows.

    Another case has other dtypes and rows for the same classes and data.
    """
    turn = NAMED.index(case)
    for (i, k), (j, kind) in itertools.product(enumerate(CLASSES), enumerate(KINDS)):
        fitting = [n for n in ROWS if n * k <= 3 * LIMIT]
        compare(backend, case, fitting[(turn + i + j) % len(fitting)], k, list(FLOATS)[(turn + i + j) % 4], kind)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("function", OPTIONS)
@pytest.mark.parametrize("backend", OTHERS)
def test_many_random_options(backend, function, seed):
    rng = np.random.default_rng(seed)
    for i, case in enumerate(drawn(function, 250, seed + 1)):
        k = int(rng.choice(CLASSES))
        n = int(rng.choice([n for n in ROWS if n * k <= LIMIT]))
        compare(backend, case, n, k, list(FLOATS)[i % 4], KINDS[i % len(KINDS)])
