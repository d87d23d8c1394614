"""Who else computes it on a GPU: CuPy's own functions, PyTorch, `torch.compile` and Liger-Kernel, where installed.

As in peers/: what a user would do once is done when the call is made, what a user would do every time is in the call.
Arrays are CuPy's; PyTorch reads the same memory. A peer that gives no number of rows gives None in its place.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np

from data import Case

Call = Callable[[], tuple[Any, ...]]
Loss = Callable[..., Any]
Losses = dict[str, Callable[[Case], Call]]  # for each formula: what makes the call


def tuple_of(found: Any) -> tuple[Any, ...]:
    return found if isinstance(found, tuple) else (found,)


# --- CuPy: no cross-entropy there, so what one writes with cupyx.scipy.special --------------------


def formulas(cp: Any, special: Any) -> dict[str, Loss]:
    """With the modules given, which may be NumPy's and SciPy's just as well."""

    def picked(x: Any, labels: Any, axis: int = -1) -> Any:
        return cp.take_along_axis(x, cp.expand_dims(labels, axis), axis).squeeze(axis)

    def cross_entropy(x: Any, y: Any, axis: int = -1) -> Any:
        return -picked(special.log_softmax(x, axis=axis), y, axis)

    def cross_entropy_gradient(x: Any, y: Any) -> Any:
        log_p, rows = special.log_softmax(x, axis=-1), cp.arange(len(x))
        gradient = cp.exp(log_p)
        gradient[rows, y] -= 1
        return -log_p[rows, y], gradient

    def dense(x: Any, y: Any) -> Any:
        return -(y * special.log_softmax(x, axis=-1)).sum(axis=-1)

    def dense_gradient(x: Any, y: Any) -> Any:
        log_p = special.log_softmax(x, axis=-1)
        return -(y * log_p).sum(axis=-1), cp.exp(log_p) * y.sum(axis=-1, keepdims=True) - y

    def score(x: Any, y: Any) -> Any:
        """The outputs of `score`, in its order, from one log-softmax."""
        log_p = special.log_softmax(x, axis=-1)
        p, log_prob, chosen = cp.exp(log_p), picked(log_p, y), picked(x, y)
        entropy, rank = -(p * log_p).sum(axis=-1), (x > chosen[:, None]).sum(axis=-1)
        return -log_prob, chosen - log_prob, log_prob, entropy, x.argmax(axis=-1), rank, p.max(axis=-1)

    def distillation(x: Any, y: Any) -> Any:
        log_p, log_q = special.log_softmax(y, axis=-1), special.log_softmax(x, axis=-1)
        p = cp.exp(log_p)
        return (p * (log_p - log_q)).sum(axis=-1), cp.exp(log_q) - p

    def js(x: Any, y: Any) -> Any:
        m = (x + y) / 2
        return (special.rel_entr(x, m) + special.rel_entr(y, m)).sum(axis=-1) / 2

    def binary_terms(x: Any, y: Any) -> Any:
        return cp.logaddexp(0, x) - x * y

    return {
        "ce": cross_entropy,
        "ce_axis1": lambda x, y: cross_entropy(x, y, 1),
        "ce+gradient": cross_entropy_gradient,
        "ce_dense": dense,
        "ce_dense+gradient": dense_gradient,
        "entropy_logits": lambda x: special.entr(special.softmax(x, axis=-1)).sum(axis=-1),
        "logsumexp": lambda x: special.logsumexp(x, axis=-1),
        "score": score,
        "kl_logits": lambda x, y: distillation(y, x)[0],
        "distillation+gradient": distillation,
        "kl": lambda x, y: special.rel_entr(x, y).sum(axis=-1),
        "js": js,
        "entropy": lambda x: special.entr(x).sum(axis=-1),
        "bce": lambda x, y: binary_terms(x, y).mean(),
        "bce+gradient": lambda x, y: (binary_terms(x, y).mean(), (special.expit(x) - y) / x.size),
        "bce_probs": lambda x, y: -cp.log(cp.where(y, x, 1 - x)).mean(),
        "bce_rows": lambda x, y: binary_terms(x, y).sum(axis=-1),
        "information": lambda x: -cp.log(x),
    }


def wide(x: Any) -> Any:
    """16-bit types are computed in float32: CuPy adds up in the type of the array."""
    return x.astype(np.float32) if x.dtype.itemsize == 2 else x


def with_cupy() -> Losses:
    import cupy
    from cupyx.scipy import special

    def make(loss: Loss, case: Case) -> Call:
        return lambda: tuple_of(loss(*map(wide, case.operands)))

    return {name: functools.partial(make, loss) for name, loss in formulas(cupy, special).items()}


# --- PyTorch --------------------------------------------------------------------------------------


def tensor(array: Any) -> Any:
    """The same memory; bfloat16 goes as 16-bit integers, which every version of DLPack knows."""
    import torch

    if array.dtype.name == "bfloat16":
        return torch.from_dlpack(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_dlpack(array)


def with_torch(prepare: Callable[[Loss], Loss] = lambda loss: loss) -> Losses:
    """The functions of the CPU's peer; `prepare` may compile them."""
    import torch

    from peers.with_torch import FUNCTIONS

    def plain(loss: Loss, case: Case) -> Call:
        prepared, operands = prepare(loss), [tensor(array) for array in case.operands]

        def call() -> tuple[Any, ...]:
            with torch.no_grad():
                return tuple_of(prepared(*operands))

        return call

    def with_gradient(loss: Loss, case: Case) -> Call:
        prepared, (x, *rest) = prepare(loss), map(tensor, case.operands)

        def call() -> tuple[Any, ...]:
            leaf = x.detach().requires_grad_()
            found = prepared(leaf, *rest)
            return found.detach(), *torch.autograd.grad(found, leaf, torch.ones_like(found))

        return call

    made: Losses = {name: functools.partial(plain, loss) for name, loss in FUNCTIONS.items()}
    for name in ("ce", "ce_dense", "distillation", "bce"):
        made[f"{name}+gradient"] = functools.partial(with_gradient, FUNCTIONS[name])
    return made


def with_torch_compile() -> Losses:
    import torch

    def compiled(loss: Loss) -> Loss:
        torch.compiler.reset()  # or it would give up after a few shapes, and run eagerly
        return torch.compile(loss, dynamic=False)

    return with_torch(compiled)


# --- Liger-Kernel ---------------------------------------------------------------------------------


def with_liger() -> Losses:
    import torch
    from liger_kernel.transformers.functional import liger_cross_entropy, liger_kl_div

    def cross_entropy(case: Case) -> Call:
        x, y = tensor(case.x).clone(), tensor(case.y)  # versions that always write the gradient write it over x

        def call() -> tuple[Any, ...]:
            with torch.no_grad():
                return (liger_cross_entropy(x, y, reduction="none"),)

        return call

    def cross_entropy_gradient(case: Case) -> Call:
        """The sum's: for the gradient of single rows Liger takes one more pass."""
        x, y = tensor(case.x).clone(), tensor(case.y)

        def call() -> tuple[Any, ...]:
            leaf = x.detach().requires_grad_()
            return None, *torch.autograd.grad(liger_cross_entropy(leaf, y, reduction="sum"), leaf)

        return call

    def kl(case: Case) -> Call:
        """The mean over rows: with `reduction="none"` Liger writes a whole array. It wants log q."""
        p, q = map(tensor, case.operands)

        def call() -> tuple[Any, ...]:
            with torch.no_grad():
                liger_kl_div(q.log(), p, reduction="batchmean")
                return (None,)

        return call

    return {"ce": cross_entropy, "ce+gradient": cross_entropy_gradient, "kl": kl}


# --- all of them ----------------------------------------------------------------------------------

PEERS = {  # the name in the tables: the packages that must be installed, and what makes its calls
    "cupy": (("cupyx",), with_cupy),
    "torch": (("torch",), with_torch),
    "torch.compile": (("torch", "triton"), with_torch_compile),
    "liger": (("torch", "triton", "liger_kernel"), with_liger),
}


def installed() -> list[str]:
    return [name for name, (packages, _) in PEERS.items() if all(map(is_there, packages))]


@functools.cache
def is_there(package: str) -> bool:
    if importlib.util.find_spec(package) is None:
        return False
    if package == "torch":
        import torch

        return bool(torch.cuda.is_available())
    return True


@functools.cache
def losses_of(peer: str) -> Losses:
    return PEERS[peer][1]()


def call_of(peer: str, formula: str, case: Case) -> Call | None:
    """The peer's call on the case, or None where it has no such formula."""
    make = losses_of(peer).get(formula)
    return None if make is None else make(case)
