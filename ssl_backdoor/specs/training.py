"""Networks, optimisation, methods."""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, TypeAdapter, model_validator

from ssl_backdoor.specs.base import Fraction, Spec
from ssl_backdoor.specs.method import Method, MethodSpec

MAX_DIM = 2**14
"""Of projectors, predictors and embeddings: a layer between two of them has 1 GiB."""
MAX_QUEUE = 2**21
"""Embeddings in a queue; the papers' have 65,536 and 128,000."""


NotNegative = Annotated[float, Field(ge=0.0)]
Positive = Annotated[float, Field(gt=0.0)]


class ResNetSpec(Spec):
    """A residual network with torchvision's parameter names."""

    kind: Literal["resnet"] = "resnet"
    depth: Literal[8, 10, 18, 50] = 18
    width: int = Field(default=64, ge=4, le=512)
    """Channels of the first stage."""
    stem: Literal["imagenet", "small"] = "imagenet"
    """imagenet: 7x7 stride 2 and max-pool; small: 3x3 stride 1, for sides of 16 to 64 px."""

    @property
    def stages(self) -> tuple[int, ...]:
        """Blocks of each stage."""
        return {8: (1, 1, 1), 10: (1, 1, 1, 1), 18: (2, 2, 2, 2), 50: (3, 4, 6, 3)}[self.depth]


class OpenCLIPSpec(Spec):
    """The two towers of an open_clip model, freshly initialised; the image tower, up to the embedding, is probed."""

    kind: Literal["open_clip"] = "open_clip"
    config: str = Field(default="RN50", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
    """Name of a configuration: open_clip's own (RN50, ViT-B-32, ...) or one of methods/clip_configs (tiny-...)."""
    normalisation: Literal["imagenet", "clip"] = "imagenet"
    """Mean and standard deviation that the image tower sees pixels in: the encoder carries its own."""


class ViTSpec(Spec):
    """A vision transformer with fixed sine-cosine positions, so that any side divisible by the patch will do."""

    kind: Literal["vit"] = "vit"
    patch_px: int = Field(default=16, ge=1, le=64)
    embed_dim: int = Field(default=768, ge=4, le=4096)
    """A multiple of 4 (positions) and of ``num_heads``."""
    depth: int = Field(default=12, ge=1, le=48)
    num_heads: int = Field(default=12, ge=1)

    @model_validator(mode="after")
    def _divides(self) -> Self:
        if self.embed_dim % 4 or self.embed_dim % self.num_heads:
            raise ValueError(f"embed_dim {self.embed_dim} must be a multiple of 4 and of num_heads {self.num_heads}")
        return self


Triple = tuple[float, float, float]
PositiveTriple = tuple[Positive, Positive, Positive]


class ExternalSpec(Spec):
    """A network of another library, or of a user's file: images to one row of features each.

    Images are brought to its side, mean and standard deviation within it, so that every stage can hand it the same.
    Its classifier and its dropout are left out.
    """

    kind: Literal["external"] = "external"
    library: Literal["timm", "torchvision", "open_clip", "huggingface", "own"]
    """open_clip: the image tower alone. huggingface: of ``config``. own: a function of a file, which gives a module."""
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/-]{0,199}$")
    """As the library has it: resnet34, vit_tiny_patch16_224, ...; of a file of one's own module:function."""
    size_px: int = Field(default=224, ge=0, le=2048)
    """Side of the images that it is made for; images of another side are resized. 0: any."""
    resize_px: int = Field(default=0, ge=0, le=4096)
    """Shorter side before the centre crop of ``size_px`` in evaluation; 0: ``size_px``."""
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    mean: Triple = (0.485, 0.456, 0.406)
    """Of pixels in [0, 1], red, green and blue; ImageNet's, where nothing is said."""
    std: PositiveTriple = (0.229, 0.224, 0.225)
    config: str = Field(default="", max_length=2**20)
    """Of huggingface: the text of config.json."""
    sha256: str = ""
    """Of a user's file: the digest of its text, which has to be loaded (--plugin) where the network is made."""


BackboneSpec = Annotated[OpenCLIPSpec | ResNetSpec | ViTSpec | ExternalSpec, Field(discriminator="kind")]


def backbone_of(text: str, size_px: int, *, with_text_tower: bool = False) -> BackboneSpec:
    """A fresh backbone by name: resnet18, or LIBRARY/NAME of timm, torchvision or open_clip, for images of ``size_px``.

    Raises:
        ValueError: it is no such name.
    """
    library, separator, name = text.partition("/")
    if not separator and text in (names := {f"resnet{depth}": depth for depth in (8, 10, 18, 50)}):
        small = {"stem": "small"} if size_px <= 64 else {}
        return ResNetSpec.model_validate({"depth": names[text], **small})
    if library not in ("timm", "torchvision", "open_clip") or not name:
        raise ValueError(
            "a backbone by name is resnet8, resnet10, resnet18, resnet50, timm/NAME, torchvision/NAME or "
            f"open_clip/NAME, or FILE.py:FUNCTION on the command line; found {text!r:.80}"
        )
    if library == "open_clip" and with_text_tower:
        return OpenCLIPSpec(config=name)
    return ExternalSpec.model_validate({"library": library, "name": name, "size_px": size_px})


class ViewsSpec(Spec):
    """Random augmentation of one image into a view; every parameter is drawn per sample."""

    size_px: int = Field(default=224, ge=8, le=1024)
    crop: Literal["resized", "fixed"] = "resized"
    """resized: a box of random area and shape, brought to size_px. fixed: a box of size_px, its pixels as they are."""
    crop_scale: tuple[Fraction, Fraction] = (0.2, 1.0)
    """Area of a resized crop as a fraction of the image's."""
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    flip_p: Fraction = 0.5
    brightness: float = Field(default=0.4, ge=0.0)
    contrast: float = Field(default=0.4, ge=0.0)
    saturation: float = Field(default=0.4, ge=0.0)
    hue: float = Field(default=0.1, ge=0.0, le=0.5)
    jitter_p: Fraction = 0.8
    grey_p: Fraction = 0.2
    blur_p: Fraction = 0.5
    blur_sigma_px: tuple[NotNegative, NotNegative] = (0.1, 2.0)


class SGDSpec(Spec):
    """Stochastic gradient descent."""

    kind: Literal["sgd"] = "sgd"
    lr: float = Field(default=0.06, gt=0.0)
    sgd_momentum: float = Field(default=0.9, ge=0.0, lt=1.0)
    weight_decay: float = Field(default=1e-4, ge=0.0)
    nesterov: bool = False
    decays: Literal["all", "matrices"] = "all"
    """What weight decay acts on: all parameters, or matrices and filters alone, not gains, biases and the logit
    scale."""


class AdamSpec(Spec):
    """Adam with L2 regularisation."""

    kind: Literal["adam"] = "adam"
    lr: float = Field(default=2e-3, gt=0.0)
    weight_decay: float = Field(default=1e-6, ge=0.0)


class AdamWSpec(Spec):
    """AdamW as open_clip uses it: matrices and filters decay, gains, biases and the logit scale do not."""

    kind: Literal["adamw"] = "adamw"
    lr: float = Field(default=1e-3, gt=0.0)
    weight_decay: float = Field(default=0.2, ge=0.0)
    beta2: float = Field(default=0.999, gt=0.0, lt=1.0)


OptimizerSpec = Annotated[AdamSpec | AdamWSpec | SGDSpec, Field(discriminator="kind")]


class CosineSpec(Spec):
    """Cosine decay to zero."""

    kind: Literal["cosine"] = "cosine"
    per: Literal["epoch", "step"] = "epoch"
    warmup_epochs: float = Field(default=0.0, ge=0.0)
    warmup_steps: int = Field(default=0, ge=0)
    """Instead of ``warmup_epochs``, where it is not 0."""


class MilestonesSpec(Spec):
    """Multiply the rate by ``factor`` at each epoch of ``milestones``."""

    kind: Literal["milestones"] = "milestones"
    milestones: tuple[int, ...] = (150, 175)
    factor: float = Field(default=0.2, gt=0.0, le=1.0)
    warmup_steps: int = Field(default=0, ge=0)


ScheduleSpec = Annotated[CosineSpec | MilestonesSpec, Field(discriminator="kind")]


class FitSpec(Spec):
    """How a network is optimised; shared by pre-training and distillation."""

    epochs: int = Field(default=200, ge=1, le=100_000)
    batch_size: int = Field(default=256, ge=2, le=2**20)
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

    def shortage(self, num_images: int) -> str:
        """What is wrong where ``num_images`` do not fill one batch; else empty."""
        if num_images >= self.batch_size:
            return ""
        return (
            f"one batch needs {self.batch_size} images, but there are only {num_images}; "
            "lower batch_size or bring more images"
        )


class RotNetSpec(Method):
    """RotNet: which of four rotations was the image turned by? Every image is seen in all four."""

    kind: Literal["rotnet"] = "rotnet"
    network: ClassVar[str] = "ssl_backdoor.methods.rotnet:RotNet"


class SimCLRSpec(Method):
    """SimCLR."""

    kind: Literal["simclr"] = "simclr"
    network: ClassVar[str] = "ssl_backdoor.methods.simclr:SimCLR"
    has_two_crops: ClassVar[bool] = True
    mixes: ClassVar[bool] = True
    projector_hidden_dim: int = Field(default=2048, ge=1, le=MAX_DIM)
    embedding_dim: int = Field(default=128, ge=1, le=MAX_DIM)
    temperature: float = Field(default=0.1, gt=0.0)


class SimSiamSpec(Method):
    """SimSiam."""

    kind: Literal["simsiam"] = "simsiam"
    network: ClassVar[str] = "ssl_backdoor.methods.simsiam:SimSiam"
    has_two_crops: ClassVar[bool] = True
    mixes: ClassVar[bool] = True
    projector_hidden_dim: int = Field(default=2048, ge=1, le=MAX_DIM)
    embedding_dim: int = Field(default=2048, ge=1, le=MAX_DIM)
    predictor_hidden_dim: int = Field(default=512, ge=1, le=MAX_DIM)


class MoCoV2Spec(Method):
    """MoCo v2 as in Saha et al.'s code."""

    kind: Literal["moco_v2"] = "moco_v2"
    network: ClassVar[str] = "ssl_backdoor.methods.moco_v2:MoCoV2"
    has_two_crops: ClassVar[bool] = True
    mixes: ClassVar[bool] = True
    projector_hidden_dim: int = Field(default=512, ge=1, le=MAX_DIM)
    embedding_dim: int = Field(default=128, ge=1, le=MAX_DIM)
    queue_size: int = Field(default=65_536, ge=1, le=MAX_QUEUE)
    temperature: float = Field(default=0.2, gt=0.0)
    ema_decay: float = Field(default=0.999, ge=0.0, le=1.0)
    shuffle_bn: bool = True


class BYOLSpec(Method):
    """BYOL as in Saha et al.'s code."""

    kind: Literal["byol"] = "byol"
    network: ClassVar[str] = "ssl_backdoor.methods.byol:BYOL"
    has_two_crops: ClassVar[bool] = True
    mixes: ClassVar[bool] = True
    projector_hidden_dim: int = Field(default=1024, ge=1, le=MAX_DIM)
    embedding_dim: int = Field(default=128, ge=1, le=MAX_DIM)
    predictor_hidden_dim: int = Field(default=1024, ge=1, le=MAX_DIM)
    ema_decay_start: float = Field(default=0.99, ge=0.0, le=1.0)
    """Rises to 1 by a cosine over training."""
    ema_per: Literal["epoch", "step"] = "epoch"
    heads_see: Literal["group", "batch"] = "group"
    """Whether BatchNorm of projector and predictor takes the statistics of a group, as the backbone's, or of the whole
    batch, as in Saha et al.'s code."""


class MSFSpec(Method):
    """Mean shift for self-supervised learning."""

    kind: Literal["msf"] = "msf"
    network: ClassVar[str] = "ssl_backdoor.methods.msf:MSF"
    has_two_crops: ClassVar[bool] = True
    mixes: ClassVar[bool] = True
    projector_hidden_dim: int = Field(default=1024, ge=1, le=MAX_DIM)
    embedding_dim: int = Field(default=128, ge=1, le=MAX_DIM)
    predictor_hidden_dim: int = Field(default=1024, ge=1, le=MAX_DIM)
    queue_size: int = Field(default=128_000, ge=1, le=MAX_QUEUE)
    neighbours: int = Field(default=5, ge=1)
    """The target's nearest embeddings in the queue, the target itself among them, that a query is pulled to."""
    ema_decay: float = Field(default=0.99, ge=0.0, le=1.0)
    weak_target: bool = True
    """The target's view is cropped and flipped only; fit.views is the query's."""

    def views(self, views: ViewsSpec) -> tuple[ViewsSpec, ...]:
        """The query's and the target's."""
        crop_and_flip = {"jitter_p": 0.0, "grey_p": 0.0, "blur_p": 0.0}
        return (views, views.model_copy(update=crop_and_flip)) if self.weak_target else ()


class JigsawSpec(Method):
    """Jigsaw: which permutation were the nine tiles of the image shuffled by?"""

    kind: Literal["jigsaw"] = "jigsaw"
    network: ClassVar[str] = "ssl_backdoor.methods.jigsaw:Jigsaw"
    num_permutations: int = Field(default=2000, ge=2, le=10_000)
    """Chosen far apart: each next one has the largest mean Hamming distance to those before."""
    tile_px: int = Field(default=64, ge=2)
    """Side of a tile, cut at random from its cell of fit.views.size_px // 3."""
    tile_dim: int = Field(default=512, ge=1, le=MAX_DIM)
    """Each tile's features pass one linear layer, shared by the nine, to so many."""
    hidden_dim: int = Field(default=4096, ge=1, le=MAX_DIM)

    def backbone_px(self, views: ViewsSpec) -> int:
        """A tile's."""
        return self.tile_px

    def check(self, train: "TrainSpec") -> None:
        """The nine tiles lie in cells of a third of the view."""
        side = train.fit.views.size_px
        if self.tile_px > side // 3:
            raise ValueError(
                f"jigsaw's tiles of {self.tile_px} px need images of at least {3 * self.tile_px} px, found views "
                f"of {side} px; raise train.fit.views.size_px or lower train.method.tile_px"
            )


class MAESpec(Method):
    """Masked autoencoder."""

    kind: Literal["mae"] = "mae"
    network: ClassVar[str] = "ssl_backdoor.methods.mae:MAE"
    backbone_kind: ClassVar[str] = "vit"
    mask_ratio: float = Field(default=0.75, gt=0.0, lt=1.0)
    decoder_dim: int = Field(default=512, ge=4, le=4096)
    """A multiple of 4 (positions) and of ``decoder_heads``."""
    decoder_depth: int = Field(default=8, ge=1, le=48)
    decoder_heads: int = Field(default=16, ge=1)
    norm_pixels: bool = True
    """The target is each patch's pixels with the patch's own mean and variance taken out."""

    @model_validator(mode="after")
    def _divides(self) -> Self:
        if self.decoder_dim % 4 or self.decoder_dim % self.decoder_heads:
            raise ValueError(
                f"decoder_dim {self.decoder_dim} must be a multiple of 4 and of decoder_heads {self.decoder_heads}"
            )
        return self


class CLIPSpec(Method):
    """CLIP: images and captions meet in one space under the symmetric contrastive loss."""

    kind: Literal["clip"] = "clip"
    network: ClassVar[str] = "ssl_backdoor.methods.clip:CLIP"
    backbone_kind: ClassVar[str] = "open_clip"
    has_text_tower: ClassVar[bool] = True
    initial_temperature: float = Field(default=0.07, gt=0.0)
    """The scale 1 / temperature is learnt, and held at 100 or below."""
    micro_batch_size: int = Field(default=0, ge=0)
    """Pairs that pass the towers at once; the loss still sees the whole batch (feature caching: towers run twice).
    0: the whole batch. BatchNorm statistics are then those of a micro-batch."""


class TrainSpec(Spec):
    """Pre-training: labels are never looked at, captions by CLIP alone."""

    method: MethodSpec
    backbone: BackboneSpec = ResNetSpec()
    fit: FitSpec = FitSpec()
    mix_p: Fraction = 0.0
    """Share of the steps whose queries show parts of two images and are pulled to both (i-CutMix)."""
    crops: Literal["independent", "localized"] = "independent"
    """Of an image's two views. localized: the second is cropped within or next to the first."""
    crop_margin: Fraction = 0.2
    """Of localized crops: share of the first one's height and width, on each side, that the second may lie beyond."""

    @model_validator(mode="before")
    @classmethod
    def _name_backbone(cls, data: Any) -> Any:
        """A backbone may be given by its name, see ``backbone_of``."""
        if not isinstance(data, dict) or not isinstance(text := data.get("backbone"), str):
            return data
        method = TypeAdapter[Method](MethodSpec).validate_python(data.get("method"))
        side_px = method.backbone_px(FitSpec.model_validate(data.get("fit", {})).views)
        return {**data, "backbone": backbone_of(text, side_px, with_text_tower=method.has_text_tower)}

    @model_validator(mode="after")
    def _fits(self) -> Self:
        wanted, side_px = self.method.backbone_kind, self.method.backbone_px(self.fit.views)
        if self.backbone.kind != wanted and not (wanted == "resnet" and isinstance(self.backbone, ExternalSpec)):
            raise ValueError(
                f"method {self.method.kind} trains a backbone of kind {wanted}, found {self.backbone.kind}; "
                f"set train.backbone.kind to {wanted}"
            )
        if isinstance(self.backbone, ExternalSpec) and self.backbone.size_px not in (0, side_px):
            raise ValueError(
                f"backbone.size_px {self.backbone.size_px} must be the side of the images that method "
                f"{self.method.kind} trains on, {side_px} px"
            )
        if isinstance(self.backbone, ViTSpec) and self.fit.views.size_px % self.backbone.patch_px:
            raise ValueError(
                f"train.fit.views.size_px {self.fit.views.size_px} must be a multiple of "
                f"patch_px {self.backbone.patch_px}"
            )
        cannot = {"mix_p": self.mix_p > 0 and not self.method.mixes}
        cannot["crops"] = self.crops == "localized" and not self.method.has_two_crops
        for name in (name for name, is_wrong in cannot.items() if is_wrong):
            raise ValueError(
                f"train.{name}={getattr(self, name)} is for methods that pull the views of an image together, such as "
                f"byol, found method {self.method.kind}; leave it out or take another method"
            )
        if self.crops == "localized" and self.fit.views.crop == "fixed":
            raise ValueError("train.crops=localized is of crops of random size, found train.fit.views.crop=fixed")
        self.method.check(self)
        return self
