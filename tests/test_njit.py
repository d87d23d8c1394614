"""Inside a user's ``@njit``: the results of the call from Python, its errors, no allocation, and how Numba finds us."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pytest
from numba.core.errors import TypingError
from numba.core.runtime import _nrt_python, rtsys

import entrokern as ek
import entrokern.numba
from cases import KINDS, NAMED, Case, call, operands
from contract import check
from oracle import LONG, evaluate
from test_layouts import spread

PUBLIC = {function.__name__: function for function in entrokern.numba.FUNCTIONS}  # those of `ek` may be wrapped here
cross_entropy, entropy, kl_divergence = PUBLIC["cross_entropy"], PUBLIC["entropy"], PUBLIC["kl_divergence"]
logsumexp, softmax = PUBLIC["logsumexp"], PUBLIC["softmax"]
SIZES = ((1, 1), (5, 3), (70, 10), (33, 70), (20, 300), (3, 2100))


def compiled(function: str, arrays: Iterable[str], **options: Any) -> Any:
    """``entrokern.function(*arrays, **options)`` as a user's compiled code: `options` are constants in it, and of the
    `arrays` those named as an option are passed by that name."""
    names = list(arrays)
    passed = [f"{name}={name}" if name in OPTIONS else name for name in names]
    passed += [f"{name}={value!r}" for name, value in options.items()]
    source = f"def user({', '.join(names)}):\n    return public({', '.join(passed)})"
    scope: dict[str, Any] = {"public": PUBLIC[function]}
    exec(source, scope)
    return numba.njit(scope["user"])


OPTIONS = ("class_weight", "sample_weight", "out", "grad_out", "label_smoothing", "temperature", "ignore_index",
           "reduction", "base", "softcap", "z_loss")  # fmt: skip


def is_taken(case: Case) -> bool:
    """What is not: target distributions, and cross-entropy of other forms."""
    dense = case.function == "cross_entropy" and case.operands[1] in ("dense", "one hot")
    return case.function in PUBLIC and not dense and not (case.function == "cross_entropy" and "form" in case.options)


CASES = [case._replace(options={o: v for o, v in case.options.items() if o != "return_hess"})
         for case in NAMED if is_taken(case)]  # fmt: skip
QUICK = ("ce weights", "entropy probs", "kl probs probs", "kl log_probs logits", "softmax")


def user_of(case: Case) -> Any:
    return compiled(case.function, [f"a{i}" for i in range(len(case.operands))] + list(case.arrays), **case.options)


def results(case: Case, user: Any, args: list[Any], options: dict[str, Any]) -> dict[str, Any]:
    """By name, as arrays: of what is a number the dtype is that of the operands."""
    got = user(*args, *(options[name] for name in case.arrays))
    got = got if isinstance(got, tuple) else (got,)
    names = call(case.function, args, dict(case.options) | {o: options[o] for o in case.arrays})
    return {
        n: v if isinstance(v, np.ndarray) else np.asarray(v, args[0].dtype) for n, v in zip(names, got, strict=True)
    }


def check_case(case: Case, dtype: str, kinds: Iterable[str], place: Callable[[Any], Any] = lambda a: a) -> None:
    user = user_of(case)
    for n, k in SIZES:
        for kind in kinds:
            args, options = operands(case, n, k, dtype, kind)
            want = evaluate(LONG, case.function, args, dict(case.options) | options)
            got = results(case, user, [place(a) for a in args], options)
            check(got, want, args[0].dtype, where=f"{kind}, {n}x{k}")


@pytest.mark.parametrize("name", QUICK)
def test_results_meet_the_contract(name: str) -> None:
    (case,) = (case for case in CASES if case.name == name)
    check_case(case, "float32", ("normal", "peaked", "offset", "holes"))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_all_results_meet_the_contract(case: Case, dtype: str) -> None:
    check_case(case, dtype, KINDS)
    for step in ((2, 1), (1, 2), (-1, -1)):
        check_case(case, dtype, ("normal",), lambda a, step=step: spread(a, step[: a.ndim]))
    check_case(case, dtype, ("normal",), np.asfortranarray)


# --- the same bits, layouts, rows --------------------------------------------------------------------


def logits(n: int, k: int, dtype: Any = np.float32) -> Any:
    return np.random.default_rng([n, k]).normal(size=(n, k), scale=3).astype(dtype)


def labels(n: int, k: int) -> Any:
    return np.random.default_rng([k, n]).integers(0, k, n)


def assert_same(got: Any, want: Any) -> None:
    got, want = (v if isinstance(v, tuple) else (v,) for v in (got, want))
    assert len(got) == len(want)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_array_equal(np.asarray(a, b.dtype), b)


@pytest.fixture(scope="module")
def each_loss() -> Any:
    return compiled("cross_entropy", ["x", "y", "out", "grad_out", "ignore_index"], reduction="none")


def test_the_same_bits_as_from_python(each_loss: Any) -> None:
    """Where the same kernel is chosen; with a gradient, up to where a group of rows no longer fits the stack."""
    for n, k in (*SIZES, (700, 33), (3000, 100)):
        x, y = logits(n, k), labels(n, k)
        got = each_loss(x, y, np.empty(n, np.float32), np.empty_like(x), -1)
        want = ek.cross_entropy(x, y, reduction="none", return_grad=True, ignore_index=-1)
        if k <= 300:
            assert_same(got, want)
        assert_same(got[0], want[0])


def test_a_mean_of_many_chunks_has_the_same_bits() -> None:
    user = compiled("cross_entropy", ["x", "y"])
    for n, k in ((300_000, 3), (10_000, 40), (0, 3)):
        x, y = logits(n, k), labels(n, k)
        assert_same(user(x, y), ek.cross_entropy(x, y))


def test_any_strides_and_dtypes_of_labels() -> None:
    """Logits, labels, weights and outputs with gaps, backwards, read-only or of other dtypes."""
    user = compiled("cross_entropy", ["x", "y", "sample_weight", "out", "grad_out"], reduction="none")
    for n, k in ((20, 300), (1500, 3)):
        x, y = logits(n, k), labels(n, k)
        weights = np.linspace(0, 2, n)
        want = ek.cross_entropy(x, y, sample_weight=weights, reduction="none", return_grad=True)
        for step in ((2, 1), (1, 2), (-1, -3)):
            out, grad = spread(np.zeros(n, np.float32), step[:1]), spread(np.zeros((n, k), np.float32), step)
            got = user(spread(x, step), spread(y.astype(np.int16), step[:1]), spread(weights, step[:1]), out, grad)
            assert got[0].strides == out.strides
            for a, b in zip(got, want, strict=True):
                np.testing.assert_allclose(a, b, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [np.uint64, *(pytest.param(t, marks=pytest.mark.slow) for t in (np.uint8, np.int32))])
def test_labels_of_other_integers(dtype: Any) -> None:
    user = compiled("cross_entropy", ["x", "y", "ignore_index"], reduction="sum")
    x, y = logits(1030, 7), labels(1030, 7).astype(dtype)
    x.flags.writeable = y.flags.writeable = False
    assert user(x, y, 3) == pytest.approx(ek.cross_entropy(x, y, ignore_index=3, reduction="sum"), rel=1e-6)
    if dtype == np.uint64:
        beyond = np.where(np.arange(1030) == 5, np.uint64(2**64 - 1), y)
        with pytest.raises(IndexError, match="ignore_index"):
            user(x, beyond, -1)


@numba.njit
def row_losses(x: Any, y: Any, gradients: Any) -> Any:
    losses = np.empty(len(y), x.dtype)
    for i in range(len(y)):
        losses[i], _ = cross_entropy(x[i], y[i], grad_out=gradients[i])
    return losses


@pytest.mark.parametrize("order", ["C", "F"])
def test_rows_one_by_one(order: Any) -> None:
    for n, k in SIZES:
        x, y = np.asarray(logits(n, k), order=order), labels(n, k)
        gradients = np.empty_like(x)
        want = evaluate(LONG, "cross_entropy", [x, y], {"reduction": "none", "return_grad": True})
        check({"loss": row_losses(x, y, gradients), "grad": gradients}, want, x.dtype)


def test_results_of_one_row_are_numbers() -> None:
    @numba.njit
    def user(p: Any, q: Any) -> Any:
        return logsumexp(p), kl_divergence(p, q, p_form="logits", q_form="logits"), softmax(q)

    p, q = logits(2, 300)
    lse, divergence, probabilities = user(p, q)
    assert isinstance(lse, float)
    assert lse == pytest.approx(float(ek.logsumexp(p)), rel=1e-6)
    assert divergence == pytest.approx(float(ek.kl_divergence(p, q, p_form="logits", q_form="logits")), rel=1e-5)
    np.testing.assert_allclose(probabilities, ek.softmax(q), rtol=1e-6)


def test_reduced_results_go_to_an_array_of_no_dimensions() -> None:
    user = compiled("logsumexp", ["x", "out"])
    x, out = logits(1, 10)[0], np.empty((), np.float32)
    assert np.shares_memory(user(x, out), out)
    assert out == pytest.approx(float(ek.logsumexp(x)), rel=1e-6)
    loss = compiled("cross_entropy", ["x", "y", "out"])
    assert loss(x, 3, out) == out == pytest.approx(float(ek.cross_entropy(x, 3)), rel=1e-6)
    with pytest.raises(IndexError):
        loss(x, 10, out)
    assert np.isnan(out)


def test_a_label_that_is_a_constant() -> None:
    x = logits(1, 10)[0]
    assert compiled("cross_entropy", ["x"], target=3)(x) == pytest.approx(float(ek.cross_entropy(x, 3)), rel=1e-6)


def test_in_place(each_loss: Any) -> None:
    x, y = logits(70, 10), labels(70, 10)
    want = ek.cross_entropy(x, y, reduction="none", return_grad=True)
    assert_same(each_loss(x, y, np.empty(70, np.float32), x, -1), want)
    np.testing.assert_array_equal(x, want[1])
    before = x.copy()
    with pytest.raises(IndexError):
        each_loss(x, y + 1, np.empty(70, np.float32), x, -1)
    np.testing.assert_array_equal(x, before)


def test_one_reference_row_for_all() -> None:
    user = compiled("kl_divergence", ["p", "q"])
    for k in (10, 300):
        p = ek.softmax(logits(20, k))
        assert_same(user(p, p[3].copy()), ek.kl_divergence(p, p[3].copy()))


@pytest.mark.parametrize("on_empty", ["nan", "zero", "raise"])
def test_a_mean_of_nothing(on_empty: str) -> None:
    user = compiled("cross_entropy", ["x", "y", "grad_out"], ignore_index=2, on_empty=on_empty)
    x, grad = logits(1, 3)[0], np.full(3, 7, np.float32)
    if on_empty == "raise":
        with pytest.raises(ValueError, match="no row counts"):
            user(x, 2, grad)
        return
    np.testing.assert_equal(user(x, 2, grad)[0], np.nan if on_empty == "nan" else 0.0)
    assert not grad.any()


# --- errors -------------------------------------------------------------------------------------------


def test_a_label_out_of_range(each_loss: Any) -> None:
    """Nothing is computed, and no old result can pass for a new one."""
    x, y = logits(2000, 5), labels(2000, 5)
    for bad in (5, -2):
        y[1999] = bad
        out, grad = np.zeros(2000, np.float32), np.zeros_like(x)
        with pytest.raises(IndexError, match=r"neither a class .* pass ignore_index"):
            each_loss(x, y, out, grad, -1)
        assert np.isnan(out).all() and np.isnan(grad).all()


def test_values_out_of_range() -> None:
    names = ["x", "y", "class_weight", "sample_weight", "label_smoothing", "temperature", "softcap", "z_loss", "base",
             "out"]  # fmt: skip
    user = compiled("cross_entropy", names, reduction="none")
    x, y = logits(4, 3), labels(4, 3)
    good = {"x": x, "y": y, "class_weight": np.ones(3), "sample_weight": np.ones(4), "label_smoothing": 0.1,
            "temperature": 1.0, "softcap": 30.0, "z_loss": 0.0, "base": 2.0, "out": np.empty(4, "f4")}  # fmt: skip
    user(*good.values())
    both = np.empty((4, 4), np.float32)
    for bad, message in (
        ({"y": y[:3]}, "one label"),
        ({"sample_weight": np.ones(5)}, "one weight for each row"),
        ({"class_weight": np.ones(2)}, "class_weight"),
        ({"class_weight": np.array([1.0, -1.0, 1.0])}, "class_weight"),
        ({"label_smoothing": 1.5}, r"\[0, 1\]"),
        ({"label_smoothing": np.nan}, r"\[0, 1\]"),
        ({"temperature": 0.0}, "temperature"),
        ({"softcap": -1.0}, "softcap"),
        ({"z_loss": np.inf}, "z_loss"),
        ({"base": 1.0}, "base"),
        ({"out": np.empty(3, np.float32)}, "shape"),
        ({"x": x[:, :0]}, "k = 0"),
        ({"x": both.reshape(-1)[:12].reshape(4, 3), "out": both.reshape(-1)[8:12]}, "overlap"),
    ):
        with pytest.raises(ValueError, match=message):
            user(*(good | bad).values())


X, P = np.zeros((2, 3), np.float32), np.full((2, 3), 1 / 3)


@pytest.mark.parametrize(
    ("function", "args", "options", "message"),
    [
        ("softmax", [np.zeros((2, 3), np.int64)], {}, "x.astype"),
        ("softmax", [np.zeros((2, 3), np.float16)], {}, "float32 or float64"),
        ("softmax", [np.zeros((2, 3, 4))], {}, "reshape"),
        ("softmax", [X], {"axis": 0}, "x.T"),
        ("softmax", [X], {"validate": True}, "leave it out"),
        ("softmax", [X], {"temperature": 2.0}, "temperature"),
        ("logsumexp", [[1.0, 2.0]], {}, "pass an array"),
        ("cross_entropy", [X, np.zeros(2)], {}, "integer labels"),
        ("cross_entropy", [X, X], {}, "target distributions are not taken"),
        ("cross_entropy", [X, np.zeros(2, bool)], {}, "integer labels"),
        ("cross_entropy", [X[0], np.zeros(1, int)], {}, "one integer label"),
        ("cross_entropy", [X, np.zeros(2, int)], {"reduction": "median"}, "choose one of 'none', 'sum', 'mean'"),
        ("cross_entropy", [X, np.zeros(2, int)], {"form": "probs"}, "only logits"),
        ("cross_entropy", [X, np.zeros(2, int)], {"return_hess": True}, "from Python"),
        ("cross_entropy", [X, np.zeros(2, int)], {"label_smoothing": True}, "real number"),
        ("cross_entropy", [X, np.zeros(2, int)], {"ignore_index": 1.5}, "integer"),
        ("entropy", [P], {"form": "odds"}, "choose one of"),
        ("kl_divergence", [P, P.astype(np.float32)], {}, "convert one of them"),
        ("kl_divergence", [P, P], {"temperature": 2.0}, "divides logits"),
        ("kl_divergence", [P, P], {"return_grad": True}, "choose one of"),
    ],
)
def test_what_is_not_taken_is_refused_when_compiled(
    function: str, args: list[Any], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(TypingError, match=message):
        compiled(function, [f"a{i}" for i in range(len(args))], **options)(*args)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("out", np.empty(2), "float32 of shape"),
        ("out", np.empty((2, 3), np.float32), r"float32 of shape \(n,\)"),
        ("grad_out", np.broadcast_to(np.float32(0), (2, 3)), "read-only"),
        ("class_weight", np.ones(3, np.float32), "float64 per class"),
        ("sample_weight", 1.0, "one real number for each row"),
    ],
)
def test_arrays_of_other_kinds_are_refused(name: str, value: Any, message: str) -> None:
    with pytest.raises(TypingError, match=message):
        compiled("cross_entropy", ["x", "y", name], reduction="none")(X, np.zeros(2, int), value)


def test_a_variable_cannot_choose_what_is_compiled() -> None:
    with pytest.raises(TypingError, match="reduction is a variable"):
        compiled("cross_entropy", ["x", "y", "reduction"])(X, np.zeros(2, int), "sum")


def test_options_are_by_name_only() -> None:
    with pytest.raises(TypingError, match="too many positional"):
        compiled("softmax", ["x", "axis_"])(X, -1)


# --- what surrounds a call ----------------------------------------------------------------------------


def allocations(user: Any, *arrays: Any) -> int:
    """How many more there are when `user` does its work ten times instead of once."""
    user(*arrays, 1)
    _nrt_python.memsys_enable_stats()
    counts = []
    for times in (1, 10):
        before = rtsys.get_allocation_stats()
        user(*arrays, times)
        after = rtsys.get_allocation_stats()
        counts.append(after.alloc + after.mi_alloc - before.alloc - before.mi_alloc)
    return counts[1] - counts[0]


def test_outputs_given_nothing_is_allocated() -> None:
    @numba.njit
    def many(x: Any, y: Any, out: Any, grad: Any, times: int) -> float:
        total = 0.0
        for _ in range(times):
            cross_entropy(x, y, out=out, grad_out=grad, reduction="none")
            total += cross_entropy(x[0], y[0], grad_out=grad[0])[0]
        return total

    for k in (3, 100, 1000):
        x, y = logits(40, k), labels(40, k)
        assert allocations(many, x, y, np.empty(40, np.float32), np.empty_like(x)) == 0


@pytest.mark.slow
def test_other_functions_allocate_nothing_either() -> None:
    @numba.njit
    def many(x: Any, p: Any, out: Any, grad: Any, times: int) -> None:
        for _ in range(times):
            softmax(x, out=grad)
            logsumexp(x, out=out)
            entropy(p, out=out, grad_out=grad)
            kl_divergence(p, p, out=out, grad_out=grad)
            kl_divergence(x, x, p_form="logits", q_form="logits", out=out, grad_out=grad)
            kl_divergence(p, x, q_form="logits", out=out)

    for k in (3, 100, 5000):
        x = logits(40, k)
        p = ek.softmax(x)
        p[3, 1] = np.nan
        assert allocations(many, x, p, np.empty(40, np.float32), np.empty_like(x)) == 0


def test_fastmath_of_the_caller_is_not_ours() -> None:
    """With `nnan` and `ninf` the corner cases would go wrong."""

    @numba.njit(fastmath=True, nogil=True, error_model="numpy", boundscheck=True)
    def user(x: Any, y: Any) -> Any:
        return cross_entropy(x, y, reduction="none")

    x = np.array([[0.0, -np.inf], [np.nan, 0.0], [np.inf, 0.0], [-np.inf, -np.inf], [3e38, -3e38]], np.float32)
    assert_same(user(x, np.array([1, 0, 1, 0, 0])), ek.cross_entropy(x, [1, 0, 1, 0, 0], reduction="none"))


def test_inside_prange() -> None:
    @numba.njit(parallel=True)
    def user(x: Any, y: Any, out: Any) -> None:
        for i in numba.prange(len(y)):
            out[i] = cross_entropy(x[i], y[i])

    x, y = logits(500, 33), labels(500, 33)
    out = np.empty(500)
    user(x, y, out)
    np.testing.assert_allclose(out, ek.cross_entropy(x, y, reduction="none"), rtol=2e-6)


def test_inside_a_jitclass() -> None:
    @numba.experimental.jitclass([("total", numba.float64)])
    class Meter:
        def __init__(self) -> None:
            self.total = 0.0

        def update(self, x: Any, y: Any) -> float:
            self.total += cross_entropy(x, y, reduction="sum")
            return self.total

    meter = Meter()
    x, y = logits(70, 10), labels(70, 10)
    assert meter.update(x, y) == float(ek.cross_entropy(x, y, reduction="sum"))


# --- how Numba finds us -------------------------------------------------------------------------------

SCRIPT = """
import sys, numba, numpy as np, entrokern as ek
assert "entrokern.numba" not in sys.modules

@numba.njit(cache=True)
def user(x, y):
    return ek.cross_entropy(x, y)

x, y = np.eye(4, 3, dtype=np.float32), np.array([0, 1, 2, 0])
got, hits = user(x, y), sum(user.stats.cache_hits.values())
try:
    user(x, y + 3)
except IndexError as error:
    print(got == ek.cross_entropy(x, y).item(), hits, "neither a class" in str(error))
"""


def entry_points() -> dict[str, str]:
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())
    return project["project"]["entry-points"]["numba_extensions"]


def test_numba_imports_us_and_caches_the_callers_code(tmp_path: Path) -> None:
    """As installed: by the entry point, in a process that imports nothing of ours for it, and then from disk."""
    metadata = tmp_path / "entrokern-0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: entrokern\nVersion: 0\n")
    lines = [f"{name} = {target}" for name, target in entry_points().items()]
    (metadata / "entry_points.txt").write_text("\n".join(["[numba_extensions]", *lines]))
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    source = str(Path(ek.__file__).parent.parent)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join((str(tmp_path), source)), "NUMBA_CACHE_DIR": ""}
    for expected in ("True 0 True", "True 1 True"):
        found = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, check=False)
        assert found.stdout.strip() == expected, found.stderr


def test_the_entry_point_is_light() -> None:
    """It is called in every process that compiles anything with Numba, and imports no kernel there."""
    (target,) = entry_points().values()
    module, _, name = target.partition(":")
    code = f"import sys, {module}; {module}.{name}(); print(*(m for m in sys.modules if m.startswith('entrokern.cpu')))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == ""
