"""JAX arrays in and out: the bits of NumPy's call, compiled or not; derivatives beside those of jax.numpy formulas."""

from __future__ import annotations

import doctest
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields
from functools import partial
from typing import Any

import numpy as np
import pytest

import entrokern as ek
from cases import BY_NAME, FLOATS, NAMED, Case, call, operands

jax = pytest.importorskip("jax", reason="the arrays of JAX")
jnp = pytest.importorskip("jax.numpy")

from entrokern.jax import ffi, host  # noqa: E402  (once JAX is known to be there)
from entrokern.jax.calls import HostCall  # noqa: E402

RNG = np.random.default_rng(7)
X, Y = RNG.normal(size=(6, 5)).astype(np.float32), RNG.integers(0, 5, 6)
S, W = RNG.uniform(0.1, 3.0, 6), RNG.uniform(0.1, 3.0, 5)
ERRORS = (ValueError, RuntimeError)  # what a program's error is, by the version and the moment it is noticed


@pytest.fixture
def wide() -> Iterator[None]:
    """With 64-bit types."""
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


@pytest.fixture
def width(request: pytest.FixtureRequest) -> str:
    """A dtype by name, with 64-bit types where it is one."""
    if request.param == "float64":
        request.getfixturevalue("wide")
    return str(request.param)


def on_jax(args: list[Any], options: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    """The arrays among the arguments as JAX's."""
    arrays = {name: jnp.asarray(v) for name, v in options.items() if isinstance(v, np.ndarray)}
    return [jnp.asarray(a) for a in args], options | arrays


def on_numpy(args: list[Any], options: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    arrays = {name: np.asarray(v) for name, v in options.items() if isinstance(v, jax.Array)}
    return [np.asarray(a) for a in args], options | arrays


def agree(found: dict[str, Any], want: dict[str, Any]) -> None:
    """JAX's arrays, of NumPy's bits."""
    assert found.keys() == want.keys()
    for name, value in found.items():
        assert isinstance(value, jax.Array)
        expected = want[name].astype(jax.dtypes.canonicalize_dtype(want[name].dtype))
        assert (value.dtype, value.shape) == (expected.dtype, expected.shape), name
        np.testing.assert_array_equal(np.asarray(value), expected, err_msg=name)


def compiled(case: Case, args: list[Any], options: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    """The case as a program of its arrays."""
    arrays = {name: v for name, v in options.items() if isinstance(v, jax.Array)}
    rest = {name: v for name, v in options.items() if name not in arrays}
    return lambda: jax.jit(lambda args, arrays: call(case.function, args, rest | arrays))(args, arrays)


@pytest.mark.parametrize("width", FLOATS, indirect=True)
@pytest.mark.parametrize("case", NAMED, ids=lambda case: case.name)
def test_bits_of_numpy(case: Case, width: str) -> None:
    """Every case of the table, at once and compiled."""
    args, options = on_jax(*operands(case, 6, 10, width))
    want = call(case.function, *on_numpy(args, options))
    agree(call(case.function, args, options), want)
    if width in ("float32", "bfloat16"):
        agree(compiled(case, args, options)(), want)


@pytest.mark.parametrize("name", ["ce labels grad", "ce mean grad", "score labels", "kl logits logits", "softmax"])
def test_bits_of_large_arrays(name: str) -> None:
    """Where results are written into memory that JAX takes over."""
    case = BY_NAME[name]
    args, options = on_jax(*operands(case, 300, 1000, "float32"))
    assert args[0].nbytes > 1 << 20
    want = call(case.function, *on_numpy(args, options))
    agree(call(case.function, args, options), want)
    agree(compiled(case, args, options)(), want)


# --- derivatives ------------------------------------------------------------------------------------


def nll(x: Any, y: Any) -> Any:
    return -jnp.take_along_axis(jax.nn.log_softmax(x), y[:, None], -1)[:, 0]


def binary(x: Any, t: Any) -> Any:
    return jax.nn.softplus(x) - x * t


def kl(p: Any, q: Any) -> Any:
    return (p * jnp.log(p / q)).sum(-1)


def js(p: Any, q: Any) -> Any:
    m = 0.3 * p + 0.7 * q
    return 0.3 * kl(p, m) + 0.7 * kl(q, m)


P, Q = RNG.dirichlet(np.ones(5), 6), RNG.dirichlet(np.ones(5))
T = RNG.integers(0, 2, (6, 5))
LOGITS = {"p_form": "logits", "q_form": "logits"}

# Our function, the same in jax.numpy, and the operands to differentiate by.
DERIVATIVES: dict[str, tuple[Callable[..., Any], Callable[..., Any], tuple[Any, ...]]] = {
    "ce": (lambda x: ek.cross_entropy(x, Y), lambda x: nll(x, Y).mean(), (X,)),
    "ce sum": (lambda x: ek.cross_entropy(x, Y, reduction="sum"), lambda x: nll(x, Y).sum(), (X,)),
    "ce rows": (lambda x: ek.cross_entropy(x, Y, reduction="none"), lambda x: nll(x, Y), (X,)),
    "ce axis": (lambda x: ek.cross_entropy(x, Y, axis=0, reduction="none"), lambda x: nll(x.T, Y), (X.T,)),
    "ce weights": (
        lambda x: ek.cross_entropy(x, Y, class_weight=W, sample_weight=S, temperature=2.0),
        lambda x: (S * W[Y] * nll(x / 2, Y)).sum() / (S * W[Y]).sum(),
        (X,),
    ),
    "ce dense": (
        lambda x: ek.cross_entropy(x, P, label_smoothing=0.1, reduction="none"),
        lambda x: -((0.9 * P + 0.1 / 5) * jax.nn.log_softmax(x)).sum(-1),
        (X,),
    ),
    "bce": (lambda x: ek.binary_cross_entropy(x, T), lambda x: binary(x, T).mean(), (X,)),
    "bce elements": (lambda x: ek.binary_cross_entropy(x, T, reduction="none"), lambda x: binary(x, T), (X,)),
    "bce rows": (
        lambda x: ek.binary_cross_entropy(x, T, axis=1, reduction="none"),
        lambda x: binary(x, T).sum(1),
        (X,),
    ),
    "entropy": (ek.entropy, lambda p: -(p * jnp.log(p)).sum(-1), (P,)),
    "entropy of logits": (
        lambda x: ek.entropy(x, form="logits", base=2, reduction="mean"),
        lambda x: -(jax.nn.softmax(x) * jax.nn.log_softmax(x)).sum(-1).mean() / jnp.log(2),
        (X,),
    ),
    "kl": (ek.kl_divergence, kl, (P, P[::-1])),
    "kl by q alone": (lambda q: ek.kl_divergence(P, q), lambda q: kl(P, q), (P[::-1],)),
    "kl of one row": (ek.kl_divergence, kl, (P, Q)),
    "kl against one row": (lambda q, p: ek.kl_divergence(p, q, reduction="sum"), lambda q, p: kl(p, q).sum(), (Q, P)),
    "kl of logits": (
        partial(ek.kl_divergence, **LOGITS),
        lambda a, b: kl(jax.nn.softmax(a), jax.nn.softmax(b)),
        (X, X[::-1]),
    ),
    "js": (partial(ek.js_divergence, weight=0.3, reduction="mean"), lambda p, q: js(p, q).mean(), (P, Q)),
    "logsumexp": (ek.logsumexp, lambda x: jax.nn.logsumexp(x, -1), (X,)),
    "logsumexp axis": (partial(ek.logsumexp, axis=0), lambda x: jax.nn.logsumexp(x, 0), (X,)),
    "log_softmax": (ek.log_softmax, jax.nn.log_softmax, (X,)),
    "softmax": (partial(ek.softmax, axis=0), lambda x: jax.nn.softmax(x, 0), (X,)),
    "information": (partial(ek.information, base=2), lambda p: -jnp.log2(p), (P,)),
}


def pulled(function: Callable[..., Any], arrays: tuple[Any, ...]) -> Any:
    """The result, and what a cotangent other than 1 becomes at the operands."""
    result, back = jax.vjp(function, *arrays)
    upstream = jnp.cos(jnp.arange(result.size, dtype=result.dtype)).reshape(result.shape) + 2
    return result, back(upstream)


@pytest.mark.parametrize("width", ["float32", "float64"], indirect=True)
@pytest.mark.parametrize("name", DERIVATIVES)
def test_derivatives(name: str, width: str) -> None:
    ours, theirs, arrays = DERIVATIVES[name]
    arrays = tuple(jnp.asarray(a, width) for a in arrays)
    tolerance = 1e-12 if width == "float64" else 2e-5
    want = jax.jit(partial(pulled, theirs))(arrays)
    for found in (pulled(ours, arrays), jax.jit(partial(pulled, ours))(arrays)):
        jax.tree.map(partial(np.testing.assert_allclose, rtol=tolerance, atol=tolerance), found, want)
    moves = tuple(jnp.sin(1 + a) for a in arrays)
    found = jax.jvp(ours, arrays, moves)
    jax.tree.map(
        partial(np.testing.assert_allclose, rtol=tolerance, atol=tolerance), found, jax.jvp(theirs, arrays, moves)
    )


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_derivatives_of_halves(dtype: str) -> None:
    """A gradient in the operand's dtype: the library's own, times what comes from above."""
    x = jnp.asarray(X, dtype)
    _, gradient = ek.cross_entropy(x, Y, return_grad=True)
    for way in (jax.grad, lambda f: jax.jit(jax.grad(f))):
        assert (way(lambda x: ek.cross_entropy(x, Y))(x) == gradient).all()
        assert (way(lambda x: 4 * ek.cross_entropy(x, Y))(x) == 4 * gradient).all()
    eps = float(jnp.finfo(dtype).eps)
    for ours, theirs in ((ek.softmax, jax.nn.softmax), (ek.log_softmax, jax.nn.log_softmax)):
        found, want = (jax.grad(lambda x, f=f: (f(x) * S[:, None]).sum())(x) for f in (ours, theirs))
        assert found.dtype == x.dtype
        np.testing.assert_allclose(found.astype(np.float32), want.astype(np.float32), atol=8 * eps)


@pytest.mark.parametrize("name", ["logsumexp", "log_softmax", "softmax", "information"])
def test_second_derivatives(name: str, wide: None) -> None:
    ours, theirs, (x,) = DERIVATIVES[name]
    x = jnp.asarray(x, np.float64)
    found, want = (jax.hessian(lambda x, f=f: jnp.sin(f(x)).sum())(x) for f in (ours, theirs))
    np.testing.assert_allclose(found, want, rtol=1e-10, atol=1e-12)
    backward = jax.jacrev(jax.grad(lambda x: jnp.sin(ours(x)).sum()))(x)
    np.testing.assert_allclose(backward, want, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["ce", "bce", "entropy", "kl", "js"])
def test_losses_are_differentiable_once(name: str) -> None:
    ours, _, arrays = DERIVATIVES[name]
    arrays = tuple(jnp.asarray(a, np.float32) for a in arrays)
    twice = jax.grad(lambda x: jax.grad(lambda x: ours(x, *arrays[1:]).sum())(x).sum())
    for function in (twice, jax.jit(twice)):
        with pytest.raises(NotImplementedError, match="differentiable once"):
            function(arrays[0])


@pytest.mark.parametrize(
    ("function", "x", "message"),
    [
        (lambda s: ek.cross_entropy(X, Y, sample_weight=s), S, "no derivative by sample_weight; put jax.lax.stop_g"),
        (lambda w: ek.cross_entropy(X, Y, class_weight=w), W, "no derivative by class_weight"),
        (lambda t: ek.cross_entropy(X, t), P, "cross_entropy has no derivative by target"),
        (lambda w: ek.binary_cross_entropy(X, T, pos_weight=w), W, "no derivative by pos_weight"),
        (lambda x: ek.perplexity(x, Y), X, "perplexity has no derivative; differentiate cross_entropy"),
        (lambda x: ek.score(x).lse.sum(), X, "score has no derivative"),
        (lambda x: ek.kl_estimate(x, X), X, "kl_estimate has no derivative"),
        (lambda x: ek.cross_entropy(x, Y, return_grad=True)[0], X, "return_grad"),
    ],
)
def test_what_has_no_derivative_says_so(function: Callable[..., Any], x: Any, message: str) -> None:
    """No zeros that pass for a derivative."""
    for way in (jax.grad, lambda f: jax.jit(jax.grad(f))):
        with pytest.raises(NotImplementedError, match=message):
            way(function)(jnp.asarray(x))
    assert jnp.isfinite(jax.grad(lambda x: x.sum() + function(jax.lax.stop_gradient(x)))(jnp.asarray(x))).all()


def test_integers_beside_what_is_differentiated() -> None:
    """Labels have no derivative, and it is no error to ask for all."""
    result, back = jax.vjp(ek.cross_entropy, jnp.asarray(X), jnp.asarray(Y))
    assert back(jnp.ones_like(result))[0].shape == X.shape


# --- vmap -------------------------------------------------------------------------------------------

BATCH = 3


def sharing(case: Case) -> Iterator[int | None]:
    """No operand, or one of several, that all examples have in common."""
    yield None
    if len(case.operands) > 1:
        yield from range(len(case.operands))


@pytest.mark.parametrize(
    ("case", "shared"),
    [pytest.param(case, i, id=f"{case.name}, {i} shared") for case in NAMED for i in sharing(case)],
)
def test_vmap(case: Case, shared: int | None) -> None:
    """As example by example, whichever operands the examples share; weights are shared with either."""
    drawn = [on_jax(*operands(case, 4, 6, "float32", seed=i)) for i in range(BATCH)]
    args, options = ([example[0] for example in drawn], [example[1] for example in drawn])
    arrays = [name for name, v in options[0].items() if isinstance(v, jax.Array)]
    keep = [i == shared or (shared is not None and i >= len(args[0])) for i in range(len(args[0]) + len(arrays))]
    columns = [[*a, *(o[name] for name in arrays)] for a, o in zip(args, options, strict=True)]

    def one(*values: Any) -> Any:
        given = dict(zip(arrays, values[len(args[0]) :], strict=True))
        return call(case.function, list(values[: len(args[0])]), options[0] | given)

    stacked = [c[0] if k else jnp.stack(c) for k, *c in zip(keep, *columns, strict=True)]
    found = jax.vmap(one, [None if k else 0 for k in keep])(*stacked)
    each = [one(*(columns[0][j] if k else columns[i][j] for j, k in enumerate(keep))) for i in range(BATCH)]
    for name, value in found.items():
        want = np.stack([np.asarray(example[name]) for example in each])
        assert value.dtype == want.dtype
        np.testing.assert_array_equal(np.asarray(value), want, err_msg=name)


SINGLE = {
    "ce": (lambda x, y: ek.cross_entropy(x, y), X, Y),
    "ce sum": (lambda x, y: ek.cross_entropy(x, y, reduction="sum", ignore_index=1), X, Y),
    "ce ignored": (lambda x, y: ek.cross_entropy(x, y, ignore_index=1, on_empty="zero"), X, Y),
    "bce": (lambda x, t: ek.binary_cross_entropy(x, t), X.ravel(), T.ravel()),
    "bce rows": (lambda x, t: ek.binary_cross_entropy(x, t, axis=0, pos_weight=W), X, T),
    "kl": (lambda p, q: ek.kl_divergence(p, q, reduction="mean"), P, P[::-1]),
    "estimate": (lambda a, b: ek.kl_estimate(a, b), X.ravel(), X.ravel()[::-1]),
    "perplexity": (lambda x, y: ek.perplexity(x, y), X, Y),
    "argmax": (lambda x, y: ek.score(x, y, outputs="rank").rank, X, Y),
}


@pytest.mark.parametrize("name", SINGLE)
def test_vmap_of_rows(name: str) -> None:
    """A function of one row, as JAX's users write it."""
    function, *arrays = SINGLE[name]
    arrays = [jnp.asarray(a) for a in arrays]
    found = jax.jit(jax.vmap(function))(*arrays)
    want = np.stack([np.asarray(function(*rows)) for rows in zip(*arrays, strict=True)])
    assert found.dtype == want.dtype
    np.testing.assert_allclose(found, want, rtol=2e-7)  # a row's loss, and a sum of one, rounded once more


def test_rows_of_a_vmap_are_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    compute = host._compute
    monkeypatch.setattr(host, "_compute", lambda *args: (calls.append(1), compute(*args)))
    jax.vmap(jax.grad(ek.cross_entropy))(jnp.asarray(X), jnp.asarray(Y)).block_until_ready()
    assert len(calls) == 1
    jax.vmap(jax.vmap(ek.softmax))(jnp.ones((2, 3, 4))).block_until_ready()
    assert len(calls) == 2


def test_vmap_in_vmap_and_of_gradients() -> None:
    x, y = jnp.asarray(RNG.normal(size=(2, 3, 4, 5)), np.float32), jnp.asarray(RNG.integers(0, 5, (2, 3, 4)))
    w = jnp.asarray(RNG.uniform(1, 2, (2, 5)), np.float32)
    loss = partial(ek.cross_entropy, axis=-1)

    def weighted(x: Any, y: Any, w: Any) -> Any:
        return loss(x, y, class_weight=w)

    found = jax.vmap(jax.vmap(jax.grad(weighted), (0, 0, None)))(x, y, w)
    want = [[jax.grad(weighted)(x[i, j], y[i, j], w[i]) for j in range(3)] for i in range(2)]
    np.testing.assert_array_equal(found, np.stack([np.stack(row) for row in want]))
    axes = jax.vmap(partial(ek.softmax, axis=0), in_axes=2, out_axes=2)(x[0])
    np.testing.assert_array_equal(axes, ek.softmax(x[0], axis=0))
    assert jax.vmap(ek.cross_entropy)(x[:0, 0], y[:0, 0]).shape == (0,)


# --- within other transformations -------------------------------------------------------------------


def test_control_flow() -> None:
    x, y = jnp.asarray(X), jnp.asarray(Y)

    def total(x: Any) -> Any:
        return jax.lax.scan(lambda c, row: (c + ek.cross_entropy(*row), None), 0.0, (x, y))[0]

    np.testing.assert_allclose(jax.jit(total)(x), nll(x, y).sum(), rtol=1e-5)
    np.testing.assert_allclose(jax.jit(jax.grad(total))(x), jax.grad(lambda x: nll(x, y).sum())(x), atol=1e-6)
    again = jax.grad(jax.checkpoint(lambda x: ek.cross_entropy(jnp.sin(x), y)))(x)
    np.testing.assert_allclose(again, jax.grad(lambda x: nll(jnp.sin(x), y).mean())(x), atol=1e-6)
    either = jax.jit(lambda x: jax.lax.cond(x.sum() > 0, ek.logsumexp, partial(ek.entropy, form="logits"), x))
    np.testing.assert_array_equal(either(jnp.abs(x)), ek.logsumexp(jnp.abs(x)))
    np.testing.assert_array_equal(either(-jnp.abs(x)), ek.entropy(-jnp.abs(x), form="logits"))


def test_a_score_is_a_tree() -> None:
    x, y = jnp.asarray(X), jnp.asarray(Y)
    outputs = ("argmax", "loss", "grad")
    found = jax.jit(lambda x, y: ek.score(x, y, outputs=outputs))(x, y)
    assert type(found) is ek.Score
    assert [f.name for f in fields(found) if getattr(found, f.name) is not None] == ["loss", "argmax", "grad"]
    assert found.argmax.dtype == np.int32
    assert jax.tree.map(jnp.shape, found).grad == X.shape
    for nothing in (jax.jit(lambda x: ek.score(x, outputs=()))(x), ek.score(jnp.ones((512, 1024)), outputs=())):
        assert jax.tree.leaves(nothing) == []


def test_operands_of_other_kinds() -> None:
    """NumPy arrays and lists beside JAX arrays; integers; 64-bit types where they are enabled."""
    x = jnp.asarray(X)
    want = np.asarray(ek.cross_entropy(x, jnp.asarray(Y)))
    for y in (Y, Y.tolist(), Y.astype(np.uint8)):
        assert ek.cross_entropy(x, y) == want
        assert jax.jit(lambda x, y=y: ek.cross_entropy(x, y))(x) == want
    assert ek.cross_entropy(X, jnp.asarray(Y)) == want
    table = jnp.arange(6).reshape(2, 3)
    for function in (ek.softmax, jax.jit(ek.softmax)):
        found = function(table)
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, ek.softmax(np.arange(6).reshape(2, 3)).astype(np.float32))
    with pytest.raises(ValueError, match="integers that do not fit into int32"):
        jax.jit(lambda x: ek.cross_entropy(x, Y + 2**32))(x)


def test_64_bit_types(wide: None) -> None:
    table = jnp.arange(6).reshape(2, 3)
    for function in (ek.score, jax.jit(ek.score)):
        found = function(table)
        assert (found.lse.dtype, found.argmax.dtype) == (np.float64, np.int64)


def test_other_entry_points() -> None:
    """Streams and partials read the memory of arrays that have values."""
    stream = ek.Accumulator("cross_entropy").update(jnp.asarray(X), jnp.asarray(Y))
    np.testing.assert_allclose(stream.compute().mean, ek.cross_entropy(X, Y), rtol=1e-6)
    with pytest.raises(TypeError, match="traced: it has no values yet"):
        jax.jit(lambda x: ek.Accumulator("entropy", form="logits").update(x))(jnp.asarray(X))


# --- errors -----------------------------------------------------------------------------------------


def test_bad_labels() -> None:
    """An IndexError where there are values, the program's error where it is compiled; then all goes on."""
    x, y = jnp.asarray(X), jnp.asarray(Y).at[3].set(5)
    text = "label 5 of row 3 is out of range for k = 5 classes"
    with pytest.raises(IndexError, match=text):
        ek.cross_entropy(x, y)
    with pytest.raises(IndexError, match=text):
        jax.grad(ek.cross_entropy)(x, y)
    for function in (ek.cross_entropy, jax.grad(ek.cross_entropy), partial(ek.score, outputs=("loss", "rank"))):
        program = jax.jit(function)
        for _ in range(2):
            with pytest.raises(ERRORS, match=f"IndexError: {text}"):
                jax.block_until_ready(program(x, y))
        jax.block_until_ready(program(x, jnp.asarray(Y)))
    with pytest.raises(ERRORS, match="no row counts"):
        jax.jit(partial(ek.cross_entropy, ignore_index=5, on_empty="raise"))(x, jnp.full(6, 5)).block_until_ready()
    with pytest.raises(ERRORS, match="p: row 0 holds a probability below 0"):
        jax.jit(partial(ek.entropy, validate=True))(x).block_until_ready()


@pytest.mark.parametrize(
    ("function", "error", "message"),
    [
        (lambda x: ek.cross_entropy(x, Y, out=x), TypeError, "out is given beside JAX arrays, which cannot be written"),
        (lambda x: ek.softmax(x, out=np.empty_like(X)), TypeError, "out is given beside JAX arrays"),
        (lambda x: ek.cross_entropy(x, Y, return_grad=True, grad_out=x), TypeError, "grad_out is given"),
        (lambda x: ek.cross_entropy(x, Y[:5]), ValueError, r"target of shape \(5,\) does not fit"),
        (lambda x: ek.cross_entropy(x, Y, reduction="avg"), ValueError, "reduction='avg' is not known"),
        (lambda x: ek.cross_entropy(x, Y, axes=1), TypeError, "unexpected keyword argument 'axes'"),
        (lambda x: ek.cross_entropy(x), TypeError, "target"),
        (lambda x: ek.cross_entropy(x > 0, Y), TypeError, "dtype bool"),
        (lambda x: ek.kl_divergence(x.astype(jnp.float16), x.astype(jnp.bfloat16)), TypeError, "common dtype"),
        (lambda x: ek.softmax(x, axis=2), ValueError, "axis=2 does not exist"),
    ],
)
def test_bad_calls(function: Callable[..., Any], error: type[Exception], message: str) -> None:
    """What needs no values is said at once, also while a function is traced."""
    for way in (function, jax.jit(function)):
        with pytest.raises(error, match=message):
            way(jnp.asarray(X))


def test_traced_options() -> None:
    with pytest.raises(TypeError, match="temperature is traced, but options are fixed when"):
        jax.jit(lambda x, t: ek.cross_entropy(x, Y, temperature=t))(jnp.asarray(X), 2.0)
    program = jax.jit(lambda x: ek.cross_entropy(x, Y, temperature=np.float32(2), base=np.array(2)))
    assert program(jnp.asarray(X)) == ek.cross_entropy(X, Y, temperature=2, base=2)


def test_arrays_on_accelerators_are_refused() -> None:
    """By the handler that is registered for them, here called on the CPU."""
    ffi.register("entrokern_elsewhere", "cpu", host._refuse("CUDA"))
    shaped = jax.ShapeDtypeStruct((), np.float32)
    with pytest.raises(ERRORS, match="taken on the CPU, and these are on CUDA; bring them there"):
        jax.jit(lambda x: jax.ffi.ffi_call("entrokern_elsewhere", shaped)(x, call=""))(1.0).block_until_ready()


def test_a_text_is_the_whole_call() -> None:
    """A program holds nothing else of this process: another can run it."""
    for case in NAMED:
        found, _ = HostCall.of(getattr(ek, case.function), *operands(case, 4, 6), traced=False)
        assert HostCall.read(found.text.encode()) == found


def test_the_example() -> None:
    assert doctest.testmod(sys.modules["entrokern.jax"]).failed == 0


PARALLEL = """
import faulthandler, threading
faulthandler.dump_traceback_later(120, exit=True)
import jax, jax.numpy as jnp, numpy as np, entrokern as ek
rng = np.random.default_rng(0)
x, y = jnp.asarray(rng.normal(size=(4096, 500)), np.float32), jnp.asarray(rng.integers(0, 500, 4096))
program = jax.jit(jax.value_and_grad(lambda x: 2 * ek.cross_entropy(jnp.tanh(x), y)))
loss, gradient = program(x)
bad = []
def work():
    for _ in range(8):
        found = program(x)
        jax.block_until_ready(jax.jit(lambda x: ek.entropy(x, form="logits") + x.sum(1))(x))
        bad.append(not (found[0] == loss and (found[1] == gradient).all()))
threads = [threading.Thread(target=work) for _ in range(4)]
[t.start() for t in threads]
[t.join() for t in threads]
print(len(bad), sum(bad))
left_running = [program(x) for _ in range(4)]
"""


def test_large_arrays_from_several_threads() -> None:
    """Nothing waits for itself, and a process ends with computations under way."""
    done = subprocess.run([sys.executable, "-c", PARALLEL], capture_output=True, text=True, timeout=150)
    assert (done.returncode, done.stdout.split()) == (0, ["32", "0"]), done.stderr
