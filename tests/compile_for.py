"""A program: compile kernels for a machine that need not be this one, and print their assembly as JSON.

It takes one argument, JSON: ``triple``, ``cpu`` and ``features`` as LLVM names them, the ``dtype`` of the rows,
and the ``calls`` of the table below that are to be made. Everything that Numba and the kernels decide by the
machine they decide as on the one named. Nothing that is compiled is loaded or run: a kernel called returns at
once, with zeros. What is printed is a list of ``[kernel, symbol, assembly]``, and the names of all kernels.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Any

ASKED: dict[str, Any] = json.loads(sys.argv[1]) if __name__ == "__main__" else {}

if ASKED:
    os.environ["NUMBA_CPU_NAME"], os.environ["NUMBA_CPU_FEATURES"] = ASKED["cpu"], ASKED["features"]

import llvmlite.binding as llvm  # noqa: E402

if ASKED:
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    llvm.get_process_triple = lambda: ASKED["triple"]  # type: ignore[assignment]

import ml_dtypes  # noqa: E402, F401  (bfloat16 by name)
import numpy as np  # noqa: E402
from numba.core import codegen, cpu, dispatcher, types  # noqa: E402

import entrokern as ek  # noqa: E402
import entrokern.cpu.quantities  # noqa: E402
from entrokern.cpu.compile import KERNELS, kernel  # noqa: E402

Array = np.ndarray[Any, Any]

# --- what is called: every kernel, short rows and long ones, with a gradient where there is one ----


def both(call: Callable[..., Any]) -> Callable[[Array], None]:
    """Rows of few classes and of many, which run in different kernels."""

    def of_both(x: Array) -> None:
        for rows in (x[:, :10].copy(), x):
            call(rows)

    return of_both


def of_each_family(call: Callable[..., Any]) -> Callable[[Array], None]:
    """`both`, and rows of some thousand classes."""

    def of_all(x: Array) -> None:
        both(call)(x)
        call(longer(x))

    return of_all


def longer(x: Array) -> Array:
    return np.tile(x[:4], 10)


def labels(x: Array) -> Array:
    return np.zeros(len(x), np.int64)


def ones(x: Array) -> Array:
    return np.ones(x.shape, np.uint8)


def planted(x: Array) -> None:
    """Kernels that must not pass."""
    import math

    @kernel
    def planted_libm(x, out):
        for i in range(x.size):
            out[i] = math.exp(x[i])

    @kernel
    def planted_scalar(x, out):
        y = x[0]
        for i in range(x.size):  # each step needs the one before
            y = ((((((y * x[i] + x[0]) * y + x[1]) * y + x[2]) * y + x[3]) * y + x[4]) * y + x[5]) * y + x[6]
        out[0] = y

    for bad in (planted_libm, planted_scalar):
        bad._cache.disable()
        bad(x.reshape(-1), np.empty(x.size, x.dtype))


CALLS: dict[str, Callable[[Array], Any]] = {
    "softmax_rows": lambda x: ek.cross_entropy(longer(x), labels(x[:4]), return_grad=True),
    "softmax_groups": lambda x: ek.cross_entropy(x, labels(x), return_grad=True),
    "softmax_lanes": lambda x: ek.cross_entropy(x[:, :10].copy(), labels(x), return_grad=True),
    "cross_entropy": both(lambda x: ek.cross_entropy(x, x, return_grad=True)),
    "cross_entropy alone": both(lambda x: ek.cross_entropy(x, x)),
    "cross_entropy probs": both(lambda x: ek.cross_entropy(x, x, form="probs")),
    "cross_entropy picked": both(lambda x: ek.cross_entropy(x, labels(x), form="probs", return_grad=True)),
    "logsumexp": of_each_family(lambda x: ek.logsumexp(x)),
    "entropy": both(lambda x: ek.entropy(x, return_grad=True)),
    "entropy alone": both(lambda x: ek.entropy(x)),
    "kl_divergence": both(lambda x: ek.kl_divergence(x, x, return_grad="q")),
    "kl_divergence alone": both(lambda x: ek.kl_divergence(x, x)),
    "kl_divergence logits": both(lambda x: ek.kl_divergence(x, x, p_form="logits", q_form="logits")),
    "kl_divergence logits + gradient": both(
        lambda x: ek.kl_divergence(x, x, p_form="logits", q_form="logits", return_grad="both")
    ),
    "kl_divergence log_probs": of_each_family(
        lambda x: ek.kl_divergence(x, x, p_form="log_probs", q_form="log_probs", return_grad="q")
    ),
    "kl_divergence to log_probs": both(lambda x: ek.kl_divergence(x, x, q_form="log_probs", return_grad="p")),
    "kl_divergence of log_probs": both(lambda x: ek.kl_divergence(x, x, p_form="log_probs", return_grad="q")),
    "kl_divergence mixed": lambda x: ek.kl_divergence(x, x, p_form="logits", return_grad="q"),
    "entropy log_probs": both(lambda x: ek.entropy(x, form="log_probs", return_grad=True)),
    "entropy strided": lambda x: ek.entropy(x[:, ::2], return_grad=True),
    "js_divergence logits": both(lambda x: ek.js_divergence(x, x, p_form="logits", q_form="logits")),
    "js_divergence + gradient": both(lambda x: ek.js_divergence(x, x, return_grad="p")),
    "js_divergence": both(lambda x: ek.js_divergence(x, x)),
    "binary": lambda x: ek.binary_cross_entropy(x, ones(x), return_grad=True),
    "binary alone": lambda x: ek.binary_cross_entropy(x, x),
    "binary rows": both(lambda x: ek.binary_cross_entropy(x, x, axis=-1, return_grad=True)),
    "binary probs": lambda x: ek.binary_cross_entropy(x, x, form="probs"),
    "binary log_probs": lambda x: ek.binary_cross_entropy(x, x, form="log_probs", return_grad=True),
    "information": ek.information,
    "kl_estimate": lambda x: ek.kl_estimate(x, x),
    "planted": planted,
}


# --- how: Numba's compiler as it is, but for what would load or run the code -----------------------

compiled: list[tuple[str, str, str]] = []


def finalize(library: Any) -> None:
    library._finalize_dynamic_globals()
    library._finalized = True


def get_executable(context: Any, library: Any, fndesc: Any, env: Any) -> Any:
    if fndesc.qualname.split(".")[-1] in KERNELS:
        library._ensure_finalized()
        compiled.append((fndesc.qualname.split(".")[-1], fndesc.llvm_func_name, library.get_asm_str()))
    return [].append  # something callable of its own, by which Numba knows the function


def nothing(kind: Any) -> Any:
    """A result of a kernel that found nothing bad."""
    if isinstance(kind, types.BaseTuple):
        return tuple(map(nothing, kind.types))
    return -1 if isinstance(kind, types.Integer) else 0.0 if isinstance(kind, types.Float) else None


def compile_for_args(self: Any, *args: Any) -> Any:
    signature = tuple(map(self.typeof_pyval, args))
    self.compile(signature)
    return lambda *_: nothing(self.overloads[signature].signature.return_type)


def add_overload(self: Any, result: Any) -> None:
    self.overloads[tuple(result.signature.args)] = result  # but not where a call would find it


def main() -> None:
    codegen.JITCodeLibrary._finalize_final_module = finalize
    cpu.CPUContext.get_executable = get_executable
    dispatcher._DispatcherBase._compile_for_args = compile_for_args
    dispatcher._DispatcherBase.add_overload = add_overload
    names = list(KERNELS)
    for one in KERNELS.values():
        one._cache.disable()
    ek.set_num_threads(1)
    x = np.full((64, 300), 1 / 300).astype(ASKED["dtype"])
    with np.errstate(all="ignore"):
        for name in ASKED["calls"]:
            CALLS[name](x)
    json.dump({"compiled": compiled, "kernels": names}, sys.stdout)


if __name__ == "__main__":
    main()
