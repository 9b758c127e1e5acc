"""i-CutMix (Lee et al. 2021) as PatchSearch (Tejankar et al. 2023) has it; the mixing is ``train/cutmix.py``."""

from typing import Literal

from pydantic import Field

from ssl_backdoor.specs import RobustTraining, TrainSpec


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
        """Of methods that do not pull queries to targets."""
        return "" if spec.method.mixes else "is for methods that pull queries to targets, such as byol"
