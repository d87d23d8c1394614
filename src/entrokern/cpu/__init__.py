"""The CPU backend: kernels compiled by Numba, run by threads of the library's own."""

from __future__ import annotations

from .._call import Call
from .operands import with_whole_elements
from .quantities import QUANTITIES


def run(call: Call) -> float:
    """Write every output of `call`; return the sum of its losses where it is asked for."""
    if call.x.size == 0:
        return 0.0
    if call.prepared is not None:
        return call.prepared(call)
    whole = with_whole_elements(call)
    run = QUANTITIES[call.quantity](whole)
    total = run(whole)
    if whole is call:
        call.prepared = run
    for given, written in ((call.rows, whole.rows), (call.maps, whole.maps)):
        for name, out in given.items():
            if written[name] is not out:
                out[...] = written[name]
    return total
