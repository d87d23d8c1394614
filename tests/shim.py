"""CUDA kernels on the CPU: g++ builds them behind `cuda_shim.h`, ctypes calls them.

`library` builds all kernels of a family of `entrokern.cuda.sources`, `compiled` those of any text. A launch runs to
its end before it returns; what it does wrong raises `ShimError`. Libraries are kept in a folder, named by a hash of
all that goes into them.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import pathlib
import platform
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

HEADER = pathlib.Path(__file__).with_name("cuda_shim.h")
FLAGS = (
    *("-std=c++17", "-O1", "-fno-strict-aliasing", "-ffp-contract=off", "-fPIC", "-shared"),
    *("-Wall", "-Wno-unknown-pragmas", "-Wno-maybe-uninitialized"),
    "-fvisibility=hidden",  # or libraries share the static variables of templates, which are their shared memory
)
SANITIZE = ("-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined")

order = 0  # of the lanes and warps of a block: 0 ascending, 1 descending
launches: list[str] = []  # names of the kernels launched
clusters: list[int] = []  # and how many blocks of each ran together

_one_at_a_time = threading.Lock()  # the shim's state is global


class ShimError(RuntimeError):
    """A kernel that does not compile, or that did what a device would not bear."""


class Library(ctypes.CDLL):
    """Kernels compiled for the CPU."""

    def launch(
        self,
        name: str,
        grid: Sequence[int],
        threads: int,
        shared_bytes: int,
        arguments: Any,
        order: int | None = None,
        cluster: int = 1,
    ) -> None:
        """Run `grid` blocks of the kernel `name`, `cluster` of them at a time; `arguments` is its struct: a structured
        array, or bytes."""
        struct = np.frombuffer(arguments, np.uint8)
        expected = ctypes.c_size_t.in_dll(self, "arguments_bytes").value
        if struct.size != expected:
            raise ShimError(f"{name}: the arguments have {struct.size} bytes, its `struct Arguments` {expected}")
        entry = getattr(self, f"launch_{name}")
        entry.restype = ctypes.c_char_p
        blocks = (ctypes.c_uint * 3)(*grid, *(1,) * (3 - len(grid)))
        with _one_at_a_time:
            launches.append(name)
            clusters.append(cluster)
            error = entry(
                blocks,
                ctypes.c_uint(threads),
                ctypes.c_size_t(shared_bytes),
                ctypes.c_void_p(struct.ctypes.data),
                ctypes.c_int(_order() if order is None else order),
                ctypes.c_uint(cluster),
            )
        if error is not None:
            raise ShimError(f"{name}: {error.decode()}")


def _order() -> int:
    return order


def compiled(text: str, kernels: Iterable[str], sanitize: bool | None = None, name: str = "kernels") -> Library:
    """The `kernels` of a CUDA C++ `text`, each of which takes one ``const Arguments``, as a library.

    `sanitize` adds AddressSanitizer and UndefinedBehaviorSanitizer, for a process in `sanitizer_environment`.
    """
    sanitize = sanitizing() if sanitize is None else sanitize
    unit = [f'#include "{HEADER}"', f'#line 1 "{name}.cu"', text, f'#line 1 "{name}.launchers"']
    unit.append('#define EXPORTED extern "C" __attribute__((visibility("default")))')
    unit.append("EXPORTED const size_t arguments_bytes; const size_t arguments_bytes = sizeof(Arguments);")
    unit.extend(
        f"EXPORTED const char *launch_{kernel}(const unsigned grid[3], unsigned threads, size_t shared_bytes,"
        " const Arguments *a, int order, unsigned cluster) {"
        f" void (*kernel)(Arguments) = ::{kernel};"
        " cpusim::order = order;"
        " return cpusim::launch(dim3(grid[0], grid[1], grid[2]), threads, shared_bytes, cluster, [=] { kernel(*a); });"
        " }"
        for kernel in kernels
    )
    source = "\n".join(unit) + "\n"
    flags = (*FLAGS, *_machine_flags(), *(SANITIZE if sanitize else ()))
    key = hashlib.sha256(repr((_compiler(), flags, HEADER.read_text(), source)).encode()).hexdigest()[:20]
    path = folder() / f"{name}-{key}.so"
    if not path.exists():
        _compile(source, flags, path)
    return Library(str(path))


def _compile(source: str, flags: tuple[str, ...], path: pathlib.Path) -> None:
    """g++, to a name of its own first: another process may build the same."""
    with tempfile.TemporaryDirectory(dir=path.parent) as work:
        unit, result = pathlib.Path(work, "unit.cpp"), pathlib.Path(work, "unit.so")
        unit.write_text(source)
        done = subprocess.run(["g++", *flags, str(unit), "-o", str(result)], capture_output=True, text=True)
        if done.returncode:
            raise ShimError(f"{path.stem} does not compile:\n{done.stderr}")
        sys.stderr.write(done.stderr)  # warnings
        os.replace(unit, path.with_suffix(".cpp"))
        os.replace(result, path)


@functools.cache
def library(family: str, sanitize: bool | None = None) -> Library:
    """All kernels of a family."""
    from entrokern.cuda import sources

    kernels = [kernel for kernel in sources.KERNELS.values() if kernel.family == family]
    return compiled(sources.source(kernels), [kernel.name for kernel in kernels], sanitize, family)


def build(families: Iterable[str], sanitize: bool | None = None) -> None:
    """Compile families, two at a time."""
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda family: library(family, sanitize), families))


def launch(
    name: str,
    grid: Sequence[int],
    threads: int,
    shared_bytes: int,
    arguments: Any,
    order: int | None = None,
    cluster: int = 1,
) -> None:
    """Run a kernel of `entrokern.cuda.sources`."""
    from entrokern.cuda import sources

    library(sources.KERNELS[name].family).launch(name, grid, threads, shared_bytes, arguments, order, cluster)


# --- the compiler and where its results are ----------------------------------------------------------


def folder() -> pathlib.Path:
    """The folder of the libraries: ENTROKERN_SHIM_DIR, or one of this user among the temporary files."""
    if given := os.environ.get("ENTROKERN_SHIM_DIR"):
        path = pathlib.Path(given)
        path.mkdir(parents=True, exist_ok=True)
        return path
    path = pathlib.Path(tempfile.gettempdir(), f"entrokern-shim-{os.getuid()}")
    path.mkdir(mode=0o700, exist_ok=True)
    if path.stat().st_uid != os.getuid():
        raise ShimError(f"{path} belongs to another user; set ENTROKERN_SHIM_DIR")
    return path


@functools.cache
def _compiler() -> str:
    return subprocess.run(["g++", "--version"], capture_output=True, text=True, check=True).stdout


@functools.cache
def _machine_flags() -> tuple[str, ...]:
    """Instructions for what would be slow calls otherwise: `fmaf` and the conversions of halves."""
    if platform.machine() != "x86_64":
        return ()
    features = pathlib.Path("/proc/cpuinfo").read_text().split()
    return tuple(f"-m{feature}" for feature in ("fma", "f16c") if feature in features)


def sanitizing() -> bool:
    """Whether this process was started in `sanitizer_environment`."""
    return os.environ.get("ENTROKERN_SHIM_SANITIZE") == "1"


def sanitizer_environment() -> dict[str, str]:
    """The environment of a process whose kernels, and all memory, are checked by the sanitizers."""

    def runtime(file: str) -> str:
        return subprocess.run(
            ["g++", f"-print-file-name={file}"], capture_output=True, text=True, check=True
        ).stdout.strip()

    return {
        **os.environ,
        "ENTROKERN_SHIM_SANITIZE": "1",
        # libstdc++ too: AddressSanitizer looks at its start for what throws.
        "LD_PRELOAD": f"{runtime('libasan.so')} {runtime('libstdc++.so')}",
        "ASAN_OPTIONS": "detect_leaks=0",  # the interpreter's own
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }
