"""Measure every operation beside its peers and the machine's limits, print the table, keep the JSON.

    python bench/run.py                 quick: under ten minutes on two cores
    python bench/run.py --full          larger arrays, more rounds, torch.compile too
    python bench/run.py --only KL --classes 10 1000 --rounds 50
    python bench/report.py              print the newest result again, make its plots

All that is compared is timed in turn within one loop: ours, a peer, a limit, and again (measure.py).
"""

from __future__ import annotations

import argparse
import datetime
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np

import first_call
import machine
import measure
import operations
import peers
import report
import scaling
from limits import Limits
from measure import Effort

RESULTS = Path(__file__).resolve().parent / "results"
QUICK = Effort(megabytes=64, rounds=9, budget=0.1)
FULL = Effort(megabytes=128, rounds=15, budget=0.5)


def settings_of(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--only", default="", metavar="TEXT", help="operations whose name contains this")
    parser.add_argument("--classes", type=int, nargs="+", default=operations.CLASSES, metavar="K")
    parser.add_argument("--megabytes", type=float, help="of the operands (64; --full: 128)")
    parser.add_argument("--rounds", type=int, help="how often ours is timed (9; --full: 15)")
    parser.add_argument("--budget", type=float, help="seconds for one peer or limit in one row (0.1; --full: 0.5)")
    parser.add_argument("--peers", nargs="*", choices=peers.PEERS, help="default: those installed")
    parser.add_argument("--torch-compile", action="store_true", help="time it in a quick run too (it starts slowly)")
    parser.add_argument("--no-first-call", action="store_true", help="leave the first calls out")
    parser.add_argument("--no-scaling", action="store_true", help="leave times against n, k and threads out")
    parser.add_argument("--out", type=Path, help="the JSON (default: bench/results/DATE-CPU.json)")
    settings = parser.parse_args(arguments)
    if not operations.cells(settings.only, tuple(settings.classes)):
        names = ", ".join(dict.fromkeys(operation.name for operation in operations.OPERATIONS))
        parser.error(f"no operation has {settings.only!r} in its name and one of those k; there are: {names}")
    return settings


def effort_of(settings: argparse.Namespace) -> Effort:
    usual = FULL if settings.full else QUICK
    here = peers.installed(settings.full or settings.torch_compile)
    return Effort(
        megabytes=settings.megabytes or usual.megabytes,
        rounds=settings.rounds or usual.rounds,
        budget=settings.budget or usual.budget,
        peers=tuple(here if settings.peers is None else [name for name in here if name in settings.peers]),
    )


def results(settings: argparse.Namespace) -> dict[str, Any]:
    """Everything, measured; each row is printed when it is there."""
    effort = effort_of(settings)
    result: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "machine": machine.describe(),
        "settings": {"megabytes": effort.megabytes, "rounds": effort.rounds, "budget": effort.budget},
        "peers": list(effort.peers),
        "aims": measure.AIMS,
        "rows": [],
    }
    print(report.heading(result))
    print(report.columns(result["peers"]), flush=True)
    limits = Limits(result["machine"]["threads"])
    cells = operations.cells(settings.only, tuple(settings.classes))
    for done, (operation, dtype, k) in enumerate(cells):
        _progress(done, len(cells), f"{operation.name}, {dtype}, k = {k}")
        result["rows"].append(measure.row(operation, dtype, k, limits, effort))
        _progress(None)
        print(report.line(result["rows"][-1], result["peers"]), flush=True)
    if not settings.no_first_call:
        result["first_call"] = first_call.measured()
    if not settings.no_scaling:
        result["scaling"] = scaling.measured(effort.peers, largest=10**8 if effort.megabytes > 32 else 10**6)
    print(report.closing(result))
    return result


def _progress(done: int | None, total: int = 0, name: str = "") -> None:
    """A line on a terminal that the next result replaces."""
    if sys.stderr.isatty():
        text = "" if done is None else f"[{done}/{total}] {name} ..."
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


def main() -> None:
    settings = settings_of()
    with np.errstate(all="ignore"):
        result = results(settings)
    cpu = re.sub(r"[^a-z0-9]+", "-", result["machine"]["cpu"].lower()).strip("-")
    path = settings.out or RESULTS / f"{result['date']}-{cpu}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
