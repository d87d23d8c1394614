"""PyTorch's own samples for its losses and softmaxes (its OpInfos), run against ours."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest

pytest.importorskip("torch", reason="PyTorch is an extra: pip install 'entrokern[torch]'")
pytest.importorskip("expecttest", reason="PyTorch's samples need it: pip install expecttest")

import torch

import entrokern as ek
import entrokern.torch as ekt

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from torch.testing._internal.common_methods_invocations import op_db


def as_module(name: str) -> Callable[..., Any]:
    return lambda x, target, **options: getattr(ekt, name)(**options)(x, target)


def softmax_of(function: Any) -> Callable[..., Any]:
    return lambda x, axis, dtype=None: function(x if dtype is None else x.to(dtype), axis=axis)


def logsumexp(x: Any, axes: Any, keepdim: bool = False) -> Any:
    axes = (axes,) if isinstance(axes, int) else axes
    if len(axes) > 1:  # two axes as one
        value = ek.logsumexp(x.flatten())
        return value.reshape([1] * x.dim()) if keepdim else value
    value = ek.logsumexp(x, axis=axes[0])
    return value.unsqueeze(axes[0]) if keepdim else value


OURS: dict[str, Callable[..., Any]] = {
    "nn.functional.cross_entropy": as_module("CrossEntropyLoss"),
    "nn.functional.binary_cross_entropy_with_logits": as_module("BCEWithLogitsLoss"),
    "nn.functional.kl_div": as_module("KLDivLoss"),
    "softmax": softmax_of(ek.softmax),
    "log_softmax": softmax_of(ek.log_softmax),
    "logsumexp": logsumexp,
}
WITH_TARGET = {name for name in OURS if name.startswith("nn.")}
INFOS = {f"{info.name} {info.variant_test_name}".strip(): info for info in op_db if info.name in OURS}
DTYPES = {torch.float16: 5e-3, torch.bfloat16: 4e-2, torch.float32: 1e-5, torch.float64: 1e-12}


def refusal(name: str, x: Any, args: tuple[Any, ...], options: dict[str, Any]) -> str:
    """What section 3 of the contract refuses of a sample, or nothing."""
    if name in WITH_TARGET:
        weight = options.get("weight")
        if name.endswith("cross_entropy") and weight is not None and bool((weight < 0).any()):
            return "class weights must be finite and 0 or greater"
        return ""
    if x.dim() == 0:
        return "0-dimensional"
    return "k = 0" if 0 in x.shape else ""


def samples(name: str, dtype: Any) -> Iterator[tuple[Any, tuple[Any, ...], dict[str, Any]]]:
    for sample in INFOS[name].sample_inputs("cpu", dtype, requires_grad=True):
        yield sample.input, sample.args, sample.kwargs


def plain(value: Any) -> Any:
    return value.detach() if isinstance(value, torch.Tensor) else value


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", INFOS)
@pytest.mark.filterwarnings("ignore:reduction. 'mean':UserWarning")
def test_samples(name: str, dtype: Any) -> None:
    """Values and gradients beside PyTorch's in float64; what is not differentiated by says so."""
    info = INFOS[name]
    ours, compared = OURS[info.name], 0
    for x, args, options in samples(name, dtype):
        if info.name in WITH_TARGET and args[0].requires_grad and "kl" not in name:
            with pytest.raises(ValueError, match="target requires a gradient"):
                ours(x, *args, **options)
        args = tuple(map(plain, args))
        if message := refusal(info.name, x, args, options):
            with pytest.raises(ValueError, match=message):
                ours(x, *args, **options)
            if "weights" not in message:
                continue
            options = options | {"weight": options["weight"].abs()}
        exact = x.detach().double().requires_grad_()
        wide = [a.double() if isinstance(a, torch.Tensor) and a.is_floating_point() else a for a in args]
        wider = {k: v.double() if isinstance(v, torch.Tensor) else v for k, v in options.items()}
        want, got = info.op(exact, *wide, **wider), ours(x, *args, **options)
        assert got.shape == want.shape
        upstream = torch.linspace(-1, 2, max(want.numel(), 1), dtype=torch.float64)[: want.numel()].reshape(want.shape)
        grads = torch.autograd.grad(want, exact, upstream), torch.autograd.grad(got, x, upstream.to(got.dtype))
        tolerance = DTYPES[dtype]
        for one, other in ((want, got), (grads[0][0], grads[1][0])):
            scale = max(1.0, one.abs().max().item()) if one.numel() else 1.0
            torch.testing.assert_close(other.double(), one, rtol=tolerance, atol=tolerance * scale, equal_nan=True)
        assert grads[1][0].dtype == x.dtype
        compared += 1
    assert compared >= 4
