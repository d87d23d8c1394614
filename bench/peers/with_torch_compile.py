"""`torch.compile`: the same losses as in eager PyTorch, compiled for the shape at hand."""

from __future__ import annotations

from typing import Any

import torch

from peers.with_torch import Loss, calls


def compiled(loss: Loss) -> Any:
    torch.compiler.reset()  # or it would give up after a few shapes, and run eagerly
    return torch.compile(loss, dynamic=False)


LOSSES = calls(compiled)
