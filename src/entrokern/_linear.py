"""The cross-entropy of a linear layer tile by tile: logits of some rows, by a matrix product, and gone again.

*Whole rows*, where enough of them fit: the fused kernel puts their gradient in place of the logits, and one product
for each gradient takes it from there. Nothing is computed twice.

*Slices of classes*, where rows are so long that few would fit, and each pass over the weight would serve few of them:
the slices' statistics merge (`partial.py`), and for gradients their logits are computed once more.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from . import _arrays, _device, _slices, _threads
from ._arrays import Array
from ._call import CHUNK, Call, can_be, counts_every_row, execute
from .partial import Partial, combine, of_slice

BYTES = 46 << 20  # of a tile of logits, and of what belongs to its rows
PIECE, DEVICE_PIECE = 2 << 20, 16 << 20  # bytes of a weight widened, or of a product added, at a time: those of a cache
HELD = 8 << 20  # bytes of a gradient in the wider type that may be held beside a narrower one
SLICED_ROWS = 2048  # in a tile of slices: a pass over the weight serves as many
# Rows of a tile, below which slices win: they cost a merge and, with gradients, a fourth product beside three.
ENOUGH, ENOUGH_WITH_GRADIENTS = 128, 64
TASK = 1 << 16  # elements of a copy or an addition that one thread takes at a time


def parts(start: int, stop: int, step: int) -> Iterator[slice]:
    for first in range(start, stop, step):
        yield slice(first, min(stop, first + step))


def rounded(values: Array, dtype: np.dtype[Any]) -> Array:
    """`values`, for an array of `dtype`. NumPy takes 100 times as long for a float16 that underflows; of a float32 so
    small, adding 0.75 rounds off just what a float16 cannot hold."""
    if dtype != np.float16 or values.dtype != np.float32 or _device.is_device_array(values):
        return values
    return np.where(np.abs(values) < np.float32(2.0**-14), (values + np.float32(0.75)) - np.float32(0.75), values)


class Rows:
    """An array of shape ``batch + rest``, read and written by rows as if `batch` were one axis; never copied whole."""

    def __init__(self, array: Array, batch: tuple[int, ...]) -> None:
        in_line = len(_arrays.merged_axes(batch, array.strides[: len(batch)])[0]) == 1
        self.batch = None if in_line else batch
        self.array = array.reshape(math.prod(batch), *array.shape[len(batch) :]) if in_line else array

    @property
    def in_line(self) -> bool:
        return self.batch is None

    def at(self, rows: slice, *rest: slice) -> Any:
        if self.batch is None:
            return (rows, *rest)
        at, index = [], rows.start + _device.arange(rows.stop - rows.start, self.array)
        for size in reversed(self.batch):
            at.append(index % size)
            index = index // size
        return (*at[::-1], *rest)

    def __getitem__(self, rows: slice) -> Array:
        part: Array = self.array[self.at(rows)]
        return part

    def __setitem__(self, rows: slice, value: Array) -> None:
        self.array[self.at(rows)] = rounded(value, self.array.dtype)


class Layer:
    """One call on its way through the tiles.

    `call` is that of all logits, whose ``x`` is a stand-in without memory; `gradients` are the arrays to write, by
    the name of their operand.
    """

    def __init__(
        self, call: Call, hidden: Array, weight: Array, bias: Array | None, gradients: dict[str, Array]
    ) -> None:
        batch = call.row_shape
        self.call, self.weight, self.dtype = call, weight, call.x.dtype
        self.n, self.k, self.d = call.n_rows, call.k, weight.shape[1]
        self.on_device = _device.is_device_array(weight)
        self.bias = None if bias is None else bias.astype(self.dtype, copy=False)
        self.hidden = Rows(hidden, batch)
        self.labels, self.y, self.sample_weight = (
            None if array is None else Rows(array, batch) for array in (call.labels, call.y, call.sample_weight)
        )
        self.gradients = {name: array for name, array in gradients.items() if name != "hidden"}
        self.grad_hidden = Rows(gradients["hidden"], batch) if "hidden" in gradients else None
        self.scale: Array | None = None  # what all weights are multiplied by: 1 / denominator for a mean
        # BLAS takes an array as it lies if the elements of one axis lie side by side.
        self.ready = weight.dtype == self.dtype and (
            self.on_device or (weight.itemsize in weight.strides and min(weight.strides) > 0)
        )
        piece = DEVICE_PIECE if self.on_device else PIECE
        self.piece = max(1, piece // (self.dtype.itemsize * max(1, self.d)))  # classes
        self.wide = None if self.ready else self.empty((min(self.piece, self.k), self.d))
        self.logits = self.empty((0,))
        self.held: Any = None  # which rows and classes `logits` are of

    def empty(self, shape: tuple[int, ...], dtype: Any = None) -> Array:
        return _arrays.empty(shape, np.dtype(dtype or self.dtype), self.weight)

    # --- the rows ---------------------------------------------------------------------------------------

    def counted(self, rows: slice) -> Array | None:
        """Which rows count; None where all do."""
        call, counted = self.call, None
        if self.sample_weight is not None:
            counted = self.sample_weight[rows] != 0
        if self.labels is not None and call.ignore_index is not None:
            labels = self.labels[rows]
            if can_be(labels.dtype, call.ignore_index):
                kept = labels != call.ignore_index
                counted = kept if counted is None else counted & kept
        if counted is None or (not self.on_device and counted.all()):
            return None
        return counted

    def denominator(self) -> Any:
        """What a mean divides by: ``Σ s·w_y`` for labels, ``Σ s`` else; 0-d, where the operands are."""
        total: Any = self.empty((), np.float64)
        total[...] = float(self.n)
        if counts_every_row(self.call):
            return total
        total[...] = 0.0
        for rows in parts(0, self.n, CHUNK):
            s = self.empty((rows.stop - rows.start,), np.float64)
            s[...] = 1.0 if self.sample_weight is None else self.sample_weight[rows]
            counted = self.counted(rows)
            if self.labels is not None and self.call.class_weight is not None:
                labels = self.labels[rows]
                # An ignored label is no class: read class 0's weight for it and count it 0 times.
                known = (labels >= 0) & (labels < self.k)
                s = s * self.call.class_weight[np.where(known, labels, labels.dtype.type(0)).astype(np.int64)]
            total = total + (s if counted is None else np.where(counted, s, 0.0)).sum()
        return total

    def weights(self, rows: slice) -> Array | None:
        s = None if self.sample_weight is None else self.sample_weight[rows]
        if self.scale is None:
            return s
        return np.broadcast_to(self.scale, (rows.stop - rows.start,)) if s is None else s * self.scale

    def hidden_rows(self, rows: slice) -> tuple[Array, Array | None]:
        """The rows as BLAS takes them, and which of them count: the others are 0, whatever they held."""
        h, counted = self.hidden[rows].astype(self.dtype, order="C", copy=False), self.counted(rows)
        return (h if counted is None else np.where(counted[:, None], h, h.dtype.type(0))), counted

    # --- products ---------------------------------------------------------------------------------------

    def spread(self, n: int, elements: int, work: Callable[[slice], None]) -> None:
        """``work`` on parts of ``0 … n - 1``: on the host, by the library's threads."""
        count = 1 if self.on_device else max(1, min(n, elements // TASK))
        pieces = list(parts(0, n, -(-n // count)))
        _threads.run_chunks(len(pieces), lambda i: work(pieces[i]))

    def pieces(self, classes: slice) -> Iterator[slice]:
        """Parts of some classes, whose weights are widened at a time."""
        return parts(classes.start, classes.stop, self.k if self.ready else self.piece)

    def weight_of(self, classes: slice) -> Array:
        """The classes' weights as BLAS takes them."""
        weight = self.weight[classes]
        if self.wide is None:
            return weight
        wide = self.wide[: len(weight)]

        def widen(part: slice) -> None:
            wide[part] = weight[part]

        self.spread(len(weight), weight.size, widen)
        return wide

    def add_product(self, a: Array, b: Array, total: Array, first: bool) -> None:
        """``total += a @ b``, or ``total = a @ b`` where it is the first."""
        if first and total.dtype == self.dtype:
            np.matmul(a, b, out=total)
            return
        product = np.matmul(a, b)
        if first:
            total[...] = rounded(product, total.dtype)
            return

        def add(part: slice) -> None:
            total[part] += product[part]

        self.spread(len(total), total.size, add)

    def tile(self, rows: slice, classes: slice, h: Array) -> Call:
        """The call on the logits of some rows and classes, computed unless they are there already."""
        n, k = rows.stop - rows.start, classes.stop - classes.start
        x = self.logits[: n * k].reshape(n, k)
        if self.held != (rows, classes):
            for p in self.pieces(classes):
                np.matmul(h, self.weight_of(p).T, out=x[:, p.start - classes.start : p.stop - classes.start])
            if self.bias is not None:
                bias = self.bias[classes]

                def add(part: slice) -> None:
                    x[part] += bias

                self.spread(n, x.size, add)
            self.held = rows, classes
        return replace(
            self.call, x=x, labels=None if self.labels is None else self.labels[rows],
            y=None if self.y is None else self.y.array[self.y.at(rows, classes)], sample_weight=self.weights(rows),
            class_weight=None if self.call.class_weight is None else self.call.class_weight[classes],
            rows={}, maps={}, prepared=None,
        )  # fmt: skip

    def add_hidden(self, g: Array, classes: slice, total: Array, first: bool) -> None:
        """The gradient by some rows of `hidden`, of these classes."""
        for p in self.pieces(classes):
            part = g[:, p.start - classes.start : p.stop - classes.start]
            self.add_product(part, self.weight_of(p), total, first and p.start == classes.start)

    def add_weight(self, g: Array, h: Array, total: Array, first: bool) -> None:
        """The gradient by the weights of the classes of `g`, of these rows."""
        for p in parts(0, g.shape[1], self.piece):
            self.add_product(g[:, p].T, h, total[p], first)

    # --- sweeps -----------------------------------------------------------------------------------------

    def run(self, losses: Array | None) -> Any:
        """Write all gradients and, if given, the loss of each row; returns the sum of the losses."""
        self.losses = None if losses is None else Rows(losses, self.call.row_shape)
        self.total: Any = 0.0
        if self.n == 0:
            for gradient in self.gradients.values():
                gradient[...] = 0
            return self.total
        rows, classes, by_slices = self.plan()
        # Of gradients whose type is too narrow to add in, the sums are held in the wider one, or put off.
        narrow = [name for name, g in self.gradients.items() if g.dtype != self.dtype and rows < self.n]
        put_off = "weight" in narrow and self.gradients["weight"].size * self.dtype.itemsize > HELD
        sums = {
            name: self.empty(g.shape) if name in narrow else g
            for name, g in self.gradients.items()
            if not (put_off and name == "weight")
        }
        self.logits = self.empty((rows * classes,))
        if by_slices or put_off:
            wholes = self.slices_of_rows(rows, classes, sums, put_off)
            if put_off:
                self.weights_by_classes(wholes)
        else:
            self.whole_rows(rows, sums)
        for name, total in sums.items():
            if name in narrow:
                self.gradients[name][...] = rounded(total, self.gradients[name].dtype)
        return self.total

    def plan(self) -> tuple[int, int, bool]:
        """Rows and classes of a tile, and whether it is a slice."""
        item, gradients = self.dtype.itemsize, bool(self.gradients) or self.grad_hidden is not None
        of_hidden = 3 * self.d * item  # a row, widened; the sum of its gradient and what is added to that
        of_logit = item + (0 if self.y is None or self.y.in_line else self.y.array.itemsize)
        rows = BYTES // (self.k * of_logit + of_hidden)
        if rows >= min(self.n, ENOUGH_WITH_GRADIENTS if gradients else ENOUGH):
            even = -(-self.n // -(-self.n // rows))
            eights = (even + 7) & ~7  # which BLAS likes
            return (eights if eights <= rows else even), self.k, False
        rows = min(self.n, SLICED_ROWS, max(1, BYTES // 2 // max(1, of_hidden)))
        return rows, min(self.k, max(1, BYTES // 2 // (rows * of_logit))), True

    def whole_rows(self, step: int, sums: dict[str, Array]) -> None:
        classes = slice(0, self.k)
        for rows in parts(0, self.n, step):
            h, counted = self.hidden_rows(rows)
            tile = self.tile(rows, classes, h)
            tile.rows["loss"] = self.empty((len(h),), _arrays.row_dtype(self.dtype))
            if sums or self.grad_hidden is not None:
                tile.maps["grad"] = tile.x
            execute(tile)
            self.held = None
            self.add_losses(rows, tile.rows["loss"])
            self.add_gradients(rows, [(classes, tile.x)], h, counted, sums)

    def slices_of_rows(self, step: int, width: int, sums: dict[str, Array], keep: bool) -> list[tuple[slice, Partial]]:
        """Losses and gradients by slices; returns, if asked to `keep` it, what is known of each tile's rows."""
        slices, wholes = list(parts(0, self.k, width)), []
        for rows in parts(0, self.n, step):
            h, counted = self.hidden_rows(rows)
            whole = functools.reduce(combine, (self.statistics(rows, classes, h) for classes in slices))
            self.add_losses(rows, whole.finish())
            # Backwards: the last slice's logits are still there.
            gradients = ((classes, self.gradient_tile(whole, rows, classes, h)) for classes in reversed(slices))
            self.add_gradients(rows, gradients, h, counted, sums)
            if keep:
                wholes.append((rows, whole))
        return wholes

    def statistics(self, rows: slice, classes: slice, h: Array) -> Partial:
        return of_slice(self.tile(rows, classes, h), classes.start, (), None, False)

    def gradient_tile(self, whole: Partial, rows: slice, classes: slice, h: Array) -> Array:
        """The gradient by a tile's logits, in their place."""
        tile = self.tile(rows, classes, h)
        tile.maps["grad"] = tile.x
        _slices.write_maps(whole, tile, classes.start)
        self.held = None
        return tile.x

    def weights_by_classes(self, wholes: list[tuple[slice, Partial]]) -> None:
        """The gradient by the weights of some classes at a time, summed over all rows before it is rounded."""
        width = max(1, min(self.piece, len(self.logits) // (wholes[0][0].stop - wholes[0][0].start)))
        for classes in parts(0, self.k, width):
            total = self.empty((classes.stop - classes.start, self.d))
            for rows, whole in wholes:
                h, _ = self.hidden_rows(rows)
                self.add_weight(self.gradient_tile(whole, rows, classes, h), h, total, rows.start == 0)
            self.gradients["weight"][classes] = rounded(total, self.gradients["weight"].dtype)

    def add_losses(self, rows: slice, losses: Array) -> None:
        if self.losses is not None:
            self.losses[rows] = losses
        else:
            self.total = self.total + losses.sum(dtype=np.float64)

    def add_gradients(
        self, rows: slice, by_logits: Iterable[tuple[slice, Array]], h: Array, counted: Array | None,
        sums: dict[str, Array],
    ) -> None:  # fmt: skip
        """What some rows add to the gradients, from that `by_logits` of slices of classes."""
        out = self.grad_hidden
        if not sums and out is None:
            return
        direct = out is not None and out.in_line and out.array.dtype == self.dtype
        total = None if out is None else out[rows] if direct else self.empty(h.shape)
        for i, (classes, g) in enumerate(by_logits):
            if total is not None:
                self.add_hidden(g, classes, total, first=i == 0)
            if "weight" in sums:
                self.add_weight(g, h, sums["weight"][classes], first=rows.start == 0)
            if "bias" in sums:  # the weight of a constant 1
                ones = np.ones_like(g[:, :1]).T
                self.add_product(ones, g, sums["bias"][None, classes], first=rows.start == 0)
        if out is None or total is None:
            return
        if counted is not None:  # of other rows, 0 times weights that may be infinite
            total[...] = np.where(counted[:, None], total, total.dtype.type(0))
        if not direct:
            out[rows] = total
