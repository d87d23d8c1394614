"""JAX on the CPU, compiled by `jax.jit`, on arrays of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy import special

from data import Case
from peers import Call

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_enable_x64", True)


def cross_entropy(x: Any, y: Any, axis: int = -1) -> Any:
    log_p = jax.nn.log_softmax(x, axis)
    return -jnp.take_along_axis(log_p, jnp.expand_dims(y, axis), axis).squeeze(axis)


def dense_cross_entropy(x: Any, y: Any) -> Any:
    return -(y * jax.nn.log_softmax(x)).sum(-1)


def kl_of_logits(x: Any, y: Any) -> Any:
    p, q = jax.nn.log_softmax(x), jax.nn.log_softmax(y)
    return (jnp.exp(p) * (p - q)).sum(-1)


def entropy_of_logits(x: Any) -> Any:
    log_p = jax.nn.log_softmax(x)
    return -(jnp.exp(log_p) * log_p).sum(-1)


def js(x: Any, y: Any) -> Any:
    m = (x + y) / 2
    return (special.rel_entr(x, m) + special.rel_entr(y, m)).sum(-1) / 2


def score(x: Any, y: Any) -> Any:
    """The outputs of `score`, in its order, from one log-softmax."""
    log_p = jax.nn.log_softmax(x)
    p = jnp.exp(log_p)
    chosen = jnp.take_along_axis(x, y[:, None], -1)
    log_prob = jnp.take_along_axis(log_p, y[:, None], -1)[:, 0]
    entropy, rank = -(p * log_p).sum(-1), (x > chosen).sum(-1)
    return -log_prob, chosen[:, 0] - log_prob, log_prob, entropy, x.argmax(-1), rank, p.max(-1)


def binary_terms(x: Any, y: Any) -> Any:
    return jax.nn.softplus(x) - x * y.astype(x.dtype)


def binary(x: Any, y: Any) -> Any:
    return binary_terms(x, y).mean()


def binary_of_probabilities(x: Any, y: Any) -> Any:
    return -jnp.log(jnp.where(y, x, 1 - x)).mean()


def and_gradient(loss: Callable[..., Any]) -> Callable[..., Any]:
    def both(x: Any, y: Any) -> Any:
        found, back = jax.vjp(lambda x: loss(x, y), x)
        return found, back(jnp.ones_like(found))[0]

    return both


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "ce": cross_entropy,
    "ce_axis1": lambda x, y: cross_entropy(x, y, 1),
    "ce+gradient": and_gradient(cross_entropy),
    "ce_dense": dense_cross_entropy,
    "ce_dense+gradient": and_gradient(dense_cross_entropy),
    "entropy_logits": entropy_of_logits,
    "logsumexp": lambda x: special.logsumexp(x, -1),
    "score": score,
    "kl_logits": kl_of_logits,
    "distillation+gradient": and_gradient(lambda x, y: kl_of_logits(y, x)),
    "kl": lambda x, y: special.rel_entr(x, y).sum(-1),
    "js": js,
    "entropy": lambda x: special.entr(x).sum(-1),
    "bce": binary,
    "bce+gradient": and_gradient(binary),
    "bce_probs": binary_of_probabilities,
    "bce_rows": lambda x, y: binary_terms(x, y).sum(-1),
    "information": lambda x: -jnp.log(x),
}


def call(loss: Callable[..., Any], case: Case) -> Call:
    compiled = jax.jit(loss)
    operands = [jnp.asarray(array) for array in case.operands]

    def run() -> tuple[Any, ...]:
        found = jax.block_until_ready(compiled(*operands))
        return tuple(np.asarray(part) for part in (found if isinstance(found, tuple) else (found,)))

    return run


LOSSES = {name: lambda case, loss=loss: call(loss, case) for name, loss in FUNCTIONS.items()}
