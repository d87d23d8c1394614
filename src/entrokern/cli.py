"""The command line: ``entrokern score``, ``drift``, ``bench``, ``demo``, ``info`` and ``warmup``."""

from __future__ import annotations

import argparse
import dataclasses
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Any, NoReturn

from . import __version__, _arguments, _drift, _groups, _report, runtime
from ._requests import Request
from ._scoring import score_files
from .files import InputError, open_array

GROUPS = 20  # listed by default


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    argv : sequence of str, optional
        The arguments; those of the process by default.

    Returns
    -------
    int
        The exit code: 0, 1 where `drift` finds something above its threshold, 2 after one line on stderr about what
        is wrong, 130 when interrupted. Where work was kept that ``--resume`` goes on with, the line says so.

    Raises
    ------
    SystemExit
        Of code 143 when terminated, and of what argparse ends with.
    """
    with _terminated_by_exit():
        return _run(argv)


@contextmanager
def _terminated_by_exit() -> Iterator[None]:
    """A scheduler's SIGTERM is an exit, which cleans up; after `main`, it is again what a caller had made of it."""
    if threading.current_thread() is not threading.main_thread():  # signals are not its own
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def _run(argv: Sequence[str] | None) -> int:
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError):  # a terminal that knows no σ shows a ? for it
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    code = 0
    try:
        args = _parser().parse_args(argv)
        code = args.command(args) or 0
        sys.stdout.flush()
        return code
    except InputError as error:
        return _complain(str(error), error)
    except BrokenPipeError:  # the reader of our output has gone, as `head` does: nothing is wrong
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return code
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

    _arguments.score(commands).set_defaults(command=_score)
    _arguments.drift(commands).set_defaults(command=_compare)

    bench = commands.add_parser(
        "bench",
        help="how fast it is here: a short table in under a minute",
        description="Time a few functions on this machine, beside its memory's limit and NumPy.",
    )
    bench.set_defaults(command=_bench)
    bench.add_argument("--megabytes", type=_arguments.size, default=64.0, metavar="M", help="of operands (default: 64)")

    demo = commands.add_parser("demo", help="worked examples, real data and one large array")
    demo.set_defaults(command=_demo)
    demo.add_argument("--quick", action="store_true", help="a smaller large array and fewer repeats")

    info = commands.add_parser("info", help="say what runs on this machine, and how")
    info.set_defaults(command=_info)

    warmup = commands.add_parser("warmup", help="compile ahead, so that no first call waits")
    warmup.set_defaults(command=_warmup)
    warmup.add_argument("--functions", metavar="NAME,…", type=_arguments.names, help="default: all")
    warmup.add_argument("--dtypes", metavar="NAME,…", type=_arguments.names, help="default: the library's choice")

    for command in (bench, demo, warmup):
        _arguments.add_threads(command)
    return parser


def _set_threads(args: argparse.Namespace) -> None:
    if args.threads is not None:
        try:
            runtime.set_num_threads(args.threads)
        except ValueError as error:
            raise InputError(str(error)) from None


def _score(args: argparse.Namespace) -> None:
    _set_threads(args)
    if args.groups is not None and args.by is None:
        raise InputError("--groups needs --by COLUMN, whose groups are listed")
    if args.outputs and args.out is None:
        raise InputError("--outputs needs --out FILE to write to")
    given = {name: getattr(args, name) for name in _arguments.OPTIONS}
    options: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
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
        by=args.by,
        options=options,
    )
    with _Progress() as progress:
        facts = score_files(request, progress)
    print(_report.as_json(facts) if args.json else "\n".join(_score_lines(facts, args.groups)))
    if args.out is not None and not args.json:
        print(f"\nwrote {args.out}: {', '.join(request.outputs or (facts['value'],))}")


def _score_lines(facts: dict[str, Any], n_groups: int | None) -> list[str]:
    groups = _groups.lines(facts, GROUPS if n_groups is None else n_groups) if "groups" in facts else []
    return [_report.text(facts), *groups, *_bad_row_lines(facts)]


def _bad_row_lines(facts: dict[str, Any]) -> list[str]:
    """How many rows are bad, and a table of the first."""
    if not facts.get("bad_rows"):
        return []
    counts = ", ".join(f"{count:,} {reason}" for reason, count in facts["bad_rows"].items())
    body = [[str(bad["row"]), bad["reason"]] for bad in facts["first_bad_rows"]]
    return ["", f"bad rows, which do not count: {counts}", *_report.table([["row", "reason"], *body])]


def _compare(args: argparse.Namespace) -> int:
    """``entrokern drift``: 1 where something is above the threshold."""
    _set_threads(args)
    given = {field.name: getattr(args, field.name) for field in dataclasses.fields(_drift.Drift)}
    with _Progress() as progress:
        facts = _drift.drift_files(_drift.Drift(**given), progress)
    with suppress(BrokenPipeError):  # flushing says so again; the code stays
        print(_report.as_json(facts) if args.json else _drift.text(facts, args.top))
        if args.out is not None and not args.json:
            print(f"\nwrote {args.out}")
    return 1 if facts.get("above") else 0


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


def _info(args: argparse.Namespace) -> None:
    runtime.show_info()


def _warmup(args: argparse.Namespace) -> None:
    _set_threads(args)
    begun = time.monotonic()
    with _Progress() as progress:
        try:
            runtime.warmup(args.functions, args.dtypes, progress=progress)
        except (ValueError, TypeError) as error:
            raise InputError(str(error)) from None
    print(f"ready: {progress.total} pairs of function and dtype in {time.monotonic() - begun:.1f} s")
