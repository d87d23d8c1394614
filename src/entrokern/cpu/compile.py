"""Compiling: what is inlined, what is a kernel, and how a compiled kernel gets to disk and back."""

from __future__ import annotations

import hashlib
import inspect
import itertools
import os
import pickle
import sys
import tempfile
from pathlib import Path
from typing import Any

import numba
from numba import extending
from numba.core import caching, compiler
from numba.core.codegen import JITCodeLibrary

from .. import _formulas
from .._cache import cache_folder

# Fused multiply-add is allowed everywhere; sums may be reordered only where a function asks for it,
# and no function may assume that there is no NaN or infinity.
EXACT = {"contract"}
SUMS = {"contract", "reassoc", "nsz"}

# `_nrt` off: kernels allocate nothing, so views need no reference counts (atomic, and dear in short rows).
njit: Any = numba.njit


class InlineLibrary(JITCodeLibrary):
    """Code that is only ever linked into a kernel: it is optimised there, with the kernel, and never run."""

    def _optimize_final_module(self) -> None:
        pass

    def _finalize_final_module(self) -> None:
        self._finalize_dynamic_globals()
        self._finalized = True


class InlineCompiler(compiler.Compiler):
    """Compiles a helper for kernels. As a function of its own it would be optimised and turned into machine
    code at every level of inlining, which is half of the time of a first call."""

    def __init__(
        self, typingctx: Any, targetctx: Any, library: Any, args: Any, return_type: Any, flags: Any, locals: Any
    ) -> None:
        flags.no_compile = flags.no_cpython_wrapper = flags.no_cfunc_wrapper = True
        library = InlineLibrary(targetctx.codegen(), f"inline-{next(_numbers)}")
        super().__init__(typingctx, targetctx, library, args, return_type, flags, locals)

    def compile_extra(self, func: Any) -> Any:
        # Numba knows a function by what Python would call, though nobody does: any built-in of its own will do.
        result = super().compile_extra(func)._replace(entry_point=[].append)
        self.state.targetctx.insert_user_function(result.entry_point, result.fndesc, [result.library])
        return result


_numbers = itertools.count()


# Of helpers. They are inlined always: left to itself LLVM calls the larger ones, and a short row costs more than twice.
INLINE: dict[str, Any] = {
    "error_model": "numpy", "nogil": True, "forceinline": True, "_nrt": False, "pipeline_class": InlineCompiler,
}  # fmt: skip

inline = njit(fastmath=EXACT, **INLINE)
inline_sums = njit(fastmath=SUMS, **INLINE)


def overload(function: Any) -> Any:
    """A helper of kernels that has another body for other types of its arguments: what is decorated is given the types,
    and returns the body."""
    options: Any = INLINE | {"fastmath": EXACT}
    return extending.overload(function, jit_options=options)


# The plain scalar formulas become callable from compiled code, also by one another.
for _, _formula in inspect.getmembers(_formulas, inspect.isfunction):
    extending.register_jitable(fastmath=EXACT, error_model="numpy", pipeline_class=InlineCompiler)(_formula)

KERNELS: dict[str, Any] = {}


def kernel(function: Any) -> Any:
    """A compiled entry point: called from Python, without the GIL, cached on disk."""
    dispatcher = njit(fastmath=EXACT, error_model="numpy", nogil=True, _nrt=False)(function)
    dispatcher._cache = DiskCache(function)
    KERNELS[function.__name__] = dispatcher
    return dispatcher


class DiskCache(caching._Cache):
    """Numba's cache protocol over one file per kernel and signature, named by the hash of its key.

    Numba's own cache keeps an index file that two processes can overwrite for each other; here a file
    is written beside and renamed, and holds its key. Whatever goes wrong, the kernel is compiled again.
    """

    def __init__(self, function: Any) -> None:
        self._function = function
        self._enabled = True

    @property
    def cache_path(self) -> str | None:
        folder = cache_folder()
        return None if folder is None else str(folder)

    def _file(self, signature: Any, codegen: Any) -> tuple[Path | None, str]:
        key = repr(
            (
                self._function.__qualname__,
                str(signature),
                codegen.magic_tuple(),
                numba.__version__,
                sys.version,
            )
        )
        folder = cache_folder() if self._enabled else None
        name = f"{self._function.__name__}-{hashlib.sha256(key.encode()).hexdigest()[:20]}.kernel"
        return (None if folder is None else folder / name), key

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        # The context is not refreshed: that loads all that a compilation may need, SciPy's BLAS among it, and
        # takes longer than all else here. A compiled kernel needs none of it, nor Numba's runtime (`_nrt` is off).
        try:
            file, key = self._file(sig, target_context.codegen())
            if file is None:
                return None
            found, payload = pickle.loads(file.read_bytes())
            if found != key:
                return None
            rebuild: Any = compiler.CompileResult._rebuild
            return rebuild(target_context, *payload)
        except Exception:
            return None

    def save_overload(self, sig: Any, cres: Any) -> None:
        try:
            file, key = self._file(sig, cres.codegen)
            if file is None:
                return
            data = pickle.dumps((key, cres._reduce()), protocol=pickle.HIGHEST_PROTOCOL)
            with tempfile.NamedTemporaryFile(dir=file.parent, delete=False) as beside:
                beside.write(data)
            os.replace(beside.name, file)
        except Exception:
            return

    def enable(self) -> None:
        self._enabled = True

    def disable(self) -> None:
        self._enabled = False

    def flush(self) -> None:
        folder = cache_folder()
        for file in folder.glob(f"{self._function.__name__}-*.kernel") if folder else ():
            file.unlink(missing_ok=True)
