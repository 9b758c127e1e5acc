import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ssl_backdoor.errors import SpecError
from ssl_backdoor.methods.base import Batch, SingleProcess
from ssl_backdoor.methods.clip import CLIP, clip_loss, in_chunks
from ssl_backdoor.methods.clip_towers import build_towers
from ssl_backdoor.seeds import torch_generator
from ssl_backdoor.specs import CLIPSpec, OpenCLIPSpec
from tests.support.tiny_training import BATCH, TOWERS, random_batch

WITHOUT_BATCH_NORM = OpenCLIPSpec(config="tiny-vit-p4")


def unit_rows(name: str, count: int = 6, dim: int = 5) -> torch.Tensor:
    return F.normalize(torch.randn(count, dim, generator=torch_generator(0, name)), dim=1)


def slow_clip_loss(image: np.ndarray, text: np.ndarray, scale: float) -> float:
    """Figure 3 of the paper, one pair at a time."""
    total = 0.0
    for queries, keys in ((image, text), (text, image)):
        for i, query in enumerate(queries):
            logits = [scale * float(query @ key) for key in keys]
            total += math.log(sum(math.exp(logit) for logit in logits)) - logits[i]
    return total / (2 * len(image))


@pytest.mark.parametrize("scale", [1.0, 14.3, 100.0])
def test_loss_is_the_papers(scale: float) -> None:
    image, text = unit_rows("image"), unit_rows("text")
    loss = clip_loss(image, text, torch.tensor(scale), SingleProcess())
    assert loss.item() == pytest.approx(slow_clip_loss(image.numpy(), text.numpy(), scale), rel=1e-5)


def test_loss_of_equal_embeddings_is_the_logarithm_of_the_batch() -> None:
    same = unit_rows("one", 1).expand(7, -1)
    assert clip_loss(same, same, torch.tensor(20.0), SingleProcess()).item() == pytest.approx(math.log(7), rel=1e-5)


def test_method_is_the_loss_of_the_normalised_towers() -> None:
    method = CLIP(CLIPSpec(initial_temperature=0.2), *build_towers(TOWERS, 0)).train()
    batch = random_batch(method, 0)
    output = method.loss(batch)
    image = F.normalize(method.backbone(batch.views[0]), dim=1).detach().numpy()
    text = F.normalize(method.text(batch.tokens), dim=1).detach().numpy()
    assert output.loss.item() == pytest.approx(slow_clip_loss(image, text, 5.0), rel=1e-4)
    assert output.logs["temperature"].item() == pytest.approx(0.2)


def test_scale_stays_within_1_and_100() -> None:
    method = CLIP(CLIPSpec(), *build_towers(TOWERS, 0))
    for wished, kept in ((5.0, math.log(100)), (-1.0, 0.0), (2.0, 2.0)):
        with torch.no_grad():
            method.text.logit_scale.fill_(wished)
        method.after_step(0.5)
        assert method.text.logit_scale.item() == pytest.approx(kept)


def gradients(method: CLIP, batch: Batch) -> tuple[float, dict[str, torch.Tensor]]:
    loss = method.loss(batch).loss
    loss.backward()
    return loss.item(), {name: p.grad for name, p in method.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_micro_batches_give_the_loss_and_gradients_of_the_whole(size: int) -> None:
    whole = CLIP(CLIPSpec(), *build_towers(WITHOUT_BATCH_NORM, 0)).train()
    parts = CLIP(CLIPSpec(micro_batch_size=size), *build_towers(WITHOUT_BATCH_NORM, 0)).train()
    batch = random_batch(whole, 0)
    loss, expected = gradients(whole, batch)
    found_loss, found = gradients(parts, batch)
    assert found_loss == pytest.approx(loss, rel=1e-6)
    assert found.keys() == expected.keys() == dict(whole.named_parameters()).keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5, msg=lambda t, name=name: f"{name}: {t}")


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_micro_batches_are_the_groups_of_batch_norm(groups: int) -> None:
    """Statistics, gradients and running statistics alike: chunks of 8 / groups pairs, or as many bn_groups."""
    grouped = CLIP(CLIPSpec(), *build_towers(TOWERS, 0, bn_groups=groups)).train()
    parts = CLIP(CLIPSpec(micro_batch_size=BATCH // groups), *build_towers(TOWERS, 0)).train()
    for step in range(3):
        loss, expected = gradients(grouped, random_batch(grouped, step))
        found_loss, found = gradients(parts, random_batch(parts, step))
        assert found_loss == pytest.approx(loss, rel=1e-5)
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-5)
    for name, value in grouped.state_dict().items():
        torch.testing.assert_close(parts.state_dict()[name], value, rtol=1e-5, atol=1e-6)
    moved = parts.state_dict()["backbone.network.trunk.network.bn1.num_batches_tracked"]
    assert moved.item() == 3


def test_activations_of_one_chunk_at_a_time_are_kept() -> None:
    """What autograd holds between the passes: all of them without chunks, next to nothing with."""
    tower, images = nn.Sequential(nn.Linear(20, 400), nn.ReLU(), nn.Linear(400, 5)), torch.randn(64, 20)
    held: list[int] = []
    for run in (lambda: tower(images), lambda: in_chunks(tower, images, 8)):
        count = 0

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal count
            count += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            run()
        held.append(count)
    assert held[0] > 64 * 400
    assert held[1] <= 64 * 20


def test_micro_batches_that_do_not_fit() -> None:
    method = CLIP(CLIPSpec(micro_batch_size=3), *build_towers(TOWERS, 0)).train()
    with pytest.raises(SpecError, match="micro_batch_size 3 must divide the 8 pairs"):
        method.loss(random_batch(method, 0))
