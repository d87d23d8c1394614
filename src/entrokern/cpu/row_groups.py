"""Several rows at once: what they have in common is done in one vector, a row in each lane.

The end of a row - the largest of a vector's lanes, their sum, a logarithm - costs as much as some hundred classes.
"""

from __future__ import annotations

import numpy as np

from .blocks import CLASS_STRIDE, row_start, store_constant, view
from .compile import inline
from .memory import load, load_first, store, vector, width
from .simd import larger
from .transpose import rows_max, rows_sum

ROWS = 16  # of a group at most


@inline
def largest(x, i, k, v):
    """The largest of `k` logits from `i` on, a vector of them; a NaN is passed over."""
    lanes, lowest = width(v), v - np.inf
    top, more, c = lowest, lowest, 0
    while c + 2 * lanes <= k:
        top = larger(load(x, i + c, v), top)
        more = larger(load(x, i + c + lanes, v), more)
        c += 2 * lanes
    while c < k:
        top = larger(load_first(x, i + c, k - c, lowest), top)
        c += lanes
    return larger(top, more)


@inline
def group_tops(x, geometry, row, size, k, square, v):
    """The largest logit of each of `size` rows from `row` on; `square` has room for a vector of each lane."""
    for g in range(size):
        store(square, g * width(v), largest(x, row_start(geometry, row + g), k, v))
    return rows_max(square, v)


@inline
def put_sums(sums, g, total):
    """Leave the lanes of row g's sum, in float64, for `group_sums`."""
    store(sums, g * 8, total)


@inline
def group_sums(sums, g):
    """The sums of 8 rows from row g on."""
    return rows_sum(view(sums, g * 8, 64), vector(0.0))


@inline
def place_of(geometry, row):
    """Where a row begins, and how far apart its classes lie; of no array anything."""
    return (0, 1) if geometry is None else (row_start(geometry, row), geometry[CLASS_STRIDE])


@inline
def fill(value, k, out, start, stride):
    """One value for all classes of a row, if there is an array."""
    if out is not None:
        store_constant(value, k, out, start, stride)
