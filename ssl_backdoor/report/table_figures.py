"""Figures of a table: every pair's control, arm and difference, and a heat map of the differences.

PNG bytes, each with the data behind it as CSV.
"""

import csv
import io
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ssl_backdoor.report.aggregate import pair_means
from ssl_backdoor.report.comparisons import Comparison
from ssl_backdoor.report.drawing import COLOURS, FAINT, INK, LINE, headed, literal, named, panels, png_bytes
from ssl_backdoor.report.figures import Picture
from ssl_backdoor.report.runs import Pair
from ssl_backdoor.report.sweep_figures import Drawn
from ssl_backdoor.report.table_view import Evidence, quantity_of, title_of, values_of
from ssl_backdoor.report.text import MISSING, Kind, arm_label, number
from ssl_backdoor.specs import TableRow, TableSpec

_WRITTEN_CELLS = 12  # heat maps of no more columns have their numbers written in


def pairs_in(comparisons: Sequence[Comparison]) -> tuple[Pair, ...]:
    """Every pair of the comparisons, in order of appearance."""
    return tuple(dict.fromkeys(pair for one in comparisons for pair, _ in one.differences))


def dots(table: TableSpec, comparisons: Sequence[Comparison], evidence: Evidence) -> Drawn | None:
    """Each pair of each line: control and arm on the left, their difference, with mean and interval, on the right."""
    shown = [one for one in comparisons if one.n]
    if not shown:
        return None
    quantity = quantity_of(shown[0].key)
    canvas = Figure(figsize=(10.2, 1.5 + 0.62 * len(shown)), layout="constrained")
    left, right = panels(canvas, 2, sharey=True)
    for position, one in enumerate(shown):
        _levels(left, position, one, evidence)
        _differences(right, position, one)
    named(left, [one.label for one in shown], "y")
    left.set_ylim(len(shown) - 0.5, -0.5)
    right.axvline(0.0, color=INK, linewidth=0.9)
    for axes, title in ((left, "each pair"), (right, "difference to the control")):
        axes.grid(visible=False, axis="y")
        axes.grid(axis="x", color=FAINT, linewidth=0.6)
        axes.xaxis.set_major_formatter(lambda x, _: _short(x, quantity.kind))
        headed(axes, f"{quantity.title}, {title}")
    arms = ("control", *dict.fromkeys(one.arm for one in shown))
    handles = [Line2D([], [], color=COLOURS[arm], linestyle="", marker="o", label=arm_label(arm)) for arm in arms]
    literal(canvas.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False, fontsize=9))
    caption = (
        f"Triggered test images, {quantity.detail}. One dot a pair, seeds averaged; lines join a pair's control and "
        f"{arm_label(arms[1]) if len(arms) == 2 else 'arm'}. Diamonds: mean differences with 95 % t intervals over "
        f"{shown[0].unit}s, where there are two or more."
    )
    picture = Picture(f"{table.name}_dots", png_bytes(canvas), f"{title_of(table)}: pair by pair", caption)
    return Drawn(picture, _dots_csv(shown, evidence))


def _places(position: int, count: int) -> npt.NDArray[np.float64]:
    """Heights of a line's pairs, a band of 0.6 around ``position``."""
    steps: npt.NDArray[np.float64] = np.arange(count, dtype=np.float64) - (count - 1) / 2
    return position + steps * (0.6 / max(count, 4))


def _levels(axes: Axes, position: int, one: Comparison, evidence: Evidence) -> None:
    row = TableRow(label=one.label, variant=one.variant)
    ours, control = (pair_means(values_of(evidence, row, arm, one.key)) for arm in (one.arm, "control"))
    pairs = [pair for pair in ours if pair in control]
    for height, pair in zip(_places(position, len(pairs)), pairs, strict=True):
        axes.plot([control[pair], ours[pair]], [height, height], color=LINE, linewidth=0.8, zorder=2)
        axes.plot([control[pair]], [height], "o", color=COLOURS["control"], markersize=4, zorder=3)
        axes.plot([ours[pair]], [height], "o", color=COLOURS[one.arm], markersize=4, zorder=3)


def _differences(axes: Axes, position: int, one: Comparison) -> None:
    means = list(pair_means(one.differences).values())
    axes.plot(means, _places(position, len(means)), "o", color=COLOURS[one.arm], markersize=3.5, alpha=0.45)
    if one.low is not None and one.high is not None:
        axes.plot([one.low, one.high], [position, position], color=INK, linewidth=2.2, zorder=3)
    if one.mean is not None:
        axes.plot([one.mean], [position], "D", color=INK, markersize=6.5, zorder=4)


def _short(value: float, kind: Kind) -> str:
    return f"{100 * value:g} %" if kind == "percent" else f"{value:,g}"


def _dots_csv(comparisons: Sequence[Comparison], evidence: Evidence) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(("row", "arm", "name", "condition", "probe", "pair", "seed", "value", "difference"))
    for one in comparisons:
        row = TableRow(label=one.label, variant=one.variant)
        for (pair, seed), value in values_of(evidence, row, one.arm, one.key).items():
            difference = one.differences.get((pair, seed), "")
            writer.writerow((one.label, one.arm, *one.key, pair.label, seed, value, difference))
    return out.getvalue()


def heat(table: TableSpec, comparisons: Sequence[Comparison]) -> Drawn | None:
    """Differences to the control, lines by pairs, seeds averaged."""
    shown, pairs = [one for one in comparisons if one.n], pairs_in(comparisons)
    if not shown or len(pairs) < 2:
        return None
    cells = np.full((len(shown), len(pairs)), np.nan)
    for line, one in enumerate(shown):
        for pair, mean in pair_means(one.differences).items():
            cells[line, pairs.index(pair)] = mean
    quantity = quantity_of(shown[0].key)
    canvas = Figure(figsize=(min(2.6 + 0.75 * len(pairs), 14.0), 1.7 + 0.42 * len(shown)), layout="constrained")
    (axes,) = panels(canvas, 1)
    limit = max(float(np.nanmax(np.abs(cells))), 1e-12)
    image = axes.imshow(cells, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto")
    bar = canvas.colorbar(image, ax=axes, shrink=0.9, format=lambda x, _: _short(x, quantity.kind))
    bar.ax.tick_params(labelsize=8, colors=INK)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    named(axes, [pair.label for pair in pairs], "x", rotation=40)
    named(axes, [one.label for one in shown], "y")
    for (line, column), value in np.ndenumerate(cells) if len(pairs) <= _WRITTEN_CELLS else ():
        text = number(float(value), quantity.kind, True).removesuffix(" pt") if np.isfinite(value) else MISSING
        colour = "white" if abs(value) > 0.6 * limit else INK
        axes.text(column, line, text, ha="center", va="center", fontsize=8, color=colour)
    caption = (
        f"{quantity.title} ({quantity.detail}) on triggered images, minus the control's, mean over seeds. Columns are "
        "pairs (trigger / target). Red: above the control; blue: below."
    )
    title = f"{title_of(table)}: differences to the control, pair by pair"
    return Drawn(Picture(f"{table.name}_heat", png_bytes(canvas), title, caption), _heat_csv(shown))


def _heat_csv(comparisons: Sequence[Comparison]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(("row", "arm", "name", "condition", "probe", "pair", "num_seeds", "mean_difference"))
    for one in comparisons:
        for pair, mean in pair_means(one.differences).items():
            seeds = sum(other == pair for other, _ in one.differences)
            writer.writerow((one.label, one.arm, *one.key, pair.label, seeds, mean))
    return out.getvalue()
