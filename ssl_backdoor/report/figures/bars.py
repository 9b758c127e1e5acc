"""Bars: false positives of every class, and how similar test images are."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator, PercentFormatter

from ssl_backdoor.evaluate.metrics import UNSEEN
from ssl_backdoor.report.cells import Picture, csv_text, paper_label
from ssl_backdoor.report.estimates import Results
from ssl_backdoor.report.figures import drawing
from ssl_backdoor.report.frame import CONTROL, SUSPECT, Arm, EvaluatedModel, Measure, headline_probes, probe_label
from ssl_backdoor.report.sections.pairs import compared_arms, suspects_of
from ssl_backdoor.report.sections.sweep import point_label
from ssl_backdoor.report.swept import Histogram, by_point, pooled_histograms
from ssl_backdoor.specs import FigureSpec

MAX_CLASSES = 15  # beyond this many, the classes with the most false positives are shown
_FEWEST_PAIRS = 100
_SAME_LABEL = "clean_same_label"
_SHADES = {"clean": 0.3, UNSEEN: 0.6, "triggered": 1.0}
_COLOURS = {"clean": "#0072b2", "triggered": "#d55e00"}


def false_positives(results: Results, variant: str) -> Picture | None:
    """False positives of every class, clean, triggered and under unseen triggers, mean over the runs."""
    models = [model for model in results.models if model.run.variant == variant]
    rows = [row for row in results.rows if row.point.variant == variant and row.measure.class_name]
    probe = next(iter(headline_probes(row.measure.probe for row in rows)), None)
    arms = compared_arms(results, variant)
    if probe is None or not models or not arms:
        return None
    classes = models[0].classes

    def mean(arm: Arm, condition: str, name: str) -> float:
        row = results.get(Measure("false_positives", condition, probe or "", name), arm, variant)
        return row.value if row is not None and row.value is not None else 0.0

    names = sorted(classes, key=lambda name: -max(mean(arm, "triggered", name) for arm in arms))[:MAX_CLASSES]
    names = [name for name in classes if name in names]
    figure = Figure(figsize=(3.3 * len(arms), 1.6 + 0.34 * len(names)), layout="constrained")
    places = np.arange(len(names))
    grid = drawing.panels(figure, len(arms), sharey=True)
    for axes, arm in zip(grid, arms, strict=True):
        for position, (condition, shade) in enumerate(_SHADES.items()):
            values = [mean(arm, condition, name) for name in names]
            axes.barh(places + 0.27 * (position - 1), values, 0.25, color=drawing.colour_of(arm), alpha=shade)
        axes.grid(visible=False, axis="y")
        axes.grid(axis="x", color=drawing.FAINT, linewidth=0.6)
        drawing.headed(axes, arm.label)
    targets = {model.run.attack.target_class for model in models} - {""}
    drawing.named(
        grid[0], [f"{drawing.plain(name, 18)} (target)" if targets == {name} else name for name in names], "y"
    )
    grid[0].invert_yaxis()
    limit = max(axes.get_xlim()[1] for axes in grid)
    for axes in grid:
        axes.set_xlim(0, limit)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        drawing.thousands(axes.xaxis)
    shades = [
        Patch(color=drawing.colour_of(CONTROL), alpha=alpha, label=label.replace("_", " "))
        for label, alpha in _SHADES.items()
    ]
    figure.legend(handles=shades, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    many = len({model.replicate[0] for model in suspects_of(results, variant)})
    over = f"mean over {many} pairs, whose targets differ" if many > 1 and len(targets) > 1 else "one target"
    caption = f"Test images wrongly given each class by the {probe_label(probe)} probe; {over}."
    return drawing.picture("false_positives", figure, "False positives of every class", caption)


def similarity_histograms(figure: FigureSpec, models: Sequence[EvaluatedModel]) -> Picture | None:
    """Share of the pairs of test images by cosine, a panel a point."""
    found = pooled_histograms([model for model in models if model.run.attack.kind == figure.attack])
    points = by_point(found)
    if not points:
        return None
    canvas = Figure(figsize=(max(3.9 * len(points), 6.4), 4.0), layout="constrained")
    for axes, point in zip(drawing.panels(canvas, len(points), sharey=True), points, strict=True):
        for condition, colour in _COLOURS.items():
            if (point, condition) in found:
                _histogram(axes, found[point, condition], condition, colour)
        drawing.headed(axes, drawing.plain(point_label(figure, point, points), 40))
        axes.set_xlabel("cosine of two test images", fontsize=9.5, color=drawing.INK)
        if point.arm == SUSPECT:
            _paper_means(axes, figure)
        drawing.literal(axes.legend(frameon=False, fontsize=8.5))
    caption = (
        "Share of the distinct pairs of test images, over all models of a panel, by the cosine of their features. "
        "Dashed: means. Stars: the paper's means, unverified, for its own data and model."
        if figure.paper
        else "Share of the distinct pairs of test images, over all models of a panel, by cosine. Dashed: means."
    )
    data = csv_text(
        ("series", "arm", "num_poisons", "condition", "low", "high", "num_pairs"),
        [
            (point.variant, point.arm.name, point.x, condition, f"{low:.6g}", f"{high:.6g}", int(count))
            for (point, condition), (edges, counts) in found.items()
            for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True)
        ],
    )
    return drawing.picture(figure.name, canvas, figure.title, caption, data)


def same_label_shares(figure: FigureSpec, models: Sequence[EvaluatedModel]) -> Picture | None:
    """Share of the clean pairs that are given one label, by their cosine, in clean-trained encoders."""
    clean = [model for model in models if model.run.attack.kind == figure.attack and model.made == CONTROL]
    found = pooled_histograms(clean, ("clean", _SAME_LABEL))
    points = [point for point in by_point(found) if (point, _SAME_LABEL) in found]
    if not points:
        return None
    canvas = Figure(figsize=(6.4, 4.2), layout="constrained")
    (axes,) = drawing.panels(canvas, 1)
    rows = []
    for point in points:
        (edges, pairs), same = found[point, "clean"], found[point, _SAME_LABEL].counts
        bins = np.flatnonzero(pairs >= _FEWEST_PAIRS)
        share = same[bins] / pairs[bins]
        label = point.variant or "clean-trained"
        axes.plot(
            (edges[bins] + edges[bins + 1]) / 2, np.where(share > 0, share, np.nan), "o-", markersize=3, label=label
        )
        rows += [
            (point.variant, f"{edges[at]:.6g}", f"{edges[at + 1]:.6g}", int(pairs[at]), int(same[at])) for at in bins
        ]
    axes.set_yscale("log")
    axes.set_xlabel("cosine of two clean test images", fontsize=9.5, color=drawing.INK)
    axes.set_ylabel("share of pairs given one label", fontsize=9.5, color=drawing.INK)
    drawing.literal(axes.legend(frameon=False, fontsize=8.5))
    caption = (
        f"Over all clean-trained models; bins of at least {_FEWEST_PAIRS} pairs. Labels are those of zero-shot "
        "classification, or without a text tower of the last probe on features."
    )
    data = csv_text(("series", "low", "high", "num_pairs", "num_same_label"), rows)
    return drawing.picture(figure.name, canvas, figure.title, caption, data)


def _histogram(axes: Axes, histogram: Histogram, condition: str, colour: str) -> None:
    edges, counts = histogram
    total = max(int(counts.sum()), 1)
    mean = float((counts * (edges[:-1] + edges[1:])).sum() / 2 / total)
    axes.stairs(counts / total, edges, fill=True, color=colour, alpha=0.45, label=f"{condition}, mean {mean:.2f}")
    axes.axvline(mean, color=colour, linestyle="--", linewidth=1.4)
    axes.set_xlim(-1.02, 1.02)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))


def _paper_means(axes: Axes, figure: FigureSpec) -> None:
    for value in figure.paper:
        condition = "clean" if Measure.of_figure(value.measure).metric == "similarity_clean" else "triggered"
        face = _COLOURS[condition] if value.is_verified else "none"
        axes.plot(
            [value.value], [0.0], "*", color=_COLOURS[condition], markerfacecolor=face, markersize=12, clip_on=False,
            zorder=5, linestyle="", label=f"{condition}, {paper_label(value.is_verified)}: {value.value:.2f}",
        )  # fmt: skip
