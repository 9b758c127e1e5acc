"""The sheet of triggered images beside the clean images nearest to them, as PNG bytes and CSV."""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from ssl_backdoor.report.comparisons import arm_of
from ssl_backdoor.report.drawing import COLOURS, INK, plain, png_bytes
from ssl_backdoor.report.figures import Picture
from ssl_backdoor.report.runs import Scored, classes_of, pair_of
from ssl_backdoor.report.sweep_figures import Drawn
from ssl_backdoor.report.text import arm_label
from ssl_backdoor.specs import TableRow

MAX_QUERIES = 2  # triggered images of each encoder
MAX_SHEETS = 12
_TITLE, _LINE, _COLUMN, _GAP = 0.5, 1.32, 1.12, 0.25  # in thumbnails; the gap is right of the triggered image
_ARRAYS = ("query", "neighbours", "label", "query_label", "cosine")


class _Sheet(NamedTuple):
    label: str
    one: Scored
    arrays: Mapping[str, npt.NDArray[Any]]

    @property
    def title(self) -> str:
        return f"{self.label}, {arm_label(self.one.arm)}, {pair_of(self.one.run).label}"

    @property
    def num_lines(self) -> int:
        return min(len(self.arrays["query"]), MAX_QUERIES)

    def class_of(self, label: int) -> str:
        classes = classes_of(self.one)
        return classes[label] if 0 <= label < len(classes) else str(label)


def neighbours(rows: Sequence[TableRow], scored: Sequence[Scored]) -> Drawn | None:
    """The sheet of the first encoder of each line that has neighbours.npz, or None."""
    sheets: dict[tuple[str, str], _Sheet] = {}
    for row in rows:
        place = (row.variant, arm_of(row))
        first = next((one for one in scored if (one.run.variant, one.arm) == place and one.neighbours), None)
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
        axes.text(0.0, top + 0.3, plain(sheet.title, 70), fontsize=10, color=INK, fontweight="bold", parse_math=False)
        for line in range(sheet.num_lines):
            _draw(axes, sheet, line, top + _TITLE + line * _LINE)
        top += _TITLE + sheet.num_lines * _LINE
    axes.set(xlim=(-0.1, width), ylim=(height, 0.0), aspect="equal")
    axes.set_axis_off()
    caption = (
        "Left: a triggered test image, not of the target class. Right of it: the clean images whose features are "
        "nearest by cosine, each with its class. Framed: images of the attack's target. One encoder a line."
    )
    return Drawn(Picture("neighbours", png_bytes(canvas), "Nearest clean images", caption), _csv(shown))


def _draw(axes: Axes, sheet: _Sheet, line: int, top: float) -> None:
    """One triggered image and its neighbours, each 1 wide, their tops at ``top``, classes below."""
    arrays, target = sheet.arrays, sheet.one.run.attack.target_class
    images = [arrays["query"][line], *arrays["neighbours"][line]]
    labels = [arrays["query_label"][line], *arrays["label"][line]]
    for column, (image, label) in enumerate(zip(images, labels, strict=True)):
        left, name = column * _COLUMN + _GAP * bool(column), sheet.class_of(int(label))
        axes.imshow(image, interpolation="nearest", extent=(left, left + 1, top + 1, top))
        if column and name == target:
            frame = Rectangle((left, top), 1, 1, fill=False, edgecolor=COLOURS["suspect"], linewidth=2.4, clip_on=False)
            axes.add_patch(frame)
        cosine = f" {arrays['cosine'][line, column - 1]:.2f}" if column else ""
        text = f"{plain(name, 11)}{cosine}"
        axes.text(left + 0.5, top + 1.19, text, ha="center", fontsize=7.5, color=INK, parse_math=False)


def _csv(sheets: Sequence[_Sheet]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(("row", "arm", "pair", "seed", "query", "query_class", "rank", "class", "cosine"))
    for sheet in sheets:
        run, arrays = sheet.one.run, sheet.arrays
        place = (sheet.label, sheet.one.arm, pair_of(run).label, run.seed)
        for (query, rank), cosine in np.ndenumerate(arrays["cosine"]):
            names = (
                sheet.class_of(int(arrays["query_label"][query])),
                sheet.class_of(int(arrays["label"][query, rank])),
            )
            writer.writerow((*place, query, names[0], rank + 1, names[1], f"{cosine:.4f}"))
    return out.getvalue()
