"""`entrokern score` beside reading its file from page cache, and the most memory it takes, format by format.

python bench/score_files.py                 files of 400 MB, 1000 float32 classes, in a temporary folder
python bench/score_files.py --megabytes 1000 --rounds 9
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import chdir, redirect_stdout
from pathlib import Path

import numpy as np

CLASSES, BUFFER = 1000, 8 << 20
LIMIT = 400  # MB above the bare interpreter with Numba
BARE = "import numba, numpy"


def write_files(rows: int) -> None:
    """The same logits in every format, and their labels."""
    import pyarrow as arrow
    from pyarrow import feather, parquet

    rng = np.random.default_rng(0)
    x = rng.normal(size=(rows, CLASSES)).astype(np.float32)
    np.save("x.npy", x)
    np.save("y.npy", rng.integers(0, CLASSES, rows))
    lists = arrow.table({"logits": arrow.FixedSizeListArray.from_arrays(x.ravel(), CLASSES)})
    columns = arrow.table({f"logit_{c}": x[:, c] for c in range(CLASSES)})
    parquet.write_table(lists, "lists.parquet")
    parquet.write_table(columns, "columns.parquet")
    feather.write_feather(lists, "lists.arrow", compression="uncompressed")
    feather.write_feather(lists, "lists.feather", compression="lz4")
    feather.write_feather(columns, "columns.feather", compression="lz4")


FILES = ("x.npy", "lists.arrow", "lists.parquet", "lists.feather", "columns.parquet", "columns.feather")


def read_seconds() -> float:
    """Reading x.npy once, into a buffer that is used again."""
    buffer = memoryview(bytearray(BUFFER))
    begun = time.perf_counter()
    with open("x.npy", "rb", buffering=0) as file:
        while file.readinto(buffer):
            pass
    return time.perf_counter() - begun


def score_seconds(*arguments: str) -> float:
    """What the command says that it took, in a process whose kernels are loaded."""
    from entrokern import _threads, cli

    _threads.choose(_threads.default_threads())  # whatever an earlier run was told
    with redirect_stdout(io.StringIO()) as said:
        if cli.main(["score", "x.npy", "y.npy", "--out", "o.npy", "--json", *arguments]):
            raise SystemExit("entrokern score failed")
    return float(json.loads(said.getvalue())["seconds"])


def timed(rounds: int) -> dict[str, float]:
    """Medians of all ways in turn."""
    ways: dict[str, Callable[[], float]] = {
        "reading x.npy": read_seconds,
        "score": score_seconds,
        "score --threads 1": lambda: score_seconds("--threads", "1"),
        "score --threads 2": lambda: score_seconds("--threads", "2"),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name, way in ways.items():
            seconds = way()
            if turn:  # the first compiles, and brings the file into the cache
                times[name].append(seconds)
    return {name: statistics.median(seconds) for name, seconds in times.items()}


def peak_mb(*command: str) -> float:
    """The most memory of a process. It counts what its parent had when it began: this one has next to nothing."""
    process = subprocess.Popen([sys.executable, *command], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    return usage.ru_maxrss / 1024


def report(megabytes: float, rounds: int) -> Iterator[str]:
    rows = int(megabytes * 1e6 / (4 * CLASSES))
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as apart:
        apart.submit(write_files, rows).result()
        medians = apart.submit(timed, rounds).result()
    for name, seconds in medians.items():
        rate = 4e-9 * rows * CLASSES / seconds
        yield f"{name:<20}{rate:6.2f} GB/s  {medians['reading x.npy'] / seconds:5.2f} of reading (wanted: 0.8)"
    bare = peak_mb("-c", BARE)
    yield f"\nmost memory, MB above the bare interpreter with Numba ({bare:.0f}; wanted: at most {LIMIT})"
    for name in FILES:
        above = peak_mb("-m", "entrokern", "score", name, "y.npy", "--out", "o.npy") - bare
        yield f"{name:<20}{above:6.0f}{'' if above <= LIMIT else '  above'}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=400.0)
    parser.add_argument("--rounds", type=int, default=5)
    settings = parser.parse_args()
    source = str(Path(__file__).resolve().parent.parent / "src")
    sys.path.insert(0, source)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (source, os.environ.get("PYTHONPATH"))))
    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        for line in report(settings.megabytes, settings.rounds):
            print(line, flush=True)


if __name__ == "__main__":
    main()
