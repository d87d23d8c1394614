"""The arguments of ``entrokern score`` and ``entrokern drift``, and their types."""

from __future__ import annotations

import argparse
import math
from typing import Any

from ._bad_rows import POLICIES
from ._drift import BINS
from ._options import FORMS
from ._requests import LOSSES

OPTIONS = (
    "class_weight",
    "pos_weight",
    "label_smoothing",
    "ignore_index",
    "temperature",
    "softcap",
    "base",
    "validate",
)

FILES = """
  FILE.npy
  FILE.npz, FILE.npz:NAME                   an array; by default x or logits, and y, label or target
  FILE.safetensors, FILE.safetensors:NAME   a tensor, likewise
  STORE.zarr, STORE.zarr:PATH               an array of a Zarr store, likewise
  FILE.parquet, .arrow, .feather            {table}
  FILE.parquet:COLUMN                       a column of numbers or of lists of numbers
  FILE.parquet:'logit_*', FILE.parquet:a,b  a column for each class; numbered ones go by their numbers
  DIR, DIR:NAME, 'DIR/part-*.parquet:NAME'  all these files as one array, part-2 before part-10
"""
TABLE_OF_SCORE = """\
the one column of lists of numbers, or all columns of floats;
                                            the labels are a column y, label or target"""
TABLE_OF_DRIFT = "all columns of numbers and bools; else the column of lists of numbers"
JSON_NUMBERS = "a NaN is null, infinities are strings"
NEEDED = "Parquet, Arrow and Zarr files need pip install 'entrokern[files]'."

OF_SCORE = f"""\
losses:
{chr(10).join(f"  {name:<9}{loss.about}" for name, loss in LOSSES.items())}

X and Y are files or parts of them:{FILES.format(table=TABLE_OF_SCORE)}
  :NAME as Y is an array in the file of X. Labels in the file of X are found by themselves
  where X is the file alone; beside FILE:NAME say which.

{NEEDED}
"""

OF_DRIFT = f"""\
columns: each column of P and Q, as numbers, is counted in bins made of Q: where a column has at most --bins distinct
values there, each has a bin of its own and all other values share one; else --bins bins of equal mass between the
lowest and the highest number, which take what lies below and above too, and a value of more mass has one alone.
NaN (and what is missing in a table), inf and -inf have bins of their own. Q is read twice, P once, block by block.
Where equal masses begin is told by an even sample of Q's rows (every n-th, so that about a million rows or 64 MiB are
kept; all rows of smaller files), the distinct values, the ends and all counts by every row: the result is the same in
every run. Columns that have names in both are matched by them.

rows: P and Q are distributions row by row, in --form; Q may be one row.

js is finite, at most 1 bit. kl is KL(P‖Q); of columns half a count is added to each bin that P or Q fills, without
which one that Q leaves empty would make it infinite (Krichevsky and Trofimov). With --base 2 both are in bits.

exit code: 0 if no column (or row) is above --threshold, or none is given; 1 if one is, or a row's divergence is NaN;
2 for what is wrong with the input.

P and Q are files or parts of them:{FILES.format(table=TABLE_OF_DRIFT)}
{NEEDED}
"""


def score(commands: Any) -> argparse.ArgumentParser:
    """Add ``entrokern score``."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "score",
        help="score the rows of an array in files of any size, in bounded memory",
        description="Score the rows of an array in a file and print a summary. The file is read "
        "block by block: it may be larger than memory.",
        epilog=OF_SCORE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("x", metavar="X", help="the predictions: rows along --axis")
    parser.add_argument("y", metavar="Y", nargs="?", help="labels or second distributions, as the loss needs")
    parser.add_argument("--loss", choices=LOSSES, help="default: ce with Y, entropy without")
    parser.add_argument("--form", choices=FORMS, default="logits", help="how X is given (default: logits)")
    parser.add_argument("--y-form", choices=FORMS, help="how Y of kl and js is given (default: as X)")
    parser.add_argument("--axis", type=int, default=-1, help="the class axis (default: the last)")
    parser.add_argument("--dtype", choices=["bfloat16"], help="what 2-byte items of no NumPy type are")
    output = parser.add_argument_group("output")
    output.add_argument(
        "--out", metavar="FILE",
        help="write results of each row: .npy (one), .npz, .csv, .parquet, .arrow or .feather (several)",
    )  # fmt: skip
    output.add_argument("--outputs", metavar="NAME,…", type=names, default=(), help="which (default: the loss)")
    output.add_argument("--hardest", type=count, default=5, metavar="N", help="rows to list (default: 5)")
    output.add_argument(
        "--by", metavar="FILE[:COLUMN]",
        help="also the mean of each group of rows: a column of integers, bools or strings, one for each row; :COLUMN "
        "is one in the file of X",
    )  # fmt: skip
    output.add_argument("--groups", type=count, metavar="N", help="groups to list (default: 20; --json has all)")
    output.add_argument("--json", action="store_true", help=f"print the summary as JSON; {JSON_NUMBERS}")
    options = parser.add_argument_group("options of the loss")
    options.add_argument("--ignore-index", type=int, metavar="LABEL", help="rows with this label do not count")
    options.add_argument("--label-smoothing", type=float, metavar="ε")
    options.add_argument("--temperature", type=float, metavar="T")
    options.add_argument("--softcap", type=float, metavar="C")
    options.add_argument("--class-weight", metavar="FILE", help="a weight for each class, in a file as X is")
    options.add_argument("--pos-weight", type=float, metavar="W", help="weight of bce's positive part")
    options.add_argument("--base", type=float, metavar="B", help="of the logarithm: 2 for bits (default: nats)")
    options.add_argument("--validate", action="store_true", default=None, help="refuse rows that are no distributions")
    output.add_argument(
        "--bad-rows", choices=POLICIES,
        help="rows whose loss is NaN or infinite, whose label is out of range, or that are no distributions: end with "
        "the first, leave them out of the mean and of the output (which gets a column row; a .npy gets shorter), or "
        "out of the mean, with NaN in the output. All are counted, the first 20 listed. Default: a label out of "
        "range ends the run, NaN is NaN",
    )  # fmt: skip
    running = parser.add_argument_group("running")
    _add_block_rows(running)
    running.add_argument(
        "--resume", action="store_true",
        help="go on with the work that an interrupted run to the same --out has left beside it; without this it "
        "is deleted",
    )  # fmt: skip
    add_threads(running)
    return parser


def drift(commands: Any) -> argparse.ArgumentParser:
    """Add ``entrokern drift``."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "drift",
        help="how far columns or rows have drifted from a reference, with an exit code",
        description="Compare data P with a reference Q: the divergence of the histograms of each column, or of the "
        "distributions in each row. The files may be larger than memory.",
        epilog=OF_DRIFT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("p", metavar="P", help="the data")
    parser.add_argument("q", metavar="Q", help="the reference; :NAME is an array in the file of P")
    parser.add_argument("--of", choices=["columns", "rows"], default="columns", help="what to compare (columns)")
    parser.add_argument("--measure", choices=["js", "kl"], default="js", help="the divergence (default: js)")
    parser.add_argument("--form", choices=FORMS, help="how rows are given (default: logits)")
    parser.add_argument("--bins", type=positive, metavar="N", help=f"bins of a column (default: {BINS})")
    parser.add_argument("--base", type=float, metavar="B", help="of the logarithm: 2 for bits (default: nats)")
    levels = parser.add_argument_group("levels")
    levels.add_argument("--threshold", type=level, metavar="V", help="exit with 1 if a divergence is above it")
    levels.add_argument("--warn", type=level, metavar="V", help="mark what is above it; the exit code stays 0")
    output = parser.add_argument_group("output")
    output.add_argument("--top", type=count, default=10, metavar="N", help="columns or rows to list (default: 10)")
    output.add_argument(
        "--out", metavar="FILE",
        help="write the divergences, in the order of P's columns or rows: .npy, .npz, .csv, .parquet, .arrow or "
        ".feather",
    )  # fmt: skip
    output.add_argument(
        "--json", action="store_true", help=f"print everything, of all columns, as JSON; {JSON_NUMBERS}"
    )
    running = parser.add_argument_group("running")
    _add_block_rows(running)
    add_threads(running)
    return parser


def _add_block_rows(running: Any) -> None:
    running.add_argument(
        "--block-rows", type=positive, metavar="N", help="rows read at a time (default: 8 to 16 MiB of them)"
    )  # fmt: skip


def add_threads(command: Any) -> None:
    command.add_argument("--threads", type=positive, metavar="N", help="default: what the machine allows")


def names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def count(text: str) -> int:
    if (number := int(text)) < 0:
        raise ValueError
    return number


def positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise ValueError
    return number


def size(text: str) -> float:
    if not 0 < (number := float(text)) < math.inf:
        raise ValueError
    return number


def level(text: str) -> float:
    if not 0 <= (number := float(text)) < math.inf:
        raise ValueError
    return number


positive.__name__ = "positive number"  # argparse says: invalid … value
