"""Fused, compiled kernels for the entropies of machine learning over large ``(n, k)`` arrays."""

from ._dispatch import backends, use_backend
from .divergences import js_divergence, kl_divergence, kl_estimate
from .entropies import entropy, information
from .linear import linear_cross_entropy
from .losses import binary_cross_entropy, cross_entropy, perplexity
from .partial import Partial, combine, partial
from .primitives import log_softmax, logsumexp, softmax
from .runtime import set_num_threads, show_info, warmup
from .score import Score, score
from .stream import Accumulator, StreamSummary

__version__ = "0.1.0"

__all__ = [
    "Accumulator",
    "Partial",
    "Score",
    "StreamSummary",
    "backends",
    "binary_cross_entropy",
    "combine",
    "cross_entropy",
    "entropy",
    "information",
    "js_divergence",
    "kl_divergence",
    "kl_estimate",
    "linear_cross_entropy",
    "log_softmax",
    "logsumexp",
    "partial",
    "perplexity",
    "score",
    "set_num_threads",
    "show_info",
    "softmax",
    "use_backend",
    "warmup",
]
