"""BackdoorIDS (2026), https://arxiv.org/abs/2603.11664: hide more and more of an input, and watch its features jump.

A clean image's features drift as cells of it are hidden; under a trigger they stay at the target until the trigger is
hidden, then jump. With L levels of hidden share, 0 to ``most_hidden``, in equal steps

    z_l = mean over masks of the unit features at level l          s_l = 1 - cos(z_l, z_(l-1))
    score = max s / median s

Cells are hidden in a random order, ``cells`` x ``cells`` over the image and filled with ImageNet's mean colour; what is
hidden stays hidden. All inputs are seen under the same masks, so that they can be exchanged.

NOTE: after the abstract, which says no more than this; levels, masks, cells and the fill are ours. The paper clusters
the features with DBSCAN and counts the clusters; the ratio of steps is continuous, so that inputs can be ranked and
conformal p-values mean something.
NOTE: where features do not move in half of the steps there is no ratio: such an input has no score ("not found").
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field

from ssl_backdoor.detection.inputs import InputDetector

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ssl_backdoor.detection.pool import Pool
    from ssl_backdoor.progress import OnProgress

STILL = 1e-7
"""Cosine distances up to this are rounding."""


class BackdoorIDSSpec(InputDetector):
    """BackdoorIDS: inputs whose features jump as the image is gradually hidden."""

    kind: Literal["backdoor_ids"] = "backdoor_ids"
    num_levels: int = Field(default=16, ge=4, le=100)
    num_masks: int = Field(default=4, ge=1, le=100)
    most_hidden: float = Field(default=0.9, gt=0.0, lt=1.0)
    cells: int = Field(default=8, ge=2, le=64)
    """Along a side; of smaller images a cell is a pixel."""

    @property
    def label(self) -> str:
        """For people."""
        return "BackdoorIDS"

    @property
    def reduced(self) -> tuple[Self, float]:
        """One mask and four levels."""
        passes = 1 + self.num_masks * (self.num_levels - 1)
        return self.model_copy(update={"num_levels": 4, "num_masks": 1}), passes / 4

    @property
    def card(self) -> dict[str, Any]:
        """See ``InputDetector``."""
        return {
            "input_range": "[0, 1]",
            "normalisation": "ImageNet's mean and standard deviation, after hiding; features brought to unit length",
            "divisor": "median step between levels of the same input",
            "fill": "ImageNet's mean colour",
        }

    def score(self, pool: "Pool", encoder: Path, seed: int, on_progress: "OnProgress") -> "Tensor":
        """See ``InputDetector``."""
        import torch

        from ssl_backdoor.detection.inversion import Encoder
        from ssl_backdoor.progress import Progress
        from ssl_backdoor.seeds import torch_generator

        model, done = Encoder(encoder, pool.device), 0
        scores = []
        for part in pool.batches():
            images = part.to(pool.device).float() / 255
            masks = [
                list(self.masks(images.shape[-2], images.shape[-1], torch_generator(seed, "masks", one)))
                for one in range(self.num_masks)
            ]
            levels = [model.features(images)]
            for of_level in zip(*masks, strict=True):
                levels.append(torch.stack([model.features(shown(images, mask)) for mask in of_level]).mean(0))
            scores.append(largest_step(torch.stack(levels)).cpu())
            done += len(part)
            on_progress(Progress(done, len(pool), "inputs"))
        return torch.cat(scores)

    def masks(self, height: int, width: int, generator: "torch.Generator") -> "Iterator[Tensor]":
        """Of each level from the second on: bool (H, W), true where the image is hidden; each covers those before."""
        import torch

        down, across = min(self.cells, height), min(self.cells, width)
        order = torch.randperm(down * across, generator=generator)
        rows, columns = torch.arange(height) * down // height, torch.arange(width) * across // width
        place = order[rows[:, None] * across + columns]
        for level in range(1, self.num_levels):
            yield place < round(self.most_hidden * level / (self.num_levels - 1) * down * across)


def shown(images: "Tensor", mask: "Tensor") -> "Tensor":
    """``images`` (B, 3, H, W) in [0, 1] with the mean colour where ``mask`` (H, W) is true."""
    import torch

    from ssl_backdoor.data.view_parameters import IMAGENET_MEAN

    fill = torch.tensor(IMAGENET_MEAN, device=images.device).view(3, 1, 1)
    return torch.where(mask.to(images.device), fill, images)


def largest_step(levels: "Tensor") -> "Tensor":
    """Of features (L, N, D) by level the largest step over the median one, (N,); NaN where half stand still."""
    import torch.nn.functional as F

    unit = F.normalize(levels.double(), dim=2)
    steps = (1 - (unit[1:] * unit[:-1]).sum(2)).clamp(min=0)
    median = steps.quantile(0.5, dim=0)
    return (steps.amax(0) / median).masked_fill(median <= STILL, float("nan"))
