"""Who reads a frozen encoder, and what numbers are made of what was read."""

import abc
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar

from ssl_backdoor.specs.family import Among, Idea
from ssl_backdoor.specs.training import BackboneSpec

if TYPE_CHECKING:
    import pyarrow as pa
    from torch import Tensor

    from ssl_backdoor.evaluate.layers import Reading
    from ssl_backdoor.evaluate.metrics import Measurement
    from ssl_backdoor.evaluate.probes import Scores
    from ssl_backdoor.evaluate.read import EvaluationInputs
    from ssl_backdoor.methods.clip_towers import TextTower


class Probe(Idea):
    """A classifier on an encoder. Abstract: see the classes below."""

    family: ClassVar[str] = "probe"
    learns: ClassVar[bool] = True
    """Whether it learns from the labelled training images."""
    uses_label_fractions: ClassVar[bool] = True
    """Whether it is trained on each of the evaluation's label fractions, or once on all labels."""
    needs_text_tower: ClassVar[bool] = False
    needs_resnet: ClassVar[bool] = False
    trains_encoder: ClassVar[bool] = False
    """Whether it trains a copy of the whole encoder: calibration leaves it out, and says so."""

    def heads(self, backbone: BackboneSpec) -> tuple[str, ...]:
        """Names of its classifiers on such a backbone."""
        return (self.kind,)

    def remarks(self, train_of_class: Mapping[str, int]) -> Iterator[str]:
        """What makes its numbers weak where each class has so many labelled training images."""
        return iter(())

    def names(self, backbone: BackboneSpec, label_fractions: Sequence[float]) -> Iterator[str]:
        """Names of its predictions: those on part of the labels end with the part, in per cent."""
        for head in self.heads(backbone):
            if self.uses_label_fractions:
                yield from (f"{head}_{100 * fraction:g}" for fraction in label_fractions)
            else:
                yield head


class FeatureProbe(Probe):
    """Learns on the features of the whole backbone. Abstract."""

    @abc.abstractmethod
    def fit(self, features: "Tensor", labels: "Tensor", num_classes: int, seed: int) -> "Scores | Mapping[str, Scores]":
        """A classifier of raw features; of several ``heads`` each by its name.

        Args:
            features: float32 (N, D) of clean training images, not normalised.
            labels: int64 (N,).
            num_classes: C of the scores, (M, C).
            seed: names every random stream.
        """


class TextProbe(Probe):
    """Made of a CLIP's text tower. Abstract."""

    learns: ClassVar[bool] = False
    uses_label_fractions: ClassVar[bool] = False
    needs_text_tower: ClassVar[bool] = True

    @abc.abstractmethod
    def scores(self, text_tower: "TextTower", classes: Sequence[str]) -> "Scores":
        """A classifier of raw image features."""


class OwnFeaturesProbe(Probe):
    """Reads other features than those of the whole, frozen backbone. Abstract."""

    @abc.abstractmethod
    def read(self, inputs: "EvaluationInputs") -> "Iterator[Reading]":
        """Test features and the classifiers that read them, one such pair at a time.

        What is refused is refused when this is called, before anything is read.
        """


class Metric(Idea):
    """Numbers of what was predicted, besides those that every evaluation has. Abstract."""

    family: ClassVar[str] = "metric"

    @abc.abstractmethod
    def measure(
        self, predictions: "pa.Table", classes: Sequence[str], target_label: int | None
    ) -> "Iterable[Measurement]":
        """Pure.

        Args:
            predictions: schema PREDICTIONS.
            classes: names of the labels.
            target_label: of the attack's target class; None for none.
        """


ProbeSpec = Annotated[Probe, Among("probe")]
MetricSpec = Annotated[Metric, Among("metric")]
