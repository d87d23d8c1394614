"""One call on its way through the kernels: what launches have in common, whatever they compute."""

from __future__ import annotations

from typing import Any

import cupy
import numpy as np

from .. import _arrays
from .._call import Call, can_be, raise_empty
from .arguments import CODES, arguments, fill_operand, fits
from .launch import function, grid_of, launch
from .replay import Launch, Replay, in_line
from .sources import BLOCK, TOTALS_ROWS

BYTES_OF_A_THREAD = 64  # of a row: what it has on the way at once


def team_size(k: int, itemsize: int) -> int:
    """How many threads share a row: a power of two. It depends on the row alone, and with it the row's bits."""
    wanted = k * itemsize // BYTES_OF_A_THREAD
    return min(BLOCK, 1 << max(0, (wanted - 1).bit_length())) if wanted > 1 else 1


def uploaded(array: Any) -> Any:
    """A host array on the device; what is broadcast travels once."""
    once = array[tuple(slice(1) if stride == 0 else slice(None) for stride in array.strides)]
    return cupy.broadcast_to(cupy.asarray(once), array.shape)


def blocks_for(items: int, team: int) -> int:
    return -(-items // (BLOCK // team))


class Execution:
    """One call on its way through the kernels: operands on the device, workspaces, and the order of the launches."""

    def __init__(self, call: Call, reduction: str, on_empty: str, result: Any) -> None:
        self.call, self.reduction, self.on_empty, self.result = call, reduction, on_empty, result
        self._kept: list[Any] = []  # what was made for this call alone, until its last launch is queued
        self._workspaces: list[Any] = []
        self._launches: list[Launch] = []
        self._converted: dict[np.dtype[Any], Any] = {}  # class weights, by the type that kernels take them in
        self._repeatable = not (reduction == "mean" and on_empty == "raise")
        self._copies: list[tuple[Any, Any]] = []  # outputs that kernels cannot write in place, and their stand-ins
        self.repairing = False  # whether the careful kernels do only what the fast ones have left to them
        self.total: Any = None  # what a mean's gradient is multiplied by, as float64 and as float32
        self._factors: dict[np.dtype[Any], Any] = {}  # the same of each row, by the type that the kernels take
        self.losses: Any = None
        self.counts: Any = None  # which rows of summed elements count
        self.split_weights: tuple[int, int, int] | None = None  # weights of classes: place, how many, where the rest is

    def launch(self, name: str, blocks: int, record: Any, cluster: int = 1, shared: int = 0) -> None:
        """Run a kernel on CuPy's current stream: `blocks` in all, `cluster` of them together."""
        one = Launch(name, grid_of(blocks, cluster), record.view(np.uint64).copy(), cluster, shared)
        self._launches.append(one)
        launch(function(name, cluster), one.blocks, shared, one.words)

    def finish(self) -> None:
        """Bring to its place what kernels could not write in place; if there is nothing, remember the launches."""
        for out, stand_in in self._copies:
            out[...] = stand_in
        if self._repeatable and not self._copies and Replay.can_tell_apart(self.call, self.result):
            self.call.prepared = Replay(self.call, self.result, self._converted, self._workspaces, self._launches)

    # --- operands and outputs -------------------------------------------------------------------------

    def on_device(self, array: Any) -> Any:
        """`array` on the device, in an order that kernels can follow."""
        if isinstance(array, np.ndarray):
            array, self._repeatable = uploaded(array), False
        if not fits(array):
            array, self._repeatable = cupy.ascontiguousarray(array), False
        return self._keep(array)

    def writable(self, out: Any) -> Any:
        if fits(out):
            return out
        stand_in = cupy.empty(out.shape, out.dtype)
        self._copies.append((out, stand_in))
        return stand_in

    def _keep(self, array: Any) -> Any:
        self._kept.append(array)
        return array

    def workspace(self, count: int, dtype: Any = np.float64) -> Any:
        self._workspaces.append(cupy.empty((count,), dtype))
        return self._workspaces[-1]

    def number(self, array: Any) -> float | None:
        """The one number that an array of the host repeats, which a launch can be told; None if it is not such.

        It was given as a number, which calls are told apart by, or in a list, whose calls have no plan.
        """
        if not isinstance(array, np.ndarray) or any(array.strides):
            return None
        return float(array[(0,) * array.ndim])

    def operand(self, record: Any, name: str, array: Any) -> None:
        if array is not None:
            fill_operand(record[name][0], self.on_device(array))

    def column(self, record: Any, name: str, array: Any) -> None:
        """An array with one number per row, as rows of one class."""
        if array is not None:
            fill_operand(record[name][0], self.on_device(array[..., None]))

    def output(self, record: Any, name: str, array: Any) -> None:
        if array is not None:
            fill_operand(record[name][0], self.writable(array))

    def row_output(self, name: str) -> Any:
        """Where a row result goes: in one line, as the kernels write it."""
        out = self.call.rows[name]
        if out.flags.c_contiguous:
            return out
        stand_in = cupy.empty(out.shape, out.dtype)
        self._copies.append((out, stand_in))
        return stand_in

    def losses_of_rows(self) -> Any:
        """Where the losses of rows go, also where they are only means to an end."""
        if self.losses is None:
            if "loss" in self.call.rows:
                self.losses = self.row_output("loss")
            else:
                self.losses = self.workspace(self.call.n_rows, _arrays.row_dtype(self._result_dtype()))
        return self.losses

    def _result_dtype(self) -> np.dtype[Any]:
        call = self.call
        two = call.quantity in ("kl_divergence", "js_divergence")
        return np.result_type(call.x.dtype, call.y.dtype) if two and call.y is not None else call.x.dtype

    def gradient_factors(self, record: Any, dtype: Any) -> None:
        """Tell a kernel of the compute type `dtype` what it has to multiply the maps of a row by."""
        if not self.call.maps:
            return
        if self.call.sample_weight is not None:
            record["row_factors"] = self._row_factors(np.dtype(dtype)).data.ptr
        elif self.total is not None:
            record["map_scale"] = self.total.data.ptr + (8 if dtype == np.float32 else 0)

    def _row_factors(self, dtype: np.dtype[Any]) -> Any:
        if dtype not in self._factors:
            factors = self.workspace(self.call.n_rows, dtype)
            record = self.totals_record()
            record["factors"], record["factors_dtype"] = factors.data.ptr, CODES[dtype.name]
            record["total"] = 0 if self.total is None else self.total.data.ptr
            self.launch("totals_factors_of_rows", -(-self.call.n_rows // BLOCK), record)
            self._factors[dtype] = factors
        return self._factors[dtype]

    # --- one number for all rows ------------------------------------------------------------------------

    def totals_record(self) -> Any:
        call = self.call
        record = arguments("totals")
        record["n"], record["k"] = call.n_rows, call.k
        if call.sample_weight is not None:
            self.column(record, "sample_weight", call.sample_weight)
        if call.labels is not None:
            self.column(record, "labels", call.labels)
            set_ignored(record, call)
            if call.class_weight is not None:
                self.column(record, "class_weight", call.class_weight)
        if self.counts is not None:
            fill_operand(record["counts"][0], self.counts.reshape(-1, 1))
        return record

    def class_weight(self, dtype: Any) -> Any:
        """The weights of classes in one line, in the type that a kernel computes with."""
        given, dtype = self.on_device(self.call.class_weight), np.dtype(dtype)
        if given.dtype == dtype and given.flags.c_contiguous:
            return given
        if dtype not in self._converted:
            self._converted[dtype] = in_line(given, dtype)
        return self._converted[dtype]

    def reduce(self, losses: Any) -> None:
        """The weighted sum (or mean) of `losses` into the result; without them, what a mean divides by."""
        record = self.totals_record()
        if losses is not None:
            fill_operand(record["losses"][0], losses.reshape(-1, 1))
        blocks = -(-self.call.n_rows // TOTALS_ROWS)
        self.ask_for_total(record, to_result=losses is not None)
        if blocks > 1:
            record["partial"] = self.workspace(2 * blocks).data.ptr
        self.launch("totals_sum_rows", blocks, record)
        if blocks > 1:
            self.reduce_blocks(record, blocks)
        self.check_not_empty()

    def ask_for_total(self, record: Any, to_result: bool) -> None:
        record["mean"], record["on_empty_zero"] = self.reduction == "mean", self.on_empty == "zero"
        if self.total is None:
            self.total = self.workspace(2)
        record["total"], record["total32"] = self.total.data.ptr, self.total.data.ptr + 8
        if to_result:
            record["result"], record["result_dtype"] = self.result.data.ptr, CODES[self.result.dtype.name]

    def reduce_blocks(self, record: Any, blocks: int) -> None:
        record["blocks"] = blocks
        self.launch("totals_sum_blocks", 1, record)

    def check_not_empty(self) -> None:
        if self.reduction == "mean" and self.on_empty == "raise" and float(self.total[0]) == 0:
            raise_empty()


def set_ignored(record: Any, call: Call) -> None:
    """The label to ignore, if any label of its type can be that; as kernels read labels: uint64 by its bits."""
    assert call.labels is not None
    ignored = call.ignore_index
    if ignored is not None and can_be(call.labels.dtype, ignored):
        record["has_ignored"], record["ignore_index"] = 1, ignored - 2**64 if ignored >= 2**63 else ignored
