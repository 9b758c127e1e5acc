"""Triggers on torch tensors: the same pixels as on arrays."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ssl_backdoor.specs import Trigger
from ssl_backdoor.specs.trigger import Frame


def apply_to_tensor(
    trigger: Trigger, images: Tensor, seeds: Sequence[int], frame: Frame, source: bytes | None = None
) -> Tensor:
    """``images`` (B, 3, H, W) under ``trigger``, on their device and of their type; they are left as they are.

    uint8, or float in [0, 1], which is rounded to the 256 levels of an image first, so that both give the same pixels.
    ``seeds``, ``frame`` and ``source`` as ``Trigger.apply``.

    Raises:
        SpecError, DataError: as ``Trigger.apply``.
    """
    is_float = images.is_floating_point()
    levels = images.mul(255).round().clamp(0, 255).to(torch.uint8) if is_float else images
    stamped = trigger.apply(levels.permute(0, 2, 3, 1).cpu().numpy(), seeds, frame, source).images
    found = torch.from_numpy(stamped).permute(0, 3, 1, 2).to(images.device)
    return found.to(images.dtype).div(255) if is_float else found
