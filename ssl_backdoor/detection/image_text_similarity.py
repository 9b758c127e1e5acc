"""Image-text similarity: the filter within SafeCLIP (Yang et al. 2024, https://arxiv.org/abs/2310.05862).

Compared with https://github.com/BigML-CS-UCLA/SafeCLIP. A caption that does not belong to its image is less similar to
it: the score is minus their cosine. The cosines of all pairs are taken for a mixture of two normal distributions; a
pair is safe, and kept, if it belongs to the one of higher mean with a probability of at least ``safe_p``.

NOTE: SafeCLIP splits in the course of training; here the encoder was trained on all pairs, and may have learnt the
poisons by heart.
NOTE: on one hump all pairs are kept; see ``methods/pair_mixture.py``.
"""

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from ssl_backdoor.detection.ranking import RankingFilter
from ssl_backdoor.seeds import sub_seed

if TYPE_CHECKING:
    from torch import Tensor

    from ssl_backdoor.detection.pool import Pool
    from ssl_backdoor.progress import OnProgress


class ImageTextSimilaritySpec(RankingFilter):
    """Leaves out the pairs whose image and caption agree least."""

    kind: Literal["image_text_similarity"] = "image_text_similarity"
    form: Literal["mixture", "cosine"] = "mixture"
    """cosine: without the mixture, so that the budget alone says how many go."""
    safe_p: float = Field(default=0.9, gt=0.0, lt=1.0)
    least_gap_sd: float = Field(default=0.5, ge=0.0)
    needs_encoder: ClassVar[bool] = True
    needs_captions: ClassVar[bool] = True
    card: ClassVar[dict[str, str]] = {
        "input_range": "[0, 255], as stored",
        "normalisation": "the encoder's own; features of both towers brought to unit length",
        "divisor": "none",
        "several captions": "the mean of their cosines",
    }

    @property
    def label(self) -> str:
        """For people."""
        return "image-text similarity"

    def score(self, pool: "Pool", encoder: Path, seed: int, on_progress: "OnProgress") -> "Tensor":
        """As ``RankingFilter.score``.

        Raises:
            DataError: an image has no caption.
        """
        return -pool.caption_cosines(encoder)

    def is_suspicious(self, scores: "Tensor", seed: int) -> "Tensor":
        """What is not safe."""
        if self.form == "cosine":
            return super().is_suspicious(scores, seed)
        from ssl_backdoor.methods.pair_mixture import least_safe

        cut = least_safe(-scores.numpy(), self.safe_p, self.least_gap_sd, sub_seed(seed, "mixture"))
        return -scores < cut
