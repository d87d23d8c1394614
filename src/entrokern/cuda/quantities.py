"""Which kernels run which call, and with what.

The softmax family does rows of logits with labels or without a target, in the compute type of `x` (float32 for
16 bits); fast kernels of two operands and of binary targets do what is plain, in float32; the careful kernels, in
float64, do all else.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .._call import Call, counts_every_row, raise_empty
from .arguments import arguments, fill_operand
from .execution import Execution, blocks_for, set_ignored, team_size
from .launch import has_clusters
from .sources import (
    BLOCK,
    CHUNK,
    RECORD_BYTES,
    SEGMENT,
    SHARED_BYTES,
    binary_name,
    cluster_size,
    segments_of,
    softmax_name,
)

LOG2E = 1.4426950408889634
FORM_CODES = {"logits": 0, "log_probs": 1, "probs": 2}
DISTRIBUTIONS = {"entropy_grad": 0, "softmax": 1, "log_softmax": 2}
PARTS = 1  # the mode of a launch that gathers the first records of segments, as in segments.cuh
FEW_BLOCKS = 256  # with fewer at work, long rows are cut into parts
MOST_CLASSES = 1 << 16  # whose weights are copied: beyond, they could be as many as elements
BETWEEN_VECTORS = 8  # numbers, at most, from the first of a vector on
MOST_SUMMING_BLOCKS = 4096  # blocks that share elements whose sum is wanted: a fixed cut, whatever the device
FULL_RESULTS = {"entropy", "argmax", "rank"}


def compute(run: Execution) -> None:
    """Launch all that a call needs."""
    call = run.call
    if call.x.size == 0:
        _run_empty(run)
        return
    if call.elementwise or call.quantity == "information":
        _run_elements(run)
    else:
        _run_rows(run)
    run.finish()


def _run_empty(run: Execution) -> None:
    if run.result is not None:
        if run.reduction == "mean" and run.on_empty == "raise":
            raise_empty()
        run.result.fill(np.nan if run.reduction == "mean" and run.on_empty == "nan" else 0.0)


def _run_rows(run: Execution) -> None:
    call = run.call
    if "loss" in call.rows or call.total:
        run.losses_of_rows()
    _prepare_gradient(run)
    RUNNERS[call.quantity](run)
    if call.total:
        run.reduce(run.losses)
    elif run.losses is not None and call.sample_weight is not None:
        record = run.totals_record()
        fill_operand(record["losses"][0], run.losses.reshape(-1, 1))
        run.launch("totals_weigh_rows", -(-call.n_rows // BLOCK), record)


def _prepare_gradient(run: Execution) -> None:
    """What gradients of rows are multiplied by, where that is known only on the device."""
    call = run.call
    call.map_scale = 1.0
    if not call.maps:
        return
    if run.reduction == "mean":
        if counts_every_row(call):
            call.map_scale = 1.0 / call.n_rows
        else:
            if call.quantity == "binary_cross_entropy" and call.ignore_index is not None:
                _find_counts(run)
            run.reduce(None)


def _find_counts(run: Execution) -> None:
    """Which rows of binary targets count, by a run of its own: the mean's gradient needs it first."""
    _binary_rows(run, with_maps=False)


def _run_elements(run: Execution) -> None:
    call = run.call
    call.map_scale = 1.0
    mean_gradient = run.reduction == "mean" and bool(call.maps)
    if mean_gradient and counts_every_row(call):
        call.map_scale = 1.0 / call.n_rows
    elif mean_gradient:
        _each_element(run, with_outputs=False)
    _each_element(run, with_outputs=True)


def _each_element(run: Execution, with_outputs: bool) -> None:
    call = run.call
    if _binary_elements(run, with_outputs):
        return
    record = _elements_record(run, call.x.shape)
    k = call.k
    parts = -(-k // CHUNK)
    record["parts"], record["team"] = parts, team_size(min(k, CHUNK), 8)
    blocks = blocks_for(call.x.size // k * parts, int(record["team"][0]))
    run.operand(record, "sample_weight", call.sample_weight)
    if with_outputs:
        run.output(record, "loss", call.rows.get("loss"))
        for name, kind in (("grad", "grad"), ("hess", "hess"), ("information", "loss")):
            run.output(record, kind, call.maps.get(name))
        if run.total is not None:
            record["map_scale"] = run.total.data.ptr
    summed = call.total or not with_outputs
    if summed:
        blocks = min(blocks, MOST_SUMMING_BLOCKS)
        record["partial"] = run.workspace(2 * blocks).data.ptr
    run.launch("elements_each_element", blocks, record)
    if summed:
        totals = arguments("totals")
        totals["partial"] = record["partial"]
        run.ask_for_total(totals, to_result=with_outputs)
        run.reduce_blocks(totals, blocks)
        run.check_not_empty()


# --- rows of logits -----------------------------------------------------------------------------------


def in_softmax_family(call: Call) -> bool:
    """Whether the loss (if any) and the maps of a call are for the softmax family."""
    if call.form != "logits" or call.y is not None:
        return False
    # Weights of classes and their sum cancel to more digits than two float32 have.
    cancels = call.label_smoothing > 0.0 and call.class_weight is not None and call.x.itemsize < 8
    return not (call.maps and cancels) and has_moderate_options(call)


def has_moderate_options(call: Call) -> bool:
    """Whether float32 holds the options, and their reciprocals, with room to spare."""
    options = (call.temperature, call.softcap or 1.0, call.z_loss or 1.0, call.unit, call.map_scale or 1.0)
    return all(1e-30 < abs(v) < 1e30 for v in options)


def _softmax(run: Execution) -> None:
    """Row results, losses and maps of the softmax family."""
    call = run.call
    rows = {name: run.row_output(name) for name in call.rows if name != "loss"}
    if run.losses is not None:
        rows["loss"] = run.losses
    if call.maps and softmax_level(call, rows) == "ANY":
        _softmax_launches(run, rows, {})  # first: a gradient may overwrite the rows
        rows = {}
    _softmax_launches(run, rows, call.maps)


def softmax_level(call: Call, rows: dict[str, Any]) -> str:
    """How much the softmax family has to gather for the row results `rows` and the maps of a call."""
    full = call.quantity == "entropy" or bool(FULL_RESULTS.intersection(rows))
    options = call.softcap is not None or call.label_smoothing != 0.0 or (call.z_loss != 0.0 and bool(call.maps))
    return ("ANY" if full else "OPTIONS") if options else ("FULL" if full else "PLAIN")


def _score(run: Execution) -> None:
    call = run.call
    if in_softmax_family(call):
        _softmax(run)
        return
    rows = {name: run.row_output(name) for name in call.rows if name != "loss"}
    if rows:
        _softmax_launches(run, rows, {})  # first: a gradient may overwrite the rows
    if call.maps or run.losses is not None:
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
        set_ignored(record, call)
        if call.class_weight is not None:
            record["class_weight"] = run.class_weight(compute).data.ptr
    inv_T = 1.0 / call.temperature
    soft = call.label_smoothing / call.k
    targets = soft, 1.0 - call.label_smoothing + soft
    options = (
        inv_T, LOG2E * inv_T, call.unit, call.label_smoothing, call.z_loss, call.softcap or 0.0,
        call.unit * call.map_scale * inv_T, 1.0 / (call.softcap or 1.0), 2.0 * call.z_loss / call.unit, *targets,
    )  # fmt: skip
    with np.errstate(all="ignore"):
        record["options64"] = (*options, 0.0, 0.0)
        record["options32"] = (*options, *(v - float(np.float32(v)) for v in targets))
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
    record["team"] = team_size(call.k, x.itemsize)
    for name, out in rows.items():
        record[name] = out.data.ptr
    level, dtype = softmax_level(call, rows), x.dtype.name
    plain, writing = softmax_name(dtype, level, "NO_MAPS"), softmax_name(dtype, level, writes)
    if _launch_whole_rows(run, writing, record, x.itemsize if maps else 0):
        return
    _launch_parts(run, plain, record, gathers=1)
    if maps:  # by themselves: they may be written over the label's logit, which the row's results need
        for name in rows:
            record[name] = 0
        run.launch(writing, call.n_rows * segments_of(call.k), record)


def _launch_whole_rows(run: Execution, name: str, record: Any, read_again: int) -> bool:
    """Launch a kernel that stands on segments.cuh, unless its rows are too few to keep a device busy, or too long for
    their records; whether it did. What is read more than once has `read_again` bytes a class: there, blocks may share
    a row."""
    n, k, segments = run.call.n_rows, run.call.k, segments_of(run.call.k)
    record["parts"] = 1
    cluster = cluster_size(k, read_again) if read_again and has_clusters() else 1
    shared = 2 * segments * RECORD_BYTES if segments > 1 else 0  # those of one sweep, and of the next
    if segments > 1 and (n * cluster < FEW_BLOCKS or shared > SHARED_BYTES):
        return False
    run.launch(name, blocks_for(n, int(record["team"][0])) * cluster, record, cluster, shared)
    return True


def _launch_parts(run: Execution, name: str, record: Any, gathers: int) -> None:
    """The same with a block for each segment: a launch for each sweep that gathers, and one for what comes of that."""
    record["parts"] = parts = segments_of(run.call.k)
    blocks = run.call.n_rows * parts
    record["records"] = run.workspace(gathers * blocks * RECORD_BYTES, np.uint8).data.ptr
    for mode in range(PARTS, PARTS + gathers + 1):
        record["mode"] = mode
        run.launch(name, blocks, record)


# --- fast kernels of two operands: what they leave out as NaN is for the careful kernels -------------------


def is_narrow(*arrays: Any) -> bool:
    """Whether all are of one dtype that is computed with as float32."""
    return arrays[0].itemsize < 8 and all(a is not None and a.dtype == arrays[0].dtype for a in arrays)


def _two_operands(run: Execution, family: str, kernel: str, gathers: int, x: Any, y: Any, grad: Any = None) -> None:
    """Launch a kernel of rows of two operands; `kernel` is its name but for dtype and maps, `gathers` counts the sweeps
    that gather records."""
    call = run.call
    record = arguments(family)
    run.operand(record, "x", x)
    run.operand(record, "y", y)
    record["loss"] = run.losses_of_rows().data.ptr
    record["n"], record["k"], record["unit"] = call.n_rows, call.k, call.unit
    record["team"] = team_size(call.k, x.itemsize)
    if family != "tables":
        inv_T = 1.0 / call.temperature
        with np.errstate(all="ignore"):
            record["inv_T"], record["scale"] = inv_T, LOG2E * inv_T
            record["factor"] = call.unit * call.map_scale * inv_T
    if grad is not None:
        run.gradient_factors(record, np.float32)
        run.output(record, "grad", grad)
    name = f"{kernel}_{x.dtype.name}" + ("" if grad is None else "_maps")
    if not _launch_whole_rows(run, name, record, 2 * x.itemsize if gathers > 1 else 0):
        _launch_parts(run, name, record, gathers)


def _tables(run: Execution, quantity: str) -> None:
    _two_operands(run, "tables", f"table_{quantity}", 1, run.call.x, run.call.y)


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
    _two_operands(run, "soft_targets", "soft_target", 1 if grad is None else 2, call.x, call.y, grad)
    return True


def _fast_divergence(run: Execution) -> bool:
    """KL, or JS of equal weights, of two softmaxes or two tables of probabilities, in float32; whether it is one."""
    call = run.call
    if call.form != call.y_form or not is_narrow(call.x, call.y) or not has_moderate_options(call):
        return False
    kl = call.quantity == "kl_divergence"
    if not kl and (call.maps or call.js_weight != 0.5):
        return False
    if call.form == "probs" and not call.maps:
        _tables(run, "kl" if kl else "js")
        return True
    grad = call.maps.get("grad_q")
    if call.form != "logits" or not set(call.maps) <= {"grad_q"}:
        return False
    if grad is not None and grad.dtype != call.x.dtype:
        return False
    _two_operands(run, "softmax_pairs", "softmax_pair" if kl else "softmax_js", 2, call.x, call.y, grad)
    return True


# --- the careful kernels ------------------------------------------------------------------------------


def _distributions_record(run: Execution) -> Any:
    call = run.call
    record = arguments("distributions")
    run.operand(record, "x", call.x)
    run.operand(record, "y", call.y)
    fill_operand(record["loss"][0], run.losses_of_rows().reshape(-1, 1))
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
        set_ignored(record, call)
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
    x, t, weights = arrays["x"], arrays["t"], arrays.get("weights")
    maps = {name: arrays[name] for name in ("grad", "hess") if arrays.get(name) is not None}
    plain = call.quantity == "binary_cross_entropy" and call.form == "logits"
    of_bytes = plain and t.dtype.name in ("uint8", "bool")
    ignored = np.nan if call.ignore_index is None else call.ignore_index
    exact = call.ignore_index is None or abs(call.ignore_index) <= 1 << 24
    # Smoothed targets times weights cancel to more digits than two float32 have.
    cancels = call.label_smoothing != 0.0 and call.pos_weight is not None and bool(maps)
    if not plain or not exact or cancels or x.itemsize == 8 or not (of_bytes or t.dtype == x.dtype):
        return None
    if any(m.dtype != x.dtype for m in maps.values()):
        return None
    record = arguments("binary")
    if not _fill_pos_weight(run, record):
        return None
    run.operand(record, "x", x)
    run.operand(record, "t", t)
    for name, array in maps.items():
        run.output(record, name, array)
    if weights is not None:
        record["weights"] = run.on_device(weights).data.ptr
    record["n"], record["k"] = x.size // x.shape[-1], x.shape[-1]
    record["team"] = team_size(x.shape[-1], x.itemsize)
    record["whole"] = of_bytes
    record["keep"], record["rest"] = call.unit * (1 - call.label_smoothing), call.unit * 0.5 * call.label_smoothing
    record["factor"] = call.map_scale
    record["ignored"] = ignored
    weighted = weights is not None or call.pos_weight is not None or (of == "rows" and call.ignore_index is not None)
    return binary_name(of, x.dtype.name, of_bytes, weighted, bool(maps)), record


def _fill_pos_weight(run: Execution, record: Any) -> bool:
    """Tell a fast kernel of the weights of classes, in two float32 numbers each; whether they are one a class."""
    weight = run.call.pos_weight
    number = 1.0 if weight is None else run.number(weight)
    if weight is None or number is not None:
        assert number is not None
        if number != 0 and not 1e-30 < abs(number) < 1e30:
            return False
        record["period"], record["pos_high"] = 1, number
        record["pos_low"] = number - float(record["pos_high"][0])
        return True
    batch = zip(weight.shape[:-1], weight.strides[:-1], strict=True)
    if any(size > 1 and stride for size, stride in batch) or (weight.strides[-1] and weight.shape[-1] > MOST_CLASSES):
        return False
    if run.split_weights is None:
        classes = run.on_device(weight[(0,) * (weight.ndim - 1)])
        period = classes.size if classes.strides[0] else BETWEEN_VECTORS  # of one for all: enough for a vector
        lows = -(-(period + BETWEEN_VECTORS) // 4) * 4
        split = arguments("elements")
        fill_operand(split["pos_weight"][0], classes)
        table = run.workspace(2 * lows, np.float32)
        split["n"], split["k"], split["split"] = lows, period, table.data.ptr
        run.launch("elements_split_pos_weight", -(-lows // BLOCK), split)
        run.split_weights = table.data.ptr, period, lows
    record["pos_weight"], record["period"], record["lows"] = run.split_weights
    return True


def _binary_elements(run: Execution, with_outputs: bool = True) -> bool:
    """Elements that lie in one line with all that belongs to them, in float32; whether they do."""
    call = run.call
    if call.sample_weight is not None and call.sample_weight.dtype != np.float32:
        return False
    arrays = {"x": call.x, "t": call.y, "weights": call.sample_weight}
    if with_outputs:
        arrays |= {"loss": call.rows.get("loss"), **call.maps}
    if not all(a is None or a.flags.c_contiguous for a in arrays.values()):
        return False
    lines = {name: None if a is None else run.on_device(a).reshape(1, -1) for name, a in arrays.items()}
    found = _binary_kernel(run, "elements", lines)
    if found is None:
        return False
    name, record = found
    if lines.get("loss") is not None:
        fill_operand(record["loss"][0], lines["loss"])
    if run.total is not None:
        record["map_scale"] = run.total.data.ptr + 8
    blocks = -(-call.x.size // SEGMENT)
    if call.total:
        blocks = min(blocks, MOST_SUMMING_BLOCKS)
        record["partial"] = run.workspace(2 * blocks).data.ptr
    run.launch(name, blocks, record)
    if call.total:
        totals = arguments("totals")
        totals["partial"], totals["twofold"] = record["partial"], 1
        run.ask_for_total(totals, to_result=with_outputs)
        run.reduce_blocks(totals, blocks)
        run.check_not_empty()
    return True


def _binary_rows(run: Execution, with_maps: bool = True) -> None:
    call = run.call
    maps = call.maps if with_maps else {}
    if call.ignore_index is not None and run.counts is None:
        run.counts = run.workspace(call.n_rows, np.float32)
    found = _binary_kernel(run, "rows", {"x": call.x, "t": call.y, **maps})
    if found is None:
        _summed_rows(run, with_maps)
        return
    name, record = found
    fill_operand(record["loss"][0], run.losses_of_rows().reshape(-1, 1))
    if run.counts is not None:
        record["counts"] = run.counts.data.ptr
    if maps:
        run.gradient_factors(record, np.float32)
    run.launch(name, blocks_for(call.n_rows, int(record["team"][0])), record)


def _summed_rows(run: Execution, with_maps: bool) -> None:
    call = run.call
    record = _elements_record(run, call.x.shape)
    fill_operand(record["loss"][0], run.losses_of_rows().reshape(-1, 1))
    record["summed"] = 1
    record["team"] = team = team_size(call.k, 8)
    if run.counts is not None:
        record["counts"] = run.counts.data.ptr
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
