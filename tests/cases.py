"""The table of calls that every test iterates, and how their operands are drawn.

A `Case` is one way to call one public function: which operands it takes (by what they are, so that
any size and dtype can be drawn), its scalar options and its array options. `NAMED` covers every
function and form by hand; `drawn` adds random combinations of all options, with a fixed seed.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

import entrokern as ek

Array = NDArray[Any]
Rng = np.random.Generator

FLOATS = {
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float32": np.dtype(np.float32),
    "float64": np.dtype(np.float64),
}
FORMS = ("logits", "log_probs", "probs")
IGNORED = -100


class Case(NamedTuple):
    """One way to call one function; `operands` and `arrays` name entries of `DRAW` (or see `beside`)."""

    name: str
    function: str
    operands: tuple[str, ...]
    options: Mapping[str, Any] = {}
    arrays: Mapping[str, str] = {}


# --- how operands are drawn -----------------------------------------------------------------------

KINDS = ("normal", "small", "wide", "peaked", "confident", "ties", "offset", "holes", "sorted")


def logits(rng: Rng, n: int, k: int, kind: str = "normal", scale: float = 3.0) -> Array:
    """Rows of logits of the given kind, in float64."""
    z = rng.normal(size=(n, k))
    if kind == "small":
        return 0.01 * z
    if kind == "wide":  # a scale of its own for each row, 0.01 to 1e4
        return np.clip(z * 10.0 ** rng.uniform(-2, 4, size=(n, 1)), -6e4, 6e4)
    if kind == "ties":
        return np.round(2.0 * z)
    z *= scale
    rows, winner = np.arange(n), rng.integers(0, k, size=n)
    if kind == "peaked":
        z[rows, winner] += 15.0
    elif kind == "confident":  # the winner leads by 20 to 100: losses down to 1e-44
        z[rows, winner] = z.max(axis=1, initial=-np.inf) + rng.uniform(20, 100, size=n)
    elif kind == "offset":  # exact in float32 for multiples of 8, in float16 saturated to its range
        z = np.round(z / 8 * 64) / 8 + 1e8
    elif kind == "holes":
        hole = rng.random(size=(n, k)) < 0.3
        hole[rows, winner] = False
        z[hole] = -np.inf
    elif kind == "sorted":
        z.sort(axis=1)
    return z


def probs(rng: Rng, n: int, k: int, kind: str = "normal", scale: float = 2.0) -> Array:
    """Rows that sum to 1 (in float64, before any cast)."""
    z = logits(rng, n, k, "normal" if kind in ("wide", "offset") else kind, scale)
    e = np.exp(z - z.max(axis=1, keepdims=True, initial=-np.inf))
    return e / e.sum(axis=1, keepdims=True)


def log_probs(rng: Rng, n: int, k: int, kind: str = "normal") -> Array:
    z = logits(rng, n, k, "normal" if kind == "offset" else kind)
    m = z.max(axis=1, keepdims=True, initial=-np.inf)
    return (z - m) - np.log(np.exp(z - m).sum(axis=1, keepdims=True))


def beside(first: Array, form: str, rng: Rng, other_form: str) -> Array:
    """A second distribution for the first's rows: from almost equal to far away, row by row."""
    with np.errstate(divide="ignore"):
        z = np.log(first) if form == "probs" else first
    z = z + 10.0 ** rng.uniform(-6, 1, size=(len(z), 1)) * rng.normal(size=z.shape)
    z[1::2][np.isneginf(z[1::2])] = z[np.isfinite(z)].min(initial=0.0)  # p = 0 with q > 0 and with q = 0
    if other_form == "logits":
        return z
    z -= z.max(axis=1, keepdims=True, initial=-np.inf)
    z -= np.log(np.exp(z).sum(axis=1, keepdims=True))
    return np.exp(z) if other_form == "probs" else z


def labels(rng: Rng, n: int, k: int, kind: str = "normal") -> Array:
    return rng.integers(0, k, size=n)


def some_ignored(rng: Rng, n: int, k: int, kind: str = "normal") -> Array:
    return np.where(rng.random(n) < 0.3, IGNORED, labels(rng, n, k))


def one_hot(rng: Rng, n: int, k: int, kind: str = "normal") -> Array:
    return np.eye(k, dtype=bool)[labels(rng, n, k)]


def binary(rng: Rng, n: int, k: int, kind: str = "normal") -> Array:
    return rng.integers(0, 2, size=(n, k))


def binary_ignored(rng: Rng, n: int, k: int, kind: str = "normal") -> Array:
    return np.where(rng.random((n, k)) < 0.3, IGNORED, binary(rng, n, k))


def fractions(rng: Rng, n: int, k: int, kind: str = "normal") -> Array:
    """Targets in [0, 1], both ends included."""
    return np.clip(rng.uniform(-0.2, 1.2, size=(n, k)), 0.0, 1.0)


def open_fractions(rng: Rng, n: int, k: int, kind: str = "normal") -> Array:
    """Predicted probabilities strictly between 0 and 1, also in 16 bits."""
    return rng.uniform(0.02, 0.98, size=(n, k))


def log_fractions(rng: Rng, n: int, k: int, kind: str = "normal") -> Array:
    return np.log(rng.uniform(0.01, 0.97, size=(n, k)))


def row_weights(rng: Rng, n: int, k: int, kind: str = "normal") -> Array:
    return np.where(rng.random(n) < 0.2, 0.0, rng.uniform(0.1, 3.0, size=n))


def element_weights(rng: Rng, n: int, k: int, kind: str = "normal") -> Array:
    return np.where(rng.random((n, k)) < 0.2, 0.0, rng.uniform(0.1, 3.0, size=(n, k)))


def class_weights(rng: Rng, n: int, k: int, kind: str = "normal") -> Array:
    return np.where(rng.random(k) < 0.1, 0.0, rng.uniform(0.1, 3.0, size=k))


DRAW: dict[str, Callable[..., Array]] = {
    "logits": logits,
    "probs": probs,
    "log_probs": log_probs,
    "labels": labels,
    "some ignored": some_ignored,
    "one hot": one_hot,
    "dense": probs,
    "binary": binary,
    "binary, some ignored": binary_ignored,
    "fractions": fractions,
    "open fractions": open_fractions,
    "log fractions": log_fractions,
    "row weights": row_weights,
    "element weights": element_weights,
    "class weights": class_weights,
}


def operands(
    case: Case, n: int, k: int, dtype: str = "float64", kind: str = "normal", seed: int = 0
) -> tuple[list[Array], dict[str, Any]]:
    """Positional and keyword arguments of `case`; float operands in `dtype`, weights in float64."""
    rng = np.random.default_rng([seed, n, k])
    args = []
    for name in case.operands:
        if name.startswith("other "):
            drawn = beside(args[0].astype(np.float64), case.operands[0], rng, name.removeprefix("other "))
        else:
            drawn = DRAW[name](rng, n, k, kind)
        if drawn.dtype.kind == "f":
            limit = 60_000.0 if dtype == "float16" else np.inf
            if kind == "wide" and len(case.operands) > 1 and case.operands[1].startswith("other "):
                limit = 300.0  # no probability underflows: beside q = 0 it would make inf or 0
            finite = np.isfinite(drawn)
            drawn = np.where(finite, np.clip(drawn, -limit, limit), drawn)
            drawn = drawn.astype(FLOATS[dtype])
        args.append(drawn)
    return args, dict(case.options) | {o: DRAW[a](rng, n, k) for o, a in case.arrays.items()}


def call(function: str, args: list[Any], kwargs: dict[str, Any]) -> dict[str, Array]:
    """The results of a call by name."""
    result = getattr(ek, function)(*args, **kwargs)
    if function == "score":
        named = {f.name: getattr(result, f.name) for f in fields(result)}
        return {name: value for name, value in named.items() if value is not None}
    names = [function if function in ("information", "logsumexp", "log_softmax", "softmax") else "loss"]
    wanted = kwargs.get("return_grad", False)
    if function in ("kl_divergence", "js_divergence"):
        names += {False: [], "p": ["grad_p"], "q": ["grad_q"], "both": ["grad_p", "grad_q"]}[wanted]
    elif wanted:
        names.append("grad")
    if kwargs.get("return_hess"):
        names.append("hess")
    values = result if isinstance(result, tuple) else (result,)
    return dict(zip(names, values, strict=True))


# --- the table ------------------------------------------------------------------------------------

EACH = {"reduction": "none"}
GRAD = {"return_grad": True}
BOTH = {"return_grad": True, "return_hess": True}


def _divergences(function: str) -> list[Case]:
    """All nine pairs of forms, with both gradients."""
    return [
        Case(
            f"{function[:2]} {p} {q}",
            function,
            (p, f"other {q}"),
            {"p_form": p, "q_form": q, "return_grad": "both"},
        )
        for p, q in itertools.product(FORMS, FORMS)
    ]


CE, BCE = "cross_entropy", "binary_cross_entropy"
SCORES = ("loss", "lse", "log_prob", "entropy", "argmax", "rank", "max_prob", "grad", "hess")

NAMED = [
    Case("ce labels", CE, ("logits", "labels"), EACH),
    Case("ce labels grad", CE, ("logits", "labels"), EACH | GRAD),
    Case("ce labels hess", CE, ("logits", "labels"), EACH | BOTH),
    Case("ce mean", CE, ("logits", "labels")),
    Case("ce mean grad", CE, ("logits", "labels"), BOTH),
    Case("ce sum", CE, ("logits", "labels"), {"reduction": "sum"} | GRAD),
    Case("ce dense", CE, ("logits", "dense"), EACH),
    Case("ce dense grad", CE, ("logits", "dense"), EACH | BOTH),
    Case("ce one-hot", CE, ("logits", "one hot"), EACH | GRAD),
    Case("ce smoothed", CE, ("logits", "labels"), EACH | BOTH | {"label_smoothing": 0.1}),
    Case("ce temperature", CE, ("logits", "labels"), EACH | BOTH | {"temperature": 2.5}),
    Case("ce softcap", CE, ("logits", "labels"), EACH | GRAD | {"softcap": 30.0}),
    Case("ce z-loss", CE, ("logits", "labels"), EACH | GRAD | {"z_loss": 0.01}),
    Case("ce base 2", CE, ("logits", "labels"), EACH | GRAD | {"base": 2, "z_loss": 0.01}),
    Case("ce ignored", CE, ("logits", "some ignored"), GRAD | {"ignore_index": IGNORED}),
    Case(
        "ce weights",
        CE,
        ("logits", "some ignored"),
        BOTH | {"ignore_index": IGNORED, "label_smoothing": 0.2},
        {"class_weight": "class weights", "sample_weight": "row weights"},
    ),
    Case(
        "ce dense weights",
        CE,
        ("logits", "dense"),
        GRAD | {"label_smoothing": 0.2, "temperature": 0.5},
        {"class_weight": "class weights", "sample_weight": "row weights"},
    ),
    Case("ce log_probs", CE, ("log_probs", "labels"), EACH | GRAD | {"form": "log_probs"}),
    Case("ce log_probs dense", CE, ("log_probs", "dense"), EACH | GRAD | {"form": "log_probs"}),
    Case("ce probs", CE, ("probs", "labels"), EACH | GRAD | {"form": "probs"}),
    Case(
        "ce probs dense",
        CE,
        ("probs", "dense"),
        GRAD | {"form": "probs", "label_smoothing": 0.1},
        {"class_weight": "class weights", "sample_weight": "row weights"},
    ),
    Case("perplexity", "perplexity", ("logits", "labels")),
    Case("bce", BCE, ("logits", "binary"), EACH),
    Case("bce grad", BCE, ("logits", "binary"), EACH | BOTH),
    Case("bce fractions", BCE, ("logits", "fractions"), BOTH, {"sample_weight": "element weights"}),
    Case("bce smoothed", BCE, ("logits", "binary"), EACH | BOTH | {"label_smoothing": 0.001}),
    Case("bce pos_weight", BCE, ("logits", "fractions"), EACH | BOTH, {"pos_weight": "class weights"}),
    Case(
        "bce weights",
        BCE,
        ("logits", "binary, some ignored"),
        BOTH | {"ignore_index": IGNORED},
        {"pos_weight": "class weights", "sample_weight": "element weights"},
    ),
    Case(
        "bce rows",
        BCE,
        ("logits", "fractions"),
        EACH | BOTH | {"axis": -1},
        {"pos_weight": "class weights", "sample_weight": "row weights"},
    ),
    Case(
        "bce rows mean",
        BCE,
        ("logits", "binary, some ignored"),
        GRAD | {"axis": -1, "ignore_index": IGNORED},
    ),
    Case("bce probs", BCE, ("open fractions", "fractions"), EACH | GRAD | {"form": "probs"}),
    Case("bce log_probs", BCE, ("log fractions", "fractions"), EACH | GRAD | {"form": "log_probs"}),
    *(Case(f"entropy {form}", "entropy", (form,), {"form": form} | GRAD) for form in FORMS),
    Case("entropy mean", "entropy", ("logits",), {"form": "logits", "reduction": "mean", "base": 2} | GRAD,
         {"sample_weight": "row weights"}),
    *_divergences("kl_divergence"),
    *_divergences("js_divergence"),
    Case("kl mean", "kl_divergence", ("logits", "other logits"),
         {"p_form": "logits", "q_form": "logits", "temperature": 2.0, "return_grad": "q",
          "reduction": "mean"},
         {"sample_weight": "row weights"}),
    Case("js weight", "js_divergence", ("logits", "other probs"),
         {"p_form": "logits", "weight": 0.2, "reduction": "sum", "return_grad": "p", "base": 2}),
    *(Case(f"estimate {e}", "kl_estimate", ("log_probs", "other log_probs"), EACH | {"estimator": e})
      for e in ("k1", "k2", "k3")),
    Case("estimate mean", "kl_estimate", ("log_probs", "other log_probs"), {"estimator": "k3"}),
    Case("information", "information", ("probs",)),
    Case("logsumexp", "logsumexp", ("logits",)),
    Case("log_softmax", "log_softmax", ("logits",)),
    Case("softmax", "softmax", ("logits",)),
    Case("score", "score", ("logits",)),
    Case("score labels", "score", ("logits", "labels"), {"outputs": SCORES}),
    Case("score ranks", "score", ("logits", "labels"), {"outputs": ("rank", "argmax", "log_prob")}),
    Case("score dense", "score", ("logits", "dense"), {"outputs": ("loss", "lse", "entropy", "grad")}),
    Case(
        "score weights",
        "score",
        ("logits", "some ignored"),
        {"outputs": SCORES, "ignore_index": IGNORED, "label_smoothing": 0.1, "temperature": 1.5, "base": 2},
        {"class_weight": "class weights", "sample_weight": "row weights"},
    ),
]  # fmt: skip
BY_NAME = {case.name: case for case in NAMED}

# What each option may be in a random draw; `None` leaves it out.
COMMON = {
    "base": (None, 2, 10.0),
    "reduction": ("none", "sum", "mean"),
    "sample_weight": (None, "row weights"),
}
SMOOTHING = (None, 0.1, 1.0)
OPTIONS: dict[str, dict[str, tuple[Any, ...]]] = {
    CE: COMMON | {
        "operands": (("logits", "labels"), ("logits", "some ignored"), ("logits", "dense"),
                     ("logits", "one hot"), ("probs", "labels"), ("log_probs", "dense")),
        "class_weight": (None, "class weights"),
        "label_smoothing": SMOOTHING,
        "temperature": (None, 0.5, 3.0),
        "softcap": (None, None, 20.0),
        "z_loss": (None, None, 0.02),
        "return_grad": (None, True),
        "return_hess": (None, True),
    },
    BCE: COMMON | {
        "operands": (("logits", "binary"), ("logits", "fractions"), ("logits", "binary, some ignored"),
                     ("open fractions", "fractions"), ("log fractions", "binary")),
        "axis": (None, -1),
        "pos_weight": (None, "class weights", "element weights"),
        "label_smoothing": SMOOTHING,
        "return_grad": (None, True),
        "return_hess": (None, True),
    },
    "entropy": COMMON | {
        "operands": tuple((form,) for form in FORMS),
        "return_grad": (None, True),
    },
    "kl_divergence": COMMON | {
        "operands": tuple((p, f"other {q}") for p, q in itertools.product(FORMS, FORMS)),
        "temperature": (None, 0.5, 3.0),
        "return_grad": (None, "p", "q", "both"),
    },
    "score": {
        "operands": (("logits", "labels"), ("logits", "some ignored"), ("logits", "dense")),
        "base": (None, 2),
        "sample_weight": (None, "row weights"),
        "class_weight": (None, "class weights"),
        "label_smoothing": SMOOTHING,
        "temperature": (None, 3.0),
        "softcap": (None, None, 20.0),
        "outputs": (None, ("loss", "entropy"), ("rank",), ("lse", "max_prob"), ("loss", "grad", "argmax"),
                    SCORES),
    },
}  # fmt: skip
OPTIONS["js_divergence"] = OPTIONS["kl_divergence"] | {"weight": (None, 0.5, 0.1)}

FORM_OF = {"open fractions": "probs", "log fractions": "log_probs"}
ARRAY_OPTIONS = ("class_weight", "sample_weight", "pos_weight")


def drawn(function: str, count: int, seed: int = 0) -> list[Case]:
    """`count` random combinations of all the options of `function` that are allowed together."""
    rng = np.random.default_rng([seed, len(function)])
    result = []
    for i in range(count):
        options: dict[str, Any] = {}
        for option, values in OPTIONS[function].items():
            value = values[rng.integers(len(values))]
            if value is not None:
                options[option] = value
        given = options.pop("operands")
        _make_allowed(function, given, options)
        arrays = {o: options.pop(o) for o in ARRAY_OPTIONS if o in options}
        result.append(Case(f"{function} {i}", function, given, options, arrays))
    return result


def _make_allowed(function: str, given: tuple[str, ...], options: dict[str, Any]) -> None:
    """Take back the options that section 2 does not allow with these operands or with each other."""
    forms = [FORM_OF.get(name, name.removeprefix("other ")) for name in given]
    if function in ("kl_divergence", "js_divergence"):
        options.update(p_form=forms[0], q_form=forms[1])
        if "logits" not in forms:
            options.pop("temperature", None)
        return
    if function in (CE, BCE, "entropy"):
        options["form"] = forms[0]
    if forms[0] != "logits":
        for name in ("temperature", "softcap", "z_loss", "return_hess"):
            options.pop(name, None)
    if "softcap" in options or "z_loss" in options:
        options.pop("return_hess", None)
    if any("ignored" in name for name in given):
        options["ignore_index"] = IGNORED
    if function == BCE and "axis" not in options and "sample_weight" in options:
        options["sample_weight"] = "element weights"
    if "outputs" in options:
        lacks = () if given[1] != "dense" else ("log_prob", "rank")
        lacks += ("hess",) if "softcap" in options else ()
        options["outputs"] = tuple(o for o in options["outputs"] if o not in lacks) or ("loss",)
