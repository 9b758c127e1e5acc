"""Ours: how far features collapse under ordinary patches, and whether a suspected trigger does more than those.

    T(patch) = mean cosine of distinct images under the patch - the same of the clean images

``collapse`` looks for a patch that stands out by luck, without a suspicion: 200 random patches in four styles (noise,
grid, crop of an image, text) on 1, 2, 5 and 10 % of the area. Its score is how far a T lies above the median of the
patches of its own area, in robust standard deviations, at most: the encoder's own ordinary patches are what it is
measured by, and a large patch, which hides more, counts for no more than a small one. How often a clean encoder scores
as high its siblings tell.

``suspected_trigger`` has a suspicion: its null are 200 patterns of the suspect's own style, in its size and places,
so that "any such patch does this" is part of the null, and p = (1 + #{T >= T(suspect)}) / 201 needs no sibling.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import Field

from ssl_backdoor.errors import SpecError
from ssl_backdoor.specs.detector import Detector, Level
from ssl_backdoor.specs.trigger import TriggerSpec

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ssl_backdoor.detection.inversion import Images
    from ssl_backdoor.detection.pool import Detection, Pool
    from ssl_backdoor.progress import OnProgress

STYLES = ("noise", "grid", "crop", "text")
AREAS = (0.01, 0.02, 0.05, 0.10)
MAD_TO_SD = 1.4826
"""Standard deviations in a median absolute deviation, of a normal distribution."""
NUM_CLUSTERS = 10


class CollapseSpec(Detector):
    """Ordinary patches: does one of them collapse the features far more than the others?"""

    kind: Literal["collapse"] = "collapse"
    level: ClassVar[Level] = "encoder"
    num_patches: int = Field(default=200, ge=16)
    num_images: int = Field(default=250, ge=2)

    @property
    def label(self) -> str:
        """For people."""
        return "ordinary patches"

    @property
    def reduced(self) -> tuple[Self, float]:
        """Few patches."""
        return self.model_copy(update={"num_patches": 16}), self.num_patches / 16

    def detect(self, pool: "Pool", encoder: Path, seed: int, on_progress: "OnProgress") -> "Detection":
        """See ``Detector``."""
        import torch

        from ssl_backdoor.detection import inversion
        from ssl_backdoor.detection.decree import NULL_OF_SIBLINGS
        from ssl_backdoor.detection.pool import Detection
        from ssl_backdoor.methods.losses import mean_pairwise_cosine
        from ssl_backdoor.progress import Progress

        images, model = inversion.split(pool, self.num_images, seed, 2), inversion.Encoder(encoder, pool.device)
        clean = model.features(images.search)
        base, centres = float(mean_pairwise_cosine(clean)), cluster_centres(clean, seed)
        excess, shares = [], []
        for number, stamped in enumerate(stamped_by_patches(images, self.num_patches, seed)):
            found = model.features(stamped)
            excess.append(float(mean_pairwise_cosine(found)) - base)
            shares.append(top_share(found, centres))
            on_progress(Progress(number + 1, self.num_patches, "patches"))
        null = torch.tensor(excess)
        by_style = {style: float(null[at :: len(STYLES)].median()) for at, style in enumerate(STYLES)}
        told = inversion.card(
            images,
            divisor="robust standard deviation of the patches of one area",
            clean_cosine=base,
            null=excess,
            largest_style=STYLES[int(null.argmax()) % len(STYLES)],
            median_by_style=by_style,
            largest_top_share=max(shares),
            clean_top_share=top_share(clean, centres),
        )
        of_areas = (null[area_of(len(null)) == at] for at in range(len(AREAS)))
        return Detection(torch.tensor([max(map(stands_out, of_areas))]), None, NULL_OF_SIBLINGS, 0, told)


class SuspectedTriggerSpec(Detector):
    """A suspected trigger against random ones of its own style, size and places."""

    kind: Literal["suspected_trigger"] = "suspected_trigger"
    level: ClassVar[Level] = "encoder"
    trigger: TriggerSpec
    num_patches: int = Field(default=200, ge=19)
    num_images: int = Field(default=250, ge=2)

    @property
    def label(self) -> str:
        """For people."""
        return f"suspected {self.trigger.label}"

    def detect(self, pool: "Pool", encoder: Path, seed: int, on_progress: "OnProgress") -> "Detection":
        """See ``Detector``."""
        import torch

        from ssl_backdoor.detection import inversion
        from ssl_backdoor.detection.measure import rank_among
        from ssl_backdoor.detection.pool import Detection
        from ssl_backdoor.methods.losses import mean_pairwise_cosine
        from ssl_backdoor.poison.triggers.tensors import apply_to_tensor
        from ssl_backdoor.poison.triggers.unseen import unseen_triggers
        from ssl_backdoor.progress import Progress
        from ssl_backdoor.seeds import sub_seed

        source = self.trigger.read()
        others = unseen_triggers(self.trigger, self.num_patches, seed, source)
        if not others:
            raise SpecError(
                f"{self.trigger.label} has no other patterns of its style to compare it with: use another detector"
            )
        images, model = inversion.split(pool, self.num_images, seed, 2), inversion.Encoder(encoder, pool.device)
        base = float(mean_pairwise_cosine(model.features(images.search)))
        places = [sub_seed(seed, "place", row) for row in range(len(images.search))]
        excess = []
        for number, trigger in enumerate((self.trigger, *others)):
            stamped = apply_to_tensor(trigger, images.search, places, "test", source)
            excess.append(float(mean_pairwise_cosine(model.features(stamped))) - base)
            on_progress(Progress(number + 1, len(others) + 1, "patches"))
        told = inversion.card(images, divisor="none", clean_cosine=base, null=excess[1:])
        p_value = rank_among(excess[0], excess[1:])
        null = "the same encoder under random patterns of the trigger's own style"
        return Detection(
            torch.tensor([excess[0]]), torch.tensor([p_value], dtype=torch.float64), null, len(others), told
        )


def area_of(count: int) -> "Tensor":
    """Which of ``AREAS`` each of ``count`` patches covers, int64 (count,): each style has every area in turn."""
    import torch

    return torch.arange(count) // len(STYLES) % len(AREAS)


def stands_out(values: "Tensor") -> float:
    """How far the largest of ``values`` (N,) lies above their median, in robust standard deviations."""
    median = values.median()
    spread = MAD_TO_SD * (values - median).abs().median()
    return float((values.max() - median) / spread.clamp(min=1e-9))


def cluster_centres(features: "Tensor", seed: int, count: int = NUM_CLUSTERS) -> "Tensor":
    """Unit centres (K, D) of k-means over unit features (N, D), K at most ``count``."""
    import torch
    import torch.nn.functional as F
    from sklearn.cluster import KMeans

    from ssl_backdoor.seeds import sub_seed

    means = KMeans(min(count, len(features)), n_init=5, random_state=sub_seed(seed, "clusters") % 2**32)
    centres = means.fit(features.cpu().double().numpy()).cluster_centers_
    return F.normalize(torch.from_numpy(centres).float().to(features.device), dim=1)


def top_share(features: "Tensor", centres: "Tensor") -> float:
    """Share of unit features (N, D) that are nearest to the one centre that most of them are nearest to."""
    return float((features @ centres.T).argmax(1).bincount().max() / len(features))


def stamped_by_patches(images: "Images", count: int, seed: int) -> "Iterator[Tensor]":
    """The images that are searched on under each of ``count`` patches, styles and areas in turn, anywhere on each.

    A patch has the size of its area in whole pixels, at least one.
    """
    import torch

    from ssl_backdoor.seeds import torch_generator

    side = images.search.shape[-1]
    for number, at in enumerate(area_of(count).tolist()):
        generator = torch_generator(seed, "patch", number)
        area = AREAS[at]
        size = min(side, max(1, round(side * area**0.5)))
        patch = _patch(STYLES[number % len(STYLES)], size, images.held_out, generator).to(images.search.device)
        stamped = images.search.clone()
        corners = torch.randint(0, side - size + 1, (len(stamped), 2), generator=generator).tolist()
        for image, (top, left) in zip(stamped, corners, strict=True):
            image[:, top : top + size, left : left + size] = patch
        yield stamped


def _patch(style: str, size: int, images: "Tensor", generator: "torch.Generator") -> "Tensor":
    """(3, size, size) in [0, 1]."""
    import torch
    import torch.nn.functional as F

    if style == "noise":
        return torch.rand(3, size, size, generator=generator)
    if style == "grid":
        cells = (torch.rand(1, 3, 3, 3, generator=generator) > 0.5).float()
        return F.interpolate(cells, (size, size), mode="nearest")[0]
    if style == "crop":
        row, top, left = (
            int(torch.randint(0, end, (), generator=generator))
            for end in (len(images), *[images.shape[-1] - size + 1] * 2)
        )
        return images[row, :, top : top + size, left : left + size]
    return _text(size, generator)


def _text(size: int, generator: "torch.Generator") -> "Tensor":
    """Two letters in one colour on another, (3, size, size) in [0, 1]."""
    import numpy as np
    import torch
    from PIL import Image, ImageDraw

    letters = "".join(chr(65 + int(torch.randint(0, 26, (), generator=generator))) for _ in range(2))
    page = Image.new("L", (16, 12))
    ImageDraw.Draw(page).text((1, 0), letters, fill=255)
    ink = np.asarray(page.resize((size, size), Image.Resampling.BOX), np.float32) / 255
    dark, bright = torch.rand(2, 3, 1, 1, generator=generator)
    return torch.lerp(dark, bright, torch.from_numpy(ink))
