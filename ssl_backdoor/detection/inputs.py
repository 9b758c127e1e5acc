"""Detectors that score each input by itself, at test time."""

import abc
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from ssl_backdoor.specs.detector import Detector, Level

if TYPE_CHECKING:
    from torch import Tensor

    from ssl_backdoor.detection.pool import Detection, Pool
    from ssl_backdoor.progress import OnProgress


class InputDetector(Detector):
    """Scores each input by itself, at test time. Abstract.

    p-values are split-conformal: other test images, known to be clean and in the pool among the rest, are what a score
    is compared with. A score that is not a number says that nothing was found to score.
    """

    level: ClassVar[Level] = "input"
    num_images: int = Field(default=500, ge=1)
    """Test images that are judged, drawn at random: each clean, under the trigger and under an unseen one; fewer where
    there are fewer."""
    num_references: int = Field(default=500, ge=1)
    """Other test images, which p-values compare with, so that they are at least 1 / (references + 1); at most half of
    all. A false-positive rate of 5 % needs 19 or more."""

    @abc.abstractmethod
    def score(self, pool: "Pool", encoder: Path, seed: int, on_progress: "OnProgress") -> "Tensor":
        """Of each of ``pool``: float (N,), larger is more suspicious; arguments and errors as ``detect``.

        The score of an image must not depend on which others are in the pool, or p-values mean nothing.
        """

    @property
    @abc.abstractmethod
    def card(self) -> Mapping[str, Any]:
        """What scores can only be compared under: input_range, normalisation, divisor, ...; plain JSON data."""

    def parts(self, num_images: int) -> tuple[int, int]:
        """Of so many test images how many are references, and how many others are judged."""
        references = min(self.num_references, num_images // 2)
        return references, min(self.num_images, num_images - references)

    def work(self, num_images: int) -> float:
        """Inputs: the references, and each other image clean, under the trigger and under an unseen one."""
        references, judged = self.parts(num_images)
        return references + 3 * judged

    def detect(self, pool: "Pool", encoder: Path, seed: int, on_progress: "OnProgress") -> "Detection":
        """See ``Detector``; whoever knows the references makes the p-values."""
        from ssl_backdoor.detection.pool import Detection

        return Detection(self.score(pool, encoder, seed, on_progress), None, "none", 0, self.card)
