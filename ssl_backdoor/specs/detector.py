"""Who tells poisoned samples, triggered inputs or backdoored encoders from others. One file each in ``detection/``."""

import abc
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

from ssl_backdoor.specs.family import Among, Idea

if TYPE_CHECKING:
    from pathlib import Path

    from ssl_backdoor.detection.pool import Detection, Pool
    from ssl_backdoor.progress import OnProgress

Level = Literal["sample", "input", "encoder"]


class Detector(Idea):
    """A detector. It never sees the plan of an attack, nor which inputs bear a trigger. Abstract."""

    family: ClassVar[str] = "detector"
    level: ClassVar[Level]
    """What is judged. sample: each training sample; input: test images, each clean and under triggers; encoder: the
    encoder as a whole, with the clean test images at hand."""
    needs_captions: ClassVar[bool] = False
    """Whether it works on a model with a text tower alone."""
    needs_gradients: ClassVar[bool] = False
    """Whether it needs the encoder's gradients, and not its features alone."""

    @property
    def reduced(self) -> tuple[Self, float]:
        """The same with less work, and by what factor its cost is larger: from that it is estimated."""
        return self, 1.0

    def work(self, num_images: int) -> float:
        """What its cost grows with, of so many images at hand, for an estimate."""
        return num_images

    @abc.abstractmethod
    def detect(self, pool: "Pool", encoder: "Path", seed: int, on_progress: "OnProgress") -> "Detection":
        """Judge each of ``pool`` (of level encoder: one score) by the encoder in folder ``encoder``.

        Args:
            pool: the images, in an order that tells nothing.
            encoder: folder with ``backbone.safetensors`` and ``backbone.json``.
            seed: names every random stream.
            on_progress: told about once a second.
        """


DetectorSpec = Annotated[Detector, Among("detector")]
