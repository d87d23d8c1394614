"""Make the tables of the documents from the code, and write them between their markers.

python docs/tables.py            rewrite README.md and the pages of docs/ that have tables
python docs/tables.py --check    change nothing; fail if a table is stale

A table stands between ``<!-- table: NAME -->`` and ``<!-- end of table -->``; `TABLES` has the names.
"""

from __future__ import annotations

import argparse
import ast
import functools
import importlib
import inspect
import itertools
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

import entrokern as ek
from entrokern import _dispatch, _guests, _options
from entrokern.score import OUTPUTS

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))  # whose `device` brings NumPy arrays to the CUDA backend
WITH_TABLES = ("design", "dask", "backends", "benchmark", "gpu")
PAGES = (ROOT / "README.md", *(ROOT / "docs" / f"{page}.md" for page in WITH_TABLES))
RESULTS = ROOT / "bench" / "results"
MARKED = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end of table -->)", re.DOTALL)


def markdown(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *([cell.replace("|", r"\|") for cell in row] for row in rows)]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


# --- function × form × backend --------------------------------------------------------------------

NOT_QUANTITIES = {
    "Accumulator", "Partial", "Score", "StreamSummary", "backends", "combine", "linear_cross_entropy", "partial",
    "set_num_threads", "show_info", "use_backend", "warmup",
}  # fmt: skip
# The form of functions that have no `form` argument.
FIXED_FORM = {
    "information": "probs",
    "kl_estimate": "log_probs",
    "linear_cross_entropy": "logits",
    "log_softmax": "logits",
    "logsumexp": "logits",
    "score": "logits",
    "softmax": "logits",
}
GIVEN = {  # one small operand, three rows of four classes, in each form
    "probs": (P := np.array([[0.5, 0.25, 0.125, 0.125], [0.1, 0.2, 0.3, 0.4], [0.0, 0.0, 0.5, 0.5]])),
    "log_probs": np.log(P, out=np.full_like(P, -np.inf), where=P > 0),
    "logits": np.array([[0.0, 1.0, 2.0, 3.0], [5.0, 0.0, -5.0, 0.0], [0.0, 0.0, 0.0, 0.0]]),
}
OTHER = np.array([[0.25, 0.25, 0.25, 0.25], [0.4, 0.3, 0.2, 0.1], [0.25, 0.25, 0.4, 0.1]])
LABELS = np.array([3, 1, 2])
ONE_HOT = np.eye(4)[LABELS]


def quantities() -> list[str]:
    return [name for name in ek.__all__ if name not in NOT_QUANTITIES]


def forms_of(name: str) -> list[tuple[str, ...]]:
    """The forms that a function takes: one, or for two operands a pair."""
    parameters = inspect.signature(getattr(ek, name)).parameters
    if "p_form" in parameters:
        return list(itertools.product(_options.FORMS, _options.FORMS))
    if "form" in parameters:
        return [(form,) for form in _options.FORMS]
    return [(FIXED_FORM[name],)]


def operands_of(name: str, forms: tuple[str, ...]) -> tuple[tuple[np.ndarray, ...], dict[str, Any]]:
    """Small operands of a function in the given forms, and the options that go with them."""
    parameters = inspect.signature(getattr(ek, name)).parameters
    if name == "linear_cross_entropy":
        return (GIVEN["logits"], np.eye(4), LABELS), {}
    operands: tuple[Any, ...] = (GIVEN[forms[0]],)
    options: dict[str, Any] = {}
    if "p_form" in parameters:
        q = {"probs": OTHER, "log_probs": np.log(OTHER), "logits": np.log(OTHER) + 1.0}[forms[1]]
        operands, options = (*operands, q), {"p_form": forms[0], "q_form": forms[1]}
    elif name == "kl_estimate":
        operands = (np.log(OTHER[0]), np.log(OTHER[1]))
    elif "target" in parameters:
        operands = (*operands, ONE_HOT if name == "binary_cross_entropy" else LABELS)
    if "form" in parameters:
        options["form"] = forms[0]
    return operands, options


def example(name: str, forms: tuple[str, ...]) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Small calls of a function in the given forms: the value, then each derivative that it offers."""
    function = getattr(ek, name)
    parameters = inspect.signature(function).parameters
    operands, options = operands_of(name, forms)
    yield "value", lambda: function(*operands, **options)
    if "return_grad" in parameters:
        which: Any = "both" if "p_form" in parameters else True
        yield "gradient", lambda: function(*operands, **options, return_grad=which)
    if "return_hess" in parameters and forms == ("logits",):
        yield "Hessian", lambda: function(*operands, **options, return_hess=True)
    if name == "score":
        yield "gradient", lambda: function(*operands, outputs="grad").grad
        yield "Hessian", lambda: function(*operands, outputs="hess").hess


def arrays_of(result: Any) -> list[np.ndarray]:
    if isinstance(result, ek.Score):
        result = tuple(value for name in result.__slots__ if (value := getattr(result, name)) is not None)
    return [np.asarray(value) for value in (result if isinstance(result, tuple) else (result,))]


def agrees(call: Callable[[], Any], backend: str) -> bool:
    """Whether `backend` runs the call and gets what the reference gets."""
    with ek.use_backend("reference"):
        expected = arrays_of(call())
    try:
        with ek.use_backend(backend):
            found = arrays_of(call())
    except NotImplementedError:
        return False
    pairs = zip(found, expected, strict=True)
    return all(np.allclose(a, b, rtol=1e-12, atol=1e-15, equal_nan=True) for a, b in pairs)


def function_table() -> str:
    import device  # noqa: F401 (it wraps the functions)

    backends = list(_dispatch.BACKENDS)
    rows = []
    for name in quantities():
        forms = forms_of(name)
        pairs = len(forms[0]) == 2
        offered: dict[str, list[tuple[str, ...]]] = {}
        works: dict[str, list[bool]] = {backend: [] for backend in backends}
        for form in forms:
            for what, call in example(name, form):
                offered.setdefault(what, []).append(form)
                for backend in backends:
                    works[backend].append(agrees(call, backend))

        def told(what: str, forms: list[Any] = forms, offered: dict[str, Any] = offered) -> str:
            if what not in offered:
                return "–"
            return "yes" if offered[what] == forms else ", ".join("/".join(form) for form in offered[what])

        given = "any pair of " + ", ".join(_options.FORMS) if pairs else ", ".join(form for (form,) in forms)
        cells = ["yes" if all(w) else f"{sum(w)} of {len(w)}" for w in works.values()]
        rows.append([f"`{name}`", given, told("gradient"), told("Hessian"), *cells])
    return markdown(["function", "forms", "gradient", "Hessian", *(f"`{b}`" for b in backends)], rows)


GUEST_ABOUT = {
    "dask": "lazily, block by block: blocks of the above",
    "torch": "as the above, over the same memory; differentiable, also under `torch.compile`",
    "jax": "as NumPy arrays over the same memory; differentiable, under `jit` and `vmap`; on the CPU",
    "pandas": "as NumPy arrays; results are Series and DataFrames with the same labels",
}


def library_table() -> str:
    rows = [[name, f"`{backend}`: {ek.backends()[backend]}"] for name, backend in _dispatch.DEFAULT.items()]
    rows += [[guest.room, GUEST_ABOUT[guest.room]] for guest in _guests.GUESTS]
    rows.append(["the array API standard", "as NumPy arrays over the same memory, by DLPack on the CPU"])
    return markdown(["arrays of", "run on"], rows)


def converters() -> dict[str, Callable[[np.ndarray], Any]]:
    """From NumPy's arrays to those of each guest; operands in float32, which all of them have."""
    import array_api_strict
    import dask.array
    import jax.numpy
    import pandas
    import torch

    def frame(array: np.ndarray) -> Any:
        return pandas.DataFrame(array) if array.ndim == 2 else pandas.Series(array)

    return {
        "dask": dask.array.from_array,
        "torch": torch.tensor,
        "jax": jax.numpy.asarray,
        "pandas": frame,
        "array API": array_api_strict.asarray,
    }


def guest_table() -> str:
    """Which functions take arrays of each guest, found by calling them; ∂: a gradient comes back through the result."""
    guests = converters()
    rows = []
    for name in sorted([*quantities(), "linear_cross_entropy"]):
        function = getattr(ek, name)
        arrays, options = operands_of(name, forms_of(name)[0])
        arrays = tuple(a.astype(np.float32) if a.dtype.kind == "f" else a for a in arrays)
        expected = arrays_of(function(*arrays, **options))
        cells = []
        for guest, convert in guests.items():
            found = arrays_of(function(*map(convert, arrays), **options))
            right = all(np.allclose(a, b, rtol=1e-5, atol=1e-6) for a, b in zip(found, expected, strict=True))
            cells.append(("∂" if has_gradient(guest, function, arrays, options) else "yes") if right else "–")
        rows.append([f"`{name}`", *cells])
    return markdown(["function", *guests], rows)


def has_gradient(guest: str, function: Callable[..., Any], arrays: tuple[np.ndarray, ...], options: Any) -> bool:
    if guest == "torch":
        import torch

        x, *rest = map(torch.tensor, arrays)
        try:
            result = function(x.requires_grad_(), *rest, **options)
        except ValueError:
            return False
        return bool(getattr(result, "requires_grad", False))
    if guest == "jax":
        import jax

        x, *rest = map(jax.numpy.asarray, arrays)
        try:
            jax.grad(lambda x: function(x, *rest, **options).sum())(x)
        except Exception:  # whatever JAX makes of ours
            return False
        return True
    return False


# --- options --------------------------------------------------------------------------------------

MEANING = {
    "form": "how the distribution is given: `logits`, `log_probs` or `probs`; only logits are normalised",
    "p_form": "the form of `p`",
    "q_form": "the form of `q`",
    "axis": "the class axis; the others are the batch (BCE: the axis to sum over)",
    "class_weight": "`w_c`, one weight per class",
    "pos_weight": "weight of the positive part; broadcasts against `x`",
    "sample_weight": "`s`, one weight per row; a row of weight 0 does not count",
    "label_smoothing": "`ε`: the target becomes `(1-ε)·target + ε/k` (BCE: `+ ε/2`)",
    "ignore_index": "rows with this label do not count: loss 0, gradient 0",
    "temperature": "`z = x / T`, of logits; no `T²` factor",
    "softcap": "of logits: `z = c·tanh(x/c)`, before the temperature",
    "z_loss": "of logits: adds `z_loss·lse²`",
    "base": "base of the logarithm; nats by default, 2 for bits",
    "reduction": "`none`: one number per row; `sum`; `mean`: the sum over the sum of the weights",
    "on_empty": "the mean when no row counts: `nan`, `zero` or `raise`",
    "return_grad": "also return the gradient of the value returned, by `x` as given (KL, JS: by `'q'`, `'p'` "
    "or `'both'`)",
    "return_hess": "also return the diagonal of the Hessian; logits, without `softcap` and `z_loss`",
    "weight": "`w` of `w·KL(p‖m) + (1-w)·KL(q‖m)`",
    "estimator": "`k1`, `k2` or `k3`",
    "outputs": "any of " + ", ".join(f"`{name}`" for name in OUTPUTS),
    "out": "where to write the result",
    "grad_out": "where to write the gradient; asks for it; may be exactly `x`",
    "hess_out": "where to write the Hessian; asks for it",
    "validate": "spend a pass over the data to refuse what is not a distribution",
}
SHORT = {
    "binary_cross_entropy": "BCE",
    "cross_entropy": "CE",
    "js_divergence": "JS",
    "kl_divergence": "KL",
}


def option_table() -> str:
    """Every keyword of every function, with its defaults; fails if one has no meaning above."""
    takers: dict[str, dict[str, Any]] = {}
    for name in quantities():
        for option, parameter in inspect.signature(getattr(ek, name)).parameters.items():
            if parameter.kind is parameter.KEYWORD_ONLY:
                takers.setdefault(option, {})[name] = parameter.default
    unknown = takers.keys() ^ MEANING.keys()
    if unknown:
        raise SystemExit(f"docs/tables.py: MEANING does not fit the options: {', '.join(sorted(unknown))}")
    rows = []
    for option, meaning in MEANING.items():
        by_default: dict[str, list[str]] = {}
        for name, default in takers[option].items():
            by_default.setdefault(repr(default), []).append(SHORT.get(name, name))
        most = max(by_default, key=lambda default: len(by_default[default]))
        rest = [f"`{d}` ({', '.join(who)})" for d, who in by_default.items() if d != most]
        left_out = [SHORT.get(name, name) for name in quantities() if name not in takers[option]]
        names = ", ".join(SHORT.get(name, name) for name in takers[option])
        if len(left_out) < 3:
            names = "all but " + ", ".join(left_out) if left_out else "all"
        rows.append([f"`{option}`", names, ", ".join([*rest, f"else `{most}`" if rest else f"`{most}`"]), meaning])
    return markdown(["option", "taken by", "default", "meaning"], rows)


# --- corner cases ---------------------------------------------------------------------------------

inf, nan = np.inf, np.nan
CORNERS = [
    ("`0·log 0`", "entropy([1.0, 0.0])"),
    ("`p > 0`, `q = 0`", "kl_divergence([0.5, 0.5], [1.0, 0.0])"),
    ("a certain prediction, and wrong", "binary_cross_entropy([0.0], [1], form='probs', reduction='none')"),
    ("logit `-inf`, another class is the target", "cross_entropy([[-inf, 0.0, 0.0]], [1])"),
    ("logit `-inf` is the target", "cross_entropy([[-inf, 0.0, 0.0]], [0])"),
    ("a row of `-inf`", "score([[-inf, -inf]], outputs=('lse', 'entropy'))"),
    ("logit `+inf`, another class is the target", "cross_entropy([[inf, 0.0]], [1])"),
    ("NaN in one row", "cross_entropy([[nan, 0.0], [0.0, 0.0]], [0, 0], reduction='none')"),
    ("a huge common offset", "cross_entropy([[1e8, 1e8 + 1, 1e8 - 1]], [1])"),
    ("the same row without it", "cross_entropy([[0.0, 1.0, -1.0]], [1])"),
    ("a tiny loss", "cross_entropy([[40.0, 0.0]], [0])"),
    ("bitwise equal operands", "kl_divergence([0.3, 0.9], [0.3, 0.9], p_form='logits', q_form='logits')"),
    ("probability below 0", "information([-0.1])"),
    ("the same, validated", "information([-0.1], validate=True)"),
    ("probabilities that do not sum to 1", "entropy([1.0, 1.0, 0.5])"),
    ("label out of range", "cross_entropy([[0.0, 0.0]], [2])"),
    ("label -100", "cross_entropy([[0.0, 0.0]], [-100])"),
    ("all rows ignored", "cross_entropy([[0.0, 0.0]], [-100], ignore_index=-100)"),
    ("the same, `on_empty`", "cross_entropy([[0.0, 0.0]], [-100], ignore_index=-100, on_empty='zero')"),
    ("a BCE target of 255", "binary_cross_entropy([0.0], [255])"),
    ("no rows", "cross_entropy(np.empty((0, 3)), [], reduction='none')"),
    ("one class", "cross_entropy([[7.0]], [0])"),
    ("no classes", "entropy(np.empty((3, 0)))"),
    ("labels of a picture", "cross_entropy(np.zeros((2, 5, 4, 4)), np.zeros((2, 4, 4), int))"),
]


def shown(value: Any) -> str:
    if isinstance(value, ek.Score):
        fields = ((name, getattr(value, name)) for name in value.__slots__)
        return ", ".join(f"{name} {shown(v)}" for name, v in fields if v is not None)
    # What is an accident of the last bit is not printed; the sign of zero is.
    text = np.array2string(np.asarray(value), formatter={"float_kind": lambda v: f"{v:.7g}"})
    return f"`{text}`"


def corner_table() -> str:
    rows = []
    for case, expression in CORNERS:
        try:
            result = shown(eval(f"ek.{expression}", {"ek": ek, "np": np, "inf": inf, "nan": nan}))
        except (IndexError, TypeError, ValueError) as error:
            result = f"{type(error).__name__}: {error}"
        rows.append([case, f"`{expression}`", result])
    return markdown(["case", "call", "result"], rows)


# --- files ----------------------------------------------------------------------------------------


def first_comment(text: str) -> str:
    """The first paragraph of a CUDA source."""
    lines = itertools.takewhile(lambda line: line.startswith("// "), text.splitlines())
    return " ".join(line.removeprefix("// ") for line in lines)


def file_table() -> str:
    package = ROOT / "src" / "entrokern"
    rows = []
    paths = [path for end in ("*.py", "*.cuh", "*.cu") for path in package.rglob(end)]
    for path in sorted(paths, key=lambda p: (len(p.relative_to(package).parts), p)):
        text = path.read_text(encoding="utf-8")
        words = (ast.get_docstring(ast.parse(text)) or "") if path.suffix == ".py" else first_comment(text)
        rows.append([f"`{path.relative_to(package)}`", words.split("\n\n")[0].replace("\n", " ")])
    return markdown(["src/entrokern/", "what it is"], rows)


# --- speed ----------------------------------------------------------------------------------------


def speed_table() -> str:
    """From the newest file of bench/results, in short."""
    return of_bench("report").markdown_summary(json.loads(newest_result().read_text()))


def benchmark_tables() -> str:
    """From the newest file of bench/results, as bench/report.py prints it."""
    file = newest_result()
    return of_bench("report").markdown_page(json.loads(file.read_text()), file.name)


def newest_result() -> Path:
    return sorted(RESULTS.glob("[0-9]*.json"))[-1]


def dask_table(name: str) -> str:
    """From the newest scaling study, as bench/dask_scaling.py prints it."""
    newest = sorted(RESULTS.glob("dask-*.json"))[-1]
    return of_bench("dask_tables").TABLES[name](json.loads(newest.read_text()))


def paper_table(name: str) -> str:
    """From what bench/on_paper.py has saved, if it is of these kernels."""
    on_paper = of_bench("on_paper")
    saved = json.loads(on_paper.SAVED.read_text())
    if on_paper.stale(saved):
        raise SystemExit("docs/gpu.md: the CUDA kernels have changed; run `python bench/on_paper.py --save` first")
    header, *rows = saved[name]
    return markdown(header, rows)


def of_bench(name: str) -> Any:
    sys.path.insert(0, str(ROOT / "bench"))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.pop(0)


TABLES: dict[str, Callable[[], str]] = {
    "functions": function_table,
    "libraries": library_table,
    "guests": guest_table,
    "options": option_table,
    "corners": corner_table,
    "files": file_table,
    "speed": speed_table,
    "benchmark": benchmark_tables,
    "operations": functools.partial(paper_table, "operations"),
    "long_rows": functools.partial(paper_table, "long_rows"),
}


def renewed(text: str) -> str:
    """`text` with the content of every marked table made anew."""

    def table(name: str) -> str:
        return TABLES[name]() if name in TABLES else dask_table(name)

    return MARKED.sub(lambda m: m[1] + table(m[2]) + m[3], text)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; fail if a table is stale")
    check = parser.parse_args(arguments).check
    status = 0
    for page in PAGES:
        old = page.read_text(encoding="utf-8")
        new = renewed(old)
        if new == old:
            continue
        name = page.relative_to(ROOT)
        if check:
            sys.stderr.write(f"{name}: a table is stale; run `python docs/tables.py`\n")
            status = 1
        else:
            page.write_text(new, encoding="utf-8")
            sys.stdout.write(f"{name}: tables rewritten\n")
    return status


if __name__ == "__main__":
    raise SystemExit(main())
