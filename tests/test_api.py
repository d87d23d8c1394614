"""The public surface: names, signatures, what comes in comes out, and the examples in the docstrings."""

from __future__ import annotations

import doctest
import inspect
from importlib.resources import files

import numpy as np
import pytest

import entrokern as ek

# Section 2 of the design, word for word: positional arguments, then keyword options with defaults.
SIGNATURES = {
    "information": "p, *, base=None, out=None",
    "entropy": "p, *, form='probs', axis=-1, base=None, sample_weight=None, reduction='none', "
    "return_grad=False, out=None, grad_out=None",
    "cross_entropy": "x, target, *, form='logits', axis=-1, class_weight=None, sample_weight=None, "
    "label_smoothing=0.0, ignore_index=None, temperature=1.0, softcap=None, z_loss=0.0, base=None, "
    "reduction='mean', on_empty='nan', return_grad=False, return_hess=False, out=None, grad_out=None, "
    "hess_out=None",
    "binary_cross_entropy": "x, target, *, form='logits', axis=None, pos_weight=None, sample_weight=None, "
    "label_smoothing=0.0, ignore_index=None, base=None, reduction='mean', on_empty='nan', "
    "return_grad=False, return_hess=False, out=None, grad_out=None, hess_out=None",
    "kl_divergence": "p, q, *, p_form='probs', q_form='probs', axis=-1, temperature=1.0, sample_weight=None, "
    "base=None, reduction='none', return_grad=False, out=None, grad_out=None",
    "js_divergence": "p, q, *, p_form='probs', q_form='probs', axis=-1, temperature=1.0, sample_weight=None, "
    "base=None, reduction='none', return_grad=False, out=None, grad_out=None, weight=0.5",
    "kl_estimate": "log_p, log_q, *, estimator='k1', reduction='mean'",
    "perplexity": "x, target, *, form='logits', axis=-1, class_weight=None, sample_weight=None, "
    "label_smoothing=0.0, ignore_index=None, temperature=1.0, softcap=None, on_empty='nan'",
    "score": "x, target=None, *, outputs=None, axis=-1, class_weight=None, sample_weight=None, "
    "label_smoothing=0.0, ignore_index=None, temperature=1.0, softcap=None, z_loss=0.0, base=None, "
    "on_empty='nan', out=None, grad_out=None, hess_out=None",
    "linear_cross_entropy": "hidden, weight, target, *, bias=None, class_weight=None, sample_weight=None, "
    "label_smoothing=0.0, ignore_index=None, temperature=1.0, softcap=None, z_loss=0.0, base=None, "
    "reduction='mean', on_empty='nan', return_grad=False, out=None, grad_out=None",
    "logsumexp": "x, *, axis=-1, out=None",
    "log_softmax": "x, *, axis=-1, out=None",
    "softmax": "x, *, axis=-1, out=None",
}
OTHER_NAMES = {
    "Accumulator", "Partial", "Score", "StreamSummary", "backends", "combine", "partial", "set_num_threads",
    "show_info", "use_backend", "warmup",
}  # fmt: skip


def test_public_names() -> None:
    assert sorted(ek.__all__) == ek.__all__
    assert set(SIGNATURES) | OTHER_NAMES <= set(ek.__all__)
    assert all(hasattr(ek, name) for name in ek.__all__)
    public = {n for n, v in vars(ek).items() if not n.startswith("_") and not inspect.ismodule(v)}
    assert public == set(ek.__all__)


@pytest.mark.parametrize("name", SIGNATURES)
def test_signature(name: str) -> None:
    signature = inspect.signature(getattr(ek, name))
    plain = [p.replace(annotation=inspect.Parameter.empty) for p in signature.parameters.values()]
    # `validate` is in every function, and not in the table.
    assert str(signature.replace(parameters=plain, return_annotation=inspect.Signature.empty)) == (
        f"({SIGNATURES[name]}, validate=False)"
    )


@pytest.mark.parametrize("name", ek.__all__)
def test_docstring(name: str) -> None:
    """Every public name says what it does, in numpydoc's sections, and shows it."""
    public = getattr(ek, name)
    text = inspect.getdoc(public)
    assert text
    assert len(text.splitlines()[0]) <= 110
    if name in SIGNATURES:
        for section in ("Parameters", "Returns", "Raises", "Notes", "Examples"):
            assert f"\n{section}\n{'-' * len(section)}\n" in text, section
        documented = text[text.index("Parameters") : text.index("Returns")]
        for parameter in inspect.signature(public).parameters:
            if name == "perplexity" and parameter == "validate":
                parameter = "on_empty, validate"
            assert parameter in documented, parameter


@pytest.mark.parametrize("name", ek.__all__)
def test_examples(name: str, host_backend: str) -> None:
    """The examples give what they say, on every backend."""
    public = getattr(ek, name)
    finder = doctest.DocTestFinder(recurse=False)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    with np.printoptions(precision=8, suppress=False):
        for example in finder.find(public, name, globs={}):
            assert runner.run(example).failed == 0
    if name in SIGNATURES:
        assert runner.tries > 0


def test_typed() -> None:
    assert files("entrokern").joinpath("py.typed").is_file()


def test_backends() -> None:
    assert next(iter(ek.backends())) == "cpu"
    assert "reference" in ek.backends()
    assert all(isinstance(about, str) and about for about in ek.backends().values())


def test_use_backend() -> None:
    """A context manager that puts back what was, nested too and after an error; a plain call as well."""
    from entrokern import _dispatch

    before = _dispatch.chosen()
    with ek.use_backend("reference"):
        assert _dispatch.chosen() == "reference"
        with ek.use_backend("cpu"):
            assert _dispatch.chosen() == "cpu"
        assert _dispatch.chosen() == "reference"
        with pytest.raises(ZeroDivisionError), ek.use_backend("cpu"):
            raise ZeroDivisionError
        assert _dispatch.chosen() == "reference"
        with ek.use_backend("auto"):
            assert _dispatch.chosen() == "cpu"
    assert _dispatch.chosen() == before
    was = ek.use_backend("reference")
    assert _dispatch.chosen() == "reference"
    was.__exit__(None, None, None)
    assert _dispatch.chosen() == before


def test_results_are_plain_arrays(host_backend: str) -> None:
    """Reduced results are 0-d arrays, not NumPy scalars; subclasses come in, plain arrays come out."""
    x = np.zeros((2, 3)).view(np.recarray)
    for result in (
        ek.cross_entropy([[0.0, 1.0]], [0]),
        ek.cross_entropy([[0.0, 1.0]], [0], reduction="sum"),
        ek.entropy([0.5, 0.5]),
        ek.logsumexp([0.0, 1.0]),
        ek.binary_cross_entropy(0.0, 1, reduction="none"),
        ek.information(0.5),
        ek.kl_estimate([0.0], [0.0]),
        ek.perplexity([[0.0, 1.0]], [0]),
        ek.kl_divergence([0.5, 0.5], [0.5, 0.5]),
    ):
        assert type(result) is np.ndarray
        assert result.shape == ()
    for result in (ek.softmax(x), ek.cross_entropy(x, [0, 1], return_grad=True)[1]):
        assert type(result) is np.ndarray
