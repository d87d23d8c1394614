"""What is told of a result of bench_gpu.py: a line for each cell, the tables, and what is met and what is not."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable

import report
from gpu_cells import WRONG, Result
from report import OURS

WIDTHS = {
    "operation": 28, "dtype": 8, "k": 6, "ms": 8, "GB/s": 5, "copy": 5, "read": 5, "share": 5, "target": 9, "": 4,
    "error": 6, "first s": 7,
}  # fmt: skip


def columns(peers: list[str]) -> str:
    """Names of the columns; copy and read are the limits, in GB/s, and the first call compiles."""
    return _aligned([*WIDTHS, *peers])


def line(row: Result, peers: list[str]) -> str:
    """Ours, then each peer: how many times faster we are than it, and its error."""
    if "seconds" not in row:
        return f"{_aligned([row['operation'], row['dtype'], str(row['k'])])} FAILED: {row['failed'][OURS]}"
    rates = (row["bytes_per_second"], row["limits"]["copy"], row["limits"]["read"])
    ours = [f"{1e3 * row['seconds'][OURS]['median']:.3f}", *(f"{rate / 1e9:.0f}" for rate in rates)]
    ours += [f"{row['share']:.2f}", report.target(row), report.verdict(row), f"{row['error'][OURS]:.0e}"]
    ours += [f"{row['first'][OURS]:.2f}"]
    return _aligned([row["operation"], row["dtype"], str(row["k"]), *ours, *(beside(row, peer) for peer in peers)])


def _aligned(cells: list[str]) -> str:
    widths = [*WIDTHS.values()] + [13] * len(cells)
    first, *rest = zip(cells, widths, strict=False)
    return first[0].ljust(first[1]) + "".join(" " + text.rjust(width) for text, width in rest)


def beside(row: Result, peer: str) -> str:
    """How many times faster we are than the peer, ✗ where that is less than is aimed at; its error."""
    if peer in row["failed"]:
        return "failed"
    if peer not in row["times_faster_than"]:
        return "–"
    mark = "" if row["peers_met"].get(peer, True) else "✗"
    off = f" {row['error'][peer]:.0e}" if peer in row["error"] else ""
    return f"{report.ratio(row['times_faster_than'][peer])}×{mark}{off}"


def heading(result: Result) -> str:
    about, settings = result["machine"], result["settings"]
    gpu = about["gpu"]
    return (
        f"{gpu['name']}, {gpu['memory'] / 1e9:.0f} GB, {gpu['multiprocessors']} multiprocessors, "
        f"L2 {gpu['L2'] / 1e6:.0f} MB, driver {gpu['driver']}; {about['cpu']}, {about['system']}\n"
        f"{report.versions(result)}; {result['date']}\n"
        f"{settings['megabytes']:g} MB of operands, {settings['rounds']} rounds\n"
    )


def tables(result: Result) -> list[list[list[str]]]:
    """Operations × k: our share, then beside each peer, then our error."""
    rows = [row for row in result["rows"] if "seconds" in row]

    def matrix(title: str, cell: Callable[[Result], str]) -> list[list[str]]:
        of = report.grouped({"rows": rows})
        classes = sorted({row["k"] for row in rows}, reverse=True)
        body = [[name, *(cell(by_k[k]) if k in by_k else "–" for k in classes)] for name, by_k in of.items()]
        body = [cells for cells in body if set(cells[1:]) != {"–"}]
        return [[title, *(f"k = {k}" if k > 1 else "elements" for k in classes)], *body]

    found = [matrix("share of the copy's bandwidth (target)", report.share_cell)]
    for peer in result["peers"]:
        aim = f" (aim: {result['aims'][peer]})" if peer in result["aims"] else ""
        found.append(matrix(f"times faster than {peer}{aim}, its error", functools.partial(beside, peer=peer)))
    found.append(matrix("our error", lambda row: f"{row['error'][OURS]:.0e}"))
    return [table for table in found if len(table) > 1]


def padded(table: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return "\n".join(
        cells[0].ljust(widths[0]) + "".join("  " + c.rjust(w) for c, w in zip(cells[1:], widths[1:], strict=True))
        for cells in table
    )


def closing(result: Result) -> list[str]:
    """What is said of the whole run: what is met and what is not, losses included."""
    whole = result | {"rows": [row for row in result["rows"] if "seconds" in row]}
    lines = [
        "limits, median over the rows (lowest to highest): " + report.limits_text(whole) if whole["rows"] else "",
        report.targets_text(whole),
        missed_text(whole),
        report.losses_text(whole),
        small_text(result),
        first_text(whole),
        wrong_text(whole),
        failed_text(result),
        f"not measured, the time was up: {result['left_out']} cells" if result.get("left_out") else "",
    ]
    return [line for line in lines if line]


def missed_text(result: Result) -> str:
    missed: dict[str, list[str]] = {}
    for row in result["rows"]:
        if row.get("met") is False:
            missed.setdefault(f"{report.named(row)}:", []).append(f"{row['k']} ({report.share_cell(row)})")
        for peer in [peer for peer, met in row["peers_met"].items() if not met]:
            times = report.ratio(row["times_faster_than"][peer])
            missed.setdefault(f"{report.named(row)} beside {peer}:", []).append(f"{row['k']} ({times}×)")
    return "missed, at k: " + ("; ".join(f"{what} {', '.join(at)}" for what, at in missed.items()) or "nothing")


def small_text(result: Result) -> str:
    spans, small = [], result.get("small", {})
    for who, found in small.items():
        both = "failed" if "failed" in found else f"{1e6 * found['returns']:.1f} µs ({1e6 * found['done']:.1f})"
        spans.append(f"{who} {both}")
    if "returns" not in small.get(OURS, {}):
        return ", ".join(spans)
    met = "met" if small[OURS]["returns"] <= result["small_target"] else "NOT met"
    aim = f"target of {1e6 * result['small_target']:.0f} µs {met}"
    return f"a call on (32, 10) returns after (its result is there after): {', '.join(spans)}; {aim}"


def first_text(result: Result) -> str:
    times: dict[str, list[float]] = {}
    for row in result["rows"]:
        for who, seconds in row["first"].items():
            times.setdefault(who, []).append(seconds)
    spans = [f"{who} {statistics.median(t):.2f} s (at most {max(t):.2f})" for who, t in times.items()]
    return "first call of a cell, which compiles what is new, median: " + ", ".join(spans) if spans else ""


def wrong_text(result: Result) -> str:
    wrong = [
        f"{report.named(row)}, k = {row['k']} ({row['error'][OURS]:.0e})"
        for row in result["rows"]
        if not row["error"][OURS] < WRONG
    ]
    return f"our error is above {WRONG:g} in: {'; '.join(wrong) or 'none'}"


def failed_text(result: Result) -> str:
    failed = [
        f"{report.named(row)}, k = {row['k']}, {who} ({why})"
        for row in result["rows"]
        for who, why in row["failed"].items()
    ]
    return f"failed: {'; '.join(failed) or 'nothing'}"


def text(result: Result) -> str:
    lines = "\n".join([columns(result["peers"]), *(line(row, result["peers"]) for row in result["rows"])])
    return "\n".join([heading(result), lines, "", summary(result, tables(result))])


def summary(result: Result, tables: list[list[list[str]]]) -> str:
    return "\n".join([*(padded(table) + "\n" for table in tables), *closing(result)])


def markdown(result: Result) -> str:
    about, settings = result["machine"], result["settings"]
    parts = [
        f"{settings['megabytes']:g} MB of operands; ✓ the target is met, ✗ it is not.",
        *map(report.table, tables(result)),
        "\n".join(map(report.sentence, closing(result))),
        f"{about['gpu']['name']}, driver {about['gpu']['driver']}; {report.versions(result)}; {result['date']}.",
    ]
    return "\n\n".join(part.rstrip("\n") for part in parts) + "\n"
