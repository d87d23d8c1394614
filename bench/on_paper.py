"""What the CUDA kernels can reach on an H100, on paper: python bench/on_paper.py prints two tables.

With --save they go to bench/results/on-paper.json, from where `docs/tables.py` has them for docs/gpu.md, and `stale`
tells when the kernels have changed since.

For each operation: the bytes that a class moves, and what the machine code of the kernel's loops spends on it
(`tests/cubin.py`): in the shortest turn of each loop, which leaves out what some rows or some calls need, and in all
of its code, which counts ways that exclude each other. The larger of the times of memory and arithmetic bounds the
share of the copy bandwidth.

Rows that are read twice must stay in cache until then: a second table has what of them does, by their length.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

import cubin
from entrokern.cuda.sources import KERNELS, cluster_size, source

ROOT = Path(__file__).resolve().parent.parent
SAVED = ROOT / "bench" / "results" / "on-paper.json"

# An H100 SXM: multiprocessors × instructions (of a warp's lanes) and special functions a clock × the boost clock; what
# a copy reaches of its 3.35 TB/s, in bytes a second.
INSTRUCTIONS, SPECIAL, COPY = 132 * 128 * 1.755e9, 132 * 16 * 1.755e9, 3.0e12
# Its cache: what it holds, all of it or one copy in each of its two halves; and what it hands over, in bytes a second.
CACHES, CACHE = (25e6, 50e6), 5.5e12
AT_WORK = 264  # blocks, two on each multiprocessor


class Operation(NamedTuple):
    """What is done, the kernel that does it, 16-byte loads for as many classes as one holds, and bytes for a class."""

    name: str
    kernel: str
    loads: int | tuple[int, ...]  # of every sweep, or of each
    bytes: int
    target: float | None = None


OPERATIONS = (
    Operation("CE, float32", "softmax_float32", 1, 4, 0.92),
    Operation("CE, bfloat16", "softmax_bfloat16", 1, 2, 0.92),
    Operation("CE + gradient, float32", "softmax_float32_maps", 1, 8, 0.88),
    Operation("CE + gradient, bfloat16", "softmax_bfloat16_maps", 1, 4, 0.88),
    Operation("CE with smoothing and softcap + gradient, float32", "softmax_float32_options_maps", 1, 8),
    Operation("CE with smoothing and softcap + gradient, bfloat16", "softmax_bfloat16_options_maps", 1, 4),
    Operation("score, all rows, float32", "softmax_float32_full", 1, 4),
    Operation("score, all rows, bfloat16", "softmax_bfloat16_full", 1, 2),
    Operation("softmax, float32", "softmax_float32_distributions", 1, 8),
    Operation("CE, dense target, float32", "soft_target_float32", 2, 8, 0.85),
    Operation("CE, dense target, bfloat16", "soft_target_bfloat16", 2, 4, 0.85),
    Operation("CE, dense target + gradient, float32", "soft_target_float32_maps", (1, 2, 2), 12),
    Operation("KL, logits, float32", "softmax_pair_float32", 2, 8, 0.85),
    Operation("KL, logits, bfloat16", "softmax_pair_bfloat16", 2, 4, 0.85),
    Operation("KL, logits + gradient, float32", "softmax_pair_float32_maps", 2, 12),
    Operation("JS, logits, float32", "softmax_js_float32", 2, 8),
    Operation("KL, probs, float32", "table_kl_float32", 2, 8, 0.9),
    Operation("KL, probs, bfloat16", "table_kl_bfloat16", 2, 4, 0.9),
    Operation("JS, probs, float32", "table_js_float32", 2, 8),
    Operation("entropy, probs, float32", "table_entropy_float32", 1, 4),
    Operation("BCE, float32", "binary_elements_float32", 2, 8, 0.88),
    Operation("BCE, uint8 targets, float32", "binary_elements_bytes_float32", 1, 5, 0.88),
    Operation("BCE + gradient, float32", "binary_elements_float32_maps", 2, 12),
    Operation("BCE, pos_weight, float32", "binary_elements_float32_weights", 4, 8),
    Operation("BCE, pos_weight + gradient, float32", "binary_elements_float32_weights_maps", 5, 12),
    Operation("BCE, pos_weight + gradient, bfloat16", "binary_elements_bfloat16_weights_maps", 8, 6),
)


def spent(operation: Operation, of: str) -> tuple[float, float]:
    """Instructions and special functions for a class, over all sweeps: of the `least` turn of loops, or their `mix`."""
    instructions = special = 0.0
    loops = loops_of(operation)
    loads = operation.loads if isinstance(operation.loads, tuple) else (operation.loads,) * len(loops)
    for loop, count in zip(loops, loads, strict=True):
        classes = cubin.elements_of(loop, operation.kernel) / count
        mix = getattr(loop, of)
        instructions += sum(mix.values()) / classes
        special += sum(n for op, n in mix.items() if op.startswith("MUFU")) / classes
    return instructions, special


def loops_of(operation: Operation) -> list[cubin.Loop]:
    loops = cubin.hot_loops(cubin.code(operation.kernel))
    # Elements have one sweep; a second loop is the other way to read their targets.
    return loops[:1] if operation.kernel.startswith("binary") else loops


class Row(NamedTuple):
    """A row of `k` classes that is read more than once; `blocks` share it."""

    operation: Operation
    k: int
    blocks: int

    @property
    def operands(self) -> list[int]:
        """How many each sweep reads."""
        loads = self.operation.loads
        return [*loads] if isinstance(loads, tuple) else [loads] * len(loops_of(self.operation))

    @property
    def size(self) -> int:
        """Bytes of a number."""
        return int(re.findall(r"float(\d+)", self.operation.kernel)[0]) // 8

    @property
    def bytes(self) -> int:
        """Of all operands: what has to stay in cache."""
        return self.k * self.size * max(self.operands)

    @property
    def moved(self) -> int:
        """What memory has to read and write at least."""
        return self.k * self.operation.bytes

    @property
    def again(self) -> int:
        """What is read once more, in later sweeps."""
        return self.k * self.size * sum(self.operands) - self.bytes

    @property
    def at_once(self) -> float:
        """Bytes of all rows that are under way."""
        return AT_WORK / self.blocks * self.bytes

    def missed(self, cache: float) -> float:
        """How much of what is read again comes from memory: each sweep goes back, and finds what was read last."""
        return max(0.0, 1 - cache / self.at_once) * self.again

    def reads(self, cache: float) -> float:
        """How often it is read from memory."""
        return 1 + self.missed(cache) / self.bytes

    def share(self, cache: float) -> float:
        """Of the copy bandwidth: memory, cache (all reads, and writes) or arithmetic may be what takes longest."""
        instructions, special = spent(self.operation, "least")
        arithmetic = self.k * max(instructions / INSTRUCTIONS, special / SPECIAL)
        memory = (self.moved + self.missed(cache)) / COPY
        return self.moved / COPY / max(memory, (self.moved + self.again) / CACHE, arithmetic)


# Rows of any length, and operations that read them more than once.
CLASSES = (16_384, 32_000, 50_257, 151_936, 262_144)
READ_AGAIN = ("CE + gradient", "CE, dense target + gradient", "KL, logits, ")


def long_rows() -> Iterator[tuple[str, ...]]:
    columns = ("operation", "classes", "kB a row", "blocks for it", "MB under way", "reads", "share at most")
    yield (*columns, "with one block", "target")
    for operation in OPERATIONS:
        for k in CLASSES if operation.name.startswith(READ_AGAIN) else ():
            alone = Row(operation, k, 1)
            row = alone._replace(blocks=cluster_size(k, alone.bytes // k))
            yield (
                *(operation.name, str(k), f"{row.bytes / 1e3:.0f}", str(row.blocks), f"{row.at_once / 1e6:.0f}"),
                *(span([row.reads(cache) for cache in CACHES], 2), span([row.share(cache) for cache in CACHES], 2)),
                *(span([alone.share(cache) for cache in CACHES], 2), target_of(operation)),
            )


def target_of(operation: Operation) -> str:
    return "" if operation.target is None else f"{operation.target}"


def operations() -> Iterator[tuple[str, ...]]:
    columns = ("operation", "bytes", "sweeps", "instructions", "special functions", "memory, ps", "arithmetic, ps")
    yield (*columns, "share at most", "target")
    for operation in OPERATIONS:
        memory = operation.bytes / COPY
        both = [spent(operation, of) for of in ("least", "mix")]
        times = [max(instructions / INSTRUCTIONS, special / SPECIAL) for instructions, special in both]
        shares = [min(1.0, memory / time) for time in times]
        yield (
            *(operation.name, str(operation.bytes), str(len(loops_of(operation)))),
            *(span([pair[i] for pair in both], digits) for i, digits in ((0, 0), (1, 1))),
            *(f"{1e12 * memory:.2f}", span([1e12 * time for time in times], 2), span(shares, 2)),
            target_of(operation),
        )


def digest() -> str:
    """Of the kernels' sources, but for their comments: what the tables have been read from."""
    texts = (source([KERNELS[operation.kernel]]) for operation in OPERATIONS)
    words = (" ".join(re.sub(r"//.*", "", text).split()) for text in texts)
    return hashlib.sha256("\n".join(words).encode()).hexdigest()


def stale(saved: dict[str, Any]) -> bool:
    """Whether the kernels, or what is looked at, are not those that the `saved` tables are of."""
    names = [operation for operation, *_ in saved["operations"][1:]]
    return saved["digest"] != digest() or names != [operation.name for operation in OPERATIONS]


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--save", action="store_true", help=f"write the tables to {SAVED.relative_to(ROOT)} too")
    options = asked.parse_args()
    cubin.begin((operation.kernel, cubin.HOPPER) for operation in OPERATIONS)
    tables = {"operations": list(operations()), "long_rows": list(long_rows())}
    for header, *lines in tables.values():
        for line in (header, ("---",) * len(header), *lines, ()):
            print("| " + " | ".join(line) + " |" if line else "")
    if options.save:
        SAVED.write_text(json.dumps({"compiler": cubin.version(), "digest": digest(), **tables}, indent=1) + "\n")


def span(values: list[float], digits: int) -> str:
    ends = [f"{value:.{digits}f}" for value in values]
    return ends[0] if ends[0] == ends[1] else " … ".join(ends)


if __name__ == "__main__":
    main()
