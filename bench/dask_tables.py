"""The tables of docs/dask.md, made of a result of dask_scaling.py."""

from __future__ import annotations

from collections.abc import Callable

from dask_graphs import Cut, Result, enough

ON_PAPER = 0.2e-3, 1e-3  # seconds a task of a distributed scheduler, as its users tell
BANDWIDTHS = 1e9, 10e9, 100e9  # bytes of logits a second, of all workers together


def markdown(header: list[str], rows: list[list[str]]) -> str:
    return "".join("| " + " | ".join(line) + " |\n" for line in [header, ["---"] * len(header), *rows])


def size(number: float) -> str:
    """Bytes in a unit that suits them."""
    for unit in ("B", "KB", "MB", "GB", "TB"):
        if number < 999.5 or unit == "TB":
            return f"{number:.3g} {unit}" if number else "–"
        number /= 1000
    raise AssertionError


def _by_operation(result: Result, told: Callable[[Result], str]) -> str:
    """Operations down, cuts across; of each, what is `told`."""
    cuts = dict.fromkeys(Cut(**row["cut"]) for row in result["graphs"])
    rows = {row["operation"]: [row["operation"]] for row in result["graphs"]}
    for row in result["graphs"]:
        rows[row["operation"]].append(told(row))
    return markdown(["blocks of", *(f"{c.block_rows:,} x {c.block_classes:,}" for c in cuts)], list(rows.values()))


def table_of_tasks(result: Result) -> str:
    def told(row: Result) -> str:
        agree = all(row["paper"][when] == row[when] for when in ("before", "after"))
        a_block = row["after"] / (row["blocks"][0] * row["blocks"][1])
        return f"{row['before']:,} → {row['after']:,} ({a_block:.2f}){'' if agree else ' NOT AS ON PAPER'}"

    return _by_operation(result, told)


def table_of_graphs(result: Result) -> str:
    """From the smallest to the largest of the operations, for each way to cut."""
    rows = []
    for cut in dict.fromkeys(Cut(**row["cut"]) for row in result["graphs"]):
        found = [row for row in result["graphs"] if row["cut"] == cut._asdict()]
        sent, task = ([row[what] for row in found] for what in ("sent", "task"))
        here = [row["seconds"]["build"] + row["seconds"]["pack"] for row in found]
        there = [row["seconds"]["optimise"] + row["seconds"]["order"] for row in found]
        sizes = [f"{size(min(each))} … {size(max(each))}" for each in (sent, task)]
        times = [f"{min(each):.2f} … {max(each):.2f} s" for each in (here, there)]
        rows.append([f"{cut.block_rows:,} x {cut.block_classes:,}", sizes[0], *times, sizes[1]])
    return markdown(["blocks of", "sent", "build, pack", "optimise, order", "a task"], rows)


def table_of_bytes(result: Result) -> str:
    def told(row: Result) -> str:
        paper = row["paper"]
        times = f"{paper['reads']} x " if paper["reads"] > 1 else ""
        return f"{times}{size(paper['read'])}, {size(paper['written'])}, {size(paper['handed'])}"

    return _by_operation(result, told)


def table_of_costs(result: Result) -> str:
    """What a task costs, and how large the blocks of a mean have to be for that."""
    row = next(row for row in result["graphs"] if row["operation"] == "CE, mean")
    a_block = row["after"] / row["blocks"][0]
    costs = {
        "threads, here": result["tasks"]["threads"],
        "`LocalCluster`, here": result["tasks"]["cluster"],
        "distributed, at its best": ON_PAPER[0],
        "distributed, busy": ON_PAPER[1],
    }
    rows = [
        [name, f"{1e6 * cost:.0f} µs", *(size(enough(a_block, cost, bandwidth)) for bandwidth in BANDWIDTHS)]
        for name, cost in costs.items()
    ]
    call = f"A call on two blocks of next to nothing, computed on threads: {1e3 * result['tasks']['call']:.1f} ms.\n"
    return markdown(["scheduler", "a task", *(f"{size(b)}/s" for b in BANDWIDTHS)], rows) + "\n" + call


def table_of_rows(result: Result) -> str:
    return _throughput(result, ["threads", "cluster"], ["threads", "`LocalCluster`"])


def table_of_classes(result: Result) -> str:
    return _throughput(
        result, ["classes", "cluster_classes", "gradients"], ["threads", "`LocalCluster`", "threads, mean + gradient"]
    )


def _throughput(result: Result, names: list[str], words: list[str]) -> str:
    """NumPy, then one line for each way to cut; arrays, and so blocks, differ from column to column."""
    lines = []
    for found in zip(*(result[name]["rows"] for name in names), strict=True):
        cells = [f"{row['bytes_per_second'] / 1e9:.1f} GB/s" for row in found]
        if found[0]["name"] != "numpy":
            pairs = zip(found, cells, strict=True)
            cells = [f"{row['name'].replace('x', '×')}: {cell}, **{row['of_numpy']:.2f}**" for row, cell in pairs]
        lines.append([str(len(lines)) if lines else "NumPy", *cells])
    return markdown(["", *words], lines)


def table_of_reads(result: Result) -> str:
    rows = [[name, f"{value:.2f}"] for name, value in result["second_read"]["nanoseconds"].items()]
    return markdown(["one thread", "ns a class"], rows)


def table_of_blocks(result: Result) -> str:
    shapes = list(dict.fromkeys(tuple(row["blocks"]) for row in result["alive"]))
    rows: dict[str, list[str]] = {}
    for row in result["alive"]:
        rows.setdefault(row["call"], [row["call"]]).extend([str(row["threads"]), str(row["cluster"])])
    headings = [f"{B} x {C} blocks: {where}" for B, C in shapes for where in ("threads", "`LocalCluster`")]
    return markdown(["call", *headings], list(rows.values()))


TABLES: dict[str, Callable[[Result], str]] = {
    "dask_tasks": table_of_tasks,
    "dask_graphs": table_of_graphs,
    "dask_bytes": table_of_bytes,
    "dask_costs": table_of_costs,
    "dask_rows": table_of_rows,
    "dask_classes": table_of_classes,
    "dask_reads": table_of_reads,
    "dask_blocks": table_of_blocks,
}
