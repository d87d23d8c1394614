"""Calls like one that came before: what its checks found, remembered.

Nearly all of a small call's time goes into looking at its arguments, and a caller in a loop brings the same
kind of arguments each time. What the checks find depends on the options and on the arrays' types, shapes and
strides, so that is the key under which a `Plan` is kept: no array, only what to do with the next ones. What
depends on the data and its place (labels out of range, class weights, denominators, overlap) is looked at in every
call. Axes are moved, and weights converted or broadcast, by what did it for the first call.

Other calls have no plan and are checked in full each time: those with lists, one distribution for all rows, operands
that are converted, results in place, or ``validate=True``, which is there to look at all of the data (and on a device
waits for that). Those with arrays of other libraries go to the rooms of these (`_guests.py`); what lies in the host's
memory is planned like NumPy's arrays.
"""

from __future__ import annotations

import functools
import inspect
import operator
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any, NamedTuple, ParamSpec, TypeVar

import numpy as np

from . import _arrays, _device, _dispatch, _guests
from ._arrays import Array
from ._call import Call, Job, execute

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
        if key is not None and (plan := plan_of(job, arrays, options)) is not None:
            if len(plans) >= LIMIT:
                plans.clear()
            plans[key] = plan
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


class Way(NamedTuple):
    """How a call comes by one of its arrays: from which of several, and by what (None: it is that one)."""

    place: int
    make: Callable[[Any], Any] | None = None


def way_to(array: Array, several: Sequence[Array]) -> Way | None:
    """The way to `array` from the one of `several` that it is, or is a view of: with one axis moved to the end."""
    for i, one in enumerate(several):
        if array is one:
            return Way(i)
    ways = {
        i: Way(i, operator.methodcaller("transpose", _arrays.last(axis, one.ndim)))
        for i, one in enumerate(several)
        for axis in range(one.ndim)
        if _arrays.same_memory(array, _arrays.classes_last(one, axis))
    }
    return ways.popitem()[1] if len(ways) == 1 else None  # two in the same memory may be two next time


def plan_of(job: Job, arrays: list[Array], options: Mapping[str, Any]) -> Plan | None:
    """The plan of calls like `job`, which came of `arrays` and `options`.

    None if an operand is neither one of them, nor a view, nor made of one, or if results are not apart from operands.
    """
    call, places = job.call, {id(array): i for i, array in enumerate(arrays)}
    sources: list[Any] = [*arrays, None]
    ways: dict[str, Way | None] = {}
    for name in OPERANDS:
        if (operand := getattr(call, name)) is None:
            ways[name] = Way(len(arrays))
        elif name not in job.made:
            ways[name] = way_to(operand, arrays)
        else:
            given = options[name]
            ways[name] = Way(places.get(id(given), len(sources)), job.made[name])
            if id(given) not in places:  # a number, and thus in the key
                sources.append(given)
    results = {name: way_to(array, job.outputs) for name, array in (call.rows | call.maps).items()}
    if (
        len(places) == len(arrays)  # the same array twice could be two next time
        and None not in ways.values()
        and None not in results.values()
        and len(results) + job.reduced == len(job.outputs)
        and not job.in_place
        and all(id(out) in places or out.flags.c_contiguous for out in job.outputs)
    ):
        return Plan(job, places, ways, sources[len(arrays) :], results)
    return None


class Plan:
    """A repeatable job without its arrays: `places` of those given, and `ways` to the operands and `results`."""

    def __init__(
        self, job: Job, places: dict[int, int], ways: dict[str, Any], values: list[Any], results: dict[str, Any]
    ) -> None:
        call = job.call
        on_device = type(call.x) is not np.ndarray
        if on_device and call.prepared is not None:
            # Launches are repeated with the places where arrays begin, and a view begins where its array does.
            ways, results = ({name: Way(way.place) for name, way in all_.items()} for all_ in (ways, results))
        self._values = values  # of operands that are none of the arrays
        self._operands = operator.itemgetter(*(way.place for way in ways.values()))
        self._made = [(name, way.make) for name, way in ways.items() if way.make is not None]
        self._options = [getattr(call, name) for name in OPTIONS]
        self._rows = [(name, results[name].place) for name in call.rows]
        self._maps = [(name, *results[name]) for name in call.maps]
        self._outputs = [(array.shape, array.dtype, places.get(id(array))) for array in job.outputs]
        # Of an array on a device, that is the current one here: `planned` has seen to it.
        self._empty = sys.modules["cupy"].empty if on_device else np.empty
        self._given = [places[id(array)] for array in job.given]
        self._quantity, self._prepared = call.quantity, call.prepared
        self._reduction, self._on_empty, self._deliver = job.reduction, job.on_empty, job.deliver

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
        call = Call(self._quantity, *self._operands((*arrays, *self._values)), *self._options)
        for name, make in self._made:
            setattr(call, name, make(getattr(call, name)))
        call.rows = {name: outputs[i] for name, i in self._rows}
        call.maps = {name: outputs[i] if make is None else make(outputs[i]) for name, i, make in self._maps}
        call.prepared = self._prepared
        given = [arrays[i] for i in self._given]
        execute(call, self._reduction, self._on_empty, outputs[0] if call.total else None, given)
        return self._deliver(outputs)
