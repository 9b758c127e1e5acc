"""PoisonedEncoder, Liu et al. 2022 (https://www.usenix.org/conference/usenixsecurity22/presentation/liu-hongbin).

A targeted attack without a trigger: the attacker's own input x' beside random images of the class y' that it is to be
taken for, added to the data. Crops of one such image show x' and the class by turns, and become alike.

NOTE: written from a secondary description: left, right, above and below are equally likely.
NOTE: x' is a labelled test image, and y' drawn among the other classes, as in Carlini & Terzis's targeted poisoning; a
model may have several, a cheaper estimate.
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
from ssl_backdoor.poison.plan import added_table
from ssl_backdoor.poison.targets import choose_targets
from ssl_backdoor.seeds import stream, sub_seed
from ssl_backdoor.specs.attack import (
    Composed,
    TargetedAttack,
    TwoImages,
)


class PoisonedEncoderSpec(TargetedAttack):
    """Liu et al. 2022: a target image beside images of the class that it is to be taken for."""

    kind: Literal["poisoned_encoder"] = "poisoned_encoder"
    num_poisons: int = Field(default=50, ge=1, le=1_000_000)
    """Added images for each (x', y')."""
    num_references: int = Field(default=50, ge=1)
    """Different training images of y', fewer where there are fewer."""
    composes: ClassVar[bool] = True
    adds_images: ClassVar[bool] = True
    phrase: ClassVar[str] = "under targeted poisoning, "

    def plan(self, samples: pa.Table | Path, classes: Sequence[str], seed: int) -> pa.Table:
        """``num_poisons`` images of y', with their captions, for each x'; more contain fewer."""
        rows = []
        for target in choose_targets(samples, classes, self.targets, seed).to_pylist():
            wanted = target["target_label"]
            what = f"training images of the class {classes[wanted]!r}"
            where = partial(pc.equal, wanted)
            references = pool(samples, where, self.num_references, seed, "reference", what).to_pylist()
            for index in range(self.num_poisons):
                rng = stream(seed, "poison", "pair", target["key"], index)
                reference = references[rng.integers(len(references))]
                rows.append(
                    {
                        "source_key": target["key"],
                        "label": target["label"],
                        "sub_seed": sub_seed(seed, "poison", "place", target["key"], index),
                        "caption": reference["caption"],
                        "partner_key": reference["key"],
                        "partner_role": "reference",
                    }
                )
        return added_table(pairs_table(rows), samples)

    def compose(self, two: TwoImages, seed: int, source: bytes | None) -> Composed:
        """X' at one side of the reference."""
        canvas, _ = beside(two.image, two.partner, SIDES[stream(seed, "side").integers(len(SIDES))])
        return store(canvas, None, two.dataset, two.image)
