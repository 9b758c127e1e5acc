"""What a defender does with trusted, clean data."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from ssl_backdoor.specs.base import Fraction, Spec
from ssl_backdoor.specs.training import AdamWSpec, CosineSpec, FitSpec, MilestonesSpec, SGDSpec, ViewsSpec


class NoDefenceSpec(Spec):
    """No defence."""

    kind: Literal["none"] = "none"


class CompressSpec(Spec):
    """CompRess distillation of the suspect into a fresh student of the same architecture, on trusted images."""

    kind: Literal["compress"] = "compress"
    trusted_fraction: float = Field(default=0.25, gt=0.0, le=1.0)
    """Share of the clean training images, of each class, that the defender may use."""
    temperature: float = Field(default=0.04, gt=0.0)
    queue_size: int = Field(default=128_000, ge=1)
    num_queues: Literal[1, 2] = 2
    """2: a teacher and a student queue, the latter filled by a slow copy of the student; 1: the teacher's for both."""
    ema_decay: float = Field(default=0.999, ge=0.0, le=1.0)
    fit: FitSpec = FitSpec(
        epochs=130,
        views=ViewsSpec(crop_scale=(0.08, 1.0), jitter_p=0.0, grey_p=0.0, blur_p=0.0),
        optimizer=SGDSpec(lr=0.01),
        schedule=MilestonesSpec(milestones=(90, 120), factor=0.2),
    )


class DistilImageTowerSpec(Spec):
    """CLIP: a fresh image tower learns the suspect's image-to-caption similarities on trusted pairs.

    The text tower is the suspect's, frozen, so that zero-shot classification still works.
    """

    kind: Literal["distil_image_tower"] = "distil_image_tower"
    trusted_fraction: float = Field(default=0.25, gt=0.0, le=1.0)
    fit: FitSpec = FitSpec(epochs=30, batch_size=1024, optimizer=AdamWSpec(), schedule=CosineSpec(per="step"))


class CleanCLIPSpec(Spec):
    """CleanCLIP (Bansal et al. 2023): fine-tune the suspect on trusted pairs, with an in-modal loss on either side."""

    kind: Literal["cleanclip"] = "cleanclip"
    trusted_fraction: float = Field(default=0.25, gt=0.0, le=1.0)
    in_modal_weight: float = Field(default=1.0, ge=0.0)
    word_edit_p: Fraction = 0.1
    """Share of a caption's words that its augmented twin drops or swaps."""
    augmented_views: ViewsSpec = ViewsSpec()
    """The augmented twin of an image."""
    fit: FitSpec = FitSpec(
        epochs=10,
        batch_size=64,
        views=ViewsSpec(crop_scale=(0.9, 1.0), jitter_p=0.0, grey_p=0.0, blur_p=0.0),
        optimizer=AdamWSpec(lr=1e-5, weight_decay=0.1),
        schedule=CosineSpec(per="step"),
    )

    @model_validator(mode="after")
    def _one_size(self) -> Self:
        if self.augmented_views.size_px != self.fit.views.size_px:
            raise ValueError(
                f"augmented_views.size_px {self.augmented_views.size_px} must equal fit.views.size_px "
                f"{self.fit.views.size_px}: image and twin pass one tower"
            )
        return self


AnyDefence = NoDefenceSpec | DistilImageTowerSpec | CompressSpec | CleanCLIPSpec
"""To widen: the members lie side by side in a larger union."""
DefenceSpec = Annotated[AnyDefence, Field(discriminator="kind")]
