"""i-CutMix: a query shows parts of two images, and is pulled to both (Lee et al. 2021, https://arxiv.org/abs/2010.08887).

As a defence after PatchSearch's code (Tejankar et al. 2023, https://arxiv.org/abs/2304.01482): a trigger is pasted onto
other images as any patch is, so that it says less of its own. Of a step's batch, with l drawn from (0, 1) uniformly and
replaced by max(l, 1 - l), a box of the area 1 - l, anywhere and cut at the edges, is replaced by the same box of a
partner's view; l is then the area that is left, and the loss of method m becomes

    l m(mixed query, own key) + (1 - l) m(mixed query, partner's key)

NOTE: partners are drawn within a BatchNorm group, so that the number of replicas changes nothing.
"""

import math

import torch
from torch import Tensor

from ssl_backdoor.methods.base import Mix


def cut_mix(
    views: tuple[Tensor, ...], generator: torch.Generator, mix_p: float, batch_size: int, num_groups: int, share: slice
) -> Mix | None:
    """The ``views`` (b, 3, S, S) of one replica, mixed, with a probability of ``mix_p``; else None.

    Partners are of one of ``num_groups`` equal parts of the batch; the replica's ``share`` is whole parts.
    """
    level, y, x, drawn = torch.rand(4, generator=generator, dtype=torch.float64).tolist()
    size = batch_size // num_groups
    places = [torch.randperm(size, generator=generator) + number * size for number in range(num_groups)]
    if drawn >= mix_p:
        return None
    partner = torch.cat(places)[share] - share.start
    height, width = views[0].shape[-2:]
    top, bottom, left, right = box_of(max(level, 1 - level), y, x, height, width)
    partner = partner.to(views[0].device)
    mixed = []
    for view in views:
        one = view.clone()
        one[:, :, top:bottom, left:right] = view[partner, :, top:bottom, left:right]
        mixed.append(one)
    return Mix(tuple(mixed), 1 - (bottom - top) * (right - left) / (height * width), partner)


def box_of(kept: float, y: float, x: float, height: int, width: int) -> tuple[int, int, int, int]:
    """Top, bottom, left and right of a box of the area 1 - ``kept`` around (y, x) in [0, 1), cut at the edges."""
    half = math.sqrt(1 - kept) / 2
    (top, bottom), (left, right) = (
        (max(0, round((at - half) * side)), min(side, round((at + half) * side)))
        for at, side in ((y, height), (x, width))
    )
    return top, bottom, left, right
