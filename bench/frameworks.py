"""Peers that are timed where they are installed: PyTorch, eager or compiled, and JAX, compiled.

Each is called as its users would, on arrays of its own that share the memory of the case or are made
before the clock starts. Entries are named by `Operation.formula`.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from operations import Case, Results

Thunk = Callable[[], "Results"]
INSTALLED = tuple(name for name in ("torch", "jax") if importlib.util.find_spec(name))


@functools.cache
def torch_losses() -> dict[str, Callable[..., Any]]:
    import torch
    from torch.nn import functional as F

    def kl_logits(x: Any, y: Any) -> Any:
        p, q = torch.log_softmax(x, -1), torch.log_softmax(y, -1)
        return F.kl_div(q, p, reduction="none", log_target=True).sum(-1)

    return {
        "ce": lambda x, y: F.cross_entropy(x, y, reduction="none"),
        "kl": lambda x, y: F.kl_div(y.log(), x, reduction="none").sum(-1),
        "kl_logits": kl_logits,
        "bce": lambda x, y: F.binary_cross_entropy_with_logits(x, y, reduction="none").sum(-1),
        "entropy": lambda x: torch.special.entr(x).sum(-1),
    }


def torch_thunk(formula: str, case: Case, *, compiled: bool = False) -> Thunk:
    import torch

    name, _, gradient = formula.partition("+")
    loss_of = torch_losses()[name]
    if compiled:
        torch.compiler.reset()  # or it would give up after a few shapes, and run eagerly
        loss_of = torch.compile(loss_of, dynamic=False)
    x, *rest = (torch.from_numpy(operand) for operand in (case.x, case.y) if operand is not None)

    def plain() -> Results:
        return (loss_of(x, *rest).numpy(),)

    def with_gradient() -> Results:
        leaf = x.detach().requires_grad_()
        loss = loss_of(leaf, *rest)
        (slope,) = torch.autograd.grad(loss, leaf, torch.ones_like(loss))
        return loss.detach().numpy(), slope.numpy()

    return with_gradient if gradient else plain


@functools.cache
def jax_losses() -> dict[str, Callable[..., Any]]:
    import jax
    import jax.numpy as jnp
    from jax.scipy import special

    def ce(x: Any, y: Any) -> Any:
        return -jnp.take_along_axis(jax.nn.log_softmax(x), y[:, None], axis=-1)[:, 0]

    def kl_logits(x: Any, y: Any) -> Any:
        p, q = jax.nn.log_softmax(x), jax.nn.log_softmax(y)
        return (jnp.exp(p) * (p - q)).sum(-1)

    def ce_and_gradient(x: Any, y: Any) -> Any:
        loss, back = jax.vjp(lambda x: ce(x, y), x)
        return loss, back(jnp.ones_like(loss))[0]

    losses = {
        "ce": ce,
        "ce+gradient": ce_and_gradient,
        "kl": lambda x, y: special.rel_entr(x, y).sum(-1),
        "kl_logits": kl_logits,
        "bce": lambda x, y: (jax.nn.softplus(x) - x * y).sum(-1),
        "entropy": lambda x: special.entr(x).sum(-1),
    }
    return {name: jax.jit(loss) for name, loss in losses.items()}


def jax_thunk(formula: str, case: Case) -> Thunk:
    import jax

    if case.x.dtype == np.float64:
        jax.config.update("jax_enable_x64", True)
    loss_of = jax_losses()[formula]
    operands = [jax.numpy.asarray(operand) for operand in (case.x, case.y) if operand is not None]

    def thunk() -> Results:
        found = jax.block_until_ready(loss_of(*operands))
        return tuple(np.asarray(part) for part in (found if isinstance(found, tuple) else (found,)))

    return thunk


def thunks(formula: str, torch_compile: bool = False) -> dict[str, Callable[[Case], Thunk]]:
    """For each framework at hand: what makes a call of no arguments out of a case."""
    found: dict[str, Callable[[Case], Thunk]] = {}
    if "torch" in INSTALLED:
        found["torch"] = lambda case: torch_thunk(formula, case)
        if torch_compile:
            found["torch.compile"] = lambda case: torch_thunk(formula, case, compiled=True)
    if "jax" in INSTALLED:
        found["jax"] = lambda case: jax_thunk(formula, case)
    return found
