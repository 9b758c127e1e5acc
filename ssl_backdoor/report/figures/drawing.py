"""Tools shared by the figures: colours, panels, labels, rendering.

Colours are Okabe and Ito's, told apart by colour-blind readers; text from the data is drawn as text, never as
mathematics. No pyplot, so no global state.
"""

import io
from collections.abc import Sequence
from functools import lru_cache

import matplotlib
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.ticker import StrMethodFormatter

from ssl_backdoor.report.cells import Kind, Picture
from ssl_backdoor.report.frame import Arm

_COLOURS = {("clean", False): "#6b7680", ("poisoned", False): "#d55e00", ("poisoned", True): "#0072b2",
            ("clean", True): "#56b4e9"}  # fmt: skip
CLASS_COLOURS = (
    "#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#8c6d31", "#7f7f7f", "#bcbd22", "#5254a3", "#d6616b",
)  # fmt: skip
INK, FAINT, LINE = "#22272b", "#d9dde0", "#9aa3aa"
DPI = 160


def colour_of(arm: Arm) -> str:
    """An arm's colour, the same in every figure; defences share one."""
    return _COLOURS[arm.trained_on, bool(arm.defence)]


@lru_cache(maxsize=4096)
def _drawable(character: str) -> bool:
    font = font_manager.get_font(font_manager.findfont("DejaVu Sans"))
    return character.isprintable() and font.get_char_index(ord(character)) != 0


def plain(text: str, limit: int = 24) -> str:
    """``text`` cut at ``limit`` characters, with "?" for what the font lacks: labels neither fail nor collide."""
    clean = "".join(character if _drawable(character) else "?" for character in text)
    return clean if len(clean) <= limit else clean[: limit - 1] + "…"


def panels(figure: Figure, columns: int, sharey: bool = False) -> list[Axes]:
    """A row of panels with only the left and lower spines."""
    grid = list(figure.subplots(1, columns, squeeze=False, sharey=sharey)[0])
    for axes in grid:
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(LINE)
        axes.tick_params(colors=INK, labelsize=9, length=3, color=LINE)
        axes.grid(axis="y", color=FAINT, linewidth=0.6)
        axes.set_axisbelow(True)
    return grid


def thousands(axis: Axis) -> None:
    """Spells whole counts on ``axis`` as the tables do: 1,500."""
    axis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))


def headed(axes: Axes, text: str) -> None:
    """Sets the panel's title."""
    axes.set_title(text, loc="left", fontsize=10.5, color=INK, fontweight="bold", parse_math=False)


def named(axes: Axes, names: Sequence[str], axis: str = "x", rotation: float = 0) -> None:
    """Labels the positions 0, 1, ... of one axis; a name may have several lines."""
    labels = ["\n".join(plain(line) for line in name.split("\n")) for name in names]
    getattr(axes, f"set_{axis}ticks")(range(len(names)))
    slant = {"rotation": rotation, "ha": "right", "rotation_mode": "anchor"} if rotation else {}
    getattr(axes, f"set_{axis}ticklabels")(labels, parse_math=False, **slant)


def literal(legend: Legend) -> Legend:
    """The legend with its texts drawn as they are."""
    for text in legend.get_texts():
        text.set_parse_math(False)
    return legend


def picture(name: str, figure: Figure, title: str, caption: str, data: str = "") -> Picture:
    """The figure rendered, as pixels and as vectors; the same figure gives the same bytes."""
    png, svg = io.BytesIO(), io.BytesIO()
    figure.savefig(png, format="png", dpi=DPI, facecolor="white", metadata={"Software": None})
    with matplotlib.rc_context({"svg.hashsalt": name}):
        figure.savefig(svg, format="svg", dpi=DPI, facecolor="white", metadata={"Date": None, "Creator": None})
    return Picture(name, png.getvalue(), title, caption, data, svg.getvalue())


def short_number(value: float, kind: Kind) -> str:
    """A number beside an axis."""
    return f"{100 * value:g} %" if kind == "percent" else f"{value:,g}"
