"""The poison classifier of PatchSearch (Tejankar et al. 2023): a few small networks that tell patched images.

Each step takes a batch of clean images in random crops, pastes one of the found patches, resized, on about half of
them, then changes colours and flips. Every so often the F1 of the patched images among the best and the worst of the
search is taken; training stops once ten of these in a row are equal to a per cent.

NOTE: crops are rounded to 8 bits before the patch is pasted, as upstream's are by Pillow; patches are resized
bilinearly.
"""

from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_backdoor.data.view_parameters import IMAGENET_MEAN, IMAGENET_STD
from ssl_backdoor.data.views import evaluation_view, make_views
from ssl_backdoor.methods.build import build_backbone
from ssl_backdoor.progress import Progress
from ssl_backdoor.seeds import torch_generator
from ssl_backdoor.specs import CosineSpec, ViewsSpec
from ssl_backdoor.train.optim import build_optimizer, build_schedule

if TYPE_CHECKING:
    from ssl_backdoor.detection.patchsearch import PatchSearchClassifierSpec
    from ssl_backdoor.detection.pool import Pool
    from ssl_backdoor.progress import OnProgress

_STEADY = 10


class Examples(NamedTuple):
    """What a classifier learns from and stops by; rows int64 of a pool."""

    patches: list[Tensor]
    """uint8 (3, w, w) each."""
    patched: Tensor
    clean: Tensor
    held_out_clean: Tensor


def margins(
    spec: "PatchSearchClassifierSpec", pool: "Pool", examples: Examples, seed: int, on_progress: "OnProgress"
) -> Tensor:
    """Mean over the networks of logit(patched) - logit(not) of every sample: float64 (N,)."""
    total = torch.zeros(len(pool), dtype=torch.float64)
    for index in range(spec.num_models):
        network = train(spec, pool, examples, torch_generator(seed, "classifier", index), index)
        total += torch.cat([_margin(network, images.to(pool.device)) for images in pool.batches()])
        on_progress(Progress(index + 1, spec.num_models, "classifiers"))
    return total / spec.num_models


def train(
    spec: "PatchSearchClassifierSpec", pool: "Pool", examples: Examples, generator: torch.Generator, index: int
) -> nn.Module:
    """One network, in eval mode."""
    backbone = build_backbone(spec.network, 1, int(generator.initial_seed()), f"classifier {index}")
    head = nn.Linear(backbone.feature_dim, 2)
    with torch.no_grad():
        for weight in head.parameters():
            bound = backbone.feature_dim**-0.5
            weight.copy_((torch.rand(weight.shape, generator=generator) * 2 - 1) * bound)
    network = nn.Sequential(backbone, head).to(pool.device)
    optimizer = build_optimizer(spec.optimizer, network.parameters())
    rate = build_schedule(CosineSpec(per="step"), spec.optimizer.lr, spec.max_steps, 1)
    held_out = pool.images(torch.cat([examples.patched, examples.held_out_clean])).to(pool.device)
    truth = torch.arange(len(held_out)) < len(examples.patched)
    reached: list[int] = []
    for step in range(spec.max_steps):
        network.train()
        drawn = examples.clean[torch.randint(len(examples.clean), (spec.batch_size,), generator=generator)]
        images, labels = patched_views(spec, pool.images(drawn), examples.patches, generator)
        loss = F.cross_entropy(network(images.to(pool.device)), labels.to(pool.device))
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        for group in optimizer.param_groups:
            group["lr"] = rate(step)
        optimizer.step()
        if step % spec.eval_every_steps == 0:
            network.eval()
            reached.append(int(100 * f1(_margin(network, held_out) > 0, truth)))
            if len(reached) > _STEADY and len(set(reached[-_STEADY:])) == 1:
                break
    return network.eval()


def patched_views(
    spec: "PatchSearchClassifierSpec", images: Tensor, patches: list[Tensor], generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Random views float (B, 3, S, S) of ``images`` uint8 (B, 3, S, S), and int64 (B,): 1 where a patch was pasted."""
    side_px = min(images.shape[2:])
    crop = ViewsSpec(size_px=side_px, flip_p=0.0, jitter_p=0.0, grey_p=0.0, blur_p=0.0)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    crops = ((make_views(images, crop, generator) * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
    labels = torch.randint(2, (len(images),), generator=generator)
    margin_px = round(spec.margin_frac * side_px)
    for row in labels.nonzero()[:, 0].tolist():
        low, high = (max(1, round(share * side_px)) for share in spec.patch_frac)
        new_px = min(int(torch.randint(low, max(low, high - 1) + 1, (), generator=generator)), side_px - 2 * margin_px)
        patch = patches[int(torch.randint(len(patches), (), generator=generator))]
        resized = F.interpolate(patch[None].float(), (new_px, new_px), mode="bilinear", antialias=True)[0]
        crops[row] = paste(crops[row][None], resized.round().to(torch.uint8), generator, margin_px)[0]
    colours = ViewsSpec(size_px=side_px, crop="fixed", blur_p=0.0)
    return make_views(crops, colours, generator), labels


def paste(images: Tensor, patch: Tensor, generator: torch.Generator, margin_px: int = 0) -> Tensor:
    """A copy of ``images`` (B, 3, H, W), each with ``patch`` (3, h, w) at a place of its own, uniform."""
    (height, width), (patch_height, patch_width) = images.shape[2:], patch.shape[1:]
    pasted = images.clone()
    ends = height - patch_height - 2 * margin_px + 1, width - patch_width - 2 * margin_px + 1
    tops, lefts = (margin_px + torch.randint(end, (len(images),), generator=generator) for end in ends)
    rows, columns = tops[:, None] + torch.arange(patch_height), lefts[:, None] + torch.arange(patch_width)
    pasted[torch.arange(len(images))[:, None, None], :, rows[:, :, None], columns[:, None, :]] = patch.permute(1, 2, 0)
    return pasted


def f1(found: Tensor, truth: Tensor) -> float:
    """F1 of ``found`` against ``truth``, bool (M,); 0 where nothing is found or true."""
    hits = int((found & truth).sum())
    return 2 * hits / max(1, int(found.sum()) + int(truth.sum()))


def _margin(network: nn.Module, images: Tensor) -> Tensor:
    """float64 (B,) of ``images`` uint8 on the network's device."""
    with torch.inference_mode():
        logits: Tensor = network(evaluation_view(images)).double().cpu()
        difference = logits[:, 1] - logits[:, 0]
    return difference.clone()
