"""The cross-entropy of a linear layer tile by tile: logits of some rows, by a matrix product, and gone again.

*Whole rows*, where enough of them fit: the fused kernel puts their gradient in place of the logits, and one product
for each gradient takes it from there. Nothing is computed twice.

*Slices of classes*, where rows are so long that few would fit, and each pass over the weight would serve few of them:
the slices' statistics merge (`partial.py`), and for gradients their logits are computed once more.

*Classes in turn*, for a gradient of 16 bits by a weight so large that its sum over the rows cannot be held in 32: once
all rows' statistics are known, each slice of classes meets all rows, and its sum is rounded before the next begins.

What it costs beside the products alone, measured on one core of a Zen 4 at 95 GFLOP/s (products = 1). Whole rows, with
gradients: 1.04 at d = 768 and 1.14 at d = 64, where the logits' exponentials (0.17 ns each forward, 0.33 with their
gradient) are a tenth of all; adding up the gradient by the weight, which NumPy's BLAS does not do itself, is the rest.
Slices compute four products in place of three, and their statistics and gradient take 0.7 ns a logit: 1.37 to 1.48;
so do classes in turn, which also widen and round: 1.6. Whole rows get as slow when few fit, in products too thin for
BLAS: 1.2 by 88 of them, 1.27 to 1.39 by 50, 1.4 by 43.
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

BYTES = 46 << 20  # of a tile of logits, of what belongs to its rows, and of sums held beside narrower gradients
PIECE, DEVICE_PIECE = 2 << 20, 16 << 20  # bytes of a weight widened, or of a product added, at a time: those of a cache
HELD = 26 << 20  # bytes of a gradient in the wider type that may be held beside a narrower one
SLICED_ROWS = 2048  # in a tile of slices: a pass over the weight serves as many
# Rows of a tile, below which slices win: they cost a merge and, with gradients, a fourth product beside three.
ENOUGH, ENOUGH_WITH_GRADIENTS = 128, 40
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


def evenly(n: int, most: int) -> int:
    """The step that cuts `n` into as few parts as `most` does, of nearly equal size."""
    return -(-n // -(-n // most))


def widen(values: Array, wide: Array) -> None:
    """``wide[...] = values``. NumPy takes 5 to 15 times as long for a float16: as the digits of a float32 it is the
    number over 2¹¹², subnormal or not."""
    if values.dtype != np.float16 or wide.dtype != np.float32 or _device.is_device_array(values):
        wide[...] = values
        return
    bits = wide.view(np.uint32)
    bits[...] = values.view(np.uint16)
    sign = bits & np.uint32(0x8000)
    bits ^= sign
    if bits.max(initial=0) >= 0x7C00:  # infinity, NaN
        wide[...] = values
        return
    bits <<= np.uint32(13)
    wide *= np.float32(2.0**112)
    sign <<= np.uint32(16)
    bits |= sign


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
        call.class_weight = _arrays.in_float64(call.class_weight)
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
        self.widened: slice | None = None  # which classes `wide` is of
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
        h, counted = self.hidden[rows], self.counted(rows)
        if h.dtype == self.dtype:
            h = h.astype(self.dtype, order="C", copy=False)
        else:
            narrow, h = h, self.empty(h.shape)
            self.spread(len(h), h.size, lambda part: widen(narrow[part], h[part]))
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
        if self.widened != classes:
            self.spread(len(weight), weight.size, lambda part: widen(weight[part], wide[part]))
            self.widened = classes
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
        rows, classes, by_slices = self.plan(BYTES)
        # Of gradients whose type is too narrow to add in, the sums are held in the wider one, or put off.
        narrow = [name for name, g in self.gradients.items() if g.dtype != self.dtype and rows < self.n]
        held = sum(self.gradients[name].size for name in narrow) * self.dtype.itemsize
        if held > HELD:
            self.classes_in_turn()
            return self.total
        rows, classes, by_slices = self.plan(max(0, BYTES - held)) if held else (rows, classes, by_slices)
        sums = {name: self.empty(g.shape) if name in narrow else g for name, g in self.gradients.items()}
        self.logits = self.empty((rows * classes,))
        if by_slices:
            self.slices_of_rows(rows, classes, sums, self.grad_hidden)
        else:
            self.whole_rows(rows, sums)
        for name in narrow:
            self.write_rounded(name, slice(0, self.k), sums[name])
        return self.total

    def plan(self, memory: int) -> tuple[int, int, bool]:
        """Rows and classes of a tile, and whether it is a slice."""
        gradients = bool(self.gradients) or self.grad_hidden is not None
        rows = memory // (self.k * self.of_logit + self.of_row)
        if rows >= min(self.n, ENOUGH_WITH_GRADIENTS if gradients else ENOUGH):
            even = evenly(self.n, rows)
            eights = (even + 7) & ~7  # which BLAS likes
            return (eights if eights <= rows else even), self.k, False
        rows = min(self.n, SLICED_ROWS, max(1, memory // 2 // max(1, self.of_row)))
        return rows, min(self.k, max(1, memory // 2 // (rows * self.of_logit))), True

    @property
    def of_row(self) -> int:
        """Bytes of a row, widened; of the sum of its gradient and what is added to that."""
        return 3 * self.d * self.dtype.itemsize

    @property
    def of_logit(self) -> int:
        return self.dtype.itemsize + (0 if self.y is None or self.y.in_line else self.y.array.itemsize)

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
            self.add_gradients(rows, [(classes, tile.x)], h, counted, sums, self.grad_hidden)

    def slices_of_rows(
        self, step: int, width: int, sums: dict[str, Array], grad_hidden: Rows | None
    ) -> list[tuple[slice, Partial]]:
        """Losses and gradients by slices; returns what is known of each tile's rows."""
        slices, wholes = list(parts(0, self.k, width)), []
        for rows in parts(0, self.n, step):
            h, counted = self.hidden_rows(rows)
            whole = functools.reduce(combine, (self.statistics(rows, classes, h) for classes in slices))
            self.add_losses(rows, whole.finish())
            # Backwards: the last slice's logits are still there.
            gradients = ((classes, self.gradient_tile(whole, rows, classes, h)) for classes in reversed(slices))
            self.add_gradients(rows, gradients, h, counted, sums, grad_hidden)
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

    def classes_in_turn(self) -> None:
        """Losses and gradients, those by the weights of some classes at a time, summed over all rows before they are
        rounded; the gradient by the rows too, where its sum over the classes may be held meanwhile."""
        share = BYTES // 6  # the least: beside what may be held
        step = evenly(self.n, min(SLICED_ROWS, max(1, share // max(1, self.of_row))))
        width = max(1, min(self.k, self.piece, share // (step * self.of_logit)))
        self.logits = self.empty((step * width,))
        hidden, out = None, self.grad_hidden
        if out is not None and self.takes_sums(out):
            hidden = out.array
        elif out is not None and self.n * self.d * self.dtype.itemsize <= HELD:
            hidden = self.empty((self.n, self.d))
        wholes = self.slices_of_rows(step, width, {}, out if hidden is None else None)
        for classes in parts(0, self.k, width):
            sums = {name: self.empty(g[classes].shape) for name, g in self.gradients.items()}
            for rows, whole in wholes:
                h, _ = self.hidden_rows(rows)
                g = self.gradient_tile(whole, rows, classes, h)
                if hidden is not None:
                    self.add_hidden(g, classes, hidden[rows], first=classes.start == 0)
                self.add_layer(g, h, sums, slice(0, g.shape[1]), first=rows.start == 0)
            for name, total in sums.items():
                self.write_rounded(name, classes, total)
        if hidden is not None:
            for rows, _ in wholes:
                self.write_hidden(rows, hidden[rows], self.counted(rows))

    def takes_sums(self, out: Rows) -> bool:
        """Whether sums of rows can be written where the gradient by `hidden` goes, as they are."""
        return out.in_line and out.array.dtype == self.dtype

    def write_rounded(self, name: str, classes: slice, total: Array) -> None:
        """A gradient by the layer from its sum, some of it at a time."""
        gradient = self.gradients[name]
        for p in parts(classes.start, classes.stop, self.piece):
            gradient[p] = rounded(total[p.start - classes.start : p.stop - classes.start], gradient.dtype)

    def add_losses(self, rows: slice, losses: Array) -> None:
        if self.losses is not None:
            self.losses[rows] = losses
        else:
            self.total = self.total + losses.sum(dtype=np.float64)

    def add_gradients(
        self, rows: slice, by_logits: Iterable[tuple[slice, Array]], h: Array, counted: Array | None,
        sums: dict[str, Array], out: Rows | None,
    ) -> None:  # fmt: skip
        """What some rows add to the gradients, from that `by_logits` of slices of classes."""
        if not sums and out is None:
            return
        total = None if out is None else out[rows] if self.takes_sums(out) else self.empty(h.shape)
        for i, (classes, g) in enumerate(by_logits):
            if total is not None:
                self.add_hidden(g, classes, total, first=i == 0)
            self.add_layer(g, h, sums, classes, first=rows.start == 0)
        if total is not None:
            self.write_hidden(rows, total, counted)

    def add_layer(self, g: Array, h: Array, sums: dict[str, Array], classes: slice, first: bool) -> None:
        """The gradients by these classes of the layer, where the sums of all of them are."""
        if "weight" in sums:
            self.add_weight(g, h, sums["weight"][classes], first)
        if "bias" in sums:  # the weight of a constant 1
            ones = np.ones_like(g[:, :1]).T
            self.add_product(ones, g, sums["bias"][None, classes], first)

    def write_hidden(self, rows: slice, total: Array, counted: Array | None) -> None:
        """The gradient by some rows of `hidden` from its sum, which may lie there already."""
        out = self.grad_hidden
        assert out is not None
        if counted is not None:  # of other rows, 0 times weights that may be infinite
            total[...] = np.where(counted[:, None], total, total.dtype.type(0))
        if not self.takes_sums(out):
            out[rows] = total
