"""RoCLIP (Yang et al. 2023), https://arxiv.org/abs/2303.06854: images meet the captions of others.

Compared with https://github.com/BigML-CS-UCLA/RoCLIP/tree/f34a929. In every ``every``-th epoch the positive of image i
is not its caption t_i but the caption nearest to t_i in a bank of earlier ones, so that a caption which only poisons
have is not learnt by heart:

    loss = CLIP(I, B[argmax of T B'])      else      loss = CLIP(I, T)

with I, T the unit embeddings (B, D) of images and edited captions and B the bank (K, D), which gives no gradient: the
text tower stands still in such an epoch.

NOTE: upstream fills the bank in such epochs alone, from the first on. Here every step enters, so that what is looked up
was embedded lately; until the bank is full the loss is CLIP's.
NOTE: images are augmented by the training's own views; captions are edited as in ``word_edits``, without synonyms.

Shapes: b pairs of this replica, B pairs of all replicas, D embedding, K bank, L tokens.
"""

import math
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_backdoor.methods.base import Batch, LossOutput, Replicas, SingleProcess, SSLMethod, tokens_of, views_of
from ssl_backdoor.methods.clip import clip_loss
from ssl_backdoor.methods.clip_towers import ImageTower, TextTower, build_towers
from ssl_backdoor.methods.parts import Queue
from ssl_backdoor.methods.word_edits import WordEdits
from ssl_backdoor.specs import TrainSpec


@final
class RoCLIP(SSLMethod):
    """Both towers, the learnt scale and the bank of captions."""

    num_views = 1
    num_seen: Tensor

    @classmethod
    def build(cls, train: TrainSpec, seed: int, replicas: Replicas | None = None) -> "RoCLIP":
        """See the base; both towers are fresh, as CLIP's."""
        towers: Any = train.backbone
        replicas = replicas or SingleProcess()
        groups = train.fit.bn_groups // replicas.count
        return cls(train.method, *build_towers(towers, seed, bn_groups=groups), seed, replicas)

    def __init__(self, spec: Any, image: ImageTower, text: TextTower, seed: int, replicas: Replicas | None = None):
        super().__init__()
        self.spec = spec
        self.replicas = replicas or SingleProcess()
        self.backbone = image
        self.text = text
        self.edits = WordEdits(text.tokenizer, spec.word_edit_p, seed)
        with torch.no_grad():
            text.logit_scale.fill_(math.log(1 / spec.initial_temperature))
        self.bank = Queue(torch.zeros(spec.bank_size, text.feature_dim))
        self.register_buffer("num_seen", torch.zeros((), dtype=torch.long))
        self.new_texts: Tensor | None = None

    @property
    def text_tower(self) -> TextTower:
        """The text tower that is trained here."""
        return self.text

    def loss(self, batch: Batch) -> LossOutput:
        """CLIP's loss, in every ``every``-th epoch with captions from the bank. Logs ``matched``: whether it was so."""
        (images,) = views_of(batch, self.num_views)
        tokens = self.edits(tokens_of(batch), batch.step, self.replicas)
        image = F.normalize(self.backbone(images).float(), dim=1)  # (b, D)
        text = F.normalize(self.text(tokens).float(), dim=1)
        self.new_texts = self.replicas.all_gather(text.detach())  # (B, D)
        is_matched = batch.epoch % self.spec.every == 0 and int(self.num_seen) >= self.spec.bank_size
        if is_matched:
            text = nearest_in(text.detach(), self.bank.rows)
        scale = self.text.logit_scale.exp()
        logs = {"temperature": 1 / scale.detach(), "matched": torch.tensor(float(is_matched))}
        return LossOutput(clip_loss(image, text, scale, self.replicas), logs)

    def after_step(self, progress: float) -> None:
        """Clamp the logit scale; the batch's captions enter the bank."""
        self.text.clamp_logit_scale_()
        if self.new_texts is not None:
            self.bank.push(self.new_texts)
            self.num_seen.add_(len(self.new_texts))


def nearest_in(rows: Tensor, bank: Tensor) -> Tensor:
    """Of each of ``rows`` (b, D) the row of ``bank`` (K, D) of largest product with it; of equal ones the first."""
    with torch.autocast(rows.device.type, enabled=False):
        return bank[(rows.float() @ bank.float().T).argmax(1)]
