"""The command line: ``entrokern score``, ``bench``, ``demo``, ``info`` and ``warmup``."""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, NoReturn

from . import __version__, _report, runtime
from ._bad_rows import POLICIES
from ._options import FORMS
from ._requests import LOSSES, Request
from ._scoring import score_files
from ._threads import num_threads
from .files import InputError, open_array

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

EPILOG = f"""\
losses:
{chr(10).join(f"  {name:<9}{loss.about}" for name, loss in LOSSES.items())}

X and Y are files or parts of them:
  FILE.npy
  FILE.npz, FILE.npz:NAME                   an array; by default x or logits, and y, label or target
  FILE.safetensors, FILE.safetensors:NAME   a tensor, likewise
  STORE.zarr, STORE.zarr:PATH               an array of a Zarr store, likewise
  FILE.parquet, .arrow, .feather            the one column of lists of numbers, or all columns of floats;
                                            the labels are a column y, label or target
  FILE.parquet:COLUMN                       a column of numbers or of lists of numbers
  FILE.parquet:'logit_*', FILE.parquet:a,b  a column for each class; numbered ones go by their numbers
  DIR, DIR:NAME, 'DIR/part-*.parquet:NAME'  all these files as one array, part-2 before part-10

  :NAME as Y is an array in the file of X. Labels in the file of X are found by themselves.

Parquet, Arrow and Zarr files need pip install 'entrokern[files]'.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    argv : sequence of str, optional
        The arguments; those of the process by default.

    Returns
    -------
    int
        The exit code: 0, 2 after one line on stderr about what is wrong, 130 when interrupted. Where work was
        kept that ``--resume`` goes on with, the line says so.

    Raises
    ------
    SystemExit
        Of code 143 when terminated, and of what argparse ends with.
    """
    with suppress(ValueError):  # signals are the main thread's; a scheduler's end is an exit, which cleans up
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError):  # a terminal that knows no σ shows a ? for it
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    try:
        args = _parser().parse_args(argv)
        args.command(args)
        sys.stdout.flush()
        return 0
    except InputError as error:
        return _complain(str(error), error)
    except BrokenPipeError:  # the reader of our output has gone, as `head` does: nothing is wrong
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        return _complain(f"{error.filename}: {error.strerror}" if error.filename else str(error), error)
    except MemoryError as error:
        return _complain("not enough memory; pass a smaller --block-rows", error)
    except KeyboardInterrupt as error:
        _complain("interrupted", error)
        return 130
    except SystemExit as error:
        if hasattr(error, "__notes__"):
            _complain("terminated", error)
        raise


def _complain(message: str, error: BaseException) -> int:
    """One line: what is wrong, and what was noted of how to go on."""
    text = "; ".join([message, *getattr(error, "__notes__", [])])
    print(f"entrokern: {' '.join(text.split())}", file=sys.stderr)
    return 2


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message} (see {self.prog} --help)")


class _Progress:
    """A line on the terminal about work that takes long; nothing where stderr is no terminal."""

    def __init__(self) -> None:
        self._live = sys.stderr.isatty()
        self._begun = time.monotonic()
        self._next = self._begun + 0.5
        self.total = 0

    def __call__(self, done: int, total: int, name: str = "", first: int = 0) -> None:
        """Show that `done` of `total` are done; what was done before it began, `first`, took no time."""
        self.total = total
        now = time.monotonic()
        if not self._live or now < self._next:
            return
        self._next = now + 0.1
        share = done / total if total else 1.0
        left = (now - self._begun) * (total - done) / (done - first) if done > first else 0.0
        bar = ("#" * round(30 * share)).ljust(30, ".")
        print(
            f"\r\x1b[K{bar} {100 * share:3.0f} %  {left:.0f} s left  {name}",
            end="",
            file=sys.stderr,
            flush=True,
        )

    def __enter__(self) -> _Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser("entrokern", description="Entropies of machine learning over large arrays.")
    parser.add_argument("--version", action="version", version=f"entrokern {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="name")

    score = commands.add_parser(
        "score",
        help="score the rows of an array in files of any size, in bounded memory",
        description="Score the rows of an array in a file and print a summary. The file is read "
        "block by block: it may be larger than memory.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    score.set_defaults(command=_score)
    score.add_argument("x", metavar="X", help="the predictions: rows along --axis")
    score.add_argument("y", metavar="Y", nargs="?", help="labels or second distributions, as the loss needs")
    score.add_argument("--loss", choices=LOSSES, help="default: ce with Y, entropy without")
    score.add_argument("--form", choices=FORMS, default="logits", help="how X is given (default: logits)")
    score.add_argument("--y-form", choices=FORMS, help="how Y of kl and js is given (default: as X)")
    score.add_argument("--axis", type=int, default=-1, help="the class axis (default: the last)")
    score.add_argument("--dtype", choices=["bfloat16"], help="what 2-byte items of no NumPy type are")
    output = score.add_argument_group("output")
    output.add_argument(
        "--out", metavar="FILE",
        help="write results of each row: .npy (one), .npz, .csv, .parquet, .arrow or .feather (several)",
    )  # fmt: skip
    output.add_argument("--outputs", metavar="NAME,…", type=_names, default=(), help="which (default: the loss)")
    output.add_argument("--hardest", type=_count, default=5, metavar="N", help="rows to list (default: 5)")
    output.add_argument("--json", action="store_true", help="print the summary as JSON")
    options = score.add_argument_group("options of the loss")
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
    running = score.add_argument_group("running")
    running.add_argument(
        "--block-rows", type=_positive, metavar="N", help="rows read at a time (default: about 12 MiB)"
    )
    running.add_argument(
        "--resume", action="store_true",
        help="go on with the work that an interrupted run to the same --out has left beside it; without this it "
        "is deleted",
    )  # fmt: skip

    bench = commands.add_parser(
        "bench",
        help="how fast it is here: a short table in under a minute",
        description="Time a few functions on this machine, beside its memory's limit and NumPy.",
    )
    bench.set_defaults(command=_bench)
    bench.add_argument("--megabytes", type=_size, default=64.0, metavar="M", help="of operands (default: 64)")

    demo = commands.add_parser("demo", help="worked examples, real data and one large array")
    demo.set_defaults(command=_demo)
    demo.add_argument("--quick", action="store_true", help="a smaller large array and fewer repeats")

    info = commands.add_parser("info", help="say what runs on this machine, and how")
    info.set_defaults(command=lambda args: runtime.show_info())

    warmup = commands.add_parser("warmup", help="compile ahead, so that no first call waits")
    warmup.set_defaults(command=_warmup)
    warmup.add_argument("--functions", metavar="NAME,…", type=_names, help="default: all")
    warmup.add_argument("--dtypes", metavar="NAME,…", type=_names, help="default: the library's choice")

    for command in (running, bench, demo, warmup):
        command.add_argument("--threads", type=_positive, metavar="N", help="default: what the machine allows")
    return parser


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _count(text: str) -> int:
    if (number := int(text)) < 0:
        raise ValueError
    return number


def _positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise ValueError
    return number


def _size(text: str) -> float:
    if not 0 < (number := float(text)) < math.inf:
        raise ValueError
    return number


_count.__name__, _positive.__name__, _size.__name__ = (
    "count",
    "positive number",
    "size",
)  # argparse says: invalid … value


def _set_threads(args: argparse.Namespace) -> None:
    if args.threads is not None:
        try:
            runtime.set_num_threads(args.threads)
        except ValueError as error:
            raise InputError(str(error)) from None


def _score(args: argparse.Namespace) -> None:
    _set_threads(args)
    if args.threads is None and num_threads() > 1:
        runtime.set_num_threads(num_threads() - 1)  # one core reads
    if args.outputs and args.out is None:
        raise InputError("--outputs needs --out FILE to write to")
    options: dict[str, Any] = {name: getattr(args, name) for name in OPTIONS if getattr(args, name) is not None}
    if "class_weight" in options:
        weights = open_array(args.class_weight, "class_weight")
        weights.lay_out(None)
        options["class_weight"] = weights.rows(0, weights.n_rows).astype(float)
        weights.close()
    request = Request(
        x=args.x,
        y=args.y,
        loss=args.loss,
        form=args.form,
        y_form=args.y_form,
        axis=args.axis,
        outputs=tuple(dict.fromkeys(args.outputs)),
        out=args.out,
        n_hardest=args.hardest,
        block_rows=args.block_rows,
        bfloat16=args.dtype == "bfloat16",
        bad_rows=args.bad_rows,
        resume=args.resume,
        options=options,
    )
    with _Progress() as progress:
        facts = score_files(request, progress)
    print(json.dumps(facts) if args.json else "\n".join([_report.text(facts), *_bad_row_lines(facts)]))
    if args.out is not None and not args.json:
        print(f"\nwrote {args.out}: {', '.join(request.outputs or (facts['value'],))}")


def _bad_row_lines(facts: dict[str, Any]) -> list[str]:
    """How many rows are bad, and a table of the first."""
    if not facts.get("bad_rows"):
        return []
    counts = ", ".join(f"{count:,} {reason}" for reason, count in facts["bad_rows"].items())
    body = [[str(bad["row"]), bad["reason"]] for bad in facts["first_bad_rows"]]
    return ["", f"bad rows, which do not count: {counts}", *_report.table([["row", "reason"], *body])]


def _bench(args: argparse.Namespace) -> None:
    from ._speed import bench

    _set_threads(args)
    with _Progress() as progress:
        lines = list(bench(args.megabytes, progress))
    print("\n".join(lines))


def _demo(args: argparse.Namespace) -> None:
    from .demo import run

    _set_threads(args)
    run(quick=args.quick)


def _warmup(args: argparse.Namespace) -> None:
    _set_threads(args)
    begun = time.monotonic()
    with _Progress() as progress:
        try:
            runtime.warmup(args.functions, args.dtypes, progress=progress)
        except (ValueError, TypeError) as error:
            raise InputError(str(error)) from None
    print(f"ready: {progress.total} pairs of function and dtype in {time.monotonic() - begun:.1f} s")
