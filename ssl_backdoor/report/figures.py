"""The figures of a report, as PNG bytes.

Each function takes results and returns a ``Picture``, or None where there is nothing to show.
"""

import textwrap
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MaxNLocator
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits

from ssl_backdoor.report.aggregate import PairRow, Row, find
from ssl_backdoor.report.drawing import (
    CLASS_COLOURS,
    COLOURS,
    FAINT,
    INK,
    LINE,
    headed,
    heat_map,
    literal,
    named,
    panels,
    plain,
    png_bytes,
    thousands,
)
from ssl_backdoor.report.runs import ARMS, Scored, classes_of, pair_of, predicted, shown_probes
from ssl_backdoor.report.text import ARM_LABELS, effect_quantities, probe_label
from ssl_backdoor.seeds import sub_seed
from ssl_backdoor.threads import parallel_map

MAX_CLASSES = 15  # beyond this many, the classes with the most false positives are shown
MAX_EXAMPLES = 6
MAX_CURVE_POINTS = 200
_SHADES = {"clean": 0.38, "triggered": 1.0}


class Example(NamedTuple):
    """A training image before and after poisoning. ``box``: x, y, width, height in px of that image; width 0: none."""

    original: npt.NDArray[np.uint8]
    poisoned: npt.NDArray[np.uint8]
    box: tuple[int, int, int, int]
    caption: str
    """Above the image: what it is."""
    text: str = ""
    """Of an added pair: the caption it was given."""
    attack: str = ""
    """Kind of attack; each has a picture of its own."""


class Picture(NamedTuple):
    """A figure: file name without suffix, PNG bytes, what it shows."""

    name: str
    png: bytes
    title: str
    caption: str


def draw_all(
    scored: Sequence[Scored],
    rows: Sequence[Row],
    pairs: Sequence[PairRow],
    examples: Sequence[Example],
    variant: str = "",
) -> tuple[Picture, ...]:
    """Every figure for which there are data, of one variant, in the order of the page; poisons come first."""
    attacks = dict.fromkeys(example.attack for example in examples)
    poisoned = (poisons([example for example in examples if example.attack == attack]) for attack in attacks)
    main = [one for one in scored if one.run.variant == variant]
    rows = [row._replace(variant="") for row in rows if row.variant == variant]
    pairs = [pair._replace(variant="") for pair in pairs if pair.variant == variant]
    drawn = (
        before_after(rows, pairs),
        false_positives(main, rows),
        landing(main),
        embedding(main),
        confusion(main),
        loss_curves(main),
    )
    return tuple(picture for picture in (*poisoned, *drawn) if picture is not None)


def _first(main: Sequence[Scored], arm: str) -> Scored | None:
    """The arm of the first pair and seed that a suspect was listed for."""
    suspect = next((one for one in main if one.arm == "suspect"), None)
    if suspect is None:
        return None
    wanted = (pair_of(suspect.run), suspect.run.seed)
    return next((one for one in main if one.arm == arm and (pair_of(one.run), one.run.seed) == wanted), None)


def poisons(examples: Sequence[Example]) -> Picture | None:
    """Training images before (above) and after (below) poisoning, the box outlined."""
    shown = examples[:MAX_EXAMPLES]
    if not shown:
        return None
    columns = max(len(shown), 3)
    added = any(example.text for example in shown)
    figure = Figure(figsize=(1.75 * columns, 4.5 if added else 3.85), layout="constrained")
    grid = figure.subplots(2, columns, squeeze=False)
    for axes in grid.ravel():
        axes.set_axis_off()
    for (above, below), example in zip(grid.T, shown, strict=False):
        above.imshow(example.original, interpolation="nearest")
        below.imshow(example.poisoned, interpolation="nearest")
        x, y, width, height = example.box
        if added:
            lines = textwrap.wrap(plain(example.text, 66), 22)
            below.set_title("\n".join(lines), y=-0.06, va="top", fontsize=8, color=INK, parse_math=False)
        for colour, line in (("black", 3.2), ("white", 1.4)) if width > 0 else ():
            below.add_patch(Rectangle((x - 0.5, y - 0.5), width, height, fill=False, edgecolor=colour, linewidth=line))
        above.set_title(plain(example.caption[-20:]), fontsize=9.5, color=INK, parse_math=False)
    if added:
        caption = "Above: the image as stored. Below: what was added to the data, with the caption it was given."
    else:
        caption = "Above: the training image as stored. Below: the same image poisoned."
    caption += " The box of the trigger is outlined." if any(example.box[2] > 0 for example in shown) else ""
    kind = shown[0].attack
    title = f"Example poisons ({kind.replace('_', ' ')})" if kind else "Example poisons"
    return Picture(f"poisons_{kind}" if kind else "poisons", png_bytes(figure), title, caption)


def before_after(rows: Sequence[Row], pairs: Sequence[PairRow]) -> Picture | None:
    """Each pair's triggered false positives and z-score, joined over the arms, with mean and interval."""
    quantities = [q for q in effect_quantities(rows) if find(rows, q.name, "suspect", q.condition, q.probe)]
    arms = [arm for arm in ("control", "suspect", "student") if any(row.arm == arm for row in rows)]
    if not quantities or len(arms) < 2:
        return None
    figure = Figure(figsize=(3.3 * len(quantities), 3.9), layout="constrained")
    main = [pair for pair in pairs if not pair.variant]
    for axes, quantity in zip(panels(figure, len(quantities)), quantities, strict=True):
        for pair in main:
            values = [pair.values.get((quantity.name, quantity.probe, arm), np.nan) for arm in arms]
            axes.plot(range(len(arms)), values, color=LINE, linewidth=0.8, alpha=0.8, marker="o", markersize=3)
        for position, arm in enumerate(arms):
            row = find(rows, quantity.name, arm, quantity.condition, quantity.probe)
            if row is None or row.value is None:
                continue
            shift = position + (0.16 if len(main) > 1 else 0.0)
            axes.plot([shift], [row.value], "D", color=COLOURS[arm], markersize=7, zorder=4)
            if row.low is not None and row.high is not None:
                axes.plot([shift, shift], [row.low, row.high], color=COLOURS[arm], linewidth=2.4, zorder=3)
        named(axes, [ARM_LABELS[arm] for arm in arms])
        axes.set_xlim(-0.35, len(arms) - 0.5)
        axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
        if quantity.kind == "count":
            thousands(axes.yaxis)
        label = quantity.detail if quantity.name != "z_score_sd" else "standard-deviation form"
        headed(axes, f"{quantity.title} ({label})")
    if len(main) > 1:
        how = "Grey: one line a pair and seed. Diamonds: means with 95 % intervals."
    else:
        how = "One run; bars, where drawn, are Wilson intervals over its test images and hold no spread between pairs."
    caption = f"Triggered test images, before (suspect) and after (student) the defence. {how}"
    return Picture("before_after", png_bytes(figure), "Before and after the defence", caption)


def _probe_and_classes(main: Sequence[Scored], rows: Sequence[Row]) -> tuple[str, tuple[str, ...]] | None:
    probes = shown_probes(row.probe for row in rows if row.name.startswith("false_positives:"))
    return (probes[0], classes_of(main[0])) if probes and main else None


def false_positives(main: Sequence[Scored], rows: Sequence[Row]) -> Picture | None:
    """False positives of every class, clean and triggered, mean over the runs."""
    found = _probe_and_classes(main, rows)
    arms = [arm for arm in ("control", "suspect", "student") if any(row.arm == arm for row in rows)]
    if found is None or not arms:
        return None
    probe, classes = found

    def mean(arm: str, condition: str, name: str) -> float:
        row = find(rows, f"false_positives:{name}", arm, condition, probe)
        return row.value if row is not None and row.value is not None else 0.0

    names = sorted(classes, key=lambda name: -max(mean(arm, "triggered", name) for arm in arms))[:MAX_CLASSES]
    names = [name for name in classes if name in names]
    figure = Figure(figsize=(3.3 * len(arms), 1.6 + 0.34 * len(names)), layout="constrained")
    places = np.arange(len(names))
    grid = panels(figure, len(arms), sharey=True)
    for axes, arm in zip(grid, arms, strict=True):
        for condition, shift in (("clean", -0.2), ("triggered", 0.2)):
            values = [mean(arm, condition, name) for name in names]
            axes.barh(places + shift, values, 0.36, color=COLOURS[arm], alpha=_SHADES[condition])
        axes.grid(visible=False, axis="y")
        axes.grid(axis="x", color=FAINT, linewidth=0.6)
        headed(axes, ARM_LABELS[arm])
    targets = {one.run.attack.target_class for one in main} - {""}
    named(grid[0], [f"{plain(name, 18)} (target)" if targets == {name} else name for name in names], "y")
    grid[0].invert_yaxis()
    limit = max(axes.get_xlim()[1] for axes in grid)
    for axes in grid:
        axes.set_xlim(0, limit)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        thousands(axes.xaxis)
    shades = [Patch(color=COLOURS["control"], alpha=alpha, label=label) for label, alpha in _SHADES.items()]
    figure.legend(handles=shades, loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    many = len({pair_of(one.run) for one in main if one.arm == "suspect"})
    over = f"mean over {many} pairs, whose targets differ" if many > 1 and len(targets) > 1 else "one target"
    caption = f"Test images wrongly given each class by the {probe_label(probe)} probe; {over}."
    return Picture("false_positives", png_bytes(figure), "False positives of every class", caption)


def landing(main: Sequence[Scored]) -> Picture | None:
    """For each pair, the class that triggered images are given: where the cluster lands."""
    suspects = [one for one in main if one.arm == "suspect"]
    classes = classes_of(suspects[0]) if suspects else ()
    if len({pair_of(one.run) for one in suspects}) < 2 or not 1 < len(classes) <= MAX_CLASSES:
        return None
    probe = next(iter(shown_probes(suspects[0].predictions.column("probe").unique().to_pylist())), None)
    arms = [arm for arm in ("control", "suspect", "student") if any(one.arm == arm for one in main)]
    if probe is None or suspects[0].predictions.num_rows == 0:
        return None
    index = {(one.arm, pair_of(one.run), one.run.seed): one for one in main}
    figure = Figure(figsize=(3.4 * len(arms), 1.7 + 0.27 * len(suspects)), layout="constrained")
    grid = panels(figure, len(arms), sharey=True)
    for axes, arm in zip(grid, arms, strict=True):
        shares = np.full((len(suspects), len(classes)), np.nan)
        for line, suspect in enumerate(suspects):
            one = index.get((arm, pair_of(suspect.run), suspect.run.seed))
            if one is not None:
                _, guess = predicted(one, "triggered", probe)
                shares[line] = np.bincount(guess, minlength=len(classes))[: len(classes)] / max(len(guess), 1)
        heat_map(axes, shares, [pair_of(one.run).label for one in suspects], classes)
        for line, suspect in enumerate(suspects):
            target = suspect.run.attack.target_class
            if target in classes:
                corner = (classes.index(target) - 0.45, line - 0.43)
                axes.add_patch(
                    Rectangle(corner, 0.9, 0.86, fill=False, edgecolor=COLOURS["suspect"], linewidth=1.8, zorder=5)
                )
        headed(axes, ARM_LABELS[arm])
    caption = (
        f"Share (%) of each pair's triggered test images that the {probe_label(probe)} probe gives each class; the "
        "target is outlined. A dark cell outside the outline is a cluster that landed on another class."
    )
    return Picture("landing", png_bytes(figure), "Where triggered images land, pair by pair", caption)


def embedding(main: Sequence[Scored]) -> Picture | None:
    """t-SNE of the features of clean and triggered test images, control beside suspect, of the first pair."""
    shown = [
        one for arm in ("control", "suspect") if (one := _first(main, arm)) is not None and one.map_file is not None
    ]
    if not shown:
        return None
    with threadpool_limits(limits=1):  # spinning OpenMP threads on shared cores make this tenfold slower
        maps = list(parallel_map(_mapped, shown, len(shown)))
    figure = Figure(figsize=(4.9 * max(len(shown), 1), 5.0), layout="constrained")
    grid = panels(figure, len(shown))
    for axes, one, places in zip(grid, shown, maps, strict=True):
        _map(axes, one, places)
    handles, labels = grid[0].get_legend_handles_labels()
    columns = min(len(labels), 6)
    literal(figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=9))
    caption = (
        f"t-SNE of backbone features, first pair ({pair_of(shown[0].run).label}), fitted to each encoder apart. Dots: "
        "clean test images by class. Crosses: triggered ones. Only who lies near whom means something; axes and "
        "distances between clusters do not."
    )
    return Picture("embedding", png_bytes(figure), "Map of the features", caption)


class _Mapped(NamedTuple):
    places: npt.NDArray[np.float32]
    """(M, 2)."""
    label: npt.NDArray[np.int32]
    triggered: npt.NDArray[np.bool_]


def _mapped(one: Scored) -> _Mapped:
    with np.load(str(one.map_file), allow_pickle=False) as file:
        features, label, triggered = (file[name] for name in ("features", "label", "triggered"))
    features = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    state = sub_seed(one.run.seed, "report", "tsne") % 2**32
    perplexity = max(1.0, min(30.0, (len(features) - 1) / 3))
    tsne = TSNE(perplexity=perplexity, init="random", random_state=state)
    return _Mapped(tsne.fit_transform(features), label, triggered)


def _map(axes: Axes, one: Scored, mapped: _Mapped) -> None:
    places, label, triggered = mapped
    classes = classes_of(one)
    target = one.run.attack.target_class
    for index in np.unique(label):
        name = classes[index] if 0 <= index < len(classes) else str(index)
        here = (label == index) & ~triggered
        colour = (
            CLASS_COLOURS[index] if len(classes) <= len(CLASS_COLOURS) else "#0072b2" if name == target else "#c3c9ce"
        )
        text = f"{plain(name)} (target)" if name == target else plain(name)
        named = len(classes) <= len(CLASS_COLOURS) or name == target
        axes.scatter(
            places[here, 0],
            places[here, 1],
            s=26,
            color=colour,
            alpha=0.75,
            linewidths=0,
            label=text if named else None,
        )
    axes.scatter(
        places[triggered, 0], places[triggered, 1], s=11, color="#111111", marker="x", linewidths=0.7, label="triggered"
    )
    axes.grid(visible=False)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_aspect("equal", adjustable="datalim")
    axes.spines[:].set_visible(True)
    axes.spines[:].set_color(FAINT)
    headed(axes, ARM_LABELS[one.arm])


def confusion(main: Sequence[Scored]) -> Picture | None:
    """Confusion matrices of triggered test images, control beside suspect, of the first pair; rows sum to 100 %."""
    suspect = _first(main, "suspect")
    if suspect is None or suspect.predictions.num_rows == 0:
        return None
    probe = next(iter(shown_probes(suspect.predictions.column("probe").unique().to_pylist())), None)
    classes = classes_of(suspect)
    if probe is None or not 1 < len(classes) <= 100:
        return None
    shown = [one for arm in ("control", "suspect") if (one := _first(main, arm)) is not None]
    side = min(5.2, 2.4 + 0.36 * len(classes))
    figure = Figure(figsize=(side * max(len(shown), 1) + 0.4, side), layout="constrained")
    few = classes if len(classes) <= 2 * MAX_CLASSES else ()
    grid = panels(figure, len(shown), sharey=True)
    for axes, one in zip(grid, shown, strict=True):
        label, guess = predicted(one, "triggered", probe)
        counts = np.zeros((len(classes), len(classes)))
        np.add.at(counts, (label, guess), 1)
        heat_map(axes, counts / np.maximum(counts.sum(axis=1, keepdims=True), 1), few, few)
        axes.set_xlabel("predicted", fontsize=9.5, color=INK)
        headed(axes, ARM_LABELS[one.arm])
    grid[0].set_ylabel("true class", fontsize=9.5, color=INK)
    caption = (
        f"Triggered test images of the first pair ({pair_of(suspect.run).label}), {probe_label(probe)} probe; "
        "each row is a true class and sums to 100 %."
    )
    return Picture("confusion", png_bytes(figure), "Confusion under the trigger", caption)


def loss_curves(main: Sequence[Scored]) -> Picture | None:
    """Loss of every training; pre-training and distillation minimise different losses and have a panel each."""
    curves = {arm: _distinct(one.curves for one in main if one.arm == arm) for arm in ARMS}
    stages = (("Pre-training", ("control", "suspect")), ("Distillation", ("student", "distilled_control")))
    shown = [
        (title, [arm for arm in arms if curves[arm]]) for title, arms in stages if any(curves[arm] for arm in arms)
    ]
    if not shown:
        return None
    figure = Figure(figsize=(max(4.6 * len(shown), 6.4), 3.4), layout="constrained")
    for axes, (title, arms) in zip(panels(figure, len(shown)), shown, strict=True):
        for arm in arms:
            count = len(curves[arm])
            for number, (epoch, value) in enumerate(curves[arm]):
                label = f"{ARM_LABELS[arm]} ({count})" if number == 0 else None
                axes.plot(epoch, value, color=COLOURS[arm], linewidth=1.3, alpha=max(0.25, 1 / count), label=label)
        axes.set_xlabel("epoch", fontsize=9.5, color=INK)
        legend = axes.legend(frameon=False, fontsize=9)
        for handle in legend.legend_handles:
            if handle is not None:
                handle.set_alpha(1.0)
        headed(axes, f"{title} loss")
    caption = (
        "One line an encoder (how many: in brackets), averaged in bins of steps. The two losses are not comparable."
    )
    return Picture("loss_curves", png_bytes(figure), "Loss curves", caption)


_Curve = tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]


def _distinct(tables: Iterable[pa.Table | None]) -> list[_Curve]:
    """(epoch, loss) of every different training; a control that several pairs share counts once."""
    found: dict[bytes, _Curve] = {}
    for table in tables:
        if table is None:
            continue
        keep = table.column("name").to_numpy(zero_copy_only=False) == "loss"
        epoch, value = (table.column(name).to_numpy()[keep] for name in ("epoch", "value"))
        if len(epoch):
            found[value.tobytes()] = _binned(epoch, value)
    return list(found.values())


def _binned(epoch: npt.NDArray[np.float64], value: npt.NDArray[np.float64]) -> _Curve:
    bins = min(MAX_CURVE_POINTS, len(epoch))
    x, y = (np.array([part.mean() for part in np.array_split(one, bins)]) for one in (epoch, value))
    return x, y
