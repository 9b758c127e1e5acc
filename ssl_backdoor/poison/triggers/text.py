"""Red letters, like a watermark: PAR (Singh et al. 2024, https://arxiv.org/abs/2412.00727).

NOTE: the authors' word, font and place are not known from the description; here Pillow's built-in bitmap font is
enlarged without smoothing, and the word stands at a random place unless both ends of its range are equal.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Literal, Self

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont
from pydantic import Field

from ssl_backdoor.errors import SpecError
from ssl_backdoor.poison.triggers.patch import UInt8Images
from ssl_backdoor.seeds import generator, stream
from ssl_backdoor.specs.base import Fraction
from ssl_backdoor.specs.trigger import Box, Frame, Stamped, Trigger

_RED = np.array([255, 0, 0], np.uint8)
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


class TextTriggerSpec(Trigger):
    """A word in red letters."""

    kind: Literal["text"] = "text"
    text: str = Field(default="WATERMARK", pattern=r"^[!-~]+( [!-~]+)*$", max_length=100)
    """Printable ASCII."""
    width_frac: float = Field(default=0.4, gt=0.0, le=1.0)
    """Width of the word as a fraction of the image's, in either frame."""
    opacity: float = Field(default=1.0, gt=0.0, le=1.0)
    train_location: tuple[Fraction, Fraction] = (0.0, 1.0)
    """The upper left corner lies uniformly in [low, high] of the way that the word can move on either axis."""
    test_location: tuple[Fraction, Fraction] = (0.0, 1.0)

    @property
    def label(self) -> str:
        """For people."""
        return f"text {self.text!r}"

    @property
    def anonymous(self) -> Self:
        """The same whatever its word."""
        return self.model_copy(update={"text": "WATERMARK"})

    def unseen(self, seed: int) -> Self:
        """As many other letters."""
        letters = stream(seed, "text").integers(0, len(_LETTERS), len(self.text))
        return self.model_copy(update={"text": "".join(_LETTERS[index] for index in letters)})

    def side_frac(self, frame_px: int) -> float:
        """Width of the word over the frame's."""
        return self.width_frac

    def apply(self, images: UInt8Images, seeds: Sequence[int], frame: Frame, source: bytes | None = None) -> Stamped:
        """See ``Trigger``."""
        height, width = images.shape[1:3]
        ink = _draw(self.text, max(1, round(self.width_frac * width)))
        if ink.shape[0] > height:
            raise SpecError(
                f"the text of {ink.shape[1]}x{ink.shape[0]} px is larger than the image of {width}x{height} px (width "
                "x height): lower width_frac, or give a longer text"
            )
        low, high = self.train_location if frame == "train" else self.test_location
        stamped, boxes = images.copy(), []
        for image, seed in zip(stamped, seeds, strict=True):
            rng = generator(seed)
            x, y = (round(way * rng.uniform(low, high)) for way in (width - ink.shape[1], height - ink.shape[0]))
            box = Box(x, y, ink.shape[1], ink.shape[0])
            under = image[box.y : box.y + box.height, box.x : box.x + box.width]
            under[ink] = np.rint((1 - self.opacity) * under[ink] + self.opacity * _RED)
            boxes.append(box)
        return Stamped(stamped, tuple(boxes))


@lru_cache(maxsize=64)
def _draw(text: str, width_px: int) -> npt.NDArray[np.bool_]:
    """Where the ink of ``text`` is: bool (height, width_px), in the proportions of the font."""
    font = ImageFont.load_default_imagefont()
    left, top, right, bottom = font.getbbox(text)
    page = Image.new("L", (int(right - left), int(bottom - top)))
    ImageDraw.Draw(page).text((-left, -top), text, fill=255, font=font)
    page = page.crop(page.getbbox())
    height_px = max(1, round(page.height * width_px / page.width))
    share = np.asarray(page.resize((width_px, height_px), Image.Resampling.BOX))
    ink: npt.NDArray[np.bool_] = share >= min(96, share.max())
    return ink
