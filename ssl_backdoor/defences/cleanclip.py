"""CleanCLIP (Bansal et al. 2023); the objective is ``methods/cleanclip.py``."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from ssl_backdoor.specs import AdamWSpec, CosineSpec, FitSpec, Fraction, Repair, StageContext, ViewsSpec

if TYPE_CHECKING:
    from ssl_backdoor.data.dataset import Dataset
    from ssl_backdoor.methods.base import Replicas, SSLMethod
    from ssl_backdoor.methods.clip_towers import ImageTower, TextTower


class CleanCLIPSpec(Repair):
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

    needs_captions: ClassVar[bool] = True

    @property
    def label(self) -> str:
        """For people."""
        return "CleanCLIP"

    def repair(self, dataset: "Dataset", suspect: Path, context: StageContext) -> dict[str, Any]:
        """As ``tune``."""
        from ssl_backdoor.defences.tuning import tune

        return tune(self, self.fit, self.objective, dataset, suspect, context, (self.fit.views, self.augmented_views))

    def objective(self, image: "ImageTower", text: "TextTower", seed: int, replicas: "Replicas") -> "SSLMethod":
        """CleanCLIP's."""
        from ssl_backdoor.methods.cleanclip import CleanCLIP

        return CleanCLIP(self, image, text, seed, replicas)
