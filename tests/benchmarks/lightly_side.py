"""lightly's own MoCo v2, BYOL and SimCLR, as its documentation composes them, on our encoders.

Its transforms (PIL, image by image; without blur, as in its CIFAR-10 benchmark), heads, losses, memory bank and
momentum update; the sizes are those of our spec.
"""

import copy
import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn

from ssl_backdoor.methods.build import build_backbone
from ssl_backdoor.specs import TrainSpec
from ssl_backdoor.train.optim import build_schedule

os.environ["LIGHTLY_DID_VERSION_CHECK"] = "True"  # it would ask a server


class Images(torch.utils.data.Dataset[Any]):
    """PIL images under a transform, as lightly reads them."""

    def __init__(self, images: Tensor, transform: Callable[[Any], Any]):
        self.images = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
        self.transform = transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> Any:
        return self.transform(self.images[row])


class Theirs(NamedTuple):
    """lightly's parts of one method."""

    transform: Any
    loss: Callable[[list[Tensor], float], Tensor]
    modules: list[nn.Module]
    """All its networks, EMA copies too."""


def simclr(spec: TrainSpec, backbone: nn.Module, dim: int) -> Theirs:
    from lightly.loss import NTXentLoss
    from lightly.models.modules.heads import SimCLRProjectionHead
    from lightly.transforms import SimCLRTransform

    method = spec.method
    head = SimCLRProjectionHead(dim, method.projector_hidden_dim, method.embedding_dim)
    criterion = NTXentLoss(temperature=method.temperature)
    both = nn.Sequential(backbone, head)
    transform = SimCLRTransform(input_size=spec.fit.views.size_px, gaussian_blur=0.0)
    return Theirs(transform, lambda views, _: criterion(both(views[0]), both(views[1])), [both])


def moco(spec: TrainSpec, backbone: nn.Module, dim: int) -> Theirs:
    from lightly.loss import NTXentLoss
    from lightly.models.modules.heads import MoCoProjectionHead
    from lightly.models.utils import update_momentum
    from lightly.transforms import MoCoV2Transform

    method = spec.method
    online = nn.Sequential(backbone, MoCoProjectionHead(dim, method.projector_hidden_dim, method.embedding_dim))
    slow = copy.deepcopy(online).requires_grad_(False)
    bank = NTXentLoss(method.temperature, memory_bank_size=(method.queue_size, method.embedding_dim))

    def loss(views: list[Tensor], _: float) -> Tensor:
        update_momentum(online, slow, m=method.ema_decay)
        with torch.no_grad():
            keys = slow(views[1])
        return bank(online(views[0]), keys)

    return Theirs(MoCoV2Transform(input_size=spec.fit.views.size_px, gaussian_blur=0.0), loss, [online, slow])


def byol(spec: TrainSpec, backbone: nn.Module, dim: int) -> Theirs:
    from lightly.loss import NegativeCosineSimilarity
    from lightly.models.modules.heads import BYOLPredictionHead, BYOLProjectionHead
    from lightly.models.utils import update_momentum
    from lightly.transforms import BYOLTransform, BYOLView1Transform, BYOLView2Transform
    from lightly.utils.scheduler import cosine_schedule

    method, size = spec.method, spec.fit.views.size_px
    online = nn.Sequential(backbone, BYOLProjectionHead(dim, method.projector_hidden_dim, method.embedding_dim))
    predictor = BYOLPredictionHead(method.embedding_dim, method.predictor_hidden_dim, method.embedding_dim)
    slow = copy.deepcopy(online).requires_grad_(False)
    negative_cosine = NegativeCosineSimilarity()

    def loss(views: list[Tensor], progress: float) -> Tensor:
        update_momentum(online, slow, m=cosine_schedule(int(progress * 10_000), 10_000, method.ema_decay_start, 1.0))
        with torch.no_grad():
            targets = [slow(view) for view in views]
        first, second = (predictor(online(view)) for view in views)
        # The published loss, 2 - 2 cos summed over both directions, as ours.
        return 4 + 2 * (negative_cosine(first, targets[1]) + negative_cosine(second, targets[0]))

    transform = BYOLTransform(
        view_1_transform=BYOLView1Transform(input_size=size, gaussian_blur=0.0),
        view_2_transform=BYOLView2Transform(input_size=size, gaussian_blur=0.0),
    )
    return Theirs(transform, loss, [online, predictor, slow])


THEIRS = {"MoCo v2": moco, "BYOL": byol, "SimCLR": simclr}


def train(
    label: str,
    spec: TrainSpec,
    images: Tensor,
    seed: int,
    *,
    loader: Mapping[str, Any] = {},
    is_best: bool = False,
    device: str = "cpu",
    on_step: Callable[[int], None] = lambda _: None,
) -> nn.Module:
    """Their loop: DataLoader, per-image transforms, SGD. The encoder starts from the weights that ours has.

    ``images`` are (N, 3, H, W) uint8; ``loader`` further arguments of the DataLoader; ``is_best``: channels last, and
    bfloat16 where ``spec.fit.precision`` says so; ``on_step`` hears of the steps done.
    """
    torch.manual_seed(seed)
    fit = spec.fit
    backbone = build_backbone(spec.backbone, 1, seed)
    parts = THEIRS[label](spec, backbone, backbone.feature_dim)
    form = torch.channels_last if is_best else torch.contiguous_format
    for part in parts.modules:
        part.to(device).to(memory_format=form)
    batches: Any = torch.utils.data.DataLoader(
        Images(images, parts.transform), batch_size=fit.batch_size, shuffle=True, drop_last=True, **loader
    )
    optimizer = _sgd(fit.optimizer, [p for part in parts.modules for p in part.parameters() if p.requires_grad])
    schedule = build_schedule(fit.schedule, fit.optimizer.lr, fit.epochs, len(batches))
    is_half = is_best and fit.precision == "bfloat16"
    step, num_steps = 0, fit.epochs * len(batches)
    for _ in range(fit.epochs):
        for views in batches:
            for group in optimizer.param_groups:
                group["lr"] = schedule(step)
            optimizer.zero_grad()
            with torch.autocast(device, torch.bfloat16, enabled=is_half):
                loss = parts.loss([view.to(device).contiguous(memory_format=form) for view in views], step / num_steps)
            loss.backward()
            optimizer.step()
            step += 1
            on_step(step)
    return backbone


def _sgd(spec: Any, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """torch's own, as it comes."""
    more = {"momentum": spec.sgd_momentum, "weight_decay": spec.weight_decay, "nesterov": spec.nesterov}
    return torch.optim.SGD(parameters, spec.lr, **more)
