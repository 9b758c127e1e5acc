"""Which images and captions, and the frame they are stored in."""

import warnings
from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from ssl_backdoor.specs.base import Fraction, Spec
from ssl_backdoor.specs.trigger import TriggerSpec


class FilesSourceSpec(Spec):
    """Images the user brings: a folder, an archive or shards. The path itself is given at run time."""

    kind: Literal["files"] = "files"
    layout: Literal["auto", "folder", "cifar", "webdataset", "pairs", "official", "parquet"] = "auto"
    """folder: split/class/file, also in a tar, tar.gz or zip; cifar: the official archives; webdataset: shards;
    pairs: a CSV, TSV or Parquet table of image path and caption; official: STL-10, GTSRB, Flowers-102 or Oxford-IIIT
    Pets, unpacked as torchvision has them; parquet: files that hold the images, of Hugging Face or img2dataset."""
    path_column: str = ""
    """Of a pairs table; empty takes the first of filepath, path, image, file, filename that is there."""
    caption_column: str = ""
    """Of a pairs table; empty takes the first of caption, captions, title, text that is there."""


class ScenesSourceSpec(Spec):
    """An embedded, procedurally drawn, captioned image set; colours and textures lean with the class."""

    kind: Literal["scenes"] = "scenes"
    num_classes: int = Field(default=5, ge=2, le=10)
    train_per_class: int = Field(default=1000, ge=1, le=100_000)
    test_per_class: int = Field(default=1000, ge=0, le=100_000)
    side_px: int = Field(default=64, ge=16, le=512)
    hue_lean: Fraction = 0.75
    """Share of the images whose hue leans towards that of their class."""
    seed: int = Field(default=0, ge=0)


SourceSpec = Annotated[FilesSourceSpec | ScenesSourceSpec, Field(discriminator="kind")]


class OwnTestSpec(Spec):
    """Test images are those of the source."""

    kind: Literal["own"] = "own"


TestSourceSpec = Annotated[OwnTestSpec | FilesSourceSpec, Field(discriminator="kind")]


class SourceCaptionsSpec(Spec):
    """Captions as they come with the images."""

    kind: Literal["source"] = "source"


class TemplateCaptionsSpec(Spec):
    """Captions written from the class by a seeded captioner: templates, synonyms, adjectives."""

    kind: Literal["templates"] = "templates"
    per_image: int = Field(default=1, ge=1, le=10)
    seed: int = Field(default=0, ge=0)


CaptionsSpec = Annotated[SourceCaptionsSpec | TemplateCaptionsSpec, Field(discriminator="kind")]


TxtCaptions = Literal["whole", "lines"]
SplitName = Literal["train", "val", "test", "ignore"]


def _pairs_of(value: object) -> object:
    """An object's entries as pairs."""
    return tuple(value.items()) if isinstance(value, Mapping) else value


SplitNames = Annotated[
    tuple[tuple[str, SplitName], ...], BeforeValidator(_pairs_of), AfterValidator(lambda pairs: tuple(sorted(pairs)))
]


class NoStickersSpec(Spec):
    """Training images as they come."""

    kind: Literal["none"] = "none"


class PatchStickersSpec(Spec):
    """A patch on a share of the training images of ALL classes, so that a patch as such means nothing.

    Of clean and of poisoned data alike, and never on test images. Poisons are made from images that may bear one; the
    trigger then lies on top.
    """

    kind: Literal["patches"] = "patches"
    style: TriggerSpec
    """Size, look and places; each sticker has a random pattern of its own."""
    train_frac: float = Field(default=0.3, gt=0.0, le=1.0)
    """Chance of each training image to bear one."""
    seed: int = Field(default=0, ge=0)
    """Of who bears one, where and which; never an attack's."""


StickersSpec = Annotated[NoStickersSpec | PatchStickersSpec, Field(discriminator="kind")]


with warnings.catch_warnings():  # pydantic's own `copy`, which model_copy stands for
    warnings.filterwarnings("ignore", 'Field name "copy"')

    class _Storage(Spec):
        copy: bool = True  # type: ignore[assignment]
        """true: the images' bytes are copied into the artifact. false: images in uncompressed tar files stay where they
        lie, on a disk, S3 or https, and the artifact is an index: they are read by ranges, and each is compared with
        the digest that was taken when it was indexed."""


class DatasetSpec(_Storage):
    """Which images, and the frame they are stored in."""

    source: SourceSpec = FilesSourceSpec()
    test_source: TestSourceSpec = OwnTestSpec()
    """own: test images are the source's. files: they come from a second, labelled source, given at run time
    (--test-data): its test split, or all of it where it has none. The first source's own test images are then left
    out, and its other images need no class: so image-caption sets without labels are evaluated."""
    classes: tuple[str, ...] = ()
    """Class names (folder names, e.g. wnids) to keep; empty keeps all. Labels number them in sorted order. With a
    second source training images without a class are kept all the same."""
    splits: SplitNames = ()
    """What names of splits mean that are not known, or mean something else: {"Prueba": "test", "extra": "ignore"}.
    Where the data have test and val, val is left out; {"val": "train"} or {"val": "test"} takes it in."""
    max_train_per_class: int = Field(default=0, ge=0)
    """Keep at most this many training images of each class, drawn by ``subset_seed``; 0 keeps all."""
    max_test_per_class: int = Field(default=0, ge=0)
    keep_fraction: float = Field(default=1.0, gt=0.0, le=1.0)
    """Seeded sub-sample of all that is left, as a fraction of each class; never of a second source's test images."""
    test_fraction: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Share held out as the test split where the source has none."""
    subset_seed: int = Field(default=0, ge=0)
    frame_px: int = Field(default=0, ge=0, le=4096)
    """Side of the stored frame (shorter side resized, centre crop); 0 keeps each image's own size."""
    resident_px: int = Field(default=0, ge=0, le=4096)
    """Side at which images are held when ``frame_px`` is 0, for training and where the evaluation resizes none; 0
    demands that all have one size."""
    resident_filter: Literal["area", "bilinear"] = "area"
    """How images are brought to ``resident_px``: the mean of areas (Pillow's box filter), or the antialiased bilinear
    filter of torchvision's Resize."""
    max_rejected_frac: Fraction = 0.01
    """Ingestion stops when a larger share of the images cannot be read."""
    max_image_pixels: int = Field(default=50_000_000, ge=1, le=1_000_000_000)
    captions: CaptionsSpec = SourceCaptionsSpec()
    txt_captions: TxtCaptions = "whole"
    """Of shards and of files beside images. whole: a .txt is one caption, of however many lines; lines: each line is
    one."""
    captions_required: bool = False
    """An image that has no caption left after cleaning is rejected; a second source's test images need none."""
    max_caption_chars: int = Field(default=1_000, ge=1, le=100_000)
    """An image with a longer caption is rejected: CLIP reads 77 tokens of it."""
    samples_per_shard: int = Field(default=10_000, ge=1)
    stickers: StickersSpec = NoStickersSpec()
    """Patches that mean nothing, drawn on training images as they are stored."""

    @model_validator(mode="after")
    def _stay_unchanged(self) -> Self:
        is_made = self.source.kind == "scenes" or self.stickers.kind != "none"
        if not self.copy and is_made:
            raise ValueError("images that are drawn, or get stickers, cannot stay where they lie: set copy to true")
        return self
