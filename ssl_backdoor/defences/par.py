"""PAR (Singh et al. 2024); the objective is ``methods/par.py``."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from ssl_backdoor.specs import AdamWSpec, CosineSpec, FitSpec, Repair, StageContext

if TYPE_CHECKING:
    from ssl_backdoor.data.dataset import Dataset
    from ssl_backdoor.methods.base import Replicas, SSLMethod
    from ssl_backdoor.methods.clip_towers import ImageTower, TextTower


class PARSpec(Repair):
    """PAR (Singh et al. 2024): perturb the suspect's embeddings and recover them on trusted pairs.

    NOTE: upstream's "warm-up" falls from 3e-5 to the peak of 3e-6 over half of the epochs; here the rate starts at its
    peak, unless ``fit.schedule`` has a warm-up, which rises. Upstream's AdamW has a weight decay of 1e-4 on all
    parameters; here on matrices alone.
    """

    kind: Literal["par"] = "par"
    trusted_fraction: float = Field(default=0.25, gt=0.0, le=1.0)
    tau: float = Field(default=2.15, gt=0.0, le=4.0)
    """Mean squared distance of unit embeddings from which on one is pushed no farther: 2 - 2 cos, 2.15 is a mean cosine
    of -0.075."""
    fit: FitSpec = FitSpec(
        epochs=2,
        batch_size=2048,
        optimizer=AdamWSpec(lr=3e-6, weight_decay=1e-4, beta2=0.98),
        schedule=CosineSpec(per="step"),
    )
    needs_captions: ClassVar[bool] = True

    @property
    def label(self) -> str:
        """For people."""
        return "PAR"

    def repair(self, dataset: "Dataset", suspect: Path, context: StageContext) -> dict[str, Any]:
        """As ``tune``."""
        from ssl_backdoor.defences.tuning import tune

        return tune(self, self.fit, self.objective, dataset, suspect, context)

    def objective(self, image: "ImageTower", text: "TextTower", seed: int, replicas: "Replicas") -> "SSLMethod":
        """PAR's; the suspect stays behind as it was."""
        from ssl_backdoor.methods.par import PAR

        return PAR(self.tau, image, text, replicas)
