"""The per-layer probes of Jigsaw and RotNet: linear heads on the stem and on each layer of a residual network.

UMBCvision/SSL-Backdoor at 273ca47, jigsaw/eval_conv_linear.py: the map after the stem's ReLU and after each layer is
average-pooled to a square grid, and a linear head learns on all of it (for ResNet-18 at 224 px: 12, 12, 8, 6 and 4 px).
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import isqrt
from typing import NamedTuple, final

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_backdoor.data.dataset import Dataset
from ssl_backdoor.errors import SpecError
from ssl_backdoor.evaluate.features import Condition, Features, labelled, split_features
from ssl_backdoor.evaluate.probes import NamedProbe, labelled_subset, linear_on_map
from ssl_backdoor.evaluate.read import EvaluationInputs
from ssl_backdoor.methods.backbones import ResNet
from ssl_backdoor.progress import OnProgress, Progress
from ssl_backdoor.specs import EvaluationSpec

MAX_DIM = 9216
_MAX_BYTES = 8 << 30


class Reading(NamedTuple):
    """Test features and the probes that read them."""

    test: Features
    probes: Sequence[NamedProbe]


@final
class Layer(nn.Module):
    """``backbone`` up to layer ``index`` (0: its stem), pooled; of the backbone's mode and device."""

    def __init__(self, backbone: ResNet, index: int):
        super().__init__()
        self.backbone = backbone
        self.index = index

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, S, S) to features (B, at most ``MAX_DIM``)."""
        maps: Tensor = F.relu(self.backbone.bn1(self.backbone.conv1(images)))
        if self.index:
            maps = self.backbone.maxpool(maps)
        for layer in range(1, self.index + 1):
            maps = self.backbone.get_submodule(f"layer{layer}")(maps)
        return pooled(maps)


def pooled(maps: Tensor) -> Tensor:
    """Maps (B, C, H, W) to (B, C * side^2), averaged; the largest side <= H and W of C * side^2 <= ``MAX_DIM``."""
    channels, height, width = maps.shape[1:]
    side = max(1, min(isqrt(MAX_DIM // channels), height, width))
    return F.adaptive_avg_pool2d(maps, side).flatten(1)


def layer_readings(inputs: EvaluationInputs) -> Iterator[Reading]:
    """Stem and layers of the backbone in turn, with a probe ``linear_layer{index}_{percent}`` for each label fraction.

    The images are read once more for each layer, so that the
    features of one are held at a time: float32, 8 GiB at most. What is refused is refused before anything is read.

    Raises:
        SpecError: the backbone is not a ResNet, or its features could take more than 8 GiB.
    """
    backbone, dataset, conditions, spec, seed, on_progress = inputs
    if not isinstance(backbone, ResNet):
        raise SpecError(
            "the probe linear_layers reads the layers of a ResNet, and this backbone is of class "
            f"{type(backbone).__name__}: leave linear_layers out of evaluation.probes"
        )
    table = labelled(dataset, "train")
    labels = table["label"].to_numpy()
    subsets = {fraction: labelled_subset(table["key"], labels, fraction, seed) for fraction in spec.label_fractions}
    largest = subsets[max(subsets)]  # the others lie within it
    _check_memory(len(largest) + len(conditions) * labelled(dataset, "test").num_rows)
    return _readings(backbone, dataset, table.take(pa.array(largest)), subsets, conditions, spec, seed, on_progress)


def _readings(
    backbone: ResNet,
    dataset: Dataset,
    train: pa.Table,
    subsets: dict[float, np.ndarray],
    conditions: Sequence[Condition],
    spec: EvaluationSpec,
    seed: int,
    on_progress: OnProgress,
) -> Iterator[Reading]:
    largest = subsets[max(subsets)]
    device = next(backbone.parameters()).device
    for index in range(backbone.num_stages + 1):
        layer, name = Layer(backbone, index), f"linear_layer{index}"
        features = split_features(layer, replace(dataset, samples=train), "train", [Condition("clean")], spec, seed)
        clean, labels = features.values["clean"].to(device), features.labels.to(device)
        named = []
        for fraction, subset in subsets.items():
            rows = torch.from_numpy(np.searchsorted(largest, subset)).to(device)
            # Indexing copies a map of gigabytes; all of it needs none.
            scores = linear_on_map(
                clean if len(rows) == len(clean) else clean[rows], labels[rows], len(dataset.classes), seed, name
            )
            named.append(NamedProbe(f"{name}_{100 * fraction:g}", scores))
        del features, clean
        yield Reading(split_features(layer, dataset, "test", conditions, spec, seed), named)
        on_progress(Progress(index + 1, backbone.num_stages + 1, "layers"))


def _check_memory(num_images: int) -> None:
    needed = 4 * MAX_DIM * num_images
    if needed > _MAX_BYTES:
        raise SpecError(
            f"the probe linear_layers could hold {needed / 2**30:,.1f} GiB of features of {num_images:,} images, over "
            f"the limit of {_MAX_BYTES / 2**30:g} GiB: lower evaluation.label_fractions, or leave it out"
        )
