"""DRUPE (Tao et al. 2024, S&P), a BadEncoder that hides among clean features; its objective: ``methods/drupe.py``."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from ssl_backdoor.specs import FitSpec, SGDSpec
from ssl_backdoor.tampering.references import CONSTANT, REFERENCE_VIEWS, ReferenceTamper

if TYPE_CHECKING:
    from ssl_backdoor.methods.badencoder import Pair
    from ssl_backdoor.methods.build import Backbone
    from ssl_backdoor.methods.drupe import DRUPE


class DRUPESpec(ReferenceTamper):
    """DRUPE: triggered images are spread over several references and over the clean features.

    The defaults are the paper's code's: three references, lr 0.05, 120 epochs; name epochs of ``fit``.
    """

    kind: Literal["drupe"] = "drupe"
    num_references: int = Field(default=3, ge=2, le=100)
    warmup_epochs: int = Field(default=1, ge=0)
    """Only the references are spread."""
    first_epochs: int = Field(default=5, ge=0)
    """Then triggered images are pulled, with no care for how they lie; 3 on ImageNet."""
    adapt_from_epoch: int = Field(default=21, ge=0)
    """From here on the weights of both stealth terms follow from what an epoch reached."""
    stealth_weight: float = Field(default=0.1, ge=0.0)
    """Where both begin."""
    utility_weight: float = Field(default=1.0, ge=0.0)
    fit: FitSpec = FitSpec(
        epochs=120,
        batch_size=256,
        views=REFERENCE_VIEWS,
        optimizer=SGDSpec(lr=0.05, weight_decay=5e-4),
        schedule=CONSTANT,
    )

    def objective(
        self, clean: "Backbone", tampered: "Backbone", pairs: "Sequence[Pair]", seed: int, per_epoch: int
    ) -> "DRUPE":
        """See ``ReferenceTamper``."""
        from ssl_backdoor.methods.drupe import DRUPE

        return DRUPE(self, clean, tampered, pairs, seed, per_epoch)
