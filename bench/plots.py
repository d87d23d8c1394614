"""The plots of a result: PNG files, one claim each."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator

OURS = "entrokern"
Result = dict[str, Any]
# Okabe and Ito's colours, told apart by all eyes; ours is always the first.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#666666", "#000000")
INK, FAINT = "#333333", "#d9d9d9"
STYLE = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": "#999999",
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "lines.linewidth": 1.8,
    "lines.markersize": 4.5,
    "figure.dpi": 100,
    "savefig.dpi": 110,
}
PANELS = {  # of the shares: what belongs side by side
    "Cross-entropy": ("CE", "CE, peaked", "CE, sorted rows"),
    "Cross-entropy by dtype": ("CE", "CE, float64", "CE, float16", "CE, bfloat16"),
    "With gradient": ("CE + gradient", "CE + gradient into x", "CE, dense target + gradient", "KL, logits + gradient"),
    "Entropy and logsumexp": ("entropy, logits", "logsumexp", "entropy, probs"),
    "Divergences; dense target": ("CE, dense target", "KL, logits", "KL, probs", "JS, probs"),
    "Many labels; all scores": ("BCE, multi-label rows", "score, all rows"),
}
GPU_PANELS = {
    "Cross-entropy": ("CE", "CE, bfloat16", "CE, peaked", "CE, float16", "CE, float64"),
    "With gradient": ("CE + gradient", "CE + gradient into x", "CE, dense target + gradient", "KL, logits + gradient"),
    "With gradient, bfloat16": (
        "CE + gradient, bfloat16",
        "CE + gradient into x, bfloat16",
        "CE, dense target + gradient, bfloat16",
        "KL, logits + gradient, bfloat16",
    ),
    "Divergences; dense target": ("CE, dense target", "KL, logits", "KL, probs", "JS, probs"),
    "Divergences; dense target, bfloat16": (
        "CE, dense target, bfloat16",
        "KL, logits, bfloat16",
        "KL, probs, bfloat16",
        "JS, probs, bfloat16",
    ),
    "Entropy and logsumexp; all scores": ("entropy, logits", "logsumexp", "entropy, probs", "score, all rows"),
}
GPU_RATES = ("CE", "CE + gradient", "KL, logits", "CE, bfloat16", "CE + gradient, bfloat16", "KL, logits, bfloat16")
BARS = (
    "CE",
    "CE + gradient",
    "CE, dense target",
    "entropy, logits",
    "KL, logits",
    "KL, probs",
    "JS, probs",
    "BCE mean",
)


def written(result: Result, folder: Path) -> Iterable[Path]:
    """Draw all, and say where each file is."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = {"speed-share": shares, "speed-peers": peers, "speed-error": errors, "speed-scaling": scaling}
    if "gpu" in result["machine"]:
        drawn = {"gpu-share": gpu_shares, "gpu-rates": gpu_rates}
        result = result | {"rows": [row for row in result["rows"] if "seconds" in row]}
    with pyplot.rc_context(STYLE):
        for name, draw in drawn.items():
            if name == "speed-scaling" and "scaling" not in result:
                continue
            figure = draw(result)
            path = folder / f"{name}.png"
            figure.savefig(path)
            pyplot.close(figure)
            yield path


def canvas(result: Result, title: str, lines: int, columns: int, size: tuple[float, float], **more: Any) -> Any:
    """A figure and its panels, with the title and what was measured on."""
    figure, grid = pyplot.subplots(lines, columns, figsize=size, layout="constrained", squeeze=False, **more)
    about, megabytes = result["machine"], result["settings"]["megabytes"]
    device = about["gpu"]["name"] if "gpu" in about else f"{about['cpu']}, {about['threads']} threads"
    footer = f"{device}, {megabytes:g} MB of operands, {result['date']}"
    figure.suptitle(title, fontweight="bold", x=0.01, ha="left")
    figure.supxlabel(footer, x=0.99, ha="right", fontsize=7.5, color="#777777")
    return figure, grid


def named(row: Result) -> str:
    return row["operation"] + ("" if row["dtype"] == "float32" else f", {row['dtype']}")


# --- share of the roof against k ------------------------------------------------------------------


def shares(
    result: Result,
    panels: dict[str, tuple[str, ...]] = PANELS,
    roof: str = "the roof",
    unit: str = "roof / our time",
    room: float = 120,  # for the names
) -> Any:
    title = f"Share of {roof} against the number of classes; short bars are targets"
    figure, grid = canvas(result, title, 2, 3, (12, 7), sharex=True, sharey=True)
    every = sorted({row["k"] for row in result["rows"] if row["k"] not in (1, 21)})
    for axes, (title, names) in zip(grid.flat, panels.items(), strict=True):
        axes.set_title(title)
        axes.set_xscale("log")
        ticks(axes.xaxis, every)
        axes.set_xlim(every[0] / 1.5, every[-1] * room)
        axes.set_ylim(0, 1.15)
        axes.axhline(1, color="#999999", linewidth=1)
        axes.grid(axis="y", color=FAINT, linewidth=0.6)
        ends: list[tuple[float, str, str]] = []
        aims: dict[tuple[int, float], list[str]] = {}
        for colour, name in zip(COLOURS, names, strict=False):
            rows = sorted((row for row in result["rows"] if named(row) == name), key=lambda row: row["k"])
            if not rows:
                continue
            ks = [row["k"] for row in rows]
            axes.plot(ks, [min(row["share"], 1.13) for row in rows], "o-", color=colour)
            for row in rows:
                if row["target"] is not None:
                    aims.setdefault((row["k"], row["target"]), []).append(colour)
            said = name.removesuffix(", bfloat16") if "bfloat16" in title else name
            ends.append((min(rows[-1]["share"], 1.13), said, colour))
        for (k, aim), of in aims.items():  # grey where several lines have the same aim
            axes.plot([k / 1.3, k * 1.3], [aim, aim], color=of[0] if len(of) == 1 else "#777777", linewidth=1.3)
        label_ends(axes, every[-1], ends, gap=0.065, top=1.12)
    for axes in grid[1]:
        axes.set_xlabel("classes k")
    for axes in grid[:, 0]:
        axes.set_ylabel(unit)
    grid[0, 0].text(every[0] / 1.4, 1.02, roof, fontsize=7.5, color="#777777")
    return figure


def gpu_shares(result: Result) -> Any:
    figure = shares(result, GPU_PANELS, "the copy's bandwidth", "our GB/s / the copy's", room=60)
    for axes in figure.axes:
        axes.tick_params(axis="x", labelsize=7.5)  # there are more of them
    return figure


def gpu_rates(result: Result) -> Any:
    """GB/s of everyone against the number of classes, and what a copy and a mere read do."""
    title = "GB/s of operands and results against the number of classes"
    figure, grid = canvas(result, title, 2, 3, (12, 7), sharex=True, sharey=True)
    who = [OURS, *result["peers"]]
    every = sorted({row["k"] for row in result["rows"] if row["k"] not in (1, 21)})
    most = max(max(row["bytes_per_second"], *row["limits"].values()) for row in result["rows"]) / 1e9
    for axes, name in zip(grid.flat, GPU_RATES, strict=True):
        axes.set_title(name)
        axes.set_xscale("log")
        ticks(axes.xaxis, every)
        axes.set_xlim(every[0] / 1.5, every[-1] * 40)
        axes.grid(axis="y", color=FAINT, linewidth=0.6)
        rows = sorted((row for row in result["rows"] if named(row) == name), key=lambda row: row["k"])
        ends: list[tuple[float, str, str]] = []
        for limit in ("copy", "read"):
            rates = [row["limits"][limit] / 1e9 for row in rows]
            axes.plot([row["k"] for row in rows], rates, ":", color="#777777", linewidth=1)
            ends += [(rates[-1], limit, "#777777")] if rates else []
        for one, colour in zip(who, COLOURS, strict=False):
            there = [row for row in rows if one in row["seconds"]]
            rates = [row["bytes"] / row["seconds"][one]["median"] / 1e9 for row in there]
            axes.plot([row["k"] for row in there], rates, "o-", color=colour)
            ends += [(rates[-1], one, colour)] if rates else []
        label_ends(axes, every[-1], ends, gap=0.06 * most, top=1.1 * most)
    grid[0, 0].set_ylim(0, 1.1 * most)
    for axes in grid[1]:
        axes.set_xlabel("classes k")
    for axes in grid[:, 0]:
        axes.set_ylabel("GB/s")
    return figure


def label_ends(axes: Any, x: float, ends: list[tuple[float, str, str]], gap: float, top: float) -> None:
    """Names beside the ends of lines, moved apart where they would overlap."""
    ends = sorted(ends)
    at = [y for y, _, _ in ends]
    for i in range(1, len(at)):
        at[i] = max(at[i], at[i - 1] + gap)
    for i in reversed(range(len(at))):
        at[i] = min(at[i], top - gap * (len(at) - 1 - i))
    for height, (_, name, colour) in zip(at, ends, strict=True):
        axes.text(x * 1.5, height, name, color=colour, fontsize=8, va="center")


def ticks(axis: Any, values: list[int]) -> None:
    """At the values, on a log axis, but for those too close to the one before."""
    spaced: list[int] = []
    for value in values:
        if not spaced or value >= 3 * spaced[-1]:
            spaced.append(value)
    axis.set_major_locator(FixedLocator(spaced))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda v, _: short(v)))


def short(value: float) -> str:
    return f"{value / 1000:.0f}k" if value >= 10_000 else f"{value:.0f}"


# --- beside the peers -----------------------------------------------------------------------------


def peers(result: Result) -> Any:
    """GB/s of everyone, k = 1000 and k = 10."""
    here = [name for name in BARS if any(named(row) == name for row in result["rows"])]
    who = [OURS, *result["peers"]]
    colours = dict(zip(who, COLOURS, strict=False))
    title = "GB/s of operands and results: dark k = 1000, light k = 10; the line is what the roof allows at k = 1000"
    figure, grid = canvas(result, title, 2, 4, (13, 8))
    for axes in grid.flat[len(here) :]:
        axes.set_visible(False)
    for axes, name in zip(grid.flat, here, strict=False):
        axes.set_title(name)
        rows = {row["k"]: row for row in result["rows"] if named(row) == name}
        large = rows.get(1000) or rows[min(rows)]
        small = rows.get(10)
        present = [one for one in who if one in large["seconds"]]
        for place, one in enumerate(present):
            pair = [(large, -0.2 if small else 0.0, 1.0)] + ([(small, 0.2, 0.45)] if small else [])
            for row, shift, alpha in pair:
                rate = row["bytes"] / row["seconds"][one]["median"] / 1e9
                axes.barh(place + shift, rate, 0.38 if small else 0.6, color=colours[one], alpha=alpha)
                axes.text(rate, place + shift, f" {rate:.1f}", va="center", fontsize=7.5)
        roof = large["bytes"] / max(large["roof"].values()) / 1e9
        axes.axvline(roof, color=INK, linewidth=1)
        axes.set_xlim(0, 1.15 * max(roof, *(large["bytes"] / s["median"] / 1e9 for s in large["seconds"].values())))
        axes.set_yticks(range(len(present)), present)
        axes.set_ylim(len(present) - 0.4, -0.6)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
    return figure


# --- error against speed --------------------------------------------------------------------------


def errors(result: Result) -> Any:
    """Where everyone stands at k = 1000: right is faster, down is more accurate."""
    chosen = ("CE", "CE, peaked", "CE + gradient", "KL, logits", "KL, probs", "JS, probs")
    here = [row for row in result["rows"] if named(row) in chosen and row["k"] == 1000]
    here = here or [row for row in result["rows"] if named(row) in chosen][: len(chosen)]
    who = [OURS, *result["peers"]]
    colours = dict(zip(who, COLOURS, strict=False))
    title = "Error against speed, k = 1000: to the right faster, further down more accurate"
    figure, grid = canvas(result, title, 2, 3, (12, 7.5))
    for axes in grid.flat[len(here) :]:
        axes.set_visible(False)
    drawn = []
    for axes, row in zip(grid.flat, here, strict=False):
        axes.set_title(named(row))
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.grid(color=FAINT, linewidth=0.6)
        points = {
            one: (row["bytes"] / seconds["median"] / 1e9, max(row["error"][one], 1e-9))
            for one, seconds in row["seconds"].items()
        }
        for one, (rate, error) in points.items():
            axes.plot(rate, error, "D" if one == OURS else "o", color=colours[one], markersize=8 if one == OURS else 6)
        rates, found = zip(*points.values(), strict=True)
        axes.set_xlim(min(rates) / 1.6, max(rates) * 1.6)
        axes.set_ylim(min(found) / 4, max(max(found) * 4, min(found) * 100))
        plain(axes.xaxis)
        drawn.append((axes, points))
    for axes in grid[1]:
        axes.set_xlabel("GB/s")
    for axes in grid[:, 0]:
        axes.set_ylabel("largest relative error")
    figure.canvas.draw()  # places everything; names go where room is left
    figure.set_layout_engine("none")
    for axes, points in drawn:
        label_points(axes, points, colours)
    return figure


def label_points(axes: Any, points: dict[str, tuple[float, float]], colours: dict[str, str]) -> None:
    """A name beside each point: the first place around it where nothing stands."""
    frame, point = axes.get_window_extent(), 72 / axes.figure.dpi
    pixels = {one: axes.transData.transform(point) for one, point in points.items()}
    taken = [(x - 6, y - 6, x + 6, y + 6) for x, y in pixels.values()]
    for one, (x, y) in pixels.items():
        width, height = 6.6 * len(one) + 4, 13.0
        for rise in (0, 14, -14, 28, -28, 42, -42, 56, -56):
            for left in (x + 7, x - 7 - width) if abs(rise) < 14 else (x - width / 2, x + 7, x - 7 - width):
                box = (left, y + rise - height / 2, left + width, y + rise + height / 2)
                inside = frame.x0 <= box[0] and box[2] <= frame.x1 and frame.y0 <= box[1] and box[3] <= frame.y1
                if inside and not any(overlap(box, other) for other in taken):
                    break
            else:
                continue
            break
        taken.append(box)
        axes.annotate(
            one,
            points[one],
            ((box[0] + width / 2 - x) * point, rise * point),
            textcoords="offset points",
            ha="center",
            va="center",
            color=colours[one],
            fontsize=8,
            fontweight="bold" if one == OURS else "normal",
        )


def overlap(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def plain(axis: Any) -> None:
    """Plain numbers on a log axis."""
    axis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    axis.set_minor_formatter(NullFormatter())


# --- scaling --------------------------------------------------------------------------------------


def scaling(result: Result) -> Any:
    found = result["scaling"]
    figure, ((by_n, by_k, by_threads),) = canvas(result, "How time grows", 1, 3, (13, 4.8))
    by_n.set_title("CE: time against the number of elements")
    ends = []
    for colour, k in zip(COLOURS, dict.fromkeys(row["k"] for row in found["n"]), strict=False):
        rows = [row for row in found["n"] if row["k"] == k]
        sizes, times = [row["elements"] for row in rows], [1e3 * row["seconds"] for row in rows]
        by_n.loglog(sizes, times, "o-", color=colour)
        by_n.loglog(sizes, [times[-1] * size / sizes[-1] for size in sizes], ":", color=colour, linewidth=1)
        ends.append((sizes[-1], times[-1], f"k = {k}", colour))
    for x, y, name, colour in ends:
        by_n.annotate(name, (x, y), (6, 0), textcoords="offset points", color=colour, va="center", fontsize=8)
    by_n.set_xlim(right=max(x for x, *_ in ends) * 6)
    by_n.set_xlabel("elements (dotted: in proportion)")
    by_n.set_ylabel("ms")
    plain(by_n.yaxis)

    rows = found["k"]
    by_k.set_title(f"CE: time of an element, {rows[0]['elements'] / 1e6:g} million of them")
    times = [1e9 * r["seconds"] / r["elements"] for r in rows]
    by_k.semilogx([r["k"] for r in rows], times, "o-", color=COLOURS[0])
    by_k.set_ylim(0, 1.1 * max(times))
    by_k.set_xlabel("classes k")
    by_k.set_ylabel("ns")

    rows = found["threads"][::-1]
    by_threads.set_title(f"{rows[0]['threads']} threads against one, operands in cache")
    for place, row in enumerate(rows):
        times = row["1"] / row["all"]
        by_threads.barh(place, times, 0.6, color=COLOURS[0])
        by_threads.text(times, place, f" {times:.2f}", va="center", fontsize=8)
    by_threads.axvline(2, color=FAINT, linewidth=1, zorder=0)
    by_threads.set_yticks(range(len(rows)), [row["operation"] for row in rows])
    by_threads.set_xlim(0, 1.15 * max(2.0, *(row["1"] / row["all"] for row in rows)))
    by_threads.set_xlabel("times faster")
    by_threads.tick_params(axis="y", length=0)
    for axes in (by_n, by_k):
        axes.grid(color=FAINT, linewidth=0.6)
    return figure
