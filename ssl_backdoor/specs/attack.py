"""Who is poisoned, with what.

An attack and a trigger answer for themselves: what other code wants to know of them (trigger, target, names for people,
number of poisons, cost) is an attribute here, so that nobody else compares kinds. What is a field of some attacks is a
constant of the others. Papers' own attacks lie in ``ssl_backdoor/poison/attacks``, one file each.
"""

import abc
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple, Self

from pydantic import Field

from ssl_backdoor.specs.base import Spec
from ssl_backdoor.specs.context import StageContext
from ssl_backdoor.specs.family import Among, Idea, members
from ssl_backdoor.specs.trigger import Box, Trigger

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    import numpy.typing as npt
    import pyarrow as pa

    from ssl_backdoor.data.dataset import Dataset
    from ssl_backdoor.specs.data import DatasetSpec

Codec = Literal["lossless", "jpeg75", "jpeg75_poisons"]


class TwoImages(NamedTuple):
    """What a poison is made of where that is more than one image."""

    row: Mapping[str, Any]
    """Of the plan: POISON_PLAN and PARTNERS."""
    image: "npt.NDArray[np.uint8]"
    """uint8 (height, width, 3), as stored: that of ``source_key``."""
    partner: "npt.NDArray[np.uint8]"
    """That of ``partner_key``."""
    dataset: "DatasetSpec"


class Composed(NamedTuple):
    """A poison made of two images."""

    image: "npt.NDArray[np.uint8]"
    """uint8 (height, width, 3), as it is stored."""
    box: Box | None
    """Of the trigger."""
    stretch: float = 1.0
    """Width over height as it was made over that as stored: random crops are taken in the proportions of the former."""


NumOfClass = Callable[[str], int]
"""Training images of a class, by its name."""


class PairLabel(NamedTuple):
    """What an attack pairs, for people: which class it aims at, and the trigger next to it."""

    target: str
    name: str


class TargetsSpec(Spec):
    """Carlini & Terzis 2022: which test images x' are to become which class y', drawn under the run's seed."""

    num_targets: int = Field(default=1, ge=1, le=10_000)
    """Independent (x', y') pairs in ONE model: the paper has one; more are a cheaper estimate, recorded as such."""


def num_poisoned(num_candidates: int, fraction: float) -> int:
    """How many of N images are poisoned: n = int(fraction * N), at least 1 (Saha et al. 2022)."""
    return max(1, int(fraction * num_candidates))


def counted(number: int, what: str) -> str:
    """For people: "1 poison", "2 poisons"."""
    return f"{number} {what}{'s' * (number != 1)}"


class Attack(Idea):
    """An attack on the data: a plan that names who is poisoned, and what happens to each one's pixels. Abstract."""

    family: ClassVar[str] = "attack"
    constants: ClassVar[Mapping[str, Any]] = {
        "trigger": None,
        "target_class": "",
        "targets": None,
        "codec": "lossless",
        "pixel_noise_levels": 0.0,
    }
    if TYPE_CHECKING:  # a member has a field of the name, or the constant

        @property
        def trigger(self) -> Trigger | None:
            """What is put on images."""

        @property
        def target_class(self) -> str:
            """The class that is aimed at; empty for none."""

        @property
        def targets(self) -> TargetsSpec | None:
            """The images that are aimed at."""

        @property
        def codec(self) -> Codec:
            """How poisoned images are stored."""

        @property
        def pixel_noise_levels(self) -> float:
            """Standard deviation, of 255 levels, of the noise on each poisoned image."""

    adds_pairs: ClassVar[bool] = False
    """Whether image-text pairs are added, from which only a method that reads captions learns."""
    adds_images: ClassVar[bool] = False
    """Whether its poisons are added to the data as images, from which every method learns."""
    reads_captions: ClassVar[bool] = False
    """Whether it works through captions that are there already, so that only such a method learns from it."""
    poisons_target_class: ClassVar[bool] = False
    """Whether the poisoned images are the target class's own, so that there is a share of it."""
    composes: ClassVar[bool] = False
    """Whether a poison is made of two images, so that ``compose`` makes it and it looks like neither."""
    phrase: ClassVar[str] = ""
    """How a sentence about its effect begins."""

    @abc.abstractmethod
    def plan(self, samples: "pa.Table | Path", classes: Sequence[str], seed: int) -> "pa.Table":
        """Who is poisoned: POISON_PLAN rows sorted by key, without touching a pixel.

        Pure; independent of the order of the rows and of the shards. ``ssl_backdoor.poison.plan`` has the parts.

        Args:
            samples: rows of schema SAMPLES, in memory or a Parquet file that is looked through.
            classes: names of the labels.
            seed: the run's.

        Raises:
            SpecError: the target class is unknown, or more poisons or targets than images.
            DataError: there is no training image to poison, or no caption that names the target class.
        """

    @abc.abstractmethod
    def num_planned(self, num_of_class: NumOfClass, num_train: int) -> int:
        """Rows of its plan, from counts alone."""

    def craft(
        self, image: "npt.NDArray[np.uint8]", seed: int, source: bytes | None
    ) -> "tuple[npt.NDArray[np.uint8], Box | None]":
        """A planned image, uint8 (height, width, 3), once poisoned, and the box of what was put on it.

        By default noise of ``pixel_noise_levels``, then the trigger. ``seed`` is the plan's sub_seed, ``source`` what
        the trigger's ``read`` gave. The only step of an attack that touches pixels.
        """
        from ssl_backdoor.seeds import stream, sub_seed

        if self.pixel_noise_levels:
            noise = stream(seed, "noise").normal(0.0, self.pixel_noise_levels, image.shape)
            image = (image + noise).round().clip(0, 255).astype("uint8")
        return (
            self.trigger.apply_one(image, sub_seed(seed, "place"), "train", source) if self.trigger else (image, None)
        )

    def compose(self, two: TwoImages, seed: int, source: bytes | None) -> Composed:
        """In place of ``craft`` where the attack ``composes``: its plan has the columns PARTNERS as well."""
        raise NotImplementedError

    def with_digests(self) -> Self:
        """The same with the digests of all the files that it reads filled in, so that their content is in its key.

        Raises:
            DataError: one cannot be read.
        """
        return self if self.trigger is None else self.model_copy(update={"trigger": self.trigger.with_digest()})

    @property
    def label(self) -> str:
        """For people."""
        if self.trigger is None:
            return self.kind
        return f"{self.trigger.label} -> {self.target_class}" if self.target_class else self.trigger.label

    @property
    def pair_label(self) -> PairLabel:
        """For people."""
        target = self.target_class or "untargeted"
        return PairLabel(target, f"{self.trigger.name if self.trigger else self.kind} / {target}")

    @property
    def amount(self) -> str:
        """The number of poisons, for people, where the spec states it; else nothing."""
        return ""

    @property
    def any_pair(self) -> Self:
        """The same without what tells one pair from another."""
        fields, changes = dict(self), dict[str, object]()
        if "trigger" in fields:
            changes["trigger"] = fields["trigger"].anonymous
        if "target_class" in fields:
            changes["target_class"] = ""
        return self.model_copy(update=changes)

    @property
    def of_clean(self) -> Self:
        """The same without its amounts, of which an encoder that was trained on clean images knows nothing."""
        return self.model_validate({n: value for n, value in self if n in ("trigger", "target_class", "targets")})

    def poisons_per_target(self, num_poisons: int) -> int:
        """Of ``num_poisons`` in the whole dataset."""
        return num_poisons

    def largest(self, target_class: str, num_poisons: int) -> Self:
        """The same on all it can take: what the cost of one poison is measured by."""
        return self.model_copy(update={"target_class": target_class} if "target_class" in dict(self) else {})


class CountedAttack(Attack):
    """An attack with one target class that states the number of its poisons. Abstract."""

    num_poisons: int

    @property
    def amount(self) -> str:
        """The number of poisons, for people."""
        return counted(self.num_poisons, "poison")

    def num_planned(self, num_of_class: NumOfClass, num_train: int) -> int:
        """Rows of its plan, from counts alone."""
        return self.num_poisons

    def largest(self, target_class: str, num_poisons: int) -> Self:
        """The same on all it can take."""
        return self.model_copy(update={"target_class": target_class, "num_poisons": num_poisons})


class TargetedAttack(Attack):
    """An attack on single images x' that states the number of its poisons for each. Abstract."""

    targets: TargetsSpec = TargetsSpec()
    num_poisons: int

    @property
    def label(self) -> str:
        """For people."""
        return counted(self.targets.num_targets, "target image")

    @property
    def pair_label(self) -> PairLabel:
        """For people."""
        return PairLabel("targets", f"{self.targets.num_targets} targets")

    @property
    def amount(self) -> str:
        """The number of poisons, for people."""
        return counted(self.num_poisons, "poison") + " each" * (self.targets.num_targets != 1)

    def poisons_per_target(self, num_poisons: int) -> int:
        """Of ``num_poisons`` in the whole dataset."""
        return self.num_poisons

    def num_planned(self, num_of_class: NumOfClass, num_train: int) -> int:
        """Rows of its plan, from counts alone."""
        return self.targets.num_targets * self.num_poisons

    def largest(self, target_class: str, num_poisons: int) -> Self:
        """The same on all it can take."""
        return self.model_copy(update={"targets": TargetsSpec(), "num_poisons": num_poisons})


class TamperAttack(Attack):
    """An attack on the encoder: it poisons no data, and turns a clean encoder into a backdoored one. Abstract."""

    def plan(self, samples: "pa.Table | Path", classes: Sequence[str], seed: int) -> "pa.Table":
        """Nobody."""
        from ssl_backdoor.tables import POISON_PLAN

        return POISON_PLAN.empty_table()

    def num_planned(self, num_of_class: NumOfClass, num_train: int) -> int:
        """None."""
        return 0

    def shortage(self, num_train: int) -> str:
        """What is wrong where there are ``num_train`` training images; else empty."""
        return ""

    def num_seen(self, num_train: int) -> int:
        """Of ``num_train`` training images those that it looks at: what its cost grows with."""
        return num_train

    @property
    def reduced(self) -> tuple[Self, float]:
        """The same with less work, on a few images and an encoder that knows nothing, and the factor to its cost."""
        return self, 1.0

    @abc.abstractmethod
    def tamper(self, dataset: "Dataset", clean: "Path", context: StageContext) -> dict[str, Any]:
        """Turn the encoder in folder ``clean`` into one with a backdoor; all else as of ``Repair.repair``."""


class NoAttackSpec(Attack):
    """No poison."""

    kind: Literal["none"] = "none"

    @property
    def label(self) -> str:
        """For people."""
        return "no attack"

    @property
    def pair_label(self) -> PairLabel:
        """For people."""
        return PairLabel("", "no attack")

    def plan(self, samples: "pa.Table | Path", classes: Sequence[str], seed: int) -> "pa.Table":
        """Nobody."""
        from ssl_backdoor.tables import POISON_PLAN

        return POISON_PLAN.empty_table()

    def num_planned(self, num_of_class: NumOfClass, num_train: int) -> int:
        """None."""
        return 0


AttackSpec = Annotated[Attack, Among("attack")]


def attack_words(kind: str) -> str:
    """What attacks of ``kind`` are called: "targeted poisoning", "backdoor"."""
    attack = members("attack").get(kind)
    phrase = attack.phrase if attack is not None and issubclass(attack, Attack) else ""
    name = phrase.strip(" ,").removeprefix("under ").removeprefix("the ")
    return name or re.sub(r"^[a-z]+\d{4}_", "", kind).replace("_", " ")
