"""The tools that run the CUDA kernels on the CPU: right kernels give right results, planted bugs are caught."""

from __future__ import annotations

import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import array_api_compat
import numpy as np
import pytest

import fake_cupy
import shim

TEXT = """
struct Arguments {
    const float *x;
    float *out;
    int n, offset;
};

__device__ __forceinline__ float warp_sum(float v, unsigned mask = ~0u, int width = 32) {
#pragma unroll
    for (int apart = width / 2; apart > 0; apart >>= 1) v += __shfl_xor_sync(mask, v, apart, width);
    return v;
}

// Σ x of each block's n numbers
template <bool PLANTED>
__device__ void block_sum(const Arguments &a) {
    __shared__ float parts[32];
    const int t = threadIdx.x, warps = blockDim.x / warpSize;
    float sum = 0;
    for (int i = t; i < a.n; i += blockDim.x) sum += a.x[(long long)blockIdx.x * a.n + i];
    sum = warp_sum(sum);
    if (t % warpSize == 0) parts[t / warpSize] = sum;
    if (!PLANTED) __syncthreads();
    if (t == 0) {
        for (int w = 1; w < warps; ++w) sum += parts[w];
        a.out[blockIdx.x] = sum;
    }
}
extern "C" __global__ void __launch_bounds__(1024) right_sum(const Arguments a) { block_sum<false>(a); }
extern "C" __global__ void __launch_bounds__(1024) no_barrier(const Arguments a) { block_sum<true>(a); }

extern "C" __global__ void divergent_barrier(const Arguments a) {
    if (threadIdx.x < 40) __syncthreads();
    a.out[threadIdx.x] = 1;
}
extern "C" __global__ void two_barriers(const Arguments a) {
    if (threadIdx.x % 2)
        __syncthreads();
    else
        __syncthreads();
}
extern "C" __global__ void divergent_shuffle(const Arguments a) {
    if (threadIdx.x < 40) a.out[threadIdx.x] = warp_sum(1);
}
extern "C" __global__ void two_shuffles(const Arguments a) {
    float v;
    if (threadIdx.x % 2)
        v = __shfl_sync(~0u, 1.0f, 0);
    else
        v = __shfl_sync(~0u, 2.0f, 0);
    a.out[threadIdx.x] = v;
}
extern "C" __global__ void shuffle_or_barrier(const Arguments a) {
    if (threadIdx.x < 40) a.out[threadIdx.x] = warp_sum(1);
    __syncthreads();
}
extern "C" __global__ void differing_masks(const Arguments a) {
    __syncwarp(threadIdx.x == 5 ? 0xffffu : ~0u);
}
extern "C" __global__ void foreign_mask(const Arguments a) {
    __syncwarp(0xffff);
}
extern "C" __global__ void outside_of_mask(const Arguments a) {
    if (threadIdx.x < 16) a.out[threadIdx.x] = __shfl_sync(0xffffu, 1.0f, 20);
}

// Groups of 8 lanes add up 1 to 4 times: each with its own mask, as often as it likes.
extern "C" __global__ void groups(const Arguments a) {
    const int t = threadIdx.x, group = t % 32 / 8;
    float v = t;
    for (int i = 0; i <= group; ++i) v = warp_sum(v, 0xffu << group * 8, 8);
    a.out[t] = v;
    __syncwarp();
    a.out[blockDim.x + t] = __shfl_sync(~0u, v, 0);
}

extern "C" __global__ void exchanges(const Arguments a) {
    const int t = threadIdx.x, n = blockDim.x;
    float *out = a.out + t;
    int row = 0;
    for (int width = 2; width <= 32; width *= 2) {
        out[n * row++] = __shfl_sync(~0u, a.x[t], t / 3, width);
        out[n * row++] = __shfl_xor_sync(~0u, a.x[t], 5, width);
        out[n * row++] = __shfl_down_sync(~0u, a.x[t], 3, width);
        out[n * row++] = __shfl_up_sync(~0u, (double)a.x[t], 3, width);
    }
    const unsigned odd = __ballot_sync(~0u, t % 2);
    out[n * row++] = odd == 0xaaaaaaaau && __popc(odd) == 16 && __ffs(odd) == 2 && __clz(odd) == 0;
    out[n * row++] = __any_sync(~0u, t == 40);
    out[n * row++] = __all_sync(~0u, t < 40);
}

extern "C" __global__ void approximations(const Arguments a) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= a.n) return;
    a.out[i] = shim_ex2(a.x[i]);
    a.out[i + a.n] = shim_lg2(a.x[i]);
    a.out[i + 2 * a.n] = shim_rcp(a.x[i]);
    a.out[i + 3 * a.n] = shim_half_to_float(shim_float_to_half(a.x[i]));
}

// Threads in reverse through dynamic shared memory, 16 bytes each
extern "C" __global__ void reverse(const Arguments a) {
    DYNAMIC_SHARED(buffer);
    const int t = threadIdx.x, last = blockDim.x - 1;
    a.out[t] = __uint_as_float(buffer[t].w);
    buffer[t + a.offset] = make_uint4(t, 0, 0, 0);
    __syncthreads();
    a.out[last + 1 + t] = buffer[last - t].x;
}

// Σ of a number of each block of a cluster, which writes it to all. The first barrier is for those that have not begun,
// or not read the row before; the second for the numbers.
template <int PLANTED>
__device__ void cluster_sum(const Arguments &a) {
    DYNAMIC_SHARED(dynamic);
    float *numbers = (float *)dynamic;
    const int t = threadIdx.x, size = cluster_size(), rank = cluster_rank();
    for (int row = blockIdx.x / size; row < a.n; row += gridDim.x / size) {
        if (PLANTED != 1) cluster_barrier();
        if (t < size) in_block(numbers, t)[rank] = a.x[row * size + rank];
        if (PLANTED != 2) cluster_barrier();
        float sum = 0;
        for (int r = 0; r < size; ++r) sum += numbers[r];
        if (t == 0) a.out[row * size + rank] = sum;
    }
}
// The same with one barrier for each row: what is written goes elsewhere than what others may still read.
template <int SIDES>
__device__ void alternating_sum(const Arguments &a) {
    DYNAMIC_SHARED(dynamic);
    const int t = threadIdx.x, size = cluster_size(), rank = cluster_rank();
    cluster_barrier();
    for (int row = blockIdx.x / size, turn = 0; row < a.n; row += gridDim.x / size, turn = (turn + 1) % SIDES) {
        float *numbers = (float *)dynamic + turn * size;
        if (t < size) in_block(numbers, t)[rank] = a.x[row * size + rank];
        cluster_barrier();
        float sum = 0;
        for (int r = 0; r < size; ++r) sum += numbers[r];
        if (t == 0) a.out[row * size + rank] = sum;
    }
}
extern "C" __global__ void alternating_sums(const Arguments a) { alternating_sum<2>(a); }
extern "C" __global__ void one_side(const Arguments a) { alternating_sum<1>(a); }

extern "C" __global__ void cluster_sums(const Arguments a) { cluster_sum<0>(a); }
extern "C" __global__ void no_first_barrier(const Arguments a) { cluster_sum<1>(a); }
extern "C" __global__ void no_second_barrier(const Arguments a) { cluster_sum<2>(a); }

// What a block reads of another may be gone: it lacks a last barrier.
extern "C" __global__ void late_read(const Arguments a) {
    DYNAMIC_SHARED(dynamic);
    float *number = (float *)dynamic;
    *number = 1;
    cluster_barrier();
    a.out[blockIdx.x] = *in_block(number, 1 - cluster_rank());
}
extern "C" __global__ void lone_thread(const Arguments a) {
    if (threadIdx.x < 40) cluster_barrier();
}
extern "C" __global__ void lone_block(const Arguments a) {
    if (cluster_rank() == 0) cluster_barrier();
}
extern "C" __global__ void two_cluster_barriers(const Arguments a) {
    if (cluster_rank() == 0)
        cluster_barrier();
    else
        cluster_barrier();
}
extern "C" __global__ void barriers_of_two_kinds(const Arguments a) {
    if (threadIdx.x < 40)
        cluster_barrier();
    else
        __syncthreads();
}
extern "C" __global__ void no_such_block(const Arguments a) {
    DYNAMIC_SHARED(dynamic);
    in_block(dynamic, cluster_size());
}
extern "C" __global__ void not_shared(const Arguments a) { in_block(a.out, 0); }

// 4 numbers at once
extern "C" __global__ void wide_copy(const Arguments a) {
    const uint4 v = __ldg(reinterpret_cast<const uint4 *>(a.x + a.offset) + threadIdx.x);
    *(reinterpret_cast<uint4 *>(a.out) + threadIdx.x) = v;
}

extern "C" __global__ void arithmetic(const Arguments a) {
    int counter = 0;
    unsigned long long large = 1;
    atomicAdd(&counter, 2);
    const bool right = atomicAdd(&large, 5) == 1 && large == 6 && counter == 2 && min(-1, 2) == -1 && max(-1, 2u) == ~0u
        && min(1ll << 40, 3) == 3 && max(1.0f, NAN) == 1 && fmaxf(1, 2) == 2 && isnan(__uint_as_float(0x7fc00000u))
        && __fmaf_rn(3, 4, 5) == 17 && expm1(0.0) == 0 && log1pf(0) == 0 && rint(2.5) == 2 && fabs(-2.0f) == 2
        && __longlong_as_double(__double_as_longlong(0.1)) == 0.1 && gridDim.y == 2 && blockDim.y == 1;
    a.out[blockIdx.y] = right;
}
"""
NAMES = (
    *("right_sum", "no_barrier", "divergent_barrier", "two_barriers", "divergent_shuffle", "two_shuffles"),
    *("shuffle_or_barrier", "differing_masks", "foreign_mask", "outside_of_mask", "groups", "exchanges"),
    *("approximations", "reverse", "wide_copy", "arithmetic", "cluster_sums", "no_first_barrier", "no_second_barrier"),
    *("late_read", "lone_thread", "lone_block", "two_cluster_barriers", "barriers_of_two_kinds", "no_such_block"),
    *("not_shared", "alternating_sums", "one_side"),
)
ARGUMENTS = np.dtype([("x", "u8"), ("out", "u8"), ("n", "i4"), ("offset", "i4")])

Array = np.ndarray[Any, Any]


@pytest.fixture(scope="module")
def library() -> shim.Library:
    return shim.compiled(TEXT, NAMES)


@pytest.fixture(params=[0, 1], ids=["ascending", "descending"])
def order(request: pytest.FixtureRequest) -> int:
    return request.param


def run(
    library: shim.Library, name: str, x: Array, out: Array, threads: int, order: int = 0, grid: tuple[int, ...] = (1,),
    shared: int = 0, n: int = 0, offset: int = 0, cluster: int = 1,
) -> None:  # fmt: skip
    arguments = np.array((x.ctypes.data, out.ctypes.data, n, offset), ARGUMENTS)
    library.launch(name, grid, threads, shared, arguments, order, cluster)


def result(library: shim.Library, name: str, threads: int, order: int, x: Array | None = None, **more: Any) -> Array:
    out = np.full(40 * threads, np.nan, np.float32)
    run(library, name, np.zeros(threads, np.float32) if x is None else x, out, threads, order, **more)
    return out


# --- right kernels -----------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [32, 64, 256, 1024])
@pytest.mark.parametrize("n", [1, 31, 1000])
def test_block_sum(library: shim.Library, order: int, threads: int, n: int) -> None:
    x = np.arange(5 * n, dtype=np.float32).reshape(5, n)
    out = np.zeros(5, np.float32)
    run(library, "right_sum", x, out, threads, order, (5,), n=n)
    assert out.tolist() == x.sum(1).tolist()


def test_groups_of_lanes_shuffle_as_often_as_they_like(library: shim.Library, order: int) -> None:
    out = result(library, "groups", 64, order)
    sums = np.arange(64).reshape(8, 8).sum(1)
    expected = [sums[g] * 8.0 ** (g % 4) for g in range(8)]
    assert out[:64].tolist() == np.repeat(expected, 8).tolist()
    assert out[64:128].tolist() == [expected[0]] * 32 + [expected[4]] * 32


def test_warp_functions_are_as_documented(library: shim.Library, order: int) -> None:
    x = np.random.default_rng(0).normal(size=64).astype(np.float32)
    out = result(library, "exchanges", 64, order, x).reshape(40, 64)
    t = np.arange(64)
    for i, width in enumerate((2, 4, 8, 16, 32)):
        first, last = t - t % width, t - t % width + width - 1
        assert np.array_equal(out[4 * i], x[first + t // 3 % width])
        assert np.array_equal(out[4 * i + 1], x[np.where((t ^ 5) <= last, t ^ 5, t)])
        assert np.array_equal(out[4 * i + 2], x[np.where(t + 3 <= last, t + 3, t)])
        assert np.array_equal(out[4 * i + 3], x[np.where(t - 3 >= first, t - 3, t)])
    assert (out[20] == 1).all()
    assert out[21].tolist() == [0] * 32 + [1] * 32
    assert out[22].tolist() == [1] * 32 + [0] * 32


def test_dynamic_shared_memory(library: shim.Library, order: int) -> None:
    out = result(library, "reverse", 96, order, shared=96 * 16)
    assert np.isnan(out[:96]).all()  # not written yet
    assert out[96:192].tolist() == list(range(95, -1, -1))


def cluster_sums(library: shim.Library, name: str, order: int, cluster: int, rows: int, at_once: int) -> Array:
    """What each block of a cluster makes of each row of integers, less their sum."""
    x = np.random.default_rng(0).integers(0, 9, (rows, cluster)).astype(np.float32)
    out = np.full((rows, cluster), np.nan, np.float32)
    run(library, name, x, out, 64, order, (at_once * cluster,), 8 * cluster, n=rows, cluster=cluster)
    return out - x.sum(1, keepdims=True)


@pytest.mark.parametrize("cluster", [1, 2, 4, 8])
def test_blocks_of_a_cluster_write_to_each_other(library: shim.Library, order: int, cluster: int) -> None:
    for at_once in (1, 2, 5):
        for name in ("cluster_sums", "alternating_sums"):
            assert not cluster_sums(library, name, order, cluster, 5, at_once).any()


def test_functions_of_cuda(library: shim.Library) -> None:
    assert result(library, "arithmetic", 1, 0, grid=(3, 2))[:2].tolist() == [1, 1]


@pytest.fixture(scope="module")
def approximated(library: shim.Library) -> tuple[Array, Array]:
    """Numbers of all sizes, and their 2^x, log2 x, 1/x and nearest half."""
    with np.errstate(all="ignore"):
        x = np.concatenate(
            [
                np.random.default_rng(1).integers(0, 2**32, 30000, np.uint32).view(np.float32),
                np.linspace(-130, 130, 30000, dtype=np.float32),
                np.linspace(0.4, 2.1, 30000, dtype=np.float32),
                np.arange(65536, dtype=np.uint16).view(np.float16).astype(np.float32),
                np.array([0, -0.0, 1, 1e-40, -1e-40, 3e38, np.inf, -np.inf, np.nan], np.float32),
            ]
        )
    out = np.empty((4, x.size), np.float32)
    run(library, "approximations", x, out, 256, grid=(-(-x.size // 256),), n=x.size)
    return x, out


def flushed(x: Array) -> Array:
    return np.where(abs(x) < 2.0**-126, np.copysign(0, x), x)


def relative_error(got: Array, exact: Array) -> Array:
    """Of what a float32 can hold."""
    ordinary = (abs(exact) > 2.0**-125) & (abs(exact) < 2.0**127)
    return abs(got[ordinary] / exact[ordinary] - 1)


def test_ex2_errs_as_documented(approximated: tuple[Array, Array]) -> None:
    x, (got, *_) = approximated
    with np.errstate(all="ignore"):
        exact = np.exp2(flushed(x).astype(np.float64))
    error = relative_error(got.astype(np.float64), exact)
    assert 0.9 * 2**-22.5 < error.max() <= 2**-22.5 + 2**-24
    assert (got[abs(x) < 2.0**-126] == 1).all()
    assert (got[x < -126.5] == 0).all() and (got[x >= 128] == np.inf).all()
    assert np.array_equal(np.isnan(got), np.isnan(x))


def test_lg2_errs_as_documented(approximated: tuple[Array, Array]) -> None:
    x, (_, got, *_) = approximated
    with np.errstate(all="ignore"):
        exact = np.log2(flushed(x).astype(np.float64))
    near = (x > 0.5) & (x < 2)
    error = abs(got[near] - exact[near])
    assert 0.9 * 2**-22 < error.max() <= 2**-22 + 2**-24
    far = (x >= 2.0**-126) & ~near & np.isfinite(x)
    assert 0.9 * 2**-22 < relative_error(got[far].astype(np.float64), exact[far]).max() <= 2**-22 + 2**-24
    assert (got[flushed(x) == 0] == -np.inf).all()
    assert np.array_equal(np.isnan(got), np.isnan(exact))


def test_rcp_errs_as_documented(approximated: tuple[Array, Array]) -> None:
    x, (_, _, got, _) = approximated
    with np.errstate(all="ignore"):
        exact = 1 / flushed(x).astype(np.float64)
    assert 2**-24 < relative_error(got.astype(np.float64), exact).max() <= 2**-23 + 2**-24
    assert np.array_equal(np.isinf(got), flushed(x) == 0)
    assert (got[abs(x) > 1.0001 * 2.0**126] == 0).all()


def test_halves_round_to_nearest_even(approximated: tuple[Array, Array]) -> None:
    x, (*_, got) = approximated
    with np.errstate(all="ignore"):
        assert np.array_equal(got, x.astype(np.float16).astype(np.float32), equal_nan=True)


# --- planted bugs ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("divergent_barrier", "thread 0 waits at __syncthreads, but thread 40 has returned"),
        ("two_barriers", "thread 0 waits at __syncthreads, but thread 1 is at __syncthreads in line"),
        ("divergent_shuffle", "waits in thread 32 for lane 8, but thread 40 has returned"),
        ("two_shuffles", r"for lane 1, but thread \d+ is at __shfl_sync of mask 0xffffffff in line"),
        ("shuffle_or_barrier", "waits in thread 32 for lane 8, but thread 40 is at __syncthreads"),
        ("differing_masks", "waits in thread 0 for lane 5, but thread 5 is at __syncwarp of mask 0x0000ffff"),
        ("foreign_mask", "mask 0x0000ffff, which lacks its lane"),
        ("outside_of_mask", "reads lane 20 by __shfl_sync, which is not in its mask 0x0000ffff"),
    ],
)
def test_divergence_is_reported(library: shim.Library, order: int, name: str, says: str) -> None:
    with pytest.raises(shim.ShimError, match=says):
        result(library, name, 64, order)
    assert result(library, "reverse", 64, order, shared=1024)[64] == 63  # the next launch starts afresh


def test_a_mask_beyond_the_block_is_reported(library: shim.Library, order: int) -> None:
    with pytest.raises(shim.ShimError, match="thread 40 is not in the block"):
        result(library, "right_sum", 40, order)


def test_an_error_names_line_and_block(library: shim.Library) -> None:
    line = 1 + next(i for i, text in enumerate(TEXT.splitlines()) if "if (threadIdx.x < 40) __syncthreads" in text)
    with pytest.raises(shim.ShimError, match=rf"divergent_barrier: line {line}: .* \(block 1, 2, 0\)"):
        result(library, "divergent_barrier", 64, 1, grid=(2, 3))


def test_a_missing_barrier_gives_a_wrong_result_in_one_order(library: shim.Library) -> None:
    x = np.arange(4 * 256, dtype=np.float32).reshape(4, 256)
    wrong = []
    for order in (0, 1):
        out = np.zeros(4, np.float32)
        run(library, "no_barrier", x, out, 256, order, (4,), n=256)
        wrong.append(out.tolist() != x.sum(1).tolist())
    assert sorted(wrong) == [False, True]


def test_a_missing_barrier_of_a_cluster_shows(library: shim.Library, order: int) -> None:
    for name, rows, at_once in (("no_first_barrier", 3, 3), ("no_first_barrier", 3, 1), ("no_second_barrier", 1, 1)):
        wrong = cluster_sums(library, name, order, 4, rows, at_once)
        assert (wrong != 0).any() and np.isnan(wrong).any() == (at_once == rows), name
    assert cluster_sums(library, "one_side", order, 4, 3, 1).any()
    assert np.isnan(result(library, "late_read", 32, order, grid=(2,), shared=4, cluster=2)[:2]).any()


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("lone_thread", "thread 0 waits at the cluster's barrier, but thread 40 has returned"),
        ("lone_block", "block 0 of the cluster waits at its barrier, but block 1 has returned"),
        ("two_cluster_barriers", r"block \d of the cluster waits at its barrier, but block \d is at that in line"),
        ("barriers_of_two_kinds", "waits at the cluster's barrier, but thread 40 is at __syncthreads in line"),
        ("no_such_block", "looks for block 2 of 2"),
        ("not_shared", "thread 0 looks for what is not in dynamic shared memory|thread 63 looks for what"),
    ],
)
def test_divergence_of_a_cluster_is_reported(library: shim.Library, order: int, name: str, says: str) -> None:
    with pytest.raises(shim.ShimError, match=says):
        result(library, name, 64, order, grid=(4,), shared=16, cluster=2)
    assert not cluster_sums(library, "cluster_sums", order, 2, 3, 2).any()  # the next launch starts afresh


def test_an_overrun_of_shared_memory_is_reported(library: shim.Library, order: int) -> None:
    with pytest.raises(shim.ShimError, match="byte 1024 of the dynamic shared memory is written, of 1024"):
        result(library, "reverse", 64, order, shared=1024, offset=1)


def test_a_launch_is_checked(library: shim.Library) -> None:
    with pytest.raises(shim.ShimError, match="1 to 1024 threads"):
        library.launch("groups", (1,), 1025, 0, np.zeros(1, ARGUMENTS))
    with pytest.raises(shim.ShimError, match="has no block"):
        library.launch("groups", (1, 0), 32, 0, np.zeros(1, ARGUMENTS))
    for cluster, blocks, says in ((9, 9, "1 to 8 blocks"), (0, 1, "1 to 8 blocks"), (4, 6, "cut by its last cluster")):
        with pytest.raises(shim.ShimError, match=says):
            library.launch("groups", (blocks,), 32, 0, np.zeros(1, ARGUMENTS), cluster=cluster)
    with pytest.raises(shim.ShimError, match="the arguments have 48 bytes, its `struct Arguments` 24"):
        library.launch("groups", (1,), 32, 0, np.zeros(2, ARGUMENTS))


def test_a_text_that_does_not_compile() -> None:
    with pytest.raises(shim.ShimError, match=r"broken.cu:2:\d+: error"):
        shim.compiled("struct Arguments {};\nint f() { return none; }", [], name="broken")


def test_static_shared_memory_is_of_one_library(library: shim.Library) -> None:
    other = shim.compiled(TEXT.replace("parts[32]", "parts[33]"), ["right_sum", "no_barrier"])
    x, out = np.ones(64, np.float32), np.zeros(1, np.float32)
    run(other, "no_barrier", x, out, 64, order=1, n=64)
    run(library, "no_barrier", 2 * x, out, 64, order=1, n=64)
    run(other, "no_barrier", x, out, 64, order=0, n=64)  # reads what it wrote before
    assert out == [64]


# Planted bugs that only sanitizers see: each is a program of its own, which must end by their report.
SANITIZED = """
import sys
sys.path.insert(0, {folder!r})
import numpy as np, test_shim, shim
library = shim.compiled(test_shim.TEXT, test_shim.NAMES)
x = np.ones({floats}, np.float32)
out = np.zeros(4 * 64, np.float32)
test_shim.run(library, {name!r}, x, out, 64, shared={shared}, n=64, offset={offset})
print("ended")
"""


@pytest.fixture(scope="module")
def sanitized() -> None:
    """Compiled, so that programs only load it."""
    environment = shim.sanitizer_environment()
    program = SANITIZED.format(folder=str(shim.HEADER.parent), floats=64, name="right_sum", shared=0, offset=0)
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout == "ended\n", done.stderr


@pytest.mark.parametrize(
    ("name", "floats", "shared", "offset", "says"),
    [
        ("wide_copy", 4 * 64 + 1, 0, 1, "misaligned address"),
        ("wide_copy", 4 * 64 - 1, 0, 0, "AddressSanitizer: heap-buffer-overflow"),
        ("reverse", 64, 64 * 16, 1, "AddressSanitizer: heap-buffer-overflow"),
    ],
    ids=["misaligned", "out of bounds", "shared memory"],
)
@pytest.mark.usefixtures("sanitized")
def test_sanitizers_see_it(name: str, floats: int, shared: int, offset: int, says: str) -> None:
    program = SANITIZED.format(folder=str(shim.HEADER.parent), floats=floats, name=name, shared=shared, offset=offset)
    done = subprocess.run(
        [sys.executable, "-c", program], env=shim.sanitizer_environment(), capture_output=True, text=True
    )
    assert done.returncode != 0 and "ended" not in done.stdout
    assert says in done.stderr


# --- the stand-in for CuPy ---------------------------------------------------------------------------


class Kernel(NamedTuple):
    name: str
    family: str
    expression: str
    threads: int


@pytest.fixture
def cupy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The stand-in, with the kernels above in the place of the library's."""
    sources: Any = types.ModuleType("entrokern.cuda.sources")
    sources.KERNELS = {name: Kernel(name, "test", "", 256) for name in NAMES}
    sources.source = lambda kernels: TEXT
    package: Any = types.ModuleType("entrokern.cuda")
    package.sources = sources
    monkeypatch.setitem(sys.modules, "entrokern.cuda", package)
    monkeypatch.setitem(sys.modules, "entrokern.cuda.sources", sources)
    shim.library.cache_clear()
    was_installed = fake_cupy.is_installed()
    module = fake_cupy.install()
    fake_cupy.reset()
    yield module
    (fake_cupy.install if was_installed else fake_cupy.uninstall)()
    shim.library.cache_clear()


def test_it_is_cupy_while_installed(cupy: Any) -> None:
    import cupy as imported
    from cupy.cuda import runtime

    x = imported.zeros(3)
    assert imported is cupy and runtime.getDeviceCount() == 2
    assert array_api_compat.is_cupy_array(x) and not array_api_compat.is_numpy_array(x)
    fake_cupy.uninstall()
    assert sys.modules.get("cupy") is not cupy


def test_it_refuses_what_cupy_refuses(cupy: Any) -> None:
    host, x = np.ones(3), cupy.ones(3)
    refused = [
        lambda: np.asarray(x),
        lambda: np.median(x),
        lambda: x + host,
        lambda: host * x,
        lambda: x < host,
        lambda: x.__iadd__(host),
        lambda: np.exp(x, out=host),
        lambda: np.where(x > 0, host, x),
        lambda: cupy.isfinite(host),
        lambda: cupy.concatenate([x, host]),
        lambda: cupy.empty_like(host),
        lambda: cupy.empty_like(x, subok=False),
        lambda: cupy.may_share_memory(x, host),
        lambda: cupy.RawModule(code=""),
        lambda: cupy.cuda.compiler.compile_using_nvrtc("", []),
        lambda: list(range(3))[x[0]],
        lambda: hash(x),
    ]
    for call in refused:
        with pytest.raises(TypeError):
            call()
    for value in (host, [1.0, 2.0, 3.0]):
        with pytest.raises((TypeError, ValueError)):
            x[...] = value
    with pytest.raises(ValueError, match="ambiguous"):
        bool(x)
    with pytest.raises(AttributeError):
        _ = x.flags.writeable
    assert fake_cupy.synchronisations == 0


def test_it_computes_as_numpy(cupy: Any) -> None:
    host = np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32)
    x = cupy.asarray(host)
    for function in (
        lambda x: 2 * x - x / 3,
        lambda x: abs(x) ** 2 >= 1,
        lambda x: np.moveaxis(x, 0, 1)[1:, None, ::-2],
        lambda x: np.where(np.isfinite(x) & (x > 0), x, -1),
        lambda x: np.concatenate([x, x.T.reshape(4, 5)]).astype(np.float64),
        lambda x: np.broadcast_to(x[0], (3, 5)),
        lambda x: x.sum(),
        lambda x: np.argmax(x, axis=1),
        lambda x: x[1, 2],
    ):
        got, expected = function(x), np.asarray(function(host))
        assert isinstance(got, cupy.ndarray)
        assert (got.dtype, got.shape, got.tolist()) == (expected.dtype, expected.shape, expected.tolist())
    x[1:, x[0] > 0] = 7
    host[1:, host[0] > 0] = 7
    x += x[0]
    assert np.array_equal(x.get(), host + host[0])


def test_views_share_memory(cupy: Any) -> None:
    x = cupy.zeros((3, 4), np.float32)
    view = x[::-1, 1::2].T
    assert view.strides == (8, -16) and view.base is x and view.data.ptr == x.data.ptr + 2 * 16 + 4
    assert cupy.may_share_memory(view, x) and not view.flags.owndata

    class Guest:
        __cuda_array_interface__ = view.__cuda_array_interface__

    guest = cupy.asarray(Guest())
    assert (guest.strides, guest.data.ptr) == (view.strides, view.data.ptr)
    guest[...] = 1
    assert float(x.sum()) == 6
    host = np.arange(6.0)[::-2]
    host.flags.writeable = False
    assert fake_cupy.unwrap(fake_cupy.wrap(host)) is host and fake_cupy.wrap(host).strides == (-16,)


def test_what_waits_and_what_allocates_is_counted(cupy: Any) -> None:
    x = cupy.empty((2, 3), np.float32)
    assert np.isnan(fake_cupy.unwrap(x)).all()
    y = cupy.empty_like(x.T, dtype=np.float64)
    assert fake_cupy.allocations == [24, 48] and y.strides == (8, 24) and x.data.ptr % 512 == 0
    x.fill(1)
    _ = x[0], x.T, x.reshape(6), np.broadcast_to(x, (5, 2, 3))
    assert len(fake_cupy.allocations) == 2 and fake_cupy.synchronisations == 0
    _ = x.get(), x[0, 0].item(), float(x[0, 0]), bool(x.all()), x.tolist(), x[x > 0], cupy.asnumpy(x)
    cupy.cuda.get_current_stream().synchronize()
    x[x > 0] = 2  # what a mask holds is counted, to write by it too
    assert fake_cupy.synchronisations == 9


def test_arrays_stay_on_their_device(cupy: Any) -> None:
    with cupy.cuda.Device(1):
        x = cupy.ones(3)
        assert (x + 1).device == cupy.cuda.Device(1)
    assert x.device.id == 1 and cupy.ones(3).device.id == 0 and x.__dlpack_device__() == (2, 1)
    with pytest.raises(ValueError, match="array device = 1 while current = 0"):
        _ = x + 1
    assert x.get().tolist() == [1, 1, 1] and cupy.asarray(x).device.id == 0
    with pytest.raises(cupy.cuda.runtime.CUDARuntimeError):
        cupy.cuda.Device(2).use()


def test_kernels_run_within_the_device_s_limits(cupy: Any, tmp_path: Path) -> None:
    file = tmp_path / "kernels.cubin"
    file.write_bytes(cupy.cuda.compiler.compile_using_nvrtc(TEXT, ("-std=c++17",))[0])
    module = cupy.RawModule(path=str(file))
    total = module.get_function("right_sum")
    x, out = cupy.ones((5, 100), np.float32), cupy.empty(5, np.float32)
    structure = np.array([(x.data.ptr, out.data.ptr, 100, 0)], ARGUMENTS)
    arguments = structure.view(f"V{structure.nbytes}")
    with cupy.cuda.Device(1):
        total((5,), (256,), (arguments,), shared_mem=49152)
    assert out.tolist() == [100] * 5
    assert fake_cupy.launched_on == [1] and shim.launches == ["right_sum"]
    error = cupy.cuda.driver.CUDADriverError
    for grid, block, shared in [((0,), (256,), 0), ((1, 65536), (256,), 0), ((1,), (257,), 0), ((1,), (32,), 49153)]:
        with pytest.raises(error):
            total(grid, block, (arguments,), shared_mem=shared)
    with pytest.raises(error):
        total.max_dynamic_shared_size_bytes = 232449
    total.max_dynamic_shared_size_bytes = 232448
    total((5,), (256,), (arguments,), shared_mem=232448)
    with cupy.cuda.Device(1), pytest.raises(error):  # raised on the other device only
        total((5,), (256,), (arguments,), shared_mem=232448)
    for others in (np.concatenate([arguments] * 2), structure):
        with pytest.raises(TypeError):
            total((5,), (256,), (others,))
    with pytest.raises(TypeError):
        total([5], (256,), (arguments,))
    with pytest.raises(error, match="not found"):
        module.get_function("wrong_sum")
