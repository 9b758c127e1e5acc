"""RoCLIP and SafeCLIP: losses against slow ones, what learns in which epoch, and what is refused."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from flows.recipes import clip, small
from ssl_backdoor.defences.roclip import RoCLIPSpec
from ssl_backdoor.defences.safeclip import SafeCLIPSpec
from ssl_backdoor.methods.base import Batch, SingleProcess
from ssl_backdoor.methods.roclip import nearest_in
from ssl_backdoor.methods.safeclip import contrast
from ssl_backdoor.seeds import torch_generator
from ssl_backdoor.specs import RunSpec, TrainSpec
from tests.support.tiny_training import BATCH, objective, random_batch

torch.set_num_threads(1)


def full_bank() -> Any:
    method: Any = objective("roclip")
    rows = torch.randn(20, method.text.feature_dim, generator=torch_generator(0, "bank"))
    method.bank.push(F.normalize(rows, dim=1))
    method.num_seen.fill_(20)
    return method


def slow_clip(image: torch.Tensor, text: torch.Tensor, scale: float) -> float:
    total = 0.0
    for i in range(len(image)):
        for one, others in ((image[i], text), (text[i], image)):
            logits = [scale * float(one @ other) for other in others]
            total -= logits[i] - float(torch.logsumexp(torch.tensor(logits), 0))
    return total / (2 * len(image))


@pytest.mark.parametrize(("epoch", "is_matched"), [(0, True), (1, False), (2, True)])
def test_in_every_second_epoch_images_meet_the_nearest_captions_of_the_bank(epoch: int, is_matched: bool) -> None:
    method, batch = full_bank(), random_batch(objective("roclip"), 0)._replace(epoch=epoch)
    output = method.loss(batch)
    assert float(output.logs["matched"]) == is_matched
    with torch.no_grad():
        image = F.normalize(method.backbone(batch.views[0]), dim=1)
        text = F.normalize(method.text(method.edits(batch.tokens, 0, SingleProcess())), dim=1)
        if is_matched:
            found = [max(method.bank.rows, key=lambda row, one=one: float(row @ one)) for one in text]
            text = torch.stack(found)
    expected = slow_clip(image, text, float(method.text.logit_scale.detach().exp()))
    assert float(output.loss.detach()) == pytest.approx(expected, rel=1e-4)
    output.loss.backward()
    towers = [p.grad is not None for name, p in method.text.named_parameters() if name != "logit_scale"]
    assert any(towers) == (not is_matched)
    assert any(p.grad is not None for p in method.backbone.parameters())


def test_until_the_bank_is_full_the_loss_is_clip_s() -> None:
    method: Any = objective("roclip")
    told = []
    for step in range(4):
        told.append(float(method.loss(random_batch(method, step)).logs["matched"]))
        method.after_step(step / 4)
    assert told == [0, 0, 0, 1]  # 8 captions a step, 20 in the bank
    assert int(method.num_seen) == 4 * BATCH


def test_the_nearest_of_equal_ones_is_the_first() -> None:
    bank = F.normalize(torch.tensor([[1.0, 0], [0, 1], [1, 0]]), dim=1)
    assert torch.equal(nearest_in(torch.tensor([[0.9, 0.1], [0.0, -1.0]]), bank), bank[[0, 0]])


def test_without_captions_there_is_nothing_to_look_up() -> None:
    method = full_bank()
    with pytest.raises(ValueError, match="caption"):
        method.loss(Batch(random_batch(method, 0).views))


@pytest.mark.parametrize("defence", [RoCLIPSpec(bank_size=64), SafeCLIPSpec(bank_size=64)], ids=lambda one: one.kind)
def test_it_trains_clip_alone_from_the_same_temperature(defence: Any) -> None:
    spec = clip.TINY.model_copy(update={"method": clip.TINY.method.model_copy(update={"initial_temperature": 0.2})})
    changed, kind = defence.train(spec), defence.kind
    assert (changed.method.kind, changed.method.initial_temperature, changed.method.bank_size) == (kind, 0.2, 64)
    assert changed.model_copy(update={"method": spec.method}) == spec
    assert TrainSpec.model_validate(changed.model_dump()) == changed
    micro = spec.model_copy(update={"method": spec.method.model_copy(update={"micro_batch_size": 4})})
    message = f"defence {kind} needs train.method.micro_batch_size=0, found method clip"
    for train, told in ((small.BYOL, "needs method clip"), (micro, message)):
        with pytest.raises(ValueError, match=told):
            RunSpec(dataset=clip.cifar10(), attack=small.attack(11, "cat"), train=train, defences=(defence,))


# ---------------------------------------------------------------------------------------------------- SafeCLIP


def units(*shape: int, seed: int = 0) -> torch.Tensor:
    return F.normalize(torch.randn(shape, generator=torch_generator(seed, "units")), dim=-1)


@pytest.mark.parametrize("among", [[1, 1, 1, 1, 1], [1, 0, 1, 1, 0], [0, 0, 0, 1, 0], [0, 0, 0, 0, 0]])
def test_a_pair_is_contrasted_with_those_that_take_part(among: list[int]) -> None:
    rows, columns = units(5, 6), units(5, 6, seed=1)
    slow = []
    for i in range(5):
        if among[i]:
            logits = [3.0 * float(rows[i] @ columns[j]) for j in range(5) if among[j]]
            slow.append(float(torch.logsumexp(torch.tensor(logits), 0)) - 3.0 * float(rows[i] @ columns[i]))
    found = contrast(rows.requires_grad_(), columns, torch.tensor(3.0), torch.tensor(among) > 0, SingleProcess())
    assert float(found.detach()) == pytest.approx(sum(slow) / max(1, len(slow)), abs=1e-5)
    found.backward()
    assert rows.grad is not None
    assert (rows.grad.abs().sum(1) > 0).tolist() == [bool(one) and sum(among) > 1 for one in among]


def safeclip(**changes: Any) -> Any:
    method: Any = objective("safeclip")
    method.spec = method.spec.model_copy(update=changes)
    return method


def test_the_phases_follow_each_other() -> None:
    method, losses = safeclip(slow_weight=0.5), {}
    for epoch in (0, 1, 2):
        method.safe.copy_(torch.tensor([0.5, 0.0]))
        method.epoch.fill_(epoch)
        output = method.loss(random_batch(method, 0)._replace(epoch=epoch))
        losses[epoch] = (float(output.loss.detach()), float(output.logs["safe"]))
    batch = random_batch(method, 0)
    with torch.no_grad():
        images = [F.normalize(method.backbone(view), dim=1) for view in batch.views]
        edits = [method.edits(batch.tokens, 0, SingleProcess(), f"word edits {one}") for one in (1, 2)]
        texts = [F.normalize(method.text(one), dim=1) for one in edits]
        every, scale = torch.ones(BATCH, dtype=torch.bool), method.text.logit_scale.exp()
        alone = [contrast(second, first, scale, every, SingleProcess()) for first, second in (images, texts)]
        pairs = (slow_clip(images[0], texts[1], float(scale)) + slow_clip(images[1], texts[0], float(scale))) / 2
        safe = (images[0] * texts[0]).sum(1) >= 0
        both = method.cross_modal(images, texts, safe) + method.in_modal(images, texts, ~safe)
    assert losses[0] == (pytest.approx(float(sum(alone)) / 2, rel=1e-4), 0.0)
    assert losses[1] == (pytest.approx(0.5 * pairs, rel=1e-4), 1.0)
    assert losses[2] == (pytest.approx(float(both), rel=1e-4), float(safe.float().mean()))


def test_the_first_safe_pairs_are_those_of_the_mixture_and_their_share_grows() -> None:
    method = safeclip(window=1000, most_safe=0.8)
    generator = torch_generator(0, "humps")
    high, low = 0.6 + 0.05 * torch.randn(780, generator=generator), 0.05 * torch.randn(220, generator=generator)
    method.cosines = torch.cat([high, low])
    method.num_seen.fill_(5000)
    assert torch.equal(method.split(0), method.safe)  # both modalities learn by themselves
    share, cut = method.split(2).tolist()
    assert share == pytest.approx(0.78, abs=0.01)
    assert 0.2 < cut < 0.5
    method.safe.copy_(method.split(2))
    assert method.split(3)[0] == pytest.approx(share + 0.01)
    method.safe.copy_(torch.tensor([0.795, 0.0]))
    assert method.split(3)[0] == 0.8
    assert float((method.cosines >= method.split(3)[1]).float().mean()) == pytest.approx(0.8, abs=0.002)


def test_on_one_hump_a_small_share_is_safe() -> None:
    method = safeclip(window=500)
    method.cosines = 0.3 + 0.1 * torch.randn(500, generator=torch_generator(0, "hump"))
    method.num_seen.fill_(500)
    share, cut = method.split(2).tolist()
    assert share == 0.15 or 0 < share < 1  # of a drawn hump the mixture may see two
    assert float((method.cosines >= cut).float().mean()) == pytest.approx(share, abs=0.01)


def test_the_split_is_made_once_an_epoch_and_survives() -> None:
    method = objective("safeclip")
    seen = []
    for step, epoch in enumerate((0, 1, 1, 2, 2, 3)):
        method.loss(random_batch(method, step)._replace(epoch=epoch))
        method.after_step(0.0)
        seen.append(method.safe.tolist())
    assert seen[0] == seen[1] == seen[2] == [0.0, -2.0]
    assert seen[3] == seen[4] != seen[2]
    assert seen[5][0] == pytest.approx(min(0.85, seen[4][0] + 0.01))
    assert {"safe", "epoch", "num_seen", "cosines"} <= set(method.state_dict())
