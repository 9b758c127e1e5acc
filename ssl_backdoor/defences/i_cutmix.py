"""i-CutMix (Lee et al. 2021) as PatchSearch (Tejankar et al. 2023) has it; the mixing is ``train/cutmix.py``."""

from typing import Literal

from pydantic import Field

from ssl_backdoor.specs import RobustTraining, TrainSpec
from ssl_backdoor.specs.defence import OF_TWO_CROPS


class ICutMixSpec(RobustTraining):
    """Trains on queries that show parts of two images: a trigger is pasted about as any patch is."""

    kind: Literal["i_cutmix"] = "i_cutmix"
    mix_p: float = Field(default=1.0, gt=0.0, le=1.0)
    """Share of the steps whose queries are mixed."""

    @property
    def label(self) -> str:
        """For people."""
        return "i-CutMix"

    def train(self, spec: TrainSpec) -> TrainSpec:
        """With ``mix_p``."""
        return TrainSpec.model_validate({**dict(spec), "mix_p": self.mix_p})

    def misfit(self, spec: TrainSpec) -> str:
        """Of methods whose queries cannot be mixed."""
        return "" if spec.method.mixes else OF_TWO_CROPS
