"""t-SNE of the features of clean and triggered test images."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits

from ssl_backdoor.report.cells import Picture
from ssl_backdoor.report.estimates import Results
from ssl_backdoor.report.figures import drawing
from ssl_backdoor.report.frame import EvaluatedModel
from ssl_backdoor.report.sections.pairs import first_pair
from ssl_backdoor.seeds import sub_seed
from ssl_backdoor.threads import parallel_map


class _Map(NamedTuple):
    places: npt.NDArray[np.float32]
    """(M, 2)."""
    label: npt.NDArray[np.int32]
    triggered: npt.NDArray[np.bool_]


def embedding(results: Results, variant: str) -> Picture | None:
    """The map of the first pair: control, poisoned and defended encoders."""
    shown = [model for model in first_pair(results, variant).values() if model.map_file is not None]
    if not shown:
        return None
    with threadpool_limits(limits=1):  # spinning OpenMP threads on shared cores make this tenfold slower
        maps = list(parallel_map(_mapped, shown, len(shown)))
    figure = Figure(figsize=(4.9 * len(shown), 5.0), layout="constrained")
    grid = drawing.panels(figure, len(shown))
    for axes, model, places in zip(grid, shown, maps, strict=True):
        _draw(axes, model, places)
    handles, labels = grid[0].get_legend_handles_labels()
    columns = min(len(labels), 6)
    drawing.literal(
        figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)
    )
    caption = (
        f"t-SNE of backbone features, first pair ({shown[0].replicate[0].label}), fitted to each encoder apart. Dots: "
        "clean test images by class. Crosses: triggered ones. Only who lies near whom means something; axes and "
        "distances between clusters do not."
    )
    return drawing.picture("embedding", figure, "Map of the features", caption)


def _mapped(model: EvaluatedModel) -> _Map:
    with np.load(str(model.map_file), allow_pickle=False) as file:
        features, label, triggered = (file[name] for name in ("features", "label", "triggered"))
    features = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    state = sub_seed(model.run.seed, "report", "tsne") % 2**32
    perplexity = max(1.0, min(30.0, (len(features) - 1) / 3))
    tsne = TSNE(perplexity=perplexity, init="random", random_state=state)
    return _Map(tsne.fit_transform(features), label, triggered)


def _draw(axes: Axes, model: EvaluatedModel, mapped: _Map) -> None:
    places, label, triggered = mapped
    classes, target = model.classes, model.run.attack.target_class
    few = len(classes) <= len(drawing.CLASS_COLOURS)
    for index in np.unique(label):
        name = classes[index] if 0 <= index < len(classes) else str(index)
        here = (label == index) & ~triggered
        colour = drawing.CLASS_COLOURS[index] if few else "#0072b2" if name == target else "#c3c9ce"
        text = f"{drawing.plain(name)} (target)" if name == target else drawing.plain(name)
        shown = text if few or name == target else None
        axes.scatter(places[here, 0], places[here, 1], s=26, color=colour, alpha=0.75, linewidths=0, label=shown)
    axes.scatter(
        places[triggered, 0], places[triggered, 1], s=11, color="#111111", marker="x", linewidths=0.7, label="triggered"
    )
    axes.grid(visible=False)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_aspect("equal", adjustable="datalim")
    axes.spines[:].set_visible(True)
    axes.spines[:].set_color(drawing.FAINT)
    drawing.headed(axes, model.made.label)
