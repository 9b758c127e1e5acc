"""What is put on images: a trigger is a function from image to image, which answers for itself (see attack.py)."""

import abc
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, NamedTuple, Self

from ssl_backdoor.specs.family import Among, Idea

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

Frame = Literal["train", "test"]
"""train: the stored image, when poisoning; test: the evaluated frame."""


class Box(NamedTuple):
    """Where a trigger lies, in px of its frame; ``x`` and ``y`` are the left and upper edges."""

    x: int
    y: int
    width: int
    height: int

    def on(self, shape: Sequence[int], place: "Box") -> "Box":
        """The same once its image, of ``shape`` (height, width, ...), is resized to ``place`` of a larger one."""
        down, across = place.height / shape[0], place.width / shape[1]
        sizes = max(1, round(self.width * across)), max(1, round(self.height * down))
        x, y = min(round(self.x * across), place.width - sizes[0]), min(round(self.y * down), place.height - sizes[1])
        return Box(place.x + x, place.y + y, *sizes)


class Stamped(NamedTuple):
    """Images under a trigger."""

    images: "npt.NDArray[np.uint8]"
    """uint8 (B, height, width, 3), in memory of their own."""
    boxes: tuple[Box, ...] | None
    """Where the trigger lies on each; None for one that has no box, such as one that covers all of the image."""


class Trigger(Idea):
    """A trigger. Abstract.

    Pure: equal specs, images, seeds and source give equal pixels, when poisoning and when testing alike.
    """

    family: ClassVar[str] = "trigger"

    @property
    def name(self) -> str:
        """For people, next to a target."""
        return self.label

    @property
    def anonymous(self) -> Self:
        """The same whatever its pixels, so that triggers of one size and place compare as equal."""
        return self

    @property
    def is_from_file(self) -> bool:
        """Whether its pixels are a file's, which ``read`` reads."""
        return False

    @property
    def is_fresh(self) -> bool:
        """Whether its pattern is drawn anew for each image: then none can be found by inversion or by density."""
        return False

    @abc.abstractmethod
    def apply(
        self, images: "npt.NDArray[np.uint8]", seeds: Sequence[int], frame: Frame, source: bytes | None = None
    ) -> Stamped:
        """``images`` (uint8, B x height x width x 3; left as they are) with the trigger on each.

        Args:
            images: whole frames.
            seeds: of each image's own stream, from which alone chance is drawn.
            frame: which frame they are.
            source: what ``read`` gave.

        Raises:
            SpecError: the trigger does not fit the images.
            DataError: its file cannot be used.
        """

    def apply_one(
        self, image: "npt.NDArray[np.uint8]", seed: int, frame: Frame, source: bytes | None = None
    ) -> "tuple[npt.NDArray[np.uint8], Box | None]":
        """``apply`` of one image, uint8 (height, width, 3): it under the trigger, and where that lies."""
        stamped = self.apply(image[None], [seed], frame, source)
        return stamped.images[0], stamped.boxes[0] if stamped.boxes else None

    def unseen(self, seed: int) -> "Trigger | None":
        """One of its style that no encoder has seen: other pixels, of ``seed``, in its places and of its strength.

        By default None: the trigger has no other patterns, so it is measured without that control.
        """
        return None

    def side_frac(self, frame_px: int) -> float | None:
        """Side of its box over that of a frame of ``frame_px``; None where there is none."""
        return None

    def read(self, kept: Path | None = None) -> bytes | None:
        """Content of its file: of ``kept`` (a poison artifact's copy) or else where the spec says; None without one.

        Raises:
            DataError: the file cannot be read.
        """
        return None

    def with_digest(self) -> Self:
        """The same with its file's digest filled in, so that the content is part of every key."""
        return self

    def shown(self, side_px: int, source: bytes | None = None) -> "npt.NDArray[np.uint8]":
        """For people: uint8 (side_px, side_px, 3); by default an even grey image under the trigger."""
        import numpy as np

        grey = np.full((side_px, side_px, 3), 128, np.uint8)
        return self.apply_one(grey, 0, "test", source)[0]


TriggerSpec = Annotated[Trigger, Among("trigger")]
