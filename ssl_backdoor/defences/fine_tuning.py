"""Plain fine-tuning of CLIP on trusted pairs, under the loss of its pre-training: the baseline of other repairs."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from ssl_backdoor.specs import AdamWSpec, CLIPSpec, CosineSpec, FitSpec, Repair, StageContext, ViewsSpec

if TYPE_CHECKING:
    from ssl_backdoor.data.dataset import Dataset
    from ssl_backdoor.methods.base import Replicas, SSLMethod
    from ssl_backdoor.methods.clip_towers import ImageTower, TextTower


class FineTuningSpec(Repair):
    """The suspect's towers and temperature are trained on, with trusted pairs alone and nothing else."""

    kind: Literal["fine_tuning"] = "fine_tuning"
    trusted_fraction: float = Field(default=0.25, gt=0.0, le=1.0)
    trains_text: bool = True
    """Whether the text tower and the temperature learn as well as the image tower."""
    fit: FitSpec = FitSpec(
        epochs=10,
        batch_size=64,
        views=ViewsSpec(crop_scale=(0.9, 1.0), jitter_p=0.0, grey_p=0.0, blur_p=0.0),
        optimizer=AdamWSpec(lr=1e-5, weight_decay=0.1),
        schedule=CosineSpec(per="step"),
    )
    needs_captions: ClassVar[bool] = True

    @property
    def label(self) -> str:
        """For people."""
        return "fine-tuning"

    def repair(self, dataset: "Dataset", suspect: Path, context: StageContext) -> dict[str, Any]:
        """As ``tune``."""
        from ssl_backdoor.defences.tuning import tune

        return tune(self, self.fit, self.objective, dataset, suspect, context)

    def objective(self, image: "ImageTower", text: "TextTower", seed: int, replicas: "Replicas") -> "SSLMethod":
        """CLIP's, from the suspect's own temperature."""
        from ssl_backdoor.methods.clip import CLIP

        temperature = math.exp(-float(text.logit_scale.detach()))
        tuned = CLIP(CLIPSpec(initial_temperature=temperature), image, text, replicas)
        text.requires_grad_(self.trains_text)
        return tuned
