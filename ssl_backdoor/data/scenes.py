"""Drawn images with captions: one striped object on a two-colour gradient with a sine texture and noise.

The class is the object's shape. Its hue and the frequency of the background's texture lean with the class, since
self-supervised learning on so few images does not pick up shape alone (measured: linear probe 53 % without, 81 % with).
Every scene is drawn from its own named stream, so neither the count nor the order of the others changes it.
"""

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ssl_backdoor.data.images import UInt8Image
from ssl_backdoor.data.items import Found, Item
from ssl_backdoor.seeds import stream
from ssl_backdoor.specs import ScenesSourceSpec

Floats = npt.NDArray[np.floating[Any]]

# Shape: hue of the object (turns), cycles of the background's texture over the image's side.
SHAPES: dict[str, tuple[float, float]] = {
    "disc": (0.0, 2.0),
    "square": (0.2, 4.0),
    "triangle": (0.4, 6.0),
    "cross": (0.6, 8.0),
    "ring": (0.8, 11.0),
    "diamond": (0.1, 5.0),
    "star": (0.3, 3.0),
    "hexagon": (0.5, 9.5),
    "crescent": (0.7, 7.0),
    "dome": (0.9, 13.0),
}
_HUE_SD = 0.09
_CYCLES_SD = 1.0
_NOISE = 0.14  # levels of noise on either side, as a share of 128
_BATCH_PIXELS = 2**17  # drawn at once

_COLOURS = ("red", "orange", "yellow", "green", "teal", "blue", "purple", "pink")
_COLOUR_STARTS = np.array(
    [0.03, 0.11, 0.2, 0.43, 0.53, 0.7, 0.82, 0.95]
)  # turns; each colour ends where the next starts
_STRIPES = ("broad", "even", "narrow")
_TEXTURES = ("rolling", "wavy", "rippled", "ribbed", "finely lined")
_TEXTURE_STARTS = np.array([3.0, 5.0, 7.0, 9.5])  # cycles
_TEMPLATES = (
    "a {colour} {shape} with {stripes} stripes on a {texture} {ground} background",
    "a photo of a striped {colour} {shape} in front of a {texture} {ground} wall",
    "a picture of one {colour} {shape}, {stripes} stripes, {ground} backdrop",
    "the {shape} is {colour} and lies on {texture} {ground} paper",
    "{texture} {ground} cloth with a {colour} {shape} on it",
    "a {shape} painted in {colour} with {stripes} stripes, seen against {ground}",
    "a drawing of a {colour} {shape} over a {texture} pattern in {ground}",
    "here is a {stripes}-striped {colour} {shape}, the background is {ground} and {texture}",
)


class _Scenes(NamedTuple):
    """n scenes of one shape: ``uniform`` (n, 20) and ``normal`` (n, 2) draws, ``noise`` (n, side, side, 3)."""

    shape: str
    uniform: Floats
    normal: Floats
    noise: UInt8Image
    hue_lean: float

    @property
    def hue(self) -> Floats:
        """Of the object, in turns."""
        leaning = SHAPES[self.shape][0] + _HUE_SD * self.normal[:, 0]
        hue: Floats = np.where(self.uniform[:, 0] < self.hue_lean, leaning, self.uniform[:, 1]).astype(np.float32)
        return hue % 1

    @property
    def cycles(self) -> Floats:
        """Of the background's texture, over the image's side."""
        cycles: Floats = np.maximum(SHAPES[self.shape][1] + _CYCLES_SD * self.normal[:, 1], 0.5)
        return cycles.astype(np.float32)

    def between(self, column: int, low: float, high: float) -> Floats:
        """A uniform parameter, shaped (n, 1, 1) to meet the pixels."""
        values = np.float32(low) + np.float32(high - low) * self.uniform[:, column]
        return values.reshape(-1, 1, 1)


def _rgb(hue: Floats, saturation: Floats, value: Floats) -> Floats:
    """Colours (n, 1, 1, 3) in [0, 1] from n of each."""
    turns = (hue.reshape(-1, 1) + np.array([0, 2 / 3, 1 / 3], np.float32)) % 1.0
    pure = np.clip(np.abs(turns * 6 - 3) - 1, 0, 1)
    colours: Floats = value.reshape(-1, 1) * (1 - saturation.reshape(-1, 1) * (1 - pure))
    return colours.astype(np.float32)[:, None, None, :]


def _outside(shape: str, x: Floats, y: Floats) -> Floats:
    """Signed distance (about) to the outline of a shape of radius one; negative inside."""
    radius = np.hypot(x, y)
    distance: Floats
    match shape:
        case "disc":
            distance = radius - 0.95
        case "square":
            distance = np.maximum(abs(x), abs(y)) - 0.8
        case "triangle":
            distance = np.maximum(abs(x) * 0.866 + y * -0.5, y) - 0.5
        case "cross":
            distance = np.minimum(np.maximum(abs(x) - 0.3, abs(y) - 1), np.maximum(abs(y) - 0.3, abs(x) - 1))
        case "ring":
            distance = abs(radius - 0.75) - 0.25
        case "diamond":
            distance = abs(x) * 0.8 + abs(y) * 0.6 - 0.65
        case "star":
            distance = radius - 0.65 - 0.3 * np.cos(5 * np.arctan2(x, y))
        case "hexagon":
            distance = np.maximum(abs(x) * 0.866 + abs(y) * 0.5, abs(y)) - 0.8
        case "crescent":
            distance = np.maximum(radius - 1, 0.8 - np.hypot(x - 0.5, y))
        case "dome":
            distance = np.maximum(radius - 1, y - 0.1)
        case _:
            raise ValueError(f"no such shape: {shape}")
    return distance


def _axes(side: int) -> tuple[Floats, Floats]:
    """X and y of the pixels in [-1, 1], shaped to meet the scenes."""
    axis = ((np.arange(side, dtype=np.float32) + 0.5) * 2 / side - 1).astype(np.float32)
    return axis[None, None, :], axis[None, :, None]


def _place(scenes: _Scenes, side: int) -> tuple[Floats, Floats, Floats]:
    """The pixels in the objects' own coordinates, right and down, and how far inside they are, in [0, 1]: (n, H, W)."""
    (x, y), between = _axes(side), scenes.between
    size, angle = between(12, 0.42, 0.68), between(13, -0.3, 0.3)
    right, down = x - between(14, -0.28, 0.28), y - between(15, -0.28, 0.28)
    right, down = (
        (right * np.cos(angle) + down * np.sin(angle)) / size,
        (down * np.cos(angle) - right * np.sin(angle)) / size,
    )
    return right, down, (0.5 - _outside(scenes.shape, right, down) * size * (side / 2)).clip(0, 1)


def draw_mask(spec: ScenesSourceSpec, split: str, shape: str, index: int) -> Floats:
    """How far each pixel of a scene lies inside its object, in [0, 1]: (side, side)."""
    rng = stream(spec.seed, "scene", split, shape, index)
    rng.integers(2**31)
    uniform = rng.random((1, 20), dtype=np.float32)
    no_colour, no_noise = np.empty((1, 0), np.float32), np.empty((1, 0, 0, 3), np.uint8)
    inside: Floats = _place(_Scenes(shape, uniform, no_colour, no_noise, spec.hue_lean), spec.side_px)[2][0]
    return inside


def _draw(scenes: _Scenes) -> UInt8Image:
    """The n scenes as uint8 (n, side, side, 3)."""
    side = scenes.noise.shape[1]
    x, y = _axes(side)
    between = scenes.between

    # background: a gradient between two colours, a sine over it
    angle = between(2, 0, 2 * np.pi)
    mix = (0.5 + 0.35 * (x * np.cos(angle) + y * np.sin(angle)))[..., None].clip(0, 1)
    colours = [
        _rgb(scenes.uniform[:, hue], between(saturation, 0.15, 0.5), between(value, 0.3, 0.85))
        for hue, saturation, value in ((3, 4, 5), (6, 7, 8))
    ]
    angle = between(9, 0, np.pi)
    wave = np.sin(
        np.pi * scenes.cycles[:, None, None] * (x * np.cos(angle) + y * np.sin(angle)) + between(10, 0, 2 * np.pi)
    )
    image = colours[0] + mix * (colours[1] - colours[0]) + (between(11, 0.1, 0.2) * wave)[..., None]

    # the object: moved, turned, scaled, striped
    right, down, inside = _place(scenes, side)
    angle = between(16, 0, np.pi)
    stripes = np.sin(between(17, 5, 14) * (right * np.cos(angle) + down * np.sin(angle))) > 0
    shade = np.where(stripes, np.float32(1.0), np.float32(0.6))[..., None]
    colour = _rgb(scenes.hue, between(18, 0.65, 1.0), between(19, 0.65, 1.0))
    image += inside[..., None] * (shade * colour - image)

    image = image * np.float32(255) + (scenes.noise * np.float32(_NOISE) + np.float32(0.5 - 127.5 * _NOISE))
    pixels: UInt8Image = image.clip(0, 255).astype(np.uint8)
    return pixels


def _colour(hue: float) -> str:
    return _COLOURS[int(np.searchsorted(_COLOUR_STARTS, hue % 1.0, "right")) % len(_COLOURS)]


def _captions(scenes: _Scenes, choices: npt.NDArray[np.int64]) -> Iterator[str]:
    """A sentence a scene that names what was drawn; ``choices`` (n,) picks the template."""
    for row, hue, cycles, choice in zip(scenes.uniform, scenes.hue, scenes.cycles, choices, strict=True):
        caption = _TEMPLATES[int(choice) % len(_TEMPLATES)].format(
            shape=scenes.shape,
            colour=_colour(float(hue)),
            stripes=_STRIPES[int(row[17] * 3)],
            texture=_TEXTURES[int(np.searchsorted(_TEXTURE_STARTS, cycles, "right"))],
            ground=f"{'pale' if row[5] > 0.5 else 'dark'} {_colour(float(row[3]))}",
        )
        yield re.sub(r"\ba (?=[aeiou])", "an ", caption)


class Scenes:
    """The scenes of a spec: classes in alphabetical order, numbered within class and split."""

    def __init__(self, spec: ScenesSourceSpec) -> None:
        self.found = Found("drawn scenes")
        self._spec = spec
        self._groups = [
            (split, shape, count)
            for split, count in (("test", spec.test_per_class), ("train", spec.train_per_class))
            for shape in sorted(list(SHAPES)[: spec.num_classes])
        ]

    def listing(self) -> Iterator[Item]:
        """See ``Source``."""
        for split, shape, count in self._groups:
            yield from (Item(f"{split}/{shape}/{index:06d}", split, shape) for index in range(count))

    def read(self, keep: Iterator[bool]) -> Iterator[Item]:
        """See ``Source``."""
        step = max(1, _BATCH_PIXELS // self._spec.side_px**2)
        for split, shape, count in self._groups:
            for start in range(0, count, step):
                chosen = [index for index in range(start, min(start + step, count)) if next(keep, False)]
                if chosen:
                    yield from self._scenes(split, shape, chosen)

    def _scenes(self, split: str, shape: str, indices: list[int]) -> Iterator[Item]:
        side = self._spec.side_px
        uniform = np.empty((len(indices), 20), np.float32)
        normal = np.empty((len(indices), 2), np.float32)
        noise = np.empty((len(indices), side, side, 3), np.uint8)
        choices = np.empty(len(indices), np.int64)
        for row, index in enumerate(indices):
            rng = stream(self._spec.seed, "scene", split, shape, index)
            choices[row] = rng.integers(2**31)
            rng.random(out=uniform[row], dtype=np.float32)
            rng.standard_normal(out=normal[row], dtype=np.float32)
            noise[row] = rng.integers(256, size=noise[row].shape, dtype=np.uint8)
        scenes = _Scenes(shape, uniform, normal, noise, self._spec.hue_lean)
        captions = _captions(scenes, choices)
        for index, image, caption in zip(indices, _draw(scenes), captions, strict=True):
            yield Item(f"{split}/{shape}/{index:06d}", split, shape, caption, image)
