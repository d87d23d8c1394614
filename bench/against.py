"""Two revisions, interleaved: `python bench/against.py REV` says what this tree does slower than REV.

Each revision runs in a long-lived process with its own sources and its own cache of kernels; the two take
turns on the same shapes. What looks slower is measured once more in fresh processes, and counts only if it
is slower again. The exit code is 1 if anything is.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import operations

ROOT = Path(__file__).resolve().parent.parent
WORKER = Path(__file__).resolve().parent / "worker.py"
CLASSES = (10, 100, 1000, 32_000)
SMALLEST = 0.03  # less is not told from where the pages of two processes happen to lie


class Comparison(NamedTuple):
    """One operation: this tree's time over the other's, and between what bounds it surely lies."""

    name: str
    ratio: float
    low: float
    high: float

    @property
    def slower(self) -> bool:
        return self.low > 1 + SMALLEST

    @property
    def faster(self) -> bool:
        return self.high < 1 - SMALLEST


class Worker:
    """A process that times operations of one revision on demand."""

    def __init__(self, source: Path, cache: Path) -> None:
        environment = {**os.environ, "PYTHONPATH": str(source), "ENTROKERN_CACHE_DIR": str(cache)}
        self._process = subprocess.Popen(
            [sys.executable, str(WORKER)], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, request: dict[str, Any]) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise SystemExit("a revision's process has ended; its error is above")
        return json.loads(answer)

    def close(self) -> None:
        self._process.communicate()


@contextmanager
def checked_out(revision: str) -> Iterator[Path]:
    """The tree of a revision, in a folder for the time being."""
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        git = ["git", "-C", str(ROOT)]
        subprocess.run([*git, "worktree", "add", "--quiet", "--detach", str(tree), revision], check=True)
        try:
            yield tree
        finally:
            subprocess.run([*git, "worktree", "remove", "--force", str(tree)], check=True)


@contextmanager
def workers(trees: list[Path], caches: Path) -> Iterator[list[Worker]]:
    with ExitStack() as stack:
        found = []
        for number, tree in enumerate(trees):
            found.append(Worker(tree / "src", caches / str(number)))
            stack.callback(found[-1].close)
        yield found


def compare(pair: list[Worker], cell: tuple[str, str, int], megabytes: float, rounds: int) -> Comparison | str:
    """Both, in turn; or why not."""
    name = f"{cell[0]}, {cell[1]}, k = {cell[2]}"
    for worker, which in zip(pair, ("this tree", "REV"), strict=True):
        failed = worker.ask({"prepare": [*cell, megabytes]})
        if failed:
            return f"{name}: {which} cannot: {failed}"
    ratios = []
    for turn in range(rounds):
        order = pair if turn % 2 else pair[::-1]
        seconds = {id(worker): worker.ask({"time": True}) for worker in order}
        ratios.append(seconds[id(pair[0])] / seconds[id(pair[1])])
    return Comparison(name, statistics.median(ratios), *bounds_of_median(ratios))


def bounds_of_median(values: list[float], doubt: float = 0.01) -> tuple[float, float]:
    """Between what two of the values the true median lies but for that doubt, whatever the noise is like."""
    ordered, n = sorted(values), len(values)
    outside = 0.0
    for rank in range(n // 2):
        outside += 2 * math.comb(n, rank) / 2**n
        if outside > doubt:
            return ordered[max(0, rank - 1)], ordered[min(n - 1, n - rank)]
    return ordered[0], ordered[-1]


def line(found: Comparison) -> str:
    word = "SLOWER" if found.slower else "faster" if found.faster else ""
    return f"{found.name:44} {found.ratio:6.3f}   {found.low:.3f} to {found.high:.3f}   {word}".rstrip()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("revision", metavar="REV")
    parser.add_argument("--only", default="", metavar="TEXT", help="operations whose name contains this")
    parser.add_argument("--classes", type=int, nargs="+", default=CLASSES, metavar="K")
    parser.add_argument("--megabytes", type=float, default=64.0)
    parser.add_argument("--rounds", type=int, default=15)
    settings = parser.parse_args()
    asked = operations.cells(settings.only, tuple(settings.classes))
    cells = [(operation.name, dtype, k) for operation, dtype, k in asked]

    def compared(pair: list[Worker], cell: tuple[str, str, int]) -> Comparison | str:
        return compare(pair, cell, settings.megabytes, settings.rounds)

    with checked_out(settings.revision) as tree, tempfile.TemporaryDirectory() as caches:
        trees = [ROOT, tree]
        suspects = []
        print(f"time of this tree over that of {settings.revision}, and between what it lies (99 %)")
        with workers(trees, Path(caches)) as pair:
            for cell in cells:
                found = compared(pair, cell)
                print(found if isinstance(found, str) else line(found), flush=True)
                if isinstance(found, Comparison) and found.slower:
                    suspects.append(cell)
        if not suspects:
            print("\nnothing is slower")
            return 0
        print("\nwhat looked slower, once more in fresh processes")
        slower = []
        for cell in suspects:
            with workers(trees, Path(caches)) as pair:
                again = compared(pair, cell)
            if isinstance(again, Comparison):
                print(line(again), flush=True)
                if again.slower:
                    slower.append(again)
    print("\nslower: " + ("; ".join(f"{found.name} ({found.ratio:.2f} ×)" for found in slower) or "nothing, twice"))
    return 1 if slower else 0


if __name__ == "__main__":
    sys.exit(main())
