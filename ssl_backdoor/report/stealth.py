"""How visible a poison is: structural similarity, peak signal-to-noise ratio and the area of the trigger.

SSIM: Wang et al. 2004 (https://doi.org/10.1109/TIP.2003.819861), as scikit-image computes it.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
from skimage import metrics

from ssl_backdoor.data.images import UInt8Image
from ssl_backdoor.errors import DataError

Box = tuple[int, int, int, int] | None
"""x, y, width, height in px of the image; None or width 0: no box."""
_WINDOW_PX = 7
_ssim: Callable[..., float] = metrics.structural_similarity
_psnr: Callable[..., float] = metrics.peak_signal_noise_ratio
_MIN_WINDOW_PX = 3


class Stealth(NamedTuple):
    """Means over ``n`` pairs of an original and its poison, both in the stored frame, the codec's loss included."""

    n: int
    ssim: float | None
    """In [-1, 1], 1 for equal images; None where every image has a side below 3 px."""
    psnr_db: float | None
    """Over the images that changed at all; None where none did."""
    area_frac: float
    """Share of the image's area under the trigger's box, in [0, 1]."""
    num_unchanged: int
    """Pairs of equal images; they have no finite PSNR."""


def stealth(pairs: Iterable[tuple[UInt8Image, UInt8Image, Box]]) -> Stealth | None:
    """Of ``pairs``: original and poison, uint8 (height, width, 3) each, and where the trigger lies; None without any.

    SSIM is that of windows of 7 px a side, or the largest odd side that fits a smaller image. One pair is held at a
    time.

    Raises:
        DataError: an original and its poison differ in size.
    """
    similarity, noise, area = list[float](), list[float](), list[float]()
    num_unchanged = 0
    for original, poison, box in pairs:
        if original.shape != poison.shape:
            raise DataError(
                f"a poison must have the size of its original, {_size(original)}, found {_size(poison)}: "
                "poison the data again"
            )
        height, width = original.shape[:2]
        area.append(box[2] * box[3] / (height * width) if box else 0.0)
        window = min(_WINDOW_PX, height - 1 + height % 2, width - 1 + width % 2)
        if window >= _MIN_WINDOW_PX:
            similarity.append(float(_ssim(original, poison, win_size=window, channel_axis=2, data_range=255)))
        if np.array_equal(original, poison):
            num_unchanged += 1
        else:
            noise.append(float(_psnr(original, poison, data_range=255)))
    if not area:
        return None
    return Stealth(len(area), _mean(similarity), _mean(noise), float(np.mean(area)), num_unchanged)


def _mean(values: list[float]) -> float | None:
    return float(np.mean(values)) if values else None


def _size(image: UInt8Image) -> str:
    return f"{image.shape[1]} x {image.shape[0]} px"
