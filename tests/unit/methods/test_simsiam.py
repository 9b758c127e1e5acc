import copy

import pytest
import torch
from torch import Tensor, nn

from ssl_backdoor.methods.build import build_backbone
from ssl_backdoor.methods.simsiam import SimSiam, embedding_std
from ssl_backdoor.specs import SimSiamSpec
from tests.support.tiny_training import BACKBONE, random_batch

SPEC = SimSiamSpec(projector_hidden_dim=16, embedding_dim=8, predictor_hidden_dim=4)


def method(bn_groups: int = 1) -> SimSiam:
    return SimSiam(SPEC, build_backbone(BACKBONE, bn_groups, 0), 0).train()


def cosine(one: Tensor, other: Tensor) -> Tensor:
    return ((one * other).sum(1) / one.norm(dim=1) / other.norm(dim=1)).mean()


def test_loss_and_gradients_are_the_papers() -> None:
    """Algorithm 1 of the paper with the targets computed apart, by a copy that no gradient can reach."""
    ours = method().double()
    batch = random_batch(ours, 0)
    first, second = (view.double() for view in batch.views)
    encoder = nn.Sequential(ours.backbone, ours.projector)
    with torch.no_grad():
        targets = [copy.deepcopy(encoder)(view) for view in (first, second)]
    predictor = ours.predictor
    expected = -(cosine(predictor(encoder(first)), targets[1]) + cosine(predictor(encoder(second)), targets[0])) / 2
    parameters = list(ours.parameters())
    expected_gradients = torch.autograd.grad(expected, parameters)
    # The loss itself works in float32.
    loss = ours.loss(batch._replace(views=(first, second))).loss
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    for gradient, goal in zip(torch.autograd.grad(loss, parameters), expected_gradients, strict=True):
        torch.testing.assert_close(gradient, goal, rtol=1e-3, atol=1e-6)


def test_projector_ends_in_batch_norm_no_affine() -> None:
    ours = method()
    kinds = [type(part) for part in ours.projector.modules() if not isinstance(part, nn.Sequential)]
    norm = nn.BatchNorm1d
    assert kinds == [nn.Linear, norm, nn.ReLU, nn.Linear, norm, nn.ReLU, nn.Linear, norm]
    embeddings = ours.projector(ours.backbone(random_batch(ours, 0).views[0]))
    torch.testing.assert_close(embeddings.mean(0), torch.zeros(8), rtol=0, atol=1e-5)
    torch.testing.assert_close(embeddings.var(0, correction=0), torch.ones(8), rtol=0, atol=0.02)
    assert not [name for name, _ in ours.projector[-1].named_parameters()]


def test_the_gauge_is_logged_for_the_first_view_of_the_batch() -> None:
    ours = method()
    batch = random_batch(ours, 0)
    embeddings = copy.deepcopy(nn.Sequential(ours.backbone, ours.projector))(batch.views[0]).detach().numpy()
    lengths = (embeddings**2).sum(1, keepdims=True) ** 0.5
    expected = (embeddings / lengths).std(0).mean()
    logs = ours.loss(batch).logs
    assert list(logs) == ["embedding_std"]
    assert logs["embedding_std"].item() == pytest.approx(expected, rel=1e-5)
    assert not logs["embedding_std"].requires_grad


def test_gauge_of_a_collapse_is_0_and_of_even_directions_one_over_root_of_d() -> None:
    assert embedding_std(torch.tensor([[3.0, 4.0]]) * torch.tensor([[1.0], [2.0], [5.0]])).item() < 1e-6
    even = torch.cat([torch.eye(16), -2 * torch.eye(16)])
    assert embedding_std(even).item() == pytest.approx(1 / 4, rel=1e-6)
