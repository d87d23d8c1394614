"""PyTorch on the CPU, eager, on tensors that share the memory of the case."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F

from data import Array, Case
from peers import Call

Loss = Callable[..., Any]


def tensor(array: Array) -> Any:
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view("int16")).view(torch.bfloat16)
    return torch.from_numpy(array)


def array_of(result: Any) -> Array:
    result = result.detach()
    return (result.float() if result.dtype == torch.bfloat16 else result).numpy()


def kl_of_logits(x: Any, y: Any) -> Any:
    p, q = torch.log_softmax(x, -1), torch.log_softmax(y, -1)
    return F.kl_div(q, p, reduction="none", log_target=True).sum(-1)


def js(x: Any, y: Any) -> Any:
    m = (x + y).log() - math.log(2)
    return (F.kl_div(m, x, reduction="none") + F.kl_div(m, y, reduction="none")).sum(-1) / 2


def score(x: Any, y: Any) -> Any:
    """The outputs of `score`, in its order, from one log-softmax."""
    log_p = torch.log_softmax(x, -1)
    p = log_p.exp()
    chosen = x.gather(-1, y[:, None])
    log_prob = log_p.gather(-1, y[:, None])[:, 0]
    largest = p.max(-1)
    return (
        -log_prob,
        chosen[:, 0] - log_prob,
        log_prob,
        -(p * log_p).sum(-1),
        largest.indices,
        (x > chosen).sum(-1),
        largest.values,
    )


FUNCTIONS: dict[str, Loss] = {
    "ce": lambda x, y: F.cross_entropy(x, y, reduction="none"),
    "ce_axis1": lambda x, y: F.cross_entropy(x, y, reduction="none"),
    "ce_dense": lambda x, y: F.cross_entropy(x, y, reduction="none"),
    "entropy_logits": lambda x: torch.special.entr(torch.softmax(x, -1)).sum(-1),
    "logsumexp": lambda x: torch.logsumexp(x, -1),
    "score": score,
    "kl_logits": kl_of_logits,
    "distillation": lambda x, y: kl_of_logits(y, x),
    "kl": lambda x, y: F.kl_div(y.log(), x, reduction="none").sum(-1),
    "js": js,
    "entropy": lambda x: torch.special.entr(x).sum(-1),
    "bce": lambda x, y: F.binary_cross_entropy_with_logits(x, y.to(x.dtype)),
    "bce_probs": lambda x, y: F.binary_cross_entropy(x, y.to(x.dtype)),
    "bce_rows": lambda x, y: F.binary_cross_entropy_with_logits(x, y, reduction="none").sum(-1),
    "information": lambda x: -x.log(),
}


def plain(loss: Loss, case: Case) -> Call:
    operands = [tensor(array) for array in case.operands]

    def call() -> tuple[Any, ...]:
        with torch.no_grad():
            found = loss(*operands)
        return tuple(map(array_of, found if isinstance(found, tuple) else (found,)))

    return call


def with_gradient(loss: Loss, case: Case) -> Call:
    x, *rest = (tensor(array) for array in case.operands)

    def call() -> tuple[Any, ...]:
        leaf = x.detach().requires_grad_()
        found = loss(leaf, *rest)
        (slope,) = torch.autograd.grad(found, leaf, torch.ones_like(found))
        return array_of(found), array_of(slope)

    return call


def calls(prepare: Callable[[Loss], Loss] = lambda loss: loss) -> dict[str, Callable[[Case], Call]]:
    """For each formula: what makes the call; `prepare` may compile the loss."""
    made: dict[str, Callable[[Case], Call]] = {
        name: lambda case, loss=loss: plain(prepare(loss), case) for name, loss in FUNCTIONS.items()
    }
    for name in ("ce", "ce_dense", "distillation", "bce"):
        made[f"{name}+gradient"] = lambda case, loss=FUNCTIONS[name]: with_gradient(prepare(loss), case)
    return made


LOSSES = calls()
