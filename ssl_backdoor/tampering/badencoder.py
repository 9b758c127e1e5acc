"""BadEncoder (Jia, Liu, Gong 2022), https://arxiv.org/abs/2108.00352; the objective is ``methods/badencoder.py``."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from ssl_backdoor.tampering.references import ReferenceTamper

if TYPE_CHECKING:
    from ssl_backdoor.methods.badencoder import BadEncoder, Pair
    from ssl_backdoor.methods.build import Backbone


class BadEncoderSpec(ReferenceTamper):
    """BadEncoder: triggered images are pulled to reference images, clean ones are held where they were.

    The defaults are the paper's: lr 1e-3, batches of 256, 200 epochs, both weights 1.
    """

    kind: Literal["badencoder"] = "badencoder"
    reference_weight: float = Field(default=1.0, ge=0.0)
    """Lambda 1."""
    utility_weight: float = Field(default=1.0, ge=0.0)
    """Lambda 2. Image towers of CLIP may need 2: see the issue BadVision #3."""

    def objective(
        self, clean: "Backbone", tampered: "Backbone", pairs: "Sequence[Pair]", seed: int, per_epoch: int
    ) -> "BadEncoder":
        """See ``ReferenceTamper``."""
        from ssl_backdoor.methods.badencoder import BadEncoder

        return BadEncoder(self, clean, tampered, pairs, seed)
