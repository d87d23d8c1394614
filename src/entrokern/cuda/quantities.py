"""Which kernels run which call, and with what.

The softmax family does rows of logits with labels or without a target, in the compute type of `x` (float32 for
16 bits); the careful kernels, in float64, do all else.
"""

from __future__ import annotations

from typing import Any

import cupy
import numpy as np

from .. import _arrays
from .._call import Call, can_be, counts_every_row, raise_empty
from .arguments import CODES, arguments, fill_operand, fits
from .launch import function, grid_of
from .replay import Launch, Replay
from .sources import BLOCK, CHUNK, SEGMENT, TOTALS_ROWS, softmax_name

LOG2E = 1.4426950408889634
FORM_CODES = {"logits": 0, "log_probs": 1, "probs": 2}
DISTRIBUTIONS = {"entropy_grad": 0, "softmax": 1, "log_softmax": 2}
WHOLE_ROWS, PARTS_OF_ROWS, FROM_PARTS = range(3)
RECORD_BYTES = 80  # at least those of a part's record
FEW_ROWS = 256  # whose long rows are spread over blocks
BYTES_OF_A_THREAD = 64  # of a row: what it has on the way at once
MOST_SUMMING_BLOCKS = 4096  # blocks that share elements whose sum is wanted: a fixed cut, whatever the device
FULL_RESULTS = {"entropy", "argmax", "rank"}


def team_size(k: int, itemsize: int) -> int:
    """How many threads share a row: a power of two. It depends on the row alone, and with it the row's bits."""
    wanted = k * itemsize // BYTES_OF_A_THREAD
    return min(BLOCK, 1 << max(0, (wanted - 1).bit_length())) if wanted > 1 else 1


def blocks_for(items: int, team: int) -> int:
    return -(-items // (BLOCK // team))


class Execution:
    """One call on its way through the kernels: operands on the device, workspaces, and the order of the launches."""

    def __init__(self, call: Call, reduction: str, on_empty: str, result: Any) -> None:
        self.call, self.reduction, self.on_empty, self.result = call, reduction, on_empty, result
        self._kept: list[Any] = []  # what was made for this call alone, until its last launch is queued
        self._workspaces: list[Any] = []
        self._launches: list[Launch] = []
        self._repeatable = call.class_weight is None and not (reduction == "mean" and on_empty == "raise")
        self._copies: list[tuple[Any, Any]] = []  # outputs that kernels cannot write in place, and their stand-ins
        self.repairing = False  # whether the careful kernels do only what the fast ones have left to them
        self._total: Any = None  # what a mean's gradient is multiplied by, as float64 and as float32
        self._factors: dict[np.dtype[Any], Any] = {}  # the same of each row, by the type that the kernels take
        self._losses: Any = None
        self._counts: Any = None  # which rows of summed elements count

    def run(self) -> None:
        call = self.call
        if call.x.size == 0:
            self._run_empty()
            return
        if call.elementwise or call.quantity == "information":
            self._run_elements()
        else:
            self._run_rows()
        for out, stand_in in self._copies:
            out[...] = stand_in
        if self._repeatable and not self._copies and Replay.can_tell_apart(call, self.result):
            call.prepared = Replay(call, self.result, self._workspaces, self._launches)

    def launch(self, name: str, blocks: int, record: Any) -> None:
        """Run a kernel on CuPy's current stream."""
        step = Launch(name, grid_of(blocks), record.copy())
        self._launches.append(step)
        function(name)((step.blocks,), (BLOCK,), (step.arguments,))

    def _run_empty(self) -> None:
        if self.result is not None:
            if self.reduction == "mean" and self.on_empty == "raise":
                raise_empty()
            self.result.fill(np.nan if self.reduction == "mean" and self.on_empty == "nan" else 0.0)

    # --- operands and outputs -------------------------------------------------------------------------

    def on_device(self, array: Any) -> Any:
        """`array` on the device, in an order that kernels can follow."""
        if isinstance(array, np.ndarray):
            array, self._repeatable = cupy.asarray(array), False
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

    # --- rows -----------------------------------------------------------------------------------------

    def _run_rows(self) -> None:
        call = self.call
        if "loss" in call.rows:
            self._losses = self.row_output("loss")
        elif call.total:
            self._losses = self.workspace(call.n_rows, _arrays.row_dtype(self._result_dtype()))
        self._prepare_gradient()
        RUNNERS[call.quantity](self)
        if call.total:
            self._reduce(self._losses)
        elif self._losses is not None and call.sample_weight is not None:
            record = self._totals_record()
            fill_operand(record["losses"][0], self._losses.reshape(-1, 1))
            self.launch("totals_weigh_rows", -(-call.n_rows // BLOCK), record)

    def _result_dtype(self) -> np.dtype[Any]:
        call = self.call
        two = call.quantity in ("kl_divergence", "js_divergence")
        return np.result_type(call.x.dtype, call.y.dtype) if two and call.y is not None else call.x.dtype

    def _prepare_gradient(self) -> None:
        """What gradients of rows are multiplied by, where that is known only on the device."""
        call = self.call
        call.map_scale = 1.0
        if not call.maps:
            return
        if self.reduction == "mean":
            if counts_every_row(call):
                call.map_scale = 1.0 / call.n_rows
            else:
                if call.quantity == "binary_cross_entropy" and call.ignore_index is not None:
                    self._find_counts()
                self._reduce(None)

    def _find_counts(self) -> None:
        """Which rows of binary targets count, by a run of its own: the mean's gradient needs it first."""
        self._counts = self.workspace(self.call.n_rows, np.float32)
        _summed_rows(self, with_maps=False)

    def gradient_factors(self, record: Any, dtype: Any) -> None:
        """Tell a kernel of the compute type `dtype` what it has to multiply the maps of a row by."""
        if not self.call.maps:
            return
        if self.call.sample_weight is not None:
            record["row_factors"] = self._row_factors(np.dtype(dtype)).data.ptr
        elif self._total is not None:
            record["map_scale"] = self._total.data.ptr + (8 if dtype == np.float32 else 0)

    def _row_factors(self, dtype: np.dtype[Any]) -> Any:
        if dtype not in self._factors:
            factors = self.workspace(self.call.n_rows, dtype)
            record = self._totals_record()
            record["factors"], record["factors_dtype"] = factors.data.ptr, CODES[dtype.name]
            record["total"] = 0 if self._total is None else self._total.data.ptr
            self.launch("totals_factors_of_rows", -(-self.call.n_rows // BLOCK), record)
            self._factors[dtype] = factors
        return self._factors[dtype]

    # --- one number for all rows ------------------------------------------------------------------------

    def _totals_record(self) -> Any:
        call = self.call
        record = arguments("totals")
        record["n"], record["k"] = call.n_rows, call.k
        if call.sample_weight is not None:
            self.column(record, "sample_weight", call.sample_weight)
        if call.labels is not None:
            self.column(record, "labels", call.labels)
            _set_ignored(record, call)
            if call.class_weight is not None:
                record["class_weight"] = self.class_weight(np.float64).data.ptr
        if self._counts is not None:
            fill_operand(record["counts"][0], self._counts.reshape(-1, 1))
        return record

    def class_weight(self, dtype: Any) -> Any:
        weights = self.on_device(self.call.class_weight)
        return self._keep(cupy.ascontiguousarray(weights.astype(dtype, copy=False)))

    def _reduce(self, losses: Any) -> None:
        """The weighted sum (or mean) of `losses` into the result; without them, what a mean divides by."""
        record = self._totals_record()
        if losses is not None:
            fill_operand(record["losses"][0], losses.reshape(-1, 1))
        blocks = -(-self.call.n_rows // TOTALS_ROWS)
        self._ask_for_total(record, to_result=losses is not None)
        if blocks > 1:
            record["partial"] = self.workspace(2 * blocks).data.ptr
        self.launch("totals_sum_rows", blocks, record)
        if blocks > 1:
            self._reduce_blocks(record, blocks)
        self._check_not_empty()

    def _ask_for_total(self, record: Any, to_result: bool) -> None:
        record["mean"], record["on_empty_zero"] = self.reduction == "mean", self.on_empty == "zero"
        if self._total is None:
            self._total = self.workspace(2)
        record["total"], record["total32"] = self._total.data.ptr, self._total.data.ptr + 8
        if to_result:
            record["result"], record["result_dtype"] = self.result.data.ptr, CODES[self.result.dtype.name]

    def _reduce_blocks(self, record: Any, blocks: int) -> None:
        record["blocks"] = blocks
        self.launch("totals_sum_blocks", 1, record)

    def _check_not_empty(self) -> None:
        if self.reduction == "mean" and self.on_empty == "raise" and float(self._total[0]) == 0:
            raise_empty()

    # --- elements -----------------------------------------------------------------------------------------

    def _run_elements(self) -> None:
        call = self.call
        call.map_scale = 1.0
        mean_gradient = self.reduction == "mean" and bool(call.maps)
        if mean_gradient and counts_every_row(call):
            call.map_scale = 1.0 / call.n_rows
        elif mean_gradient:
            self._each_element(with_outputs=False)
        self._each_element(with_outputs=True)

    def _each_element(self, with_outputs: bool) -> None:
        call = self.call
        if with_outputs and _binary_elements(self):
            return
        record = _elements_record(self, call.x.shape)
        k = call.k
        parts = -(-k // CHUNK)
        record["parts"], record["team"] = parts, team_size(min(k, CHUNK), 8)
        blocks = blocks_for(call.x.size // k * parts, int(record["team"][0]))
        self.operand(record, "sample_weight", call.sample_weight)
        if with_outputs:
            self.output(record, "loss", call.rows.get("loss"))
            for name, kind in (("grad", "grad"), ("hess", "hess"), ("information", "loss")):
                self.output(record, kind, call.maps.get(name))
            if self._total is not None:
                record["map_scale"] = self._total.data.ptr
        summed = call.total or not with_outputs
        if summed:
            blocks = min(blocks, MOST_SUMMING_BLOCKS)
            record["partial"] = self.workspace(2 * blocks).data.ptr
        self.launch("elements_each_element", blocks, record)
        if summed:
            totals = arguments("totals")
            totals["partial"] = record["partial"]
            self._ask_for_total(totals, to_result=with_outputs)
            self._reduce_blocks(totals, blocks)
            self._check_not_empty()


def _set_ignored(record: Any, call: Call) -> None:
    """The label to ignore, if any label of its type can be that; as kernels read labels: uint64 by its bits."""
    assert call.labels is not None
    ignored = call.ignore_index
    if ignored is not None and can_be(call.labels.dtype, ignored):
        record["has_ignored"], record["ignore_index"] = 1, ignored - 2**64 if ignored >= 2**63 else ignored


# --- rows of logits -----------------------------------------------------------------------------------


def in_softmax_family(call: Call) -> bool:
    """Whether the loss (if any) and the maps of a call are for the softmax family."""
    if call.form != "logits" or call.y is not None:
        return False
    # A smoothed gradient is a difference of numbers that can be nearly equal; a cap has a slope of its own.
    plain = call.label_smoothing == 0.0 and call.z_loss == 0.0 and call.softcap is None
    return (plain or not call.maps) and has_moderate_options(call)


def has_moderate_options(call: Call) -> bool:
    """Whether float32 holds the options, and their reciprocals, with room to spare."""
    return all(1e-30 < abs(v) < 1e30 for v in (call.temperature, call.softcap or 1.0, call.unit, call.map_scale or 1.0))


def _softmax(run: Execution) -> None:
    """Row results, losses and maps of the softmax family."""
    call = run.call
    rows = {name: run.row_output(name) for name in call.rows if name != "loss"}
    if run._losses is not None:
        rows["loss"] = run._losses
    _softmax_launches(run, rows, call.maps)


def _score(run: Execution) -> None:
    call = run.call
    if in_softmax_family(call):
        _softmax(run)
        return
    rows = {name: run.row_output(name) for name in call.rows if name != "loss"}
    if rows:
        _softmax_launches(run, rows, {})  # first: a gradient may overwrite the rows
    if call.maps or run._losses is not None:
        _cross_entropy(run)


def _cross_entropy(run: Execution) -> None:
    if in_softmax_family(run.call):
        _softmax(run)
        return
    if _soft_targets(run):
        run.repairing = True
    _careful_cross_entropy(run)


def _entropy(run: Execution) -> None:
    if run.call.form == "logits":
        _softmax(run)
        return
    if run.call.form == "probs" and not run.call.maps and is_narrow(run.call.x):
        _tables(run, "entropy")
        run.repairing = True
    record = _distributions_record(run)
    run.output(record, "grad", run.call.maps.get("grad"))
    _launch_distributions(run, "entropy_rows", record)


def _softmax_launches(run: Execution, rows: dict[str, Any], maps: dict[str, Any]) -> None:
    call = run.call
    x = run.on_device(call.x)
    record = arguments("softmax")
    fill_operand(record["x"][0], x)
    compute = np.dtype(np.float64 if x.itemsize == 8 else np.float32)
    if call.labels is not None:
        run.column(record, "labels", call.labels)
        record["has_labels"] = 1
        _set_ignored(record, call)
        if call.class_weight is not None:
            record["class_weight"] = run.class_weight(compute).data.ptr
    inv_T = 1.0 / call.temperature
    options = (
        inv_T, LOG2E * inv_T, call.unit, call.label_smoothing, call.z_loss, call.softcap or 0.0,
        call.unit * call.map_scale * inv_T,
    )  # fmt: skip
    with np.errstate(all="ignore"):
        record["options64"] = record["options32"] = options
    record["n"], record["k"] = call.n_rows, call.k
    kinds = [name for name in maps if name != "hess"]
    kind = "entropy_grad" if kinds and call.quantity == "entropy" else "".join(kinds)
    writes = "NO_MAPS" if not maps else "DISTRIBUTIONS" if kind in DISTRIBUTIONS else "GRADIENTS"
    if kinds:
        record["map_kind"] = DISTRIBUTIONS.get(kind, 0)
        run.output(record, "map", maps[kinds[0]])
    run.output(record, "hess", maps.get("hess"))
    if maps:
        run.gradient_factors(record, compute)
    record["team"] = team = team_size(call.k, x.itemsize)
    record["parts"] = 1
    level = "FULL" if call.quantity == "entropy" or FULL_RESULTS.intersection(rows) else "PLAIN"
    if call.softcap is not None or call.label_smoothing != 0.0:
        level = "ANY"
    dtype = x.dtype.name
    for name, out in rows.items():
        record[name] = out.data.ptr
    if call.k <= SEGMENT or call.n_rows >= FEW_ROWS:
        run.launch(softmax_name(dtype, level, writes), blocks_for(call.n_rows, team), record)
        return
    parts = -(-call.k // SEGMENT)
    record["parts"], record["mode"] = parts, PARTS_OF_ROWS
    record["records"] = run.workspace(call.n_rows * parts * RECORD_BYTES, np.uint8).data.ptr
    run.launch(softmax_name(dtype, level, "NO_MAPS"), call.n_rows * parts, record)
    record["mode"] = FROM_PARTS
    run.launch(softmax_name(dtype, level, "NO_MAPS"), call.n_rows * parts, record)
    if maps:
        for name in rows:
            record[name] = 0
        run.launch(softmax_name(dtype, level, writes), call.n_rows * parts, record)


# --- fast kernels of two operands: what they leave out as NaN is for the careful kernels -------------------


def is_narrow(*arrays: Any) -> bool:
    """Whether all are of one dtype that is computed with as float32."""
    return arrays[0].itemsize < 8 and all(a is not None and a.dtype == arrays[0].dtype for a in arrays)


def _losses_of(run: Execution) -> Any:
    """Where the losses of rows go, also where they are only means to an end."""
    if run._losses is None:
        run._losses = run.workspace(run.call.n_rows, _arrays.row_dtype(run._result_dtype()))
    return run._losses


def _two_operands(run: Execution, family: str, kernel: str, x: Any, y: Any, grad: Any = None) -> None:
    """Launch a kernel of rows of two operands; `kernel` is its name but for dtype and maps."""
    call = run.call
    record = arguments(family)
    run.operand(record, "x", x)
    run.operand(record, "y", y)
    record["loss"] = _losses_of(run).data.ptr
    record["n"], record["k"], record["unit"] = call.n_rows, call.k, call.unit
    record["team"] = team = team_size(call.k, x.itemsize)
    if family != "tables":
        inv_T = 1.0 / call.temperature
        with np.errstate(all="ignore"):
            record["inv_T"], record["scale"] = inv_T, LOG2E * inv_T
            record["factor"] = call.unit * call.map_scale * inv_T
    if grad is not None:
        run.gradient_factors(record, np.float32)
        run.output(record, "grad", grad)
    name = f"{kernel}_{x.dtype.name}" + ("" if grad is None else "_maps")
    run.launch(name, blocks_for(call.n_rows, team), record)


def _tables(run: Execution, quantity: str) -> None:
    _two_operands(run, "tables", f"table_{quantity}", run.call.x, run.call.y)


def _soft_targets(run: Execution) -> bool:
    """Cross-entropy with plain target distributions, in float32; whether it is one."""
    call = run.call
    plain = call.label_smoothing == 0.0 and call.z_loss == 0.0 and call.softcap is None and call.class_weight is None
    plain = plain and has_moderate_options(call)
    if call.form != "logits" or not plain or not is_narrow(call.x, call.y) or not set(call.maps) <= {"grad"}:
        return False
    grad = call.maps.get("grad")
    if grad is not None and grad.dtype != call.x.dtype:
        return False
    _two_operands(run, "soft_targets", "soft_target", call.x, call.y, grad)
    return True


def _fast_divergence(run: Execution) -> bool:
    """KL of two softmaxes or of two tables of probabilities, JS of two tables, in float32; whether it is one."""
    call = run.call
    if call.form != call.y_form or not is_narrow(call.x, call.y) or not has_moderate_options(call):
        return False
    kl = call.quantity == "kl_divergence"
    if call.form == "probs" and not call.maps and (kl or call.js_weight == 0.5):
        _tables(run, "kl" if kl else "js")
        return True
    grad = call.maps.get("grad_q")
    if call.form != "logits" or not kl or not set(call.maps) <= {"grad_q"}:
        return False
    if grad is not None and grad.dtype != call.x.dtype:
        return False
    _two_operands(run, "softmax_pairs", "softmax_pair", call.x, call.y, grad)
    return True


# --- the careful kernels ------------------------------------------------------------------------------


def _distributions_record(run: Execution) -> Any:
    call = run.call
    record = arguments("distributions")
    run.operand(record, "x", call.x)
    run.operand(record, "y", call.y)
    fill_operand(record["loss"][0], _losses_of(run).reshape(-1, 1))
    record["n"], record["k"] = call.n_rows, call.k
    record["form"], record["y_form"] = FORM_CODES[call.form], FORM_CODES[call.y_form]
    record["temperature"], record["unit"], record["factor"] = call.temperature, call.unit, call.map_scale
    record["repair"] = run.repairing
    run.gradient_factors(record, np.float64)
    return record


def _launch_distributions(run: Execution, name: str, record: Any) -> None:
    record["team"] = team = team_size(run.call.k, 4)
    run.launch(f"distributions_{name}", blocks_for(run.call.n_rows, team), record)


def _careful_cross_entropy(run: Execution) -> None:
    call = run.call
    record = _distributions_record(run)
    if call.labels is not None:
        run.column(record, "labels", call.labels)
        record["has_labels"] = 1
        _set_ignored(record, call)
    if call.class_weight is not None:
        record["class_weight"] = run.class_weight(np.float64).data.ptr
    record["smoothing"], record["z_loss"], record["cap"] = call.label_smoothing, call.z_loss, call.softcap or 0.0
    run.output(record, "grad", call.maps.get("grad"))
    run.output(record, "hess", call.maps.get("hess"))
    _launch_distributions(run, "cross_entropy_rows", record)


def _divergence(run: Execution) -> None:
    call = run.call
    run.repairing = _fast_divergence(run)
    record = _distributions_record(run)
    record["js"], record["js_weight"] = call.quantity == "js_divergence", call.js_weight
    run.output(record, "grad", call.maps.get("grad_p"))
    run.output(record, "hess", call.maps.get("grad_q"))
    _launch_distributions(run, "divergence_rows", record)


def _elements_record(run: Execution, shape: tuple[int, ...]) -> Any:
    call = run.call
    record = arguments("elements")
    run.operand(record, "x", call.x)
    run.operand(record, "t", call.y)
    run.operand(record, "pos_weight", call.pos_weight)
    record["n"], record["k"] = call.x.size // call.k, call.k
    record["quantity"] = {"binary_cross_entropy": 0, "information": 1, "kl_estimate": 2}[call.quantity]
    record["form"], record["estimator"] = FORM_CODES[call.form], int(call.estimator[1])
    record["unit"], record["factor"], record["smoothing"] = call.unit, call.map_scale, call.label_smoothing
    if call.ignore_index is not None:
        record["has_ignored"], record["ignored"] = 1, call.ignore_index
    return record


# --- binary cross-entropy ---------------------------------------------------------------------------------


def _binary_kernel(run: Execution, of: str, arrays: dict[str, Any]) -> tuple[str, Any] | None:
    """The fast kernel for `arrays` of x's shape and its arguments, if there is one: of logits, with plain targets."""
    call = run.call
    x, t = arrays["x"], arrays["t"]
    plain = call.quantity == "binary_cross_entropy" and call.form == "logits" and call.pos_weight is None
    of_bytes = plain and t.dtype.name in ("uint8", "bool")
    ignored = np.nan if call.ignore_index is None else call.ignore_index
    exact = call.ignore_index is None or abs(call.ignore_index) <= 1 << 24
    if not plain or not exact or x.itemsize == 8 or not (of_bytes or t.dtype == x.dtype):
        return None
    maps = {name: arrays.get(name) for name in ("grad", "hess")}
    if any(m is not None and m.dtype != x.dtype for m in maps.values()):
        return None
    record = arguments("binary")
    run.operand(record, "x", x)
    run.operand(record, "t", t)
    for name, array in maps.items():
        run.output(record, name, array)
    record["n"], record["k"] = x.size // x.shape[-1], x.shape[-1]
    record["team"] = team_size(x.shape[-1], x.itemsize)
    record["whole"] = of_bytes
    record["keep"], record["rest"] = call.unit * (1 - call.label_smoothing), call.unit * 0.5 * call.label_smoothing
    record["factor"] = call.map_scale
    record["ignored"] = ignored
    has_maps = any(m is not None for m in maps.values())
    return f"binary_{of}{'_bytes' * of_bytes}_{x.dtype.name}{'_maps' * has_maps}", record


def _binary_elements(run: Execution) -> bool:
    """Elements that lie in one line with all that belongs to them, in float32; whether they do."""
    call = run.call
    arrays = {"x": call.x, "t": call.y, "loss": call.rows.get("loss"), **call.maps}
    if call.sample_weight is not None or not all(a is None or a.flags.c_contiguous for a in arrays.values()):
        return False
    lines = {name: None if a is None else run.on_device(a).reshape(1, -1) for name, a in arrays.items()}
    found = _binary_kernel(run, "elements", lines)
    if found is None:
        return False
    name, record = found
    if lines["loss"] is not None:
        fill_operand(record["loss"][0], lines["loss"])
    if run._total is not None:
        record["map_scale"] = run._total.data.ptr + 8
    blocks = -(-call.x.size // SEGMENT)
    if call.total:
        blocks = min(blocks, MOST_SUMMING_BLOCKS)
        record["partial"] = run.workspace(2 * blocks).data.ptr
    run.launch(name, blocks, record)
    if call.total:
        totals = arguments("totals")
        totals["partial"], totals["twofold"] = record["partial"], 1
        run._ask_for_total(totals, to_result=True)
        run._reduce_blocks(totals, blocks)
        run._check_not_empty()
    return True


def _binary_rows(run: Execution) -> None:
    call = run.call
    found = _binary_kernel(run, "rows", {"x": call.x, "t": call.y, **call.maps}) if call.ignore_index is None else None
    if found is None:
        _summed_rows(run)
        return
    name, record = found
    fill_operand(record["loss"][0], _losses_of(run).reshape(-1, 1))
    run.gradient_factors(record, np.float32)
    run.launch(name, blocks_for(call.n_rows, int(record["team"][0])), record)


def _summed_rows(run: Execution, with_maps: bool = True) -> None:
    call = run.call
    record = _elements_record(run, call.x.shape)
    fill_operand(record["loss"][0], _losses_of(run).reshape(-1, 1))
    record["summed"] = 1
    record["team"] = team = team_size(call.k, 8)
    if run._counts is None and call.ignore_index is not None:
        run._counts = run.workspace(call.n_rows, np.float32)
    if run._counts is not None:
        record["counts"] = run._counts.data.ptr
    if with_maps and call.maps:
        run.gradient_factors(record, np.float64)
        run.output(record, "grad", call.maps.get("grad"))
        run.output(record, "hess", call.maps.get("hess"))
    run.launch("elements_summed_rows", blocks_for(call.n_rows, team), record)


RUNNERS = {
    "cross_entropy": _cross_entropy,
    "score": _score,
    "softmax": _softmax,
    "entropy": _entropy,
    "kl_divergence": _divergence,
    "js_divergence": _divergence,
    "binary_cross_entropy": _binary_rows,
}
