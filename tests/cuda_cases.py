"""The table of cases for the CUDA backend, where more than a function and its forms decide which kernel runs.

Fast kernels take what is plain: without weights or with such of float32, with one gradient or none, targets of one byte
or of x's type. `TABLE` has the `SHARED` cases, those of `cases.NAMED`, and beside each of them those that are plainer.
`LONG` has those for long rows: the shared ones, and of the plainer all that sweep two operands more than once.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np

from cases import DRAW, IGNORED, NAMED, Array, Case, Rng, binary, element_weights, fractions, labels


def hot(rng: Rng, n: int, k: int, kind: str = "normal") -> Array:
    """One-hot rows, without a table of k·k."""
    return labels(rng, n, k)[:, None] == np.arange(k)


def binary_bytes(rng: Rng, n: int, k: int, kind: str = "normal") -> Array:
    return binary(rng, n, k).astype(np.uint8)


def fractions_ignored(rng: Rng, n: int, k: int, kind: str = "normal") -> Array:
    return np.where(rng.random((n, k)) < 0.3, IGNORED, fractions(rng, n, k))


def narrow_weights(rng: Rng, n: int, k: int, kind: str = "normal") -> Array:
    return element_weights(rng, n, k).astype(np.float32)


DRAW |= {
    "hot": hot,
    "bytes": binary_bytes,
    "fractions, some ignored": fractions_ignored,
    "narrow weights": narrow_weights,
}
PLAINER_TARGETS = {
    "binary": "bytes",
    "fractions": "bytes",
    "binary, some ignored": "fractions, some ignored",
}


def with_last(case: Case, operand: str) -> Case:
    return case._replace(operands=(*case.operands[:-1], operand))


def plainer(case: Case) -> Iterator[Case]:
    """The case with fewer options."""
    wanted = {name: value for name, value in case.options.items() if name.startswith("return_")}
    rest = {name: value for name, value in case.options.items() if name not in wanted}
    one = {"return_grad": "q"} if "divergence" in case.function else {"return_grad": True}
    asked = {"": wanted} | ({", one gradient": one, ", value": {}} if wanted else {})
    narrow = {name: drawn.replace("element weights", "narrow weights") for name, drawn in case.arrays.items()}
    weights = {"": case.arrays, ", narrow weights": narrow, ", no weights": {}}
    for (which, maps), (kind, arrays) in itertools.product(asked.items(), weights.items()):
        found = case._replace(name=case.name + which + kind, options=rest | maps, arrays=arrays)
        yield found
        if target := PLAINER_TARGETS.get(found.operands[-1]):
            yield with_last(found._replace(name=f"{found.name}, {target}"), target)


SHARED = [with_last(case, "hot") if case.operands[-1] == "one hot" else case for case in NAMED]


def _table() -> list[Case]:
    found: dict[str, Case] = {}
    for case in itertools.chain(SHARED, *map(plainer, SHARED)):
        found.setdefault(
            repr((case.function, case.operands, sorted(case.options.items()), sorted(case.arrays.items()))), case
        )
    return list(found.values())


TABLE = _table()
SWEPT_AGAIN = (
    "ce dense grad, one gradient",
    "js logits logits, value",
    *(f"kl logits logits, {what}" for what in ("value", "one gradient")),
)
LONG = SHARED + [case for case in TABLE if case.name in SWEPT_AGAIN]


def in_place(case: Case, args: list[Any]) -> dict[str, Any]:
    """The options by which results of the case are written over its operands, if it has such results."""
    wanted = case.options.get("return_grad")
    if case.function in ("softmax", "log_softmax", "information"):
        return {"out": args[0]}
    if wanted in ("q", "p", "both"):
        return {"grad_out": {"q": args[-1], "p": args[0], "both": tuple(args)}[wanted]}
    return {"grad_out": args[0]} if wanted or "grad" in case.options.get("outputs", ()) else {}


def spoil(case: Case, args: list[Array]) -> None:
    """Let some rows hold what no distribution has, and some targets be out of range."""
    x, *others = args
    if len(x) < 6:
        return
    x[1, -1] = np.nan
    x[2] = -np.inf if case.operands[0] == "logits" else 0
    x[3, 0] = np.inf if case.operands[0] == "logits" else -0.5
    for target in others:
        if case.operands[1] in ("labels", "some ignored"):
            target[[0, -1]] = x.shape[1], -(2**40)
        elif target.dtype.kind in "iu":
            target[0, 0] = 255
        elif target.dtype != bool:
            target[[4, 5], [0, -1]] = np.nan, -0.5
