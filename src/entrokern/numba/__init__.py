"""Inside Numba code: in a user's own ``@njit`` function the public functions compile to the kernels of the CPU.

They run on the thread that calls them and, with the outputs given (`out`, `grad_out`), allocate nothing. Numba imports
this module by itself, through its entry point ``numba_extensions``, when it first compiles anything in a process;
what compiles a call (`calls.py`) is imported when there is one.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from numba.extending import overload

from .. import divergences, entropies, losses, primitives

FUNCTIONS: tuple[Callable[..., Any], ...] = (
    losses.cross_entropy,
    entropies.entropy,
    divergences.kl_divergence,
    primitives.log_softmax,
    primitives.logsumexp,
    primitives.softmax,
)


def init() -> None:
    """What Numba calls: the import has done it all."""


def inline_compiler(*args: Any, **options: Any) -> Any:
    """`InlineCompiler`, not imported before something is compiled."""
    from ..cpu.compile import InlineCompiler

    return InlineCompiler(*args, **options)


def _declare(function: Callable[..., Any]) -> None:
    """Let Numba ask `calls` what a call of `function` compiles to."""
    name = function.__name__

    def typed(*args: Any, **options: Any) -> Any:
        from . import calls

        return getattr(calls, name)(*args, **options)

    typed.__signature__ = inspect.signature(function)  # type: ignore[attr-defined]
    options: Any = {"fastmath": set(), "error_model": "numpy", "pipeline_class": inline_compiler}
    # Not strict: options are by name only, which Numba knows of what it asks, but not of what it compiles.
    overload(function, prefer_literal=True, strict=False, jit_options=options)(typed)


for _function in FUNCTIONS:
    _declare(_function)
