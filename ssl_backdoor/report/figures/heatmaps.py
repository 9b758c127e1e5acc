"""Heat maps: where triggered images land, confusion matrices, differences to the control pair by pair."""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle

from ssl_backdoor.report.cells import MISSING, Picture, bare_number, csv_text, in_table
from ssl_backdoor.report.comparisons import Comparison
from ssl_backdoor.report.estimates import Results, pair_means
from ssl_backdoor.report.figures import drawing
from ssl_backdoor.report.frame import CONTROL, SUSPECT, probe_label
from ssl_backdoor.report.sections.pairs import defended_arms, first_pair, suspects_of
from ssl_backdoor.report.sections.table import title_of
from ssl_backdoor.specs import TableSpec

MAX_CLASSES = 15  # of columns
_MAX_WRITTEN = 12  # heat maps of no more columns have their numbers written in
FloatArray = npt.NDArray[np.float64]


def heat_map(
    axes: Axes, values: FloatArray, lines: Sequence[str], columns: Sequence[str], *, text: Callable[[float], str],
    colours: str = "Blues", limits: tuple[float, float] = (0.0, 1.0),
    is_dark: Callable[[float], bool] = lambda share: share > 0.55,
) -> AxesImage:  # fmt: skip
    """``values`` (lines, columns) as colours, written in as ``text`` spells them where there are few columns."""
    image = axes.imshow(values, cmap=colours, vmin=limits[0], vmax=limits[1], aspect="auto")
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    drawing.named(axes, columns, "x", rotation=40)
    drawing.named(axes, lines, "y")
    if values.size and values.shape[1] <= _MAX_WRITTEN:
        for (line, column), value in np.ndenumerate(values):
            colour = "white" if is_dark(value) else drawing.INK
            axes.text(column, line, text(value), ha="center", va="center", fontsize=8, color=colour)
    return image


def _percent(share: float) -> str:
    return f"{100 * share:.0f}" if np.isfinite(share) else ""


def prediction_heatmap(results: Results, variant: str) -> Picture | None:
    """For each pair, the class that triggered images are given: where the cluster lands."""
    suspects = suspects_of(results, variant)
    classes = suspects[0].classes if suspects else ()
    if len({model.replicate[0] for model in suspects}) < 2 or not 1 < len(classes) <= MAX_CLASSES:
        return None
    probe = suspects[0].headline_probe()
    if probe is None or suspects[0].predictions.num_rows == 0:
        return None
    index = {(m.made, m.replicate): m for m in results.models if m.run.variant == variant}
    arms = [arm for arm in (CONTROL, SUSPECT, *defended_arms(results)) if any(made == arm for made, _ in index)]
    figure = Figure(figsize=(3.4 * len(arms), 1.7 + 0.27 * len(suspects)), layout="constrained")
    grid = drawing.panels(figure, len(arms), sharey=True)
    for axes, arm in zip(grid, arms, strict=True):
        shares = np.full((len(suspects), len(classes)), np.nan)
        for line, suspect in enumerate(suspects):
            if (model := index.get((arm, suspect.replicate))) is not None:
                _, guess = model.predicted("triggered", probe)
                shares[line] = np.bincount(guess, minlength=len(classes))[: len(classes)] / max(len(guess), 1)
        heat_map(axes, shares, [model.replicate[0].label for model in suspects], classes, text=_percent)
        for line, suspect in enumerate(suspects):
            target = suspect.run.attack.target_class
            if target in classes:
                corner = (classes.index(target) - 0.45, line - 0.43)
                colour = drawing.colour_of(SUSPECT)
                axes.add_patch(Rectangle(corner, 0.9, 0.86, fill=False, edgecolor=colour, linewidth=1.8, zorder=5))
        drawing.headed(axes, arm.label)
    caption = (
        f"Share (%) of each pair's triggered test images that the {probe_label(probe)} probe gives each class; the "
        "target is outlined. A dark cell outside the outline is a cluster that landed on another class."
    )
    return drawing.picture("landing", figure, "Where triggered images land, pair by pair", caption)


def confusion(results: Results, variant: str) -> Picture | None:
    """Confusion matrices of triggered test images of the first pair: control, poisoned, defended; rows sum to 100 %."""
    shown = first_pair(results, variant)
    suspect = shown.get(SUSPECT)
    if suspect is None or suspect.predictions.num_rows == 0:
        return None
    probe, classes = suspect.headline_probe(), suspect.classes
    if probe is None or not 1 < len(classes) <= 100:
        return None
    side = min(5.2, 2.4 + 0.36 * len(classes))
    figure = Figure(figsize=(side * len(shown) + 0.4, side), layout="constrained")
    few = classes if len(classes) <= 2 * MAX_CLASSES else ()
    grid = drawing.panels(figure, len(shown), sharey=True)
    for axes, model in zip(grid, shown.values(), strict=True):
        label, guess = model.predicted("triggered", probe)
        counts = np.zeros((len(classes), len(classes)))
        np.add.at(counts, (label, guess), 1)
        heat_map(axes, counts / np.maximum(counts.sum(axis=1, keepdims=True), 1), few, few, text=_percent)
        axes.set_xlabel("predicted", fontsize=9.5, color=drawing.INK)
        drawing.headed(axes, model.made.label)
    grid[0].set_ylabel("true class", fontsize=9.5, color=drawing.INK)
    caption = (
        f"Triggered test images of the first pair ({suspect.replicate[0].label}), {probe_label(probe)} probe; "
        "each row is a true class and sums to 100 %."
    )
    return drawing.picture("confusion", figure, "Confusion under the trigger", caption)


def delta_heatmap(table: TableSpec, comparisons: Sequence[Comparison]) -> Picture | None:
    """Differences to the control, lines by pairs, seeds averaged."""
    shown = [line for line in comparisons if line.difference.num_units]
    pairs = list(dict.fromkeys(pair for line in comparisons for pair, _ in line.difference.values))
    if not shown or len(pairs) < 2:
        return None
    values = np.full((len(shown), len(pairs)), np.nan)
    for position, line in enumerate(shown):
        for pair, mean in pair_means(line.difference.values).items():
            values[position, pairs.index(pair)] = mean
    quantity = in_table(shown[0].difference.measure)
    canvas = Figure(figsize=(min(2.6 + 0.75 * len(pairs), 14.0), 1.7 + 0.42 * len(shown)), layout="constrained")
    (axes,) = drawing.panels(canvas, 1)
    limit = max(float(np.nanmax(np.abs(values))), 1e-12)
    image = heat_map(
        axes, values, [line.label for line in shown], [pair.label for pair in pairs], colours="RdBu_r",
        limits=(-limit, limit), is_dark=lambda value: abs(value) > 0.6 * limit,
        text=lambda value: bare_number(float(value), quantity.kind, True) if np.isfinite(value) else MISSING,
    )  # fmt: skip
    bar = canvas.colorbar(image, ax=axes, shrink=0.9, format=lambda x, _: drawing.short_number(x, quantity.kind))
    bar.ax.tick_params(labelsize=8, colors=drawing.INK)
    caption = (
        f"{quantity.title} ({quantity.detail}) on triggered images, minus the control's, mean over seeds. Columns are "
        "pairs (trigger / target). Red: above the control; blue: below."
    )
    title = f"{title_of(table)}: differences to the control, pair by pair"
    heads = ("row", "arm", "name", "condition", "probe", "pair", "num_seeds", "mean_difference")
    lines = [
        (line.label, row.point.arm.name, *row.measure[:3], pair.label, sum(pair == p for p, _ in row.values), mean)
        for line in shown
        for row in (line.difference,)
        for pair, mean in pair_means(row.values).items()
    ]
    return drawing.picture(f"{table.name}_heat", canvas, title, caption, csv_text(heads, lines))
