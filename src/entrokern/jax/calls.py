"""A call as a compiled program keeps it: what it is, without its arrays.

The text of a call is all that the program holds, so that it means the same in another process.
"""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import entrokern

from .. import _arrays, _dispatch, _plans
from ..score import Score

OPERANDS = ("x", "p", "q", "log_p", "log_q", "target", "class_weight", "sample_weight", "pos_weight")
OF_LAYER = ("hidden", "weight", "bias", "target", "class_weight", "sample_weight")  # `weight` is elsewhere an option
OF_CLASSES = ("class_weight", "weight", "bias")  # what all rows share
OUTPUTS = ("out", "grad_out", "hess_out")

# A record of scores is a tree of arrays, and what it can write in place of arrays of its own.
SCORES = [field.name for field in fields(Score)]
WRITTEN = {"loss": "out", "grad": "grad_out", "hess": "hess_out"}
jax.tree_util.register_dataclass(Score, SCORES, [])


_signature = functools.cache(inspect.signature)


class Operand(NamedTuple):
    name: str
    shape: tuple[int, ...]
    dtype: str


class Result(NamedTuple):
    """An array that comes out: its dtype as the function has it, and the argument by which it would write it."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    argument: str | None


@dataclass(frozen=True)
class HostCall:
    """A call of a public function: shapes and dtypes of its operands, and its options."""

    function: str
    operands: tuple[Operand, ...]
    options: tuple[tuple[str, Any], ...]

    @classmethod
    def of(
        cls, function: Any, args: Sequence[Any], given: Mapping[str, Any], *, traced: bool
    ) -> tuple[HostCall, tuple[Any, ...]]:
        """The call, checked, and its operands as arrays: in a traced call all of them JAX's, else also NumPy's."""
        try:
            bound = _signature(function).bind(*args, **given)
        except TypeError:
            function.__wrapped__(*args, **given)  # says in Python's own words what does not fit
            raise
        bound.apply_defaults()
        arguments = bound.arguments
        names = OF_LAYER if function.__name__ == "linear_cross_entropy" else OPERANDS
        arrays = {n: _operand(n, arguments[n], traced) for n in names if arguments.get(n) is not None}
        options = {n: _plain(n, v) for n, v in arguments.items() if n not in (*names, *OUTPUTS)}
        operands = (Operand(n, tuple(a.shape), str(a.dtype)) for n, a in arrays.items())
        call = cls(function.__name__, tuple(operands), tuple(options.items()))
        _ = call.results  # raises what is wrong with it
        return call, tuple(arrays.values())

    @classmethod
    def read(cls, text: bytes) -> HostCall:
        function, operands, options = json.loads(text)
        return cls(
            function,
            tuple(Operand(name, tuple(shape), dtype) for name, shape, dtype in operands),
            tuple((name, tuple(value) if isinstance(value, list) else value) for name, value in options),
        )

    @property
    def text(self) -> str:
        return json.dumps((self.function, self.operands, self.options))

    @property
    def public(self) -> Callable[..., Any]:
        function: Callable[..., Any] = getattr(entrokern, self.function)
        return function

    def __getitem__(self, option: str) -> Any:
        """An option's value; ``None`` where the function has no such option."""
        return dict(self.options).get(option)

    def asking(self, **options: Any) -> HostCall:
        """The same call with other options."""
        return replace(self, options=tuple((dict(self.options) | options).items()))

    @property
    def ndim(self) -> int:
        return max(len(shape) for name, shape, _ in self.operands if name in _dispatch.MAIN.difference(OF_CLASSES))

    @property
    def is_elementwise(self) -> bool:
        """Whether every element is a row of its own."""
        return self["axis"] is None and self.function != "linear_cross_entropy"

    @property
    def results(self) -> list[Result]:
        return self._outcome[0]

    @property
    def tree(self) -> Any:
        """How the results come: one array, a tuple, a `Score`."""
        return self._outcome[1]

    @property
    def _outcome(self) -> tuple[list[Result], Any]:
        return _outcome(self)

    @property
    def keeps_rows(self) -> bool:
        """Whether the results are per row, so that rows of many calls can be those of one."""
        return self.function != "perplexity" and self["reduction"] in (None, "none") and not self.sums_over_rows

    @property
    def sums_over_rows(self) -> bool:
        """Whether there are gradients by what all rows share."""
        return self.function == "linear_cross_entropy" and self["return_grad"] not in (False, "hidden", ("hidden",))

    @property
    def is_one_counted_row(self) -> bool:
        """Whether a reduction has one row to reduce, which counts whatever it holds: no reduction at all."""
        rows = self.ndim - (not self.is_elementwise)
        weighted = {"sample_weight", "class_weight"} & {operand.name for operand in self.operands}
        return (
            rows == 0
            and not self.sums_over_rows
            and self["reduction"] in ("sum", "mean")
            and (self["reduction"] == "sum" or (self["ignore_index"] is None and not weighted))
        )


@functools.lru_cache
def _outcome(call: HostCall) -> tuple[list[Result], Any]:
    """What comes out, by the function's own checks of stand-ins, which have one element: no value is looked at."""
    stand_ins = {}
    for name, shape, kind in call.operands:
        dtype = jnp.dtype(kind)
        if name in _dispatch.MAIN and dtype.kind in "iu":
            dtype = np.dtype(np.float64)  # which integers would be converted to, all of them
        stand_ins[name] = np.broadcast_to(np.zeros((), dtype), shape)
    function: Any = call.public
    job = function.__wrapped__(**stand_ins, **dict(call.options) | {"validate": False})
    with np.errstate(all="ignore"):  # nothing has been computed
        delivered = job.deliver(job.outputs)
    leaves, tree = jax.tree.flatten(delivered)
    names = _arguments(call, delivered)
    return [Result(leaf.shape, leaf.dtype, name) for leaf, name in zip(leaves, names, strict=True)], tree


def _arguments(call: HostCall, delivered: Any) -> list[str | None]:
    if isinstance(delivered, Score):
        return [WRITTEN.get(name) for name in SCORES if getattr(delivered, name) is not None]
    if call.function in ("perplexity", "kl_estimate"):
        return [None]
    results = len(delivered) if isinstance(delivered, tuple) else 1
    hessians = int(bool(call["return_hess"]))
    return ["out", *["grad_out"] * (results - 1 - hessians), *["hess_out"] * hessians]


def refuse_outputs(function: str, given: Mapping[str, Any]) -> None:
    for name in OUTPUTS:
        if given.get(name) is not None:
            raise TypeError(
                f"{name} is given beside JAX arrays, which cannot be written: {function} returns new ones; leave it out"
            )


def _operand(name: str, value: Any, traced: bool) -> Any:
    """An array of JAX or NumPy; integers that JAX would narrow to others are refused."""
    if isinstance(value, jax.Array):
        return value
    array = _arrays.asarray(name, value)
    if not isinstance(array, np.ndarray):
        raise TypeError(f"{name} is a {type(value).__name__} beside JAX arrays; make both arrays of one library")
    if not traced:
        return array
    dtype = jax.dtypes.canonicalize_dtype(array.dtype)
    if array.dtype.kind in "iu" and dtype != array.dtype and (array.astype(dtype) != array).any():
        raise ValueError(f"{name} has integers that do not fit into {dtype}; enable jax_enable_x64")
    return jnp.asarray(array)


def _plain(name: str, value: Any) -> Any:
    """An option as a value that can be written into a program."""
    if isinstance(value, jax.core.Tracer):
        raise TypeError(
            f"{name} is traced, but options are fixed when a function is compiled; pass a Python value "
            "(static_argnames of jax.jit), or apply it to the arrays"
        )
    if isinstance(value, (np.generic, np.ndarray, jax.Array)) and value.ndim == 0:
        return value.item()
    if isinstance(value, (list, tuple)) and all(isinstance(part, str) for part in value):
        return tuple(value)
    if type(value) not in _plans.VALUES:
        raise TypeError(f"{name} is a {type(value).__name__} ({value!r}); pass a plain Python value")
    return value
