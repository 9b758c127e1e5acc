"""Curves over an axis, and histograms of similarity, as PNG bytes with the data behind them.

Colour is the arm, dashes the probe, the marker the series; a star is the paper's value, hollow where unverified.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullFormatter, NullLocator, PercentFormatter

from ssl_backdoor.report.aggregate import Row
from ssl_backdoor.report.drawing import COLOURS, INK, headed, literal, panels, plain, png_bytes
from ssl_backdoor.report.figures import Picture
from ssl_backdoor.report.runs import ARMS, Scored
from ssl_backdoor.report.sweep import Curve, Place, axis_of, curves_of
from ssl_backdoor.report.sweep_view import AXIS_LABELS, figure_csv, x_label
from ssl_backdoor.report.text import arm_label, measure_quantity, paper_label, probe_label
from ssl_backdoor.specs import FigureSpec

_DASHES: tuple[Literal["-", "--", ":"], ...] = ("-", "--", ":")
_MARKERS = "os^Dv"
_SHADES = {"clean": "#0072b2", "triggered": "#d55e00"}


class Drawn(NamedTuple):
    """A figure and the data behind it, as CSV."""

    picture: Picture
    data: str


def draw(figure: FigureSpec, rows: Sequence[Row], scored: Sequence[Scored]) -> Drawn | None:
    """The figure, or None where no run holds one of its measures."""
    return _histograms(figure, scored) if figure.axis == "similarity" else _curves(figure, rows)


def _curves(figure: FigureSpec, rows: Sequence[Row]) -> Drawn | None:
    curves = curves_of(figure, rows)
    if not curves:
        return None
    names = list(dict.fromkeys(curve.measure.partition("/")[0] for curve in curves))
    canvas = Figure(figsize=(max(4.7 * len(names), 6.4), 4.6), layout="constrained")
    probes = list(dict.fromkeys(curve.measure.partition("/")[2] for curve in curves))
    series = list(dict.fromkeys(curve.series for curve in curves))
    for axes, name in zip(panels(canvas, len(names)), names, strict=True):
        shown = [curve for curve in curves if curve.measure.partition("/")[0] == name]
        for curve in shown:
            dash = _DASHES[probes.index(curve.measure.partition("/")[2]) % len(_DASHES)]
            _draw(axes, curve, dash, _MARKERS[series.index(curve.series) % len(_MARKERS)])
        _draw_paper(axes, figure, name)
        _finish(axes, figure, name, shown)
    handles = _legend(figure, curves, probes, series)
    literal(canvas.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize=9))
    how = "Bars: 95 % intervals, Wilson over all pairs for targeted success, else t over models."
    if any(value for value in figure.paper if not value.is_verified):
        how += " The paper's value is recalled and unverified, and of other data and another model."
    picture = Picture(figure.name, png_bytes(canvas), figure.title, how)
    return Drawn(picture, figure_csv(figure, rows))


def _draw(axes: Axes, curve: Curve, dash: str, marker: str) -> None:
    colour = COLOURS[curve.arm]
    points = [(x, row) for x, row in curve.points if row.value is not None]
    x, y = [x for x, _ in points], [float(row.value or 0.0) for _, row in points]
    axes.plot(x, y, dash, color=colour, marker=marker, markersize=5.5, linewidth=1.5, zorder=3)
    for place, row in points:
        if row.low is not None and row.high is not None:
            axes.plot([place, place], [row.low, row.high], color=colour, linewidth=1.3, alpha=0.8, zorder=2)


def _draw_paper(axes: Axes, figure: FigureSpec, name: str) -> None:
    for value in figure.paper:
        if value.measure.partition("/")[0] == name:
            face = INK if value.is_verified else "none"
            axes.plot([value.x], [value.value], "*", color=INK, markerfacecolor=face, markersize=11, zorder=4)


def _finish(axes: Axes, figure: FigureSpec, name: str, curves: Sequence[Curve]) -> None:
    """Scales and titles: counts on a logarithmic axis that holds 0, sides of patches on a linear one."""
    axis, quantity = axis_of(figure), measure_quantity(f"{name}/")
    papers = [value.x for value in figure.paper if value.measure.partition("/")[0] == name]
    places = sorted({x for curve in curves for x, _ in curve.points} | set(papers))
    if axis == "num_poisons":
        axes.set_xscale("symlog", linthresh=min((x for x in places if x > 0), default=1.0), linscale=0.5)
        for curve in curves:
            if curve.arm == "control" and curve.points[0].row.value is not None:
                axes.axhline(curve.points[0].row.value, color=COLOURS["control"], linewidth=0.9, alpha=0.5)
    elif axis != "patch_frac":
        axes.set_xscale("log")
    axes.set_xticks(places)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xticklabels([_tick(axis, x) for x in places], rotation=30 if len(places) > 6 else 0)
    axes.set_xlabel(AXIS_LABELS[axis], fontsize=9.5, color=INK)
    if quantity.kind == "percent":
        axes.set_ylim(-0.03, 1.03)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    headed(axes, quantity.title)


def _tick(axis: str, x: float) -> str:
    if axis == "patch_frac":
        return f"{100 * x:.3g}"
    return f"{x / 1e6:.3g} M" if x >= 1e6 else f"{x:,.0f}"


def _legend(figure: FigureSpec, curves: Sequence[Curve], probes: Sequence[str], series: Sequence[str]) -> list[Line2D]:
    arms = [arm for arm in ARMS if any(curve.arm == arm for curve in curves)]
    handles = [Line2D([], [], color=COLOURS[arm], linewidth=2.5, label=arm_label(arm)) for arm in arms]
    if len(probes) > 1:
        handles += [
            Line2D([], [], color=INK, linestyle=_DASHES[i % len(_DASHES)], label=probe_label(probe))
            for i, probe in enumerate(probes)
        ]
    if len(series) > 1:
        handles += [
            Line2D([], [], color=INK, linestyle="", marker=_MARKERS[i % len(_MARKERS)], label=plain(name or "main", 40))
            for i, name in enumerate(series)
        ]
    for label, verified in dict.fromkeys((paper_label(value.is_verified), value.is_verified) for value in figure.paper):
        face = INK if verified else "none"
        handles.append(
            Line2D([], [], color=INK, linestyle="", marker="*", markerfacecolor=face, markersize=10, label=label)
        )
    return handles


# -------------------------------------------------------------------------------------------------- similarity


_Histogram = tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]  # edges (bins + 1,), counts (bins,)


def pooled_histograms(scored: Sequence[Scored]) -> dict[tuple[Place, str], _Histogram]:
    """Pairs by cosine over all encoders of each point, by condition; an encoder of several points counts in the first.

    x is the number of poisons.
    """
    found: dict[tuple[Place, str], _Histogram] = {}
    seen: dict[str, list[pa.Table]] = {}
    for one in scored:
        table = one.similarity
        if table is None or any(table.equals(known) for known in seen.setdefault(one.arm, [])):
            continue
        seen[one.arm].append(table)
        for condition in _SHADES:
            here = table.filter(pc.equal(table["condition"], condition))
            if not here.num_rows:
                continue
            low, high, counts = (here[name].to_numpy() for name in ("low", "high", "num_pairs"))
            key = (Place(one.run.variant, one.arm, one.facts.get("num_poisons", 0.0)), condition)
            before = found.get(key)
            total = counts if before is None else before[1] + counts
            found[key] = (np.append(low, high[-1]), total)
    return found


def _histograms(figure: FigureSpec, scored: Sequence[Scored]) -> Drawn | None:
    found = pooled_histograms([one for one in scored if one.run.attack.kind == figure.attack])
    places = sorted(dict.fromkeys(place for place, _ in found), key=lambda p: (ARMS.index(p.arm), p.series, p.x))
    if not places:
        return None
    several = len({place.series for place in places}) > 1
    canvas = Figure(figsize=(max(3.9 * len(places), 6.4), 4.0), layout="constrained")
    for axes, place in zip(panels(canvas, len(places), sharey=True), places, strict=True):
        for condition, colour in _SHADES.items():
            if (place, condition) in found:
                _histogram(axes, found[place, condition], condition, colour)
        name = arm_label(place.arm, place.series if several else "")
        headed(axes, plain(f"{name}, {x_label('num_poisons', place.x)}", 40))
        axes.set_xlabel("cosine of two test images", fontsize=9.5, color=INK)
        if place.arm == "suspect":
            _paper_lines(axes, figure)
        literal(axes.legend(frameon=False, fontsize=8.5))
    caption = (
        "Share of the distinct pairs of test images, over all models of a panel, by the cosine of their features. "
        "Dashed: means. Stars: the paper's means, unverified, for its own data and model."
        if figure.paper
        else "Share of the distinct pairs of test images, over all models of a panel, by cosine. Dashed: means."
    )
    return Drawn(Picture(figure.name, png_bytes(canvas), figure.title, caption), _histogram_csv(found))


def _histogram(axes: Axes, histogram: _Histogram, condition: str, colour: str) -> None:
    edges, counts = histogram
    total = max(int(counts.sum()), 1)
    mean = float((counts * (edges[:-1] + edges[1:])).sum() / 2 / total)
    axes.stairs(counts / total, edges, fill=True, color=colour, alpha=0.45, label=f"{condition}, mean {mean:.2f}")
    axes.axvline(mean, color=colour, linestyle="--", linewidth=1.4)
    axes.set_xlim(-1.02, 1.02)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))


def _paper_lines(axes: Axes, figure: FigureSpec) -> None:
    for value in figure.paper:
        condition = "triggered" if "triggered" in value.measure else "clean"
        face = _SHADES[condition] if value.is_verified else "none"
        axes.plot(
            [value.value], [0.0], "*", color=_SHADES[condition], markerfacecolor=face, markersize=12, clip_on=False,
            zorder=5, linestyle="", label=f"{condition}, {paper_label(value.is_verified)}: {value.value:.2f}",
        )  # fmt: skip


def _histogram_csv(found: Mapping[tuple[Place, str], _Histogram]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(("series", "arm", "num_poisons", "condition", "low", "high", "num_pairs"))
    for (place, condition), (edges, counts) in found.items():
        for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True):
            writer.writerow((*place, condition, f"{low:.6g}", f"{high:.6g}", int(count)))
    return out.getvalue()
