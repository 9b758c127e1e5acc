"""How an encoder is evaluated."""

from collections.abc import Iterator
from typing import Literal, Self

from pydantic import Field, TypeAdapter, model_validator

from ssl_backdoor.specs.base import Spec
from ssl_backdoor.specs.probe import MetricSpec, ProbeSpec
from ssl_backdoor.specs.training import BackboneSpec

STANDARD_PROBES = ("knn", "linear", "linear_sgd")


class EvaluationSpec(Spec):
    """Which probes read the frozen backbone, on how many labels, under which triggers."""

    resize_px: int = Field(default=0, ge=0)
    """Shorter side before the centre crop; 0 leaves the image as it is held."""
    crop_px: int = Field(default=0, ge=0)
    """Side of the centre crop: the evaluated frame; 0 leaves the image as it is held."""
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    """Filter of that resize, antialiased."""
    probes: tuple[ProbeSpec, ...] = Field(
        default_factory=lambda: TypeAdapter(tuple[ProbeSpec, ...]).validate_python(STANDARD_PROBES)
    )
    """By their kinds: knn, linear, linear_sgd, linear_adam, linear_layers, fine_tune, zero_shot; linear is the common
    head, to compare methods, the others are those that methods were published with."""
    metrics: tuple[MetricSpec, ...] = ()
    """Of every probe's predictions, besides accuracy, false positives and success."""
    label_fractions: tuple[float, ...] = (0.01, 0.1, 1.0)
    label_subsets: int = Field(default=5, ge=1, le=100)
    """At label fractions of at most 5 %, where one draw says little: so many subsets of the labels are drawn, and each
    number of probes on features is their mean; it has its standard deviation over them next to it."""
    unseen_triggers: int = Field(default=10, ge=0, le=1000)
    """Patterns of the trigger's own style that no encoder was trained on, drawn for each pair and seed: the control
    within the encoder. All test images are read under each; the numbers are means over them."""

    @model_validator(mode="after")
    def _fractions_in_range(self) -> Self:
        if bad := [f for f in self.label_fractions if not 0.0 < f <= 1.0]:
            raise ValueError(f"label_fractions must lie in (0, 1], found {bad}")
        kinds = [one.kind for one in self.probes]
        if twice := sorted({kind for kind in kinds if kinds.count(kind) > 1}):
            raise ValueError(f"each probe is given once, found {', '.join(twice)} several times")
        return self

    def num_subsets(self, fraction: float) -> int:
        """Draws of the labelled subset of this ``fraction``."""
        return self.label_subsets if fraction <= 0.05 else 1

    def probe_names(self, backbone: BackboneSpec) -> Iterator[str]:
        """Of all predictions."""
        for probe in self.probes:
            yield from probe.names(backbone, self.label_fractions)
