"""What is computed element by element: binary cross-entropy, also summed over rows, information, KL of samples.

Fast kernels do logits with plain binary targets, in float32; the careful kernels, in float64, do all else.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .._call import counts_every_row
from .arguments import FORM_CODES, arguments, fill_operand
from .execution import Execution, blocks_for, team_size
from .sources import BLOCK, CHUNK, SEGMENT, binary_name

MOST_CLASSES = 1 << 16  # whose weights are copied: beyond, they could be as many as elements
BETWEEN_VECTORS = 8  # numbers, at most, from the first of a vector on
MOST_SUMMING_BLOCKS = 4096  # blocks that share elements whose sum is wanted: a fixed cut, whatever the device


def run_elements(run: Execution) -> None:
    """Results of every element, and their sum. A mean's gradient needs the sum of the weights first."""
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
    record = _elements_record(run)
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
    _launch_and_sum(run, "elements_each_element", blocks, record, to_result=with_outputs)


def _launch_and_sum(
    run: Execution, name: str, blocks: int, record: Any, to_result: bool, twofold: bool = False
) -> None:
    """Launch a kernel of elements and, where their sum is asked for, add up those of its blocks."""
    if not run.call.total:
        run.launch(name, blocks, record)
        return
    blocks = min(blocks, MOST_SUMMING_BLOCKS)
    record["partial"] = run.workspace(2 * blocks).data.ptr
    run.launch(name, blocks, record)
    totals = arguments("totals")
    totals["partial"], totals["twofold"] = record["partial"], twofold
    run.ask_for_total(totals, to_result)
    run.reduce_blocks(totals, blocks)
    run.check_not_empty()


def _elements_record(run: Execution) -> Any:
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


def _binary_kernel(run: Execution, of: str, arrays: dict[str, Any]) -> tuple[str, Any] | None:
    """The fast kernel for `arrays` of x's shape and its arguments, if there is one: of logits, with plain targets."""
    call = run.call
    x, t, weights = arrays["x"], arrays["t"], arrays.get("weights")
    maps = {name: arrays[name] for name in ("grad", "hess") if arrays.get(name) is not None}
    plain = call.quantity == "binary_cross_entropy" and call.form == "logits"
    of_bytes = plain and t.dtype.name in ("uint8", "bool")
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
    record["ignored"] = np.nan if call.ignore_index is None else call.ignore_index
    weighted = weights is not None or call.pos_weight is not None or (of == "rows" and call.ignore_index is not None)
    return binary_name(of, x.dtype.name, of_bytes, weighted, bool(maps)), record


def _fill_pos_weight(run: Execution, record: Any) -> bool:
    """Tell a fast kernel of the weights of classes, in two float32 numbers each; whether they are one a class."""
    weight = run.call.pos_weight
    number = 1.0 if weight is None else run.number(weight)
    if number is not None:
        if number != 0 and not 1e-30 < abs(number) < 1e30:
            return False
        record["period"], record["pos_high"] = 1, number
        record["pos_low"] = number - float(record["pos_high"][0])
        return True
    assert weight is not None
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
    _launch_and_sum(run, name, -(-call.x.size // SEGMENT), record, to_result=with_outputs, twofold=True)
    return True


def binary_rows(run: Execution, with_maps: bool = True) -> None:
    """Binary cross-entropy summed over the last axis, and which rows count."""
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
    """The same by the careful kernel."""
    call = run.call
    record = _elements_record(run)
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
