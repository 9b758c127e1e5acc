"""SafeCLIP (Yang et al. 2024) as a training of its own and as a defence; the objective is ``methods/safeclip.py``."""

from typing import Any, ClassVar, Literal

from pydantic import Field

from ssl_backdoor.defences.roclip import misfit_of_clip
from ssl_backdoor.specs import CLIPSpec, Fraction, Method, RobustTraining, Spec, TrainSpec
from ssl_backdoor.specs.training import MAX_QUEUE


class _Phases(Spec):
    """What both have."""

    warm_epochs: int = Field(default=5, ge=0)
    """In which either modality learns by itself."""
    slow_epochs: int = Field(default=1, ge=0)
    """After them, in which all pairs are learnt slowly."""
    slow_weight: float = Field(default=0.01, gt=0.0, le=1.0)
    """Of the loss in these."""
    most_safe: Fraction = 0.85
    """Largest share of the pairs that is learnt as pairs."""
    fallback_safe: Fraction = 0.15
    """The first share where cosines have one hump."""
    window: int = Field(default=50_000, ge=2, le=MAX_QUEUE)
    """Pairs seen last, by whose cosines the safe ones are told."""
    bank_size: int = Field(default=256, ge=1, le=MAX_QUEUE)
    """Earlier embeddings among which the nearest are looked up."""
    word_edit_p: Fraction = 0.1
    """Share of a caption's words that are dropped or swapped."""


class SafeCLIPMethod(_Phases, Method):
    """CLIP of the pairs that agree; of the others images and captions learn by themselves."""

    kind: Literal["safeclip"] = "safeclip"
    network: ClassVar[str] = "ssl_backdoor.methods.safeclip:SafeCLIP"
    backbone_kind: ClassVar[str] = "open_clip"
    has_text_tower: ClassVar[bool] = True
    initial_temperature: float = Field(default=0.07, gt=0.0)


class SafeCLIPSpec(_Phases, RobustTraining):
    """SafeCLIP: only pairs that agree are learnt as pairs; of the others images and captions learn by themselves."""

    kind: Literal["safeclip"] = "safeclip"
    needs_captions: ClassVar[bool] = True

    @property
    def label(self) -> str:
        """For people."""
        return "SafeCLIP"

    def train(self, spec: TrainSpec) -> TrainSpec:
        """With another method, from the same temperature."""
        phases: dict[str, Any] = {name: getattr(self, name) for name in _Phases.model_fields}
        temperature = spec.method.initial_temperature if isinstance(spec.method, CLIPSpec) else 0.07
        method = SafeCLIPMethod(initial_temperature=temperature, **phases)
        return TrainSpec.model_validate({**dict(spec), "method": method})

    def misfit(self, spec: TrainSpec) -> str:
        """Of methods that are not CLIP."""
        return misfit_of_clip(spec)
