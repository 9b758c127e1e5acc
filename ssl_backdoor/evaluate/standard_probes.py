"""The built-in probes: what each is, and which file has its work. ``linear`` is the one to compare methods by."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from ssl_backdoor.specs import BackboneSpec, ResNetSpec
from ssl_backdoor.specs.probe import FeatureProbe, OwnFeaturesProbe, TextProbe

if TYPE_CHECKING:
    from torch import Tensor

    from ssl_backdoor.evaluate.layers import Reading
    from ssl_backdoor.evaluate.probes import Scores
    from ssl_backdoor.evaluate.read import EvaluationInputs
    from ssl_backdoor.methods.clip_towers import TextTower


Neighbours = Annotated[int, Field(ge=1)]


class KNNSpec(FeatureProbe):
    """The nearest training images vote; all labels."""

    kind: Literal["knn"] = "knn"
    neighbours: Neighbours | Annotated[tuple[Neighbours, ...], Field(min_length=1)] = 20
    """k; several make a classifier each, knn_k1, knn_k50 and so on."""
    uses_label_fractions: ClassVar[bool] = False

    def remarks(self, train_of_class: Mapping[str, int]) -> Iterator[str]:
        """Where a class cannot fill the vote."""
        least, most = min(train_of_class, key=train_of_class.__getitem__), max(self._by_name().values())
        if train_of_class[least] < most:
            yield (
                f"probe knn asks {most} neighbours, but class {least!r} has {train_of_class[least]} training images, "
                "which can never fill the vote: lower evaluation.probes.knn.neighbours"
            )

    def heads(self, backbone: BackboneSpec) -> tuple[str, ...]:
        """knn, or one for each k."""
        return tuple(self._by_name())

    def fit(self, features: "Tensor", labels: "Tensor", num_classes: int, seed: int) -> "dict[str, Scores]":
        """See ``probes.knn``."""
        from ssl_backdoor.evaluate.probes import knn

        return {name: knn(features, labels, num_classes, k) for name, k in self._by_name().items()}

    def _by_name(self) -> dict[str, int]:
        if isinstance(self.neighbours, int):
            return {self.kind: self.neighbours}
        return {f"{self.kind}_k{k}": k for k in self.neighbours}


class LinearSpec(FeatureProbe):
    """The common head: converged L-BFGS on normalised, standardised features."""

    kind: Literal["linear"] = "linear"
    l2: float | None = Field(default=None, ge=0.0)
    """Weight of the penalty; none: by cross-validation on the labelled images alone."""

    def fit(self, features: "Tensor", labels: "Tensor", num_classes: int, seed: int) -> "Scores":
        """See ``probes.linear``."""
        from ssl_backdoor.evaluate.probes import linear

        return linear(features, labels, num_classes, self.l2, seed)


class LinearSGDSpec(FeatureProbe):
    """The head of MoCo v2, MSF and distilled students in Saha et al.'s code: 40 epochs of SGD, the same features."""

    kind: Literal["linear_sgd"] = "linear_sgd"

    def fit(self, features: "Tensor", labels: "Tensor", num_classes: int, seed: int) -> "Scores":
        """See ``probes.linear_sgd``."""
        from ssl_backdoor.evaluate.probes import linear_sgd

        return linear_sgd(features, labels, num_classes, seed)


class LinearAdamSpec(FeatureProbe):
    """The head of BYOL in Saha et al.'s code: 500 epochs of Adam, features as they are."""

    kind: Literal["linear_adam"] = "linear_adam"

    def fit(self, features: "Tensor", labels: "Tensor", num_classes: int, seed: int) -> "Scores":
        """See ``probes.linear_adam``."""
        from ssl_backdoor.evaluate.probes import linear_adam

        return linear_adam(features, labels, num_classes, seed)


class LinearLayersSpec(OwnFeaturesProbe):
    """The heads of Jigsaw and RotNet: SGD on the stem (linear_layer0) and on each layer of a ResNet."""

    kind: Literal["linear_layers"] = "linear_layers"
    needs_resnet: ClassVar[bool] = True

    def heads(self, backbone: BackboneSpec) -> tuple[str, ...]:
        """One for the stem and one for each layer."""
        layers = range(len(backbone.stages) + 1) if isinstance(backbone, ResNetSpec) else ()
        return tuple(f"linear_layer{index}" for index in layers)

    def read(self, inputs: "EvaluationInputs") -> "Iterator[Reading]":
        """See ``layers.layer_readings``."""
        from ssl_backdoor.evaluate.layers import layer_readings

        return layer_readings(inputs)


class FineTuneSpec(OwnFeaturesProbe):
    """The head of MAE: the whole encoder learns; its features and neighbours are still the frozen encoder's."""

    kind: Literal["fine_tune"] = "fine_tune"
    trains_encoder: ClassVar[bool] = True

    def read(self, inputs: "EvaluationInputs") -> "Iterator[Reading]":
        """See ``fine_tune.fine_tuned_readings``."""
        from ssl_backdoor.evaluate.fine_tune import fine_tuned_readings

        return fine_tuned_readings(inputs)


class ZeroShotSpec(TextProbe):
    """CLIP's text tower, prompts averaged; with it come retrieval and, for targets, the rank of y'."""

    kind: Literal["zero_shot"] = "zero_shot"
    prompts: Literal["imagenet80", "simple7"] = "imagenet80"
    """Templates, from open_clip: CLIP's 80 for ImageNet, or the 7 that do nearly as well."""

    def scores(self, text_tower: "TextTower", classes: Sequence[str]) -> "Scores":
        """See ``zero_shot.zero_shot``."""
        from ssl_backdoor.evaluate.zero_shot import class_embeddings, zero_shot

        return zero_shot(class_embeddings(text_tower, classes, self.prompts))
