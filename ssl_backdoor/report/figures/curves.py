"""Curves: measures over an axis, and the losses of trainings.

Over an axis colour is the arm, the marker the probe, dashes the series, hollow under unseen triggers; a star is the
paper's value, hollow where unverified. An axis of one or two places has bars in place of lines, a group a series.
"""

import textwrap
from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import NullFormatter, NullLocator, PercentFormatter

from ssl_backdoor.report.cells import Picture, paper_label, quantity_of
from ssl_backdoor.report.estimates import Results, axis_of
from ssl_backdoor.report.figures import drawing
from ssl_backdoor.report.frame import CONTROL, Measure, probe_label
from ssl_backdoor.report.sections.sweep import AXIS_LABELS, figure_csv, point_label
from ssl_backdoor.report.swept import Curve, curves_of, x_of
from ssl_backdoor.specs import FigureSpec

MAX_LOSS_POINTS = 200
_DASHES: tuple[Literal["-", "--", ":"], ...] = ("-", "--", ":")
_MARKERS = "os^Pv"
_HATCHES = ("", "///", "...", "xxx", "---")
_Loss = tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]  # epoch, loss


def axis_curves(figure: FigureSpec, results: Results) -> Picture | None:
    """The figure's measures over its axis, a panel a metric."""
    curves = curves_of(figure, results)
    if not curves:
        return None
    metrics = list(dict.fromkeys(curve.measure.metric for curve in curves))
    probes = list(dict.fromkeys(curve.measure.probe for curve in curves))
    series = list(dict.fromkeys(curve.variant for curve in curves))
    unseen = [one for one in curves_of(figure, results, under_unseen=True) if one.measure.metric != "similarity_clean"]
    has_bars = len({x_of(row) for curve in curves for row in curve.points}) <= 2 and not figure.paper
    canvas = Figure(figsize=(max(4.7 * len(metrics), 6.4), 4.6), layout="constrained")
    for axes, metric in zip(drawing.panels(canvas, len(metrics)), metrics, strict=True):
        shown = [curve for curve in curves if curve.measure.metric == metric]
        papers = [value for value in figure.paper if Measure.of_figure(value.measure).metric == metric]
        if has_bars:
            _draw_bars(axes, figure, results, shown, unseen, probes)
        for curve in () if has_bars else shown:
            dash = _DASHES[series.index(curve.variant) % len(_DASHES)]
            marker = _MARKERS[probes.index(curve.measure.probe) % len(_MARKERS)]
            _draw(axes, curve, dash, marker)
            for other in unseen:
                if (other.measure, *other[1:3]) == (curve.measure.under_unseen, *curve[1:3]):
                    _draw(axes, other, dash, marker, is_unseen=True)
        for value in papers:
            face = drawing.INK if value.is_verified else "none"
            axes.plot([value.x], [value.value], "*", color=drawing.INK, markerfacecolor=face, markersize=11, zorder=4)
        _finish(axes, axis_of(figure), shown, None if has_bars else [value.x for value in papers])
    handles = _legend(figure, curves, probes, [] if has_bars else series, has_bars)
    if unseen:
        label = "under unseen triggers"
        handles.append(Line2D([], [], color=drawing.INK, linestyle="", marker="D", markerfacecolor="none", label=label))
    drawing.literal(canvas.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize=9))
    how = "Bars: 95 % intervals over models."
    if any(value for value in figure.paper if not value.is_verified):
        how += " The paper's value is recalled and unverified, and of other data and another model."
    return drawing.picture(figure.name, canvas, figure.title, how, figure_csv(figure, results))


def _draw_bars(
    axes: Axes, figure: FigureSpec, results: Results, shown: Sequence[Curve], unseen: Sequence[Curve],
    probes: Sequence[str],
) -> None:  # fmt: skip
    """A group a point, a bar a probe, told apart by hatches; a diamond is the same under unseen triggers."""
    points = sorted({row.point for curve in shown for row in curve.points}, key=lambda p: (p.x or 0.0, p.arm.order, p))
    width = 0.8 / len(probes)
    for curve in shown:
        shift = (probes.index(curve.measure.probe) - (len(probes) - 1) / 2) * width
        hatch = _HATCHES[probes.index(curve.measure.probe) % len(_HATCHES)]
        beside = {row.point: row for one in unseen if one.measure == curve.measure.under_unseen for row in one.points}
        for row in curve.points:
            place, colour = points.index(row.point) + shift, drawing.colour_of(curve.arm)
            axes.bar(place, row.value or 0.0, 0.9 * width, color=colour, edgecolor="white", hatch=hatch, zorder=2)
            if row.low is not None and row.high is not None:
                axes.plot([place, place], [row.low, row.high], color=drawing.INK, linewidth=1.3, zorder=3)
            if (other := beside.get(row.point)) and other.value is not None:
                axes.plot([place], [other.value], "D", markerfacecolor="white", markeredgecolor=drawing.INK, zorder=4)
    axes.set_xticks(range(len(points)))
    names = [point_label(figure, point, points) for point in points]
    axes.set_xticklabels(["\n".join(textwrap.wrap(drawing.plain(name, 60), 20)) for name in names], parse_math=False)


def _draw(axes: Axes, curve: Curve, dash: str, marker: str, *, is_unseen: bool = False) -> None:
    colour, face, width = drawing.colour_of(curve.arm), "none" if is_unseen else None, 0.8 if is_unseen else 1.5
    rows = [row for row in curve.points if row.value is not None]
    y = [float(row.value or 0.0) for row in rows]
    axes.plot(
        [x_of(row) for row in rows], y, dash, color=colour, marker=marker, markersize=5.5, markerfacecolor=face,
        linewidth=width, zorder=3,
    )  # fmt: skip
    for row in rows:
        if row.low is not None and row.high is not None:
            x = x_of(row)
            axes.plot([x, x], [row.low, row.high], color=colour, linewidth=width, alpha=0.8, zorder=2)


def _finish(axes: Axes, axis: str, curves: Sequence[Curve], papers: Sequence[float] | None) -> None:
    """Scales and titles: counts on a logarithmic axis that holds 0, sides of patches on a linear one; None: bars."""
    quantity = quantity_of(curves[0].measure)
    if papers is not None:
        _scale(axes, axis, curves, papers)
    if quantity.kind == "percent":
        axes.set_ylim(-0.03, 1.03)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    drawing.headed(axes, quantity.title)


def _scale(axes: Axes, axis: str, curves: Sequence[Curve], papers: Sequence[float]) -> None:
    places = sorted({x_of(row) for curve in curves for row in curve.points} | set(papers))
    if axis == "num_poisons":
        axes.set_xscale("symlog", linthresh=min((x for x in places if x > 0), default=1.0), linscale=0.5)
        for curve in curves:
            if curve.arm == CONTROL and curve.points[0].value is not None:
                axes.axhline(curve.points[0].value, color=drawing.colour_of(CONTROL), linewidth=0.9, alpha=0.5)
    elif axis != "patch_frac":
        axes.set_xscale("log")
    axes.set_xticks(places)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xticklabels([_tick(axis, x) for x in places], rotation=30 if len(places) > 6 else 0)
    axes.set_xlabel(AXIS_LABELS[axis], fontsize=9.5, color=drawing.INK)


def _tick(axis: str, x: float) -> str:
    if axis == "patch_frac":
        return f"{100 * x:.3g}"
    return f"{x / 1e6:.3g} M" if x >= 1e6 else f"{x:,.0f}"


def _legend(
    figure: FigureSpec, curves: Sequence[Curve], probes: Sequence[str], series: Sequence[str], has_bars: bool
) -> list[Artist]:
    handles: list[Artist] = []
    for arm in () if has_bars else sorted({curve.arm for curve in curves}, key=lambda arm: arm.order):
        handles.append(Line2D([], [], color=drawing.colour_of(arm), linewidth=2.5, label=arm.label))
    for i, probe in enumerate(probes if len(probes) > 1 else ()):
        marker, label = _MARKERS[i % len(_MARKERS)], probe_label(probe)
        hatched = Patch(facecolor=drawing.LINE, edgecolor="white", hatch=_HATCHES[i % len(_HATCHES)], label=label)
        line = Line2D([], [], color=drawing.INK, linestyle="", marker=marker, label=label)
        handles.append(hatched if has_bars else line)
    for i, name in enumerate(series if len(series) > 1 else ()):
        dash = _DASHES[i % len(_DASHES)]
        handles.append(Line2D([], [], color=drawing.INK, linestyle=dash, label=drawing.plain(name or "main", 40)))
    for verified in dict.fromkeys(value.is_verified for value in figure.paper):
        face, label = drawing.INK if verified else "none", paper_label(verified)
        handles.append(
            Line2D(
                [], [], color=drawing.INK, linestyle="", marker="*", markerfacecolor=face, markersize=10, label=label
            )
        )
    return handles


def loss_curves(results: Results, variant: str) -> Picture | None:
    """Loss of every training; pre-training and defences minimise different losses and have a panel each."""
    models = [model for model in results.models if model.run.variant == variant]
    curves = {arm: distinct_losses(model.curves for model in models if model.made == arm) for arm in results.arms}
    panes = [
        (title, arms)
        for title, is_defended in (("Pre-training", False), ("Defence", True))
        if (arms := [arm for arm in curves if bool(arm.defence) == is_defended and curves[arm]])
    ]
    if not panes:
        return None
    figure = Figure(figsize=(max(4.6 * len(panes), 6.4), 3.4), layout="constrained")
    for axes, (title, arms) in zip(drawing.panels(figure, len(panes)), panes, strict=True):
        for arm in arms:
            count = len(curves[arm])
            for number, (epoch, value) in enumerate(curves[arm]):
                label = f"{arm.label} ({count})" if number == 0 else None
                axes.plot(
                    epoch, value, color=drawing.colour_of(arm), linewidth=1.3, alpha=max(0.25, 1 / count), label=label
                )
        axes.set_xlabel("epoch", fontsize=9.5, color=drawing.INK)
        legend = axes.legend(frameon=False, fontsize=9)
        for handle in legend.legend_handles:
            if handle is not None:
                handle.set_alpha(1.0)
        drawing.headed(axes, f"{title} loss")
    caption = (
        "One line an encoder (how many: in brackets), averaged in bins of steps. Losses of different panels are not "
        "comparable."
    )
    return drawing.picture("loss_curves", figure, "Loss curves", caption)


def distinct_losses(tables: Iterable[pa.Table | None]) -> list[_Loss]:
    """(epoch, loss) of every different training, binned; a control that several pairs share counts once."""
    found: dict[bytes, _Loss] = {}
    for table in tables:
        if table is None:
            continue
        keep = table.column("name").to_numpy(zero_copy_only=False) == "loss"
        epoch, value = (table.column(name).to_numpy()[keep] for name in ("epoch", "value"))
        if len(epoch):
            bins = min(MAX_LOSS_POINTS, len(epoch))
            x, y = (np.array([part.mean() for part in np.array_split(one, bins)]) for one in (epoch, value))
            found[value.tobytes()] = (x, y)
    return list(found.values())
