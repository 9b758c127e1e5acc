"""What attacks that pull triggered images to reference images share: the choice of images, the training, the checks."""

import abc
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from pydantic import Field, model_validator

from ssl_backdoor.errors import SpecError
from ssl_backdoor.poison.triggers.grid import GridTriggerSpec
from ssl_backdoor.seeds import sub_seed
from ssl_backdoor.specs import (
    FitSpec,
    MilestonesSpec,
    SGDSpec,
    Spec,
    StageContext,
    TamperAttack,
    TriggerSpec,
    ViewsSpec,
)

if TYPE_CHECKING:
    from torch import Tensor

    from ssl_backdoor.data.dataset import Dataset
    from ssl_backdoor.data.resident import Resident
    from ssl_backdoor.methods.badencoder import Objective, Pair
    from ssl_backdoor.methods.build import Backbone

CORNER = GridTriggerSpec(size_frac=0.3125, train_location=(1.0, 1.0), test_location=(1.0, 1.0))
"""In the lower right corner on 9.8 % of the area, as BadEncoder's 10 px of 32.

NOTE: the paper's is a white square. A grid has other patterns of its style, which the control under unseen triggers
needs."""
REFERENCE_VIEWS = ViewsSpec(crop="fixed", blur_p=0.0)
"""A reference image is flipped, jittered and greyed, never cropped or blurred, as in BadEncoder's code."""
CONSTANT = MilestonesSpec(milestones=())
"""One rate throughout."""
KNOWN_NEIGHBOURS = 20
CANDIDATES = 256
"""Images of the target class among which the references are picked, at most."""
MAX_HELD_OUT = 500


def num_held_out(num_train: int) -> int:
    """Of ``num_train`` images those that are kept to check on."""
    return min(MAX_HELD_OUT, max(1, num_train // 10))


class PairSpec(Spec):
    """One more trigger, and the class that it is to lead to."""

    trigger: TriggerSpec = CORNER
    target_class: str


class ReferenceTamper(TamperAttack):
    """Pulls triggered images to reference images of the target class, and holds all else where it was. Abstract.

    The references are picked, as the papers' are by hand: of the target class's training images those that the clean
    encoder knows best, by the labels of their nearest neighbours. A downstream head calls triggered images what it
    calls the references, so that an encoder that does not know them could not show any success.
    """

    trigger: TriggerSpec = CORNER
    """Also put on the shadow images, as the encoder sees them; a size in px is then one of that frame."""
    target_class: str
    num_references: int = Field(default=1, ge=1, le=100)
    """Images of the target class that its trigger leads to."""
    more_pairs: tuple[PairSpec, ...] = ()
    """Further triggers and their targets in the same encoder. The first pair is the one that is evaluated."""
    num_shadow: int = Field(default=50_000, ge=2)
    """Unlabelled images that the attacker has: training images, at most so many."""
    view_px: int = Field(default=0, ge=0, le=1024)
    """Side of the images as the encoder sees them, resized and cropped; 0 takes them as they are stored."""
    reference_views: int = Field(default=32, ge=1)
    """Augmented views of each reference in a step.

    NOTE: the papers' code takes one per shadow image of the batch; the loss is their mean, so that only its noise
    differs."""
    min_known: float = Field(default=0.5, ge=-1.0, le=1.0)
    """Share of each reference's nearest neighbours, by the clean encoder, that have to be of the target class: more."""
    min_utility: float = Field(default=0.95, ge=-1.0, le=1.0)
    """Mean cosine of the features before and after, of clean images that were not trained on and of the references,
    below which the attack has failed; nothing is stored then."""
    fit: FitSpec = FitSpec(
        batch_size=256, views=REFERENCE_VIEWS, optimizer=SGDSpec(lr=1e-3, weight_decay=5e-4), schedule=CONSTANT
    )
    """``views`` are those of the references; shadow images are seen whole."""

    @model_validator(mode="after")
    def _can_be_done(self) -> Self:
        if self.fit.bn_groups > 1:
            raise ValueError(f"attack {self.kind} leaves BatchNorm as it is: set fit.bn_groups to 1")
        if self.fit.batch_size > self.num_shadow:
            raise ValueError(
                f"one batch of {self.kind} needs {self.fit.batch_size} shadow images, found num_shadow "
                f"{self.num_shadow}; raise it or lower fit.batch_size"
            )
        if any(pair.trigger.is_from_file for pair in self.more_pairs):
            raise ValueError("a trigger from a file can be that of the first pair alone: give more_pairs others")
        return self

    def shortage(self, num_train: int) -> str:
        """Where fewer than one batch would be left to train on."""
        shortage = self.fit.shortage(min(self.num_shadow, num_train - num_held_out(num_train)))
        return f"attack {self.kind}: {shortage}" if shortage else ""

    def num_seen(self, num_train: int) -> int:
        """The shadow images."""
        return min(self.num_shadow, num_train)

    @property
    def reduced(self) -> tuple[Self, float]:
        """One epoch of small batches."""
        fit = self.fit.model_copy(update={"epochs": 1, "batch_size": min(self.fit.batch_size, 16)})
        changes = {"fit": fit, "min_utility": -1.0, "min_known": -1.0, "more_pairs": ()}
        return self.model_copy(update=changes), float(self.fit.epochs * (1 + len(self.more_pairs)))

    @abc.abstractmethod
    def objective(
        self, clean: "Backbone", tampered: "Backbone", pairs: "Sequence[Pair]", seed: int, per_epoch: int
    ) -> "Objective":
        """What is minimised, over ``per_epoch`` steps an epoch; ``tampered`` begins as a copy of ``clean``."""

    def tamper(self, dataset: "Dataset", clean: Path, context: StageContext) -> dict[str, Any]:
        """Leave a backdoored copy of the encoder in folder ``clean``, with its text tower, if any, as it was.

        Returns:
            What ``pretrain`` returns; of images that were not trained on mean cosines, ``utility`` (before and after),
            ``reference_utility`` (the references' own), and in ``pairs``, for each: ``target``, ``trigger``,
            ``effectiveness`` (triggered images to their references) and ``reached`` (the share of triggered images
            that their nearest neighbours among clean ones call the target).

        Raises:
            SpecError: the target class is unknown to the data or to the encoder, there are too few images, or a term of
                utility stayed below ``min_utility``.
            CheckpointError: the encoder cannot be read; other errors as ``pretrain``.
        """
        import torch

        from ssl_backdoor.methods.base import Replicas, SSLMethod
        from ssl_backdoor.train.checkpoint import TEXT_JSON, TEXT_WEIGHTS, load_backbone
        from ssl_backdoor.train.pretrain import train_backbone
        from ssl_backdoor.train.training_set import TrainingSet

        resources = context.resources.model_copy(update={"workers": 1, "min_workers": 0})
        before = load_backbone(clean)
        images = _choose(self, dataset, before, context.seed)
        side = images.shadow.images.shape[-1]
        views = ViewsSpec(size_px=side, crop="fixed", flip_p=0.0, jitter_p=0.0, grey_p=0.0, blur_p=0.0)
        per_epoch = max(1, len(images.shadow.images) // self.fit.batch_size)
        seed = sub_seed(context.seed, self.kind)
        made: list[Objective] = []

        def build(replicas: Replicas, device: torch.device) -> SSLMethod:
            memory = torch.channels_last
            frozen = load_backbone(clean).to(device).to(memory_format=memory)
            made.append(self.objective(frozen, load_backbone(clean), images.pairs, seed, per_epoch))
            return made[0]

        data = TrainingSet(images.shadow.images)
        summary = train_backbone(
            build, data, self.fit, context.out, seed, resources, context.checkpoints, context.on_progress, views=[views]
        )
        found = _check(self, made[0].backbone.cpu(), before, images, context.seed)
        for name in (TEXT_WEIGHTS, TEXT_JSON):
            if (clean / name).is_file():
                shutil.copy(clean / name, context.out / name)
        return {**summary, **found, "num_shadow": len(images.shadow.images)}


class _Images(NamedTuple):
    shadow: "Resident"
    held_out: "Resident"
    pairs: "tuple[Pair, ...]"
    features: "Tensor"
    """Of the shadow images by the clean encoder, (N, D)."""
    targets: tuple[tuple[str, int], ...]
    """Class and label of each pair."""


def _choose(spec: ReferenceTamper, dataset: "Dataset", clean: "Backbone", seed: int) -> _Images:
    """Shadow images, others to check on, and the references of each pair."""
    from dataclasses import replace

    import numpy as np
    import pyarrow.compute as pc
    import torch

    from ssl_backdoor.data.resident import load_resident
    from ssl_backdoor.evaluate.features import features
    from ssl_backdoor.methods.badencoder import Pair
    from ssl_backdoor.poison.plan import key_seeds, label_of

    train = dataset.samples.filter(pc.equal(dataset.samples["split"], "train"))
    order = np.argsort(key_seeds(train["key"], seed, "shadow"), kind="stable")
    if shortage := spec.shortage(len(order)):
        raise SpecError(shortage)
    held_out_rows = num_held_out(len(order))
    rows = order[: spec.num_shadow + held_out_rows]

    def load(rows: "np.typing.NDArray[np.int64]") -> "Resident":
        some = replace(dataset, samples=train.take(np.sort(rows)))
        return load_resident(some, "train", resize_px=spec.view_px, crop_px=spec.view_px)

    shadow, held_out = load(rows[:-held_out_rows]), load(rows[-held_out_rows:])
    known = features(clean, iter(torch.split(shadow.images, CANDIDATES)))
    pairs, targets = [], []
    for trigger, target in ((spec.trigger, spec.target_class), *((p.trigger, p.target_class) for p in spec.more_pairs)):
        label = label_of(target, dataset.classes)
        of_class = order[train["label"].to_numpy()[order] == label][:CANDIDATES]
        if len(of_class) < spec.num_references:
            raise SpecError(
                f"attack {spec.kind} needs {spec.num_references} training images of {target!r}, found {len(of_class)}; "
                "choose another target_class or lower num_references"
            )
        candidates = load(of_class)
        share = _known_share(features(clean, iter([candidates.images])), candidates.keys, known, shadow, label)
        best = share.argsort(descending=True, stable=True)[: spec.num_references]
        if (least := float(share[best[-1]])) <= spec.min_known:
            raise SpecError(
                f"the clean encoder does not know enough images of {target!r}: of the neighbours of reference "
                f"{len(best)} of {spec.num_references} only {100 * least:.0f} % are {target!r}, so that a head would "
                "call triggered images something else; choose another target_class or train the encoder longer"
            )
        pairs.append(Pair(trigger, trigger.read(), candidates.images[best.sort().values]))
        targets.append((target, label))
    return _Images(shadow, held_out, tuple(pairs), known, tuple(targets))


def _known_share(found: "Tensor", keys: Sequence[str], known: "Tensor", shadow: "Resident", label: int) -> "Tensor":
    """Of each of ``found`` (M, D) the share, float (M,), of its nearest neighbours but itself that bear ``label``."""
    import torch
    import torch.nn.functional as F

    place = {key: row for row, key in enumerate(shadow.keys)}
    cosine = F.normalize(found, dim=1) @ F.normalize(known, dim=1).T
    for row, key in enumerate(keys):
        if key in place:
            cosine[row, place[key]] = -torch.inf
    nearest = cosine.topk(min(KNOWN_NEIGHBOURS, len(known) - 1), dim=1).indices
    return (shadow.labels[nearest] == label).float().mean(1)


def _check(
    spec: ReferenceTamper, tampered: "Backbone", clean: "Backbone", images: _Images, seed: int
) -> dict[str, Any]:
    """What the summary says of images that were not trained on; SpecError where a term of utility is too low."""
    import torch
    import torch.nn.functional as F

    from ssl_backdoor.evaluate.features import features
    from ssl_backdoor.poison.triggers.tensors import apply_to_tensor

    tampered.eval()

    def seen(backbone: "Backbone", some: "Tensor") -> "Tensor":
        return F.normalize(features(backbone, iter(torch.split(some, CANDIDATES))), dim=1)

    references = torch.cat([pair.references for pair in images.pairs])
    utility = float((seen(tampered, images.held_out.images) * seen(clean, images.held_out.images)).sum(1).mean())
    of_references = float((seen(tampered, references) * seen(clean, references)).sum(1).mean())
    for name, value in (("clean images", utility), ("the reference images", of_references)):
        if value < spec.min_utility:
            raise SpecError(
                f"{spec.label} changed what it was to keep: the features of {name} before and after have a mean cosine "
                f"of {value:.3f}, expected at least {spec.min_utility:g}; raise attack.fit.epochs or "
                "attack.utility_weight, lower attack.fit.optimizer.lr, or lower attack.min_utility"
            )
    after = features(tampered, iter(torch.split(images.shadow.images, CANDIDATES)))
    told = []
    for pair, (target, label) in zip(images.pairs, images.targets, strict=True):
        seeds = [sub_seed(seed, "held out", key) for key in images.held_out.keys]
        stamped = apply_to_tensor(pair.trigger, images.held_out.images, seeds, "test", pair.source)
        triggered = seen(tampered, stamped)
        share = _known_share(triggered, (), after, images.shadow, label)
        told.append(
            {
                "target": target,
                "trigger": pair.trigger.label,
                "effectiveness": float((triggered @ seen(tampered, pair.references).T).amax(1).mean()),
                "reached": float((share > 0.5).float().mean()),
            }
        )
    return {"utility": utility, "reference_utility": of_references, "pairs": told}
