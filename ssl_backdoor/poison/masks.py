"""Where the object of an image is: drawn scenes know it, for images of one's own a folder of masks says it."""

import abc
import hashlib
from pathlib import Path
from typing import Annotated, Literal, Self

import numpy as np
import numpy.typing as npt
from PIL import Image
from pydantic import Field

from ssl_backdoor.data.images import decode, encode_png
from ssl_backdoor.data.scenes import draw_mask
from ssl_backdoor.errors import DataError, SpecError
from ssl_backdoor.specs.base import Spec
from ssl_backdoor.specs.data import DatasetSpec, ScenesSourceSpec

_MAX_MASK_BYTES = 64 * 2**20


class _Masks(Spec):
    @abc.abstractmethod
    def has(self, key: str) -> bool:
        """Whether there is a mask of the image ``key``."""

    @abc.abstractmethod
    def mask(self, key: str, dataset: DatasetSpec) -> npt.NDArray[np.uint8] | None:
        """0 outside the object, 255 inside: uint8 (height, width) in the stored frame; None where that is all of it.

        Raises:
            DataError: it cannot be read.
            SpecError: the dataset has none.
        """

    def with_digest(self) -> Self:
        """The same with the digest of its files filled in."""
        return self


class ScenesMasksSpec(_Masks):
    """Of drawn scenes, whose objects are known."""

    kind: Literal["scenes"] = "scenes"
    min_inside: float = Field(default=0.5, gt=0.0, le=1.0)
    """Share of a pixel that has to lie inside the object for it to count."""

    def has(self, key: str) -> bool:
        """See ``_Masks``."""
        return True

    def mask(self, key: str, dataset: DatasetSpec) -> npt.NDArray[np.uint8]:
        """See ``_Masks``."""
        if not isinstance(dataset.source, ScenesSourceSpec):
            raise SpecError(
                "masks of kind scenes exist for drawn scenes alone: give a folder of masks, "
                """--set 'attack.masks={"kind":"folder","folder":"PATH"}'"""
            )
        split, shape, index = key.split("-")
        inside = draw_mask(dataset.source, split, shape, int(index)) >= self.min_inside
        levels = np.where(inside, 255, 0).astype(np.uint8)
        return _framed(encode_png(np.repeat(levels[..., None], 3, axis=2)), dataset)


class WholeMasksSpec(_Masks):
    """The whole image is taken for the object: for images without masks, and weaker than with them."""

    kind: Literal["whole"] = "whole"

    def has(self, key: str) -> bool:
        """See ``_Masks``."""
        return True

    def mask(self, key: str, dataset: DatasetSpec) -> None:
        """None: all of it."""


class FolderMasksSpec(_Masks):
    """PNG files named after the images' keys (KEY.png): white where the object is, in the size of the image."""

    kind: Literal["folder"] = "folder"
    folder: str
    sha256: str = ""
    """Digest of names and contents; filled in by the command line so that the masks are part of the key."""

    def has(self, key: str) -> bool:
        """See ``_Masks``."""
        return (Path(self.folder) / f"{key}.png").is_file()

    def mask(self, key: str, dataset: DatasetSpec) -> npt.NDArray[np.uint8]:
        """See ``_Masks``."""
        file = Path(self.folder) / f"{key}.png"
        try:
            return _framed(_read(file), dataset)
        except DataError as error:
            raise DataError(f"the mask {str(file)!r} is unusable ({error}): give a PNG, white on black") from error

    def with_digest(self) -> Self:
        """The same with the digest of its files filled in.

        Raises:
            DataError: there are none, or one cannot be read.
        """
        if self.sha256:
            return self
        root, digest = Path(self.folder), hashlib.sha256()
        files = sorted(root.rglob("*.png")) if root.is_dir() else []
        if not files:
            raise DataError(f"expected masks called KEY.png in {self.folder!r}, found none: give another folder")
        for file in files:
            digest.update(f"{file.relative_to(root)}\0{hashlib.sha256(_read(file)).hexdigest()}\0".encode())
        return self.model_copy(update={"sha256": digest.hexdigest()})


MasksSpec = Annotated[WholeMasksSpec | ScenesMasksSpec | FolderMasksSpec, Field(discriminator="kind")]


def _read(file: Path) -> bytes:
    try:
        if not file.is_file():
            raise DataError(f"expected a mask at {str(file)!r}, found no file")
        with file.open("rb") as opened:
            data = opened.read(_MAX_MASK_BYTES + 1)
    except OSError as error:
        raise DataError(f"the mask {str(file)!r} cannot be read ({error.strerror})") from error
    if len(data) > _MAX_MASK_BYTES:
        raise DataError(f"the mask {str(file)!r} has more than {_MAX_MASK_BYTES} bytes")
    return data


def _framed(data: bytes, dataset: DatasetSpec) -> npt.NDArray[np.uint8]:
    grey = Image.fromarray(decode(data, dataset.max_image_pixels, dataset.frame_px)).convert("L")
    return np.where(np.asarray(grey) >= 128, 255, 0).astype(np.uint8)
