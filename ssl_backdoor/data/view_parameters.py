"""Parameters of random views: what is done to each image, drawn before a pixel is touched.

``draw_uniform`` draws a table (one row an image) from one generator, ``parameters_of`` says what its rows mean. A
distributed trainer draws for the global batch and keeps its own rows, so the number of replicas does not change a
single view. The distributions are torchvision's: RandomResizedCrop (ratio 3/4 to 4/3), ColorJitter, RandomGrayscale,
GaussianBlur, RandomHorizontalFlip.

NOTE: the blur's kernel always reaches four times the largest sigma, or to the image's far edge (``blur_reach_px``).

Shapes: H x W px in, S = ``size_px`` out; N rows of parameters.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ssl_backdoor.errors import DataError
from ssl_backdoor.specs import ViewsSpec

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
GREY = (0.2989, 0.587, 0.114)
"""Luma weights of torchvision's rgb_to_grayscale."""
CROP_RATIO = (3 / 4, 4 / 3)
CROP_TRIES = 10
"""Candidate boxes before RandomResizedCrop falls back to the central one."""
NUM_UNIFORMS = 2 * CROP_TRIES + 15
"""Uniform numbers that one image consumes, whatever the spec."""
BLUR_SIGMAS = 4
"""Largest standard deviations between the centre and the edge of the blur's kernel."""


class ViewParameters(NamedTuple):
    """What happens to each of N images; every field has N rows."""

    top: Tensor
    """(N,) upper edge of the crop, whole px."""
    left: Tensor
    height: Tensor
    width: Tensor
    flip: Tensor
    """(N,) bool."""
    jitter: Tensor
    """(N,) bool: whether the four colour operators act."""
    brightness: Tensor
    """(N,) factor, 1 changes nothing."""
    contrast: Tensor
    saturation: Tensor
    hue: Tensor
    """(N,) shift in turns of the colour circle, -0.5 to 0.5."""
    rank: Tensor
    """(N, 4) int64: the position, 0 first, at which brightness, contrast, saturation and hue act."""
    grey: Tensor
    """(N,) bool."""
    blur: Tensor
    """(N,) bool."""
    sigma: Tensor
    """(N,) standard deviation of the blur in px of the view."""

    def rows(self, index: slice | Tensor) -> "ViewParameters":
        """The parameters of a part of the batch."""
        return ViewParameters(*(field[index] for field in self))


def draw_uniform(n: int, generator: torch.Generator) -> Tensor:
    """(n, NUM_UNIFORMS) float32 in [0, 1): all that is random in ``n`` views, on the generator's device.

    A CPU generator is the better choice for images on a GPU too: the views are then the same on every device, and
    ``apply`` never waits for the GPU.
    """
    return torch.rand(n, NUM_UNIFORMS, generator=generator, device=generator.device)


@torch.no_grad()
def parameters_of(
    uniform: Tensor, height: int, width: int, spec: ViewsSpec, stretch: Tensor | None = None
) -> ViewParameters:
    """What the rows of ``draw_uniform`` mean for images of ``height`` x ``width`` px.

    ``stretch`` (N,), width over height of each true image over that of the one that is held: random crops are those of
    the true image, so that one held squeezed is seen in its own proportions. None where all are held as they are.

    Raises DataError where a fixed crop does not fit into the images.

    The columns, which are the same whatever the spec, so that switching an operator off shifts no other: 10 crop areas,
    10 crop ratios, crop y, crop x, flip, whether to jitter, brightness, contrast, saturation, hue, 4 sort keys of the
    jitter's order, grey, whether to blur, sigma.
    """
    area, ratio = uniform[:, :CROP_TRIES], uniform[:, CROP_TRIES : 2 * CROP_TRIES]
    y, x, flip, jitter, brightness, contrast, saturation, hue, *order, grey, blur, sigma = uniform[
        :, 2 * CROP_TRIES :
    ].unbind(1)
    if spec.crop == "fixed":
        if spec.size_px > min(height, width):
            raise DataError(
                f"a fixed crop of {spec.size_px} px needs sides at least as long, but the images have {width} x "
                f"{height} px: lower fit.views.size_px or raise dataset.resident_px"
            )
        box_height = box_width = torch.full_like(y, spec.size_px)
    else:
        box_height, box_width = _crop_sizes(area, ratio, height, width, spec.crop_scale, stretch)
    found = box_height > 0
    stretches = [1.0] if stretch is None else stretch.tolist()
    central = torch.tensor([_central_crop(height, width, one) for one in stretches], dtype=y.dtype, device=y.device)
    central_height, central_width = central.unbind(1)
    box_height = torch.where(found, box_height, central_height)
    box_width = torch.where(found, box_width, central_width)
    return ViewParameters(
        top=torch.where(found, (y * (height - box_height + 1)).floor(), (height - central_height) // 2),
        left=torch.where(found, (x * (width - box_width + 1)).floor(), (width - central_width) // 2),
        height=box_height,
        width=box_width,
        flip=flip < spec.flip_p,
        jitter=jitter < spec.jitter_p,
        brightness=_between(brightness, max(0.0, 1 - spec.brightness), 1 + spec.brightness),
        contrast=_between(contrast, max(0.0, 1 - spec.contrast), 1 + spec.contrast),
        saturation=_between(saturation, max(0.0, 1 - spec.saturation), 1 + spec.saturation),
        hue=_between(hue, -spec.hue, spec.hue),
        rank=torch.stack(order, 1).argsort(dim=1),
        grey=grey < spec.grey_p,
        blur=blur < spec.blur_p,
        sigma=_between(sigma, *spec.blur_sigma_px),
    )


def crop_ratios(uniform: Tensor) -> Tensor:
    """Width over height of the candidate boxes that ``uniform`` in [0, 1) stands for."""
    return _between(uniform, math.log(CROP_RATIO[0]), math.log(CROP_RATIO[1])).exp()


def _between(uniform: Tensor, low: float, high: float) -> Tensor:
    return low + uniform * (high - low)


def _crop_sizes(
    area: Tensor, ratio: Tensor, height: int, width: int, scale: tuple[float, float], stretch: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Height and width (N,) of the first of the candidate boxes that fits; 0 where none does."""
    area = _between(area, *scale) * (height * width)
    ratio = crop_ratios(ratio)
    if stretch is not None:
        ratio = ratio / stretch[:, None].to(ratio)
    widths, heights = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
    fits = (widths > 0) & (widths <= width) & (heights > 0) & (heights <= height)
    first = fits.byte().argmax(dim=1, keepdim=True)
    return (heights * fits).gather(1, first)[:, 0], (widths * fits).gather(1, first)[:, 0]


def _central_crop(height: int, width: int, stretch: float = 1.0) -> tuple[int, int]:
    """RandomResizedCrop's fallback: the largest central box whose ratio is allowed."""
    low, high = (ratio / stretch for ratio in CROP_RATIO)
    if width / height < low:
        return round(width / low), width
    if width / height > high:
        return height, round(height * high)
    return height, width


def blur_reach_px(spec: ViewsSpec) -> int:
    """Pixels on either side of the centre of the blur's kernel, whose size is twice this plus one."""
    return min(math.ceil(BLUR_SIGMAS * spec.blur_sigma_px[1]), spec.size_px - 1)
