"""RoCLIP: its loss against a slow one, what learns in which epoch, and what is refused."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from flows.recipes import clip, small
from ssl_backdoor.defences.roclip import RoCLIPSpec
from ssl_backdoor.methods.base import Batch, SingleProcess
from ssl_backdoor.methods.roclip import nearest_in
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


def test_it_trains_clip_alone_from_the_same_temperature() -> None:
    spec = clip.TINY.model_copy(update={"method": clip.TINY.method.model_copy(update={"initial_temperature": 0.2})})
    changed = RoCLIPSpec(bank_size=64).train(spec)
    assert (changed.method.kind, changed.method.initial_temperature, changed.method.bank_size) == ("roclip", 0.2, 64)
    assert changed.model_copy(update={"method": spec.method}) == spec
    assert TrainSpec.model_validate(changed.model_dump()) == changed
    micro = spec.model_copy(update={"method": spec.method.model_copy(update={"micro_batch_size": 4})})
    for train, message in (
        (small.BYOL, "needs method clip"),
        (micro, "defence roclip needs train.method.micro_batch_size=0, found method clip"),
    ):
        with pytest.raises(ValueError, match=message):
            RunSpec(dataset=clip.cifar10(), attack=small.attack(11, "cat"), train=train, defences=(RoCLIPSpec(),))
