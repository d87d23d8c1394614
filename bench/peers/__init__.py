"""Who else computes it: one file for each peer that may be installed.

A peer's file has ``LOSSES``: for each formula of operations.py that the peer has, a function that makes a
call of no arguments out of a case. What a user would do once (convert labels, wrap memory, compile) is done
there; what a user would do at every call is in the call.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

from data import Case

Call = Callable[[], tuple[Any, ...]]
PEERS = {  # the name in the tables: the file here, the package that must be installed
    "numpy": ("with_numpy", "numpy"),
    "scipy": ("with_scipy", "scipy"),
    "scikit-learn": ("with_sklearn", "sklearn"),
    "numkong": ("with_numkong", "numkong"),
    "torch": ("with_torch", "torch"),
    "torch.compile": ("with_torch_compile", "torch"),
    "jax": ("with_jax", "jax"),
}
SLOW_TO_START = {"torch.compile"}  # seconds for each shape: only where asked for


def installed(slow_ones: bool = True) -> list[str]:
    return [
        name
        for name, (_, package) in PEERS.items()
        if importlib.util.find_spec(package) and (slow_ones or name not in SLOW_TO_START)
    ]


def call_of(peer: str, formula: str, case: Case) -> Call | None:
    """The peer's call on the case, or None where it has no such formula or does not take the dtype."""
    losses = importlib.import_module(f"peers.{PEERS[peer][0]}").LOSSES
    make = losses.get(formula)
    return None if make is None else make(case)
