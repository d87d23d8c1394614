"""Machine code of the kernels for other machines than this one: vector instructions, and no calls, in every loop.

A refactoring must not silently fall back to scalar code, on no machine: the kernels are compiled for named
processors (`compile_for.py`, in a process of its own for each) and what comes out is read (`assembly.py`).
"""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import compile_for
from assembly import Loop, loops


class Machine(NamedTuple):
    triple: str
    cpu: str
    features: str
    width: int  # bytes of its vector registers


X86, ARM = "x86_64-unknown-linux-gnu", "aarch64-unknown-linux-gnu"
MACHINES = {
    "AVX2": Machine(X86, "haswell", "+avx,+avx2,+fma,+f16c,+bmi2", 32),
    "AVX-512": Machine(X86, "znver4", "+avx2,+fma,+f16c,+avx512f,+avx512vl,+avx512dq,+avx512bw", 64),
    "SSE2": Machine(X86, "x86-64", "+sse2", 16),
    "AArch64": Machine(ARM, "neoverse-n1", "+neon", 16),
}

HEAVY = 6  # operations on floats: from here on a loop is arithmetic, not bookkeeping
SPILLED = 1.5  # loads and stores of the stack that a loop may have for each operation

# Kernels of plain loops over float64, for rows that the fast kernels leave to them and for rare forms. LLVM
# makes vectors of most loops, each with a scalar one for the rest of a block; there is libm in some.
CAREFUL = {
    "binary_rows", "cross_entropy_rows", "divergence_rows", "entropy_rows", "information_rows", "kl_estimate_rows",
}  # fmt: skip
COMPARING = {"picked_rows"}  # in their innermost loops: the arithmetic, of several rows at once, is around these
NO_ARITHMETIC = "no loop of packed arithmetic"
FILLS = {"memset", "memcpy"}  # what LLVM makes of a loop that sets or copies a whole row
UNVECTORISED = {"kl_estimate_rows", "binary_rows"}  # of log-probabilities; with AVX-512 they are vectors

# What only special rows and softcaps run, one element at a time: kernel → functions called and scalar loops.
SOFTCAP: dict[str, tuple[set[str], int]] = {
    "softmax_rows": ({"ldexp", "rint", "tanh"}, 1),
    "softmax_groups": ({"tanh"}, 3),
    "softmax_lanes": ({"tanh"}, 4),
}


@cache
def compiled(machine: str, dtype: str, *calls: str) -> tuple[list[tuple[str, str, str]], set[str]]:
    """``(kernel, symbol, assembly)`` of all that the calls need, and the names of all kernels."""
    triple, cpu, features, _ = MACHINES[machine]
    asked = {"triple": triple, "cpu": cpu, "features": features, "dtype": dtype, "calls": calls}
    run = subprocess.run(
        [sys.executable, str(Path(compile_for.__file__)), json.dumps(asked)], capture_output=True, text=True
    )
    if "No available targets" in run.stderr or "Unable to find target" in run.stderr:
        pytest.skip(f"this llvmlite does not compile for {triple}")
    assert run.returncode == 0, run.stderr
    answer: dict[str, Any] = json.loads(run.stdout)
    return [tuple(one) for one in answer["compiled"]], set(answer["kernels"])


def is_scalar(loop: Loop) -> bool:
    return loop.scalar >= HEAVY and loop.scalar > loop.n_packed


def faults(found: list[Loop], called: set[str], width: int, softcap: tuple[set[str], int] = (set(), 0)) -> list[str]:
    """What is wrong with a kernel written in vectors: its innermost loops and what its loops call."""
    known, scalar_loops = softcap
    heavy = [loop for loop in found if loop.n_packed >= HEAVY]
    wide = sum(loop.packed.get(width, 0) for loop in heavy)
    wrong = [f"calls {name} in a loop" for name in sorted(called - known - FILLS)]
    scalar = [loop for loop in found if is_scalar(loop) and not (loop.calls and set(loop.calls) <= known)]
    if len(scalar) > scalar_loops:
        wrong.append(f"{len(scalar)} scalar loops: {scalar}")
    if not heavy:
        wrong.append(NO_ARITHMETIC)
    if wide < 0.9 * sum(loop.n_packed for loop in heavy):
        wrong.append(f"registers of {width} bytes are not used: {heavy}")
    wrong += [f"spills: {loop}" for loop in heavy if loop.stack > SPILLED * loop.n_packed]
    return wrong


def check(machine: str, dtype: str, *calls: str) -> None:
    wrong = []
    for kernel, symbol, assembly in compiled(machine, dtype, *calls)[0]:
        if kernel not in CAREFUL:
            softcap = SOFTCAP.get(kernel, (set(), 0))
            found = faults(*loops(assembly, symbol), MACHINES[machine].width, softcap)
            known = {NO_ARITHMETIC} if kernel in COMPARING else set()
            wrong += [f"{kernel}, {dtype}, {machine}: {fault}" for fault in found if fault not in known]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("machine", ["AVX2", "AVX-512"])
def test_rows_of_logits(machine):
    check(machine, "float32", "softmax_rows", "softmax_groups", "softmax_lanes")


@pytest.mark.parametrize("machine", ["SSE2", "AArch64"])
def test_rows_of_logits_on_narrow_machines(machine):
    check(machine, "float32", "softmax_lanes")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16"])
@pytest.mark.parametrize("machine", ["AVX2", "AVX-512", "AArch64"])
def test_rows_of_logits_of_every_dtype(machine, dtype):
    check(machine, dtype, "softmax_rows", "softmax_groups", "softmax_lanes")


@pytest.mark.slow
@pytest.mark.parametrize("machine", MACHINES)
def test_every_kernel(machine):
    """All kernels in float32. One that is new is held to be written in vectors."""
    calls = [name for name in compile_for.CALLS if name != "planted"]
    made, kernels = compiled(machine, "float32", *calls)
    missing = kernels - {kernel for kernel, _, _ in made}
    assert not missing, f"no call reaches {missing}; add one to CALLS in compile_for.py"
    check(machine, "float32", *calls)
    for kernel, symbol, assembly in made:
        if kernel in CAREFUL - (UNVECTORISED if machine != "AVX-512" else set()):
            found, _ = loops(assembly, symbol)
            packed, scalar = sum(loop.n_packed for loop in found), sum(loop.scalar for loop in found)
            assert packed >= scalar / 2, f"{kernel}, {machine}: {packed} packed operations, {scalar} scalar ones"


@pytest.mark.parametrize(
    "machine", ["AVX2", *(pytest.param(name, marks=pytest.mark.slow) for name in ("AVX-512", "SSE2", "AArch64"))]
)
def test_a_scalar_kernel_is_found(machine):
    """The test of the test: a loop that calls `exp`, and one whose every step needs the one before."""
    wrong = {}
    for kernel, symbol, assembly in compiled(machine, "float32", "planted")[0]:
        wrong[kernel] = " ".join(faults(*loops(assembly, symbol), MACHINES[machine].width))
    assert "calls exp" in wrong["planted_libm"]
    assert "scalar loops" in wrong["planted_scalar"]
    assert all("no loop of packed" in text for text in wrong.values())


def test_half_used_registers_and_spills_are_found() -> None:
    good, narrow = Loop({32: 20}, stack=3), Loop({16: 20})
    assert not faults([good, good], set(), 32)
    assert "not used" in faults([good, narrow], set(), 32)[0]
    assert "spills" in faults([good, Loop({32: 20}, stack=31)], set(), 32)[0]


def test_reading_of_loops() -> None:
    """Two loops, one in the other: the inner one's instructions are counted, the calls of both are found."""
    text = """
f:
.LBB0_1:
	movabsq	$exp, %rax
	callq	*%rax
.LBB0_2:
	vmulps	%ymm0, %ymm1, %ymm2 # 32-byte comment
	vfmadd213ss	(%rsp), %xmm1, %xmm2
	vmovaps	%ymm2, 32(%rsp)
	jne	.LBB0_2
	jmp	.LBB0_1
	callq	never
.Lfunc_end0:
"""
    found, called = loops(text, "f")
    assert called == {"exp"}
    assert found == [Loop({32: 1}, scalar=1, stack=1)]
