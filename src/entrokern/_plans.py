"""Calls like one that came before: what its checks found, remembered.

Nearly all of a small call's time goes into looking at its arguments, and a caller in a loop brings the same
kind of arguments each time. What the checks find depends on the options and on the arrays' types, shapes and
strides, so that is the key under which a `Plan` is kept: no array, only what to do with the next ones. What
depends on the data and its place (labels out of range, denominators, overlap) is looked at in every call.

Calls that are not plain have no plan and are checked in full each time: those with lists, broadcast or
converted operands, a class axis that is not the last, class weights, results in place, or ``validate=True``.
Those with arrays of other libraries go to the rooms of these (`_guests.py`); what lies in the host's memory is planned
like NumPy's arrays.
"""

from __future__ import annotations

import functools
import inspect
import operator
import sys
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, ParamSpec, TypeVar

import numpy as np

from . import _arrays, _device, _dispatch, _guests
from ._arrays import Array
from ._call import Call, Job, counts_every_row, execute

P = ParamSpec("P")
R = TypeVar("R")

LIMIT = 64  # plans of a function; a caller with ever new shapes starts over
VALUES = {str, int, float, bool, type(None)}

_names = [field.name for field in fields(Call)]
OPERANDS = _names[_names.index("x") : _names.index("form")]
OPTIONS = _names[_names.index("form") : _names.index("rows")]


def planned(function: Callable[P, R]) -> Callable[P, R]:
    """Run the `Job` that `function` makes of its arguments, and next time without asking `function`."""
    plans: dict[Any, Plan] = {}
    first = next(iter(inspect.signature(function).parameters))

    @functools.wraps(function)
    def call(*args: P.args, **options: P.kwargs) -> R:
        if _guests.is_traced is not None and _guests.is_traced():
            put: R = _guests.traced(call, args, options)
            return put
        arrays: list[Array] = []
        guests: list[type] = []
        key = _key(args, options, arrays, guests)
        if guests and len(guests) == len(arrays) and (plan := plans.get(key)) is not None and not plan.writes_given:
            brought: R = _guests.result_of[guests[0]](plan.run(arrays))
            return brought
        if (guests or key is None) and (room := _guests.guest_of((*args, *options.values()))) is not None:
            served: R = _guests.room(room).run(call, args, options)
            return served
        x = args[0] if args else options.get(first)
        if _device.is_device_array(x):
            with _device.device_of(x, first):  # all that is made for a call, kernels included, is of its array's device
                return run(key, arrays, args, options)
        return run(key, arrays, args, options)

    def run(key: Any, arrays: list[Array], args: Any, options: Any) -> R:
        plan = plans.get(key)
        if plan is not None and not plan.may_overlap(arrays):
            return plan.run(arrays)
        job: Any = function(*args, **options)
        result: R = job.run()
        if key is not None and is_repeatable(job, arrays):
            if len(plans) >= LIMIT:
                plans.clear()
            plans[key] = Plan(job, arrays)
        return result

    return call


def _key(args: tuple[Any, ...], options: Mapping[str, Any], arrays: list[Array], guests: list[type]) -> Any:
    """All that the checks depend on, or None where that is more than a few values.

    Collects the `arrays`, and the types of those `guests` whose memory they are over.
    """
    key: list[Any] = [_dispatch.override(), *options]
    for value in (*args, *options.values()):
        kind = type(value)
        if kind in _guests.array_over:
            guests.append(kind)
            if (value := _guests.array_over[kind](value)) is None:
                return None
            kind = np.ndarray
        if kind is np.ndarray:
            arrays.append(value)
            key += (value.dtype, value.shape, value.strides, value.flags.num)
        elif kind in VALUES or (kind is tuple and all(type(v) is str for v in value)):
            key += (kind, value)  # the type too: True is no 1
        elif _device.is_cupy_array(value):
            arrays.append(value)
            # Whether elements lie at multiples of their size, NumPy has among its flags.
            place = value.data.ptr % value.itemsize
            key += (value.dtype, value.shape, value.strides, value.data.device_id, place)
        else:
            return None
    return None if options.get("validate") else tuple(key)


def is_repeatable(job: Job, arrays: list[Array]) -> bool:
    """Whether the call's operands are `arrays` themselves, its results apart, and nothing prepared saw the data."""
    call, known = job.call, {id(array) for array in arrays}
    operands = [getattr(call, name) for name in OPERANDS]
    places = [*call.rows.values(), *call.maps.values(), *job.outputs[: job.reduced]]
    return (
        len(known) == len(arrays)  # the same array twice could be two next time
        and all(operand is None or id(operand) in known for operand in operands)
        and not job.in_place
        and all(any(out is place for place in places) for out in job.outputs)
        and all(id(out) in known or out.flags.c_contiguous for out in job.outputs)
        # A mean's denominator is a part of what is prepared for its gradient; a device finds its own in each call.
        and (job.reduction != "mean" or not call.maps or counts_every_row(call) or type(call.x) is not np.ndarray)
    )


class Plan:
    """A repeatable job without its arrays."""

    def __init__(self, job: Job, arrays: list[Array]) -> None:
        call = job.call
        places = {id(array): i for i, array in enumerate(arrays)}
        none = len(arrays)
        self._operands = operator.itemgetter(*(places.get(id(getattr(call, name)), none) for name in OPERANDS))
        self._options = [getattr(call, name) for name in OPTIONS]
        self._rows = {name: self._output(array, job) for name, array in call.rows.items()}
        self._maps = {name: self._output(array, job) for name, array in call.maps.items()}
        self._outputs = [(array.shape, array.dtype, places.get(id(array))) for array in job.outputs]
        # Of an array on a device, that is the current one here: `planned` has seen to it.
        self._empty = np.empty if type(call.x) is np.ndarray else sys.modules["cupy"].empty
        self._given = [places[id(array)] for array in job.given]
        self._quantity, self._prepared = call.quantity, call.prepared
        self._reduction, self._on_empty, self._deliver = job.reduction, job.on_empty, job.deliver

    @staticmethod
    def _output(array: Array, job: Job) -> int:
        return next(i for i, out in enumerate(job.outputs) if out is array)

    @property
    def writes_given(self) -> bool:
        """Whether results go into arrays of the caller's."""
        return bool(self._given)

    def may_overlap(self, arrays: list[Array]) -> bool:
        """Whether an array given for a result may share memory with another, which is for the checks to judge."""
        return bool(self._given) and any(
            _arrays.may_overlap(arrays[i], other) for i in self._given for j, other in enumerate(arrays) if i != j
        )

    def run(self, arrays: list[Array]) -> Any:
        outputs = [self._empty(shape, dtype) if at is None else arrays[at] for shape, dtype, at in self._outputs]
        call = Call(self._quantity, *self._operands((*arrays, None)), *self._options)
        call.rows = {name: outputs[i] for name, i in self._rows.items()}
        call.maps = {name: outputs[i] for name, i in self._maps.items()}
        call.prepared = self._prepared
        given = [arrays[i] for i in self._given]
        execute(call, self._reduction, self._on_empty, outputs[0] if call.total else None, given)
        return self._deliver(outputs)
