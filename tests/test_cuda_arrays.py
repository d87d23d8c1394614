"""Which arrays a device takes, and where: those of others, on several devices, of any layout, in place."""

from __future__ import annotations

import inspect
import math
from typing import Any

import cupy  # the stand-in, if `device` has put it there
import numpy as np
import pytest

import device
import entrokern as ek
import fake_cupy
import test_outputs
from cases import BY_NAME, FLOATS, KINDS, Case, call, operands
from cuda_calls import (
    HOST,
    THERE,
    Call,
    Foreign,
    Host,
    Results,
    assert_same,
    bits,
    distributions,
    given,
    labels,
    logits,
    on_second,
    prepared,
    several,
    stand_in,
    two_devices,
)
from cuda_cases import SHARED, TABLE, in_place, spoil
from device import to_device, to_host
from entrokern import _arrays

# --- arrays of others ------------------------------------------------------------------------------------


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
    y = to_device(labels(3, 4))
    for call_of in (
        ek.softmax,
        lambda x: ek.cross_entropy(THERE, x),
        lambda x: ek.cross_entropy(THERE, y, class_weight=x[0]),
        lambda x: ek.binary_cross_entropy(THERE, THERE, pos_weight=x),
        lambda x: ek.softmax(x, axis=0),
        lambda x: ek.softmax(THERE, out=x),
    ):
        call_of(cupy.zeros((3, 4), np.float32))  # a call like it, which is in order
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
    "weights of labels": lambda: [
        ek.cross_entropy(THERE, to_device(labels(3, 4)), class_weight=w[0]) for w in (THERE, SECOND)
    ],
    "pos_weight": lambda: [ek.binary_cross_entropy(THERE, THERE, pos_weight=w) for w in (THERE, SECOND)],
    "another axis": lambda: [ek.entropy(THERE, sample_weight=w[0], axis=0) for w in (THERE, SECOND)],
    "out": lambda: ek.softmax(THERE, out=SECOND),
    "grad_out": lambda: ek.cross_entropy(THERE, THERE, grad_out=SECOND),
    "a pair": lambda: ek.kl_divergence(THERE, THERE, grad_out=(SECOND, cupy.empty((3, 4), np.float32))),
}


@two_devices
@pytest.mark.parametrize("what", APART)
def test_arrays_of_two_devices_are_refused(what: str) -> None:
    with pytest.raises(ValueError, match=r"on GPU 1, \w+ on GPU 0"):
        APART[what]()


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


NEAR, FAR = 512, (1 << 31) + 512


def apart(values: Host, distance: int) -> Host:
    """Two rows so many elements apart, or of more and shorter ones the first class and the last."""
    n, k = values.shape
    strides = (distance, 1) if n == 2 else (1, distance // (k - 1))
    memory = np.empty((n - 1) * strides[0] + (k - 1) * strides[1] + 1, values.dtype)  # hardly any of it is touched
    view = np.lib.stride_tricks.as_strided(memory, (n, k), tuple(values.itemsize * step for step in strides))
    view[...] = values
    return view


@pytest.mark.parametrize("case", [c for c in TABLE if in_place(c, [0, 0])], ids=lambda case: case.name)
def test_rows_and_classes_may_be_further_apart_than_32_bits_reach(case: Case) -> None:
    turn = TABLE.index(case)
    n, k = ((2, 300), (5, 3))[turn % 2]
    args, options = operands(case, n, k, ("float16", "bfloat16")[turn // 2 % 2])
    options = {name: given(value) for name, value in options.items()}

    def results(distance: int) -> Results:
        there = [given(apart(a, distance) if a.ndim == 2 else a) for a in args]
        return call(case.function, there, options | in_place(case, there))

    assert_same(results(FAR), results(NEAR), f"{n} x {k}")


# Arrays of the device are never read-only, and masked ones do not exist there.
OF_THE_HOST = {"out masked", "out read-only"}


@stand_in
@pytest.mark.parametrize("case", [case for case in test_outputs.REFUSED if case not in OF_THE_HOST])
def test_outputs_are_refused_as_on_the_host(case: str) -> None:
    compute, error, message = test_outputs.REFUSED[case]
    with ek.use_backend("cuda"), pytest.raises(error, match=message.replace("NumPy", "CuPy")):
        compute()


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
