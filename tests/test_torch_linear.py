"""`linear_cross_entropy` of PyTorch's tensors: gradients by hidden, weight and bias, compiled too, and the module."""

from __future__ import annotations

import doctest
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="PyTorch is an extra: pip install 'entrokern[torch]'")

import torch

import entrokern as ek
import entrokern.torch as ekt
from entrokern import _linear
from entrokern.torch.gradients import OPERANDS
from entrokern.torch.ops import OPERATORS

SIDES = OPERANDS["linear_cross_entropy"]
DTYPES = {"float64": 1e-12, "float32": 1e-5, "bfloat16": 2e-2, "float16": 2e-3}
N, K, D = 6, 5, 4
LABELS = torch.arange(N) * 7 % K


def operands(n: int = N, k: int = K, d: int = D, dtype: str = "float64") -> dict[str, Any]:
    """Leaves."""
    generator = torch.Generator().manual_seed(n + k)
    shapes = {"hidden": (n, d), "weight": (k, d), "bias": (k,)}
    drawn = {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()}
    return {name: value.to(getattr(torch, dtype)).requires_grad_() for name, value in drawn.items()}


def composed(hidden: Any, weight: Any, target: Any, *, bias: Any = None, **options: Any) -> Any:
    """The same, of logits that are stored: what `cross_entropy` and PyTorch's own products say."""
    return ek.cross_entropy(torch.nn.functional.linear(hidden, weight, bias), target, **options)


def pulled(value: Any, leaves: list[Any], **options: Any) -> list[Any]:
    upstream = torch.linspace(-2, 3, value.numel(), dtype=torch.float64).reshape(value.shape).to(value.dtype)
    return list(torch.autograd.grad(value, leaves, upstream, **options))


OPTIONS: dict[str, dict[str, Any]] = {
    "mean": {},
    "sum": {"reduction": "sum", "base": 2},
    "rows": {"reduction": "none", "label_smoothing": 0.1},
    "ignored": {"ignore_index": 2},
    "ignored rows": {"ignore_index": 2, "reduction": "none", "sample_weight": torch.linspace(0, 2, N)},
    "weights": {"sample_weight": torch.linspace(0, 2, N), "class_weight": torch.linspace(0.5, 1, K)},
    "listed weights": {"sample_weight": [1, 2, 0, 1, 3, 1], "reduction": "none"},
    "transformed": {"temperature": 2.0, "softcap": 3.0, "z_loss": 0.1},
    "transformed rows": {"temperature": 2.0, "softcap": 3.0, "z_loss": 0.1, "reduction": "none"},
    "distributions": {"target": torch.linspace(0, 1, N * K).reshape(N, K).softmax(1)},
    "distributions, rows": {"target": torch.linspace(0, 1, N * K).reshape(N, K).softmax(1), "reduction": "none"},
}


@pytest.mark.parametrize("what", OPTIONS)
def test_gradcheck(what: str) -> None:
    options = {"target": LABELS} | OPTIONS[what]

    def function(hidden: Any, weight: Any, bias: Any) -> Any:
        return ek.linear_cross_entropy(hidden, weight, bias=bias, **options)

    assert torch.autograd.gradcheck(function, tuple(operands().values()))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("what", OPTIONS)
def test_gradients_are_those_of_the_composition(what: str, dtype: str) -> None:
    """In float64 of the same numbers; twice from one graph; each in its operand's dtype."""
    options = {"target": LABELS} | OPTIONS[what]
    given = operands(dtype=dtype)
    wide = {name: leaf.detach().double().requires_grad_() for name, leaf in given.items()}
    value, want = ek.linear_cross_entropy(**given, **options), composed(**wide, **options)
    assert value.dtype == (torch.float64 if dtype == "float64" else torch.float32)
    torch.testing.assert_close(value.double(), want, rtol=max(1e-5, DTYPES[dtype] / 100), atol=1e-6)
    expected = pulled(want, list(wide.values()))
    for retain in (True, False):
        for name, found, exact in zip(SIDES, pulled(value, list(given.values()), retain_graph=retain), expected,
                                      strict=True):  # fmt: skip
            assert found.dtype == given[name].dtype and found.shape == given[name].shape and not found.requires_grad
            atol = DTYPES[dtype] * max(0.1, exact.abs().max().item())
            np.testing.assert_allclose(found.double(), exact, rtol=DTYPES[dtype], atol=atol)


@pytest.mark.parametrize("batch", [(), (3,), (2, 3), (0,)], ids=str)
@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_batches(batch: tuple[int, ...], reduction: Any) -> None:
    given, target = operands(), LABELS[:1].expand(batch) if batch else LABELS[0]
    leaves = [torch.ones(*batch, D, dtype=torch.float64, requires_grad=True), given["weight"]]
    one, other = (f(*leaves, target, reduction=reduction) for f in (ek.linear_cross_entropy, composed))
    for found, want in zip(pulled(one, leaves), pulled(other, leaves), strict=True):
        torch.testing.assert_close(found, want)


def test_operands_of_two_dtypes() -> None:
    """As `torch.autocast` brings them: the layer is float32, what it is applied to is not."""
    given = operands(dtype="float32")
    with torch.autocast("cpu", torch.bfloat16):
        hidden = given["hidden"] @ torch.eye(D)
        assert hidden.dtype is torch.bfloat16
        loss = ek.linear_cross_entropy(hidden, given["weight"], LABELS)
    assert [g.dtype for g in torch.autograd.grad(loss, [hidden, given["weight"]])] == [torch.bfloat16, torch.float32]


def test_a_loss_scale_saves_float16_gradients_from_underflow() -> None:
    n = 4096
    hidden, weight = torch.ones(n, 1).half(), torch.zeros(1000, 1).half().requires_grad_()
    loss = ek.linear_cross_entropy(hidden, weight, torch.arange(n) % 500)
    (found,) = torch.autograd.grad(loss * 65536, weight)
    assert found[999].item() == pytest.approx(65.536, rel=1e-3)
    hidden.requires_grad_()
    loss = ek.linear_cross_entropy(hidden, weight + 1e-3 * torch.arange(1000.0)[:, None].half(), LABELS[:1].expand(n))
    (found,) = torch.autograd.grad(loss * 65536, hidden)
    assert found[0].item() == pytest.approx(16 * 0.58, rel=0.05)  # by itself 1e-4: half of its digits are lost


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[set[str]]:
    """The gradients asked for in each run of a layer."""
    seen: list[set[str]] = []
    run = _linear.Layer.run

    def spied(layer: Any, losses: Any) -> Any:
        seen.append(set(layer.gradients) | ({"hidden"} if layer.grad_hidden is not None else set()))
        return run(layer, losses)

    monkeypatch.setattr(_linear.Layer, "run", spied)
    return seen


@pytest.mark.parametrize("required", [(), ("hidden",), ("weight",), ("bias", "weight"), SIDES], ids=" ".join)
def test_one_run_and_only_what_is_needed(asked: list[set[str]], required: tuple[str, ...]) -> None:
    given = {name: leaf.detach().requires_grad_(name in required) for name, leaf in operands().items()}
    with torch.no_grad():
        assert not ek.linear_cross_entropy(**given, target=LABELS).requires_grad
    assert asked == [set()]
    asked.clear()
    loss = ek.linear_cross_entropy(**given, target=LABELS)
    assert loss.requires_grad == bool(required)
    if required:
        (2 * loss).backward()
    assert asked == [set(required)]
    asked.clear()
    losses = ek.linear_cross_entropy(**given, target=LABELS, reduction="none")
    assert asked == [set()]
    if required:  # not known before there is an upstream
        losses.square().sum().backward()
        assert asked == [set(), set(required)]


def test_gradients_asked_for_are_plain() -> None:
    given = operands()
    for names in (True, "weight", ("bias", "hidden"), ["hidden"]):
        found = ek.linear_cross_entropy(**given, target=LABELS, return_grad=names)
        arrays = {name: leaf.detach().numpy() for name, leaf in given.items()}
        want = ek.linear_cross_entropy(**arrays, target=LABELS.numpy(), return_grad=names)
        assert len(found) == len(want)
        for tensor, array in zip(found, want, strict=True):
            assert type(tensor) is torch.Tensor and not tensor.requires_grad
            np.testing.assert_array_equal(tensor, array)
    place = torch.empty(K, D, dtype=torch.float64)
    found = ek.linear_cross_entropy(**given, target=LABELS, grad_out=(None, place, None))
    assert found[2] is place and place.equal(ek.linear_cross_entropy(**given, target=LABELS, return_grad="weight")[1])


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_gradients_are_not_differentiated_again(reduction: Any) -> None:
    given = operands()
    value = ek.linear_cross_entropy(**given, target=LABELS, reduction=reduction).sum()

    def twice() -> None:
        (gradient,) = torch.autograd.grad(value, given["weight"], create_graph=True)
        gradient.sum().backward()

    with pytest.raises(NotImplementedError, match="cannot be differentiated again"):
        twice()


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_hooks_checkpoints_and_what_is_written_over(reduction: Any) -> None:
    given = operands()

    def loss(hidden: Any) -> Any:
        return ek.linear_cross_entropy(hidden * 2, given["weight"], LABELS, reduction=reduction).sum()

    leaves = [given["hidden"], given["weight"]]
    want = torch.autograd.grad(loss(leaves[0]), leaves)
    again = torch.utils.checkpoint.checkpoint(loss, leaves[0], use_reentrant=False)
    assert all(map(torch.equal, torch.autograd.grad(again, leaves), want))
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.clone(), lambda t: t):
        assert all(map(torch.equal, torch.autograd.grad(loss(leaves[0]), leaves), want))
    if reduction == "none":  # the backward pass reads them again
        value = loss(leaves[0])
        with torch.no_grad():
            leaves[1].zero_()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            value.backward()


H, W, B = operands().values()
REFUSED: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "target": (lambda: ek.linear_cross_entropy(H.detach(), W, H @ W.T), ValueError,
               r"linear_cross_entropy has gradients by hidden, weight and bias alone; pass target.detach\(\)"),
    "sample weight": (lambda: ek.linear_cross_entropy(H, W, LABELS, sample_weight=H[:, 0]), ValueError,
                      "sample_weight requires a gradient"),
    "NumPy": (lambda: ek.linear_cross_entropy(H, W.detach().numpy(), LABELS), TypeError, "weight is a numpy ndarray"),
    "two devices": (lambda: ek.linear_cross_entropy(H, W.detach().to("meta"), LABELS), ValueError, "weight lies on"),
    "out": (lambda: ek.linear_cross_entropy(H, W, LABELS, out=torch.empty(())), ValueError, "out is given beside hid"),
    "shape": (lambda: ek.linear_cross_entropy(H, W.T, LABELS), ValueError, "pass weight.T"),
    "label": (lambda: ek.linear_cross_entropy(H, W, LABELS + 1), IndexError, "label 5 of row 2"),
    "return_grad": (lambda: ek.linear_cross_entropy(H, W, LABELS, return_grad="x"), ValueError, "names 'x'"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_errors(what: str) -> None:
    compute, error, message = REFUSED[what]
    with pytest.raises(error, match=message):
        compute()


# --- compiled programs ----------------------------------------------------------------------------


@pytest.fixture
def compiled() -> Iterator[Callable[..., Any]]:
    torch.compiler.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the compiler's own
        yield lambda function, **options: torch.compile(
            function, **{"backend": "aot_eager", "fullgraph": True} | options
        )
    torch.compiler.reset()


@pytest.mark.parametrize("sides", [(), ("weight",), ("hidden", "weight"), SIDES], ids=" ".join)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_opcheck(reduction: str, sides: tuple[str, ...]) -> None:
    operator: Any = OPERATORS["linear_cross_entropy"]
    given = {name: leaf.detach().requires_grad_(name in sides) for name, leaf in operands(dtype="float32").items()}
    if "bias" not in sides:
        given["bias"] = None
    given |= {"target": LABELS, "reduction": reduction}
    values = [given.get(key, default) for key, default in operator.defaults.items()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.library.opcheck(operator.call, (*values, [] if reduction == "none" else list(sides)))


@pytest.mark.parametrize("what", OPTIONS)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_compiled_programs_are_whole_and_equal(compiled: Callable[..., Any], what: str, dtype: str) -> None:
    options = {"target": LABELS} | OPTIONS[what]
    options = {key: torch.tensor(v) if isinstance(v, list) else v for key, v in options.items()}
    given = operands(dtype=dtype)

    def program(**given: Any) -> Any:
        return 2 * ek.linear_cross_entropy(**given, **options)

    value, eager = compiled(program)(**given), program(**given)
    assert value.equal(eager)
    for found, want in zip(*(pulled(v, list(given.values())) for v in (value, eager)), strict=True):
        torch.testing.assert_close(found, want)


def test_compiled_for_any_number_of_rows(compiled: Callable[..., Any]) -> None:
    loss = compiled(lambda h, w, y: ek.linear_cross_entropy(h, w, y), dynamic=True)
    for n in (6, 7, 90):
        given, y = operands(n), torch.arange(n) % K
        leaves = [given["hidden"], given["weight"]]
        one, other = (f(*leaves, y) for f in (loss, ek.linear_cross_entropy))
        assert one.equal(other)
        assert all(map(torch.equal, pulled(one, leaves), pulled(other, leaves)))


def test_compiled_gradients_asked_for(compiled: Callable[..., Any]) -> None:
    given = operands()
    for names in (True, "weight", ("bias", "hidden")):
        got = compiled(lambda names=names, **given: ek.linear_cross_entropy(**given, target=LABELS, return_grad=names))(
            **given
        )
        want = ek.linear_cross_entropy(**given, target=LABELS, return_grad=names)
        assert all(one.equal(other) and not one.requires_grad for one, other in zip(got, want, strict=True))
    for refused in ({"return_grad": "x"}, {"out": torch.empty(())}, {"sample_weight": H[:, 0]}):
        with pytest.raises(Exception, match=r"is not known|is not offered|sample_weight requires a gradient"):
            compiled(lambda refused=refused, **given: ek.linear_cross_entropy(**given, target=LABELS, **refused))(
                **given
            )


@pytest.mark.slow  # its first call compiles C++
def test_compiled_to_machine_code(compiled: Callable[..., Any]) -> None:
    given = operands(70, 33, 17, dtype="float32")

    def loss(**given: Any) -> Any:
        return ek.linear_cross_entropy(**given, target=torch.arange(70) % 33, reduction="none").square().mean()

    one, other = compiled(loss, backend="inductor")(**given), loss(**given)
    torch.testing.assert_close(one, other)
    torch.testing.assert_close(pulled(one, list(given.values())), pulled(other, list(given.values())))


# --- the module ---------------------------------------------------------------------------------------

needs_module = pytest.mark.skipif(
    not hasattr(torch.nn, "LinearCrossEntropyLoss"), reason="torch.nn.LinearCrossEntropyLoss came with PyTorch 2.13"
)
MODULES: dict[str, tuple[dict[str, Any], Callable[[], tuple[Any, Any]]]] = {
    "plain": ({}, lambda: (H.detach().float(), LABELS)),
    "bias": ({"bias": True, "ignore_index": 2, "label_smoothing": 0.1}, lambda: (H.detach().float(), LABELS)),
    "ignored": ({}, lambda: (H.detach().float(), LABELS.where(LABELS > 0, -100))),
    "weight": ({"weight": torch.linspace(0.5, 1, K)}, lambda: (H.detach().float(), LABELS)),
    "dense": ({}, lambda: (H.detach().float(), torch.linspace(0, 1, N * K).reshape(N, K).softmax(1))),
    "a row": ({}, lambda: (H.detach().float()[0], LABELS[1])),
    "float64": ({"dtype": torch.float64}, lambda: (H.detach(), LABELS)),
}


@needs_module
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("what", MODULES)
def test_the_module_is_that_of_torch(what: str, reduction: str) -> None:
    options, data = MODULES[what]
    mine, theirs = (of.LinearCrossEntropyLoss(D, K, **options, reduction=reduction) for of in (ekt, torch.nn))
    assert isinstance(mine, type(theirs)) and repr(mine) == repr(theirs)
    mine.load_state_dict(theirs.state_dict())
    found = []
    for module in (mine, theirs):
        x, y = data()
        x = x.clone().requires_grad_()
        value = module(x, y)
        found.append([value, *pulled(value, [x, *module.parameters()])])
    torch.testing.assert_close(*found, rtol=2e-5, atol=2e-6)


@needs_module
def test_what_the_module_does_not_do(compiled: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match=r"out_features=\(2,\) came"):
        ekt.LinearCrossEntropyLoss(D, K, out_features=(2,))(H.detach().float(), LABELS)
    with pytest.raises(ValueError, match="ignore_index=2 needs integer labels"):
        ekt.LinearCrossEntropyLoss(D, K, ignore_index=2, dtype=torch.float64)(H, (H @ W.T).softmax(1).detach())
    module = ekt.LinearCrossEntropyLoss(D, K, options=torch.nn.LinearCrossEntropyOptions())
    x = H.detach().float()
    assert compiled(module)(x, LABELS).equal(module(x, LABELS))
    assert doctest.testmod(ekt.modules).failed == 0


class Layer(torch.nn.Module):
    """A linear layer and its loss, of stored logits or not."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.linear, self.fused = torch.nn.Linear(32, 10), fused

    def forward(self, x: Any, y: Any) -> Any:
        if self.fused:
            return ek.linear_cross_entropy(x, self.linear.weight, y, bias=self.linear.bias, label_smoothing=0.05)
        return torch.nn.functional.cross_entropy(self.linear(x), y, label_smoothing=0.05)


def test_training_follows_torchs_loss_curve() -> None:
    """A small network on the digits: Adam, three epochs, every batch's loss."""
    data = pytest.importorskip("sklearn.datasets", reason="scikit-learn brings the digits").load_digits()
    x, y = torch.tensor(data.data, dtype=torch.float32) / 16, torch.tensor(data.target)
    curves = []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # such small matrices wait for more
    for fused in (True, False):
        torch.manual_seed(0)
        below, layer = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU()), Layer(fused)
        optimizer = torch.optim.Adam([*below.parameters(), *layer.parameters()], lr=0.01)
        curve = []
        for epoch in range(3):
            for rows in torch.randperm(len(x), generator=torch.Generator().manual_seed(epoch)).split(64):
                optimizer.zero_grad()
                value = layer(below(x[rows]), y[rows])
                value.backward()
                optimizer.step()
                curve.append(value.item())
        curves.append(curve)
    torch.set_num_threads(threads)
    np.testing.assert_allclose(curves[0], curves[1], rtol=2e-3, atol=2e-4)
    assert curves[0][-1] < 0.6 < curves[0][0]
