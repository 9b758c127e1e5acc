"""Which probes read a frozen encoder."""

from typing import Literal, Self

from pydantic import Field, model_validator

from ssl_backdoor.specs.base import Spec

Probe = Literal["knn", "linear", "linear_sgd", "linear_adam", "linear_layers", "fine_tune", "zero_shot"]


class EvaluationSpec(Spec):
    """Which probes read the frozen backbone, on how many labels, under which triggers."""

    resize_px: int = Field(default=0, ge=0)
    """Shorter side before the centre crop; 0 leaves the image as it is held."""
    crop_px: int = Field(default=0, ge=0)
    """Side of the centre crop: the evaluated frame; 0 leaves the image as it is held."""
    probes: tuple[Probe, ...] = ("knn", "linear", "linear_sgd")
    """linear: the common head, to compare methods: converged L-BFGS on normalised, standardised features. The heads of
    Saha et al.'s code, a method's own: linear_sgd, of MoCo v2, MSF and distilled students (40 epochs of SGD, same
    features); linear_adam, of BYOL (500 epochs of Adam, features as they are); linear_layers, of Jigsaw and RotNet (SGD
    on the stem and on each layer of a ResNet; probes linear_layer0_100, linear_layer1_100, ...); fine_tune, of MAE (the
    whole encoder learns, 100 epochs of AdamW; its features and neighbours are still the frozen encoder's).
    knn: the knn_neighbours nearest training images vote; all labels.
    zero_shot: CLIP's text tower, prompts averaged; with it come retrieval and, for targets, the rank of y'."""
    prompts: Literal["imagenet80", "simple7"] = "imagenet80"
    """Templates of zero_shot, from open_clip: CLIP's 80 for ImageNet, or the 7 that do nearly as well."""
    label_fractions: tuple[float, ...] = (0.01, 0.1, 1.0)
    knn_neighbours: int = Field(default=20, ge=1)
    linear_l2: float = Field(default=1e-4, ge=0.0)
    unseen_trigger_seed: int = Field(default=9_999, ge=0)
    """Seed of a grid trigger that no encoder was trained on: the in-model control."""

    @model_validator(mode="after")
    def _fractions_in_range(self) -> Self:
        if bad := [f for f in self.label_fractions if not 0.0 < f <= 1.0]:
            raise ValueError(f"label_fractions must lie in (0, 1], found {bad}")
        return self
