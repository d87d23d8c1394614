"""Machine code of the CUDA kernels, without a GPU: that they compile, and what they are compiled to.

A refactoring must not silently spill registers, compute in float64 or lose its 16-byte loads. Each kernel is compiled
by itself, as it is at run time, and its instructions are read (`cubin.py`).
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest

import cubin
from cubin import HOPPER, Code
from entrokern.cuda import sources
from entrokern.cuda.sources import KERNELS, SHARED_BYTES, Kernel, source

pytestmark = pytest.mark.skipif(cubin.missing() is not None, reason=str(cubin.missing()))


@pytest.fixture(scope="module", autouse=True)
def compilers(request: pytest.FixtureRequest) -> None:
    """Let them begin with all that the selected tests will ask for."""
    items = [item for item in request.session.items if getattr(item, "module", None) is request.module]
    chosen = [item.callspec.params for item in items if hasattr(item, "callspec")]
    cubin.begin((one["name"], one.get("architecture", HOPPER)) for one in chosen if "name" in one)


# --- what is asked of a kernel -----------------------------------------------------------------------

CAREFUL = {"distributions", "elements", "totals"}  # families for rare requests, in float64 whatever the dtypes are


def is_careful(kernel: Kernel) -> bool:
    """Whether it may be slow. A kernel of a new family is held to be fast: to read 16 bytes at a time."""
    return kernel.family in CAREFUL


def is_double(kernel: Kernel) -> bool:
    """Whether it computes in float64. A new kernel is held to compute in float32 unless its name says otherwise."""
    return is_careful(kernel) or "float64" in kernel.name


# Registers of a thread. A multiprocessor has 65536 for at most 2048 threads, and blocks have 256: with 128 registers
# 2 blocks fit, with 80 three, with 64 four, with 40 six and with 32 all eight. Between these steps fewer registers gain
# nothing; beyond one, a block is lost. Kernels that wait for memory need no more than 2: with 4 loads of 16 bytes in
# flight for a thread they have 32 KiB on the way, and an H100 is busy with 18 (3.35 TB/s for some 0.7 µs, shared by
# 132 multiprocessors).
REGISTERS = {
    "softmax_float64.*": 224,
    "totals_.*": 96,
    ".*": 128,
}
DOUBLE = r"D(ADD|MUL|FMA|SETP|MNMX|MMA)\b|.*\.F64\b|MUFU\.\w+64H"
# What the compiler itself calls: int64 / int64 beyond 32 bits, and 1 / x and x / y at the ends of the range of floats.
OWN_CALLS = re.compile(
    r"__cuda_sm\w+?_(div_[su]64|(rcp|div)_rn_\w*f32_slowpath|dblrcp_rn_slowpath_v3|div_rn_f64_full)\b"
)


class Rule(NamedTuple):
    what: str
    measure: Callable[[Code], int]
    allowed: range


NONE = range(1)


def up_to(most: int) -> range:
    return range(most + 1)


def at_least(least: int) -> range:
    return range(least, sys.maxsize)


def rules(kernel: Kernel) -> Iterator[Rule]:
    # Local memory is memory: spilled registers and arrays indexed at run time take from what is there for the data.
    yield Rule("stack", lambda code: code.stack, NONE)
    yield Rule("local", lambda code: code.local, NONE)
    yield Rule("LDL, STL", lambda code: code.count("LDL|STL"), NONE)
    # Functions are to be inlined: a call moves its arguments into place, and ends what the compiler can see.
    yield Rule("calls", lambda code: sum(not OWN_CALLS.search(callee) for callee in code.called()), NONE)
    # With the most that a launch asks for, for records of segments, it must not be more than there is unasked.
    if "segments.cuh" in sources.FAMILIES[kernel.family]:
        yield Rule("shared", lambda code: code.shared, up_to((48 << 10) - SHARED_BYTES))
    cap = next(most for names, most in REGISTERS.items() if re.fullmatch(names, kernel.name))
    yield Rule("registers", lambda code: code.registers, up_to(cap))
    if not is_double(kernel):
        # Most GPUs compute in float64 at 1/64 of their rate in float32; one literal without its f is enough.
        yield Rule("float64", lambda code: code.count(DOUBLE), NONE)
    if not is_careful(kernel):
        # These kernels wait for memory, which is at its best with wide loads, and several on the way.
        yield Rule("LDG.128", lambda code: code.wide("LDG"), at_least(4))
        yield Rule("in flight", in_flight, at_least(4))
        # The compiler's own calls are fine once for a row. Around each element they are code that is jumped over.
        yield Rule("calls in loops", calls_in_loops, NONE)
        if kernel.name.endswith(("_maps", "_distributions")):
            yield Rule("STG.128", lambda code: code.wide("STG"), at_least(1))


def in_flight(code: Code) -> int:
    return min((loop.in_flight for loop in cubin.hot_loops(code)), default=0)


def calls_in_loops(code: Code) -> int:
    return sum(n for loop in cubin.hot_loops(code) for op, n in loop.mix.items() if op.startswith("CALL"))


# What is wrong and known, and how wrong at most: rule → kernel → value. What is mended must leave this list.
KNOWN: dict[str, dict[str, int]] = {}


def faults(kernel: Kernel, code: Code, known: dict[str, dict[str, int]] = KNOWN) -> dict[str, int]:
    """The rules that a kernel violates, worse than is known, and what there is instead."""
    found = {}
    for what, measure, allowed in rules(kernel):
        bound = known.get(what, {}).get(kernel.name)
        if bound is not None:
            allowed = range(min(bound, allowed.start), max(bound + 1, allowed.stop))
        value = measure(code)
        if value not in allowed:
            found[what] = value
    return found


# --- the kernels -------------------------------------------------------------------------------------

# A kernel of each family: the first one, but for the softmaxes one that has everything.
FAMILIES = {kernel.family: kernel.name for kernel in reversed(KERNELS.values())}
FAMILIES["softmax"] = "softmax_float32_full_maps"


@pytest.mark.parametrize("name", KERNELS)
def test_requirements(name: str) -> None:
    """Compiled for sm_90 without a warning, to what is asked for."""
    wrong = faults(KERNELS[name], cubin.code(name))
    assert not wrong, f"{name}: {wrong}"


@pytest.mark.parametrize("name", FAMILIES.values())
@pytest.mark.parametrize("architecture", [75, 80, 86, 89, 100, 120])
def test_other_architectures(architecture: int, name: str) -> None:
    if architecture not in cubin.architectures():
        pytest.skip(f"this NVRTC does not know sm_{architecture}")
    assert cubin.binary(name, architecture)[:4] == b"\x7fELF"


@pytest.mark.parametrize(
    ("kernel", "size", "barriers"),
    [
        *(("softmax_float32_distributions", size, 2) for size in (1, 2, 8)),
        ("softmax_js_float32", 4, 3),
        ("softmax_pair_bfloat16_maps", 4, 3),
        ("soft_target_float32_maps", 4, 3),
    ],
)
def test_clusters(kernel: str, size: int, barriers: int) -> None:
    """A launch like any other is one of clusters if the kernel says so; but for that its code is the same. Blocks wait
    once before all rows, and for the records of each sweep."""
    binary = cubin.compiled(source([KERNELS[kernel]], size))
    assert cubin.cluster_of(binary) == size
    code = cubin.read(binary, kernel)
    assert not faults(KERNELS[kernel], code)
    assert code.count("UCGABAR_ARV") == code.count("UCGABAR_WAIT") == barriers


@pytest.mark.parametrize(("what", "name"), [(what, name) for what, names in KNOWN.items() for name in names])
def test_what_is_known_is_still_wrong(what: str, name: str) -> None:
    assert what in faults(KERNELS[name], cubin.code(name), known={}), "mended: take it out of KNOWN"


# --- the test of the test ----------------------------------------------------------------------------

WORDS = """
struct Words { unsigned x, y, z, w; };  // like uint4, but that it lies anywhere
__device__ inline Words make_Words(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
__device__ inline void __stcs(Words *p, Words v) { *p = v; }
"""
PLANTED = {
    "a double literal": (r"\b0\.5f", "0.5", {"float64"}),
    "an array indexed at run time": ("#pragma unroll\n", "#pragma unroll 1\n", {"stack", "LDL, STL"}),
    "too few registers": (r"__launch_bounds__\(256, 2\)", "__launch_bounds__(256, 8)", {"stack", "LDL, STL"}),
    "a record of each thread": (r"of_warps\[BLOCK / 32\]", "of_warps[BLOCK]", {"shared"}),
    "loads of 4 bytes": ("uint4", "Words", {"LDG.128", "in flight"}),
    "a call": (r"\bD float exp2_of\(", "__device__ __noinline__ float exp2_of(", {"calls", "calls in loops"}),
}


@pytest.mark.parametrize("fault", PLANTED)
def test_planted_faults_are_found(fault: str) -> None:
    pattern, replacement, expected = PLANTED[fault]
    kernel = KERNELS["softmax_float32"]
    text, places = re.subn(pattern, replacement, source([kernel]))
    assert places, f"the kernel has no place for {fault}"
    wrong = faults(kernel, cubin.read(cubin.compiled(WORDS + text), kernel.name))
    assert expected <= set(wrong), wrong


def test_warnings_are_refused() -> None:
    text = source([KERNELS["softmax_float32"]])
    with pytest.raises(cubin.Refused, match=r"sm_90: .*warning"):
        cubin.compiled(text + "__device__ int planted() { int unused; return 0; }")
    with pytest.raises(cubin.Refused, match=r"sm_90: .*error"):
        cubin.compiled(text + "planted")


LISTING = """
	.section	.text.kernel,"ax",@progbits
kernel:
.text.kernel:
        /*0000*/                   LDG.E.128 R4, desc[UR4][R2.64] ;
        /*0010*/                   LDG.E.128.CONSTANT R8, desc[UR4][R2.64+0x10] ;
        /*0020*/                   IADD3 R3, R10, R2, RZ ;
        /*0030*/                   LDG.E.128 R12, desc[UR4][R2.64] ;
.L_x_0:
        /*0040*/                   LDG.E.128 R4, desc[UR4][R2.64] ;
        /*0050*/                   LDG.E R11, desc[UR4][R2.64] ;
        /*0060*/                   LDG.E.128 R16, desc[UR4][R2.64] ;
        /*0070*/               @P0 BRA `(.L_x_2) ;
.L_x_1:
        /*0080*/                   MUFU.EX2 R5, R5 ;
        /*0090*/                   CALL.REL.NOINC `($__internal_0_$__cuda_sm20_div_s64) ;
        /*00a0*/              @!P1 BRA `(.L_x_1) ;
        /*00b0*/                   BSYNC B0 ;
        /*00c0*/                   BRA `(.L_x_3) ;
.L_x_2:
        /*00d0*/                   STG.E.128 desc[UR4][R2.64], R16 ;
.L_x_3:
        /*00e0*/              @!P1 BRA P2, `(.L_x_0) ;
        /*00f0*/                   EXIT ;
.L_x_4:
        /*0100*/                   BRA `(.L_x_4);
"""


def test_reading_of_listings() -> None:
    """Two loops, one in the other: the outer one holds the loads. A turn of it can jump over the inner one."""
    code = Code(0, 0, 0, 0, *cubin.blocks(LISTING))
    assert cubin.in_flight(code.blocks["kernel"]) == 2  # the third one comes after a use of the second
    assert (code.wide("LDG"), code.wide("STG"), code.count("LDG")) == (5, 1, 6)
    assert code.called() == ["`($__internal_0_$__cuda_sm20_div_s64)"]
    (loop,) = cubin.hot_loops(code)
    assert (loop.loads, loop.in_flight, loop.mix.total(), loop.least.total()) == (2, 2, 11, 6)
    assert loop.mix["MUFU.EX2"] == 1 and loop.least["MUFU.EX2"] == 0


def test_table(capsys: pytest.CaptureFixture[str]) -> None:
    cubin.main(["softmax_float32", "totals_sum_rows"])
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.startswith("sm_90 ") and [line.split()[0] for line in lines] == ["softmax_float32", "totals_sum_rows"]
    assert cubin.hot_loop("softmax_float32")["MUFU.EX2"] > 0


def test_reason_to_skip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cubin, "tool", lambda name: None)
    reason = cubin.missing.__wrapped__()
    assert "no cuobjdump and no nvdisasm" in reason and "pip install" in reason
