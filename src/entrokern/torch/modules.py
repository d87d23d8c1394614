"""Losses of ``torch.nn``, computed by entrokern: the same signatures, buffers and reductions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import divergences, linear, losses

__all__ = ["BCEWithLogitsLoss", "CrossEntropyLoss", "KLDivLoss"]


class CrossEntropyLoss(torch.nn.CrossEntropyLoss):
    """``torch.nn.CrossEntropyLoss``: the cross-entropy of logits with labels or target distributions.

    Parameters are PyTorch's: `weight`, `ignore_index`, `reduction`, `label_smoothing`. The classes lie along axis 1,
    or along the only one.

    Notes
    -----
    The loss of 16-bit logits is float32, their gradient of their own dtype. Targets of any integer dtype are taken;
    those that require a gradient are a ``ValueError``. See `entrokern.cross_entropy` for the formula.

    Examples
    --------
    >>> import torch, entrokern.torch
    >>> logits = torch.tensor([[2.0, 0.0, -1.0], [0.0, 4.0, 0.0]], requires_grad=True)
    >>> loss = entrokern.torch.CrossEntropyLoss()(logits, torch.tensor([0, 1]))
    >>> loss.backward()
    >>> print(f"{loss.item():.4f}", logits.grad.sum(1).abs().max().item() < 1e-7)
    0.1029 True
    """

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        loss: Tensor = losses.cross_entropy(
            input,
            target,
            axis=min(1, max(input.dim() - 1, 0)),
            class_weight=self.weight,
            ignore_index=_ignored(self.ignore_index, target.shape != input.shape),
            label_smoothing=self.label_smoothing,
            reduction=_reduction(self.reduction),
        )
        return loss


class BCEWithLogitsLoss(torch.nn.BCEWithLogitsLoss):
    """``torch.nn.BCEWithLogitsLoss``: the binary cross-entropy of logits, element by element.

    Parameters are PyTorch's: `weight` (which multiplies, while a mean divides by the number of elements), `reduction`,
    `pos_weight`.

    Notes
    -----
    The loss of 16-bit logits is float32, their gradient of their own dtype. Targets and weights that require a
    gradient are a ``ValueError``. See `entrokern.binary_cross_entropy` for the formula.

    Examples
    --------
    >>> import torch, entrokern.torch
    >>> loss = entrokern.torch.BCEWithLogitsLoss(weight=torch.tensor([1.0, 3.0]))
    >>> print(f"{loss(torch.zeros(2), torch.tensor([0.0, 1.0])).item():.4f}")
    1.3863
    """

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        reduction = _reduction(self.reduction)
        weighted_mean = reduction == "mean" and self.weight is not None
        loss: Tensor = losses.binary_cross_entropy(
            input,
            target,
            pos_weight=self.pos_weight,
            sample_weight=self.weight,
            reduction="sum" if weighted_mean else reduction,
        )
        return loss / input.numel() if weighted_mean else loss


class KLDivLoss(torch.nn.KLDivLoss):
    """``torch.nn.KLDivLoss``: ``D(target‖exp(input))`` of log-probabilities `input`, element by element.

    Parameters are PyTorch's: `reduction` (``"mean"`` divides by the number of elements, ``"batchmean"`` by that of
    rows) and `log_target`.

    Notes
    -----
    The loss of 16-bit operands is float32; there are gradients by both operands. ``kl_divergence`` takes logits as
    well, and spares you the log-softmax. See `entrokern.kl_divergence` for the formula.

    Examples
    --------
    >>> import torch, entrokern.torch
    >>> p, q = torch.tensor([[0.7, 0.2, 0.1]]), torch.tensor([[0.5, 0.2, 0.3]])
    >>> print(f"{entrokern.torch.KLDivLoss(reduction='batchmean')(q.log(), p).item():.4f}")
    0.1257
    """

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        form: Any = "log_probs" if self.log_target else "probs"
        elements = torch.broadcast_shapes(input.shape, target.shape)
        if not elements.numel():  # which has rows of no class, or none to divide by
            return torch.nn.functional.kl_div(input, target, reduction=self.reduction, log_target=self.log_target)
        if self.reduction == "none" or not elements:  # every element is a row of one class
            input, target = input.unsqueeze(-1), target.unsqueeze(-1)
        shape = torch.broadcast_shapes(input.shape, target.shape)
        reduction: Any = "mean" if self.reduction == "batchmean" else _reduction(self.reduction)
        loss: Tensor = divergences.kl_divergence(target, input, p_form=form, q_form="log_probs", reduction=reduction)
        if reduction != "mean":
            return loss
        divisor = input.size(0) if self.reduction == "batchmean" else elements.numel()
        scale = shape[:-1].numel() / divisor
        return loss if scale == 1 else loss * scale


if hasattr(torch.nn, "LinearCrossEntropyLoss"):  # since PyTorch 2.13
    __all__ += ["LinearCrossEntropyLoss"]

    class LinearCrossEntropyLoss(torch.nn.LinearCrossEntropyLoss):
        """``torch.nn.LinearCrossEntropyLoss``: the cross-entropy of a linear layer that the module holds.

        Parameters are PyTorch's: `in_features`, `num_classes`, `bias`, `weight` (of classes), `ignore_index`,
        `reduction`, `label_smoothing`. The logits are never stored, and so `options`, which say how PyTorch cuts
        them, change nothing.

        Notes
        -----
        ``out_features``, several layers in one, is a ``ValueError``. The loss of 16-bit operands is float32, the
        gradients of their own dtypes. See `entrokern.linear_cross_entropy` for how it is computed.

        Examples
        --------
        >>> import torch, entrokern.torch
        >>> layer = entrokern.torch.LinearCrossEntropyLoss(4, 1000)
        >>> loss = layer(torch.zeros(2, 4), torch.tensor([0, 999]))
        >>> loss.backward()
        >>> print(f"{loss.item():.4f}", tuple(layer.linear.weight.grad.shape))
        6.9078 (1000, 4)
        """

        def forward(self, input: Tensor, target: Tensor) -> Tensor:
            if self.out_features:
                raise ValueError(
                    f"out_features={self.out_features} came, and entrokern has one layer alone, out_features=(); use "
                    "torch.nn.LinearCrossEntropyLoss"
                )
            labelled = target.dim() < input.dim()
            ignored = -100 if self.ignore_index is None else self.ignore_index
            loss: Tensor = linear.linear_cross_entropy(
                input,
                self.linear.weight,
                target,
                bias=self.linear.bias,
                class_weight=self.weight,
                ignore_index=_ignored(ignored, labelled),
                label_smoothing=self.label_smoothing,
                reduction=_reduction(self.reduction),
            )
            return loss


def _ignored(index: int, labelled: bool) -> int | None:
    if labelled:
        return index
    if index >= 0:
        raise ValueError(f"ignore_index={index} needs integer labels, but target is a distribution; leave it out")
    return None


def _reduction(reduction: str) -> Any:
    if reduction not in ("none", "mean", "sum"):
        raise ValueError(f"reduction={reduction!r} is not known; choose one of 'none', 'mean', 'sum'")
    return reduction
