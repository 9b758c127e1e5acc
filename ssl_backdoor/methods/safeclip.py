"""SafeCLIP (Yang et al. 2024), https://arxiv.org/abs/2310.05862: only pairs that agree are learnt as pairs.

Compared with https://github.com/BigML-CS-UCLA/SafeCLIP/tree/91488ce. In three phases of epochs:

    first ``warm_epochs``   in-modal alone: W = 1/2 (N(I2, nn I1) + N(T2, nn T1))
    then ``slow_epochs``    cross-modal, slowly: ``slow_weight`` * C, with C = 1/2 (CLIP(I1, T2) + CLIP(I2, T1))
    afterwards              C over the safe pairs of the batch + W over the others

with I1, I2 and T1, T2 the unit embeddings of two views of an image and of two edits of its caption, nn the nearest in a
bank of earlier embeddings (Dwibedi et al. 2021) and N(X, Y) the mean of -log softmax(s X Y')_ii. When the third phase
begins the safe pairs are those of ``pair_mixture``, a share q of all; in each later epoch q is 0.01 larger, up to
``most_safe``, and the pairs of highest cosine are safe.

NOTE: upstream goes through the data twice an epoch, first the risky pairs, then the safe ones, with two schedules on
one optimiser. Here each batch is parted, so that the loop is that of any method.
NOTE: upstream embeds all pairs before each epoch. Here the cosines are those of the last ``window`` pairs as they were
trained on; a pair is safe by its present cosine, against the value that a share of q reached.
NOTE: upstream lowers the rate in the slow phase (5e-6 against 5e-4). Here the loss is weighed by their ratio: AdamW's
second moment is an average over a thousand steps, so that its updates are smaller by about as much.
NOTE: on one hump of cosines the mixture says nothing; then q is ``fallback_safe``, upstream's own where it resumes.
NOTE: the twins of captions come of dropping and swapping words alone.

Shapes: b pairs of this replica, B pairs of all replicas, D embedding, L tokens.
"""

import math
from typing import Any, final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_backdoor.methods.base import Batch, LossOutput, Replicas, SingleProcess, SSLMethod, tokens_of, views_of
from ssl_backdoor.methods.clip_towers import ImageTower, TextTower, build_towers
from ssl_backdoor.methods.pair_mixture import least_safe
from ssl_backdoor.methods.parts import Queue
from ssl_backdoor.methods.roclip import nearest_in
from ssl_backdoor.methods.word_edits import WordEdits
from ssl_backdoor.seeds import sub_seed
from ssl_backdoor.specs import TrainSpec

SAFE_P, LEAST_GAP_SD, GROWTH = 0.9, 0.5, 0.01


@final
class SafeCLIP(SSLMethod):
    """Both towers, the learnt scale, a bank of either modality, and the cosines of the pairs seen last."""

    num_views = 2
    cosines: Tensor
    num_seen: Tensor
    epoch: Tensor
    safe: Tensor

    @classmethod
    def build(cls, train: TrainSpec, seed: int, replicas: Replicas | None = None) -> "SafeCLIP":
        """See the base; both towers are fresh, as CLIP's."""
        towers: Any = train.backbone
        replicas = replicas or SingleProcess()
        groups = train.fit.bn_groups // replicas.count
        return cls(train.method, *build_towers(towers, seed, bn_groups=groups), seed, replicas)

    def __init__(self, spec: Any, image: ImageTower, text: TextTower, seed: int, replicas: Replicas | None = None):
        super().__init__()
        self.spec = spec
        self.seed = seed
        self.replicas = replicas or SingleProcess()
        self.backbone = image
        self.text = text
        self.edits = WordEdits(text.tokenizer, spec.word_edit_p, seed)
        with torch.no_grad():
            text.logit_scale.fill_(math.log(1 / spec.initial_temperature))
        self.images, self.texts = (Queue(torch.zeros(spec.bank_size, text.feature_dim)) for _ in range(2))
        self.register_buffer("cosines", torch.zeros(spec.window))
        self.register_buffer("num_seen", torch.zeros((), dtype=torch.long))
        self.register_buffer("epoch", torch.zeros((), dtype=torch.long))
        self.register_buffer("safe", torch.tensor([0.0, -2.0], dtype=torch.float64))  # the share and the least cosine
        self.new: tuple[int, Tensor, Tensor, Tensor, Tensor] | None = None

    @property
    def text_tower(self) -> TextTower:
        """The text tower that is trained here."""
        return self.text

    def loss(self, batch: Batch) -> LossOutput:
        """The phase's. Logs ``safe``, the share of pairs that are taken for safe."""
        views, tokens = views_of(batch, self.num_views), tokens_of(batch)
        images = [_unit(self.backbone(view)) for view in views]  # (b, D) each
        edits = (self.edits(tokens, batch.step, self.replicas, f"word edits {one}") for one in (1, 2))
        texts = [_unit(self.text(edited)) for edited in edits]
        cosines = (images[0] * texts[0]).sum(1).detach()  # (b,)
        split = self.safe if batch.epoch == int(self.epoch) else self.split(batch.epoch)
        gather = self.replicas.all_gather
        self.new = (batch.epoch, gather(images[0].detach()), gather(texts[0].detach()), gather(cosines[:, None]), split)
        everything = torch.ones_like(cosines, dtype=torch.bool)
        if batch.epoch < self.spec.warm_epochs:
            loss, safe = self.in_modal(images, texts, everything), ~everything
        elif batch.epoch < self.spec.warm_epochs + self.spec.slow_epochs:
            loss, safe = self.spec.slow_weight * self.cross_modal(images, texts, everything), everything
        else:
            safe = cosines >= split[1]
            loss = self.cross_modal(images, texts, safe) + self.in_modal(images, texts, ~safe)
        return LossOutput(loss, {"safe": safe.float().mean()})

    def in_modal(self, images: list[Tensor], texts: list[Tensor], among: Tensor) -> Tensor:
        """W over the pairs ``among`` (b,): the first view's nearest is looked up, the second is pulled to it."""
        total = images[0].new_zeros(())
        for (first, second), bank in ((images, self.images), (texts, self.texts)):
            is_full = int(self.num_seen) >= self.spec.bank_size
            near = nearest_in(first.detach(), bank.rows) if is_full else first.detach()
            total = total + contrast(second, near, self.text.logit_scale.exp(), among, self.replicas) / 2
        return total

    def cross_modal(self, images: list[Tensor], texts: list[Tensor], among: Tensor) -> Tensor:
        """C over the pairs ``among`` (b,)."""
        scale = self.text.logit_scale.exp()
        pairs = ((images[0], texts[1]), (texts[1], images[0]), (images[1], texts[0]), (texts[0], images[1]))
        parts = [contrast(rows, columns, scale, among, self.replicas) for rows, columns in pairs]
        return torch.stack(parts).mean()

    def split(self, epoch: int) -> Tensor:
        """Of ``epoch``, which has begun: the share of safe pairs and the least cosine of one, float64 (2,)."""
        known = self.cosines[: min(int(self.num_seen), self.spec.window)].double()
        if epoch < self.spec.warm_epochs + self.spec.slow_epochs or not len(known):
            return self.safe
        share = float(self.safe[0])
        if share == 0.0:
            cosines = known.cpu().numpy()
            cut = least_safe(cosines, SAFE_P, LEAST_GAP_SD, sub_seed(self.seed, "mixture"))
            share = float((cosines >= cut).mean()) if np.isfinite(cut) else self.spec.fallback_safe
        else:
            share = min(share + GROWTH, self.spec.most_safe)
        return torch.stack([known.new_tensor(share), known.quantile(1 - share)])

    def after_step(self, progress: float) -> None:
        """Clamp the logit scale; what the batch's loss found enters the banks, the cosines and the split."""
        self.text.clamp_logit_scale_()
        if self.new is not None:
            epoch, images, texts, cosines, split = self.new
            self.images.push(images)
            self.texts.push(texts)
            kept = cosines[-self.spec.window :, 0]
            first = self.num_seen + len(cosines) - len(kept)
            self.cosines[(first + torch.arange(len(kept), device=kept.device)) % self.spec.window] = kept
            self.num_seen.add_(len(images))
            self.epoch.fill_(epoch)
            self.safe.copy_(split)


def _unit(rows: Tensor) -> Tensor:
    return F.normalize(rows.float(), dim=1)


def contrast(rows: Tensor, columns: Tensor, scale: Tensor, among: Tensor, replicas: Replicas) -> Tensor:
    """N over the pairs ``among``, of all replicas: neither rows nor columns of the others take part; 0 of none.

    Args:
        rows: (b, D), unit rows, of this replica.
        columns: (b, D), unit rows; row i belongs to row i of ``rows``.
        scale: Scalar.
        among: (b,) bool.
        replicas: Where the other pairs are.
    """
    with torch.autocast(rows.device.type, enabled=False):
        gather = replicas.all_gather_with_grad if columns.requires_grad else replicas.all_gather
        everyone, is_in = gather(columns), replicas.all_gather(among.float()[:, None])[:, 0] > 0
        logits = (scale * rows @ everyone.T).masked_fill(~is_in, -torch.inf)
        own = torch.arange(len(rows), device=rows.device) + replicas.index * len(rows)
        total = F.cross_entropy(logits[among], own[among], reduction="sum")
        return total * replicas.count / is_in.sum().clamp(min=1)
