"""Series and DataFrames: rows stay with their labels.

The rows of a DataFrame are its rows and its columns the classes (with ``axis=0`` the other way round). Operands go
together by their labels, which must be the same in the same order; NumPy arrays and lists beside them go by position.
What comes out is a Series of the rows, named after what it is, or a DataFrame for what has the shape of the
predictions; `score` gives its record of these, and reduced losses are NumPy's numbers.

>>> import entrokern as ek, pandas as pd
>>> p = pd.DataFrame({"cat": [0.5, 1.0], "dog": [0.5, 0.0]}, index=["a", "b"])
>>> ek.entropy(p, base=2)
a    1.0
b    0.0
Name: entropy, dtype: float64
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any, TypeAlias

import numpy as np
import pandas as pd

from . import _dispatch
from ._arrays import Array
from .linear import gradients_wanted, linear_cross_entropy
from .score import Score

Labels: TypeAlias = dict[Any, tuple[str, Any]]  # of the axes of a call: who brought them, and the index

OPERANDS = ("x", "p", "q", "log_p", "log_q", "target", "class_weight", "sample_weight", "pos_weight")
OUTPUTS = ("out", "grad_out", "hess_out")

_signature = functools.cache(inspect.signature)


def run(function: Callable[..., Any], args: Sequence[Any], options: Mapping[str, Any]) -> Any:
    """What the public `function` gives for these arguments, under the labels that they have."""
    try:
        given = _signature(function).bind(*args, **options).arguments
    except TypeError:
        unlabelled = {name: unwrapped(value) for name, value in options.items()}
        return function(*map(unwrapped, args), **unlabelled)  # says in Python's own words what does not fit
    for name in OUTPUTS:
        if given.get(name) is not None:
            raise TypeError(f"{name} is given beside pandas objects, whose results are new ones; leave it out")
    arrays = {name: _values(name, value) for name, value in given.items()}
    if function.__name__ == linear_cross_entropy.__name__:
        return _run_layer(function, given, arrays)
    ndim = max((np.ndim(array) for name, array in arrays.items() if name in _dispatch.MAIN), default=0)
    if ndim > 2:
        raise ValueError(f"pandas objects have rows and columns, but {ndim} axes came; pass .to_numpy() of them")
    parameter = _signature(function).parameters.get("axis")
    axis = None if parameter is None else given.get("axis", parameter.default)
    if axis is not None and axis not in range(-ndim, ndim):
        return function(**arrays)  # says what does not fit
    classes = None if axis is None else int(axis) % ndim
    labelled = {n: v for n, v in given.items() if n in OPERANDS and isinstance(v, (pd.DataFrame, pd.Series))}
    labels = _labels({name: _axes(name, value.ndim, ndim, classes) for name, value in labelled.items()}, labelled)
    found = function(**arrays)
    kept = [a for a in range(ndim) if a != classes]
    if isinstance(found, Score):
        parts = {field.name: getattr(found, field.name) for field in fields(found)}
        return Score(
            **{n: None if part is None else _labelled(part, n, labels, ndim, kept) for n, part in parts.items()}
        )
    name = function.__name__
    if isinstance(found, tuple):
        return tuple(_labelled(part, name if i == 0 else "grad", labels, ndim, kept) for i, part in enumerate(found))
    return _labelled(found, name, labels, ndim, kept)


def unwrapped(value: Any) -> Any:
    """The numbers of a Series or DataFrame, which go by position from here on; anything else as it is."""
    return _values("an argument", value)


def _values(name: str, value: Any) -> Any:
    if not isinstance(value, (pd.DataFrame, pd.Series)):
        return value
    array: Array = value.to_numpy()
    if array.dtype != object:
        return array
    kinds = value.dtypes if isinstance(value, pd.DataFrame) else pd.Series({value.name: value.dtype})
    others = [f"{column!r} ({kind})" for column, kind in kinds.items() if not pd.api.types.is_numeric_dtype(kind)]
    if others:
        ways = "for names of classes pass x.columns.get_indexer(target)" if name == "target" else "drop or convert them"
        raise TypeError(f"{name} holds what are no numbers: {', '.join(others[:5])}; {ways}")
    return value.to_numpy(np.float64, na_value=np.nan)


def _run_layer(function: Callable[..., Any], given: Mapping[str, Any], arrays: Mapping[str, Any]) -> Any:
    """`run` for a linear layer, whose operands have rows, features and classes in an order of their own."""
    ndim = {name: np.ndim(array) for name, array in arrays.items()}
    rows = ("rows",) if ndim["hidden"] == 2 else ()
    axes = {
        "hidden": (*rows, "features"), "weight": ("classes", "features"), "bias": ("classes",),
        "class_weight": ("classes",), "sample_weight": rows,
        "target": rows if ndim["target"] == len(rows) else (*rows, "classes"),
    }  # fmt: skip
    labelled = {n: v for n, v in given.items() if n in axes and isinstance(v, (pd.DataFrame, pd.Series))}
    found = function(**arrays)  # says what does not fit before labels are compared
    labels = _labels(axes, labelled)
    if not isinstance(found, tuple):
        return _placed(found, function.__name__, labels, rows)
    names = gradients_wanted(given.get("return_grad", False), None, given.get("bias") is not None)
    loss, *gradients = found
    parts = [_placed(part, "grad", labels, axes[name]) for part, name in zip(gradients, names, strict=True)]
    return _placed(loss, function.__name__, labels, rows), *parts


def _labels(axes: Mapping[str, Sequence[Any]], labelled: Mapping[str, Any]) -> Labels:
    """The labels of each axis of the call, by the first operand that has some; all others have the same."""
    found: Labels = {}
    for name, value in labelled.items():
        for a, index in zip(axes[name], value.axes, strict=True):
            first, known = found.setdefault(a, (name, index))
            if not known.equals(index):
                along = f"of its {a}" if isinstance(a, str) else f"along axis {a}"
                raise ValueError(
                    f"{name} has other labels than {first} {along}; bring them in line, for example by "
                    f"{name}.reindex(...), or pass {name}.to_numpy() to go by position"
                )
    return found


def _axes(name: str, own: int, ndim: int, classes: int | None) -> tuple[int, ...]:
    """Which axes of the call an operand has: classes, rows, or the last ones, as in broadcasting."""
    every = tuple(range(ndim))
    if name == "class_weight" and classes is not None:
        return (classes,)
    if name in ("target", "sample_weight") and classes is not None and own == ndim - 1:
        return tuple(a for a in every if a != classes)
    return every[ndim - own :] if own <= ndim else tuple(range(own))


def _labelled(array: Any, name: str, labels: Labels, ndim: int, kept: Sequence[int]) -> Any:
    return _placed(array, name, labels, range(ndim) if array.ndim == ndim else kept)


def _placed(array: Any, name: str, labels: Labels, axes: Sequence[Any]) -> Any:
    """A result under the labels of its axes."""
    own = [labels[a][1] if a in labels else None for a in axes]
    if array.ndim == 2:
        return pd.DataFrame(array, index=own[0], columns=own[1], copy=False)
    return pd.Series(array, index=own[0], name=name, copy=False) if array.ndim == 1 else array[()]
