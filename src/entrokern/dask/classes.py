"""Calls whose rows lie in several blocks of classes."""

from __future__ import annotations

from typing import Any

from .calls import LazyCall


def over_classes(call: LazyCall) -> Any:
    """Rows whose classes lie in several blocks."""
    blocks = len(call.chunks[call.class_axis or 0])
    raise NotImplementedError(
        f"the classes lie in {blocks} blocks along axis {call.class_axis}; rechunk to one: "
        f".rechunk({{{call.class_axis}: -1}})"
    )
