"""A call on Dask arrays: checked when it is made, on stand-ins for its operands, which are then cut alike.

No block is computed for that. `rows.py` and `classes.py` make the graph.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import dask.array
import numpy as np

from .. import _arrays, _dispatch, _options
from .._arrays import Array
from .._call import Job

da: Any = dask.array  # which has types in parts
LazyArray: TypeAlias = Any  # of Dask
Chunks: TypeAlias = tuple[float, ...]  # of an axis; NaN where Dask does not know
Options: TypeAlias = dict[str, Any]

# How an operand lies along the axes of its call: the main ones, whose chunks decide; others that broadcast against
# them as in NumPy; one number per row or per class; a target, which is distributions or labels.
MAIN, ELEMENTS, TARGET, ROWS, CLASSES = "main", "elements", "target", "rows", "classes"

CROSS_ENTROPY = {"x": MAIN, "target": TARGET, "class_weight": CLASSES, "sample_weight": ROWS}
DIVERGENCE = {"p": MAIN, "q": MAIN, "sample_weight": ROWS}
OPERANDS: dict[str, dict[str, str]] = {
    "information": {"p": MAIN},
    "entropy": {"p": MAIN, "sample_weight": ROWS},
    "cross_entropy": CROSS_ENTROPY,
    "binary_cross_entropy": {"x": MAIN, "target": TARGET, "pos_weight": ELEMENTS, "sample_weight": ROWS},
    "kl_divergence": DIVERGENCE,
    "js_divergence": DIVERGENCE,
    "kl_estimate": {"log_p": MAIN, "log_q": MAIN},
    "perplexity": CROSS_ENTROPY,
    "score": CROSS_ENTROPY,
    "logsumexp": {"x": MAIN},
    "log_softmax": {"x": MAIN},
    "softmax": {"x": MAIN},
}
OUTPUTS = ("out", "grad_out", "hess_out")


@dataclass(frozen=True)
class LazyCall:
    """A checked call: its operands as Dask arrays whose blocks lie side by side.

    The axes of the call are those of its main operands, broadcast. `axes` says which of them each operand has, `sizes`
    how long they are and `chunks` how they are cut (NaN where Dask does not know). `job` is that of one row.
    """

    function: Callable[..., Any]
    operands: dict[str, LazyArray]
    options: Options
    axes: dict[str, tuple[int, ...]]
    sizes: tuple[float, ...]
    chunks: tuple[Chunks, ...]
    class_axis: int | None  # None: every element is a row of its own
    job: Job
    backend: str
    meta: Array  # an array of the library of the blocks

    @property
    def batch(self) -> tuple[int, ...]:
        return tuple(a for a in range(len(self.sizes)) if a != self.class_axis)

    @classmethod
    def of(cls, function: Callable[..., Any], args: Sequence[Any], given: Mapping[str, Any]) -> LazyCall:
        name = function.__name__
        roles = OPERANDS.get(name)
        if roles is None:
            raise TypeError(f"{name} takes no Dask arrays; call .compute() on them first")
        bound = named(function, args, given)
        operands, options = split(bound, roles)
        samples = {n: v._meta if is_dask(v) else v for n, v in operands.items()}
        library = _dispatch.library_of(**samples)
        samples = {n: _arrays.asarray(n, v) for n, v in samples.items()}
        operands = {n: v if is_dask(v) else samples[n] for n, v in operands.items()}
        roles = {n: roles[n] for n in operands}
        main = {n: operands[n] for n, role in roles.items() if role == MAIN}
        shape = _common_shape(main)
        class_axis = None
        if options.get("axis") is not None:
            stand_in = np.broadcast_to(np.zeros(()), shape)
            class_axis = _arrays.class_axis(stand_in, options["axis"], " and ".join(main))
            _refuse_unknown_classes(main, class_axis, len(shape))
        axes = {n: _axes(roles[n], operands[n].ndim, len(shape), class_axis) for n in operands}
        sizes = sizes_of(operands, axes, len(shape))
        job = _checked(function, operands, options, axes, sizes, class_axis)
        chunks = tuple(chunks_of(a, operands, roles, axes, sizes, class_axis) for a in range(len(shape)))
        return cls(
            function,
            {n: cut_alike(n, operands[n], axes[n], chunks, sizes, roles[n]) for n in operands},
            options,
            axes,
            sizes,
            chunks,
            class_axis,
            job,
            _dispatch.chosen(library),
            samples[next(iter(main))],
        )


def is_dask(value: Any) -> bool:
    return isinstance(value, da.Array)


def named(function: Any, args: Sequence[Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments by name, defaults included."""
    try:
        bound = inspect.signature(function).bind(*args, **options)
    except TypeError:
        function.__wrapped__(*args, **options)  # says in Python's own words what does not fit
        raise
    bound.apply_defaults()
    return bound.arguments


def split(bound: dict[str, Any], roles: Mapping[str, str]) -> tuple[dict[str, Any], Options]:
    """Operands and options; only operands can be lazy."""
    operands, options = {}, {}
    for name, value in bound.items():
        if name in OUTPUTS:
            if value is not None:
                raise TypeError(f"{name} is given beside Dask arrays, whose results are new arrays; leave it out")
        elif name in roles:
            if value is not None:
                operands[name] = value
        elif is_dask(value):
            raise TypeError(f"{name} is a Dask array; pass a plain value: {name}.compute()")
        else:
            options[name] = value
    return operands, options


def _common_shape(main: Mapping[str, Any]) -> tuple[int, ...]:
    """The shape of the call as far as it is known: 1 for unknown sizes."""
    shapes = [tuple(1 if math.isnan(d) else d for d in v.shape) for v in main.values()]
    try:
        return np.broadcast_shapes(*shapes)
    except ValueError:
        both = " and ".join(f"{n} of shape {v.shape}" for n, v in main.items())
        raise ValueError(f"{both} do not broadcast together") from None


def _refuse_unknown_classes(main: Mapping[str, Any], class_axis: int, ndim: int) -> None:
    for name, array in main.items():
        at = class_axis - (ndim - array.ndim)
        if at >= 0 and math.isnan(array.shape[at]):
            raise ValueError(f"{name} has an unknown number of classes along axis {at}; {_ask_for_sizes(name)}")


def _ask_for_sizes(name: str) -> str:
    return f"call {name}.compute_chunk_sizes() first"


def _axes(role: str, ndim: int, of_call: int, class_axis: int | None) -> tuple[int, ...]:
    """Which axes of the call an operand of this role has."""
    every = range(of_call)
    batch = tuple(a for a in every if a != class_axis)
    if role == CLASSES:
        return (batch[-1] if class_axis is None else class_axis,)
    if class_axis is not None and (role == ROWS or (role == TARGET and ndim == len(batch))):
        return batch
    return tuple(every)[max(0, of_call - ndim) :]


def sizes_of(operands: Mapping[str, Any], axes: Mapping[str, tuple[int, ...]], ndim: int) -> tuple[float, ...]:
    """The size of each axis of the call, NaN where no operand knows it."""
    found: list[list[float]] = [[] for _ in range(ndim)]
    for name, array in operands.items():
        for a, d in zip(axes[name], array.shape, strict=False):  # operands of other ranks are for the checks to refuse
            found[a].append(d)
    known = [[d for d in sizes if not math.isnan(d) and d != 1] for sizes in found]
    return tuple(k[0] if k else max(sizes, key=math.isnan) for k, sizes in zip(known, found, strict=True))


def _checked(
    function: Any,
    operands: Mapping[str, Any],
    options: Options,
    axes: Mapping[str, tuple[int, ...]],
    sizes: tuple[float, ...],
    class_axis: int | None,
) -> Job:
    """The job of one row of the call, if its arguments are allowed together.

    `function` looks twice, at stand-ins of one element: at whole shapes, where nothing is asked for that would be as
    large; and at one row of them, with all that is asked for. The checks of values are up to the blocks.
    """

    def shaped(array: Any, axes: tuple[int, ...], *, whole: bool) -> tuple[int, ...]:
        shape = []
        for i, d in enumerate(array.shape):
            a = axes[i] if i < len(axes) else -1
            size = d if not math.isnan(d) else 1 if math.isnan(sizes[a]) else sizes[a]
            shape.append(int(size if whole or a == class_axis else min(size, 1)))
        return tuple(shape)

    def stand_in(name: str, array: Any, *, whole: bool) -> Array:
        if isinstance(array, np.ndarray) and name == "class_weight":
            return array  # few, and so their values are checked too
        dtype = array.dtype.newbyteorder("=") if not _arrays.is_bfloat16(array.dtype) else array.dtype
        if whole and name in _dispatch.MAIN and dtype.kind in "iu":
            dtype = np.dtype(np.float64)  # which integers would be converted to, all of them
        return np.broadcast_to(np.zeros((), dtype), shaped(array, axes[name], whole=whole))

    _options.flag("validate", options["validate"])
    try:
        if options.keys() & {"reduction", "on_empty"}:
            small = {"reduction": "sum", "return_grad": False, "return_hess": False, "outputs": (), "validate": False}
            given = {n: stand_in(n, v, whole=True) for n, v in operands.items()}
            function.__wrapped__(**given, **options | {n: v for n, v in small.items() if n in options})
        given = {n: stand_in(n, v, whole=False) for n, v in operands.items()}
        job: Job = function.__wrapped__(**given, **options | {"validate": False})
    except (TypeError, ValueError) as error:
        if any(math.isnan(d) for array in operands.values() for d in array.shape):
            error.add_note("Sizes that Dask does not know are shown as those of other operands, or as 1.")
        raise
    return job


def _is_stretched(array: Any, i: int, a: int, sizes: tuple[float, ...], role: str) -> bool:
    """Whether axis `i` of an operand, the call's `a`, is broadcast: one block for all."""
    return role in (MAIN, ELEMENTS, ROWS) and array.shape[i] == 1 and sizes[a] != 1


def chunks_of(
    a: int,
    operands: Mapping[str, Any],
    roles: Mapping[str, str],
    axes: Mapping[str, tuple[int, ...]],
    sizes: tuple[float, ...],
    class_axis: int | None,
) -> Chunks:
    """How axis `a` of the call is cut: as the large operands are, where they differ at every cut of each.

    Blocks of large operands are split, never merged. Small ones follow, or cut the batch if no large one is lazy.
    """
    found: dict[str, Chunks] = {}
    for name, array in operands.items():
        if is_dask(array) and a in axes[name]:
            i = axes[name].index(a)
            if not _is_stretched(array, i, a, sizes, roles[name]):
                found[name] = array.chunks[i]
    dense = [n for n, role in roles.items() if role == MAIN or (role == TARGET and len(axes[n]) == len(sizes))]
    large = {n: c for n, c in found.items() if n in dense}
    deciding = list((large or (found if a != class_axis else {})).items())
    if not deciding:
        return (sizes[a],)  # one block
    if a == class_axis:  # a block of no class says nothing
        deciding = [(name, tuple(c for c in chunks if c)) for name, chunks in deciding]
    (first, chunks), *others = deciding
    for name, other in others:
        if are_known(chunks) and are_known(other):
            cuts = sorted({*np.cumsum(chunks).tolist(), *np.cumsum(other).tolist()})
            chunks = chunks if chunks == other else tuple(int(c) for c in np.diff([0, *cuts]))
        else:
            _refuse_other_blocks(name, other, first, chunks, a)
    return chunks


def are_known(chunks: Chunks) -> bool:
    return not any(map(math.isnan, chunks))


def _refuse_other_blocks(name: str, chunks: Chunks, first: str, others: Chunks, a: int) -> None:
    """Where sizes are unknown, blocks can only be taken one by one."""
    if len(chunks) != len(others):
        unknown = first if not are_known(others) else name
        raise ValueError(
            f"{name} has {len(chunks)} blocks along axis {a} of the call and {first} has {len(others)}, and Dask does "
            f"not know the sizes of all; {_ask_for_sizes(unknown)}, or give both the same blocks"
        )


def cut_alike(
    name: str, array: Any, axes: tuple[int, ...], chunks: tuple[Chunks, ...], sizes: tuple[float, ...], role: str
) -> LazyArray:
    """An operand as a Dask array that is cut as the call is."""
    wanted: list[Chunks] = []
    for i, a in enumerate(axes):
        stretched = _is_stretched(array, i, a, sizes, role)
        wanted.append((array.shape[i],) if stretched else chunks[a])
        if not is_dask(array) and not are_known(wanted[i]):
            if len(wanted[i]) > 1:
                raise ValueError(
                    f"{name} is a {type(array).__name__}, and the rows of the other operands lie in {len(wanted[i])} "
                    "blocks of sizes that Dask does not know; call .compute_chunk_sizes() on those first"
                )
            wanted[i] = (array.shape[i],)
    if not is_dask(array):
        return da.from_array(array, chunks=tuple(wanted))
    changed: dict[int, Chunks] = {}
    for i, (old, new) in enumerate(zip(array.chunks, wanted, strict=True)):
        if are_known(old) and are_known(new):
            changed |= {i: new} if old != new else {}
        else:
            _refuse_other_blocks(name, old, "the call", new, axes[i])
    return array.rechunk(changed) if changed else array
