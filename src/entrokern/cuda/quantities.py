"""Which kernels run which call, and with what.

The softmax family does rows of logits with labels or without a target, in the compute type of `x` (float32 for
16 bits); fast kernels of two operands do what is plain, in float32; the careful kernels, in float64, do all else.
What is computed element by element is in `elements.py`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .._call import Call, counts_every_row, raise_empty
from .arguments import FORM_CODES, arguments, fill_operand
from .elements import binary_rows, run_elements
from .execution import Execution, blocks_for, set_ignored, team_size
from .launch import has_clusters
from .sources import BLOCK, RECORD_BYTES, SHARED_BYTES, cluster_size, segments_of, softmax_name

LOG2E = 1.4426950408889634
DISTRIBUTIONS = {"entropy_grad": 0, "softmax": 1, "log_softmax": 2}
PARTS = 1  # the mode of a launch that gathers the first records of segments, as in segments.cuh
FEW_BLOCKS = 256  # with fewer at work, long rows are cut into parts
FULL_RESULTS = {"entropy", "argmax", "rank"}


def compute(run: Execution) -> None:
    """Launch all that a call needs."""
    call = run.call
    if call.x.size == 0:
        _run_empty(run)
        return
    if call.elementwise or call.quantity == "information":
        run_elements(run)
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
    if not call.maps or run.reduction != "mean":
        return
    if counts_every_row(call):
        call.map_scale = 1.0 / call.n_rows
        return
    if call.quantity == "binary_cross_entropy" and call.ignore_index is not None:
        binary_rows(run, with_maps=False)  # finds which rows count
    run.reduce(None)


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


RUNNERS = {
    "cross_entropy": _cross_entropy,
    "score": _score,
    "softmax": _softmax,
    "entropy": _entropy,
    "kl_divergence": _divergence,
    "js_divergence": _divergence,
    "binary_cross_entropy": binary_rows,
}
