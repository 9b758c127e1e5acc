"""Yang et al. 2023, "Data Poisoning Attacks Against Multimodal Encoders" (https://arxiv.org/abs/2209.15266).

Attack I of the paper: captions of a text class A get images of an image class B. No image is altered and no trigger is
used: a query for A then finds images of B. Look at ``false_positives:<A>``, clean, under the probe zero_shot: images of
B that the prompts of A are nearest to.

NOTE: the paper's MinRank and Hit@K of a pair of classes are not computed.
NOTE: the images of B are gone through in a seeded order, and again from the start where A has more captions.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import ClassVar, Literal, Self

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, model_validator

from ssl_backdoor.poison.composites import pool
from ssl_backdoor.poison.plan import chosen_rows, label_of, plan_table, training
from ssl_backdoor.specs.attack import Attack, Composed, NumOfClass, PairLabel, TwoImages, num_poisoned
from ssl_backdoor.tables import PARTNERS


class MMPoisonSpec(Attack):
    """Yang et al. 2023: captions of one class with images of another."""

    kind: Literal["mm_poison"] = "mm_poison"
    text_class: str
    """A, whose captions are poisoned."""
    target_class: str
    """B, whose images they get."""
    poison_fraction_of_text_class: float = Field(default=1.0, gt=0.0, le=1.0)
    composes: ClassVar[bool] = True
    reads_captions: ClassVar[bool] = True
    phrase: ClassVar[str] = "under poisoned captions, "

    @model_validator(mode="after")
    def _two_classes(self) -> Self:
        if self.text_class == self.target_class:
            raise ValueError(f"text_class and target_class are both {self.text_class!r}: name two classes")
        return self

    @property
    def label(self) -> str:
        """For people."""
        return f"captions of {self.text_class} -> {self.target_class}"

    @property
    def pair_label(self) -> PairLabel:
        """For people."""
        return PairLabel(self.target_class, f"{self.text_class} / {self.target_class}")

    def num_planned(self, num_of_class: NumOfClass, num_train: int) -> int:
        """Rows of its plan, from counts alone."""
        return num_poisoned(num_of_class(self.text_class), self.poison_fraction_of_text_class)

    def largest(self, target_class: str, num_poisons: int) -> Self:
        """The same on all it can take."""
        both = {"text_class": target_class, "target_class": target_class}  # one class is all that is known there
        return self.model_copy(update=both | {"poison_fraction_of_text_class": 1.0})

    def plan(self, samples: pa.Table | Path, classes: Sequence[str], seed: int) -> pa.Table:
        """Pairs of A, each with the key of an image of B.

        Raises:
            SpecError: a class is unknown.
            DataError: one has no training images.
        """
        text, image = label_of(self.text_class, classes), label_of(self.target_class, classes)
        of_text = partial(pc.equal, text)
        count = num_poisoned(
            sum(block.num_rows for block in training(samples, ["label"], of_text)), self.poison_fraction_of_text_class
        )
        pool(samples, of_text, 1, seed, "caption", f"training images of the class {self.text_class!r}")
        chosen = chosen_rows(training(samples, ["key", "label"], of_text), count, seed, "poison", "choose")
        what = f"training images of the class {self.target_class!r}"
        images = pool(samples, partial(pc.equal, image), count, seed, "image", what)["key"]
        plan = plan_table(chosen, chosen["key"], seed)
        partners = [images[index % len(images)] for index in range(count)]
        columns = [pa.array([one.as_py() for one in partners]), pa.repeat("image", count)]
        return pa.table([*plan.columns, *columns], schema=pa.schema([*plan.schema, *PARTNERS]))

    def compose(self, two: TwoImages, seed: int, source: bytes | None) -> Composed:
        """The image of B, as it is."""
        return Composed(two.partner, None)
