"""The CUDA backend: kernels in CUDA C++, compiled by NVRTC at first use and launched by CuPy on its current stream."""

from __future__ import annotations

from typing import Any

from .._call import Call
from .quantities import Execution


def execute(call: Call, reduction: str, on_empty: str, result: Any) -> None:
    """Write every output of `call`, and into `result` the reduced loss, without waiting for the device."""
    x: Any = call.x
    with x.device:  # kernels, workspaces and streams are those of the current device: the array's own
        if call.prepared is not None:
            call.prepared(call, result)
        else:
            Execution(call, reduction, on_empty, result).run()
