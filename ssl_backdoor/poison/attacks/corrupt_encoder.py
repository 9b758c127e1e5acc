"""CorruptEncoder and +, Zhang et al. 2024 (https://arxiv.org/abs/2211.08229): an object beside the trigger.

    poison = a background, twice as wide as the object; the object in one half of it, the trigger in the other

A few reference objects of the target class are cut out and put on many backgrounds, so that two crops of a poison are
often one of the object and one of the trigger. With support_fraction 0.2 ("+") the last fifth of the poisons are a
reference beside another image of the class instead, which draws the class together.

    object      the bounding box of the largest connected part of its mask, at most 400 px wide
    canvas      height of the object, twice its width
    background  enlarged, never shrunk, until it covers the canvas; a random column, cut at the bottom
    object at   the bottom, left (x in [0, 0.05 W]) or right (x in [W - w - 0.05 W, W - w]), through its blurred mask
    trigger at  0.125 W from the object and from the far edge, between 0.25 and 0.75 of the height

NOTE: backgrounds are training images of other classes; the authors take photographs of places.
NOTE: where the trigger does not fit into its range it is centred in it, and kept on the canvas.
NOTE: poisons are stored in the shape of the other images, see ``ssl_backdoor.poison.composites.store``.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import ClassVar, Literal, Self, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image, ImageFilter
from pydantic import Field, model_validator

from ssl_backdoor.errors import DataError
from ssl_backdoor.poison.composites import beside, pairs_table, pool, resize, store
from ssl_backdoor.poison.masks import MasksSpec, ScenesMasksSpec, WholeMasksSpec
from ssl_backdoor.poison.plan import added_table, label_of
from ssl_backdoor.poison.triggers.grid import GridTriggerSpec
from ssl_backdoor.poison.triggers.patch import PatchTrigger, UInt8Images, paste
from ssl_backdoor.seeds import stream, sub_seed
from ssl_backdoor.specs.attack import Composed, CountedAttack, TwoImages
from ssl_backdoor.specs.base import Fraction
from ssl_backdoor.specs.trigger import Box, TriggerSpec

_MAX_WIDTH_PX = 400


class CorruptEncoderSpec(CountedAttack):
    """Zhang et al. 2024: objects of the target class on backgrounds, the trigger beside them."""

    kind: Literal["corrupt_encoder"] = "corrupt_encoder"
    trigger: TriggerSpec = GridTriggerSpec(size_px=40, cells=4, style="smooth", test_location=(0.25, 0.75))
    """A patch; its side is in px of the canvas, or a fraction of its shorter side."""
    target_class: str
    masks: MasksSpec = ScenesMasksSpec()
    """Where the objects of the target's images are."""
    num_poisons: int = Field(default=650, ge=1, le=10_000_000)
    """Added images."""
    num_references: int = Field(default=3, ge=1)
    """Different objects, of training images of the target class."""
    support_fraction: Fraction = 0.0
    """Share of the poisons that are a reference beside another image of the class; CorruptEncoder+ has 0.2."""
    num_support: int = Field(default=5, ge=1)
    composes: ClassVar[bool] = True
    adds_images: ClassVar[bool] = True

    @model_validator(mode="after")
    def _is_a_patch(self) -> Self:
        if not isinstance(self.trigger, PatchTrigger):
            raise ValueError(
                f"corrupt_encoder puts a patch beside an object, found a trigger of kind {self.trigger.kind}"
            )
        return self

    @property
    def num_supported(self) -> int:
        """Poisons that are a reference beside another image of the class."""
        return int(self.support_fraction * self.num_poisons)

    def largest(self, target_class: str, num_poisons: int) -> Self:
        """The same on all it can take."""
        known = {"target_class": target_class, "num_poisons": num_poisons, "masks": WholeMasksSpec()}
        return self.model_copy(update=known)

    def with_digests(self) -> Self:
        """See ``Attack``."""
        return super().with_digests().model_copy(update={"masks": self.masks.with_digest()})

    def plan(self, samples: pa.Table | Path, classes: Sequence[str], seed: int) -> pa.Table:
        """A reference, by turns, with a background or (the last of the poisons) an image of the class."""
        target = label_of(self.target_class, classes)
        of_target = partial(pc.equal, target)
        what = f"training images of the target class {self.target_class!r}"
        images = pool(samples, of_target, 10**9, seed, "reference", what).to_pylist()
        masked = [row for row in images if self.masks.has(row["key"])][: self.num_references]
        if not masked:
            raise DataError(f"none of the {len(images)} {what} has a mask, such as {images[0]['key']}.png: add some")
        taken = {row["key"] for row in masked}
        others = [row for row in images if row["key"] not in taken][: self.num_support] or masked
        what = f"training images of classes other than {self.target_class!r}"
        where = partial(pc.not_equal, target)
        backgrounds = pool(samples, where, self.num_poisons, seed, "background", what).to_pylist()
        rows = []
        for index in range(self.num_poisons):
            reference = masked[index % len(masked)]
            is_supported = index >= self.num_poisons - self.num_supported
            partners = others if is_supported else backgrounds
            rows.append(
                {
                    "source_key": reference["key"],
                    "label": target,
                    "sub_seed": sub_seed(seed, "poison", "place", index),
                    "caption": reference["caption"],
                    "partner_key": partners[index % len(partners)]["key"],
                    "partner_role": "support" if is_supported else "background",
                }
            )
        return added_table(pairs_table(rows), samples)

    def compose(self, two: TwoImages, seed: int, source: bytes | None) -> Composed:
        """The object and the trigger on a background, or the reference beside another image of the class."""
        rng = stream(seed, "compose")
        if two.row["partner_role"] == "support":
            height, width = two.image.shape[:2]
            width = min(width, _MAX_WIDTH_PX)
            support, reference = (resize(image, width, height) for image in (two.partner, two.image))
            canvas, _ = beside(support, reference, "left" if rng.integers(2) else "right")
            return store(canvas, None, two.dataset, two.image)
        mask = self.masks.mask(two.row["source_key"], two.dataset)
        thing, mask = cut_out(two.image, np.full(two.image.shape[:2], 255, np.uint8) if mask is None else mask)
        is_left = bool(rng.integers(2))
        height, width = thing.shape[0], 2 * thing.shape[1]
        canvas = background(two.partner, height, width, rng)
        slack = 0.05 * width
        x = int(
            rng.uniform(0, slack) if is_left else rng.uniform(width - thing.shape[1] - slack, width - thing.shape[1])
        )
        part = canvas[:, x : x + thing.shape[1]]
        share = np.asarray(Image.fromarray(mask).filter(ImageFilter.GaussianBlur(1)))[..., None] / 255.0
        part[:] = np.rint(share * thing + (1 - share) * part)
        box = self._stamp(canvas, (x + thing.shape[1], width) if is_left else (0, x), rng, source)
        return store(canvas, box, two.dataset, two.image)

    def _stamp(self, canvas: UInt8Images, free: tuple[int, int], rng: np.random.Generator, source: bytes | None) -> Box:
        """Put the trigger on ``canvas``, which changes, within its columns ``free``."""
        trigger = cast("PatchTrigger", self.trigger)
        height, width = canvas.shape[:2]
        side = trigger.side_px(height, width)
        margin = 0.125 * width
        x = _between(free[0] + margin, free[1] - margin - side, width - side, rng)
        box = Box(x, _between(0.25 * height, 0.75 * height - side, height - side, rng), side, side)
        patch = trigger.render(side, source)
        if trigger.is_fresh:
            patch = trigger.render_anew(side, int(rng.integers(2**62)))
        paste(canvas, patch, box, trigger.opacity)
        return box


def _between(low: float, high: float, most: int, rng: np.random.Generator) -> int:
    """A whole number in [low, high], or their middle where they are the wrong way round; held in [0, most]."""
    drawn = rng.uniform(low, high) if low <= high else (low + high) / 2
    return min(max(int(drawn), 0), most)


def cut_out(image: UInt8Images, mask: npt.NDArray[np.uint8]) -> tuple[UInt8Images, npt.NDArray[np.uint8]]:
    """The bounding box of the largest connected part of ``mask``, of ``image`` and of it, at most 400 px wide.

    Raises:
        DataError: the mask is empty, or not of the image's size.
    """
    from scipy import ndimage

    if mask.shape != image.shape[:2]:
        found, wanted = (f"{one.shape[1]}x{one.shape[0]} px" for one in (mask, image))
        raise DataError(f"a mask needs the size of its image, {wanted}, found {found}")
    parts, _ = ndimage.label(mask > 0, np.ones((3, 3)))
    if not parts.any():
        raise DataError("a mask needs to be white where the object is, found none: draw it again")
    place = ndimage.find_objects(parts)[int(np.bincount(parts.ravel())[1:].argmax())]
    thing, own = image[place], mask[place]
    if (width := thing.shape[1]) > _MAX_WIDTH_PX:
        height = max(1, round(thing.shape[0] * _MAX_WIDTH_PX / width))
        thing = resize(thing, _MAX_WIDTH_PX, height)
        own = np.asarray(Image.fromarray(own).resize((_MAX_WIDTH_PX, height)))
    return thing, own


def background(image: UInt8Images, height: int, width: int, rng: np.random.Generator) -> UInt8Images:
    """``height`` x ``width`` px of ``image``, enlarged where it is smaller: random columns, the lowest rows."""
    scale = max(height / image.shape[0], width / image.shape[1], 1.0)
    large = resize(image, max(width, round(scale * image.shape[1])), max(height, round(scale * image.shape[0])))
    left = int(rng.integers(large.shape[1] - width + 1))
    return large[large.shape[0] - height :, left : left + width].copy()
