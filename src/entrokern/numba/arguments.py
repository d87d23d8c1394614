"""What a call inside compiled code may pass: looked at when it is compiled, by type; constants by value."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numba import types
from numba.core.errors import TypingError

from .. import _options

FLOATS = (types.float32, types.float64)
INSIDE = "inside compiled code"

# Of what is not taken there: what to do instead.
INSTEAD = {
    "axis": "the class axis is the last one: pass `x.T` for the first",
    "form": "only logits are taken",
    "temperature": "it divides logits",
    "validate": "leave it out, or check the arrays before",
    "return_hess": "call the function from Python for the Hessian",
    "hess_out": "call the function from Python for the Hessian",
}


def plain(value: Any) -> Any:
    """The value of a constant or default; of anything else its type."""
    if isinstance(value, types.Omitted):
        return value.value
    if isinstance(value, types.Literal):
        return value.literal_value
    return None if isinstance(value, types.NoneType) else value


def refuse(**options: tuple[Any, Any]) -> None:
    """Refuse what is not taken inside compiled code: each option is ``(value, default)``."""
    for name, (value, default) in options.items():
        if plain(value) is not default and plain(value) != default:
            raise TypingError(f"{name}={plain(value)} is not taken {INSIDE}; {INSTEAD[name]}")


def choice(name: str, value: Any, allowed: Sequence[Any]) -> Any:
    """A constant that is one of `allowed`."""
    value = plain(value)
    if isinstance(value, types.Type):
        raise TypingError(
            f"{name} is a variable ({value}), but what is compiled depends on it; write one of "
            f"{', '.join(map(repr, allowed))}"
        )
    try:
        return _options.choice(name, value, allowed)
    except ValueError as error:
        raise TypingError(str(error)) from None


def rows(name: str, value: Any) -> types.Array:
    """The type of rows of numbers: ``(n, k)``, or one of them, ``(k,)``."""
    if isinstance(value, types.Array) and value.dtype in FLOATS and value.ndim in (1, 2) and value.aligned:
        return value
    hint = ""
    if isinstance(value, types.Array) and value.dtype not in FLOATS:
        hint = f": for others pass {name}.astype(np.float32)"
    elif isinstance(value, types.Array) and value.ndim > 2:
        hint = f": for more dimensions pass {name}.reshape(-1, {name}.shape[-1])"
    raise TypingError(f"{name} is {plain(value)}; pass an array of float32 or float64 of shape (n, k) or (k,){hint}")


def is_number(value: Any, *, whole: bool = False) -> bool:
    """Whether a type, or a constant, is that of a real number, or of an integer."""
    value = plain(value)
    if isinstance(value, types.Type):
        return isinstance(value, types.Integer if whole else (types.Integer, types.Float))
    return isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)


def numbers(**options: Any) -> None:
    """Real numbers."""
    for name, value in options.items():
        if not is_number(plain(value)):
            raise TypingError(f"{name} is {plain(value)}; pass a real number")


def optional_numbers(**options: Any) -> None:
    numbers(**{name: value for name, value in options.items() if plain(value) is not None})


def labels(value: Any, x: types.Array) -> None:
    """Integers, one for each row of `x`."""
    integers = isinstance(value, types.Array) and isinstance(value.dtype, types.Integer) and value.aligned
    if (integers and value.ndim == x.ndim - 1 == 1) or (x.ndim == 1 and is_number(value, whole=True)):
        return
    expected = "integer labels of shape (n,)" if x.ndim == 2 else "one integer label"
    hint = ""
    if isinstance(value, types.Array) and value.ndim == x.ndim:
        hint = f"; target distributions are not taken {INSIDE}"
    raise TypingError(f"target is {plain(value)}; expected {expected}{hint}")


def index(name: str, value: Any) -> None:
    """An integer, or nothing."""
    value = plain(value)
    if value is not None and not is_number(value, whole=True):
        raise TypingError(f"{name} is {value}; pass an integer, or leave it out")


def weights(name: str, value: Any, ndim: int) -> None:
    """Real numbers, one for each row; or nothing."""
    value = plain(value)
    fits = is_number(value) if ndim == 0 else isinstance(value, types.Array) and value.ndim == 1 and value.aligned
    if value is None or (fits and (ndim == 0 or isinstance(value.dtype, (types.Float, types.Integer)))):
        return
    expected = "one real number for each row, of shape (n,)" if ndim else "a real number"
    raise TypingError(f"{name} is {value}; pass {expected}, or leave it out")


def class_weights(value: Any) -> None:
    value = plain(value)
    if value is not None and value != types.Array(types.float64, 1, "C", readonly=not getattr(value, "mutable", True)):
        raise TypingError(
            f"class_weight is {value}; {INSIDE} pass one float64 per class in a contiguous array of shape (k,)"
        )


def output(name: str, value: Any, dtype: Any, ndim: int) -> None:
    """An array to write to, or nothing."""
    value = plain(value)
    if value is None:
        return
    expected = f"{dtype} of {('0 dimensions', 'shape (n,)', 'shape (n, k)')[ndim]}"
    if not isinstance(value, types.Array) or value.dtype != dtype or value.ndim != ndim or not value.aligned:
        raise TypingError(f"{name} is {value}; pass an array of {expected}, or leave it out")
    if not value.mutable:
        raise TypingError(f"{name} is read-only; pass a writeable array of {expected}")


def same_dtype(p: types.Array, q: types.Array) -> None:
    if p.dtype != q.dtype:
        raise TypingError(f"p is of {p.dtype} and q of {q.dtype}; {INSIDE} convert one of them: q.astype(np.{p.dtype})")


def sides(return_grad: Any, grad_out: Any, x: types.Array) -> str:
    """By which of two operands there are gradients: `""`, `"p"`, `"q"` or `"pq"`."""
    wanted = choice("return_grad", return_grad, (False, "p", "q", "both"))
    given: Any = plain(grad_out)
    if not isinstance(given, types.BaseTuple):
        output("grad_out", given, x.dtype, x.ndim)
        if given is not None and wanted == "both":
            raise TypingError("return_grad='both' takes a pair of arrays as grad_out: (for p, for q)")
        return {False: "" if given is None else "q", "both": "pq"}.get(wanted, wanted)
    pair: Any = given
    if wanted not in (False, "both") or len(pair) != 2:
        raise TypingError(f"grad_out is {given}; a pair (for p, for q) goes with return_grad='both'")
    output("grad_out[0]", pair[0], x.dtype, x.ndim)
    output("grad_out[1]", pair[1], x.dtype, x.ndim)
    return "pq"


def losses(reduction: Any, on_empty: Any, out: Any, x: types.Array) -> tuple[bool, str, float]:
    """How losses are reduced: whether there is one for each row, else how, and a mean of nothing (-1: an error)."""
    reduction = choice("reduction", reduction, _options.REDUCTIONS)
    on_empty = choice("on_empty", on_empty, _options.ON_EMPTY)
    by_rows = reduction == "none" and x.ndim == 2
    output("out", out, x.dtype, 1 if by_rows else 0)
    return by_rows, reduction, {"nan": np.nan, "zero": 0.0, "raise": -1.0}[on_empty]


def numpy_dtype(dtype: Any) -> Any:
    return np.float64 if dtype == types.float64 else np.float32
