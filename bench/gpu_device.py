"""The GPU as the benchmark sees it: its arrays, its clock and its limits; or why there is none."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

Call = Callable[[], Any]

READ = r"""
extern "C" __global__ void __launch_bounds__(512) read_all(const uint4 *x, long long tiles, unsigned *never) {
    unsigned folded = 0;
    for (long long tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        uint4 v[8];
#pragma unroll
        for (int i = 0; i < 8; ++i) v[i] = x[(tile * 8 + i) * 512 + threadIdx.x];
#pragma unroll
        for (int i = 0; i < 8; ++i) folded ^= v[i].x ^ v[i].y ^ v[i].z ^ v[i].w;
    }
    if (folded == 0x9e3779b9) *never = folded;  // or the loads would be left out
}
"""
TILE = 8 * 512 * 16  # bytes
BLOCKS = 4  # of a multiprocessor: all the threads it has
FLUSHED = 8  # times the size of the L2 cache: long enough, too, for the host to be ahead of the device


class Device:
    """The GPU: its arrays, its clock and its limits. Nothing else here asks CuPy for more than arrays."""

    def __init__(self, megabytes: float) -> None:
        import cupy

        self._cp = cupy
        self._attributes = cupy.cuda.Device().attributes
        self._begin, self._end = cupy.cuda.Event(), cupy.cuda.Event()
        self._read = cupy.RawKernel(READ, "read_all")
        self._never = cupy.zeros(1, cupy.uint32)
        drawn = np.random.default_rng(0).integers(0, 256, TILE * 16, np.uint8)
        self._source = self.tiled(drawn, max(1, round(megabytes * 1e6 / drawn.size)))
        self._target = cupy.empty_like(self._source)
        self._scratch = self.tiled(drawn, -(-FLUSHED * self._attributes["L2CacheSize"] // drawn.size))
        begun = time.perf_counter()
        while time.perf_counter() - begun < 0.5:  # clocks rise
            self.copy()
            self.synchronize()

    def describe(self) -> dict[str, Any]:
        cuda, runtime = self._cp.cuda, self._cp.cuda.runtime
        return {
            "name": gpu_name(),
            "compute_capability": cuda.Device().compute_capability,
            "multiprocessors": self._attributes["MultiProcessorCount"],
            "memory": cuda.Device().mem_info[1],
            "L2": self._attributes["L2CacheSize"],
            "driver": driver(),
            "driver_cuda": runtime.driverGetVersion(),
            "runtime_cuda": runtime.runtimeGetVersion(),
            "nvrtc": list(cuda.nvrtc.getVersion()),
        }

    # --- arrays

    def output(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
        """Filled with what is NaN in every type: memory that is used again may hold the right results."""
        result = self._cp.empty(shape, dtype)
        result.reshape(-1).view(np.uint8).fill(0xFF)
        return result

    def tiled(self, host: np.ndarray[Any, Any], repeats: int) -> Any:
        """So many copies of `host` along the first axis. Only bytes are moved: no dtype needs to be known."""
        result = self._cp.empty((repeats * host.shape[0], *host.shape[1:]), host.dtype)
        there, period = result.reshape(-1).view(np.uint8), host.nbytes
        there[:period] = self._cp.asarray(np.ascontiguousarray(host).reshape(-1).view(np.uint8))
        done = period
        while done < there.size:
            more = min(done, there.size - done)
            there[done : done + more] = there[:more]
            done += more
        return result

    # --- time

    def seconds(self, call: Call) -> float:
        """Of one call that finds nothing in the L2 cache.

        The cache is flushed by reading: what a write leaves there would be written back at the call's expense.
        """
        self._read_all(self._scratch)
        self._begin.record()
        result = call()
        self._end.record()
        self._end.synchronize()
        del result
        return 1e-3 * self._cp.cuda.get_elapsed_time(self._begin, self._end)

    def synchronize(self) -> None:
        self._cp.cuda.runtime.deviceSynchronize()

    # --- limits: each returns the bytes moved

    def copy(self) -> int:
        self._target.data.copy_from_device_async(self._source.data, self._source.nbytes)
        return 2 * self._source.nbytes

    def read(self) -> int:
        self._read_all(self._source)
        return self._source.nbytes

    def _read_all(self, array: Any) -> None:
        blocks = BLOCKS * self._attributes["MultiProcessorCount"]
        self._read((blocks,), (512,), (array, np.int64(array.nbytes // TILE), self._never))

    def free(self) -> None:
        """Give memory back that CuPy and PyTorch keep from each other."""
        self._cp.get_default_memory_pool().free_all_blocks()
        if "torch" in sys.modules:
            sys.modules["torch"].cuda.empty_cache()


class Lost(RuntimeError):
    """The device answers no more: after an illegal access, nothing in this process can use it."""


def check(device: Device) -> None:
    try:
        device.synchronize()
    except Exception as error:
        raise Lost(words(error)) from error


def words(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:300]


def why_not() -> str | None:
    """Why there is no GPU to measure on, if so."""
    try:
        import cupy
    except ImportError as error:
        return f"CuPy cannot be imported ({words(error)})"
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        return f"CuPy finds no GPU ({error})"
    return None if count else "CuPy finds no GPU"


def gpu_name() -> str:
    import cupy

    name: bytes = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)["name"]
    return name.decode()


def driver() -> str | None:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.split("\n")[0].strip() or None
