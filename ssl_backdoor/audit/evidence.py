"""Where a recovered trigger leads, and how images fit the encoder: measured on images that were not searched on."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn

from ssl_backdoor.data.dataset import Dataset
from ssl_backdoor.data.resident import Resident, load_resident
from ssl_backdoor.detection import inversion
from ssl_backdoor.detection.decree import DECREESpec
from ssl_backdoor.detection.run import images_of_encoder
from ssl_backdoor.evaluate.zero_shot import class_embeddings
from ssl_backdoor.methods.losses import mean_pairwise_cosine
from ssl_backdoor.train.checkpoint import TEXT_JSON, load_backbone, load_text_tower

NUM_SHOWN = 10
_NEAREST = 10
_NEIGHBOURS = 20
UNDEFINED = "N.E."


class Interface(NamedTuple):
    """Whether a trigger acts through one way of using an encoder."""

    name: str
    triggered: float | None
    """Share of held-out images under the trigger that go one way; None where it is not evaluable."""
    without: float | None
    """The same images without it."""
    detail: str


class Pull(NamedTuple):
    """What the recovered trigger does on held-out images."""

    agreement: float
    """Mean pairwise cosine of their features under it."""
    clean_agreement: float
    share: float
    """Of them, those whose nearest image is among the ten nearest to the target."""
    nearest: tuple[str, ...]
    classes: tuple[str, ...]
    """Of the nearest images; empty where they have none."""
    interfaces: tuple[Interface, ...]
    embedding: Tensor
    """The target: unit mean feature under the trigger, (D,)."""
    pictures: Mapping[str, NDArray[np.uint8]]
    """(N, H, W, 3) each: before, after, mask and pattern, nearest."""

    @property
    def words(self) -> str:
        """For a verdict."""
        towards = f"images such as {self.nearest[0]}"
        if self.classes and (top := max(set(self.classes), key=self.classes.count)):
            towards += f" ({self.classes.count(top)} of the {len(self.classes)} nearest are of {top})"
        return f"it pulls {100 * self.share:.0f} % of held-out images towards {towards}"


def pull_of(
    folder: Path, trigger_file: Path, detector: DECREESpec, dataset: Dataset, seed: int, classes: tuple[str, ...]
) -> Pull:
    """What the trigger in ``trigger_file`` does to the encoder in ``folder`` on the images that it was checked on.

    Args:
        folder: of the encoder.
        trigger_file: trigger.safetensors of the detection.
        detector: which found it, by ``seed``.
        dataset: its test images were searched on and checked on; its training images are what is retrieved.
        seed: of the detection.
        classes: names for zero-shot classification; empty takes the data's.

    Raises:
        DataError: an image cannot be read.
        CheckpointError: the encoder cannot be loaded.
    """
    found = load_file(trigger_file)
    candidate = inversion.Candidate(found["mask"], found["pattern"], 0.0)
    pool, _, _ = images_of_encoder(dataset, seed, "cpu")
    held_out = inversion.split(pool.pool, detector.num_images, seed, 2).held_out
    model, gallery = inversion.Encoder(folder, "cpu"), load_resident(dataset, "train")
    known = model.features(gallery.images.float() / 255)
    before, after = model.features(held_out), model.features(candidate.on(held_out))
    target = F.normalize(after.mean(0), dim=0)
    order = (known @ target).argsort(descending=True)
    near = order[:_NEAREST]
    is_near = torch.zeros(len(known), dtype=torch.bool)
    is_near[near] = True
    share, clean_share = (float(is_near[(one @ known.T).argmax(1)].float().mean()) for one in (after, before))
    names = [dataset.classes[label] for label in gallery.labels[near].tolist() if label >= 0]
    interfaces = (
        *_by_labels(before, after, known, gallery, dataset.classes),
        *_by_text(folder, before, after, classes or dataset.classes),
        Interface("image -> image", share, clean_share, f"nearest image among the {len(near)} nearest to the target"),
    )
    return Pull(
        float(mean_pairwise_cosine(after)),
        float(mean_pairwise_cosine(before)),
        share,
        tuple(gallery.keys[row] for row in near.tolist()),
        tuple(names),
        interfaces,
        target,
        {
            "before": _pixels(held_out[:NUM_SHOWN]),
            "after": _pixels(candidate.on(held_out[:NUM_SHOWN])),
            "trigger": _pixels(torch.stack([candidate.mask.expand(3, -1, -1), candidate.mask * candidate.pattern])),
            "nearest": gallery.images[near].permute(0, 2, 3, 1).numpy(),
        },
    )


def _pixels(images: Tensor) -> NDArray[np.uint8]:
    values: NDArray[np.uint8] = (images * 255).round().byte().permute(0, 2, 3, 1).numpy()
    return values


def _by_labels(
    before: Tensor, after: Tensor, known: Tensor, gallery: Resident, classes: tuple[str, ...]
) -> tuple[Interface, ...]:
    """Nearest neighbours and a linear probe: which class most triggered images go to."""
    from sklearn.linear_model import LogisticRegression

    has_label = gallery.labels >= 0
    labels, known = gallery.labels[has_label], known[has_label]
    if len(set(labels.tolist())) < 2:
        return tuple(Interface(name, None, None, "the images have no classes") for name in ("kNN", "linear probe"))

    def vote(some: Tensor) -> Tensor:
        votes = F.one_hot(labels, len(classes))[(some @ known.T).topk(min(_NEIGHBOURS, len(known)), dim=1).indices]
        return votes.sum(1).argmax(1)

    probe = LogisticRegression(max_iter=300).fit(known.numpy(), labels.numpy())
    predicted = [torch.from_numpy(probe.predict(some.numpy())) for some in (after, before)]
    return (
        _to_one_class("kNN", vote(after), vote(before), classes),
        _to_one_class("linear probe", predicted[0], predicted[1], classes),
    )


def _to_one_class(name: str, after: Tensor, before: Tensor, classes: tuple[str, ...]) -> Interface:
    top = int(after.bincount().argmax())
    share, clean_share = (float((one == top).float().mean()) for one in (after, before))
    return Interface(name, share, clean_share, f"taken for {classes[top]}")


def _by_text(folder: Path, before: Tensor, after: Tensor, classes: tuple[str, ...]) -> tuple[Interface, ...]:
    """Zero-shot classification, and retrieval of images by the prompt of the class that most triggered ones go to."""
    names = ("zero-shot", "text -> image")
    if not (folder / TEXT_JSON).is_file():
        return tuple(Interface(name, None, None, "no text tower") for name in names)
    if len(classes) < 2:
        return tuple(Interface(name, None, None, "no classes: give --classes") for name in names)
    texts = class_embeddings(load_text_tower(folder), classes, "simple7")
    first = _to_one_class(names[0], (after @ texts.T).argmax(1), (before @ texts.T).argmax(1), classes)
    top = int((after @ texts.T).argmax(1).bincount().argmax())
    both = torch.cat([after, before]) @ texts[top]
    hits = float((both.topk(min(_NEAREST, len(before))).indices < len(after)).float().mean())
    return (first, Interface(names[1], hits, 0.5, f"triggered ones among the first {_NEAREST} for {classes[top]}"))


def fit_of_images(folder: Path, images: Tensor) -> dict[str, Any]:
    """How ``images``, uint8 (N, 3, S, S), fit the encoder: their mean and deviation, and what its first BatchNorm says.

    ``norm_shift`` is the median over channels of the distance between the mean of what that layer is given and the mean
    that it remembers of training, in its remembered standard deviations; None where there is none.
    """
    from ssl_backdoor.evaluate.features import OfPlainImages

    pixels = images.float() / 255
    backbone = load_backbone(folder)
    layer = next((one for one in backbone.modules() if isinstance(one, nn.BatchNorm2d)), None)
    shift: list[float] = []
    if layer is not None and layer.running_mean is not None and layer.running_var is not None:
        mean, deviation = layer.running_mean, layer.running_var.clamp(min=1e-12).sqrt()

        def look(_: nn.Module, given: tuple[Tensor, ...]) -> None:
            shift.append(float(((given[0].mean((0, 2, 3)) - mean).abs() / deviation).median()))

        layer.register_forward_pre_hook(look)
        with torch.inference_mode():
            OfPlainImages(backbone)(images[:128])
    return {
        "image_mean": [round(value, 3) for value in pixels.mean((0, 2, 3)).tolist()],
        "image_std": [round(value, 3) for value in pixels.std((0, 2, 3)).tolist()],
        "norm_shift": round(shift[0], 3) if shift else None,
    }
