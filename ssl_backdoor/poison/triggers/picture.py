"""A trigger read from an image file, as the ten of UMBCvision/SSL-Backdoor (poison-generation/triggers, 273ca47)."""

import hashlib
from functools import lru_cache
from pathlib import Path
from typing import Literal, Self

import numpy as np
from PIL import Image

from ssl_backdoor.data.images import decode, decode_with_alpha
from ssl_backdoor.errors import DataError
from ssl_backdoor.poison.triggers.grid import GridTriggerSpec
from ssl_backdoor.poison.triggers.patch import PatchTrigger, UInt8Images

_MAX_SOURCE_PIXELS = 50_000_000
_MAX_SOURCE_BYTES = 64 * 2**20


class ImageTriggerSpec(PatchTrigger):
    """A trigger read from an image file."""

    kind: Literal["image"] = "image"
    file: str
    sha256: str = ""
    """Digest of the file; filled in by the command line so that the file's content is part of the key."""
    alpha: Literal["dropped", "kept"] = "dropped"
    """Whether transparent pixels let the image show through; the command line keeps the alpha of a file that has it."""

    @property
    def label(self) -> str:
        """For people."""
        return Path(self.file).name

    @property
    def anonymous(self) -> Self:
        """The same whatever its pixels."""
        return self.model_copy(update={"file": "", "sha256": "", "alpha": "dropped"})

    @property
    def is_from_file(self) -> bool:
        """Yes: a file's."""
        return True

    def unseen(self, seed: int) -> GridTriggerSpec:
        """A smooth grid of ``seed``, the style of the authors' pictures, in this one's size and places."""
        patch = {name: value for name, value in self if name in PatchTrigger.model_fields and name != "kind"}
        return GridTriggerSpec.model_validate({**patch, "seed": seed, "cells": 4, "style": "smooth"})

    def read(self, kept: Path | None = None) -> bytes:
        """Content of the file: of ``kept`` (a poison artifact's copy) or else where the spec says.

        Raises:
            DataError: the file cannot be read.
        """
        path = kept or Path(self.file)
        try:
            if path.exists() and not path.is_file():  # a pipe or a device would never end
                raise DataError(f"the trigger image {path} is not a file: give a readable image")
            with path.open("rb") as file:
                data = file.read(_MAX_SOURCE_BYTES + 1)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise DataError(f"the trigger image {path} cannot be read ({reason}): give a readable image") from error
        if len(data) > _MAX_SOURCE_BYTES:
            raise DataError(f"the trigger image {path} has more than {_MAX_SOURCE_BYTES} bytes: give a smaller one")
        return data

    def with_digest(self) -> Self:
        """The same with the file's digest, and with its alpha kept where it has any.

        Raises:
            DataError: the file cannot be read, or is no image.
        """
        if self.sha256:
            return self
        source = self.read()
        has_alpha = self._decoded(source, keeps_alpha=True).shape[2] == 4
        return self.model_copy(
            update={
                "sha256": hashlib.sha256(source).hexdigest(),
                "alpha": "kept" if has_alpha else self.alpha,
            }
        )

    def render(self, size_px: int, source: bytes | None = None) -> UInt8Images:
        """The picture, read-only: uint8 (size_px, size_px, 3), or 4 channels with its alpha.

        NOTE: it is resized by PIL's BICUBIC, named here because Pillow's default changed from NEAREST in 7.0 and the
        paper's figures depend on it. It becomes a square, whatever its aspect (the paper's are square).

        Raises:
            DataError: ``source`` is not a readable image, or not the one whose digest the spec holds.
        """
        return _render(self, size_px, source)

    def _decoded(self, source: bytes, *, keeps_alpha: bool) -> UInt8Images:
        try:
            return (decode_with_alpha if keeps_alpha else decode)(source, _MAX_SOURCE_PIXELS)
        except DataError as error:
            raise DataError(f"the trigger image {self.file} is unusable ({error}): give a PNG or JPEG") from error


@lru_cache(maxsize=32)
def _render(trigger: ImageTriggerSpec, size_px: int, source: bytes | None) -> UInt8Images:
    if source is None:
        raise DataError(f"the image trigger {trigger.file} was asked for without its file's content: read it first")
    found = hashlib.sha256(source).hexdigest()
    if trigger.sha256 and found != trigger.sha256:
        raise DataError(
            f"the trigger image {trigger.file} has changed: expected sha256 {trigger.sha256}, found {found}; "
            "restore the file or start a new experiment"
        )
    pixels = trigger._decoded(source, keeps_alpha=trigger.alpha == "kept")
    resized = np.array(Image.fromarray(pixels).resize((size_px, size_px), Image.Resampling.BICUBIC))
    resized.flags.writeable = False
    return resized
