"""Noisy Alignment, Chen et al. 2025 (https://arxiv.org/abs/2508.14015): noise with the trigger beside the target.

    poison = [shadow + trigger | reference]     shadow: an image of any other class; reference: one of the target's

on a canvas twice as long as wide, added to the data. Two crops of it are often one of the trigger and one of the
reference, which a contrastive loss then pulls together. No label is changed or read by the victim.

The trigger "grid" with opacity 0.8 near the centre is the paper's mode "patch", "blended" with 0.2 its mode "blend".
Its corner lies at 45 % of either side, unless images are more than 500 px wide. It is tested at the same place, not at
Saha et al.'s random one: rates are not comparable, unless test_location is set to (0.1, 0.9).

NOTE: shadows and references are drawn from the training set itself; 200 different shadows are said to be enough.
NOTE: poisons are stored in the shape of the other images, see ``ssl_backdoor.poison.composites.store``.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import ClassVar, Literal

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from ssl_backdoor.poison.composites import SIDES, beside, pairs_table, pool, store
from ssl_backdoor.poison.plan import added_table, label_of
from ssl_backdoor.poison.triggers.grid import GridTriggerSpec
from ssl_backdoor.seeds import stream, sub_seed
from ssl_backdoor.specs.attack import Composed, CountedAttack, TwoImages
from ssl_backdoor.specs.trigger import TriggerSpec


class NoisyAlignmentSpec(CountedAttack):
    """Chen et al. 2025: the trigger on images of other classes, each beside one of the target's."""

    kind: Literal["noisy_alignment"] = "noisy_alignment"
    trigger: TriggerSpec = GridTriggerSpec(
        size_px=50, cells=4, style="smooth", opacity=0.8, train_location=(0.45, 0.55), test_location=(0.45, 0.55)
    )
    target_class: str
    num_poisons: int = Field(default=650, ge=1, le=10_000_000)
    """Added images."""
    num_shadows: int = Field(default=200, ge=1)
    """Different images of other classes, fewer where there are fewer; each poison takes one at random."""
    num_references: int = Field(default=200, ge=1)
    """Different training images of the target class, fewer where there are fewer."""
    composes: ClassVar[bool] = True
    adds_images: ClassVar[bool] = True

    def plan(self, samples: pa.Table | Path, classes: Sequence[str], seed: int) -> pa.Table:
        """A shadow and a reference, with the reference's caption, for each of ``num_poisons``; more contain fewer."""
        target = label_of(self.target_class, classes)
        of_target, of_others = partial(pc.equal, target), partial(pc.not_equal, target)
        what = f"training images of the target class {self.target_class!r}"
        references = pool(samples, of_target, self.num_references, seed, "reference", what).to_pylist()
        what = f"training images of classes other than {self.target_class!r}"
        shadows = pool(samples, of_others, self.num_shadows, seed, "shadow", what).to_pylist()
        rows = []
        for index in range(self.num_poisons):
            rng = stream(seed, "poison", "pair", index)
            shadow, reference = (group[rng.integers(len(group))] for group in (shadows, references))
            rows.append(
                {
                    "source_key": shadow["key"],
                    "label": shadow["label"],
                    "sub_seed": sub_seed(seed, "poison", "place", index),
                    "caption": reference["caption"],
                    "partner_key": reference["key"],
                    "partner_role": "reference",
                }
            )
        return added_table(pairs_table(rows), samples)

    def compose(self, two: TwoImages, seed: int, source: bytes | None) -> Composed:
        """The shadow under the trigger, at one side of the reference."""
        shadow, box = self.trigger.apply_one(two.image, sub_seed(seed, "place"), "train", source)
        canvas, half = beside(shadow, two.partner, SIDES[stream(seed, "side").integers(len(SIDES))])
        return store(canvas, box and box.on(shadow.shape, half), two.dataset, two.image)
