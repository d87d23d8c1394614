"""What is special about arrays on a device: which bits come out, what waits, where things lie, what is refused.

The shared tests run every case on the device as well (`device.py`). Here its arrays are given as they are. What is
counted, and a second device, are those of the stand-in for CuPy.
"""

from __future__ import annotations

import ctypes
import inspect
import math
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import cupy  # the stand-in, if `device` has put it there
import numpy as np
import pytest

import device
import entrokern as ek
import fake_cupy
import shim
import test_outputs
from cases import BY_NAME, FLOATS, KINDS, Case, call, operands
from cuda_cases import SHARED, TABLE, in_place, spoil
from device import to_device, to_host
from entrokern import _arrays
from entrokern.cuda import launch, quantities, sources
from entrokern.cuda.sources import BYTES_OF_A_BLOCK, cluster_size
from entrokern.cuda.structures import dtype_of
from entrokern.primitives import softmax  # as it is: `device` wraps the public one

Host = np.ndarray[Any, Any]
Results = dict[str, Any]  # of a call, by name
Call = Callable[..., Any]

stand_in = pytest.mark.skipif(device.REAL, reason="of the stand-in for CuPy")
two_devices = pytest.mark.skipif(cupy.cuda.runtime.getDeviceCount() < 2, reason="there is one device")


def given(value: Any) -> Any:
    """A host array as one on the device; all else as it is."""
    return to_device(value) if isinstance(value, np.ndarray) else value


def prepared(case: Case, n: int, k: int, dtype: str, kind: str = "normal") -> tuple[list[Any], dict[str, Any]]:
    """Operands and options of a case, on the device."""
    args, options = operands(case, n, k, dtype, kind)
    return [given(a) for a in args], {name: given(value) for name, value in options.items()}


def logits(n: int, k: int, dtype: Any = np.float32, seed: int = 0) -> Host:
    return np.random.default_rng(seed).normal(size=(n, k), scale=3).astype(dtype)


def distributions(n: int, k: int, dtype: Any = np.float32, seed: int = 0) -> Host:
    e = np.exp(logits(n, k, np.float64, seed))
    return (e / e.sum(axis=1, keepdims=True)).astype(dtype)


def labels(n: int, k: int) -> Host:
    return np.random.default_rng(k).integers(0, k, size=n)


@contextmanager
def afresh() -> Iterator[None]:
    """Calls that know of no earlier ones like them."""
    with pytest.MonkeyPatch.context() as patch:
        for name in device.FUNCTIONS:
            function = getattr(ek, name).__wrapped__
            patch.setattr(ek, name, lambda *args, function=function, **options: function(*args, **options).run())
        yield


def several(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


def bits(array: Any) -> bytes:
    return to_host(array).tobytes()


# --- the same bits ---------------------------------------------------------------------------------------

LENGTHS = (1, 3, 10, 100, 1000, 4099, 16384, 16385, 40000)
N = 300
PARTS = (slice(0, 1), slice(N - 1, N), slice(120, 122), slice(7, 44))


def row_by_row(case: Case) -> Case:
    """The case with a result for each row."""
    reduces = "reduction" in inspect.signature(getattr(ek, case.function)).parameters
    return case._replace(options={**case.options, "reduction": "none"}) if reduces else case


def results_of(case: Case, args: list[Any], options: dict[str, Any], rows: slice = slice(None)) -> Results:
    """The results of some rows, which lie where they lie among all rows."""
    n = len(args[0])

    def part(value: Any) -> Any:
        return value[rows] if isinstance(value, cupy.ndarray) and len(value) == n else value

    return call(case.function, [part(a) for a in args], {name: part(value) for name, value in options.items()})


def assert_same(got: Results, want: Results, where: str, rows: Any = ...) -> None:
    assert got.keys() == want.keys()
    for name in want:
        assert bits(got[name]) == to_host(want[name])[rows].tobytes(), f"{name}, {where}"


LOSS_AND_GRADIENT = Case("", "score", ("logits", "labels"), {"outputs": ("loss", "lse", "grad")})


@pytest.mark.parametrize("k", LENGTHS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_a_row_has_its_own_bits(monkeypatch: pytest.MonkeyPatch, dtype: str, k: int) -> None:
    """Whatever comes with it, wherever it is, and however its work is shared."""
    args, options = prepared(LOSS_AND_GRADIENT, N, k, dtype)
    want = results_of(LOSS_AND_GRADIENT, args, options)
    for few, order in ((quantities.FEW_BLOCKS, 0), (0, 1)):
        monkeypatch.setattr(quantities, "FEW_BLOCKS", few)
        monkeypatch.setattr(shim, "order", order)
        for rows in PARTS:
            with afresh():
                got = results_of(LOSS_AND_GRADIENT, args, options, rows)
            assert_same(got, want, f"rows {rows.start} to {rows.stop}, few are {few}, order {order}", rows)


@pytest.mark.parametrize("case", [c for c in TABLE if c.function != "perplexity"], ids=lambda case: case.name)
def test_a_row_of_every_case_has_its_own_bits(case: Case) -> None:
    turn, case = TABLE.index(case), row_by_row(case)
    for dtype, n, k in (
        ("float32", N, LENGTHS[turn % 4]),
        ("bfloat16", 17, LENGTHS[4 + turn % 2]),
        (("float64", "float16")[turn % 2], 3, LENGTHS[5 + turn % 4]),
    ):
        args, options = prepared(case, n, k, dtype)
        want = results_of(case, args, options)
        for rows in (slice(n // 2, n // 2 + 1), slice(1, n - n // 3)):
            assert_same(results_of(case, args, options, rows), want, f"{dtype}, k = {k}, {rows}", rows)


@pytest.mark.parametrize("case", TABLE, ids=lambda case: case.name)
def test_bits_are_the_same_again_and_in_any_order(monkeypatch: pytest.MonkeyPatch, case: Case) -> None:
    turn = TABLE.index(case)
    for dtype, n, k in (("float32", N, 33), (list(FLOATS)[turn % 4], 2, 20_000)):
        args, options = prepared(case, n, k, dtype)
        want = results_of(case, args, options)
        assert_same(results_of(case, args, options), want, "again")
        monkeypatch.setattr(shim, "order", 1 - shim.order)
        assert_same(results_of(case, args, options), want, "the other order")


# --- clusters: blocks that share a row -------------------------------------------------------------------


@pytest.mark.parametrize("itemsize", [2, 4, 8])
def test_as_few_blocks_share_a_row_as_keep_it_in_cache(itemsize: int) -> None:
    for k in (1, 16_384, 16_385, 24_577, 50_000, 131_072, 262_144, 10**7):
        size, segments = cluster_size(k, itemsize), -(-k // sources.SEGMENT)
        assert size in (1, 2, 4, 8) and size <= segments
        assert k * itemsize <= size * BYTES_OF_A_BLOCK or size == 8 or 2 * size > segments
        assert size == 1 or k * itemsize > size // 2 * BYTES_OF_A_BLOCK


def backwards(values: Host) -> Any:
    return to_device(values[..., ::-1].copy())[..., ::-1]


def late(values: Host) -> Any:
    """Rows that begin where no vector does, with gaps between them."""
    k = values.shape[-1]
    return to_device(np.pad(values, ((0, 0), (1, 2))))[:, 1 : k + 1]


def apart(values: Host) -> Any:
    return to_device(np.asfortranarray(values))


OF_ROWS = {("logits",), ("logits", "labels"), ("logits", "some ignored")}


@stand_in
@pytest.mark.parametrize(
    "case", [c for c in SHARED if c.operands in OF_ROWS and in_place(c, [0])], ids=lambda c: c.name
)
def test_a_row_that_blocks_share_has_its_own_bits(monkeypatch: pytest.MonkeyPatch, case: Case) -> None:
    """Those that it has on a device without clusters: wherever it lies, in place, and after other rows."""
    turn, n, k = SHARED.index(case), 3, 50_001
    monkeypatch.setattr(quantities, "FEW_BLOCKS", 0)

    def results(written: bool = False) -> Results:
        there = [layout(args[0].copy()), *map(given, args[1:])]
        fake_cupy.reset()
        with afresh():
            got = call(case.function, there, options | (in_place(case, there) if written else {}))
        twice_read = any(re.match("softmax.*_(maps|distributions)$", name) for name in shim.launches)
        together = fake_cupy.ATTRIBUTES["ComputeCapabilityMajor"] >= 9 and twice_read
        assert max(shim.clusters) == (cluster_size(k, args[0].itemsize) if together else 1)
        return got

    for i, layout in enumerate(((late, apart), (to_device, backwards))[turn % 2]):
        args, options = operands(case, n, k, list(FLOATS)[(turn // 2 + i) % 4], KINDS[turn % len(KINDS)])
        spoil(case, args)
        options = {name: given(value) for name, value in options.items()}
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(fake_cupy.ATTRIBUTES, "ComputeCapabilityMajor", 8)
            want = results()
        assert_same(results(), want, layout.__name__)
        assert_same(results(written=True), want, f"{layout.__name__}, in place")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(launch, "MOST_BLOCKS", 8)
            assert_same(results(), want, f"{layout.__name__}, one after another")


@stand_in
@pytest.mark.parametrize("missing", [0, 1])
def test_a_missing_barrier_of_a_cluster_is_seen(monkeypatch: pytest.MonkeyPatch, missing: int) -> None:
    name, barrier = "softmax_float32_maps", "if (shared) cluster_barrier();"
    text = sources.source([sources.KERNELS[name]])
    parts = text.split(barrier)
    assert len(parts) == 3
    x, y = to_device(logits(2, 40_000)), to_device(labels(2, 40_000))
    monkeypatch.setattr(quantities, "FEW_BLOCKS", 0)

    def gradient() -> Host:
        return to_host(ek.cross_entropy(x, y, reduction="none", return_grad=True)[1])

    want = gradient()
    text = barrier.join(parts[: missing + 1]) + barrier.join(parts[missing + 1 :])
    planted = shim.compiled(text, [name], name="planted")
    monkeypatch.setattr(shim, "library", lambda family: planted)
    for order in (0, 1):
        monkeypatch.setattr(shim, "order", order)
        assert (gradient() != want).any()


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
    # Weights of classes (or elements: few) are there as float64, and perhaps in the type that is computed with.
    weights = [v for o, v in options.items() if o in ("class_weight", "pos_weight", "sample_weight")]
    allowed += sum(12 * w.size for w in weights if w.shape != (n,) and w.size <= _arrays.SMALL)
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
    all_of += [(case, 3, 20_000, dtype, np.asarray) for case in SHARED for dtype in FLOATS]
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


# --- arrays of others ------------------------------------------------------------------------------------


class Foreign:
    """An array of a library that says where it lies."""

    def __init__(self, array: Any, read_only: bool = False) -> None:
        self.array = array
        where = {"data": (array.data.ptr, read_only), "stream": None}
        self.__cuda_array_interface__ = array.__cuda_array_interface__ | where


VIEWS: dict[str, Call] = {
    "contiguous": lambda x: x,
    "transposed": lambda x: x.T,
    "backwards": lambda x: x[::-1, ::-1],
    "with gaps": lambda x: x[::2, 1::3],
    "one row for all": lambda x: cupy.broadcast_to(x[:1], x.shape),
}


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("read_only", [False, True])
def test_what_has_an_interface_is_read_where_it_lies(view: str, read_only: bool) -> None:
    x = VIEWS[view](to_device(logits(60, 60)))
    n, k = x.shape
    y, weight = to_device(labels(n, k)), to_device(np.linspace(0, 1, n))
    want = ek.cross_entropy(x, y, reduction="none", sample_weight=weight)
    fake_cupy.reset()
    there = [Foreign(a, read_only) for a in (x, y, weight)]
    got = ek.cross_entropy(there[0], there[1], reduction="none", sample_weight=there[2])
    assert type(got) is cupy.ndarray and got.device == x.device
    assert bits(got) == bits(want)
    assert fake_cupy.synchronisations == 0 and sum(fake_cupy.allocations) <= 64 * n


@pytest.mark.parametrize("view", ["contiguous", "transposed", "backwards", "with gaps"])
def test_what_has_an_interface_is_written_where_it_lies(view: str) -> None:
    x = VIEWS[view](to_device(logits(60, 60)))
    y = to_device(labels(*x.shape))
    want_loss, want = ek.cross_entropy(x, y, reduction="none", return_grad=True)
    out = cupy.empty(len(x), np.float32)
    ek.cross_entropy(Foreign(x), y, reduction="none", out=Foreign(out), grad_out=Foreign(x))
    assert bits(x) == bits(want) and bits(out) == bits(want_loss)


def test_what_says_that_it_is_read_only_is_not_written() -> None:
    x = to_device(logits(3, 4))
    before = bits(x)
    with pytest.raises(ValueError, match="out is read-only"):
        ek.softmax(to_device(logits(3, 4)), out=Foreign(x, read_only=True))
    assert bits(x) == before


def test_elements_off_their_own_alignment_are_refused() -> None:
    """A GPU cannot read them, and would not say which array it was."""
    shifted = cupy.zeros(4 * 12 + 1, np.uint8)[1:].view(np.float32).reshape(3, 4)
    for call_of in (ek.softmax, lambda x: ek.cross_entropy(THERE, x), lambda x: ek.softmax(THERE, out=x)):
        with pytest.raises(ValueError, match="elements of 4 bytes that do not lie at multiples of 4"):
            call_of(shifted)


def test_tensors_of_the_host_are_refused() -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is an extra: pip install 'entrokern[torch]'")
    x, y = to_device(logits(3, 4)), to_device(labels(3, 4))
    tensor = torch.zeros(3, 4)
    with pytest.raises(TypeError, match=r"x is a \w*cupy ndarray and target is a torch Tensor"):
        ek.cross_entropy(x, tensor)
    with pytest.raises(TypeError, match=r"target is a \w*cupy ndarray and x is a torch Tensor"):
        ek.cross_entropy(tensor, y)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_tensors_of_the_device_are_read_where_they_lie(dtype: str) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is an extra: pip install 'entrokern[torch]'")
    if not torch.cuda.is_available():
        pytest.skip("PyTorch sees no GPU")
    x, y = torch.randn(300, 40).to(getattr(torch, dtype)), torch.arange(300) % 40
    there, labels_there = x.cuda().requires_grad_(), y.cuda()
    with torch.cuda.stream(torch.cuda.Stream()):
        got = ek.cross_entropy(there, labels_there, reduction="none")
        got.backward(torch.linspace(-1, 1, 300, device="cuda"))
    torch.cuda.synchronize()
    assert got.is_cuda and there.grad.is_cuda and there.grad.dtype == x.dtype
    here = x.requires_grad_()
    want = ek.cross_entropy(here, y, reduction="none")
    want.backward(torch.linspace(-1, 1, 300))
    torch.testing.assert_close(got.cpu(), want)
    torch.testing.assert_close(there.grad.cpu(), here.grad, rtol=1e-2 if dtype == "bfloat16" else 1e-5, atol=1e-6)
    out = torch.empty_like(there)
    assert ek.softmax(there.detach(), out=out) is out and abs(out[0].sum().item() - 1) < 1e-2


HOST: Any = np.full((3, 4), 0.25, np.float32)
THERE: Any = to_device(HOST.copy())
MIXED: dict[str, tuple[Call, str]] = {
    "target": (lambda: ek.cross_entropy(THERE, HOST), "x is a .* and target is a numpy ndarray"),
    "x": (lambda: ek.cross_entropy(HOST, THERE), "x is a numpy ndarray and target is a .*cupy ndarray"),
    "q": (lambda: ek.kl_divergence(THERE, HOST), "p is a .*cupy ndarray and q is a numpy ndarray"),
    "class_weight": (lambda: ek.cross_entropy(THERE, THERE, class_weight=HOST[0]), "and class_weight is a numpy"),
    "sample_weight": (lambda: ek.entropy(THERE, sample_weight=HOST[:, 0]), "and sample_weight is a numpy ndarray"),
    "pos_weight": (lambda: ek.binary_cross_entropy(THERE, THERE, pos_weight=HOST), "and pos_weight is a numpy ndarray"),
    "out": (lambda: ek.softmax(THERE, out=HOST), "x is a .*cupy ndarray and out is a numpy ndarray"),
    "out of the device": (lambda: ek.softmax(HOST, out=THERE), "x is a numpy ndarray and out is a .*cupy ndarray"),
    "grad_out": (lambda: ek.score(THERE, THERE, grad_out=HOST), "and grad_out is a numpy ndarray"),
    "hess_out": (lambda: ek.cross_entropy(HOST, HOST, hess_out=THERE), "x is a numpy ndarray and hess_out is a .*cupy"),
    "a pair": (lambda: ek.kl_divergence(THERE, THERE, grad_out=(THERE, HOST)), r"and grad_out\[q\] is a numpy ndarray"),
    "a list as q": (lambda: ek.kl_divergence(THERE, HOST.tolist()), "p is a .*cupy ndarray, but q a list; make both"),
    "a list as p": (lambda: ek.js_divergence(HOST.tolist(), THERE), "q is a .*cupy ndarray, but p a list; make both"),
    "a list as x": (lambda: ek.cross_entropy(HOST.tolist(), THERE), "target is a .*, but x a list; make both"),
    "a list as log_q": (lambda: ek.kl_estimate(THERE, HOST.tolist()), "log_p is a .*, but log_q a list; make both"),
    "a list as out": (lambda: ek.softmax(THERE, out=[0.0]), "out is a list; pass a CuPy array of shape"),
}  # fmt: skip


@pytest.mark.parametrize("what", MIXED)
def test_arrays_of_two_libraries_are_refused(what: str) -> None:
    compute, message = MIXED[what]
    with pytest.raises(TypeError, match=message):
        compute()
    assert (HOST == 0.25).all() and (to_host(THERE) == 0.25).all()


LISTS: dict[str, Call] = {
    "labels": lambda made: ek.cross_entropy(THERE, made([0, 3, 1])),
    "distributions": lambda made: ek.cross_entropy(THERE, made(HOST.tolist())),
    "one-hot": lambda made: ek.cross_entropy(THERE, made(np.eye(4, dtype=bool)[:3].tolist())),
    "class_weight": lambda made: ek.cross_entropy(THERE, THERE, class_weight=made([1, 2, 0, 0.5])),
    "sample_weight": lambda made: ek.entropy(THERE, sample_weight=made([1.0, 2.0, 0.0]), reduction="mean"),
    "binary targets": lambda made: ek.binary_cross_entropy(THERE, made([[0, 1, 1, 0]] * 3)),
    "pos_weight": lambda made: ek.binary_cross_entropy(THERE, THERE, pos_weight=made([1, 2, 3, 4])),
}


@pytest.mark.parametrize("what", LISTS)
def test_lists_beside_arrays(what: str) -> None:
    got = LISTS[what](lambda values: values)
    assert type(got) is cupy.ndarray
    assert bits(got) == bits(LISTS[what](lambda values: to_device(np.array(values))))


def test_numbers_beside_arrays() -> None:
    row = THERE[0]
    assert bits(ek.cross_entropy(row, 2, reduction="none")) == bits(ek.cross_entropy(THERE, [2, 2, 2]))
    got = ek.binary_cross_entropy(THERE, THERE, pos_weight=3)
    assert bits(got) == bits(ek.binary_cross_entropy(THERE, THERE, pos_weight=[3.0] * 4))


def test_integers_are_computed_as_float64() -> None:
    x = to_device(np.arange(12).reshape(3, 4))
    assert bits(ek.softmax(x)) == bits(ek.softmax(x.astype(np.float64)))


# --- devices ---------------------------------------------------------------------------------------------


def on_second(value: Any) -> Any:
    with cupy.cuda.Device(1):
        return cupy.asarray(value) if isinstance(value, np.ndarray) else value


SECOND: Any = on_second(HOST) if cupy.cuda.runtime.getDeviceCount() > 1 else None


@two_devices
@pytest.mark.parametrize("case", SHARED, ids=lambda case: case.name)
def test_a_call_runs_where_its_arrays_are(case: Case) -> None:
    for n, k in ((5, 7), (2, 20_000), (0, 4)):
        args, options = operands(case, n, k, "float32")
        there = [on_second(a) for a in args], {name: on_second(value) for name, value in options.items()}
        for _ in range(2):
            fake_cupy.reset()
            results = call(case.function, *there)
            assert cupy.cuda.Device().id == 0
            assert {r.device.id for r in results.values()} == {1}
            assert device.REAL or {*fake_cupy.launched_on} <= {1}
            assert_same(results, call(case.function, *prepared(case, n, k, "float32")), f"{n} x {k}")


@two_devices
@pytest.mark.parametrize("name", ["ce labels grad", "ce weights", "perplexity", "bce weights", "js probs probs"])
def test_a_call_by_names_runs_where_its_arrays_are(name: str) -> None:
    case = BY_NAME[name]
    args, options = operands(case, 5, 7, "float32")
    named = dict(zip(inspect.signature(getattr(ek, case.function)).parameters, args, strict=False))
    there = {name: on_second(value) for name, value in (named | options).items()}
    for _ in range(2):
        fake_cupy.reset()
        results = several(getattr(ek, case.function)(**there))
        assert {r.device.id for r in results} == {1}
        assert device.REAL or {*fake_cupy.launched_on} == {1}


ON_SECOND: dict[str, Call] = {
    "labels": lambda: ek.cross_entropy(SECOND, on_second(np.zeros(3, np.int64)), validate=True),
    "binary targets": lambda: ek.binary_cross_entropy(SECOND, on_second(np.zeros((3, 4), np.int64)), validate=True),
    "distributions": lambda: ek.entropy(SECOND, validate=True),
    "elements": lambda: ek.information(SECOND, validate=True),
    "integers": lambda: ek.softmax(on_second(np.zeros((3, 4), np.int32))),
}


@two_devices
@pytest.mark.parametrize("what", ON_SECOND)
def test_checks_run_where_the_arrays_are(what: str) -> None:
    assert ON_SECOND[what]().device.id == 1


@two_devices
def test_what_has_an_interface_is_used_where_it_is() -> None:
    there = Foreign(on_second(HOST))
    ek.softmax(SECOND, out=there)
    assert bits(there.array) == bits(ek.softmax(THERE))
    assert ek.softmax(there).device.id == 1


APART: dict[str, Call] = {
    "labels": lambda: ek.cross_entropy(THERE, on_second(np.zeros(3, np.int64))),
    "distributions": lambda: ek.cross_entropy(THERE, SECOND),
    "q": lambda: ek.kl_divergence(THERE, SECOND),
    "binary targets": lambda: ek.binary_cross_entropy(THERE, SECOND),
    "log_q": lambda: ek.kl_estimate(THERE, SECOND),
    "sample_weight": lambda: ek.entropy(THERE, sample_weight=SECOND[:, 0]),
    "class_weight": lambda: ek.cross_entropy(THERE, THERE, class_weight=SECOND[0]),
    "pos_weight": lambda: ek.binary_cross_entropy(THERE, THERE, pos_weight=SECOND),
    "out": lambda: ek.softmax(THERE, out=SECOND),
    "grad_out": lambda: ek.cross_entropy(THERE, THERE, grad_out=SECOND),
    "a pair": lambda: ek.kl_divergence(THERE, THERE, grad_out=(SECOND, cupy.empty((3, 4), np.float32))),
}


@two_devices
@pytest.mark.parametrize("what", APART)
def test_arrays_of_two_devices_are_refused(what: str) -> None:
    with pytest.raises(ValueError, match=r"on GPU 1, \w+ on GPU 0"):
        APART[what]()


# --- targets and weights out of range --------------------------------------------------------------------


@pytest.mark.parametrize("few", [True, False])
@pytest.mark.parametrize("k", [1, 7, 300, 20_000])
@pytest.mark.parametrize("dtype", FLOATS)
def test_labels_out_of_range_make_their_rows_nan(
    monkeypatch: pytest.MonkeyPatch, dtype: str, k: int, few: bool
) -> None:
    monkeypatch.setattr(quantities, "FEW_BLOCKS", 100 if few else 0)
    n, rows = 8, [1, 4, 7]
    x, y = to_device(logits(n, k, FLOATS[dtype])), labels(n, k)
    spoilt = y.copy()
    spoilt[rows] = [k, -1, -(2**63)]
    outputs = ("loss", "lse", "log_prob", "entropy", "argmax", "rank", "max_prob", "grad", "hess")
    good, bad = (ek.score(x, to_device(t), outputs=outputs) for t in (y, spoilt))
    for name in outputs:
        want, got = to_host(getattr(good, name)), to_host(getattr(bad, name))
        others = np.delete(np.arange(n), rows) if name in ("loss", "log_prob", "rank", "grad", "hess") else np.arange(n)
        assert got[others].tobytes() == want[others].tobytes(), name
    for name in ("loss", "log_prob", "grad", "hess"):
        assert np.isnan(to_host(getattr(bad, name))[rows].astype(np.float32)).all(), name
    assert to_host(bad.rank)[rows].tolist() == [-1] * 3


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1}, {"softcap": 5.0}, {"form": "probs"}])
def test_labels_out_of_range_of_every_kernel(options: dict[str, Any]) -> None:
    x = to_device(distributions(5, 33))
    y = labels(5, 33)
    want = ek.cross_entropy(x, to_device(y), reduction="none", return_grad=True, **options)
    y[2] = 33
    got = ek.cross_entropy(x, to_device(y), reduction="none", return_grad=True, **options)
    others = [0, 1, 3, 4]
    for value, expected in zip(got, want, strict=True):
        assert np.isnan(to_host(value)[2]).all()
        assert to_host(value)[others].tobytes() == to_host(expected)[others].tobytes()
    assert np.isnan(to_host(ek.cross_entropy(x, to_device(y), **options)))
    assert np.isfinite(to_host(ek.cross_entropy(x, to_device(y), ignore_index=33, **options)))


@pytest.mark.parametrize("axis", [None, -1])
def test_binary_targets_out_of_range_are_nan(axis: int | None) -> None:
    x, t = to_device(logits(6, 33)), np.random.default_rng(0).integers(0, 2, size=(6, 33)).astype(np.uint8)
    options: dict[str, Any] = {"axis": axis, "reduction": "none", "return_grad": True, "return_hess": True}
    want = ek.binary_cross_entropy(x, to_device(t), **options)
    t[2, 5] = 255
    got = ek.binary_cross_entropy(x, to_device(t), **options)
    for value, expected in zip(got, want, strict=True):
        bad = np.zeros(value.shape, bool)
        bad[(2, 5) if axis is None else 2] = True
        value, expected = to_host(value), to_host(expected)
        assert np.isnan(value[bad]).all() and value[~bad].tobytes() == expected[~bad].tobytes()


@pytest.mark.parametrize("label", [7, -1, -100, 2**40])
def test_validate_names_the_lowest_row(label: int) -> None:
    x, y = to_device(logits(6, 7)), labels(6, 7)
    y[[3, 5]] = label, -7
    y = to_device(y)
    out, grad = cupy.full((), 7, np.float32), cupy.full((6, 7), 7, np.float32)
    with pytest.raises(
        IndexError, match=rf"label {label} of row 3 is out of range for k = 7 classes \(0 to 6\)"
    ) as error:
        ek.cross_entropy(x, y, out=out, grad_out=grad, validate=True)
    assert ("pass `ignore_index=-100`" in str(error.value)) == (label == -100)
    before = bits(x)
    with pytest.raises(IndexError, match="row 3 "):
        ek.score(x, y, grad_out=x, validate=True)
    with pytest.raises(IndexError, match="row 3 "):
        ek.perplexity(x, y, validate=True)
    with pytest.raises(IndexError, match=r"row \(1, 1\) "):
        ek.cross_entropy(x.reshape(3, 2, 7), y.reshape(3, 2), validate=True)
    assert bits(x) == before
    assert (to_host(out) == 7).all() and (to_host(grad) == 7).all()


def test_validate_names_the_lowest_binary_target() -> None:
    x, t = to_device(logits(3, 5)), np.zeros((3, 5), np.int64)
    t[1, 4] = t[2, 0] = 255
    grad = cupy.full((3, 5), 7, np.float32)
    for axis in (None, -1):
        with pytest.raises(IndexError, match=r"target 255 at row \(1, 4\) is out of range"):
            ek.binary_cross_entropy(x, to_device(t), axis=axis, grad_out=grad, validate=True)
    assert (to_host(grad) == 7).all()


@pytest.mark.parametrize("weight", [-1.0, np.nan, np.inf])
def test_class_weights_are_looked_at_when_asked(weight: float) -> None:
    x, y = to_device(logits(5, 4)), to_device(np.array([0, 1, 2, 3, 1]))
    weights = to_device(np.array([1, 2, weight, 1.0]))
    loss = to_host(ek.cross_entropy(x, y, class_weight=weights, reduction="none"))
    assert np.isfinite(loss[[0, 1, 3, 4]]).all()
    with pytest.raises(ValueError, match=r"class_weight\[2\] = .*; class weights must be finite and 0 or greater"):
        ek.cross_entropy(x, y, class_weight=weights, validate=True)


# --- in place --------------------------------------------------------------------------------------------

SHAPES = ((300, 1), (70, 7), (9, 300), (2, 20_000))


def framed(values: Host) -> tuple[Host, Host]:
    """`values` in every other row of a larger array, backwards, and the array."""
    n, k = values.shape
    frame = np.ones((2 * n, k + 3), values.dtype)
    view = frame[::-2, 1 : k + 1]
    view[...] = values
    return view, frame


@pytest.mark.parametrize("case", [c for c in TABLE if in_place(c, [0, 0])], ids=lambda case: case.name)
def test_results_take_the_places_of_their_operands(case: Case) -> None:
    """Gradients and maps: of each row, also of one that is left to a second kernel."""
    turn = TABLE.index(case)
    for i, (n, k) in enumerate(SHAPES):
        args, options = operands(case, n, k, list(FLOATS)[(turn + i) % 4], KINDS[(turn // 4 + i) % len(KINDS)])
        spoil(case, args)
        options = {name: given(value) for name, value in options.items()}
        views, frames = zip(*(framed(a) if a.ndim == 2 else (a, a) for a in args), strict=True)
        for place in (args, list(views)):
            there = [given(a) for a in place]
            want = call(case.function, there, options)
            written = in_place(case, there)
            got = call(case.function, there, options | written)
            assert_same(got, want, f"{n} x {k}")
            for array in several(*written.values()):
                assert any(result is array for result in got.values())
        for frame, view in zip(frames, views, strict=True):
            if view is not frame and not device.REAL:
                view[...] = 1
                assert (frame == 1).all()


# Arrays of the device are never read-only, and masked ones do not exist there.
OF_THE_HOST = {"out masked", "out read-only"}


@stand_in
@pytest.mark.parametrize("case", [case for case in test_outputs.REFUSED if case not in OF_THE_HOST])
def test_outputs_are_refused_as_on_the_host(case: str) -> None:
    compute, error, message = test_outputs.REFUSED[case]
    with ek.use_backend("cuda"), pytest.raises(error, match=message.replace("NumPy", "CuPy")):
        compute()


# --- one number for all rows -----------------------------------------------------------------------------


def reduced(n: int, **options: Any) -> Call:
    return lambda **more: ek.cross_entropy(to_device(logits(n, 5)), to_device(labels(n, 5)), **options, **more)


NOTHING_COUNTS: dict[str, Call] = {
    "no rows": reduced(0),
    "weights 0": reduced(3, sample_weight=[0, 0, 0]),
    "class weights 0": reduced(3, class_weight=[0] * 5),
    "ignored": lambda **o: ek.cross_entropy(to_device(logits(2, 5)), [-100, -100], ignore_index=-100, **o),
    "no elements": lambda **o: ek.binary_cross_entropy(to_device(logits(0, 5)), to_device(logits(0, 5)), **o),
    "elements ignored": lambda **o: ek.binary_cross_entropy(to_device(logits(1, 2)), [[7, 7]], ignore_index=7, **o),
    "summed rows ignored": lambda **o: ek.binary_cross_entropy(
        to_device(logits(1, 2)), [[7, 7]], ignore_index=7, axis=-1, **o
    ),
}


@pytest.mark.parametrize("how", NOTHING_COUNTS)
def test_when_nothing_counts(how: str) -> None:
    compute = NOTHING_COUNTS[how]
    for options in ({}, {"return_grad": True}):
        for on_empty, value in (("nan", np.nan), ("zero", 0.0)):
            loss, *grad = several(compute(on_empty=on_empty, **options))
            assert type(loss) is cupy.ndarray and (loss.shape, loss.dtype) == ((), np.float32)
            np.testing.assert_equal(float(loss), value)
            assert not any(to_host(g).any() for g in grad)
        with pytest.raises(ValueError, match="no row counts: the mean's denominator is 0"):
            compute(on_empty="raise", **options)
    assert float(compute(reduction="sum", on_empty="raise")) == 0
    grad = cupy.full_like(compute(return_grad=True)[1], 7)
    with pytest.raises(ValueError, match="no row counts"):
        compute(on_empty="raise", grad_out=grad)
    assert (to_host(grad) == 7).all()


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("n", [1, 1000, 40_000])
def test_reductions_are_of_the_rows(dtype: str, n: int) -> None:
    x, y = logits(n, 3, FLOATS[dtype]), np.where(np.arange(n) % 5 == 3, -100, labels(n, 3))
    weight = np.linspace(0, 2, n) + 0.5
    there, options = (to_device(x), to_device(y)), {"sample_weight": to_device(weight), "ignore_index": -100}
    rows = to_host(ek.cross_entropy(*there, reduction="none", **options))
    wide = np.dtype(np.float64 if dtype == "float64" else np.float32)
    total, count = math.fsum(rows.astype(float)), math.fsum(weight[y >= 0])
    for reduction, want in (("sum", total), ("mean", total / count)):
        got = ek.cross_entropy(*there, reduction=reduction, **options)
        assert type(got) is cupy.ndarray and (got.shape, got.dtype) == ((), wide)
        np.testing.assert_allclose(float(got), want, rtol=float(np.finfo(wide).eps))
        out = cupy.empty((), wide)
        assert ek.cross_entropy(*there, reduction=reduction, out=out, **options) is out and bits(out) == bits(got)
    perplexity = ek.perplexity(*there, **options)
    assert type(perplexity) is cupy.ndarray and (perplexity.shape, perplexity.dtype) == ((), wide)
    np.testing.assert_allclose(float(perplexity), math.exp(total / count), rtol=4 * float(np.finfo(wide).eps))


def test_a_mean_of_many_rows_is_right_to_the_last_bit() -> None:
    """A sum in float32 would be off in the fourth digit."""
    n = 200_000
    x, y = to_device(logits(n, 3)), to_device(labels(n, 3))
    rows = to_host(ek.cross_entropy(x, y, reduction="none"))
    got = float(ek.cross_entropy(x, y))
    assert abs(got - math.fsum(rows.astype(float)) / n) <= np.spacing(np.float32(got))
    elements = to_host(ek.binary_cross_entropy(x, 0 * x, reduction="none"))
    got = float(ek.binary_cross_entropy(x, 0 * x))
    want = math.fsum(elements.astype(float).ravel()) / elements.size
    assert abs(got - want) <= np.spacing(np.float32(got))


def test_a_perplexity_when_nothing_counts() -> None:
    x, y = to_device(logits(3, 4)), to_device(np.full(3, -100))
    assert np.isnan(float(ek.perplexity(x, y, ignore_index=-100)))
    assert float(ek.perplexity(x, y, ignore_index=-100, on_empty="zero")) == 1
    with pytest.raises(ValueError, match="no row counts"):
        ek.perplexity(x, y, ignore_index=-100, on_empty="raise")


# --- layouts ---------------------------------------------------------------------------------------------


def many_axes(values: Host) -> Host:
    """Rows, 32 of them, along five axes of a larger array, of which no two lie in memory like one."""
    view = np.full((4,) * 5 + (values.shape[-1],), 99).astype(values.dtype)[(slice(None, None, 2),) * 5]
    view[...] = values.reshape(view.shape)
    assert len(_arrays.merged_axes(view.shape[:-1], view.strides[:-1])[0]) == 5
    return view


def turned(values: Host) -> Host:
    """The same with all axes in the opposite order in memory, and all of them backwards."""
    view = many_axes(values)
    frame = np.empty(view.shape[::-1], view.dtype).T[(slice(None, None, -1),) * view.ndim]
    frame[...] = view
    return frame


@pytest.mark.parametrize("layout", [many_axes, turned])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "name",
    [
        *("ce dense grad", "bce weights", "entropy logits", "kl probs logits", "softmax", "information"),
        *("ce labels hess", "ce smoothed", "bce rows", "score labels"),
    ],
)
def test_more_axes_than_kernels_know(name: str, dtype: str, layout: Call) -> None:
    case = BY_NAME[name]
    args, options = operands(case, 32, 21, dtype)

    def placed(value: Any) -> Any:
        if not isinstance(value, np.ndarray) or len(value) != 32:
            return value
        return layout(value) if value.ndim == 2 else layout(value[:, None])[..., 0]

    want = call(case.function, [given(a) for a in args], {o: given(v) for o, v in options.items()})
    there = [given(placed(a)) for a in args], {o: given(placed(v)) for o, v in options.items()}
    got = call(case.function, *there)
    eps = 2.0**-7 if dtype == "bfloat16" else 2.0**-21
    for output, value in want.items():
        value = to_host(value).astype(float)
        np.testing.assert_allclose(to_host(got[output]).astype(float).reshape(value.shape), value, rtol=eps, atol=eps)


@pytest.mark.parametrize("layout", [many_axes, turned])
def test_outputs_along_more_axes_than_kernels_know(layout: Call) -> None:
    x, y = logits(32, 21), labels(32, 21)
    want = ek.cross_entropy(to_device(x), to_device(y), reduction="none", return_grad=True, return_hess=True)
    places = [layout(np.zeros((32, k), np.float32)) for k in (1, 21, 21)]
    out, grad, hess = to_device(places[0][..., 0]), to_device(places[1]), to_device(places[2])
    shape = places[1].shape
    got = ek.cross_entropy(
        to_device(x.reshape(shape)),
        to_device(y.reshape(shape[:-1])),
        reduction="none",
        out=out,
        grad_out=grad,
        hess_out=hess,
    )
    for value, place, expected in zip(got, (out, grad, hess), want, strict=True):
        assert value is place and bits(value) == bits(expected)
    there = to_device(layout(x))
    ek.cross_entropy(there, to_device(y.reshape(shape[:-1])), reduction="none", grad_out=there)
    np.testing.assert_allclose(to_host(there).reshape(32, 21), to_host(want[1]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("axis", [0, 1, 2, 3])
@pytest.mark.parametrize("dtype", FLOATS)
def test_pictures(dtype: str, axis: int) -> None:
    """The classes of NCHW arrays lie apart, and those of Fortran's order too."""
    shape = [2, 3, 4, 5]
    shape[axis] = 37
    x = logits(1, math.prod(shape), FLOATS[dtype]).reshape(shape)
    flat = np.moveaxis(x, axis, -1)
    y = labels(math.prod(flat.shape[:-1]), 37)
    want = ek.cross_entropy(to_device(flat.reshape(-1, 37)), to_device(y), reduction="none", return_grad=True)
    eps = float(np.finfo(np.float32).eps) if x.itemsize == 4 else {2: 2.0**-7, 8: 2.0**-50}[x.itemsize]
    for place in (x, np.asfortranarray(x), x[::-1].copy()[::-1]):
        there = to_device(place), to_device(y.reshape(flat.shape[:-1]))
        loss, grad = ek.cross_entropy(*there, axis=axis, reduction="none", return_grad=True)
        assert grad.shape == x.shape
        np.testing.assert_allclose(to_host(loss).ravel(), to_host(want[0]), rtol=1e-5)
        got = np.moveaxis(to_host(grad), axis, -1).reshape(-1, 37).astype(float)
        np.testing.assert_allclose(got, to_host(want[1]).astype(float), rtol=8 * eps, atol=8 * eps)


@pytest.mark.parametrize("q_form", ["logits", "probs"])
@pytest.mark.parametrize("p_form", ["logits", "probs"])
def test_one_reference_row_for_all(p_form: str, q_form: str) -> None:
    p, q = distributions(40, 300), distributions(1, 300, seed=1)[0]
    options: dict[str, Any] = {"p_form": p_form, "q_form": q_form, "return_grad": "both"}
    want = ek.kl_divergence(to_device(p), to_device(np.tile(q, (40, 1))), **options)
    fake_cupy.reset()
    got = ek.kl_divergence(to_device(p), to_device(q), **options)
    assert device.REAL or sum(fake_cupy.allocations) - sum(g.nbytes for g in got) < q.nbytes
    for value, expected in zip(got, want, strict=True):
        assert value.shape == expected.shape
        np.testing.assert_allclose(to_host(value), to_host(expected), rtol=1e-5, atol=1e-6)


# --- what is missing -------------------------------------------------------------------------------------

EXTRA = r"pip install 'entrokern\[cuda13\]'"


def test_without_cupy(monkeypatch: pytest.MonkeyPatch) -> None:
    x = Foreign(to_device(logits(3, 4)))
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(RuntimeError, match=rf"x \(a test_cuda Foreign\) lies in a GPU's memory, .*{EXTRA}") as error:
        ek.softmax(x)
    assert "\n" not in str(error.value)


def raising(error: Exception) -> Any:
    """A module that does not come to compile, and one that fails at the first kernel."""

    class Early:
        def __init__(self, **options: Any) -> None:
            raise error

    class Late:
        def __init__(self, **options: Any) -> None: ...

        def get_function(self, name: str) -> Any:
            raise error

    return Early, Late


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
def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    x = to_device(logits(3, 4))
    monkeypatch.setattr(launch, "_functions", {})
    for module in raising(error):
        monkeypatch.setattr(cupy, "RawModule", module)
        message = rf"the compiler of CUDA kernels \(NVRTC\) is not there: {EXTRA}"
        with afresh(), pytest.raises(RuntimeError, match=message) as raised:
            ek.softmax(x)
        assert raised.value.__cause__ is error and "\n" not in str(raised.value)
    monkeypatch.undo()
    assert ek.softmax(x).shape == (3, 4)


@pytest.mark.parametrize("error", OTHERWISE, ids=repr)
def test_other_errors_of_a_compiler_are_shown(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    x = to_device(logits(3, 4))
    monkeypatch.setattr(launch, "_functions", {})
    for module in raising(error):
        monkeypatch.setattr(cupy, "RawModule", module)
        with afresh(), pytest.raises(type(error)) as raised:
            ek.softmax(x)
        assert raised.value is error


@stand_in
def test_kernels_are_compiled_once_for_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []
    monkeypatch.setattr(launch, "_functions", {})
    module = cupy.RawModule

    def noted(*, code: str, options: tuple[str, ...]) -> Any:
        compiled.append((cupy.cuda.Device().id, code))
        return module(code=code, options=options)

    monkeypatch.setattr(cupy, "RawModule", noted)
    with afresh():
        for k in (3, 3, 100, 7, 20_000):
            ek.softmax(to_device(logits(2, k)))
            ek.softmax(on_second(logits(2, k)))
    assert len(compiled) == len({*compiled}) and {place for place, _ in compiled} == {0, 1}


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
