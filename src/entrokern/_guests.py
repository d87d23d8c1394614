"""Arrays of other libraries, and the room that serves each: imported when such an array comes, never to ask for one.

A room has a function ``run(function, args, options)``: what the public `function` gives for these arguments, in the
guest's own arrays. Where its arrays lie in memory it also has ``unwrapped(value)``: NumPy's or CuPy's array over that,
or `value` itself where it is none of the guest's.
"""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, ParamSpec, TypeVar

import numpy as np

from . import _device

P = ParamSpec("P")
R = TypeVar("R")


class Guest(NamedTuple):
    """An array library: the module that its arrays come from, what they are called there, and our room for them."""

    library: str
    arrays: tuple[str, ...]
    room: str


# The first of these that a call's arrays belong to serves it.
GUESTS = (
    Guest("dask.array", ("Array",), "dask"),
    Guest("torch", ("Tensor",), "torch"),
    Guest("jax", ("Array",), "jax"),
    Guest("pandas", ("DataFrame", "Series"), "pandas"),
)
OTHERS = "array_api"  # the room of whatever follows the array API standard

# Set by a room whose arrays lie in the host's memory, by their types: NumPy's array over that, or None where there is
# more to a call than what they hold; and what brings results, which lie in no array given, to the guest.
array_over: dict[type, Callable[[Any], Any]] = {}
result_of: dict[type, Callable[[Any], Any]] = {}

# Set by a room whose library traces programs: whether one is being traced, and what to put there for a call.
is_traced: Callable[[], bool] | None = None
traced: Any = None


def untraced(function: Callable[P, R]) -> Callable[P, R]:
    """Keep a library that traces programs out of `function`, in which it would not get far."""

    @functools.wraps(function)
    def call(*args: P.args, **options: P.kwargs) -> R:
        if is_traced is not None and is_traced():
            put: R = traced(function, args, options)
            return put
        return function(*args, **options)

    return call


NATIVE = {np.ndarray, type(None), list, tuple, str, bool, int, float}  # what most calls come with: no guests


def guest_of(values: Iterable[Any]) -> str | None:
    """The room that serves a call with these arguments; ``None`` where all of them are native."""
    others = [value for value in values if type(value) not in NATIVE]
    if not others:
        return None
    for guest in GUESTS:
        library = sys.modules.get(guest.library)
        if library is not None and _any_of(others, tuple(getattr(library, name) for name in guest.arrays)):
            return guest.room
    return OTHERS if any(_follows_the_standard(value) for value in others) else None


def _any_of(values: Iterable[Any], kinds: tuple[type, ...]) -> bool:
    return any(isinstance(value, kinds) for value in values)


def _follows_the_standard(value: Any) -> bool:
    return (
        hasattr(value, "__array_namespace__")
        and not isinstance(value, (np.ndarray, np.generic))
        and not _device.is_cupy_array(value)
    )


@functools.cache
def room(name: str) -> Any:
    return importlib.import_module(f".{name}", __package__)


def unwrapped(value: Any) -> Any:
    """`value`, or the array of ours over its memory where it is a guest's; lazy arrays stay as they are."""
    name = guest_of((value,))
    return value if name in (None, "dask") else room(name).unwrapped(value)
