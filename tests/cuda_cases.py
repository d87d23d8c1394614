"""The table of cases for the CUDA backend, where more than a function and its forms decide which kernel runs.

Fast kernels take what is plain: without weights, with one gradient or none, targets of one byte. `TABLE` has the cases
of `NAMED`, and beside each of them those that are plainer.
"""

from __future__ import annotations

from collections.abc import Iterator

from cases import NAMED, Case


def plainer(case: Case) -> Iterator[Case]:
    """The case itself, and with fewer options."""
    options = dict(case.options)
    wanted = {name: value for name, value in options.items() if name.startswith("return_")}
    asked = {"": wanted, ", by q": {"return_grad": "q"}, ", by x": {"return_grad": True}, ", value": {}}
    if "divergence" in case.function:
        del asked[", by x"]
    else:
        del asked[", by q"]
    for which, maps in asked.items() if wanted else [("", {})]:
        for weights, arrays in (("", case.arrays), (", no weights", {})):
            rest = {name: value for name, value in options.items() if name not in wanted}
            found = case._replace(name=case.name + which + weights, options=rest | maps, arrays=arrays)
            yield found
            if found.operands[-1] == "binary":
                yield found._replace(name=found.name + ", bytes", operands=(*found.operands[:-1], "one hot"))


def _table() -> list[Case]:
    found: dict[str, Case] = {}
    for case in [*NAMED, *(other for case in NAMED for other in plainer(case))]:
        found.setdefault(repr((case.function, case.operands, sorted(case.options.items()), sorted(case.arrays))), case)
    return list(found.values())


TABLE = _table()
