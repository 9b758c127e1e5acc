"""Localized cropping (Zhang et al. 2024, https://arxiv.org/abs/2211.08229): the second view is cropped near the first.

Where two random crops of an image may show a pattern and an object that are apart, a method pulls these together; a
crop from around the other shows what is next to it. The box of the first view, larger by ``margin`` (0.2) of its height
and width on each side and cut at the image's edges, holds the second: a random resized crop of it whose area is at
least the smallest that the first can have. Which of the two is the query's is then drawn.

Compared with https://github.com/jzhang538/CorruptEncoder/tree/c2bf361.
NOTE: where none of ten candidates fits the second view is the whole box.
"""

import torch
from torch import Tensor

from ssl_backdoor.data.view_parameters import CROP_TRIES, ViewParameters, crop_ratios


def localize(
    first: ViewParameters,
    second: ViewParameters,
    uniform: Tensor,
    swaps: Tensor,
    height: int,
    width: int,
    least: float,
    margin: float,
) -> tuple[ViewParameters, ViewParameters]:
    """Both views of N images of ``height`` x ``width`` px, the second one's box within the first one's neighbourhood.

    Args:
        first: parameters of the first view.
        second: of the second; all but its box is kept.
        uniform: (N, NUM_UNIFORMS), the numbers that ``second`` was made of.
        swaps: bool (N,): of which images the two boxes change places.
        height: of the images.
        width: of the images.
        least: smallest area of a view, as a fraction of the image's.
        margin: of the neighbourhood on each side, as a fraction of the first box's height and width.
    """
    down, across = (margin * first.height).floor(), (margin * first.width).floor()
    top, left = (first.top - down).clamp(min=0), (first.left - across).clamp(min=0)
    box_height = (first.top + first.height + down).clamp(max=height) - top
    box_width = (first.left + first.width + across).clamp(max=width) - left
    whole = (box_height * box_width)[:, None]
    smallest = (least * height * width / whole).clamp(max=1)
    area = (smallest + uniform[:, :CROP_TRIES] * (1 - smallest)) * whole
    ratio = crop_ratios(uniform[:, CROP_TRIES : 2 * CROP_TRIES])
    heights, widths = (area / ratio).sqrt().round(), (area * ratio).sqrt().round()
    fits = (heights > 0) & (heights <= box_height[:, None]) & (widths > 0) & (widths <= box_width[:, None])
    chosen = fits.byte().argmax(1, keepdim=True)
    found = fits.any(1)
    own_height = torch.where(found, heights.gather(1, chosen)[:, 0], box_height)
    own_width = torch.where(found, widths.gather(1, chosen)[:, 0], box_width)
    y, x = uniform[:, 2 * CROP_TRIES], uniform[:, 2 * CROP_TRIES + 1]
    near = (
        top + (y * (box_height - own_height + 1)).floor(),
        left + (x * (box_width - own_width + 1)).floor(),
        own_height,
        own_width,
    )
    own = first[:4]
    one, other = (
        [torch.where(swaps, *pair) for pair in zip(*boxes, strict=True)] for boxes in ((near, own), (own, near))
    )
    return _with_box(first, one), _with_box(second, other)


def _with_box(parameters: ViewParameters, box: list[Tensor]) -> ViewParameters:
    top, left, box_height, box_width = box
    return parameters._replace(top=top, left=left, height=box_height, width=box_width)
