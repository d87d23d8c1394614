"""The structures of the kernels as NumPy dtypes, read from the CUDA C++ that defines them."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

SCALARS = {"double": "f8", "float": "f4", "int": "i4", "i64": "i8"}
POINTER = "u8"


def dtype_of(name: str, source: str) -> np.dtype[Any]:
    """The structure `name` that `source` defines, laid out as a C++ compiler does it.

    Its members are numbers, pointers, arrays of a literal size and other such structures.
    """
    found = re.search(rf"struct {name} \{{(.*?)\n\}};", source, re.DOTALL)
    if found is None:
        raise ValueError(f"there is no struct {name}")
    fields: list[tuple[Any, ...]] = []
    for declaration in re.sub(r"//.*", "", found[1]).split(";"):
        parsed = re.match(r"\s*(?:const\s+)?(\w+)\s+(.*)", declaration, re.DOTALL)
        if parsed is None:
            if declaration.strip():
                raise ValueError(f"struct {name}: {declaration.strip()!r} is no member that NumPy has a name for")
            continue
        kind, members = parsed.groups()
        for member in members.split(","):
            named = re.fullmatch(r"\s*(\*?)(\w+)(?:\[(\d+)\])?\s*", member)
            if named is None:
                raise ValueError(f"struct {name}: {member.strip()!r} is no member that NumPy has a name for")
            pointer, field, size = named.groups()
            number: Any = POINTER if pointer else SCALARS.get(kind) or dtype_of(kind, source)
            fields.append((field, number, *([(int(size),)] if size else [])))
    return np.dtype(fields, align=True)
