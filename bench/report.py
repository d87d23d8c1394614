"""Print a result of run.py: `python bench/report.py [FILE] [--markdown] [--plots]` (default: the newest file).

The results of bench_gpu.py are in a folder of their own, and take a FILE.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"
IMAGES = ROOT / "docs" / "images"
OURS = "entrokern"
Result = dict[str, Any]


# --- one row of the text --------------------------------------------------------------------------

FIXED = {  # heading: width
    "operation": 28, "dtype": 8, "k": 6, "ms": 8, "GB/s": 5, "memory": 7, "arithm.": 7, "share": 5, "target": 6,
    "": 4, "error": 6, "MB": 5,
}  # fmt: skip


def columns(peers: list[str]) -> str:
    """Names of the columns. Times in ms: ours and the two of the roof; MB is what the call adds to memory."""
    return _aligned([*FIXED, *peers])


def line(row: Result, peers: list[str]) -> str:
    """Ours, then each peer: how many times faster we are than it, and its error."""
    roof, ours = row["roof"], row["seconds"][OURS]["median"]
    cells = [
        row["operation"],
        row["dtype"],
        f"{row['k']}",
        milliseconds(ours),
        f"{row['bytes_per_second'] / 1e9:.1f}",
        milliseconds(roof["memory"]),
        milliseconds(roof["arithmetic"]),
        f"{row['share']:.2f}",
        target(row),
        verdict(row),
        f"{row['error'][OURS]:.0e}",
        megabytes(row, OURS),
        *(_beside(row, peer) for peer in peers),
    ]
    return _aligned(cells)


def _beside(row: Result, peer: str) -> str:
    if peer not in row["times_faster_than"]:
        return "–"
    return f"{ratio(row['times_faster_than'][peer])}× {row['error'][peer]:.0e}"


def _aligned(cells: list[str]) -> str:
    widths = [*FIXED.values()] + [13] * (len(cells) - len(FIXED))
    first, *rest = zip(cells, widths, strict=True)
    return first[0].ljust(first[1]) + "".join(" " + text.rjust(width) for text, width in rest)


def milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.2f}"


def ratio(times: float) -> str:
    return f"{times:.1f}" if times < 100 else f"{times:.0f}"


def megabytes(row: Result, who: str) -> str:
    size = row["memory"].get(who)
    return "–" if size is None else f"{size / 1e6:.1f}"


def target(row: Result) -> str:
    if "times_loss" in row:
        return f"{row['times_loss']:.2f}≤{row['target_times_loss']}"
    return f"{row['target']:.2f}" if row["target"] is not None else "–"


def verdict(row: Result) -> str:
    return {True: "met", False: "NOT", None: ""}[row.get("met")]


# --- what is said of the whole run ----------------------------------------------------------------

UNITS = {"read": "GB/s", "copy": "GB/s", "exp": "G/s", "log": "G/s"}


def heading(result: Result) -> str:
    about, settings = result["machine"], result["settings"]
    cached = ", ".join(f"{level} {size}" for level, size in about["caches"].items())
    return (
        f"{about['cpu']}, {about['threads']} threads on {about['cores']} cores ({cached}), "
        f"{about['system']}, load before the run {about['load']}\n"
        f"{versions(result)}; {result['date']}\n"
        f"backend {about['backend']}; {settings['megabytes']:g} MB of operands, {settings['rounds']} rounds\n"
    )


def versions(result: Result) -> str:
    about = result["machine"]
    return ", ".join(f"{name} {version}" for name, version in about["versions"].items()) + f", Python {about['python']}"


def closing(result: Result) -> str:
    lines = [
        "",
        "limits, median over the rows (lowest to highest): " + limits_text(result),
        targets_text(result),
        losses_text(result),
        memory_text(result),
        first_text(result),
        small_text(result),
    ]
    return "\n".join([lines[0], *filter(None, lines[1:])])


def limits_text(result: Result) -> str:
    found: dict[str, list[float]] = {}
    for row in result["rows"]:
        for name, rate in row["limits"].items():
            label = f"{name} of float64" if name == "exp" and row["dtype"] == "float64" else name
            found.setdefault(label, []).append(rate / 1e9)
    return ", ".join(
        f"{name} {statistics.median(r):.1f} {UNITS[name.split()[0]]} ({min(r):.1f} to {max(r):.1f})"
        for name, r in found.items()
    )


def targets_text(result: Result) -> str:
    """How many of the targets are met: shares of the roof, then times faster than a peer."""
    aimed = [row["met"] for row in result["rows"] if "met" in row]
    words = f"targets met: {sum(aimed)} of {len(aimed)} shares"
    for peer, times in result["aims"].items():
        met = [row["peers_met"][peer] for row in result["rows"] if peer in row["peers_met"]]
        if met:
            words += f"; at least {times} times faster than {peer} in {sum(met)} of {len(met)} rows"
    return words


def losses_text(result: Result) -> str:
    """Every row where a peer is faster."""
    slower: dict[str, list[str]] = {}
    for row in result["rows"]:
        for peer, times in row["times_faster_than"].items():
            if times < 1:
                slower.setdefault(f"{named(row)} than {peer}", []).append(f"{row['k']} ({times:.2f})")
    where = [f"{what} at k = {', '.join(classes)}" for what, classes in slower.items()]
    return "slower than a peer (its time over ours): " + ("; ".join(where) or "nowhere")


def memory_text(result: Result) -> str:
    """The most that any call of each added to the memory in use."""
    most: dict[str, float] = {}
    for row in result["rows"]:
        for who, size in row["memory"].items():
            most[who] = max(most.get(who, 0.0), size)
    if not most:
        return ""
    return "most memory that a call added: " + ", ".join(f"{who} {size / 1e6:.1f} MB" for who, size in most.items())


def named(row: Result) -> str:
    return row["operation"] + ("" if row["dtype"] == "float32" else f", {row['dtype']}")


def first_text(result: Result) -> str:
    """Import and first call together, in a fresh process."""
    if "first_call" not in result:
        return ""
    calls = result["first_call"]
    spans = [
        f"{min(times):.2f} to {max(times):.2f} s {words}"
        for key, words in (("compiling", "with an empty cache"), ("cached", "with compiled kernels on disk"))
        if (times := [call[key] for call in calls.values()])
    ]
    return f"import and first call in a fresh process ({'; '.join(calls)}): {', '.join(spans)}"


def small_text(result: Result) -> str:
    if "scaling" not in result:
        return ""
    small = ", ".join(f"{name} {1e6 * seconds:.1f} µs" for name, seconds in result["scaling"]["small"].items())
    threads = ", ".join(
        f"{row['operation']} {row['1'] / row['all']:.2f}" for row in result["scaling"]["threads"] if row["threads"] > 1
    )
    return f"a call on (32, 10): {small}" + (f"\nall threads against one: {threads}" if threads else "")


def text(result: Result) -> str:
    peers = result["peers"]
    return "\n".join([heading(result), columns(peers), *(line(row, peers) for row in result["rows"]), closing(result)])


# --- Markdown -------------------------------------------------------------------------------------


ONLY = {1, 21}  # the k of operations that have but one


def table(rows: list[list[str]]) -> str:
    head, *body = rows
    return "".join("| " + " | ".join(cells) + " |\n" for cells in (head, ["---"] * len(head), *body))


def grouped(result: Result) -> dict[str, dict[int, Result]]:
    """The rows of each operation and dtype, by k."""
    found: dict[str, dict[int, Result]] = {}
    for row in result["rows"]:
        found.setdefault(named(row), {})[row["k"]] = row
    return found


def share_table(result: Result) -> str:
    """Operations × k: our share of the roof and the target; then the operations that have no k."""
    of = grouped(result)
    classes = sorted({k for rows in of.values() for k in rows if k not in ONLY}, reverse=True)
    lines = [["share of the roof (target)", *(f"k = {k}" for k in classes)]]
    others = [["share of the roof (target)", "shape", ""]]
    for name, rows in of.items():
        if ONLY & rows.keys():
            others += [[name, f"{tuple(row['shape'])}".replace(",)", ")"), share_cell(row)] for row in rows.values()]
        else:
            lines.append([name, *(share_cell(rows[k]) if k in rows else "–" for k in classes)])
    return "\n".join(table(part) for part in (lines, others) if len(part) > 1)


def share_cell(row: Result) -> str:
    share = f"{row['share']:.2f}"
    if "times_loss" in row:
        share = f"{row['times_loss']:.2f} × CE"
        return f"{share} (≤ {row['target_times_loss']}) " + ("✓" if row["met"] else "✗")
    if row["target"] is None:
        return share
    return f"{share} ({row['target']:.2f}) " + ("✓" if row["met"] else "✗")


def peer_table(result: Result, k: int) -> str:
    """Operations × peers at one k: our time, the two of the roof, and how many times faster we are, with the errors."""
    peers = result["peers"]
    lines = [[f"k = {k}", "ms", "memory ms", "arithmetic ms", "GB/s", "error", "MB", *peers]]
    for row in result["rows"]:
        if row["k"] == k or (k == 1000 and row["k"] in ONLY):
            times = (row["seconds"][OURS]["median"], row["roof"]["memory"], row["roof"]["arithmetic"])
            ours = [*map(milliseconds, times), f"{row['bytes_per_second'] / 1e9:.1f}"]
            ours += [f"{row['error'][OURS]:.0e}", megabytes(row, OURS)]
            lines.append([named(row), *ours, *(_beside(row, peer) for peer in peers)])
    return table(lines)


def scaling_table(result: Result) -> str:
    """Time for an element, in ns, as an array grows."""
    if "scaling" not in result:
        return ""
    sizes = sorted({row["elements"] for row in result["scaling"]["n"]})
    lines = [["CE, ns for an element", *(f"10{superscript(round(math.log10(size)))}" for size in sizes)]]
    for k in dict.fromkeys(row["k"] for row in result["scaling"]["n"]):
        of = {row["elements"]: row for row in result["scaling"]["n"] if row["k"] == k}
        lines.append([f"k = {k}", *(f"{1e9 * of[size]['seconds'] / size:.3f}" for size in sizes)])
    return table(lines)


def superscript(number: int) -> str:
    return str(number).translate(str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹"))


def markdown(result: Result) -> str:
    """All tables, with what is said of the run."""
    settings = result["settings"]
    parts = [
        f"{settings['megabytes']:g} MB of operands; ✓ the target is met, ✗ it is not.",
        share_table(result),
        "Beside the peers: our time, the two times of the roof; how many times faster we are than each (below 1: "
        "slower), and its error. *error* is the largest relative one, against the float64 reference; *MB* is what "
        "our call adds to the memory in use.",
        *(peer_table(result, k) for k in (1000, 10) if any(row["k"] == k for row in result["rows"])),
        scaling_table(result),
        "\n".join(sentence(words) for words in closing(result).split("\n") if words),
        made_on(result),
    ]
    return "\n\n".join(part.rstrip("\n") for part in parts if part) + "\n"


def sentence(words: str) -> str:
    return f"{words[0].upper()}{words[1:]}.\n"


def markdown_page(result: Result, name: str) -> str:
    """What docs/benchmark.md shows: the tables, the plots that there are, and the file that they come from."""
    plots = "".join(f"\n![{path.stem}](images/{path.name})\n" for path in sorted(IMAGES.glob("speed-*.png")))
    return f"{markdown(result)}{plots}\nFrom [{name}](../bench/results/{name}).\n"


def markdown_summary(result: Result) -> str:
    """What README.md shows: at k = 1000, how near the roof we are and how much faster than each peer."""
    peers = result["peers"]
    lines = [["float32, k = 1000", "GB/s", "share of the roof", *peers]]
    for row in result["rows"]:
        if row["dtype"] == "float32" and (row["k"] == 1000 or row["k"] in ONLY):
            beside = row["times_faster_than"]
            ours = [f"{row['bytes_per_second'] / 1e9:.0f}", f"{row['share']:.2f}"]
            lines.append([row["operation"], *ours, *(f"{ratio(beside[p])}×" if p in beside else "–" for p in peers)])
    told = (targets_text(result), losses_text(result), first_text(result), small_text(result))
    words = "\n".join(sentence(text) for part in told for text in part.split("\n") if text)
    return f"{table(lines)}\n{words}\n{made_on(result)}\n"


def made_on(result: Result) -> str:
    about = result["machine"]
    load = f"load before the run {about['load']}"
    return f"{about['cpu']}, {about['threads']} threads; {versions(result)}; {load}; {result['date']}."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", nargs="?", type=Path)
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument(
        "--plots", nargs="?", type=Path, const=IMAGES, metavar="FOLDER", help="write them (docs/images)"
    )
    settings = parser.parse_args()
    files = sorted(RESULTS.glob("[0-9]*.json"))
    if settings.file is None and not files:
        parser.error("bench/results holds no result; run bench/run.py first")
    result = json.loads((settings.file or files[-1]).read_text())
    if settings.plots is not None:
        import plots

        for path in plots.written(result, settings.plots):
            print(path)
        return
    if "gpu" in result["machine"]:
        import gpu_tables

        print((gpu_tables.markdown if settings.markdown else gpu_tables.text)(result))
        return
    print((markdown if settings.markdown else text)(result))


if __name__ == "__main__":
    main()
