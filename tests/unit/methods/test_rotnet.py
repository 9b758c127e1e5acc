import copy
import math

import numpy as np
import pytest
import torch

from ssl_backdoor.methods.backbones import ResNet
from ssl_backdoor.methods.base import Batch, SingleProcess
from ssl_backdoor.methods.build import build_backbone
from ssl_backdoor.methods.pretext import classify
from ssl_backdoor.methods.rotnet import RotNet, rotations
from ssl_backdoor.specs import RotNetSpec
from tests.support.tiny_training import BACKBONE, random_batch


def method(bn_groups: int = 1) -> RotNet:
    return RotNet(RotNetSpec(), build_backbone(BACKBONE, bn_groups, 0), 0).train()


def test_rotations_lie_side_by_side_counter_clockwise() -> None:
    view = torch.randn(3, 3, 4, 4)
    turned = rotations(view)
    assert turned.shape == (12, 3, 4, 4)
    for image in range(3):
        for turns in range(4):
            expected = np.rot90(view[image].numpy(), turns, axes=(1, 2))
            assert np.array_equal(turned[4 * image + turns].numpy(), expected)


def test_loss_and_accuracy_are_the_papers() -> None:
    """Equation 2: the mean over images and rotations of -log of the probability of the rotation that was made."""
    ours = method()
    network = copy.deepcopy(torch.nn.Sequential(ours.backbone, ours.head))
    batch = random_batch(ours, 0)
    turned = [np.rot90(image.numpy(), turns, axes=(1, 2)).copy() for image in batch.views[0] for turns in range(4)]
    logits = network(torch.tensor(np.stack(turned))).detach().double().numpy()
    losses, hits = [], []
    for row, values in enumerate(logits):
        exponentials = [math.exp(value) for value in values]
        losses.append(-math.log(exponentials[row % 4] / sum(exponentials)))
        hits.append(max(range(4), key=lambda turns, values=values: values[turns]) == row % 4)
    output = ours.loss(batch)
    assert output.loss.item() == pytest.approx(np.mean(losses), rel=1e-5)
    assert output.logs["accuracy"].item() == pytest.approx(np.mean(hits))


def test_images_that_look_the_same_turned_cannot_be_told() -> None:
    """All four rotations are then one image: the loss is log 4 whatever network says so evenly, a quarter is right."""
    ours = method()
    with torch.no_grad():
        ours.head.bias.zero_()
        ours.head.weight[:] = ours.head.weight[0]
    output = ours.loss(Batch((torch.full((8, 3, 12, 12), 0.3),)))
    assert output.loss.item() == pytest.approx(math.log(4), rel=1e-6)
    assert output.logs["accuracy"].item() == 0.25


def test_two_groups_are_two_halves_of_the_images() -> None:
    """So that two replicas with a group each see what one with two groups sees."""
    ours = method(bn_groups=2)
    halves = method()
    batch = random_batch(ours, 0)
    parts = [halves.loss(Batch((batch.views[0][rows],))) for rows in (slice(0, 4), slice(4, 8))]
    whole = ours.loss(batch)
    assert whole.loss.item() == pytest.approx(sum(part.loss.item() for part in parts) / 2, rel=1e-5)
    accuracies = [part.logs["accuracy"].item() for part in parts]
    assert whole.logs["accuracy"].item() == pytest.approx(sum(accuracies) / 2)
    assert isinstance(ours.backbone, ResNet)


def test_the_loss_stays_float32_under_autocast() -> None:
    logits, labels = torch.randn(6, 4), torch.arange(6) % 4
    plain = classify(logits, labels, SingleProcess()).loss
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(classify(logits, labels, SingleProcess()).loss, plain)
        assert classify(logits.bfloat16(), labels, SingleProcess()).loss.dtype == torch.float32
