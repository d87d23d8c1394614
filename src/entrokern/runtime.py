"""How it runs on this machine: threads, compiling ahead, and a report of both."""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable, Iterable
from typing import Any, TextIO

import numpy as np

from . import _cache, _dispatch, _options, _threads


def set_num_threads(n: int) -> None:
    """Use `n` threads from the next call on; 1 computes in the calling thread alone.

    No result depends on it. The default is the number of cores this process may use, or
    ``ENTROKERN_NUM_THREADS`` if that is less.

    Parameters
    ----------
    n : int
        1 or more.

    Raises
    ------
    TypeError, ValueError
        If `n` is not a whole number of 1 or more.

    Examples
    --------
    >>> import entrokern as ek
    >>> ek.set_num_threads(1)
    """
    n = _options.index("n", n)
    if n < 1:
        raise ValueError(f"n={n} is out of range; pass 1 or more threads")
    _threads.choose(n)


def show_info(file: TextIO | None = None) -> None:
    """Print what runs where: versions, backends, threads and the folder of compiled kernels.

    Parameters
    ----------
    file : text stream, optional
        Where to print; standard output by default.

    Examples
    --------
    >>> import entrokern as ek
    >>> ek.show_info()  # doctest: +ELLIPSIS
    entrokern ...
    """
    from . import __version__

    folder = _cache.cache_folder()
    lines = [
        ("entrokern", __version__),
        ("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"),
        *((name, _version(name)) for name in ("numpy", "numba", "llvmlite", "ml_dtypes", "array-api-compat")),
        *((f"backend {name}", f"{about} ({library})") for name, (_, library, about) in _dispatch.BACKENDS.items()),
        ("NumPy arrays run on", _dispatch.chosen("numpy")),
        ("threads", f"{_threads.num_threads()} of {_threads.available_cores()} cores"),
        ("kernel cache", str(folder) if folder else "none: no writable folder (set ENTROKERN_CACHE_DIR)"),
        ("kernels cached", str(sum(1 for _ in folder.glob("*.kernel")) if folder else 0)),
    ]
    width = max(len(name) for name, _ in lines)
    for name, value in lines:
        (file or sys.stdout).write(f"{name:<{width}}  {value}\n")


def _version(distribution: str) -> str:
    import importlib.metadata  # a sixth of the package's import time, for a report alone

    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


DTYPES = ("float32", "float64", "float16", "bfloat16")


def warmup(
    functions: Iterable[str] | str | None = None,
    dtypes: Iterable[str] | str | None = None,
    *,
    progress: Callable[[int, int, str], None] | None = None,
) -> None:
    """Compile ahead what the named functions need, so that no later first call waits for it.

    Compiled kernels are kept on disk where that is possible (see `show_info`), so that one warm-up
    serves later processes too.

    Parameters
    ----------
    functions : iterable of str, optional
        Names of public functions; all by default.
    dtypes : iterable of str, optional
        Of ``"float32" "float64" "float16" "bfloat16"``; the first two by default.
    progress : callable, optional
        Called as ``progress(done, total, name)`` before each compilation and once at the end.

    Raises
    ------
    ValueError
        If a function or dtype is not known.

    Examples
    --------
    >>> import entrokern as ek
    >>> ek.warmup("logsumexp", dtypes="float32")
    """
    names = list(WARM_CALLS) if functions is None else [functions] if isinstance(functions, str) else list(functions)
    kinds = list(DTYPES[:2]) if dtypes is None else [dtypes] if isinstance(dtypes, str) else list(dtypes)
    for name in names:
        _options.choice("function", name, tuple(WARM_CALLS))
    for kind in kinds:
        _options.choice("dtype", kind, DTYPES)
    jobs = [(name, kind) for name in names for kind in kinds]
    for done, (name, kind) in enumerate(jobs):
        if progress is not None:
            progress(done, len(jobs), f"{name} {kind}")
        dtype: Any = np.dtype(kind) if kind != "bfloat16" else _bfloat16()
        for k in (4, 300):  # short rows and long ones run in different kernels
            x = np.full((2, k), 1.0 / k).astype(dtype)
            WARM_CALLS[name](x)
    if progress is not None:
        progress(len(jobs), len(jobs), "done")


def _bfloat16() -> Any:
    try:
        import ml_dtypes
    except ImportError:
        raise ValueError("dtype 'bfloat16' needs ml_dtypes: pip install entrokern[bfloat16]") from None
    return np.dtype(ml_dtypes.bfloat16)


def _warm_cross_entropy(x: Any) -> None:
    from .losses import cross_entropy

    labels = np.zeros(len(x), np.int64)
    cross_entropy(x, labels)
    cross_entropy(x, labels, return_grad=True)
    cross_entropy(x, labels, label_smoothing=0.1, return_grad=True)
    cross_entropy(x, x, return_grad=True)


def _warm_entropy(x: Any) -> None:
    from .entropies import entropy

    entropy(x, return_grad=True)
    entropy(x)
    entropy(x, form="logits", return_grad=True)
    entropy(x, form="logits")


def _warm_divergence(x: Any) -> None:
    from .divergences import kl_divergence

    kl_divergence(x, x)
    kl_divergence(x, x, return_grad="q")


def _warm_binary(x: Any) -> None:
    from .losses import binary_cross_entropy

    for target in (np.zeros(x.shape, np.uint8), np.zeros(x.shape, x.dtype)):
        binary_cross_entropy(x, target)
        binary_cross_entropy(x, target, return_grad=True)


def _warm_information(x: Any) -> None:
    from .entropies import information

    information(x)


def _warm_estimate(x: Any) -> None:
    from .divergences import kl_estimate

    kl_estimate(x, x)


def _warm_score(x: Any) -> None:
    from .score import score

    score(x, np.zeros(len(x), np.int64))


def _warm_softmax(x: Any) -> None:
    from .primitives import logsumexp, softmax

    logsumexp(x)
    softmax(x)


WARM_CALLS: dict[str, Callable[[Any], None]] = {
    "information": _warm_information,
    "entropy": _warm_entropy,
    "cross_entropy": _warm_cross_entropy,
    "binary_cross_entropy": _warm_binary,
    "kl_divergence": _warm_divergence,
    "js_divergence": _warm_divergence,
    "kl_estimate": _warm_estimate,
    "perplexity": _warm_cross_entropy,
    "score": _warm_score,
    "logsumexp": _warm_softmax,
    "log_softmax": _warm_softmax,
    "softmax": _warm_softmax,
}
