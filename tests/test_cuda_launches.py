"""What a call on a device launches: nothing waits, like calls are replayed, kernels are compiled once."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import cupy  # the stand-in, if `device` has put it there
import numpy as np
import pytest

import device
import entrokern as ek
import fake_cupy
import shim
from cases import FLOATS, KINDS, Case, call, operands
from cuda_calls import (
    HOST,
    THERE,
    Call,
    Foreign,
    Host,
    afresh,
    assert_same,
    bits,
    distributions,
    given,
    labels,
    logits,
    on_second,
    several,
    stand_in,
)
from cuda_cases import LONG, TABLE, spoil
from device import to_device
from entrokern.cuda import launch, quantities, sources
from entrokern.cuda.structures import dtype_of
from entrokern.primitives import softmax  # as it is: `device` wraps the public one

# --- nothing waits, little is allocated, every kernel is used --------------------------------------------


class Run(NamedTuple):
    """What a call took."""

    name: str
    waits: int
    memory: int  # bytes of the device beside the results
    allowed: int
    kernels: frozenset[str]


def runs_of(case: Case, n: int, k: int, dtype: str, layout: Callable[[Host], Host]) -> Iterator[Run]:
    """A call, and one more like it."""
    args, options = operands(case, n, k, dtype)
    args = [given(layout(a)) for a in args]
    options = {name: given(value) for name, value in options.items()}
    # Some numbers for each row, sums of blocks, and records of the segments of long rows; never a copy of an operand.
    allowed = 64 * n + 4096
    # Weights of classes, in the type that is computed with and as float64, or in two float32 numbers each.
    allowed += sum(12 * options[name].size for name in ("class_weight", "pos_weight") if name in options)
    for time in ("first", "again"):
        fake_cupy.reset()
        results = call(case.function, args, options)
        memory = sum(fake_cupy.allocations) - sum(r.nbytes for r in results.values())
        name = f"{case.name}, {dtype}, {n} x {k}, {layout.__name__}, {time}"
        yield Run(name, fake_cupy.synchronisations, memory, allowed, frozenset(shim.launches))


@pytest.fixture(scope="module")
def runs() -> list[Run]:
    """Every case of the table in every dtype: rows that are short, of moderate length, not in one piece, and long."""
    if device.REAL:
        pytest.skip("of the stand-in for CuPy")
    shapes = ((70, 3, np.asarray), (20, 300, np.asarray), (20, 300, np.asfortranarray))
    all_of = [(case, n, k, dtype, layout) for case in TABLE for dtype in FLOATS for n, k, layout in shapes]
    all_of += [(case, 3, 20_000, dtype, np.asarray) for case in LONG for dtype in FLOATS]
    return [found for one in all_of for found in runs_of(*one)]


def test_nothing_waits_for_the_device(runs: list[Run]) -> None:
    assert not [r.name for r in runs if r.waits]


def test_memory_is_that_of_the_results(runs: list[Run]) -> None:
    assert not [(r.name, r.memory, r.allowed) for r in runs if r.memory > r.allowed]


def test_every_kernel_is_reached(runs: list[Run]) -> None:
    unreached = {*sources.KERNELS}.difference(*(r.kernels for r in runs))
    assert not unreached


@stand_in
@pytest.mark.parametrize("dtype", FLOATS)
def test_gradients_with_options_are_for_the_softmax_family(dtype: str) -> None:
    """But for weights of classes with smoothing, whose sum float32 does not hold."""
    x, y, weight = to_device(logits(3, 300, FLOATS[dtype])), to_device(labels(3, 300)), to_device(np.ones(300))
    both = {"label_smoothing": 0.1, "class_weight": weight}
    kept = ({"label_smoothing": 1.0}, {"z_loss": 0.1}, {"softcap": 5.0}, {"class_weight": weight, "z_loss": 0.1})
    for options in (*kept, {"label_smoothing": 0.1, "z_loss": 0.1, "softcap": 5.0}, both):
        fake_cupy.reset()
        ek.cross_entropy(x, y, return_grad=True, **options)
        families = {sources.KERNELS[name].family for name in shim.launches} - {"totals"}
        assert families == {"distributions" if options is both and dtype != "float64" else "softmax"}, options


@stand_in
@pytest.mark.parametrize("dtype", FLOATS)
def test_weights_of_binary_targets_are_for_the_fast_kernels(dtype: str) -> None:
    """As long as float32 has their digits, and a class has one."""
    x, t = logits(3, 300, FLOATS[dtype]), to_device(distributions(3, 300).astype(FLOATS[dtype]))
    classes, elements = np.linspace(0.1, 3, 300), to_device(np.ones((3, 300), np.float32))
    fast: tuple[dict[str, Any], ...] = (
        {"pos_weight": 0.1},
        {"pos_weight": to_device(np.array(0.1))},
        {"pos_weight": to_device(classes)},
        {"pos_weight": classes.tolist(), "axis": 1, "ignore_index": 7},
        {"pos_weight": to_device(classes), "label_smoothing": 0.1, "return_grad": False},
        {"sample_weight": elements, "pos_weight": 2.0, "ignore_index": 7},
        {"ignore_index": 7, "axis": 1},
    )
    careful: tuple[dict[str, Any], ...] = (
        {"pos_weight": 1e200},
        {"pos_weight": 2.0, "label_smoothing": 0.1},
        {"pos_weight": elements},
        {"sample_weight": to_device(np.ones((3, 300)))},
    )
    for family, asked in (("binary", fast), ("elements", careful)):
        for options in asked:
            fake_cupy.reset()
            ek.binary_cross_entropy(to_device(x), t, **{"return_grad": True, **options})
            families = {sources.KERNELS[name].family for name in shim.launches if "split" not in name} - {"totals"}
            assert families == {"elements" if dtype == "float64" else family}, options


@stand_in
def test_one_number_for_all_travels_alone() -> None:
    """A list's weights, and those of the careful kernels, are brought to the device before they are broadcast."""
    x, t = to_device(np.zeros((1000, 64))), to_device(np.zeros((1000, 64)))
    for weight in (2.0, [1.0] * 64):
        fake_cupy.reset()
        loss = ek.binary_cross_entropy(x, t, pos_weight=weight, reduction="none")
        assert sum(fake_cupy.allocations) - loss.nbytes <= 1024


@stand_in
def test_only_what_asks_for_an_answer_waits() -> None:
    x, y = to_device(logits(3, 4)), to_device(labels(3, 4))
    for options in ({"validate": True}, {"on_empty": "raise", "ignore_index": 9}):
        fake_cupy.reset()
        ek.cross_entropy(x, y, **options)
        assert fake_cupy.synchronisations > 0


# --- calls like earlier ones -----------------------------------------------------------------------------


@pytest.mark.parametrize("case", TABLE, ids=lambda case: case.name)
def test_a_call_like_an_earlier_one_is_of_its_own_arrays(case: Case) -> None:
    """What is kept of a call is no array."""
    turn = TABLE.index(case)
    for dtype, n, k in (("float32", 9, 40), (list(FLOATS)[turn % 4], 2, 16_390)):
        for seed, kind in enumerate(KINDS[:3]):
            args, options = operands(case, n, k, dtype, kind, seed)
            spoil(case, args)
            there = [given(a) for a in args], {name: given(value) for name, value in options.items()}
            with afresh():
                want = call(case.function, *there)
            assert_same(call(case.function, *there), want, f"{dtype}, {n} x {k}, call {seed}")


def test_a_mean_like_an_earlier_one_divides_by_its_own_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y, options = to_device(logits(9, 5)), labels(9, 5), {"ignore_index": -100, "return_grad": True}
    targets, want = [], []
    for ignored in (0, 3, 9):
        y[:ignored] = -100
        targets.append(to_device(y.copy()))
        with afresh():
            want.append([bits(a) for a in ek.cross_entropy(x, targets[-1], **options)])
    ek.cross_entropy(x, targets[0], **options)
    monkeypatch.setattr(quantities, "compute", None)  # from here on launches are repeated
    assert [[bits(a) for a in ek.cross_entropy(x, target, **options)] for target in targets] == want


KINDS_OF_WEIGHTS: dict[str, Call] = {
    "float32": lambda w: w,
    "float64": lambda w: w.astype(np.float64),
    "float16": lambda w: w.astype(np.float16),
    "int32": lambda w: w.astype(np.int32),
    "every other": lambda w: np.repeat(w, 2)[::2],
    "backwards": lambda w: w[::-1].copy()[::-1],
}
WEIGHED: dict[str, Call] = {
    "mean": lambda x, y, w: ek.cross_entropy(x, y, class_weight=w, return_grad=True),
    "sum, smoothing": lambda x, y, w: ek.cross_entropy(
        x, y, class_weight=w, label_smoothing=0.1, reduction="sum", return_grad=True
    ),
    "each": lambda x, y, w: ek.cross_entropy(x, y, class_weight=w, reduction="none"),
    "binary": lambda x, y, w: ek.binary_cross_entropy(x, x > 0, pos_weight=w, return_grad=True),
    "binary rows": lambda x, y, w: ek.binary_cross_entropy(x, x > 0, pos_weight=w, axis=-1, return_grad=True),
    "binary elements": lambda x, y, w: ek.binary_cross_entropy(x, x > 0, sample_weight=w, return_grad=True),
}


@pytest.mark.parametrize("kind", KINDS_OF_WEIGHTS)
@pytest.mark.parametrize("what", WEIGHED)
def test_launches_with_weights_are_repeated_with_those_given(
    monkeypatch: pytest.MonkeyPatch, what: str, kind: str
) -> None:
    """In any dtype and layout: what kernels cannot read as it is, is converted in each call."""
    calls = []
    for seed in range(3):
        weights = np.random.default_rng(seed).integers(0, 4, size=13).astype(np.float32)
        x, y = to_device(logits(70, 13, seed=seed)), to_device(labels(70, 13))
        calls.append((x, y, to_device(KINDS_OF_WEIGHTS[kind](weights))))
    with afresh():
        want = [[bits(a) for a in several(WEIGHED[what](*arrays))] for arrays in calls]
    WEIGHED[what](*calls[0])
    monkeypatch.setattr(quantities, "compute", None)  # from here on launches are repeated
    assert [[bits(a) for a in several(WEIGHED[what](*arrays))] for arrays in calls] == want
    with pytest.raises(ValueError, match="of shape" if what.startswith("binary") else "has shape"):
        WEIGHED[what](*calls[0][:2], calls[0][2][:12])


def test_launches_told_a_number_are_repeated_with_that(monkeypatch: pytest.MonkeyPatch) -> None:
    x = to_device(logits(70, 13))

    def loss(weight: float) -> Any:
        return ek.binary_cross_entropy(x, x > 0, pos_weight=weight, return_grad=True)

    want = [[bits(a) for a in loss(weight)] for weight in (2.0, 3.0)]
    monkeypatch.setattr(quantities, "compute", None)
    assert [[bits(a) for a in loss(weight)] for weight in (2.0, 3.0)] == want
    assert want[0] != want[1]


MOVED: dict[str, Call] = {
    "CE": lambda x, y, axis: ek.cross_entropy(x, y[0], axis=axis, return_grad=True),
    "CE, Hessian": lambda x, y, axis: ek.cross_entropy(x, y[0], axis=axis, return_hess=True),
    "divergence": lambda x, y, axis: ek.kl_divergence(
        x, x + y, p_form="logits", q_form="logits", axis=axis, return_grad="both"
    ),
    "softmax": lambda x, y, axis: ek.softmax(x, axis=axis),
    "binary": lambda x, y, axis: ek.binary_cross_entropy(x, x > 0, pos_weight=y[0] + x[0], axis=axis),
}


@pytest.mark.parametrize("axis", [0, 1, -2])
@pytest.mark.parametrize("what", MOVED)
def test_launches_along_another_axis_are_repeated(monkeypatch: pytest.MonkeyPatch, what: str, axis: int) -> None:
    calls = []
    for seed in range(3):
        rng = np.random.default_rng(seed)
        y = to_device(rng.integers(0, 7, size=(1, 7, 7)))
        calls.append((to_device(rng.normal(size=(7, 7, 7)).astype(np.float32)), y, axis))
    with afresh():
        want = [[bits(a) for a in several(MOVED[what](*given))] for given in calls]
    MOVED[what](*calls[0])
    monkeypatch.setattr(quantities, "compute", None)
    assert [[bits(a) for a in several(MOVED[what](*given))] for given in calls] == want


PAIRS: dict[str, Call] = {
    "divergence": lambda x, y: ek.kl_divergence(x, y),
    "targets": lambda x, y: ek.cross_entropy(x, y, reduction="none"),
    "binary targets": lambda x, y: ek.binary_cross_entropy(x, y, reduction="none"),
    "estimate": lambda x, y: ek.kl_estimate(x, y, reduction="none"),
    "weights": lambda x, y: ek.entropy(x, sample_weight=y[:, 0]),
}


@pytest.mark.parametrize("what", PAIRS)
def test_a_call_like_one_of_views_of_one_array(what: str) -> None:
    x, y = (to_device(distributions(11, 13, seed=seed)) for seed in (0, 1))
    with afresh():
        want = PAIRS[what](x, y)
    PAIRS[what](x, x[:])
    assert bits(PAIRS[what](x, y)) == bits(want)


def test_a_call_in_place_like_one_that_is_not() -> None:
    buffer, y = to_device(logits(12, 17)), to_device(labels(11, 17))
    x, grad = buffer[:-1], cupy.empty((11, 17), np.float32)
    for _ in range(2):
        ek.cross_entropy(x, y, reduction="none", grad_out=grad)
    with pytest.raises(ValueError, match="grad_out overlaps x in memory"):
        ek.cross_entropy(x, y, reduction="none", grad_out=buffer[1:])
    ek.cross_entropy(x, y, reduction="none", grad_out=x)
    assert bits(x) == bits(grad)


# --- what is missing -------------------------------------------------------------------------------------

EXTRA = r"pip install 'entrokern\[cuda13\]'"


def test_without_cupy(monkeypatch: pytest.MonkeyPatch) -> None:
    x = Foreign(to_device(logits(3, 4)))
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(RuntimeError, match=rf"x \(a cuda_calls Foreign\) lies in a GPU's memory, .*{EXTRA}") as error:
        ek.softmax(x)
    assert "\n" not in str(error.value)


# Where it may turn out that there is no compiler, or that it fails.
COMPILING = ((cupy.cuda.nvrtc, "getVersion"), (cupy.cuda.compiler, "compile_using_nvrtc"), (cupy, "RawModule"))


@pytest.fixture
def nothing_compiled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(launch, "_functions", {})
    monkeypatch.setattr(launch, "_folder", lambda: tmp_path)


def raising(error: Exception) -> Any:
    def fail(*arguments: Any, **options: Any) -> Any:
        raise error

    return fail


class NVRTCError(RuntimeError): ...


class CompileException(Exception): ...


NO_NVRTC = (
    ImportError("libnvrtc.so.13: cannot open shared object file: No such file or directory"),
    RuntimeError("CuPy failed to load libnvrtc.so.13: OSError: libnvrtc.so.13: cannot open shared object file"),
    NVRTCError("7: initialization failed"),
)
OTHERWISE = (
    CompileException("nvrtc: error: identifier 'x' is undefined"),
    RuntimeError("out of memory"),
    ImportError("libcudart.so.13: cannot open shared object file"),
)


@pytest.mark.parametrize("error", NO_NVRTC, ids=repr)
def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch, nothing_compiled: None, error: Exception) -> None:
    x = to_device(logits(3, 4))
    message = rf"the compiler of CUDA kernels \(NVRTC\) is not there: {EXTRA}"
    for place, name in COMPILING:
        with monkeypatch.context() as patch, afresh():
            patch.setattr(place, name, raising(error))
            with pytest.raises(RuntimeError, match=message) as raised:
                ek.softmax(x)
        assert raised.value.__cause__ is error and "\n" not in str(raised.value)
    assert ek.softmax(x).shape == (3, 4)


@pytest.mark.parametrize("error", OTHERWISE, ids=repr)
def test_other_errors_of_a_compiler_are_shown(
    monkeypatch: pytest.MonkeyPatch, nothing_compiled: None, error: Exception
) -> None:
    x = to_device(logits(3, 4))
    for place, name in COMPILING:
        with monkeypatch.context() as patch, afresh():
            patch.setattr(place, name, raising(error))
            with pytest.raises(type(error)) as raised:
                ek.softmax(x)
        assert raised.value is error


@stand_in
def test_kernels_are_compiled_once_and_loaded_once_for_a_device(
    monkeypatch: pytest.MonkeyPatch, nothing_compiled: None, tmp_path: Path
) -> None:
    texts, loaded = [], []
    compile_text, module = cupy.cuda.compiler.compile_using_nvrtc, cupy.RawModule

    def compile_noted(text: str, options: tuple[str, ...]) -> Any:
        texts.append(text)
        return compile_text(text, options)

    def load_noted(*, path: str) -> Any:
        loaded.append((cupy.cuda.Device().id, path))
        return module(path=path)

    monkeypatch.setattr(cupy.cuda.compiler, "compile_using_nvrtc", compile_noted)
    monkeypatch.setattr(cupy, "RawModule", load_noted)
    with afresh():
        for k in (3, 3, 100, 7, 20_000):
            ek.softmax(to_device(logits(2, k)))
            ek.softmax(on_second(logits(2, k)))
    assert len(loaded) == len({*loaded}) and {place for place, _ in loaded} == {0, 1}
    assert len(texts) == len({*texts}) == len({path for _, path in loaded}) == len([*tmp_path.iterdir()])
    launch._functions.clear()  # as in the next process
    with afresh():
        ek.softmax(to_device(logits(2, 3)))
    assert len(texts) == len({*texts})


def test_where_no_folder_can_be_written_each_process_compiles(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ENTROKERN_CACHE_DIR", str(tmp_path / "file" / "x"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(launch, "_functions", {})
    monkeypatch.setattr(launch, "_folder", launch._folder.__wrapped__)
    with afresh():
        assert ek.softmax(to_device(logits(2, 3))).shape == (2, 3)
    (folder,) = tmp_path.glob("entrokern-*")
    assert [*folder.glob("*.cubin")]
    launch._remove(folder, os.getpid() + 1)  # as a forked child ends
    assert folder.exists()
    launch._remove(folder, os.getpid())
    assert not folder.exists()


def test_a_backend_takes_the_arrays_of_its_library() -> None:
    want = softmax(THERE)
    for backend, array, came in (("cuda", HOST, "numpy"), ("reference", THERE, "cupy"), ("cpu", THERE, "cupy")):
        message = rf"use_backend\('{backend}'\) is in force, which takes .* and {came} arrays came"
        with ek.use_backend(backend), pytest.raises(TypeError, match=message):
            softmax(array)
    with ek.use_backend("cuda"):
        assert bits(softmax(THERE)) == bits(want)


def test_cupy_is_not_imported_before_it_is_needed() -> None:
    code = """
import sys

class Spy:
    def find_spec(self, name, path=None, target=None):
        assert name.partition(".")[0] not in ("cupy", "cupy_backends"), name

sys.meta_path.insert(0, Spy())
import entrokern as ek
ek.use_backend("reference")
ek.cross_entropy([[0.0, 1.0]], [1])
ek.backends()
print("cupy" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "False\n"


# --- structures ------------------------------------------------------------------------------------------

STRUCTURES = """
typedef long long i64;
struct Small {
  int a;
  double b;
};
struct Inner {
  int first;      // a hole of 4 bytes follows
  void *pointer;
  Small of_struct; i64 shape[3], one;
};
struct Arguments {
  float f;
  Inner x, y;  // two of another struct
  const double *weights, *more;  // null: none
  int flag; // one; with a semicolon in the comment
  i64 n, k[2];
  const void *anything;
  Inner many[2];
  int flags[3];
  double options[7];
  float last;
};
"""


def places(dtype: np.dtype[Any], prefix: str = "") -> dict[str, tuple[int, int]]:
    """Offset and size of each member of a structure, and of the members of those."""
    found: dict[str, tuple[int, int]] = {}
    for name in dtype.names or ():
        member, start = dtype.fields[name][:2]  # type: ignore[index]
        found[prefix + name] = start, member.itemsize
        inner = member.subdtype[0] if member.subdtype else member
        first = f"{prefix}{name}[0]" if member.subdtype else prefix + name
        found |= {key: (start + at, size) for key, (at, size) in places(inner, first + ".").items()}
    return found


@stand_in
@pytest.mark.parametrize("family", [None, *sources.FAMILIES])
def test_structures_lie_as_the_compiler_lays_them(family: str | None) -> None:
    text = STRUCTURES if family is None else sources.family_source(family)
    dtype = dtype_of("Arguments", text) if family is None else sources.arguments_of(family)
    members = places(dtype)
    found = ", ".join(f"__builtin_offsetof(Arguments, {m}), sizeof(((Arguments *)nullptr)->{m})" for m in members)
    text += f'\nextern "C" {{ __attribute__((visibility("default"))) unsigned long long found[] = {{{found}}}; }}\n'
    library = shim.compiled(text, [], sanitize=False, name=f"structures-{family}")
    got = (ctypes.c_ulonglong * 2 * len(members)).in_dll(library, "found")
    assert {name: tuple(place) for name, place in zip(members, got, strict=True)} == members
    assert ctypes.c_size_t.in_dll(library, "arguments_bytes").value == dtype.itemsize


@pytest.mark.parametrize(
    ("member", "message"),
    [
        ("unsigned n", "there is no struct unsigned"),
        ("long long n", "'long n' is no member"),
        ("Missing x", "there is no struct Missing"),
        ("int table[2][3]", r"'table\[2\]\[3\]' is no member"),
        ("int shape[AXES]", r"'shape\[AXES\]' is no member"),
        ("int **pointers", r"'\*\*pointers' is no member"),
        ("int flag : 1", "'flag : 1' is no member"),
        *((other, "is no member") for other in ("float* x", "Pair<int> x", "int(*call)(int)")),
    ],
)
def test_unknown_members_are_refused(member: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dtype_of("Arguments", f"struct Arguments {{\n  int n;\n  {member};\n}};")
    with pytest.raises(ValueError, match="there is no struct Arguments"):
        dtype_of("Arguments", "struct Other {\n  int n;\n};")
