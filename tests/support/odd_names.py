"""Images and captions under names that a careless program takes for a format, markup, a command or an escape."""

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

ODD_NAMES = (
    "{task_run} {0.__class__} {",
    "100 % %s %(name)d",
    r"$\frac{x}$ $x^",
    "${HOME} $(id) `id`",
    "two\nlines\r\nand a\ttab",
    "\x1b[31mred\x1b[2J\x07",
    "[red] [link=file:x] [b]",
    "<b>&amp;| *a* _b_ #",
)
"""Names of classes, of files with a number behind, and of what captions speak of."""
ODD_NAMES = (*ODD_NAMES, " ".join(ODD_NAMES))


def picture(number: int, rng: np.random.Generator) -> Image.Image:
    """Noise around a grey of its own."""
    grey = 40 + 20 * number
    return Image.fromarray(rng.integers(grey - 30, grey + 30, (16, 16, 3)).astype(np.uint8))


def write_images(folder: Path, classes: Sequence[str] = ODD_NAMES, train: int = 24, test: int = 8) -> Path:
    """``folder/{train,test}/CLASS/NAME.png``."""
    rng = np.random.default_rng(0)
    for split, count in (("train", train), ("test", test)):
        for number, name in enumerate(classes):
            place = folder / split / name
            place.mkdir(parents=True)
            for index in range(count):
                picture(number, rng).save(place / f"{classes[index % len(classes)]} {index}.png")
    return folder


def write_pairs(folder: Path, classes: Sequence[str] = ODD_NAMES, train: int = 24, test: int = 8) -> Path:
    """A table of images, captions and labels; its path."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    rows = []
    for split, count in (("train", train), ("test", test)):
        for number, name in enumerate(classes):
            for index in range(count):
                file = f"{split} {name} {index}.png"
                picture(number, rng).save(folder / file)
                rows.append((file, f"a picture of {name.replace('_', ' ')}, number {index}", name, split))
    with (folder / "pairs.csv").open("w", newline="") as out:
        csv.writer(out).writerows([("filepath", "caption", "label", "split"), *rows])
    return folder / "pairs.csv"
