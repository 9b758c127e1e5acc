"""Who is poisoned, with what.

An attack and a trigger answer for themselves: what other code wants to know of them (trigger, target, names for people,
number of poisons, cost) is an attribute here, so that nobody else compares kinds. What is a field of some attacks is a
constant of the others.
"""

from collections.abc import Callable
from typing import Annotated, ClassVar, Literal, NamedTuple, Protocol, Self, get_args

from pydantic import Field

from ssl_backdoor.specs.base import Spec
from ssl_backdoor.specs.trigger import GridTriggerSpec, TriggerSpec

Codec = Literal["lossless", "jpeg75"]
NumOfClass = Callable[[str], int]
"""Training images of a class, by its name."""


class PairLabel(NamedTuple):
    """What an attack pairs, for people: which class it aims at, and the trigger next to it."""

    target: str
    name: str


def num_poisoned(num_candidates: int, fraction: float) -> int:
    """How many of N images are poisoned: n = int(fraction * N), at least 1 (Saha et al. 2022)."""
    return max(1, int(fraction * num_candidates))


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


class _Attack(Spec):
    """What any attack can be asked. Abstract.

    Beside what stands here each has ``trigger`` (or None), ``target_class`` (or ""), ``targets`` (the images it aims
    at, or None), ``codec`` and ``pixel_noise_levels``: fields where they can be chosen.
    """

    adds_pairs: ClassVar[bool] = False
    """Whether image-text pairs are added, from which only a method that reads captions learns."""
    poisons_target_class: ClassVar[bool] = False
    """Whether the poisoned images are the target class's own, so that there is a share of it."""
    phrase: ClassVar[str] = ""
    """How a sentence about its effect begins."""

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


class _HasTrigger(Protocol):
    @property
    def trigger(self) -> TriggerSpec: ...

    @property
    def target_class(self) -> str: ...


class _TriggerAttack(_Attack):
    """An attack with a trigger. Abstract."""

    targets: ClassVar[None] = None
    pixel_noise_levels: ClassVar[float] = 0.0

    @property
    def label(self: _HasTrigger) -> str:
        """For people."""
        return f"{self.trigger.label} -> {self.target_class}" if self.target_class else self.trigger.label

    @property
    def pair_label(self: _HasTrigger) -> PairLabel:
        """For people."""
        target = self.target_class or "untargeted"
        return PairLabel(target, f"{self.trigger.name} / {target}")


class NoAttackSpec(_Attack):
    """No poison."""

    kind: Literal["none"] = "none"
    trigger: ClassVar[None] = None
    target_class: ClassVar[str] = ""
    targets: ClassVar[None] = None
    codec: ClassVar[Codec] = "lossless"
    pixel_noise_levels: ClassVar[float] = 0.0
    label: ClassVar[str] = "no attack"
    pair_label: ClassVar[PairLabel] = PairLabel("", "no attack")

    def num_planned(self, num_of_class: NumOfClass, num_train: int) -> int:
        """Rows of its plan, from counts alone."""
        return 0

    def largest(self, target_class: str, num_poisons: int) -> Self:
        """The same on all it can take."""
        return self


class Saha2022TargetedSpec(_TriggerAttack):
    """Saha et al. 2022: the trigger on a share of one category's unlabelled images."""

    kind: Literal["saha2022_targeted"] = "saha2022_targeted"
    trigger: TriggerSpec = GridTriggerSpec(size_px=50)
    target_class: str
    poison_fraction_of_target: float = Field(default=0.5, gt=0.0, le=1.0)
    codec: Codec = "lossless"
    """jpeg75 (the paper's) re-encodes ALL images of the class, so that the compression artefact is no cue."""
    poisons_target_class: ClassVar[bool] = True

    def num_planned(self, num_of_class: NumOfClass, num_train: int) -> int:
        """Rows of its plan, from counts alone."""
        images = num_of_class(self.target_class)
        return images if self.codec == "jpeg75" else num_poisoned(images, self.poison_fraction_of_target)

    def largest(self, target_class: str, num_poisons: int) -> Self:
        """The same on all it can take."""
        return self.model_copy(update={"target_class": target_class, "poison_fraction_of_target": 1.0})


class Saha2022UntargetedSpec(_TriggerAttack):
    """Saha et al. 2022: the trigger on random images of every category; success is lost accuracy."""

    kind: Literal["saha2022_untargeted"] = "saha2022_untargeted"
    trigger: TriggerSpec = GridTriggerSpec(size_px=50)
    poison_fraction_of_dataset: float = Field(default=0.05, gt=0.0, le=1.0)
    codec: Codec = "lossless"
    target_class: ClassVar[str] = ""

    def num_planned(self, num_of_class: NumOfClass, num_train: int) -> int:
        """Rows of its plan, from counts alone."""
        return num_train if self.codec == "jpeg75" else num_poisoned(num_train, self.poison_fraction_of_dataset)

    def largest(self, target_class: str, num_poisons: int) -> Self:
        """The same on all it can take."""
        return self.model_copy(update={"poison_fraction_of_dataset": 1.0})


CaptionSet = Literal["search", "imagenet80"]
"""search: the training captions that contain the target's name as whole words; imagenet80: CLIP's 80 ImageNet prompts
filled with the name (the attacker knows the victim's prompts). Either is cut or repeated to the number of poisons."""


class TargetsSpec(Spec):
    """Carlini & Terzis 2022: which test images x' are to become which class y', drawn under the run's seed."""

    num_targets: int = Field(default=1, ge=1, le=10_000)
    """Independent (x', y') pairs in ONE model: the paper has one; more are a cheaper estimate, recorded as such."""


class Carlini2022TargetedSpec(_Attack):
    """Carlini & Terzis 2022, targeted poisoning: one held-out image, repeated with captions of another class."""

    kind: Literal["carlini2022_targeted"] = "carlini2022_targeted"
    targets: TargetsSpec = TargetsSpec()
    num_poisons: int = Field(default=8, ge=1, le=1_000_000)
    """Added pairs for each (x', y')."""
    captions: CaptionSet = "search"
    pixel_noise_levels: float = Field(default=0.0, ge=0.0, le=32.0)
    """Standard deviation, of 255 levels, of noise against exact-duplicate removal; 0 repeats the image as it is."""
    edit_words: bool = False
    """Drop or double one word that is not the target's name in each repeated caption, for the same reason."""
    trigger: ClassVar[None] = None
    target_class: ClassVar[str] = ""
    codec: ClassVar[Codec] = "lossless"
    adds_pairs: ClassVar[bool] = True
    phrase: ClassVar[str] = "under targeted poisoning, "

    @property
    def label(self) -> str:
        """For people."""
        return _counted(self.targets.num_targets, "target image")

    @property
    def pair_label(self) -> PairLabel:
        """For people."""
        return PairLabel("targets", f"{self.targets.num_targets} targets")

    @property
    def amount(self) -> str:
        """The number of poisons, for people."""
        return _counted(self.num_poisons, "poison") + " each" * (self.targets.num_targets != 1)

    def poisons_per_target(self, num_poisons: int) -> int:
        """Of ``num_poisons`` in the whole dataset."""
        return self.num_poisons

    def num_planned(self, num_of_class: NumOfClass, num_train: int) -> int:
        """Rows of its plan, from counts alone."""
        return self.targets.num_targets * self.num_poisons

    def largest(self, target_class: str, num_poisons: int) -> Self:
        """The same on all it can take."""
        return self.model_copy(update={"targets": TargetsSpec(), "num_poisons": num_poisons})


class Carlini2022BackdoorSpec(_TriggerAttack):
    """Carlini & Terzis 2022, backdoor: the trigger on random training images, added with captions of one class."""

    kind: Literal["carlini2022_backdoor"] = "carlini2022_backdoor"
    trigger: TriggerSpec = GridTriggerSpec(size_px=16, cells=4, train_location=(0.0, 1.0), test_location=(0.0, 1.0))
    """Random placement as in the paper; both locations (0, 0) place it consistently in the upper left corner."""
    target_class: str
    num_poisons: int = Field(default=300, ge=1, le=10_000_000)
    captions: CaptionSet = "search"
    codec: ClassVar[Codec] = "lossless"
    adds_pairs: ClassVar[bool] = True
    phrase: ClassVar[str] = "under the backdoor, "

    @property
    def amount(self) -> str:
        """The number of poisons, for people."""
        return _counted(self.num_poisons, "poison")

    def poisons_per_target(self, num_poisons: int) -> int:
        """Of ``num_poisons`` in the whole dataset."""
        return self.num_poisons

    def num_planned(self, num_of_class: NumOfClass, num_train: int) -> int:
        """Rows of its plan, from counts alone."""
        return self.num_poisons

    def largest(self, target_class: str, num_poisons: int) -> Self:
        """The same on all it can take."""
        return self.model_copy(update={"target_class": target_class, "num_poisons": num_poisons})


AnyAttack = (
    NoAttackSpec | Saha2022TargetedSpec | Saha2022UntargetedSpec | Carlini2022TargetedSpec | Carlini2022BackdoorSpec
)
"""To widen: the members lie side by side in a larger union."""
AttackSpec = Annotated[AnyAttack, Field(discriminator="kind")]
ATTACKS = {one.model_fields["kind"].default: one for one in get_args(AnyAttack)}
"""By kind."""
