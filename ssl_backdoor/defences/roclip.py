"""RoCLIP (Yang et al. 2023) as a training of its own and as a defence; the objective is ``methods/roclip.py``."""

from typing import ClassVar, Literal

from pydantic import Field

from ssl_backdoor.specs import CLIPSpec, Fraction, Method, RobustTraining, TrainSpec
from ssl_backdoor.specs.training import MAX_QUEUE


class RoCLIPMethod(Method):
    """CLIP whose images meet, in every second epoch, the nearest captions of a bank in place of their own."""

    kind: Literal["roclip"] = "roclip"
    network: ClassVar[str] = "ssl_backdoor.methods.roclip:RoCLIP"
    backbone_kind: ClassVar[str] = "open_clip"
    has_text_tower: ClassVar[bool] = True
    initial_temperature: float = Field(default=0.07, gt=0.0)
    every: int = Field(default=2, ge=1)
    """Of so many epochs one, from the first on, is RoCLIP's; the others are CLIP's."""
    bank_size: int = Field(default=21_845, ge=1, le=MAX_QUEUE)
    """Captions in the bank; at most the number of pairs, or it fills late."""
    word_edit_p: Fraction = 0.1
    """Share of a caption's words that are dropped or swapped."""


class RoCLIPSpec(RobustTraining):
    """RoCLIP: every second epoch images meet the nearest captions of a bank in place of their own."""

    kind: Literal["roclip"] = "roclip"
    every: int = Field(default=2, ge=1)
    bank_size: int = Field(default=21_845, ge=1, le=MAX_QUEUE)
    word_edit_p: Fraction = 0.1
    needs_captions: ClassVar[bool] = True

    @property
    def label(self) -> str:
        """For people."""
        return "RoCLIP"

    def train(self, spec: TrainSpec) -> TrainSpec:
        """With another method, from the same temperature."""
        method = RoCLIPMethod(
            initial_temperature=spec.method.initial_temperature if isinstance(spec.method, CLIPSpec) else 0.07,
            every=self.every,
            bank_size=self.bank_size,
            word_edit_p=self.word_edit_p,
        )
        return TrainSpec.model_validate({**dict(spec), "method": method})

    def misfit(self, spec: TrainSpec) -> str:
        """Of methods that are not CLIP."""
        return misfit_of_clip(spec)


def misfit_of_clip(spec: TrainSpec) -> str:
    """Why ``spec`` is no CLIP that can be trained in another way; empty where it is one."""
    if not isinstance(spec.method, CLIPSpec):
        return "trains CLIP in another way"
    return "needs train.method.micro_batch_size=0" if spec.method.micro_batch_size else ""
