"""PyTorch's tensors: the results of the arrays under them, gradients, compiled programs, modules and errors."""

from __future__ import annotations

import doctest
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import fields
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="PyTorch is an extra: pip install 'entrokern[torch]'")

import torch

import entrokern as ek
import entrokern.torch as ekt
from cases import BY_NAME, NAMED, Case, operands
from entrokern import _call, _dispatch
from entrokern.torch.arrays import array_over, tensor_over
from entrokern.torch.gradients import OPERANDS
from entrokern.torch.ops import OPERATORS, Loss

DTYPES = {"float16": 2e-3, "bfloat16": 2e-2, "float32": 1e-5, "float64": 1e-12}
PLAIN = ("return_grad", "return_hess")


def tensors(case: Case, n: int, k: int, dtype: str = "float64") -> tuple[list[Any], dict[str, Any], Any, Any]:
    """The operands of a case as tensors, and as the arrays that they share their memory with."""
    args, options = operands(case, n, k, dtype)
    over = {name: tensor_over(v) if isinstance(v, np.ndarray) else v for name, v in options.items()}
    return [tensor_over(a) for a in args], over, args, options


def listed(result: Any) -> list[Any]:
    if isinstance(result, ek.Score):
        return [v for f in fields(result) if (v := getattr(result, f.name)) is not None]
    return list(result) if isinstance(result, tuple) else [result]


def logits(n: int = 6, k: int = 5, dtype: Any = None, **options: Any) -> Any:
    generator = torch.Generator().manual_seed(n + k)
    return torch.randn(n, k, generator=generator, dtype=torch.float64).mul(3).to(dtype or torch.float32, **options)


def labels(n: int = 6, k: int = 5) -> Any:
    return torch.arange(n) * 7 % k


# --- results --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", NAMED, ids=lambda case: case.name)
def test_results_are_those_of_the_arrays(case: Case, dtype: str) -> None:
    args, options, arrays, plain = tensors(case, 6, 5, dtype)
    function = getattr(ek, case.function)
    got, want = listed(function(*args, **options)), listed(function(*arrays, **plain))
    assert len(got) == len(want)
    for tensor, array in zip(got, want, strict=True):
        assert type(tensor) is torch.Tensor and not tensor.requires_grad
        over = array_over("", tensor)
        assert over.dtype == array.dtype and over.shape == array.shape
        np.testing.assert_array_equal(
            over.view(np.uint8) if over.ndim else over, array.view(np.uint8) if array.ndim else array
        )


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "int64", "bool"])
def test_memory_is_shared(dtype: str) -> None:
    tensor = torch.zeros(4, 6, dtype=getattr(torch, dtype))[::2, 1:]
    array = array_over("x", tensor)
    assert array.__array_interface__["data"][0] == tensor.data_ptr()
    assert array.shape == (2, 5) and array.strides == tuple(s * tensor.element_size() for s in tensor.stride())
    assert tensor_over(array).data_ptr() == tensor.data_ptr()


@pytest.mark.parametrize("of", [
    lambda x: x.T, lambda x: x[::2, 1:], lambda x: x[:1].expand(6, -1), lambda x: torch.nn.Parameter(x),
    lambda x: x.unflatten(0, (2, 3)), lambda x: x[0],
], ids=["transposed", "sliced", "expanded", "parameter", "3-d", "a row"])  # fmt: skip
def test_layouts(of: Callable[[Any], Any]) -> None:
    x = of(logits())
    want = ek.softmax(x.detach().numpy().copy())
    leaf = x.detach().clone().requires_grad_()
    np.testing.assert_array_equal(ek.softmax(x.detach()).numpy(), want)
    np.testing.assert_allclose(ek.logsumexp(leaf).sum().backward() or leaf.grad, want, atol=1e-7)


def test_outputs_are_written_where_they_lie_and_say_so() -> None:
    x, y = logits(), labels()
    loss, gradient = torch.empty(6), torch.empty(6, 5, dtype=torch.float32)
    versions = loss._version, gradient._version
    got = ek.cross_entropy(x, y, reduction="none", out=loss, grad_out=gradient)
    assert got[0] is loss and got[1] is gradient
    assert (loss._version, gradient._version) > versions
    want = ek.cross_entropy(x.numpy(), y.numpy(), reduction="none", return_grad=True)
    np.testing.assert_array_equal(loss, want[0])
    np.testing.assert_array_equal(gradient, want[1])
    assert ek.cross_entropy(x, y, grad_out=x)[1] is x  # in place
    p, q = logits(), logits(6, 5) + 1
    pair = torch.empty_like(p), torch.empty_like(q)
    found = ek.kl_divergence(p, q, p_form="logits", q_form="logits", grad_out=pair)
    assert found[1] is pair[0] and found[2] is pair[1]


def test_what_is_written_over_cannot_be_differentiated_through() -> None:
    x = logits().requires_grad_()
    z = x * 1
    y = z.exp()
    ek.softmax(y.detach(), out=y.detach())
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_a_call_like_one_before_is_looked_at_for_what_is_not_in_its_shapes() -> None:
    """Tensors share the plans of arrays; gradients, places to write, transforms and NumPy's own arrays do not."""
    x, y = logits(), labels()
    want = ek.cross_entropy(x.numpy(), y.numpy(), reduction="none")
    wanted = torch.from_numpy(want)
    for _ in range(3):
        got = ek.cross_entropy(x, y, reduction="none")
        assert type(got) is torch.Tensor
        assert torch.equal(got, wanted)
        loss, gradient = ek.cross_entropy(x, y, reduction="none", return_grad=True)
        assert torch.equal(loss, wanted)
        assert type(gradient) is torch.Tensor
        leaf = x.clone().requires_grad_()
        assert ek.cross_entropy(leaf, y, reduction="none").requires_grad
        with torch.no_grad():
            assert not ek.cross_entropy(leaf, y, reduction="none").requires_grad
        assert not ek.cross_entropy(torch.nn.Parameter(x, False), y).requires_grad
        for out in (torch.zeros(6), None):
            given = ek.cross_entropy(x, y, reduction="none", out=out)
            assert out is None or given is out
            assert torch.equal(given, wanted)
        with pytest.raises(TypeError, match="numpy"):
            ek.cross_entropy(x, y.numpy(), reduction="none")
        with pytest.raises(IndexError, match="label 5 of row 2"):
            ek.cross_entropy(x, torch.tensor([0, 1, 5, 0, 0, 0]), reduction="none")
        with pytest.raises(NotImplementedError, match=r"torch\.func"):
            torch.func.grad(lambda z: ek.cross_entropy(z, y))(x)
        assert type(ek.score(x, y)) is ek.Score
        assert torch.equal(ek.score(x, y).loss, wanted)


def test_lists_and_scalars_beside_tensors() -> None:
    x = logits()
    assert ek.cross_entropy(x, [0] * 6) == ek.cross_entropy(x, torch.zeros(6, dtype=torch.int64))
    assert ek.entropy(x, form="logits", base=torch.tensor(2.0)).equal(ek.entropy(x, form="logits", base=2))


def test_slices_and_streams_take_tensors() -> None:
    x, y = logits().requires_grad_(), labels()
    parts = [ek.partial(x[:, :2], y), ek.partial(x[:, 2:], y, class_start=2)]
    want = ek.cross_entropy(x, y).item()
    assert ek.combine(*parts).finish(reduction="mean") == pytest.approx(want)
    assert ek.Accumulator("cross_entropy").update(x, y).compute().mean == pytest.approx(want)


# --- errors ---------------------------------------------------------------------------------------

X, Y = logits(), labels()
GRAD = X.clone().requires_grad_()
REFUSED: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "NumPy target": (lambda: ek.cross_entropy(X, Y.numpy()), TypeError, "target is a numpy ndarray and x is a torch"),
    "NumPy x": (lambda: ek.cross_entropy(X.numpy(), Y), TypeError, "x is a numpy ndarray and target is a torch Tensor"),
    "NumPy out": (lambda: ek.softmax(X, out=np.empty((6, 5), np.float32)), TypeError, "out is a numpy ndarray"),
    "meta": (lambda: ek.softmax(X.to("meta")), TypeError, "x is a tensor of torch.float32 on meta"),
    "two devices": (lambda: ek.cross_entropy(X, Y.to("meta")), ValueError, r"target lies on meta, x on cpu; .*'cpu'\)"),
    "sparse": (lambda: ek.softmax(X.to_sparse()), TypeError, "layout torch.sparse_coo, which no kernel reads"),
    "complex": (lambda: ek.softmax(X.to(torch.complex64)), TypeError, "x has dtype complex64"),
    "bool": (lambda: ek.softmax(X > 0), TypeError, "x has dtype bool"),
    "float8": (lambda: ek.softmax(X.to(torch.float8_e4m3fn)), TypeError, "x is a tensor of torch.float8_e4m3fn"),
    "shape": (lambda: ek.cross_entropy(X, Y[:3]), ValueError, r"target of shape \(3,\) does not fit"),
    "label": (lambda: ek.cross_entropy(GRAD, Y + 1), IndexError, "label 5 of row 2 is out of range"),
    "no classes": (lambda: ek.softmax(X[:, :0]), ValueError, "k = 0"),
    "0-d": (lambda: ek.softmax(X[0, 0]), ValueError, "0-dimensional"),
    "twice": (lambda: ek.softmax(X, x=X), TypeError, "multiple values for argument 'x'"),
    "too many": (lambda: ek.softmax(X, -1), TypeError, "positional argument"),
    "unknown": (lambda: ek.softmax(X, of=1), TypeError, "unexpected keyword argument 'of'"),
    "soft target": (lambda: ek.cross_entropy(X, GRAD), ValueError, "gradients by x alone; pass target.detach"),
    "weight": (lambda: ek.cross_entropy(X, Y, class_weight=GRAD[0]), ValueError, "class_weight requires a gradient"),
    "temperature": (lambda: ek.cross_entropy(X, Y, temperature=GRAD[0, 0]), ValueError, "temperature requires"),
    "estimate": (lambda: ek.kl_estimate(X, GRAD), ValueError, "log_q requires a gradient, and kl_estimate has no"),
    "perplexity": (lambda: ek.perplexity(GRAD, Y), ValueError, r"perplexity has no gradients; pass x.detach\(\)"),
    "out beside": (lambda: ek.softmax(GRAD, out=X.clone()), ValueError, "out is given beside x, which requires"),
    "out of a graph": (lambda: ek.softmax(X, out=GRAD), ValueError, r"out requires a gradient .* pass out.detach\(\)"),
    "pair of a graph": (lambda: ek.kl_divergence(X, X, grad_out=(GRAD, X)), ValueError, r"grad_out\[0\] requires"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_errors(what: str) -> None:
    compute, error, message = REFUSED[what]
    before = X.clone(), Y.clone()
    with pytest.raises(error, match=message):
        compute()
    assert X.equal(before[0]) and Y.equal(before[1]) and GRAD.grad is None


# --- gradients ------------------------------------------------------------------------------------

DIFFERENTIATED = [case for case in NAMED if case.function in OPERANDS]


def leaves(case: Case, args: list[Any]) -> list[Any]:
    """The operands that there are gradients by, as leaves."""
    for i, _ in enumerate(OPERANDS[case.function]):
        args[i] = args[i].requires_grad_()
    return args[: len(OPERANDS[case.function])]


@pytest.mark.parametrize("case", DIFFERENTIATED, ids=lambda case: case.name)
def test_gradcheck(case: Case) -> None:
    args, options, *_ = tensors(case, 5, 4)
    options = {name: value for name, value in options.items() if name not in PLAIN}
    for i, drawn in enumerate(case.operands):
        if drawn.split()[-1] == "probs":  # away from 0, where finite differences are none
            args[i] = 0.5 * args[i] + 0.125
    operands = leaves(case, args)
    rest = args[len(operands) :]

    def function(*given: Any) -> Any:
        return getattr(ek, case.function)(*given, *rest, **options)

    assert torch.autograd.gradcheck(function, operands, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", DIFFERENTIATED, ids=lambda case: case.name)
def test_gradients_are_the_kernels_times_what_comes_from_above(case: Case, dtype: str) -> None:
    """Beside float64: of the operand's dtype, twice from one graph, and none where none is needed."""
    found = {}
    for of in ("float64", dtype):
        args, options, *_ = tensors(case, 6, 5, dtype)
        args = [a.to(getattr(torch, of)) if a.is_floating_point() else a for a in args]
        options = {name: value for name, value in options.items() if name not in PLAIN}
        operands = leaves(case, args)
        value = getattr(ek, case.function)(*args, **options)
        upstream = torch.linspace(-2, 3, value.numel(), dtype=torch.float64).reshape(value.shape).to(value.dtype)
        twice = [torch.autograd.grad(value, operands, upstream, retain_graph=retain) for retain in (True, False)]
        for operand, first, second in zip(operands, *twice, strict=True):
            assert first.dtype == operand.dtype and first.shape == operand.shape
            assert not first.requires_grad
            if upstream.dim():
                np.testing.assert_array_equal(first.double(), second.double())
        found[of] = [g.double() for g in twice[0]]
    for exact, got in zip(found["float64"], found[dtype], strict=True):
        np.testing.assert_allclose(
            got, exact, rtol=DTYPES[dtype], atol=DTYPES[dtype] * max(0.1, exact.abs().max().item())
        )


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[set[str]]:
    """The maps asked for in each run of a backend."""
    seen: list[set[str]] = []
    run = _dispatch.backend().run

    class Spy:
        @staticmethod
        def run(call: _call.Call) -> float:
            seen.append(set(call.maps))
            return run(call)

    monkeypatch.setattr(_dispatch, "backend", lambda library="numpy": Spy)
    return seen


def test_one_read_of_the_logits_and_only_what_is_needed(calls: list[set[str]]) -> None:
    x, y = logits().requires_grad_(), labels()
    ek.cross_entropy(x, y).backward()
    ek.logsumexp(x).sum().backward()
    assert calls == [{"grad"}, {"softmax"}]
    calls.clear()
    ek.cross_entropy(x.detach(), y)
    with torch.no_grad():
        assert not ek.cross_entropy(x, y).requires_grad
    assert calls == [set(), set()]
    calls.clear()
    p = q = x.detach().softmax(-1)
    for sides in ({"p"}, {"q"}, {"p", "q"}):
        ek.kl_divergence(*(t.clone().requires_grad_(s in sides) for s, t in (("p", p), ("q", q)))).sum().backward()
        assert calls.pop() == {f"grad_{side}" for side in sides} and not calls


def test_a_graph_that_is_kept_is_not_disturbed_by_what_becomes_of_the_gradients() -> None:
    x, y = logits().requires_grad_(), labels()
    loss = ek.cross_entropy(x, y)
    want = torch.autograd.grad(loss, x, retain_graph=True)[0].clone()
    loss.backward(retain_graph=True)
    x.grad.zero_()
    loss.backward(retain_graph=True)
    x.grad.mul_(2)
    loss.backward()
    assert x.grad.equal(3 * want)
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


def test_gradients_of_broadcast_operands_are_summed() -> None:
    p, q = logits().softmax(-1).double(), logits(1, 5).softmax(-1).double()[0].requires_grad_()
    ek.kl_divergence(p, q, reduction="sum").backward()
    np.testing.assert_allclose(q.grad, -p.sum(0) / q.detach())


def test_checkpoints_hooks_and_inference_mode() -> None:
    x, y = logits().requires_grad_(), labels()
    want = torch.autograd.grad(ek.cross_entropy(x * 2, y), x)[0]

    def loss(x: Any) -> Any:
        return ek.cross_entropy(x * 2, y)

    again = torch.utils.checkpoint.checkpoint(loss, x, use_reentrant=False)
    assert torch.autograd.grad(again, x)[0].equal(want)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.clone(), lambda t: t):
        assert torch.autograd.grad(loss(x), x)[0].equal(want)
    with torch.inference_mode():
        inside, out = x * 2, torch.empty(())
        assert ek.cross_entropy(inside, y, out=out) is out
    assert out.item() == pytest.approx(loss(x).item())


def test_no_rows() -> None:
    x = torch.empty(0, 5, requires_grad=True)
    assert ek.cross_entropy(x, torch.empty(0, dtype=torch.int64)).isnan()
    ek.cross_entropy(x, torch.empty(0, dtype=torch.int64), reduction="sum").backward()
    assert x.grad.shape == (0, 5)


def test_gradients_asked_for_are_plain() -> None:
    x, y = logits().requires_grad_(), labels()
    assert not any(result.requires_grad for result in ek.cross_entropy(x, y, return_grad=True, return_hess=True))
    assert not ek.score(x, y).loss.requires_grad


def test_gradients_are_not_differentiated_again() -> None:
    """Never silently: a penalty on the gradient would be left out."""
    x, y = logits().requires_grad_(), labels()
    for function, again in (
        (lambda x: ek.cross_entropy(x, y), False),
        (lambda x: ek.logsumexp(x).sum(), False),
        (lambda x: ek.softmax(x)[:, 0].sum(), True),
        (lambda x: ek.log_softmax(x)[:, 0].sum(), True),
    ):
        value = function(x)
        (gradient,) = torch.autograd.grad(value, x, create_graph=True)
        penalised = value + gradient.square().sum()
        if again:
            assert torch.autograd.gradgradcheck(function, logits(dtype=torch.float64).requires_grad_())
            continue
        with pytest.raises(NotImplementedError, match="cannot be differentiated again"):
            torch.autograd.grad(penalised, x)
    assert torch.autograd.gradgradcheck(ek.information, (X.double().exp().requires_grad_(),))


@pytest.mark.parametrize("transform", ["jvp", "dual", "grad"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
def test_other_ways_to_differentiate_are_refused(transform: str) -> None:
    def function(x: Any) -> Any:
        return ek.cross_entropy(x, Y)

    if transform == "jvp":
        with pytest.raises(NotImplementedError, match="x carries a tangent"):
            torch.func.jvp(function, (X,), (X,))
    elif transform == "dual":
        with torch.autograd.forward_ad.dual_level(), pytest.raises(NotImplementedError, match="x carries a tangent"):
            function(torch.autograd.forward_ad.make_dual(X, X))
    else:
        with pytest.raises(NotImplementedError, match=r"has no gradients for torch\.func"):
            torch.func.grad(function)(X)
        with pytest.raises(NotImplementedError, match=r"has no gradients for torch\.func"):
            torch.func.vmap(torch.func.grad(lambda x, y: ek.cross_entropy(x[None], y[None])))(X, Y)


# --- 16 bits --------------------------------------------------------------------------------------


def test_autocast() -> None:
    model = torch.nn.Linear(5, 5)
    with torch.autocast("cpu", torch.bfloat16):
        z = model(X)
        loss = ek.cross_entropy(z, Y)
    assert z.dtype is torch.bfloat16 and loss.dtype is torch.float32
    assert loss.item() == ek.cross_entropy(z.detach().float(), Y).item()
    loss.backward()
    want = torch.autograd.grad(torch.nn.functional.cross_entropy(model(X), Y), model.weight)[0]
    torch.testing.assert_close(model.weight.grad, want, rtol=0.05, atol=5e-3)


def test_a_loss_scale_saves_float16_gradients_from_underflow() -> None:
    n = 4096
    x, y = torch.zeros(n, 1000, dtype=torch.float16, requires_grad=True), torch.zeros(n, dtype=torch.int64)
    (ek.cross_entropy(x, y) * 65536).backward()
    assert x.grad[0, 1].item() == pytest.approx(65536 / (n * 1000), rel=1e-3)  # 1 / (n k): 4 steps of float16


# --- compiled programs ----------------------------------------------------------------------------

OFFERED = [
    case for case in NAMED if case.function in OPERATORS and not {"return_hess"} & case.options.keys()
]  # fmt: skip
FEW = ["ce mean", "bce fractions", "entropy mean", "kl logits log_probs", "js weight", "logsumexp", "log_softmax",
       "softmax", "information"]  # fmt: skip


@pytest.fixture
def compiled() -> Iterator[Callable[..., Any]]:
    torch.compiler.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the compiler's own
        yield lambda function, **options: torch.compile(function, **{"backend": "aot_eager"} | options)
    torch.compiler.reset()


@pytest.mark.parametrize("name", FEW)
def test_opcheck(name: str) -> None:
    case = BY_NAME[name]
    for sides in ("", *OPERANDS[case.function], "".join(OPERANDS[case.function])):
        args, options, *_ = tensors(case, 3, 4, "float32")
        for side, operand in zip(OPERANDS[case.function], args, strict=False):
            operand.requires_grad_(side in sides)
        operator = OPERATORS[case.function]
        given = dict(zip(operator.positional, args, strict=True)) | options
        values = [given.get(key, default) for key, default in operator.defaults.items()]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.library.opcheck(operator.call, (*values, sides) if isinstance(operator, Loss) else values)


@pytest.mark.parametrize("name", FEW)
def test_compiled_programs_are_whole_and_equal(compiled: Callable[..., Any], name: str) -> None:
    case = BY_NAME[name]
    args, options, *_ = tensors(case, 6, 5, "float32")
    options = {key: value for key, value in options.items() if key not in PLAIN}
    operands = leaves(case, args)
    names = iter(OPERATORS[case.function].positional)
    given = dict(zip(names, args, strict=True))

    def program(**given: Any) -> Any:
        return 2 * getattr(ek, case.function)(**given, **options)

    value, eager = compiled(program, fullgraph=True)(**given), program(**given)
    assert value.equal(eager)
    upstream = torch.linspace(-2, 3, value.numel()).reshape(value.shape)
    for got, want in zip(*(torch.autograd.grad(v, operands, upstream) for v in (value, eager)), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-7)


def test_what_is_no_operator_breaks_the_program_in_two(compiled: Callable[..., Any]) -> None:
    def program(x: Any, y: Any) -> Any:
        parts = [ek.partial(x[:, c : c + 3], y, class_start=c) for c in (0, 3)]
        return ek.combine(*parts).finish(k=5), ek.score(x * 2, y).loss + 1, ek.perplexity(x, y)

    for found, want in zip(compiled(program)(X, Y), program(X, Y), strict=True):
        np.testing.assert_array_equal(found, want)


def test_compiled_for_any_number_of_rows(compiled: Callable[..., Any]) -> None:
    loss = compiled(lambda x, y: ek.cross_entropy(x, y, label_smoothing=0.1), fullgraph=True, dynamic=True)
    for n in (6, 7, 90):
        x, y = logits(n).requires_grad_(), labels(n)
        assert loss(x, y).equal(ek.cross_entropy(x, y, label_smoothing=0.1))
        loss(x, y).backward()


def test_compiled_modules_and_gradients_asked_for(compiled: Callable[..., Any]) -> None:
    x, y = logits().requires_grad_(), labels()
    module = ekt.CrossEntropyLoss()
    assert compiled(module, fullgraph=True)(x, y).equal(module(x, y))
    got = compiled(lambda x: ek.cross_entropy(x, y, return_grad=True), fullgraph=True)(x)
    for one, other in zip(got, ek.cross_entropy(x, y, return_grad=True), strict=True):
        assert one.equal(other) and not one.requires_grad


def test_what_cannot_be_compiled(compiled: Callable[..., Any]) -> None:
    def metrics(x: Any) -> Any:
        return ek.score(x * 2, Y).loss.sum() + ek.perplexity(x * 2, Y) + 1

    assert compiled(metrics)(X).equal(metrics(X))  # in pieces
    array = X.numpy()
    assert compiled(lambda x: ek.logsumexp(x))(array).tobytes() == ek.logsumexp(array).tobytes()
    with pytest.raises(IndexError, match="label 5 of row 2"):
        compiled(lambda x: ek.cross_entropy(x, Y + 1), fullgraph=True)(X)
    for refused in (lambda x: ek.softmax(x, out=x.clone()), lambda x: ek.cross_entropy(X, x)):
        with pytest.raises(Exception, match=r"is not offered where|target requires a gradient"):
            compiled(refused, fullgraph=True)(X.clone().requires_grad_())


def test_traced_otherwise() -> None:
    x, y = logits(), labels()
    loss = ek.cross_entropy(x, y)
    exported = torch.export.export(ekt.CrossEntropyLoss(), (x, y))
    assert exported.module()(x, y).equal(loss)
    from torch._subclasses import FakeTensorMode

    with FakeTensorMode() as mode:
        assert ek.softmax(mode.from_tensor(x), axis=0).shape == x.shape


@pytest.mark.slow  # its first call compiles C++
def test_compiled_to_machine_code(compiled: Callable[..., Any]) -> None:
    x, y = logits(70, 33), labels(70, 33)
    model = torch.nn.Linear(33, 33)

    def loss() -> Any:
        return ek.cross_entropy(model(x) * 2, y, reduction="none").square().mean()

    want, got = loss(), compiled(loss, backend="inductor", fullgraph=True)()
    torch.testing.assert_close(got, want)
    one, other = (torch.autograd.grad(v, model.weight)[0] for v in (got, want))
    torch.testing.assert_close(one, other)


# --- the losses of torch.nn -----------------------------------------------------------------------

MODULES: dict[str, tuple[str, dict[str, Any], Callable[[], tuple[Any, Any]]]] = {
    "ce": ("CrossEntropyLoss", {}, lambda: (X, Y)),
    "ce weight": ("CrossEntropyLoss", {"weight": X[0].abs(), "ignore_index": 2, "label_smoothing": 0.1},
                  lambda: (X, Y)),
    "ce images": ("CrossEntropyLoss", {"weight": X[:5, 0].abs()},
                  lambda: (logits(2 * 5 * 3, 4).reshape(2, 5, 3, 4), labels(24).reshape(2, 3, 4))),
    "ce dense": ("CrossEntropyLoss", {"label_smoothing": 0.2, "weight": X[1].abs()}, lambda: (X, X.softmax(1))),
    "ce a row": ("CrossEntropyLoss", {}, lambda: (X[0], Y[1])),
    "bce": ("BCEWithLogitsLoss", {}, lambda: (X, X.sigmoid())),
    "bce weight": ("BCEWithLogitsLoss", {"weight": X[:, :1].abs(), "pos_weight": X[2].exp()}, lambda: (X, X.sigmoid())),
    "bce 0-d": ("BCEWithLogitsLoss", {}, lambda: (X[0, 0], X[0, 1].sigmoid())),
    "kl": ("KLDivLoss", {}, lambda: (X.log_softmax(1), X.flip(0).softmax(1))),
    "kl log": ("KLDivLoss", {"log_target": True}, lambda: (X.log_softmax(1), X.flip(0).log_softmax(1))),
    "kl 3-d": ("KLDivLoss", {}, lambda: (X.log_softmax(1).reshape(2, 3, 5), X.softmax(1).reshape(2, 3, 5))),
    "kl no rows": ("KLDivLoss", {}, lambda: (X[:0], X[:0])),
    "kl no elements": ("KLDivLoss", {"log_target": True}, lambda: (X[0, :0], X[0, :0])),
    "kl 0-d": ("KLDivLoss", {}, lambda: (X[0, 0], X[0, 1].exp())),
}  # fmt: skip


@pytest.mark.parametrize("reduction", ["none", "mean", "sum", "batchmean"])
@pytest.mark.parametrize("what", MODULES)
def test_modules_are_those_of_torch(what: str, reduction: str) -> None:
    name, options, data = MODULES[what]
    if reduction == "batchmean" and name != "KLDivLoss":
        with pytest.raises((ValueError, IndexError)):
            getattr(ekt, name)(**options, reduction=reduction)(*data())
        return
    mine, theirs = (getattr(of, name)(**options, reduction=reduction) for of in (ekt, torch.nn))
    assert isinstance(mine, type(theirs)) and mine.state_dict().keys() == theirs.state_dict().keys()
    found = []
    for module in (mine, theirs):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, that reduction "mean" is not what KL is
            x, y = data()
            x = x.detach().clone().requires_grad_()
            value = module(x, y)
            value.backward(torch.linspace(1, 2, value.numel()).reshape(value.shape))
            found.append((value, x.grad))
    torch.testing.assert_close(found[0], found[1], rtol=2e-5, atol=2e-6, equal_nan=True)


def test_modules_keep_torchs_way_with_what_does_not_count() -> None:
    module = ekt.CrossEntropyLoss()
    assert module(X, torch.full((6,), -100)).isnan()
    with pytest.raises(ValueError, match="ignore_index=2 needs integer labels"):
        ekt.CrossEntropyLoss(ignore_index=2)(X, X.softmax(1))
    assert module.half() is module and repr(module) == "CrossEntropyLoss()"


def test_training_follows_torchs_loss_curve() -> None:
    """A small network on the digits: Adam, three epochs, every batch's loss."""
    data = pytest.importorskip("sklearn.datasets", reason="scikit-learn brings the digits").load_digits()
    x, y = torch.tensor(data.data, dtype=torch.float32) / 16, torch.tensor(data.target)
    curves = []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # such small matrices wait for more
    for loss in (ekt.CrossEntropyLoss(label_smoothing=0.05), torch.nn.CrossEntropyLoss(label_smoothing=0.05)):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        curve = []
        for epoch in range(3):
            for rows in torch.randperm(len(x), generator=torch.Generator().manual_seed(epoch)).split(64):
                optimizer.zero_grad()
                value = loss(model(x[rows]), y[rows])
                value.backward()
                optimizer.step()
                curve.append(value.item())
        curves.append(curve)
    torch.set_num_threads(threads)
    np.testing.assert_allclose(curves[0], curves[1], rtol=2e-3, atol=2e-4)
    assert curves[0][-1] < 0.6 < curves[0][0]


def test_examples() -> None:
    assert doctest.testmod(ekt.modules).failed == 0 < doctest.testmod(ekt.modules).attempted


# --- imports --------------------------------------------------------------------------------------


def test_the_room_does_not_load_the_compiler() -> None:
    code = """
import sys, torch, entrokern as ek
assert "entrokern.torch" not in sys.modules
x = torch.zeros(2, 3, requires_grad=True)
ek.cross_entropy(x, torch.tensor([0, 1])).backward()
assert "entrokern.torch" in sys.modules and "torch._dynamo" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
