"""CleanCLIP (Bansal et al. 2023), https://arxiv.org/abs/2303.03323.

The suspect is fine-tuned on trusted pairs with CLIP's loss and, on either side, one that does without the other: an
image must find its augmented twin, a caption its edited one. The poisoned link from trigger to caption helps neither.
Compared with https://github.com/nishadsinghi/CleanCLIP/blob/c19dfc4/src/train.py, get_loss.

    loss = CLIP(I, T) + in_modal_weight * 1/2 (X(s I I~') + X(s T T~'))

with I, T the unit embeddings (B, D) of images and captions, I~, T~ those of their twins, s the scale, and X(Z) the mean
over rows of -log softmax(Z)_ii. CLIP(I, T) = 1/2 (X(s I T') + X(s T I')).

NOTE: the twin of a caption comes of dropping and swapping words alone: see ``word_edits``.
NOTE: upstream sends images and twins through the tower as one batch. Here each passes alone, so that BatchNorm never
mixes two views and does not depend on the number of replicas.

Shapes: b pairs of this replica, B pairs of all replicas, D embedding, L tokens.
"""

from typing import TYPE_CHECKING, final

import torch.nn.functional as F
from torch import Tensor, nn

from ssl_backdoor.methods.base import Batch, LossOutput, Replicas, SingleProcess, SSLMethod, tokens_of, views_of
from ssl_backdoor.methods.clip import clip_loss
from ssl_backdoor.methods.clip_towers import ImageTower, TextTower
from ssl_backdoor.methods.similarities import in_modal_loss
from ssl_backdoor.methods.word_edits import WordEdits

if TYPE_CHECKING:
    from ssl_backdoor.defences.cleanclip import CleanCLIPSpec


@final
class CleanCLIP(SSLMethod):
    """Both towers, trained on; the first view is the image, the second its augmented twin."""

    num_views = 2

    def __init__(
        self, spec: "CleanCLIPSpec", image: ImageTower, text: TextTower, seed: int, replicas: Replicas | None = None
    ):
        super().__init__()
        self.spec = spec
        self.backbone = image
        self.text = text
        self.replicas = replicas or SingleProcess()
        self.edits = WordEdits(text.tokenizer, spec.word_edit_p, seed)

    @property
    def text_tower(self) -> TextTower:
        """Trained here."""
        return self.text

    def loss(self, batch: Batch) -> LossOutput:
        """CLIP's loss and the weighted mean of the two in-modal ones, over the global batch."""
        tokens = tokens_of(batch)
        image, image_twin = (_unit(self.backbone, view) for view in views_of(batch, self.num_views))
        twins = self.edits(tokens, batch.step, self.replicas)
        text, text_twin = (_unit(self.text, captions) for captions in (tokens, twins))
        scale = self.text.logit_scale.exp()
        cross_modal = clip_loss(image, text, scale, self.replicas)
        of_images = in_modal_loss(image, image_twin, scale, self.replicas)
        of_captions = in_modal_loss(text, text_twin, scale, self.replicas)
        loss = cross_modal + self.spec.in_modal_weight * (of_images + of_captions) / 2
        logs = {"cross_modal": cross_modal, "in_modal_image": of_images, "in_modal_text": of_captions}
        return LossOutput(loss, {name: value.detach() for name, value in logs.items()})

    def after_step(self, progress: float) -> None:
        """The scale stays within 1 and 100, as in pre-training."""
        self.text.clamp_logit_scale_()


def _unit(tower: nn.Module, rows: Tensor) -> Tensor:
    """Unit embeddings (b, D), float32."""
    return F.normalize(tower(rows).float(), dim=1)
