"""Scalar options, checked once: every message says what came, what is allowed and what to do."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias, get_args

Form: TypeAlias = Literal["logits", "log_probs", "probs"]
Reduction: TypeAlias = Literal["none", "sum", "mean"]
OnEmpty: TypeAlias = Literal["nan", "zero", "raise"]
Estimator: TypeAlias = Literal["k1", "k2", "k3"]
FORMS, REDUCTIONS, ON_EMPTY, ESTIMATORS = (get_args(choices) for choices in (Form, Reduction, OnEmpty, Estimator))


def choice(name: str, value: Any, allowed: Sequence[Any]) -> Any:
    """`value` if it is one of `allowed`, else a ``ValueError`` that lists them."""
    # A bool equals 1 and 0, so compare the type as well: `return_grad=1` is a slip, not a request.
    if any(value is a or (type(value) is type(a) and value == a) for a in allowed):
        return value
    raise ValueError(f"{name}={value!r} is not known; choose one of {', '.join(map(repr, allowed))}")


def flag(name: str, value: Any) -> bool:
    """A Python or NumPy bool."""
    if isinstance(value, bool) or type(value).__name__ in ("bool", "bool_"):
        return bool(value)
    raise TypeError(f"{name} is a {type(value).__name__} ({value!r}); pass True or False")


def number(name: str, value: Any) -> float:
    """A finite real number as a Python float."""
    if isinstance(value, (str, bytes, bool)):
        raise TypeError(f"{name} is a {type(value).__name__} ({value!r}); pass a real number")
    try:
        result = float(value)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} is a {type(value).__name__}; pass a real number") from error
    if not math.isfinite(result):
        raise ValueError(f"{name}={result} is not finite; pass a finite number")
    return result


def positive(name: str, value: Any) -> float:
    result = number(name, value)
    if result <= 0:
        raise ValueError(f"{name}={result} is out of range; it must be greater than 0")
    return result


def non_negative(name: str, value: Any) -> float:
    result = number(name, value)
    if result < 0:
        raise ValueError(f"{name}={result} is out of range; it must be 0 or greater")
    return result


def fraction(name: str, value: Any) -> float:
    """A number in [0, 1]."""
    result = number(name, value)
    if not 0 <= result <= 1:
        raise ValueError(f"{name}={result} is out of range; it must lie in [0, 1]")
    return result


def open_fraction(name: str, value: Any) -> float:
    """A number in (0, 1)."""
    result = number(name, value)
    if not 0 < result < 1:
        raise ValueError(f"{name}={result} is out of range; it must lie strictly between 0 and 1")
    return result


def unit_of_base(base: Any) -> float:
    """What one nat is worth in logarithms of `base`: ``1 / ln base`` (1 for ``None``: nats)."""
    if base is None:
        return 1.0
    result = positive("base", base)
    if result == 1:
        raise ValueError("base=1 has no logarithm; pass 2 for bits, 10 for digits or None for nats")
    return 1.0 / math.log(result)


def index(name: str, value: Any) -> int:
    if isinstance(value, bool):
        raise TypeError(f"{name} is a bool ({value!r}); pass an integer")
    try:
        return operator.index(value)
    except TypeError as error:
        raise TypeError(f"{name} is a {type(value).__name__} ({value!r}); pass an integer") from error


def for_logits_only(form: str, **options: tuple[Any, Any]) -> None:
    """Refuse transforms of logits where no logits came: each option is ``(value, default)``."""
    if form == "logits":
        return
    for name, (value, default) in options.items():
        if value is not default and value != default:
            raise ValueError(
                f"{name}={value!r} transforms logits, but form={form!r}; leave it out or pass form='logits'"
            )
