import copy
import math

import pytest
import torch

from ssl_backdoor.methods.build import build_backbone
from ssl_backdoor.methods.byol import BYOL, ema_decay
from ssl_backdoor.specs import BYOLSpec
from tests.support.tiny_training import BACKBONE, random_batch

SPEC = BYOLSpec(projector_hidden_dim=16, embedding_dim=8, predictor_hidden_dim=16, ema_decay_start=0.9)


def method() -> BYOL:
    return BYOL(SPEC, build_backbone(BACKBONE, 1, 0), 4, 0).train()


def test_loss_is_symmetric_and_each_view_passes_alone() -> None:
    ours = method()
    online = copy.deepcopy(torch.nn.Sequential(ours.backbone, ours.projector, ours.predictor))
    target = copy.deepcopy(torch.nn.Sequential(ours.backbone, ours.projector))
    batch = random_batch(ours, 0)
    first, second = batch.views
    expected = 0.0
    for view, other in ((first, second), (second, first)):
        p, t = online(view).double(), target(other).double()
        expected += (2 - 2 * ((p * t).sum(1) / p.norm(dim=1) / t.norm(dim=1)).mean()).item()
    assert ours.loss(batch).loss.item() == pytest.approx(expected, rel=1e-5)
    assert ours.loss(batch._replace(views=(second, first))).loss.item() == pytest.approx(expected, rel=1e-5)


def test_heads_see_the_whole_batch_and_the_backbone_its_groups() -> None:
    """As upstream under DataParallel: encoders on each device's part, heads on what was put together again."""
    spec = SPEC.model_copy(update={"heads_see": "batch"})
    ours = BYOL(spec, build_backbone(BACKBONE, 2, 0), 4, 0).train()
    one_group = build_backbone(BACKBONE, 1, 0).train()
    heads = [copy.deepcopy(head) for head in (ours.projector, ours.predictor)]
    batch = random_batch(ours, 0)

    def embed(view: torch.Tensor, *on_top: torch.nn.Module) -> torch.Tensor:
        features = torch.cat([one_group(part) for part in view.chunk(2)])
        for head in on_top:
            features = head(features)
        return torch.nn.functional.normalize(features, dim=1)

    first, second = batch.views
    expected = sum(
        (2 - 2 * (embed(view, *heads) * embed(other, heads[0])).sum(1)).mean()
        for view, other in ((first, second), (second, first))
    )
    torch.testing.assert_close(ours.loss(batch).loss, expected)
    in_groups = BYOL(SPEC, build_backbone(BACKBONE, 2, 0), 4, 0).train()
    assert not torch.isclose(in_groups.loss(batch).loss, expected, rtol=1e-3)


@pytest.mark.parametrize(
    ("per", "step", "expected"),
    [  # 4 epochs of 3 steps, 0.9 at the start
        ("epoch", 0, 0.9),
        ("epoch", 2, 0.9),
        ("epoch", 3, 1 - 0.1 * (math.cos(math.pi / 4) + 1) / 2),
        ("epoch", 11, 1 - 0.1 * (math.cos(3 * math.pi / 4) + 1) / 2),
        ("step", 0, 0.9),
        ("step", 6, 0.95),
        ("step", 11, 1 - 0.1 * (math.cos(11 * math.pi / 12) + 1) / 2),
    ],
)
def test_ema_decay_rises_by_a_cosine(per: str, step: int, expected: float) -> None:
    assert ema_decay(SPEC.model_copy(update={"ema_per": per}), step / 12, 4) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("epochs", "steps_per_epoch"), [(200, 247), (24, 78), (7, 3), (130, 1)])
def test_epochs_start_where_they_start(epochs: int, steps_per_epoch: int) -> None:
    """Rounding of step / num_steps must not push an epoch's first step into the epoch before."""
    num_steps = epochs * steps_per_epoch
    for epoch in range(epochs):
        first, last = epoch * steps_per_epoch / num_steps, (epoch * steps_per_epoch + steps_per_epoch - 1) / num_steps
        expected = 1 - 0.1 * (math.cos(math.pi * (epoch / epochs)) + 1) / 2
        assert ema_decay(SPEC, first, epochs) == pytest.approx(expected, rel=1e-12)
        assert ema_decay(SPEC, last, epochs) == pytest.approx(expected, rel=1e-12)


def test_target_follows_with_the_decay_of_its_progress() -> None:
    ours = method()
    with torch.no_grad():
        for parameter in (*ours.backbone.parameters(), *ours.projector.parameters()):
            parameter.add_(1.0)
    before = [p.clone() for p in ours.target.parameters()]
    ours.after_step(0.0)
    for parameter, old in zip(ours.target.parameters(), before, strict=True):
        torch.testing.assert_close(parameter, old + 0.1)
