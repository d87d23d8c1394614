"""`linear_cross_entropy` of JAX's arrays: NumPy's bits, compiled or not, and derivatives by hidden, weight and bias."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest

import entrokern as ek

jax = pytest.importorskip("jax", reason="the arrays of JAX")
jnp = pytest.importorskip("jax.numpy")

from entrokern.jax import host  # noqa: E402  (once JAX is known to be there)
from entrokern.jax.calls import HostCall  # noqa: E402

RNG = np.random.default_rng(7)
N, K, D = 6, 5, 4
H, W, B = RNG.normal(size=(N, D)), RNG.normal(size=(K, D)), RNG.normal(size=K)
Y, Q, S = RNG.integers(0, K, N), RNG.dirichlet(np.ones(K), N), RNG.uniform(0.1, 3.0, N)
LAYER = ("hidden", "weight", "bias")


@pytest.fixture
def wide() -> Iterator[None]:
    """With 64-bit types."""
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


def leaves(dtype: Any = np.float32) -> tuple[Any, ...]:
    return tuple(jnp.asarray(array, dtype) for array in (H, W, B))


def ours(hidden: Any, weight: Any, bias: Any, **options: Any) -> Any:
    return ek.linear_cross_entropy(hidden, weight, bias=bias, **{"target": Y} | options)


def composed(hidden: Any, weight: Any, bias: Any, **options: Any) -> Any:
    """The same in jax.numpy."""
    target, reduction = options.get("target", Y), options.get("reduction", "mean")
    z = jax.nn.log_softmax(hidden @ weight.T + bias)
    q = jax.nn.one_hot(target, K) if target.ndim == 1 else target
    s = jnp.asarray(options.get("sample_weight", np.ones(N)))
    losses = -s * (q * z).sum(-1)
    return losses if reduction == "none" else losses.sum() / (s.sum() if reduction == "mean" else 1)


OPTIONS: dict[str, dict[str, Any]] = {
    "mean": {},
    "sum": {"reduction": "sum"},
    "weights": {"sample_weight": S},
    "distributions": {"target": Q},
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("asked", [False, True, "hidden", ("bias", "weight"), ["weight"]], ids=str)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_bits_of_numpy(dtype: str, asked: Any, reduction: str) -> None:
    given = leaves(dtype)
    function = partial(ours, return_grad=asked, reduction=reduction)
    want = jax.tree.leaves(function(*map(np.asarray, given), target=Y))
    for found in (function(*given), jax.jit(function)(*given)):
        for one, other in zip(jax.tree.leaves(found), want, strict=True):
            assert isinstance(one, jax.Array) and one.dtype == other.dtype
            np.testing.assert_array_equal(np.asarray(one), other)


def test_bits_of_large_arrays() -> None:
    """Where results are written into memory that JAX takes over."""
    h, w = RNG.normal(size=(700, 512)).astype(np.float32), RNG.normal(size=(900, 512)).astype(np.float32)
    y = RNG.integers(0, 900, 700)
    want = ek.linear_cross_entropy(h, w, y, return_grad=True)
    function = partial(ek.linear_cross_entropy, return_grad=True)
    for found in (function(jnp.asarray(h), jnp.asarray(w), y), jax.jit(function)(h, w, y)):
        jax.tree.map(np.testing.assert_array_equal, found, want)


@pytest.mark.usefixtures("wide")
def test_64_bit_types_and_narrowed_results() -> None:
    found = jax.jit(partial(ours, return_grad=True))(*leaves(np.float64))
    jax.tree.map(np.testing.assert_array_equal, found, ours(H, W, B, return_grad=True))
    jax.config.update("jax_enable_x64", False)
    h = jnp.asarray(H, np.float32)
    found = ek.linear_cross_entropy(h, W, Y, return_grad=True)  # a weight of float64, which JAX has none of
    assert [array.dtype for array in found] == [np.float32] * 3


def pulled(function: Callable[..., Any], arrays: tuple[Any, ...]) -> Any:
    """The result, and what a cotangent other than 1 becomes at the operands."""
    result, back = jax.vjp(function, *arrays)
    return result, back(jnp.cos(jnp.arange(result.size, dtype=result.dtype)).reshape(result.shape) + 2)


@pytest.mark.usefixtures("wide")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("what", OPTIONS)
def test_derivatives(what: str, dtype: str) -> None:
    given, options = leaves(dtype), OPTIONS[what]
    close = partial(
        np.testing.assert_allclose, **dict.fromkeys(("rtol", "atol"), 1e-12 if dtype == "float64" else 2e-5)
    )
    one, other = partial(ours, **options), partial(composed, **options)
    want = pulled(other, given)
    for found in (pulled(one, given), jax.jit(partial(pulled, one))(given)):
        jax.tree.map(close, found, want)
    moves = tuple(jnp.sin(1 + a) for a in given)
    jax.tree.map(close, jax.jvp(one, given, moves), jax.jvp(other, given, moves))
    for i in range(3):  # by one alone
        jax.tree.map(close, jax.grad(one, i)(*given), jax.grad(other, i)(*given))


def test_losses_of_rows_by_hidden_alone() -> None:
    h, w, b = leaves()
    one, other = (lambda h, f=f: f(h, w, b, reduction="none") for f in (ours, composed))
    for way in (pulled, jax.jit(pulled, static_argnums=0)):
        jax.tree.map(partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-5), way(one, (h,)), pulled(other, (h,)))
    for way in (jax.grad, lambda f: jax.jit(jax.grad(f))):
        with pytest.raises(NotImplementedError, match=r"by hidden alone, not by weight; .*sample_weight"):
            way(lambda w: ours(h, w, b, reduction="none").sum())(w)


def test_only_what_moves_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    evaluate = HostCall.asking
    monkeypatch.setattr(HostCall, "asking", lambda call, **o: (asked.append(o["return_grad"]), evaluate(call, **o))[1])
    h, w, b = leaves()
    jax.grad(ours, 1)(h, w, b)
    jax.grad(ours, (0, 2))(h, w, b)
    assert asked == [("weight",), ("hidden", "bias")]


@pytest.mark.parametrize(
    ("function", "error", "message"),
    [
        (lambda h: jax.grad(lambda s: ours(h, W, B, sample_weight=s))(S), NotImplementedError, "stop_gradient"),
        (lambda h: jax.grad(lambda h: jax.grad(ours)(h, W, B).sum())(h), NotImplementedError, "differentiable once"),
        (lambda h: ours(h, W, B, out=h), TypeError, "out is given beside JAX arrays"),
        (lambda h: ours(h, W.T, B), ValueError, r"pass weight\.T"),
        (lambda h: ours(h, W, B, return_grad="x"), ValueError, "return_grad names 'x'"),
        (lambda h: jax.jit(lambda t: ours(h, W, B, temperature=t))(2.0), TypeError, "temperature is traced"),
    ],
)
def test_errors(function: Callable[..., Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        function(jnp.asarray(H, np.float32))


def test_bad_labels() -> None:
    bad = jnp.asarray(Y).at[3].set(K)
    text = f"label {K} of row 3 is out of range"
    with pytest.raises(IndexError, match=text):
        ours(*leaves(), target=bad)
    program = jax.jit(jax.grad(lambda h, y: ours(h, *leaves()[1:], target=y)))
    with pytest.raises((ValueError, RuntimeError), match=f"IndexError: {text}"):
        jax.block_until_ready(program(leaves()[0], bad))
    assert jnp.isfinite(program(leaves()[0], jnp.asarray(Y))).all()


@pytest.mark.parametrize("shared", [LAYER, ("weight", "bias"), ("hidden",), ()], ids=str)
@pytest.mark.parametrize(
    ("differentiated", "reduction"),
    [(None, "none"), (None, "mean"), ("hidden", "none"), ("hidden", "mean"), ("weight", "mean")],
)
def test_vmap(shared: tuple[str, ...], differentiated: str | None, reduction: str) -> None:
    """As example by example, whatever the examples share."""
    count = 3
    given = dict(zip(LAYER, leaves(), strict=True))
    batched = {n: a if n in shared else jnp.stack([a + i for i in range(count)]) for n, a in given.items()}
    targets = jnp.asarray(RNG.integers(0, K, (count, N)))

    def one(hidden: Any, weight: Any, bias: Any, target: Any) -> Any:
        if differentiated is None:
            return ours(hidden, weight, bias, target=target, reduction=reduction)
        i = LAYER.index(differentiated)
        return jax.grad(lambda *a: ours(*a, target=target, reduction=reduction).sum(), i)(hidden, weight, bias)

    found = jax.vmap(one, (*(None if n in shared else 0 for n in LAYER), 0))(*batched.values(), targets)
    each = [one(*(a if n in shared else a[i] for n, a in batched.items()), targets[i]) for i in range(count)]
    np.testing.assert_allclose(found, np.stack(each), rtol=1e-5, atol=1e-6)


def test_vmap_of_rows_of_one_layer_is_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    compute = host._compute
    monkeypatch.setattr(host, "_compute", lambda *args: (calls.append(1), compute(*args)))
    h, w, b = leaves()
    found = jax.vmap(jax.grad(lambda h, y: ours(h, w, b, target=y)))(h, jnp.asarray(Y))
    np.testing.assert_allclose(found, N * jax.grad(ours)(h, w, b), rtol=1e-5, atol=1e-6)
    assert len(calls) == 2
