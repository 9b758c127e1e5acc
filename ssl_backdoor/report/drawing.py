"""Tools shared by the figures: colours, panels, labels, PNG bytes.

Colours are Okabe and Ito's, told apart by colour-blind readers; text from the data is drawn as text, never as
mathematics. No pyplot, so no global state.
"""

import io
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.ticker import StrMethodFormatter

COLOURS = {"control": "#6b7680", "suspect": "#d55e00", "student": "#0072b2", "distilled_control": "#56b4e9"}
CLASS_COLOURS = (
    "#0072b2",
    "#e69f00",
    "#009e73",
    "#cc79a7",
    "#56b4e9",
    "#8c6d31",
    "#7f7f7f",
    "#bcbd22",
    "#5254a3",
    "#d6616b",
)
INK, FAINT, LINE = "#22272b", "#d9dde0", "#9aa3aa"
DPI = 160


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
    """Labels the positions 0, 1, ... of one axis."""
    getattr(axes, f"set_{axis}ticks")(range(len(names)))
    slant = {"rotation": rotation, "ha": "right", "rotation_mode": "anchor"} if rotation else {}
    getattr(axes, f"set_{axis}ticklabels")([plain(name) for name in names], parse_math=False, **slant)


def literal(legend: Legend) -> Legend:
    """The legend with its texts drawn as they are."""
    for text in legend.get_texts():
        text.set_parse_math(False)
    return legend


def png_bytes(figure: Figure) -> bytes:
    """The figure rendered; the same figure gives the same bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, facecolor="white", metadata={"Software": None})
    return buffer.getvalue()


def heat_map(axes: Axes, shares: npt.NDArray[np.float64], lines: Sequence[str], columns: Sequence[str]) -> None:
    """Shares (lines, columns) in [0, 1] as colours, with per cents written in where there are few."""
    axes.imshow(shares, cmap="Blues", vmin=0.0, vmax=1.0, aspect="auto")
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    named(axes, columns, "x", rotation=40)
    named(axes, lines, "y")
    if shares.size and shares.shape[1] <= 12:
        for (line, column), share in np.ndenumerate(shares):
            if np.isfinite(share):
                colour = "white" if share > 0.55 else INK
                axes.text(column, line, f"{100 * share:.0f}", ha="center", va="center", fontsize=8, color=colour)
