"""Who is poisoned, with what."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from ssl_backdoor.specs.base import Fraction, Spec


class _Stamp(Spec):
    """What all pasted triggers share. Abstract."""

    size_px: int = Field(default=0, ge=0)
    """Side in px of the stored frame when poisoning and of the evaluated frame when testing; 0 uses ``size_frac``."""
    size_frac: float = Field(default=0.0, ge=0.0, le=1.0)
    """Side as a fraction of the image's shorter side, in either frame."""
    opacity: float = Field(default=1.0, gt=0.0, le=1.0)
    """1 replaces the pixels, 0 would leave them."""
    train_location: tuple[Fraction, Fraction] = (0.25, 0.75)
    """The corner lies uniformly in [low * side, high * side - size] when poisoning."""
    test_location: tuple[Fraction, Fraction] = (0.10, 0.90)

    @model_validator(mode="after")
    def _one_size(self) -> Self:
        if (self.size_px > 0) == (self.size_frac > 0):
            raise ValueError(
                f"give size_px or size_frac, not both or neither (found {self.size_px} and {self.size_frac})"
            )
        for name in ("train_location", "test_location"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"{name} needs low <= high, found ({low}, {high})")
        return self


class GridTriggerSpec(_Stamp):
    """A seeded random RGB grid, enlarged."""

    kind: Literal["grid"] = "grid"
    seed: int = Field(default=7, ge=0)
    cells: int = Field(default=3, ge=1, le=64)
    """Cells along one side of the grid."""
    style: Literal["binarised", "flat", "smooth"] = "binarised"
    """binarised: every channel 0 or 255, hard edges; flat: hard edges; smooth: bilinear."""


class ImageTriggerSpec(_Stamp):
    """A trigger read from an image file."""

    kind: Literal["image"] = "image"
    file: str
    sha256: str = ""
    """Digest of the file; filled in by the command line so that the file's content is part of the key."""


TriggerSpec = Annotated[GridTriggerSpec | ImageTriggerSpec, Field(discriminator="kind")]
Codec = Literal["lossless", "jpeg75"]


class NoAttackSpec(Spec):
    """No poison."""

    kind: Literal["none"] = "none"


class Saha2022TargetedSpec(Spec):
    """Saha et al. 2022: the trigger on a share of one category's unlabelled images."""

    kind: Literal["saha2022_targeted"] = "saha2022_targeted"
    trigger: TriggerSpec = GridTriggerSpec(size_px=50)
    target_class: str
    poison_fraction_of_target: float = Field(default=0.5, gt=0.0, le=1.0)
    codec: Codec = "lossless"
    """jpeg75 (the paper's) re-encodes ALL images of the class, so that the compression artefact is no cue."""


class Saha2022UntargetedSpec(Spec):
    """Saha et al. 2022: the trigger on random images of every category; success is lost accuracy."""

    kind: Literal["saha2022_untargeted"] = "saha2022_untargeted"
    trigger: TriggerSpec = GridTriggerSpec(size_px=50)
    poison_fraction_of_dataset: float = Field(default=0.05, gt=0.0, le=1.0)
    codec: Codec = "lossless"


CaptionSet = Literal["search", "imagenet80"]
"""search: the training captions that contain the target's name as whole words; imagenet80: CLIP's 80 ImageNet prompts
filled with the name (the attacker knows the victim's prompts). Either is cut or repeated to the number of poisons."""


class TargetsSpec(Spec):
    """Carlini & Terzis 2022: which test images x' are to become which class y', drawn under the run's seed."""

    num_targets: int = Field(default=1, ge=1, le=10_000)
    """Independent (x', y') pairs in ONE model: the paper has one; more are a cheaper estimate, recorded as such."""


class Carlini2022TargetedSpec(Spec):
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


class Carlini2022BackdoorSpec(Spec):
    """Carlini & Terzis 2022, backdoor: the trigger on random training images, added with captions of one class."""

    kind: Literal["carlini2022_backdoor"] = "carlini2022_backdoor"
    trigger: TriggerSpec = GridTriggerSpec(size_px=16, cells=4, train_location=(0.0, 1.0), test_location=(0.0, 1.0))
    """Random placement as in the paper; both locations (0, 0) place it consistently in the upper left corner."""
    target_class: str
    num_poisons: int = Field(default=300, ge=1, le=10_000_000)
    captions: CaptionSet = "search"


AnyAttack = (
    NoAttackSpec | Saha2022TargetedSpec | Saha2022UntargetedSpec | Carlini2022TargetedSpec | Carlini2022BackdoorSpec
)
"""To widen: the members lie side by side in a larger union."""
AttackSpec = Annotated[AnyAttack, Field(discriminator="kind")]
