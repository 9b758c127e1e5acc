"""Sheets of images: poisons beside their originals, triggered images beside their nearest neighbours."""

import textwrap
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from ssl_backdoor.data.images import decode
from ssl_backdoor.report.cells import Example, Picture, csv_text
from ssl_backdoor.report.comparisons import arm_of
from ssl_backdoor.report.estimates import Results
from ssl_backdoor.report.figures import drawing
from ssl_backdoor.report.frame import SUSPECT, EvaluatedModel
from ssl_backdoor.specs import TableRow

MAX_EXAMPLES = 6
MAX_QUERIES = 2  # triggered images of each encoder
MAX_SHEETS = 12
MAX_TRIGGERS = 10
_MOST_PIXELS = 50_000_000
_TITLE, _LINE, _COLUMN, _GAP = 0.5, 1.32, 1.12, 0.25  # in thumbnails; the gap is right of the triggered image
_ARRAYS = ("query", "neighbours", "label", "query_label", "cosine")


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
        x, y, width, height = example.box or (0, 0, 0, 0)
        if added:
            lines = textwrap.wrap(drawing.plain(example.text, 66), 22)
            below.set_title("\n".join(lines), y=-0.06, va="top", fontsize=8, color=drawing.INK, parse_math=False)
        for colour, line in (("black", 3.2), ("white", 1.4)) if width > 0 else ():
            below.add_patch(Rectangle((x - 0.5, y - 0.5), width, height, fill=False, edgecolor=colour, linewidth=line))
        above.set_title(drawing.plain(example.caption[-20:]), fontsize=9.5, color=drawing.INK, parse_math=False)
    if added:
        caption = "Above: the image as stored. Below: what was added to the data, with the caption it was given."
    else:
        caption = "Above: the training image as stored. Below: the same image poisoned."
    if any(example.box and example.box[2] > 0 for example in shown):
        caption += " The box of the trigger is outlined."
    kind = shown[0].attack
    title = f"Example poisons ({kind.replace('_', ' ')})" if kind else "Example poisons"
    return drawing.picture(f"poisons_{kind}" if kind else "poisons", figure, title, caption)


def trigger_sheet(files: Mapping[str, Path]) -> Picture | None:
    """Each trigger, by a name for people: its PNG or JPEG file."""
    shown = {name: decode(file.read_bytes(), _MOST_PIXELS) for name, file in islice(files.items(), MAX_TRIGGERS)}
    if not shown:
        return None
    columns = max(len(shown), 3)
    figure = Figure(figsize=(1.15 * columns, 1.5), layout="constrained")
    grid = figure.subplots(1, columns, squeeze=False)[0]
    for axes in grid[len(shown) :]:
        axes.set_axis_off()
    for axes, (name, image) in zip(grid, shown.items(), strict=False):
        axes.imshow(image, interpolation="nearest")
        axes.set(xticks=[], yticks=[])
        axes.set_title(drawing.plain(name, 20), fontsize=8, color=drawing.INK, parse_math=False)
    more = f" {len(files) - len(shown)} more are not shown." * (len(files) > len(shown))
    return drawing.picture("triggers", figure, "Triggers", f"The triggers, enlarged.{more}")


class _Sheet(NamedTuple):
    label: str
    model: EvaluatedModel
    arrays: Mapping[str, npt.NDArray[Any]]

    @property
    def title(self) -> str:
        return f"{self.label}, {self.model.made.label}, {self.model.replicate[0].label}"

    @property
    def num_lines(self) -> int:
        return min(len(self.arrays["query"]), MAX_QUERIES)

    def class_of(self, label: int) -> str:
        classes = self.model.classes
        return classes[label] if 0 <= label < len(classes) else str(label)


def neighbours(rows: Sequence[TableRow], results: Results) -> Picture | None:
    """The sheet of the first encoder of each line that has neighbours.npz, or None."""
    sheets: dict[tuple[str, object], _Sheet] = {}
    for row in rows:
        place = (row.variant, arm_of(row, results))
        first = next((m for m in results.models if (m.run.variant, m.made) == place and m.neighbours), None)
        if first is not None and first.neighbours is not None and place not in sheets:
            with np.load(first.neighbours, allow_pickle=False) as file:
                sheets[place] = _Sheet(row.label, first, {name: file[name] for name in _ARRAYS})
    shown = [sheet for sheet in sheets.values() if sheet.num_lines][:MAX_SHEETS]
    if not shown:
        return None
    height = sum(_TITLE + sheet.num_lines * _LINE for sheet in shown)
    width = max(_GAP + _COLUMN * (1 + sheet.arrays["label"].shape[1]) for sheet in shown)
    canvas = Figure(figsize=(1.15 * width, 1.15 * height))
    axes = canvas.add_axes((0.0, 0.0, 1.0, 1.0))
    top = 0.0
    for sheet in shown:
        axes.text(
            0.0,
            top + 0.3,
            drawing.plain(sheet.title, 70),
            fontsize=10,
            color=drawing.INK,
            fontweight="bold",
            parse_math=False,
        )
        for line in range(sheet.num_lines):
            _draw_line(axes, sheet, line, top + _TITLE + line * _LINE)
        top += _TITLE + sheet.num_lines * _LINE
    axes.set(xlim=(-0.1, width), ylim=(height, 0.0), aspect="equal")
    axes.set_axis_off()
    caption = (
        "Left: a triggered test image, not of the target class. Right of it: the clean images whose features are "
        "nearest by cosine, each with its class. Framed: images of the attack's target. One encoder a line."
    )
    return drawing.picture("neighbours", canvas, "Nearest clean images", caption, _csv(shown))


def _draw_line(axes: Axes, sheet: _Sheet, line: int, top: float) -> None:
    """One triggered image and its neighbours, each 1 wide, their tops at ``top``, classes below."""
    arrays, target = sheet.arrays, sheet.model.run.attack.target_class
    images = [arrays["query"][line], *arrays["neighbours"][line]]
    labels = [arrays["query_label"][line], *arrays["label"][line]]
    for column, (image, label) in enumerate(zip(images, labels, strict=True)):
        left, name = column * _COLUMN + _GAP * bool(column), sheet.class_of(int(label))
        axes.imshow(image, interpolation="nearest", extent=(left, left + 1, top + 1, top))
        if column and name == target:
            colour = drawing.colour_of(SUSPECT)
            axes.add_patch(Rectangle((left, top), 1, 1, fill=False, edgecolor=colour, linewidth=2.4, clip_on=False))
        cosine = f" {arrays['cosine'][line, column - 1]:.2f}" if column else ""
        text = f"{drawing.plain(name, 11)}{cosine}"
        axes.text(left + 0.5, top + 1.19, text, ha="center", fontsize=7.5, color=drawing.INK, parse_math=False)


def _csv(sheets: Sequence[_Sheet]) -> str:
    lines = []
    for sheet in sheets:
        model, arrays = sheet.model, sheet.arrays
        for (query, rank), cosine in np.ndenumerate(arrays["cosine"]):
            names = [
                sheet.class_of(int(label)) for label in (arrays["query_label"][query], arrays["label"][query, rank])
            ]
            place = (sheet.label, model.arm, model.replicate[0].label, model.run.seed)
            lines.append((*place, query, names[0], rank + 1, names[1], f"{cosine:.4f}"))
    return csv_text(("row", "arm", "pair", "seed", "query", "query_class", "rank", "class", "cosine"), lines)
