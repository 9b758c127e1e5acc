"""Every knob of an experiment: the page to read first.

A ``Spec`` says WHAT is computed; equal specs mean equal science, and a spec's canonical JSON is part of the key of
every artifact made from it. ``Resources`` says HOW it runs and is never hashed. Nothing here imports torch.

Two frames are named throughout. The *stored frame* is the image as decoded and, where ``frame_px`` is set, brought
to that side: poisons are stamped there, before any augmentation. The *evaluated frame* is the test image after
resize and crop: test triggers are stamped there.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Stage = Literal["ingest", "poison", "train", "defend", "evaluate", "report"]
Probe = Literal["knn", "linear", "linear_sgd"]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


def _declaration_order(schema: dict[str, Any]) -> None:
    """Prefect's parameter form sorts fields by ``position``; keep the order of the source."""
    for position, field in enumerate(schema.get("properties", {}).values()):
        field["position"] = position


class Spec(BaseModel):
    """A statement of what is computed: immutable, closed, comparable by value."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        json_schema_extra=_declaration_order,
        use_attribute_docstrings=True,
    )


# --------------------------------------------------------------------------------------------------- data


class FilesSourceSpec(Spec):
    """Images the user brings: a folder, an archive or shards. The path itself is given at run time."""

    kind: Literal["files"] = "files"
    layout: Literal["auto", "folder", "cifar", "webdataset"] = "auto"
    """folder: split/class/file, also in a tar, tar.gz or zip; cifar: the official archives; webdataset: shards."""


class ScenesSourceSpec(Spec):
    """An embedded, procedurally drawn, captioned image set; colours and textures lean with the class."""

    kind: Literal["scenes"] = "scenes"
    num_classes: int = Field(default=5, ge=2, le=10)
    train_per_class: int = Field(default=1000, ge=1)
    test_per_class: int = Field(default=1000, ge=0)
    side_px: int = Field(default=64, ge=16, le=512)
    hue_lean: Fraction = 0.75
    """Share of the images whose hue leans towards that of their class."""
    seed: int = Field(default=0, ge=0)


SourceSpec = Annotated[FilesSourceSpec | ScenesSourceSpec, Field(discriminator="kind")]


class DatasetSpec(Spec):
    """Which images, and the frame they are stored in."""

    source: SourceSpec = FilesSourceSpec()
    classes: tuple[str, ...] = ()
    """Class names (folder names, e.g. wnids) to keep; empty keeps all. Labels number them in sorted order."""
    max_train_per_class: int = Field(default=0, ge=0)
    """Keep at most this many training images of each class, drawn by ``subset_seed``; 0 keeps all."""
    max_test_per_class: int = Field(default=0, ge=0)
    keep_fraction: float = Field(default=1.0, gt=0.0, le=1.0)
    """Seeded sub-sample of all that is left, as a fraction of each class."""
    test_fraction: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Share held out as the test split where the source has none."""
    subset_seed: int = Field(default=0, ge=0)
    frame_px: int = Field(default=0, ge=0, le=4096)
    """Side of the stored frame (shorter side resized, centre crop); 0 keeps each image's own size."""
    resident_px: int = Field(default=0, ge=0, le=4096)
    """Side at which images are held for training when ``frame_px`` is 0; 0 demands that all have one size."""
    max_rejected_frac: Fraction = 0.01
    """Ingestion stops when a larger share of the images cannot be read."""
    max_image_pixels: int = Field(default=50_000_000, ge=1)
    samples_per_shard: int = Field(default=10_000, ge=1)


# --------------------------------------------------------------------------------------------------- poison


class _Stamp(Spec):
    """What all pasted triggers share. Abstract."""

    size_px: int = Field(default=0, ge=0)
    """Side in px of the stored frame when poisoning and of the evaluated frame when testing; 0 uses ``size_frac``."""
    size_frac: float = Field(default=0.0, ge=0.0, le=1.0)
    """Side as a fraction of the image's shorter side, in either frame."""
    opacity: float = Field(default=1.0, gt=0.0, le=1.0)
    """1 replaces the pixels, 0 would leave them."""
    train_location: tuple[Fraction, Fraction] = (0.25, 0.75)
    """The corner lies uniformly in [low * side, high * side - size] when poisoning."""
    test_location: tuple[Fraction, Fraction] = (0.10, 0.90)

    @model_validator(mode="after")
    def _one_size(self) -> Self:
        if (self.size_px > 0) == (self.size_frac > 0):
            raise ValueError(
                f"give size_px or size_frac, not both or neither (found {self.size_px} and {self.size_frac})"
            )
        for name in ("train_location", "test_location"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"{name} needs low <= high, found ({low}, {high})")
        return self


class GridTriggerSpec(_Stamp):
    """A seeded random RGB grid, enlarged."""

    kind: Literal["grid"] = "grid"
    seed: int = Field(default=7, ge=0)
    cells: int = Field(default=3, ge=1, le=64)
    """Cells along one side of the grid."""
    style: Literal["binarised", "flat", "smooth"] = "binarised"
    """binarised: every channel 0 or 255, hard edges; flat: hard edges; smooth: bilinear."""


class ImageTriggerSpec(_Stamp):
    """A trigger read from an image file."""

    kind: Literal["image"] = "image"
    file: str
    sha256: str = ""
    """Digest of the file; filled in by the command line so that the file's content is part of the key."""


TriggerSpec = Annotated[GridTriggerSpec | ImageTriggerSpec, Field(discriminator="kind")]
Codec = Literal["lossless", "jpeg75"]


class NoAttackSpec(Spec):
    """No poison."""

    kind: Literal["none"] = "none"


class Saha2022TargetedSpec(Spec):
    """Saha et al. 2022: the trigger on a share of one category's unlabelled images."""

    kind: Literal["saha2022_targeted"] = "saha2022_targeted"
    trigger: TriggerSpec = GridTriggerSpec(size_px=50)
    target_class: str
    poison_fraction_of_target: float = Field(default=0.5, gt=0.0, le=1.0)
    codec: Codec = "lossless"
    """jpeg75 (the paper's) re-encodes ALL images of the class, so that the compression artefact is no cue."""


class Saha2022UntargetedSpec(Spec):
    """Saha et al. 2022: the trigger on random images of every category; success is lost accuracy."""

    kind: Literal["saha2022_untargeted"] = "saha2022_untargeted"
    trigger: TriggerSpec = GridTriggerSpec(size_px=50)
    poison_fraction_of_dataset: float = Field(default=0.05, gt=0.0, le=1.0)
    codec: Codec = "lossless"


AttackSpec = Annotated[NoAttackSpec | Saha2022TargetedSpec | Saha2022UntargetedSpec, Field(discriminator="kind")]


# --------------------------------------------------------------------------------------------------- training


class ResNetSpec(Spec):
    """A residual network with torchvision's parameter names."""

    kind: Literal["resnet"] = "resnet"
    depth: Literal[8, 10, 18, 50] = 18
    width: int = Field(default=64, ge=4, le=512)
    """Channels of the first stage."""
    stem: Literal["imagenet", "small"] = "imagenet"
    """imagenet: 7x7 stride 2 and max-pool; small: 3x3 stride 1, for sides of 16 to 64 px."""


class ViewsSpec(Spec):
    """Random augmentation of one image into a view; every parameter is drawn per sample."""

    size_px: int = Field(default=224, ge=8, le=1024)
    crop_scale: tuple[Fraction, Fraction] = (0.2, 1.0)
    """Area of the crop as a fraction of the image's."""
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    flip_p: Fraction = 0.5
    brightness: float = Field(default=0.4, ge=0.0)
    contrast: float = Field(default=0.4, ge=0.0)
    saturation: float = Field(default=0.4, ge=0.0)
    hue: float = Field(default=0.1, ge=0.0, le=0.5)
    jitter_p: Fraction = 0.8
    grey_p: Fraction = 0.2
    blur_p: Fraction = 0.5
    blur_sigma_px: tuple[float, float] = (0.1, 2.0)


class SGDSpec(Spec):
    """Stochastic gradient descent."""

    kind: Literal["sgd"] = "sgd"
    lr: float = Field(default=0.06, gt=0.0)
    sgd_momentum: float = Field(default=0.9, ge=0.0, lt=1.0)
    weight_decay: float = Field(default=1e-4, ge=0.0)
    nesterov: bool = False


class AdamSpec(Spec):
    """Adam with L2 regularisation."""

    kind: Literal["adam"] = "adam"
    lr: float = Field(default=2e-3, gt=0.0)
    weight_decay: float = Field(default=1e-6, ge=0.0)


OptimizerSpec = Annotated[AdamSpec | SGDSpec, Field(discriminator="kind")]


class CosineSpec(Spec):
    """Cosine decay to zero."""

    kind: Literal["cosine"] = "cosine"
    per: Literal["epoch", "step"] = "epoch"
    warmup_epochs: float = Field(default=0.0, ge=0.0)


class MilestonesSpec(Spec):
    """Multiply the rate by ``factor`` at each epoch of ``milestones``."""

    kind: Literal["milestones"] = "milestones"
    milestones: tuple[int, ...] = (150, 175)
    factor: float = Field(default=0.2, gt=0.0, le=1.0)
    warmup_steps: int = Field(default=0, ge=0)


ScheduleSpec = Annotated[CosineSpec | MilestonesSpec, Field(discriminator="kind")]


class FitSpec(Spec):
    """How a network is optimised; shared by pre-training and distillation."""

    epochs: int = Field(default=200, ge=1)
    batch_size: int = Field(default=256, ge=2)
    """Images of one step over ALL replicas; the last incomplete batch of an epoch is dropped."""
    views: ViewsSpec = ViewsSpec()
    optimizer: OptimizerSpec = SGDSpec()
    schedule: ScheduleSpec = CosineSpec()
    bn_groups: int = Field(default=1, ge=1)
    """BatchNorm statistics are taken over batch_size / bn_groups images, as if on that many devices."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of the forward pass; weights and loss stay float32."""

    @model_validator(mode="after")
    def _groups_fit(self) -> Self:
        if self.batch_size % self.bn_groups or self.batch_size // self.bn_groups < 2:
            raise ValueError(
                f"batch_size {self.batch_size} must split into {self.bn_groups} bn_groups of two or more images"
            )
        return self


class MoCoV2Spec(Spec):
    """MoCo v2 as in Saha et al.'s code."""

    kind: Literal["moco_v2"] = "moco_v2"
    projector_hidden_dim: int = Field(default=512, ge=1)
    embedding_dim: int = Field(default=128, ge=1)
    queue_size: int = Field(default=65_536, ge=1)
    temperature: float = Field(default=0.2, gt=0.0)
    ema_decay: float = Field(default=0.999, ge=0.0, le=1.0)
    shuffle_bn: bool = True


class BYOLSpec(Spec):
    """BYOL as in Saha et al.'s code."""

    kind: Literal["byol"] = "byol"
    projector_hidden_dim: int = Field(default=1024, ge=1)
    embedding_dim: int = Field(default=128, ge=1)
    predictor_hidden_dim: int = Field(default=1024, ge=1)
    ema_decay_start: float = Field(default=0.99, ge=0.0, le=1.0)
    """Rises to 1 by a cosine over training."""
    ema_per: Literal["epoch", "step"] = "epoch"


MethodSpec = Annotated[MoCoV2Spec | BYOLSpec, Field(discriminator="kind")]


class TrainSpec(Spec):
    """Self-supervised pre-training: labels and captions are not looked at."""

    method: MethodSpec
    backbone: ResNetSpec = ResNetSpec()
    fit: FitSpec = FitSpec()


# --------------------------------------------------------------------------------------------------- defence


class NoDefenceSpec(Spec):
    """No defence."""

    kind: Literal["none"] = "none"


class CompressSpec(Spec):
    """CompRess distillation of the suspect into a fresh student of the same architecture, on trusted images."""

    kind: Literal["compress"] = "compress"
    trusted_fraction: float = Field(default=0.25, gt=0.0, le=1.0)
    """Share of the clean training images, of each class, that the defender may use."""
    temperature: float = Field(default=0.04, gt=0.0)
    queue_size: int = Field(default=128_000, ge=1)
    num_queues: Literal[1, 2] = 2
    """2: a teacher and a student queue, the latter filled by a slow copy of the student; 1: the teacher's for both."""
    ema_decay: float = Field(default=0.999, ge=0.0, le=1.0)
    fit: FitSpec = FitSpec(
        epochs=130,
        views=ViewsSpec(crop_scale=(0.08, 1.0), jitter_p=0.0, grey_p=0.0, blur_p=0.0),
        optimizer=SGDSpec(lr=0.01),
        schedule=MilestonesSpec(milestones=(90, 120), factor=0.2),
    )


DefenceSpec = Annotated[NoDefenceSpec | CompressSpec, Field(discriminator="kind")]


# --------------------------------------------------------------------------------------------------- evaluation


class EvaluationSpec(Spec):
    """Which probes read the frozen backbone, on how many labels, under which triggers."""

    resize_px: int = Field(default=0, ge=0)
    """Shorter side before the centre crop; 0 leaves the image as it is held."""
    crop_px: int = Field(default=0, ge=0)
    """Side of the centre crop: the evaluated frame; 0 leaves the image as it is held."""
    probes: tuple[Probe, ...] = ("knn", "linear", "linear_sgd")
    """linear: converged L-BFGS; linear_sgd: the paper's 40-epoch SGD. Both on normalised, standardised features."""
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


class RunSpec(Spec):
    """One experiment, end to end. Named examples live in flows/recipes/."""

    dataset: DatasetSpec
    attack: AttackSpec
    train: TrainSpec
    defence: DefenceSpec = NoDefenceSpec()
    evaluation: EvaluationSpec = EvaluationSpec()
    seed: int = Field(default=0, ge=0)
    variant: str = ""
    """Name of a side condition shown beside the main one (such as another poison fraction); empty is the main one."""


class ReportSpec(Spec):
    """A named question and the runs that answer it."""

    kind: Literal["report"] = "report"
    recipe: str
    question: str
    note: str = ""
    """What the reader must know before quoting a number; shown first."""
    runs: tuple[RunSpec, ...]


class Resources(BaseModel):
    """How it runs: never hashed, never stored in a key."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    workers: int = Field(default=1, ge=1, le=1024)
    """Replicas of one training; must divide its bn_groups."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int = Field(default=1, ge=1)
    """CPU threads of one replica. One thread each, many trainings at once, is fastest on small networks."""
    parallel: int = Field(default=0, ge=0)
    """Stages that run at once; 0 uses the machine's CPUs (or the cluster's)."""
    max_retries: int = Field(default=3, ge=0)
    """Restarts of a training whose worker process died."""
    checkpoint_every_steps: int = Field(default=250, ge=1)
