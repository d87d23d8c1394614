"""Print a result of run.py: `python bench/report.py [FILE] [--markdown]` (default: the newest file)."""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"
Result = dict[str, Any]


def header(peers: list[str]) -> list[str]:
    fixed = ["operation", "k", "n", "ms", "GB/s", "roof", "share", "bound by"]
    return [*fixed, *(f"x {peer}" for peer in peers), "error", *(f"error {peer}" for peer in peers)]


def cells(row: Result) -> list[str]:
    memory, arithmetic = row["roof"]["memory"], row["roof"]["arithmetic"]
    return [
        row["operation"],
        str(row["k"]),
        str(row["n"]),
        f"{row['seconds']['entrokern']['median'] * 1e3:.2f}",
        f"{row['bytes_per_second'] / 1e9:.1f}",
        f"{row['bytes'] / max(memory, arithmetic) / 1e9:.1f}",
        f"{row['share']:.2f}",
        "memory" if memory >= arithmetic else "arithmetic",
        *(f"{times:.1f}" for times in row["times_faster_than"].values()),
        *(f"{error:.0e}" for error in row["error"].values()),
    ]


def line(row: Result) -> str:
    return aligned(cells(row), list(row["times_faster_than"]))


def columns(peers: list[str]) -> str:
    return aligned(header(peers), peers)


def aligned(texts: list[str], peers: list[str]) -> str:
    fixed = [18, 6, 9, 8, 6, 6, 6, 10]
    widths = [*fixed, *(max(7, len(p) + 2) for p in peers), 7, *(len(p) + 6 for p in peers)]
    first, *rest = zip(texts, widths, strict=True)
    return first[0].ljust(first[1]) + "".join(" " + text.rjust(width) for text, width in rest)


def heading(result: Result) -> str:
    about = result["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    cached = ", ".join(f"{level} {size}" for level, size in about["caches"].items())
    return (
        f"{about['cpu']}, {about['threads']} threads on {about['cores']} cores ({cached}), "
        f"{about['system']}, load before the run {about['load']}\n"
        f"{versions}, Python {about['python']}; {result['date']}\n"
        f"backend {about['backend']}; {result['settings']['dtype']}, "
        f"{result['settings']['megabytes']:.0f} MB of operands\n"
    )


def limits_of(result: Result) -> dict[str, tuple[float, float, float]]:
    """Each limit over the rows: lowest, median, highest."""
    found: dict[str, list[float]] = {}
    for row in result["rows"]:
        for name, rate in row["limits"].items():
            found.setdefault(name, []).append(rate)
    return {name: (min(r), statistics.median(r), max(r)) for name, r in found.items()}


UNITS = {"read": "GB/s", "copy": "GB/s", "exp": "G/s", "log": "G/s"}


def limits_text(result: Result) -> str:
    return ", ".join(
        f"{name} {middle / 1e9:.1f} {UNITS[name]} ({low / 1e9:.1f} to {high / 1e9:.1f})"
        for name, (low, middle, high) in limits_of(result).items()
    )


def first_call_text(result: Result) -> str:
    if "first_call" not in result:
        return ""
    compiling, cached = result["first_call"]["compiling"], result["first_call"]["cached"]

    def span(seconds: Result) -> str:
        of = [value for name, value in seconds.items() if not name.startswith("import ")]
        return f"{min(of):.2f} to {max(of):.2f} s (sum {sum(of):.1f} s)"

    return (
        f"import entrokern {cached['import entrokern']:.2f} s, numba {cached['import numba']:.2f} s; "
        f"first call of an operation {span(compiling)}, with kernels from the cache {span(cached)}"
    )


def sentence(words: str) -> str:
    return f"{words[0].upper()}{words[1:]}.\n" if words else ""


def closing(result: Result) -> str:
    lines = [
        "",
        "limits, median over the rows (lowest to highest): " + limits_text(result),
        first_call_text(result),
    ]
    return "\n".join(lines)


def peers_of(result: Result) -> list[str]:
    return list(result["rows"][0]["times_faster_than"])


def text(result: Result) -> str:
    return "\n".join(
        [heading(result), columns(peers_of(result)), *(line(row) for row in result["rows"]), closing(result)]
    )


def markdown(result: Result) -> str:
    """The whole table."""
    names = header(peers_of(result))
    rows = [names, ["---"] * len(names), *(cells(row) for row in result["rows"])]
    table = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    return "\n".join([heading(result), table, closing(result)])


def markdown_summary(result: Result, name: str) -> str:
    """The table of README.md: an operation per line, a column per k."""
    classes = list(dict.fromkeys(row["k"] for row in result["rows"]))
    by_name: dict[str, dict[int, Result]] = {}
    for row in result["rows"]:
        by_name.setdefault(row["operation"], {})[row["k"]] = row
    lines = [
        ["", *(f"k = {k}" for k in classes), "worst error", "worst of the peers"],
        ["---"] * (len(classes) + 3),
    ]
    for operation, of in by_name.items():
        line = [operation]
        for k in classes:
            row = of[k]
            times, peer = min((times, peer) for peer, times in row["times_faster_than"].items())
            line.append(f"{row['bytes_per_second'] / 1e9:.1f} GB/s, {row['share']:.2f}, {times:.1f}× {peer}")
        ours = max(row["error"]["entrokern"] for row in of.values())
        peers = max(e for row in of.values() for who, e in row["error"].items() if who != "entrokern")
        lines.append([*line, f"{ours:.0e}", f"{peers:.0e}"])
    table = "".join("| " + " | ".join(line) + " |\n" for line in lines)
    about, settings = result["machine"], result["settings"]
    versions = ", ".join(f"{package} {version}" for package, version in about["versions"].items())
    return (
        "Rate, share of the roof, and how many times faster than the fastest peer, with its name "
        f"(below 1: slower).\nPeers: {', '.join(peers_of(result))}; {settings['dtype']}, "
        f"{settings['megabytes']:.0f} MB of operands. Errors are the largest relative ones, against the "
        f"float64 reference.\n\n{table}\n"
        f"{about['cpu']}, {about['threads']} threads; {versions}, Python {about['python']}; "
        f"load before the run {about['load']}; {result['date']}.\nLimits in the same run, "
        f"median (lowest to highest): {limits_text(result)}.\n"
        f"{sentence(first_call_text(result))}From [{name}](bench/results/{name}).\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", nargs="?", type=Path)
    parser.add_argument("--markdown", action="store_true")
    settings = parser.parse_args()
    files = sorted(RESULTS.glob("*.json"))
    if settings.file is None and not files:
        parser.error("bench/results holds no result; run bench/run.py first")
    result = json.loads((settings.file or files[-1]).read_text())
    print((markdown if settings.markdown else text)(result))


if __name__ == "__main__":
    main()
