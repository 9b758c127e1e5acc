"""What is put on images: triggers, which answer for themselves (see attack.py)."""

from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from ssl_backdoor.specs.base import Fraction, Spec


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

    def side_frac(self, frame_px: int) -> float | None:
        """Side over that of a frame of ``frame_px``; None where neither is stated (0)."""
        return self.size_frac or (self.size_px / frame_px if frame_px else None)


class GridTriggerSpec(_Stamp):
    """A seeded random RGB grid, enlarged."""

    kind: Literal["grid"] = "grid"
    file: ClassVar[str] = ""
    sha256: ClassVar[str] = ""
    seed: int = Field(default=7, ge=0)
    cells: int = Field(default=3, ge=1, le=64)
    """Cells along one side of the grid."""
    style: Literal["binarised", "flat", "smooth"] = "binarised"
    """binarised: every channel 0 or 255, hard edges; flat: hard edges; smooth: bilinear."""

    @property
    def name(self) -> str:
        """For people, next to a target."""
        return str(self.seed)

    @property
    def label(self) -> str:
        """For people, by itself."""
        return f"trigger {self.seed}"

    @property
    def anonymous(self) -> Self:
        """The same whatever its pixels."""
        return self.unseen(0)

    def unseen(self, seed: int) -> Self:
        """The same patch with other pixels, of ``seed``: a trigger that no encoder was trained on."""
        return self.model_copy(update={"seed": seed})


class ImageTriggerSpec(_Stamp):
    """A trigger read from an image file."""

    kind: Literal["image"] = "image"
    file: str
    sha256: str = ""
    """Digest of the file; filled in by the command line so that the file's content is part of the key."""

    @property
    def name(self) -> str:
        """For people, next to a target."""
        return Path(self.file).name

    @property
    def label(self) -> str:
        """For people, by itself."""
        return self.name

    @property
    def anonymous(self) -> Self:
        """The same whatever its pixels."""
        return self.model_copy(update={"file": "", "sha256": ""})

    def unseen(self, seed: int) -> GridTriggerSpec:
        """A grid of ``seed`` in the picture's size and places: a trigger that no encoder was trained on."""
        patch = {name: value for name, value in self if name in _Stamp.model_fields}
        return GridTriggerSpec.model_validate({**patch, "seed": seed})


TriggerSpec = Annotated[GridTriggerSpec | ImageTriggerSpec, Field(discriminator="kind")]
