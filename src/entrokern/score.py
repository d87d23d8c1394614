"""One read of the logits, many answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from . import _arrays, _options
from ._arrays import Array
from ._call import Job
from ._dispatch import library_of
from ._plans import planned
from .losses import cross_entropy_call, refuse_hessian, weights_made

OUTPUTS = ("loss", "lse", "log_prob", "entropy", "argmax", "rank", "max_prob", "grad", "hess")
NEEDS_TARGET = ("loss", "grad", "hess")
NEEDS_LABELS = ("log_prob", "rank")


@dataclass(frozen=True, slots=True, eq=False)
class Score:
    """What `score` found, each of the batch shape; ``None`` where not asked for.

    Attributes
    ----------
    loss : ndarray
        As ``cross_entropy(reduction="none")``.
    lse, entropy, max_prob : ndarray
        Logsumexp of the transformed logits ``z``, entropy and largest probability of ``softmax(z)``.
    log_prob : ndarray
        ``z_y - lse``: the label's log-probability in nats, without smoothing or weights.
    argmax, rank : ndarray of int64
        The most probable class (the lowest on ties); how many classes have a strictly larger logit
        than the label. -1 for rows with a NaN, and `rank` for ignored rows.
    grad, hess : ndarray
        Of the loss, with the shape and dtype of `x`.
    """

    loss: Array | None = None
    lse: Array | None = None
    log_prob: Array | None = None
    entropy: Array | None = None
    argmax: Array | None = None
    rank: Array | None = None
    max_prob: Array | None = None
    grad: Array | None = None
    hess: Array | None = None


@planned
def score(
    x: Any,
    target: Any = None,
    *,
    outputs: Sequence[str] | str | None = None,
    axis: int = -1,
    class_weight: Any = None,
    sample_weight: Any = None,
    label_smoothing: float = 0.0,
    ignore_index: int | None = None,
    temperature: float = 1.0,
    softcap: float | None = None,
    z_loss: float = 0.0,
    base: float | None = None,
    on_empty: str = "nan",
    out: Array | None = None,
    grad_out: Array | None = None,
    hess_out: Array | None = None,
    validate: bool = False,
) -> Score:
    """Everything about each row of logits that is asked for, from one read of them.

    Parameters
    ----------
    x : array_like, shape (..., k)
        Logits, one row each.
    target : array_like, optional
        Labels or distributions, as in `cross_entropy`. ``log_prob`` and ``rank`` need labels.
    outputs : sequence of str, optional
        Any of ``"loss" "lse" "log_prob" "entropy" "argmax" "rank" "max_prob" "grad" "hess"``; by default
        ``("loss",)`` with a target, else ``("lse", "entropy", "argmax", "max_prob")``.
    axis, class_weight, sample_weight, label_smoothing, ignore_index, temperature, softcap, z_loss, base, on_empty
        As in `cross_entropy`. `base` is that of ``loss`` and ``entropy``; `on_empty` has no effect, since
        nothing is averaged.
    out, grad_out, hess_out : ndarray, optional
        Where to write ``loss``, ``grad`` and ``hess``; giving one implies asking for it. `grad_out` may
        be exactly `x`.
    validate : bool, default False
        Raise ``ValueError`` for a target distribution with values below 0 or a sum other than 1.

    Returns
    -------
    Score
        A frozen record of arrays, float32 for 16- and 32-bit `x`, else float64.

    Raises
    ------
    IndexError
        A label outside ``0 … k-1`` that is not `ignore_index`.
    TypeError, ValueError
        If an argument has a type, dtype, shape or value that is not allowed.

    Notes
    -----
    ``loss`` as in `cross_entropy`; ``entropy = log Z + Σ p·(m - z)``, ``max_prob = 1 / Z``.

    Examples
    --------
    >>> import entrokern as ek
    >>> row = ek.score([[0.0, 1.0, 3.0]], [1], outputs=("argmax", "rank", "log_prob"))
    >>> print(row.argmax, row.rank, row.log_prob.round(4))
    [2] [1] [-2.1698]
    """
    library_of(
        x=x, target=target, class_weight=class_weight, sample_weight=sample_weight,
        out=out, grad_out=grad_out, hess_out=hess_out,
    )  # fmt: skip
    _options.choice("on_empty", on_empty, _options.ON_EMPTY)
    array, axis, call = cross_entropy_call(
        x, target, "logits", axis, class_weight, sample_weight, label_smoothing, ignore_index,
        temperature, softcap, z_loss, base, validate, "score",
    )  # fmt: skip
    given = {"loss": out, "grad": grad_out, "hess": hess_out}
    names = output_names(outputs, targeted=target is not None, labelled=call.labels is not None)
    names += [name for name, value in given.items() if value is not None and name not in names]
    output_names(names, targeted=target is not None, labelled=call.labels is not None)
    if "hess" in names:
        refuse_hessian(call)
    results: dict[str, Array] = {}
    for name in names:
        if name in ("grad", "hess"):
            results[name] = _arrays.output(
                f"{name}_out", given[name], array.shape, _arrays.map_dtypes(array.dtype), array, alike=True
            )
            call.maps[name] = _arrays.classes_last(results[name], axis)
        else:
            dtype = _arrays.result_dtype(name, array.dtype)
            results[name] = _arrays.output("out", given.get(name), call.row_shape, (dtype,), array)
            call.rows[name] = results[name]
    users = {name: array for name, array in given.items() if array is not None}
    in_place = _arrays.refuse_overlap(
        {("out" if name == "loss" else f"{name}_out"): results[name] for name in users},
        {"x": array, "target": target, "class_weight": class_weight, "sample_weight": sample_weight},
        {"grad_out": "x"},
    )
    job: Any = Job(
        call,
        tuple(results.values()),
        given=tuple(users.values()),
        in_place=bool(in_place),
        deliver=lambda outputs: Score(**dict(zip(names, outputs, strict=True))),
        made=weights_made(call),
    )
    return job


def output_names(outputs: Sequence[str] | str | None, *, targeted: bool, labelled: bool) -> list[str]:
    """The outputs asked for, each once, checked against what the target allows."""
    if outputs is None:
        return ["loss"] if targeted else ["lse", "entropy", "argmax", "max_prob"]
    names = list(dict.fromkeys([outputs] if isinstance(outputs, str) else outputs))
    for name in names:
        if name not in OUTPUTS:
            raise ValueError(f"output {name!r} is not known; choose from {', '.join(map(repr, OUTPUTS))}")
        if name in NEEDS_TARGET and not targeted:
            raise ValueError(f"output {name!r} needs a target; pass labels or distributions")
        if name in NEEDS_LABELS and not labelled:
            raise ValueError(f"output {name!r} needs integer labels as target")
    return names
