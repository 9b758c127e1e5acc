import copy
import math

import pytest
import torch
from torch import Tensor, nn

from ssl_backdoor.methods.build import build_backbone
from ssl_backdoor.methods.simclr import SimCLR
from ssl_backdoor.specs import SimCLRSpec
from tests.support.tiny_training import BACKBONE, random_batch

SPEC = SimCLRSpec(projector_hidden_dim=16, embedding_dim=8, temperature=0.2)


def method(bn_groups: int = 1) -> SimCLR:
    return SimCLR(SPEC, build_backbone(BACKBONE, bn_groups, 0), 0).train()


def slow_loss(first: Tensor, second: Tensor) -> float:
    """The paper's algorithm 1, over the embeddings (B, D) of the two views, of any length."""
    views = torch.cat([first, second]).detach().double()
    size = len(views)
    losses = []
    for i in range(size):
        similar = [float(views[i] @ views[k] / views[i].norm() / views[k].norm()) / 0.2 for k in range(size)]
        negatives = sum(math.exp(similar[k]) for k in range(size) if k != i)
        losses.append(-math.log(math.exp(similar[(i + size // 2) % size]) / negatives))
    return sum(losses) / size


def test_loss_is_the_papers_with_both_views_in_one_batch() -> None:
    ours = method()
    network = copy.deepcopy(nn.Sequential(ours.backbone, ours.projector))
    batch = random_batch(ours, 0)
    first, second = batch.views
    expected = slow_loss(*network(torch.cat([first, second])).chunk(2))
    assert ours.loss(batch).loss.item() == pytest.approx(expected, rel=1e-4)
    assert ours.loss(batch._replace(views=(second, first))).loss.item() == pytest.approx(expected, rel=1e-4)


def test_a_batch_norm_group_holds_both_views_of_its_images() -> None:
    ours = method(bn_groups=2)
    network = nn.Sequential(*(copy.deepcopy(method()).children())).train()  # the same weights, one group
    batch = random_batch(ours, 0)
    halves = [network(torch.cat([view[part] for view in batch.views])) for part in (slice(0, 4), slice(4, 8))]
    first, second = (torch.cat([half.chunk(2)[v] for half in halves]) for v in (0, 1))
    assert ours.loss(batch).loss.item() == pytest.approx(slow_loss(first, second), rel=1e-4)


def test_projector_is_linear_norm_relu_linear_norm() -> None:
    kinds = [type(part) for part in method().projector.modules() if not isinstance(part, nn.Sequential)]
    assert kinds == [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear, nn.BatchNorm1d]
