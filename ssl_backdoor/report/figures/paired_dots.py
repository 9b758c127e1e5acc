"""Paired dots: each pair's control joined to what became of it, with means and intervals."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ssl_backdoor.report.cells import Picture, csv_text, effect_quantities, in_table
from ssl_backdoor.report.comparisons import Comparison
from ssl_backdoor.report.estimates import Results, pair_means
from ssl_backdoor.report.figures import drawing
from ssl_backdoor.report.frame import CONTROL, SUSPECT
from ssl_backdoor.report.sections.pairs import compared_arms, suspects_of, values_of
from ssl_backdoor.report.sections.table import title_of
from ssl_backdoor.specs import TableSpec


def before_after(results: Results, variant: str) -> Picture | None:
    """Each pair's triggered false positives and z-score, joined over the arms, with mean and interval."""
    quantities = [q for q in effect_quantities(results.probes(variant)) if results.get(q.measure, SUSPECT, variant)]
    arms = compared_arms(results, variant)
    if not quantities or len(arms) < 2:
        return None
    figure = Figure(figsize=(3.3 * len(quantities), 3.9), layout="constrained")
    pairs = [model.replicate for model in suspects_of(results, variant)]
    for axes, quantity in zip(drawing.panels(figure, len(quantities)), quantities, strict=True):
        by_arm = [values_of(results, variant, quantity.measure, arm) for arm in arms]
        for pair in pairs:
            values = [found.get(pair, np.nan) for found in by_arm]
            axes.plot(range(len(arms)), values, color=drawing.LINE, linewidth=0.8, alpha=0.8, marker="o", markersize=3)
        for position, arm in enumerate(arms):
            row = results.get(quantity.measure, arm, variant)
            if row is None or row.value is None:
                continue
            unseen = results.get(quantity.measure.under_unseen, arm, variant)
            if unseen is not None and unseen.value is not None:
                place = ([position - 0.16], [unseen.value])
                axes.plot(*place, "D", color=drawing.colour_of(arm), markerfacecolor="none", markersize=6, zorder=4)
            shift = position + (0.16 if len(pairs) > 1 else 0.0)
            axes.plot([shift], [row.value], "D", color=drawing.colour_of(arm), markersize=7, zorder=4)
            if row.low is not None and row.high is not None:
                axes.plot([shift, shift], [row.low, row.high], color=drawing.colour_of(arm), linewidth=2.4, zorder=3)
        drawing.named(axes, [arm.label.replace(" + ", "\n+ ") for arm in arms])
        axes.set_xlim(-0.35, len(arms) - 0.5)
        low, high = axes.dataLim.intervaly
        low = min(0.0, low)
        axes.set_ylim(low - 0.05 * (high - low) * (low < 0), high + 0.06 * (high - low or 1.0))
        if quantity.kind == "count":
            drawing.thousands(axes.yaxis)
        label = quantity.detail if quantity.kind == "count" else "standard-deviation form"
        drawing.headed(axes, f"{quantity.title} ({label})")
    if len(pairs) > 1:
        how = "Grey: one line a pair and seed. Diamonds: means with 95 % intervals."
    else:
        how = "One run: no interval over models."
    caption = (
        f"Triggered test images, of the poisoned encoder before and after the defence. {how} Hollow: means under "
        "unseen triggers."
    )
    return drawing.picture("before_after", figure, "Before and after the defence", caption)


def paired_dotplot(table: TableSpec, comparisons: Sequence[Comparison], results: Results) -> Picture | None:
    """Each pair of each line: control and arm on the left, their difference, with mean and interval, on the right."""
    shown = [line for line in comparisons if line.difference.num_units]
    if not shown:
        return None
    quantity = in_table(shown[0].difference.measure)
    canvas = Figure(figsize=(10.2, 1.5 + 0.62 * len(shown)), layout="constrained")
    left, right = drawing.panels(canvas, 2, sharey=True)
    for position, line in enumerate(shown):
        _levels(left, position, line, results)
        _differences(right, position, line)
    drawing.named(left, [line.label for line in shown], "y")
    left.set_ylim(len(shown) - 0.5, -0.5)
    right.axvline(0.0, color=drawing.INK, linewidth=0.9)
    for axes, title in ((left, "each pair"), (right, "difference to the control")):
        axes.grid(visible=False, axis="y")
        axes.grid(axis="x", color=drawing.FAINT, linewidth=0.6)
        axes.xaxis.set_major_formatter(lambda x, _: drawing.short_number(x, quantity.kind))
        drawing.headed(axes, f"{quantity.title}, {title}")
    arms = (CONTROL, *dict.fromkeys(line.difference.point.arm for line in shown))
    handles = [Line2D([], [], color=drawing.colour_of(arm), linestyle="", marker="o", label=arm.label) for arm in arms]
    drawing.literal(canvas.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False, fontsize=9))
    caption = (
        f"Triggered test images, {quantity.detail}. One dot a pair, seeds averaged; lines join a pair's control and "
        f"{arms[1].label if len(arms) == 2 else 'arm'}. Diamonds: mean differences with 95 % intervals over "
        f"{shown[0].difference.unit}s, where there are enough independent trainings; hollow: specific excess."
    )
    data = _csv(shown, results)
    return drawing.picture(f"{table.name}_dots", canvas, f"{title_of(table)}: pair by pair", caption, data)


def _heights(position: int, count: int) -> npt.NDArray[np.float64]:
    """Heights of a line's pairs, a band of 0.6 around ``position``."""
    steps: npt.NDArray[np.float64] = np.arange(count, dtype=np.float64) - (count - 1) / 2
    return position + steps * (0.6 / max(count, 4))


def _levels(axes: Axes, position: int, line: Comparison, results: Results) -> None:
    measure, point = line.difference.measure, line.difference.point
    rows = [results.get(measure, point.arm, point.variant),
            results.get(measure, CONTROL, results.control_variant(point.variant))]  # fmt: skip
    ours, control = (pair_means(row.values) if row else {} for row in rows)
    pairs = [pair for pair in ours if pair in control]
    for height, pair in zip(_heights(position, len(pairs)), pairs, strict=True):
        axes.plot([control[pair], ours[pair]], [height, height], color=drawing.LINE, linewidth=0.8, zorder=2)
        axes.plot([control[pair]], [height], "o", color=drawing.colour_of(CONTROL), markersize=4, zorder=3)
        axes.plot([ours[pair]], [height], "o", color=drawing.colour_of(point.arm), markersize=4, zorder=3)


def _differences(axes: Axes, position: int, line: Comparison) -> None:
    row = line.difference
    means = list(pair_means(row.values).values())
    heights = _heights(position, len(means))
    axes.plot(means, heights, "o", color=drawing.colour_of(row.point.arm), markersize=3.5, alpha=0.45)
    if row.low is not None and row.high is not None:
        axes.plot([row.low, row.high], [position, position], color=drawing.INK, linewidth=2.2, zorder=3)
    if row.value is not None:
        axes.plot([row.value], [position], "D", color=drawing.INK, markersize=6.5, zorder=4)
    if (specific := line.specific) is not None and specific.value is not None:
        below, colour = position + 0.22, drawing.colour_of(row.point.arm)
        if specific.low is not None and specific.high is not None:
            axes.plot([specific.low, specific.high], [below, below], color=colour, linewidth=1.4, zorder=3)
        axes.plot([specific.value], [below], "D", color=colour, markerfacecolor="white", markersize=5.5, zorder=4)


def _csv(lines: Sequence[Comparison], results: Results) -> str:
    heads = ("row", "arm", "name", "condition", "probe", "pair", "seed", "value", "difference")
    body = []
    for line in lines:
        row = line.difference
        level = results.get(row.measure, row.point.arm, row.point.variant)
        for (pair, seed), value in (level.values if level else {}).items():
            place = (line.label, row.point.arm.name, *row.measure[:3], pair.label, seed)
            body.append((*place, value, row.values.get((pair, seed), "")))
    return csv_text(heads, body)
